"""Batches: the examples that one step learns from, and which of their tokens count in the loss."""

from typing import Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp

from jaxcalc.errors import check_choice
from jaxcalc.reprs import outline

PAD_ID = 0
"""The token id of padding, in every vocabulary."""
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
    """What a batch needs of a task: its sequences as a function of (seed, step), and the length of their prompts."""

    @property
    def prompt_length(self) -> int:
        """The number of tokens up to "equals", padding included."""
        ...

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`."""
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
    return batch_of(task, task.sequences_at(seed, step, size), loss_on)


def batch_of(task: Lessons, tokens: jax.Array, loss_on: LossOn = "answer") -> Batch:
    """Return encoded problems, int32 `[B, L]` such as `task.tokens[rows]`, as a batch. `batch_at` explains `loss_on`.

    Raises `InputError` for an unknown `loss_on`.
    """
    check_choice("loss_on", loss_on, get_args(LossOn))
    targets = tokens[:, task.prompt_length if loss_on == "answer" else 1 :]
    return Batch(tokens, (targets != PAD_ID).astype(jnp.float32))


def targets(batch: Batch) -> jax.Array:
    """Return the tokens to predict, int `[B, A]`: the last A of each sequence."""
    return batch.tokens[:, -batch.mask.shape[1] :]
