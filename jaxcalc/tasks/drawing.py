"""Problems drawn on the device, and the rule that holds some of them out.

A problem is a function of the rules and a key alone. Whether it is held out is a function of the problem alone, so
nothing is listed or looked up, and every task with the same seed and share, of whatever size and notation, agrees.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.numerics import default_promotion
from jaxcalc.reprs import outline
from jaxcalc.tasks import digits
from jaxcalc.tasks.hashing import hash_problem
from jaxcalc.tasks.problems import Problem

Side = Literal["training", "held out"]

# What the first number of an operation does, and what the second does. They are equal where the two may change places.
_ROLES = {
    "plus": (0x165667B1, 0x165667B1),
    "minus": (0x165667B1, 0x27D4EB2F),
    "times": (0x2545F491, 0x2545F491),
    "divided by": (0x7FEB352D, 0x846CA68B),
}
_PATIENCE = 8  # attempts before kind and lengths of a training problem are drawn anew; held-out ones take more


class Problems(NamedTuple):
    """Problems on the device.

    numbers: digits, lowest first, int32 `[B, terms, n]`.
    kind_ids: indices of `Rules.kinds`, int32 `[B]`.
    answers: digits, int32 `[B, n]`.
    """

    numbers: jax.Array
    kind_ids: jax.Array
    answers: jax.Array

    __repr__ = outline


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which problems a task has, however they are written, and which share of them is held out."""

    operations: tuple[str, ...]
    max_number: int
    terms: int
    """Numbers in a problem."""
    held_out: float
    """The share of all problems that training never draws."""
    seed: int
    """Chooses which problems are held out."""

    @property
    def n_digits(self) -> int:
        """Digits of the largest number."""
        return len(str(self.max_number))

    @functools.cached_property
    def kinds(self) -> tuple[tuple[str, ...], ...]:
        """The operations of each kind of problem, in order."""
        return tuple(itertools.product(self.operations, repeat=self.terms - 1))

    def contains(self, problem: Problem) -> bool:
        """Return whether the kind of a problem is one of these and each of its numbers and results is in range."""
        numbers, operations = problem
        if operations not in self.kinds or len(numbers) != self.terms:
            return False
        if "divided by" in operations and 0 in numbers[1:]:
            return False
        values = (*numbers, *problem.results)
        return all(value is not None and 0 <= value <= self.max_number for value in values)

    def arrays(self, problems: Sequence[Problem]) -> Problems:
        """Return problems that the task contains as arrays."""
        numbers = [[digits.from_int(number, self.n_digits) for number in problem.numbers] for problem in problems]
        kind_ids = [self.kinds.index(problem.operations) for problem in problems]
        answers = [digits.from_int(problem.answer or 0, self.n_digits) for problem in problems]
        arrays = (np.array(array, np.int32) for array in (numbers, kind_ids, answers))
        return Problems(*map(jnp.asarray, arrays))  # NumPy converts, so that JAX compiles nothing

    def operation_ids(self, kind_ids: jax.Array) -> jax.Array:
        """Return the indices of the operations of each problem, int32 `[B, terms - 1]`."""
        ids = itertools.product(range(len(self.operations)), repeat=self.terms - 1)
        return jnp.array(list(ids), jnp.int32)[kind_ids]


@default_promotion()
def is_held_out(rules: Rules, numbers: jax.Array | np.ndarray, kind_ids: jax.Array | np.ndarray) -> jax.Array:
    """Return which problems are held out, bool `[...]`: those whose hash is below the share.

    The order of what is added, subtracted or multiplied does not change the hash, so twins are on the same side.

    Args:
      numbers: digits, int `[..., terms, n]`.
      kind_ids: indices of `rules.kinds`, int `[...]`.
    """
    roles = [[_ROLES[kind[0]][0], *(_ROLES[name][1] for name in kind)] for kind in rules.kinds]
    roles = jnp.array(roles, jnp.uint32)[jnp.asarray(kind_ids)]
    return hash_problem(jnp.asarray(numbers), roles, rules.seed) < jnp.uint32(rules.held_out * 2**32)


