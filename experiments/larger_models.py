"""What pays for larger models? The tables of the README's "Larger models", measured on this machine.

python experiments/larger_models.py            # about three minutes on two CPU cores
"""

import dataclasses
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from benchmark import measure
from rich.console import Console

import jaxcalc
from jaxcalc.losses import ApplyFn
from jaxcalc.model import SIZES, SizeName
from jaxcalc.runs import report
from jaxcalc.scale import cost, large

VARIANTS: dict[str, ApplyFn] = {
    "apply": jaxcalc.apply,
    "remat": large.unrolled(large.remat()),
    "scanned": large.scanned(),
    "scanned, remat": large.scanned(large.remat()),
}
SIZE: SizeName = "100K"  # whose width the depths are measured at


@dataclasses.dataclass(frozen=True)
class LargerOptions:
    """Measure what remat, scanned depth, microbatches and fused attention take, and how good predictions are."""

    depths: tuple[int, ...] = (2, 8, 16, 32)
    """Blocks of the model for the first table."""
    lengths: tuple[int, ...] = (8, 64, 256, 1024)
    """Positions for the table of attention."""


def main(options: LargerOptions) -> int:
    console = Console(highlight=False)
    tables = (
        functools.partial(by_depth, options.depths), by_microbatches, functools.partial(by_length, options.lengths),
        predictions,
    )  # fmt: skip
    for make in tables:
        title, columns, rows = make()
        console.print(report.table(title, columns, rows), "")
    return 0


Rows = tuple[str, list[str], list[list[str]]]


def compiled_step(
    config: jaxcalc.ModelConfig, size: int, apply_fn: ApplyFn, step_fn: Any = jaxcalc.train_step
) -> tuple[Any, list[str]]:
    """Return a call of a step, and what compiling it took: seconds, instructions, MiB of temporaries."""
    params = jaxcalc.init(jax.random.key(0), config)
    state = jaxcalc.create_state(params, optax.adamw(1e-3), apply_fn)
    tokens = jax.random.randint(jax.random.key(1), (size, config.context_length + 1), 1, config.vocab_size)
    batch = jaxcalc.Batch(tokens, jnp.ones((size, 3)))
    start = time.perf_counter()
    compiled = step_fn.lower(state, batch).compile()
    seconds = time.perf_counter() - start
    n_instructions = compiled.as_text().count(" = ")
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    return lambda: compiled(state, batch), [f"{seconds:.1f}", f"{n_instructions:,}", f"{temporaries:.0f}"]


def by_depth(depths: tuple[int, ...]) -> Rows:
    """Return what each way to loop over the depth takes, at the width of `SIZE`, 256 examples of 8 tokens."""
    rows = []
    for depth in depths:
        config = jaxcalc.ModelConfig(35, **{**SIZES[SIZE], "n_layers": depth})
        steps = {name: compiled_step(config, 256, apply_fn) for name, apply_fn in VARIANTS.items()}
        seconds = measure({name: call for name, (call, _) in steps.items()}, quick=True)
        rows += [[name, str(depth), *said, f"{1e3 * seconds[name]:.0f}"] for name, (_, said) in steps.items()]
    return "Depth", ["", "blocks", "compile s", "instructions", "temporaries MiB", "ms a step"], rows


def by_microbatches() -> Rows:
    """Return what the 1M model's step takes in parts, 512 examples of 8 tokens."""
    config = jaxcalc.ModelConfig(35, **SIZES["1M"])
    steps = {
        n: compiled_step(config, 512, jaxcalc.apply, jaxcalc.in_microbatches(n) if n > 1 else jaxcalc.train_step)
        for n in (1, 4, 16)
    }
    seconds = measure({str(n): call for n, (call, _) in steps.items()}, quick=True)
    rows = [[str(n), *said, f"{1e3 * seconds[str(n)]:.0f}"] for n, (_, said) in steps.items()]
    return "Microbatches", ["parts", "compile s", "instructions", "temporaries MiB", "ms a step"], rows


def by_length(lengths: tuple[int, ...]) -> Rows:
    """Return what a block's attention, written out and fused, takes forward and backward, about 2,048 tokens."""
    rows = []
    for length in lengths:
        config = jaxcalc.ModelConfig(35, **{**SIZES[SIZE], "n_layers": 1}, context_length=length)
        block = jaxcalc.init(jax.random.key(0), config)["blocks"][0]
        x_BTD = jax.random.normal(jax.random.key(1), (max(1, 2048 // length), length, config.d_model))
        calls, temporaries = {}, {}
        for name, block_fn in (("written out", large.block), ("fused", large.fused_block)):
            score = jax.grad(lambda block, x, block_fn=block_fn: block_fn(block, x, None).std(), argnums=(0, 1))
            compiled: Any = jax.jit(score).lower(block, x_BTD).compile()
            calls[name] = functools.partial(compiled, block, x_BTD)
            temporaries[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        seconds = measure(calls, quick=True)
        rows += [[name, f"{length:,}", f"{1e3 * seconds[name]:.1f}", f"{temporaries[name]:.0f}"] for name in calls]
    return "Attention", ["", "positions", "ms", "temporaries MiB"], rows


def predictions() -> Rows:
    """Return the milliseconds that train.py's default recipe was predicted to take a step, and took."""
    task, n_steps = jaxcalc.calculator(), 2
    rows = []
    cases: tuple[tuple[SizeName, int], ...] = (("100K", 64), ("100K", 512), ("1M", 64), ("1M", 512))
    for name, size in cases:
        params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size, **SIZES[name]))
        state = jaxcalc.create_state(params, jaxcalc.make_optimizer("muon", None))
        traced = jaxcalc.train_steps.trace(state, task, seed=0, n_steps=n_steps, batch_size=size)
        n_flops, compiled = cost.flops(traced.jaxpr) / n_steps, traced.lower().compile()

        def call(compiled: Any = compiled) -> Any:
            nonlocal state
            state, metrics = compiled(state, task, seed=0)
            return metrics

        peak = cost.matmul_peak()
        took = measure({"step": call}, quick=True)["step"] / n_steps
        predicted = cost.step_seconds(n_flops, peak)
        by_rule = 6 * jaxcalc.count(params) * size * task.context_length
        rows.append(
            [name, str(size), f"{n_flops / 1e9:.2f}", f"{by_rule / 1e9:.2f}", f"{peak / 1e9:.0f}",
             f"{1e3 * predicted:.0f}", f"{1e3 * took:.0f}", f"{took / predicted:.1f}"]
        )  # fmt: skip
    columns = ["model", "batch", "GFLOP", "6·N·tokens", "peak", "predicted ms", "measured ms", "ratio"]
    return "Predictions", columns, rows


if __name__ == "__main__":
    sys.exit(report.run_script(main, LargerOptions))
