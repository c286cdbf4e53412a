"""python experiments/watch.py runs/calculator "two plus three"

Shows one step of learning from one word, at the newest snapshot at which the word was wrong: the tokens, the forward
pass, the surprise, the backward pass, the blame of every part, the step, the credit of every stage, one weight's
update, and the answers before and after.

python experiments/watch.py runs/calculator "two plus three" --replay    # the answer at every snapshot
python experiments/watch.py runs/calculator "two plus three" --step 0 --optimizer sgd
python experiments/watch.py runs/calculator "seven times eight equals fifty"    # the word after these
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
import watch_tables  # beside this script
from rich.console import Console
from watch_learning import host, make_step, mean_gradient, study
from watch_records import Asked, Moment, Prediction, Replay, Replayed, Stage, Watched

import jaxcalc
from jaxcalc import optimizers, runs
from jaxcalc.backprop import message_strengths
from jaxcalc.blame import assign_blame, token_blame
from jaxcalc.errors import InputError
from jaxcalc.optimizers import OptimizerName
from jaxcalc.runs import asking, cli
from jaxcalc.steps import Step
from jaxcalc.tasks.tokenizer import EQUALS
from jaxcalc.trees import named_leaves
from jaxcalc.weights import find_weight, weight_story

LIKELIEST = 5
KEPT = "jax_persistent_cache_min_compile_time_secs"
KNOWN, CALM = 0.94, 0.06
"""When a word counts as learned: its probability is above the first, and its surprise, in nats, below the second."""


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """Show how a run reads a question at one of its snapshots, how surprised it is by the right next word, and what one
    step of learning from this word would change. Saves nothing."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    question: tyro.conf.Positional[str]
    """Such as "two plus three" to see its next word, or "seven times eight equals fifty" to see the word after."""
    step: int | None = None
    """Which snapshot; the newest at which the word is wrong if left out."""
    optimizer: OptimizerName | None = None
    """Take the step with a fresh optimizer of this name, at a constant rate. If left out, take it with the run's own,
    with its momentum and its learning rate at the snapshot."""
    learning_rate: float | None = None
    """The rate of the fresh optimizer; its default if left out."""
    weight: str | None = None
    """The weight whose update is shown, such as "blocks.0.attention.query[3,1,5]"; the most blamed
    of the question's words if left out."""
    replay: bool = False
    """Instead of one step, show the answer at every snapshot of the run."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(options: WatchOptions) -> int:
    if options.learning_rate is not None and options.optimizer is None:
        raise InputError("--learning-rate is the rate of a fresh optimizer; name one with --optimizer")
    for name in ("step", "optimizer", "weight"):
        if options.replay and getattr(options, name) is not None:
            raise InputError(f"--replay shows every snapshot as it is; leave out --{name}")
    jax.config.update(KEPT, min(getattr(jax.config, KEPT), 0.05))  # if JAX keeps programs, then quick ones too
    run = jaxcalc.load_run(options.run)
    lesson = read(run.task, options.question)
    console = Console(highlight=False)
    if options.replay:
        result = replay(run, lesson)
        show = functools.partial(watch_tables.print_replay, result, console)
    else:
        result = watch(run, lesson, options)
        show = functools.partial(watch_tables.print_watch, result, console)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show()
    return 0


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A text up to a blank, and the word that belongs there."""

    batch: jaxcalc.Batch
    """One sequence `[1, T + 1]`; the loss is on its last word alone."""
    words: list[str]
    """The T + 1 tokens; the last is the right one."""
    membership: str


def read(task: jaxcalc.Task, question: str) -> Lesson:
    """Return a question, or a question and the beginning of its answer, as a lesson on the next word."""
    batch = host(asking.next_word(task, question))
    words = [task.tokenizer.token(index) for index in batch.tokens[0].tolist()]
    asked = [word for index, word in zip(batch.tokens[0].tolist(), words, strict=True) if index]
    problem = task.parse(" ".join(asked[: asked.index(EQUALS) + 1]))
    return Lesson(batch, words, task.membership(problem))


