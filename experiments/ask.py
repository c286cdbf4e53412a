"""python experiments/ask.py runs/calculator "seven times eight"

The run of train.py's defaults answered "fifty six" with probability 99.98 %. Without a question the script reads
questions line by line, from the keyboard or from a pipe.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

import jaxcalc
from jaxcalc.runs import cli, streams
from jaxcalc.runs.text import percent, wrapped

if TYPE_CHECKING:
    from jaxcalc.runs.asking import Answer

HELP = "Ask, for example, two plus three. An empty line, quit, exit or Ctrl-D ends."


@dataclasses.dataclass(frozen=True)
class AskOptions:
    """Ask a trained calculator one question, or one after another."""

    run: tyro.conf.Positional[Path]
    """Run folder that train.py wrote."""
    question: tyro.conf.Positional[tuple[str, ...]] = ()
    """Such as two plus three, or "2 + 3". Without it, the script reads questions line by line."""
    step: int | None = None
    """Answer with the parameters of this snapshot instead of the last ones."""
    json: bool = False
    """Print one JSON object per answer, and one per line that is refused."""


def main(options: AskOptions) -> int:
    run = jaxcalc.load_run(options.run)
    if options.step is not None:
        run = dataclasses.replace(run, params=run.at(options.step))
    if options.question:
        answer = run.ask(" ".join(options.question))
        print_json(answer) if options.json else print_answer(answer)
        return 0
    if sys.stdin.isatty():
        converse(run, print_json if options.json else print_answer)
        return 0
    return answer_lines(run, options.json)


def converse(run: "jaxcalc.Run", show: "Callable[[Answer], None]") -> None:
    """Answer what is typed at a prompt, until its end."""
    print(HELP, file=sys.stderr)
    while (question := read_line("> ")) not in (None, "", "quit", "exit"):
        try:
            if question == "help":
                print(HELP, file=sys.stderr)
            else:
                show(run.ask(question))
        except jaxcalc.InputError as error:
            print(f"error: {error}", file=sys.stderr)


def read_line(prompt: str = "") -> str | None:
    """Return the next line of the input, None at the end and when nobody reads the answers."""
    try:
        return input(prompt).strip() if streams.has_reader() else None
    except (EOFError, KeyboardInterrupt):
        return None


def answer_lines(run: "jaxcalc.Run", as_json: bool) -> int:
    """Answer every line of the input, and return the exit status: 2 if a line was refused."""
    status = 0
    for line, question in enumerate(iter(read_line, None), start=1):
        try:
            answer = run.ask(question)
            print_json({"line": line, **answer}) if as_json else print_answer(answer)
        except jaxcalc.InputError as error:
            status = 2
            if as_json:
                print_json({"line": line, "question": question, "error": str(error)})
            else:
                print(f"error: line {line}: {error}", file=sys.stderr)
    return status


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object in one line, at once."""
    print(json.dumps(value), flush=True)


def print_answer(answer: "Answer") -> None:
    """Print an answer for people."""
    value = "not a number" if answer["value"] is None else answer["value"]
    said = f"{answer['prompt']} → {answer['answer']} ({value}), probability {percent(answer['probability'])}"
    print(wrapped(said))
    if answer["runners_up"]:
        others = (f"{r['answer']} {percent(r['probability'])}" for r in answer["runners_up"])
        print(wrapped(f"  runners-up: {', '.join(others)}"))
    if answer["membership"] == "outside":
        truth = "no whole number" if answer["expected"] is None else answer["expected"]
        print(wrapped(f"  The true answer is {truth}: outside what the model was trained on, so it cannot be right."))
    else:
        verdict = "Right" if answer["correct"] else f"Wrong: the answer is {answer['expected']}"
        seen = "is one that training may have drawn" if answer["drawn"] else "was in training"
        where = {"training": seen, "held out": "was held out, so the model never saw it"}
        print(wrapped(f"  {verdict}. This problem {where[answer['membership']]}."))


if __name__ == "__main__":
    sys.exit(cli.run_script(main, AskOptions))
