"""python experiments/removal.py

Does the ledger say what would have happened? Trains small models again without the lessons that the ledger names,
without those that TracIn names, and without random ones, and compares the surprise at held-out questions.
"""

import dataclasses
import functools
import json
import operator
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

import jaxcalc
from jaxcalc import Batch, Calculator, ledger
from jaxcalc.batch import batch_of, rows_at
from jaxcalc.errors import InputError
from jaxcalc.losses import answer_logits, example_cross_entropy
from jaxcalc.optimizers import DEFAULT_LEARNING_RATE, schedule
from jaxcalc.runs import cli, report, style, write_json
from jaxcalc.runs.config import OptimizerConfig, ScheduleConfig, SizesConfig, TaskConfig
from jaxcalc.training import TrainState, create_state, train_step

CHUNK = 50
N_CHECKPOINTS = 10
"""Of TracIn, evenly over the run."""
REMOVED = (5, 20, 50)
"""How many lessons are removed for one question."""
SHARES = (0.05, 0.2)
"""Shares of all lessons that are removed at random."""
CHOSEN = ("ledger", "TracIn", "random")


@dataclasses.dataclass(frozen=True)
class RemovalOptions:
    """Train again without lessons, and compare with what the ledger and TracIn have said of them."""

    out: Path = Path("runs/removal")
    """Folder for removal.json and removal.png."""
    json: bool = False
    """Print the result as one JSON object instead of tables."""
    steps: int = 600
    """Training steps of each model."""
    questions: int = 20
    """Held-out questions of each seed."""
    subsets: int = 30
    """Random subsets of each seed and share."""
    seeds: int = 3
    """How many seeds, from 0: each chooses the held-out problems, the first weights and the batches."""
    default_run: bool = False
    """Take the task, model, optimizer and batches of train.py's defaults, in place of numbers to 20."""


class Setting(NamedTuple):
    """A small run that is taken again without some of its lessons."""

    task: Calculator
    number: np.ndarray
    """Which distinct lesson each row of `task.lessons` is, int `[N]`."""
    lessons: Batch
    """Each distinct lesson once."""
    questions: Batch
    state: TrainState
    """Untrained."""
    rate: optax.Schedule
    seed: int
    batch_size: int


def setting(seed: int, n_steps: int, n_questions: int, default_run: bool = False) -> Setting:
    """Return numbers to 20, two blocks of width 32 and AdamW, or what train.py takes by default."""
    sizes, optimizer, batch_size = SizesConfig(d_model=32, d_ff=128), "adamw", 128
    task = jaxcalc.calculator(max_number=20, seed=seed)
    if default_run:
        sizes, optimizer, batch_size = SizesConfig(), OptimizerConfig.optimizer, ScheduleConfig.batch_size
        task = cast("Calculator", TaskConfig().make(seed))
    held_out = np.asarray(task.held_out_rows)
    if not 0 < n_questions <= len(held_out):
        raise InputError(f"--questions is {n_questions}; it must be from 1 to {len(held_out)}")
    chosen = held_out[np.linspace(0, len(held_out) - 1, n_questions).astype(int)]
    tokens, number = np.unique(np.asarray(task.lessons), axis=0, return_inverse=True)
    config = jaxcalc.ModelConfig(task.vocab_size, context_length=task.context_length, **dataclasses.asdict(sizes))
    state = create_state(jaxcalc.init(seed, config), jaxcalc.make_optimizer(optimizer, n_steps))
    rate = schedule(DEFAULT_LEARNING_RATE[optimizer], n_steps)
    lessons, questions = batch_of(task, jnp.asarray(tokens)), batch_of(task, task.tokens[chosen])
    return Setting(task, number, lessons, questions, state, rate, seed, batch_size)


@functools.partial(jax.jit, static_argnames=("batch_size", "n_steps", "keep"))
def train(
    state: TrainState, task: Calculator, of_row: jax.Array, seed: int, batch_size: int, n_steps: int, keep: bool = False
) -> Any:
    """Return the state after `n_steps`, and, to `keep` them, all states before and the norms of the gradients.

    Args:
      of_row: a weight for each row of `task.lessons`, by which its tokens count in the loss; 0 removes it from its
        batches, which otherwise stay as they were.
    """

    def body(state: TrainState, _: None) -> tuple[TrainState, Any]:
        rows = rows_at(task, seed, state.step, batch_size)
        batch = batch_of(task, task.lessons[rows])
        new, metrics = train_step(state, batch._replace(mask=batch.mask * of_row[rows][:, None]))
        return new, (state.params, state.opt_state, metrics["grad_norm"]) if keep else None

    return jax.lax.scan(body, state, length=n_steps)


