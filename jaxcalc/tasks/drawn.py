"""Tasks without a table: problems too many to list are drawn, encoded and split on the device."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.numerics import default_promotion
from jaxcalc.tasks import digits
from jaxcalc.tasks.drawing import Problems, Rules, Side, can_draw, draw, is_held_out
from jaxcalc.tasks.problems import Problem
from jaxcalc.tasks.task import (
    STATIC,
    Membership,
    Split,
    Task,
    check_held_out,
    check_max_number,
    check_operations,
    check_where,
)
from jaxcalc.tasks.tokenizer import EQUALS, OPERATIONS, Notation, Tokenizer
from jaxcalc.tasks.words import LARGEST_NUMBER

MOST_DIGITS, MOST_TERMS = 30, 4
SAMPLE = 2048
"""Problems of each side that a task lists, to evaluate on."""
ATTEMPTS = 20_000
"""Draws without a problem of one side after which that side counts as empty."""
TRIAL = 64
"""Draws after which, where few problems of a side are found, the rarest are sought alone before all the others."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Arithmetic(Task):
    """A task that draws its problems, and lists a sample of 2,048 problems of each side to evaluate on.

    Every number takes as many tokens as the longest one, so that a place such as the ones is always at the same
    position: `a operation b equals | answer <end> [padding]`. Padding stands before a number, or behind reversed ones.
    """

    tokens: jax.Array
    """int32 `[N, L]`: the sample, encoded."""
    problems: Problems
    """The sample."""
    train_rows: jax.Array
    """int32 `[n]`: the rows of the sample that are on the training side."""
    held_out_rows: jax.Array
    """int32 `[m]`: the other rows; training never draws these problems."""
    tokenizer: Tokenizer = dataclasses.field(metadata=STATIC)
    prompt_length: int = dataclasses.field(metadata=STATIC)
    terms: int = dataclasses.field(metadata=STATIC)
    """Numbers in a problem."""
    held_out: float = dataclasses.field(metadata=STATIC)
    """The share of all problems that training never draws."""
    seed: int = dataclasses.field(metadata=STATIC)
    """Chooses which problems are held out."""
    split: Split = dataclasses.field(default="orbit", metadata=STATIC)
    operations: tuple[str, ...] | None = dataclasses.field(default=None, metadata=STATIC)
    """The operations that are drawn; None for all of the vocabulary."""
    largest: int | None = dataclasses.field(default=None, metadata=STATIC)
    """The largest number that is drawn; None for that of the vocabulary."""

    @property
    def rules(self) -> Rules:
        """Which problems are drawn, and which are held out."""
        return Rules(*self._range(), self.terms, self.held_out, self.seed)

    def _range(self) -> tuple[tuple[str, ...], int]:
        """Return the operations and the largest number that are drawn."""
        return self.operations or self.tokenizer.operations, self.largest or self.tokenizer.max_number

    @property
    def slot(self) -> int:
        """Tokens that every number of a prompt takes, padding included: those of the longest number."""
        return self.prompt_length // self.terms - 1

    @property
    def kind_names(self) -> tuple[str, ...]:
        """The kinds of problems: the operations or, with more than two numbers, all sequences of them."""
        return tuple(map(" ".join, self.rules.kinds))

    @property
    def kind_ids(self) -> np.ndarray:
        """The kind of each problem of the sample, an index into `kind_names`, int `[N]`."""
        return np.asarray(self.problems.kind_ids)

    def problem(self, row: int) -> Problem:
        """Return the problem in one row of the sample."""
        numbers = np.asarray(self.problems.numbers)[row]
        return Problem(tuple(map(digits.to_int, numbers)), self.rules.kinds[self.kind_ids[row]])

    def membership(self, problem: Problem | str) -> Membership:
        """Say where a problem is; see `Task.membership`. In training is what training may draw."""
        problem = self.as_problem(problem)
        if not self.rules.contains(problem):
            whole = dataclasses.replace(self, operations=None, largest=None)
            return "left out" if whole.rules.contains(problem) else "outside"
        numbers, kind_ids, _ = self.rules.arrays([problem])
        return "held out" if bool(is_held_out(self.rules, numbers, kind_ids)[0]) else "training"

    def where(
        self,
        operations: tuple[str, ...] | None = None,
        largest: int | None = None,
        predicate: Callable[[Problem], bool] | None = None,
    ) -> "Arithmetic":
        """Return a task that draws these problems alone, and lists a sample of them; see `Task.where`.

        It draws as `arithmetic` with these operations and this largest number does.
        """
        if predicate is not None:
            raise InputError(
                "a task that draws its problems cannot draw by a predicate; choose by operations and largest, or list "
                "your own problems with jaxcalc.task_from"
            )
        check_where(self.tokenizer, operations, largest)
        before, most = self._range()
        chosen = tuple(name for name in before if operations is None or name in operations)
        if not chosen:
            raise InputError(f"operations are {operations}; this task draws {', '.join(map(repr, before))} alone")
        task = dataclasses.replace(self, operations=chosen, largest=min(most, largest or most))
        return task._with_sample(_sample_of(task))

    def with_problems(self, problems: Sequence[Problem]) -> "Arithmetic":
        """Return the same task with these problems instead of its sample.

        Raises `InputError` for a problem that the task does not contain.

        >>> task = arithmetic(max_number=99, operations=("plus",))
        >>> task.with_problems([Problem((98, 1), ("plus",))]).tokens.shape
        (1, 9)
        """
        for problem in problems:
            if not self.rules.contains(problem):
                raise InputError(
                    f"{problem} is not a problem of this task; its problems have {self.terms} numbers, every number "
                    f"and result from 0 to {self.rules.max_number}, and the operations {', '.join(self.kind_names)}"
                )
        return self._with_sample(self.rules.arrays(problems))

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `jaxcalc.batch_at`."""
        if size < 1:
            raise InputError(f"batch size is {size}; it must be at least 1")
        key = jax.random.fold_in(jax.random.key(seed), step)
        return encode_problems(self, draw(self.rules, key, size, "training")[0])

    def _with_sample(self, sample: Problems) -> "Arithmetic":
        tokens, held_out = _encode_and_split(self, sample)
        held_out = np.asarray(held_out)
        train_rows, held_out_rows = (
            jnp.asarray(np.flatnonzero(side).astype(np.int32)) for side in (~held_out, held_out)
        )
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
    zero. Kinds are drawn about equally often, in half of the draws by value (every sum and difference is as likely as
    every other) and in half by length (first how many digits each number has). What does not fit is drawn again, up to
    eight times with the same kind and lengths. So a kind that fits rarely has down to 0.65 of an equal share (at 12,345
    divided by has 0.7 and minus 1.3), and a product close to the largest number is up to eight times too likely.

    Args:
      max_number: the largest number; up to 999,999,999 in words, up to 10³⁰ − 1 in digits.
      operations: some of "plus", "minus", "times", "divided by".
      terms: numbers in a problem, 2 to 4; more than 2 only with "plus" and "minus", which are read from left to right.
      notation: how all numbers are written: in "words", or as one token per digit with the highest first ("digits") or
        the lowest first ("digits-reversed").
      held_out: the share of problems that training never draws, above 0 and below 1.
      seed: chooses which problems are held out.

    Raises `InputError` for an argument outside these.

    >>> task = arithmetic(max_number=10**30 - 1, operations=("plus",), notation="digits-reversed")
    >>> task.tokens.shape
    (4096, 93)
    """
    tokenizer = Tokenizer(tuple(operations), max_number, output=notation, notation=notation)  # checks the notation
    _check_arguments(max_number, operations, terms, notation, held_out)
    nothing = jnp.zeros(0, jnp.int32)
    task = Arithmetic(
        tokens=nothing,
        problems=Problems(nothing, nothing, nothing),
        train_rows=nothing,
        held_out_rows=nothing,
        tokenizer=tokenizer,
        prompt_length=terms * (_longest(tokenizer) + 1),
        terms=terms,
        held_out=held_out,
        seed=seed,
    )
    return task._with_sample(_sample_of(task))


