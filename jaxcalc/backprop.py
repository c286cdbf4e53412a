"""Backpropagation made visible: the chain rule, one stage at a time, by explicit `jax.vjp`.

The network is a list of stages. Each is a pure function of its own parameters and of the output of the stage before:

    tokens → embed → block 0 attention → block 0 mlp → … → output → loss

The forward walk keeps each stage's vector-Jacobian product. The backward walk starts with ∂L/∂L = 1. Each stage turns
the message that arrives at its output, ∂L/∂output, into the gradient of its own parameters and the message for the
stage before it, ∂L/∂input. The walk ends at the embeddings: the tokenizer has no weights, and token ids are whole
numbers, which have no derivative.
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
from jaxcalc.reprs import outline
from jaxcalc.trees import is_concrete, named_leaves


class Stage(NamedTuple):
    """One step of the forward pass."""

    name: str
    """Such as "block 0 attention"."""
    select: Callable[[Any], Any]
    """(all parameters) → the stage's own. Linear, so that its transpose puts gradients back in place."""
    apply: Callable[[Any, Any], Any]
    """(its own parameters, its input) → its output."""

    __repr__ = outline


class Forward(NamedTuple):
    """What the forward walk keeps of one stage."""

    stage: Stage
    input: Any
    output: Any
    vjp: Callable[[Any], tuple[Any, ...]]
    """(message at the output) → (gradients, message at the input); the first stage returns gradients alone."""

    __repr__ = outline


class Backward(NamedTuple):
    """What the backward walk finds at one stage."""

    name: str
    input: Any
    """Token ids `[B, T]`, the residual stream `[B, T, D]`, or logits `[B, T, V]`."""
    output: Any
    """The residual stream, logits, or the loss."""
    message_in: Any
    """∂L/∂output, the message that arrives: an array like `output`."""
    message_out: Any
    """∂L/∂input, the message that leaves: an array like `input`; None at the embeddings."""
    grads: Any
    """∂L/∂parameters of this stage: a tree like them, empty for the loss."""
    stage: Stage

    __repr__ = outline


def stages(params: Params, batch: Batch) -> list[Stage]:
    """Return the network of `params` as a list of stages; the last is the loss on `batch`.

    For a variant of the network, replace a stage in the list.

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
    """Walk forward through the stages from tokens, int `[B, T]`; yield each with its vector-Jacobian product."""
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
    """Walk back from the loss; yield what arrives at each stage, its gradients, and what leaves.

    For a stage with output y = s(p, x): grads = (∂y/∂p)ᵀ message_in, message_out = (∂y/∂x)ᵀ message_in.
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
    finite.

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
    network = stages(params, batch) if network is None else network
    check_finite(params)
    yield from backward(forward(params, batch.tokens[:, :-1], network))


def check_finite(params: Any) -> None:
    """Raise `InputError` naming the first parameter that is not finite. Tracers are not checked."""
    for name, leaf in named_leaves(params).items():
        if is_concrete(leaf) and not np.isfinite(leaf).all():
            where = np.argwhere(~np.isfinite(leaf))[0].tolist()
            raise InputError(f"the parameter {name}{where} is {np.asarray(leaf)[tuple(where)]}; all must be finite")


def collect(params: Params, walked: Iterable[Backward]) -> Params:
    """Return the whole gradient, a tree like `params`: the sum of the gradients of the stages.

    If two stages share a weight (a tied unembedding, say), its gradients add up.

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


def message_strengths(walked: Iterable[Backward]) -> dict[str, np.ndarray]:
    """Return ‖∂L/∂output‖ of each stage at each position, over all examples: stage → `[T]`, in the order of the walk.

    Norms do not add up, neither over stages nor over positions, so they have no percentages.
    """
    return {
        step.name: np.linalg.norm(np.moveaxis(np.asarray(step.message_in, np.float64), 1, 0).reshape(t, -1), axis=1)
        for step in walked
        if np.ndim(step.message_in) and (t := step.message_in.shape[1])
    }


class NonFinite(NamedTuple):
    """Where in a step a number that is not finite first appears."""

    stage: str
    """Such as "block 0 mlp", or "batch"."""
    what: str
    """The stage's "parameter", its "output", its "gradient", or the "message" that it hands back."""
    leaf: str | None
    """The dotted path of the parameter or of the gradient's parameter; "mask" for the batch; else None."""

    def __str__(self) -> str:
        return f"{self.stage}, {self.what}" + f" {self.leaf}" * (self.leaf is not None)


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def first_nonfinite(params: Params, batch: Batch, network: list[Stage] | None = None) -> NonFinite | None:
    """Return where the first number that is not finite appears, on the way forward and then on the way back.

    A gradient whose squares sum to more than float32 holds counts too, since its norm is infinite. Returns None if all
    numbers are finite; then the update was not. Raises as `jaxcalc.apply` does.

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
