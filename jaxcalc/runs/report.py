"""What people read in the terminal (host): tables and progress."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from jaxcalc.evaluation import Evaluation, answer_text, prompt_text
from jaxcalc.params import Params
from jaxcalc.runs.text import percent
from jaxcalc.scale.cost import UTILISATION, size_text, step_seconds
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task
from jaxcalc.trees import count


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> Table:
    """Return a table. The columns whose indices are in `text` hold words, the others numbers."""
    built = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        is_text = index in text
        built.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        built.add_row(*row)
    return built


def position_tables(title: str, rows: Mapping[str, Sequence[float]], most: int = 8) -> list[Table]:
    """Return tables with one number per row and token position, at most `most` positions each: 8 fit 80 columns."""

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
    stages: dict[str, object] = {"embeddings": params["embed"]}
    for index, block in enumerate(params["blocks"]):
        stages |= {f"block {index} attention": block["attention"], f"block {index} feed-forward": block["mlp"]}
    stages["output"] = params["output"]
    rows = [[name, f"{count(stage):,}"] for name, stage in stages.items()]
    return table("The model", ["stage", "parameters"], [*rows, ["all", f"{count(params):,}"]])


def cost_table(sizes: Mapping[str, int], available: int | None, flops: float, peak: float) -> Table:
    """Return the predicted cost of a step on each device.

    Args:
      sizes: bytes, by what they are for.
      available: bytes of memory, if known.
      flops: floating-point operations in products.
      peak: the device's highest speed, in operations per second.
    """
    limit = "" if available is None else f" of {size_text(available)}"
    rows = [[name, size_text(size)] for name, size in sizes.items()]
    rows.append(["all of the memory", size_text(sum(sizes.values())) + limit])
    speed = f"{UTILISATION:.0%} of {peak / 1e9:,.0f} GFLOP/s".replace("%", " %")
    rows.append(["products", f"{flops / 1e9:,.2f} GFLOP at {speed}"])
    rows.append(["time", f"{1e3 * step_seconds(flops, peak):,.1f} ms"])
    return table("What a step is predicted to take", ["", "on each device"], rows)


def problems_table(task: Task) -> Table:
    """Return the number of problems of each kind in training and held out, and for a `Calculator` the lessons."""
    sides = (task.train_rows, task.held_out_rows)
    counts = [np.bincount(task.kind_ids[np.asarray(rows)], minlength=len(task.kind_names)) for rows in sides]
    columns = ["operation", "training", "held out"]
    title = "A sample of the problems"
    if isinstance(task, Calculator):
        lessons = np.asarray(task.lessons)
        counts.append(np.array([(lessons == task.tokenizer.ids[name]).any(axis=1).sum() for name in task.kind_names]))
        columns.append("lessons per epoch")
        title = "The problems"
    named = zip(task.kind_names, np.stack(counts, 1).tolist(), strict=True)
    rows = [[name, *(f"{n:,}" for n in row)] for name, row in named]
    total = ["all", *(f"{side.sum():,}" for side in counts)]
    return table(f"{title} ({task.split} split, numbers up to {task.tokenizer.max_number:,})", columns, [*rows, total])


def before_and_after_table(before: Evaluation, after: Evaluation, first_step: int = 0) -> Table:
    """Return the answers of the model before and after training to the same problems, with their probabilities.

    Args:
      first_step: the step of the model before, 0 if it was untrained.
    """
    rows = []
    for index, row in enumerate(after.rows.tolist()):
        cells = [prompt_text(after.task, row)]
        for evaluation in (before, after):
            answer = answer_text(after.task, evaluation.generated[index])
            mark = "" if evaluation.correct[index] else " ✗"
            cells += [answer + mark, percent(float(evaluation.probability[index]))]
        rows.append(cells)
    origin = "that were held out" if after.rows[0] in np.asarray(after.task.held_out_rows) else "from training"
    first = f"at step {first_step:,}" if first_step else "untrained answer"
    columns = ["problem", first, "p", "trained answer", "p"]
    return table(f"Before and after, on problems {origin}", columns, rows, text=(0, 1, 3))


def by_operation(held_out: Evaluation, training: Evaluation) -> dict[str, dict[str, int | float | None]]:
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
    """Return exact match with its 95 % interval, by number of digits and by length of the carry chain."""
    return {"by_digits": evaluation.by_digits(), "by_carry_chain": evaluation.by_carry_chain()}


def wrong_answers(held_out: Evaluation, training: Evaluation) -> list[Mapping[str, Any]]:
    """Return the wrong answers of both evaluations, each with its "membership"."""
    sides = (("held out", held_out), ("training", training))
    return [{**error, "membership": side} for side, evaluation in sides for error in evaluation.errors()]


def accuracy_table(held_out: Evaluation, training: Evaluation) -> Table:
    """Return exact match by operation, on held-out and on training problems."""
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


def length_tables(evaluation: Evaluation, title: str = "Held out") -> list[Table]:
    """Return exact match with its 95 % interval, by number of digits and by length of the carry chain."""
    names = {"by_digits": "digits", "by_carry_chain": "carries in a row"}
    tables = []
    for key, groups in by_length(evaluation).items():
        rows = [
            [str(length), *_share(row), f"{percent(row['low'])} to {percent(row['high'])}"]
            for length, row in groups.items()
        ]
        if rows:
            tables.append(table(f"{title}, by {names[key]}", [names[key], "right", "", "95 % interval"], rows))
    return tables


def errors_table(errors: Sequence[Mapping[str, Any]], most: int = 40) -> Table:
    """Return the first `most` wrong answers; the title says how many there are."""
    rows = [[e["problem"], e["expected"], e["got"], percent(e["probability"]), e["membership"]] for e in errors[:most]]
    title = f"Wrong answers: {len(errors)}" + (f", of which the first {most}" if len(errors) > most else "")
    return table(title, ["problem", "expected", "got", "probability", "was in"], rows, text=(0, 1, 2))


class ProgressLine:
    """The progress of training on stderr: one live line on a terminal, elsewhere a new line per evaluation."""

    def __init__(self, n_steps: int, batch_size: int, watched: str) -> None:
        self.n_steps, self.batch_size, self.watched = n_steps, batch_size, watched
        self.live = Progress(TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
        self.is_live = self.live.console.is_terminal
        self.task = self.live.add_task("training …", total=n_steps)
        self.started: float | None = None
        self.first_step = 0
        self.match: float | None = None

    def __enter__(self) -> Self:
        if self.is_live:
            self.live.start()
        else:
            print("training …", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def update(self, step: int, losses: Sequence[float], match: float | None = None) -> None:
        """Show a step and the last of its losses, with the exact match if it was measured after this step."""
        if not len(losses):  # every step since the last update was left out
            return
        now = time.perf_counter()
        if self.started is None:
            self.started, self.first_step = now, step
        self.match = self.match if match is None else match
        rate = (step - self.first_step) / (now - self.started) if step > self.first_step else None
        speed = f"  {rate * self.batch_size:,.0f} examples/s" if rate else ""
        left = f"  {(self.n_steps - step) / rate:.0f} s left" if rate else ""
        done = f"step {step:,}/{self.n_steps:,} ({step * self.batch_size:,} examples)  loss {losses[-1]:.4f}"
        text = f"{done}  {self.watched} {percent(self.match)}{left}{speed}"  # a narrow terminal cuts off the end
        if self.is_live:
            self.live.update(self.task, completed=step, description=text)
        elif match is not None:
            print(text, file=sys.stderr)
