"""The manifest of a checkpoint (host): it reveals whether the checkpoint is still what was written.

`manifest.json` lies in the folder of its checkpoint, such as `000040/`, and is written last. It holds the step, the
fingerprint and the place of every leaf, size and hash of every file, values about the run, and a hash of all that.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcalc.errors import InputError
from jaxcalc.runs.files import PathLike, write_whole
from jaxcalc.trees import array_type, named_leaves

MANIFEST = "manifest.json"

Manifest = dict[str, Any]
"""A manifest: "step", "leaves" (fingerprint by name), "paths" (place in the tree by name), "files" ([size, SHA-256] by
name), and the JSON values that `checkpoint.Writer` was given."""


class DamagedError(InputError):
    """The files or arrays of a checkpoint are not those that were written."""


def step_path(folder: PathLike, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return Path(folder) / f"{step:06}"


def write_manifest(path: PathLike, manifest: Mapping[str, object]) -> None:
    """Write the manifest of a checkpoint whose files are complete. Raises `InputError` if it cannot be written."""
    path = Path(path)
    write_whole(path / MANIFEST, [_written({**manifest, "files": _files(path)})])


def read_manifest(folder: PathLike, step: int) -> Manifest:
    """Return the manifest of a checkpoint. Raises `DamagedError` if it is not what was written."""
    path = step_path(folder, step) / MANIFEST
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        del manifest["checksum"]
        good = data == _written(manifest) and manifest["step"] == step
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {type(error).__name__} {error}") from error
    if not good:
        raise DamagedError(f"{path} is damaged: it is not of step {step:,}, or its checksum is wrong")
    return manifest


def check_files(path: PathLike, manifest: Manifest) -> None:
    """Raise `DamagedError` if the files of a checkpoint are not those in its manifest."""
    expected = manifest["files"]
    try:
        found = _files(Path(path))
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            fault = "is missing" if name not in found else "was added" if name not in expected else "has changed"
            raise DamagedError(f"{path} is damaged: its file {name} {fault}")


def check_leaves(path: PathLike, manifest: Manifest, types: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Raise `InputError` if a checkpoint's leaves have other names, dtypes, shapes or places in the tree than these."""
    here = {name: array_type(leaf) for name, leaf in types.items()}
    there = {name: mark.split()[0] for name, mark in manifest["leaves"].items()}
    if there != here:
        raise InputError(f"{path} is of another model, optimizer or dtype: {'; '.join(differences(there, here))}")
    if manifest.get("paths", places) != places:  # a manifest of before has no paths
        moved = differences(manifest["paths"], places)
        raise InputError(f"{path} is of a tree of another structure: {'; '.join(moved)}")


def paths(tree: Any) -> dict[str, str]:
    """Return the path of every leaf by its name, which alone tells a list from a dictionary with the keys "0", "1", ….

    >>> paths([1.0]), paths({"0": 1.0})
    ({'0': '[0]'}, {'0': "['0']"})
    """
    found = (jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree))
    return dict(zip(named_leaves(tree), found, strict=True))


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Return a line for each name whose value is not the same in both.

    >>> differences({"seed": 1, "steps": 10}, {"seed": 2, "steps": 10})
    ['seed is 1 there and 2 here']
    """
    return [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def _written(manifest: Mapping[str, object]) -> bytes:
    """Return the bytes of a manifest's file, with the hash of everything else at its end."""
    text = json.dumps(manifest, sort_keys=True)
    return json.dumps({**manifest, "checksum": hashlib.sha256(text.encode()).hexdigest()}, indent=1).encode()


def _files(path: Path) -> dict[str, list[int | str]]:
    """Return size and SHA-256 of every file in a checkpoint except its manifest."""
    found: dict[str, list[int | str]] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not name.startswith(MANIFEST):
            with file.open("rb") as data:
                found[name] = [file.stat().st_size, hashlib.file_digest(data, "sha256").hexdigest()]
    return found
