"""config.json: a configuration as JSON, in the format that is written now and the one before."""

import dataclasses
import hashlib
import json
import platform
import types
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxcalc.errors import InputError
from jaxcalc.runs.config import FORMAT, RARE, RunConfig
from jaxcalc.runs.files import PathLike, write_whole
from jaxcalc.runs.manifest import differences
from jaxcalc.scale import cost

CONFIG = "config.json"
_CHECKSUM = "checksum"
AnyConfig = RunConfig | Mapping[str, Any]
"""The configuration of a run: a `RunConfig`, or any JSON object in a training script of one's own."""
Json = dict[str, Any]


def to_json(config: AnyConfig) -> Json:
    """Return a configuration as JSON gives it back."""
    values = {"format": FORMAT, **dataclasses.asdict(config)} if isinstance(config, RunConfig) else dict(config)
    return json.loads(json.dumps(values))


def from_json(values: Mapping[str, Any], where: str) -> RunConfig:
    """Return the configuration that a JSON object holds, in format 4 or 3.

    Raises `InputError` for any other object. The message begins with `where` and names the wrong entry.

    >>> from_json(to_json(RunConfig()), "config.json") == RunConfig()
    True
    """
    try:
        current = dict(values) if values.get("format", 3) == FORMAT else _from_format_3(values)
        current.pop("format", None)
        current.pop(_CHECKSUM, None)
        return _build(RunConfig, current, "")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{where} was written by other code: {error!r}") from error


def write_config(path: Path, config: AnyConfig) -> None:
    """Write the configuration of a run into its folder, with a checksum. Raises `InputError` if that fails."""
    values = to_json(config)
    write_json(path / CONFIG, with_checksum(values) if isinstance(config, RunConfig) else values)


def check_config(path: Path, config: AnyConfig) -> None:
    """Raise `InputError` if the file of a run's configuration is not what was written."""
    if isinstance(config, RunConfig):
        without_checksum(read_json(path, CONFIG, f"{path} has no {CONFIG}"), path / CONFIG)


def with_checksum(values: Json) -> Json:
    """Return a JSON object with a checksum of it at its end."""
    return {**values, _CHECKSUM: hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()}


def without_checksum(values: Json, file: Path) -> Json:
    """Return what `with_checksum` was given; what has no checksum is of an earlier version, and returned as it is.

    Raises `InputError` if the checksum is wrong.
    """
    rest = {name: value for name, value in values.items() if name != _CHECKSUM}
    if _CHECKSUM in values and values != with_checksum(rest):
        raise InputError(f"{file} is not what was written: its checksum is wrong; put back a copy of it")
    return rest


def read_config(path: PathLike) -> RunConfig:
    """Return the configuration of a run, finished or not.

    Raises `InputError` for a folder that is missing, not a run, or of another version.
    """
    path = Path(path)
    try:
        is_there = path.is_dir()
    except OSError as error:
        raise InputError(f"cannot look into {path}: {error.strerror}") from error
    if not is_there:
        raise InputError(f"there is no run folder {path}; train one with: python experiments/train.py --run-dir {path}")
    values = read_json(path, CONFIG, f"{path} is not a run folder: it has no {CONFIG}")
    found = values.get("format")
    if found not in (3, FORMAT):
        raise InputError(f"{path / CONFIG} has format {found!r}; this version of jaxcalc reads 3 and {FORMAT}")
    return from_json(values, str(path / CONFIG))


def changes(there: AnyConfig, here: AnyConfig) -> list[str]:
    """Return a line for each entry that differs and may not change when a run is resumed."""
    return differences(_fixed(there), _fixed(here))


def _fixed(config: AnyConfig) -> Json:
    entries = flat(to_json(config))
    if not isinstance(config, RunConfig):
        return entries
    free = {name for name, each in _named_fields(RunConfig) if each.metadata.get("may_change") == "resume"}
    return {name: value for name, value in entries.items() if name not in free}


