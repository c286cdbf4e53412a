"""Evaluate a trained calculator on its whole table, or on the sample of a task that draws its problems.

python experiments/evaluate.py runs/calculator
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import tyro
from rich.console import Console

import jaxcalc
from jaxcalc.runs import cli, report
from jaxcalc.tasks.table import Calculator


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Decode every problem that a run's task lists, and count the answers that are exactly right."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(options: EvaluateOptions) -> int:
    run = jaxcalc.load_run(options.run)
    jaxcalc.evaluate(run.params, run.task, run.task.train_rows[:1])  # compiles
    clock = time.perf_counter()
    held_out = jaxcalc.evaluate(run.params, run.task, run.task.held_out_rows)
    seconds_held_out = time.perf_counter() - clock
    training = jaxcalc.evaluate(run.params, run.task, run.task.train_rows)
    seconds = time.perf_counter() - clock
    errors = report.wrong_answers(held_out, training)
    result = {
        "held_out_exact_match": held_out.exact_match,
        "train_exact_match": training.exact_match,
        "by_operation": report.by_operation(held_out, training),
        "errors": errors,
        **({} if isinstance(run.task, Calculator) else report.by_length(held_out)),
        "seconds": {"held_out": seconds_held_out, "total": seconds},
    }
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
        return 0
    console = Console()
    console.print(report.accuracy_table(held_out, training), "", report.errors_table(errors), "", sep="\n")
    if not isinstance(run.task, Calculator):
        for table in report.length_tables(held_out):
            console.print(table, "", sep="\n")
    n_problems = len(held_out.rows) + len(training.rows)
    console.print(f"{n_problems:,} problems decoded in {seconds:.2f} s once compiled, the held-out ones "
                  f"in {seconds_held_out:.2f} s.", highlight=False)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_script(main, EvaluateOptions))
