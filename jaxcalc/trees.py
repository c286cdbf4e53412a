"""Helpers for pytrees of arrays: leaves by name, and counts."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return every leaf under its dotted path, in the tree's order.

    >>> named_leaves({"blocks": [{"up": 1.0}, {"up": 2.0}]})
    {'blocks.0.up': 1.0, 'blocks.1.up': 2.0}
    """
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def is_concrete(array: Any) -> bool:
    """Return whether an array's values can be looked at: it is not a tracer of `jit`, `grad` or `vmap`."""
    return not isinstance(array, Tracer)


def count(tree: Any) -> int:
    """Return the number of array elements in a tree.

    >>> count({"a": np.zeros((2, 3)), "b": np.zeros(4)})
    10
    """
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))
