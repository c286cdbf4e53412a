"""Run folders on disk (host): what a training run leaves behind, and reading it back strictly.

config.json        the options of the run, enough to rebuild its task and its untrained model, and to go on
metrics.jsonl      one line a training step; lines with held-out results between
checkpoints/       the whole training state at some steps, such as 000040: see `jaxcalc.checkpoint`
model.safetensors  the trained parameters, one array a leaf, named by its path
summary.json       the results; written last, so a run without it is unfinished
learning_curve.png
explorer.html      the page that explore.py makes of all this
nonfinite/         batches whose step was not finite, and where it went wrong
.lock, .writer     there while a process writes to the folder
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import filelock
import jax
import numpy as np
import optax
import safetensors.numpy

from jaxcalc.backprop import NonFinite
from jaxcalc.batch import Batch
from jaxcalc.errors import InputError
from jaxcalc.model import ModelConfig, config_of, init
from jaxcalc.optimizers import make_optimizer
from jaxcalc.params import Params
from jaxcalc.runs import checkpoint
from jaxcalc.runs.files import write_whole
from jaxcalc.runs.share import load_params
from jaxcalc.scale import processes
from jaxcalc.tasks.drawn import arithmetic
from jaxcalc.tasks.table import Calculator, calculator
from jaxcalc.tasks.task import Task
from jaxcalc.training import TrainState, create_state

FORMAT = 3
"""The version of the run folder's layout, written into config.json."""

CONFIG, METRICS, MODEL, SUMMARY, CURVE, EXPLORER = (
    "config.json", "metrics.jsonl", "model.safetensors", "summary.json", "learning_curve.png", "explorer.html",
)  # fmt: skip
CHECKPOINTS, NONFINITE = "checkpoints", "nonfinite"
_LOCK, _WRITER = ".lock", ".writer"
_BARELY_BEGUN = {_LOCK, _WRITER, f"{CONFIG}.partial"}
_MADE_LATER = (
    "lens/*.png", "lens/*.svg", "lens/findings.*",
    "model.onnx", "model.stablehlo", "model.vocabulary.json", "*.partial",
)  # fmt: skip

KEEPING = (
    "steps", "snapshots", "snapshot_steps", "checkpoint_every", "keep", "skip_nonfinite", "microbatches", "remat",
    "scan", "mesh", "fully_sharded",
)  # fmt: skip
"""What of a run's configuration may change when it is resumed: of what a step does it changes at most the rounding."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, read back."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    task: Task
    params: Params


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `InputError` where a new run cannot be in a folder: it is not empty or, with `overwrite`, not a run's."""
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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the right to write a run's folder, which is made if need be. One process at a time has it.

    Raises `InputError` at once, where another process has it, naming that, and where the folder cannot be written.
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


