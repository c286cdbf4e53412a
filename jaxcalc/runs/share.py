"""The file in which a trained model is shared (host): safetensors, with JSON values about the model.

A safetensors file is 8 bytes with the length of the header, the header, and the arrays one after the other.
The header is JSON: dtype, shape and place of each array and, under "__metadata__", strings about the model.
Here each string is JSON itself, and two of them reveal damage. "fingerprint" holds that of every array, as
`jaxcalc.fingerprint` computes it. "checksum" is the SHA-256 of the whole header with its own 64 digits as zeros.
A file of other code has neither and loads if the rest is right.

Loading runs nothing that is in the file. The header is checked whole, and the file's size against it, before memory
for an array is allocated. The reader is ours because the safetensors package accepts headers of tens of megabytes, a
name given twice, and any name or dtype.

A file holds names, not the tree that has them. `load_params` knows this library's tree; of another, it is told.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.fingerprints import fingerprint
from jaxcalc.params import Params, check_params
from jaxcalc.runs.files import PathLike, write_whole
from jaxcalc.runs.manifest import differences
from jaxcalc.trees import array_type, named_arrays, named_leaves

LARGEST_HEADER = 2**17
"""The longest header that is written or read, in bytes: enough for 90 blocks and their metadata."""
MOST_LEAVES = 1024
"""The most arrays that are written or read."""
MOST_AXES = 8
"""The most axes of an array that is written or read."""

_METADATA, _FINGERPRINT, _CHECKSUM = "__metadata__", "fingerprint", "checksum"
_NO_CHECKSUM = "0" * 64
_NAME = re.compile(rf"(?!{_METADATA}$)[!-~]{{1,200}}")
Tree = TypeVar("Tree")


def save_params(path: PathLike, params: Any, metadata: Mapping[str, object] | None = None) -> None:
    """Write parameters, float32, as a safetensors file with one array per leaf, and with JSON values about them.

    The file is complete or does not exist. The same input gives the same bytes.

    Args:
      params: any pytree of float32 arrays.

    Raises `InputError` for parameters or metadata that `load_params` would refuse, and if the file cannot be written.
    """
    leaves = named_arrays(params)
    for name, leaf in leaves.items():
        if not _NAME.fullmatch(name) or leaf.ndim > MOST_AXES:
            shown = f"{_shown(name)} with {leaf.ndim} axes"
            raise InputError(f"a leaf is {shown}; expected a name in ASCII without spaces and at most {MOST_AXES} axes")
        if leaf.dtype != np.float32 or not leaf.size or not np.isfinite(leaf).all():
            found = f"{leaf.dtype}{list(leaf.shape)}"
            raise InputError(f"{name} is {found}, empty or not finite; expected finite float32")
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    header = _header(arrays, metadata or {})
    data = [array.astype("<f4").tobytes() for array in arrays.values()]
    write_whole(path, [len(header).to_bytes(8, "little"), header, *data])


@overload
def load_params(path: PathLike) -> Params: ...
@overload
def load_params(path: PathLike, like: Tree) -> Tree: ...
def load_params(path: PathLike, like: Any = None) -> Any:
    """Return the parameters in a safetensors file, validated leaf by leaf.

    Args:
      like: for another model than this library's, a pytree of its arrays, or of shapes and dtypes as `jax.eval_shape`
        returns it. The parameters come back as a tree like it, each leaf by its name.

    Raises `InputError` if the file is missing, broken or damaged, or holds values that are not finite or leaves that
    are not the model's.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_params(f"{folder}/mine", {"layers": (jnp.ones(2), jnp.zeros(1))})
    ...     load_params(f"{folder}/mine", like={"layers": (jnp.empty(2), jnp.empty(1))})
    {'layers': (Array([1., 1.], dtype=float32), Array([0.], dtype=float32))}
    """
    with _reading(Path(path)) as file:
        shapes, metadata = _read_header(file)
        _check_leaves(shapes, like)
        arrays = {name: np.empty(shape, "<f4") for name, shape in shapes.items()}
        for array in arrays.values():
            if file.readinto(array) != array.nbytes:
                raise InputError("it became shorter while it was read")
        found = fingerprint(arrays)
        changed = [name for name, mark in metadata.get(_FINGERPRINT, found).items() if mark != found[name]]
        if changed:
            raise InputError(f"it is damaged: the fingerprints of {', '.join(changed):.200} do not match")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError(f"{name} is not finite; expected finite float32")
    params = jax.device_put(arrays)  # jnp.asarray would compile a program for every shape
    if like is None:
        return _tree(params)
    return jax.tree.unflatten(jax.tree.structure(like), [params[name] for name in named_leaves(like)])


def load_metadata(path: PathLike) -> dict[str, Any]:
    """Return what a safetensors file says about its model: the values given to `save_params`, and "fingerprint".

    For a file of other code, its strings as they are. The arrays are not read.

    Raises `InputError` as `load_params` does, except for the values of the arrays and for leaves of another model.
    """
    with _reading(Path(path)) as file:
        return _read_header(file)[1]


def _header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, object]) -> bytes:
    """Return the header of a file, padded so that the arrays begin at a multiple of 8 bytes."""
    if not all(isinstance(name, str) for name in metadata) or {_CHECKSUM, _FINGERPRINT} & metadata.keys():
        names = _shown(list(metadata))
        raise InputError(f"the metadata has the names {names}; expected strings except 'checksum' and 'fingerprint'")
    texts = {_CHECKSUM: _NO_CHECKSUM}  # first, so that no other 64 zeros come before its own
    for name, value in {**metadata, _FINGERPRINT: fingerprint(arrays)}.items():
        try:
            texts[name] = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the metadata {_shown(name)} is not a JSON value: {error!s:.200}") from error
    header: dict[str, object] = {_METADATA: texts}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER or len(arrays) > MOST_LEAVES:
        size = f"{len(arrays):,} arrays and a header of {len(text):,} bytes"
        raise InputError(f"{size}; expected at most {MOST_LEAVES:,} arrays and {LARGEST_HEADER:,} bytes")
    return text.replace(_NO_CHECKSUM.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a file, and add its path to every error about it."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise InputError("it is not a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _read_header(file: BinaryIO) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Return the shape of each array, in the order of the file, and the metadata.

    After this everything is known to be right but whose leaves they are, and the values of the arrays.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if n_bytes < 8 or not 2 <= length <= min(LARGEST_HEADER, n_bytes - 8):
        limits = f"2 to {LARGEST_HEADER:,}, within the {n_bytes:,} bytes of the file"
        raise InputError(f"its first 8 bytes give its header {length:,} bytes; expected {limits}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise InputError("its header is not a JSON object")
    header = _json("its header", text)
    texts = header.pop(_METADATA, {})
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise InputError(f"its {_METADATA} is not an object of strings")
    shapes = _read_shapes(header, n_bytes - 8 - length)
    if _CHECKSUM not in texts and _FINGERPRINT not in texts:
        return shapes, texts  # other code wrote the file
    checksum = texts.pop(_CHECKSUM, "").encode(errors="replace")
    if hashlib.sha256(text.replace(checksum, _NO_CHECKSUM.encode(), 1)).hexdigest().encode() != checksum:
        raise InputError("it is damaged: its header does not match its checksum")
    metadata = {
        name: _json(f"its metadata {_shown(name)}", value.encode(errors="replace")) for name, value in texts.items()
    }
    marks = metadata.get(_FINGERPRINT)
    if not isinstance(marks, dict) or marks.keys() != shapes.keys():
        raise InputError("its fingerprints are not those of its arrays")
    return shapes, metadata


def _check_leaves(shapes: Mapping[str, tuple[int, ...]], like: Any) -> None:
    """Raise `InputError` if the leaves are not those of `like` or, without one, of this library's model."""
    types = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    if like is None:
        try:
            check_params(_tree(types))
        except InputError as error:
            raise InputError(f"{error}; to load another model, call load_params(path, like=its parameters)") from error
        return
    there = {name: array_type(leaf) for name, leaf in types.items()}
    here = {
        name: array_type(leaf if hasattr(leaf, "dtype") else np.asarray(leaf))
        for name, leaf in named_leaves(like).items()
    }
    if there != here:
        raise InputError(f"it is of another model: {'; '.join(differences(there, here)):.300}")


