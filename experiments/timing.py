"""How long functions take, for benchmark.py, larger_models.py and scaling.py."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A compiled program that is ready to be called."""

    call: Callable[[], Any]
    cost: dict[str, float]
    """What it takes besides the seconds of a call, such as "compile_seconds" and "memory_mib"."""


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(functions: dict[str, Callable[[], Any]], quick: bool) -> dict[str, float]:
    """Return the median seconds of one call of each function.

    The functions take turns, and every other round runs in reverse order, so that a slow phase of the machine hits
    all of them alike.
    """
    calls = {}
    for name, function in functions.items():
        jax.block_until_ready(function())
        start = time.perf_counter()
        jax.block_until_ready(function())
        calls[name] = max(1, int((0.1 if quick else 0.3) / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(3 if quick else 7):
        for name in list(functions)[:: 1 if index % 2 == 0 else -1]:
            start = time.perf_counter()
            for _ in range(calls[name]):
                jax.block_until_ready(functions[name]())
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(times) for name, times in seconds.items()}


def compile_timed(
    lower: Callable[..., Any], *arguments: Any, compiler_options: dict[str, Any] | None = None
) -> tuple[Any, dict[str, float]]:
    """Return a compiled program, the seconds that tracing and compiling took, and the MiB that a call holds."""
    start = time.perf_counter()
    compiled = lower(*arguments).compile(compiler_options)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return compiled, {"compile_seconds": seconds, "memory_mib": (held - memory.alias_size_in_bytes) / 2**20}
