"""Blame before a step of learning, credit after it: which weights lower the loss, in nats that add up.

A step changes the weights by Δ. To first order the loss drops by −⟨g, Δ⟩, a sum over the weights. A weight's term is
its *blame*. The gradient changes along the step. With its mean along the step in place of g, the sum is the drop that
really happens, and a weight's term is its *credit* (loss change allocation, Lan et al. 2019).

Two other measures are common and are not here. Percentages of gradient norms: norms do not add (‖(3, 4)‖ is 5, not
7), so they depend on how weights are grouped, and they ignore how far the optimizer moves each weight. Gradient ×
weight: it is the drop, to first order, if the weight were set to zero, which is no step that learning takes.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcalc.backprop import Backward, collect
from jaxcalc.batch import Batch
from jaxcalc.errors import InputError, check_choice
from jaxcalc.losses import ApplyFn, answer_logits, check_mask, loss, token_cross_entropy
from jaxcalc.model import apply, attend, keys_values
from jaxcalc.numerics import quadrature
from jaxcalc.params import Params, axes_of
from jaxcalc.reprs import outline
from jaxcalc.steps import Step
from jaxcalc.trees import named_leaves

Level = Literal["part", "stage", "block", "head", "leaf", "weight"]
PARTS = {"embed": "embeddings", "attention": "attention", "mlp": "feed-forward"}  # by the last word of a stage's name

SMALLEST_TOTAL = 1e-4
"""In nats: shares of a smaller drop would say more about rounding than about learning."""


@dataclasses.dataclass(frozen=True)
class Account:
    """A drop in loss and the terms that add up to it."""

    nats: dict[str, float]
    """What each row adds to the drop; a negative row raises the loss."""
    splits_decay: bool = True
    """Whether weight decay, if there is any, has a row of its own: see `Step.splits_decay`."""

    @property
    def total(self) -> float:
        """The whole drop, in nats."""
        return sum(self.nats.values())

    @property
    def withheld(self) -> str | None:
        """Why there are no shares; None if there are."""
        if self.total >= SMALLEST_TOTAL:
            return None
        return f"the total, {self.total:.2g} nats, is below {SMALLEST_TOTAL} nats"

    @property
    def shares(self) -> dict[str, float] | None:
        """Each row as a share of the total; they sum to one. None if `withheld` gives a reason."""
        total = self.total
        return None if self.withheld else {name: nats / total for name, nats in self.nats.items()}

    def __repr__(self) -> str:
        rows = {**self.nats, "total": self.total}
        width, whole = max(map(len, rows)), self.total
        percents = {name: "" if self.withheld else f" {nats / whole:8.2%}" for name, nats in rows.items()}
        lines = [f"{name:{width}} {nats:10.3e} nats{percents[name]}" for name, nats in rows.items()]
        lines += [f"no percentages: {self.withheld}"] if self.withheld else []
        if not self.splits_decay:
            lines.append("weight decay is not split off: the step depends on the weights in another way as well")
        return "\n".join(lines)


def assign_blame(grads: Any, step: Step, level: Level = "stage") -> Account:
    """Return the predicted drop in loss, −⟨g, Δ⟩, and what each part of the network adds to it.

    The share of part s is ⟨g_s, Δ_s⟩ / ⟨g, Δ⟩; for plain SGD that is ‖g_s‖² / ‖g‖². Weight decay and clipping have
    rows of their own if the step has any and splits them off. Momentum of earlier gradients can make a row negative.
    Works on any pytree. Sums are in float64, so the total is the same at every level.

    Args:
      level: what a row is: a "part" ("embeddings", "attention", "feed-forward" or "output", over all blocks), a
        "stage" (named as in `backprop.stages`), a "block", a "head", a "leaf" or a "weight".

    Raises `InputError` for an unknown level and for a gradient or update that is not finite, naming the leaf.

    >>> weights, grads, tx = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([1.0, 2.0])}, optax.sgd(0.1)
    >>> from jaxcalc.steps import take_step
    >>> assign_blame(grads, take_step(tx, grads, tx.init(weights), weights), "weight").shares
    {'w[0]': 0.2, 'w[1]': 0.8}
    """
    check_choice("level", level, get_args(Level))
    nats: dict[str, float] = {}
    for name, terms in _terms(grads, step.from_gradient).items():
        for row, value in level_rows(name, terms, level):
            nats[row] = nats.get(row, 0.0) + value
    for row, part in (("weight decay", step.weight_decay), ("clipping", step.clipping)):
        if any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part)):
            nats[row] = sum(float(terms.sum()) for terms in _terms(grads, part).values())
    return Account(nats, bool(step.splits_decay))


def assign_credit(
    params: Any, step: Step, batch: Batch, level: Level = "stage", n_points: int = 32, apply_fn: ApplyFn = apply
) -> Account:
    """Return the drop in loss that the step really brings, and what each part of the network adds to it.

    The credit of part s is −∫₀¹ ⟨∇_s L(θ + tΔ), Δ_s⟩ dt (Lan et al. 2019): `assign_blame` with the `mean_gradient`
    along the step. The total is `actual_drop` up to the quadrature's error.

    Raises as `assign_blame` and `mean_gradient` do.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> batch, tx = jaxcalc.batch_at(task, 0, 0, 4), optax.sgd(0.3)
    >>> grads = jax.jit(jax.grad(loss))(params, batch)
    >>> step = jaxcalc.steps.take_step(tx, grads, tx.init(params), params)
    >>> abs(assign_credit(params, step, batch).total / actual_drop(params, step, batch) - 1) < 0.01
    True
    """
    return assign_blame(mean_gradient(params, step, batch, n_points, apply_fn), step, level)


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def mean_gradient(params: Any, step: Step, batch: Batch, n_points: int = 32, apply_fn: ApplyFn = apply) -> Any:
    """Return ∫₀¹ ∇L(θ + tΔ) dt, by Gauss-Legendre quadrature of `n_points` gradients: a tree like `params`.

    Raises `InputError` for `n_points` below 1 and for a batch whose mask is all zero.
    """
    check_mask(batch)
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    for t, share in quadrature(n_points):
        total = _add_gradient(total, params, step.update, batch, t, share, apply_fn)
    return total


@functools.partial(jax.jit, static_argnames="apply_fn")
def _add_gradient(
    total: Any, params: Any, update: Any, batch: Batch, t: float, weight: float, apply_fn: ApplyFn
) -> Any:
    """Return total + weight · ∇L(θ + tΔ)."""
    here = jax.tree.map(lambda theta, delta: theta + t * delta, params, update)
    return jax.tree.map(lambda total, grad: total + weight * grad, total, jax.grad(loss)(here, batch, apply_fn))


_jitted_loss = jax.jit(loss, static_argnames="apply_fn")


def actual_drop(params: Any, step: Step, batch: Batch, apply_fn: ApplyFn = apply) -> float:
    """Return L(θ) − L(θ + Δ), in nats. Raises as `jaxcalc.loss` does."""
    check_mask(batch)
    return float(_jitted_loss(params, batch, apply_fn)) - float(_jitted_loss(step.params, batch, apply_fn))


def token_grads(params: Params, walked: Iterable[Backward]) -> Params:
    """Return the gradient split by the position that used the weights: a tree like `params`, each leaf `[T, …]`.

    Every position uses the same weights, to ask and to offer its key and value. Entry t is the gradient through the
    uses at position t; the sum over T is the whole gradient, `backprop.collect(params, walked)`.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> batch, walk = jaxcalc.batch_at(task, 0, 0, 4), jaxcalc.backprop.walk
    >>> by_token = jax.jit(lambda params, batch: token_grads(params, walk(params, batch)))(params, batch)
    >>> by_token["output"]["unembed"].shape
    (8, 64, 35)
    """
    steps = [step for step in walked if step.name != "loss"]
    grads = [_uses_by_position(step, step.stage.select(params)) for step in steps]
    return jax.vmap(
        lambda grads: collect(params, [step._replace(grads=own) for step, own in zip(steps, grads, strict=True)])
    )(grads)


def _uses_by_position(step: Backward, own: Any) -> Any:
    """Return the gradients of one stage with a leading axis T: entry t is of the message at position t alone."""

    def by_position(vjp: Any, message: Any) -> Any:
        def grads_from(is_here: jax.Array) -> Any:  # [T]: 1 at one position
            here = jax.tree.map(lambda m: m * is_here.reshape(1, -1, *[1] * (m.ndim - 2)), message)
            return vjp(here)[0]

        return jax.vmap(grads_from)(jnp.eye(step.message_in.shape[1], dtype=step.message_in.dtype))

    if not step.name.endswith(" attention"):
        return by_position(jax.vjp(lambda own: step.stage.apply(own, step.input), own)[1], step.message_in)
    # Attention alone moves information between positions, by keys and values, so their messages are split too.
    offered, offering = jax.vjp(lambda own: keys_values(own, step.input), own)
    _, asking = jax.vjp(lambda own, offered: attend(own, step.input, *offered)[0], own, offered)
    as_asked = by_position(asking, step.message_in)
    as_offered = by_position(offering, asking(step.message_in)[1])
    return jax.tree.map(jnp.add, as_asked, as_offered)


def token_blame(grads_by_token: Any, step: Step) -> np.ndarray:
    """Return −⟨g_t, Δ⟩ for each position t, float64 `[T]` in nats: the predicted drop, split by position.

    Args:
      grads_by_token: the result of `token_grads`.
    """
    terms = _terms(grads_by_token, jax.tree.map(lambda leaf: np.asarray(leaf)[None], step.update))
    return np.sum([leaf.reshape(len(leaf), -1).sum(axis=1) for leaf in terms.values()], axis=0)


class ExampleBlame(NamedTuple):
    """What each example of a batch contributes to the gradient, and how far examples agree."""

    shares: np.ndarray
    """float64 `[N]`: ⟨g_i, g⟩ / (N ‖g‖²). They sum to one; a negative one pulls against the rest."""
    noise_scale: float | None
    """In examples: tr(Σ) / ‖G‖², the batch size at which noise and gradient are equally strong (the "simple" noise
    scale of McCandlish et al. 2018). None if the batch is too small or too noisy to tell."""

    __repr__ = outline


def example_blame(params: Any, batch: Batch, chunk: int = 64, apply_fn: ApplyFn = apply) -> ExampleBlame:
    """Return each example's share of the batch's gradient, and the gradient noise scale.

    The gradients g_i of single examples are scaled so that their mean is the gradient g. Unbiased estimates from N
    examples: tr(Σ) = (Σ ‖g_i‖² − N ‖g‖²) / (N − 1) and ‖G‖² = ‖g‖² − tr(Σ) / N.

    Args:
      chunk: how many g_i are computed at a time; memory holds that many copies of the parameters.

    Raises `InputError` for a batch whose mask is all zero, a chunk below 1, and a gradient that is zero or not finite.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> result = example_blame(params, jaxcalc.batch_at(task, 0, 0, 8))
    >>> result.shares.shape, round(float(result.shares.sum()), 4)
    ((8,), 1.0)
    """
    check_mask(batch)
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be at least 1")
    inner, squares, square = (np.asarray(x, np.float64) for x in _example_products(params, batch, chunk, apply_fn))
    if not 0 < square < np.inf:
        raise InputError(f"the squared norm of the gradient is {square}; shares need it finite and above 0")
    n = len(inner)
    trace = (squares.sum() - n * square) / (n - 1) if n > 1 else np.inf
    signal = square - trace / n
    return ExampleBlame(inner / (n * square), float(trace / signal) if signal > 0 else None)


@functools.partial(jax.jit, static_argnames=("chunk", "apply_fn"))
def _example_products(
    params: Any, batch: Batch, chunk: int, apply_fn: ApplyFn
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return ⟨g_i, g⟩ `[N]`, ‖g_i‖² `[N]` and ‖g‖²."""
    grads = jax.grad(loss)(params, batch, apply_fn)
    scale = batch.tokens.shape[0] / batch.mask.sum()

    def products(example: Batch) -> tuple[jax.Array, jax.Array]:
        alone = Batch(example.tokens[None], example.mask[None])
        own = jax.grad(lambda params: scale * token_cross_entropy(answer_logits(params, alone, apply_fn), alone).sum())
        own_grads = own(params)
        return jnp.asarray(optax.tree.vdot(own_grads, grads)), optax.tree.norm(own_grads, squared=True)

    inner, squares = jax.lax.map(products, batch, batch_size=chunk)
    return inner, squares, optax.tree.norm(grads, squared=True)


