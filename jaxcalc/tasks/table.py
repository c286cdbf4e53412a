"""A calculator's complete table of problems, its split into training and held-out ones, and its batches."""

from collections.abc import Mapping
from typing import Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID
from jaxcalc.errors import InputError, check_choice
from jaxcalc.tasks.hashing import ROUNDS, shuffle
from jaxcalc.tasks.problems import COMMUTATIVE, EXACT, Problem
from jaxcalc.tasks.task import Split, Task, check_held_out, check_max_number, check_operations
from jaxcalc.tasks.tokenizer import END, EQUALS, OPERATIONS, Notation, Tokenizer
from jaxcalc.tasks.words import number_to_words


@flax.struct.dataclass(eq=False, repr=False)
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
    tokenizer: Tokenizer = flax.struct.field(pytree_node=False)
    prompt_length: int = flax.struct.field(pytree_node=False)
    split: Split = flax.struct.field(pytree_node=False)
    terms = 2

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `jaxcalc.batch_at`."""
        n_train, epoch_length = self.train_rows.shape[0], self.lessons.shape[0]
        if not 1 <= size <= n_train:
            raise InputError(f"batch size is {size}; it must be from 1 to {n_train:,}, the number of training problems")
        if epoch_length * size >= 2**31:
            raise InputError(
                f"batch size is {size}; with {epoch_length:,} lessons per epoch it must be at most "
                f"{(2**31 - 1) // epoch_length:,}, as their product must fit 32 bits"
            )
        # This divides step * size by the epoch length without computing step * size, which overflows.
        epochs, remainder = jnp.divmod(jnp.asarray(step), epoch_length)
        carry, index = jnp.divmod(remainder * size + jnp.arange(size), epoch_length)
        key = jax.random.key(seed)
        keys = jax.vmap(lambda epoch: jax.random.bits(jax.random.fold_in(key, epoch), (ROUNDS,)))(epochs * size + carry)
        return self.lessons[shuffle(keys, index, epoch_length)]

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

    def membership(self, problem: Problem | str) -> Literal["training", "held out", "outside"]:
        """Say whether training may see a problem, whether it is held out, or whether the table does not contain it."""
        row = self.row(problem)
        if row is None:
            return "outside"
        return "held out" if row in np.asarray(self.held_out_rows) else "training"

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
    answers = _answers(tokenizer)
    problems = _table(operations, max_number)
    is_held_out = _held_out(problems, operations, split, held_out, seed)
    sequences = _sequences(problems, tokenizer, answers)
    lessons = _lessons(problems, is_held_out, operations, sequences, copies, inverse_copies)

    def int32(array: np.ndarray) -> jax.Array:
        return jnp.asarray(array.astype(np.int32))  # NumPy converts, so that JAX compiles nothing

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


def _lessons(
    problems: np.ndarray,
    is_held_out: np.ndarray,
    operations: tuple[str, ...],
    sequences: tuple[np.ndarray, np.ndarray, np.ndarray],
    copies: Mapping[str, int],
    inverse_copies: Mapping[str, int],
) -> np.ndarray:
    """Return what an epoch visits, int `[E, L]`: by training problem, its own sequence and its inverse questions.

    Args:
      sequences: as `_sequences` returns them.
    """
    tokens, from_a, from_b = sequences
    a, index, b, _ = problems.T
    name = np.array(operations)[index]
    n_copies, n_inverse = (np.array([counts[op] for op in operations])[index] for counts in (copies, inverse_copies))
    slots = [(tokens, n_copies > i) for i in range(max(n_copies))]
    for i in range(max(n_inverse)):  # 0 times b is 0 for every b, and so is 0 divided by b: the answer is not unique
        slots.append((from_a, (n_inverse > i) & ((a > 0) | np.isin(name, ("plus", "minus")))))
        slots.append((from_b, (n_inverse > i) & ((b > 0) | (name != "times"))))
    visited = np.stack([rows & ~is_held_out for _, rows in slots], axis=1)
    return np.stack([sequence for sequence, _ in slots], axis=1)[visited]


def _sequences(
    problems: np.ndarray, tokenizer: Tokenizer, answers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return "a op b equals" → c, "c equals a op" → b and "c equals op b" → a, each int `[N, L]`."""
    a, index, b, c = problems.T
    ids = tokenizer.ids
    words = _padded([[ids[word] for word in number_to_words(n).split()] for n in range(tokenizer.max_number + 1)])
    operation = np.array([[ids[name]] for name in tokenizer.operations])[index]
    equals = np.full_like(operation, ids[EQUALS])

    def sequence(prompt: list[np.ndarray], answer: np.ndarray) -> np.ndarray:
        rows = np.hstack(prompt)
        padding_first = np.argsort(rows != PAD_ID, axis=1, kind="stable")
        return np.hstack([np.take_along_axis(rows, padding_first, axis=1), answers[answer]])

    return (
        sequence([words[a], operation, words[b], equals], c),
        sequence([words[c], equals, words[a], operation], b),
        sequence([words[c], equals, operation, words[b]], a),
    )


def _answers(tokenizer: Tokenizer) -> np.ndarray:
    """Return each number as an answer, its end included, int `[max_number + 1, answer_length]`."""
    answers = ([*tokenizer.spell(number), END] for number in range(tokenizer.max_number + 1))
    return _padded([[tokenizer.ids[token] for token in answer] for answer in answers])


def _padded(rows: list[list[int]]) -> np.ndarray:
    """Return rows of token ids as one array, padded on the right."""
    width = max(map(len, rows))
    return np.array([row + [PAD_ID] * (width - len(row)) for row in rows])


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
