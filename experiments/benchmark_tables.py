"""What benchmark.py measured, as tables for the terminal, as Markdown for a README, and as a figure."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark_processes import THRESHOLDS  # beside this script
from benchmark_rows import OTHERS, Row


class Table(NamedTuple):
    """One table of the report."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(result: Row) -> list[Table]:
    """Return the tables of all that was measured so far."""
    makers: dict[str, Callable[[Row], list[Table]]] = {
        "steps": lambda section: [steps_table("One training step", section["rows"]), ratios_table(section["ratios"])],
        "recipe": lambda section: [steps_table("One step of the default recipe", section["rows"])],
        "growth": lambda section: [growth_table(section["rows"])],
        "populations": lambda section: [populations_table(section["rows"])],
        "saving": lambda section: [saving_table(section["rows"])],
        "decoding": lambda section: [decoding_table(section["rows"])],
        "ask": lambda section: [ask_table(section["rows"])],
        "training": lambda section: training_tables(section["rows"]),
        "compare": lambda section: [compared_table(section["commits"], section["rows"])],
    }
    found = [table for name, make in makers.items() if name in result for table in make(result[name])]
    return [*found, conditions_table(result)]


def markdown(result: Row) -> str:
    """Return the tables as Markdown, under a line that names the machine and the versions."""
    lines = list(dict.fromkeys(_machine(section["conditions"]) for section in result.values()))
    for table in tables(result):
        lines += ["", "| " + " | ".join(table.columns) + " |", "|---" + "|---:" * (len(table.columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines)


def _machine(conditions: Row) -> str:
    packages = [name for name in ("python", "jax", "optax", "flax", "torch") if name in conditions]
    versions = ", ".join(f"{name} {conditions[name]}" for name in packages)
    return f"Measured on {conditions['cpu']}, {conditions['cores']} cores, with {versions}."


def growth_figure(path: Path, growth: Sequence[Row]) -> None:
    """Write a figure of the cost of a step against each size, both relative to the first one, log-log."""
    from matplotlib.figure import Figure  # slow to import, and only this function needs it

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    most = 0
    for axis in dict.fromkeys(row["axis"] for row in growth):
        rows = [row for row in growth if row["axis"] == axis]
        sizes = [row["size"] / rows[0]["size"] for row in rows]
        axes.loglog(sizes, [row["ratio"] for row in rows], marker="o", label=f"{axis}, from {rows[0]['size']}")
        most = max(most, len(rows))
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


def steps_table(title: str, rows: Sequence[Row]) -> Table:
    columns = ["system", "batch", "ms", "spread", "ex/s", "of peak", "useful", "compile s"]
    cells = [
        [
            row["system"] + (f", T {row['length']}" if row["length"] != rows[0]["length"] else ""),
            f"{row['batch']:,}",
            f"{row['ms']:.2f}",
            _spread(row),
            f"{row['examples_per_second']:,.0f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['useful_share']:.0%}",
            _number(row.get("compile_seconds"), 1),
        ]
        for row in rows
    ]
    return Table(title, columns, cells)


def ratios_table(rows: Sequence[Row]) -> Table:
    """Return how many times the examples/s of each other system jaxcalc makes."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['ratio']:.2f}{' noisy' if row['noisy'] else ''}"
        found.setdefault((row["system"], row["batch"]), {})[row["to"]] = cell
    cells = [
        [system, f"{batch:,}", *(row.get(other, "–") for other in OTHERS)] for (system, batch), row in found.items()
    ]
    return Table("Examples/s, as a multiple", ["", "batch", *OTHERS], cells)


def growth_table(rows: Sequence[Row]) -> Table:
    columns = ["doubled", "size", "ms", "spread", "ratio", "of peak", "useful", "compile s"]
    cells = [
        [
            row["axis"],
            f"{row['size']:,}",
            f"{row['ms']:.2f}",
            _spread(row),
            f"{row['ratio']:.2f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['useful_share']:.0%}",
            _number(row["compile_seconds"], 1),
        ]
        for row in rows
    ]
    return Table("Growth of one training step", columns, cells)


def populations_table(rows: Sequence[Row]) -> Table:
    columns = ["models", "batch", "ms at once", "spread", "ms apart", "times as fast", "compile s", "MiB"]
    cells = [
        [
            f"{row['models']:,}",
            f"{row['batch']:,}",
            f"{row['ms_at_once']:.2f}",
            _spread(row),
            f"{row['ms_one_after_another']:.2f}",
            f"{row['times_as_fast']:.2f}",
            _number(row["compile_seconds"], 1),
            _number(row["memory_mib"], 0),
        ]
        for row in rows
    ]
    return Table("One step of several models", columns, cells)


def saving_table(rows: Sequence[Row]) -> Table:
    columns = ["steps", "s without", "s with", "more", "spread"]
    cells = [
        [
            f"{row['steps']} of {row['batch']}",
            f"{row['without']:.2f}",
            f"{row['saving']:.2f}",
            f"{row['share']:+.1%}",
            _spread(row),
        ]
        for row in rows
    ]
    return Table("Steps, and a checkpoint saved meanwhile", columns, cells)


def decoding_table(rows: Sequence[Row]) -> Table:
    cells = [[f"{row['answers_per_second']:,.0f}", _spread(row)] for row in rows]
    return Table("The complete table decoded", ["answers/s", "spread"], cells)


def ask_table(rows: Sequence[Row]) -> Table:
    cells = [[f"ask.py, {row['start']}", f"{row['seconds']:.2f}", _spread(row)] for row in rows]
    return Table("One question to a new process", ["", "s", "spread"], cells)


def training_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table for each task."""
    columns = ["first", *(f"{share:.1%}" for share in THRESHOLDS), "end", "spread", "held out"]
    cells: dict[str, list[list[str]]] = {}
    for row in rows:
        cells.setdefault(row["task"], []).append(
            [
                f"{row['steps']:,}, {row['start']}",
                _number(row["first_steps"], 1),
                *(_number(row["thresholds"][str(share)], 1) for share in THRESHOLDS),
                _number(row["whole"], 1),
                _spread(row),
                f"{row['held_out']:.1%}",
            ]
        )
    title = "Seconds since the command, to held-out exact match"
    return [Table(title, [f"{task}: steps", *columns], of_task) for task, of_task in cells.items()]


def compared_table(commits: Sequence[str], rows: Sequence[Row]) -> Table:
    cells = [
        [
            row["what"],
            f"{row['first']:.2f} {row['unit']}",
            f"{row['second']:.2f} {row['unit']}",
            f"{row['times_as_fast']:.2f}",
            _spread(row),
        ]
        for row in rows
    ]
    return Table("Two commits", ["", *commits, "times as fast", "spread"], cells)


def conditions_table(result: Row) -> Table:
    """Return what else kept the machine busy while each section was measured."""
    cells = []
    for name, section in result.items():
        seen, peaks = section["conditions"], [row["peak_gflops"] for row in section["rows"] if "peak_gflops" in row]
        cells.append(
            [
                name + (" (quick)" if seen["quick"] else ""),
                seen["commit"] or "–",
                f"{min(peaks):.0f} to {max(peaks):.0f}" if peaks else "–",
                " → ".join(f"{load:.1f}" for load in seen["load"]),
                *("–" if seen[key] is None else f"{seen[key]:.0%}" for key in ("others_cpu", "stolen_cpu")),
                f"{seen['seconds']:.0f}",
            ]
        )
    columns = ["section", "commit", "peak GFLOP/s", "load", "others", "stolen", "s"]
    return Table("What the machine did meanwhile", columns, cells)


def _spread(row: Row) -> str:
    return "–" if row["spread"] is None else f"{row['spread']:.0%}{' noisy' if row['noisy'] else ''}"


def _number(value: float | None, digits: int) -> str:
    """Return a number as text, or "–" for None."""
    return "–" if value is None else f"{value:,.{digits}f}"
