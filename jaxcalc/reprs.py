"""How the values of the library print: in a few lines, an array as its dtype and shape."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcalc.trees import array_type, is_concrete

WIDTH = 100
"""Characters of a value in one line."""
LONGEST = 200
"""Characters of one field; what is longer prints as its kind and size."""


def outline(self: Any) -> str:
    """Return a dataclass or a named tuple as text: in one line or, if that is too long, a line per field.

    An array prints as its dtype and shape, a single number as itself. Classes take this function as their `__repr__`.

    >>> import numpy as np
    >>> from jaxcalc.batch import Batch
    >>> Batch(np.zeros((256, 9), np.int32), np.zeros((256, 3), np.float32))
    Batch(tokens=int32[256,9], mask=float32[256,3])
    """
    names = [each.name for each in dataclasses.fields(self)] if dataclasses.is_dataclass(self) else self._fields
    texts = [f"{name}={_short(getattr(self, name))}" for name in names]
    line = f"{type(self).__name__}({', '.join(texts)})"
    return line if len(line) <= WIDTH else f"{type(self).__name__}(\n  " + ",\n  ".join(texts) + "\n)"


def _short(value: Any) -> str:
    """Return a value in one line: whole, or its kind and size if that is too long."""
    text = _text(value)
    if len(text) <= LONGEST and "\n" not in text:
        return text
    if any(map(_is_array, jax.tree.leaves(value))):
        return _size(value)
    length = f" of length {len(value):,}" if isinstance(value, str | Mapping | list) else ""
    return f"<{type(value).__name__}{length}>"


def _text(value: Any) -> str:
    if _is_array(value):
        return str(jax.device_get(value)) if _is_number(value) else array_type(value)
    if type(value) is dict:
        return "{" + ", ".join(f"{name!r}: {_text(each)}" for name, each in value.items()) + "}"
    if isinstance(value, tuple) and (names := getattr(value, "_fields", ())) and not _prints_itself(value):
        fields = zip(names, value, strict=True)
        return f"{type(value).__name__}({', '.join(f'{name}={_text(each)}' for name, each in fields)})"
    if type(value) is list:
        return f"[{', '.join(map(_text, value))}]"
    if not _prints_itself(value) and any(map(_is_array, jax.tree.leaves(value))):
        return _size(value)
    function = getattr(value, "__qualname__", None)
    return f"<function {function}>" if function else repr(value)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _is_number(array: Any) -> bool:
    """Return whether an array is a single number whose value can be read here."""
    if array.shape or not is_concrete(array) or isinstance(array, jax.ShapeDtypeStruct):
        return False
    if not isinstance(array, jax.Array):
        return True
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return not is_key and not array.is_deleted() and array.is_fully_addressable


def _prints_itself(value: Any) -> bool:
    """Return whether a class of this library says how its values print."""
    return getattr(type(value).__repr__, "__module__", "").startswith("jaxcalc.")


def _size(tree: Any) -> str:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if _is_array(leaf)]
    return f"<{type(tree).__name__}: {len(arrays)} arrays, {sum(math.prod(leaf.shape) for leaf in arrays):,} numbers>"
