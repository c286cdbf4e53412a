"""The model: a pure function of its parameters, and the only place that knows the architecture.

A decoder-only transformer: pre-norm blocks with RMSNorm (Zhang and Sennrich
2019), causal multi-head attention (Vaswani et al. 2017) whose queries and keys
are normalised (Henry et al. 2020), ReLU feed-forward layers, learned positions,
and an output matrix of its own. No biases.

Everything is computed in the dtype of the parameters, except that norms, softmax and logits are never computed in less
than float32 (Micikevicius et al. 2018).

The four stages are jitted, so that eager calls in a REPL compile four programs
and not hundreds; inside a larger jitted program they dissolve into it.

Axis letters, here and in every name and einsum of the library:

    B batch   T query position   S key position   V vocabulary   C context length
    D model width   H heads   K head width   F hidden width   N layers   P population
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.params import AttentionParams, BlockParams, EmbedParams, MlpParams, OutputParams, Params, check_params
from jaxcalc.trees import is_concrete, named_leaves

Activations = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The sizes that `init` builds. Afterwards the shapes of the parameters are the configuration.

    Raises `InputError` for a size below 1 and for heads that do not divide the width.
    """

    vocab_size: int
    """V: tokens in the vocabulary."""
    d_model: int = 64
    """D: width of the residual stream."""
    n_heads: int = 4
    """H: attention heads in a block; each is d_model / n_heads wide."""
    d_ff: int = 256
    """F: hidden width of the feed-forward layers."""
    n_layers: int = 2
    """N: blocks."""
    context_length: int = 8
    """C: positions; the default is what calculator() needs."""

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
"""Sizes by name, for `ModelConfig(vocab_size, **SIZES["1M"])`: within 7 % of so many parameters for the calculator's
35 tokens. A block has 12 · D² of them; widths are multiples of 64, of 128 from 1M on, as matrix units like them."""


def init(key: jax.Array, config: ModelConfig) -> Params:
    """Return random float32 parameters.

    Every matrix is normal with standard deviation 1/√fan-in, except that
    embeddings and unembedding have 0.02, for near-uniform first predictions, and
    what writes to the residual stream (`out`, `down`) is halved.

    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=35))
    >>> params["blocks"][0]["attention"]["query"].shape
    (64, 4, 16)
    """
    d, h, f = config.d_model, config.n_heads, config.d_ff
    k = d // h

    def normal(*shape: int, scale: float) -> jax.Array:
        nonlocal key
        key, subkey = jax.random.split(key)
        return scale * jax.random.normal(subkey, shape)

    def block() -> BlockParams:
        return {
            "attention": {
                "norm": jnp.ones(d),
                "query": normal(d, h, k, scale=d**-0.5),
                "key": normal(d, h, k, scale=d**-0.5),
                "value": normal(d, h, k, scale=d**-0.5),
                "out": normal(h, k, d, scale=0.5 * d**-0.5),
            },
            "mlp": {
                "norm": jnp.ones(d),
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
        "output": {"norm": jnp.ones(d), "unembed": normal(d, config.vocab_size, scale=0.02)},
    }


def apply(params: Params, tokens: jax.Array, last: int | None = None) -> jax.Array:
    """Return the logits of the next token at each position, `[B, T, V]`, in float32 (float64 of float64 parameters).

    Args:
      params: as `init` makes them; every size is read from their shapes.
      tokens: int `[B, T]`, T at most the context length.
      last: the logits of only the last n positions, `[B, n, V]`; the last
        block then computes only those.

    Raises `InputError` for a malformed parameter tree (naming the leaf), too
    long a sequence, and, where tokens are concrete, an id outside the vocabulary.

    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=35))
    >>> apply(params, jnp.zeros((2, 8), int)).shape
    (2, 8, 35)
    """
    return trace(params, tokens, last=last)[0]


def trace(
    params: Params, tokens: jax.Array, taps: Activations | None = None, last: int | None = None
) -> tuple[jax.Array, Activations]:
    """Return what `apply` returns, and every activation on the way there.

    The activations are a tree with one entry a stage: `["embed"]["residual"]`,
    `["blocks"][i]["attention"]` (query, key, value, pattern, mixed, out,
    residual), `["blocks"][i]["mlp"]` (hidden, out, residual) and
    `["output"]["normed"]`; "residual" is the stream that leaves the stage, `[B, T, D]`.

    `taps` is a tree of the same names, whole or in part, whose arrays are added
    to the activations. Zeros change nothing; the gradient with respect to a tap
    is the backward message at that point; a difference between two runs'
    activations patches one with the other.

    Raises as `apply` does, and `InputError` for a tap that names no activation
    or does not have its shape.

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
    logits_BTV, output_ = output(params["output"], x_BTD, taps.get("output"))
    activations = {"embed": embedded, "blocks": blocks, "output": output_}
    for name in named_leaves(taps).keys() - named_leaves(activations).keys():
        raise InputError(f"the tap {name!r} names no activation; there are {', '.join(named_leaves(activations))}")
    return logits_BTV, activations


@jax.jit
def embed(
    params: EmbedParams, tokens: jax.Array, taps: Activations | None = None, first: int | jax.Array = 0
) -> tuple[jax.Array, Activations]:
    """Stage: token ids `[B, T]` → the residual stream `[B, T, D]`, the token's row plus its position's.

    `first` is the position of the first token.
    """
    position_TD = jax.lax.dynamic_slice_in_dim(params["position"], first, tokens.shape[1])
    x_BTD = _tap(taps, "residual", params["token"][tokens] + position_TD)
    return x_BTD, {"residual": x_BTD}


@functools.partial(jax.jit, static_argnames="last")
def attention(
    params: AttentionParams, x_BTD: jax.Array, taps: Activations | None = None, last: int | None = None
) -> tuple[jax.Array, Activations]:
    """Stage: every position gathers from those before it; the residual stream `[B, T, D]` → `[B, T, D]`.

    With `last`, only the last n positions ask, and `[B, n, D]` comes out.
    """
    key_BSHK, value_BSHK = keys_values(params, x_BTD, taps)
    first = 0 if last is None else x_BTD.shape[1] - last
    return attend(params, x_BTD[:, first:], key_BSHK, value_BSHK, taps, first)


def keys_values(
    params: AttentionParams, x_BSD: jax.Array, taps: Activations | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return what positions offer to later ones: keys and values, each `[B, S, H, K]`."""
    normed_BSD = rms_norm(x_BSD) * params["norm"]
    key_BSHK = rms_norm(project(normed_BSD, params["key"]))
    value_BSHK = project(normed_BSD, params["value"])
    return _tap(taps, "key", key_BSHK), _tap(taps, "value", value_BSHK)


def attend(
    params: AttentionParams,
    x_BTD: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    taps: Activations | None = None,
    first: int | jax.Array = 0,
) -> tuple[jax.Array, Activations]:
    """Return the stream after positions `first`, `first` + 1, … asked the keys and mixed the values.

    pattern = softmax(query · key / √K) over the positions S up to their own.
    """
    normed_BTD = rms_norm(x_BTD) * params["norm"]
    query_BTHK = _tap(taps, "query", rms_norm(project(normed_BTD, params["query"])))
    wide = jnp.promote_types(query_BTHK.dtype, jnp.float32)
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BSHK, preferred_element_type=wide)
    scores_BHTS = scores_BHTS * query_BTHK.shape[-1] ** -0.5
    position_T1 = first + jnp.arange(x_BTD.shape[1])[:, None]
    visible_TS = jnp.arange(key_BSHK.shape[1]) <= position_T1
    pattern_BHTS = jax.nn.softmax(jnp.where(visible_TS, scores_BHTS, -jnp.inf)).astype(value_BSHK.dtype)
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
    """Stage: each position's stream through a hidden layer; `[B, T, D]` → `[B, T, D]`."""
    normed_BTD = rms_norm(x_BTD) * params["norm"]
    hidden_BTF = _tap(taps, "hidden", jax.nn.relu(project(normed_BTD, params["up"])))
    out_BTD = _tap(taps, "out", project(hidden_BTF, params["down"]))
    residual_BTD = _tap(taps, "residual", x_BTD + out_BTD)
    return residual_BTD, {"hidden": hidden_BTF, "out": out_BTD, "residual": residual_BTD}


