"""The model: a pure function of its parameters. This module alone knows the architecture.

A decoder-only transformer: pre-norm blocks with RMSNorm (Zhang and Sennrich 2019), causal multi-head attention
(Vaswani et al. 2017) with normalised queries and keys (Henry et al. 2020), ReLU feed-forward layers, learned positions
and an output matrix of its own. It has no biases.

It computes in the dtype of the parameters, norms, softmax and logits in at least float32 (Micikevicius et al. 2018).
The four stages are jitted, so that an eager call in a REPL compiles four programs and not hundreds.

Axis letters, here and in every name and einsum of the library:

    B batch   T query position   S key position   V vocabulary   C context length
    D model width   H heads   K head width   F hidden width   N layers   P population
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxcalc.errors import InputError
from jaxcalc.numerics import as_key, at_least_float32, project
from jaxcalc.params import (
    AttentionParams,
    BlockParams,
    EmbedParams,
    MlpParams,
    OutputParams,
    Params,
    check_params,
    check_tokens,
)
from jaxcalc.trees import named_leaves

Activations = dict[str, Any]
NORM_EPSILON = 1e-6
"""What RMSNorm adds to the mean square, so that it never divides by zero."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The sizes that `init` builds. From then on the shapes of the parameters are the configuration.

    Raises `InputError` for a size below 1, and for a number of heads that does not divide the width.
    """

    vocab_size: int
    """V: tokens in the vocabulary."""
    d_model: int = 64
    """D: width of the residual stream."""
    n_heads: int = 4
    """H: attention heads per block; each is d_model / n_heads wide."""
    d_ff: int = 256
    """F: hidden width of the feed-forward layers."""
    n_layers: int = 2
    """N: blocks."""
    context_length: int = 8
    """C: positions that the model can read; the default is enough for `calculator()`."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.d_model % self.n_heads:
            raise InputError(f"n_heads is {self.n_heads}, which does not divide d_model, {self.d_model}")


SizeName = Literal["100K", "1M", "10M", "100M"]
SIZES: dict[SizeName, dict[str, int]] = {
    "100K": {"d_model": 64, "n_heads": 4, "d_ff": 256, "n_layers": 2},
    "1M": {"d_model": 128, "n_heads": 4, "d_ff": 512, "n_layers": 5},
    "10M": {"d_model": 384, "n_heads": 12, "d_ff": 1536, "n_layers": 6},
    "100M": {"d_model": 768, "n_heads": 12, "d_ff": 3072, "n_layers": 14},
}
"""Sizes for `ModelConfig(vocab_size, **SIZES["1M"])`; with the calculator's 35 tokens, a model has the number of
parameters in the name within 7 %. From 1M on widths are multiples of 128, which suits matrix units."""


def init(key: jax.Array | int, config: ModelConfig) -> Params:
    """Return random float32 parameters, from a key or a seed: `init(0, config)` is `init(jax.random.key(0), config)`.

    Matrices are normal with standard deviation 1/√fan-in, and half of that where they write to the residual stream
    (`out`, `down`). Embeddings and unembedding have 0.02, so that the first predictions are nearly uniform.
    Raises `InputError` for what is neither a key nor a whole number.

    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=35))
    >>> params["blocks"][0]["attention"]["query"].shape
    (64, 4, 16)
    """
    key, d, h, f = as_key(key), config.d_model, config.n_heads, config.d_ff
    k = d // h

    def normal(*shape: int, scale: float) -> jax.Array:
        nonlocal key
        key, subkey = jax.random.split(key)
        return scale * jax.random.normal(subkey, shape, jnp.float32)

    def block() -> BlockParams:
        return {
            "attention": {
                "norm": jnp.ones(d, jnp.float32),
                "query": normal(d, h, k, scale=d**-0.5),
                "key": normal(d, h, k, scale=d**-0.5),
                "value": normal(d, h, k, scale=d**-0.5),
                "out": normal(h, k, d, scale=0.5 * d**-0.5),
            },
            "mlp": {
                "norm": jnp.ones(d, jnp.float32),
                "up": normal(d, f, scale=d**-0.5),
                "down": normal(f, d, scale=0.5 * f**-0.5),
            },
        }

    return {
        "embed": {
            "token": normal(config.vocab_size, d, scale=0.02),
            "position": normal(config.context_length, d, scale=0.02),
        },
        "blocks": [block() for _ in range(config.n_layers)],
        "output": {"norm": jnp.ones(d, jnp.float32), "unembed": normal(d, config.vocab_size, scale=0.02)},
    }


