"""What a model uses: its activations are changed on the way, and the logits show what that costs.

A *site* is an activation of `jaxcalc.trace` under its dotted name, such as "blocks.0.attention.mixed". A head is
ablated, a site is patched with the activation of another prompt, or a direction is added to the residual stream.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError, shown
from jaxcalc.model import Activations, trace
from jaxcalc.params import Params
from jaxcalc.tasks.table import Calculator
from jaxcalc.trees import named_leaves

Edit = Callable[[jax.Array], jax.Array]
"""(an activation) → what replaces it."""


def intervene(params: Params, tokens: jax.Array, edits: Mapping[str, Edit]) -> tuple[jax.Array, Activations]:
    """Return the logits `[B, T, V]` and activations of `trace` when some activations are replaced on the way.

    Args:
      tokens: int `[B, T]`.
      edits: for each site, a function of its activation (computed after the edits of earlier sites).

    Raises `InputError` for a site that is no activation, and as `trace` does.

    >>> import jaxcalc
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35))
    >>> silence = {"blocks.0.attention.mixed": lambda mixed_BTHK: mixed_BTHK.at[:, :, 2].set(0)}  # ablates a head
    >>> logits, _ = intervene(params, jnp.zeros((1, 8), int), silence)
    """
    logits, activations = trace(params, tokens)
    sites = list(_in_order(activations))
    for name in edits:
        if name not in sites:
            raise InputError(f"{name!r:.60} is no activation; there are {', '.join(sites)}")
    taps: dict[str, jax.Array] = {}
    for name in filter(edits.__contains__, sites):
        value = named_leaves(activations)[name]
        taps[name] = edits[name](value) - value
        logits, activations = trace(params, tokens, _nested(taps, len(params["blocks"])))
    return logits, activations


def _in_order(activations: Activations) -> dict[str, Any]:
    """Return the activations by name, in the order in which the network computes them."""
    order = ("key", "value", "query", "pattern", "mixed", "hidden", "out", "residual")
    parts = [("embed", activations["embed"])]
    for index, block in enumerate(activations["blocks"]):
        parts += [(f"blocks.{index}.{part}", block[part]) for part in ("attention", "mlp")]
    parts.append(("output", activations["output"]))
    return {f"{part}.{name}": values[name] for part, values in parts for name in (*order, "normed") if name in values}


def _nested(taps: Mapping[str, jax.Array], n_layers: int) -> Activations:
    tree: Activations = {"embed": {}, "blocks": [{"attention": {}, "mlp": {}} for _ in range(n_layers)], "output": {}}
    for name, value in taps.items():
        *path, last = name.split(".")
        node: Any = tree
        for key in path:
            node = node[int(key) if key.isdigit() else key]
        node[last] = value
    return tree


@functools.partial(jax.jit, static_argnames=("block", "mean"))
def ablate_head(params: Params, tokens: jax.Array, block: int, head: int | jax.Array, mean: bool = False) -> jax.Array:
    """Return the logits `[B, T, V]` when 0 replaces what one head mixes. Jitted; `head` counts from 0.

    With `mean`, the mean over these rows at the same position replaces it; that keeps what the head tells every
    question alike.
    """

    def edit(mixed_BTHK: jax.Array) -> jax.Array:
        instead = mixed_BTHK.mean(axis=0, keepdims=True) if mean else 0.0
        chosen_H1 = (jnp.arange(mixed_BTHK.shape[2]) == head)[:, None]
        return jnp.where(chosen_H1, instead, mixed_BTHK)

    return intervene(params, tokens, {f"blocks.{block}.attention.mixed": edit})[0]


@functools.partial(jax.jit, static_argnames="site")
def patch(params: Params, tokens: jax.Array, other_tokens: jax.Array, site: str, where: jax.Array) -> jax.Array:
    """Return the logits `[B, T, V]` when a site is taken from other tokens `[B, T]` wherever `where` `[B, T]` is true.

    Jitted; the site's first axes must be [B, T].
    """
    other = named_leaves(trace(params, other_tokens)[1])[site]

    def edit(value: jax.Array) -> jax.Array:
        return jnp.where(where.reshape(*where.shape, *[1] * (value.ndim - 2)), other, value)

    return intervene(params, tokens, {site: edit})[0]


@functools.partial(jax.jit, static_argnames="site")
def steer(params: Params, tokens: jax.Array, direction: jax.Array, site: str, where: jax.Array) -> jax.Array:
    """Return the logits `[B, T, V]` when a direction `[D]` is added to a residual site where `where` `[B, T]` is true.

    Jitted.
    """
    added_BTD = jnp.where(where[..., None], direction[None, None], 0)
    return intervene(params, tokens, {site: lambda x_BTD: x_BTD + added_BTD})[0]


def twins(task: Calculator, operation: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows "a operation b" and the rows "a other b", `[M]` each, of all pairs whose answers differ.

    Raises `InputError` if the task lacks one of the operations.
    """
    for name in (operation, other):
        if name not in task.tokenizer.operations:
            raise InputError(f"the task has no operation {shown(name)}; it has {', '.join(task.tokenizer.operations)}")
    problems = np.asarray(task.problems)
    here, there = {}, {}
    for name, found in ((operation, here), (other, there)):
        for row in np.flatnonzero(problems[:, 1] == task.tokenizer.operations.index(name)):
            a, _, b, answer = problems[row].tolist()
            found[a, b] = (row, answer)
    pairs = [(row, there[ab][0]) for ab, (row, answer) in here.items() if ab in there and there[ab][1] != answer]
    rows, other_rows = np.array(pairs, int).reshape(-1, 2).T
    return rows, other_rows
