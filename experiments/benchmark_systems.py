"""The training steps that benchmark.py compares: jaxcalc, the same network in Flax Linen and PyTorch, populations.

Every function returns a `Program`, whose call takes one step or, with `STEPS_PER_CALL`, several.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from timing import Program, compile_timed, measure  # beside this script

import jaxcalc
from jaxcalc import population
from jaxcalc.losses import ApplyFn, cross_entropy
from jaxcalc.runs.config import CHUNK, KeepingConfig, ScheduleConfig
from jaxcalc.runs.options import TrainOptions, configure
from jaxcalc.runs.session import open_session
from jaxcalc.scale.cost import n_cores
from jaxcalc.scale.sharding import data_parallel

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 1e-4, 1.0
STEPS_PER_CALL = 20  # of the scanned steps


def optimizer(learning_rate: float = LEARNING_RATE) -> optax.GradientTransformation:
    """Return the optimizer of all systems: clipping and AdamW."""
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY))


def jaxcalc_step(params: jaxcalc.Params, batch: jaxcalc.Batch) -> Program:
    """Return one `train_step`, always from the same state."""
    state = jaxcalc.create_state(params, optimizer())
    compiled, cost = compile_timed(jaxcalc.train_step.lower, state, batch)
    return Program(lambda: compiled(state, batch), cost)


def jaxcalc_steps(
    params: jaxcalc.Params,
    task: jaxcalc.Task,
    size: int,
    apply_fn: ApplyFn = jaxcalc.apply,
    compiler_options: dict[str, Any] | None = None,
) -> Program:
    """Return `train_steps`; each call goes on from where the last one stopped."""
    state = jaxcalc.create_state(jax.tree.map(jnp.copy, params), optimizer(), apply_fn)
    lower = functools.partial(jaxcalc.train_steps.lower, seed=0, n_steps=STEPS_PER_CALL, batch_size=size)
    compiled, cost = compile_timed(lower, state, task, compiler_options=compiler_options)

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, task, seed=0)
        return metrics

    return Program(call, cost)


def parallel_steps(params: jaxcalc.Params, task: jaxcalc.Task, size: int) -> Program:
    """Return `jaxcalc_steps` with the batch split over all devices. Each device of a CPU keeps to one thread."""
    devices = jax.devices()
    options = {"xla_cpu_multi_thread_eigen": False} if devices[0].platform == "cpu" else None
    return jaxcalc_steps(params, task, size, data_parallel(devices), options)


@contextlib.contextmanager
def recipe_steps() -> Iterator[Program]:
    """Yield the steps of train.py's defaults as train.py takes them, in a session: `CHUNK` steps per call."""
    many = 10**6  # as many steps as the rounds may need, and no checkpoint meanwhile
    options = TrainOptions(schedule=ScheduleConfig(steps=many), keeping=KeepingConfig(0, many))
    config, schedule = configure(options), options.schedule
    task, tx, apply_fn = config.make_task(), config.make_optimizer(), config.make_apply_fn()

    def start() -> jaxcalc.TrainState:
        params = jaxcalc.init(jax.random.key(schedule.seed), config.make_model())
        return jaxcalc.create_state(params, tx, apply_fn)

    steps: Callable[..., Any] = functools.partial(
        jaxcalc.train_steps, n_steps=CHUNK, batch_size=schedule.batch_size, loss_on=schedule.loss_on
    )
    with tempfile.TemporaryDirectory() as folder, open_session(Path(folder) / "run", config) as session:
        start, steps = session.prepare(start, steps, task)
        state = start()

        def call() -> Any:
            nonlocal state
            first = int(state.step)
            state, metrics = steps(state, task, seed=schedule.seed, stop=first + CHUNK)
            session.keep(state, first)
            return metrics

        memory = sum(session.compiled.bytes.values()) / 2**20
        yield Program(call, {"compile_seconds": session.compiled.seconds, "memory_mib": memory})


def population_steps(config: jaxcalc.ModelConfig, task: jaxcalc.Task, n_models: int, size: int) -> Program:
    """Return `population.train_steps`; each call goes on from where the last one stopped."""
    seeds = jnp.arange(n_models)
    rates = np.full(n_models, LEARNING_RATE)
    state = population.create_state(population.init(seeds, config), optimizer, learning_rate=rates)
    lower = functools.partial(population.train_steps.lower, seeds=seeds, n_steps=STEPS_PER_CALL, batch_size=size)
    compiled, cost = compile_timed(lower, state, task)

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, task, seeds=seeds)
        return metrics

    return Program(call, cost)


def linen_step(params: jaxcalc.Params, batch: jaxcalc.Batch) -> Program:
    """Return one step of the same network in Flax Linen, from the same weights, with the same optimizer."""
    from baseline_linen import LinenModel, to_linen  # beside this script

    model = LinenModel(jaxcalc.config_of(params))
    state = TrainState.create(apply_fn=model.apply, params=to_linen(params)["params"], tx=optimizer())

    @jax.jit
    def step(state: TrainState, batch: jaxcalc.Batch) -> tuple[TrainState, jax.Array]:
        def loss_fn(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, batch.tokens[:, :-1])
            return cross_entropy(logits[:, -batch.mask.shape[1] :], batch)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    compiled, cost = compile_timed(step.lower, state, batch)
    return Program(lambda: compiled(state, batch), cost)


def torch_steps(params: jaxcalc.Params, batch: jaxcalc.Batch, length: int) -> dict[tuple[str, int], Program]:
    """Return PyTorch's step, eager and compiled, padded to a length, each with the threads that are best for it."""
    import torch  # pyright: ignore[reportMissingImports]
    from baseline_torch import to_torch, train_step  # beside this script

    torch._dynamo.config.recompile_limit = 64  # else it gives up compiling after 8 sizes, and goes on uncompiled
    longer = length - params["embed"]["position"].shape[0]
    positions = jnp.pad(params["embed"]["position"], ((0, longer), (0, 0)))
    params = {**params, "embed": {**params["embed"], "position": positions}}
    config, weights = jaxcalc.config_of(params), to_torch(params)
    tokens = np.pad(np.asarray(batch.tokens), ((0, 0), (longer, 0)))
    mask = np.asarray(batch.mask)
    make = functools.partial(train_step, config, tokens, mask, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, weights)

    def with_threads(n: int, compiled: bool) -> Program:
        torch.set_num_threads(n)  # torch.compile writes the number into its program
        step, start = make(compiled=compiled), time.perf_counter()
        step()
        cost = {"compile_seconds": time.perf_counter() - start} if compiled else {}

        def call() -> Any:
            torch.set_num_threads(n)
            return step()

        return Program(call, {"threads": n, **cost})

    def by_speed(numbers: list[int], compiled: bool) -> list[Program]:
        programs = {str(n): with_threads(n, compiled) for n in numbers}
        seconds = measure({n: program.call for n, program in programs.items()}, quick=True)
        return [programs[n] for n in sorted(programs, key=seconds.__getitem__)]

    eager = by_speed(sorted({n_cores(), *(2**power for power in range(n_cores().bit_length()))}), compiled=False)
    compiled = by_speed([int(program.cost["threads"]) for program in eager[:2]], compiled=True)
    return {("PyTorch", length): eager[0], ("torch.compile", length): compiled[0]}