def replay(run: jaxcalc.Run, lesson: Lesson) -> Replay:
    """Return what the run would have said at each of its snapshots."""
    steps = runs.checkpoint_steps(run.path)
    if not steps:
        raise InputError(f"{run.path} has no snapshots; train it again with --snapshots")
    logits = jax.jit(lambda params: jaxcalc.apply(params, lesson.batch.tokens[:, :-1])[0, -1])
    answers = [predict(run, lesson, logits(host(runs.load_snapshot(run, step).params))) for step in steps]
    size = run.config.schedule.batch_size
    rows: list[Replayed] = [
        {"step": step, "examples": step * size, **answer} for step, answer in zip(steps, answers, strict=True)
    ]
    known = first_for_good(rows, [row["probability"] > KNOWN for row in rows])
    calm = first_for_good(rows, [row["surprise_nats"] < CALM for row in rows])
    return {**asked(run, lesson), "replay": rows, "known": known, "calm": calm}


def first_for_good(rows: list[Replayed], holds: list[bool]) -> Moment | None:
    """Return the first row from which on something holds, or None if it does not hold at the end."""
    failing = [index for index, held in enumerate(holds) if not held]
    first = failing[-1] + 1 if failing else 0
    if first == len(rows):
        return None
    before = rows[first - 1]["step"] if first else None
    return {"step": rows[first]["step"], "examples": rows[first]["examples"], "before": before}


def asked(run: jaxcalc.Run, lesson: Lesson) -> Asked:
    """Return the tokens that the model reads, and the one that it should say."""
    ids = np.asarray(lesson.batch.tokens)[0, :-1].tolist()
    return {
        "run": str(run.path),
        "tokens": [{"position": t, "id": ids[t], "token": lesson.words[t]} for t in range(len(ids))],
        "target": lesson.words[-1],
        "membership": lesson.membership,
        "drawn": not isinstance(run.task, jaxcalc.Calculator),
    }


def predict(run: jaxcalc.Run, lesson: Lesson, logits: jax.Array) -> Prediction:
    """Return the likeliest next words, and the surprise at the right one, from the last position's logits `[V]`."""
    wide = np.asarray(logits, np.float64)
    log_p = wide - np.logaddexp.reduce(wide)
    target = int(lesson.batch.tokens[0, -1])
    return {
        "predictions": [
            {"token": run.task.tokenizer.token(index), "probability": float(np.exp(log_p[index]))}
            for index in np.argsort(-log_p, kind="stable")[:LIKELIEST].tolist()
        ],
        "probability": float(np.exp(log_p[target])),
        "surprise_nats": float(-log_p[target]),
        "surprise_bits": float(-log_p[target] / np.log(2)),
    }


def open_snapshot(run: jaxcalc.Run, lesson: Lesson, step: int) -> tuple[jaxcalc.TrainState, Prediction]:
    """Return the state at a snapshot, on the host, and what the run would have said there."""
    state = host(runs.load_snapshot(run, step))
    return state, predict(run, lesson, study(state.params, lesson.batch)[0][0].input[0, -1])


def newest_wrong(run: jaxcalc.Run, lesson: Lesson, steps: list[int]) -> tuple[dict[int, Prediction], int, str]:
    """Return what the run would have said, by step, from the last snapshot back to the newest whose next word is wrong,
    and which step that is; if none is wrong, the most surprised one. The text says which of the two."""
    said: dict[int, Prediction] = {}
    for step in reversed(steps):
        _, said[step] = open_snapshot(run, lesson, step)
        if said[step]["predictions"][0]["token"] != lesson.words[-1]:
            return said, step, "newest wrong"
    return said, max(said, key=lambda step: said[step]["surprise_nats"], default=0), "most surprised"


