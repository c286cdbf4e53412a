"""Training: one step, one step over parts of a batch, and the scanned loop of steps."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from jaxcalc.batch import Batch, Lessons, LossOn, batch_at, targets
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, answer_logits, check_hash, cross_entropy, last_logits, token_cross_entropy
from jaxcalc.model import apply
from jaxcalc.numerics import default_promotion
from jaxcalc.optimizers import ValueFn, with_loss
from jaxcalc.params import check_differentiable
from jaxcalc.reprs import outline
from jaxcalc.tasks.task import Task

Metrics = dict[str, jax.Array]
"""What one step measures, as `train_step` lists it; of many steps, each array has one more axis."""


class TrainState(train_state.TrainState):
    """Flax's `TrainState`: step, params (any pytree), opt_state, and the static apply_fn and tx."""

    params: Any

    __repr__ = outline

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**{"repr": False, **kwargs})  # a subclass prints in the same way

    @classmethod
    def create(cls, *, apply_fn: ApplyFn, params: Any, tx: optax.GradientTransformation, **kwargs: Any) -> Self:
        """Return the state at step 0. See `create_state`."""
        params = _copied(params)
        with default_promotion():
            opt_state = _copied(tx.init(params["params"] if _is_float8(params) else params))
        step = jnp.zeros((), jnp.int32)
        return cls(step=step, apply_fn=apply_fn, params=params, tx=tx, opt_state=opt_state, **kwargs)

    @default_promotion()
    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> Self:
        """Return the state after one update of the optimizer. Other keywords replace other fields."""
        if _is_float8(grads):
            return super().apply_gradients(grads=grads, **kwargs)
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **kwargs)


def _is_float8(tree: Any) -> bool:
    """Return whether a tree is of Flax's float8 layers, whose scales Flax overwrites with their gradients.

    Flax itself asks `in tree`, which only a mapping answers.
    """
    return isinstance(tree, Mapping) and OVERWRITE_WITH_GRADIENT in tree


def _copied(tree: Any) -> Any:
    """Return a tree whose arrays are nobody else's, so that the state may be donated.

    An optimizer's first state may hold the parameters themselves, or an array of the optimizer's own. Each leaf is
    released once it is copied: no second state is in memory.
    """
    leaves, structure = jax.tree.flatten(tree)
    del tree
    for index, leaf in enumerate(leaves):
        leaves[index] = jax.device_put(leaf, may_alias=False)
    return jax.tree.unflatten(structure, leaves)


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def create_state(params: Any, tx: optax.GradientTransformation, apply_fn: ApplyFn = apply) -> TrainState:
    """Return the state of training at step 0, whose arrays are copies: `params` outlives `train_steps`.

    The copy of the parameters takes their bytes once more for as long as `params` is kept: 414,464 bytes and four
    milliseconds for the default model on a CPU.

    Args:
      params: any pytree of arrays: dicts and lists, dataclasses, the modules of Equinox or Flax NNX.
      apply_fn: any model with the signature of `jaxcalc.apply`.

    A state pickles if its optimizer does: one of `make_optimizer` does, and those of Optax, which hold local functions,
    do not. Of such a state, pickle `state.params` and `state.opt_state`.

    Raises `InputError` for a leaf that has no gradient, such as a module's activation function or an integer, and for
    an `apply_fn` without a hash.
    """
    check_hash(apply_fn)
    check_differentiable(params)
    return TrainState.create(apply_fn=apply_fn, params=params, tx=tx)


@jax.jit
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Return the state after one step of gradient descent, and the step's metrics. Jitted; keeps its input.

    The metrics are float32 scalars: "loss" in nats, "token_accuracy" (of the tokens that count, the share that the
    model predicts), "grad_norm", and "update_ratio" (norm of the update over norm of the parameters).

    An Optax optimizer that asks for more than the gradient is given the loss: see `optimizers.extra_arguments`.

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> state = create_state(init(jax.random.key(0), ModelConfig(vocab_size=35)), optax.adamw(1e-3))
    >>> state, metrics = train_step(state, batch_at(calculator(), seed=0, step=0, size=256))
    >>> int(state.step), abs(float(metrics["loss"]) - 3.56) < 0.1  # at first, as surprised as ln 35
    (1, True)
    """
    logits, backward = jax.vjp(lambda params: answer_logits(params, batch, state.apply_fn), state.params)  # forward
    loss, output_error = jax.value_and_grad(cross_entropy)(logits, batch)  # loss
    (grads,) = backward(output_error)  # backward

    def value_fn(params: Any) -> jax.Array:
        return cross_entropy(answer_logits(params, batch, state.apply_fn), batch)

    new_state = _updated(state, grads, loss, value_fn)  # update
    return new_state, _metrics(state, new_state, grads, loss, _n_right(logits, batch) / batch.mask.sum())


def _updated(state: TrainState, grads: Any, loss: jax.Array, value_fn: ValueFn) -> TrainState:
    """Return the state after one update of an optimizer that may ask for the loss."""
    asking = state.replace(tx=with_loss(state.tx, value_fn, loss))
    return asking.apply_gradients(grads=grads).replace(tx=state.tx)


StepFn = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""A step of training, as `train_step`."""


