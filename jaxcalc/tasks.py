"""Arithmetic tasks: the full table of problems, leak-free splits, and batches as a function of (seed, step)."""

import operator
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.tokenizer import END_ID, EQUALS, OPERATIONS, PAD, PAD_ID, Output, Tokenizer
from jaxcalc.words import number_to_words, words_to_number

Split = Literal["orbit", "family", "random", "none"]
LossOn = Literal["answer", "all"]

_COMMUTATIVE = ("plus", "times")
_EXACT = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}


class Problem(NamedTuple):
    """One question, such as "two plus three"."""

    a: int
    operation: str
    b: int

    @property
    def answer(self) -> int | None:
        """The integer result, or None where a division is not exact. Never asked for a division by zero."""
        if self.operation == "divided by":
            quotient, remainder = divmod(self.a, self.b)
            return None if remainder else quotient
        return _EXACT[self.operation](self.a, self.b)


class Batch(NamedTuple):
    """Examples to learn from.

    tokens: int32 `[B, L]`, whole sequences. The model reads `tokens[:, :-1]` and
      is asked for the next token at each position.
    mask: float32 `[B, A]`, which of the *last* A targets `tokens[:, -A:]` count
      in the loss. Its width is how many logits of the end the loss needs.
    """

    tokens: jax.Array
    mask: jax.Array


@flax.struct.dataclass
class Task:
    """A table of problems, encoded, and its split into training and held-out rows.

    Every sequence is `[padding] a operation b equals | answer <end> [padding]`: the
    prompt is padded on the left, so that "equals" always stands at position
    `prompt_length - 1` and the answer behind it.
    """

    tokens: jax.Array
    """int32 `[N, L]`: the whole table, encoded."""
    problems: jax.Array
    """int32 `[N, 4]`: a, index of the operation, b, answer."""
    answers: jax.Array
    """int32 `[max_number + 1, answer_length]`: how each number is written as an answer, its end included."""
    train_rows: jax.Array
    """int32 `[n]`: the rows that training may see."""
    held_out_rows: jax.Array
    """int32 `[m]`: the other rows, which training never sees."""
    epoch_rows: jax.Array
    """int32 `[≥ n]`: the training rows that one epoch visits, a row with several copies as often."""
    tokenizer: Tokenizer = flax.struct.field(pytree_node=False)
    prompt_length: int = flax.struct.field(pytree_node=False)
    split: Split = flax.struct.field(pytree_node=False)

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

    def parse(self, text: str) -> Problem:
        """Return the problem that a question states; anything but one question raises `InputError`.

        >>> calculator().parse("forty two / 6")
        Problem(a=42, operation='divided by', b=6)
        """
        tokens = self.tokenizer.canonical(text)
        operations = [token for token in tokens if token in self.tokenizer.operations]
        example = "ask for example 'two plus three'"
        if not tokens:
            raise InputError(f"the prompt is empty; {example}")
        if len(operations) > 1:
            raise InputError(f"the prompt has {len(operations)} operations ({', '.join(operations[:4])}); {example}")
        if not operations or tokens[-1] != EQUALS or tokens.count(EQUALS) > 1:
            raise InputError(f"the prompt is not 'number operation number': {' '.join(tokens)[:60]!r}; {example}")
        middle = tokens.index(operations[0])
        left, right = tokens[:middle], tokens[middle + 1 : -1]
        if not left or not right:
            side = "before" if not left else "after"
            raise InputError(f"there is no number {side} {operations[0]!r}; {example}")
        problem = Problem(words_to_number(" ".join(left)), operations[0], words_to_number(" ".join(right)))
        if problem.operation == "divided by" and problem.b == 0:
            raise InputError("division by zero has no answer; divide by another number")
        return problem

    def encode(self, text: str) -> np.ndarray:
        """Return a question as int32 `[prompt_length]`, padded on the left.

        >>> calculator().encode("2 + 3")
        array([ 0,  0,  9,  3, 10,  2], dtype=int32)
        """
        problem = self.parse(text)
        return np.array(_prompt(self.tokenizer, self.prompt_length, problem), np.int32)

    def row(self, problem: Problem) -> int | None:
        """Return the row of a problem in the table, or None where the table does not hold it."""
        key = (problem.a, self.tokenizer.operations.index(problem.operation), problem.b)
        found = np.flatnonzero((np.asarray(self.problems)[:, :3] == key).all(axis=1))
        return int(found[0]) if found.size else None

    def membership(self, problem: Problem) -> Literal["training", "held out", "outside"]:
        """Say whether a problem was in training, was held out, or is not in the table at all."""
        row = self.row(problem)
        if row is None:
            return "outside"
        return "held out" if row in np.asarray(self.held_out_rows) else "training"

    def problem(self, row: int) -> Problem:
        """Return the problem in one row of the table."""
        a, operation, b, _ = np.asarray(self.problems)[row].tolist()
        return Problem(a, self.tokenizer.operations[operation], b)


