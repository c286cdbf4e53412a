"""What a training step costs, known before it runs (host): bytes of state and program, operations, seconds.

The bytes come from shapes and from XLA's report on the compiled program. The operations are counted in the traced
program, because XLA's own count takes the body of a loop once, however often it runs. The seconds are operations
divided by a share of the speed that a large matrix product reaches on this device.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError

if TYPE_CHECKING:
    from jaxcalc.training import TrainState

UTILISATION = 0.5
"""The share of `matmul_peak` at which a step is predicted to run. On two CPU cores a model of a million parameters
takes 1.0 to 1.1 times the predicted time, and one of 100 thousand parameters 1.3 to 1.8 times, because it spends more
of its time outside of matrix products."""


def state_bytes(state: "TrainState") -> dict[str, int]:
    """Return the bytes of parameters, gradients and optimizer state on each device, for a state of arrays or shapes.

    Of a leaf with a sharding, only the part that one device holds is counted. Gradients are sharded like parameters.

    >>> import optax
    >>> from jaxcalc import ModelConfig, create_state, init
    >>> state_bytes(jax.eval_shape(lambda: create_state(init(jax.random.key(0), ModelConfig(35)), optax.adam(1e-3))))
    {'parameters': 414464, 'gradients': 414464, 'optimizer state': 828932}
    """
    params, opt_state = _bytes(state.params), _bytes(state.opt_state)
    return {"parameters": params, "gradients": params, "optimizer state": opt_state}


def _bytes(tree: Any) -> int:
    def leaf_bytes(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(leaf_bytes, jax.tree.leaves(tree)))


def step_bytes(state: "TrainState", compiled: Any) -> dict[str, int]:
    """Return the bytes that one call of a compiled `jaxcalc.train_steps` holds on each device.

    Parameters and optimizer state count once, because the call updates them in place. "task and metrics" are its other
    arguments and results; "temporaries" are activations, gradients and copies, as XLA has allocated them.
    """
    sizes, memory = state_bytes(state), compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    lasting = {name: sizes[name] for name in ("parameters", "optimizer state")}
    return {**lasting, "task and metrics": kept - sum(lasting.values()), "temporaries": memory.temp_size_in_bytes}


def flops(jaxpr: Any) -> int:
    """Return the floating-point operations of a traced program's matrix products, 2 · M · N · K each.

    The body of a `scan` counts as often as it runs, the body of any other loop once, and of a `cond` the costliest
    branch. For a program that runs on many devices the result is the sum over all of them.

    Args:
      jaxpr: the result of `jax.make_jaxpr(f)(…)`, or `jax.jit(f).trace(…).jaxpr`.

    >>> a = jnp.ones((3, 4))
    >>> flops(jax.make_jaxpr(lambda b: jax.lax.fori_loop(0, 10, lambda _, c: c + a @ a.T, b))(jnp.ones((3, 3))))
    720
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [
            flops(program)
            for value in equation.params.values()
            for program in (value if isinstance(value, tuple | list) else [value])
            if hasattr(program, "eqns")
        ]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def matmul_peak(dtype: Any = jnp.float32) -> float:
    """Return the FLOP/s that a product of two large square matrices reaches on the first device, at best.

    On a CPU they have 1,024 rows, and this takes at most about a fifth of a second, most of it to compile. On an
    accelerator they have 8,192, because it needs as long to start a product as to compute a small one.
    """
    size = 1024 if jax.devices()[0].platform == "cpu" else 8192
    a = jax.device_put(np.ones((size, size), dtype))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    seconds, started = [], time.perf_counter()
    while not seconds or time.perf_counter() - started < 0.1:
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def step_seconds(n_flops: float, peak: float) -> float:
    """Return the predicted seconds of a step of `n_flops` operations, at `UTILISATION` of a peak in FLOP/s."""
    return n_flops / (UTILISATION * peak)


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes(devices: Sequence[Any]) -> int | None:
    """Return the bytes that each of the devices can hold, or None if that is unknown.

    An accelerator reports its own limit (`memory_stats`). CPU devices share evenly what is left of the machine's
    memory and of this process's control group.
    """
    if devices[0].platform == "cpu":
        left = [n for n in (_machine_bytes(), _group_bytes()) if n is not None]
        return min(left) // len(devices) if left else None
    stats = [device.memory_stats() or {} for device in devices]
    limits = [stat["bytes_limit"] for stat in stats if "bytes_limit" in stat]
    return min(limits) if len(limits) == len(stats) else None


def _machine_bytes() -> int | None:
    """Return the memory that is free or can be freed, or all memory on a system that does not report this."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        return math.prod(map(os.sysconf, names)) if hasattr(os, "sysconf") else None


def _group_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that a Linux control group (version 2 or 1) may still use. Cached files do not count as used."""
    for folder, limit_file, used_file, cached in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            limit, used = ((folder / name).read_text().strip() for name in (limit_file, used_file))
            return None if limit == "max" else int(limit) - int(used) + int(stat[cached])
        except (OSError, KeyError):
            continue
    return None


def check_fits(sizes: Mapping[str, int], available: int | None) -> None:
    """Raise `InputError` if sizes in bytes add up to more than a device can hold; the message lists them.

    >>> check_fits({"parameters": 3 * 2**30, "gradients": 3 * 2**30}, 4 * 2**30)
    Traceback (most recent call last):
    jaxcalc.errors.InputError: it does not fit: parameters 3.0 GiB + gradients 3.0 GiB = 6.0 GiB; a device has 4.0 GiB
    """
    total = sum(sizes.values())
    if available is not None and total > available:
        listed = " + ".join(f"{name} {size_text(size)}" for name, size in sizes.items())
        raise InputError(f"it does not fit: {listed} = {size_text(total)}; a device has {size_text(available)}")


def size_text(n_bytes: int) -> str:
    """Return a number of bytes as text for people.

    >>> size_text(414_464), size_text(3 * 2**31)
    ('0.4 MiB', '6.0 GiB')
    """
    return f"{n_bytes / 2**30:,.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.1f} MiB"
