"""A calculator's complete table of problems, its split into training and held-out ones, and its batches."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError, check_choice
from jaxcalc.tasks.encoding import answers_of, lessons_of, sequences_of
from jaxcalc.tasks.hashing import visited
from jaxcalc.tasks.problems import COMMUTATIVE, EXACT, Problem
from jaxcalc.tasks.task import (
    STATIC,
    Membership,
    Split,
    Task,
    asks,
    check_held_out,
    check_max_number,
    check_operations,
    fitting,
    only,
)
from jaxcalc.tasks.tokenizer import OPERATIONS, Notation, Tokenizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Calculator(Task):
    """A table of problems, encoded, and its split into training and held-out rows.

    Every sequence is `[padding] a operation b equals | answer <end> [padding]`. The prompt is padded on the left, so
    "equals" is always at position `prompt_length - 1` and the answer follows it.
    """

    tokens: jax.Array
    """int32 `[N, L]`: the whole table, encoded."""
    problems: jax.Array
    """int32 `[N, 4]`: a, index of the operation, b, answer."""
    answers: jax.Array
    """int32 `[max_number + 1, answer_length]`: each number as an answer, its end included."""
    train_rows: jax.Array
    """int32 `[n]`: the rows that training may see."""
    held_out_rows: jax.Array
    """int32 `[m]`: the other rows, which training never sees."""
    lessons: jax.Array
    """int32 `[E, L]`: the sequences that one epoch visits, each as often as it has copies: the training rows
    and their inverse questions."""
    tokenizer: Tokenizer = dataclasses.field(metadata=STATIC)
    prompt_length: int = dataclasses.field(metadata=STATIC)
    split: Split = dataclasses.field(metadata=STATIC)
    terms = 2

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `jaxcalc.batch_at`."""
        return self.lessons[self.rows_at(seed, step, size)]

    def rows_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return which lessons these are, uint32 `[size]`."""
        n_train = self.train_rows.shape[0]
        if not 1 <= size <= n_train:
            raise InputError(f"batch size is {size}; it must be from 1 to {n_train:,}, the number of training problems")
        return visited(seed, step, size, self.lessons.shape[0])

    def where(
        self,
        operations: tuple[str, ...] | None = None,
        largest: int | None = None,
        predicate: Callable[[Problem], bool] | None = None,
    ) -> "Calculator":
        """Return the same table with these training and held-out problems alone; see `Task.where`.

        The lessons that are left are the sequences and inverse questions of the training problems that are left.
        """
        keep = fitting(self, operations, largest, predicate)
        problems = np.asarray(self.problems)[keep]
        forms = sequences_of(problems, self.tokenizer, np.asarray(self.answers))
        kept = {row.tobytes() for form in forms for row in form.astype(np.int32)}
        lessons = np.asarray(self.lessons)
        return dataclasses.replace(
            self,
            train_rows=only(keep, self.train_rows),
            held_out_rows=only(keep, self.held_out_rows, least=0),
            lessons=jnp.asarray(lessons[[row.tobytes() in kept for row in lessons]]),
        )

    def row(self, problem: Problem | str) -> int | None:
        """Return the row of a problem in the table, or None where the table does not contain it.

        A text counts as the problem that it states; raises as `parse` does.

        >>> task = calculator()
        >>> task.row("two plus three") == task.row(Problem((2, 3), ("plus",)))
        True
        """
        problem = self.as_problem(problem)
        if len(problem.operations) != 1 or problem.operations[0] not in self.tokenizer.operations:
            return None
        a, b = problem.numbers
        key = (a, self.tokenizer.operations.index(problem.operations[0]), b)
        found = np.flatnonzero((np.asarray(self.problems)[:, :3] == key).all(axis=1))
        return int(found[0]) if found.size else None

    def membership(self, problem: Problem | str) -> Membership:
        """Say where a problem is; see `Task.membership`. In training is what the lessons ask."""
        row = self.row(problem)
        if row is None:
            return "outside"
        if asks(self.lessons, np.asarray(self.tokens)[row, : self.prompt_length]):
            return "training"
        return "held out" if row in np.asarray(self.held_out_rows) else "left out"

    @property
    def kind_names(self) -> tuple[str, ...]:
        """The kinds of problems: the operations."""
        return self.tokenizer.operations

    @property
    def kind_ids(self) -> np.ndarray:
        """The kind of each problem, an index into `kind_names`, int `[N]`."""
        return np.asarray(self.problems)[:, 1]

    def problem(self, row: int) -> Problem:
        """Return the problem in one row of the table."""
        a, operation, b, _ = np.asarray(self.problems)[row].tolist()
        return Problem((a, b), (self.tokenizer.operations[operation],))


def calculator(
    operations: tuple[str, ...] = OPERATIONS,
    max_number: int = 99,
    output: Notation = "words",
    split: Split = "orbit",
    held_out: float = 0.1,
    seed: int = 0,
    copies: Mapping[str, int] | None = None,
    inverse_copies: Mapping[str, int] | None = None,
) -> Calculator:
    """Return the complete table of problems "a operation b equals c", encoded and split.

    Operands and answers are integers from 0 to `max_number`; division is exact and never by zero. The split holds out
    the same share of each operation ("family": of each pair of inverse operations):

    - "orbit": a problem and its commuted twin (a + b, b + a) are on the same side;
    - "family": all problems that state one fact (3 + 4 = 7, 7 − 3 = 4) are on the same side;
    - "random": rows at random, without regard to twins, for comparison with other work;
    - "none": nothing is held out.

    A training problem can also be asked from its other sides. The inverse questions of 54 / 6 = 9 are
    "nine equals fifty four divided by" → "six" and "nine equals divided by six" → "fifty four". Only training problems
    have them, and only where the answer is unique. With "orbit" almost every held-out fact is in training in another
    form: 54 / 6 for 6 × 9, and 7 − 3 for 3 + 4. Only "family" keeps whole facts apart.

    Args:
      operations: some of "plus", "minus", "times", "divided by".
      max_number: the largest operand and answer.
      output: how an answer is written: in "words", or as one token per digit with the highest first ("digits") or the
        lowest first ("digits-reversed").
      split: see above.
      held_out: the share of each operation's rows that is held out, above 0 and below 1.
      seed: chooses which problems are held out.
      copies: how often an epoch visits each training problem, by operation; 1 by default.
      inverse_copies: how often it visits each of their inverse questions, by operation; 0 by default.

    Raises `InputError` for an argument outside these.

    >>> task = calculator(operations=("plus", "minus", "times"))
    >>> task.tokens.shape
    (10772, 9)
    """
    copies = dict.fromkeys(operations, 1) | dict(copies or {})
    inverse_copies = dict.fromkeys(operations, 0) | dict(inverse_copies or {})
    _check_arguments(operations, max_number, split, held_out, copies, inverse_copies)
    tokenizer = Tokenizer(tuple(operations), max_number, output)
    answers = answers_of(tokenizer)
    problems = _table(operations, max_number)
    is_held_out = _held_out(problems, operations, split, held_out, seed)
    sequences = sequences_of(problems, tokenizer, answers)
    lessons = lessons_of(problems, is_held_out, operations, sequences, copies, inverse_copies)

    def int32(array: np.ndarray) -> jax.Array:
        return jax.device_put(array.astype(np.int32))  # compiles nothing

    return Calculator(
        tokens=int32(sequences[0]),
        problems=int32(problems),
        answers=int32(answers),
        train_rows=int32(np.flatnonzero(~is_held_out)),
        held_out_rows=int32(np.flatnonzero(is_held_out)),
        lessons=int32(lessons),
        tokenizer=tokenizer,
        prompt_length=sequences[0].shape[1] - answers.shape[1],
        split=split,
    )


def _table(operations: tuple[str, ...], max_number: int) -> np.ndarray:
    """Return int64 `[N, 4]` rows (a, index of the operation, b, answer), by operation, then a, then b."""
    a, b = (grid.ravel() for grid in np.indices((max_number + 1, max_number + 1)))
    tables = []
    for index, operation in enumerate(operations):
        if operation == "divided by":
            exact = (b > 0) & (a % np.maximum(b, 1) == 0)
            answer = np.where(exact, a // np.maximum(b, 1), -1)
        else:
            answer = EXACT[operation](a, b)
        rows = np.stack([a, np.full_like(a, index), b, answer], axis=1)
        tables.append(rows[(answer >= 0) & (answer <= max_number)])
    return np.concatenate(tables)


def _held_out(problems: np.ndarray, operations: tuple[str, ...], split: Split, share: float, seed: int) -> np.ndarray:
    """Return which rows are held out, bool `[N]`: in each stratum, whole groups in random order up to the share."""
    chosen = np.zeros(len(problems), bool)
    if split == "none":
        return chosen
    groups = np.array([_group(split, operations[op], (a, b, c)) for a, op, b, c in problems.tolist()])
    _, group, sizes = np.unique(groups, axis=0, return_inverse=True, return_counts=True)
    if split == "random":
        group, sizes = np.arange(len(problems)), np.ones(len(problems), int)
    stratum = groups[:, 0]
    rng = np.random.default_rng(seed)
    for value in np.unique(stratum):
        rows = stratum == value
        order = rng.permutation(np.unique(group[rows]))
        full = np.searchsorted(np.cumsum(sizes[order]), round(share * rows.sum()), side="right")
        chosen |= np.isin(group, order[:full])
    if not chosen.any() or chosen.all():
        raise InputError(
            f"held_out={share} leaves {chosen.sum()} of {len(problems):,} problems held out; choose another share"
        )
    return chosen


def _group(split: Split, operation: str, numbers: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return (stratum, two numbers): equal for the problems that must be on the same side."""
    a, b, c = numbers
    if split == "family":
        parts = (a, b) if operation in COMMUTATIVE else (b, c)
        return (0 if operation in ("plus", "minus") else 1, min(parts), max(parts))
    pair = (min(a, b), max(a, b)) if operation in COMMUTATIVE else (a, b)
    return (OPERATIONS.index(operation), *pair)


def _check_arguments(
    operations: tuple[str, ...],
    max_number: int,
    split: Split,
    held_out: float,
    copies: Mapping[str, int],
    inverse_copies: Mapping[str, int],
) -> None:
    check_operations(operations, others=(*copies, *inverse_copies))
    for name, counts, least in (("copies", copies, 1), ("inverse_copies", inverse_copies, 0)):
        for operation, count in counts.items():
            if count < least:
                raise InputError(f"{name}[{operation!r}] is {count}; it must be at least {least}")
    check_max_number(max_number, 1, 999, "in a complete table")
    check_choice("split", split, get_args(Split))
    if split != "none":
        check_held_out(held_out, " (or take split='none' to hold nothing out)")
