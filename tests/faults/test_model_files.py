"""Model files that are damaged or made to do harm are refused in bounded memory, and nothing else happens."""

import copy
import gc
import json
import os
import random
import resource
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxcalc
from jaxcalc import InputError, Params, load_params, named_leaves, save_params
from jaxcalc.runs.share import LARGEST_HEADER, load_metadata

MOST_MEMORY = 50_000_000
"""The most bytes that refusing a file may allocate."""
MOST_SECONDS = 0.1
"""The most processor seconds that it may take; only the long suite checks this."""


@pytest.fixture(scope="module")
def small() -> Params:
    shapes = jax.eval_shape(lambda: jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(7, 4, 2, 4, 1, 4)))
    numbers = np.random.default_rng(0)
    return jax.device_put(jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(leaf.dtype), shapes))


@pytest.fixture(scope="module")
def good(small: Params, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    save_params(path, small, {"config": {"d_model": 4, "name": "ü"}, "vocabulary": ["<pad>", "<end>"], "accuracy": 0.5})
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def made(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def repeated(unit: bytes, before: bytes = b'{"a":[', after: bytes = b"0]}") -> bytes:
    """A header of the largest length that is read."""
    return made(before + unit * ((LARGEST_HEADER - len(before) - len(after)) // len(unit)) + after)


def leaf(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def leaves(number: int) -> bytes:
    entries = (f'"blocks.{i}.mlp.up":{json.dumps(leaf(4 * i, 4 * i + 4, [1, 1]))}' for i in range(number))
    return made(f"{{{','.join(entries)}}}".encode(), bytes(4 * number))


HOSTILE = {
    "length of 16 EiB": made(b"{}", length=2**64 - 1),
    "length of 2 GiB": made(b"{}", length=2**31),
    "length beyond the file": made(b"{}", length=3),
    "length of 0": made(b"", bytes(100)),
    "header of the largest length, cut": made(b"{" * 1000, length=LARGEST_HEADER),
    "nested lists": repeated(b"[", after=b""),
    "nested objects": repeated(b'{"a":', before=b"", after=b""),
    "nested as deep as is read": made(b'{"embed.token":' + b"[" * 900 + b"]" * 900 + b"}"),
    "nested dtype": made(
        {"embed.token": {"dtype": json.loads("[" * 900 + "]" * 900), "shape": [1], "data_offsets": [0, 4]}}
    ),
    "empty lists": repeated(b"[],"),
    "lists in lists": repeated(b"[[]],"),
    "empty objects": repeated(b"{},"),
    "objects": repeated(b'{"":[]},'),
    "fractions": repeated(b"1.5,"),
    "texts": repeated('"é中",'.encode()),
    "long numbers": repeated(b"9" * 4300 + b","),
    "one long number": repeated(b"9", b'{"a":', b"}"),
    "one long fraction": repeated(b"9", b'{"a":0.', b"}"),
    "one long name": repeated(b"a", b'{"', b'":0}'),
    "one long name of escapes": repeated(b"\\u0007", b'{"', b'":0}'),
    "one long path": repeated(b"a.", b'{"', b'a":0}'),
    "only spaces": repeated(b" ", b"{", b"}"),
    "many names": made({f"{i}": 0 for i in range(10_000)}),
    "many texts": made({"__metadata__": {f"{i}": "" for i in range(9_000)}}),
    "many axes": made({"embed.token": leaf(0, 4, [1] * 40_000)}, bytes(4)),
    "many leaves": leaves(1400),
    "as many leaves as are read": leaves(1024),
    "1e9 leaves": made({"embed.token": leaf(0, 4 * 10**9, [10**9])}),
    "a size that wraps around": made({"embed.token": leaf(0, 64, [2**62, 4])}, bytes(64)),
    "a shape of huge numbers": made({"embed.token": leaf(0, 4, [10**4000] * 4)}, bytes(4)),
    "negative shape": made({"embed.token": leaf(0, 16, [-2, -2])}, bytes(16)),
    "negative offsets": made({"embed.token": leaf(-16, 0, [2, 2])}, bytes(16)),
    "overlap": made({"embed.token": leaf(0, 16, [2, 2]), "embed.position": leaf(8, 24, [2, 2])}, bytes(24)),
    "twice the same place": made(
        {"embed.token": leaf(0, 16, [2, 2]), "embed.position": leaf(0, 16, [2, 2])}, bytes(16)
    ),
    "gap": made({"embed.token": leaf(0, 16, [2, 2]), "embed.position": leaf(20, 36, [2, 2])}, bytes(36)),
    "gap before": made({"embed.token": leaf(4, 20, [2, 2])}, bytes(20)),
    "more than the arrays": made({"embed.token": leaf(0, 16, [2, 2])}, bytes(17)),
    "less than the arrays": made({"embed.token": leaf(0, 16, [2, 2])}, bytes(15)),
    "another length than the shape's": made({"embed.token": leaf(0, 12, [2, 2])}, bytes(12)),
    "float16": made({"embed.token": leaf(0, 8, [2, 2], "F16")}, bytes(8)),
    "path upwards": made({"../../embed": leaf(0, 16, [2, 2])}, bytes(16)),
    "path from the root": made({"/embed": leaf(0, 16, [2, 2])}, bytes(16)),
    "attribute": made({"embed.__class__": leaf(0, 16, [2, 2])}, bytes(16)),
    "name that is leaf and branch": made({"embed": leaf(0, 4, [1]), "embed.token": leaf(4, 8, [1])}, bytes(8)),
    "branch and leaf": made({"embed.token": leaf(0, 4, [1]), "embed": leaf(4, 8, [1])}, bytes(8)),
    "name twice": made(b'{"embed.token":{},"embed.token":{}}'),
    "pickle": b"\x80\x04\x95" + b"cos\nsystem\n(S'echo'\ntR.",
    "nothing": b"",
}
OF_ANOTHER_MODEL = {
    "as many leaves as are read",
    "path upwards",
    "path from the root",
    "attribute",
    "name that is leaf and branch",
    "branch and leaf",
}
"""Those that are whole, with names that a tree of ours has not: no name is ever used as a path or an attribute."""


def refusal(path: Path) -> str:
    with pytest.raises(InputError, match="cannot read") as caught:
        load_params(path)
    return str(caught.value)


def memory_of(call: Callable[[], Any]) -> int:
    """Return the most bytes that a call held: in Python and NumPy, or in the whole process if that is more."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        call()
        traced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return max(traced, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_little_memory(name: str, path: Path) -> None:
    path.write_bytes(HOSTILE[name])
    messages: list[str] = []
    assert memory_of(lambda: messages.append(refusal(path))) < MOST_MEMORY
    message = messages[0].removeprefix(f"cannot read {path}: ")
    assert len(message) < 300
    assert message.isprintable()
    if name in OF_ANOTHER_MODEL:
        assert load_metadata(path) == {}
    else:
        with pytest.raises(InputError, match="cannot read"):
            load_metadata(path)


@pytest.mark.parametrize("header", [b"", made({"embed.token": leaf(0, 64, [2, 8])}), made(b'{"embed.token":')])
def test_sparse_files_of_many_gigabytes_are_refused_in_little_memory(header: bytes, path: Path) -> None:
    path.write_bytes(header)
    os.truncate(path, 10 * 2**30)
    assert memory_of(lambda: refusal(path)) < MOST_MEMORY


def test_a_sparse_file_whose_header_fits_it_is_refused_before_it_is_read(path: Path) -> None:
    path.write_bytes(made({"embed.token": leaf(0, 10 * 2**30, [2**28, 10])}))
    os.truncate(path, path.stat().st_size + 10 * 2**30)
    assert memory_of(lambda: refusal(path)) < MOST_MEMORY


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float, small: Params, path: Path) -> None:
    arrays = named_leaves(jax.tree.map(np.array, small))
    arrays["blocks.0.mlp.up"][1, 2] = value
    safetensors.numpy.save_file(arrays, path)
    assert "blocks.0.mlp.up is not finite" in refusal(path)


def damaged(good: bytes, rng: random.Random) -> bytes:
    """A bit flipped, bytes cut off at the end, or a block overwritten by zeros or by another block."""
    data = bytearray(good)
    kind = rng.choice(("flip", "cut", "zeros", "block"))
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    else:
        begin, size = rng.randrange(len(data)), rng.choice((1, 4, 16, 64, 512))
        source = rng.randrange(len(data))
        size = min(size, len(data) - max(begin, source))
        data[begin : begin + size] = bytes(size) if kind == "zeros" else data[source : source + size]
    return bytes(data)


def check_damage(good: bytes, path: Path, number: int, seed: int) -> None:
    rng = random.Random(seed)
    tried = 0
    while tried < number:
        data = damaged(good, rng)
        if data == good:
            continue
        path.write_bytes(data)
        refusal(path)
        tried += 1


def test_damage_is_found(good: bytes, path: Path) -> None:
    check_damage(good, path, 150, seed=0)


@pytest.mark.faults
def test_much_damage_is_found(good: bytes, path: Path) -> None:
    check_damage(good, path, 10_000, seed=1)


@pytest.mark.faults
def test_every_flipped_bit_is_found(good: bytes, path: Path) -> None:
    for index in range(8 * len(good)):
        data = bytearray(good)
        data[index // 8] ^= 1 << index % 8
        path.write_bytes(data)
        refusal(path)


@pytest.mark.faults
def test_every_shorter_file_is_found(good: bytes, path: Path) -> None:
    for size in range(len(good)):
        path.write_bytes(good[:size])
        refusal(path)


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    4,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    "",
    "F32",
    "F16",
    "0",
    "\ud800",
    "\x00",
    [],
    [0],
    [4],
    [0, 4],
    [[]],
    {},
    {"dtype": "F32"},
    ["a"] * 50,
)
NAMES = (
    "embed.token",
    "embed",
    "embed.",
    "blocks.1.mlp.up",
    "../x",
    "__metadata__",
    "",
    "a.b",
    "checksum",
    "\ud800",
    "é",
)


def mutated(good: bytes, rng: random.Random) -> bytes:
    """A good file with up to three changes: in the structure of its header, in its length, or in its bytes."""
    length = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    if rng.random() < 0.5:  # as other code writes it, so that no checksum hides what the other checks find
        del header["__metadata__"]
    if rng.random() < 0.8:
        for _ in range(rng.randint(1, 3)):
            mutate(header, rng)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * rng.choice((0, 0, -len(text) % 8))
        return made(text, data + bytes(rng.choice((0, 0, 0, 4))), rng.choice((None, None, None, len(text) - 1)))
    found = bytearray(made(json.dumps(header).encode(), data))
    for _ in range(rng.randint(1, 3)):
        begin = rng.randrange(min(len(found), rng.choice((8, length, len(found)))))
        end = begin + rng.choice((0, 1, 1, 2, 8))
        found[begin:end] = rng.choice(
            (b"", rng.randbytes(1), rng.randbytes(8), found[:8], b"9", b",", b'"', b"}", b"{")
        )
    return bytes(found)


def mutate(node: Any, rng: random.Random) -> None:
    """Change a JSON value in one place."""
    while isinstance(node, dict | list) and node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.75:
            node = node[key]
            continue
        kind = rng.choice(("value", "value", "number", "delete", "rename", "swap"))
        other = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if kind == "delete":
            del node[key]
        elif kind == "rename" and isinstance(node, dict):
            node[rng.choice(NAMES)] = node.pop(key)
        elif kind == "swap":
            node[key], node[other] = node[other], node[key]
        elif kind == "number" and isinstance(node[key], int):
            node[key] += rng.choice((-4, -1, 1, 4))
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        return


def check_fuzz(good: bytes, path: Path, number: int, seed: int) -> tuple[int, int]:
    """Load mutated files; return how many were refused and how many loaded."""
    rng = random.Random(seed)
    counts = [0, 0]
    for _ in range(number):
        path.write_bytes(mutated(good, rng))
        try:
            params = load_params(path)
        except InputError as error:
            message = str(error).removeprefix(f"cannot read {path}: ")
            assert len(message) < 400
            assert message.isprintable()
            counts[0] += 1
            continue
        chex.assert_trees_all_equal(named_leaves(params), safetensors.numpy.load_file(path))  # an independent reader
        chex.assert_tree_all_finite(params)
        counts[1] += 1
    return counts[0], counts[1]


def test_fuzzed_files_are_refused_or_right(good: bytes, path: Path) -> None:
    refused, loaded = check_fuzz(good, path, 200, seed=0)
    assert refused > 100
    assert loaded > 0


@pytest.mark.faults
def test_many_fuzzed_files_are_refused_or_right(good: bytes, path: Path) -> None:
    refused, loaded = check_fuzz(good, path, 20_000, seed=1)
    print(f"{refused:,} refused, {loaded:,} loaded")


@pytest.mark.faults
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_quickly(name: str, path: Path) -> None:
    path.write_bytes(HOSTILE[name])
    seconds = []
    for _ in range(5):
        gc.collect()
        start = time.process_time()
        refusal(path)
        seconds.append(time.process_time() - start)
    print(f"{name}: {1e3 * min(seconds):.1f} ms")
    assert min(seconds) < MOST_SECONDS