def most_blamed(lesson: Lesson, grads: jaxcalc.Params, step: Step) -> str:
    """Return the most blamed one of the numbers that stand for the question's words in the embeddings."""
    ids = lesson.batch.tokens[0].tolist()
    words = sorted({index for index in ids[: lesson.words.index(EQUALS)] if index})  # 0 is padding
    terms = abs(grads["embed"]["token"][words] * np.asarray(step.update["embed"]["token"])[words])
    row, column = np.unravel_index(terms.argmax(), terms.shape)
    return f"embed.token[{words[int(row)]},{int(column)}]"


def watch(run: jaxcalc.Run, lesson: Lesson, options: WatchOptions) -> Watched:
    """Return everything about one step of learning from one word."""
    steps, batch = runs.checkpoint_steps(run.path), lesson.batch
    if options.weight is not None:
        find_weight(run.params, options.weight)  # refused before anything is computed
    said, at, chosen = newest_wrong(run, lesson, steps) if options.step is None else ({}, options.step, "given")
    state, now = open_snapshot(run, lesson, at)
    params = state.params
    walked, grads, by_token = study(params, batch)
    step, alone, optimizer = make_step(run, state, grads, options.optimizer, options.learning_rate)
    forwards = [stage for stage in reversed(walked) if stage.name != "loss"]

    foreseen, earned = assign_blame(grads, step), assign_blame(mean_gradient(params, step, batch), step)
    order = list(dict.fromkeys([*(stage.name for stage in forwards), *foreseen.nats]))
    shares = foreseen.shares
    after = predict(run, lesson, study(step.params, batch)[0][0].input[0, -1])
    drop = now["surprise_nats"] - after["surprise_nats"]  # of this one word, so of the whole loss
    path = options.weight or most_blamed(lesson, grads, step)
    story = weight_story(path, params, grads, step, batch, optimizers.ADAM_BETAS)
    leaf, index = find_weight(params, path)
    share = optimizers.MUON_ADAM_SHARE if optimizer["name"] == "muon" and "nu" in story.state else 1.0
    for end in (steps[0], steps[-1]):
        said[end] = said.get(end) or open_snapshot(run, lesson, end)[1]
    life: list[Stage] = [
        {"when": "first", "step": steps[0], **said[steps[0]]},
        {"when": "here", "step": at, **now},
        {"when": "after this step", "step": at, **after},
        {"when": "last", "step": steps[-1], **said[steps[-1]]},
    ]
    return {
        **asked(run, lesson),
        "step": int(state.step),
        "chosen": chosen,
        "snapshots": steps,
        "forward": [
            {"name": stage.name, "norm": np.linalg.norm(np.asarray(stage.output)[0], axis=-1).tolist()}
            for stage in forwards
        ],
        **now,
        "uniform_nats": float(np.log(run.task.vocab_size)),
        "stages": [
            {
                "name": stage.name,
                "message_in": norm(stage.message_in),
                "message_out": None if stage.message_out is None else norm(stage.message_out),
                "grad_norm": norm(stage.grads),
            }
            for stage in walked
        ],
        "messages": [{"name": name, "norm": norms.tolist()} for name, norms in message_strengths(walked).items()],
        "optimizer": optimizer,
        "blame": None if shares is None else {name: shares[name] for name in order},
        "blame_nats": {name: foreseen.nats[name] for name in order},
        "blame_parts": assign_blame(grads, step, "part").shares,
        "withheld": foreseen.withheld,
        "predicted_drop": foreseen.total,
        "credit": {name: earned.nats[name] for name in order},
        "actual_drop": drop,
        "residual": drop - earned.total,
        "token_blame": token_blame(by_token, step).tolist(),
        "weight": {
            **story._asdict(),
            "learning_rate": share * optimizer["learning_rate"],
            "alone": float(np.asarray(named_leaves(alone.from_gradient)[leaf])[index]),
        },
        "after": after,
        "before_and_after": [row for row in life if row["step"] != at or row["when"] not in ("first", "last")],
    }


def norm(tree: Any) -> float:
    """Return ‖tree‖₂, over all its leaves."""
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))


if __name__ == "__main__":
    sys.exit(cli.run_script(main, WatchOptions))
