"""The loss: how much the right token surprises the model, −ln p."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcalc.batch import Batch, targets
from jaxcalc.errors import InputError
from jaxcalc.model import apply
from jaxcalc.params import Params, check_leaves
from jaxcalc.trees import is_concrete

ApplyFn = Callable[..., jax.Array]
"""A model such as `jaxcalc.apply`: `(params, tokens [B, T], last=n) -> logits [B, n, V]`.

JAX compiles a program for each function object, so make it once and share it.
"""


def loss(params: Params, batch: Batch, apply_fn: ApplyFn = apply) -> jax.Array:
    """Return the mean surprise over the tokens that count, a scalar in nats. Its gradient is `jax.grad(loss)`.

    Raises `InputError` where `apply_fn` does, for a function that is no `ApplyFn`, and for a mask that is all zero.

    >>> from jaxcalc import ModelConfig, batch_at, calculator, init
    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=35))
    >>> grads = jax.grad(loss)(params, batch_at(calculator(), seed=0, step=0, size=256))
    >>> grads["blocks"][0]["attention"]["query"].shape
    (64, 4, 16)
    """
    return cross_entropy(answer_logits(params, batch, apply_fn), batch)


def answer_logits(params: Params, batch: Batch, apply_fn: ApplyFn = apply) -> jax.Array:
    """Return the logits `[B, A, V]` that predict the last A tokens. The model reads all tokens but the last.

    Raises `InputError` as `last_logits` does, and for too few columns for concrete tokens.
    """
    n = batch.mask.shape[1]
    logits = last_logits(params, batch.tokens[:, :-1], n, apply_fn)
    if is_concrete(batch.tokens):
        ids = np.asarray(jax.device_get(batch.tokens))  # by NumPy: under `jit` a slice of a constant is not concrete
        check_columns(logits.shape, ids[:, -n:])
    return logits


def last_logits(params: Any, tokens: jax.Array, n: int, apply_fn: ApplyFn) -> jax.Array:
    """Return the logits `[B, n, V]` that a model gives for the last n positions of tokens `[B, T]`.

    Raises `InputError` for a function that is no `ApplyFn`: one that cannot be called so, or returns something else.
    """
    expected = f"expected an array of logits of shape ({tokens.shape[0]}, {n}, V)"
    try:
        inspect.signature(apply_fn).bind(params, tokens, last=n)
    except TypeError as error:
        raise InputError(f"apply_fn cannot be called as apply_fn(params, tokens, last={n}): {error}") from error
    logits = apply_fn(params, tokens, last=n)
    if not isinstance(logits, jax.Array | np.ndarray):
        shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(logits))
        raise InputError(f"apply_fn returns a {type(logits).__name__} of shapes {shapes:.80}; {expected}")
    if logits.shape[:-1] != (tokens.shape[0], n) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(
            f"apply_fn returns {logits.dtype} of shape {logits.shape} for tokens of shape {tokens.shape} and last={n}; "
            f"{expected}, floating-point numbers for the last positions only"
        )
    return logits


def next_shape(params: Any, tokens: jax.Array, apply_fn: ApplyFn) -> tuple[int, ...]:
    """Return the shape `[B, 1, V]` of the logits that a model gives for the next token, without computing them.

    Raises `InputError` as `last_logits` does, for a leaf that is no array, and for a function without a hash.
    """
    check_hash(apply_fn)
    check_leaves(params)
    return _last_logits.eval_shape(params, tokens, 1, apply_fn).shape


_last_logits = jax.jit(last_logits, static_argnums=(2, 3))  # which remembers the shapes


def check_hash(apply_fn: ApplyFn) -> None:
    """Raise `InputError` for a function without a hash, such as a module that holds its weights."""
    try:
        hash(apply_fn)
    except TypeError as error:
        raise InputError(
            f"apply_fn is a {type(apply_fn).__name__} without a hash, by which JAX would know its program ({error}); "
            "give a function of (params, tokens, last)"
        ) from error


def check_columns(shape: tuple[int, ...], ids: np.ndarray) -> None:
    """Raise `InputError` for logits of a shape `[B, n, V]` without a column for each of the token ids to predict."""
    highest = int(ids.max(initial=0))
    if shape[-1] <= highest:
        raise InputError(
            f"apply_fn returns logits of shape {shape}; expected at least {(*shape[:-1], highest + 1)}, a column for "
            f"each token up to id {highest}"
        )


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
