"""Helpers for pytrees of arrays: leaves by name, counts, and tables of what is in them."""

import dataclasses
import math
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
    """Return every leaf under its dotted path, in the tree's order. None is no leaf, as everywhere in JAX.

    Raises `InputError` if two leaves have the same dotted path, and if JAX cannot flatten the tree.

    >>> named_leaves({"blocks": [{"up": 1.0}, {"up": 2.0}]})
    {'blocks.0.up': 1.0, 'blocks.1.up': 2.0}
    """
    try:
        paths = jax.tree.leaves_with_path(tree)
    except ValueError as error:
        raise InputError("JAX cannot flatten the tree; a dictionary needs keys that can be sorted") from error
    leaves: dict[str, Any] = {}
    for path, leaf in paths:
        name = dotted(path)
        if name in leaves:
            raise InputError(f"two leaves have the name {name!r}; rename a key of {jax.tree_util.keystr(path)}")
        leaves[name] = leaf
    return leaves


def named_arrays(tree: Any) -> dict[str, Any]:
    """Return every leaf as a JAX or NumPy array, of numbers or of PRNG keys, under its dotted path.

    Raises `InputError` naming the first leaf that is neither, or has no values.
    """
    return {name: _array(name, leaf) for name, leaf in named_leaves(tree).items()}


def is_concrete(tree: Any) -> bool:
    """Return whether all values are known, so that no leaf is a tracer of `jit`, `grad` or `vmap`."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is typed PRNG keys, such as `jax.random.key` returns, or a shape of them."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data_of(leaf: Any) -> Any:
    """Return the numbers behind PRNG keys, or the shape of them for a shape, and every other leaf as it is."""
    if not is_key(leaf):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def keys_of(data: Any, like: Any) -> Any:
    """Return numbers as PRNG keys if `like` is keys, or a shape of them, and otherwise as they are."""
    if not is_key(like):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(jnp.empty((), like.dtype)))


def array_type(array: Any) -> str:
    """Return the dtype and the shape of an array, or of anything that has both.

    >>> array_type(np.zeros((2, 3), np.float32)), array_type(jax.random.key(0))
    ('float32[2,3]', 'key<fry>[]')
    """
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def count(tree: Any) -> int:
    """Return the number of array elements in a tree of arrays, tracers, shapes or numbers.

    Raises `InputError` naming the first leaf that is none of these.

    >>> count({"a": np.zeros((2, 3)), "b": np.zeros(4)})
    10
    """
    leaves = named_leaves(tree)
    return sum(
        math.prod((leaf if hasattr(leaf, "shape") else _array(name, leaf)).shape) for name, leaf in leaves.items()
    )


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
            label = name if row["n_leaves"] or name == "total" else f"  {name.rpartition('.')[2]}"
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
    many elements are not finite). Works on any pytree of numbers. Complex numbers have no "min" and "max". Typed PRNG
    keys have nothing but their "array", and no part in stages and total.

    Raises `InputError` naming the first leaf that is not an array of numbers.

    >>> summary({"mlp": {"up": np.array([[3.0, 0.0], [0.0, -4.0]], np.float32), "norm": np.ones(2, np.float32)}})
              array norm  rms min max zeros bad
    mlp           6  5.2 2.12  -4   3   33%   0
      norm   f32[2] 1.41    1   1   1    0%   0
      up   f32[2,2]    5  2.5  -4   3   50%   0
    total         6  5.2 2.12  -4   3   33%   0
    """
    arrays = named_arrays(tree)
    rows = _by_stage([arrays], _describe)
    for name, array in arrays.items():
        kind = array_type(array)
        rows[name]["array"] = kind.replace("uint", "u").replace("int", "i").replace("float", "f")
    return TreeTable(("array", "norm", "rms", "min", "max", "zeros", "bad"), rows, tree)


