"""Run folders on disk (host): what a training run leaves behind, and reading it back strictly.

config.json        the options of the run, enough to rebuild its task and its untrained model
metrics.jsonl      one line a training step; lines with held-out results between
model.safetensors  the trained parameters, one array a leaf, named by its path
snapshots/         the whole training state at some steps, such as 000040.safetensors: parameters and optimizer
summary.json       the results; written last, so a run without it is unfinished
learning_curve.png
explorer.html      the page that explore.py makes of all this
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from jaxcalc.errors import InputError
from jaxcalc.model import ModelConfig, Params, config_of, init
from jaxcalc.tasks import Task, calculator
from jaxcalc.training import TrainState, create_state, make_optimizer
from jaxcalc.trees import named_leaves

FORMAT = 2
"""The version of the run folder's layout, written into config.json."""

CONFIG, METRICS, MODEL, SUMMARY, CURVE, EXPLORER = (
    "config.json", "metrics.jsonl", "model.safetensors", "summary.json", "learning_curve.png", "explorer.html",
)  # fmt: skip
SNAPSHOTS = "snapshots"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, read back."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    task: Task
    params: Params


def start_run(path: Path, config: dict[str, Any], overwrite: bool) -> None:
    """Make the folder of a new run and write its configuration.

    With `overwrite`, the files of an earlier run there are deleted, and only those.

    Raises `InputError` where the folder is not empty (or, with `overwrite`, is not a
    run's) and where it cannot be written.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if not path.is_dir() or not (path / CONFIG).is_file():
                raise InputError(f"{path} exists and is not a run folder; choose another --run-dir")
            if not overwrite:
                raise InputError(f"{path} holds a run already; choose another --run-dir or add --overwrite")
            for name in (SUMMARY, METRICS, MODEL, CURVE, EXPLORER, CONFIG):
                (path / name).unlink(missing_ok=True)
            for step in snapshot_steps(path):
                _snapshot(path, step).unlink()
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, {"format": FORMAT, **config})
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; choose another --run-dir") from error


def task_of(config: dict[str, Any]) -> Task:
    """Return the task of a run from the "task" entry of its configuration, the arguments of `jaxcalc.calculator`."""
    return calculator(**{**config, "operations": tuple(config["operations"])})


def optimizer_of(config: dict[str, Any]) -> optax.GradientTransformation:
    """Return the optimizer of a run from its configuration."""
    return make_optimizer(config["optimizer"], config["steps"], config["learning_rate"], config["weight_decay"],
                          config["clip_norm"])  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def load_run(path: Path) -> Run:
    """Return a finished run, its task rebuilt and its parameters validated.

    Raises `InputError` for a folder that is missing, not a run, unfinished, written by
    other code, or whose files contradict each other.
    """
    if not path.is_dir():
        raise InputError(f"there is no run folder {path}; train one with: python experiments/train.py --run-dir {path}")
    config = _read_json(path, CONFIG, f"{path} is not a run folder: it has no {CONFIG}")
    if config.get("format") != FORMAT:
        raise InputError(f"{path / CONFIG} has format {config.get('format')!r}; this version of jaxcalc reads {FORMAT}")
    summary = _read_json(path, SUMMARY, f"{path} is unfinished: it has no {SUMMARY}; train it again with --overwrite")
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


def save_params(path: Path, params: Params) -> None:
    """Write parameters as a safetensors file, one array a leaf under its dotted path."""
    _save_arrays(path, params)


def load_params(path: Path) -> Params:
    """Return the parameters in a safetensors file, validated leaf by leaf.

    Raises `InputError` for a file that is missing, broken, not finite or not of the model's layout.
    """
    arrays = _load_arrays(path)
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise InputError(f"{path}: {name} is {array.dtype}, or not finite; expected finite float32")
    try:
        params: Any = unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep=".")
    except TypeError as error:
        raise InputError(f"{path}: the names do not form a tree") from error
    blocks = params.get("blocks", {})
    if not isinstance(blocks, dict) or set(blocks) != {str(index) for index in range(len(blocks))}:
        raise InputError(f"{path}: blocks are {list(blocks)}; expected 0, 1, … without a gap")
    params["blocks"] = [blocks[str(index)] for index in range(len(blocks))]
    config_of(params)
    return params


def save_snapshot(run: Path, state: TrainState) -> None:
    """Write the whole training state, as it is at its step, into a run's folder."""
    path = _snapshot(run, int(state.step))
    path.parent.mkdir(exist_ok=True)
    _save_arrays(path, {"params": state.params, "opt_state": state.opt_state})


def snapshot_steps(run: Path) -> list[int]:
    """Return the steps at which a run's folder holds a snapshot, ascending."""
    return sorted(int(path.stem) for path in (run / SNAPSHOTS).glob("*.safetensors") if path.stem.isdigit())


def load_snapshot(run: Run, step: int) -> TrainState:
    """Return the training state of a run at a step, bit for bit as it was.

    Raises `InputError` for a step without a snapshot, listing those there are, and
    for a file that does not hold the state that the run's configuration describes.
    """
    steps = snapshot_steps(run.path)
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "it has none; train it again with --snapshots"
        raise InputError(f"{run.path} has no snapshot of step {step}; {there}")
    path = _snapshot(run.path, step)
    arrays = _load_arrays(path)
    model = ModelConfig(**run.config["model"])
    like = jax.eval_shape(lambda: create_state(init(jax.random.key(0), model), optimizer_of(run.config)))
    saved = {"params": like.params, "opt_state": like.opt_state}
    leaves = []
    for name, leaf in named_leaves(saved).items():
        array = arrays.pop(name, np.empty(0))
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise InputError(f"{path}: {name} is missing or not {leaf.dtype}{list(leaf.shape)}")
        leaves.append(jnp.asarray(array))
    if arrays:
        raise InputError(f"{path}: {next(iter(arrays))} belongs to no state of this run")
    return like.replace(step=jnp.int32(step), **jax.tree.unflatten(jax.tree.structure(saved), leaves))


def _snapshot(run: Path, step: int) -> Path:
    return run / SNAPSHOTS / f"{step:06}.safetensors"


def _save_arrays(path: Path, tree: Any) -> None:
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(safetensors.numpy.save(arrays))
    partial.replace(path)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


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
