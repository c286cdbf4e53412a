"""What larger models need: other ways to compute what `jaxcalc.apply` does, put together from functions.

A block is a function of its parameters and the stream; the depth is a loop over blocks, written out or scanned; a model
is the loop, in a dtype. Each takes the one before, so what is not asked for is not there:

    apply_fn = large.in_dtype(jnp.bfloat16, large.scanned(large.remat(large.block)))
    state = jaxcalc.create_state(params, tx, apply_fn)  # whose parameters, moments and loss are float32

Parameters keep their layout, and logits and gradients are those of `jaxcalc.apply` but for rounding.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import apply, attention, check_tokens, embed, keys_values, mlp, output, project, rms_norm
from jaxcalc.params import BlockParams, Params, check_params
from jaxcalc.trees import named_leaves

BlockFn = Callable[[BlockParams, jax.Array, int | None], jax.Array]
"""A block: `(params, x [B, T, D], last) -> [B, T, D]`, or `[B, n, D]` where `last` is n, as `block`."""


def block(params: BlockParams, x_BTD: jax.Array, last: int | None) -> jax.Array:
    """Return the stream after a block: the stages `attention` and `mlp` of `jaxcalc.model`."""
    x_BTD, _ = attention(params["attention"], x_BTD, last=last)
    return mlp(params["mlp"], x_BTD)[0]


def fused_block(
    params: BlockParams, x_BTD: jax.Array, last: int | None, implementation: Literal["xla", "cudnn"] | None = None
) -> jax.Array:
    """Return what `block` does, the attention in one call of `jax.nn.dot_product_attention`.

    Its `implementation` "cudnn", for float16 and bfloat16 on a GPU, never holds the pattern `[B, H, T, S]`
    (FlashAttention, Dao et al. 2022): `functools.partial(fused_block, implementation="cudnn")`. The other is the
    products that `block` has, in another order.
    """
    attention_params = params["attention"]
    key_BSHK, value_BSHK = keys_values(attention_params, x_BTD)
    first = 0 if last is None else x_BTD.shape[1] - last
    x_BTD = x_BTD[:, first:]
    query_BTHK = rms_norm(project(rms_norm(x_BTD) * attention_params["norm"], attention_params["query"]))
    visible_TS = jnp.arange(key_BSHK.shape[1]) <= first + jnp.arange(x_BTD.shape[1])[:, None]
    mixed_BTHK = jax.nn.dot_product_attention(
        query_BTHK, key_BSHK, value_BSHK,
        mask=visible_TS[None, None] if first else None, is_causal=not first, implementation=implementation,
    )  # fmt: skip
    return mlp(params["mlp"], x_BTD + project(mixed_BTHK, attention_params["out"], n_axes=2))[0]


def remat(block_fn: BlockFn = block) -> BlockFn:
    """Return a block that keeps only the stream it was given, and computes the rest again on the way back.

    Memory for time (Chen et al. 2016): the activations of one block instead of all, for about a third more products.
    XLA's CPU compiler computes again at once and holds all the same, unless depth is `scanned`.
    """
    return jax.checkpoint(block_fn, static_argnums=2)


def unrolled(block_fn: BlockFn = block) -> ApplyFn:
    """Return a model whose blocks are written out one after another, as `jaxcalc.apply` has them.

    >>> from jaxcalc import ModelConfig, init
    >>> params = jax.eval_shape(lambda: init(jax.random.key(0), ModelConfig(vocab_size=35)))
    >>> jax.eval_shape(unrolled(remat()), params, jnp.zeros((2, 8), int)).shape
    (2, 8, 35)
    """

    def blocks(params: list[BlockParams], x_BTD: jax.Array, last: int | None) -> jax.Array:
        for each in params[:-1]:
            x_BTD = block_fn(each, x_BTD, None)
        return block_fn(params[-1], x_BTD, last)

    return _model(blocks)


def scanned(block_fn: BlockFn = block) -> ApplyFn:
    """Return a model whose blocks but the last are one `jax.lax.scan`: one block in the program, whatever the depth.

    For that the parameters of those blocks are copied into arrays with one more axis in front, and their gradients
    out of such. The last block stands alone, since it may compute only the last positions. On a CPU it pays where it
    makes `remat` work; it does not compile sooner, since the optimizer still goes from leaf to leaf.

    Raises `InputError`, when it is called, for blocks whose shapes differ, naming the leaf.
    """

    def blocks(params: list[BlockParams], x_BTD: jax.Array, last: int | None) -> jax.Array:
        *before, final = params
        if before:
            _check_alike(before)
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *before)
            x_BTD, _ = jax.lax.scan(lambda x_BTD, each: (block_fn(each, x_BTD, None), None), x_BTD, stacked)
        return block_fn(final, x_BTD, last)

    return _model(blocks)


def in_dtype(dtype: Any, apply_fn: ApplyFn = apply) -> ApplyFn:
    """Return a model that computes with its float parameters cast to a dtype (Micikevicius et al. 2018).

    The cast is part of the function, so gradients come back in the dtype of the parameters that are kept. The moments
    and the update stay in it as well, and norms, softmax and the loss are float32 in any case. bfloat16 has the range
    of float32, so the loss needs no scale. Around `jaxcalc.sharding.sharded`, it is the cast parameters that devices
    send each other.

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
    """Return the model whose depth is `blocks`."""

    def model_apply(params: Params, tokens: jax.Array, last: int | None = None) -> jax.Array:
        check_params(params)
        check_tokens(params, tokens)
        x_BTD, _ = embed(params["embed"], tokens)
        return output(params["output"], blocks(params["blocks"], x_BTD, last))[0]

    return model_apply


def _check_alike(blocks: list[BlockParams]) -> None:
    """Raise `InputError` where the shapes of two blocks differ."""
    shapes = [{name: leaf.shape for name, leaf in named_leaves(each).items()} for each in blocks]
    for index, each in enumerate(shapes):
        for name, shape in each.items():
            if shape != shapes[0][name]:
                raise InputError(f"blocks that are scanned must be alike; {name} has shape {shape} in block {index} "
                                 f"and {shapes[0][name]} in block 0")  # fmt: skip
