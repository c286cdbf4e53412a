"""Arithmetic tasks without a table: problems too many to list are drawn, encoded and split on the device.

A batch is a function of (task, seed, step). Which problems are held out is a function of the problem alone, so no list
is kept and none is looked up: a hash that does not change when terms or factors change places. Hence a problem and its
commuted twins are always on the same side, whatever the largest number is and however numbers are written.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.tasks import digits
from jaxcalc.tasks.hashing import mix
from jaxcalc.tasks.problems import Expression
from jaxcalc.tasks.task import Split, Task
from jaxcalc.tasks.tokenizer import EQUALS, OPERATIONS, PAD, Output, Tokenizer
from jaxcalc.tasks.words import LARGEST_NUMBER

Notation = Literal["words", "digits", "digits-reversed"]
Side = Literal["training", "held out"]
MOST_DIGITS, MOST_TERMS = 30, 4
SAMPLE = 2048  # problems of each side to evaluate on
ATTEMPTS = 20_000  # to find one of them, before a side is taken to have none


class Problems(NamedTuple):
    """Problems on the device: digits of the numbers `[B, terms, n]`, kinds `[B]`, digits of the answers `[B, n]`."""

    numbers: jax.Array
    kinds: jax.Array
    answers: jax.Array


@flax.struct.dataclass
class Arithmetic(Task):
    """A task whose problems are drawn, and a sample of 2,048 problems of each side to evaluate on.

    Every number stands in a slot as wide as the longest, so that a place such as the ones is always at the same
    position: `a operation b equals | answer <end> [padding]`. Padding stands before a number, and behind one that is
    written lowest digit first.
    """

    tokens: jax.Array
    """int32 `[N, L]`: the sample, encoded."""
    problems: Problems
    """The sample."""
    train_rows: jax.Array
    """int32 `[n]`: the rows of the sample that are on the training side."""
    held_out_rows: jax.Array
    """int32 `[m]`: the other rows; training never draws these problems."""
    tokenizer: Tokenizer = flax.struct.field(pytree_node=False)
    prompt_length: int = flax.struct.field(pytree_node=False)
    terms: int = flax.struct.field(pytree_node=False)
    """How many numbers a problem has."""
    held_out: float = flax.struct.field(pytree_node=False)
    """The share of all problems that training never draws."""
    seed: int = flax.struct.field(pytree_node=False)
    """Chooses which."""
    split: Split = flax.struct.field(pytree_node=False, default="orbit")

    @property
    def n_digits(self) -> int:
        """Digits of the largest number."""
        return len(str(self.tokenizer.max_number))

    @property
    def slot(self) -> int:
        """Tokens of the longest number."""
        return self.prompt_length // self.terms - 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """What kinds of problems there are: the operations or, with more than two numbers, all sequences of them."""
        return tuple(map(" ".join, _names(self)))

    @property
    def kind(self) -> np.ndarray:
        """The index of the kind of each problem of the sample, int `[N]`."""
        return np.asarray(self.problems.kinds)

    def problem(self, row: int) -> Expression:
        """Return the problem in one row of the sample."""
        numbers, kind = np.asarray(self.problems.numbers)[row], int(self.kind[row])
        return Expression(tuple(map(digits.to_int, numbers)), _names(self)[kind])

    def parse(self, text: str) -> Expression:
        """Return the problem that a question states; anything but one question raises `InputError`.

        >>> arithmetic(max_number=999).parse("three hundred twelve + 5")
        Expression(numbers=(312, 5), operations=('plus',))
        """
        tokens = self.tokenizer.canonical(text)
        example = f"ask for example {Expression((2,) * self.terms, self.tokenizer.operations[:1] * (self.terms - 1))}"
        if not tokens or tokens[-1] != EQUALS or tokens.count(EQUALS) > 1:
            raise InputError(f"not a question: {' '.join(tokens)[:60]!r}; {example}")
        is_number = [token not in self.tokenizer.operations for token in tokens[:-1]]
        groups = [list(group) for _, group in itertools.groupby(zip(is_number, tokens, strict=False), lambda x: x[0])]
        words = [[token for _, token in group] for group in groups]
        operations = tuple(" ".join(group) for group in words[1::2])
        if len(words) != 2 * self.terms - 1 or not is_number[0] or not set(operations) <= {*self.tokenizer.operations}:
            raise InputError(
                f"not {self.terms} numbers with an operation between: {' '.join(tokens)[:60]!r}; {example}"
            )
        numbers = [self.tokenizer.read(group, self.tokenizer.notation) for group in words[::2]]
        largest = self.tokenizer.max_number
        for number, group in zip(numbers, words[::2], strict=True):
            if number is None or number > largest:  # words that were read one by one, such as "twenty 8"
                raise InputError(f"not a number from 0 to {largest}: {' '.join(group)!r}")
        problem = Expression(tuple(number for number in numbers if number is not None), operations)
        if "divided by" in operations and 0 in problem.numbers[1:]:
            raise InputError("division by zero has no answer; divide by another number")
        return problem

    def encode(self, text: str) -> np.ndarray:
        """Return a question as int32 `[prompt_length]`.

        >>> arithmetic(max_number=999, notation="digits").encode("312 + 5").tolist()
        [10, 8, 9, 3, 0, 0, 12, 2]
        """
        return np.array(self._prompt(self.parse(text)), np.int32)

    def membership(self, problem: Expression) -> Literal["training", "held out", "outside"]:
        """Say whether a problem is one that training may draw, is held out, or is not of this task at all."""
        if not self._is_inside(problem):
            return "outside"
        return "held out" if bool(is_held_out(self, *self._device(problem))) else "training"

    def of(self, problems: Sequence[Expression]) -> "Arithmetic":
        """Return the same task with these problems in the place of its sample.

        Raises `InputError` for a problem that is not of this task.

        >>> task = arithmetic(max_number=999, operations=("plus",))
        >>> task.of([Expression((999, 0), ("plus",))]).tokens.shape
        (1, 15)
        """
        for problem in problems:
            if not self._is_inside(problem):
                raise InputError(
                    f"{problem} is not a problem of this task: {self.terms} numbers, and every result on the way, from "
                    f"0 to {self.tokenizer.max_number}; operations {', '.join(self.kinds)}"
                )
        numbers, kinds = map(np.stack, zip(*map(self._device, problems), strict=True))
        answers = np.stack([digits.from_int(problem.answer or 0, self.n_digits) for problem in problems])
        return self._with_sample(Problems(jnp.asarray(numbers), jnp.asarray(kinds), jnp.asarray(answers)))

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `jaxcalc.batch_at`."""
        if size < 1:
            raise InputError(f"batch size is {size}; it must be at least 1")
        return encode(self, draw(self, jax.random.fold_in(jax.random.key(seed), step), size, "training")[0])

    def _is_inside(self, problem: Expression) -> bool:
        """Whether a problem is of this task, and so is every result on the way to its answer."""
        numbers, operations = problem
        if len(numbers) != self.terms or " ".join(operations) not in self.kinds:
            return False
        if "divided by" in operations and 0 in numbers[1:]:
            return False
        values = (*numbers, *problem.results)
        return all(value is not None and 0 <= value <= self.tokenizer.max_number for value in values)

    def _device(self, problem: Expression) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.stack([digits.from_int(number, self.n_digits) for number in problem.numbers])
        return numbers, np.array(self.kinds.index(" ".join(problem.operations)), np.int32)

    def _prompt(self, problem: Expression) -> list[int]:
        words: list[str] = []
        for number, after in zip(problem.numbers, (*problem.operations, EQUALS), strict=True):
            spelled = self.tokenizer.spell(number, self.tokenizer.notation)
            padding = [PAD] * (self.slot - len(spelled))
            words += [*spelled, *padding] if self.tokenizer.notation == "reversed" else [*padding, *spelled]
            words.append(after)
        return [self.tokenizer.ids[word] for word in words]

    def _with_sample(self, sample: Problems) -> "Arithmetic":
        tokens, held_out = _encoded(self, sample)
        sides = (~np.asarray(held_out), np.asarray(held_out))
        train_rows, held_out_rows = (jnp.asarray(np.flatnonzero(side).astype(np.int32)) for side in sides)
        return dataclasses.replace(
            self, tokens=tokens, problems=sample, train_rows=train_rows, held_out_rows=held_out_rows
        )


