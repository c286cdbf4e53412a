"""Run folders on disk (host): what a training run leaves behind, and reading it back strictly.

config.json        the options of the run, enough to rebuild its task and its untrained model
metrics.jsonl      one line a training step; lines with held-out results between
model.safetensors  the trained parameters, one array a leaf, named by its path
summary.json       the results; written last, so a run without it is unfinished
learning_curve.png
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from jaxcalc.errors import InputError
from jaxcalc.model import ModelConfig, Params, config_of
from jaxcalc.tasks import Task, calculator
from jaxcalc.trees import named_leaves

FORMAT = 1
"""The version of the run folder's layout, written into config.json."""

CONFIG, METRICS, MODEL, SUMMARY, CURVE = (
    "config.json", "metrics.jsonl", "model.safetensors", "summary.json", "learning_curve.png")  # fmt: skip


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
            for name in (SUMMARY, METRICS, MODEL, CURVE, CONFIG):
                (path / name).unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, {"format": FORMAT, **config})
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; choose another --run-dir") from error


def task_of(config: dict[str, Any]) -> Task:
    """Return the task of a run from the "task" entry of its configuration, the arguments of `jaxcalc.calculator`."""
    return calculator(**{**config, "operations": tuple(config["operations"])})


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
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    partial = path.with_name(path.name + ".partial")
    safetensors.numpy.save_file(arrays, partial)
    partial.replace(path)


def load_params(path: Path) -> Params:
    """Return the parameters in a safetensors file, validated leaf by leaf.

    Raises `InputError` for a file that is missing, broken, not finite or not of the model's layout.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
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
