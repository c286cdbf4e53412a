"""How does a step scale with devices? Measured on devices and processes that share a CPU, predicted for accelerators.

python experiments/scaling.py
→ two devices of a CPU with two cores reach 1.2 times the speed of one (64 examples each, 8.9 against 5.3 ms). Two
  processes take 1.6 to 2.5 times as long as one for the same batch. On paper, 4,096 H100 with 4,096 examples each, of
  14 positions, are 96 to 100 % efficient. It takes about two minutes on two CPU cores.

python experiments/scaling.py --paper-only       # only the predictions, in seconds
"""

import dataclasses
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

import jaxcalc
from jaxcalc.runs import cli, report
from jaxcalc.runs.text import percent
from jaxcalc.scale import scaling, sharding
from jaxcalc.scale.cost import n_cores
from jaxcalc.scale.processes import everywhere, join
from jaxcalc.scale.sharding import FULLY_SHARDED, TENSOR_PARALLEL

N_DEVICES, N_STEPS, ROUNDS = 8, 10, 5
PER_DEVICE = 64  # examples per device; for weak scaling the batch grows with the devices
IN_ALL = 512  # examples in all; for strong scaling the batch stays
ANSWER = 5  # positions of the longest answer up to 999, its end included
LARGE = jaxcalc.ModelConfig(vocab_size=36, context_length=14, **jaxcalc.SIZES["100M"])
SIZE = f"{LARGE.context_length} positions, {LARGE.vocab_size} words"  # what the predictions hold for
PAPER_PER_DEVICE, PAPER_IN_ALL = 4096, 65_536
PAPER_MESHES = [
    ("data", TENSOR_PARALLEL, 1, (8, 256, 4096)),
    ("fully sharded", FULLY_SHARDED, 1, (8, 256)),  # a width of 768 cannot be cut into 4,096 parts
    ("model=4", TENSOR_PARALLEL, 4, (8, 256, 4096)),
]

Row = dict[str, Any]
"""A row of the result; --json prints it."""


class Case(NamedTuple):
    """One batch on so many devices or processes."""

    scaling: str
    """"weak" or "strong"."""
    number: int
    """Devices or processes."""
    batch_size: int


