"""Evaluation: exact match of whole generated answers, by operation, and the list of errors."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc import decoding
from jaxcalc.batch import PAD_ID, Batch
from jaxcalc.decoding import generate
from jaxcalc.losses import ApplyFn, answer_logits, check_columns, example_cross_entropy, next_shape
from jaxcalc.model import apply
from jaxcalc.reprs import outline
from jaxcalc.tasks.own import questions_from
from jaxcalc.tasks.problems import Problem, carry_chain
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task
from jaxcalc.tasks.tokenizer import END, PAD

_CHUNK = 1024  # problems decoded at once; this bounds memory, and one compiled program serves any number of rows


class Share(TypedDict):
    """How many of some problems are answered right."""

    problems: int
    correct: int
    exact_match: float | None
    """correct / problems; None without problems."""


class Interval(Share):
    """The same with Wilson's (1927) 95 % interval, in which the share among all such problems may well lie."""

    low: float
    high: float


class Mistake(TypedDict):
    """One wrong answer."""

    problem: str
    expected: str
    got: str
    probability: float
    """The model's probability of what it answered."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model's answers to some rows of a task."""

    task: Task
    rows: np.ndarray
    """int `[M]`: which rows."""
    generated: np.ndarray
    """int `[M, A]`: the answers, decoded greedily, each with its end, then padding."""
    probability: np.ndarray
    """float `[M]`: the model's probability of the whole answer it gave."""
    correct: np.ndarray
    """bool `[M]`: the answer and its end are exactly right."""

    __repr__ = outline

    @property
    def exact_match(self) -> float | None:
        """The share of answers that are exactly right; None without rows."""
        return float(self.correct.mean()) if len(self.rows) else None

    def total(self) -> Interval:
        """Return how many answers are right, with a 95 % interval."""
        return _interval(self.correct)

    def by_operation(self) -> dict[str, Share]:
        """Return how many answers are right for each kind of problem."""
        kind_ids = self.task.kind_ids[self.rows]
        return {name: _share(self.correct[kind_ids == index]) for index, name in enumerate(self.task.kind_names)}

    def by_digits(self) -> dict[int, Interval]:
        """Return `total` by the digits of a problem's longest number."""
        return self._by([max(len(str(number)) for number in problem.numbers) for problem in self._problems()])

    def by_carry_chain(self) -> dict[int, Interval]:
        """Return `total` by `jaxcalc.carry_chain`, without problems of times and divided by."""
        return self._by([carry_chain(problem) for problem in self._problems()])

    def _problems(self) -> list[Problem]:
        return [self.task.problem(int(row)) for row in self.rows]

    def _by(self, groups: list[int] | list[int | None]) -> dict[int, Interval]:
        there = sorted({group for group in groups if group is not None})
        group_ids = np.array([-1 if group is None else group for group in groups])
        return {group: _interval(self.correct[group_ids == group]) for group in there}

    def errors(self) -> list[Mistake]:
        """Return the wrong answers."""
        return [
            {
                "problem": prompt_text(self.task, int(self.rows[i])),
                "expected": answer_text(
                    self.task, np.asarray(self.task.tokens)[self.rows[i], self.task.prompt_length :]
                ),
                "got": answer_text(self.task, self.generated[i]),
                "probability": float(self.probability[i]),
            }
            for i in np.flatnonzero(~self.correct)
        ]


def _share(correct: np.ndarray) -> Share:
    n, right = correct.size, int(correct.sum())
    return {"problems": n, "correct": right, "exact_match": right / n if n else None}