@default_promotion()
def encode_problems(task: Arithmetic, problems: Problems) -> jax.Array:
    """Return problems as sequences, int32 `[B, L]`, on the device; the prompts are those of `Task.encode`."""
    tokenizer, slot = task.tokenizer, task.slot
    numbers, n = digits.spell(problems.numbers, tokenizer, tokenizer.notation, slot)  # [B, terms, slot]
    if tokenizer.notation != "digits-reversed":
        numbers = digits.flush_right(numbers, n)
    operations = jnp.array([tokenizer.ids[name] for name in tokenizer.operations])
    between = operations[task.rules.operation_ids(problems.kind_ids)]
    between = jnp.pad(between, ((0, 0), (0, 1)), constant_values=tokenizer.ids[EQUALS])
    prompts = jnp.concatenate([numbers, between[..., None]], axis=-1).reshape(len(numbers), -1)
    answers = digits.with_end(*digits.spell(problems.answers, tokenizer, tokenizer.output, slot))
    return jnp.concatenate([prompts, answers], axis=-1).astype(jnp.int32)


# These programs run once per task, so compiling them costs more than they save by LLVM's optimization.
_compile_quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@_compile_quickly
def _encode_and_split(task: Arithmetic, problems: Problems) -> tuple[jax.Array, jax.Array]:
    """Return the sequences of problems, and which problems are held out."""
    return encode_problems(task, problems), is_held_out(task.rules, problems.numbers, problems.kind_ids)


