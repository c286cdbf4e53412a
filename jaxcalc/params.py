"""The parameters: a plain pytree, the axes of every leaf, and the check that a tree has them."""

from typing import TypedDict

import jax

from jaxcalc.errors import InputError
from jaxcalc.trees import named_leaves


class EmbedParams(TypedDict):
    """Embeddings: token `[V, D]` and position `[C, D]`."""

    token: jax.Array
    position: jax.Array


class AttentionParams(TypedDict):
    """One block's attention: norm `[D]`; query, key and value `[D, H, K]`; out `[H, K, D]`."""

    norm: jax.Array
    query: jax.Array
    key: jax.Array
    value: jax.Array
    out: jax.Array


class MlpParams(TypedDict):
    """One block's feed-forward layers: norm `[D]`, up `[D, F]`, down `[F, D]`."""

    norm: jax.Array
    up: jax.Array
    down: jax.Array


class BlockParams(TypedDict):
    """One block."""

    attention: AttentionParams
    mlp: MlpParams


class OutputParams(TypedDict):
    """The output: norm `[D]` and unembed `[D, V]`."""

    norm: jax.Array
    unembed: jax.Array


class Params(TypedDict):
    """All parameters of the model, a plain pytree of dicts, one list and float32 arrays."""

    embed: EmbedParams
    blocks: list[BlockParams]
    output: OutputParams


# The axes of every leaf. H, K and F may differ from block to block, so that a head can be sliced off.
_EMBED_AXES = {"token": "VD", "position": "CD"}
_BLOCK_AXES = {
    "attention": {"norm": "D", "query": "DHK", "key": "DHK", "value": "DHK", "out": "HKD"},
    "mlp": {"norm": "D", "up": "DF", "down": "FD"},
}
_OUTPUT_AXES = {"norm": "D", "unembed": "DV"}

HEAD_AXIS = {name: letters.index("H") for name, letters in _BLOCK_AXES["attention"].items() if "H" in letters}
"""Which axis of an attention leaf counts the heads."""


def check_params(params: Params) -> None:
    """Raise `InputError` naming the first leaf that is missing, extra or ill-shaped.

    Works on arrays, tracers and shape structs alike and reads no values.
    """
    blocks = params.get("blocks") if isinstance(params, dict) else None
    if not isinstance(blocks, list) or not blocks:
        raise InputError("params['blocks'] is missing or not a list of at least one block; see jaxcalc.init")
    axes = named_leaves({"embed": _EMBED_AXES, "blocks": [_BLOCK_AXES] * len(blocks), "output": _OUTPUT_AXES})
    leaves = named_leaves(params)
    for name in axes:
        if name not in leaves:
            raise InputError(f"the parameters have no leaf {name!r}")
    sizes: dict[str, int] = {}
    for name in leaves:
        if name not in axes:
            raise InputError(f"the parameters have an extra leaf {name!r}")
    for name, letters in axes.items():
        shape = getattr(leaves[name], "shape", None)
        if shape is None:
            raise InputError(f"{name} is {leaves[name]!r:.60}; expected an array of axes {list(letters)}")
        if len(shape) != len(letters):
            raise InputError(f"{name} has shape {shape}; expected axes {list(letters)}")
        if name.endswith((".query", ".up")):
            sizes = {letter: size for letter, size in sizes.items() if letter not in "HKF"}
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise InputError(
                    f"{name} has shape {shape}, axes {list(letters)}; {letter} is {sizes[letter]} elsewhere"
                )
