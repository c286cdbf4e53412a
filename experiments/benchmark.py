"""How fast is it? One run, one set of tables; every speed is the median of rounds in alternating order.

python experiments/benchmark.py --json benchmark.json --figure growth.png   # about 25 minutes on two CPU cores
python experiments/benchmark.py --quick                                     # about 3 minutes, and coarser
python experiments/benchmark.py --markdown benchmark.json                   # the README's tables of an earlier run

PyTorch is compared where it is installed: pip install -e ".[bench]".
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from rich.console import Console

import jaxcalc
from jaxcalc import population, runs
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, cross_entropy
from jaxcalc.runs import checkpoint, report
from jaxcalc.scale.sharding import data_parallel

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 1e-4, 1.0
TUTORIAL_LENGTH = 15  # positions that the PyTorch tutorial pads every problem to
STEPS_A_CALL = 20
EXPERIMENTS = Path(__file__).parent

# What is trained from a cold process: (name, options of train.py, numbers of steps to try, thresholds).
# Each threshold is reached by the number of steps that gets there soonest.
TRAININGS = (
    ("four operations, orbit split", [], (600, 1200), (0.97, 0.98, 0.99, 0.995)),
    (
        "three operations, random split",
        ["--ops", "plus", "minus", "times", "--split", "random"],
        (400, 600, 1200),
        (0.98, 0.99, 0.995, 0.999),
    ),
)


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Measure jaxcalc on this machine, side by side with PyTorch and Flax Linen."""

    quick: bool = False
    """Fewer rounds, sizes and seeds."""
    json: Path | None = None
    """Write everything that was measured to this file."""
    figure: Path | None = None
    """Draw the growth of the cost into this file."""
    markdown: Path | None = None
    """Measure nothing; print the tables of an earlier --json file as Markdown."""


def main(options: BenchmarkOptions) -> int:
    if options.markdown is not None:
        try:
            print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{options.markdown} is no file that --json wrote: {error!r}") from error
        return 0
    for path in (options.json, options.figure):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    console = Console(highlight=False)
    result: dict[str, Any] = {"machine": machine(), "quick": options.quick}
    for key, section in SECTIONS.items():
        print(f"measuring {key.replace('_', ' ')} …", file=sys.stderr)
        result[key] = section(result, options.quick)
        for part in tables({key: result[key]}):
            console.print(report.table(part.title, part.columns, part.rows), "")
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.figure is not None:
        growth_figure(options.figure, result["growth"])
    return 0


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    torch = {"torch": importlib.metadata.version("torch")} if importlib.util.find_spec("torch") else {}
    device = jax.devices()[0]
    return {"cpu": cpu, "cores": n_cores(), "device": device.device_kind,
            "platform": device.platform, **runs.versions(), **torch}  # fmt: skip


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(functions: dict[str, Callable[[], Any]], quick: bool) -> dict[str, float]:
    """Return the median seconds of one call of each; they take turns, and every other round runs backwards."""
    calls = {}
    for name, function in functions.items():
        jax.block_until_ready(function())
        start = time.perf_counter()
        jax.block_until_ready(function())
        calls[name] = max(1, int((0.1 if quick else 0.3) / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(3 if quick else 7):
        for name in list(functions)[:: 1 if index % 2 == 0 else -1]:
            start = time.perf_counter()
            for _ in range(calls[name]):
                jax.block_until_ready(functions[name]())
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(times) for name, times in seconds.items()}


def matmul_peak(_: dict[str, Any], quick: bool) -> float:
    """Return the best speed of a float32 product of two square matrices on this device, in GFLOP/s."""
    product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    sizes = {n: jax.random.normal(jax.random.key(n), (n, n)) for n in (512, 1024, 2048)}
    seconds = measure({str(n): functools.partial(product, a, a) for n, a in sizes.items()}, quick)
    return max(2 * n**3 / seconds[str(n)] for n in sizes) / 1e9


def optimizer(learning_rate: float = LEARNING_RATE) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY))


