"""What watch.py computes of one step of learning, with as few compiled programs as will do."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from watch_records import OptimizerUsed

import jaxcalc
from jaxcalc import optimizers
from jaxcalc.backprop import Backward, check_finite, collect, stages, walk
from jaxcalc.blame import token_grads
from jaxcalc.numerics import quadrature
from jaxcalc.optimizers import OptimizerName
from jaxcalc.runs.programs import QUICK_TO_COMPILE
from jaxcalc.steps import Step, forget, take_step


def host(tree: Any) -> Any:
    """Return a tree of NumPy arrays, which all programs take in the same way, so that JAX compiles each once."""
    return jax.tree.map(np.asarray, tree)


class Learned(NamedTuple):
    """One step of an optimizer from one word."""

    step: Step
    alone: Step
    """The step without momentum: as if every earlier gradient had been this one."""
    optimizer: OptimizerUsed


def make_step(
    run: jaxcalc.Run,
    state: jaxcalc.TrainState,
    grads: jaxcalc.Params,
    optimizer: OptimizerName | None,
    learning_rate: float | None,
) -> Learned:
    """Return the step that the chosen optimizer would make of these gradients, and what optimizer that is."""
    if optimizer is not None:
        name, rate, origin = optimizer, learning_rate, "a fresh optimizer"
        tx, unclipped = jaxcalc.make_optimizer(name, None, rate), None
        opt_state, n_steps = host(tx.init(state.params)), 0
        schedule = optimizers.schedule(optimizers.DEFAULT_LEARNING_RATE[name] if rate is None else rate, None)
    else:
        config = run.config
        name, schedule = config.optimizer.optimizer, config.make_schedule()
        tx, opt_state, origin, n_steps = config.make_optimizer(), state.opt_state, "the run's own", int(state.step)
        unclipped = config.make_optimizer(clip=False) if config.optimizer.clip_norm else None
    program = functools.partial(_step, tx, unclipped, schedule, state.step, grads)
    step, rate_now = host(program(opt_state, state.params))
    alone, _ = host(program(forget(opt_state, grads, optimizers.ADAM_BETAS[0], n_steps), state.params))
    return Learned(step, alone, {"name": name, "of": origin, "learning_rate": float(rate_now)})


@functools.partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=QUICK_TO_COMPILE)
def _step(tx: Any, unclipped: Any, schedule: Any, at: Any, grads: Any, opt_state: Any, params: Any) -> tuple[Step, Any]:
    return take_step(tx, grads, opt_state, params, unclipped), schedule(at)


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def _study(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[list[Backward], jaxcalc.Params, jaxcalc.Params]:
    walked = list(walk(params, batch))
    bare = [stage._replace(name=None, stage=None) for stage in walked]
    return bare, collect(params, walked), token_grads(params, walked)


def study(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[list[Backward], jaxcalc.Params, jaxcalc.Params]:
    """Return the backward walk, the gradient, and the gradient by token.

    All that is computed of the model here comes from this one program: compiling it takes longer than all its runs.
    """
    check_finite(params)
    walked, grads, by_token = host(_study(params, batch))
    names = [stage.name for stage in reversed(stages(params, batch))]
    return [stage._replace(name=name) for stage, name in zip(walked, names, strict=True)], grads, by_token


def mean_gradient(params: jaxcalc.Params, step: Step, batch: jaxcalc.Batch) -> jaxcalc.Params:
    """Return what `jaxcalc.blame.mean_gradient` does, by the program of `study`."""
    total = jax.tree.map(np.zeros_like, params)
    for t, weight in quadrature(32):
        here = jax.tree.map(lambda theta, delta, t=t: theta + np.float32(t) * delta, params, step.update)
        grads = host(_study(here, batch)[1])
        total = jax.tree.map(lambda mean, g, weight=weight: mean + np.float32(weight) * g, total, grads)
    return total
