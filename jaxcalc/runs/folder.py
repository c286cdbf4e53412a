"""Run folders: what a training run leaves behind, and how it is read back strictly.

config.json        the options of the run: enough to rebuild its task and its untrained model, and to go on
metrics.jsonl      a line per training step; lines with held-out results between
checkpoints/       the whole training state at some steps, such as 000040: see `jaxcalc.runs.checkpoint`
model.safetensors  the trained parameters, an array per leaf, named by its path
summary.json       the results; written last, so a run without it is unfinished
learning_curve.png
explorer.html      the page that explore.py makes of all this
lens/              the figures and findings of lens.py
nonfinite/         the batches whose step was not finite, and where it went wrong
.lock, .writer     there while a process writes to the folder
"""

import contextlib
import dataclasses
import os
import platform
import socket
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import filelock
import jax

from jaxcalc.errors import InputError
from jaxcalc.model import config_of
from jaxcalc.params import Params
from jaxcalc.reprs import outline
from jaxcalc.runs import checkpoint
from jaxcalc.runs.config import RunConfig
from jaxcalc.runs.configfile import (
    CONFIG,
    AnyConfig,
    Json,
    changes,
    flat,
    from_json,
    read_config,
    read_json,
    write_config,
)
from jaxcalc.runs.files import PathLike
from jaxcalc.runs.manifest import Manifest, differences
from jaxcalc.runs.metrics import METRICS
from jaxcalc.runs.share import load_params
from jaxcalc.scale import processes
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task
from jaxcalc.training import TrainState

MODEL, SUMMARY, CURVE, EXPLORER = "model.safetensors", "summary.json", "learning_curve.png", "explorer.html"
CHECKPOINTS, NONFINITE = "checkpoints", "nonfinite"
_LENS = ("lens", "lens_step_[0-9]*")
_LOCK, _WRITER = ".lock", ".writer"
_BARELY_BEGUN = {_LOCK, _WRITER, f"{CONFIG}.partial"}
_MADE = (
    SUMMARY, METRICS, MODEL, CURVE, EXPLORER, f"{NONFINITE}/[0-9]*",
    *(f"{folder}/{name}" for folder in _LENS for name in ("*.png", "*.svg", "findings.*")),
    "model.onnx", "model.stablehlo", "model.vocabulary.json", "*.partial",
)  # fmt: skip
"""The files of a run, without its configuration and its checkpoints."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, read back."""

    path: Path
    config: RunConfig
    summary: Json
    task: Task
    params: Params

    __repr__ = outline


def load_run(path: PathLike) -> Run:
    """Return a finished run, its task rebuilt and its parameters checked.

    Raises `InputError` for a folder that is missing, not a run, unfinished or written by other code, and for files
    that contradict each other.
    """
    path = Path(path)
    config = read_config(path)
    unfinished = (
        f"{path} is unfinished: it has no {SUMMARY}; finish it with: python experiments/train.py --resume {path}"
    )
    summary = read_json(path, SUMMARY, unfinished)
    task = config.make_task()
    params = load_params(path / MODEL)
    found = config_of(params)
    if found.vocab_size != task.vocab_size or found.context_length < task.context_length:
        raise InputError(
            f"{path / MODEL} has vocabulary {found.vocab_size} and context {found.context_length}; "
            f"the run's task needs {task.vocab_size} and {task.context_length}"
        )
    if found != config.make_model():
        raise InputError(f"{path / MODEL} holds a model of {found}, but {CONFIG} says {config.make_model()}")
    return Run(path, config, summary, task, params)


def calculator_of(run: Run) -> Calculator:
    """Return the task of a run that lists all its problems. Raises `InputError` for a run that draws them."""
    if not isinstance(run.task, Calculator):
        raise InputError(
            f"the problems of {run.path} were drawn; this needs a complete table, as a run without --notation has it"
        )
    return run.task


def checkpoint_steps(path: PathLike) -> list[int]:
    """Return the steps at which a run's folder holds a checkpoint, ascending."""
    return checkpoint.steps(Path(path) / CHECKPOINTS)


def load_snapshot(run: Run, step: int) -> TrainState:
    """Return the training state of a run at a step, bit for bit as it was.

    Raises `InputError` for a step without a checkpoint (it lists those there are), for a damaged one, and for one of
    another run.
    """
    return load_checkpoint(run.path, run.config, step)[0]


def load_checkpoint(path: PathLike, config: RunConfig, step: int) -> tuple[TrainState, Manifest]:
    """Return the training state of a run at a step, and the manifest; see `load_snapshot`."""
    steps = checkpoint_steps(path)
    if step not in steps:
        listed = f"there are {', '.join(map(str, steps))}" if steps else "it has none; train it again with --snapshots"
        raise InputError(f"{path} has no snapshot of step {step}; {listed}")
    state, manifest = checkpoint.restore(Path(path) / CHECKPOINTS, step, config.state_like())
    _check_same(Path(path), config, manifest)
    return state, manifest


def resume(
    path: Path, config: AnyConfig, warn: Callable[[str], None], like: TrainState
) -> tuple[TrainState, Manifest] | None:
    """Return the newest good state of a run and its manifest, or None if the run ended before it had saved one.

    Only for a process that holds `writing`. It deletes what a killed writer left behind. It tells `warn` of that, of
    damaged checkpoints, and of every difference that may change the bits of the run.

    Args:
      like: the shapes of the state, and the shardings to restore it to.

    Raises `InputError` if no checkpoint is good, or if one is of another run (it lists every difference).
    """
    left: list[str] = []
    if processes.is_main():
        left = checkpoint.clean(path / CHECKPOINTS) + [file.name for file in path.glob("*.partial")]
        for file in path.glob("*.partial"):
            file.unlink()
    processes.wait("the folder is clean")
    if left:
        warn(f"removed what was not completely written: {', '.join(left)}")
    if not any((path / CHECKPOINTS).glob("[0-9]*")):
        warn(f"{path} has no checkpoint yet and begins anew")
        return None
    state, manifest = checkpoint.restore_newest(path / CHECKPOINTS, like, warn)
    _check_same(path, config, manifest)
    changed = differences(flat(manifest["environment"]), flat(environment(config)))
    if changed:
        warn(f"from here on the run is not bit for bit what it would have been: {'; '.join(changed)}")
    return state, manifest


def _check_same(path: Path, config: AnyConfig, manifest: Manifest) -> None:
    """Raise `InputError` with every difference between a run's configuration and that in a checkpoint."""
    where = f"{path / CHECKPOINTS}, step {manifest['step']:,},"
    there = from_json(manifest["config"], where) if isinstance(config, RunConfig) else manifest["config"]
    changed = changes(there, config)
    if changed:
        raise InputError(f"{where} is of another run than {CONFIG}: {'; '.join(changed)}")


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
        for folder in (match for name in (CHECKPOINTS, NONFINITE, *_LENS) for match in path.glob(name)):
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


def environment(config: AnyConfig) -> Json:
    """Return what the bits of a result depend on beside the configuration: versions, devices, threads and so on."""
    devices = jax.devices()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    computing = config.computing if isinstance(config, RunConfig) else None
    return {
        "versions": versions(),
        "device": devices[0].device_kind,
        "n_devices": len(devices),
        "processes": jax.process_count(),
        "threads": threads,
        "mesh": computing.mesh if computing else "",
        "sharded": computing.fully_sharded if computing else False,
        **({name: getattr(computing, name) for name in ("microbatches", "remat", "scan")} if computing else {}),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("jaxcalc", "jax", "jaxlib", "optax", "flax", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
