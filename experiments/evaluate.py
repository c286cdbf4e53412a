"""python experiments/evaluate.py runs/calculator
python experiments/evaluate.py runs/calculator --min-accuracy 0.99   # exit status 1 if fewer are right

The run of train.py's defaults answered 1,130 of 1,133 held-out problems and all 10,211 training problems right
(99.74 and 100 %; seed 0). This decodes every problem of a run's table, or of the sample that a drawn task lists.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import tyro
from rich.console import Console

import jaxcalc
from jaxcalc.errors import InputError
from jaxcalc.runs import cli, report
from jaxcalc.tasks.table import Calculator


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Decode every problem that a run's task lists, and count the answers that are exactly right."""

    run: tyro.conf.Positional[Path]
    """Run folder that train.py wrote."""
    json: bool = False
    """Print one JSON object instead of tables."""
    min_accuracy: float | None = None
    """Exit with status 1 if less than this share, from 0 to 1, of the held-out problems is right (of the training
    problems if none is held out)."""


BELOW = 1
"""The exit status of an accuracy below --min-accuracy."""


def main(options: EvaluateOptions) -> int:
    if options.min_accuracy is not None and not 0 <= options.min_accuracy <= 1:
        raise InputError(f"--min-accuracy is {options.min_accuracy}; it must be from 0 to 1, such as 0.99")
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
        return status_of(held_out, training, options.min_accuracy)
    console = Console()
    console.print(report.accuracy_table(held_out, training), "", report.errors_table(errors), "", sep="\n")
    if not isinstance(run.task, Calculator):
        for table in report.length_tables(held_out):
            console.print(table, "", sep="\n")
    n_problems = len(held_out.rows) + len(training.rows)
    timing = f"{n_problems:,} problems decoded in {seconds:.2f} s, the held-out ones in {seconds_held_out:.2f} s"
    console.print(f"{timing}; compiling came before.", highlight=False)
    return status_of(held_out, training, options.min_accuracy)


def status_of(held_out: jaxcalc.Evaluation, training: jaxcalc.Evaluation, least: float | None) -> int:
    """Return the exit status, and say on stderr why it is not 0."""
    side, match = ("held-out", held_out.exact_match) if len(held_out.rows) else ("training", training.exact_match)
    if least is None or match is None or match >= least:
        return 0
    print(f"{match:.4%} of the {side} problems are right, below --min-accuracy {least:.4%}", file=sys.stderr)
    return BELOW


if __name__ == "__main__":
    sys.exit(cli.run_script(main, EvaluateOptions))
