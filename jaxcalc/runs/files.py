"""Files (host): the paths that callers may give, names in a run's folder, and writing a file whole or not at all."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from jaxcalc.errors import InputError

PathLike = str | os.PathLike[str]
"""What every public function takes as a path."""
MODEL, SUMMARY, CURVE, EXPLORER = "model.safetensors", "summary.json", "learning_curve.png", "explorer.html"
CHECKPOINTS, NONFINITE = "checkpoints", "nonfinite"
Mark = dict[str, int | str]
"""How many bytes a file has, and their hash: "bytes" and "sha256"."""


def mark_of(data: bytes) -> Mark:
    """Return the mark of a file that holds these bytes."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_bytes(file: Path) -> bytes:
    """Return what a file holds. Raises `InputError` if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; put back a copy of it") from error


def write_whole(path: PathLike, parts: Sequence[bytes]) -> None:
    """Write `parts` one after the other into a file, which is then complete or does not exist.

    An existing file is replaced only when the new one is on the disk.

    Raises `InputError` with the path, the number of bytes and the reason if the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({sum(map(len, parts)):,} bytes): {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
