"""Decoding, one token at a time: the prefill, decode steps with a key-value cache, and `generate`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, last_logits, next_shape
from jaxcalc.model import apply, attend, embed, keys_values, mlp, output
from jaxcalc.params import Params, check_integers, check_params, check_tokens
from jaxcalc.tasks.tokenizer import END_ID
from jaxcalc.trees import is_concrete

Cache = list[dict[str, jax.Array]]
"""For each block the "key" and the "value" of every position so far, each `[B, length, H, K]`."""


def empty_cache(params: Params, batch_size: int, length: int) -> Cache:
    """Return an empty cache for `length` positions."""

    def zeros(weight: jax.Array) -> jax.Array:
        return jnp.zeros((batch_size, length, *weight.shape[1:]), weight.dtype)

    attentions = [block["attention"] for block in params["blocks"]]
    return [{"key": zeros(attention["key"]), "value": zeros(attention["value"])} for attention in attentions]


def extend(params: Params, tokens: jax.Array, cache: Cache, first: int | jax.Array) -> tuple[jax.Array, Cache]:
    """Return the logits `[B, V]` after `tokens` `[B, T]`, which begin at position `first`, and the extended cache.

    With a whole prompt this is the prefill, with one token a decode step. The logits are those of `jaxcalc.apply` on
    the whole sequence.
    """
    x_BTD, _ = embed(params["embed"], tokens, first=first)
    extended: Cache = []
    for block, past in zip(params["blocks"], cache, strict=True):
        key, value = keys_values(block["attention"], x_BTD)
        new = {"key": key, "value": value}
        both = {name: jax.lax.dynamic_update_slice_in_dim(past[name], new[name], first, axis=1) for name in new}
        extended.append(both)
        x_BTD, _ = attend(block["attention"], x_BTD, both["key"], both["value"], first=first)
        x_BTD, _ = mlp(block["mlp"], x_BTD)
    return output(params["output"], x_BTD[:, -1])[0], extended


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def generate(
    params: Any,
    prompts: jax.Array | np.ndarray,
    n_tokens: int,
    key: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    apply_fn: ApplyFn = apply,
) -> tuple[jax.Array, jax.Array]:
    """Return the tokens that continue each prompt, int32 `[B, n]`, and ln p of each, float `[B, n]`. Jitted.

    Without a `key`, each token is the likeliest one. With a key, it is drawn from softmax(logits / temperature) over
    the `top_k` likeliest tokens, or over all tokens if `top_k` is None. ln p is always the model's own, at temperature
    1. After its end token a sequence is padded, with ln p = 0.

    `jaxcalc.apply` keeps a cache. Another `apply_fn` reads the whole sequence anew for each token, as long as it is.

    Raises `InputError` where `apply_fn` does, for a function that is no `ApplyFn`, and for a number out of range.

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> task = calculator()
    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=task.vocab_size))
    >>> tokens, log_probs = generate(params, task.encode("2 + 3")[None], n_tokens=3)
    >>> tokens.shape
    (1, 3)
    """
    prompts = jnp.asarray(prompts)
    check_integers(prompts)
    asked = f"a prompt of {prompts.shape[1]} and {n_tokens} more tokens"
    if prompts.shape[1] < 1 or n_tokens < 1:
        raise InputError(f"{asked}: each must be at least 1")
    if apply_fn is apply:
        check_params(params)
        check_tokens(params, prompts)
        context_length, vocab_size = params["embed"]["position"].shape[0], params["embed"]["token"].shape[0]
        if prompts.shape[1] + n_tokens - 1 > context_length:
            raise InputError(f"{asked}: the model reads {context_length} positions")
    else:
        vocab_size = next_shape(params, prompts, apply_fn)[-1]
    if is_concrete(temperature) and not jax.device_get(temperature) > 0:
        raise InputError(f"temperature is {temperature}; it must be above 0 (leave out the key to be greedy)")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise InputError(f"top_k is {top_k}; it must be from 1 to {vocab_size}, the vocabulary")
    return _generate(params, prompts, n_tokens, key, temperature, top_k, apply_fn)


def lowered(params: Any, prompts: Any, n_tokens: int) -> jax.stages.Lowered:
    """Return the greedy program of `generate`, to be compiled before it is needed; shapes are enough."""
    return _generate.lower(params, prompts, n_tokens, None, 1.0, None, apply)


@functools.partial(jax.jit, static_argnames=("n_tokens", "top_k", "apply_fn"))
def _generate(
    params: Any,
    prompts: jax.Array,
    n_tokens: int,
    key: jax.Array | None,
    temperature: float | jax.Array,
    top_k: int | None,
    apply_fn: ApplyFn,
) -> tuple[jax.Array, jax.Array]:
    batch_size, length = prompts.shape

    def choose(logits: jax.Array, step: int | jax.Array) -> jax.Array:
        if key is None:
            return logits.argmax(axis=-1)
        if top_k is not None:
            least = jax.lax.top_k(logits, top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(jax.random.fold_in(key, step), logits / temperature)

    def emit(logits: jax.Array, ended: jax.Array, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        token = jnp.where(ended, PAD_ID, choose(logits, step)).astype(jnp.int32)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
        return token, jnp.where(ended, 0.0, log_prob)

    if apply_fn is not apply:
        sequence, ended, emitted = prompts, jnp.zeros(batch_size, bool), []
        for step in range(n_tokens):
            token, log_prob = emit(last_logits(params, sequence, 1, apply_fn)[:, 0], ended, step)
            emitted.append((token, log_prob))
            sequence = jnp.concatenate([sequence, token[:, None].astype(sequence.dtype)], axis=1)
            ended |= token == END_ID
        tokens, log_probs = zip(*emitted, strict=True)
        return jnp.stack(tokens, axis=1), jnp.stack(log_probs, axis=1)

    def body(carry, step):
        cache, token, ended = carry
        logits, cache = extend(params, token[:, None], cache, length + step - 1)
        token, log_prob = emit(logits, ended, step)
        return (cache, token, ended | (token == END_ID)), (token, log_prob)

    cache = empty_cache(params, batch_size, length + n_tokens - 1)
    logits, cache = extend(params, prompts, cache, 0)
    token, log_prob = emit(logits, jnp.zeros(batch_size, bool), 0)
    _, (tokens, log_probs) = jax.lax.scan(body, (cache, token, token == END_ID), jnp.arange(1, n_tokens))
    return jnp.concatenate([token[:, None], tokens.T], 1), jnp.concatenate([log_prob[:, None], log_probs.T], 1)