@jax.jit
def output(params: OutputParams, x_BTD: jax.Array, taps: Activations | None = None) -> tuple[jax.Array, Activations]:
    """Stage: the residual stream `[B, T, D]` → logits over the next token `[B, T, V]`."""
    normed_BTD = _tap(taps, "normed", rms_norm(x_BTD) * params["norm"])
    return project(at_least_float32(normed_BTD), at_least_float32(params["unembed"])), {"normed": normed_BTD}


def project(x: jax.Array, weights: jax.Array, n_axes: int = 1) -> jax.Array:
    """Return x times weights: the last `n_axes` of x meet the first `n_axes` of the weights.

    Said as one product of two matrices, because XLA runs its gradient 1.2 times as fast on a CPU as einsum's.

    >>> project(jnp.ones((2, 8, 64)), jnp.ones((64, 4, 16))).shape
    (2, 8, 4, 16)
    """
    n_inputs = math.prod(weights.shape[:n_axes])
    product = x.reshape(-1, n_inputs) @ weights.reshape(n_inputs, -1)
    return product.reshape(*x.shape[:-n_axes], *weights.shape[n_axes:])


def rms_norm(x: jax.Array) -> jax.Array:
    """Return x / √(mean of x² over the last axis + 1e-6), in the dtype of x."""
    wide = at_least_float32(x)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return x as float32 where its dtype is narrower, and else as it is.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def config_of(params: Params) -> ModelConfig:
    """Return the configuration that `init` would build these parameters' shapes from.

    Raises `InputError` as `check_params` does, and where no configuration has these
    shapes (a model with heads sliced off, say, which `apply` still accepts).

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


def check_tokens(params: Params, tokens: jax.Array) -> None:
    """Raise `InputError` for tokens that are not `[B, T]` integers, too long, or (concrete ones) out of vocabulary."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens are {tokens.dtype}{list(tokens.shape)}; expected integers of shape [B, T]")
    context_length, vocab_size = params["embed"]["position"].shape[0], params["embed"]["token"].shape[0]
    if tokens.shape[1] > context_length:
        raise InputError(f"the sequence has {tokens.shape[1]} tokens; the context length is {context_length}")
    if is_concrete(tokens) and tokens.size:
        ids = np.asarray(tokens)
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"token id {wrong} is outside the vocabulary: ids go from 0 to {vocab_size - 1}")


def _tap(taps: Activations | None, name: str, value: jax.Array) -> jax.Array:
    if not taps or name not in taps:
        return value
    if taps[name].shape != value.shape:
        raise InputError(f"the tap {name!r} has shape {taps[name].shape}; the activation has {value.shape}")
    return value + taps[name]
