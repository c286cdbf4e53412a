"""Optimizers by name, and the learning rate of each step."""

from typing import Any, Literal, get_args

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxcalc.errors import InputError
from jaxcalc.trees import is_concrete

OptimizerName = Literal["muon", "adamw", "sgd"]

# How Muon reads each block weight as one matrix, from inputs to outputs.
_MATRIX_AXES = {
    "query": MuonDimensionNumbers(reduction_axis=0, output_axis=(1, 2)),
    "key": MuonDimensionNumbers(reduction_axis=0, output_axis=(1, 2)),
    "value": MuonDimensionNumbers(reduction_axis=0, output_axis=(1, 2)),
    "out": MuonDimensionNumbers(reduction_axis=(0, 1), output_axis=2),
    "up": MuonDimensionNumbers(reduction_axis=0, output_axis=1),
    "down": MuonDimensionNumbers(reduction_axis=0, output_axis=1),
}


def _matrix_axes(params: Any) -> Any:
    """Return a tree like `params`: how Muon reads a block matrix, None for every other leaf."""
    return jax.tree.map_with_path(lambda path, _: _MATRIX_AXES.get(getattr(path[-1], "key", "")), params)


def _is_block_matrix(params: Any) -> Any:
    """Return a tree like `params`: True for the matrices inside the blocks."""
    return jax.tree.map_with_path(lambda path, _: getattr(path[-1], "key", "") in _MATRIX_AXES, params)


DEFAULT_LEARNING_RATE: dict[OptimizerName, float] = {"muon": 4e-2, "adamw": 3e-3, "sgd": 0.1}
DEFAULT_WEIGHT_DECAY: dict[OptimizerName, float] = {"muon": 0.25, "adamw": 6.4, "sgd": 0.0}
ADAM_BETAS = (0.9, 0.99)
"""The decay rates of both Adam moments, in "adamw" and for what "muon" leaves to Adam."""
MUON_ADAM_SHARE = 0.25
"""What "muon" leaves to Adam learns at this share of the rate."""


def schedule(peak: float | jax.Array, n_steps: int | None, warmup_steps: int = 50) -> optax.Schedule:
    """Return the learning rate of steps 0, 1, …: linear warm-up to `peak`, then cosine decay to 1 % of it.

    Step s of W warm-up steps learns at peak · (s + 1) / (W + 1), so the first step moves already.
    The rate is constant where `n_steps` is None.

    >>> rate = schedule(1.0, n_steps=100, warmup_steps=9)
    >>> [round(float(rate(step)), 2) for step in (0, 1, 9, 100)]
    [0.1, 0.2, 1.0, 0.01]
    """
    if n_steps is None:
        return optax.constant_schedule(peak)
    warmup = min(warmup_steps, n_steps // 2)
    rising = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    falling = optax.cosine_decay_schedule(peak, n_steps - warmup, alpha=0.01)
    return optax.join_schedules([rising, falling], [warmup])


def make_optimizer(
    name: OptimizerName,
    n_steps: int | None,
    learning_rate: float | jax.Array | None = None,
    weight_decay: float | jax.Array | None = None,
    clip_norm: float | None = None,
    warmup_steps: int = 50,
) -> optax.GradientTransformation:
    """Return an optimizer by name, at the rates of `schedule`.

    - "muon": Muon (Jordan et al. 2024) on the block matrices, Adam with Nesterov momentum on the rest, at a
      quarter of the rate;
    - "adamw": Adam with decoupled weight decay (Loshchilov and Hutter 2019);
    - "sgd": plain gradient descent with momentum 0.9.

    Weight decay is multiplied by the learning rate and applies to the block matrices only. With `clip_norm`,
    gradients of a larger norm are scaled down to it first. The state is the pair (of the clipping, of the rest).

    Raises `InputError` for an unknown name or a number that is out of range.
    """
    if name not in get_args(OptimizerName):
        raise InputError(f"optimizer is {name!r}; it must be one of {', '.join(map(repr, get_args(OptimizerName)))}")
    peak = DEFAULT_LEARNING_RATE[name] if learning_rate is None else learning_rate
    decay = DEFAULT_WEIGHT_DECAY[name] if weight_decay is None else weight_decay
    if n_steps is not None and n_steps < 1:
        raise InputError(f"n_steps is {n_steps}; it must be at least 1")
    if is_concrete((peak, decay)) and not (0 < peak < float("inf") and 0 <= decay < float("inf")):
        raise InputError(
            f"learning_rate is {peak}, weight_decay is {decay}; they must be finite, above 0 and at least 0"
        )
    if clip_norm is not None and not 0 < clip_norm < float("inf"):
        raise InputError(f"clip_norm is {clip_norm}; it must be finite and above 0")

    rate = schedule(peak, n_steps, warmup_steps)
    b1, b2 = ADAM_BETAS
    if name == "muon":
        rest = muon(
            rate,
            beta=0.95,
            weight_decay=decay,
            adam_b1=b1,
            adam_b2=b2,
            adam_learning_rate=schedule(MUON_ADAM_SHARE * peak, n_steps, warmup_steps),
            muon_weight_dimension_numbers=_matrix_axes,
        )
    elif name == "adamw":
        rest = optax.adamw(rate, b1, b2, weight_decay=decay, mask=_is_block_matrix)
    else:
        rest = optax.chain(optax.add_decayed_weights(decay, mask=_is_block_matrix), optax.sgd(rate, momentum=0.9))
    return optax.chain(optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm), rest)
