"""How a step grows with the devices: measured on the parts of this CPU, and on paper for accelerators.

python experiments/scaling.py                    # about two minutes on two CPU cores
python experiments/scaling.py --paper-only       # nothing is run: seconds
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
from typing import Any

import jax
from rich.console import Console

import jaxcalc
from jaxcalc.runs import report
from jaxcalc.runs.text import percent
from jaxcalc.scale import scaling, sharding
from jaxcalc.scale.processes import everywhere, join
from jaxcalc.scale.sharding import FULLY_SHARDED, TENSOR_PARALLEL

Case = tuple[str, int, int]  # "weak" or "strong", devices or processes, examples
N_DEVICES, N_STEPS, ROUNDS = 8, 10, 5
PER_DEVICE = 64  # examples of each device, where the batch grows with them
IN_ALL = 512  # examples, where it does not
ANSWER = 5  # positions of the longest answer up to 999, its end included
LARGE = jaxcalc.ModelConfig(vocab_size=36, context_length=14, **jaxcalc.SIZES["100M"])
PAPER_PER_DEVICE, PAPER_IN_ALL = 4096, 65_536
PAPER_MESHES = [
    ("data", TENSOR_PARALLEL, 1, (8, 256, 4096)),
    ("fully sharded", FULLY_SHARDED, 1, (8, 256)),  # 4,096 parts are more than a width of 768 has
    ("model=4", TENSOR_PARALLEL, 4, (8, 256, 4096)),
]


@dataclasses.dataclass(frozen=True)
class ScalingOptions:
    """Measure weak and strong scaling on devices and processes that share a CPU, and tell a step on paper."""

    paper_only: bool = False
    """Leave out what is measured."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(options: ScalingOptions) -> int:
    result: dict[str, Any] = {"paper": paper()}
    if not options.paper_only:
        jax.config.update("jax_num_cpu_devices", N_DEVICES)
        result |= {
            "cores": len(os.sched_getaffinity(0)),
            "devices": devices(),
            "processes": processes(),
            "exchanged": exchanged(),
        }
    if options.json:
        print(json.dumps(result))
        return 0
    console = Console()
    for table in tables(result):
        console.print(table, "", sep="\n")
    return 0


def devices() -> list[dict[str, Any]]:
    """Return the seconds of a step of the default model on 1, 2, 4 and 8 devices, weak and strong, each a median."""
    return compared(measured(1, 2, 4, N_DEVICES))


def processes() -> list[dict[str, Any]]:
    """Return the same for 1, 2 and 4 processes of one device."""
    seconds = {}
    for n in (1, 2, 4):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
            first, *_ = pool.map(of_one_process, [address] * n, [n] * n, range(n))
        seconds |= first
    return compared(seconds)


def of_one_process(address: str, n: int, i: int) -> dict[Case, float]:
    """Return what process `i` of `n` measures, which is the same in all."""
    if n == 1:
        return measured(1)
    os.dup2(2, 1)  # gloo prints to stdout
    join(address, n, i)
    seconds = measured(n)
    jax.distributed.shutdown()
    return seconds


def measured(*counts: int) -> dict[Case, float]:
    """Return the seconds of a step on so many devices, with 64 examples each and with 512 in all."""
    task = jaxcalc.calculator()
    config = jaxcalc.ModelConfig(task.vocab_size)
    runs = {}
    for n in counts:
        mesh = sharding.make_mesh(n)
        spread = everywhere(task, mesh)
        for kind, size in (("weak", PER_DEVICE * n), ("strong", IN_ALL)):
            params = jaxcalc.init(jax.random.key(0), config)  # anew: the steps before have used their memory
            tx = jaxcalc.make_optimizer("adamw", None)
            state = jaxcalc.create_state(params, tx, sharding.sharded(mesh, TENSOR_PARALLEL))
            state = sharding.place(state, mesh, TENSOR_PARALLEL)
            step = jaxcalc.train_steps.lower(state, spread, seed=0, n_steps=N_STEPS, batch_size=size).compile()
            runs[kind, n, size] = [step, state, spread, []]
    for _ in range(ROUNDS + 1):  # the first is not counted
        for run in runs.values():
            step, state, spread, seconds = run
            clock = time.perf_counter()
            run[1], _ = step(state, spread, seed=0)
            jax.block_until_ready(run[1])
            seconds.append((time.perf_counter() - clock) / N_STEPS)
    return {case: statistics.median(run[3][1:]) for case, run in runs.items()}