@functools.cache  # the same number gives the same function, which JAX then compiles once
def in_microbatches(n: int) -> StepFn:
    """Return a `train_step` that takes the batch in `n` equal parts, one after another, and then updates once.

    The loss of a part is the surprise of its tokens, divided by the number of tokens that count in the whole batch.
    The parts' gradients therefore add up to the gradient of the batch: the step and its metrics are those of
    `train_step` up to rounding, but only the activations of one part are in memory at a time.

    Raises `InputError` for n below 1. The step raises it for a batch that does not divide evenly.

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
        n_counted = batch.mask.sum()

        def part_gradients(parts: Batch) -> tuple[Any, jax.Array, jax.Array]:
            part = jax.tree.map(lambda leaf: leaf[0], parts)

            def part_loss(logits: jax.Array) -> jax.Array:
                return token_cross_entropy(logits, part).sum() / n_counted

            logits, backward = jax.vjp(lambda params: answer_logits(params, part, state.apply_fn), state.params)
            loss, output_error = jax.value_and_grad(part_loss)(logits)
            (grads,) = backward(output_error)
            return grads, loss, _n_right(logits, part)

        # Optax would put every n-th example into a part. We cut the batch ourselves, into runs of examples, and let
        # it add up n microbatches of one part each.
        add_up = optax.microbatching.microbatch(part_gradients, argnums=0, microbatch_size=1)
        grads, loss, n_right = add_up(_split(batch, n))

        def value_fn(params: Any) -> jax.Array:
            @jax.checkpoint  # so that its gradient too keeps the activations of one part at a time
            def part_sum(part: Batch) -> jax.Array:
                return token_cross_entropy(answer_logits(params, part, state.apply_fn), part).sum()

            return jax.lax.map(part_sum, _split(batch, n)).sum() / n_counted

        new_state = _updated(state, grads, loss, value_fn)
        return new_state, _metrics(state, new_state, grads, loss, n_right / n_counted)

    return step


def check_microbatches(size: int, n: int) -> None:
    """Raise `InputError` for a batch that does not divide evenly into n parts; the message says which n would do."""
    if size % n:
        divisors = ", ".join(str(number) for number in range(1, size + 1) if size % number == 0)
        raise InputError(f"a batch of {size} does not divide into {n} microbatches; it does into {divisors}")


def _split(batch: Batch, n: int) -> Batch:
    """Return the batch in n parts, with one more axis in front."""
    size = batch.tokens.shape[0]
    check_microbatches(size, n)
    return jax.tree.map(lambda leaf: leaf.reshape(n, size // n, *leaf.shape[1:]), batch)


@functools.partial(jax.jit, static_argnames=("n_steps", "batch_size", "loss_on", "step_fn"), donate_argnames="state")
def train_steps(
    state: TrainState,
    task: Lessons,
    *,
    seed: int | jax.Array,
    n_steps: int,
    batch_size: int,
    loss_on: LossOn = "answer",
    stop: int | jax.Array = 2**31 - 1,
    step_fn: StepFn = train_step,
) -> tuple[TrainState, Metrics]:
    """Return the state after `n_steps` of `train_step` (or `step_fn`), and the metrics stacked, each `[n_steps]`.

    Jitted, one `lax.scan`; donates `state`, whose arrays JAX then refuses to read. To compare with it later, copy it
    first: `jax.tree.map(jnp.copy, state)`. Step s, counted by `state.step`, learns from `batch_at(task, seed, s,
    batch_size, loss_on)`, so many short calls equal one long call.

    The state stops at step `stop`, and before a step whose loss, gradient or update is not finite. The remaining rows
    then repeat the metrics of the step that was not taken.

    Raises `InputError` where `batch_at` does, for a `step_fn` whose metrics lack "loss" or "grad_norm", and for a model
    with fewer columns than the task has words.
    """

    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        checked = _for_words(state.apply_fn, task.vocab_size) if isinstance(task, Task) else state.apply_fn
        batch = batch_at(task, seed, state.step, batch_size, loss_on)
        new, metrics = step_fn(state.replace(apply_fn=checked), batch)
        new = new.replace(apply_fn=state.apply_fn)
        for name in ("loss", "grad_norm"):
            if name not in metrics:
                raise InputError(
                    f"the metrics of step_fn have no {name!r}, by which train_steps sees a step that is not finite; "
                    f"they have {', '.join(map(repr, metrics)) or 'nothing'}"
                )
        update_norm = optax.tree.norm(optax.tree.sub(new.params, state.params))
        is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]) & jnp.isfinite(update_norm)
        return optax.tree.where(is_finite & (state.step < stop), new, state), metrics

    return jax.lax.scan(body, state, length=n_steps)


@functools.cache  # the same function each time, which JAX then traces once
def _for_words(apply_fn: ApplyFn, n: int) -> ApplyFn:
    """Return a model that raises `InputError` when it is traced, if its logits have no column for each of n words."""

    def checked(params: Any, tokens: jax.Array, last: int | None = None) -> jax.Array:
        logits = last_logits(params, tokens, tokens.shape[1] if last is None else last, apply_fn)
        if logits.shape[-1] < n:
            raise InputError(
                f"the model's logits have shape {logits.shape}; expected {(*logits.shape[:-1], n)}: {n} words"
            )
        return logits

    return checked


def _n_right(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return how many of the tokens that count have the highest logit, a float32 scalar."""
    return ((logits.argmax(axis=-1) == targets(batch)).astype(batch.mask.dtype) * batch.mask).sum()


def _metrics(old: TrainState, new: TrainState, grads: Any, loss: jax.Array, token_accuracy: jax.Array) -> Metrics:
    return {
        "loss": loss,
        "token_accuracy": token_accuracy,
        "grad_norm": optax.tree.norm(grads),
        "update_ratio": optax.tree.norm(optax.tree.sub(new.params, old.params)) / optax.tree.norm(old.params),
    }