def _named_fields(section: type, prefix: str = "") -> list[tuple[str, dataclasses.Field[Any]]]:
    """Return every field of a configuration and its sections under its dotted name."""
    found = []
    for each in dataclasses.fields(section):
        if dataclasses.is_dataclass(each.type) and isinstance(each.type, type):
            found += _named_fields(each.type, f"{prefix}{each.name}.")
        else:
            found.append((prefix + each.name, each))
    return found


def flat(entries: Mapping[str, Any], prefix: str = "") -> Json:
    """Return nested entries under dotted names.

    >>> flat({"model": {"d_model": 64}, "seed": 0})
    {'model.d_model': 64, 'seed': 0}
    """
    found: Json = {}
    for name, value in entries.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all. Raises `InputError` if it cannot be written."""
    write_whole(path, [(json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()])


def read_json(path: Path, name: str, missing: str) -> Json:
    """Return the JSON object in a file of a folder.

    Raises `InputError`, with the message `missing` if there is no such file.
    """
    try:
        value = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(missing) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path / name}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path / name} was written by other code: it is not a JSON object")
    return value


def _build(section: type, values: Mapping[str, Any], name: str) -> Any:
    """Return a dataclass from its values by name, each of the type that its field has."""
    hints = typing.get_type_hints(section)
    if set(values) != set(hints):
        odd = ", ".join(sorted(set(values) ^ set(hints)))
        raise KeyError(f"{name or 'it'} lacks or should not have: {odd}")
    built = {}
    for key, hint in hints.items():
        value = values[key]
        if dataclasses.is_dataclass(hint):
            value = _build(typing.cast(type, hint), value, key)
        elif typing.get_origin(hint) is tuple:
            value = tuple(value)
        if not _fits(value, hint):
            raise TypeError(f"{key} is {value!r:.60}")
        built[key] = value
    return section(**built)


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return all(_fits(each, parts[0]) for each in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _from_format_3(values: Mapping[str, Any]) -> Json:
    """Return the entries of format 3, which had all sections but two in one object, in their places of today."""
    task, model = values["task"], values["model"]
    copies = {name: task[name][RARE[0]] for name in ("copies", "inverse_copies") if name in task}
    fork = values.get("forked_from")
    names = {name.rpartition(".")[2] for name, _ in _named_fields(RunConfig)}
    odd = {*values, *task} - names - {"format", "task", "model", "operations"}
    if odd:
        raise KeyError(f"it should not have: {', '.join(sorted(odd))}")
    known = {
        **values,
        **task,
        **model,
        **copies,
        "output": "digits-reversed" if task.get("output") == "reversed" else task.get("output", "words"),
        "ops": [name.replace(" ", "-") for name in task["operations"]],
        "seed": values["seed"],
    }
    defaults = dataclasses.asdict(RunConfig())
    sections = {
        section: {name: known.get(name, default) for name, default in entries.items()}
        for section, entries in defaults.items()
        if isinstance(entries, dict)
    }
    return {
        **sections,
        "task_seed": task["seed"],
        "snapshot_steps": values["snapshot_steps"],
        "forked_from": fork and f"{fork['run']}@{fork['step']}",
    }


def environment(config: AnyConfig) -> Json:
    """Return what the bits of a result depend on beside the configuration: versions, devices, threads and so on."""
    devices = jax.devices()
    computing = config.computing if isinstance(config, RunConfig) else None
    return {
        "versions": versions(),
        "device": devices[0].device_kind,
        "n_devices": len(devices),
        "processes": jax.process_count(),
        "threads": cost.n_cores(),
        "mesh": computing.mesh if computing else "",
        "sharded": computing.fully_sharded if computing else False,
        **({name: getattr(computing, name) for name in ("microbatches", "remat", "scan")} if computing else {}),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("jaxcalc", "jax", "jaxlib", "optax", "flax", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