def start_run(path: Path, config: dict[str, Any], overwrite: bool) -> None:
    """Make the folder of a new run and write its configuration.

    With `overwrite`, the files of an earlier run there are deleted, and only those.

    Raises `InputError` as `check_free` does, and where the folder cannot be written.
    """
    check_free(path, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # The configuration stays to the end: with it, a folder that is half deleted can be overwritten again.
        for name in (SUMMARY, METRICS, MODEL, CURVE, EXPLORER, *_MADE_LATER, f"{NONFINITE}/[0-9]*"):
            for file in path.glob(name):
                file.unlink()
        for folder in (path / CHECKPOINTS).glob("[0-9]*"):  # damaged and half-written ones too
            checkpoint.remove(folder)
        for name in (CHECKPOINTS, NONFINITE, "lens"):
            with contextlib.suppress(OSError):  # not there, or not empty
                (path / name).rmdir()
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; choose another --run-dir") from error
    write_config(path, config)


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write the configuration of a run. Raises `InputError` where it cannot be written."""
    write_json(path / CONFIG, {"format": FORMAT, **config})


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a run, finished or not.

    Raises `InputError` for a folder that is missing, not a run, or of another version.
    """
    try:
        is_there = path.is_dir()
    except OSError as error:
        raise InputError(f"cannot look into {path}: {error.strerror}") from error
    if not is_there:
        raise InputError(f"there is no run folder {path}; train one with: python experiments/train.py --run-dir {path}")
    config = _read_json(path, CONFIG, f"{path} is not a run folder: it has no {CONFIG}")
    found = config.pop("format", None)
    if found != FORMAT:
        raise InputError(f"{path / CONFIG} has format {found!r}; this version of jaxcalc reads {FORMAT}")
    return config


def load_run(path: Path) -> Run:
    """Return a finished run, its task rebuilt and its parameters validated.

    Raises `InputError` for a folder that is missing, not a run, unfinished, written by
    other code, or whose files contradict each other.
    """
    config = read_config(path)
    unfinished = (
        f"{path} is unfinished: it has no {SUMMARY}; finish it with: python experiments/train.py --resume {path}"
    )
    summary = _read_json(path, SUMMARY, unfinished)
    try:
        task = task_of(config["task"])
        model = ModelConfig(**config["model"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path / CONFIG} was written by other code: {error!r}") from error
    params = load_params(path / MODEL)
    found = config_of(params)
    if found != model:
        raise InputError(f"{path / MODEL} holds a model of {found}, but {CONFIG} says {model}")
    if found.vocab_size != task.vocab_size or found.context_length < task.context_length:
        raise InputError(f"{path / MODEL} has vocabulary {found.vocab_size} and context {found.context_length}; "
                         f"the run's task needs {task.vocab_size} and {task.context_length}")  # fmt: skip
    return Run(path, config, summary, task, params)


def task_of(config: dict[str, Any]) -> Task:
    """Return the task of a run from the "task" entry of its configuration.

    That is the arguments of `jaxcalc.arithmetic` where it has a notation, else those of `jaxcalc.calculator`.
    """
    make = arithmetic if "notation" in config else calculator
    return make(**{**config, "operations": tuple(config["operations"])})


def calculator_of(run: Run) -> Calculator:
    """Return the task of a run that lists all its problems. Raises `InputError` where the run draws them."""
    if not isinstance(run.task, Calculator):
        raise InputError(
            f"the problems of {run.path} were drawn; this looks at a complete table, as a run without --notation has it"
        )
    return run.task


def optimizer_of(config: dict[str, Any]) -> optax.GradientTransformation:
    """Return the optimizer of a run from its configuration."""
    return make_optimizer(config["optimizer"], config["schedule_steps"], config["learning_rate"],
                          config["weight_decay"], config["clip_norm"])  # fmt: skip


def state_like(config: dict[str, Any]) -> TrainState:
    """Return the shapes and dtypes of a run's training state, from its configuration; nothing is computed."""
    model = ModelConfig(**config["model"])
    return jax.eval_shape(lambda: create_state(init(jax.random.key(0), model), optimizer_of(config)))


def snapshot_steps(path: Path) -> list[int]:
    """Return the steps at which a run's folder holds a checkpoint, ascending."""
    return checkpoint.steps(path / CHECKPOINTS)


def load_snapshot(run: Run, step: int) -> TrainState:
    """Return the training state of a run at a step, bit for bit as it was.

    Raises `InputError` for a step without a checkpoint, listing those there are, for one that is
    damaged, and for one that is not of this run.
    """
    return load_checkpoint(run.path, run.config, step)[0]


def load_checkpoint(path: Path, config: dict[str, Any], step: int) -> tuple[TrainState, dict[str, Any]]:
    """Return the training state of a run at a step, and the manifest; see `load_snapshot`."""
    steps = snapshot_steps(path)
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "it has none; train it again with --snapshots"
        raise InputError(f"{path} has no snapshot of step {step}; {there}")
    state, manifest = checkpoint.restore(path / CHECKPOINTS, step, state_like(config))
    _check_same(path, config, manifest)
    return state, manifest


def resume(
    path: Path, config: dict[str, Any], warn: Callable[[str], None], like: TrainState | None = None
) -> tuple[TrainState, dict[str, Any]] | None:
    """Return the newest good state of a run and its manifest; only for one who holds `writing`.

    It lies where `like` says, the run's `state_like` with shardings, or else on one device.

    None where the run was ended before it had saved its first. What a killed writer left behind is deleted. `warn` is
    told of that, of damaged checkpoints passed over, and of everything because of which the run may not go on bit for
    bit.

    Raises `InputError` where there is no good checkpoint, and where one is not of this run, listing every difference.
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
    state, manifest = checkpoint.restore_newest(path / CHECKPOINTS, like or state_like(config), warn)
    _check_same(path, config, manifest)
    changed = checkpoint.differences(flat(manifest["environment"]), flat(environment(config)))
    if changed:
        warn(f"from here on the run is not bit for bit what it would have been: {'; '.join(changed)}")
    return state, manifest


def _check_same(path: Path, config: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raise `InputError` with every difference between a run's configuration and that in a checkpoint."""
    there, here = (
        {name: value for name, value in each.items() if name not in KEEPING}
        for each in (manifest["config"], _plain(config))
    )
    changed = checkpoint.differences(flat(there), flat(here))
    if changed:
        raise InputError(f"{path / CHECKPOINTS}, step {manifest['step']:,}, is of another run than {CONFIG}: "
                         f"{'; '.join(changed)}")  # fmt: skip


def environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the bits of a result depend on beside what a step does: versions, devices, threads, the mesh, …"""
    devices = jax.devices()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = {
        "device": devices[0].device_kind,
        "n_devices": len(devices),
        "processes": jax.process_count(),
        "threads": threads,
    }
    return {
        "versions": versions(),
        **used,
        "mesh": config.get("mesh", ""),
        "sharded": config.get("fully_sharded", False),
        **{name: config[name] for name in ("microbatches", "remat", "scan") if name in config},
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("jaxcalc", "jax", "jaxlib", "optax", "flax", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


class Metrics:
    """The metrics.jsonl of a run, open for writing: each step once, in order.

    A checkpoint holds the file's `mark`. Going on from it cuts off all that was written after it.
    """

    def __init__(self, path: Path, mark: dict[str, Any] | None = None) -> None:
        """Open the file anew or, with a mark, go on there.

        Raises `InputError` where what is before the mark has changed.
        """
        try:
            before = b"" if mark is None else path.read_bytes()[: mark["bytes"]]
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

    def write(self, *rows: dict[str, Any]) -> None:
        """Append a line for each row. Raises `InputError` where the disk is full."""
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self._file.name} ({len(data):,} bytes): {error.strerror}") from error
        self._hash.update(data)
        self._n_bytes += len(data)

    def mark(self) -> dict[str, Any]:
        """Make sure that all is on the disk, and return how many bytes it is and their hash."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self._file.name} ({self._n_bytes:,} bytes): {error.strerror}") from error
        return self._mark()

    def _mark(self) -> dict[str, Any]:
        return {"bytes": self._n_bytes, "sha256": self._hash.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, which was said then
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (path / METRICS).read_text(encoding="utf-8").splitlines()]


def save_nonfinite(path: Path, step: int, batch: Batch, found: NonFinite | None, metrics: dict[str, float]) -> Path:
    """Write the batch of a step that was not finite, and beside it where that began; return the batch's file."""
    file = path / NONFINITE / f"{step:06}.safetensors"
    file.parent.mkdir(exist_ok=True)
    said = {"step": step, "metrics": {name: str(value) for name, value in metrics.items()}}
    write_json(file.with_suffix(".json"), {**said, "first": found._asdict() if found else None})
    arrays = {"tokens": np.asarray(batch.tokens), "mask": np.asarray(batch.mask)}
    write_whole(file, [safetensors.numpy.save(arrays)])
    return file


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either whole or not there. Raises `InputError` where it cannot be written."""
    write_whole(path, [(json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()])


def _read_json(path: Path, name: str, missing: str) -> dict[str, Any]:
    try:
        value = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(missing) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path / name}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path / name} was written by other code: it is not a JSON object")
    return value


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested entries under dotted names.

    >>> flat({"model": {"d_model": 64}, "seed": 0})
    {'model.d_model': 64, 'seed': 0}
    """
    entries: dict[str, Any] = {}
    for name, value in config.items():
        entries |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return entries
