"""Backpropagation seen: the chain rule, one stage at a time, by explicit `jax.vjp`.

The network is a list of stages, each a pure function of its own parameters and
of what the stage before it put out:

    tokens → embed → block 0 attention → block 0 mlp → … → output → loss

The forward walk keeps each stage's vector-Jacobian product. The backward walk
starts with ∂L/∂L = 1 and hands it back: a stage turns the message that arrives
at its output, ∂L/∂output, into the gradient of its own parameters and the message
for the stage before it, ∂L/∂input. (The tokenizer has no weights and its
output, whole numbers, has no derivative: the walk ends at the embeddings.)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc import model
from jaxcalc.batch import Batch
from jaxcalc.errors import InputError
from jaxcalc.losses import cross_entropy
from jaxcalc.params import Params
from jaxcalc.trees import is_concrete, named_leaves


class Stage(NamedTuple):
    """One step of the forward pass."""

    name: str
    """Such as "block 0 attention"."""
    select: Callable[[Any], Any]
    """(all parameters) → this stage's own. Linear, so that its transpose puts gradients back."""
    apply: Callable[[Any, Any], Any]
    """(its own parameters, its input) → its output."""


class Forward(NamedTuple):
    """What the forward walk keeps of a stage."""

    stage: Stage
    input: Any
    output: Any
    vjp: Callable[[Any], tuple[Any, ...]]
    """(message arriving) → (gradients, message leaving); without the latter for the first stage."""


class Backward(NamedTuple):
    """What the backward walk finds at a stage."""

    name: str
    input: Any
    """What the stage was given: token ids `[B, T]`, the residual stream `[B, T, D]`, or logits `[B, T, V]`."""
    output: Any
    """What it made of that: the residual stream, logits, or the loss."""
    message_in: Any
    """∂L/∂output, the message that arrives: an array like `output`."""
    message_out: Any
    """∂L/∂input, the message that leaves: like `input`; None at the embeddings, whose input is whole numbers."""
    grads: Any
    """∂L/∂parameters of this stage, a tree like them; an empty one for the loss."""
    stage: Stage


def stages(params: Params, batch: Batch) -> list[Stage]:
    """Return the network of `params` as a list of stages that ends in the loss on `batch`.

    A variant of the network is another list: replace an element, or what it selects.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> [stage.name for stage in stages(params, jaxcalc.batch_at(task, 0, 0, 4))][:3]
    ['embed', 'block 0 attention', 'block 0 mlp']
    """
    model.check_params(params)
    model.check_tokens(params, batch.tokens[:, :-1])

    def stage(name: str, function: Callable[..., tuple[jax.Array, Any]], select: Callable[[Any], Any]) -> Stage:
        return Stage(name, select, lambda own, x: function(own, x)[0])

    network = [stage("embed", model.embed, lambda params: params["embed"])]
    for index in range(len(params["blocks"])):
        for name, function in (("attention", model.attention), ("mlp", model.mlp)):
            network.append(stage(f"block {index} {name}", function, _block_part(index, name)))
    network.append(stage("output", model.output, lambda params: params["output"]))
    n_targets = batch.mask.shape[1]
    network.append(Stage("loss", lambda _: {}, lambda _, logits: cross_entropy(logits[:, -n_targets:], batch)))
    return network


def _block_part(index: int, name: str) -> Callable[[Any], Any]:
    return lambda params: params["blocks"][index][name]


def forward(params: Any, tokens: jax.Array, network: Iterable[Stage]) -> Iterator[Forward]:
    """Walk forward through the stages, yielding each with its vector-Jacobian product.

    Args:
      tokens: what the first stage is given, int `[B, T]`.
    """
    x: Any = tokens
    for index, stage in enumerate(network):
        own = stage.select(params)
        if index == 0:  # token ids have no derivative
            y, vjp = jax.vjp(lambda own, stage=stage, tokens=tokens: stage.apply(own, tokens), own)
        else:
            y, vjp = jax.vjp(stage.apply, own, x)
        yield Forward(stage, x, y, vjp)
        x = y


def backward(walked: Iterable[Forward]) -> Iterator[Backward]:
    """Walk back from the loss, yielding at each stage what arrives, what leaves and the gradients in between.

    Equations, for stage s with output y = s(p, x): grads = (∂y/∂p)ᵀ message_in, message_out = (∂y/∂x)ᵀ message_in.
    """
    done = list(walked)
    message = jnp.ones_like(done[-1].output)  # ∂L/∂L
    for step in reversed(done):
        grads, *rest = step.vjp(message)
        before = rest[0] if rest else None
        yield Backward(step.stage.name, step.input, step.output, message, before, grads, step.stage)
        message = before


