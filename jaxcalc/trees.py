"""Helpers for pytrees of arrays: leaves by name, counts, and tables of what is in them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcalc.errors import InputError


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return every leaf under its dotted path, in the tree's order.

    >>> named_leaves({"blocks": [{"up": 1.0}, {"up": 2.0}]})
    {'blocks.0.up': 1.0, 'blocks.1.up': 2.0}
    """
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def is_concrete(tree: Any) -> bool:
    """Return whether the values can be looked at: no leaf is a tracer of `jit`, `grad` or `vmap`."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def count(tree: Any) -> int:
    """Return the number of array elements in a tree.

    >>> count({"a": np.zeros((2, 3)), "b": np.zeros(4)})
    10
    """
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))


def fingerprint(tree: Any) -> dict[str, str]:
    """Return a checksum of each leaf under its dotted path: dtype, shape and 64 bits of all its bits.

    It is computed where the array is: on the accelerator, on every shard its part, or by NumPy in the host's memory.
    Each 32-bit word of the leaf is mixed with its index by a bijection and the results are added up, modulo 2³², with
    two different mixings. So it does not depend on how an array is sharded, and a change within one word never goes
    unseen; any other change does with a probability of about 2⁻⁶⁴.

    Raises `InputError` for a leaf that is not an array of numbers, naming it.

    >>> fingerprint({"w": np.array([1.0, 2.0], np.float32), "step": 3})
    {'step': 'int64[] 1ab75600a1221922', 'w': 'float32[2] aeb554b4bb33503c'}
    """
    leaves = {name: _numbers(name, leaf) if _is_on_host(leaf) else leaf for name, leaf in named_leaves(tree).items()}
    with np.errstate(over="ignore"):  # it is modulo 2³²
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
    """Return the two sums of an array of NumPy or JAX, uint32 `[2]`."""
    xp = jnp if isinstance(array, jax.Array) else np
    bits = array.astype("uint8") if array.dtype == bool else array
    bits = xp.atleast_1d(bits)
    words = bits.view(f"uint{8 * min(array.dtype.itemsize, 4)}").astype("uint32")
    index = xp.arange(words.size, dtype="uint32").reshape(words.shape)
    return xp.stack([_mix(words ^ _mix(index + salt)).sum(dtype="uint32") for salt in _SALTS])


_device_checksum = jax.jit(_checksum)
_SALTS = np.uint32(1), np.uint32(0x9E3779B9)


def _mix(word: Any) -> Any:
    """Return each uint32 under a bijection in which every bit hangs on every bit (Wellons 2018, lowbias32)."""
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


@dataclasses.dataclass(frozen=True)
class TreeTable:
    """A table about a pytree: text where it is printed, the tree itself in a notebook."""

    columns: tuple[str, ...]
    rows: dict[str, dict[str, Any]]
    """A row for each stage (a node that holds leaves) and each leaf under its path, and for the "total"."""
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
        import treescope  # only a notebook asks for it

        return str(treescope.render_to_html(self.tree))


def summary(tree: Any) -> TreeTable:
    """Return what is in a tree of parameters, gradients, updates or optimizer state, leaf by leaf.

    For each leaf, each stage and all together: "array" (dtype and shape, or the number of elements),
    "norm" (‖x‖₂), "rms" (‖x‖₂ / √elements), "min", "max", "zeros" (share of elements that are 0) and "bad" (how
    many are not finite). Works on any pytree of numbers.

    Raises `InputError` for a leaf that is not an array of numbers, naming it.

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
    """Return how two trees of the same shape relate: gradients and weights, say, or two gradients.

    For each leaf, each stage and all together: "norm a", "norm b", "ratio" (‖a‖ / ‖b‖) and "cosine" (⟨a, b⟩ / ‖a‖ ‖b‖).

    Raises `InputError` naming the first leaf that only one of them has, or whose shapes differ.

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


def _by_stage(leaves: dict[str, list[np.ndarray]], describe: Any) -> dict[str, dict[str, Any]]:
    """Return the rows of a `TreeTable`: every stage followed by its leaves, and the total."""
    stages: dict[str, list[str]] = {}
    for name in leaves:
        stages.setdefault(name.rpartition(".")[0], []).append(name)

    def joined(names: list[str]) -> dict[str, Any]:
        parts = zip(*(leaves[name] for name in names), strict=True)
        row = describe(*(np.concatenate([part.ravel() for part in side]) for side in parts))
        if "array" in row:  # where arrays are joined, their number of elements says more than the shape
            row["array"] = str(sum(leaves[name][0].size for name in names))
        return {**row, "n_leaves": len(names)}

    rows: dict[str, dict[str, Any]] = {}
    for stage, names in stages.items():
        rows |= {stage: joined(names)} if stage else {}
        rows |= {name: {**describe(*leaves[name]), "n_leaves": 0} for name in names}
    return rows | ({"total": joined(list(leaves))} if leaves else {})


def _describe(x: np.ndarray) -> dict[str, Any]:
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


def _relate(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
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