def apply(params: Params, tokens: jax.Array, last: int | None = None) -> jax.Array:
    """Return the logits of the next token at each position, `[B, T, V]`, in float32 (float64 for float64 parameters).

    Args:
      params: a tree such as `init` makes; its shapes give every size.
      tokens: int `[B, T]`, T at most the context length.
      last: return the logits of the last n positions only, `[B, n, V]`; the last block then computes only those.

    Raises `InputError` for a malformed parameter tree, naming the leaf, for a sequence that is too long, and for
    concrete tokens outside the vocabulary.

    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=35))
    >>> apply(params, jnp.zeros((2, 8), int)).shape
    (2, 8, 35)
    """
    return trace(params, tokens, last=last)[0]


def trace(
    params: Params, tokens: jax.Array, taps: Activations | None = None, last: int | None = None
) -> tuple[jax.Array, Activations]:
    """Return the logits of `apply`, and every activation of the forward pass.

    The activations are a tree with one entry per stage: `["embed"]["residual"]`, `["blocks"][i]["attention"]` (query,
    key, value, pattern, mixed, out, residual), `["blocks"][i]["mlp"]` (hidden, out, residual) and
    `["output"]["normed"]`. "residual" is the stream that leaves the stage, `[B, T, D]`.

    `taps` is a tree with some or all of these names; its arrays are added to the activations. Zeros change nothing.
    The gradient with respect to a tap is the backward message at that point. The difference between two runs'
    activations patches one run with the other.

    Raises `InputError` where `apply` does, and for a tap that names no activation or has another shape.

    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=35))
    >>> logits, activations = trace(params, jnp.zeros((1, 8), int))
    >>> activations["blocks"][0]["attention"]["pattern"].shape  # [B, H, T, S]
    (1, 4, 8, 8)
    """
    check_params(params)
    check_tokens(params, tokens)
    taps = taps or {}
    x_BTD, embedded = embed(params["embed"], tokens, taps.get("embed"))
    blocks: list[Activations] = []
    for index, block in enumerate(params["blocks"]):
        block_taps = taps["blocks"][index] if "blocks" in taps else {}
        n = last if index == len(params["blocks"]) - 1 else None
        x_BTD, attended = attention(block["attention"], x_BTD, block_taps.get("attention"), last=n)
        x_BTD, fed_forward = mlp(block["mlp"], x_BTD, block_taps.get("mlp"))
        blocks.append({"attention": attended, "mlp": fed_forward})
    logits_BTV, unembedded = output(params["output"], x_BTD, taps.get("output"))
    activations = {"embed": embedded, "blocks": blocks, "output": unembedded}
    for name in named_leaves(taps).keys() - named_leaves(activations).keys():
        raise InputError(f"the tap {name!r} names no activation; there are {', '.join(named_leaves(activations))}")
    return logits_BTV, activations


@jax.jit
def embed(
    params: EmbedParams, tokens: jax.Array, taps: Activations | None = None, first: int | jax.Array = 0
) -> tuple[jax.Array, Activations]:
    """Stage: turn token ids `[B, T]`, the first at position `first`, into the residual stream `[B, T, D]`."""
    position_TD = jax.lax.dynamic_slice_in_dim(params["position"], first, tokens.shape[1])
    x_BTD = _tap(taps, "residual", jnp.asarray(params["token"])[tokens] + position_TD[None])
    return x_BTD, {"residual": x_BTD}


@functools.partial(jax.jit, static_argnames="last")
def attention(
    params: AttentionParams, x_BTD: jax.Array, taps: Activations | None = None, last: int | None = None
) -> tuple[jax.Array, Activations]:
    """Stage: let all positions, or the last n, attend to those so far; `[B, T, D]` → `[B, T, D]` or `[B, n, D]`."""
    key_BSHK, value_BSHK = keys_values(params, x_BTD, taps)
    first = 0 if last is None else x_BTD.shape[1] - last
    return attend(params, x_BTD[:, first:], key_BSHK, value_BSHK, taps, first)


