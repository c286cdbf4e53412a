"""Optimizers by name, and the learning rate of each step."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxcalc.errors import InputError, check_choice
from jaxcalc.params import AXES, Axes, tree_axes
from jaxcalc.trees import dotted, is_concrete

ValueFn = Callable[[Any], jax.Array]
"""The loss as a function of the parameters alone: a scalar."""

OptimizerName = Literal["muon", "adamw", "sgd"]

DEFAULT_LEARNING_RATE: dict[OptimizerName, float] = {"muon": 4e-2, "adamw": 3e-3, "sgd": 0.1}
DEFAULT_WEIGHT_DECAY: dict[OptimizerName, float] = {"muon": 0.25, "adamw": 6.4, "sgd": 0.0}
ADAM_BETAS = (0.9, 0.99)
"""The decay rates of Adam's two moments, in "adamw" and for the leaves that "muon" leaves to Adam."""
ADAM_EPSILON = 1e-8
MUON_ADAM_SHARE = 0.25
"""The leaves that "muon" leaves to Adam learn at this share of the rate."""
MUON_BETA, SGD_MOMENTUM = 0.95, 0.9


class OwnOptimizer(optax.GradientTransformationExtraArgs):
    """An optimizer of `make_optimizer`: it asks for no loss, and its step depends on the weights by decay alone.

    It pickles as the call that made it, since the functions of Optax do not.
    """

    arguments: tuple[Any, ...] = ()
    """Those of the call."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (make_optimizer, self.arguments) if self.arguments else super().__reduce_ex__(protocol)


def schedule(peak: float | jax.Array, n_steps: int | None, warmup_steps: int = 50) -> optax.Schedule:
    """Return the learning rate of steps 0, 1, …: linear warm-up to `peak`, then cosine decay to 1 % of it.

    Step s of W warm-up steps learns at peak · (s + 1) / (W + 1), so that the first step moves the weights too.
    With `n_steps` None the rate is constant.

    >>> rate = schedule(1.0, n_steps=100, warmup_steps=9)
    >>> [round(float(rate(step)), 2) for step in (0, 1, 9, 100)]
    [0.1, 0.2, 1.0, 0.01]
    """
    if n_steps is None:
        return optax.constant_schedule(peak)
    # Not optax.warmup_cosine_decay_schedule, which refuses the traced peak of a population's member.
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
    axes: Mapping[str, str] = AXES,
) -> optax.GradientTransformation:
    """Return an optimizer by name, with the learning rates of `schedule`.

    - "muon": Muon (Jordan et al. 2024) for the hidden matrices; Adam with Nesterov momentum for all other leaves, at a
      quarter of the rate;
    - "adamw": Adam with decoupled weight decay (Loshchilov and Hutter 2019);
    - "sgd": gradient descent with momentum 0.9.

    Weight decay is multiplied by the learning rate and applies to the hidden matrices only. With `clip_norm`, a
    gradient of a larger norm is first scaled down to it. The optimizer's state is a pair: the clipping's state and
    the named optimizer's.

    Equal arguments give the same object, which JAX compiles once. A program is new for another argument here, and for
    another optimizer, `apply_fn`, shape, number of steps or `step_fn` in training; another seed compiles nothing. An
    Optax optimizer is another one each time it is made: make it once and share it. So is one of arrays: give numbers.

    Args:
      n_steps: steps of the schedule; None for a constant rate.
      axes: the table of axes that says which leaves are hidden matrices; another model brings its own. For a tree of
        which it names no leaf, they are all leaves of two axes, but those with "embed" in their path.

    Raises `InputError` for an unknown name, and for a number that is out of range.

    >>> make_optimizer("adamw", 100) is make_optimizer("adamw", 100)
    True
    """
    table = tuple(axes.items())
    arguments: tuple[Any, ...] = (name, n_steps, learning_rate, weight_decay, clip_norm, warmup_steps, table)
    is_hashable = all(type(argument).__hash__ for argument in arguments)  # arrays and tracers are not
    return (_same_optimizer if is_hashable else _new_optimizer)(*arguments)


def _new_optimizer(
    name: OptimizerName,
    n_steps: int | None,
    learning_rate: float | jax.Array | None,
    weight_decay: float | jax.Array | None,
    clip_norm: float | None,
    warmup_steps: int,
    table: tuple[tuple[str, str], ...],
) -> optax.GradientTransformation:
    check_choice("optimizer", name, get_args(OptimizerName))
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

    axes = dict(table)

    def is_decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.is_hidden_matrix, _known_axes(params, axes))

    rate = schedule(peak, n_steps, warmup_steps)
    b1, b2 = ADAM_BETAS
    if name == "muon":
        shaped = optax.stateless(lambda updates, _: jax.tree.map(_for_shape, updates, _known_axes(updates, axes)))
        decayed = (optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate))
        matrices = optax.chain(_orthogonalize(axes), shaped, *decayed)
        rest = optax.adamw(
            schedule(MUON_ADAM_SHARE * peak, n_steps, warmup_steps), b1, b2, ADAM_EPSILON, weight_decay=0, nesterov=True
        )

        def labels(params: Any) -> Any:
            return jax.tree.map(lambda is_matrix: "muon" if is_matrix else "adam", is_decayed(params))

        named = optax.partition({"muon": matrices, "adam": rest}, labels)
    elif name == "adamw":
        named = optax.adamw(rate, b1, b2, ADAM_EPSILON, weight_decay=decay, mask=is_decayed)
    else:
        named = optax.chain(optax.add_decayed_weights(decay, mask=is_decayed), optax.sgd(rate, momentum=SGD_MOMENTUM))
    clipping = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    own = OwnOptimizer(*optax.with_extra_args_support(optax.chain(clipping, named)))
    own.arguments = (name, n_steps, learning_rate, weight_decay, clip_norm, warmup_steps, axes)
    return own


_same_optimizer = functools.lru_cache(maxsize=None, typed=True)(_new_optimizer)


def _known_axes(tree: Any, table: Mapping[str, str]) -> Any:
    """Return the `Axes` of every leaf: the table's, or, where it names no leaf, those of plain layers."""
    known = tree_axes(tree, table)
    if any(axes.letters for axes in jax.tree.leaves(known)):
        return known

    def guess(path: Any, leaf: Any) -> Axes:
        is_matrix = len(leaf.shape) == 2 and "embed" not in dotted(path).lower()
        return Axes("D", "F") if is_matrix else Axes("", "")

    return jax.tree.map_with_path(guess, tree)


