"""The folder of a new run, and the right to write to a folder, which one process at a time has."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from jaxcalc.errors import InputError
from jaxcalc.runs import checkpoint
from jaxcalc.runs.configfile import CONFIG, AnyConfig, write_config
from jaxcalc.runs.files import CHECKPOINTS, CURVE, EXPLORER, MODEL, NONFINITE, SUMMARY
from jaxcalc.runs.metrics import METRICS

_FIGURES = ("lens", "lens_step_[0-9]*", "landscape")
_LOCK, _WRITER = ".lock", ".writer"
_BARELY_BEGUN = {_LOCK, _WRITER, f"{CONFIG}.partial"}
_MADE = (
    SUMMARY,
    METRICS,
    MODEL,
    CURVE,
    EXPLORER,
    f"{NONFINITE}/[0-9]*",
    *(f"{folder}/{name}" for folder in _FIGURES for name in ("*.png", "*.svg", "findings.*")),
    "model.onnx",
    "model.stablehlo",
    "model.vocabulary.json",
    "model.table.*",
    "*.partial",
)
"""The files of a run, without its configuration and its checkpoints."""


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `InputError` if a new run cannot be in a folder: it is not empty or, with `overwrite`, not a run's."""
    try:
        if not path.exists() or (path.is_dir() and not {child.name for child in path.iterdir()} - _BARELY_BEGUN):
            return
        is_run = (path / CONFIG).is_file()
    except OSError as error:
        raise InputError(f"cannot look into {path}: {error.strerror}; choose another --run-dir") from error
    if not is_run:
        raise InputError(f"{path} exists and is not a run folder; choose another --run-dir")
    if not overwrite:
        raise InputError(f"{path} holds a run already; choose another --run-dir or add --overwrite")


def start_run(path: Path, config: AnyConfig, overwrite: bool) -> None:
    """Make the folder of a new run and write its configuration.

    With `overwrite` it deletes the files of an earlier run there, and only those.

    Raises `InputError` as `check_free` does, and if the folder cannot be written.
    """
    check_free(path, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # The configuration stays to the end: with it, a folder that is half deleted can be overwritten again.
        for name in _MADE:
            for file in path.glob(name):
                file.unlink()
        for folder in (path / CHECKPOINTS).glob("[0-9]*"):  # damaged and half-written ones too
            checkpoint.remove(folder)
        for folder in (match for name in (CHECKPOINTS, NONFINITE, *_FIGURES) for match in path.glob(name)):
            with contextlib.suppress(OSError):  # it is not there, or not empty
                folder.rmdir()
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; choose another --run-dir") from error
    write_config(path, config)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the right to write to a run's folder, and make the folder if need be. One process at a time has it.

    Raises `InputError` at once if another process has it (and names that process), and if the folder cannot be
    written.
    """
    lock = filelock.FileLock(path / _LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        try:
            writer = (path / _WRITER).read_text()
        except OSError:  # it has only just begun
            writer = "another process"
        raise InputError(f"{path} is being written by {writer}; wait for it or stop it") from error
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    try:
        try:
            (path / _WRITER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}") from error
        yield
    finally:
        (path / _WRITER).unlink(missing_ok=True)
        lock.release()
