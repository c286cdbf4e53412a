"""Watch a run learn from one question: forward, surprise, backward, blame, one step, and what the step changed.

python experiments/watch.py runs/calculator "two plus three" --step 0
python experiments/watch.py runs/calculator "two plus three" --step 40 --optimizer sgd
python experiments/watch.py runs/calculator "seven times eight equals fifty"   # the word after that
python experiments/watch.py runs/calculator "two plus three" --replay
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
import rich.markup
import tyro
from rich.console import Console

import jaxcalc
from jaxcalc import optimizers, runs
from jaxcalc.backprop import Backward, check_finite, collect, stages, walk
from jaxcalc.blame import (
    Step,
    blame,
    credit,
    find_weight,
    message_strengths,
    take_step,
    token_blame,
    token_grads,
    weight_story,
)
from jaxcalc.errors import InputError
from jaxcalc.optimizers import OptimizerName
from jaxcalc.runs import report
from jaxcalc.runs.text import percent
from jaxcalc.tasks.tokenizer import END, EQUALS

LIKELIEST = 5


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """Show how a run, at one of its snapshots, reads a question, what it gets wrong, and what one step of learning
    from this one word would change. Nothing is saved."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    question: tyro.conf.Positional[str]
    """Such as "two plus three", to see its next word, or "seven times eight equals fifty", to see the word after."""
    step: int | None = None
    """Which snapshot; the last if left out."""
    optimizer: OptimizerName | None = None
    """Take the step with a fresh optimizer of this name, at a constant rate; if left out, with the run's own, its
    momentum and its learning rate as they were at the snapshot."""
    learning_rate: float | None = None
    """The rate of that fresh optimizer; its default if left out."""
    weight: str | None = None
    """The weight whose story is told, such as "blocks.0.attention.query[3,1,5]"; the most blamed if left out."""
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
    result = replay(run, lesson) if options.replay else watch(run, lesson, options)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        (print_replay if options.replay else print_watch)(result, Console(highlight=False))
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
        raise InputError(f"{asked!r} has no answer from 0 to {task.tokenizer.max_number}: no next word is right, "
                         "so there is no loss to watch")  # fmt: skip
    answer = [*task.tokenizer.spell(problem.answer), END]
    if begun != answer[: len(begun)]:
        raise InputError(f"{' '.join(begun)!r} does not begin the right answer, {' '.join(answer[:-1])!r}; "
                         "leave it out to see what the model would say")  # fmt: skip
    ids = [*task.encode(asked).tolist(), *(task.tokenizer.ids[word] for word in answer[: len(begun) + 1])]
    batch = jaxcalc.Batch(jnp.asarray([ids], jnp.int32), jnp.ones((1, 1), jnp.float32))
    return Lesson(batch, [task.tokenizer.token(index) for index in ids], task.membership(problem))


def replay(run: jaxcalc.Run, lesson: Lesson) -> dict[str, Any]:
    """Return what the run would have said at each of its snapshots."""
    steps = runs.snapshot_steps(run.path)
    if not steps:
        raise InputError(f"{run.path} has no snapshots; train it again with --snapshots")
    logits = jax.jit(lambda params: jaxcalc.apply(params, lesson.batch.tokens[:, :-1])[0, -1])
    answers = [predict(run, lesson, logits(runs.load_snapshot(run, step).params)) for step in steps]
    return {
        **asked(run, lesson),
        "replay": [{"step": step, **answer} for step, answer in zip(steps, answers, strict=True)],
    }


def asked(run: jaxcalc.Run, lesson: Lesson) -> dict[str, Any]:
    """Return the tokens that the model reads, and the one that it should say."""
    ids = np.asarray(lesson.batch.tokens)[0, :-1].tolist()
    tokens = [{"position": t, "id": ids[t], "token": lesson.words[t]} for t in range(len(ids))]
    return {
        "run": str(run.path),
        "tokens": tokens,
        "target": lesson.words[-1],
        "membership": lesson.membership,
        "drawn": not isinstance(run.task, jaxcalc.Calculator),
    }


def predict(run: jaxcalc.Run, lesson: Lesson, logits: jax.Array) -> dict[str, Any]:
    """Return the likeliest next words, and the surprise of the right one, from the last position's logits `[V]`."""
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
) -> tuple[Step, dict[str, Any]]:
    """Return the step that the chosen optimizer would make of these gradients, and what is known of that optimizer."""
    if options.optimizer is not None:
        name, rate, n_steps, of = options.optimizer, options.learning_rate, None, "a fresh optimizer"
        tx, unclipped = jaxcalc.make_optimizer(name, None, rate), None
        opt_state = tx.init(state.params)
    else:
        config = run.config
        name, rate, n_steps, of = config["optimizer"], config["learning_rate"], config["steps"], "the run's own"
        tx, opt_state = runs.optimizer_of(config), state.opt_state
        unclipped = runs.optimizer_of({**config, "clip_norm": None}) if config["clip_norm"] else None
    quick = jax.jit(take_step, static_argnums=(0, 4), compiler_options=report.QUICK_TO_COMPILE)
    step = quick(tx, grads, opt_state, state.params, unclipped)
    peak = optimizers.DEFAULT_LEARNING_RATE[name] if rate is None else rate
    rate_now = float(jax.jit(optimizers.schedule(peak, n_steps))(state.step))
    return step, {"name": name, "of": of, "learning_rate": rate_now}


