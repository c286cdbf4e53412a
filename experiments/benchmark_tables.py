"""What benchmark.py measured, as tables for the terminal, as Markdown for a README, and as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
"""A row of the measurements in benchmark.json, which names its columns."""
TUTORIAL_LENGTH = 15
"""Positions to which the PyTorch tutorial pads every problem."""


class Table(NamedTuple):
    """One table of the report."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(result: Row) -> list[Table]:
    """Return the tables of all that was measured so far."""
    found = []
    if "train_step" in result:
        found += [_train_step(result["train_step"]), _multiples(result["train_step"])]
    if "growth" in result:
        found.append(_growth(result["growth"]))
    if "population" in result:
        found.append(_population(result["population"]))
    if rest := _rest(result):
        found.append(Table("The rest", ["", "measured"], rest))
    if "time_to_accuracy" in result:
        found.append(_time_to_accuracy(result["time_to_accuracy"]))
    return found


def markdown(result: Row) -> str:
    """Return the tables as Markdown, under a line that names the machine and the versions."""
    machine = result["machine"]
    packages = [name for name in ("python", "jax", "optax", "flax", "torch") if name in machine]
    versions = ", ".join(f"{name} {machine[name]}" for name in packages)
    lines = [f"Measured on {machine['cpu']}, {machine['cores']} cores, with {versions}."]
    for table in tables(result):
        lines += ["", "| " + " | ".join(table.columns) + " |", "|---" + "|---:" * (len(table.columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines)


def growth_figure(path: Path, growth: Mapping[str, Sequence[Row]]) -> None:
    """Write a figure of the cost of a step against each size, both relative to the first one, log-log."""
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


def _train_step(rows: Sequence[Row]) -> Table:
    columns = ["system", "batch", "T", "ms", "ex/s", "GFLOP/s", "peak", "compile s", "MiB"]
    cells = [
        [
            row["system"],
            f"{row['batch']:,}",
            str(row["length"]),
            f"{row['ms']:.2f}",
            f"{row['examples_per_second']:,.0f}",
            f"{row['gflops']:.0f}",
            f"{row['share_of_peak']:.0%}",
            _number(row.get("compile_seconds"), 1),
            _number(row.get("memory_mib"), 0),
        ]
        for row in rows
    ]
    return Table("One training step", columns, cells)


def _multiples(rows: Sequence[Row]) -> Table:
    """Return how many times the examples/s of each other system jaxcalc makes."""
    others = {
        f"PyTorch, T {TUTORIAL_LENGTH}": (("PyTorch", "torch.compile"), TUTORIAL_LENGTH),
        "PyTorch, same T": (("PyTorch", "torch.compile"), None),
        "Linen, same T": (("Flax Linen",), None),
    }
    cells = []
    for ours in (row for row in rows if row["system"].startswith("train_step")):
        cells.append([ours["system"], f"{ours['batch']:,}"])
        for systems, length in others.values():
            same = (ours["batch"], length or ours["length"])
            alike = [row for row in rows if row["system"] in systems and (row["batch"], row["length"]) == same]
            best = max((row["examples_per_second"] for row in alike), default=None)
            cells[-1].append("–" if best is None else f"{ours['examples_per_second'] / best:.2f}")
    return Table("Examples/s, as a multiple", ["", "batch", *others], cells)


def _growth(rows_by_axis: Mapping[str, Sequence[Row]]) -> Table:
    columns = ["doubled", "size", "ms", "ratio", "GFLOP/s", "of peak", "compile s"]
    cells = [
        [
            axis,
            f"{row[axis]:,}",
            f"{row['ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['gflops']:.0f}",
            f"{row['share_of_peak']:.0%}",
            _number(row["compile_seconds"], 1),
        ]
        for axis, rows in rows_by_axis.items()
        for row in rows
    ]
    return Table("Growth of one training step", columns, cells)


def _population(rows: Sequence[Row]) -> Table:
    columns = ["models", "batch", "ms at once", "ms one after another", "times as fast", "compile s", "MiB"]
    cells = [
        [
            f"{row['models']:,}",
            f"{row['batch']:,}",
            f"{row['ms_at_once']:.2f}",
            f"{row['ms_one_after_another']:.2f}",
            f"{row['times_as_fast']:.2f}",
            _number(row["compile_seconds"], 1),
            _number(row["memory_mib"], 0),
        ]
        for row in rows
    ]
    return Table("One step of several models", columns, cells)


def _rest(result: Row) -> list[list[str]]:
    rows = []
    if "matmul_peak_gflops" in result:
        rows.append(["float32 matmul peak", f"{result['matmul_peak_gflops']:.0f} GFLOP/s"])
    if "decode_answers_per_second" in result:
        rows.append(["answers decoded, complete table", f"{result['decode_answers_per_second']:,.0f}/s"])
    if "saving" in result:
        share, seconds = result["saving"]["share"], result["saving"]["without"]
        rows.append(["a checkpoint in 200 steps of train.py", f"{share:+.1%} of {seconds:.1f} s"])
    return rows + [[f"ask.py, {name}", f"{seconds:.2f} s"] for name, seconds in result.get("ask_seconds", {}).items()]


def _time_to_accuracy(times_by_task: Mapping[str, Row]) -> Table:
    columns = ["task", "held out", "seconds", "less compiling", "steps"]
    cells = [
        [
            task,
            f"{float(threshold):.1%}",
            _number(reached["seconds"], 1),
            _number(reached["without_compilation"], 1),
            _number(reached["steps"], 0),
        ]
        for task, times in times_by_task.items()
        for threshold, reached in times["thresholds"].items()
    ]
    return Table("Seconds from a cold process to held-out exact match", columns, cells)


def _number(value: float | None, digits: int) -> str:
    """Return a number as text, or "–" for None."""
    return "–" if value is None else f"{value:,.{digits}f}"
