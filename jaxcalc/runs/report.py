"""What people see (host): progress, tables, figures, and how a script ends on bad input."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from jaxcalc.errors import InputError
from jaxcalc.evaluation import Evaluation, answer_text, prompt_text
from jaxcalc.params import Params
from jaxcalc.scale.cost import UTILISATION, size_text, step_seconds
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task
from jaxcalc.trees import count

Options = TypeVar("Options")

COLOURS = {"plus": "#4477aa", "minus": "#66ccee", "times": "#ee6677", "divided by": "#ccbb44"}
"""Each operation's colour, in every figure."""
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}
"""Compiler options of a program that runs once, on one sentence: compiling it takes a thousand times as long as
running it."""


def run_script(
    main: Callable[[Options], int],
    options: type[Options],
    defaults: Callable[[Options], Options | None] = lambda _: None,
) -> int:
    """Parse the command line into `options`, run `main` on it and return its exit status.

    `defaults` may look at what was parsed and return what holds for all that the command line does not say.
    An `InputError` becomes one line on stderr and status 2.
    """
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        parsed = tyro.cli(options, config=config)
        default = defaults(parsed)
        return main(parsed if default is None else tyro.cli(options, default=default, config=config))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def percent(share: float | None) -> str:
    """Return a share as a percentage that rounds nothing to 0 or 100 that is not, or "–" for None.

    >>> percent(0.98765), percent(1.0), percent(0.99999), percent(1e-9)
    ('98.77 %', '100 %', '99.99 %', '<0.01 %')
    """
    if share is None:
        return "–"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return "<0.01 %" if share < 1e-4 else f"{min(100 * share, 99.99):.2f} %"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> Table:
    """Return a table whose columns `text` hold words and whose others hold numbers."""
    built = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        is_text = index in text
        built.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        built.add_row(*row)
    return built


def position_tables(title: str, rows: Mapping[str, Sequence[float]], most: int = 8) -> list[Table]:
    """Return tables of a number for each row at each token position; `most` positions to a table fit 80 columns."""

    def cell(value: float) -> str:
        if 0.01 <= value < 1000:
            return f"{value:.3g}"
        return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")

    n_positions = max(map(len, rows.values()))
    tables = []
    for first in range(0, n_positions, most):
        built = Table(title=title if first == 0 else None, title_justify="left", title_style="bold", box=None)
        built.add_column("position", no_wrap=True)
        for position in range(first, min(first + most, n_positions)):
            built.add_column(str(position), justify="right", no_wrap=True)
        for name, values in rows.items():
            built.add_row(name, *map(cell, values[first : first + most]))
        tables.append(built)
    return tables


def parameters_table(params: Params) -> Table:
    """Return the number of parameters in each stage."""
    stages: dict[str, Any] = {"embeddings": params["embed"]}
    for index, block in enumerate(params["blocks"]):
        stages |= {f"block {index} attention": block["attention"], f"block {index} feed-forward": block["mlp"]}
    stages["output"] = params["output"]
    rows = [[name, f"{count(stage):,}"] for name, stage in stages.items()]
    return table("The model", ["stage", "parameters"], [*rows, ["all", f"{count(params):,}"]])


def cost_table(sizes: Mapping[str, int], available: int | None, flops: float, peak: float) -> Table:
    """Return what a step is predicted to take on each device: bytes by what they are for, products, and seconds."""
    there = "" if available is None else f" of {size_text(available)}"
    rows = [[name, size_text(size)] for name, size in sizes.items()]
    rows.append(["all of the memory", size_text(sum(sizes.values())) + there])
    speed = f"{UTILISATION:.0%} of {peak / 1e9:,.0f} GFLOP/s".replace("%", " %")
    rows.append(["products", f"{flops / 1e9:,.2f} GFLOP at {speed}"])
    rows.append(["time", f"{1e3 * step_seconds(flops, peak):,.1f} ms"])
    return table("What a step is predicted to take", ["", "on each device"], rows)