def _interval(correct: np.ndarray) -> Interval:
    from scipy.stats import binomtest  # slow to import, and only this function needs it

    share = _share(correct)
    if not share["problems"]:
        return {**share, "low": 0.0, "high": 1.0}
    low, high = binomtest(share["correct"], share["problems"]).proportion_ci(method="wilson")
    return {**share, "low": float(low), "high": float(high)}


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def evaluate(
    params: Any,
    task: Task,
    rows: jax.Array | np.ndarray | Sequence[tuple[str, str]],
    apply_fn: ApplyFn = apply,
) -> Evaluation:
    """Return the model's answers to the given rows of the task, decoded greedily. Jitted inside.

    Instead of rows it takes a list of questions with the answers to expect, each in text, as `jaxcalc.batch_from`
    does. The evaluation's own task then lists them.

    Raises as `jaxcalc.generate` does, for a pair as `jaxcalc.batch_from` does, and `InputError` for logits with too
    few columns for the answers.

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> task = calculator()
    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=task.vocab_size))
    >>> evaluate(params, task, task.held_out_rows).exact_match < 0.1
    True
    """
    if isinstance(rows, list | tuple) and not all(isinstance(row, int | np.integer) for row in rows):
        task = questions_from(rows, task)
        rows = np.arange(len(task.tokens))
    rows = np.asarray(rows, int if len(rows) == 0 else None)
    padded = np.concatenate([rows, np.zeros(-len(rows) % _CHUNK, rows.dtype)])
    generated = np.zeros((len(padded), task.answer_length), np.int32)
    probability = np.zeros(len(padded))
    tokens = np.asarray(task.tokens)  # NumPy picks the rows, because it compiles nothing
    expected = tokens[rows, task.prompt_length :]
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(padded), _CHUNK)]
    # This dispatches all chunks before it reads the first, so the device never waits for the host.
    prompts = [jax.device_put(tokens[padded[c], : task.prompt_length]) for c in chunks]
    if apply_fn is not apply and prompts:
        check_columns(next_shape(params, prompts[0], apply_fn), expected)
    answers = [generate(params, prompt, task.answer_length, apply_fn=apply_fn) for prompt in prompts]
    for chunk, (tokens, log_probs) in zip(chunks, answers, strict=True):
        generated[chunk], probability[chunk] = tokens, _probability(log_probs)
    generated = generated[: len(rows)]
    correct = (generated == expected).all(axis=1)
    return Evaluation(task, rows, generated, probability[: len(rows)], correct)


def lowered(params: Any, task: Task) -> jax.stages.Lowered:
    """Return the program that `evaluate` runs, to be compiled before it is needed; shapes of parameters are enough."""
    prompts = jax.ShapeDtypeStruct((_CHUNK, task.prompt_length), jnp.int32)
    return decoding.lowered(params, prompts, task.answer_length)


@jax.jit
def _probability(log_probs: jax.Array) -> jax.Array:
    return jnp.exp(log_probs.sum(axis=1))


@functools.partial(jax.jit, static_argnames="apply_fn")
def answer_log_probs(params: Any, task: Calculator, prompt: jax.Array, apply_fn: ApplyFn = apply) -> jax.Array:
    """Return ln p of every possible answer to one prompt, float `[max_number + 1]`. Jitted.

    ln p(answer) = Σ ln p(token | prompt, tokens before), its end included. The model reads each answer as a whole, so
    these are exact and need no search.

    Args:
      prompt: int `[prompt_length]`, as `task.encode` makes it.
    """
    answers = task.answers
    prompts = jnp.broadcast_to(prompt, (answers.shape[0], prompt.shape[0]))
    tokens = jnp.concatenate([prompts, answers], axis=1)
    batch = Batch(tokens, (answers != PAD_ID).astype(jnp.float32))
    return -example_cross_entropy(answer_logits(params, batch, apply_fn), batch)


def prompt_text(task: Task, row: int) -> str:
    """Return a row's question: "two plus three" if the task writes numbers in words, else "2 plus 3"."""
    question = str(task.problem(row))
    return " ".join(task.tokenizer.canonical(question)[:-1]) if task.tokenizer.notation == "words" else question


def answer_text(task: Task, ids: np.ndarray) -> str:
    """Return an answer's words up to its end, or all its words and "…" if it has no end."""
    words = [task.tokenizer.token(int(index)) for index in ids]
    if END not in words:
        return " ".join([*words, "…"])
    return " ".join(word for word in words[: words.index(END)] if word != PAD)
