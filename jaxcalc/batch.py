"""Batches: what one step learns from, and which of its tokens count in the loss."""

from typing import Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp

from jaxcalc.errors import InputError

PAD_ID = 0
"""The token id of padding, in every vocabulary."""
LossOn = Literal["answer", "all"]


class Batch(NamedTuple):
    """Examples to learn from.

    tokens: int32 `[B, L]`, whole sequences. The model reads `tokens[:, :-1]` and
      is asked for the next token at each position.
    mask: float32 `[B, A]`, which of the *last* A targets `tokens[:, -A:]` count
      in the loss. Its width is how many logits of the end the loss needs.
    """

    tokens: jax.Array
    mask: jax.Array


class Lessons(Protocol):
    """What a batch is made from: a task's sequences as a function of (seed, step), and the length of their prompts."""

    @property
    def prompt_length(self) -> int:
        """Tokens up to "equals", padding included."""
        ...

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`."""
        ...


def batch_at(
    task: Lessons, seed: int | jax.Array, step: int | jax.Array, size: int, loss_on: LossOn = "answer"
) -> Batch:
    """Return the batch of one training step: a pure function of its arguments, on the device, under jit or not.

    Batches walk through epochs without a gap: each epoch visits every one of `task.lessons` exactly once, so
    every training problem once unless it has more copies, in an order of its own. A batch may hold
    the end of one epoch and the start of the next.

    Args:
      seed: chooses the orders.
      step: counts from 0.
      size: B, at most the number of training problems.
      loss_on: "answer" for the answer and its end, "all" for every token but padding before the end.

    Raises `InputError` for a size that is below 1 or larger than the training set.

    >>> from jaxcalc import calculator
    >>> batch_at(calculator(), seed=0, step=0, size=256).tokens.shape
    (256, 9)
    """
    return batch_of(task, task.sequences_at(seed, step, size), loss_on)


def batch_of(task: Lessons, tokens: jax.Array, loss_on: LossOn = "answer") -> Batch:
    """Return encoded problems, int32 `[B, L]` such as `task.tokens[rows]`, as a batch; see `batch_at` for `loss_on`."""
    if loss_on not in get_args(LossOn):
        raise InputError(f"loss_on is {loss_on!r}; it must be one of {', '.join(map(repr, get_args(LossOn)))}")
    targets = tokens[:, task.prompt_length if loss_on == "answer" else 1 :]
    return Batch(tokens, (targets != PAD_ID).astype(jnp.float32))


def targets(batch: Batch) -> jax.Array:
    """Return the tokens to be predicted, int `[B, A]`: the input shifted by one, at its end."""
    return batch.tokens[:, -batch.mask.shape[1] :]