def problems_table(task: Task) -> Table:
    """Return the number of problems of each kind, in training and held out, and of a table's lessons in an epoch."""
    counts = [np.bincount(task.kind_ids[np.asarray(rows)], minlength=len(task.kind_names))
              for rows in (task.train_rows, task.held_out_rows)]  # fmt: skip
    columns = ["operation", "training", "held out"]
    what = "A sample of the problems"
    if isinstance(task, Calculator):
        lessons = np.asarray(task.lessons)
        counts.append(np.array([(lessons == task.tokenizer.ids[name]).any(axis=1).sum() for name in task.kind_names]))
        columns.append("lessons per epoch")
        what = "The problems"
    named = zip(task.kind_names, np.stack(counts, 1).tolist(), strict=True)
    rows = [[name, *(f"{n:,}" for n in row)] for name, row in named]
    total = ["all", *(f"{side.sum():,}" for side in counts)]
    return table(f"{what} ({task.split} split, numbers up to {task.tokenizer.max_number:,})", columns, [*rows, total])


def before_and_after_table(before: Evaluation, after: Evaluation, first_step: int = 0) -> Table:
    """Return what the model of the first step and the trained one answer to the same problems, with probabilities."""
    rows = []
    for index, row in enumerate(after.rows.tolist()):
        cells = [prompt_text(after.task, row)]
        for evaluation in (before, after):
            answer = answer_text(after.task, evaluation.generated[index])
            mark = "" if evaluation.correct[index] else " ✗"
            cells += [answer + mark, percent(float(evaluation.probability[index]))]
        rows.append(cells)
    was = "that were held out" if after.rows[0] in np.asarray(after.task.held_out_rows) else "from training"
    at_first = f"at step {first_step:,}" if first_step else "untrained answer"
    columns = ["problem", at_first, "p", "trained answer", "p"]
    return table(f"Before and after, on problems {was}", columns, rows, text=(0, 1, 3))


def by_operation(held_out: Evaluation, training: Evaluation) -> dict[str, dict[str, Any]]:
    """Return for each operation its number of problems and exact match, held out and in training."""
    both = zip(held_out.by_operation().items(), training.by_operation().values(), strict=True)
    return {
        operation: {
            "n_held_out": unseen["problems"],
            "n_train": seen["problems"],
            "held_out_exact_match": unseen["exact_match"],
            "train_exact_match": seen["exact_match"],
        }
        for (operation, unseen), seen in both
    }


def by_length(evaluation: Evaluation) -> dict[str, Mapping[int, Mapping[str, Any]]]:
    """Return exact match with its 95 % interval, by number of digits and by carries in a row."""
    return {"by_digits": evaluation.by_digits(), "by_carry_chain": evaluation.by_carry_chain()}


def errors_of(held_out: Evaluation, training: Evaluation) -> list[dict[str, Any]]:
    """Return the wrong answers of both, each with its "membership"."""
    sides = (("held out", held_out), ("training", training))
    return [{**error, "membership": side} for side, evaluation in sides for error in evaluation.errors()]


def accuracy_table(held_out: Evaluation, training: Evaluation) -> Table:
    """Return exact match by operation, held-out beside training problems."""
    rows = []
    both = zip(held_out.by_operation().items(), training.by_operation().values(), strict=True)
    for (operation, unseen), seen in both:
        rows.append([operation, *_share(unseen), *_share(seen)])
    total = [
        {"correct": int(e.correct.sum()), "problems": len(e.rows), "exact_match": e.exact_match}
        for e in (held_out, training)
    ]
    rows.append(["all", *_share(total[0]), *_share(total[1])])
    return table("Exact match", ["operation", "held out", "", "training", ""], rows)


def _share(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['correct']:,} of {row['problems']:,}", percent(row["exact_match"])]


