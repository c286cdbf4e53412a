"""The ledger of a question over a finished run: what each step, stage, head and lesson did to its surprise.

run = jaxcalc.load_run("runs/calculator")
ledger = run.ledger("seven times eight")
print(ledger)                      # when it was learned, by which parts, from which lessons
ledger.by_step, ledger.by_stage["block 0 attention"], ledger.by_lesson[0]
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc import ledger
from jaxcalc.batch import Batch, batch_of, rows_at
from jaxcalc.blame import Level, level_rows
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, answer_logits, example_cross_entropy
from jaxcalc.runs import checkpoint, replay
from jaxcalc.runs.config import RunConfig, ScheduleConfig
from jaxcalc.runs.files import CHECKPOINTS
from jaxcalc.tasks.relations import RELATIONS, relations
from jaxcalc.tasks.table import Calculator

SHARE_LEFT = 0.01
"""The share of the whole drop that the quadrature may leave over."""
SMALLEST_DROP = 0.1
"""In nats: of a smaller drop, this much is taken for the share above."""
Progress = Callable[[int], None]
"""Told of every step that is done, from the last to the first."""


class LessonRow(NamedTuple):
    """What one lesson of a run brought to a question."""

    lesson: str
    nats: float
    visits: int
    """In how many batches it was."""
    relation: str
    """What it has to do with the question; one of `jaxcalc.tasks.relations.RELATIONS`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Ledger:
    """What brought the surprise at a question to where it is, in nats; positive is a drop."""

    question: str
    """With the answer whose surprise it is."""
    steps: np.ndarray
    """int `[T]`: the number of steps before each step."""
    surprise: np.ndarray
    """float64 `[T + 1]`: −ln p(answer) before each step, and after the last."""
    by_stage: dict[str, np.ndarray]
    """float64 `[T]` for each stage: what it added at each step."""
    by_head: dict[str, np.ndarray]
    """The same with the heads of an attention apart."""
    by_lesson: tuple[LessonRow, ...]
    """What each lesson brought, from the most credit to the most against."""
    weight_decay: float
    before: float
    """What the momentum of steps before the first brought; 0 for a run from the start."""
    rounding: float
    """What float32 leaves between the steps and their lessons."""

    @property
    def drop(self) -> float:
        """The drop in nats that happened."""
        return float(self.surprise[0] - self.surprise[-1])

    @property
    def by_step(self) -> np.ndarray:
        """What each step brought, float64 `[T]`."""
        return np.sum(list(self.by_stage.values()), axis=0)

    @property
    def remainder(self) -> float:
        """What the steps leave of the drop: the error of the quadrature."""
        return self.drop - float(self.by_step.sum())

    @property
    def by_relation(self) -> dict[str, float]:
        """What the lessons brought, by what they have to do with the question."""
        nats = dict.fromkeys(RELATIONS, 0.0)
        for row in self.by_lesson:
            nats[row.relation] += row.nats
        return {name: value for name, value in nats.items() if value}

    def table(self, most: int = 10, against: int = 5) -> str:
        """Return the account as text, with this many lessons that taught most and that pulled against it."""
        rows = {**{name: added.sum() for name, added in self.by_stage.items()}, "remainder": self.remainder}
        sides = self.by_relation | {"weight decay": self.weight_decay, "before the first step": self.before}
        sides |= {"rounding and remainder": self.rounding + self.remainder}
        lines = [f"{self.question}: {self.surprise[0]:.3f} → {self.surprise[-1]:.3f} nats, a drop of {self.drop:.3f}"]
        for title, part in (("by stage", rows), ("by relation", sides)):
            lines += ["", title, *(f"{nats:+10.3f}  {name}" for name, nats in part.items() if nats)]
        for title, part in (("taught it most", self.by_lesson[:most]), ("against it", self.by_lesson[::-1][:against])):
            lines += ["", title, *(f"{row.nats:+10.3f}  {row.lesson} ({row.visits} visits)" for row in part)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def ledgers(
    path: Path,
    config: RunConfig,
    task: Calculator,
    questions: Sequence[str],
    until: int | None = None,
    answers: Sequence[int | None] | None = None,
    progress: Progress = lambda step: None,
) -> list[Ledger]:
    """Return the ledger of each question over a run; many questions together take less time than one by one.

    Args:
      path: the run's folder.
      until: the step at which the account ends; the last one if left out.
      answers: the numbers whose surprise it is, in place of the right answers.

    Raises `InputError` for a question without an answer, for a run that lacks a checkpoint of its beginning, and for a
    replay that does not end in the bits of the run's checkpoints.
    """
    asked = [_sequence(task, *each) for each in zip(questions, answers or [None] * len(questions), strict=True)]
    batch = batch_of(task, jnp.asarray(asked, jnp.int32))
    first, last = _ends(path, config, until)
    backwards = replay.moves(path, config, task, last)
    newest = next(backwards)
    apply_fn, schedule = config.make_apply_fn(), config.schedule
    start = checkpoint.restore(path / CHECKPOINTS, first, config.state_like())[0].params
    end = jax.tree.map(operator.itemgetter(-1), newest.params)
    before, after = (np.asarray(_surprises(params, batch, apply_fn), np.float64) for params in (start, end))
    least = np.maximum(abs(before - after), SMALLEST_DROP)
    lessons = _Lessons(task, schedule, len(asked))
    found: list[ledger.Rows] = []
    for rows in ledger.rows(
        itertools.chain([newest], backwards),
        task,
        batch,
        config.make_optimizer(),
        seed=schedule.seed,
        batch_size=schedule.batch_size,
        loss_on=schedule.loss_on,
        tolerance=SHARE_LEFT / 2 * least / (last - first) ** 0.5,  # errors of either sign add up as a square root
        apply_fn=apply_fn,
    ):
        lessons.add(rows)
        found.append(rows._replace(examples=rows.examples[..., :0]))
        progress(rows.first)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(rows[1:] for rows in reversed(found)))
    whole = ledger.Rows(first, *joined)
    return [_ledger(task, each, after[index], whole, lessons, index) for index, each in enumerate(asked)]


