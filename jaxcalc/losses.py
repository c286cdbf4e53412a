"""The loss: how much the right token surprises the model, −ln p."""

import math
from collections.abc import Callable

import jax
import numpy as np
import optax

from jaxcalc.batch import Batch, targets
from jaxcalc.errors import InputError
from jaxcalc.model import apply
from jaxcalc.params import Params
from jaxcalc.trees import is_concrete

ApplyFn = Callable[..., jax.Array]
"""A model such as `jaxcalc.apply`: `(params, tokens [B, T], last=n) -> logits [B, n, V]`."""


def loss(params: Params, batch: Batch, apply_fn: ApplyFn = apply) -> jax.Array:
    """Return the mean surprise over the tokens that count, a scalar in nats. Its gradient is `jax.grad(loss)`.

    Raises `InputError` where `apply_fn` does, and for a mask that is all zero.

    >>> from jaxcalc import ModelConfig, batch_at, calculator, init
    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=35))
    >>> grads = jax.grad(loss)(params, batch_at(calculator(), seed=0, step=0, size=256))
    >>> grads["blocks"][0]["attention"]["query"].shape
    (64, 4, 16)
    """
    return cross_entropy(answer_logits(params, batch, apply_fn), batch)


def answer_logits(params: Params, batch: Batch, apply_fn: ApplyFn = apply) -> jax.Array:
    """Return the logits `[B, A, V]` that predict the last A tokens. The model reads all tokens but the last."""
    return apply_fn(params, batch.tokens[:, :-1], last=batch.mask.shape[1])


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return the mean of `token_cross_entropy` over the tokens that count, a scalar in nats.

    Raises `InputError` for a mask that is all zero.
    """
    check_mask(batch)
    return token_cross_entropy(logits, batch).sum() / batch.mask.sum()


def check_mask(batch: Batch) -> None:
    """Raise `InputError` for a concrete mask that is all zero."""
    if is_concrete(batch.mask) and not np.asarray(batch.mask).any():
        raise InputError("the batch's mask is all zero: no token counts, so there is no loss")


def token_cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return −ln p(right token) for each target, `[B, A]` in nats, and 0 for targets that do not count."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets(batch)) * batch.mask


def example_cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return the surprise of each whole answer, −ln p(answer), `[B]` in nats: the sum over its tokens."""
    return token_cross_entropy(logits, batch).sum(axis=1)


def surprise(probability: float) -> tuple[float, float]:
    """Return −ln p in nats and −log₂ p in bits. Raises `InputError` unless 0 < p ≤ 1.

    >>> nats, bits = surprise(0.42)
    >>> round(nats, 2), round(bits, 2)
    (0.87, 1.25)
    """
    if not 0 < probability <= 1:
        raise InputError(f"probability is {probability}; it must be above 0 and at most 1")
    return -math.log(probability), -math.log2(probability)
