"""A finished run taken again, from checkpoint to checkpoint, by its own program.

So the replay ends in the bits of each checkpoint, or is refused.
"""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcalc.batch import batch_at
from jaxcalc.errors import InputError
from jaxcalc.fingerprints import fingerprint
from jaxcalc.ledger import Moves
from jaxcalc.model import init
from jaxcalc.runs import checkpoint, placement
from jaxcalc.runs.config import CHUNK, RunConfig
from jaxcalc.runs.configfile import environment, flat
from jaxcalc.runs.files import CHECKPOINTS
from jaxcalc.runs.manifest import differences, read_manifest
from jaxcalc.scale import processes
from jaxcalc.tasks.task import Task
from jaxcalc.training import StepFn, TrainState, create_state, in_microbatches, train_step, train_steps


def moves(path: Path, config: RunConfig, task: Task, until: int) -> Iterator[Moves]:
    """Yield the steps of a run up to `until`, in chunks from the last to the first, replayed bit for bit.

    Memory holds a state for each `CHUNK` steps between two checkpoints, and for each step of one chunk.
    """
    schedule, steps_there = config.schedule, checkpoint.steps(path / CHECKPOINTS)
    _check_devices(path, steps_there[-1])
    n_parts = config.computing.microbatches
    step_fn: StepFn = train_step if n_parts == 1 else in_microbatches(n_parts)
    fixed: dict[str, Any] = {"batch_size": schedule.batch_size, "loss_on": schedule.loss_on, "step_fn": step_fn}
    tx, apply_fn = config.make_optimizer(), config.make_apply_fn()
    start = jax.eval_shape(lambda: create_state(init(jax.random.key(0), config.make_model()), tx, apply_fn))
    like = placement.placed(start, config)
    spread = placement.spread(task, like)
    steps = functools.partial(train_steps, n_steps=CHUNK, **fixed)
    program = placement.compiled(steps, task, like, config).call
    known = [step for step in steps_there if step < until]
    for begin, end in reversed([*itertools.pairwise([*known, until])]):
        states = [_load(path, begin, like)]
        while (step := int(states[-1].step)) < end:
            stop = min(step // CHUNK * CHUNK + CHUNK, end)
            state, _ = program(jax.tree.map(jnp.copy, states[-1]), spread, seed=schedule.seed, stop=stop)
            if int(state.step) != stop:
                raise InputError(f"step {int(state.step) + 1:,} of {path} is not finite, so there is no account of it")
            states.append(state)
        if end in steps_there:
            _check_same(path, config, end, states[-1])
        for state, after in reversed([*itertools.pairwise(states)]):
            n_steps = int(after.step) - int(state.step)
            params, opt_state, norms = _kept(state, after, spread, schedule.seed, n_steps, **fixed)
            yield Moves(int(state.step), *processes.whole((params, opt_state, norms)))


@functools.partial(jax.jit, static_argnames=("n_steps", "batch_size", "loss_on", "step_fn"))
def _kept(
    state: TrainState, after: TrainState, task: Any, seed: int, n_steps: int, step_fn: StepFn, **sizes: Any
) -> tuple[Any, Any, jax.Array]:
    """Return parameters and optimizer state before each of `n_steps` and in `after`, and each gradient's norm."""

    def body(state: TrainState, _: None) -> tuple[TrainState, Any]:
        new, metrics = step_fn(state, batch_at(task, seed, state.step, sizes["batch_size"], sizes["loss_on"]))
        return new, (state.params, state.opt_state, metrics["grad_norm"])

    _, (params, opt_state, norms) = jax.lax.scan(body, state, length=n_steps)
    append = functools.partial(jax.tree.map, lambda kept, last: jnp.concatenate([kept, last[None]]))
    return append(params, after.params), append(opt_state, after.opt_state), norms


def _load(path: Path, step: int, like: TrainState) -> TrainState:
    state, _ = checkpoint.restore(path / CHECKPOINTS, step, like)
    return state.replace(apply_fn=like.apply_fn, tx=like.tx)


def _check_devices(path: Path, step: int) -> None:
    """Raise `InputError` if the run was computed on another number of devices, which rounds in another way."""
    there, here = read_manifest(path / CHECKPOINTS, step)["environment"]["n_devices"], jax.device_count()
    if there != here:
        raise InputError(
            f"{path} was trained on {there} devices, and JAX has {here} here, which would round otherwise; of a CPU, "
            f"start Python with JAX_NUM_CPU_DEVICES={there}"
        )


def _check_same(path: Path, config: RunConfig, step: int, state: TrainState) -> None:
    """Raise `InputError` if a replay does not end in the bits of a checkpoint, with what may be the reason."""
    manifest = read_manifest(path / CHECKPOINTS, step)
    here = fingerprint({"params": state.params, "opt_state": state.opt_state})
    wrong = [name for name, mark in manifest["leaves"].items() if here.get(name) != mark]
    if wrong:
        changed = differences(flat(manifest["environment"]), flat(environment(config)))
        why = "; ".join(changed) or "the same software and devices, so perhaps another processor"
        raise InputError(
            f"the replay of {path} does not end in its checkpoint of step {step:,}: {len(wrong)} of {len(here)} "
            f"leaves differ, first {wrong[0]} ({why})"
        )
