"""Which learning rate and weight decay? Train a grid of models as one, and count how often each cell learns.

python experiments/sweep.py
→ Muon's best cell is its default, rate 0.04 and decay 0.25: all three seeds reach 99 %, median 99.91 %, worst 99.82 %.
  It trains 3 rates × 3 decays × 3 seeds in about 10 minutes on two CPU cores.

python experiments/sweep.py --optimizer adamw --learning-rate 1e-3 3e-3 1e-2 --weight-decay 0.1 1

A cell is judged by how many of its seeds reach the threshold, not by its best seed. Tune on these splits, of seeds 100
and above, and report results on others.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxcalc
from jaxcalc import population, runs
from jaxcalc.errors import InputError
from jaxcalc.optimizers import DEFAULT_LEARNING_RATE, DEFAULT_WEIGHT_DECAY, OptimizerName
from jaxcalc.runs import cli, report
from jaxcalc.runs.config import SizesConfig, TaskConfig
from jaxcalc.runs.options import WithoutPrefix
from jaxcalc.runs.text import percent

Row = dict[str, float]
"""What one model or one cell of the grid reaches; sweep.json holds it."""


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Train a model for each learning rate, weight decay and seed."""

    out: Path = Path("runs/sweep")
    """Folder for sweep.json and sweep.png; it must not hold a sweep yet."""
    json: bool = False
    """Print the result as JSON to stdout, and the table to stderr."""
    optimizer: OptimizerName = "muon"
    """How gradients become steps."""
    learning_rate: tuple[float, ...] = ()
    """Peaks of the learning rate; half, once and twice the default of the optimizer if left out."""
    weight_decay: tuple[float, ...] = ()
    """Weight decays; a quarter, once and four times the default of the optimizer if left out."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds, one grid each. A seed chooses the held-out problems, the first weights and the order of the batches."""
    steps: int = 600
    """Training steps."""
    batch_size: int = 512
    """Problems per step and model."""
    threshold: float = 0.99
    """Held-out exact match that a model must reach to count."""
    task: Annotated[TaskConfig, WithoutPrefix] = TaskConfig()
    model: SizesConfig = SizesConfig()


