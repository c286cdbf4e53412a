"""Train the calculator: text in, a run folder out.

python experiments/train.py                # the default model, about a minute on two CPU cores
python experiments/train.py --split none   # hold nothing out: all or all but one of 11,344 answers are right
python experiments/train.py --ops plus minus --max-number 20 --run-dir runs/small
"""

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import jaxcalc
from jaxcalc import checkpoint, report
from jaxcalc.errors import InputError
from jaxcalc.tasks import LossOn, Split, Task
from jaxcalc.tokenizer import Output
from jaxcalc.training import DEFAULT_LEARNING_RATE, DEFAULT_WEIGHT_DECAY, OptimizerName

RARE = ("times", "divided by")  # operations with few problems in the table
CHECKS = 30  # how often the held-out problems are decoded during a run


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    d_model: int = 64
    """Width of the residual stream."""
    n_heads: int = 4
    """Attention heads in a block; they must divide the width."""
    d_ff: int = 256
    """Hidden width of the feed-forward layers."""
    n_layers: int = 2
    """Blocks."""


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    ops: tuple[str, ...] = ("plus", "minus", "times", "divided-by")
    """Operations, one or more of: plus minus times divided-by."""
    max_number: int = 99
    """Largest operand and largest answer."""
    output: Output = "words"
    """How answers are written: in words, in digits, or in digits reversed."""
    split: Split = "orbit"
    """What stays together when problems are held out: a + b with b + a (orbit), all problems of one fact
    (family), or nothing (random). Or hold nothing out (none)."""
    held_out: float = 0.1
    """Share of each operation's problems that training never sees."""
    copies: int = 3
    """How often an epoch visits each times and divided-by problem, of which there are few."""
    inverse_copies: int = 2
    """How often it visits their inverse questions, such as "nine equals divided by six" for 54 / 6; 0 for never."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(TaskOptions):
    """Train a calculator language model and leave a run folder that answers questions."""

    run_dir: Path = Path("runs/calculator")
    """Folder to write; it must not hold a run yet."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    json: bool = False
    """Print the summary as JSON to stdout, and the tables to stderr."""
    seed: int = 0
    """Chooses the held-out problems, the first weights and the order of the batches."""
    steps: int = 1_200
    """Training steps."""
    batch_size: int = 512
    """Problems in each step."""
    optimizer: OptimizerName = "muon"
    """How gradients become steps."""
    learning_rate: float | None = None
    """Peak of the learning rate after warm-up; the optimizer's own default if left out."""
    weight_decay: float | None = None
    """Weight decay; the optimizer's own default if left out."""
    clip_norm: float | None = None
    """Scale gradients of a larger norm than this down to it; no clipping if left out."""
    loss_on: LossOn = "answer"
    """Which tokens the loss is on: the answer and its end, or all."""
    snapshots: int = 12
    """How many snapshots of the training state to keep, the first of step 0 and the others at log-spaced steps."""
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)


def main(options: TrainOptions) -> int:
    started = time.perf_counter()
    # Everything that can be wrong with the options is found before a file is touched.
    check(options)
    task_config = task_config_of(options, options.seed)
    task = checkpoint.task_of(task_config)
    model = jaxcalc.ModelConfig(
        vocab_size=task.vocab_size, context_length=task.context_length, **dataclasses.asdict(options.model)
    )
    jax.eval_shape(lambda: jaxcalc.batch_at(task, options.seed, 0, options.batch_size))  # refuses a wrong size
    training = ("seed", "steps", "batch_size", "optimizer", "learning_rate", "weight_decay", "clip_norm", "loss_on")
    config: dict[str, Any] = {"task": task_config, "model": dataclasses.asdict(model)}
    config |= {name: getattr(options, name) for name in training}
    # A run says its numbers, whatever later versions take by default.
    if options.learning_rate is None:
        config["learning_rate"] = DEFAULT_LEARNING_RATE[options.optimizer]
    if options.weight_decay is None:
        config["weight_decay"] = DEFAULT_WEIGHT_DECAY[options.optimizer]
    tx = checkpoint.optimizer_of(config)
    checkpoint.start_run(options.run_dir, config, options.overwrite)

    console = Console(stderr=options.json)
    init = jax.jit(jaxcalc.init, static_argnums=1, compiler_options=report.QUICK_TO_COMPILE)
    untrained = init(jax.random.key(options.seed), model)
    console.print(report.parameters_table(untrained), "", report.problems_table(task), "", sep="\n")
    params, log = train(options, task, jaxcalc.create_state(untrained, tx), started)
    summary = finish(options, task, params, log, started, console)
    if options.json:
        print(json.dumps(summary, ensure_ascii=False))
    return 130 if log["interrupted"] else 0


