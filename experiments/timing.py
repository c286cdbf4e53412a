"""How long functions take on a machine that others use too, for benchmark.py, gpu.py and larger_models.py.

Functions take turns, round after round, so what slows the machine down slows all of them. What is compared is compared
within a round: a ratio is the median of the rounds' ratios.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

NOISY = 0.2
"""The spread above which a median says little."""

Turn = Callable[[], float]
"""One turn of a function, which returns the seconds of one call."""


class Program(NamedTuple):
    """A compiled program that is ready to be called."""

    call: Callable[[], Any]
    cost: dict[str, float]
    """What it takes besides the seconds of a call, such as "compile_seconds" and "memory_mib"."""


class Rounds(NamedTuple):
    """What one function took, a value per round."""

    seconds: list[float]
    """Of one call."""
    peaks: list[float]
    """FLOP/s of the fastest matrix product just before and just after; empty where it was not measured."""


def turn(function: Callable[[], Any], quick: bool) -> Turn:
    """Warm a function up, and return a turn of it: as many calls as fill 0.3 s (0.1 if quick), at least one."""
    jax.block_until_ready(function())
    start = time.perf_counter()
    jax.block_until_ready(function())
    n_calls = max(1, int((0.1 if quick else 0.3) / (time.perf_counter() - start)))

    def take() -> float:
        start = time.perf_counter()
        for _ in range(n_calls):
            jax.block_until_ready(function())
        return (time.perf_counter() - start) / n_calls

    return take


def rounds(turns: dict[str, Turn], quick: bool, peak: Callable[[], float] | None = None) -> dict[str, Rounds]:
    """Return what each function took in each of 7 rounds (3 if quick); every other round runs in reverse order.

    Args:
      peak: returns the FLOP/s of a matrix product. It runs between any two turns.
    """
    taken = {name: Rounds([], []) for name in turns}
    for index in range(3 if quick else 7):
        before = peak() if peak else 0
        for name in list(turns)[:: 1 if index % 2 == 0 else -1]:
            taken[name].seconds.append(turns[name]())
            if peak:
                after = peak()
                taken[name].peaks.append(max(before, after))
                before = after
    return taken


def measure(functions: dict[str, Callable[[], Any]], quick: bool) -> dict[str, float]:
    """Return the median seconds of one call of each function."""
    taken = rounds({name: turn(function, quick) for name, function in functions.items()}, quick)
    return {name: statistics.median(each.seconds) for name, each in taken.items()}


def summary(values: Iterable[float]) -> dict[str, Any]:
    """Return the median of the rounds' values, and their spread: the interquartile range, divided by the median.

    A single value has no spread (None).

    >>> summary([8, 10, 10, 11, 30])
    {'median': 10.0, 'spread': 0.1, 'noisy': False}
    """
    values = list(values)
    if len(values) == 1:
        return {"median": values[0], "spread": None, "noisy": False}
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    spread = (third - first) / abs(median)
    return {"median": median, "spread": spread, "noisy": spread > NOISY}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
    """Return the `summary` of the ratios within each round.

    >>> ratio([2, 20, 2], [1, 10, 1])["median"]  # the second round was slow for both
    2.0
    """
    return summary(a / b for a, b in zip(over, under, strict=True))


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
