"""How fast is it on a GPU: all sizes in bfloat16, populations of up to 1,024 models, decoding, and where the time goes?

python experiments/gpu.py --json experiments/results/gpu.json --profile profile
→ not measured on a GPU yet. On a CPU it runs with small numbers, in about a minute, which shows that it runs.
"""

import dataclasses
import functools
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from benchmark import decoding, population_rows, timed  # beside this script
from benchmark_conditions import observed
from benchmark_rows import Row, per_step, step_row
from benchmark_systems import STEPS_PER_CALL, jaxcalc_steps
from benchmark_tables import Table, conditions_table, decoding_table, populations_table, steps_table
from rich.console import Console
from timing import Program

import jaxcalc
from jaxcalc.errors import InputError
from jaxcalc.model import SizeName
from jaxcalc.runs import cli, report
from jaxcalc.scale import large
from jaxcalc.scale.cost import matmul_peak

LADDER: dict[SizeName, int] = {"100K": 65_536, "1M": 32_768, "10M": 16_384, "100M": 4_096}
"""The sizes, and the batch of each: some tens of thousands of positions, and activations of about 16 GB at most."""
MODELS = (1, 4, 16, 64, 256, 1024)
"""How many models are trained at once, each on a batch of 64."""
SMALL_LADDER: dict[SizeName, int] = {"100K": 64}
SMALL_MODELS = (1, 2)
"""What takes their place on a CPU."""
OPERATIONS = 12
"""How many kinds of operations the profile lists."""


@dataclasses.dataclass(frozen=True)
class GpuOptions:
    """Measure steps, populations and decoding on a GPU; on a CPU with numbers so small that they say nothing."""

    json: Path | None = None
    """Write everything that was measured to this file."""
    profile: Path | None = None
    """Keep the profile of some steps of the largest model in this folder, for TensorBoard or Perfetto."""


def main(options: GpuOptions) -> int:
    if options.json is not None and not options.json.parent.is_dir():
        raise InputError(f"there is no folder {options.json.parent} to write {options.json.name} into")
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are those of compiling
    on_cpu = jax.devices()[0].platform == "cpu"
    if on_cpu:
        print("JAX finds no accelerator: small numbers on the CPU, which only show that this runs", file=sys.stderr)
    sizes, counts = (SMALL_LADDER, SMALL_MODELS) if on_cpu else (LADDER, MODELS)
    largest = list(sizes)[-1]
    sections: dict[str, Callable[[], list[Row]]] = {
        "ladder": lambda: [ladder_row(name, size, on_cpu) for name, size in sizes.items()],
        "populations": lambda: population_rows(counts, 64, on_cpu),
        "decoding": lambda: decoding(on_cpu)["rows"],
        "profile": lambda: profile(bfloat16_steps(largest, sizes[largest]), options.profile),
    }
    console, result = Console(highlight=False), {}
    for name, section in sections.items():
        print(f"measuring {name} …", file=sys.stderr)
        with observed() as conditions:
            rows = section()
        result[name] = {"conditions": {**conditions, "quick": on_cpu}, "rows": rows}
        for table in (TABLES[name](rows), conditions_table({name: result[name]})):
            console.print(report.table(table.title, table.columns, table.rows), "")
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def bfloat16_steps(name: SizeName, size: int) -> Program:
    """Return `train_steps` of a model computed in bfloat16, whose parameters and moments are float32."""
    task = jaxcalc.calculator()
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size, **jaxcalc.SIZES[name]))
    return jaxcalc_steps(params, task, size, large.in_dtype(jnp.bfloat16))


def ladder_row(name: SizeName, size: int, quick: bool) -> Row:
    """Return the speed of a step of one size, and its share of what a large product in bfloat16 reaches."""
    task = jaxcalc.calculator()
    config = jaxcalc.ModelConfig(task.vocab_size, **jaxcalc.SIZES[name])
    params = jax.eval_shape(lambda: jaxcalc.init(jax.random.key(0), config))
    program = bfloat16_steps(name, size)
    taken = timed({name: program}, quick, functools.partial(matmul_peak, jnp.bfloat16))[name]
    row = step_row(params, size, task.context_length, task.answer_length, per_step(taken, STEPS_PER_CALL))
    return {"system": name, **row, **program.cost}


def profile(program: Program, folder: Path | None) -> list[Row]:
    """Return the kinds of operations that take longest in one call of a program, in ms of all threads or streams.

    A kind is what is called alike but for the number at the end.
    """
    jax.block_until_ready(program.call())
    with tempfile.TemporaryDirectory() as thrown_away:
        path = folder or Path(thrown_away)
        with jax.profiler.trace(str(path)):
            jax.block_until_ready(program.call())
        newest = max(path.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
        taken = by_kind(jax.profiler.ProfileData.from_file(str(newest)))
    return [
        {"operation": kind, "ms": nanoseconds / 1e6, "share": nanoseconds / sum(taken.values())}
        for kind, nanoseconds in taken.most_common(OPERATIONS)
    ]


def by_kind(data: Any) -> Counter[str]:
    """Return the nanoseconds of each kind of operation in a profile, on a device or else on the CPU's threads."""
    planes = [plane for plane in data.planes if plane.name.startswith("/device:")]
    taken: Counter[str] = Counter()
    for plane in planes or [plane for plane in data.planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            if re.search(r"Stream|XLA Ops|tf_XLA", line.name):  # other lines hold Python, or the same once more
                for event in line.events:
                    if "::" not in event.name:  # the runtime itself, around the operations
                        taken[re.sub(r"([._]\d+)+$", "", event.name)] += event.duration_ns
    return taken


def profile_table(rows: list[Row]) -> Table:
    """Return the profile as a table."""
    cells = [[row["operation"], f"{row['ms']:.2f}", f"{row['share']:.0%}"] for row in rows]
    return Table(f"Where the time of {STEPS_PER_CALL} steps goes", ["operations", "ms", "share"], cells)


TABLES: dict[str, Callable[[list[Row]], Table]] = {
    "ladder": functools.partial(steps_table, "One training step in bfloat16"),
    "populations": populations_table,
    "decoding": decoding_table,
    "profile": profile_table,
}


if __name__ == "__main__":
    sys.exit(cli.run_script(main, GpuOptions))
