"""What a task is: problems, encoded and split, and the sequences of each training step."""

import abc
from collections.abc import Callable, Iterable
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID
from jaxcalc.errors import InputError
from jaxcalc.tasks import questions
from jaxcalc.tasks.problems import Problem, check_known
from jaxcalc.tasks.tokenizer import OPERATIONS, Tokenizer

Split = Literal["orbit", "family", "random", "none"]
Membership = Literal["training", "held out", "left out", "outside"]
STATIC = {"static": True}
"""The metadata of a field that is no array: JAX compiles for its value."""


class Task(abc.ABC):
    """What a model learns: problems, encoded and split into training and held-out ones, and the batch of each step.

    A `Calculator` lists all its problems. An `Arithmetic` draws its problems and lists a sample of them.
    """

    tokens: jax.Array
    """int32 `[N, L]`: the listed problems, each as a sequence "prompt equals | answer <end> [padding]"."""
    train_rows: jax.Array
    """int32 `[n]`: the rows that training may see."""
    held_out_rows: jax.Array
    """int32 `[m]`: the other rows, which training never sees."""
    tokenizer: Tokenizer
    prompt_length: int
    """Tokens up to "equals", padding included."""
    split: Split
    """Which problems stay together on one side; see `calculator`."""
    terms: int
    """Numbers in a problem."""
    pad_id: int | None = PAD_ID
    """The token id of padding, which never counts in the loss."""

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return len(self.tokenizer.vocabulary)

    @property
    def context_length(self) -> int:
        """C, the number of positions that the model reads: all tokens but the last."""
        return self.tokens.shape[1] - 1

    @property
    def answer_length(self) -> int:
        """Tokens of the longest answer, its end token included."""
        return self.tokens.shape[1] - self.prompt_length

    @property
    def slot(self) -> int:
        """Tokens that every number of a prompt takes, padding included; 0 where numbers are not padded."""
        return 0

    @property
    @abc.abstractmethod
    def kind_names(self) -> tuple[str, ...]:
        """The kinds of problems: the operations or, with more than two numbers, all sequences of them."""

    @property
    @abc.abstractmethod
    def kind_ids(self) -> np.ndarray:
        """The kind of each listed problem, an index into `kind_names`, int `[N]`."""

    def parse(self, text: str) -> Problem:
        """Return the problem that a question states.

        Raises `InputError` for a text that is not exactly one question, with an example of one.

        >>> from jaxcalc import calculator
        >>> calculator().parse("forty two / 6")
        Problem(numbers=(42, 6), operations=('divided by',))
        """
        return questions.parse(text, self.tokenizer, self.terms)

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a question, int32 `[prompt_length]`. Raises as `parse` does.

        >>> from jaxcalc import calculator
        >>> calculator().encode("2 + 3")
        array([ 0,  0,  9,  3, 10,  2], dtype=int32)
        """
        return questions.encode(self.parse(text), self.tokenizer, self.prompt_length, self.slot)

    def as_problem(self, question: Problem | str) -> Problem:
        """Return a problem as it is, and of a text the problem that it states; raises as `parse` does."""
        return self.parse(question) if isinstance(question, str) else question

    @abc.abstractmethod
    def problem(self, row: int) -> Problem:
        """Return the problem in one row."""

    @abc.abstractmethod
    def membership(self, problem: Problem | str) -> Membership:
        """Say whether training asks a problem, or whether it is held out, left out or outside.

        Held out are the problems kept to evaluate on. Left out are those that the task could contain and that are
        neither in training nor held out, such as what `where` drops. A text counts as the problem that it states;
        raises as `parse` does.
        """

    @abc.abstractmethod
    def where(
        self,
        operations: tuple[str, ...] | None = None,
        largest: int | None = None,
        predicate: Callable[[Problem], bool] | None = None,
    ) -> Self:
        """Return a task of the same vocabulary and width that trains on, and holds out, some of its problems alone.

        The sides stay: what was held out is held out, or left out. A task that draws its problems takes no predicate.

        Args:
          operations: every operation of a problem is among these.
          largest: no number or result is larger.
          predicate: returns whether to keep a problem.

        Raises `InputError` for operations and a largest number that the task does not have, and where nothing is left
        to train on.

        >>> from jaxcalc import calculator
        >>> task = calculator().where(operations=("plus",), largest=20, predicate=lambda p: p.numbers[0] < 15)
        >>> task.membership("two plus three"), task.membership("sixteen plus two")
        ('training', 'left out')
        """

    @abc.abstractmethod
    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `batch_at`."""

    def __repr__(self) -> str:
        """Return the task in one line."""
        operations, largest = self._range()
        training, held_out = np.size(self.train_rows), np.size(self.held_out_rows)
        return (
            f"{type(self).__name__}({', '.join(operations)} of {self.terms} numbers from 0 to {largest:,}, "
            f"answers in {self.tokenizer.output}, split {self.split!r}, "
            f"lists {training:,} training and {held_out:,} held-out problems)"
        )

    def _range(self) -> tuple[tuple[str, ...], int]:
        """Return the operations and the largest number."""
        return self.tokenizer.operations, self.tokenizer.max_number

    def __eq__(self, other: object) -> bool:
        """Return whether another task is of the same type and holds equal arrays and values."""
        return isinstance(other, Task) and self._held() == other._held()

    def __hash__(self) -> int:
        """Return a hash of what the task holds."""
        return hash(self._held())

    def _held(self) -> tuple[object, ...]:
        """Return the type and everything that the task holds, in a form that compares and hashes."""
        leaves, structure = jax.tree.flatten(vars(self))
        return type(self), structure, *(_comparable(leaf) for leaf in leaves)


