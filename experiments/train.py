"""Train the calculator: text in, a run folder out.

python experiments/train.py                # the default model, about a minute on two CPU cores
python experiments/train.py --split none   # hold nothing out: all or all but one of 11,344 answers are right
python experiments/train.py --ops plus minus --max-number 20 --run-dir runs/small
python experiments/train.py --resume runs/calculator                 # go on where it was stopped, or killed
python experiments/train.py --resume runs/calculator --steps 2000    # go on for longer
python experiments/train.py --fork runs/calculator@290 --seed 1 --run-dir runs/fork
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from train_options import CHUNK, TrainOptions, check, configure, defaults, devices_of, placed, use_devices

import jaxcalc
from jaxcalc import backprop, runs
from jaxcalc.errors import InputError
from jaxcalc.evaluation import prompt_text
from jaxcalc.runs import checkpoint, figures, report
from jaxcalc.runs.share import save_params
from jaxcalc.scale import cost, processes
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task

CHECKS = 30  # how often the held-out problems are decoded during a run
NOT_FINITE = 3  # the exit status where a step was not finite


def main(options: TrainOptions) -> int:
    started = time.perf_counter()
    # Orbax logs what it raises as well, and leaves coroutines behind where a save fails.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda what: str(what.exc_value) == "Event loop is closed" or sys.__unraisablehook__(what)
    # Everything that can be wrong with the options is found before a file is touched.
    check(options)
    use_devices(options.mesh, options)
    path = options.resume or options.run_dir
    with processes.together(f"go on from the last checkpoint with: python experiments/train.py --resume {path}"):
        return run(options, path, started)


def run(options: TrainOptions, path: Path, started: float) -> int:
    """Train as the options say, and return the exit status."""
    config = configure(options)
    task = runs.task_of(config["task"])
    jax.eval_shape(lambda: jaxcalc.batch_at(task, config["seed"], 0, config["batch_size"]))  # refuses a wrong size
    console = Console(stderr=options.json)
    with signals() as caught, opened(options, path, config, task) as (state, metrics_file, steps):
        console.print(report.parameters_table(state.params), "", report.problems_table(task), "", sep="\n")
        console.print(report.cost_table(steps.bytes, steps.available, steps.flops, steps.peak), "", sep="\n")
        state, log = train(path, config, task, state, metrics_file, steps, caught, started)
        if log["stopped"]:
            print(log["stopped"], file=sys.stderr)
            result, status = {"steps": int(state.step), "stopped": log["stopped"]}, log["status"]
        else:
            # All is saved: from here on a signal need not wait.
            for number in SIGNALS:
                signal.signal(number, lambda number, _: sys.exit(128 + number))
            params = processes.whole(state.params)
            result, status = {}, 0
            if processes.is_main():
                result = finish(path, config, task, params, log, started, console)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    return status


@contextlib.contextmanager
def opened(
    options: TrainOptions, path: Path, config: dict[str, Any], task: Task
) -> Iterator[tuple[jaxcalc.TrainState, runs.Metrics, "Steps"]]:
    """Hold the run's folder for writing; yield the state from which training goes on, the file of its metrics, and the
    compiled steps. What does not fit into memory is refused before it is there, and before a new run's folder is."""
    if not options.resume and processes.is_main():
        runs.check_free(path, options.overwrite)
    with contextlib.ExitStack() as held:
        # The other processes write the same files to a folder of their own, which is thrown away.
        own = path if processes.is_main() else Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(runs.writing(own))
        processes.wait("process 0 has the folder")
        warn = functools.partial(print, "warning:", file=sys.stderr)
        like = placed(runs.state_like(config), config)
        available = cost.available_bytes(devices_of(config))
        cost.check_fits(cost.state_bytes(like), available)
        resumed = runs.resume(path, config, warn, like) if options.resume else None
        if resumed:
            state, manifest = resumed
            step = int(state.step)
            if config["steps"] < step or (config["steps"] == step and (path / runs.SUMMARY).exists()):
                raise InputError(
                    f"{path} is at step {step:,} already; --steps is {config['steps']:,}, so nothing is left"
                )
            mark = manifest["metrics"]
            steps = compiled(config, task, like, available)
        else:
            steps = compiled(config, task, like, available)
            state = placed(forked(config) if "forked_from" in config else untrained(config), config)
            state = state.replace(apply_fn=like.apply_fn, tx=like.tx)  # the very functions that were compiled
            runs.start_run(own, config, options.overwrite or options.resume is not None)
            mark = None
        with runs.Metrics(own / runs.METRICS, mark if processes.is_main() else None) as metrics_file:
            (own / runs.SUMMARY).unlink(missing_ok=True)
            runs.write_config(own, config)
            processes.wait("the run is begun")
            yield state, metrics_file, steps


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled `jaxcalc.train_steps` of a run, and what it takes."""

    call: Callable[..., tuple[jaxcalc.TrainState, jaxcalc.Metrics]]
    compile_seconds: float
    bytes: dict[str, int]
    """What one device holds meanwhile."""
    available: int | None
    """What it can hold."""
    flops: float
    """Products of one step on one device; of a CPU's devices, which share its cores, on all."""
    peak: float
    """FLOP/s of a large product, measured."""