def task_config_of(options: TaskOptions, seed: int) -> dict[str, Any]:
    """Return the arguments of `jaxcalc.calculator` that the options stand for."""
    return {
        "operations": [name.replace("-", " ") for name in options.ops],
        "max_number": options.max_number,
        "output": options.output,
        "split": options.split,
        "held_out": options.held_out,
        "seed": seed,
        "copies": dict.fromkeys(RARE, options.copies),
        "inverse_copies": dict.fromkeys(RARE, options.inverse_copies),
    }


def check(options: TrainOptions) -> None:
    """Raise `InputError` for a number that nothing in the library would refuse by the name of its flag."""
    for name, least in (
        ("steps", 1),
        ("batch_size", 1),
        ("copies", 1),
        ("inverse_copies", 0),
        ("seed", 0),
        ("snapshots", 0),
    ):
        value = getattr(options, name)
        if not least <= value < 2**31:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be from {least} to {2**31 - 1:,}")


def train(options: TrainOptions, task: Task, state: jaxcalc.TrainState, started: float) -> tuple[Any, dict[str, Any]]:
    """Return the trained parameters and what happened on the way; writes metrics.jsonl."""
    n_steps = steps_a_call(options.steps, most=10)
    settings = {"n_steps": n_steps, "batch_size": options.batch_size, "loss_on": options.loss_on}
    watched, rows = ("held-out", task.held_out_rows) if task.held_out_rows.size else ("training", task.train_rows[::10])
    log: dict[str, Any] = {"watched": watched, "losses": [], "checks": [], "interrupted": False}

    def interrupt(*_: object) -> None:
        log["interrupted"] = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("\nstopping after these steps; Ctrl-C again ends at once and saves nothing", file=sys.stderr)

    def snapshot(step: int) -> None:
        if options.snapshots and (step in kept or log["interrupted"]):
            checkpoint.save_snapshot(options.run_dir, state)

    kept = snapshot_steps(options.snapshots, n_steps, options.steps)
    snapshot(0)
    previous = signal.signal(signal.SIGINT, interrupt)
    progress = report.ProgressLine(options.steps, options.batch_size, watched)
    with progress, (options.run_dir / checkpoint.METRICS).open("w", encoding="utf-8") as metrics_file:
        clock = time.perf_counter()
        steps = jaxcalc.train_steps.lower(state, task, seed=options.seed, **settings).compile()
        log["before"] = jaxcalc.evaluate(state.params, task, examples(task))
        log["compile"] = time.perf_counter() - clock

        clock = time.perf_counter()
        for step in range(n_steps, options.steps + 1, n_steps):
            state, metrics = steps(state, task, seed=options.seed)
            write_metrics(metrics_file, step - n_steps, metrics)
            log["losses"] += np.asarray(metrics["loss"]).tolist()
            match = None
            if step * CHECKS // options.steps > (step - n_steps) * CHECKS // options.steps or log["interrupted"]:
                evaluation = jaxcalc.evaluate(state.params, task, rows)
                match = evaluation.exact_match
                shares = {name: row["exact_match"] for name, row in evaluation.by_operation().items()}
                seconds = time.perf_counter() - started
                check = {"step": step, f"{watched}_exact_match": match, "by_operation": shares, "seconds": seconds}
                log["checks"].append(check)
                metrics_file.write(json.dumps(check) + "\n")
            progress.update(step, log["losses"][-1], match)
            snapshot(step)
            if log["interrupted"]:
                break
        jax.block_until_ready(state)
        log["train"] = time.perf_counter() - clock
    signal.signal(signal.SIGINT, previous)
    return state.params, log


def steps_a_call(steps: int, most: int) -> int:
    """Return the largest divisor of `steps` up to `most`, so that one compiled program does them all."""
    return max(n for n in range(1, most + 1) if steps % n == 0)


