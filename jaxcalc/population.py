"""Populations: many models trained as one, by `jax.vmap` over seeds, hyperparameters or first weights.

A population is a params tree or a `TrainState` with one more axis P in front of every array. `jax.vmap` turns any
function of one model into a function of a population.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxcalc import model, training
from jaxcalc.batch import LossOn
from jaxcalc.decoding import generate
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import ModelConfig
from jaxcalc.params import Params
from jaxcalc.tasks.task import Task
from jaxcalc.training import Metrics, TrainState
from jaxcalc.trees import named_leaves


@functools.partial(jax.jit, static_argnames="config")
def init(seeds: jax.Array, config: ModelConfig) -> Params:
    """Return first weights for each seed, int `[P]`. Member p has those of `jaxcalc.init(jax.random.key(seeds[p]))`.

    >>> init(jnp.arange(3), ModelConfig(vocab_size=35))["embed"]["token"].shape
    (3, 35, 64)
    """
    return jax.vmap(lambda seed: model.init(jax.random.key(seed), config))(seeds)


def create_state(
    params: Params,
    make_tx: Callable[..., optax.GradientTransformation],
    apply_fn: ApplyFn = model.apply,
    **hyperparameters: ArrayLike,
) -> TrainState:
    """Return the state of a population at step 0, in which each member has its own hyperparameters.

    The optimizer of member p is `make_tx(name=hyperparameters[name][p], …)`. The values are kept in
    `state.opt_state.hyperparams` (see `optax.inject_hyperparams`): they are data, and new values compile nothing.

    Args:
      params: first weights such as `init` makes, with an axis P in front of every leaf.
      make_tx: a function such as `optax.adamw`, or `functools.partial(jaxcalc.make_optimizer, "muon", 600)`.
      hyperparameters: at least one argument of `make_tx` by name, each float `[P]`.

    Raises `InputError` for leaves or hyperparameters of different P, and for a name that `make_tx` does not take, and
    whatever `make_tx` raises for a value that is out of range.

    >>> params = init(jnp.array([0, 0, 1, 1]), ModelConfig(vocab_size=35))
    >>> state = create_state(params, optax.adamw, learning_rate=jnp.array([1e-3, 3e-3, 1e-3, 3e-3]))
    >>> state.step.shape
    (4,)
    """
    n_members = size(params)
    names = inspect.signature(make_tx).parameters
    if not hyperparameters:
        raise InputError(f"no hyperparameter is given; name at least one of {', '.join(names)}")
    columns = {name: np.asarray(values, float) for name, values in hyperparameters.items()}
    for name, values in columns.items():
        if name not in names:
            raise InputError(f"there is no hyperparameter {name!r}; there are {', '.join(names)}")
        if values.shape != (n_members,):
            raise InputError(f"{name} has shape {values.shape}; expected ({n_members},), one value per member")
    for row in zip(*columns.values(), strict=True):
        make_tx(**dict(zip(columns, row, strict=True)))  # raises for a value that is out of range
    injected = optax.inject_hyperparams(make_tx, static_args=names.keys() - columns.keys())
    tx = injected(**{name: values[0] for name, values in columns.items()})

    def member_state(params: Params, values: dict[str, jax.Array]) -> TrainState:
        state = training.create_state(params, tx, apply_fn)
        opt_state: Any = state.opt_state
        return state.replace(opt_state=opt_state._replace(hyperparams=values))

    return jax.vmap(member_state)(params, {name: jnp.asarray(values) for name, values in columns.items()})


@functools.partial(jax.jit, static_argnames=("n_steps", "batch_size", "loss_on"), donate_argnames="state")
def train_steps(
    state: TrainState, task: Task, *, seeds: jax.Array, n_steps: int, batch_size: int, loss_on: LossOn = "answer"
) -> tuple[TrainState, Metrics]:
    """Return every member after `n_steps` of `jaxcalc.train_steps`, and the metrics, each `[P, n_steps]`.

    Jitted, one program for all members; donates `state`. Member p learns from the batches of seed `seeds[p]`.

    Raises `InputError` for seeds that are not `[P]`, and where `jaxcalc.batch_at` does.
    """
    if seeds.shape != jnp.shape(state.step):
        raise InputError(f"seeds have shape {seeds.shape}; expected {jnp.shape(state.step)}, one seed per member")

    def member_steps(state: TrainState, seed: jax.Array) -> tuple[TrainState, Metrics]:
        return training.train_steps(state, task, seed=seed, n_steps=n_steps, batch_size=batch_size, loss_on=loss_on)

    return jax.vmap(member_steps)(state, seeds)


@functools.partial(jax.jit, static_argnames="apply_fn")
def correct(params: Any, task: Task, rows: jax.Array, apply_fn: ApplyFn = model.apply) -> jax.Array:
    """Return whether each member's greedy answer to each row of the table is exactly right, bool `[P, M]`. Jitted.

    The mean over rows is the exact match of `jaxcalc.evaluate`.
    """
    prompts, expected = jnp.split(task.tokens[rows], [task.prompt_length], axis=1)
    decode = functools.partial(generate, prompts=prompts, n_tokens=task.answer_length, apply_fn=apply_fn)
    answers = jax.vmap(lambda params: decode(params)[0])(params)
    return (answers == expected[None]).all(axis=-1)


def size(population: Any) -> int:
    """Return P. Raises `InputError` naming the first leaf that has no axis, or another P."""
    sizes = {name: np.shape(leaf)[:1] for name, leaf in named_leaves(population).items()}
    for name, found in sizes.items():
        if len(found) == 0 or found != next(iter(sizes.values())):
            raise InputError(f"{name} has shape {found}…; every leaf must begin with the same axis P")
    if not sizes:
        raise InputError("the population has no leaf")
    return next(iter(sizes.values()))[0]


def member(population: Any, index: int) -> Any:
    """Return one member of a population of params, states or metrics, for any function of one model.

    Raises `InputError` for an index that is not in range(P).

    >>> population = init(jnp.arange(3), ModelConfig(vocab_size=35))
    >>> model.apply(member(population, 2), jnp.zeros((1, 8), int)).shape
    (1, 8, 35)
    """
    if not 0 <= index < size(population):
        raise InputError(f"there is no member {index}; the population has members 0 to {size(population) - 1}")
    return jax.tree.map(lambda leaf: leaf[index], population)