def _orthogonalize(table: Mapping[str, str]) -> optax.GradientTransformation:
    """Return Optax's `scale_by_muon`, which takes all matrices of the same axes and shape as one stack.

    Its state is the momentum of each leaf, as without the stacks.
    """

    def as_matrices(stacks: Any) -> Any:
        return {name: MuonDimensionNumbers(reduction_axis=1, output_axis=2) for name in stacks}

    by_stack: Any = scale_by_muon(beta=MUON_BETA, weight_dimension_numbers=as_matrices)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(updates)
        groups: dict[str, list[int]] = {}
        known = jax.tree.leaves(_known_axes(updates, table))
        for index, (leaf, axes) in enumerate(zip(leaves, known, strict=True)):
            groups.setdefault(f"{axes} {leaf.shape}", []).append(index)

        def stack(tree: Any) -> dict[str, jax.Array]:
            matrices = [
                leaf.reshape(math.prod(leaf.shape[: len(axes.inputs)]), -1)
                for leaf, axes in zip(jax.tree.leaves(tree), known, strict=True)
            ]
            return {name: jnp.stack([matrices[i] for i in group]) for name, group in groups.items()}

        def unstack(stacks: dict[str, jax.Array]) -> Any:
            matrices = {
                i: matrix for name, group in groups.items() for i, matrix in zip(group, stacks[name], strict=True)
            }
            return structure.unflatten([matrices[i].reshape(leaf.shape) for i, leaf in enumerate(leaves)])

        stacks, new = by_stack.update(stack(updates), state._replace(mu=stack(state.mu)), params)
        return unstack(stacks), new._replace(mu=unstack(new.mu))

    return optax.GradientTransformation(by_stack.init, update)