def length_tables(evaluation: Evaluation, of: str = "Held out") -> list[Table]:
    """Return exact match with its 95 % interval, by number of digits and by carries in a row."""
    names = {"by_digits": "digits", "by_carry_chain": "carries in a row"}
    return [_interval_table(of, names[by], groups) for by, groups in by_length(evaluation).items() if groups]


def _interval_table(of: str, name: str, groups: Mapping[int, Mapping[str, Any]]) -> Table:
    rows = [[str(key), *_share(row), f"{percent(row['low'])} to {percent(row['high'])}"]
            for key, row in groups.items()]  # fmt: skip
    return table(f"{of}, by {name}", [name, "right", "", "95 % interval"], rows)


def errors_table(errors: Sequence[dict[str, Any]], most: int = 40) -> Table:
    """Return the wrong answers, at most `most` of them, and how many more there are."""
    rows = [[e["problem"], e["expected"], e["got"], percent(e["probability"]), e["membership"]] for e in errors[:most]]
    title = f"Wrong answers: {len(errors)}" + (f", of which the first {most}" if len(errors) > most else "")
    return table(title, ["problem", "expected", "got", "probability", "was in"], rows, text=(0, 1, 2))


class ProgressLine:
    """One line on stderr that says how training goes: live on a terminal, else a new line at each report."""

    def __init__(self, n_steps: int, batch_size: int, watched: str) -> None:
        self.n_steps, self.batch_size, self.watched = n_steps, batch_size, watched
        self.live = Progress(TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
        self.is_live = self.live.console.is_terminal
        self.task = self.live.add_task("compiling …", total=n_steps)
        self.started: float | None = None
        self.first_step = 0
        self.match: float | None = None

    def __enter__(self) -> Self:
        if self.is_live:
            self.live.start()
        else:
            print("compiling …", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def update(self, step: int, loss: float, match: float | None = None) -> None:
        """Show a step; `match` is the newest exact match where it was measured after this step."""
        now = time.perf_counter()
        if self.started is None:
            self.started, self.first_step = now, step
        self.match = self.match if match is None else match
        rate = (step - self.first_step) / (now - self.started) if step > self.first_step else None
        speed = f"{rate * self.batch_size:,.0f} examples/s" if rate else ""
        left = f"{(self.n_steps - step) / rate:.0f} s left" if rate else ""
        text = f"step {step:,}/{self.n_steps:,}  loss {loss:.4f}  {self.watched} {percent(self.match)}  {speed}  {left}"
        if self.is_live:
            self.live.update(self.task, completed=step, description=text)
        elif match is not None:
            print(text, file=sys.stderr)


def learning_curve(path: Path, lines: Sequence[dict[str, Any]], watched: str) -> None:
    """Write a figure: the loss of every step, and exact match by operation wherever it was measured.

    Args:
      lines: those of metrics.jsonl; with "step" and "loss" in nats, or with "step" and "by_operation" (shares).
      watched: which problems the shares are on, for the axis.
    """
    from matplotlib.figure import Figure  # slow to import, and only this function needs it

    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    checks = [line for line in lines if "by_operation" in line]
    above.semilogy(list(losses), list(losses.values()), linewidth=0.6, color="#4477aa")
    above.set_ylabel("surprise per answer token (nats)")
    above.set_title("Loss on the training batches", loc="left")
    steps = [check["step"] for check in checks]
    for operation in checks[0]["by_operation"] if checks else ():
        if checks[0]["by_operation"][operation] is None:
            continue  # a small table may hold out no problem of an operation
        shares = [100 * check["by_operation"][operation] for check in checks]
        below.plot(steps, shares, marker=".", label=operation, color=COLOURS[operation])
    below.set_ylim(-2, 102)
    below.set_ylabel("exact match (%)")
    below.set_xlabel("training step")
    below.set_title(f"Whole answers right, on {watched} problems", loc="left")
    if checks:
        below.legend(loc="lower right", frameon=False)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