def jaxcalc_step(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return one call of `train_step`, always on the same state, and what compiling it took."""
    state = jaxcalc.create_state(params, optimizer())
    compiled, cost = compile_of(jaxcalc.train_step.lower, state, batch)
    return lambda: compiled(state, batch), cost


def jaxcalc_steps(
    params: jaxcalc.Params,
    task: jaxcalc.Task,
    size: int,
    apply_fn: ApplyFn = jaxcalc.apply,
    compiler_options: dict[str, Any] | None = None,
) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return one call of `train_steps`, which goes on from where the last one stopped."""
    state = jaxcalc.create_state(jax.tree.map(jnp.copy, params), optimizer(), apply_fn)
    lower = functools.partial(jaxcalc.train_steps.lower, seed=0, n_steps=STEPS_A_CALL, batch_size=size)
    compiled, cost = compile_of(lower, state, task, compiler_options=compiler_options)

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, task, seed=0)
        return metrics

    return call, cost


def parallel_steps(params: jaxcalc.Params, task: jaxcalc.Task, size: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return `jaxcalc_steps` with the batch split over all devices; of a CPU's devices each keeps to one thread."""
    devices = jax.devices()
    options = {"xla_cpu_multi_thread_eigen": False} if devices[0].platform == "cpu" else None
    return jaxcalc_steps(params, task, size, data_parallel(devices), options)


def linen_step(params: jaxcalc.Params, batch: jaxcalc.Batch) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return one step of the same network in Flax Linen, from the same weights, with the same optimizer."""
    from baseline_linen import LinenModel, to_linen  # beside this script

    model = LinenModel(jaxcalc.config_of(params))
    state = TrainState.create(apply_fn=model.apply, params=to_linen(params)["params"], tx=optimizer())

    @jax.jit
    def step(state: TrainState, batch: jaxcalc.Batch) -> tuple[TrainState, jax.Array]:
        def loss_fn(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, batch.tokens[:, :-1])
            return cross_entropy(logits[:, -batch.mask.shape[1] :], batch)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    compiled, cost = compile_of(step.lower, state, batch)
    return lambda: compiled(state, batch), cost


def compile_of(
    lower: Callable[..., Any], *arguments: Any, compiler_options: dict[str, Any] | None = None
) -> tuple[Any, dict[str, float]]:
    """Return a compiled program, the seconds that tracing and compiling took, and the bytes that a call holds."""
    start = time.perf_counter()
    compiled = lower(*arguments).compile(compiler_options)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return compiled, {"compile_seconds": seconds, "memory_mib": (held - memory.alias_size_in_bytes) / 2**20}


def torch_steps(
    params: jaxcalc.Params, batch: jaxcalc.Batch, length: int
) -> dict[tuple[str, int], tuple[Callable[[], Any], dict[str, float]]]:
    """Return PyTorch's step, eager and compiled, padded to a length, at the number of threads that is best for it."""
    import torch  # pyright: ignore[reportMissingImports]
    from baseline_torch import to_torch, train_step  # beside this script

    longer = length - params["embed"]["position"].shape[0]
    positions = jnp.pad(params["embed"]["position"], ((0, longer), (0, 0)))
    params = {**params, "embed": {**params["embed"], "position": positions}}
    tokens = np.pad(np.asarray(batch.tokens), ((0, 0), (longer, 0)))
    make = functools.partial(train_step, jaxcalc.config_of(params), tokens, np.asarray(batch.mask), LEARNING_RATE,
                             WEIGHT_DECAY, CLIP_NORM, to_torch(params))  # fmt: skip

    def with_threads(step: Callable[[], Any], n: int) -> Callable[[], Any]:
        def call() -> Any:
            torch.set_num_threads(n)
            return step()

        return call

    eager = make()
    candidates = {str(n): with_threads(eager, n) for n in range(1, n_cores() + 1)}
    seconds = measure(candidates, quick=True)
    best = min(candidates, key=seconds.__getitem__)
    torch.set_num_threads(int(best))
    start = time.perf_counter()
    compiled = make(compiled=True)
    compiled()
    cost = {"threads": int(best), "compile_seconds": time.perf_counter() - start}
    return {
        ("PyTorch", length): (candidates[best], {"threads": int(best)}),
        ("torch.compile", length): (with_threads(compiled, int(best)), cost),
    }


def train_step_rows(result: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Return the speed of one training step of the default model, here and elsewhere."""
    task = jaxcalc.calculator()
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        print('PyTorch is not installed, so it is left out: pip install -e ".[bench]"', file=sys.stderr)
    rows = []
    for size in (64, 256) if quick else (64, 256, 1024):
        batch = jaxcalc.batch_at(task, 0, 0, size)
        length = batch.tokens.shape[1] - 1
        systems: dict[tuple[str, int], tuple[Callable[[], Any], dict[str, float]]] = {
            ("train_step", length): jaxcalc_step(params, batch),
            ("train_steps", length): jaxcalc_steps(params, task, size),
            ("Flax Linen", length): linen_step(params, batch),
        }
        if len(jax.devices()) > 1:
            systems[f"train_steps×{len(jax.devices())}", length] = parallel_steps(params, task, size)
        if has_torch:
            systems |= torch_steps(params, batch, length) | torch_steps(params, batch, TUTORIAL_LENGTH)
        seconds = measure({f"{name}|{length}": step for (name, length), (step, _) in systems.items()}, quick)
        for (name, length), (_, cost) in systems.items():
            n_steps = STEPS_A_CALL if name.startswith("train_steps") else 1
            row = step_row(params, size, length, seconds[f"{name}|{length}"] / n_steps, result["matmul_peak_gflops"])
            rows.append({"system": name, **row, **cost})
    return rows


def step_row(params: jaxcalc.Params, size: int, length: int, seconds: float, peak: float) -> dict[str, float]:
    """Return the speed of one training step.

    GFLOP/s are dense-equivalent: 6 · parameters · positions · examples/s (2 forward, 4 backward), whether or not an
    implementation skips work whose result nobody reads.
    """
    gflops = 6 * jaxcalc.count(params) * length * size / seconds / 1e9
    return {"batch": size, "length": length, "ms": 1e3 * seconds, "examples_per_second": size / seconds,
            "gflops": gflops, "share_of_peak": gflops / peak}  # fmt: skip


def time_to_accuracy(_: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Return the seconds from starting the process to each held-out exact match: the median over the seeds."""
    times: dict[str, Any] = {}
    seeds = range(1) if quick else range(5)
    for name, options, numbers_of_steps, thresholds in TRAININGS:
        by_steps = {}
        for steps in numbers_of_steps[:1] if quick else numbers_of_steps:
            by_steps[steps] = [
                run_of_training([*options, "--steps", str(steps), "--seed", str(seed)]) for seed in seeds
            ]
        times[name] = {
            "seeds": list(seeds),
            "final": {steps: [run["final"] for run in runs] for steps, runs in by_steps.items()},
            "thresholds": {str(t): soonest(by_steps, t) for t in thresholds},
        }
    return times


def run_of_training(options: Sequence[str]) -> dict[str, Any]:
    """Train in a process of its own; return when it reached what, counted from before the process started."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, EXPERIMENTS / "train.py", "--run-dir", run_dir, "--snapshots", "0", *options]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        whole = time.perf_counter() - start
        summary = json.loads((run_dir / "summary.json").read_text())
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    before = whole - summary["seconds"]["total"]  # starting Python, imports, and the end of the process
    checks = [(line["held-out_exact_match"], before + line["seconds"]) for line in lines if "by_operation" in line]
    return {"checks": checks, "final": summary["held_out_exact_match"], "compile": summary["seconds"]["compile"]}


def soonest(by_steps: dict[int, list[dict[str, Any]]], threshold: float) -> dict[str, Any]:
    """Return how soon the median seed reaches a threshold, by the number of steps that gets there first."""
    best: dict[str, Any] = {"seconds": None, "without_compilation": None, "steps": None}  # where none gets there
    for steps, results in by_steps.items():
        when = [min((at for match, at in run["checks"] if match >= threshold), default=float("inf")) for run in results]
        median = statistics.median(when)
        if median < (best["seconds"] or float("inf")):
            warm = statistics.median(at - run["compile"] for at, run in zip(when, results, strict=True))
            best = {"seconds": median, "without_compilation": warm, "steps": steps}
    return best


def decode_answers_per_second(_: dict[str, Any], quick: bool) -> float:
    """Return the speed of decoding the complete table, token by token."""
    task = jaxcalc.calculator(split="none")
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    rows = task.train_rows
    seconds = measure({"decode": lambda: jaxcalc.evaluate(params, task, rows).exact_match}, quick)
    return rows.size / seconds["decode"]


def ask_seconds(result: dict[str, Any], quick: bool) -> dict[str, float]:
    """Return the seconds of `ask.py` as a process of its own, and with JAX's compilation cache filled before."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train = [sys.executable, EXPERIMENTS / "train.py", "--run-dir", run_dir, "--steps", "1", "--snapshots", "0"]
        subprocess.run(train, check=True, capture_output=True)
        cached = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        seconds: dict[str, list[float]] = {"cold": [], "cached": []}
        for _ in range(4 if quick else 6):  # the first round fills the disk's caches and JAX's, and is not counted
            for name, extra in (("cold", {}), ("cached", cached)):
                start = time.perf_counter()
                ask = [sys.executable, EXPERIMENTS / "ask.py", run_dir, "two plus three"]
                subprocess.run(ask, check=True, capture_output=True, env={**os.environ, **extra})
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


GROWTH = {  # what is doubled, and where it starts
    "batch": (64, 5),
    "length": (8, 5),
    "width": (32, 5),
    "depth": (1, 5),
}


def growth(result: dict[str, Any], quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the cost of one training step as one size is doubled and the others stay (batch 64, T 8, D 64, N 2)."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for axis, (first, doublings) in GROWTH.items():
        rows[axis] = []
        for size in [first * 2**power for power in range(2 if quick else doublings)]:
            n_batch, length = (size if axis == "batch" else 64), (size if axis == "length" else 8)
            width, depth = (size if axis == "width" else 64), (size if axis == "depth" else 2)
            config = jaxcalc.ModelConfig(35, d_model=width, d_ff=4 * width, n_layers=depth, context_length=length)
            params = jaxcalc.init(jax.random.key(0), config)
            tokens = jax.random.randint(jax.random.key(1), (n_batch, length + 1), 1, 35)
            step, cost = jaxcalc_step(params, jaxcalc.Batch(tokens, jnp.ones((n_batch, 3))))
            seconds = measure({"step": step}, quick)["step"]
            row = step_row(params, n_batch, length, seconds, result["matmul_peak_gflops"])
            base = rows[axis][0]["ms"] if rows[axis] else row["ms"]
            rows[axis].append({axis: size, **row, **cost, "ratio": row["ms"] / base})
    return rows


def populations(_: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Return the speed of one step of S models trained at once, and of S `train_steps`, one after another."""
    task = jaxcalc.calculator()
    config = jaxcalc.ModelConfig(task.vocab_size)
    on_cpu = jax.devices()[0].platform == "cpu"
    rows = []
    for size in (64, 256):
        steps, _ = jaxcalc_steps(jaxcalc.init(jax.random.key(0), config), task, size)
        systems, costs = {"alone": steps}, {}
        for n_models in (1, 4) if quick else (1, 2, 4, 8, 16) if on_cpu else (1, 4, 16, 64, 256, 1024):
            steps, costs[n_models] = population_steps(config, task, n_models, size)
            systems[str(n_models)] = steps
        seconds = measure(systems, quick)
        for n_models, cost in costs.items():
            at_once, apart = seconds[str(n_models)] / STEPS_A_CALL, n_models * seconds["alone"] / STEPS_A_CALL
            rows.append({"models": n_models, "batch": size, "ms_at_once": 1e3 * at_once,
                         "ms_one_after_another": 1e3 * apart, "times_as_fast": apart / at_once, **cost})  # fmt: skip
    return rows


def population_steps(
    config: jaxcalc.ModelConfig, task: jaxcalc.Task, n_models: int, size: int
) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return one call of `population.train_steps`, which goes on from where the last one stopped."""
    seeds = jnp.arange(n_models)
    rates = np.full(n_models, LEARNING_RATE)
    state = population.create_state(population.init(seeds, config), optimizer, learning_rate=rates)
    lower = functools.partial(population.train_steps.lower, seeds=seeds, n_steps=STEPS_A_CALL, batch_size=size)
    compiled, cost = compile_of(lower, state, task)

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, task, seeds=seeds)
        return metrics

    return call, cost


def saving(_: dict[str, Any], quick: bool) -> dict[str, float]:
    """Return what 200 steps of the default recipe take, with and without a checkpoint that is saved meanwhile."""
    task, size = jaxcalc.calculator(), 512
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    state = jaxcalc.create_state(params, jaxcalc.make_optimizer("muon", n_steps=None))
    lower = functools.partial(jaxcalc.train_steps.lower, seed=0, n_steps=STEPS_A_CALL, batch_size=size)
    compiled, _cost = compile_of(lower, state, task)

    def steps() -> None:
        nonlocal state
        for _ in range(200 // STEPS_A_CALL):
            state, metrics = compiled(state, task, seed=0)
            jax.block_until_ready(metrics)

    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoint.Writer(Path(folder), {})

        def steps_and_save() -> None:
            writer.save(state)
            steps()
            writer.wait()

        seconds = measure({"without": steps, "saving": steps_and_save}, quick)
    return {"steps": 200, "batch": size, **seconds, "share": seconds["saving"] / seconds["without"] - 1}


SECTIONS: dict[str, Callable[[dict[str, Any], bool], Any]] = {
    "matmul_peak_gflops": matmul_peak,
    "train_step": train_step_rows,
    "growth": growth,
    "population": populations,
    "saving": saving,
    "decode_answers_per_second": decode_answers_per_second,
    "ask_seconds": ask_seconds,
    "time_to_accuracy": time_to_accuracy,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One table of the report, for the terminal and for Markdown alike."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(result: dict[str, Any]) -> list[Part]:
    """Return the tables of what was measured, whole or in part."""
    parts = []
    if "train_step" in result:
        rows = [
            [row["system"], f"{row['batch']:,}", str(row["length"]), f"{row['ms']:.2f}",
             f"{row['examples_per_second']:,.0f}", f"{row['gflops']:.0f}", f"{row['share_of_peak']:.0%}",
             number(row.get("compile_seconds"), 1), number(row.get("memory_mib"), 0)]
            for row in result["train_step"]
        ]  # fmt: skip
        columns = ["system", "batch", "T", "ms", "ex/s", "GFLOP/s", "peak", "compile s", "MiB"]
        parts.append(Part("One training step", columns, rows))
        parts.append(Part("Examples/s, as a multiple", *multiples(result["train_step"])))
    if "growth" in result:
        rows = [[axis, f"{row[axis]:,}", f"{row['ms']:.2f}", f"{row['ratio']:.2f}", f"{row['gflops']:.0f}",
                 f"{row['share_of_peak']:.0%}", number(row["compile_seconds"], 1)]
                for axis, of_axis in result["growth"].items() for row in of_axis]  # fmt: skip
        columns = ["doubled", "size", "ms", "ratio", "GFLOP/s", "of peak", "compile s"]
        parts.append(Part("Growth of one training step", columns, rows))
    if "population" in result:
        rows = [[f"{row['models']:,}", f"{row['batch']:,}", f"{row['ms_at_once']:.2f}",
                 f"{row['ms_one_after_another']:.2f}", f"{row['times_as_fast']:.2f}",
                 number(row["compile_seconds"], 1), number(row["memory_mib"], 0)]
                for row in result["population"]]  # fmt: skip
        columns = ["models", "batch", "ms at once", "ms one after another", "times as fast", "compile s", "MiB"]
        parts.append(Part("One step of several models", columns, rows))
    rows = []
    if "matmul_peak_gflops" in result:
        rows.append(["float32 matmul peak", f"{result['matmul_peak_gflops']:.0f} GFLOP/s"])
    if "decode_answers_per_second" in result:
        rows.append(["answers decoded, complete table", f"{result['decode_answers_per_second']:,.0f}/s"])
    if "saving" in result:
        share, seconds = result["saving"]["share"], result["saving"]["without"]
        rows.append(["a checkpoint in 200 steps of train.py", f"{share:+.1%} of {seconds:.1f} s"])
    for name, seconds in result.get("ask_seconds", {}).items():
        rows.append([f"ask.py, {name}", f"{seconds:.2f} s"])
    if rows:
        parts.append(Part("The rest", ["", "measured"], rows))
    if "time_to_accuracy" in result:
        rows = [[task, f"{float(threshold):.1%}", number(at["seconds"], 1), number(at["without_compilation"], 1),
                 number(at["steps"], 0)]
                for task, times in result["time_to_accuracy"].items()
                for threshold, at in times["thresholds"].items()]  # fmt: skip
        columns = ["task", "held out", "seconds", "less compiling", "steps"]
        parts.append(Part("Seconds from a cold process to held-out exact match", columns, rows))
    return parts


def multiples(rows: Sequence[dict[str, Any]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return how many times the examples/s of the others jaxcalc makes, from the rows of one training step."""
    others = {
        f"PyTorch, T {TUTORIAL_LENGTH}": (("PyTorch", "torch.compile"), TUTORIAL_LENGTH),
        "PyTorch, same T": (("PyTorch", "torch.compile"), None),
        "Linen, same T": (("Flax Linen",), None),
    }
    cells = []
    for ours in (row for row in rows if row["system"].startswith("train_step")):
        cells.append([ours["system"], f"{ours['batch']:,}"])
        for systems, length in others.values():
            speeds = [row["examples_per_second"] for row in rows
                      if row["system"] in systems and row["batch"] == ours["batch"]
                      and row["length"] == (length or ours["length"])]  # fmt: skip
            cells[-1].append(f"{ours['examples_per_second'] / max(speeds):.2f}" if speeds else "–")
    return ["", "batch", *others], cells


def number(value: float | None, digits: int) -> str:
    """Return a number, or "–" where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def markdown(result: dict[str, Any]) -> str:
    """Return the README's tables."""
    about = result["machine"]
    versions = ", ".join(
        f"{name} {about[name]}" for name in ("python", "jax", "optax", "flax", "torch") if name in about
    )
    lines = [f"Measured on {about['cpu']}, {about['cores']} cores, with {versions}."]
    for part in tables(result):
        lines += ["", "| " + " | ".join(part.columns) + " |", "|---" + "|---:" * (len(part.columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in part.rows]
    return "\n".join(lines)


def growth_figure(path: Path, growth: dict[str, list[dict[str, Any]]]) -> None:
    """Write a figure of the cost of a step against each size, both relative to the first, log-log."""
    from matplotlib.figure import Figure  # slow to import, and only this function needs it

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for axis, rows in growth.items():
        sizes = [row[axis] / rows[0][axis] for row in rows]
        axes.loglog(sizes, [row["ratio"] for row in rows], marker="o", label=f"{axis}, from {rows[0][axis]}")
    most = max(len(rows) for rows in growth.values())
    ideal = [2**power for power in range(most)]
    axes.loglog(ideal, ideal, color="gray", linestyle=":", label="proportional")
    axes.set_xticks(ideal, [f"{size}×" for size in ideal], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("size, relative to the first")
    axes.set_ylabel("milliseconds, relative to the first")
    axes.set_title("Cost of one training step as one size is doubled", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", n_cores())  # of which all but one row use the first, with all its threads
    sys.exit(report.run_script(main, BenchmarkOptions))
