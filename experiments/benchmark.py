"""How fast is it, side by side with PyTorch and Flax Linen?

python experiments/benchmark.py --json experiments/results/benchmark.json --figure experiments/results/growth.png
→ train_steps makes 19,994 examples/s at batch 256 on two cores of an Intel Xeon: 1.9 times as many as PyTorch at the
  same length and 1.5 times as many as Flax Linen; `ask.py` answers in 1.67 s. It takes about 20 minutes on two cores.

python experiments/benchmark.py --quick                                            # about 4 minutes, and coarser
python experiments/benchmark.py --only steps growth --json benchmark.json          # these sections, put into the file
python experiments/benchmark.py --markdown experiments/results/benchmark.json      # the tables of an earlier run
python experiments/benchmark.py --compare HEAD~20                                  # a commit with this checkout
python experiments/benchmark.py --compare v1 v2                                    # a commit with another

Every figure is a median over rounds in which all systems take turns. PyTorch takes part if it is installed:
pip install -e ".[bench]".
"""

import dataclasses
import functools
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from benchmark_commits import compare, resolved  # beside this script
from benchmark_conditions import observed
from benchmark_processes import ask_rows, training_rows
from benchmark_rows import TUTORIAL_LENGTH, Row, multiples, per_step, step_row
from benchmark_systems import (
    STEPS_PER_CALL,
    jaxcalc_step,
    jaxcalc_steps,
    linen_step,
    parallel_steps,
    population_steps,
    recipe_steps,
    torch_steps,
)
from benchmark_tables import growth_figure, markdown, tables
from rich.console import Console
from timing import Program, Rounds, compile_timed, ratio, rounds, summary, turn

import jaxcalc
from jaxcalc import runs
from jaxcalc.errors import InputError
from jaxcalc.runs import checkpoint, cli, report
from jaxcalc.runs.config import CHUNK
from jaxcalc.scale.cost import matmul_peak, n_cores

