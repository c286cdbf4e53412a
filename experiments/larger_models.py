"""What pays for larger models: remat, scanned depth, microbatches, fused attention? And how good are predictions?

python experiments/larger_models.py
→ with 32 blocks, scanned depth with remat needs 37 MiB of temporaries instead of 301 and takes 279 ms instead of 300;
  alone, neither pays on a CPU. Predicted and measured times of a step: 228 and 217 ms (1M, batch 512). It takes about
  three minutes on two CPU cores.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from timing import measure  # beside this script

import jaxcalc
from jaxcalc.losses import ApplyFn
from jaxcalc.model import SIZES, SizeName
from jaxcalc.runs import cli, report
from jaxcalc.scale import cost, large

VARIANTS: dict[str, ApplyFn] = {
    "apply": jaxcalc.apply,
    "remat": large.unrolled(large.remat()),
    "scanned": large.scanned(),
    "scanned, remat": large.scanned(large.remat()),
}
SIZE: SizeName = "100K"
"""The size whose width the depths and lengths are measured at."""

Row = dict[str, str | float]

TABLES = {
    "depth": {
        "": "{way}",
        "blocks": "{blocks}",
        "compile s": "{compile_seconds:.1f}",
        "instructions": "{instructions:,}",
        "temporaries MiB": "{temporaries_mib:.0f}",
        "ms per step": "{ms:.0f}",
    },
    "microbatches": {
        "parts": "{parts}",
        "compile s": "{compile_seconds:.1f}",
        "instructions": "{instructions:,}",
        "temporaries MiB": "{temporaries_mib:.0f}",
        "ms per step": "{ms:.0f}",
    },
    "attention": {
        "": "{way}",
        "positions": "{positions:,}",
        "ms": "{ms:.1f}",
        "temporaries MiB": "{temporaries_mib:.0f}",
    },
    "predictions": {
        "model": "{model}",
        "batch": "{batch}",
        "GFLOP": "{gflop:.2f}",
        "6·N·tokens": "{gflop_by_rule:.2f}",
        "peak": "{peak_gflops:.0f}",
        "predicted ms": "{predicted_ms:.0f}",
        "measured ms": "{ms:.0f}",
        "ratio": "{ratio:.1f}",
    },
}
"""The columns of each table, and how a cell shows a row."""


@dataclasses.dataclass(frozen=True)
class LargerOptions:
    """Measure what remat, scanned depth, microbatches and fused attention take, and how good predictions are."""

    depths: tuple[int, ...] = (2, 8, 16, 32)
    """Blocks of the models in the first table."""
    lengths: tuple[int, ...] = (8, 64, 256, 1024)
    """Positions in the table of attention."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(options: LargerOptions) -> int:
    measurements = {
        "depth": functools.partial(by_depth, options.depths),
        "microbatches": by_microbatches,
        "attention": functools.partial(by_length, options.lengths),
        "predictions": predictions,
    }
    console = Console(highlight=False)
    result = {}
    for name, measurement in measurements.items():
        print(f"measuring {name} …", file=sys.stderr)
        result[name] = measurement()
        if not options.json:
            console.print(table(name, result[name]), "")
    if options.json:
        print(json.dumps(result))
    return 0


def table(name: str, rows: list[Row]) -> Any:
    """Return one of `TABLES` for the terminal."""
    columns = TABLES[name]
    cells = [[form.format(**row) for form in columns.values()] for row in rows]
    return report.table(name.capitalize(), list(columns), cells)


def compiled_step(
    config: jaxcalc.ModelConfig, size: int, apply_fn: ApplyFn, step_fn: Any = jaxcalc.train_step
) -> tuple[Callable[[], Any], Row]:
    """Return a call of a training step, and what its program takes."""
    params = jaxcalc.init(jax.random.key(0), config)
    state = jaxcalc.create_state(params, optax.adamw(1e-3), apply_fn)
    tokens = jax.random.randint(jax.random.key(1), (size, config.context_length + 1), 1, config.vocab_size)
    batch = jaxcalc.Batch(tokens, jnp.ones((size, 3)))
    start = time.perf_counter()
    compiled = step_fn.lower(state, batch).compile()
    taken: Row = {
        "compile_seconds": time.perf_counter() - start,
        "instructions": compiled.as_text().count(" = "),
        "temporaries_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }
    return lambda: compiled(state, batch), taken


def by_depth(depths: tuple[int, ...]) -> list[Row]:
    """Return what each way to loop over the depth takes, at the width of `SIZE`, 256 examples of 8 tokens."""
    rows: list[Row] = []
    for depth in depths:
        config = jaxcalc.ModelConfig(35, **{**SIZES[SIZE], "n_layers": depth})
        steps = {way: compiled_step(config, 256, apply_fn) for way, apply_fn in VARIANTS.items()}
        seconds = measure({way: call for way, (call, _) in steps.items()}, quick=True)
        rows += [{"way": way, "blocks": depth, **taken, "ms": 1e3 * seconds[way]} for way, (_, taken) in steps.items()]
    return rows


def by_microbatches() -> list[Row]:
    """Return what a step of the 1M model takes in 1, 4 and 16 parts, 512 examples of 8 tokens."""
    config = jaxcalc.ModelConfig(35, **SIZES["1M"])
    steps = {
        n: compiled_step(config, 512, jaxcalc.apply, jaxcalc.in_microbatches(n) if n > 1 else jaxcalc.train_step)
        for n in (1, 4, 16)
    }
    seconds = measure({str(n): call for n, (call, _) in steps.items()}, quick=True)
    return [{"parts": n, **taken, "ms": 1e3 * seconds[str(n)]} for n, (_, taken) in steps.items()]


def by_length(lengths: tuple[int, ...]) -> list[Row]:
    """Return what a block with attention written out and with fused attention takes, forward and backward.

    Each length has as many examples as make about 2,048 tokens.
    """
    rows: list[Row] = []
    for length in lengths:
        config = jaxcalc.ModelConfig(35, **{**SIZES[SIZE], "n_layers": 1}, context_length=length)
        block = jaxcalc.init(jax.random.key(0), config)["blocks"][0]
        x_BTD = jax.random.normal(jax.random.key(1), (max(1, 2048 // length), length, config.d_model))
        calls, temporaries = {}, {}
        for way, block_fn in (("written out", large.block), ("fused", large.fused_block)):
            score = jax.grad(lambda block, x, block_fn=block_fn: block_fn(block, x, None).std(), argnums=(0, 1))
            compiled: Any = jax.jit(score).lower(block, x_BTD).compile()
            calls[way] = functools.partial(compiled, block, x_BTD)
            temporaries[way] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        seconds = measure(calls, quick=True)
        rows += [
            {"way": way, "positions": length, "ms": 1e3 * seconds[way], "temporaries_mib": temporaries[way]}
            for way in calls
        ]
    return rows


def predictions() -> list[Row]:
    """Return the milliseconds that a step of train.py's default recipe takes, as predicted and as measured."""
    task, n_steps = jaxcalc.calculator(), 2
    rows: list[Row] = []
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
        measured = measure({"step": call}, quick=True)["step"] / n_steps
        predicted = cost.step_seconds(n_flops, peak)
        rows.append(
            {
                "model": name,
                "batch": size,
                "gflop": n_flops / 1e9,
                "gflop_by_rule": 6 * jaxcalc.count(params) * size * task.context_length / 1e9,
                "peak_gflops": peak / 1e9,
                "predicted_ms": 1e3 * predicted,
                "ms": 1e3 * measured,
                "ratio": measured / predicted,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(cli.run_script(main, LargerOptions))