def calculator(
    operations: tuple[str, ...] = OPERATIONS,
    max_number: int = 99,
    output: Output = "words",
    split: Split = "orbit",
    held_out: float = 0.1,
    seed: int = 0,
    copies: Mapping[str, int] | None = None,
) -> Task:
    """Return the complete table of problems "a operation b equals c", encoded and split.

    Operands and answers are all integers in 0 to `max_number`; division is exact
    and never by zero. In every mode the held-out share is taken of each
    operation (in "family" of each kind of fact) alike:

    - "orbit": a problem and its commuted twin (a + b, b + a) are on the same side;
    - "family": all problems that state one fact (3 + 4 = 7, 7 − 3 = 4) are on the same side;
    - "random": rows at random, twins not kept together, for comparison with others;
    - "none": nothing is held out.

    Args:
      operations: some of "plus", "minus", "times", "divided by".
      max_number: the largest operand and answer.
      output: how an answer is written: in "words", in "digits", or in digits "reversed".
      split: see above.
      held_out: the share of each operation's rows that is held out, above 0 and below 1.
      seed: chooses which problems are held out.
      copies: how often an epoch visits each training problem of an operation; 1 where not said.

    Raises `InputError` for an argument outside these.

    >>> task = calculator(operations=("plus", "minus", "times"))
    >>> task.tokens.shape
    (10772, 9)
    """
    _check_arguments(operations, max_number, split, held_out, copies or {})
    tokenizer = Tokenizer(tuple(operations), max_number, output)
    problems = _table(operations, max_number)
    prompts, answers = [], []
    numbers = [tokenizer.spell(number) for number in range(max_number + 1)]
    prompt_length = 2 + 2 * max(len(number_to_words(number).split()) for number in range(max_number + 1))
    answer_length = 1 + max(map(len, numbers))
    for number in numbers:
        ids = [*(tokenizer.ids[token] for token in number), END_ID]
        answers.append(ids + [PAD_ID] * (answer_length - len(ids)))
    for a, operation, b, _ in problems.tolist():
        prompts.append(_prompt(tokenizer, prompt_length, Problem(a, operations[operation], b)))
    is_held_out = _held_out(problems, operations, split, held_out, seed)
    repeats = np.array([(copies or {}).get(operation, 1) for operation in operations])
    train_rows = np.flatnonzero(~is_held_out)
    return Task(
        tokens=jnp.asarray(np.concatenate([prompts, np.array(answers)[problems[:, 3]]], axis=1), jnp.int32),
        problems=jnp.asarray(problems, jnp.int32),
        answers=jnp.asarray(answers, jnp.int32),
        train_rows=jnp.asarray(train_rows, jnp.int32),
        held_out_rows=jnp.asarray(np.flatnonzero(is_held_out), jnp.int32),
        epoch_rows=jnp.asarray(np.repeat(train_rows, repeats[problems[train_rows, 1]]), jnp.int32),
        tokenizer=tokenizer,
        prompt_length=prompt_length,
        split=split,
    )


def batch_at(task: Task, seed: int | jax.Array, step: int | jax.Array, size: int, loss_on: LossOn = "answer") -> Batch:
    """Return the batch of one training step: a pure function of its arguments, on the device, under jit or not.

    Batches walk through epochs without a gap: each epoch visits every training
    problem exactly once (an oversampled one exactly as often as `copies` says) in an order of
    its own, and a batch may hold the end of one epoch and the start of the next.

    Args:
      seed: chooses the orders.
      step: counts from 0.
      size: B, at most the number of training problems.
      loss_on: "answer" for the answer and its end, "all" for every token but padding before the end.

    Raises `InputError` for a size that is below 1 or larger than the training set.

    >>> batch_at(calculator(), seed=0, step=0, size=256).tokens.shape
    (256, 9)
    """
    n_train, epoch_length = task.train_rows.shape[0], task.epoch_rows.shape[0]
    if not 1 <= size <= n_train:
        raise InputError(f"batch size is {size}; it must be from 1 to {n_train:,}, the number of training problems")
    # step * size, divided by the epoch length, without ever holding step * size itself.
    epochs, remainder = jnp.divmod(jnp.asarray(step), epoch_length)
    carry, index = jnp.divmod(remainder * size + jnp.arange(size), epoch_length)
    key = jax.random.key(seed)
    keys = jax.vmap(lambda epoch: jax.random.bits(jax.random.fold_in(key, epoch), (_ROUNDS,)))(epochs * size + carry)
    return batch_of(task, task.epoch_rows[_shuffle(keys, index, epoch_length)], loss_on)


def batch_of(task: Task, rows: jax.Array, loss_on: LossOn = "answer") -> Batch:
    """Return the given rows of the table (int32 `[B]`) as a batch; see `batch_at` for `loss_on`."""
    if loss_on not in get_args(LossOn):
        raise InputError(f"loss_on is {loss_on!r}; it must be one of {', '.join(map(repr, get_args(LossOn)))}")
    tokens = task.tokens[rows]
    targets = tokens[:, task.prompt_length if loss_on == "answer" else 1 :]
    return Batch(tokens, (targets != PAD_ID).astype(jnp.float32))


