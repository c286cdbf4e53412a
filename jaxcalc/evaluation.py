"""Evaluation: exact match of whole generated answers, by operation, and the list of errors."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID, Batch
from jaxcalc.decoding import generate
from jaxcalc.losses import ApplyFn, answer_logits, example_cross_entropy
from jaxcalc.model import apply
from jaxcalc.params import Params
from jaxcalc.tasks.problems import Problem, carry_chain
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task
from jaxcalc.tasks.tokenizer import END, PAD

_CHUNK = 1024  # problems decoded at once: bounds memory, and one compilation serves any number of rows


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model answered to some rows of a task."""

    task: Task
    rows: np.ndarray
    """int `[M]`: which rows."""
    generated: np.ndarray
    """int `[M, A]`: the answers, greedy, each with its end, then padding."""
    probability: np.ndarray
    """float `[M]`: the model's probability of the whole answer it gave."""
    correct: np.ndarray
    """bool `[M]`: the answer and its end are exactly right."""

    @property
    def exact_match(self) -> float | None:
        """The share of answers that are exactly right; None where there are no rows."""
        return float(self.correct.mean()) if len(self.rows) else None

    def total(self) -> dict[str, Any]:
        """Return how many "problems" there are and how many are "correct", and their share with a 95 % interval.

        The interval, "low" to "high", is Wilson's (1927): what the share in all problems of the sort may well be.
        """
        return _share(self.correct, interval=True)

    def by_operation(self) -> dict[str, dict[str, Any]]:
        """Return for each operation the number of "problems", how many are "correct", and their share "exact_match"."""
        kind_ids = self.task.kind_ids[self.rows]
        return {name: _share(self.correct[kind_ids == index]) for index, name in enumerate(self.task.kind_names)}

    def by_digits(self) -> dict[int, dict[str, Any]]:
        """Return `total` for each number of digits that a problem's longest number has."""
        return self._by([max(len(str(number)) for number in problem.numbers) for problem in self._problems()])

    def by_carry_chain(self) -> dict[int, dict[str, Any]]:
        """Return `total` by `jaxcalc.carry_chain`; problems of times and divided by are left out."""
        return self._by([carry_chain(problem) for problem in self._problems()])

    def _problems(self) -> list[Problem]:
        return [self.task.problem(int(row)) for row in self.rows]

    def _by(self, groups: list[int] | list[int | None]) -> dict[int, dict[str, Any]]:
        there = sorted({group for group in groups if group is not None})
        of = np.array([-1 if group is None else group for group in groups])
        return {group: _share(self.correct[of == group], interval=True) for group in there}

    def errors(self) -> list[dict[str, Any]]:
        """Return each wrong answer: the "problem", what was "expected", what it "got", at which "probability"."""
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


def _share(correct: np.ndarray, interval: bool = False) -> dict[str, Any]:
    n, right = correct.size, int(correct.sum())
    share = {"problems": n, "correct": right, "exact_match": right / n if n else None}
    if interval:
        from scipy.stats import binomtest  # slow to import, and only this needs it

        low, high = binomtest(right, n).proportion_ci(method="wilson")
        share |= {"low": float(low), "high": float(high)}
    return share


def evaluate(params: Params, task: Task, rows: jax.Array | np.ndarray) -> Evaluation:
    """Return what the model answers, decoding greedily, to the given rows of the task. Jitted inside.

    Raises as `jaxcalc.generate` does.

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> task = calculator()
    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=task.vocab_size))
    >>> evaluate(params, task, task.held_out_rows).exact_match < 0.1
    True
    """
    rows = np.asarray(rows)
    padded = np.concatenate([rows, np.zeros(-len(rows) % _CHUNK, rows.dtype)])
    generated = np.zeros((len(padded), task.answer_length), np.int32)
    probability = np.zeros(len(padded))
    expected = np.asarray(task.tokens)[rows, task.prompt_length :]
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(padded), _CHUNK)]
    # All chunks are dispatched before the first is read, so the device never waits for the host.
    answers = [generate(params, task.tokens[padded[c], : task.prompt_length], task.answer_length) for c in chunks]
    for chunk, (tokens, log_probs) in zip(chunks, answers, strict=True):
        generated[chunk], probability[chunk] = tokens, jnp.exp(log_probs.sum(axis=1))
    generated = generated[: len(rows)]
    correct = (generated == expected).all(axis=1)
    return Evaluation(task, rows, generated, probability[: len(rows)], correct)


@functools.partial(jax.jit, static_argnames="apply_fn")
def answer_log_probs(params: Params, task: Calculator, prompt: jax.Array, apply_fn: ApplyFn = apply) -> jax.Array:
    """Return ln p of every possible answer to one prompt, float `[max_number + 1]`. Jitted.

    ln p(answer) = Σ ln p(token | prompt, tokens before), its end included, each
    answer read by the model as it stands, so these are exact and need no search.

    Args:
      prompt: int `[prompt_length]`, as `task.encode` makes it.
    """
    answers = task.answers
    prompts = jnp.broadcast_to(prompt, (answers.shape[0], prompt.shape[0]))
    tokens = jnp.concatenate([prompts, answers], axis=1)
    batch = Batch(tokens, (answers != PAD_ID).astype(jnp.float32))
    return -example_cross_entropy(answer_logits(params, batch, apply_fn), batch)


def prompt_text(task: Task, row: int) -> str:
    """Return a row's question, such as "two plus three", or "2 plus 3" where numbers are not in words."""
    question = str(task.problem(row))
    return " ".join(task.tokenizer.canonical(question)[:-1]) if task.tokenizer.notation == "words" else question


def answer_text(task: Task, ids: np.ndarray) -> str:
    """Return an answer's words up to its end; an answer without one is marked "…"."""
    words = [task.tokenizer.token(int(index)) for index in ids]
    if END not in words:
        return " ".join([*words, "…"])
    return " ".join(word for word in words[: words.index(END)] if word != PAD)