def compared(seconds: dict[Case, float]) -> list[dict[str, Any]]:
    """Return a row for each (kind, number, batch size), beside the one of that kind that is alone."""
    alone = {kind: time for (kind, n, _), time in seconds.items() if n == 1}
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


def exchanged() -> list[dict[str, Any]]:
    """Return the bytes that a step exchanges as `scaling.traffic` has them, and as the compiled program has."""
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
        for kind, n_bytes in predicted.items():
            if n_bytes:
                rows.append({"mesh": f"{name}, data={data}, model={model}", "kind": kind,
                             "predicted": n_bytes, "compiled": found.pop(kind, 0)})  # fmt: skip
        rows += [{"mesh": name, "kind": kind, "predicted": 0, "compiled": n_bytes} for kind, n_bytes in found.items()]
    return rows


def paper() -> list[dict[str, Any]]:
    """Return what a step of the 100 M model takes on 8, 256 and 4,096 accelerators, by `scaling.step_time`."""
    rows = []
    for on in (scaling.H100, scaling.TPU_V5P):
        for name, rules, model, counts in PAPER_MESHES:
            for n in counts:
                for kind, size in (("weak", PAPER_PER_DEVICE * n), ("strong", PAPER_IN_ALL)):
                    alone = scaling.step_time(LARGE, size // n if kind == "weak" else size, ANSWER, 1, 1, rules, on)
                    step = scaling.step_time(LARGE, size, ANSWER, n // model, model, rules, on)
                    share = 1 if kind == "weak" else n
                    rows.append({
                        "on": on.name, "mesh": name, "devices": n, "kind": kind, "batch_size": size, **step._asdict(),
                        "apart": step.apart, "overlapped": step.overlapped,
                        "efficiency_apart": alone.apart / step.apart / share,
                        "efficiency_overlapped": alone.overlapped / step.overlapped / share,
                    })  # fmt: skip
    return rows


def tables(result: dict[str, Any]) -> list[Any]:
    """Return the tables for people."""
    built = []
    for what in ("devices", "processes"):
        rows = [
            [row["kind"], str(row["number"]), f"{row['batch_size']:,}", f"{1e3 * row['seconds']:.1f}",
             f"{row['speed']:.2f}", percent(row["efficiency"])]
            for row in result.get(what, [])
        ]  # fmt: skip
        if rows:
            title = f"Measured: the default model on {what} that share {result['cores']} cores"
            built.append(report.table(title, ["batch", what, "examples", "ms", "speed", "efficiency"], rows))
    if "exchanged" in result:
        rows = [[row["mesh"], row["kind"], f"{row['predicted']:,}", f"{row['compiled']:,}",
                 f"{row['compiled'] / row['predicted'] - 1:+.2%}" if row["predicted"] else "–"]
                for row in result["exchanged"]]  # fmt: skip
        columns = ["mesh", "collective", "predicted", "compiled", "more"]
        built.append(report.table("Bytes that a device exchanges in a step", columns, rows, text=(0, 1)))
    for on in dict.fromkeys(row["on"] for row in result["paper"]):
        rows = [
            [row["mesh"], f"{row['devices']:,}", f"{row['batch_size']:,}",
             *(f"{1e3 * ms:.2f}" for ms in (row["compute"] + row["memory"], row["exchange"], row["apart"])),
             f"{100 * row['efficiency_apart']:.0f}–{100 * row['efficiency_overlapped']:.0f} %"]
            for row in result["paper"] if row["on"] == on
        ]  # fmt: skip
        columns = ["mesh", "devices", "examples", "compute", "exchange", "sum", "efficiency"]
        built.append(report.table(f"On paper: the 100 M model on {on}, in ms", columns, rows))
    return built


if __name__ == "__main__":
    sys.exit(report.run_script(main, ScalingOptions))