def keys_values(
    params: AttentionParams, x_BSD: jax.Array, taps: Activations | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the keys and the values that positions offer to later ones, each `[B, S, H, K]`."""
    normed_BSD = rms_norm(x_BSD)
    key_BSHK = rms_norm(project(normed_BSD, _scaled(params["key"], params["norm"])))
    value_BSHK = project(normed_BSD, _scaled(params["value"], params["norm"]))
    return _tap(taps, "key", key_BSHK), _tap(taps, "value", value_BSHK)


def attend(
    params: AttentionParams,
    x_BTD: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    taps: Activations | None = None,
    first: int | jax.Array = 0,
) -> tuple[jax.Array, Activations]:
    """Return the stream `[B, T, D]` after positions `first`, `first` + 1, … have attended to keys and values.

    pattern = softmax(query · key / √K), over the positions S up to the query's own.
    """
    query_BTHK = _tap(taps, "query", rms_norm(project(rms_norm(x_BTD), _scaled(params["query"], params["norm"]))))
    wide = at_least_float32(query_BTHK).dtype
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BSHK, preferred_element_type=wide)
    scores_BHTS = scores_BHTS * query_BTHK.shape[-1] ** -0.5
    position_T1 = first + jnp.arange(x_BTD.shape[1])[:, None]
    visible_TS = jnp.arange(key_BSHK.shape[1])[None] <= position_T1
    pattern_BHTS = jax.nn.softmax(jnp.where(visible_TS[None, None], scores_BHTS, -jnp.inf)).astype(value_BSHK.dtype)
    pattern_BHTS = _tap(taps, "pattern", pattern_BHTS)
    mixed_BTHK = _tap(taps, "mixed", jnp.einsum("BHTS,BSHK->BTHK", pattern_BHTS, value_BSHK))
    out_BTD = _tap(taps, "out", project(mixed_BTHK, params["out"], n_axes=2))
    residual_BTD = _tap(taps, "residual", x_BTD + out_BTD)
    return residual_BTD, {
        "query": query_BTHK,
        "key": key_BSHK,
        "value": value_BSHK,
        "pattern": pattern_BHTS,
        "mixed": mixed_BTHK,
        "out": out_BTD,
        "residual": residual_BTD,
    }


@jax.jit
def mlp(params: MlpParams, x_BTD: jax.Array, taps: Activations | None = None) -> tuple[jax.Array, Activations]:
    """Stage: send the stream of each position through a hidden layer; `[B, T, D]` → `[B, T, D]`."""
    hidden_BTF = _tap(taps, "hidden", jax.nn.relu(project(rms_norm(x_BTD), _scaled(params["up"], params["norm"]))))
    out_BTD = _tap(taps, "out", project(hidden_BTF, params["down"]))
    residual_BTD = _tap(taps, "residual", x_BTD + out_BTD)
    return residual_BTD, {"hidden": hidden_BTF, "out": out_BTD, "residual": residual_BTD}


@jax.jit
def output(params: OutputParams, x_BTD: jax.Array, taps: Activations | None = None) -> tuple[jax.Array, Activations]:
    """Stage: turn the residual stream `[B, T, D]` into logits over the next token `[B, T, V]`."""
    normed_BTD = _tap(taps, "normed", rms_norm(x_BTD) * jnp.broadcast_to(params["norm"], x_BTD.shape))
    return project(at_least_float32(normed_BTD), at_least_float32(params["unembed"])), {"normed": normed_BTD}


def _scaled(weights: jax.Array, gain_D: jax.Array) -> jax.Array:
    """Return weights times the gains of the norm before them, which is less work than a product at each position."""
    return weights * gain_D.reshape(-1, *[1] * (weights.ndim - 1))


def rms_norm(x: jax.Array) -> jax.Array:
    """Return x / √(mean of x² over the last axis + `NORM_EPSILON`), in the dtype of x."""
    wide = at_least_float32(x)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + NORM_EPSILON)).astype(x.dtype)


def config_of(params: Params) -> ModelConfig:
    """Return the configuration from which `init` builds these shapes.

    Raises `InputError` for a malformed tree, and for shapes that no configuration has, such as those of a model
    without some of its heads, which `apply` accepts.

    >>> config = ModelConfig(vocab_size=35, d_ff=100)
    >>> config_of(init(jax.random.key(0), config)) == config
    True
    """
    check_params(params)
    (v, d), (c, _) = params["embed"]["token"].shape, params["embed"]["position"].shape
    block = params["blocks"][0]
    h, f = block["attention"]["query"].shape[1], block["mlp"]["up"].shape[1]
    try:
        config = ModelConfig(v, d, h, f, len(params["blocks"]), c)
    except InputError as error:
        raise InputError(f"no ModelConfig has these shapes: {error}") from error
    expected = named_leaves(jax.eval_shape(lambda: init(jax.random.key(0), config)))
    for name, leaf in named_leaves(params).items():
        if leaf.shape != expected[name].shape:
            raise InputError(f"no ModelConfig has these shapes: {name} is {leaf.shape}, not {expected[name].shape}")
    return config


def _tap(taps: Activations | None, name: str, value: jax.Array) -> jax.Array:
    if not taps or name not in taps:
        return value
    if taps[name].shape != value.shape:
        raise InputError(f"the tap {name!r} has shape {taps[name].shape}; the activation has {value.shape}")
    return value + taps[name]