def compiled(config: dict[str, Any], task: Task, like: jaxcalc.TrainState, available: int | None) -> Steps:
    """Return the program of a run, from the shapes of its state. Raises `InputError` where it cannot fit."""
    clock = time.perf_counter()
    n = config["microbatches"]
    spread = spread_over(like, task)
    traced = jaxcalc.train_steps.trace(
        like, spread, seed=config["seed"], stop=config["steps"], n_steps=CHUNK, batch_size=config["batch_size"],
        loss_on=config["loss_on"], step_fn=jaxcalc.train_step if n == 1 else jaxcalc.in_microbatches(n),
    )  # fmt: skip
    with Console(stderr=True).status("compiling …"):  # which a terminal alone shows, so that an error is one line
        program = traced.lower().compile()
    seconds = time.perf_counter() - clock
    sizes = cost.step_bytes(like, program)
    cost.check_fits(sizes, available)
    devices = devices_of(config)
    n_sharing = 1 if devices[0].platform == "cpu" else len(devices)
    flops = cost.flops(traced.jaxpr) / CHUNK / n_sharing
    return Steps(program, seconds, sizes, available, flops, cost.matmul_peak(config["dtype"]))


def spread_over(state: jaxcalc.TrainState, task: Task) -> Task:
    """Return the task where a state is: with several processes, whole on every device of their mesh."""
    sharding = jax.tree.leaves(state)[0].sharding
    return processes.everywhere(task, sharding.mesh) if jax.process_count() > 1 else task


def untrained(config: dict[str, Any]) -> jaxcalc.TrainState:
    """Return the state of step 0."""
    init = jax.jit(jaxcalc.init, static_argnums=1, compiler_options=report.QUICK_TO_COMPILE)
    params = init(jax.random.key(config["seed"]), jaxcalc.ModelConfig(**config["model"]))
    return jaxcalc.create_state(params, runs.optimizer_of(config))


