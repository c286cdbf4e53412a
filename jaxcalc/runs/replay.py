"""The ledger of a finished run: the run is taken again, from checkpoint to checkpoint, and every nat is allotted.

    run = jaxcalc.load_run("runs/calculator")
    ledger = run.ledger("seven times eight")
    print(ledger)                      # when it was learned, by which parts, from which lessons
    ledger.by_step, ledger.by_stage["block 0 attention"], ledger.by_lesson[0]

The run's own program takes it again, so that the replay ends in the bits of each checkpoint or is refused.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc import ledger
from jaxcalc.batch import Batch, batch_of, rows_at
from jaxcalc.blame import Level, level_rows
from jaxcalc.errors import InputError
from jaxcalc.fingerprints import fingerprint
from jaxcalc.losses import answer_logits, example_cross_entropy
from jaxcalc.model import init
from jaxcalc.runs import folder, placement
from jaxcalc.runs.config import CHUNK
from jaxcalc.runs.configfile import flat
from jaxcalc.runs.files import CHECKPOINTS
from jaxcalc.runs.manifest import Manifest, differences, read_manifest
from jaxcalc.scale import processes
from jaxcalc.tasks.relations import RELATIONS, relations
from jaxcalc.tasks.table import Calculator
from jaxcalc.training import StepFn, TrainState, create_state, in_microbatches, train_step, train_steps

if TYPE_CHECKING:
    from jaxcalc.runs.folder import Run

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
    run: "Run",
    questions: Sequence[str],
    until: int | None = None,
    answers: Sequence[int | None] | None = None,
    progress: Progress = lambda step: None,
) -> list[Ledger]:
    """Return the ledger of each question over a run; many questions together take less time than one by one.

    Args:
      until: the step at which the account ends; the last one if left out.
      answers: the numbers whose surprise it is, in place of the right answers.

    Raises `InputError` for a question without an answer, for a run that draws its problems or that lacks a checkpoint
    of its beginning, and for a replay that does not end in the bits of the run's checkpoints.
    """
    task, config = folder.calculator_of(run), run.config
    asked = [_sequence(task, question, answer) for question, answer in _pairs(questions, answers)]
    batch = batch_of(task, jnp.asarray(asked, jnp.int32))
    last = _last(run, until)
    backwards = moves(run, last)
    newest = next(backwards)
    ends = [jax.tree.map(lambda leaf: leaf[-1], newest.params), run.at(run.steps[0])]
    after, before = (np.asarray(_surprises(params, batch), np.float64) for params in ends)
    schedule = config.schedule
    found: list[ledger.StepRows] = []
    least = max(SMALLEST_DROP, float(np.abs(before - after).min()))
    for row in ledger.rows(
        itertools.chain([newest], backwards),
        task,
        batch,
        config.make_optimizer(),
        seed=schedule.seed,
        batch_size=schedule.batch_size,
        loss_on=schedule.loss_on,
        tolerance=SHARE_LEFT * least / (last - run.steps[0]),
        apply_fn=config.make_apply_fn(),
    ):
        found.append(row)
        progress(row.step)
    return [_ledger(run, task, asked[index], float(after[index]), found[::-1], index) for index in range(len(asked))]


def _pairs(questions: Sequence[str], answers: Sequence[int | None] | None) -> Iterator[tuple[str, int | None]]:
    return zip(questions, answers or [None] * len(questions), strict=True)


def _sequence(task: Calculator, question: str, answer: int | None) -> list[int]:
    """Return a question and its answer, as one sequence of the task."""
    row = task.row(question)
    if row is None:
        raise InputError(f"{question!r} is not in the task's table, so no answer is right and there is no surprise")
    value = int(task.problems[row, 3]) if answer is None else answer
    if not 0 <= value < len(task.answers):
        raise InputError(f"the answer is {value}; it must be from 0 to {len(task.answers) - 1}")
    return [*task.tokens[row, : task.prompt_length].tolist(), *task.answers[value].tolist()]


@jax.jit
def _surprises(params: Any, batch: Batch) -> jax.Array:
    return example_cross_entropy(answer_logits(params, batch), batch)


def _last(run: "Run", until: int | None) -> int:
    """Return the step at which an account ends, checked."""
    if not run.steps:
        raise InputError(f"{run.path} has no checkpoint of its beginning; train it again with --snapshots")
    last = run.config.schedule.steps if until is None else until
    if not run.steps[0] < last <= run.config.schedule.steps:
        raise InputError(f"until is {last}; it must be from {run.steps[0] + 1} to {run.config.schedule.steps:,}")
    return last


def moves(run: "Run", until: int) -> Iterator[ledger.Moves]:
    """Yield the steps of a run up to `until`, in chunks from the last to the first, replayed bit for bit.

    Memory holds a state for each `CHUNK` steps between two checkpoints, and for each step of one chunk.
    """
    config, schedule = run.config, run.config.schedule
    _check_devices(run)
    n_parts = config.computing.microbatches
    step_fn: StepFn = train_step if n_parts == 1 else in_microbatches(n_parts)
    fixed: dict[str, Any] = {"batch_size": schedule.batch_size, "loss_on": schedule.loss_on, "step_fn": step_fn}
    tx, apply_fn = config.make_optimizer(), config.make_apply_fn()
    start = jax.eval_shape(lambda: create_state(init(jax.random.key(0), config.make_model()), tx, apply_fn))
    like = placement.placed(start, config)
    task = placement.spread(run.task, like)
    steps = functools.partial(train_steps, n_steps=CHUNK, **fixed)
    program = placement.compiled(steps, run.task, like, config).call
    known = [step for step in run.steps if step < until]
    for begin, end in reversed([*itertools.pairwise([*known, until])]):
        states = [_load(run, begin, like)]
        while (step := int(states[-1].step)) < end:
            stop = min(step // CHUNK * CHUNK + CHUNK, end)
            state, _ = program(jax.tree.map(jnp.copy, states[-1]), task, seed=schedule.seed, stop=stop)
            if int(state.step) != stop:
                raise InputError(
                    f"step {int(state.step) + 1:,} of {run.path} is not finite, so there is no account of it"
                )
            states.append(state)
        if end in run.steps:
            _check_same(run, end, states[-1])
        for state, after in reversed([*itertools.pairwise(states)]):
            n_steps = int(after.step) - int(state.step)
            params, opt_state, norms = _kept(state, after, task, schedule.seed, n_steps, **fixed)
            yield ledger.Moves(int(state.step), *processes.whole((params, opt_state, norms)))


@functools.partial(jax.jit, static_argnames=("n_steps", "batch_size", "loss_on", "step_fn"))
def _kept(
    state: TrainState, after: TrainState, task: Any, seed: int, n_steps: int, step_fn: StepFn, **sizes: Any
) -> tuple[Any, Any, jax.Array]:
    """Return parameters and optimizer state before each of `n_steps` and in `after`, and each gradient's norm."""

    def body(state: TrainState, _: None) -> tuple[TrainState, Any]:
        new, metrics = step_fn(state, ledger.batch_at(task, seed, state.step, sizes["batch_size"], sizes["loss_on"]))
        return new, (state.params, state.opt_state, metrics["grad_norm"])

    _, (params, opt_state, norms) = jax.lax.scan(body, state, length=n_steps)
    append = functools.partial(jax.tree.map, lambda kept, last: jnp.concatenate([kept, last[None]]))
    return append(params, after.params), append(opt_state, after.opt_state), norms