_ROUNDS = 4


def _shuffle(keys: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """Return where a pseudo-random permutation of range(n) sends each index; `keys` is uint32 `[B, rounds]`.

    A Feistel network permutes the next power of two, and what falls outside range(n) walks on until it
    falls inside (Black and Rogaway 2002). It costs O(B) where sorting all n costs 100 times as much.
    """
    bits = max(2, (n - 1).bit_length())

    def permute(value: jax.Array) -> jax.Array:
        low = bits // 2
        high = bits - low
        left, right = value >> low, value & ((1 << low) - 1)
        for round_ in range(_ROUNDS):
            left, right = right, (left ^ _hash(right, keys[:, round_])) & ((1 << high) - 1)
            low, high = high, low
        return (left << low) | right

    def walk(value: jax.Array) -> jax.Array:
        return jnp.where(value >= n, permute(value), value)

    return jax.lax.while_loop(lambda value: (value >= n).any(), walk, permute(index.astype(jnp.uint32)))


def _hash(value: jax.Array, key: jax.Array) -> jax.Array:
    value = (value ^ key) * jnp.uint32(0x9E3779B1)
    value = (value ^ (value >> 15)) * jnp.uint32(0x85EBCA77)
    return value ^ (value >> 13)


def _prompt(tokenizer: Tokenizer, length: int, problem: Problem) -> list[int]:
    words = [*number_to_words(problem.a).split(), problem.operation, *number_to_words(problem.b).split(), EQUALS]
    return [tokenizer.ids[word] for word in [PAD] * (length - len(words)) + words]


def _table(operations: tuple[str, ...], max_number: int) -> np.ndarray:
    """Return int64 `[N, 4]` rows (a, index of the operation, b, answer), by operation, then a, then b."""
    a, b = (grid.ravel() for grid in np.indices((max_number + 1, max_number + 1)))
    tables = []
    for index, operation in enumerate(operations):
        if operation == "divided by":
            exact = (b > 0) & (a % np.maximum(b, 1) == 0)
            answer = np.where(exact, a // np.maximum(b, 1), -1)
        else:
            answer = _EXACT[operation](a, b)
        rows = np.stack([a, np.full_like(a, index), b, answer], axis=1)
        tables.append(rows[(answer >= 0) & (answer <= max_number)])
    return np.concatenate(tables)


def _held_out(problems: np.ndarray, operations: tuple[str, ...], split: Split, share: float, seed: int) -> np.ndarray:
    """Return which rows are held out, bool `[N]`: whole groups, drawn in each stratum until its share is full."""
    chosen = np.zeros(len(problems), bool)
    if split == "none":
        return chosen
    groups = np.array([_group(split, operations[op], (a, b, c)) for a, op, b, c in problems.tolist()])
    _, group, sizes = np.unique(groups, axis=0, return_inverse=True, return_counts=True)
    if split == "random":
        group, sizes = np.arange(len(problems)), np.ones(len(problems), int)
    stratum = groups[:, 0]
    rng = np.random.default_rng(seed)
    for kind in np.unique(stratum):
        rows = stratum == kind
        order = rng.permutation(np.unique(group[rows]))
        full = np.searchsorted(np.cumsum(sizes[order]), round(share * rows.sum()), side="right")
        chosen |= np.isin(group, order[:full])
    if not chosen.any() or chosen.all():
        raise InputError(f"held_out={share} leaves {chosen.sum()} of {len(problems):,} problems held out; choose another")
    return chosen


def _group(split: Split, operation: str, numbers: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return (stratum, two numbers): equal for the problems that must be on the same side."""
    a, b, c = numbers
    if split == "family":
        parts = (a, b) if operation in _COMMUTATIVE else (b, c)
        return (0 if operation in ("plus", "minus") else 1, min(parts), max(parts))
    pair = (min(a, b), max(a, b)) if operation in _COMMUTATIVE else (a, b)
    return (OPERATIONS.index(operation), *pair)


def _check_arguments(operations: tuple[str, ...], max_number: int, split: Split, held_out: float,
                     copies: Mapping[str, int]) -> None:  # fmt: skip
    known = ", ".join(map(repr, OPERATIONS))
    for operation in (*operations, *copies):
        if operation not in OPERATIONS:
            raise InputError(f"unknown operation {operation!r}; the operations are {known}")
    if not operations or len(set(operations)) < len(operations):
        raise InputError(f"operations are {operations}; name each at most once and at least one of {known}")
    for operation, count in copies.items():
        if count < 1:
            raise InputError(f"copies[{operation!r}] is {count}; it must be at least 1")
    if not 1 <= max_number <= 999:
        raise InputError(f"max_number is {max_number}; a complete table is made for 1 to 999")
    if split not in get_args(Split):
        raise InputError(f"split is {split!r}; it must be one of {', '.join(map(repr, get_args(Split)))}")
    if split != "none" and not 0 < held_out < 1:
        raise InputError(f"held_out is {held_out}; it must be above 0 and below 1 (or split='none' to hold nothing out)")