@jax.jit
def surprises(params: Any, batch: Batch) -> jax.Array:
    return example_cross_entropy(answer_logits(params, batch), batch)


def moves(last: TrainState, kept: Any) -> list[ledger.Moves]:
    """Return the steps of a run in chunks, the last ones first."""
    params, opt_state, norms = kept
    append = functools.partial(jax.tree.map, lambda kept, last: jnp.concatenate([kept, last[None]]))
    whole = append(params, last.params), append(opt_state, last.opt_state)

    def chunk(at: int) -> ledger.Moves:
        params, opt_state = jax.tree.map(operator.itemgetter(slice(at, at + CHUNK + 1)), whole)
        return ledger.Moves(at, params, opt_state, norms[at : at + CHUNK])

    return [chunk(at) for at in reversed(range(0, len(norms), CHUNK))]


def by_ledger(run: Setting, backwards: list[ledger.Moves]) -> np.ndarray:
    """Return what each lesson brought to each question, `[Q, lessons]`."""
    nats = np.zeros((len(run.questions.tokens), len(run.lessons.tokens)))
    tx, visited = run.state.tx, jax.jit(lambda step: rows_at(run.task, run.seed, step, run.batch_size))
    fixed = {"seed": run.seed, "batch_size": run.batch_size, "tolerance": 1e-2}
    for rows in ledger.rows(backwards, run.task, run.questions, tx, **fixed):
        for step, examples in enumerate(rows.examples, rows.first):
            nats += [np.bincount(run.number[visited(step)], each, nats.shape[1]) for each in examples]
    return nats


def by_tracin(run: Setting, kept: Any) -> np.ndarray:
    """Return TracIn's scores (Pruthi et al. 2020): Σ rate · ⟨∇L(question), ∇L(lesson)⟩ over checkpoints, likewise."""
    n_steps = len(kept[2])

    @jax.jit
    def scores(params: Any) -> jax.Array:
        grads = jax.jacrev(surprises)(params, run.questions)
        along = jax.vmap(lambda d: jax.jvp(lambda params: surprises(params, run.lessons), (params,), (d,))[1])
        return along(grads)

    steps = np.linspace(0, n_steps - 1, N_CHECKPOINTS).astype(int)
    found = [jnp.asarray(run.rate(at)) * scores(jax.tree.map(operator.itemgetter(at), kept[0])) for at in steps]
    return np.sum(found, axis=0)


def study(seed: int, options: RemovalOptions) -> dict[str, Any]:
    """Return the changes of surprise of one seed, in nats: by removal `[question]`, by subset `[subset, question]`."""
    run = setting(seed, options.steps, options.questions, options.default_run)
    fixed = {"task": run.task, "seed": seed, "batch_size": run.batch_size, "n_steps": options.steps}
    every = np.ones(len(run.lessons.tokens))

    def retrained(weights: list[np.ndarray]) -> np.ndarray:  # JAX computes them side by side
        states = [train(run.state, of_row=jnp.asarray(each[run.number], jnp.float32), **fixed)[0] for each in weights]
        return np.array([surprises(state.params, run.questions) for state in states], np.float64)

    last, kept = train(run.state, of_row=jnp.ones(len(run.number)), keep=True, **fixed)
    (plain,) = retrained([every])
    scores = {"ledger": by_ledger(run, moves(last, kept)), "TracIn": by_tracin(run, kept)}
    chance = np.random.default_rng(seed)
    of_lesson, of_question = (operations(run.task, batch.tokens) for batch in (run.lessons, run.questions))

    def without(chosen: np.ndarray) -> np.ndarray:
        weights = every.copy()
        weights[chosen] = 0
        return weights

    removed: dict[str, dict[str, list[float]]] = {name: {} for name in CHOSEN}
    for n in REMOVED:
        for name in CHOSEN:
            sets = [
                np.argsort(-scores[name][index])[:n]
                if name in scores
                else chance.choice(np.flatnonzero(of_lesson == kind), n, replace=False)
                for index, kind in enumerate(of_question)
            ]
            removed[name][str(n)] = (np.diagonal(retrained([without(each) for each in sets])) - plain).tolist()
            print(f"seed {seed}: without {n} lessons, {name}", file=sys.stderr)
    ranks: dict[str, dict[str, list[float]]] = {name: {} for name in scores}
    for share in SHARES:
        sets = [chance.choice(len(every), round(share * len(every)), replace=False) for _ in range(options.subsets)]
        change = retrained([without(each) for each in sets]) - plain
        for name, score in scores.items():
            told = np.array([score[:, each].sum(axis=1) for each in sets])
            ranks[name][f"{share:.0%}"] = rank_correlations(told, change)
    return {"seed": seed, "surprise": plain.tolist(), "removed": removed, "rank correlation": ranks}


