"""Marks of files (host): the model file of a finished run says how the other files of the run were written."""

import hashlib
from pathlib import Path
from typing import Any

from jaxcalc.errors import InputError
from jaxcalc.runs.files import MODEL
from jaxcalc.runs.share import load_metadata

MARKS = "files"
"""The entry of the model file's header that holds the marks, by name of file."""
Mark = dict[str, int | str]
"""How many bytes a file has, and their hash."""


def mark_of(data: bytes) -> Mark:
    """Return the mark of a file that holds these bytes."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_marked(path: Path, name: str) -> tuple[bytes, bool]:
    """Return what a file of a finished run holds, and whether the model file has a mark of it.

    Raises `InputError` if the file cannot be read, or is not what was written.
    """
    data = read_bytes(path / name)
    marks: Any = load_metadata(path / MODEL).get(MARKS)
    if not isinstance(marks, dict) or name not in marks:
        return data, False  # an earlier version or other code wrote the run
    if marks[name] != mark_of(data):
        raise InputError(f"{path / name} is not what was written, as {MODEL} beside it says; put back a copy of it")
    return data, True


def read_bytes(file: Path) -> bytes:
    """Return what a file holds. Raises `InputError` if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; put back a copy of it") from error
