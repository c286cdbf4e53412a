"""The end of a run: what it answers, the files that say so, and what is printed."""

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxcalc.errors import InputError
from jaxcalc.evaluation import Evaluation, evaluate, prompt_text
from jaxcalc.params import Params
from jaxcalc.reprs import outline
from jaxcalc.runs import checkpoint, figures, report
from jaxcalc.runs.config import RunConfig
from jaxcalc.runs.configfile import Json, to_json, versions
from jaxcalc.runs.files import CHECKPOINTS, CURVE, MODEL, mark_of, read_bytes
from jaxcalc.runs.metrics import METRICS, read_metrics
from jaxcalc.runs.placement import Compiled
from jaxcalc.runs.share import save_params
from jaxcalc.runs.summary import write_summary
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task
from jaxcalc.trees import count


@dataclasses.dataclass(frozen=True)
class Results:
    """What a trained model answers, and the summary of its run."""

    held_out: Evaluation
    training: Evaluation
    before: Evaluation
    """The answers to `examples` of the model from which training began or went on."""
    after: Evaluation
    """Its own answers to them."""
    summary: Json

    __repr__ = outline


def examples(task: Task, most: int = 12) -> np.ndarray:
    """Return a dozen rows, spread over the held-out problems (over all of them if none is held out)."""
    rows = np.asarray(task.held_out_rows if task.held_out_rows.size else task.train_rows)
    kinds = task.kind_ids[rows]
    groups = [rows[kinds == index] for index in np.unique(kinds)]
    share = -(-most // len(groups))
    picked = [group[np.linspace(0, len(group) - 1, min(share, len(group)) + 2).astype(int)[1:-1]] for group in groups]
    return np.unique(np.concatenate(picked))[:most]


def copied(params: Params) -> Params:
    """Return a copy of parameters in the host's memory: the steps overwrite those of their state."""
    return jax.tree.map(np.array, params)


def process_seconds() -> float | None:
    """Return how long this process has run, Python's own start and all imports included; None but on Linux."""
    try:
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # field 22, in clock ticks
        up = Path("/proc/uptime").read_text().split()[0]
        return float(up) - int(started) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None


def watched_rows(task: Task) -> tuple[str, jax.Array]:
    """Return the rows that are decoded now and then during training, and the name of their side."""
    return ("held-out", task.held_out_rows) if task.held_out_rows.size else ("training", task.train_rows[::10])


def print_beginning(console: Console, params: Params, task: Task, compiled: Compiled) -> None:
    """Print what is trained, on what, and what a step is predicted to take."""
    cost_table = report.cost_table(compiled.bytes, compiled.available, compiled.flops, compiled.peak)
    console.print(report.parameters_table(params), "", report.problems_table(task), "", cost_table, "", sep="\n")


def check_row(step: int, watched: str, evaluation: Evaluation, seconds: float) -> Json:
    """Return the line of metrics.jsonl that says how many watched problems are right after a step."""
    shares = {name: row["exact_match"] for name, row in evaluation.by_operation().items()}
    match = evaluation.exact_match
    return {"step": step, f"{watched}_exact_match": match, "by_operation": shares, "seconds": seconds}


def measure(
    config: RunConfig,
    task: Task,
    untrained: Params,
    params: Params,
    first_step: int,
    seconds: Mapping[str, Any],
    started: float,
) -> Results:
    """Return what a trained model answers, and the summary of its run.

    Args:
      untrained: the parameters from which training began or went on, as `copied` returned them.
      first_step: the step from which training began or went on.
      seconds: how long compiling ("compile") and training ("train") took, and how old the process was after the
        first steps ("first_step").
      started: when the script began, on the clock `time.perf_counter`.
    """
    clock = time.perf_counter()
    held_out, training = (evaluate(params, task, rows) for rows in (task.held_out_rows, task.train_rows))
    # Placed as the trained ones are, so that the same program takes them.
    placed = jax.tree.map(
        lambda old, new: jax.device_put(old, new.sharding if new.committed else None), untrained, params
    )
    before, after = (evaluate(tree, task, examples(task)) for tree in (placed, params))
    seconds = {**seconds, "evaluate": time.perf_counter() - clock, "total": time.perf_counter() - started}
    n_done = config.schedule.steps - first_step
    summary = {
        "n_params": count(params),
        "n_train": len(training.rows),
        "n_held_out": len(held_out.rows),
        "held_out_exact_match": held_out.exact_match,
        "train_exact_match": training.exact_match,
        "by_operation": report.by_operation(held_out, training),
        "errors": report.wrong_answers(held_out, training),
        **({} if isinstance(task, Calculator) else report.by_length(held_out)),
        "steps": config.schedule.steps,
        "first_step": first_step,
        "examples_per_second": n_done * config.schedule.batch_size / seconds["train"],
        "seconds": seconds,
        "seed": config.schedule.seed,
        "split": task.split,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }
    return Results(held_out, training, before, after, summary)


def write(path: Path, config: RunConfig, task: Task, params: Params, results: Results) -> Json:
    """Write the model file, the learning curve and, last, the summary of a run; return the summary.

    Raises `InputError` if a file cannot be written.
    """
    rows = read_metrics(path)
    summary = {**results.summary, "skipped_steps": sum("skipped" in row for row in rows)}
    accuracy = {name: summary[name] for name in ("held_out_exact_match", "train_exact_match")}
    about = {"config": to_json(config), "vocabulary": list(task.tokenizer.vocabulary), "accuracy": accuracy}
    save_params(path / MODEL, params, {**about, "versions": versions()})
    try:
        figures.learning_curve(path / CURVE, rows, watched_rows(task)[0], config.schedule.batch_size)
    except OSError as error:
        raise InputError(f"cannot write {path / CURVE}: {error.strerror}") from error
    checkpoint.prune(path / CHECKPOINTS, config.snapshot_steps, newest=1)
    write_summary(path, summary, {METRICS: mark_of(read_bytes(path / METRICS))})  # the last: with it the run is whole
    return summary


def print_results(console: Console, path: Path, config: RunConfig, task: Task, results: Results) -> None:
    """Print what the model answered before and after training, its accuracy, its errors, and what to try next."""
    summary, seconds = results.summary, results.summary["seconds"]
    is_table = isinstance(task, Calculator)
    first_step = summary["first_step"]
    console.print(report.before_and_after_table(results.before, results.after, first_step), "", sep="\n")
    console.print(report.accuracy_table(results.held_out, results.training), "", sep="\n")
    console.print(report.errors_table(summary["errors"]), "", sep="\n")
    if not is_table:
        for table in report.length_tables(results.held_out):
            console.print(table, "", sep="\n")
    question = "two plus three" if is_table else prompt_text(task, int(results.after.rows[0]))
    n_done, size = summary["steps"] - first_step, config.schedule.batch_size
    console.print(
        f"{n_done:,} steps of {size:,}: {n_done * size:,} examples seen in {seconds['train']:.1f} s "
        f"({summary['examples_per_second']:,.0f} examples/s).\n{seconds['compile']:.1f} s of compiling before, "
        f"{seconds['total']:.1f} s in all. Saved in {path}.\n\nTry next:\n"
        f'  python experiments/ask.py {path} "{question}"\n'
        f"  python experiments/evaluate.py {path}"
        + f"\n  python experiments/explore.py {path}" * is_table
        + f'\n  python experiments/watch.py {path} "{question}" --replay' * bool(config.keeping.snapshots)
        + f"\n  python experiments/lens.py {path}" * is_table,
        highlight=False,
        soft_wrap=True,
    )
