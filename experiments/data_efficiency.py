"""How much of the table does the model need? Train with ever more of it held out, and draw what it still gets right.

python experiments/data_efficiency.py
→ with 10, 30, 50 and 70 % held out, the median of the seeds gets 99.7, 99.1, 98.5 and 96.7 % of the held-out problems
  right. It trains 4 shares × 3 seeds in about 10 minutes on two CPU cores.

Every model is a run folder of its own, for ask.py and watch.py. A second call trains only what is missing.
"""

import contextlib
import dataclasses
import io
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import train  # beside this script
from rich.console import Console

from jaxcalc import runs
from jaxcalc.errors import InputError
from jaxcalc.runs import cli, report, style
from jaxcalc.runs.options import TrainOptions

Row = dict[str, Any]
"""The result of one run or of one share, as in data_efficiency.json."""


@dataclasses.dataclass(frozen=True)
class DataEfficiencyOptions:
    """Train a model for each share of the table to hold out and each seed."""

    out: Path = Path("runs/data_efficiency")
    """Folder for the runs, data_efficiency.json and data_efficiency.png."""
    json: bool = False
    """Print the result as JSON to stdout, and the table to stderr."""
    held_out: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    """Shares of each operation's problems that training never sees."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each chooses the held-out problems, the first weights and the order of the batches."""
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    """Options of train.py, except those that are set above."""


def main(options: DataEfficiencyOptions) -> int:
    for name in ("held_out", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name.replace('_', '-')} is {values}; name at least one, each once")
    asked, usual = options.train, TrainOptions()
    chosen = {
        name: getattr(asked, name) != getattr(usual, name)
        for name in ("run_dir", "json", "overwrite", "resume", "fork")
    }
    chosen["seed"] = asked.schedule.seed != usual.schedule.seed
    chosen["held_out"] = asked.task.held_out != usual.task.held_out
    for name in (name for name, is_chosen in chosen.items() if is_chosen):
        raise InputError(f"--train.{name.replace('_', '-')} cannot be chosen; every run here has its own")
    if asked.task.split == "none":
        raise InputError("--train.split none holds nothing out; choose another split")
    for share in options.held_out:  # before hours of training
        task = dataclasses.replace(asked.task, held_out=share).make(seed=0)
        held_out = np.bincount(task.kind_ids[np.asarray(task.held_out_rows)], minlength=len(task.kind_names))
        for operation, count in zip(task.tokenizer.operations, held_out, strict=True):
            if not count:
                raise InputError(f"--held-out {share:g} holds out no problem of {operation!r}; take a larger share")
    results = [run(options, share, seed) for share in options.held_out for seed in options.seeds]
    by_share = compare_shares(results)
    result = {"runs": results, "shares": by_share}
    runs.write_json(options.out / "data_efficiency.json", result)
    draw(options.out / "data_efficiency.png", by_share)

    operations = list(results[0]["by_operation"])
    rows = []
    for row in by_share:
        matches = [row[name] for name in ("all", *operations)]
        median = [f"{100 * statistics.median(seeds):.1f}" for seeds in matches]
        rows += [[f"{row['held_out']:.0%} ({row['n_train']:,} seen)", "median", *median]]
        rows += [["", "worst", *(f"{100 * seeds[0]:.1f}" for seeds in matches)]]
    console = Console(stderr=options.json, highlight=False)
    title = f"Held-out exact match in %, {len(options.seeds)} seeds"
    console.print(report.table(title, ["held out", "of seeds", "all", *operations], rows, text=(0, 1)), "")
    console.print(f"Saved in {options.out}: the runs, data_efficiency.json and .png", soft_wrap=True)
    if options.json:
        print(json.dumps(result))
    return 0


def run(options: DataEfficiencyOptions, share: float, seed: int) -> Row:
    """Return the result of one run of train.py, training it unless its folder is finished already."""
    folder = options.out / f"held_out_{share:g}_seed_{seed}"
    wanted = dataclasses.replace(
        options.train,
        run_dir=folder,
        overwrite=True,
        task=dataclasses.replace(options.train.task, held_out=share),
        schedule=dataclasses.replace(options.train.schedule, seed=seed),
    )
    asked = json.loads(json.dumps(dataclasses.asdict(wanted), default=str))
    made_by = folder / "options.json"
    if not made_by.is_file():
        print(f"training with {share:.0%} held out, seed {seed}", file=sys.stderr)
        with contextlib.redirect_stdout(io.StringIO()):  # hide the tables of the run
            status = train.main(wanted)
        if status:
            print("stopped; the same command goes on with what is missing", file=sys.stderr)
            sys.exit(status)
        runs.write_json(made_by, asked)
    elif json.loads(made_by.read_text(encoding="utf-8")) != asked:
        raise InputError(f"{folder} was trained with other options; choose another --out")
    summary = json.loads((folder / runs.SUMMARY).read_text(encoding="utf-8"))
    kept = ("seed", "n_train", "held_out_exact_match", "train_exact_match", "by_operation", "steps")
    return {"held_out": share, **{key: summary[key] for key in kept}}


def compare_shares(results: list[Row]) -> list[Row]:
    """Return for each held-out share the exact matches of its seeds, in all and by operation, from worst to best."""
    rows = []
    for share in dict.fromkeys(run["held_out"] for run in results):
        same = [run for run in results if run["held_out"] == share]
        matches = {"all": sorted(run["held_out_exact_match"] for run in same)}
        for operation in same[0]["by_operation"]:
            matches[operation] = sorted(run["by_operation"][operation]["held_out_exact_match"] for run in same)
        rows.append({"held_out": share, "n_train": same[0]["n_train"], **matches})
    return rows


def draw(path: Path, rows: list[Row]) -> None:
    """Write a figure of exact match against the share held out, by operation: median and range of the seeds."""
    from matplotlib.figure import Figure  # slow to import, and only this function needs it

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    held_out = [100 * row["held_out"] for row in rows]
    for name in (name for name in rows[0] if name not in ("held_out", "n_train")):
        colour = style.COLOURS.get(name, "black")
        medians = [100 * statistics.median(row[name]) for row in rows]
        axes.plot(held_out, medians, marker="o", label=name, color=colour, linestyle="--" if name == "all" else "-")
        worst, best = ([100 * row[name][end] for row in rows] for end in (0, -1))
        axes.fill_between(held_out, worst, best, color=colour, alpha=0.15, linewidth=0)
    axes.set_xticks(held_out, [f"{row['held_out']:.0%}\n{row['n_train']:,} seen" for row in rows])
    axes.set_xlabel("share of the table held out, and the number of problems in training")
    axes.set_ylabel("held-out exact match (%)")
    axes.set_title("Right answers to problems that training never saw", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, DataEfficiencyOptions))
