"""One step of an optimizer, taken apart: what the gradient moves, what weight decay moves, what clipping changes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcalc.numerics import default_promotion


class Step(NamedTuple):
    """One step of an optimizer: `update` = `from_gradient` + `weight_decay` + `clipping`.

    Every field but `opt_state` is a tree like the parameters.
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


@functools.partial(jax.jit, static_argnames=("tx", "unclipped"))
@default_promotion()
def take_step(
    tx: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    unclipped: optax.GradientTransformation | None = None,
) -> Step:
    """Return the step that an Optax optimizer would make, taken apart. Jitted; changes nothing.

    weight_decay = Δ(g, θ) − Δ(g, 0), the part of the step that depends on the weights themselves;
    clipping = Δ with clipping − Δ without.

    Args:
      tx: any optimizer; `opt_state` is its state.
      unclipped: the same optimizer without clipping, if `tx` clips. Its state must have the same structure:
        `make_optimizer` without `clip_norm` puts `optax.identity()` in the place of the clipping.

    >>> step = take_step(optax.sgd(0.01), jnp.array(0.1), optax.sgd(0.01).init(jnp.array(0.5)), jnp.array(0.5))
    >>> round(float(step.params), 6)
    0.499
    """
    with_and_without = jax.tree.map(lambda leaf: jnp.stack([leaf, jnp.zeros_like(leaf)]), params)
    updates, states = jax.vmap(lambda params: (unclipped or tx).update(grads, opt_state, params))(with_and_without)
    plain, state = jax.tree.map(lambda leaf: leaf[0], (updates, states))
    undecayed = jax.tree.map(lambda leaf: leaf[1], updates)
    update = plain
    if unclipped is not None:
        update, state = tx.update(grads, opt_state, params)
    subtract = functools.partial(jax.tree.map, jnp.subtract)
    after = optax.apply_updates(params, update)
    return Step(update, undecayed, subtract(plain, undecayed), subtract(update, plain), after, state)