def _sequence(task: Calculator, question: str, answer: int | None) -> list[int]:
    """Return a question and its answer, as one sequence of the task."""
    row = task.row(question)
    if row is None:
        raise InputError(f"{question!r} is not in the task's table, so no answer is right and there is no surprise")
    value = int(task.problems[row, 3]) if answer is None else answer
    if not 0 <= value < len(task.answers):
        raise InputError(f"the answer is {value}; it must be from 0 to {len(task.answers) - 1}")
    return [*task.tokens[row, : task.prompt_length].tolist(), *task.answers[value].tolist()]


@functools.partial(jax.jit, static_argnames="apply_fn")
def _surprises(params: Any, batch: Batch, apply_fn: ApplyFn) -> jax.Array:
    return example_cross_entropy(answer_logits(params, batch, apply_fn), batch)


def _ends(path: Path, config: RunConfig, until: int | None) -> tuple[int, int]:
    """Return the steps at which an account begins and ends, checked."""
    steps = checkpoint.steps(path / CHECKPOINTS)
    if not steps:
        raise InputError(f"{path} has no checkpoint of its beginning; train it again with --snapshots")
    last = config.schedule.steps if until is None else until
    if not steps[0] < last <= config.schedule.steps:
        raise InputError(f"until is {last}; it must be from {steps[0] + 1} to {config.schedule.steps:,}")
    return steps[0], last


class _Lessons:
    """What each lesson of a run has brought to each question so far."""

    def __init__(self, task: Calculator, schedule: ScheduleConfig, n_questions: int) -> None:
        self.tokens, self._number = np.unique(np.asarray(task.lessons), axis=0, return_inverse=True)
        self.nats, self.visits = np.zeros((n_questions, len(self.tokens))), np.zeros(len(self.tokens), int)
        self._rows_at = jax.jit(lambda step: rows_at(task, schedule.seed, step, schedule.batch_size))

    def add(self, rows: ledger.Rows) -> None:
        for step, examples in enumerate(rows.examples, rows.first):
            visited = self._number[np.asarray(self._rows_at(step))]
            self.visits += np.bincount(visited, minlength=len(self.tokens))
            self.nats += [np.bincount(visited, nats, len(self.tokens)) for nats in examples]


def _ledger(
    task: Calculator, asked: list[int], after: float, found: ledger.Rows, lessons: _Lessons, index: int
) -> Ledger:
    """Return the ledger of one question from the rows of all steps."""
    prompts, prompt = np.asarray(task.tokens)[:, : task.prompt_length], asked[: task.prompt_length]
    related = relations(task, lessons.tokens, int(np.flatnonzero((prompts == prompt).all(axis=1))[0]))
    nats, visits = lessons.nats[index], lessons.visits
    drops = found.drop[:, index]

    def said(tokens: list[int]) -> str:
        prompt, answer = (
            " ".join(word for word in task.tokenizer.decode(part).split() if not word.startswith("<"))
            for part in (tokens[: task.prompt_length], tokens[task.prompt_length :])
        )
        return f"{prompt} {answer}" if prompt.endswith("equals") else f"{prompt} → {answer}"

    return Ledger(
        question=said(asked),
        steps=found.first + np.arange(len(drops)),
        surprise=float(after) + np.append(np.cumsum(drops[::-1])[::-1], 0.0),
        by_stage=_by(found, index, "stage"),
        by_head=_by(found, index, "head"),
        by_lesson=tuple(
            LessonRow(said(lessons.tokens[at].tolist()), float(nats[at]), int(visits[at]), related[at])
            for at in np.argsort(-nats, kind="stable").tolist()
            if visits[at]
        ),
        weight_decay=float(found.decay[:, index].sum()),
        before=float(found.before[0, index]),
        rounding=float(found.rounding[:, index].sum()),
    )


def _by(found: ledger.Rows, index: int, level: Level) -> dict[str, np.ndarray]:
    """Return what each row of a level added at each step."""
    added: dict[str, np.ndarray] = {}
    for leaf, terms in found.leaves.items():
        names = [name for name, _ in level_rows(leaf, terms[0, index], level)]
        flat_terms = terms[:, index].reshape(len(terms), -1)  # of heads, if they are more than one
        columns = flat_terms.T if len(names) > 1 else [flat_terms.sum(axis=1)]
        for name, nats in zip(names, columns, strict=True):
            added[name] = added.get(name, 0) + nats
    return added