def _for_shape(update: jax.Array, axes: Axes) -> jax.Array:
    """Return an orthogonal matrix times √max(1, outputs / inputs), so that its step is of one size for any shape."""
    n_inputs = math.prod(update.shape[: len(axes.inputs)])
    return update * max(1, update.size / n_inputs**2) ** 0.5


def with_loss(
    tx: optax.GradientTransformation, value_fn: ValueFn, value: jax.Array | None = None
) -> optax.GradientTransformation:
    """Return an optimizer that makes the step of `tx`, with the loss for a `tx` that asks for it.

    Args:
      value: `value_fn(params)`, where it is known already.

    Its update raises `InputError` as `extra_arguments` does.

    >>> params, half_square = jax.numpy.array([3.0, 4.0]), lambda params: (params**2).sum() / 2
    >>> tx = with_loss(optax.polyak_sgd(), half_square)
    >>> tx.update(jax.grad(half_square)(params), tx.init(params), params)[0].tolist()
    [-1.5, -2.0]
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        try:  # without a trial, which would trace most optimizers twice
            update, state_after = tx.update(updates, state, params)
        except Exception:
            extra: dict[str, Any] = extra_arguments(tx, updates, state, params, value_fn, value)
            update, state_after = tx.update(updates, state, params, **extra)
        check_update(update, updates)
        return update, state_after

    return optax.GradientTransformation(tx.init, update)


def extra_arguments(
    tx: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    value_fn: ValueFn | None = None,
    value: jax.Array | None = None,
) -> dict[str, Any]:
    """Return the fewest of Optax's extra arguments with which `tx` makes a step; none for most optimizers.

    There are `grad` and, with a `value_fn`, `value`, `value_fn`, `obj_fn` (the same under Sophia's name) and `grad_fn`.
    No optimizer says which ones it takes, and some refuse those that they do not know, so each choice is tried on
    shapes alone, smallest first.

    Raises `InputError` if `tx` fails with all of them; it quotes what `tx` says.

    >>> params = jax.numpy.ones(2)
    >>> tx = optax.lbfgs()
    >>> list(extra_arguments(tx, params, tx.init(params), params, lambda params: (params**2).sum()))
    ['value', 'grad', 'value_fn']
    """
    given: dict[str, Any] = {"grad": grads}
    if value_fn is not None:
        loss, grad_fn = _accepting_all(value_fn), _accepting_all(jax.grad(value_fn))
        value = value_fn(params) if value is None else value
        given = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss, "grad_fn": grad_fn}
    failures: list[Exception] = []
    for names in (names for size in range(len(given) + 1) for names in itertools.combinations(given, size)):
        extra = {name: given[name] for name in names}
        try:
            jax.eval_shape(functools.partial(tx.update, **extra), grads, opt_state, params)
        except InputError:
            raise
        except Exception as error:
            failures.append(error)
        else:
            return extra
    says = dict.fromkeys(str(error).partition("\n")[0][:200] for error in (failures[0], failures[-1]))
    remedy = "" if value_fn else "; give value_fn, the loss as a function of the parameters, for an optimizer that asks"
    raise InputError(
        f"the optimizer makes no step with any of the arguments that it can be given here, {', '.join(given)}; "
        f"it says: {'; '.join(says)}{remedy}"
    ) from failures[-1]


def check_update(update: Any, grads: Any) -> None:
    """Raise `InputError` naming the first leaf of an update that is not of its gradient's shape."""
    for (path, leaf), grad in zip(jax.tree.leaves_with_path(update), jax.tree.leaves(grads), strict=True):
        if leaf.shape != grad.shape:
            raise InputError(
                f"the optimizer makes an update of shape {leaf.shape} of a gradient of shape {grad.shape}, "
                f"{dotted(path)}; if it asks for the gradient of each example, as dpsgd does, write the step yourself"
            )


def _accepting_all(fn: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function of the parameters that takes what optimizers add: SAM a number, a line search its arguments."""
    return lambda params, number=None, obj_fn=None, grad_fn=None: fn(params)
