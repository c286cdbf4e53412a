"""The same network in idiomatic Flax Linen: an independent oracle for the tests, and a baseline for benchmark.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcalc import ModelConfig, Params
from jaxcalc.model import NORM_EPSILON


class LinenAttention(nn.Module):
    """Causal attention with normalised queries and keys, added to the stream."""

    n_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        normed = nn.RMSNorm(epsilon=NORM_EPSILON, name="norm")(x)
        features = (self.n_heads, d // self.n_heads)
        q, k, v = (nn.DenseGeneral(features, use_bias=False, name=n)(normed) for n in ("query", "key", "value"))
        q, k = (nn.RMSNorm(epsilon=NORM_EPSILON, use_scale=False)(y) for y in (q, k))
        mixed = nn.dot_product_attention(q, k, v, mask=nn.make_causal_mask(jnp.ones(x.shape[:2])))
        return x + nn.DenseGeneral(d, axis=(-2, -1), use_bias=False, name="out")(mixed)


class LinenMlp(nn.Module):
    """A feed-forward layer, added to the stream."""

    d_ff: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normed = nn.RMSNorm(epsilon=NORM_EPSILON, name="norm")(x)
        hidden = nn.relu(nn.Dense(self.d_ff, use_bias=False, name="up")(normed))
        return x + nn.Dense(x.shape[-1], use_bias=False, name="down")(hidden)


class LinenModel(nn.Module):
    """Token ids `[B, T]` → logits `[B, T, V]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        x = nn.Embed(c.vocab_size, c.d_model, name="token")(tokens)
        x = x + nn.Embed(c.context_length, c.d_model, name="position")(jnp.arange(tokens.shape[1]))
        for index in range(c.n_layers):
            x = LinenAttention(c.n_heads, name=f"attention_{index}")(x)
            x = LinenMlp(c.d_ff, name=f"mlp_{index}")(x)
        x = nn.RMSNorm(epsilon=NORM_EPSILON, name="norm")(x)
        return nn.Dense(c.vocab_size, use_bias=False, name="unembed")(x)


def to_linen(params: Params) -> dict:
    """Return jaxcalc's parameters under Linen's names."""
    linen: dict = {
        "token": {"embedding": params["embed"]["token"]},
        "position": {"embedding": params["embed"]["position"]},
        "norm": {"scale": params["output"]["norm"]},
        "unembed": {"kernel": params["output"]["unembed"]},
    }
    for index, block in enumerate(params["blocks"]):
        for stage in ("attention", "mlp"):
            linen[f"{stage}_{index}"] = {
                name: {"scale" if name == "norm" else "kernel": leaf} for name, leaf in block[stage].items()
            }
    return {"params": linen}
