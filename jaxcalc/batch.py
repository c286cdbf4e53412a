"""Batches: the examples that one step learns from, and which of their tokens count in the loss."""

from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp

from jaxcalc.errors import InputError, check_choice
from jaxcalc.reprs import outline

PAD_ID = 0
"""The token id of padding, in every `Tokenizer`."""
LossOn = Literal["answer", "all"]


class Batch(NamedTuple):
    """Examples to learn from."""

    tokens: jax.Array
    """int32 `[B, L]`, whole sequences. The model reads `tokens[:, :-1]` and predicts each next token."""
    mask: jax.Array
    """float32 `[B, A]`, 1 for those of the *last* A targets `tokens[:, -A:]` that count in the loss. The loss needs the
    logits of these A positions only."""

    __repr__ = outline


class Lessons(Protocol):
    """What training needs of a task: sequences as a function of (seed, step), and which of their tokens count.

    `train_steps` takes one that is a pytree: a registered class, static where it holds no arrays.

    >>> @jax.tree_util.register_static
    ... class Copying:
    ...     prompt_length, pad_id = 3, None  # any token may be a digit
    ...
    ...     def sequences_at(self, seed, step, size):
    ...         key = jax.random.fold_in(jax.random.key(seed), step)
    ...         return jnp.tile(jax.random.randint(key, (size, 3), 0, 10), 2)
    >>> batch_at(Copying(), seed=0, step=0, size=2).mask.tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    @property
    def prompt_length(self) -> int:
        """The number of tokens up to "equals", padding included."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The token id of padding, which never counts in the loss; None where every token counts."""
        ...

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`."""
        ...


@runtime_checkable
class Listed(Protocol):
    """What `rows_at` needs of a task: the rows of its lessons as a function of (seed, step)."""

    def rows_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return which lessons are in the batch of one training step, int `[size]`."""
        ...


def batch_at(
    task: Lessons, seed: int | jax.Array, step: int | jax.Array, size: int, loss_on: LossOn = "answer"
) -> Batch:
    """Return the batch of one training step, a pure function of its arguments that works under `jit` too.

    A table's epoch visits every row of `task.lessons` exactly once, in a new order. Epochs follow each other without a
    gap, so a batch may hold the end of one epoch and the start of the next.

    Args:
      seed: chooses the orders.
      step: counts from 0.
      size: B, at most the number of training problems.
      loss_on: "answer" counts the answer and its end token, "all" counts every token but padding.

    Raises `InputError` for a size below 1 or larger than the training set.

    >>> from jaxcalc import calculator
    >>> batch_at(calculator(), seed=0, step=0, size=256).tokens.shape
    (256, 9)
    """
    _check_has(task, "sequences_at")
    return batch_of(task, task.sequences_at(seed, step, size), loss_on)


def rows_at(task: Lessons, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
    """Return which rows of `task.lessons` are in the batch of one training step, int `[size]`.

    Raises `InputError` for a task that draws its problems, and as `batch_at` does.

    >>> from jaxcalc import calculator
    >>> task = calculator(max_number=9)
    >>> rows = rows_at(task, seed=0, step=7, size=16)
    >>> bool((task.lessons[rows] == batch_at(task, seed=0, step=7, size=16).tokens).all())
    True
    """
    if not isinstance(task, Listed):
        raise InputError(f"{type(task).__name__} draws its problems, so there are no rows; read batch_at(…).tokens")
    return task.rows_at(seed, step, size)


def batch_of(task: Lessons, tokens: jax.Array, loss_on: LossOn = "answer") -> Batch:
    """Return encoded problems, int32 `[B, L]` such as `task.tokens[rows]`, as a batch. `batch_at` explains `loss_on`.

    Raises `InputError` for an unknown `loss_on`, for tokens that are no integers or of another width than the task's,
    and for a task that lacks a member of `Lessons`.
    """
    _check_has(task, "prompt_length", "pad_id")
    check_choice("loss_on", loss_on, get_args(LossOn))
    n_read: int | None = getattr(task, "context_length", None)  # `Lessons` need not know it
    width = f"more than {task.prompt_length}" if n_read is None else f"{n_read + 1}"
    is_wide = tokens.ndim == 2 and tokens.shape[1] > task.prompt_length
    if not is_wide or n_read not in (None, tokens.shape[1] - 1):
        raise InputError(f"tokens have the shape {tokens.shape}; whole sequences of this task are [B, {width}]")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens are {tokens.dtype}; token ids must be integers, such as int32")
    targets = tokens[:, task.prompt_length if loss_on == "answer" else 1 :]
    counts = jnp.ones(targets.shape, bool) if task.pad_id is None else targets != task.pad_id
    return Batch(tokens, counts.astype(jnp.float32))


def _check_has(task: Lessons, *names: str) -> None:
    for name in names:
        if not hasattr(task, name):
            raise InputError(
                f"{type(task).__name__} has no {name}; a task has sequences_at(seed, step, size), prompt_length, and "
                "pad_id, the id of its padding or None"
            )


def targets(batch: Batch) -> jax.Array:
    """Return the tokens to predict, int `[B, A]`: the last A of each sequence."""
    return batch.tokens[:, -batch.mask.shape[1] :]
