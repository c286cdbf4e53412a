"""python experiments/ask.py runs/calculator "seven times eight"

The run of train.py's defaults answered "fifty six" with probability 99.98 %. Without a question the script reads
questions line by line.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxcalc
from jaxcalc.batch import PAD_ID
from jaxcalc.evaluation import answer_log_probs, answer_text
from jaxcalc.runs import cli, placement
from jaxcalc.runs.text import percent
from jaxcalc.tasks.table import Calculator

RUNNERS_UP = 4


@dataclasses.dataclass(frozen=True)
class AskOptions:
    """Ask a trained calculator one question, or one after another."""

    run: tyro.conf.Positional[Path]
    """Run folder that train.py wrote."""
    question: tyro.conf.Positional[str | None] = None
    """Such as "two plus three" or "2 + 3". Without it, the script reads questions line by line."""
    json: bool = False
    """Print one JSON object per answer."""


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
    show = (lambda answer: print(json.dumps(answer, ensure_ascii=False))) if options.json else print_answer
    if options.question is not None:
        show(ask(run, options.question))
        return 0
    if sys.stdin.isatty():
        print("Ask, for example, two plus three. An empty line or Ctrl-D ends.", file=sys.stderr)
    status = 0
    while question := read_line():
        try:
            show(ask(run, question))
        except jaxcalc.InputError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 0 if sys.stdin.isatty() else 2
    return status


def read_line() -> str:
    """Return the next line of the input, "" at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


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
