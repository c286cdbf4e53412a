"""Helpers for pytrees of arrays: leaves by name, counts, fingerprints, and tables of what is in them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcalc.errors import InputError

Row = dict[str, Any]
"""One row of a table: a number, a text or None for each column."""


def dotted(path: jax.tree_util.KeyPath) -> str:
    """Return the dotted form of a path, as `jax.tree.map_with_path` gives it.

    >>> jax.tree.map_with_path(lambda path, _: dotted(path), {"blocks": [{"up": 1.0}]})
    {'blocks': [{'up': 'blocks.0.up'}]}
    """
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return every leaf under its dotted path, in the tree's order.

    >>> named_leaves({"blocks": [{"up": 1.0}, {"up": 2.0}]})
    {'blocks.0.up': 1.0, 'blocks.1.up': 2.0}
    """
    return {dotted(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def is_concrete(tree: Any) -> bool:
    """Return whether all values are known, so that no leaf is a tracer of `jit`, `grad` or `vmap`."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def count(tree: Any) -> int:
    """Return the number of array elements in a tree.

    >>> count({"a": np.zeros((2, 3)), "b": np.zeros(4)})
    10
    """
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def array_type(array: Any) -> str:
    """Return the dtype and the shape of an array, or of anything that has both.

    >>> array_type(np.zeros((2, 3), np.float32)), array_type(jax.random.key(0))
    ('float32[2,3]', 'key<fry>[]')
    """
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def fingerprint(tree: Any) -> dict[str, str]:
    """Return a checksum of each leaf under its dotted path: its dtype, its shape and a hash of 64 bits.

    A bijection mixes each 32-bit word of the leaf with its index, and the results are added modulo 2³²; this is done
    with two different mixings. The hash therefore never misses a change within one word, and misses any other change
    with a probability of about 2⁻⁶⁴. No library's hash is used because this one does not depend on how an array is
    sharded: each device hashes its own part, and arrays in the host's memory are hashed there, by NumPy.

    Raises `InputError` naming the first leaf that is not an array of numbers.

    >>> fingerprint({"w": np.array([1.0, 2.0], np.float32), "step": 3})
    {'step': 'int64[] 1ab75600a1221922', 'w': 'float32[2] aeb554b4bb33503c'}
    """
    leaves = {name: _numbers(name, leaf) if _is_on_host(leaf) else leaf for name, leaf in named_leaves(tree).items()}
    with np.errstate(over="ignore"):  # the sums are meant to wrap
        sums = {name: (_checksum if _is_on_host(leaf) else _device_checksum)(leaf) for name, leaf in leaves.items()}
    return {
        name: f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}] {a:08x}{b:08x}"
        for (name, leaf), (a, b) in zip(leaves.items(), jax.device_get(list(sums.values())), strict=True)
    }


def _is_on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


def _checksum(array: Any) -> Any:
    """Return the two sums of a NumPy or JAX array, uint32 `[2]`."""
    xp = jnp if isinstance(array, jax.Array) else np
    bits = array.astype("uint8") if array.dtype == bool else array
    bits = xp.atleast_1d(bits)
    words = bits.view(f"uint{8 * min(array.dtype.itemsize, 4)}").astype("uint32")
    index = xp.arange(words.size, dtype="uint32").reshape(words.shape)
    return xp.stack([_mix(words ^ _mix(index + salt)).sum(dtype="uint32") for salt in _SALTS])


_device_checksum = jax.jit(_checksum)
_SALTS = np.uint32(1), np.uint32(0x9E3779B9)


def _mix(word: Any) -> Any:
    """Return each uint32 under a bijection in which every bit depends on every bit (Wellons 2018, lowbias32)."""
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


@dataclasses.dataclass(frozen=True)
class TreeTable:
    """A table about a pytree. It prints as text; a notebook shows the tree itself."""

    columns: tuple[str, ...]
    rows: dict[str, Row]
    """One row per stage (a node that holds leaves) and per leaf, under its path, and the "total"."""
    tree: Any

    def __repr__(self) -> str:
        cells = [("", *self.columns)]
        for name, row in self.rows.items():
            label = name if row["n_leaves"] else f"  {name.rpartition('.')[2]}"
            cells.append((label, *(_cell(row.get(column)) for column in self.columns)))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for label, *numbers in cells:
            right = (f" {cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
            lines.append((label.ljust(widths[0]) + "".join(right)).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        import treescope  # slow to import, and only a notebook needs it

        return str(treescope.render_to_html(self.tree))


def summary(tree: Any) -> TreeTable:
    """Return what is in a tree of parameters, gradients, updates or optimizer state, leaf by leaf.

    The columns, for each leaf, each stage and the total, are "array" (dtype and shape, or the number of elements),
    "norm" (‖x‖₂), "rms" (‖x‖₂ / √elements), "min", "max", "zeros" (the share of elements that are 0) and "bad" (how
    many elements are not finite). Works on any pytree of numbers.

    Raises `InputError` naming the first leaf that is not an array of numbers.

    >>> summary({"mlp": {"up": np.array([[3.0, 0.0], [0.0, -4.0]], np.float32), "norm": np.ones(2, np.float32)}})
              array norm  rms min max zeros bad
    mlp           6  5.2 2.12  -4   3   33%   0
      norm   f32[2] 1.41    1   1   1    0%   0
      up   f32[2,2]    5  2.5  -4   3   50%   0
    total         6  5.2 2.12  -4   3   33%   0
    """
    return TreeTable(
        ("array", "norm", "rms", "min", "max", "zeros", "bad"),
        _by_stage({name: [_numbers(name, leaf)] for name, leaf in named_leaves(tree).items()}, _describe),
        tree,
    )


def compare(a: Any, b: Any) -> TreeTable:
    """Return how two trees of the same shape relate, such as gradients and weights, or two gradients.

    The columns, for each leaf, each stage and the total, are "norm a", "norm b", "ratio" (‖a‖ / ‖b‖) and "cosine"
    (⟨a, b⟩ / ‖a‖ ‖b‖).

    Raises `InputError` naming the first leaf that only one tree has, or whose shapes differ.

    >>> compare({"w": np.array([3.0, 4.0])}, {"w": np.array([0.0, 2.0])})
          norm a norm b ratio cosine
      w        5      2   2.5    0.8
    total      5      2   2.5    0.8
    """
    left, right = named_leaves(a), named_leaves(b)
    for name in (*left, *right):
        if name not in left or name not in right:
            raise InputError(f"only {'b' if name not in left else 'a'} has a leaf {name!r}")
        if np.shape(left[name]) != np.shape(right[name]):
            raise InputError(f"{name} has shape {np.shape(left[name])} in a and {np.shape(right[name])} in b")
    pairs = {name: [_numbers(name, left[name]), _numbers(name, right[name])] for name in left}
    return TreeTable(("norm a", "norm b", "ratio", "cosine"), _by_stage(pairs, _relate), (a, b))


def _by_stage(leaves: dict[str, list[np.ndarray]], describe: Callable[..., Row]) -> dict[str, Row]:
    """Return the rows of a `TreeTable`: each stage followed by its leaves, then the total."""
    stages: dict[str, list[str]] = {}
    for name in leaves:
        stages.setdefault(name.rpartition(".")[0], []).append(name)

    def joined(names: list[str]) -> Row:
        parts = zip(*(leaves[name] for name in names), strict=True)
        row = describe(*(np.concatenate([part.ravel() for part in side]) for side in parts))
        if "array" in row:  # the joined array has no shape worth telling
            row["array"] = str(sum(leaves[name][0].size for name in names))
        return {**row, "n_leaves": len(names)}

    rows: dict[str, Row] = {}
    for stage, names in stages.items():
        rows |= {stage: joined(names)} if stage else {}
        rows |= {name: {**describe(*leaves[name]), "n_leaves": 0} for name in names}
    return rows | ({"total": joined(list(leaves))} if leaves else {})


def _describe(x: np.ndarray) -> Row:
    dtype = x.dtype.name.replace("uint", "u").replace("int", "i").replace("float", "f")
    array = f"{dtype}[{','.join(map(str, x.shape))}]"
    if not x.size:
        return {"array": array}
    wide = x.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    return {
        "array": array,
        "norm": norm,
        "rms": norm / x.size**0.5,
        "min": float(wide.min()),
        "max": float(wide.max()),
        "zeros": f"{np.mean(wide == 0):.0%}",
        "bad": int((~np.isfinite(wide)).sum()),
    }


def _relate(a: np.ndarray, b: np.ndarray) -> Row:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return {
        "norm a": norm_a,
        "norm b": norm_b,
        "ratio": norm_a / norm_b if norm_b else None,
        "cosine": float(a @ b) / (norm_a * norm_b) if norm_a and norm_b else None,
    }


def _numbers(name: str, leaf: Any) -> np.ndarray:
    try:
        array = np.asarray(leaf)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InputError(f"{name} is {leaf!r:.60}; expected an array of numbers")
    return array


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