def rank_correlations(told: np.ndarray, change: np.ndarray) -> list[float]:
    """Return Spearman's correlation of each column."""
    both = zip(stats.rankdata(told, axis=0).T, stats.rankdata(change, axis=0).T, strict=True)
    return [float(np.corrcoef(*ranks)[0, 1]) for ranks in both]


def operations(task: Calculator, sequences: jax.Array) -> np.ndarray:
    """Return the token of each sequence's operation."""
    ids = [task.tokenizer.ids[name] for name in task.tokenizer.operations]
    return np.array([next(token for token in sequence if token in ids) for sequence in sequences.tolist()])


def interval(values: np.ndarray) -> list[float]:
    """Return the mean and the ends of its 95 % bootstrap interval."""
    found = stats.bootstrap([values], np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return [float(values.mean()), float(found.low), float(found.high)]


def main(options: RemovalOptions) -> int:
    if options.seeds < 1 or options.subsets < 3 or options.steps < 1:
        raise InputError("--seeds and --steps must be at least 1, and --subsets at least 3")
    clock = time.perf_counter()
    seeds = [study(seed, options) for seed in range(options.seeds)]

    def over_seeds(part: str, name: str, key: str) -> np.ndarray:
        return np.concatenate([np.array(seed[part][name][key]) for seed in seeds])

    removed = {n: {name: over_seeds("removed", name, str(n)) for name in CHOSEN} for n in REMOVED}
    shares = [f"{share:.0%}" for share in SHARES]
    result = {
        "removed": {str(n): {name: interval(values) for name, values in by.items()} for n, by in removed.items()},
        "better than TracIn": {str(n): float((by["ledger"] > by["TracIn"]).mean()) for n, by in removed.items()},
        "rank correlation": {
            share: {name: interval(over_seeds("rank correlation", name, share)) for name in CHOSEN[:2]}
            for share in shares
        },
        "seeds": seeds,
        "seconds": round(time.perf_counter() - clock),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "removal.json", result)
    style.save(figure(result), options.out / "removal.png")
    console = Console(stderr=options.json, highlight=False)
    better = result["better than TracIn"]
    rows = [(n, *(said(by[name]) for name in CHOSEN), f"{better[n]:.0%}") for n, by in result["removed"].items()]
    columns = ["lessons", *CHOSEN, "ledger above TracIn"]
    console.print(report.table("What a question's surprise gains without lessons, nats", columns, rows), "")
    rows = [(share, *(said(result["rank correlation"][share][name]) for name in CHOSEN[:2])) for share in shares]
    console.print(report.table("Rank correlation with random removals", ["removed", *CHOSEN[:2]], rows))
    console.print(f"{result['seconds']} seconds. Results: {options.out}")
    if options.json:
        print(json.dumps(result))
    return 0


def said(values: list[float]) -> str:
    mean, low, high = values
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def figure(result: dict[str, Any]) -> Figure:
    """Draw what a question's surprise gains without the lessons that each way of choosing names."""
    drawn = style.new_figure(
        "Without the lessons that the ledger names, a question is answered worse",
        "The change of the surprise at held-out questions when a model is trained again, on the same batches, without "
        "the lessons that the ledger or TracIn credits most, or without random ones of the same operation. Means over "
        "questions and seeds, with 95 % bootstrap intervals.",
        height=3.6,
    )
    axes = drawn.subplots()
    style.plain(axes)
    for offset, (name, colour) in enumerate(zip(CHOSEN, (style.MAIN, style.OTHER, style.CONTROL), strict=True)):
        means, lows, highs = np.array([result["removed"][str(n)][name] for n in REMOVED]).T
        places = np.arange(len(REMOVED)) + 0.25 * (offset - 1)
        axes.bar(places, means, 0.22, yerr=(means - lows, highs - means), color=colour, label=name, ecolor=style.INK)
    axes.set_xticks(range(len(REMOVED)), [f"{n} lessons" for n in REMOVED])
    axes.set_ylabel("nats of surprise more")
    axes.legend(fontsize=8, frameon=False)
    return drawn


if __name__ == "__main__":
    sys.exit(cli.run_script(main, RemovalOptions))
