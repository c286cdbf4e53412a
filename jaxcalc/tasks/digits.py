"""Whole numbers of any length as arrays of decimal digits, lowest first: exact arithmetic and spelling on the device.

An int32 array `[..., n]` holds numbers below 10ⁿ; the last axis is the place: ones, tens, hundreds, … All functions
use integer operations without a branch, so they run inside jit, on all numbers of a batch at once.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID
from jaxcalc.tasks.tokenizer import END_ID, Notation, Tokenizer
from jaxcalc.tasks.words import ONES, TENS


def from_int(number: int, n_digits: int) -> np.ndarray:
    """Return the digits of a number, int32 `[n_digits]`.

    >>> from_int(42, 4)
    array([2, 4, 0, 0], dtype=int32)
    """
    return np.array([int(digit) for digit in f"{number:0{n_digits}}"[::-1]], np.int32)


def to_int(digits: jax.Array | np.ndarray) -> int:
    """Return the number that has the digits `[n]`.

    >>> to_int(from_int(10**29 + 7, 30)) == 10**29 + 7
    True
    """
    return int("".join(str(int(digit)) for digit in np.asarray(digits)[::-1]))


def carry(columns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the digits `[..., n]` of the number Σ columns[i] · 10ⁱ, and the carry beyond them, `[...]`.

    The carry is negative for a negative number, and 0 where the digits are the whole number. So `carry(a + b)` adds
    and `carry(a - b)` subtracts.

    >>> digits, beyond = carry(jnp.array([7, 9]) + jnp.array([5, 0]))  # 97 + 5
    >>> digits.tolist(), int(beyond)
    ([2, 0], 1)
    """

    def one_place(carried: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = column + carried
        return total // 10, total % 10

    beyond, digits = jax.lax.scan(one_place, jnp.zeros_like(columns[..., 0]), jnp.moveaxis(columns, -1, 0))
    return jnp.moveaxis(digits, 0, -1), beyond


def multiply(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the last n digits `[..., n]` of a times b, and whether the product has more digits, bool `[...]`.

    >>> digits, overflow = multiply(jnp.array([2, 1, 0]), jnp.array([3, 1, 0]))  # 12 times 13
    >>> digits.tolist(), bool(overflow)
    ([6, 5, 1], False)
    """
    n = a.shape[-1]
    double = [(0, 0)] * (a.ndim - 1) + [(0, n)]

    def one_place(shifted: jax.Array, digit: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.roll(shifted, 1, axis=-1), digit[..., None] * shifted

    _, columns = jax.lax.scan(one_place, jnp.pad(b, double), jnp.moveaxis(a, -1, 0))
    digits, _ = carry(columns.sum(axis=0))
    return digits[..., :n], (digits[..., n:] > 0).any(axis=-1)


def at_most(digits: jax.Array, limit: jax.Array) -> jax.Array:
    """Return whether each number is no larger than the limit, bool `[...]`."""
    return carry(limit - digits)[1] == 0


def length(digits: jax.Array) -> jax.Array:
    """Return how many digits each number has, int32 `[...]`; 1 for zero.

    >>> length(jnp.array([[2, 4, 0], [0, 0, 0]])).tolist()
    [2, 1]
    """
    places = jnp.arange(1, digits.shape[-1] + 1)
    return jnp.maximum(1, jnp.where(digits > 0, places, 0).max(axis=-1))


def spell(digits: jax.Array, tokenizer: Tokenizer, notation: Notation, width: int) -> tuple[jax.Array, jax.Array]:
    """Return the token ids of each number, int32 `[..., width]`, padded on the right, and their count, `[...]`.

    The tokens are those of `Tokenizer.spell`. The width must hold the longest number.

    >>> tokenizer = Tokenizer(max_number=999)
    >>> ids, n = spell(jnp.array(from_int(342, 3)), tokenizer, "words", 5)
    >>> tokenizer.decode(ids[: int(n)])
    'three hundred forty two'
    """
    if notation == "words":
        return _pack(*_words(digits, tokenizer), width)
    n = length(digits)[..., None]
    places = jnp.arange(width)
    place = places if notation == "digits-reversed" else n - 1 - places
    place = jnp.broadcast_to(jnp.clip(place, 0, digits.shape[-1] - 1), (*digits.shape[:-1], width))
    ids = tokenizer.ids["0"] + jnp.take_along_axis(digits, place, axis=-1)
    return jnp.where(places < n, ids, PAD_ID), n[..., 0]


def flush_right(ids: jax.Array, n: jax.Array) -> jax.Array:
    """Return ids `[..., width]`, padded behind their first n, with the padding in front instead."""
    width = ids.shape[-1]
    place = jnp.arange(width) - (width - n[..., None])
    return jnp.where(place >= 0, jnp.take_along_axis(ids, jnp.maximum(place, 0), axis=-1), PAD_ID)


def with_end(ids: jax.Array, n: jax.Array) -> jax.Array:
    """Return ids `[..., width]`, padded behind their first n, with the end token after those, `[..., width + 1]`."""
    longer = jnp.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, 1)], constant_values=PAD_ID)
    return jnp.where(jnp.arange(longer.shape[-1]) == n[..., None], END_ID, longer)


def _words(digits: jax.Array, tokenizer: Tokenizer) -> tuple[jax.Array, jax.Array]:
    """Return every word that a number may have, in order, and whether each number has it: both `[..., W]`."""

    def ids(words: list[str]) -> jax.Array:  # no number up to the largest has a word that the vocabulary lacks
        return jnp.array([tokenizer.ids.get(word, PAD_ID) for word in words])

    ones_ids, tens_ids = ids(ONES), ids(["", "", *TENS])
    digits = jnp.pad(digits, [(0, 0)] * (digits.ndim - 1) + [(0, -digits.shape[-1] % 3)])
    words, there = [], []
    for group in reversed(range(digits.shape[-1] // 3)):
        ones, tens, hundreds = jnp.moveaxis(digits[..., 3 * group : 3 * group + 3], -1, 0)
        is_teen = tens == 1
        hundred, scale = (
            jnp.full_like(ones, ids([name])[0]) for name in ("hundred", ("", "thousand", "million")[group])
        )
        ten = jnp.where(is_teen, ones_ids[10 + ones], tens_ids[tens])
        words += [ones_ids[hundreds], hundred, ten, ones_ids[ones], scale]
        there += [hundreds > 0, hundreds > 0, tens > 0, ~is_teen & (ones > 0)]
        there += [(ones + tens + hundreds > 0) & (group > 0)]
    is_zero = (digits == 0).all(axis=-1)
    return jnp.stack([*words, jnp.full_like(is_zero, ones_ids[0], ones_ids.dtype)], -1), jnp.stack(
        [*there, is_zero], -1
    )


def _pack(ids: jax.Array, there: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Return the ids that are there, without gaps and padded on the right, `[..., width]`, and their count."""
    place = jnp.cumsum(there, axis=-1) - 1
    here = there[..., None] & (place[..., None] == jnp.arange(width))  # [..., candidate, place]
    return (ids[..., None] * here).sum(axis=-2), there.sum(axis=-1)  # an empty sum is 0, the padding