def main(options: SweepOptions) -> int:
    check(options)
    rates = options.learning_rate or tuple(m * DEFAULT_LEARNING_RATE[options.optimizer] for m in (0.5, 1, 2))
    decays = options.weight_decay or tuple(
        dict.fromkeys(m * DEFAULT_WEIGHT_DECAY[options.optimizer] for m in (0.25, 1, 4))
    )
    path = options.out / "sweep.json"
    if path.exists():
        raise InputError(f"{path} exists; choose another --out or remove it")
    # Find everything that can be wrong before writing anything.
    tasks = {seed: options.task.make(seed) for seed in options.seeds}
    for task in tasks.values():
        if not task.held_out_rows.size:
            raise InputError(f"--split {options.task.split} holds nothing out; choose one that does")
        jax.eval_shape(lambda task=task: jaxcalc.batch_at(task, 0, 0, options.batch_size))
    grid = list(itertools.product(rates, decays))
    for rate, decay in grid:
        jaxcalc.make_optimizer(options.optimizer, options.steps, rate, decay)

    options.out.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(dataclasses.replace(options, learning_rate=rates, weight_decay=decays))
    result: dict[str, Any] = {"config": config, "versions": runs.versions(), "device": jax.devices()[0].device_kind}
    result["models"] = []
    for seed, task in tasks.items():
        started = time.perf_counter()
        result["models"] += train_grid(options, task, seed, grid)
        result["cells"] = cells(result["models"], options.threshold)
        path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
        print(f"seed {seed}: {len(grid)} models in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    draw(options.out / "sweep.png", result["cells"], options)

    rows = [
        [f"{cell['learning_rate']:g}", f"{cell['weight_decay']:g}"]
        + [percent(cell[name]) for name in ("probability", "median", "worst")]
        for cell in result["cells"]
    ]
    columns = ["learning rate", "weight decay", f"reach {options.threshold:.1%}", "median", "worst"]
    title = f"{options.optimizer}, {options.steps:,} steps of {options.batch_size}, {len(options.seeds)} seeds"
    console = Console(stderr=options.json, highlight=False)
    console.print(report.table(title, columns, rows), f"\nSaved in {options.out}: sweep.json, sweep.png", sep="\n")
    if options.json:
        print(json.dumps(result, default=str))
    return 0


def check(options: SweepOptions) -> None:
    """Raise `InputError` for a number that nothing in the library refuses by the name of its flag."""
    if not options.seeds or len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        raise InputError(f"--seeds is {options.seeds}; name at least one seed, each once and none below 0")
    if not 0 < options.threshold <= 1:
        raise InputError(f"--threshold is {options.threshold}; it must be above 0 and at most 1")
    if options.steps < 1:
        raise InputError(f"--steps is {options.steps}; it must be at least 1")


def train_grid(options: SweepOptions, task: jaxcalc.Task, seed: int, grid: list[tuple[float, float]]) -> list[Row]:
    """Train a model for each (learning rate, weight decay), all at once, and return what each reaches."""
    config = jaxcalc.ModelConfig(
        vocab_size=task.vocab_size, context_length=task.context_length, **dataclasses.asdict(options.model)
    )
    seeds = jnp.full(len(grid), seed)
    rates, decays = np.array(grid).T
    make_tx = functools.partial(jaxcalc.make_optimizer, options.optimizer, options.steps)
    state = population.create_state(population.init(seeds, config), make_tx, learning_rate=rates, weight_decay=decays)
    n_steps = max(n for n in range(1, 51) if options.steps % n == 0)  # so that one compiled program runs all steps
    metrics: jaxcalc.Metrics = {}
    for _ in range(options.steps // n_steps):
        state, metrics = population.train_steps(
            state, task, seeds=seeds, n_steps=n_steps, batch_size=options.batch_size
        )
    correct = np.asarray(population.correct(state.params, task, task.held_out_rows))
    return [
        {
            "seed": seed,
            "learning_rate": rate,
            "weight_decay": decay,
            "held_out_exact_match": float(share),
            "loss": float(loss),
        }
        for (rate, decay), share, loss in zip(grid, correct.mean(axis=1), metrics["loss"][:, -1], strict=True)
    ]


def cells(models: list[Row], threshold: float) -> list[Row]:
    """Return for each cell of the grid the share of its seeds that reach the threshold, and their median and worst."""
    matches: dict[tuple[float, float], list[float]] = {}
    for row in models:
        matches.setdefault((row["learning_rate"], row["weight_decay"]), []).append(row["held_out_exact_match"])
    return [
        {
            "learning_rate": rate,
            "weight_decay": decay,
            "probability": float(np.mean(np.array(shares) >= threshold)),
            "median": float(np.median(shares)),
            "worst": min(shares),
            "n_seeds": len(shares),
        }
        for (rate, decay), shares in matches.items()
    ]


def draw(path: Path, found: list[Row], options: SweepOptions) -> None:
    """Write a figure of the grid: the share of seeds that reach the threshold, and the median held-out exact match."""
    from matplotlib.figure import Figure  # slow to import, and only this function needs it

    rates, decays = (list(dict.fromkeys(cell[name] for cell in found)) for name in ("learning_rate", "weight_decay"))
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = (
        ("probability", f"Share of {found[0]['n_seeds']} seeds that reach {options.threshold:.1%}", 0.0),
        ("median", "Median held-out exact match", min(cell["median"] for cell in found)),
    )
    for axes, (key, title, least) in zip(figure.subplots(1, 2), panels, strict=True):
        shares = np.array([cell[key] for cell in found]).reshape(len(rates), len(decays))
        image = axes.imshow(100 * shares, vmin=100 * least, vmax=100, cmap="viridis")
        for (row, column), share in np.ndenumerate(shares):
            dark = share < (1 + least) / 2
            axes.text(column, row, f"{100 * share:.4g}", ha="center", va="center", color="white" if dark else "black")
        axes.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_xlabel("weight decay")
        axes.set_ylabel("learning rate")
        axes.set_title(title, loc="left")
        figure.colorbar(image, ax=axes, label="%")
    figure.suptitle(f"{options.optimizer}, {options.steps:,} steps of {options.batch_size}", x=0.01, ha="left")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, SweepOptions))
