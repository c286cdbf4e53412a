"""python experiments/watch.py runs/calculator "two plus three" --step 0

Shows one step of learning from one word: the tokens, the forward pass, the surprise, the backward pass, the blame of
every stage, the step, the credit of every stage, one weight's update, and the prediction afterwards. In the default
run the right word "five" has 3.13 % before the first step, and the step lowers its surprise by 0.1236 nats; the
embeddings earn 57 % of that.

python experiments/watch.py runs/calculator "two plus three" --replay    # from step 290 on, "five" is the likeliest
python experiments/watch.py runs/calculator "two plus three" --step 180 --optimizer sgd
python experiments/watch.py runs/calculator "seven times eight equals fifty"    # the word after these
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
import watch_tables  # beside this script
from rich.console import Console
from watch_tables import Asked, OptimizerUsed, Prediction, Replay, Watched

import jaxcalc
from jaxcalc import optimizers, runs
from jaxcalc.backprop import Backward, check_finite, collect, message_strengths, stages, walk
from jaxcalc.blame import assign_blame, assign_credit, token_blame, token_grads
from jaxcalc.errors import InputError
from jaxcalc.optimizers import OptimizerName
from jaxcalc.runs import cli, placement
from jaxcalc.steps import Step, take_step
from jaxcalc.tasks.tokenizer import END, EQUALS
from jaxcalc.weights import find_weight, weight_story

LIKELIEST = 5


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """Show how a run reads a question at one of its snapshots, how surprised it is by the right next word, and what one
    step of learning from this word would change. Saves nothing."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    question: tyro.conf.Positional[str]
    """Such as "two plus three" to see its next word, or "seven times eight equals fifty" to see the word after."""
    step: int | None = None
    """Which snapshot; the last if left out."""
    optimizer: OptimizerName | None = None
    """Take the step with a fresh optimizer of this name, at a constant rate. If left out, take it with the run's own,
    with its momentum and its learning rate at the snapshot."""
    learning_rate: float | None = None
    """The rate of the fresh optimizer; its default if left out."""
    weight: str | None = None
    """The weight whose update is shown, such as "blocks.0.attention.query[3,1,5]"; the most blamed if left out."""
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
    words = task.tokenizer.canonical(question)
    middle = words.index(EQUALS) + 1 if EQUALS in words else len(words)
    asked, begun = " ".join(words[:middle]), words[middle:]
    problem = task.parse(asked)
    if task.membership(problem) == "outside" or problem.answer is None:
        raise InputError(
            f"{asked!r} has no answer from 0 to {task.tokenizer.max_number}, so no next word is right and there is no "
            "loss to watch"
        )
    answer = [*task.tokenizer.spell(problem.answer), END]
    if begun != answer[: len(begun)]:
        raise InputError(
            f"{' '.join(begun)!r} does not begin the right answer, {' '.join(answer[:-1])!r}; leave it out to see what "
            "the model would say"
        )
    ids = [*task.encode(asked).tolist(), *(task.tokenizer.ids[word] for word in answer[: len(begun) + 1])]
    batch = jaxcalc.Batch(jnp.asarray([ids], jnp.int32), jnp.ones((1, 1), jnp.float32))
    return Lesson(batch, [task.tokenizer.token(index) for index in ids], task.membership(problem))


def replay(run: jaxcalc.Run, lesson: Lesson) -> Replay:
    """Return what the run would have said at each of its snapshots."""
    steps = runs.checkpoint_steps(run.path)
    if not steps:
        raise InputError(f"{run.path} has no snapshots; train it again with --snapshots")
    logits = jax.jit(lambda params: jaxcalc.apply(params, lesson.batch.tokens[:, :-1])[0, -1])
    answers = [predict(run, lesson, logits(runs.load_snapshot(run, step).params)) for step in steps]
    return {
        **asked(run, lesson),
        "replay": [{"step": step, **answer} for step, answer in zip(steps, answers, strict=True)],
    }


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