SectionName = Literal["steps", "recipe", "growth", "populations", "saving", "decoding", "ask", "training"]


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Measure jaxcalc on this machine, side by side with PyTorch and Flax Linen."""

    quick: bool = False
    """Fewer rounds, sizes and seeds."""
    only: tuple[SectionName, ...] = ()
    """Measure these sections, and leave the others in the --json file as they are."""
    json: Path | None = None
    """Write everything that was measured to this file."""
    figure: Path | None = None
    """Draw the growth of the cost into this file."""
    markdown: Path | None = None
    """Measure nothing; print the tables of an earlier --json file as Markdown."""
    compare: tuple[str, ...] = ()
    """Compare two commits of this project, or one with this checkout as it stands; measure nothing else."""


def main(options: BenchmarkOptions) -> int:
    if options.markdown is not None:
        print(markdown(read(options.markdown)))
        return 0
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other processes need some of a GPU's memory
    for path in (options.json, options.figure):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    keep = options.json is not None and options.json.exists() and (options.only or options.compare)
    result = read(options.json) if options.json is not None and keep else {}
    if options.compare:
        sections = {"compare": functools.partial(compare, resolved(options.compare))}
    else:
        jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are those of compiling
        # All but train.py's own steps and train_steps×N use the first device alone, with all its threads.
        jax.config.update("jax_num_cpu_devices", n_cores())
        sections = {name: section for name, section in SECTIONS.items() if name in (options.only or SECTIONS)}
    console = Console(highlight=False)
    for name, section in sections.items():
        print(f"measuring {name} …", file=sys.stderr)
        with observed() as conditions:
            measured = section(options.quick)
        result[name] = {"conditions": {**conditions, "quick": options.quick}, **measured}
        for table in tables({name: result[name]}):
            console.print(report.table(table.title, table.columns, table.rows), "")
        if options.json is not None:
            ordered = {name: result[name] for name in (*SECTIONS, "compare") if name in result}
            options.json.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.figure is not None:
        growth_figure(options.figure, result["growth"]["rows"])
    return 0


def read(path: Path) -> Row:
    """Return what an earlier run wrote. Raises `InputError` for another file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        markdown(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a file that --json wrote: {error!r}") from error
    return result


def timed(
    programs: dict[Any, Program], quick: bool, peak: Callable[[], float] | None = matmul_peak
) -> dict[Any, Rounds]:
    """Return what the programs took in each round, and the FLOP/s of a matrix product beside them."""
    keys = {str(key): key for key in programs}
    turns = {name: turn(programs[key].call, quick) for name, key in keys.items()}
    taken = rounds(turns, quick, peak)
    return {keys[name]: each for name, each in taken.items()}


def steps(quick: bool) -> Row:
    """Return the speed of one training step of the default model, in jaxcalc and elsewhere."""
    task = jaxcalc.calculator()
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    has_torch = importlib.util.find_spec("torch") is not None and jax.devices()[0].platform == "cpu"
    if not has_torch:
        print('PyTorch is left out: it takes part on a CPU, with: pip install -e ".[bench]"', file=sys.stderr)
    rows, ratios = [], []
    for size in (256,) if quick else (64, 256, 1024):
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
        taken = {
            (name, length): per_step(each, STEPS_PER_CALL if name.startswith("train_steps") else 1)
            for (name, length), each in timed(systems, quick).items()
        }
        for (name, n_positions), each in taken.items():
            row = step_row(params, size, n_positions, task.answer_length, each)
            rows.append({"system": name, **row, **systems[name, n_positions].cost})
        ratios += multiples(taken, length, size)
    return {"rows": rows, "ratios": ratios}


def recipe(quick: bool) -> Row:
    """Return the speed of one step of train.py's defaults, as train.py takes them."""
    config = runs.RunConfig()
    task, params = config.make_task(), jaxcalc.init(jax.random.key(0), config.make_model())
    with recipe_steps() as program:
        taken = per_step(timed({"recipe": program}, quick)["recipe"], CHUNK)
        row = step_row(params, config.schedule.batch_size, task.context_length, task.answer_length, taken)
    return {"rows": [{"system": "train.py's steps", **row, **program.cost}]}


GROWTH = {"batch": 64, "length": 8, "width": 32, "depth": 1}
"""What is doubled four times, and where it starts."""


def growth(quick: bool) -> Row:
    """Return the cost of one training step as one size is doubled and the others stay (batch 64, T 8, D 64, N 2)."""
    rows: list[Row] = []
    for axis, first in GROWTH.items():
        programs, sizes = {}, {}  # sizes: parameters, batch and positions
        for size in [first * 2**power for power in range(2 if quick else 5)]:
            n_batch, length = (size if axis == "batch" else 64), (size if axis == "length" else 8)
            width, depth = (size if axis == "width" else 64), (size if axis == "depth" else 2)
            config = jaxcalc.ModelConfig(35, d_model=width, d_ff=4 * width, n_layers=depth, context_length=length)
            params = jaxcalc.init(jax.random.key(0), config)
            tokens = jax.random.randint(jax.random.key(1), (n_batch, length + 1), 1, 35)
            programs[size] = jaxcalc_step(params, jaxcalc.Batch(tokens, jnp.ones((n_batch, 3))))
            sizes[size] = params, n_batch, length
        taken = timed(programs, quick)
        for size, program in programs.items():
            row = step_row(*sizes[size], n_answers=3, steps=taken[size])
            times = ratio(taken[size].seconds, taken[first].seconds)["median"]
            rows.append({"axis": axis, "size": size, **row, **program.cost, "ratio": times})
    return {"rows": rows}


def populations(quick: bool) -> Row:
    """Return the speed of one step of several models trained at once, and of as many trained one after another."""
    on_cpu = jax.devices()[0].platform == "cpu"
    counts = (1, 4) if quick else (1, 4, 16) if on_cpu else (1, 4, 16, 64, 256, 1024)
    sizes = (64,) if quick else (64, 256)
    return {"rows": [row for size in sizes for row in population_rows(counts, size, quick)]}


def population_rows(counts: tuple[int, ...], size: int, quick: bool) -> list[Row]:
    """Return a row for each number of models that are trained at once."""
    task = jaxcalc.calculator()
    config = jaxcalc.ModelConfig(task.vocab_size)
    alone = jaxcalc_steps(jaxcalc.init(jax.random.key(0), config), task, size)
    programs = {n_models: population_steps(config, task, n_models, size) for n_models in counts}
    taken = timed({0: alone, **programs}, quick, peak=None)
    rows = []
    for n_models, program in programs.items():
        at_once = summary(taken[n_models].seconds)
        apart = [n_models * seconds for seconds in taken[0].seconds]
        rows.append(
            {
                "models": n_models,
                "batch": size,
                "ms_at_once": 1e3 * at_once["median"] / STEPS_PER_CALL,
                "ms_one_after_another": 1e3 * summary(apart)["median"] / STEPS_PER_CALL,
                "times_as_fast": ratio(apart, taken[n_models].seconds)["median"],
                "spread": at_once["spread"],
                "noisy": at_once["noisy"],
                **program.cost,
            }
        )
    return rows


def saving(quick: bool) -> Row:
    """Return the seconds of 200 steps of the default recipe, without and with a checkpoint saved meanwhile."""
    task, size, n_steps = jaxcalc.calculator(), 512, 40 if quick else 200
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    state = jaxcalc.create_state(params, jaxcalc.make_optimizer("muon", n_steps=None))
    lower = functools.partial(jaxcalc.train_steps.lower, seed=0, n_steps=STEPS_PER_CALL, batch_size=size)
    compiled, _cost = compile_timed(lower, state, task)

    def take_steps() -> None:
        nonlocal state
        for _ in range(n_steps // STEPS_PER_CALL):
            state, metrics = compiled(state, task, seed=0)
            jax.block_until_ready(metrics)

    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoint.Writer(Path(folder), {})

        def steps_and_save() -> None:
            writer.save(state)
            take_steps()
            writer.wait()

        programs = {"without": Program(take_steps, {}), "saving": Program(steps_and_save, {})}
        taken = timed(programs, quick, peak=None)
    times = ratio(taken["saving"].seconds, taken["without"].seconds)
    seconds = {name: summary(each.seconds)["median"] for name, each in taken.items()}
    row = {"steps": n_steps, "batch": size, **seconds, "share": times["median"] - 1}
    return {"rows": [{**row, "spread": times["spread"], "noisy": times["noisy"]}]}


def decoding(quick: bool) -> Row:
    """Return the speed of decoding the complete table, token by token."""
    task = jaxcalc.calculator(split="none")
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    rows = task.train_rows
    decode = Program(lambda: jaxcalc.evaluate(params, task, rows).exact_match, {})
    speed = summary(rows.size / seconds for seconds in timed({"": decode}, quick, peak=None)[""].seconds)
    return {"rows": [{"answers_per_second": speed.pop("median"), **speed}]}


SECTIONS: dict[SectionName, Callable[[bool], Row]] = {
    "steps": steps,
    "recipe": recipe,
    "growth": growth,
    "populations": populations,
    "saving": saving,
    "decoding": decoding,
    "ask": lambda quick: {"rows": ask_rows(quick)},
    "training": lambda quick: {"rows": training_rows(quick)},
}
"""Each part of the result: its rows, and for the steps also the ratios between them."""


if __name__ == "__main__":
    sys.exit(cli.run_script(main, BenchmarkOptions))
