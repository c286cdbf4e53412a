"""python experiments/horizon.py

How far back does a derivative predict? Differentiates the surprise at held-out questions through the last n steps of
training, with respect to the weight of each lesson, and compares with training those steps again without the lesson.
"""

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import removal  # beside this script
from matplotlib.figure import Figure
from rich.console import Console

import jaxcalc
from jaxcalc.batch import batch_of, rows_at
from jaxcalc.errors import InputError
from jaxcalc.runs import cli, report, style, write_json

EVERY = 10
"""The steps whose activations are in memory at a time."""
TINY = 1e-10
"""Added to all gradients: a weight that never had one has √ν = 0 in Adam, and there a root has no derivative."""
ENOUGH = 0.9
COLOURS = (style.MAIN, style.OTHER, "#228833", "#ccbb44")


@dataclasses.dataclass(frozen=True)
class HorizonOptions:
    """Compare derivatives through the last steps of training with training again without a lesson."""

    out: Path = Path("runs/horizon")
    """Folder for horizon.json and horizon.png."""
    json: bool = False
    """Print the result as one JSON object instead of tables."""
    steps: int = 1000
    """Training steps."""
    last: tuple[int, ...] = (10, 20, 40, 100, 200, 400, 1000)
    """How many of the last steps; multiples of 10."""
    questions: int = 10
    """Held-out questions."""
    lessons: int = 100
    """Lessons left out, one at a time, of those that the last steps visit."""
    seed: int = 0
    """Chooses the held-out problems, the first weights, the batches and the lessons."""


def optimizers(n_steps: int) -> dict[str, optax.GradientTransformation]:
    return {
        "SGD, momentum": jaxcalc.make_optimizer("sgd", n_steps),
        "AdamW": jaxcalc.make_optimizer("adamw", n_steps),
        "Adam, 1e-3, eps 1e-3": optax.adam(1e-3, eps=1e-3),
        "Muon": jaxcalc.make_optimizer("muon", n_steps),
    }


@functools.partial(jax.jit, static_argnames=("batch_size", "tx", "n_steps"))
def train(
    start: tuple[Any, Any, jax.Array],
    task: jaxcalc.Calculator,
    of_row: jax.Array,
    seed: int,
    batch_size: int,
    tx: Any,
    n_steps: int,
) -> tuple[Any, Any, jax.Array]:
    """Return parameters, optimizer state and step after `n_steps`, in which the tokens of each row have a weight."""

    def body(state: tuple[Any, Any, jax.Array], _: None) -> tuple[tuple[Any, Any, jax.Array], None]:
        params, opt_state, step = state
        rows = rows_at(task, seed, step, batch_size)
        batch = batch_of(task, task.lessons[rows])
        weighted = batch._replace(mask=batch.mask * of_row[rows][:, None])
        grads = jax.tree.map(lambda grad: grad + TINY, jax.grad(jaxcalc.loss)(params, weighted))
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, step + 1), None

    @jax.checkpoint
    def some(state: Any, _: None) -> tuple[Any, None]:
        return jax.lax.scan(body, state, length=EVERY)

    return jax.lax.scan(some, start, length=n_steps // EVERY)[0]


def study(name: str, options: HorizonOptions) -> dict[str, list[float]]:
    """Return the rank correlation for each question, by the number of last steps."""
    run, tx = removal.setting(options.seed, options.steps, options.questions), optimizers(options.steps)[name]
    number, fixed = (
        jnp.asarray(run.number),
        {"task": run.task, "seed": run.seed, "batch_size": run.batch_size, "tx": tx},
    )
    every, chance = jnp.ones(len(run.lessons.tokens)), np.random.default_rng(options.seed)

    @functools.partial(jax.jit, static_argnames="n")
    def final(weights: jax.Array, state: Any, n: int) -> jax.Array:
        return removal.surprises(train(state, of_row=weights[number], n_steps=n, **fixed)[0], run.questions)

    state: Any = (run.state.params, tx.init(run.state.params), jnp.zeros((), jnp.int32))
    found = {}
    for n in sorted(options.last, reverse=True):
        state = train(state, of_row=every[number], n_steps=options.steps - n - int(state[2]), **fixed)
        slopes = np.asarray(jax.jacrev(final)(every, state, n=n))
        visited = [
            run.number[rows_at(run.task, run.seed, step, run.batch_size)]
            for step in range(int(state[2]), options.steps)
        ]
        seen = np.unique(np.concatenate(visited))
        left_out = chance.choice(seen, min(options.lessons, len(seen)), replace=False)
        plain = np.asarray(final(every, state, n=n))
        change = np.array([final(every.at[lesson].set(0), state, n=n) for lesson in left_out]) - plain
        found[str(n)] = removal.rank_correlations(-slopes[:, left_out].T, change)
        print(f"{name}, last {n} steps: {np.median(found[str(n)]):.2f}", file=sys.stderr)
    return dict(reversed(found.items()))


def main(options: HorizonOptions) -> int:
    for n in (options.steps, *options.last):
        if n % EVERY or not 0 < n <= options.steps:
            raise InputError(f"--last and --steps have {n}; it must be a multiple of {EVERY} from {EVERY} to --steps")
    if options.lessons < 3:
        raise InputError(f"--lessons is {options.lessons}; it must be at least 3")
    clock = time.perf_counter()
    result = {name: study(name, options) for name in optimizers(options.steps)}
    lengths = sorted(options.last)
    medians = {name: [float(np.median(by[str(n)])) for n in lengths] for name, by in result.items()}
    below = {
        name: next((f"{n:,}" for n, median in zip(lengths, each, strict=True) if median < ENOUGH), "none")
        for name, each in medians.items()
    }
    found = {f"first below {ENOUGH}": below, "correlation": result, "seconds": round(time.perf_counter() - clock)}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "horizon.json", found)
    style.save(figure(result), options.out / "horizon.png")
    rows = [(name, *(f"{median:.2f}" for median in each), below[name]) for name, each in medians.items()]
    columns = ["optimizer", *(f"{n:,}" for n in lengths), f"first below {ENOUGH}"]
    console = Console(stderr=options.json, highlight=False)
    console.print(report.table("Rank correlation, by the number of last steps", columns, rows))
    console.print(f"{found['seconds']} seconds. Results: {options.out}")
    if options.json:
        print(json.dumps(found))
    return 0


def figure(result: dict[str, dict[str, list[float]]]) -> Figure:
    """Draw the rank correlation against the number of steps, with the middle half of the questions."""
    drawn = style.new_figure(
        "A derivative predicts tens of steps, and not hundreds",
        "Spearman's rank correlation between the derivative of a question's surprise by the weight of each lesson in "
        "the last n steps, and the change when these steps are trained again without the lesson. Lines are medians "
        "over the questions, bands their middle half.",
        height=3.8,
    )
    axes = drawn.subplots()
    style.plain(axes)
    for colour, (name, by) in zip(COLOURS, result.items(), strict=True):
        low, middle, high = np.array([np.quantile(values, (0.25, 0.5, 0.75)) for values in by.values()]).T
        steps = [int(n) for n in by]
        axes.plot(steps, middle, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(ENOUGH, color=style.CONTROL, linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="last steps", ylabel="rank correlation")
    axes.legend(fontsize=8, frameon=False)
    return drawn


if __name__ == "__main__":
    sys.exit(cli.run_script(main, HorizonOptions))
