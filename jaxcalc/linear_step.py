"""The step of an optimizer as a linear map of gradients, held at the preconditioner with which it was taken.

Δ = P(p M + q g) + decay, with the momentum M = β M_before + α g of the clipped gradient g. The preconditioner P is
Adam's −rate / √ν, or Muon's Q(X Xᵀ): its Newton-Schulz iteration is an odd polynomial, so it turns X into Q X.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
from jaxcalc.params import Axes, tree_axes
from jaxcalc.trees import named_leaves


def dots(many: Any, one: Any) -> jax.Array:
    """Return ⟨wᵩ, x⟩ for each question, `[Q]`."""
    each = jax.tree.map(lambda w, x: w.reshape(len(w), -1) @ x.reshape(-1), many, one)
    return jnp.asarray(sum(jax.tree.leaves(each)))


def moment(opt_state: Any, like: Any, names: tuple[str, ...] = ("mu", "trace")) -> Any:
    """Return the moment of an optimizer's state that has one of these names, as a tree like the parameters.

    A leaf without that moment has 0.
    """
    found = {}
    for path, leaf in named_leaves(opt_state).items():
        for name in names:
            _, middle, rest = path.partition(f".{name}.")
            if middle:
                found[rest] = leaf
    leaves, structure = named_leaves(like), jax.tree.structure(like)
    return structure.unflatten([found.get(name, jnp.zeros((), leaf.dtype)) for name, leaf in leaves.items()])


class LinearStep(NamedTuple):
    """The step of an optimizer of `make_optimizer` as a linear map of gradients: its fields are those arguments."""

    name: OptimizerName
    n_steps: int | None
    learning_rate: float
    weight_decay: float
    clip_norm: float | None
    warmup_steps: int
    axes: Mapping[str, str]

    def transposed(
        self, step: jax.Array, params: Any, before: Any, after: Any, w: Any, tail: Any
    ) -> tuple[Any, Any, jax.Array, Any]:
        """Return the direction d of the examples, the new tail, the row of weight decay, and the step by this map.

        Args:
          step: the number of steps before this one.
          params: the parameters that the step found.
          before: the optimizer's state that it found.
          after: the one that it left.
          w: of each question what a move is worth, a tree like the parameters with one more axis in front.
          tail: what the momentum after the step is worth, likewise; the new tail is that of the momentum before it.
        """
        old, new, squares = moment(before, params), moment(after, params), moment(after, params, ("nu",))
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
        row = dots([direction if is_in_gradient else -rate * w], [decayed])
        step_made = precondition(moved) - (0 if is_in_gradient else rate * decayed)
        return direction, beta * of_new, row, step_made


def linear_step(tx: OwnOptimizer) -> LinearStep:
    """Return the linear map of an optimizer, with its default numbers where it was made with none."""
    given = LinearStep(*tx.arguments)
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