def arithmetic(
    max_number: int = 999,
    operations: tuple[str, ...] = OPERATIONS,
    terms: int = 2,
    notation: Notation = "words",
    held_out: float = 0.1,
    seed: int = 0,
) -> Arithmetic:
    """Return a task that draws its problems: "a operation b equals c", or more terms.

    Numbers, answers and every result on the way are integers from 0 to `max_number`; division is exact and never by
    zero. All kinds of problems are drawn about equally often. Half of them are drawn evenly by value: every problem of
    the kind is as likely as every other. The other half are drawn evenly by length: first how many digits each
    number has, then its value. (Of times and divided by, two factors are drawn whose product is in range.)

    Args:
      max_number: the largest number; up to 999,999,999 in words, up to 10³⁰ − 1 in digits.
      operations: some of "plus", "minus", "times", "divided by".
      terms: numbers in a problem, 2 to 4; more than 2 only of "plus" and "minus", which are read from left to right.
      notation: how all numbers are written: in "words", as one token a digit with the highest first
        ("digits"), or with the lowest first ("digits-reversed").
      held_out: the share of problems that training never draws, above 0 and below 1.
      seed: chooses which.

    Raises `InputError` for an argument outside these.

    >>> task = arithmetic(max_number=10**30 - 1, operations=("plus",), notation="digits-reversed")
    >>> task.tokens.shape
    (4096, 93)
    """
    _check_arguments(max_number, operations, terms, notation, held_out)
    written: Output = "reversed" if notation == "digits-reversed" else notation
    tokenizer = Tokenizer(tuple(operations), max_number, output=written, notation=written)
    nothing = jnp.zeros(0, jnp.int32)
    task = Arithmetic(nothing, Problems(nothing, nothing, nothing), nothing, nothing, tokenizer,
                      terms * (_longest(tokenizer) + 1), terms, held_out, seed)  # fmt: skip
    sample, found = _sample(task)
    if not found:
        raise InputError(f"held_out={held_out} of problems up to {max_number} leaves one side without any; take a "
                         "larger max_number, or another share")  # fmt: skip
    return task._with_sample(sample)


