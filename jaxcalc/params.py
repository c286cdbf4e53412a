"""The parameters: a plain pytree, one table of the axes of its leaves, and the checks that follow from the table."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError, shown
from jaxcalc.trees import dotted, is_concrete, named_leaves


class EmbedParams(TypedDict):
    """The embeddings: a row per token and a row per position."""

    token: jax.Array
    position: jax.Array


class AttentionParams(TypedDict):
    """One block's attention."""

    norm: jax.Array
    query: jax.Array
    key: jax.Array
    value: jax.Array
    out: jax.Array


class MlpParams(TypedDict):
    """One block's feed-forward layers."""

    norm: jax.Array
    up: jax.Array
    down: jax.Array


class BlockParams(TypedDict):
    """One block."""

    attention: AttentionParams
    mlp: MlpParams


class OutputParams(TypedDict):
    """The output: the last norm, and the matrix that makes logits."""

    norm: jax.Array
    unembed: jax.Array


class Params(TypedDict):
    """All parameters of the model: a plain pytree of dicts, one list and float32 arrays, whose axes `AXES` lists."""

    embed: EmbedParams
    blocks: list[BlockParams]
    output: OutputParams


AXES: Mapping[str, str] = {
    "embed.token": "V->D",
    "embed.position": "C->D",
    "attention.norm": "D",
    "attention.query": "D->HK",
    "attention.key": "D->HK",
    "attention.value": "D->HK",
    "attention.out": "HK->D",
    "mlp.norm": "D",
    "mlp.up": "D->F",
    "mlp.down": "F->D",
    "output.norm": "D",
    "output.unembed": "D->V",
}
"""The axes of every leaf, inputs -> outputs, under the end of its dotted path. `jaxcalc.model` explains the letters.

The parameter checks, Muon's matrices, weight decay, the sharding rules, the axis of the heads and filter
normalisation all follow from this table.
"""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of one leaf, a letter each: a matrix maps `inputs` to `outputs`, a vector has outputs only."""

    inputs: str
    outputs: str

    @property
    def letters(self) -> str:
        """All axes, in the order of the array's shape."""
        return self.inputs + self.outputs

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The indices of the inputs in the array's shape."""
        return tuple(range(len(self.inputs)))

    @property
    def output_axes(self) -> tuple[int, ...]:
        """The indices of the outputs in the array's shape."""
        return tuple(range(len(self.inputs), len(self.letters)))

    @property
    def filter_axes(self) -> tuple[int, ...]:
        """The axes of one filter: the inputs that one output sums; of an embedding, which sums nothing, the row."""
        return self.output_axes if self.inputs in ("V", "C") else self.input_axes

    @property
    def is_hidden_matrix(self) -> bool:
        """Whether this is a matrix from activations to activations, with no axis of tokens or positions."""
        return bool(self.inputs) and not set(self.letters) & set("VC")

    def __str__(self) -> str:
        return f"{self.inputs}->{self.outputs}" if self.inputs else self.outputs


def axes_of(name: str, table: Mapping[str, str] = AXES) -> Axes:
    """Return the axes of a leaf by its dotted path: those of the first entry of the table that the path ends in.

    An optimizer's moments end in the paths of their parameters, so they have the same axes. A leaf that the table
    does not name has no axes.

    >>> axes_of("0.mu.blocks.1.attention.query")
    Axes(inputs='D', outputs='HK')
    >>> axes_of("0.count")
    Axes(inputs='', outputs='')
    """
    arrow = next((arrow for end, arrow in table.items() if f".{name}".endswith(f".{end}")), "")
    inputs, _, outputs = arrow.rpartition("->")
    return Axes(inputs, outputs)


def tree_axes(tree: Any, table: Mapping[str, str] = AXES) -> Any:
    """Return a tree like `tree` that holds the `Axes` of every leaf.

    >>> tree_axes({"attention": {"out": 0.0}})
    {'attention': {'out': Axes(inputs='HK', outputs='D')}}
    """
    return jax.tree.map_with_path(lambda path, _: axes_of(dotted(path), table), tree)