@default_promotion()
def draw(
    rules: Rules, key: jax.Array, size: int, side: Side, most: int = 2**31 - 1, trial: int | jax.Array | None = None
) -> tuple[Problems, jax.Array]:
    """Return `size` problems of one side, and whether all of them were found, bool `[]`.

    Problem i is a function of the rules, the key and i. A proposal that is no problem of the task, or one of the
    other side, is drawn again, at most `most` times, or `trial` times if less than a quarter is then found.
    """
    keys, patience = _keys(key, size), _patience(rules, side, most)

    def attempt(carried: tuple[Problems, jax.Array, jax.Array]) -> tuple[Problems, jax.Array, jax.Array]:
        problems, found, n = carried
        proposal, fits = _propose(rules, keys, n, patience)
        fits &= is_held_out(rules, proposal.numbers, proposal.kind_ids) == (side == "held out")
        take = fits & ~found
        problems = jax.tree.map(
            lambda new, old: jnp.where(take.reshape(-1, *[1] * (new.ndim - 1)), new, old), proposal, problems
        )
        return problems, found | fits, n + 1

    def is_missing(carried: tuple[Problems, jax.Array, jax.Array]) -> jax.Array:
        end = most if trial is None else jnp.where(4 * carried[1].sum() < size, trial, most)
        return ~carried[1].all() & (carried[2] < end)

    blank = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: _propose(rules, keys, jnp.int32(0), patience)[0]))
    problems, found, _ = jax.lax.while_loop(is_missing, attempt, (blank, jnp.zeros(size, bool), jnp.int32(0)))
    return problems, found.all()


