"""python experiments/ledger.py runs/calculator "seven times eight"

Says what taught a run this answer: every nat that the surprise at it lost, allotted to steps, stages and lessons. It
takes the run again, in about three times the seconds of its training.

python experiments/ledger.py runs/calculator "seven times eight" --until 290
python experiments/ledger.py runs/calculator "seven times eight" --compare "six times nine"
python experiments/ledger.py runs/calculator "two times seven" --wrong    # which lessons teach the wrong answer?
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import jaxcalc
from jaxcalc.errors import InputError
from jaxcalc.runs import cli, folder, placement, report, style
from jaxcalc.runs.account import Ledger, LessonRow, ledgers

MOST, AGAINST = 20, 10
"""Lessons shown: those that taught it most, and those that pulled against it."""
LINES = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb", "#222222")


@dataclasses.dataclass(frozen=True)
class LedgerOptions:
    """Say which steps, stages and lessons of a run brought the surprise at an answer down, in nats that add up. Takes
    the run again."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    question: tyro.conf.Positional[str]
    """Such as "seven times eight"."""
    until: int | None = None
    """The step at which the account ends; the last one if left out."""
    compare: str | None = None
    """Another question, whose account stands beside."""
    wrong: bool = False
    """Say what taught the wrong answer that the run gives, in place of the right one."""
    out: Path | None = None
    """The figure; ledger.png in the run's folder if left out."""
    json: bool = False
    """Print one JSON object."""


def main(options: LedgerOptions) -> int:
    if options.wrong and options.compare is not None:
        raise InputError("--wrong and --compare do not go together; ask for one account at a time")
    placement.use_devices("", placement.ProcessOptions())
    run = jaxcalc.load_run(options.run)
    questions = [options.question, *([] if options.compare is None else [options.compare])]
    answer = wrong_answer(run, options.question) if options.wrong else None
    path = options.out or run.path / "ledger.png"
    style.check_path(path)
    found = taken_again(run, questions, options.until, [answer] * len(questions))
    style.save(figure(found), path)
    if options.json:
        print(json.dumps([as_json(ledger) for ledger in found], ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for ledger in found:
        show(console, ledger)
    print(f"Figure: {path}")
    return 0


def taken_again(
    run: jaxcalc.Run, questions: Sequence[str], until: int | None = None, answers: Sequence[int | None] | None = None
) -> list[Ledger]:
    """Return the ledgers of some questions as `account.ledgers` does, and show on stderr how far it is."""
    task, last = folder.calculator_of(run), until or run.config.schedule.steps
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        bar_task = bar.add_task("taking the run again, backwards", total=last)
        return ledgers(
            *(run.path, run.config, task, questions, until, answers),
            progress=lambda step: bar.update(bar_task, completed=last - step),
        )


def wrong_answer(run: jaxcalc.Run, question: str) -> int:
    """Return the wrong number that a run answers. Raises `InputError` if it is right, or if it is no number."""
    answer = run.ask(question)
    if answer["correct"] or answer["value"] is None:
        raise InputError(f"the run answers {question!r} with {answer['answer']!r}; --wrong needs a wrong number")
    return answer["value"]


def show(console: Console, ledger: Ledger) -> None:
    """Print an account."""
    half = learned(ledger)
    console.print(f"[bold]{ledger.question}[/bold]")
    console.print(
        f"{ledger.surprise[0]:.3f} nats at step {ledger.steps[0]:,}, {ledger.surprise[-1]:.3f} after step "
        f"{ledger.steps[-1] + 1:,}: a drop of {ledger.drop:.3f}, half of it by step {half:,}.\n"
    )
    stages = [(name, f"{added.sum():+.3f}") for name, added in ledger.by_stage.items()]
    console.print(report.table("By stage", ["stage", "nats"], [*stages, ("remainder", f"{ledger.remainder:+.4f}")]), "")
    n_lessons: dict[str, int] = {}
    for row in ledger.by_lesson:
        n_lessons[row.relation] = n_lessons.get(row.relation, 0) + 1
    rows = [(name, f"{n_lessons[name]:,}", f"{nats:+.3f}") for name, nats in ledger.by_relation.items()]
    rows.append(("weight decay", "", f"{ledger.weight_decay:+.3f}"))
    rows.append(("momentum from before, rounding", "", f"{ledger.before + ledger.rounding:+.4f}"))
    console.print(report.table("By what a lesson has to do with it", ["relation", "lessons", "nats"], rows), "")
    for title, part in (
        (f"The {MOST} lessons that taught it most", ledger.by_lesson[:MOST]),
        (f"The {AGAINST} that pulled against it most", ledger.by_lesson[::-1][:AGAINST]),
    ):
        cells = [(row.lesson, row.relation, str(row.visits), f"{row.nats:+.3f}") for row in part]
        console.print(report.table(title, ["lesson", "relation", "visits", "nats"], cells, (0, 1)), "")


def learned(ledger: Ledger) -> int:
    """Return the first step after which half of the drop has happened and never less."""
    below = ledger.surprise <= ledger.surprise[0] - ledger.drop / 2
    return int(ledger.steps[0] + len(below) - np.argmin(below[::-1])) if not below.all() else int(ledger.steps[0])


def as_json(ledger: Ledger) -> dict[str, Any]:
    """Return an account as JSON values."""

    def lists(rows: dict[str, np.ndarray]) -> dict[str, list[float]]:
        return {name: added.tolist() for name, added in rows.items()}

    def lesson(row: LessonRow) -> dict[str, Any]:
        return dict(row._asdict())

    return {
        "question": ledger.question,
        "drop": ledger.drop,
        "remainder": ledger.remainder,
        "steps": ledger.steps.tolist(),
        "surprise": ledger.surprise.tolist(),
        "by_stage": lists(ledger.by_stage),
        "by_head": lists(ledger.by_head),
        "by_relation": ledger.by_relation,
        "by_lesson": [lesson(row) for row in ledger.by_lesson],
        "weight_decay": ledger.weight_decay,
        "before": ledger.before,
        "rounding": ledger.rounding,
    }


def figure(found: list[Ledger]) -> Figure:
    """Draw the surprise and the credit of each stage, summed up to each step."""
    first = found[0]
    drawn = style.new_figure(
        f"What taught the run “{first.question}”",
        "Above: the surprise at the answer, −ln p, step by step. Below: the credit of each stage, summed up to each "
        "step. At every step the lines below add up to what the surprise above has lost, up to the remainder that the "
        "table gives; a falling line is a stage that pulls against the answer.",
        height=5.6,
    )
    columns = drawn.subplots(2, len(found), sharex=True, squeeze=False, height_ratios=(1, 2))
    for (above, below), ledger in zip(columns.T, found, strict=True):
        style.plain(above, ledger.question)
        above.plot(np.append(ledger.steps, ledger.steps[-1] + 1), ledger.surprise, color=style.INK, linewidth=0.8)
        above.set_ylabel("nats")
        style.plain(below)
        for colour, (name, added) in zip(LINES * 9, ledger.by_stage.items(), strict=False):
            below.plot(ledger.steps + 1, np.cumsum(added), color=colour, linewidth=1.2, label=name)
        below.axhline(0, color=style.CONTROL, linewidth=0.8)
        below.set(xlabel="step", ylabel="nats since the start")
    columns[1, -1].legend(fontsize=7.5, frameon=False)
    return drawn


if __name__ == "__main__":
    sys.exit(cli.run_script(main, LedgerOptions))
