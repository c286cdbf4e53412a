"""The ledger: what each step, stage and example of a run did to the surprise at a question, in nats that add up.

Along a run the surprise L drops by Σₜ −∫₀¹ ⟨∇L(θₜ + sΔₜ), Δₜ⟩ ds: a row per step and, since ⟨,⟩ is a sum over the
weights, per stage and head. With wₜ = −∫₀¹ ∇L(θₜ + sΔₜ) ds, the row of step t is ⟨wₜ, Δₜ⟩.

The step Δₜ is made of gradients: Δₜ = Pₜ(pₜ Mₜ + qₜ gₜ) + decay, with the momentum Mₜ = β Mₜ₋₁ + α gₜ, where g is the
sum of the gradients of the batch's examples. The preconditioner Pₜ is held as it was: Adam's −rate / √ν, or the matrix
Q(X Xᵀ) of Muon's Newton-Schulz iteration, which turns X into Q X. So is the factor of clipping. The step is then linear
in the gradients, and example i of step u has the row ⟨dᵤ, gᵢ⟩ with one direction dᵤ for all its batch, which holds what
momentum carries from step u into later steps: a recursion from the last step to the first. A row is one entry of a
Jacobian-vector product, so no gradient of a single example is computed.

This is an account of what happened. It does not say what would have happened without an example: then the later
gradients, the preconditioners and the path itself would have been others.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcalc.batch import Batch, Lessons, LossOn, batch_at
from jaxcalc.losses import ApplyFn, answer_logits, example_cross_entropy
from jaxcalc.model import apply
from jaxcalc.numerics import quadrature
from jaxcalc.optimizers import (
    ADAM_BETAS,
    ADAM_EPSILON,
    DEFAULT_LEARNING_RATE,
    DEFAULT_WEIGHT_DECAY,
    MUON_ADAM_SHARE,
    MUON_BETA,
    SGD_MOMENTUM,
    OptimizerName,
    OwnOptimizer,
    schedule,
)
from jaxcalc.params import Axes, axes_of, tree_axes
from jaxcalc.reprs import outline
from jaxcalc.trees import named_leaves

N_POINTS = (3, 9, 27, 81)
"""Gradients along a step: the first number, and the next one where that leaves too large a remainder."""


class Moves(NamedTuple):
    """Some steps of a run, one after another, as they happened."""

    first: int
    """The number of steps before them."""
    params: Any
    """The parameters before each step and after the last: each leaf has one more axis, `[n + 1, …]`."""
    opt_state: Any
    """The optimizer's state, likewise."""
    grad_norm: jax.Array
    """The norm of each gradient before clipping, `[n]`."""

    __repr__ = outline


class StepRows(NamedTuple):
    """What one step did to the surprise at each of Q questions, in nats; positive is a drop."""

    step: int
    """The number of steps before it."""
    drop: np.ndarray
    """The drop that happened, `[Q]`."""
    leaves: dict[str, np.ndarray]
    """What each leaf adds, `[Q, …]`: of a leaf with heads a value for each of them, the other axes of length 1."""
    examples: np.ndarray
    """What each example of the step's batch brought, in this step and by its momentum in later ones, `[Q, B]`."""
    decay: np.ndarray
    """What weight decay brought, likewise, `[Q]`."""
    rounding: np.ndarray
    """What the optimizer's step and the linear one above differ by, `[Q]`."""
    before: np.ndarray
    """What the momentum that this step found brought, in this step and in later ones, `[Q]`."""

    __repr__ = outline


def rows(
    backwards: Iterable[Moves],
    task: Lessons,
    questions: Batch,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    batch_size: int,
    loss_on: LossOn = "answer",
    tolerance: float = 1e-4,
    apply_fn: ApplyFn = apply,
) -> Iterator[StepRows]:
    """Yield the rows of each step of a run, from the last step to the first.

    Summed over the steps, `leaves` is the drop up to the quadrature's error, and `leaves` equals `examples`, `decay`
    and `rounding` plus the `before` of the first step.

    Args:
      backwards: the run's steps, the last ones first.
      questions: whole sequences; the surprise is that at all tokens that count, −ln p(answer).
      tx: an optimizer of `make_optimizer`. For any other one the rows have leaves, and no examples.
      tolerance: in nats: how much of the drop of a step may be left over before more gradients are taken along it.
    """
    tail: Any = None
    sizes: dict[str, Any] = {"size": batch_size, "loss_on": loss_on, "apply_fn": apply_fn}
    for moves in backwards:
        for index in reversed(range(moves.grad_norm.shape[0])):
            drop, leaves, w = _along(moves, index, questions, tolerance, apply_fn)
            tail = jax.tree.map(jnp.zeros_like, w) if tail is None else tail
            zero = np.zeros(len(drop))
            parts: Any = (zero[:, None][:, :0], zero, zero, zero)
            if isinstance(tx, OwnOptimizer):
                tail, *parts = _allot(tx, moves, index, w, tail, task, seed, **sizes)
            wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (leaves, *parts))
            yield StepRows(moves.first + index, drop, *wide)