HEAD_AXIS = {name.removeprefix("attention."): axes_of(name).letters.index("H") for name in AXES if "H" in AXES[name]}
"""Which axis of an attention leaf counts the heads."""


def check_params(params: Params) -> None:
    """Raise `InputError` naming the first leaf that is missing, extra or ill-shaped.

    Works on arrays, tracers and shape structs alike and reads no values.
    """
    blocks = params.get("blocks") if isinstance(params, dict) else None
    if not isinstance(blocks, list) or not blocks:
        raise InputError(
            "params['blocks'] is missing or not a list of at least one block, as in jaxcalc.init; "
            "another model can be used where its apply_fn can be given, and nowhere else"
        )
    expected, leaves = _expected_axes(len(blocks)), named_leaves(params)
    for name in expected:
        if name not in leaves:
            raise InputError(f"the parameters have no leaf {name!r}")
    for name in leaves:
        if name not in expected:
            raise InputError(f"the parameters have an extra leaf {name!r}")
    sizes: dict[str, int] = {}
    for name, axes in expected.items():
        shape = getattr(leaves[name], "shape", None)
        if shape is None:
            raise InputError(f"{name} is {shown(leaves[name])}; expected an array of axes {axes}")
        if len(shape) != len(axes.letters):
            raise InputError(f"{name} has shape {shape}; expected axes {axes}")
        for letter, size in zip(axes.letters, shape, strict=True):
            # H, K and F belong to one block, so that a head can be sliced off.
            key = f"{name.rpartition('.')[0]} {letter}" if letter in "HKF" else letter
            if sizes.setdefault(key, size) != size:
                raise InputError(f"{name} has shape {shape}, axes {axes}; {letter} is {sizes[key]} elsewhere")


def check_leaves(params: Any) -> None:
    """Raise `InputError` naming the first leaf of any model's parameters that is no array, such as a function."""
    for name, leaf in named_leaves(params).items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise InputError(f"params.{name} is a {type(leaf).__name__}, not an array; {_KEEP_OUT}")


def check_differentiable(params: Any) -> None:
    """Raise `InputError` naming the first leaf that is no array of floating-point numbers, so has no gradient."""
    check_leaves(params)
    for name, leaf in named_leaves(params).items():
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise InputError(f"params.{name} is {dtype}{list(np.shape(leaf))}, which has no gradient; {_KEEP_OUT}")


_KEEP_OUT = (
    "keep it out of the parameters, as equinox.partition(model, equinox.is_inexact_array) does, "
    "or flax.nnx.split(model, flax.nnx.Param, ...)"
)


def check_integers(tokens: jax.Array) -> None:
    """Raise `InputError` for tokens that are not `[B, T]` integers."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens are {tokens.dtype}{list(tokens.shape)}; expected integers of shape [B, T]")


def check_tokens(params: Params, tokens: jax.Array) -> None:
    """Raise `InputError` for tokens that are not `[B, T]` integers, too long, or (concrete ones) out of vocabulary."""
    check_integers(tokens)
    context_length, vocab_size = params["embed"]["position"].shape[0], params["embed"]["token"].shape[0]
    if tokens.shape[1] > context_length:
        raise InputError(f"the sequence has {tokens.shape[1]} tokens; the context length is {context_length}")
    if is_concrete(tokens) and tokens.size:
        ids = np.asarray(tokens)
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"token id {wrong} is outside the vocabulary: ids go from 0 to {vocab_size - 1}")


@functools.cache
def _expected_axes(n_blocks: int) -> dict[str, Axes]:
    """Return the axes of every leaf of a model of `n_blocks` blocks, by its dotted path."""
    in_blocks = [end for end in AXES if end.partition(".")[0] in BlockParams.__required_keys__]
    names = [f"blocks.{index}.{end}" for index in range(n_blocks) for end in in_blocks]
    return {name: axes_of(name) for name in [*names, *(end for end in AXES if end not in in_blocks)]}