def _load(run: "Run", step: int, like: TrainState) -> TrainState:
    state, _ = folder.checkpoint.restore(Path(run.path) / CHECKPOINTS, step, like)
    return state.replace(apply_fn=like.apply_fn, tx=like.tx)


def _manifest(run: "Run", step: int) -> Manifest:
    return read_manifest(Path(run.path) / CHECKPOINTS, step)


def _check_devices(run: "Run") -> None:
    """Raise `InputError` if the run was computed on another number of devices, which rounds in another way."""
    there, here = _manifest(run, run.steps[-1])["environment"]["n_devices"], jax.device_count()
    if there != here:
        raise InputError(
            f"{run.path} was trained on {there} devices, and JAX has {here} here, which would round otherwise; of a "
            f"CPU, start Python with JAX_NUM_CPU_DEVICES={there}"
        )


def _check_same(run: "Run", step: int, state: TrainState) -> None:
    """Raise `InputError` if a replay does not end in the bits of a checkpoint, with what may be the reason."""
    manifest = _manifest(run, step)
    here = fingerprint({"params": state.params, "opt_state": state.opt_state})
    wrong = [name for name, mark in manifest["leaves"].items() if here.get(name) != mark]
    if wrong:
        changed = differences(flat(manifest["environment"]), flat(folder.environment(run.config)))
        why = "; ".join(changed) or "the same software and devices, so perhaps another processor"
        raise InputError(
            f"the replay of {run.path} does not end in its checkpoint of step {step:,}: {len(wrong)} of {len(here)} "
            f"leaves differ, first {wrong[0]} ({why})"
        )


def _ledger(
    run: "Run", task: Calculator, asked: list[int], after: float, found: list[ledger.StepRows], index: int
) -> Ledger:
    """Return the ledger of one question from the rows of all steps."""
    schedule = run.config.schedule
    prompts, prompt = np.asarray(task.tokens)[:, : task.prompt_length], asked[: task.prompt_length]
    row_of = int(np.flatnonzero((prompts == prompt).all(axis=1))[0])
    drops = np.array([row.drop[index] for row in found])
    tokens, number = np.unique(np.asarray(task.lessons), axis=0, return_inverse=True)
    nats, visits = np.zeros(len(tokens)), np.zeros(len(tokens), int)
    for row in found:
        visited = number[np.asarray(_rows_at(task, schedule.seed, row.step, schedule.batch_size))]
        np.add.at(nats, visited, row.examples[index])
        np.add.at(visits, visited, 1)
    related = relations(task, tokens, row_of)
    order = [at for at in np.argsort(-nats, kind="stable").tolist() if visits[at]]
    words = task.tokenizer.decode
    return Ledger(
        question=_said(words(asked)),
        steps=np.array([row.step for row in found]),
        surprise=after + np.append(np.cumsum(drops[::-1])[::-1], 0.0),
        by_stage=_by(found, index, "stage"),
        by_head=_by(found, index, "head"),
        by_lesson=tuple(
            LessonRow(_said(words(tokens[at].tolist())), float(nats[at]), int(visits[at]), related[at]) for at in order
        ),
        weight_decay=float(sum(row.decay[index] for row in found)),
        before=float(found[0].before[index]),
        rounding=float(sum(row.rounding[index] for row in found)),
    )


_rows_at = jax.jit(rows_at, static_argnames="size")


def _said(text: str) -> str:
    return " ".join(word for word in text.split() if not word.startswith("<"))


def _by(found: list[ledger.StepRows], index: int, level: Level) -> dict[str, np.ndarray]:
    """Return what each row of a level added at each step."""
    added: dict[str, np.ndarray] = {}
    for at, row in enumerate(found):
        for name, terms in row.leaves.items():
            for each, nats in level_rows(name, terms[index], level):
                added.setdefault(each, np.zeros(len(found)))[at] += nats
    return added
