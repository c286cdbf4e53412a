"""One question to a trained model: what it answers, and the batch that would teach it the right answer."""

import functools
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID, Batch
from jaxcalc.decoding import generate
from jaxcalc.errors import InputError
from jaxcalc.evaluation import answer_log_probs, answer_text
from jaxcalc.params import Params
from jaxcalc.runs.programs import QUICK_TO_COMPILE
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task
from jaxcalc.tasks.tokenizer import END, EQUALS

RUNNERS_UP = 4


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


def ask(params: Params, task: Task, question: str) -> Answer:
    """Return a model's answer to one question, and the truth; see `jaxcalc.Run.ask`."""
    problem, prompt = task.parse(question), task.encode(question)
    # NumPy does the rest, because it compiles nothing.
    tokens, log_probs, every_log_prob = jax.device_get(_answer(params, task, jax.device_put(prompt)))
    answer = answer_text(task, tokens[0])
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


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def _answer(params: Params, task: Task, prompt: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the answer's tokens, ln p of each, and a table's ln p of every possible answer (none for drawn tasks)."""
    tokens, log_probs = generate(params, prompt[None], task.answer_length)
    every = answer_log_probs(params, task, prompt) if isinstance(task, Calculator) else jnp.zeros(0)
    return tokens, log_probs, every


def next_word(task: Task, text: str) -> Batch:
    """Return a batch of one sequence: a question, perhaps with some of its answer, and the loss on the next word.

    watch.py, the notebook and the explorer's page learn from this batch, so that their totals agree.

    Raises `InputError` for a question that the task does not contain, as no answer is right, and for words that do not
    begin the right answer.

    >>> from jaxcalc import calculator
    >>> task = calculator()
    >>> batch = next_word(task, "seven times eight equals fifty")
    >>> task.tokenizer.token(int(batch.tokens[0, -1])), batch.mask.tolist()
    ('six', [[1.0]])
    """
    words = task.tokenizer.canonical(text)
    middle = words.index(EQUALS) + 1 if EQUALS in words else len(words)
    begun = words[middle:]
    prompt, answer = _asked(task, " ".join(words[:middle]) if begun else text)
    if begun != answer[: len(begun)]:
        raise InputError(
            f"{' '.join(begun)!r} does not begin the right answer, {' '.join(answer[:-1])!r}; leave it out to see what "
            "the model would say"
        )
    tokens = [*prompt, *(task.tokenizer.ids[word] for word in answer[: len(begun) + 1])]
    return Batch(jnp.asarray([tokens], jnp.int32), jnp.ones((1, 1), jnp.float32))


def _asked(task: Task, question: str) -> tuple[list[int], list[str]]:
    """Return the ids of a question, padding included, and the words of its right answer, its end included."""
    problem = task.parse(question)
    if problem.answer is None or task.membership(problem) == "outside":
        limit = task.tokenizer.max_number
        raise InputError(f"{question!r} has no answer from 0 to {limit}, so none is right and there is no loss")
    return task.encode(question).tolist(), [*task.tokenizer.spell(problem.answer), END]
