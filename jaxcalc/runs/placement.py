"""Where a run is computed: its devices and processes, and its compiled steps, checked before anything is allocated."""

import contextlib
import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxcalc.errors import InputError
from jaxcalc.reprs import outline
from jaxcalc.runs.config import CHUNK, RunConfig
from jaxcalc.runs.programs import Lower, compile_at_once
from jaxcalc.scale import cost, large, processes, sharding
from jaxcalc.tasks.task import Task
from jaxcalc.training import TrainState

FEWEST_EXAMPLES = 32
"""The examples of a step that a device has at least, where a run chooses how many devices share them."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions:
    """The processes that share a mesh. A cluster that JAX detects needs none of these options."""

    coordinator_address: str | None = None
    """Where process 0 of several listens, such as localhost:12345."""
    num_processes: int | None = None
    """How many processes share the mesh."""
    process_id: int | None = None
    """Which of them this one is, from 0."""


def mesh_sizes(text: str) -> dict[str, int]:
    """Return the sizes of a mesh, such as {"data": 4, "model": 2}, from the text of --mesh."""
    sizes = {name: size for name, _, size in (part.partition("=") for part in text.split(","))}
    if not sizes.keys() <= {"data", "model"} or "data" not in sizes or not all(map(str.isdecimal, sizes.values())):
        raise InputError(f"--mesh is {text!r}; it must be such as data=4 or data=4,model=2")
    return {name: int(size) for name, size in sizes.items()}


def mesh_of(config: RunConfig) -> dict[str, int]:
    """Return the sizes of a run's mesh.

    Where none was asked for, the local devices share the examples of a step: as many of the devices as divide them
    evenly and have at least `FEWEST_EXAMPLES` each.
    """
    if config.computing.mesh:
        return mesh_sizes(config.computing.mesh)
    part = config.schedule.batch_size // config.computing.microbatches
    most = min(jax.local_device_count(), part // FEWEST_EXAMPLES)
    return {"data": max((n for n in range(1, most + 1) if part % n == 0), default=1)}


def use_devices(mesh: str, options: ProcessOptions) -> None:
    """Join the other processes, if there are any, and make a CPU into as many devices as the mesh needs of each.

    Without a mesh, a CPU becomes a device for each core, unless the environment says how many it is to be. If JAX has
    started already, this does nothing; `sharding.make_mesh` then says whether there are enough devices.

    Raises `InputError` for options that do not fit together, and as `processes.join` does.
    """
    address, n, index = dataclasses.astuple(options)
    flags = "--coordinator-address, --num-processes, --process-id"
    if None in (address, n, index) and (address, n, index) != (None, None, None):
        raise InputError(f"{flags} go together; give all of them, or none where JAX detects the cluster")
    if not mesh:
        if n is not None:
            raise InputError(f"{flags} need a --mesh, such as --mesh data={n}, which goes over all processes")
        if "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in os.environ.get("XLA_FLAGS", ""):
            with contextlib.suppress(RuntimeError):
                jax.config.update("jax_num_cpu_devices", cost.n_cores())
        return
    n_devices = max(1, math.prod(mesh_sizes(mesh).values()))
    if n is not None and not 0 <= index < n:
        raise InputError(f"--process-id is {index}; it must be from 0 to {n - 1}, --num-processes less one")
    if n is not None and n_devices % n:
        raise InputError(f"--mesh {mesh} is {n_devices} devices, which --num-processes {n} does not divide")
    if n is None and processes.join():
        return  # a cluster decides its devices itself
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", n_devices // (n or 1))
    if n is not None:
        processes.join(address, n, index)


def placed(state: TrainState, config: RunConfig) -> TrainState:
    """Return a state, or the shapes of one, with the run's model; both lie on the run's mesh, if it has one."""
    computing, apply_fn = config.computing, state.apply_fn
    rules = sharding.FULLY_SHARDED if computing.fully_sharded else sharding.TENSOR_PARALLEL
    sizes = mesh_of(config)
    mesh = sharding.make_mesh(sizes["data"], sizes.get("model", 1)) if math.prod(sizes.values()) > 1 else None
    if mesh is not None:
        sharding.check_batch(config.schedule.batch_size // computing.microbatches, mesh)
        is_whole = mesh.shape["model"] == 1 and not computing.fully_sharded  # every device holds all parameters
        by_example = sharding.data_parallel(mesh.devices.ravel().tolist(), apply_fn)
        apply_fn = by_example if is_whole else sharding.sharded(mesh, rules, apply_fn)
    if computing.dtype != "float32":
        apply_fn = large.in_dtype(jnp.dtype(computing.dtype), apply_fn)
    state = state.replace(apply_fn=apply_fn)
    return sharding.place(state, mesh, rules) if mesh else state


def devices_of(config: RunConfig) -> list[Any]:
    """Return the devices of this process that a run uses."""
    n_devices = math.prod(mesh_of(config).values())
    return [device for device in jax.devices()[:n_devices] if device.process_index == jax.process_index()]


def spread(task: Task, like: TrainState) -> Task:
    """Return the task where the state is: with several processes, whole on every device of their mesh."""
    if jax.process_count() == 1:
        return task
    return processes.everywhere(task, jax.tree.leaves(like)[0].sharding.mesh)


def check_state_fits(like: TrainState, config: RunConfig) -> None:
    """Raise `InputError` if a state does not fit into the memory of its devices; nothing is allocated."""
    cost.check_fits(cost.state_bytes(like), cost.available_bytes(devices_of(config)))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiled steps of a run, and what they take."""

    call: Any
    """`(state, task, seed=…, stop=…) -> (state, metrics)`, as the steps that were compiled."""
    seconds: float
    """How long compiling took."""
    bytes: dict[str, int]
    """What each device holds meanwhile."""
    available: int | None
    """How many bytes each device can hold, if that is known."""
    flops: float
    """Products per step on each device; of a CPU's devices, which share its cores, on all."""
    peak: float
    """FLOP/s of a large product, measured."""

    __repr__ = outline


def compiled(
    steps: functools.partial[Any],
    task: Task,
    like: TrainState,
    config: RunConfig,
    *also: Lower,
    meanwhile: Callable[[], object] = lambda: None,
) -> Compiled:
    """Compile the steps of a run, from the shapes of its state.

    Args:
      steps: `jaxcalc.train_steps` with its static arguments.
      like: the state's shapes, as `placed` returns them.
      also: other programs, compiled at the same time.
      meanwhile: what else to do at that time.

    Raises `InputError` if the program does not fit into memory.
    """
    available = cost.available_bytes(devices_of(config))
    clock = time.perf_counter()
    schedule = config.schedule
    program_of: Any = steps.func  # jitted
    traced = program_of.trace(like, spread(task, like), seed=schedule.seed, stop=schedule.steps, **steps.keywords)
    with _saying("compiling …"):
        program, *_ = compile_at_once(traced.lower, *also, meanwhile=meanwhile)
    seconds = time.perf_counter() - clock
    sizes = cost.step_bytes(like, program)
    cost.check_fits(sizes, available)
    devices = devices_of(config)
    n_sharing = 1 if devices[0].platform == "cpu" else len(devices)
    flops = cost.flops(traced.jaxpr) / CHUNK / n_sharing
    return Compiled(program, seconds, sizes, available, flops, cost.matmul_peak(config.computing.dtype))


def _saying(what: str) -> contextlib.AbstractContextManager[Any]:
    """Show a line on a terminal; elsewhere nothing, so that an error is one line."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(what)
