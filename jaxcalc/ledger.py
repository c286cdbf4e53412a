"""The ledger: what each step, stage and example of a run did to the surprise at a question, in nats that add up.

Along a run the surprise L drops by Σₜ −∫₀¹ ⟨∇L(θₜ + sΔₜ), Δₜ⟩ ds: a row per step and, since ⟨,⟩ is a sum over the
weights, per stage and head. With wₜ = −∫₀¹ ∇L(θₜ + sΔₜ) ds, the row of step t is ⟨wₜ, Δₜ⟩.

The step Δₜ is made of gradients: Δₜ = Pₜ(pₜ Mₜ + qₜ gₜ) + decay, with the momentum Mₜ = β Mₜ₋₁ + α gₜ, where g is the
sum of the gradients of the batch's examples. The preconditioner Pₜ is held as it was: Adam's −rate / √ν, or the matrix
Q(X Xᵀ) of Muon's Newton-Schulz iteration, which turns X into Q X. So is the factor of clipping. The step is then linear
in the gradients, and example i of step u has the row ⟨dᵤ, gᵢ⟩ with one direction dᵤ for all its batch, which holds what
momentum carries from step u into later steps: a recursion from the last step to the first. A row is one entry of a
Jacobian-vector product, so of a few questions no gradient of a single example is computed.

This is an account of what happened. It does not say what would have happened without an example: then the later
gradients, the preconditioners and the path itself would have been others.
"""

import functools
import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcalc.batch import Batch, Lessons, LossOn, batch_at
from jaxcalc.linear_step import dots, linear_step, moment
from jaxcalc.losses import ApplyFn, answer_logits, example_cross_entropy
from jaxcalc.model import apply
from jaxcalc.numerics import quadrature
from jaxcalc.optimizers import OwnOptimizer
from jaxcalc.params import axes_of
from jaxcalc.reprs import outline
from jaxcalc.trees import named_leaves

N_POINTS = (3, 9, 27, 81, 243)
"""Gradients along a step: the first number, and the next one where that leaves too large a remainder."""
N_TOGETHER = 8
"""The most questions that share their number of gradients along a step."""
FEW = 4
"""Up to so many directions, Jacobian-vector products are cheaper than the gradients of all examples."""
N_EXAMPLES = 32
"""How many examples have their gradients in memory at a time."""


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


class Rows(NamedTuple):
    """What each of n steps did to the surprise at each of Q questions, in nats; positive is a drop."""

    first: int
    """The number of steps before them."""
    drop: np.ndarray
    """The drop that happened, `[n, Q]`."""
    leaves: dict[str, np.ndarray]
    """What each leaf adds, `[n, Q, …]`: of a leaf with heads a value for each of them, the other axes of length 1."""
    examples: np.ndarray
    """What each example of a step's batch brought, in this step and by its momentum in later ones, `[n, Q, B]`."""
    decay: np.ndarray
    """What weight decay brought, likewise, `[n, Q]`."""
    rounding: np.ndarray
    """What the optimizer's step and the linear one above differ by, `[n, Q]`."""
    before: np.ndarray
    """What the momentum that each step found brought, in this step and in later ones, `[n, Q]`."""

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
    tolerance: float | np.ndarray = 1e-3,
    apply_fn: ApplyFn = apply,
) -> Iterator[Rows]:
    """Yield the rows of the steps of a run, the last steps first.

    Summed over the steps, `leaves` is the drop up to the quadrature's error, and `leaves` equals `examples`, `decay`
    and `rounding` plus the `before` of the first step.

    Args:
      backwards: the run's steps, the last ones first.
      questions: whole sequences; the surprise is that at all tokens that count, −ln p(answer).
      tx: an optimizer of `make_optimizer`. For any other one the rows have leaves, and no examples.
      tolerance: in nats, of each question or of all: the standard error of the quadrature in each step. More gradients
        are taken where it is larger.

    >>> from jaxcalc.batch import batch_of
    >>> from jaxcalc import ModelConfig, calculator, create_state, init, make_optimizer, train_step
    >>> task, tx = calculator(max_number=9), make_optimizer("adamw", n_steps=None)
    >>> state = create_state(init(0, ModelConfig(task.vocab_size, 8, 2, 16, 1, task.context_length)), tx)
    >>> after, metrics = train_step(state, batch_at(task, seed=0, step=0, size=16))
    >>> path = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, after)
    >>> moves = Moves(0, path.params, path.opt_state, metrics["grad_norm"][None])
    >>> (found,) = rows([moves], task, batch_of(task, task.tokens[:1]), tx, seed=0, batch_size=16)
    >>> bool(abs(found.examples.sum() + found.decay.sum() - found.drop.sum()) < 1e-3)
    True
    """
    n_questions = len(questions.tokens)
    groups = [slice(at, at + N_TOGETHER) for at in range(0, n_questions, N_TOGETHER)]
    asked = [jax.tree.map(operator.itemgetter(group), questions) for group in groups]
    tolerances = [np.broadcast_to(tolerance, n_questions)[group] for group in groups]
    levels = [0] * len(groups)
    sizes: dict[str, Any] = {"size": batch_size, "loss_on": loss_on, "apply_fn": apply_fn}
    tail: Any = None
    for moves in backwards:
        losses, leaves, w = zip(*_along(moves.params, asked, tolerances, levels, apply_fn), strict=True)
        losses, leaves = (
            jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *part) for part in (losses, leaves)
        )
        nothing = np.zeros((len(losses) - 1, n_questions))
        parts: Any = (nothing[..., None][..., :0], nothing, nothing, nothing)
        if isinstance(tx, OwnOptimizer):
            zeros = functools.partial(jax.tree.map, lambda leaf: jnp.zeros((n_questions, *leaf.shape[1:]), leaf.dtype))
            tail, parts = _allot(tx, moves, w, zeros(moves.params) if tail is None else tail, task, seed, **sizes)
        losses, *rest = jax.tree.map(lambda x: np.asarray(x, np.float64), (losses, leaves, *parts))
        yield Rows(moves.first, losses[:-1] - losses[1:], *rest)


