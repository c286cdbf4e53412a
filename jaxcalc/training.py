"""Training: the step, its parts of a batch, and the scanned loop."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from jaxcalc.batch import Batch, LossOn, batch_at, targets
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, answer_logits, cross_entropy, token_cross_entropy
from jaxcalc.model import apply
from jaxcalc.params import Params
from jaxcalc.tasks.task import Task

Metrics = dict[str, jax.Array]


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