def forked(config: dict[str, Any]) -> jaxcalc.TrainState:
    """Return the state that --fork names, to go on under the options of the new run."""
    run, step = Path(config["forked_from"]["run"]), config["forked_from"]["step"]
    state, _ = runs.load_checkpoint(run, runs.read_config(run), step)
    return state.replace(tx=runs.optimizer_of(config))


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Note the first SIGINT or SIGTERM in the list that is yielded; the second ends the process at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        caught.append(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Without buffers: what it interrupts may be about to write to the same stream.
        os.write(2, b"\nstopping after these steps; a second time ends at once and saves nothing\n")

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    path: Path,
    config: dict[str, Any],
    task: Task,
    state: jaxcalc.TrainState,
    metrics_file: runs.Metrics,
    steps: Steps,
    caught: list[int],
    started: float,
) -> tuple[jaxcalc.TrainState, dict[str, Any]]:
    """Return the trained state and what happened on the way; writes metrics.jsonl and checkpoints."""
    seed, last = config["seed"], config["steps"]
    watched, rows = ("held-out", task.held_out_rows) if task.held_out_rows.size else ("training", task.train_rows[::10])
    step = int(state.step)
    n_skipped = sum("skipped" in row for row in runs.read_metrics(path))
    spread = spread_over(state, task)
    log: dict[str, Any] = {"first_step": step, "watched": watched, "stopped": "", "status": 0}
    info = {"config": config, "vocabulary": list(task.tokenizer.vocabulary), "environment": runs.environment(config)}
    kept = set(config["snapshot_steps"])
    writer = checkpoint.Writer(path / runs.CHECKPOINTS, info, kept, config["keep"])

    def save() -> None:
        if processes.agree(processes.is_main() and step not in runs.snapshot_steps(path)):
            writer.save(state, metrics=metrics_file.mark())

    with writer, report.ProgressLine(last, config["batch_size"], watched) as progress:
        clock = time.perf_counter()
        params = processes.whole(state.params)
        if processes.is_main():
            log["before"] = jaxcalc.evaluate(params, task, examples(task))
        log["compile"] = steps.compile_seconds + time.perf_counter() - clock

        clock = time.perf_counter()
        save()
        while step < last and not processes.agree(caught[0] if caught else 0):
            start = step - step % CHUNK
            stop = min(start + CHUNK, last)
            state, metrics = steps.call(state, spread, seed=seed, stop=stop)
            done = int(state.step)
            lines = step_lines(step, done, metrics)
            metrics_file.write(*lines)
            step = done
            if step < stop:  # the step after it was not finite
                wrong = examine(path, config, task, state, metrics)
                if n_skipped == config["skip_nonfinite"]:
                    log |= {"stopped": stopped_by_nonfinite(path, wrong, step, n_skipped), "status": NOT_FINITE}
                    break
                n_skipped, step, state = n_skipped + 1, step + 1, state.replace(step=state.step + 1)
                print(f"warning: {wrong}; step {step:,} is left out", file=sys.stderr)
                metrics_file.write({"step": step, "skipped": wrong})
                if step < stop:
                    continue
            match = None
            if step * CHECKS // config["schedule_steps"] > start * CHECKS // config["schedule_steps"]:
                params = processes.whole(state.params)
                if processes.is_main():
                    evaluation = jaxcalc.evaluate(params, task, rows)
                    match = evaluation.exact_match
                    shares = {name: row["exact_match"] for name, row in evaluation.by_operation().items()}
                    seconds = time.perf_counter() - started
                    metrics_file.write(
                        {"step": step, f"{watched}_exact_match": match, "by_operation": shares, "seconds": seconds}
                    )
            if lines:
                progress.update(step, lines[-1]["loss"], match)
            every = config["checkpoint_every"]
            if step in kept or step // every > start // every or processes.agree(writer.failed()):
                save()
        jax.block_until_ready(state)
        log["train"] = time.perf_counter() - clock
        writer.wait()
        save()
        writer.wait()
    number = processes.agree(caught[0] if caught else 0)
    if number and not log["stopped"]:
        log |= {"stopped": stopped_by_signal(path, number, step, last), "status": 128 + number}
    return state, log | {"n_skipped": n_skipped}


def step_lines(first: int, done: int, metrics: jaxcalc.Metrics) -> list[dict[str, Any]]:
    """Return a line for each of the steps `first` + 1, …, `done`."""
    columns = {name: np.asarray(values)[: done - first].tolist() for name, values in metrics.items()}
    return [
        {"step": step, **dict(zip(columns, values, strict=True))}
        for step, values in enumerate(zip(*columns.values(), strict=True), first + 1)
    ]


def examine(path: Path, config: dict[str, Any], task: Task, state: jaxcalc.TrainState, metrics: jaxcalc.Metrics) -> str:
    """Save the batch of a step that was not finite, and return what was wrong and where it began."""
    step, params = int(state.step), processes.whole(state.params)
    if not processes.is_main():
        return ""
    batch = jaxcalc.batch_at(task, config["seed"], step, config["batch_size"], config["loss_on"])
    found = backprop.first_nonfinite(params, batch)
    values = {name: float(metrics[name][-1]) for name in ("loss", "grad_norm")}  # the last row is of that step
    file = runs.save_nonfinite(path, step + 1, batch, found, values)
    return (
        f"step {step + 1:,} is not finite (loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}), "
        f"first in: {found or 'the update'}; its batch is in {file}"
    )


