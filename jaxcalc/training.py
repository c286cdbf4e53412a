"""Training: the step, the scanned loop, and the optimizers by name."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from optax.contrib import MuonDimensionNumbers, muon

from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, answer_logits, cross_entropy, targets, token_cross_entropy
from jaxcalc.model import Params, apply
from jaxcalc.tasks import Batch, LossOn, Task, batch_at
from jaxcalc.trees import is_concrete

Metrics = dict[str, jax.Array]
OptimizerName = Literal["muon", "adamw", "sgd"]


class TrainState(train_state.TrainState):
    """Flax's own: step, params (any pytree), opt_state, and the static apply_fn and tx."""

    params: Any


def create_state(params: Params, tx: optax.GradientTransformation, apply_fn: ApplyFn = apply) -> TrainState:
    """Return the state of training at step 0.

    `apply_fn(params, tokens, last=n)` may be any model of `jaxcalc.apply`'s signature.
    """
    return TrainState.create(apply_fn=apply_fn, params=params, tx=tx).replace(step=jnp.zeros((), jnp.int32))


@jax.jit
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Return the state after one step of gradient descent, and the step's metrics. Jitted; keeps its input.

    The metrics are float32 scalars: "loss" in nats, "token_accuracy" (share of
    the tokens that count whose likeliest prediction is right), "grad_norm", and
    "update_ratio" (norm of the step over norm of the parameters).

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> state = create_state(init(jax.random.key(0), ModelConfig(vocab_size=35)), optax.adamw(1e-3))
    >>> state, metrics = train_step(state, batch_at(calculator(), seed=0, step=0, size=256))
    >>> int(state.step), abs(float(metrics["loss"]) - 3.56) < 0.1  # at first, as surprised as ln 35
    (1, True)
    """
    logits, backward = jax.vjp(lambda params: answer_logits(params, batch, state.apply_fn), state.params)  # forward
    loss, output_error = jax.value_and_grad(cross_entropy)(logits, batch)  # loss
    (grads,) = backward(output_error)  # backward
    new_state = state.apply_gradients(grads=grads)  # update
    return new_state, _metrics(state, new_state, batch, logits, loss, grads)


StepFn = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""A step of training, as `train_step`."""


@functools.cache  # so that the same number is the same function, and compiled once
def in_microbatches(n: int) -> StepFn:
    """Return a `train_step` that goes through the batch in `n` equal parts, one after another, and then updates once.

    The gradient of a sum is the sum of the gradients: each part's loss is the surprise of its tokens over the number
    of tokens that count in the whole batch, however they are spread over the parts. So step and metrics are those of
    `train_step` but for rounding, and the activations of only one part are held at a time.

    Raises `InputError` for n below 1 and, when it is called, for a batch that does not divide evenly, with what would.

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> state = create_state(init(jax.random.key(0), ModelConfig(vocab_size=35)), optax.adamw(1e-3))
    >>> state, metrics = in_microbatches(4)(state, batch_at(calculator(), seed=0, step=0, size=256))
    >>> int(state.step)
    1
    """
    if n < 1:
        raise InputError(f"the number of microbatches is {n}; it must be at least 1")

    @jax.jit
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        parts = _split(batch, n)
        n_counted = batch.mask.sum()

        def add_part(grads: Any, part: Batch) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            def part_loss(logits: jax.Array) -> jax.Array:
                return token_cross_entropy(logits, part).sum() / n_counted

            logits, backward = jax.vjp(lambda params: answer_logits(params, part, state.apply_fn), state.params)
            loss, output_error = jax.value_and_grad(part_loss)(logits)
            (more,) = backward(output_error)
            return jax.tree.map(jnp.add, grads, more), (logits, loss)

        grads, (logits, losses) = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, state.params), parts)
        new_state = state.apply_gradients(grads=grads)
        logits = logits.reshape(-1, *logits.shape[2:])
        return new_state, _metrics(state, new_state, batch, logits, losses.sum(), grads)

    return step


def check_microbatches(size: int, n: int) -> None:
    """Raise `InputError` where a batch does not divide evenly into n parts, and say what would."""
    if size % n:
        fit = ", ".join(str(number) for number in range(1, size + 1) if size % number == 0)
        raise InputError(f"a batch of {size} does not divide into {n} microbatches; it does into {fit}")


def _split(batch: Batch, n: int) -> Batch:
    """Return the batch in n parts, one more axis in front."""
    size = batch.tokens.shape[0]
    check_microbatches(size, n)
    return jax.tree.map(lambda leaf: leaf.reshape(n, size // n, *leaf.shape[1:]), batch)


@functools.partial(jax.jit, static_argnames=("n_steps", "batch_size", "loss_on", "step_fn"), donate_argnames="state")
def train_steps(
    state: TrainState,
    task: Task,
    *,
    seed: int | jax.Array,
    n_steps: int,
    batch_size: int,
    loss_on: LossOn = "answer",
    stop: int | jax.Array = 2**31 - 1,
    step_fn: StepFn = train_step,
) -> tuple[TrainState, Metrics]:
    """Return the state after `n_steps` of `train_step` (or `step_fn`), and the metrics stacked, each `[n_steps]`.

    Jitted, one `lax.scan`; donates `state`. Step s learns from `batch_at(task,
    seed, s, batch_size, loss_on)`, counted by `state.step`, so many short calls equal one long one.

    The state goes no further than step `stop`, and not past a step whose loss, gradient or update is not finite:
    the state returned is the one before it, `state.step` says which, and its metrics fill the rest of the rows.

    Raises as `batch_at` does.
    """

    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        new, metrics = step_fn(state, batch_at(task, seed, state.step, batch_size, loss_on))
        update = optax.tree.norm(jax.tree.map(jnp.subtract, new.params, state.params))
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(update)
        keep_new = good & (state.step < stop)
        return jax.tree.map(lambda new, old: jnp.where(keep_new, new, old), new, state), metrics

    return jax.lax.scan(body, state, length=n_steps)


def _metrics(old: TrainState, new: TrainState, batch: Batch, logits: jax.Array, loss: jax.Array, grads: Any) -> Metrics:
    right = (logits.argmax(axis=-1) == targets(batch)) * batch.mask
    step = jax.tree.map(jnp.subtract, new.params, old.params)
    return {
        "loss": loss,
        "token_accuracy": right.sum() / batch.mask.sum(),
        "grad_norm": optax.tree.norm(grads),
        "update_ratio": optax.tree.norm(step) / optax.tree.norm(old.params),
    }


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