def _along(
    moves: Moves, index: int, questions: Batch, tolerance: float, apply_fn: ApplyFn
) -> tuple[np.ndarray, dict[str, jax.Array], Any]:
    """Return the drop of one step `[Q]`, what each leaf adds, and w, with as many points as the tolerance asks for."""
    drop, leaves, w = np.zeros(0), {}, None
    for n_points in N_POINTS:
        losses, leaves, w = _mean_gradients(moves.params, index, questions, n_points, apply_fn)
        before, after = np.asarray(losses, np.float64)
        drop = before - after
        added = np.sum([np.asarray(leaf, np.float64).reshape(len(drop), -1).sum(axis=1) for leaf in leaves.values()], 0)
        if (abs(drop - added) <= tolerance).all():
            break
    return drop, leaves, w


@functools.partial(jax.jit, static_argnames=("n_points", "apply_fn"))
def _mean_gradients(
    path: Any, index: int, questions: Batch, n_points: int, apply_fn: ApplyFn
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Return L before and after a step `[2, Q]`, −∫⟨∇L, Δ⟩ by leaf and head, and −∫∇L, each for every question."""
    before, after = (jax.tree.map(lambda leaf, at=at: leaf[at], path) for at in (index, index + 1))
    update = jax.tree.map(jnp.subtract, after, before)

    def surprise(params: Any, question: Batch) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], question)
        return example_cross_entropy(answer_logits(params, alone, apply_fn), alone)[0]

    def add(total: Any, point: jax.Array) -> tuple[Any, None]:
        here = jax.tree.map(lambda theta, delta: theta + point[0] * delta, before, update)
        grads = jax.vmap(jax.grad(surprise), (None, 0))(here, questions)
        return jax.tree.map(lambda total, grad: total - point[1] * grad, total, grads), None

    n_questions = questions.tokens.shape[0]
    nothing = jax.tree.map(lambda leaf: jnp.zeros((n_questions, *leaf.shape), leaf.dtype), before)
    points = jnp.asarray(quadrature(n_points), jax.tree.leaves(before)[0].dtype)
    w, _ = jax.lax.scan(add, nothing, points)
    deltas, leaves = named_leaves(update), {}
    for name, leaf in named_leaves(w).items():
        others = tuple(i + 1 for i, letter in enumerate(_letters(name, leaf.ndim - 1)) if letter != "H")
        leaves[name] = (leaf * deltas[name]).sum(axis=others, keepdims=True)
    ends = [jax.vmap(surprise, (None, 0))(params, questions) for params in (before, after)]
    return jnp.stack(ends), leaves, w


def _letters(name: str, n_axes: int) -> str:
    letters = axes_of(name).letters
    return letters if len(letters) == n_axes else "?" * n_axes


@functools.partial(jax.jit, static_argnames=("tx", "size", "loss_on", "apply_fn"))
def _allot(
    tx: OwnOptimizer,
    moves: Moves,
    index: int,
    w: Any,
    tail: Any,
    task: Lessons,
    seed: int,
    size: int,
    loss_on: LossOn,
    apply_fn: ApplyFn,
) -> tuple[Any, ...]:
    """Return what the momentum of this step's start is worth, a tree like w, and the rows of the step's parts.

    Args:
      tail: what the momentum of this step's end is worth in later steps, a tree like w.
    """
    step = jnp.asarray(moves.first + index, jnp.int32)  # as Optax counts, so that its rates round as they did
    optimizer = _held(tx)
    directions, tails, decay, moved = optimizer.transposed(moves, index, step, w, tail)
    batch = batch_at(task, seed, step, size, loss_on)
    params = jax.tree.map(lambda leaf: leaf[index], moves.params)

    def surprises(params: Any) -> jax.Array:
        return example_cross_entropy(answer_logits(params, batch, apply_fn), batch) / batch.mask.sum()

    examples = jax.vmap(lambda direction: jax.jvp(surprises, (params,), (direction,))[1])(directions)
    clip = jnp.minimum(1, (optimizer.clip_norm or jnp.inf) / moves.grad_norm[index])
    update = jax.tree.map(lambda leaf: leaf[index + 1] - leaf[index], moves.params)
    rounding = _dots(w, jax.tree.map(jnp.subtract, update, moved))
    return tails, clip * examples, decay, rounding, _dots(tails, _moments(moves, index, update))


def _dots(many: Any, one: Any) -> jax.Array:
    """Return ⟨wᵩ, x⟩ for each question, `[Q]`."""
    dots = jax.tree.map(lambda w, x: (w * x).reshape(w.shape[0], -1).sum(axis=1), many, one)
    return jnp.asarray(sum(jax.tree.leaves(dots)))


def _moments(moves: Moves, index: int | jax.Array, like: Any, names: tuple[str, ...] = ("mu", "trace")) -> Any:
    """Return one of an optimizer's moments before a step of `moves`, as a tree like the parameters."""
    found = {}
    for name, leaf in named_leaves(moves.opt_state).items():
        for moment in names:
            _, middle, rest = name.partition(f".{moment}.")
            if middle:
                found[rest] = leaf[index]
    leaves, structure = named_leaves(like), jax.tree.structure(like)
    return structure.unflatten([found.get(name, jnp.zeros((), leaf.dtype)) for name, leaf in leaves.items()])


class _Held(NamedTuple):
    """The step of an optimizer of `make_optimizer` as a linear map of gradients: its fields are those arguments."""

    name: OptimizerName
    n_steps: int | None
    learning_rate: float
    weight_decay: float
    clip_norm: float | None
    warmup_steps: int
    axes: Mapping[str, str]

    def transposed(
        self, moves: Moves, index: int | jax.Array, step: int | jax.Array, w: Any, tail: Any
    ) -> tuple[Any, Any, jax.Array, Any]:
        """Return the direction d of the examples, the new tail, the row of weight decay, and the step by this map."""
        params = jax.tree.map(lambda leaf: leaf[index], moves.params)
        old, new = _moments(moves, index, params), _moments(moves, index + 1, params)
        squares = _moments(moves, index + 1, params, ("nu",))
        each = [jax.tree.leaves(tree) for tree in (params, old, new, squares, w, tail)]
        axes = jax.tree.leaves(tree_axes(params, self.axes))
        columns = zip(*(self._leaf(step, *leaf) for leaf in zip(axes, *each, strict=True)), strict=True)
        directions, tails, decays, moved = map(list, columns)
        unflatten = jax.tree.structure(params).unflatten
        return unflatten(directions), unflatten(tails), jnp.asarray(sum(decays)), unflatten(moved)

    def _leaf(self, step: Any, axes: Axes, theta: Any, old: Any, new: Any, square: Any, w: Any, tail: Any) -> Any:
        is_muon = self.name == "muon" and axes.is_hidden_matrix
        beta = MUON_BETA if is_muon else SGD_MOMENTUM if self.name == "sgd" else ADAM_BETAS[0]
        alpha = 1.0 if self.name == "sgd" else 1 - beta
        n = step + 1
        of_momentum, of_gradient = 1.0, 0.0
        if self.name == "adamw":
            of_momentum = 1 / (1 - beta**n)
        elif self.name == "muon":  # Nesterov's momentum looks a step ahead
            of_momentum, of_gradient = beta / (1 - beta ** (n + 1)), (1 - beta) / (1 - beta**n)
        gradient = (new - beta * old) / alpha
        moved = of_momentum * new + of_gradient * gradient

        share = MUON_ADAM_SHARE if self.name == "muon" and not is_muon else 1.0
        rate = jnp.asarray(schedule(share * self.learning_rate, self.n_steps, self.warmup_steps)(step))
        if is_muon:
            precondition = _newton_schulz(moved, axes, -rate)
        else:
            root = 1.0 if self.name == "sgd" else jnp.sqrt(square / (1 - ADAM_BETAS[1] ** n)) + ADAM_EPSILON
            precondition = functools.partial(jnp.multiply, -rate / root)
        back = jax.vmap(precondition)(w)  # the map is symmetric
        of_new = of_momentum * back + tail
        direction = of_gradient * back + alpha * of_new

        decayed = self.weight_decay * theta if axes.is_hidden_matrix else jnp.zeros_like(theta)
        is_in_gradient = self.name == "sgd"  # and so in the momentum
        row = _dots([direction if is_in_gradient else -rate * w], [decayed])
        step_made = precondition(moved) - (0 if is_in_gradient else rate * decayed)
        return direction, beta * of_new, row, step_made


def _held(tx: OwnOptimizer) -> _Held:
    """Return the linear map of an optimizer, with its default numbers where it was made with none."""
    given = _Held(*tx.arguments)
    rate = DEFAULT_LEARNING_RATE[given.name] if given.learning_rate is None else given.learning_rate
    decay = DEFAULT_WEIGHT_DECAY[given.name] if given.weight_decay is None else given.weight_decay
    return given._replace(learning_rate=rate, weight_decay=decay)


def _newton_schulz(moved: jax.Array, axes: Axes, rate: jax.Array) -> Any:
    """Return Muon's step as a linear map of x: rate · Q x with Q = Q(X Xᵀ), for X the momentum `moved`."""
    n_inputs = math.prod(moved.shape[: len(axes.inputs)])
    matrix = moved.reshape(n_inputs, -1)
    is_tall = n_inputs > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    norm = jnp.linalg.norm(x) + 1e-8
    x, q = x / norm, jnp.eye(x.shape[0], dtype=x.dtype) / norm
    for _ in range(5):
        gram = x @ x.T
        factor = 3.4445 * jnp.eye(x.shape[0], dtype=x.dtype) - 4.775 * gram + 2.0315 * gram @ gram
        x, q = factor @ x, factor @ q
    q = rate * max(1, matrix.shape[1] / n_inputs) ** 0.5 * q

    def apply_map(y: jax.Array) -> jax.Array:
        flat = y.reshape(n_inputs, -1)
        return (flat @ q if is_tall else q @ flat).reshape(y.shape)

    return apply_map