def compare(a: Any, b: Any) -> TreeTable:
    """Return how two trees of the same shape relate, such as gradients and weights, or two gradients.

    The columns, for each leaf, each stage and the total, are "norm a", "norm b", "ratio" (‖a‖ / ‖b‖) and "cosine"
    (⟨a, b⟩ / ‖a‖ ‖b‖; of complex numbers, its real part). Typed PRNG keys have none of them.

    Raises `InputError` naming the first leaf that only one tree has, whose shapes differ, or that is not an array of
    numbers, and a leaf that is keys in one tree only.

    >>> compare({"w": np.array([3.0, 4.0])}, {"w": np.array([0.0, 2.0])})
          norm a norm b ratio cosine
      w        5      2   2.5    0.8
    total      5      2   2.5    0.8
    """
    left, right = named_arrays(a), named_arrays(b)
    for name in (*left, *right):
        if name not in left or name not in right:
            raise InputError(f"only {'b' if name not in left else 'a'} has a leaf {name!r}")
        if left[name].shape != right[name].shape:
            raise InputError(f"{name} has shape {left[name].shape} in a and {right[name].shape} in b")
        if is_key(left[name]) != is_key(right[name]):
            raise InputError(
                f"{name} is PRNG keys in {'a' if is_key(left[name]) else 'b'} only; compare trees of one kind"
            )
    return TreeTable(("norm a", "norm b", "ratio", "cosine"), _by_stage([left, right], _relate), (a, b))


def _by_stage(sides: list[dict[str, Any]], describe: Callable[..., Row]) -> dict[str, Row]:
    """Return the rows of a `TreeTable` about one tree, or two: each stage followed by its leaves, then the total."""
    wide = [{name: _wide(name, array) for name, array in side.items()} for side in sides]
    stages: dict[str, list[str]] = {}
    for name in sides[0]:
        stages.setdefault(name.rpartition(".")[0], []).append(name)
    parts = [stage for stage in stages if stage]
    for name in (*sides[0], *parts):
        if name == "total" or (name in sides[0] and name in parts):
            raise InputError(f"two rows of the table would have the name {name!r}; rename what has it in the tree")

    def joined(names: list[str]) -> Row:
        row = describe(*(np.concatenate([np.empty(0), *(side[name].ravel() for name in names)]) for side in wide))
        return {**row, "n_leaves": len(names)}

    rows: dict[str, Row] = {}
    for stage, names in stages.items():
        rows |= {stage: joined(names)} if stage else {}
        rows |= {name: {**describe(*(side[name] for side in wide)), "n_leaves": 0} for name in names}
    return {**rows, "total": joined(list(sides[0]))}


def _describe(x: np.ndarray) -> Row:
    row: Row = {"array": str(x.size)}
    if not x.size:
        return row
    norm = float(np.linalg.norm(x))
    if x.dtype == np.float64:
        row |= {"min": float(x.min()), "max": float(x.max())}
    return row | {
        "norm": norm,
        "rms": norm / x.size**0.5,
        "zeros": f"{np.mean(x == 0):.0%}",
        "bad": int((~np.isfinite(x)).sum()),
    }


def _relate(a: np.ndarray, b: np.ndarray) -> Row:
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return {
        "norm a": norm_a,
        "norm b": norm_b,
        "ratio": norm_a / norm_b if norm_b else None,
        "cosine": float(np.vdot(a, b).real) / (norm_a * norm_b) if norm_a and norm_b else None,
    }


def _array(name: str, leaf: Any) -> Any:
    name = name or "the tree"
    if isinstance(leaf, Tracer):
        raise InputError(
            f"{name} has no values inside a JAX transformation; pass what the transformed function returns"
        )
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise InputError(f"{name} is deleted, as by a function that donates it; use what that function returned")
        return leaf
    try:
        array = np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0, object)
    if not _is_numeric(array.dtype) or isinstance(leaf, np.ma.MaskedArray):
        raise InputError(f"{name} is {_told(leaf)}; expected an array of numbers of at most 64 bits")
    return array


def _told(leaf: Any) -> str:
    if isinstance(leaf, str | bytes | int):
        return f"{leaf!r:.60}"
    is_plain = type(leaf) is np.ndarray or isinstance(leaf, np.generic)
    return array_type(leaf) if is_plain else f"a {type(leaf).__name__}"


def _is_numeric(dtype: np.dtype) -> bool:
    if dtype.kind in "mM" or dtype.itemsize > (16 if dtype.kind == "c" else 8):  # a span of time is no number
        return False
    return dtype == np.bool or jnp.issubdtype(dtype, np.number)


def _wide(name: str, array: Any) -> np.ndarray:
    """Return the numbers of an array in 64 bits for each part; PRNG keys are none."""
    if is_key(array):
        return np.empty(0)
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        raise InputError(f"{name} is spread over several processes; gather it first")
    return np.asarray(array).astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