def _along(
    path: Any, asked: list[Batch], tolerances: list[np.ndarray], levels: list[int], apply_fn: ApplyFn
) -> list[tuple[jax.Array, dict[str, jax.Array], Any]]:
    """Return for each group of questions what `_mean_gradients` does, with as many points as its tolerance asks for.

    Args:
      levels: the places in `N_POINTS` to begin with. They are changed to those for the steps before.
    """
    devices = jax.local_devices()[: len(asked)]  # which work at the same time
    paths = [jax.device_put(path, device) for device in devices]
    found: dict[int, Any] = {}
    errors: dict[int, float] = {}
    todo = [*range(len(asked))]
    while todo:
        for index in todo:
            device, n_points = index % len(devices), N_POINTS[levels[index]]
            questions = jax.device_put(asked[index], devices[device])
            found[index] = _mean_gradients(paths[device], questions, _points(n_points), n_points, apply_fn)
        errors |= {index: _error(*found[index][:2], tolerances[index]) for index in todo}
        todo = [index for index in todo if errors[index] > 1 and levels[index] < len(N_POINTS) - 1]
        for index in todo:
            levels[index] += 1
    for index, error in errors.items():
        if error < 1 / 3:  # and so below 1 with a third of the points
            levels[index] = max(levels[index] - 1, 0)
    return jax.device_put([found[index] for index in range(len(asked))], devices[0])


@functools.cache
def _points(n: int) -> np.ndarray:
    """Return the points of `quadrature`, and zeros after them, so that one program takes any number of them."""
    return np.pad(quadrature(n), ((0, N_POINTS[-1] - n), (0, 0)))


def _error(losses: jax.Array, leaves: dict[str, jax.Array], tolerance: np.ndarray) -> float:
    """Return the largest standard error of the quadrature in a step, by the tolerance of the question."""
    drops = -np.diff(np.asarray(losses, np.float64), axis=0)
    added = sum(np.asarray(leaf, np.float64).reshape(*drops.shape, -1).sum(axis=2) for leaf in leaves.values())
    return float((np.sqrt(((drops - added) ** 2).mean(axis=0)) / tolerance).max())