def walk(params: Params, batch: Batch, network: list[Stage] | None = None) -> Iterator[Backward]:
    """Walk forward, then yield the stages backwards, the loss first and the embeddings last.

    Raises as `jaxcalc.apply` does, and `InputError` for a batch whose mask is all zero and for a parameter that is not
    finite, naming the first.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> for stage in walk(params, jaxcalc.batch_at(task, 0, 0, 4)):
    ...     print(stage.name, stage.message_in.shape)
    loss ()
    output (4, 8, 35)
    block 1 mlp (4, 8, 64)
    block 1 attention (4, 8, 64)
    block 0 mlp (4, 8, 64)
    block 0 attention (4, 8, 64)
    embed (4, 8, 64)
    """
    check_finite(params)
    network = stages(params, batch) if network is None else network
    yield from backward(forward(params, batch.tokens[:, :-1], network))


def check_finite(params: Any) -> None:
    """Raise `InputError` naming the first parameter that is not finite; of concrete arrays only."""
    for name, leaf in named_leaves(params).items():
        if is_concrete(leaf) and not np.isfinite(leaf).all():
            where = np.argwhere(~np.isfinite(leaf))[0].tolist()
            raise InputError(f"the parameter {name}{where} is {np.asarray(leaf)[tuple(where)]}; all must be finite")


def collect(params: Params, walked: Iterable[Backward]) -> Params:
    """Return the whole gradient, a tree like `params`: the sum of what each stage found for its own.

    Where two stages share a weight (a tied unembedding, say) their gradients add up.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> grads = collect(params, walk(params, jaxcalc.batch_at(task, 0, 0, 4)))
    >>> jax.tree.structure(grads) == jax.tree.structure(params)
    True
    """
    total = jax.tree.map(jnp.zeros_like, params)
    for step in walked:
        (share,) = jax.linear_transpose(step.stage.select, params)(step.grads)
        total = jax.tree.map(jnp.add, total, share)
    return total


class NonFinite(NamedTuple):
    """Where a number that is not finite first appears in a step."""

    stage: str
    """Such as "block 0 mlp", or "batch"."""
    what: str
    """Of that stage: its "parameter", its "output", its "gradient" or the "message" that it hands back."""
    leaf: str | None
    """The dotted path of the parameter, where it is a parameter or a gradient; "mask" for the batch."""

    def __str__(self) -> str:
        return f"{self.stage}, {self.what}" + f" {self.leaf}" * (self.leaf is not None)


def first_nonfinite(params: Params, batch: Batch, network: list[Stage] | None = None) -> NonFinite | None:
    """Return the first stage that makes a number that is not finite, on the way forward and then on the way back.

    A gradient whose squares add up to more than float32 holds counts as well, since its norm is infinite.
    None where all is finite: then it was the update that was not.

    Raises as `jaxcalc.apply` does.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> params["blocks"][1]["mlp"]["up"] = params["blocks"][1]["mlp"]["up"].at[3, 5].set(jnp.nan)
    >>> print(first_nonfinite(params, jaxcalc.batch_at(task, 0, 0, 4)))
    block 1 mlp, parameter blocks.1.mlp.up
    """
    if not _is_finite(batch.mask):
        return NonFinite("batch", "mask", "mask")
    network = stages(params, batch) if network is None else network
    paths = jax.tree.unflatten(jax.tree.structure(params), named_leaves(params))
    done = []
    for step in forward(params, batch.tokens[:, :-1], network):
        done.append(step)
        own = jax.tree.leaves(step.stage.select(params))
        for path, leaf in zip(jax.tree.leaves(step.stage.select(paths)), own, strict=True):
            if not _is_finite(leaf):
                return NonFinite(step.stage.name, "parameter", path)
        if not _is_finite(step.output):
            return NonFinite(step.stage.name, "output", None)
    for step in backward(done):
        for path, leaf in zip(jax.tree.leaves(step.stage.select(paths)), jax.tree.leaves(step.grads), strict=True):
            if not _is_finite(jnp.square(leaf).sum()):
                return NonFinite(step.name, "gradient", path)
        if step.message_out is not None and not _is_finite(step.message_out):
            return NonFinite(step.name, "message", None)
    return None


def _is_finite(array: Any) -> bool:
    return bool(jnp.isfinite(array).all())