@_compile_quickly
def _sample(task: Arithmetic, trial: int | jax.Array) -> tuple[Problems, jax.Array]:
    """Return `SAMPLE` problems of each side, and whether all were found; `draw` explains `trial`."""
    sides = [draw(task.rules, key, SAMPLE, side, ATTEMPTS, trial) for key, side in _side_keys(task)]
    (training, has_training), (held_out, has_held_out) = sides
    both = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), training, held_out)
    return both, has_training & has_held_out


def _sample_of(task: Arithmetic) -> Problems:
    """Return the sample of a task; raises `InputError` where a side has no problems."""
    sample, found = _sample(task, TRIAL)
    if not found and _can_sample(task):
        sample, found = _sample(task, ATTEMPTS)
    if not found:
        raise InputError(
            f"held_out={task.held_out} of problems up to {task.rules.max_number} leaves one side without any, or "
            "with too few to draw; take a larger number or another share"
        )
    return sample


@_compile_quickly
def _can_sample(task: Arithmetic) -> jax.Array:
    """Return whether the rarest problems of the smaller side are found."""
    key, side = _side_keys(task)[task.held_out < 0.5]
    return can_draw(task.rules, key, SAMPLE, side, ATTEMPTS)


def _side_keys(task: Arithmetic) -> list[tuple[jax.Array, Side]]:
    """Return the key of the sample of each side. No training step draws from them."""
    sides: tuple[Side, ...] = get_args(Side)
    keys = [jax.random.fold_in(jax.random.key(task.seed), np.uint32(2**32 - 1 - i)) for i in range(2)]
    return list(zip(keys, sides, strict=True))


@functools.cache
def _longest(tokenizer: Tokenizer) -> int:
    """Return how many tokens the longest number takes.

    A number below the largest has some of its first digits, then a smaller digit. Every digit after that may be 9, and
    no other digit needs more tokens.
    """
    largest = str(tokenizer.max_number)
    heads = [largest[:i] + str(d) for i in range(len(largest)) for d in range(int(largest[i]))]
    numbers = [int(head.ljust(len(largest), "9")) for head in heads]
    return max(len(tokenizer.spell(number)) for number in [tokenizer.max_number, *numbers])


def _check_arguments(
    max_number: int, operations: tuple[str, ...], terms: int, notation: Notation, held_out: float
) -> None:
    check_operations(operations)
    largest = LARGEST_NUMBER if notation == "words" else 10**MOST_DIGITS - 1
    check_max_number(max_number, 9, largest, f"with notation={notation!r}")
    check_held_out(held_out)
    if not 2 <= terms <= MOST_TERMS:
        raise InputError(f"terms is {terms}; it must be from 2 to {MOST_TERMS}")
    if terms > 2 and not set(operations) <= {"plus", "minus"}:
        raise InputError(
            f"terms is {terms} and operations are {operations}; more than 2 terms are read from left to right, so only "
            "plus and minus are possible"
        )