def draw(task: Arithmetic, key: jax.Array, size: int, side: Side, most: int = 2**31 - 1) -> tuple[Problems, jax.Array]:
    """Return problems of one side, problem i a function of the task, the key and i alone, and whether all were found.

    What is drawn and is not a problem of the task, or not of the side, is drawn again, `most` times.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))
    share = task.held_out if side == "held out" else 1 - task.held_out
    patience = min(most, max(1, round(_PATIENCE * (1 - task.held_out) / share)))

    def attempt(carried: tuple[Problems, jax.Array, jax.Array]) -> tuple[Problems, jax.Array, jax.Array]:
        problems, found, n = carried
        new, is_one = _propose(task, keys, n, patience)
        is_one &= is_held_out(task, new.numbers, new.kinds) == (side == "held out")
        take = is_one & ~found
        problems = jax.tree.map(lambda x, old: jnp.where(take.reshape(-1, *[1] * (x.ndim - 1)), x, old), new, problems)
        return problems, found | is_one, n + 1

    def is_missing(carried: tuple[Problems, jax.Array, jax.Array]) -> jax.Array:
        return ~carried[1].all() & (carried[2] < most)

    blank = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: _propose(task, keys, jnp.int32(0), patience)[0]))
    problems, found, _ = jax.lax.while_loop(is_missing, attempt, (blank, jnp.zeros(size, bool), jnp.int32(0)))
    return problems, found.all()


def encode(task: Arithmetic, problems: Problems) -> jax.Array:
    """Return problems as sequences, int32 `[B, L]`: by integer operations what `Arithmetic.encode` does on the host."""
    tokenizer, slot = task.tokenizer, task.slot
    numbers, n = digits.spell(problems.numbers, tokenizer, tokenizer.notation, slot)  # [B, terms, slot]
    if tokenizer.notation != "reversed":
        numbers = digits.flush_right(numbers, n)
    between = jnp.array([tokenizer.ids[name] for name in tokenizer.operations])[_sequences(task)[problems.kinds]]
    between = jnp.pad(between, ((0, 0), (0, 1)), constant_values=tokenizer.ids[EQUALS])
    prompts = jnp.concatenate([numbers, between[..., None]], axis=-1).reshape(len(numbers), -1)
    answers = digits.with_end(*digits.spell(problems.answers, tokenizer, tokenizer.output, slot))
    return jnp.concatenate([prompts, answers], axis=-1).astype(jnp.int32)


def is_held_out(task: Arithmetic, numbers: jax.Array | np.ndarray, kinds: jax.Array | np.ndarray) -> jax.Array:
    """Return which problems are held out, bool `[...]`, of digits `[..., terms, n]` and kinds `[...]`.

    A hash of the number's digits that are not 0 and their places (Zobrist 1970), of what each number does (is added, is
    subtracted, is a factor, …), and of the sum of these over the terms; so neither the order of what
    is added or multiplied nor leading zeros count. Held out is what hashes below the share.
    """
    numbers, kinds = jnp.asarray(numbers), jnp.asarray(kinds)
    place = jnp.arange(numbers.shape[-1]) * 16
    by_digit = mix((place + numbers).astype(jnp.uint32), jnp.uint32(task.seed))
    by_number = mix(jnp.where(numbers > 0, by_digit, 0).sum(axis=-1, dtype=jnp.uint32), jnp.uint32(0x5BF03635))
    doing = [[_DOES[name][0], *(_DOES[name][1] for name in sequence)] for sequence in _names(task)
             for name in sequence[:1]]  # fmt: skip
    by_term = mix(by_number, jnp.array(doing, jnp.uint32)[kinds])
    return mix(by_term.sum(axis=-1, dtype=jnp.uint32), jnp.uint32(task.seed)) < jnp.uint32(task.held_out * 2**32)


# What the first number of an operation does, and the second. Equal where they may change places.
_DOES = {
    "plus": (0x165667B1, 0x165667B1),
    "minus": (0x165667B1, 0x27D4EB2F),
    "times": (0x2545F491, 0x2545F491),
    "divided by": (0x7FEB352D, 0x846CA68B),
}
_PATIENCE = 8  # attempts before kind and lengths of a training problem are drawn anew; of rarer ones it takes more


def _propose(task: Arithmetic, keys: jax.Array, attempt: jax.Array, patience: int) -> tuple[Problems, jax.Array]:
    """Return a problem for each key, and whether it is one: all results in range, no division by zero.

    Its kind and lengths are the same for `patience` attempts, so that those that rarely fit are as frequent.
    """
    n, terms, operations = task.n_digits, task.terms, np.array(task.tokenizer.operations)
    limit = jnp.asarray(digits.from_int(task.tokenizer.max_number, n))
    fold_in = jax.vmap(jax.random.fold_in, (0, None))
    bits = jax.vmap(lambda key: jax.random.bits(key, (3 + terms,)))(fold_in(keys, 2 * (attempt // patience)))
    kinds = (bits[:, 0] % len(task.kinds)).astype(jnp.int32)
    by_value, swap = bits[:, 1] % 2 == 0, bits[:, 2] % 2 == 0
    lengths = 1 + (bits[:, 3:] % n).astype(jnp.int32)
    first, second = jnp.moveaxis(lengths[:, :2], -1, 0)
    of_kind = _sequences(task)[kinds]  # [B, terms - 1]
    has_factors = jnp.asarray(np.isin(operations, ("times", "divided by")))[of_kind[:, 0]]
    subtracts = jnp.asarray(operations == "minus")[of_kind]

    # Of a difference the first number is the longer one. Two factors have together n + 1 digits at most.
    longer, shorter = jnp.maximum(first, second), jnp.minimum(first, second)
    room = n + 1 - first
    of_factors = jnp.stack(
        [first, jnp.where(by_value, room, 1 + (bits[:, 4] % room.astype(jnp.uint32)).astype(int))], 1
    )
    of_terms = lengths.at[:, :2].set(jnp.where(subtracts[:, :1], jnp.stack([longer, shorter], 1), lengths[:, :2]))
    of_terms = jnp.where(by_value[:, None], n, of_terms)
    if terms == 2:
        of_terms = jnp.where(has_factors[:, None], of_factors, of_terms)
    # A number with a length of its own begins with another digit than 0.
    exact = jnp.where(by_value[:, None], has_factors[:, None] & (jnp.arange(terms) == 0), True)
    numbers = _numbers(fold_in(keys, 2 * attempt + 1), of_terms, exact, limit)

    answers, good = numbers[:, 0], digits.at_most(numbers, limit).all(axis=1)
    for term in range(1, terms):
        sign = jnp.where(subtracts[:, term - 1, None], -1, 1)
        answers, beyond = digits.carry(answers + sign * numbers[:, term])
        good &= (beyond == 0) & digits.at_most(answers, limit)
    if np.isin(operations, ("times", "divided by")).any():
        numbers = jnp.where((has_factors & swap)[:, None, None], numbers[:, ::-1], numbers)
        product, overflow = digits.multiply(numbers[:, 0], numbers[:, 1])
        fits = ~overflow & digits.at_most(product, limit) & digits.at_most(numbers, limit).all(axis=1)
        divides = jnp.asarray(operations == "divided by")[of_kind[:, 0]]
        good = jnp.where(has_factors, fits & ~(divides & (numbers[:, 1] == 0).all(axis=1)), good)
        answers = jnp.where((has_factors & ~divides)[:, None], product, answers)
        answers = jnp.where(divides[:, None], numbers[:, 0], answers)
        numbers = numbers.at[:, 0].set(jnp.where(divides[:, None], product, numbers[:, 0]))
    return Problems(numbers, kinds, answers), good


def _numbers(keys: jax.Array, lengths: jax.Array, exact: jax.Array, limit: jax.Array) -> jax.Array:
    """Return digits `[B, terms, n]` of numbers of at most so many digits, or exactly as many; some exceed the limit."""
    n, terms = limit.shape[0], lengths.shape[1]
    bits = jax.vmap(lambda key: jax.random.bits(key, (terms, n)))(keys)
    place, lengths = jnp.arange(n), lengths[..., None]
    lowest = (exact[..., None] & (place == lengths - 1) & (lengths > 1)).astype(jnp.uint32)
    highest = jnp.where(place == n - 1, limit, 9).astype(jnp.uint32)
    return jnp.where(place < lengths, lowest + bits % (highest - lowest + 1), 0).astype(jnp.int32)


_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is what costs


@_once
def _encoded(task: Arithmetic, problems: Problems) -> tuple[jax.Array, jax.Array]:
    """Return the sequences of problems, and which are held out."""
    return encode(task, problems), is_held_out(task, problems.numbers, problems.kinds)


@_once
def _sample(task: Arithmetic) -> tuple[Problems, jax.Array]:
    """Return as many problems of either side, from two streams that no training step draws from, if there are any."""
    keys = [jax.random.fold_in(jax.random.key(task.seed), np.uint32(2**32 - 1 - i)) for i in range(2)]
    drawn = [draw(task, key, SAMPLE, side, ATTEMPTS) for key, side in zip(keys, get_args(Side), strict=True)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *[d[0] for d in drawn]), drawn[0][1] & drawn[1][1]


def _names(task: Arithmetic) -> list[tuple[str, ...]]:
    """Return the sequence of operations of each kind."""
    return list(itertools.product(task.tokenizer.operations, repeat=task.terms - 1))


def _sequences(task: Arithmetic) -> jax.Array:
    """Return the same as indices of operations, int32 `[kinds, terms - 1]`."""
    return jnp.array(list(itertools.product(range(len(task.tokenizer.operations)), repeat=task.terms - 1)), jnp.int32)


@functools.cache
def _longest(tokenizer: Tokenizer) -> int:
    """Return the tokens of the longest number up to the largest.

    Below a number whose first digits are those of the largest and whose next is smaller, all others may be 9.
    """
    largest = str(tokenizer.max_number)
    heads = [largest[:i] + str(d) for i in range(len(largest)) for d in range(int(largest[i]))]
    numbers = [int(head.ljust(len(largest), "9")) for head in heads]
    return max(len(tokenizer.spell(number)) for number in [tokenizer.max_number, *numbers])


def _check_arguments(max_number: int, operations: tuple[str, ...], terms: int, notation: str, held_out: float) -> None:
    known = ", ".join(map(repr, OPERATIONS))
    if not operations or len(set(operations)) < len(operations) or not set(operations) <= set(OPERATIONS):
        raise InputError(f"operations are {operations}; name each at most once and at least one of {known}")
    if notation not in get_args(Notation):
        raise InputError(f"notation is {notation!r}; it must be one of {', '.join(map(repr, get_args(Notation)))}")
    largest = LARGEST_NUMBER if notation == "words" else 10**MOST_DIGITS - 1
    if not 9 <= max_number <= largest:
        raise InputError(f"max_number is {max_number}; with notation={notation!r} it must be from 9 to {largest}")
    if not 2 <= terms <= MOST_TERMS:
        raise InputError(f"terms is {terms}; it must be from 2 to {MOST_TERMS}")
    if terms > 2 and not set(operations) <= {"plus", "minus"}:
        raise InputError(f"terms is {terms} and operations are {operations}; more than 2 terms are read from left to "
                         "right, so only plus and minus are possible")  # fmt: skip
    if not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}; it must be above 0 and below 1")
