"""Other ways to compute what `jaxcalc.apply` does, for larger models.

A block is a function of its parameters and the stream; a model is a loop over blocks, unrolled or scanned; a dtype is a
wrapper around a model. They compose:

    apply_fn = large.in_dtype(jnp.bfloat16, large.scanned(large.remat(large.block)))
    state = jaxcalc.create_state(params, tx, apply_fn)  # parameters, moments and loss stay float32

The layout of the parameters does not change. Logits and gradients are those of `jaxcalc.apply` up to rounding.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import apply, attention, embed, keys_values, mlp, output, rms_norm
from jaxcalc.numerics import project
from jaxcalc.params import BlockParams, Params, check_params, check_tokens
from jaxcalc.trees import named_leaves

BlockFn = Callable[[BlockParams, jax.Array, int | None], jax.Array]
"""A block such as `block`: `(params, x [B, T, D], last) -> [B, T, D]`, or `[B, n, D]` if `last` is n."""


def block(params: BlockParams, x_BTD: jax.Array, last: int | None) -> jax.Array:
    """Return the stream after the stages `attention` and `mlp` of `jaxcalc.model`."""
    x_BTD, _ = attention(params["attention"], x_BTD, last=last)
    return mlp(params["mlp"], x_BTD)[0]


def fused_block(
    params: BlockParams, x_BTD: jax.Array, last: int | None, implementation: Literal["xla", "cudnn"] | None = None
) -> jax.Array:
    """Return what `block` does, with the attention in one call of `jax.nn.dot_product_attention`.

    The implementation "cudnn", for float16 and bfloat16 on a GPU, never holds the whole pattern `[B, H, T, S]`
    (FlashAttention, Dao et al. 2022): `functools.partial(fused_block, implementation="cudnn")`. The implementation
    "xla" computes the products of `block` in another order.
    """
    attention_params = params["attention"]
    key_BSHK, value_BSHK = keys_values(attention_params, x_BTD)
    first = 0 if last is None else x_BTD.shape[1] - last
    x_BTD = x_BTD[:, first:]
    query_BTHK = rms_norm(project(rms_norm(x_BTD) * attention_params["norm"], attention_params["query"]))
    visible_TS = jnp.arange(key_BSHK.shape[1]) <= first + jnp.arange(x_BTD.shape[1])[:, None]
    mask = visible_TS[None, None] if first else None
    mixed_BTHK = jax.nn.dot_product_attention(
        query_BTHK, key_BSHK, value_BSHK, mask=mask, is_causal=not first, implementation=implementation
    )
    return mlp(params["mlp"], x_BTD + project(mixed_BTHK, attention_params["out"], n_axes=2))[0]


def remat(block_fn: BlockFn = block) -> BlockFn:
    """Return a block that keeps only its input, and computes its activations again in the backward pass.

    This trades time for memory (Chen et al. 2016): the activations of one block instead of all blocks, for about a
    third more products. On a CPU it saves memory only with `scanned`, because XLA otherwise recomputes too early.
    """
    return jax.checkpoint(block_fn, static_argnums=2)


def unrolled(block_fn: BlockFn = block) -> ApplyFn:
    """Return a model that runs its blocks one after another, as `jaxcalc.apply` does.

    >>> from jaxcalc import ModelConfig, init
    >>> params = jax.eval_shape(lambda: init(jax.random.key(0), ModelConfig(vocab_size=35)))
    >>> jax.eval_shape(unrolled(remat()), params, jnp.zeros((2, 8), int)).shape
    (2, 8, 35)
    """

    def blocks(params: list[BlockParams], x_BTD: jax.Array, last: int | None) -> jax.Array:
        for block_params in params[:-1]:
            x_BTD = block_fn(block_params, x_BTD, None)
        return block_fn(params[-1], x_BTD, last)

    return _model(blocks)


def scanned(block_fn: BlockFn = block) -> ApplyFn:
    """Return a model that runs all blocks but the last in one `jax.lax.scan`, so that the program holds one block.

    The parameters of these blocks are stacked into arrays with one more axis, and their gradients are unstacked. The
    last block stands alone because it may compute only the last positions. On a CPU this pays only together with
    `remat`; it does not compile faster, because the optimizer still visits every leaf.

    The model raises `InputError` for blocks whose shapes differ, naming the leaf.
    """

    def blocks(params: list[BlockParams], x_BTD: jax.Array, last: int | None) -> jax.Array:
        *before, final = params
        if before:
            _check_alike(before)
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *before)
            x_BTD, _ = jax.lax.scan(lambda x_BTD, layer: (block_fn(layer, x_BTD, None), None), x_BTD, stacked)
        return block_fn(final, x_BTD, last)

    return _model(blocks)


def in_dtype(dtype: Any, apply_fn: ApplyFn = apply) -> ApplyFn:
    """Return a model that casts its float parameters to a dtype before it computes (Micikevicius et al. 2018).

    The cast is part of the function, so gradients, moments and updates keep the dtype of the stored parameters. Norms,
    softmax and loss are always at least float32. bfloat16 has the range of float32, so the loss needs no scaling. If
    `apply_fn` comes from `jaxcalc.sharding.sharded`, the devices exchange the cast parameters.

    >>> from jaxcalc import ModelConfig, init
    >>> params = jax.eval_shape(lambda: init(jax.random.key(0), ModelConfig(vocab_size=35)))
    >>> jax.eval_shape(in_dtype(jnp.bfloat16), params, jnp.zeros((2, 8), int)).dtype
    dtype('float32')
    """

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def cast_apply(params: Any, tokens: jax.Array, last: int | None = None) -> jax.Array:
        return apply_fn(jax.tree.map(cast, params), tokens, last=last)

    return cast_apply


def _model(blocks: Callable[[list[BlockParams], jax.Array, int | None], jax.Array]) -> ApplyFn:
    """Return the model that runs its blocks with `blocks`."""

    def model_apply(params: Params, tokens: jax.Array, last: int | None = None) -> jax.Array:
        check_params(params)
        check_tokens(params, tokens)
        x_BTD, _ = embed(params["embed"], tokens)
        return output(params["output"], blocks(params["blocks"], x_BTD, last))[0]

    return model_apply


def _check_alike(blocks: list[BlockParams]) -> None:
    """Raise `InputError` if the shapes of two blocks differ."""
    first = named_leaves(blocks[0])
    for index, layer in enumerate(blocks):
        for name, leaf in named_leaves(layer).items():
            if leaf.shape != first[name].shape:
                raise InputError(
                    f"blocks that are scanned must be alike; {name} has shape {leaf.shape} in block {index} and "
                    f"{first[name].shape} in block 0"
                )
