"""One step of an optimizer, taken apart: what the gradient moves, what weight decay moves, what clipping changes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcalc.numerics import default_promotion
from jaxcalc.optimizers import OwnOptimizer, ValueFn, check_update, extra_arguments
from jaxcalc.reprs import outline
from jaxcalc.trees import dotted


class Step(NamedTuple):
    """One step of an optimizer: `update` = `from_gradient` + `weight_decay` + `clipping`.

    Every field but `opt_state` and `splits_decay` is a tree like the parameters.
    """

    update: Any
    """Δ, exactly what the optimizer adds to the parameters."""
    from_gradient: Any
    """What the optimizer would add without weight decay and clipping; includes the momentum of earlier gradients."""
    weight_decay: Any
    clipping: Any
    params: Any
    """The parameters after the step, θ + Δ."""
    opt_state: Any
    """The optimizer's state after the step."""
    splits_decay: bool | jax.Array = True
    """Whether the step depends on the weights by weight decay alone, or not at all. Else `weight_decay` is zero, and
    what there is of it stays in `from_gradient`."""

    __repr__ = outline


@functools.partial(jax.jit, static_argnames=("tx", "unclipped", "value_fn"))
@default_promotion()
def take_step(
    tx: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    unclipped: optax.GradientTransformation | None = None,
    value_fn: ValueFn | None = None,
) -> Step:
    """Return the step that an Optax optimizer would make, taken apart. Jitted; changes nothing.

    weight_decay = Δ(g, θ) − Δ(g, 0), where that is −c θ with one c ≥ 0 for each leaf, whatever θ is; an optimizer that
    keeps weights in its state or computes the loss at other weights depends on θ in another way, and is left whole.
    clipping = Δ with clipping − Δ without.

    Args:
      tx: any optimizer; `opt_state` is its state.
      unclipped: the same optimizer without clipping, if `tx` clips. Its state must have the same structure:
        `make_optimizer` without `clip_norm` puts `optax.identity()` in the place of the clipping.
      value_fn: the loss, for an optimizer that asks for it; another function compiles another program.

    Raises `InputError` as `optimizers.extra_arguments` does.

    >>> step = take_step(optax.sgd(0.01), jnp.array(0.1), optax.sgd(0.01).init(jnp.array(0.5)), jnp.array(0.5))
    >>> round(float(step.params), 6)
    0.499
    """
    plain_tx, is_own = unclipped or tx, isinstance(unclipped or tx, OwnOptimizer)
    extra = {} if is_own else extra_arguments(plain_tx, grads, opt_state, params, value_fn)

    def move(params: Any) -> tuple[Any, Any]:
        update, state = plain_tx.update(grads, opt_state, params, **extra)
        check_update(update, grads)
        return update, state

    subtract = functools.partial(jax.tree.map, jnp.subtract)
    splits_decay = jnp.array(is_own)
    if any(map(callable, extra.values())):  # the optimizer computes the loss, which depends on the weights
        plain, state = move(params)
        undecayed = plain
    else:
        with_and_without = jax.tree.map(lambda leaf: jnp.stack([leaf, jnp.zeros_like(leaf)]), params)
        updates, states = jax.vmap(move)(with_and_without)
        plain, state = jax.tree.map(lambda leaf: leaf[0], (updates, states))
        undecayed = jax.tree.map(lambda leaf: leaf[1], updates)
        if not is_own:
            splits_decay = _only_decays(plain_tx.init, lambda params: move(params)[0], params, plain, undecayed)
            undecayed = jax.tree.map(functools.partial(jnp.where, splits_decay), undecayed, plain)
    update = plain
    if unclipped is not None:
        update, state = tx.update(grads, opt_state, params, **extra)
    after = optax.apply_updates(params, update)
    parts = undecayed, subtract(plain, undecayed), subtract(update, plain)
    return Step(update, *parts, after, state, splits_decay)


def forget(opt_state: Any, grads: Any, beta: float, n_steps: int) -> Any:
    """Return an optimizer's state as if every earlier gradient had been this one, so that momentum turns nothing.

    "mu", a running mean, becomes (1 − βⁿ) g after n steps; "trace", a running sum, becomes 0. The rest stays.

    >>> tx, g = optax.sgd(0.1, momentum=0.9), jnp.array([1.0, -2.0])
    >>> forget(tx.update(g, tx.init(g))[1], g, beta=0.9, n_steps=1)[0].trace.tolist()
    [0.0, 0.0]
    """
    structure = jax.tree.structure(grads)

    def is_like_grads(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=is_masked) == structure

    def forgotten(path: Any, node: Any) -> Any:
        name = dotted(path).rpartition(".")[2]
        if name not in ("mu", "trace") or not is_like_grads(node):
            return node
        share = 1 - beta**n_steps if name == "mu" else 0
        return jax.tree.map(lambda held, g: held if is_masked(held) else share * g + 0, node, grads, is_leaf=is_masked)

    return jax.tree.map_with_path(forgotten, opt_state, is_leaf=is_like_grads)


def is_masked(node: Any) -> bool:
    """Return whether a node stands for a leaf of which this part of an optimizer knows nothing."""
    return isinstance(node, optax.MaskedNode)


def _only_decays(
    init: Callable[[Any], Any], move: Callable[[Any], Any], params: Any, plain: Any, undecayed: Any
) -> jax.Array:
    """Return whether Δ(θ) = Δ(0) − c θ with one c ≥ 0 per leaf, a bool scalar. Δ(θ) is `plain`, Δ(0) `undecayed`.

    It is if the slope of Δ along ±1 is ∓c at θ, at −θ and at other weights, and Δ does not jump in between. Where the
    optimizer's first state holds the weights themselves, Δ may depend on how far they are from there, as in
    schedule-free learning: that is no decay.
    """
    leaves, structure = jax.tree.flatten(params)
    chosen = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]

    def moved_and_held(own: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        here = dict(enumerate(leaves)) | dict(zip(chosen, own, strict=True))
        tree = structure.unflatten(here.values())
        moved, held = jax.tree.leaves(move(tree)), jax.tree.leaves(init(tree))
        return [moved[i] for i in chosen], [leaf for leaf in held if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def signs(leaf: jax.Array, number: int) -> jax.Array:
        """Return ±1 for each entry of a leaf, another pattern for each number."""
        angles = number * jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape)
        return jnp.where(jnp.cos(angles) > 0, 1, -1).astype(leaf.dtype)

    thetas = [leaves[i] for i in chosen]
    points = [jnp.stack([leaf, -leaf, (1 + abs(leaf)).astype(leaf.dtype) * signs(leaf, 4)]) for leaf in thetas]
    along = [jnp.stack([signs(leaf, number) for number in (1, 2, 3)]) for leaf in thetas]
    slopes, held = jax.vmap(lambda own, along: jax.jvp(moved_and_held, (own,), (along,))[1])(points, along)

    answers = [(leaf == 0).all() for leaf in held]
    whole, without = ([jax.tree.leaves(tree)[i] for i in chosen] for tree in (plain, undecayed))
    for theta, sign, slope, here, zero in zip(thetas, along, slopes, whole, without, strict=True):
        rates, tolerance = -slope * sign, float(jnp.finfo(theta.dtype).eps) ** 0.5
        rate = rates.real.max()
        jump, size = abs(here - zero + rate * theta).max(), (abs(here) + abs(zero) + abs(rate * theta)).max()
        answers += [rate >= 0, (abs(rates - rate) <= tolerance * rate).all(), jump <= tolerance * size]
    return jnp.stack([jnp.array(True), *answers]).all()