def _comparable(leaf: object) -> object:
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    array = np.asarray(leaf)
    return array.shape, array.dtype, array.tobytes()


def fitting(
    task: Task,
    operations: tuple[str, ...] | None,
    largest: int | None,
    predicate: Callable[[Problem], bool] | None,
) -> np.ndarray:
    """Return which listed problems `Task.where` keeps, bool `[N]`; raises as it does."""
    check_where(task.tokenizer, operations, largest)

    def fits(problem: Problem) -> bool:
        values = [*problem.numbers, *(result for result in problem.results if result is not None)]
        return (
            (operations is None or set(problem.operations) <= set(operations))
            and (largest is None or max(values) <= largest)
            and (predicate is None or bool(predicate(problem)))
        )

    return np.array([fits(task.problem(row)) for row in range(len(task.tokens))], bool)


def only(keep: np.ndarray, rows: jax.Array, least: int = 1) -> jax.Array:
    """Return those of some rows that are kept, int32; raises `InputError` where fewer than `least` are."""
    kept = np.asarray(rows)[keep[np.asarray(rows)]]
    if len(kept) < least:
        raise InputError("no training problem is left; keep more operations or numbers, or another predicate")
    return jnp.asarray(kept)


def asks(sequences: jax.Array | np.ndarray, prompt: jax.Array | np.ndarray) -> bool:
    """Return whether one of some sequences `[E, L]` begins with a prompt, whatever its answer."""
    return bool((np.asarray(sequences)[:, : len(prompt)] == np.asarray(prompt)).all(axis=1).any())


def check_where(tokenizer: Tokenizer, operations: tuple[str, ...] | None, largest: int | None) -> None:
    """Raise `InputError` for operations that a vocabulary lacks and for a largest number beyond its own."""
    if isinstance(operations, str):
        raise InputError(f"operations is {operations!r}; it must be a tuple, such as ('plus',)")
    if operations is not None:
        check_operations(operations)
        for operation in operations:
            if operation not in tokenizer.operations:
                known = ", ".join(map(repr, tokenizer.operations))
                raise InputError(f"operation {operation!r} is not one of this task's; it has {known}")
    if largest is not None and not 0 < largest <= tokenizer.max_number:
        raise InputError(f"largest is {largest}; it must be from 1 to {tokenizer.max_number}, the task's largest")


def check_operations(operations: tuple[str, ...], others: Iterable[str] = ()) -> None:
    """Raise `InputError` for an operation that is unknown or named twice, and where there is none.

    Args:
      operations: those of a task.
      others: names that must be known too.
    """
    check_known((*operations, *others))
    if not operations or len(set(operations)) < len(operations):
        known = ", ".join(map(repr, OPERATIONS))
        raise InputError(f"operations are {operations}; name at least one of {known}, and each at most once")


def check_max_number(max_number: int, smallest: int, largest: int, where: str) -> None:
    """Raise `InputError` for a largest number that is out of range."""
    if not smallest <= max_number <= largest:
        raise InputError(f"max_number is {max_number}; {where} it must be from {smallest} to {largest}")


def check_held_out(held_out: float, hint: str = "") -> None:
    """Raise `InputError` for a held-out share that is not between 0 and 1."""
    if not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}; it must be above 0 and below 1{hint}")
