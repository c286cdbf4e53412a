"""python experiments/ask.py runs/calculator "seven times eight"

The run of train.py's defaults answered "fifty six" with probability 99.98 %. Without a question the script reads
questions line by line, from the keyboard or from a pipe.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxcalc
from jaxcalc.batch import PAD_ID
from jaxcalc.evaluation import answer_log_probs, answer_text
from jaxcalc.runs import cli, load_snapshot, placement, streams
from jaxcalc.runs.text import percent
from jaxcalc.tasks.table import Calculator

RUNNERS_UP = 4
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


class RunnerUp(TypedDict):
    """Another possible answer."""

    answer: str
    value: int
    probability: float


class Answer(TypedDict):
    """What a model answers to a question, and what is right."""

    prompt: str
    answer: str
    value: int | None
    """The number that the answer states; None if it states none."""
    probability: float
    correct: bool
    expected: int | None
    membership: str
    drawn: bool
    """Whether the task draws its problems."""
    runners_up: list[RunnerUp]


def main(options: AskOptions) -> int:
    run = jaxcalc.load_run(options.run)
    if options.step is not None:
        run = dataclasses.replace(run, params=load_snapshot(run, options.step).params)
    if options.question:
        answer = ask(run, " ".join(options.question))
        print_json(answer) if options.json else print_answer(answer)
        return 0
    if sys.stdin.isatty():
        converse(run, print_json if options.json else print_answer)
        return 0
    return answer_lines(run, options.json)


def converse(run: jaxcalc.Run, show: Callable[[Answer], None]) -> None:
    """Answer what is typed at a prompt, until its end."""
    print(HELP, file=sys.stderr)
    while (question := read_line("> ")) not in (None, "", "quit", "exit"):
        try:
            if question == "help":
                print(HELP, file=sys.stderr)
            else:
                show(ask(run, question))
        except jaxcalc.InputError as error:
            print(f"error: {error}", file=sys.stderr)


def read_line(prompt: str = "") -> str | None:
    """Return the next line of the input, None at the end and when nobody reads the answers."""
    try:
        return input(prompt).strip() if streams.has_reader() else None
    except (EOFError, KeyboardInterrupt):
        return None


def answer_lines(run: jaxcalc.Run, as_json: bool) -> int:
    """Answer every line of the input, and return the exit status: 2 if a line was refused."""
    status = 0
    for line, question in enumerate(iter(read_line, None), start=1):
        try:
            answer = ask(run, question)
            print_json({"line": line, **answer}) if as_json else print_answer(answer)
        except jaxcalc.InputError as error:
            status = 2
            if as_json:
                print_json({"line": line, "question": question, "error": str(error)})
            else:
                print(f"error: line {line}: {error}", file=sys.stderr)
    return status


@functools.partial(jax.jit, compiler_options=placement.QUICK_TO_COMPILE)
def answer_with(
    params: jaxcalc.Params, task: jaxcalc.Task, prompt: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the answer's tokens, ln p of each, and a table's ln p of every possible answer (none for drawn tasks)."""
    tokens, log_probs = jaxcalc.generate(params, prompt[None], task.answer_length)
    every = answer_log_probs(params, task, prompt) if isinstance(task, Calculator) else jnp.zeros(0)
    return tokens, log_probs, every


def ask(run: jaxcalc.Run, question: str) -> Answer:
    """Return the model's answer to one question, and the truth."""
    task = run.task
    problem, prompt = task.parse(question), task.encode(question)
    tokens, log_probs, every_log_prob = answer_with(run.params, task, jnp.asarray(prompt))
    answer = answer_text(task, np.asarray(tokens[0]))
    value = task.tokenizer.read(answer.split())
    probabilities = np.exp(every_log_prob)
    others = [number for number in np.argsort(-probabilities).tolist() if number != value][:RUNNERS_UP]
    return {
        "prompt": task.tokenizer.decode(prompt[prompt != PAD_ID]),
        "answer": answer,
        "value": value,
        "probability": float(np.exp(log_probs.sum())),
        "correct": value is not None and value == problem.answer,
        "expected": problem.answer,
        "membership": task.membership(problem),
        "drawn": not isinstance(task, Calculator),
        "runners_up": [
            {"answer": " ".join(task.tokenizer.spell(n)), "value": n, "probability": float(probabilities[n])}
            for n in others
        ],
    }


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object in one line, at once."""
    print(json.dumps(value), flush=True)


def print_answer(answer: Answer) -> None:
    """Print an answer for people."""
    value = "not a number" if answer["value"] is None else answer["value"]
    print(f"{answer['prompt']} → {answer['answer']} ({value}), probability {percent(answer['probability'])}")
    if answer["runners_up"]:
        others = (f"{r['answer']} {percent(r['probability'])}" for r in answer["runners_up"])
        print(f"  runners-up: {', '.join(others)}")
    if answer["membership"] == "outside":
        truth = "no whole number" if answer["expected"] is None else answer["expected"]
        print(f"  The true answer is {truth}: outside what the model was trained on, so it cannot be right.")
    else:
        verdict = "Right" if answer["correct"] else f"Wrong: the answer is {answer['expected']}"
        seen = "is one that training may have drawn" if answer["drawn"] else "was in training"
        where = {"training": seen, "held out": "was held out, so the model never saw it"}
        print(f"  {verdict}. This problem {where[answer['membership']]}.")


if __name__ == "__main__":
    sys.exit(cli.run_script(main, AskOptions))
