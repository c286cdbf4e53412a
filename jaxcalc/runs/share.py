"""The files in which a trained model is shared (host): its parameters, and the program that answers with them.

A safetensors file is 8 bytes with the length of the header, the header, and the arrays one after the other.
The header is JSON: for each array its dtype, shape and place, and under "__metadata__" texts about the model.
Loading one runs nothing that is in it, and nothing in it is believed: the whole header is checked, and the size of
the file against it, before any memory is taken for an array.

Here the texts are JSON themselves, and two of them tell a damaged file: "fingerprint" has that of every array, as
`jaxcalc.fingerprint` makes it, and "checksum" is the SHA-256 of the whole header, its own 64 digits taken as zeros.
A file of other code has neither, and loads if all else is right.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxcalc.decoding import generate
from jaxcalc.errors import InputError
from jaxcalc.params import Params, check_params
from jaxcalc.tasks.task import Task
from jaxcalc.trees import fingerprint, named_leaves

LARGEST_HEADER = 2**17
"""Bytes; the longest header that is written or read: 90 blocks and what is said of them."""
MOST_LEAVES = 1024
"""The most arrays that are written or read."""

_METADATA, _FINGERPRINT, _CHECKSUM = "__metadata__", "fingerprint", "checksum"
_NO_CHECKSUM = "0" * 64
_NAME = re.compile(r"[a-z]{1,16}(\.([a-z]{1,16}|[0-9]{1,4})){0,3}")


def save_params(path: Path, params: Params, metadata: Mapping[str, Any] | None = None) -> None:
    """Write parameters as a safetensors file, one float32 array a leaf, with JSON values about them.

    The file is whole or not there, and the same input gives the same bytes.

    Raises `InputError` for parameters and metadata that `load_params` would refuse, and as `write_whole` does.
    """
    check_params(params)
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    for name, array in arrays.items():
        if array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
            raise InputError(f"{name} is {array.dtype}{list(array.shape)}, empty or not finite; "
                             "expected finite float32")  # fmt: skip
    header = _header(arrays, metadata or {})
    data = [array.astype("<f4").tobytes() for array in arrays.values()]
    write_whole(path, [len(header).to_bytes(8, "little"), header, *data])


def write_whole(path: Path, data: Sequence[bytes]) -> None:
    """Write a file that is either whole or not there: all of `data`, one after the other.

    Raises `InputError` where it cannot be written, naming it, its bytes and the reason.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({sum(map(len, data)):,} bytes): {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load_params(path: Path) -> Params:
    """Return the parameters in a safetensors file, validated leaf by leaf.

    Raises `InputError` for a file that is missing, broken, damaged, not finite or not of the model's layout.
    """
    with _reading(path) as file:
        shapes, metadata = _read_header(file)
        arrays = {name: np.empty(shape, "<f4") for name, shape in shapes.items()}
        for array in arrays.values():
            if file.readinto(array) != array.nbytes:
                raise InputError("it became shorter while it was read")
        found = fingerprint(arrays)
        changed = [name for name, mark in metadata.get(_FINGERPRINT, found).items() if mark != found[name]]
        if changed:
            raise InputError(f"it is damaged: the fingerprints of {', '.join(changed):.200} are not those that it says")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError(f"{name} is not finite; expected finite float32")
    params: Any = jax.device_put(_tree(arrays))  # which compiles nothing, while jnp.asarray does for every shape
    return params


def load_metadata(path: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its model: the values given to `save_params`, and the "fingerprint".

    Of a file that other code wrote, its texts as they are. The arrays are not read.

    Raises `InputError` as `load_params` does, but for the values of the arrays.
    """
    with _reading(path) as file:
        return _read_header(file)[1]


def export_answerer(params: Params, task: Task, platforms: Sequence[str] = ("cpu", "cuda", "tpu")) -> bytes:
    """Return greedy decoding with these parameters as one StableHLO program, which JAX runs without jaxcalc.

    `jax.export.deserialize(program).call` takes prompts, int32 `[B, prompt_length]` for any B, and returns the
    answers, int32 `[B, answer_length]`, and the probability of each whole answer, float32 `[B]`. The parameters are
    constants of the program, whose bytes are the same each time. It checks no token id: for one outside the
    vocabulary JAX takes the nearest row.

    Raises `InputError` as `jaxcalc.generate` does.

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> task = calculator()
    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=task.vocab_size))
    >>> answerer = jax.export.deserialize(bytearray(export_answerer(params, task)))
    >>> [answer.str_short() for answer in answerer.out_avals]
    ['int32[batch,3]', 'float32[batch]']
    """
    weights = jax.device_get(params)  # constants, whatever devices they were on

    def answer(prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens, log_probs = generate(weights, prompts, task.answer_length)
        return tokens, jnp.exp(log_probs.sum(axis=1))

    (batch,) = jax.export.symbolic_shape("batch")
    prompts = jax.ShapeDtypeStruct((batch, task.prompt_length), jnp.int32)
    limit = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # else the paths of this machine would be in the program
    try:
        return bytes(jax.export.export(jax.jit(answer), platforms=platforms)(prompts).serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _header(arrays: dict[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    """Return the header of a file: one way to write it, padded so that the arrays begin at a multiple of 8."""
    if not all(isinstance(name, str) for name in metadata) or {_CHECKSUM, _FINGERPRINT} & metadata.keys():
        raise InputError(
            f"the metadata has {_shown(list(metadata))}; expected texts, without 'checksum', 'fingerprint'"
        )
    texts = {_CHECKSUM: _NO_CHECKSUM}  # it comes first, so that its digits are the first of their kind
    for name, value in {**metadata, _FINGERPRINT: fingerprint(arrays)}.items():
        try:
            texts[name] = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the metadata {_shown(name)} is not a JSON value: {error!s:.200}") from error
    header: dict[str, Any] = {_METADATA: texts}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER or len(arrays) > MOST_LEAVES:
        raise InputError(f"{len(arrays):,} arrays and a header of {len(text):,} bytes; at most {MOST_LEAVES:,} arrays "
                         f"and {LARGEST_HEADER:,} bytes are written")  # fmt: skip
    return text.replace(_NO_CHECKSUM.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a file; what is wrong with it becomes an `InputError` that names it."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise InputError("it is not a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _read_header(file: BinaryIO) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Return the arrays' shapes by name, as they follow each other, and the metadata; raise where a file is no model's.

    After this all but the values of the arrays is known to be right.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if n_bytes < 8 or not 2 <= length <= min(LARGEST_HEADER, n_bytes - 8):
        raise InputError(f"its first 8 bytes say that its header has {length:,} bytes; expected 2 to "
                         f"{LARGEST_HEADER:,}, and no more than it holds, {n_bytes:,}")  # fmt: skip
    text = file.read(length)
    if not text.startswith(b"{"):
        raise InputError("its header is not a JSON object")
    header = _json("its header", text)
    texts = header.pop(_METADATA, {})
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise InputError(f"its {_METADATA} is not an object of texts")
    shapes = _read_shapes(header, n_bytes - 8 - length)
    check_params(_tree({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}))
    if _CHECKSUM not in texts and _FINGERPRINT not in texts:
        return shapes, texts  # of other code
    checksum = texts.pop(_CHECKSUM, "").encode(errors="replace")
    if hashlib.sha256(text.replace(checksum, _NO_CHECKSUM.encode(), 1)).hexdigest().encode() != checksum:
        raise InputError("it is damaged: its header does not have the checksum that it says")
    metadata = {
        name: _json(f"its metadata {_shown(name)}", value.encode(errors="replace")) for name, value in texts.items()
    }
    marks = metadata.get(_FINGERPRINT)
    if not isinstance(marks, dict) or marks.keys() != shapes.keys():
        raise InputError("its fingerprints are not of its arrays")
    return shapes, metadata


def _read_shapes(header: dict[str, Any], n_bytes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array, in the order of the file; together they are known to fill `n_bytes` exactly."""
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
        if not _are_integers(shape, 1, n_bytes) or len(shape) > 4:
            raise InputError(f"{name} has shape {_shown(shape)}; expected at most 4 positive integers")
        if not _are_integers(offsets, 0, n_bytes) or len(offsets) != 2:
            raise InputError(f"{name} is at {_shown(offsets)}; expected where it begins and ends in {n_bytes:,} bytes")
    shapes, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shapes[name] = tuple(entry["shape"])
        begin, end = end, end + 4 * math.prod(shapes[name])
        if entry["data_offsets"] != [begin, end]:
            raise InputError(f"{name} is at {entry['data_offsets']}; expected {[begin, end]}, which its shape "
                             f"{entry['shape']} fills right after the array before")  # fmt: skip
    if end != n_bytes:
        raise InputError(f"its arrays fill {end:,} bytes; there are {n_bytes:,} after the header")
    return shapes


def _are_integers(values: Any, least: int, most: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)


def _tree(leaves: dict[str, Any]) -> Any:
    """Return parameters from their leaves by name."""
    try:
        tree = unflatten_dict(leaves, sep=".")
    except TypeError as error:
        raise InputError("the names do not form a tree") from error
    blocks = tree.get("blocks", {})
    if not isinstance(blocks, dict) or blocks.keys() != {str(index) for index in range(len(blocks))}:
        listed = sorted(blocks) if isinstance(blocks, dict) else blocks
        raise InputError(f"blocks are {_shown(listed)}; expected 0, 1, … without a gap")
    return {**tree, "blocks": [blocks[str(index)] for index in range(len(blocks))]}


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:60]


def _json(what: str, text: bytes) -> Any:
    """Return a JSON value that is nested reasonably, has no name twice in an object, and only finite numbers."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            raise ValueError("a name stands twice in an object")
        return value

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number:.20} is not a finite number")
        return float(number)

    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON: {error!s:.80}") from error