def can_draw(rules: Rules, key: jax.Array, size: int, side: Side, most: int) -> jax.Array:
    """Return whether `draw` finds those 16 of `size` problems whose numbers are shortest, bool `[]`.

    There are the fewest problems of few digits, so these are the first that it could not find.
    """
    keys, patience = _keys(key, size), _patience(rules, side, most)
    redrawn = jnp.arange(0, min(most, 4 * patience), patience)  # kind and lengths are drawn at these attempts
    numbers = jax.vmap(lambda n: _propose(rules, keys, n, patience)[0].numbers)(redrawn)
    n_digits = digits.length(numbers).sum(axis=-1).max(axis=0)
    keys = keys[jnp.argsort(n_digits)[:16]]
    at_once = 128

    def fits_at(attempt: jax.Array) -> jax.Array:
        proposal, fits = _propose(rules, keys, attempt, patience)
        fits &= is_held_out(rules, proposal.numbers, proposal.kind_ids) == (side == "held out")
        return fits & (attempt < most)

    def goes_on(carried: tuple[jax.Array, jax.Array]) -> jax.Array:
        return ~carried[0].all() & (carried[1] < most)

    def attempts(carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        found, n = carried
        return found | jax.vmap(fits_at)(n + jnp.arange(at_once)).any(axis=0), n + at_once

    return jax.lax.while_loop(goes_on, attempts, (jnp.zeros(len(keys), bool), jnp.int32(0)))[0].all()


def _keys(key: jax.Array, size: int) -> jax.Array:
    """Return the key of each problem, `[size]`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))


def _patience(rules: Rules, side: Side, most: int) -> int:
    """Return for how many attempts kind and lengths of a problem stay the same."""
    share = rules.held_out if side == "held out" else 1 - rules.held_out
    return min(most, max(1, round(_PATIENCE * (1 - rules.held_out) / share)))


def _propose(rules: Rules, keys: jax.Array, attempt: jax.Array, patience: int) -> tuple[Problems, jax.Array]:
    """Return one proposal per key, and whether it fits: every result is in range and no divisor is zero.

    Kind and lengths stay the same for `patience` attempts, so that kinds and lengths that rarely fit are as frequent.
    """
    n, terms = rules.n_digits, rules.terms
    limit = jnp.asarray(digits.from_int(rules.max_number, n))
    fold_in = jax.vmap(jax.random.fold_in, (0, None))
    bits = jax.vmap(lambda key: jax.random.bits(key, (3 + terms,)))(fold_in(keys, 2 * (attempt // patience)))
    kind_ids = (bits[:, 0] % len(rules.kinds)).astype(jnp.int32)
    by_value, swap = bits[:, 1] % 2 == 0, bits[:, 2] % 2 == 0
    operation_ids = rules.operation_ids(kind_ids)

    def uses(*names: str) -> jax.Array:
        """Return which operations of each problem are among these, bool `[B, terms - 1]`."""
        return jnp.asarray(np.isin(rules.operations, names))[operation_ids]

    subtracts, has_factors, divides = uses("minus"), uses("times", "divided by")[:, 0], uses("divided by")[:, 0]
    lengths = _lengths(bits[:, 3:], n, by_value, has_factors, subtracts[:, 0])
    # A number whose length was drawn does not begin with 0.
    exact = ~by_value[:, None] | (has_factors[:, None] & (jnp.arange(terms) == 0))
    numbers = _numbers(fold_in(keys, 2 * attempt + 1), lengths, exact, limit)

    answers, fits = numbers[:, 0], digits.at_most(numbers, limit).all(axis=1)
    for term in range(1, terms):
        sign = jnp.where(subtracts[:, term - 1, None], -1, 1)
        answers, beyond = digits.carry(answers + sign * numbers[:, term])
        fits &= (beyond == 0) & digits.at_most(answers, limit)
    if {"times", "divided by"} & set(rules.operations):
        numbers = jnp.where((has_factors & swap)[:, None, None], numbers[:, ::-1], numbers)
        product, overflow = digits.multiply(numbers[:, 0], numbers[:, 1])
        product_fits = ~overflow & digits.at_most(product, limit) & digits.at_most(numbers, limit).all(axis=1)
        by_zero = divides & (numbers[:, 1] == 0).all(axis=1)
        fits = jnp.where(has_factors, product_fits & ~by_zero, fits)
        # A division asks for one factor of the product.
        answers = jnp.where((has_factors & ~divides)[:, None], product, answers)
        answers = jnp.where(divides[:, None], numbers[:, 0], answers)
        numbers = numbers.at[:, 0].set(jnp.where(divides[:, None], product.astype(numbers.dtype), numbers[:, 0]))
    return Problems(numbers, kind_ids, answers), fits


def _lengths(bits: jax.Array, n: int, by_value: jax.Array, has_factors: jax.Array, subtracts: jax.Array) -> jax.Array:
    """Return how many digits each number may have, int32 `[B, terms]`.

    Args:
      bits: random uint32 `[B, terms]`.
      n: digits of the largest number.
      by_value: bool `[B]`, whether numbers are drawn evenly by value, not by length.
      has_factors: bool `[B]`, whether the problem multiplies or divides.
      subtracts: bool `[B]`, whether its first operation is minus.
    """
    lengths = 1 + (bits % n).astype(jnp.int32)
    first, second = jnp.moveaxis(lengths[:, :2], -1, 0)
    # A difference is not negative, so its first number is the longer one.
    ordered = jnp.stack([jnp.maximum(first, second), jnp.minimum(first, second)], axis=1)
    as_terms = lengths.at[:, :2].set(jnp.where(subtracts[:, None], ordered, lengths[:, :2]))
    as_terms = jnp.where(by_value[:, None], n, as_terms)
    if bits.shape[1] > 2:  # only sums and differences have more than two numbers
        return as_terms
    # Two factors whose product is in range have together at most n + 1 digits.
    room = n + 1 - first
    drawn = 1 + (bits[:, 1] % room.astype(jnp.uint32)).astype(int)
    as_factors = jnp.stack([first, jnp.where(by_value, room, drawn)], axis=1)
    return jnp.where(has_factors[:, None], as_factors, as_terms)


def _numbers(keys: jax.Array, lengths: jax.Array, exact: jax.Array, limit: jax.Array) -> jax.Array:
    """Return random digits, int32 `[B, terms, n]`; some numbers are above the limit and must be drawn again.

    Args:
      lengths: the most digits that a number may have, int `[B, terms]`.
      exact: whether it has exactly as many, bool `[B, terms]`.
      limit: digits of the largest number, `[n]`.
    """
    n, terms = limit.shape[0], lengths.shape[1]
    bits = jax.vmap(lambda key: jax.random.bits(key, (terms, n)))(keys)
    place, lengths = jnp.arange(n), lengths[..., None]
    lowest = (exact[..., None] & (place == lengths - 1) & (lengths > 1)).astype(jnp.uint32)
    highest = jnp.where(place == n - 1, limit, 9).astype(jnp.uint32)
    return jnp.where(place < lengths, lowest + bits % (highest - lowest + 1), 0).astype(jnp.int32)
