"""How fast is it, side by side with PyTorch and Flax Linen?

python experiments/benchmark.py --json experiments/results/benchmark.json --figure experiments/results/growth.png
→ train_steps makes 13,775 examples/s at batch 256 on two AMD EPYC cores: 1.22 times as many as PyTorch at the same
  length and 1.42 times as many as Flax Linen; `ask.py` answers in 2.1 s. It takes about 25 minutes on two CPU cores.

python experiments/benchmark.py --quick                                            # about 3 minutes, and coarser
python experiments/benchmark.py --markdown experiments/results/benchmark.json      # the tables of an earlier run

Every speed is the median of several rounds. PyTorch takes part if it is installed: pip install -e ".[bench]".
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from benchmark_processes import ask_seconds, time_to_accuracy  # beside this script
from benchmark_systems import (
    STEPS_PER_CALL,
    jaxcalc_step,
    jaxcalc_steps,
    linen_step,
    parallel_steps,
    population_steps,
    torch_steps,
)
from benchmark_tables import TUTORIAL_LENGTH, Row, growth_figure, markdown, tables
from rich.console import Console
from timing import Program, compile_timed, measure, n_cores

import jaxcalc
from jaxcalc import runs
from jaxcalc.errors import InputError
from jaxcalc.runs import checkpoint, cli, report
from jaxcalc.scale.cost import matmul_peak


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Measure jaxcalc on this machine, side by side with PyTorch and Flax Linen."""

    quick: bool = False
    """Fewer rounds, sizes and seeds."""
    json: Path | None = None
    """Write everything that was measured to this file."""
    figure: Path | None = None
    """Draw the growth of the cost into this file."""
    markdown: Path | None = None
    """Measure nothing; print the tables of an earlier --json file as Markdown."""


def main(options: BenchmarkOptions) -> int:
    if options.markdown is not None:
        try:
            print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{options.markdown} is not a file that --json wrote: {error!r}") from error
        return 0
    for path in (options.json, options.figure):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    # All but train_steps×N use the first device alone, with all its threads.
    jax.config.update("jax_num_cpu_devices", n_cores())
    console = Console(highlight=False)
    result: Row = {"machine": machine(), "quick": options.quick}
    for key, section in SECTIONS.items():
        print(f"measuring {key.replace('_', ' ')} …", file=sys.stderr)
        result[key] = section(result, options.quick)
        for table in tables({key: result[key]}):
            console.print(report.table(table.title, table.columns, table.rows), "")
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.figure is not None:
        growth_figure(options.figure, result["growth"])
    return 0