def _terms(grads: Any, update: Any) -> dict[str, np.ndarray]:
    """Return −g · Δ of every weight: float64 arrays under their leaves' names."""
    deltas, terms = named_leaves(update), {}
    for name, grad in named_leaves(grads).items():
        terms[name] = -np.asarray(grad, np.float64) * np.asarray(deltas[name], np.float64)
        if not np.isfinite(terms[name]).all():
            raise InputError(f"the gradient or the update of {name} is not finite, so there is no blame to assign")
    return terms


def level_rows(name: str, terms: np.ndarray, level: Level) -> Iterator[tuple[str, float]]:
    """Yield the rows that the terms of one leaf belong to, with their sums."""
    parent, _, last = name.rpartition(".")
    letters = axes_of(name).letters
    stage = re.sub(r"^blocks\.(\d+)", r"block \1", parent).replace(".", " ") or name
    if level == "weight":
        for index in np.ndindex(terms.shape):
            yield f"{name}[{','.join(map(str, index))}]", float(terms[index])
    elif level == "head" and "H" in letters:
        for head, own in enumerate(np.moveaxis(terms, letters.index("H"), 0)):
            yield f"{stage.removesuffix(' attention')} head {head}", float(own.sum())
    elif level == "head" and stage.endswith(" attention"):
        yield f"{stage} {last}", float(terms.sum())
    else:
        block = re.sub(r"^(block \d+) .*", r"\1", stage)
        part = PARTS.get(stage.rpartition(" ")[2], stage)
        yield {"leaf": name, "block": block, "part": part}.get(level, stage), float(terms.sum())