def make_step(
    run: jaxcalc.Run, state: jaxcalc.TrainState, grads: jaxcalc.Params, options: WatchOptions
) -> tuple[Step, OptimizerUsed]:
    """Return the step that the chosen optimizer would make of these gradients, and what optimizer that is."""
    if options.optimizer is not None:
        name, rate, origin = options.optimizer, options.learning_rate, "a fresh optimizer"
        tx, unclipped = jaxcalc.make_optimizer(name, None, rate), None
        opt_state = tx.init(state.params)
        schedule = optimizers.schedule(optimizers.DEFAULT_LEARNING_RATE[name] if rate is None else rate, None)
    else:
        config = run.config
        name, schedule = config.optimizer.optimizer, config.make_schedule()
        tx, opt_state, origin = config.make_optimizer(), state.opt_state, "the run's own"
        unclipped = config.make_optimizer(clip=False) if config.optimizer.clip_norm else None
    quick = jax.jit(take_step, static_argnums=(0, 4), compiler_options=placement.QUICK_TO_COMPILE)
    step = quick(tx, grads, opt_state, state.params, unclipped)
    rate_now = float(jax.jit(schedule)(state.step))
    return step, {"name": name, "of": origin, "learning_rate": rate_now}


@functools.partial(jax.jit, compiler_options=placement.QUICK_TO_COMPILE)
def _study(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[list[Backward], jaxcalc.Params, jaxcalc.Params]:
    walked = list(walk(params, batch))
    bare = [stage._replace(name=None, stage=None) for stage in walked]
    return bare, collect(params, walked), token_grads(params, walked)


def study(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[list[Backward], jaxcalc.Params, jaxcalc.Params]:
    """Return the backward walk, the gradient, and the gradient by token. One program, because that compiles fastest."""
    check_finite(params)
    walked, grads, by_token = _study(params, batch)
    names = [stage.name for stage in reversed(stages(params, batch))]
    return [stage._replace(name=name) for stage, name in zip(walked, names, strict=True)], grads, by_token


def watch(run: jaxcalc.Run, lesson: Lesson, options: WatchOptions) -> Watched:
    """Return everything about one step of learning from one word."""
    steps = runs.checkpoint_steps(run.path)
    state = runs.load_snapshot(run, max(steps, default=0) if options.step is None else options.step)
    params, batch = state.params, lesson.batch
    if options.weight is not None:
        find_weight(params, options.weight)  # refused before anything is computed
    walked, grads, by_token = study(params, batch)
    step, optimizer = make_step(run, state, grads, options)
    forwards = [stage for stage in reversed(walked) if stage.name != "loss"]

    foreseen, earned = assign_blame(grads, step), assign_credit(params, step, batch)
    order = list(dict.fromkeys([*(stage.name for stage in forwards), *foreseen.nats]))
    shares = foreseen.shares
    walked_after = study(step.params, batch)[0]
    now, after = (predict(run, lesson, walk[0].input[0, -1]) for walk in (walked, walked_after))
    drop = now["surprise_nats"] - after["surprise_nats"]  # of this one word, so of the whole loss
    by_weight = assign_blame(grads, step, "weight").nats
    path = options.weight or max(by_weight, key=lambda name: abs(by_weight[name]) if "[" in name else 0)
    story = weight_story(path, params, grads, step, batch, optimizers.ADAM_BETAS)
    share = optimizers.MUON_ADAM_SHARE if optimizer["name"] == "muon" and "nu" in story.state else 1.0
    return {
        **asked(run, lesson),
        "step": int(state.step),
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
        "withheld": foreseen.withheld,
        "predicted_drop": foreseen.total,
        "credit": {name: earned.nats[name] for name in order},
        "actual_drop": drop,
        "residual": drop - earned.total,
        "token_blame": token_blame(by_token, step).tolist(),
        "weight": {**story._asdict(), "learning_rate": share * optimizer["learning_rate"]},
        "after": after,
    }


def norm(tree: Any) -> float:
    """Return ‖tree‖₂, over all its leaves."""
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))


if __name__ == "__main__":
    sys.exit(cli.run_script(main, WatchOptions))