def machine() -> Row:
    """Return what the results depend on: processor, device and versions."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    torch = {"torch": importlib.metadata.version("torch")} if importlib.util.find_spec("torch") else {}
    device = jax.devices()[0]
    where = {"cpu": cpu, "cores": n_cores(), "device": device.device_kind, "platform": device.platform}
    return {**where, **runs.versions(), **torch}


def train_steps_compared(result: Row, quick: bool) -> list[Row]:
    """Return the speed of one training step of the default model, in jaxcalc and elsewhere."""
    task = jaxcalc.calculator()
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        print('PyTorch is not installed, so it is left out: pip install -e ".[bench]"', file=sys.stderr)
    rows = []
    for size in (64, 256) if quick else (64, 256, 1024):
        batch = jaxcalc.batch_at(task, 0, 0, size)
        length = batch.tokens.shape[1] - 1
        systems: dict[tuple[str, int], Program] = {
            ("train_step", length): jaxcalc_step(params, batch),
            ("train_steps", length): jaxcalc_steps(params, task, size),
            ("Flax Linen", length): linen_step(params, batch),
        }
        if len(jax.devices()) > 1:
            systems[f"train_steps×{len(jax.devices())}", length] = parallel_steps(params, task, size)
        if has_torch:
            systems |= torch_steps(params, batch, length) | torch_steps(params, batch, TUTORIAL_LENGTH)
        seconds = measure({f"{name}|{length}": program.call for (name, length), program in systems.items()}, quick)
        for (name, length), program in systems.items():
            n_steps = STEPS_PER_CALL if name.startswith("train_steps") else 1
            row = step_row(params, size, length, seconds[f"{name}|{length}"] / n_steps, result["matmul_peak_gflops"])
            rows.append({"system": name, **row, **program.cost})
    return rows


def step_row(params: jaxcalc.Params, size: int, length: int, seconds: float, peak: float) -> Row:
    """Return the speed of one training step.

    GFLOP/s are 6 · parameters · positions · examples/s (2 forward, 4 backward), even if an implementation skips work
    whose result nobody reads.
    """
    gflops = 6 * jaxcalc.count(params) * length * size / seconds / 1e9
    return {
        "batch": size,
        "length": length,
        "ms": 1e3 * seconds,
        "examples_per_second": size / seconds,
        "gflops": gflops,
        "share_of_peak": gflops / peak,
    }


GROWTH = {"batch": 64, "length": 8, "width": 32, "depth": 1}
"""What is doubled four times, and where it starts."""


def growth(result: Row, quick: bool) -> dict[str, list[Row]]:
    """Return the cost of one training step as one size is doubled and the others stay (batch 64, T 8, D 64, N 2)."""
    rows: dict[str, list[Row]] = {}
    for axis, first in GROWTH.items():
        rows[axis] = []
        for size in [first * 2**power for power in range(2 if quick else 5)]:
            n_batch, length = (size if axis == "batch" else 64), (size if axis == "length" else 8)
            width, depth = (size if axis == "width" else 64), (size if axis == "depth" else 2)
            config = jaxcalc.ModelConfig(35, d_model=width, d_ff=4 * width, n_layers=depth, context_length=length)
            params = jaxcalc.init(jax.random.key(0), config)
            tokens = jax.random.randint(jax.random.key(1), (n_batch, length + 1), 1, 35)
            step = jaxcalc_step(params, jaxcalc.Batch(tokens, jnp.ones((n_batch, 3))))
            seconds = measure({"step": step.call}, quick)["step"]
            row = step_row(params, n_batch, length, seconds, result["matmul_peak_gflops"])
            base = rows[axis][0]["ms"] if rows[axis] else row["ms"]
            rows[axis].append({axis: size, **row, **step.cost, "ratio": row["ms"] / base})
    return rows


def populations(quick: bool) -> list[Row]:
    """Return the speed of one step of several models trained at once, and of as many trained one after another."""
    task = jaxcalc.calculator()
    config = jaxcalc.ModelConfig(task.vocab_size)
    on_cpu = jax.devices()[0].platform == "cpu"
    rows = []
    for size in (64, 256):
        alone = jaxcalc_steps(jaxcalc.init(jax.random.key(0), config), task, size)
        counts = (1, 4) if quick else (1, 2, 4, 8, 16) if on_cpu else (1, 4, 16, 64, 256, 1024)
        programs = {n_models: population_steps(config, task, n_models, size) for n_models in counts}
        calls = {"alone": alone.call} | {str(n_models): program.call for n_models, program in programs.items()}
        seconds = measure(calls, quick)
        for n_models, program in programs.items():
            at_once = seconds[str(n_models)] / STEPS_PER_CALL
            apart = n_models * seconds["alone"] / STEPS_PER_CALL
            rows.append(
                {
                    "models": n_models,
                    "batch": size,
                    "ms_at_once": 1e3 * at_once,
                    "ms_one_after_another": 1e3 * apart,
                    "times_as_fast": apart / at_once,
                    **program.cost,
                }
            )
    return rows


def saving(quick: bool) -> Row:
    """Return the seconds of 200 steps of the default recipe, without and with a checkpoint saved meanwhile."""
    task, size = jaxcalc.calculator(), 512
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    state = jaxcalc.create_state(params, jaxcalc.make_optimizer("muon", n_steps=None))
    lower = functools.partial(jaxcalc.train_steps.lower, seed=0, n_steps=STEPS_PER_CALL, batch_size=size)
    compiled, _cost = compile_timed(lower, state, task)

    def steps() -> None:
        nonlocal state
        for _ in range(200 // STEPS_PER_CALL):
            state, metrics = compiled(state, task, seed=0)
            jax.block_until_ready(metrics)

    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoint.Writer(Path(folder), {})

        def steps_and_save() -> None:
            writer.save(state)
            steps()
            writer.wait()

        seconds = measure({"without": steps, "saving": steps_and_save}, quick)
    return {"steps": 200, "batch": size, **seconds, "share": seconds["saving"] / seconds["without"] - 1}


def decode_answers_per_second(quick: bool) -> float:
    """Return the speed of decoding the complete table, token by token."""
    task = jaxcalc.calculator(split="none")
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    rows = task.train_rows
    seconds = measure({"decode": lambda: jaxcalc.evaluate(params, task, rows).exact_match}, quick)
    return rows.size / seconds["decode"]


SECTIONS: dict[str, Callable[[Row, bool], Any]] = {
    "matmul_peak_gflops": lambda result, quick: matmul_peak() / 1e9,
    "train_step": train_steps_compared,
    "growth": growth,
    "population": lambda result, quick: populations(quick),
    "saving": lambda result, quick: saving(quick),
    "decode_answers_per_second": lambda result, quick: decode_answers_per_second(quick),
    "ask_seconds": lambda result, quick: ask_seconds(quick),
    "time_to_accuracy": lambda result, quick: time_to_accuracy(quick),
}
"""Each part of the result, made from the parts before it."""


if __name__ == "__main__":
    sys.exit(cli.run_script(main, BenchmarkOptions))