def snapshot_steps(n: int, every: int, last: int) -> set[int]:
    """Return step 0 and at most n − 1 log-spaced multiples of `every`, the last of them `last`."""
    spaced = np.geomspace(last, every, n - 1) if n > 1 else np.zeros(0)
    return {0, *(np.round(spaced / every).astype(int) * every).tolist()}


def write_metrics(file: Any, first: int, metrics: jaxcalc.Metrics) -> None:
    """Write one line for each of the steps `first` + 1, `first` + 2, …"""
    columns = {name: np.asarray(values).tolist() for name, values in metrics.items()}
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        file.write(json.dumps({"step": first + index + 1, **dict(zip(columns, values, strict=True))}) + "\n")


def finish(
    options: TrainOptions,
    task: Task,
    params: jaxcalc.Params,
    log: dict[str, Any],
    started: float,
    console: Console,
) -> dict[str, Any]:
    """Evaluate, save, print, and return the summary."""
    clock = time.perf_counter()
    held_out, training = (jaxcalc.evaluate(params, task, rows) for rows in (task.held_out_rows, task.train_rows))
    after = jaxcalc.evaluate(params, task, examples(task))
    evaluated = time.perf_counter() - clock

    errors = report.errors_of(held_out, training)
    n_done = len(log["losses"])
    checkpoint.save_params(options.run_dir / checkpoint.MODEL, params)
    report.learning_curve(options.run_dir / checkpoint.CURVE, log["losses"], log["checks"], log["watched"])
    summary = {
        "n_params": jaxcalc.count(params),
        "n_train": len(training.rows),
        "n_held_out": len(held_out.rows),
        "held_out_exact_match": held_out.exact_match,
        "train_exact_match": training.exact_match,
        "by_operation": report.by_operation(held_out, training),
        "errors": errors,
        "steps": n_done,
        "interrupted": log["interrupted"],
        "examples_per_second": n_done * options.batch_size / log["train"],
        "seconds": {
            "compile": log["compile"],
            "train": log["train"],
            "evaluate": evaluated,
            "total": time.perf_counter() - started,
        },
        "seed": options.seed,
        "split": options.split,
        "versions": report.versions(),
        "device": jax.devices()[0].device_kind,
    }
    checkpoint.write_json(options.run_dir / checkpoint.SUMMARY, summary)

    console.print(report.before_and_after_table(log["before"], after), "", sep="\n")
    console.print(report.accuracy_table(held_out, training), "", report.errors_table(errors), "", sep="\n")
    if log["interrupted"]:
        console.print(f"Stopped by Ctrl-C after {n_done:,} of {options.steps:,} steps.")
    seconds = summary["seconds"]
    console.print(
        f"{n_done:,} steps of {options.batch_size} in {seconds['train']:.1f} s "
        f"({summary['examples_per_second']:,.0f} examples/s), {seconds['compile']:.1f} s of compiling before, "
        f"{seconds['total']:.1f} s in all. Saved in {options.run_dir}.\n\nTry next:\n"
        f'  python experiments/ask.py {options.run_dir} "two plus three"\n'
        f"  python experiments/evaluate.py {options.run_dir}\n"
        f"  python experiments/explore.py {options.run_dir}"
        + f'\n  python experiments/watch.py {options.run_dir} "two plus three" --replay' * bool(options.snapshots)
        + f"\n  python experiments/lens.py {options.run_dir}",
        highlight=False,
        soft_wrap=True,
    )
    return summary


def examples(task: Task, most: int = 12) -> np.ndarray:
    """Return a dozen rows, spread over the held-out problems (over all of them where none is held out)."""
    rows = np.asarray(task.held_out_rows if task.held_out_rows.size else task.train_rows)
    operation = np.asarray(task.problems)[rows, 1]
    groups = [rows[operation == index] for index in np.unique(operation)]
    each = -(-most // len(groups))
    picked = [group[np.linspace(0, len(group) - 1, min(each, len(group)) + 2).astype(int)[1:-1]] for group in groups]
    return np.unique(np.concatenate(picked))[:most]


if __name__ == "__main__":
    sys.exit(report.run_script(main, TrainOptions))