@functools.partial(jax.jit, compiler_options=report.QUICK_TO_COMPILE)
def _study(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[list[Backward], jaxcalc.Params, jaxcalc.Params]:
    walked = list(walk(params, batch))
    bare = [stage._replace(name=None, stage=None) for stage in walked]
    return bare, collect(params, walked), token_grads(params, walked)


def study(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[list[Backward], jaxcalc.Params, jaxcalc.Params]:
    """Return the backward walk, the gradient it collects and that by token: one program, which compiles soonest."""
    check_finite(params)
    walked, grads, by_token = _study(params, batch)
    names = [stage.name for stage in reversed(stages(params, batch))]
    return [stage._replace(name=name) for stage, name in zip(walked, names, strict=True)], grads, by_token


def watch(run: jaxcalc.Run, lesson: Lesson, options: WatchOptions) -> dict[str, Any]:
    """Return everything about one step of learning from one word."""
    steps = runs.snapshot_steps(run.path)
    state = runs.load_snapshot(run, max(steps, default=0) if options.step is None else options.step)
    params, batch = state.params, lesson.batch
    if options.weight is not None:
        find_weight(params, options.weight)  # refused before anything is computed
    walked, grads, by_token = study(params, batch)
    step, optimizer = make_step(run, state, grads, options)
    order = [stage.name for stage in reversed(walked) if stage.name != "loss"]

    foreseen, earned = blame(grads, step), credit(params, step, batch)
    order += [row for row in foreseen.nats if row not in order]
    shares = foreseen.shares
    now, after = (predict(run, lesson, of[0].input[0, -1]) for of in (walked, study(step.params, batch)[0]))
    drop = now["surprise_nats"] - after["surprise_nats"]  # of this one word, so of the whole loss
    by_weight = blame(grads, step, "weight").nats
    path = options.weight or max(by_weight, key=lambda name: abs(by_weight[name]) if "[" in name else 0)
    story = weight_story(path, params, grads, step, batch, optimizers.ADAM_BETAS)
    share = optimizers.MUON_ADAM_SHARE if optimizer["name"] == "muon" and "nu" in story.state else 1.0
    return {
        **asked(run, lesson),
        "step": int(state.step),
        "snapshots": steps,
        "forward": [
            {"name": stage.name, "norm": np.linalg.norm(np.asarray(stage.output)[0], axis=-1).tolist()}
            for stage in reversed(walked)
            if stage.name != "loss"
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
        "messages": [{"name": name, "norm": at.tolist()} for name, at in message_strengths(walked).items()],
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


def print_replay(result: dict[str, Any], console: Console) -> None:
    """Print what the run would have said at each snapshot."""
    target = result["target"]
    rows = []
    for at in result["replay"]:
        best = at["predictions"][0]
        mark = "" if best["token"] == target else " ✗"
        rows.append([f"{at['step']:,}", best["token"] + mark, percent(best["probability"]),
                     percent(at["probability"]), f"{at['surprise_nats']:.4g}"])  # fmt: skip
    columns = ["step", "next word", "p", f"p({target})", "surprise (nats)"]
    console.print(report.table(f"{text_of(result)} → {target}", columns, rows, text=(1,)))
    console.print(f"\nThis problem {WHERE[result['membership'], result['drawn']]}.")


WHERE = {
    ("training", False): "was in training",
    ("training", True): "is one that training may have drawn",
    ("held out", False): "was held out, so training never saw it",
    ("held out", True): "was held out, so training never saw it",
}  # by membership, and by whether problems are drawn


def text_of(result: dict[str, Any]) -> str:
    """Return the words that the model reads, without the padding."""
    return " ".join(token["token"] for token in result["tokens"] if token["id"])


def print_watch(result: dict[str, Any], console: Console) -> None:
    """Print one step of learning, part by part."""
    for part in (print_reading, print_backward, print_blame, print_weight, print_after):
        part(result, console)


def print_reading(result: dict[str, Any], console: Console) -> None:
    target, p, nats = result["target"], result["probability"], result["surprise_nats"]
    console.print(
        f"{result['run']} at step {result['step']:,}. This problem {WHERE[result['membership'], result['drawn']]}.\n"
    )
    rows = [[str(token["position"]), str(token["id"]), token["token"]] for token in result["tokens"]]
    console.print(report.table("Text → tokens", ["position", "id", "token"], rows, text=(2,)))
    title = "\nForward: ‖output‖ of each stage at each position"
    console.print(*report.position_tables(title, {row["name"]: row["norm"] for row in result["forward"]}), sep="\n")
    rows = [[word["token"], percent(word["probability"])] for word in result["predictions"]]
    console.print(report.table("\nLikeliest words", ["word", "probability"], rows))
    console.print(f"\nThe right word is {target}. Surprise = −ln p({target}) = −ln {p:.4g} = {nats:.4g} nats\n"
                  f"({result['surprise_bits']:.3g} bits); a uniform guess has {result['uniform_nats']:.2f} nats. "
                  "This surprise is the loss.\n")  # fmt: skip


def print_backward(result: dict[str, Any], console: Console) -> None:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    rows = [[s["name"], cell(s["message_in"]), cell(s["message_out"]), cell(s["grad_norm"])] for s in result["stages"]]
    columns = ["stage", "message in", "message out", "gradient"]
    console.print(report.table("Backward: norms, from the loss to the embeddings", columns, rows))
    title = "\nBackward: ‖message in‖ at each position"
    console.print(*report.position_tables(title, {row["name"]: row["norm"] for row in result["messages"]}), sep="\n")
    console.print("Norms do not add up, so they are no shares. The tokenizer has no weights.\n")


def print_blame(result: dict[str, Any], console: Console) -> None:
    optimizer, withheld = result["optimizer"], result["withheld"]
    earned = sum(result["credit"].values())
    rows = []
    for name, nats in result["blame_nats"].items():
        share = "–" if withheld else f"{result['blame'][name]:.1%}"
        later = "–" if withheld else f"{result['credit'][name] / earned:.1%}"
        rows.append([name, f"{nats:.6f}", share, f"{result['credit'][name]:.6f}", later])
    whole = "–" if withheld else "100.0%"
    rows.append(["all", f"{result['predicted_drop']:.6f}", whole, f"{earned:.6f}", whole])
    console.print(
        f"One step of {optimizer['name']} ({optimizer['of']}), learning rate {optimizer['learning_rate']:.3g}."
    )
    console.print(report.table("The drop in loss, in nats", ["", "blame before", "", "credit after", ""], rows))
    if withheld:
        console.print(f"No percentages: {withheld}. There is next to nothing to learn here; --step takes "
                      f"{', '.join(map(str, result['snapshots']))}.")  # fmt: skip
    console.print(f"Predicted −⟨g, Δ⟩ {result['predicted_drop']:.6f}; actual drop {result['actual_drop']:.6f}, "
                  f"less credit {result['residual']:.1e}.\n")  # fmt: skip
    rows = [[str(token["position"]), token["token"], f"{nats:.6f}"]
            for token, nats in zip(result["tokens"], result["token_blame"], strict=True)]  # fmt: skip
    console.print(report.table("Blame by position", ["position", "token", "nats"],
                               rows, text=(1,)))  # fmt: skip


def print_weight(result: dict[str, Any], console: Console) -> None:
    weight = result["weight"]
    rate = weight["learning_rate"]
    meaning = {
        "trace": "momentum", "mu": "momentum", "nu": "mean of squared gradients",
        "mu_hat": "mu, corrected for its start at 0", "nu_hat": "nu, corrected for its start at 0",
    }  # fmt: skip
    rows = [["value", weight["value"], ""], ["gradient", weight["gradient"], "by the chain rule"],
            ["finite difference", weight["finite_difference"], "by trying both sides of the value"]]  # fmt: skip
    rows += [[name, value, meaning.get(name, "")] for name, value in weight["state"].items()]
    rows.append(["learning rate", rate, ""])
    rows.append(["direction", -weight["from_gradient"] / rate, "what the optimizer makes of the above"])
    rows += [[name.replace("_", " "), weight[name], ""] for name in ("weight_decay", "clipping") if weight[name]]
    rows.append(["step", weight["step"], "−learning rate · direction" + " + the rest" * bool(weight["weight_decay"])])
    rows.append(["new value", weight["new_value"], "value + step"])
    cells = [[name, f"{value:.8g}", note] for name, value, note in rows]
    title = rich.markup.escape(f"\nOne weight: {weight['path']}")
    console.print(report.table(title, ["", "", ""], cells, text=(0, 2)))


def print_after(result: dict[str, Any], console: Console) -> None:
    after, target = result["after"], result["target"]
    rows = [[word["token"], percent(word["probability"])] for word in after["predictions"]]
    console.print(report.table("\nAfter the step", ["word", "probability"], rows))
    console.print(f"\np({target}) went from {percent(result['probability'])} to "
                  f"{percent(after['probability'])}, the surprise from {result['surprise_nats']:.4g} to "
                  f"{after['surprise_nats']:.4g} nats.")  # fmt: skip


if __name__ == "__main__":
    sys.exit(report.run_script(main, WatchOptions))
