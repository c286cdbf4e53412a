"""metrics.jsonl: a line per training step, and lines with held-out results between."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxcalc.errors import InputError
from jaxcalc.runs.files import PathLike

METRICS = "metrics.jsonl"
Mark = dict[str, int | str]
"""How many bytes a file had, and their hash."""


class MetricsFile:
    """The metrics.jsonl of a run, open for writing: each step once, in order.

    A checkpoint holds the file's `mark`. To go on from it cuts off all that was written after it.
    """

    def __init__(self, path: PathLike, mark: Mark | None = None) -> None:
        """Open the file anew or, with a mark, go on there.

        Raises `InputError` if what stands before the mark has changed.
        """
        path = Path(path)
        try:
            before = b"" if mark is None else path.read_bytes()[: int(mark["bytes"])]
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        self._hash, self._n_bytes = hashlib.sha256(before), len(before)
        if mark is not None and mark != self._mark():
            raise InputError(
                f"the first {mark['bytes']:,} bytes of {path} are not those that were written; put back a copy of it, "
                "or begin a new file with: --fork RUN@STEP --run-dir NEW"
            )
        self._file = path.open("r+b" if mark else "wb")
        self._file.truncate(self._n_bytes)
        self._file.seek(self._n_bytes)

    def write(self, *rows: Mapping[str, object]) -> None:
        """Append a line for each row. Raises `InputError` if the disk is full."""
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self._file.name} ({len(data):,} bytes): {error.strerror}") from error
        self._hash.update(data)
        self._n_bytes += len(data)

    def mark(self) -> Mark:
        """Make sure that every line is on the disk, and return how many bytes they are and their hash."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self._file.name} ({self._n_bytes:,} bytes): {error.strerror}") from error
        return self._mark()

    def _mark(self) -> Mark:
        return {"bytes": self._n_bytes, "sha256": self._hash.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the failed write has raised already
            self._file.close()


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """Return the lines of the metrics.jsonl in a run's folder."""
    return [json.loads(line) for line in (Path(path) / METRICS).read_text(encoding="utf-8").splitlines()]