@functools.partial(jax.jit, static_argnames="apply_fn")
def _mean_gradients(
    path: Any, questions: Batch, points: jax.Array, n_points: int, apply_fn: ApplyFn
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Return L at each place of a path, and for each step −∫⟨∇L, Δ⟩ by leaf and head, and w."""

    def surprise(params: Any, question: Batch) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], question)
        return example_cross_entropy(answer_logits(params, alone, apply_fn), alone)[0]

    def along(index: jax.Array) -> tuple[dict[str, jax.Array], Any]:
        before, after = (jax.tree.map(operator.itemgetter(at), path) for at in (index, index + 1))
        update = jax.tree.map(jnp.subtract, after, before)

        def add(point: jax.Array, total: Any) -> Any:
            at, weight = points[point].astype(jnp.result_type(*jax.tree.leaves(path)))
            here = jax.tree.map(lambda theta, delta: theta + at * delta, before, update)
            grads = jax.vmap(jax.grad(surprise), (None, 0))(here, questions)
            return jax.tree.map(lambda total, grad: total - weight * grad, total, grads)

        nothing = jax.tree.map(lambda leaf: jnp.zeros((len(questions.tokens), *leaf.shape), leaf.dtype), before)
        w = jax.lax.fori_loop(0, n_points, add, nothing)
        deltas, leaves = named_leaves(update), {}
        for name, leaf in named_leaves(w).items():
            others = tuple(i + 1 for i, letter in enumerate(_letters(name, leaf.ndim - 1)) if letter != "H")
            leaves[name] = (leaf * deltas[name]).sum(axis=others, keepdims=True)
        return leaves, w

    losses = jax.lax.map(lambda params: jax.vmap(surprise, (None, 0))(params, questions), path)
    return losses, *jax.lax.map(along, jnp.arange(len(losses) - 1))


def _letters(name: str, n_axes: int) -> str:
    letters = axes_of(name).letters
    return letters if len(letters) == n_axes else "?" * n_axes


@functools.partial(jax.jit, static_argnames=("tx", "size", "loss_on", "apply_fn"))
def _allot(
    tx: OwnOptimizer,
    moves: Moves,
    w: tuple[Any, ...],
    tail: Any,
    task: Lessons,
    seed: int,
    size: int,
    loss_on: LossOn,
    apply_fn: ApplyFn,
) -> tuple[Any, tuple[jax.Array, ...]]:
    """Return what the momentum of the first step's start is worth, a tree like w of a step, and the rows of the parts.

    Args:
      w: a tree for each group of questions.
      tail: what the momentum of the last step's end is worth in later steps.
    """
    optimizer = linear_step(tx)

    def back(tail: Any, each: tuple[jax.Array, Any]) -> tuple[Any, tuple[jax.Array, ...]]:
        index, groups = each
        w = jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups)
        step = jnp.asarray(moves.first + index, jnp.int32)  # as Optax counts, so that its rates round as they did
        states = moves.params, moves.opt_state
        (params, before), (after, opt_state) = (
            jax.tree.map(operator.itemgetter(at), states) for at in (index, index + 1)
        )
        directions, tails, decay, moved = optimizer.transposed(step, params, before, opt_state, w, tail)
        batch = batch_at(task, seed, step, size, loss_on)
        examples = _example_drops(params, batch, directions, apply_fn)
        clip = jnp.minimum(1, (optimizer.clip_norm or jnp.inf) / moves.grad_norm[index])
        update = jax.tree.map(jnp.subtract, after, params)
        rounding = dots(w, jax.tree.map(jnp.subtract, update, moved))
        return tails, (clip * examples, decay, rounding, dots(tails, moment(before, params)))

    return jax.lax.scan(back, tail, (jnp.arange(moves.grad_norm.shape[0]), w), reverse=True)


def _example_drops(params: Any, batch: Batch, directions: Any, apply_fn: ApplyFn) -> jax.Array:
    """Return ⟨d, gᵢ⟩ for each direction and each example's share of the batch's gradient, `[Q, B]`."""
    n_counted, n_examples = batch.mask.sum(), len(batch.tokens)

    def losses(params: Any, batch: Batch) -> jax.Array:
        return example_cross_entropy(answer_logits(params, batch, apply_fn), batch) / n_counted

    if len(jax.tree.leaves(directions)[0]) <= FEW:
        along = jax.vmap(lambda direction: jax.jvp(lambda params: losses(params, batch), (params,), (direction,))[1])
        return along(directions)

    def products(example: Batch) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], example)
        return dots(directions, jax.grad(lambda params: losses(params, alone)[0])(params))

    return jax.lax.map(products, batch, batch_size=min(N_EXAMPLES, n_examples)).T