def stopped_by_nonfinite(path: Path, wrong: str, step: int, n_skipped: int) -> str:
    """Return what to say where a step is not finite."""
    return (
        f"Stopped: {wrong}. The state of step {step:,}, before it, is saved. Leave such a step out with:\n"
        f"  python experiments/train.py --resume {path} --skip-nonfinite {n_skipped + 1}"
    )


def stopped_by_signal(path: Path, number: int, step: int, last: int) -> str:
    """Return what to say after a signal."""
    return (
        f"Stopped by {signal.Signals(number).name} after {step:,} of {last:,} steps, all of which are saved.\n"
        f"Go on:        python experiments/train.py --resume {path}\n"
        f"Finish here:  python experiments/train.py --resume {path} --steps {step}"
    )


def finish(
    path: Path,
    config: dict[str, Any],
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

    errors = report.wrong_answers(held_out, training)
    is_table = isinstance(task, Calculator)
    n_done = config["steps"] - log["first_step"]
    accuracy = {"held_out_exact_match": held_out.exact_match, "train_exact_match": training.exact_match}
    described = {"config": config, "vocabulary": list(task.tokenizer.vocabulary), "accuracy": accuracy}
    save_params(path / runs.MODEL, params, {**described, "versions": runs.versions()})
    try:
        figures.learning_curve(path / runs.CURVE, runs.read_metrics(path), log["watched"])
    except OSError as error:
        raise InputError(f"cannot write {path / runs.CURVE}: {error.strerror}") from error
    summary = {
        "n_params": jaxcalc.count(params),
        "n_train": len(training.rows),
        "n_held_out": len(held_out.rows),
        **accuracy,
        "by_operation": report.by_operation(held_out, training),
        "errors": errors,
        **({} if is_table else report.by_length(held_out)),
        "steps": config["steps"],
        "first_step": log["first_step"],
        "skipped_steps": log["n_skipped"],
        "examples_per_second": n_done * config["batch_size"] / log["train"],
        "seconds": {
            "compile": log["compile"],
            "train": log["train"],
            "evaluate": evaluated,
            "total": time.perf_counter() - started,
        },
        "seed": config["seed"],
        "split": task.split,
        "versions": runs.versions(),
        "device": jax.devices()[0].device_kind,
    }
    checkpoint.prune(path / runs.CHECKPOINTS, config["snapshot_steps"], newest=1)
    runs.write_json(path / runs.SUMMARY, summary)  # the last: with it the run is whole

    console.print(report.before_and_after_table(log["before"], after, log["first_step"]), "", sep="\n")
    console.print(report.accuracy_table(held_out, training), "", report.errors_table(errors), "", sep="\n")
    if not is_table:
        for table in report.length_tables(held_out):
            console.print(table, "", sep="\n")
    seconds = summary["seconds"]
    question = "two plus three" if is_table else prompt_text(task, int(after.rows[0]))
    console.print(
        f"{n_done:,} steps of {config['batch_size']} in {seconds['train']:.1f} s "
        f"({summary['examples_per_second']:,.0f} examples/s), {seconds['compile']:.1f} s of compiling before, "
        f"{seconds['total']:.1f} s in all. Saved in {path}.\n\nTry next:\n"
        f'  python experiments/ask.py {path} "{question}"\n'
        f"  python experiments/evaluate.py {path}"
        + f"\n  python experiments/explore.py {path}" * is_table
        + f'\n  python experiments/watch.py {path} "{question}" --replay' * bool(config["snapshots"])
        + f"\n  python experiments/lens.py {path}" * is_table,
        highlight=False,
        soft_wrap=True,
    )
    return summary


def examples(task: Task, most: int = 12) -> np.ndarray:
    """Return a dozen rows, spread over the held-out problems (over all of them where none is held out)."""
    rows = np.asarray(task.held_out_rows if task.held_out_rows.size else task.train_rows)
    kind_ids = task.kind_ids[rows]
    groups = [rows[kind_ids == index] for index in np.unique(kind_ids)]
    each = -(-most // len(groups))
    picked = [group[np.linspace(0, len(group) - 1, min(each, len(group)) + 2).astype(int)[1:-1]] for group in groups]
    return np.unique(np.concatenate(picked))[:most]


if __name__ == "__main__":
    sys.exit(report.run_script(main, TrainOptions, defaults))
