"""metrics.jsonl: a line per training step, and lines with held-out results between."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxcalc.errors import InputError
from jaxcalc.runs import checkpoint
from jaxcalc.runs.files import CHECKPOINTS, SUMMARY, Mark, PathLike, mark_of, read_bytes
from jaxcalc.runs.manifest import read_manifest
from jaxcalc.runs.summary import read_summary

METRICS = "metrics.jsonl"
_NUMBERS = {"step", "loss"}


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
    """Return the lines of the metrics.jsonl in a run's folder.

    Their hash must be that in the summary of a finished run or, without one, that in the newest checkpoint.

    Raises `InputError` if the file is missing, is not what was written, or has a line that is not a JSON object.
    """
    path, file = Path(path), Path(path) / METRICS
    data = read_bytes(file)
    mark = read_summary(path)[1].get(METRICS) if (path / SUMMARY).exists() else None
    written = data if mark else b""
    if not mark and (steps := checkpoint.steps(path / CHECKPOINTS)):
        mark = read_manifest(path / CHECKPOINTS, steps[-1]).get("metrics")
        written = data[: mark["bytes"]] if mark else b""
    if mark and mark != mark_of(written):
        raise InputError(f"{file} is not what was written: its hash is wrong; put back a copy of it")
    return [_row(line, f"line {number} of {file}") for number, line in enumerate(data.splitlines(), 1)]


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON; put back a copy of the file") from error
    if not isinstance(row, dict) or not all(isinstance(row[name], int | float) for name in _NUMBERS & row.keys()):
        raise InputError(f"{where} is not an object whose step and loss are numbers; put back a copy of the file")
    return row