def _read_shapes(header: Mapping[str, Any], n_bytes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array, in the order of the file, if together they fill `n_bytes` exactly."""
    if not 1 <= len(header) <= MOST_LEAVES:
        raise InputError(f"it has {len(header):,} arrays; expected 1 to {MOST_LEAVES:,}")
    for name, entry in header.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"an array is named {_shown(name)}; expected a leaf's name, such as 'blocks.0.mlp.up'")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise InputError(f"{name} is {_shown(entry)}; expected its dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype != "F32":
            raise InputError(f"{name} is {_shown(dtype)}; expected 'F32', which is float32")
        if not _are_integers(shape, 1, n_bytes) or len(shape) > MOST_AXES:
            raise InputError(f"{name} has shape {_shown(shape)}; expected at most {MOST_AXES} positive integers")
        if not _are_integers(offsets, 0, n_bytes) or len(offsets) != 2:
            raise InputError(f"{name} is at {_shown(offsets)}; expected its begin and end within {n_bytes:,} bytes")
    shapes, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shapes[name] = tuple(entry["shape"])
        begin, end = end, end + 4 * math.prod(shapes[name])
        if entry["data_offsets"] != [begin, end]:
            expected = f"{[begin, end]}, right after the array before it, for shape {entry['shape']}"
            raise InputError(f"{name} is at {entry['data_offsets']}; expected {expected}")
    if end != n_bytes:
        raise InputError(f"its arrays fill {end:,} bytes; there are {n_bytes:,} after the header")
    return shapes


def _are_integers(values: Any, least: int, most: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)


def _tree(leaves: Mapping[str, object]) -> Any:
    """Return the parameters that have these leaves, by name."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = name.split(".")
        branch = tree
        for key in above:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise InputError("the names do not form a tree")
        branch[last] = leaf
    blocks = tree.get("blocks", {})
    if not isinstance(blocks, dict) or blocks.keys() != {str(index) for index in range(len(blocks))}:
        listed = sorted(blocks) if isinstance(blocks, dict) else blocks
        raise InputError(f"blocks are {_shown(listed)}; expected 0, 1, … without a gap")
    return {**tree, "blocks": [blocks[str(index)] for index in range(len(blocks))]}


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:60]


def _json(what: str, text: bytes) -> Any:
    """Return a JSON value in which all names of an object differ and all numbers are finite."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError("an object has a name twice")
        return value

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number:.20} is not a finite number")
        return float(number)

    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON: {error!s:.80}") from error