@dataclasses.dataclass(frozen=True)
class ScalingOptions:
    """Measure weak and strong scaling on devices and processes that share a CPU, and predict it for accelerators."""

    paper_only: bool = False
    """Only predict; measure nothing."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(options: ScalingOptions) -> int:
    result: dict[str, Any] = {"paper": paper()}
    if not options.paper_only:
        jax.config.update("jax_num_cpu_devices", N_DEVICES)
        result |= {
            "cores": n_cores(),
            "devices": compared(step_seconds(1, 2, 4, N_DEVICES)),
            "processes": compared(seconds_of_processes()),
            "exchanged": exchanged(),
        }
    if options.json:
        print(json.dumps(result))
        return 0
    console = Console()
    for table in tables(result):
        console.print(table, "", sep="\n")
    return 0


def seconds_of_processes() -> dict[Case, float]:
    """Return the seconds of a step on 1, 2 and 4 processes of one device each."""
    seconds = {}
    for n in (1, 2, 4):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
            first, *_ = pool.map(seconds_in_process, [address] * n, [n] * n, range(n))
        seconds |= first
    return seconds


def seconds_in_process(address: str, n: int, index: int) -> dict[Case, float]:
    """Return what one of n processes measures; all measure the same."""
    if n == 1:
        return step_seconds(1)
    os.dup2(2, 1)  # gloo prints to stdout
    join(address, n, index)
    seconds = step_seconds(n)
    jax.distributed.shutdown()
    return seconds


def step_seconds(*counts: int) -> dict[Case, float]:
    """Return the median seconds of a step of the default model on each number of devices, weak and strong."""
    task = jaxcalc.calculator()
    config = jaxcalc.ModelConfig(task.vocab_size)
    programs = {}
    for n in counts:
        mesh = sharding.make_mesh(n)
        spread = everywhere(task, mesh)
        for kind, size in (("weak", PER_DEVICE * n), ("strong", IN_ALL)):
            params = jaxcalc.init(jax.random.key(0), config)  # anew, as training steps reuse the memory of the old ones
            tx = jaxcalc.make_optimizer("adamw", None)
            state = jaxcalc.create_state(params, tx, sharding.sharded(mesh, TENSOR_PARALLEL))
            state = sharding.place(state, mesh, TENSOR_PARALLEL)
            steps = jaxcalc.train_steps.lower(state, spread, seed=0, n_steps=N_STEPS, batch_size=size).compile()
            programs[Case(kind, n, size)] = [steps, state, spread]
    seconds: dict[Case, list[float]] = {case: [] for case in programs}
    for _ in range(ROUNDS + 1):  # the first round is not counted
        for case, program in programs.items():
            steps, state, spread = program
            start = time.perf_counter()
            program[1], _ = steps(state, spread, seed=0)
            jax.block_until_ready(program[1])
            seconds[case].append((time.perf_counter() - start) / N_STEPS)
    return {case: statistics.median(times[1:]) for case, times in seconds.items()}


def compared(seconds: dict[Case, float]) -> list[Row]:
    """Return a row for each case, compared with one device or process."""
    alone = {case.scaling: time for case, time in seconds.items() if case.number == 1}
    return [
        {
            "kind": kind,
            "number": n,
            "batch_size": size,
            "seconds": time,
            "efficiency": alone[kind] / time / (1 if kind == "weak" else n),
            "speed": alone[kind] / time * (n if kind == "weak" else 1),
        }
        for (kind, n, size), time in sorted(seconds.items(), reverse=True)
    ]


def exchanged() -> list[Row]:
    """Return the bytes that a step exchanges, as `scaling.traffic` predicts them and in the compiled program."""
    config = jaxcalc.ModelConfig(vocab_size=36, context_length=14, n_heads=8, d_model=64)
    batch = jaxcalc.Batch(jax.numpy.zeros((64, 15), int), jax.numpy.ones((64, ANSWER)))
    rows = []
    for name, rules, data, model in (
        ("data parallel", TENSOR_PARALLEL, 8, 1),
        ("tensor parallel", TENSOR_PARALLEL, 2, 4),
        ("fully sharded", FULLY_SHARDED, 4, 2),
    ):
        mesh = sharding.make_mesh(data, model)
        params = jaxcalc.init(jax.random.key(0), config)
        tx = jaxcalc.make_optimizer("sgd", None)
        state = sharding.place(jaxcalc.create_state(params, tx, sharding.sharded(mesh, rules)), mesh, rules)
        found = scaling.exchanged(jaxcalc.train_step.lower(state, batch).compile().as_text() or "")
        sent = scaling.traffic(config, 64, ANSWER, data, model, rules)
        predicted = {"all-reduce": sent.gradients + sent.activations, "all-gather": sent.gathered}
        label = f"{name}, data={data}, model={model}"
        rows += [
            {"mesh": label, "kind": kind, "predicted": n_bytes, "compiled": found.pop(kind, 0)}
            for kind, n_bytes in predicted.items()
            if n_bytes
        ]
        rows += [{"mesh": label, "kind": kind, "predicted": 0, "compiled": n_bytes} for kind, n_bytes in found.items()]
    return rows


def paper() -> list[Row]:
    """Return what a step of the 100M model takes on 8, 256 and 4,096 accelerators, by `scaling.step_time`."""
    rows = []
    for accelerator in (scaling.H100, scaling.TPU_V5P):
        for name, rules, model, counts in PAPER_MESHES:
            for n in counts:
                for kind, size in (("weak", PAPER_PER_DEVICE * n), ("strong", PAPER_IN_ALL)):
                    size_alone = size // n if kind == "weak" else size
                    alone = scaling.step_time(LARGE, size_alone, ANSWER, 1, 1, rules, accelerator)
                    step = scaling.step_time(LARGE, size, ANSWER, n // model, model, rules, accelerator)
                    share = 1 if kind == "weak" else n
                    rows.append(
                        {
                            "accelerator": accelerator.name,
                            "mesh": name,
                            "devices": n,
                            "kind": kind,
                            "batch_size": size,
                            **step._asdict(),
                            "apart": step.apart,
                            "overlapped": step.overlapped,
                            "efficiency_apart": alone.apart / step.apart / share,
                            "efficiency_overlapped": alone.overlapped / step.overlapped / share,
                        }
                    )
    return rows


def tables(result: dict[str, Any]) -> list[Table]:
    """Return the result as tables for the terminal."""
    built = []
    for workers in ("devices", "processes"):
        if workers in result:
            title = f"Measured: the default model on {workers} that share {result['cores']} cores"
            columns = ["batch", workers, "examples", "ms", "speed", "efficiency"]
            built.append(report.table(title, columns, [measured_cells(row) for row in result[workers]]))
    if "exchanged" in result:
        columns = ["mesh", "collective", "predicted", "compiled", "more"]
        cells = [exchanged_cells(row) for row in result["exchanged"]]
        built.append(report.table("Bytes that a device exchanges per step", columns, cells, text=(0, 1)))
    columns = ["mesh", "devices", "examples", "compute", "exchange", "sum", "efficiency"]
    for accelerator in dict.fromkeys(row["accelerator"] for row in result["paper"]):
        cells = [paper_cells(row) for row in result["paper"] if row["accelerator"] == accelerator]
        built.append(report.table(f"On paper: the 100M model on {accelerator}, {SIZE}, in ms", columns, cells))
    return built


def measured_cells(row: Row) -> list[str]:
    times = [f"{1e3 * row['seconds']:.1f}", f"{row['speed']:.2f}", percent(row["efficiency"])]
    return [row["kind"], str(row["number"]), f"{row['batch_size']:,}", *times]


def exchanged_cells(row: Row) -> list[str]:
    more = f"{row['compiled'] / row['predicted'] - 1:+.2%}" if row["predicted"] else "–"
    return [row["mesh"], row["kind"], f"{row['predicted']:,}", f"{row['compiled']:,}", more]


def paper_cells(row: Row) -> list[str]:
    seconds = (row["compute"] + row["memory"], row["exchange"], row["apart"])
    efficiency = f"{100 * row['efficiency_apart']:.0f}–{100 * row['efficiency_overlapped']:.0f} %"
    return [
        row["mesh"],
        f"{row['devices']:,}",
        f"{row['batch_size']:,}",
        *(f"{1e3 * s:.2f}" for s in seconds),
        efficiency,
    ]


if __name__ == "__main__":
    sys.exit(cli.run_script(main, ScalingOptions))
