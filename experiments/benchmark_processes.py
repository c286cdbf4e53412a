"""Seconds of whole processes for benchmark.py: training, and one question to ask.py, each cold and warm.

Cold is a process whose compilation cache is empty; warm is the next one, which has the cache that the first has left.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from benchmark_conditions import ROOT  # beside this script
from timing import summary

THRESHOLDS = (0.98, 0.99, 0.995, 0.999)
"""Held-out exact matches whose seconds are told."""
TRAININGS: tuple[tuple[str, list[str]], ...] = (
    ("four operations, orbit split", []),
    ("four operations, orbit split", ["--steps", "600"]),
    (
        "three operations, random split",
        ["--steps", "600", "--ops", "plus", "minus", "times", "--split", "random"],
    ),
)
"""What is trained, and the options of train.py."""


class Training(NamedTuple):
    """When one process of train.py reached what, in seconds since the process was started."""

    first_steps: float
    """When the first steps (today ten) stood in metrics.jsonl."""
    checks: list[tuple[float, float]]
    """Held-out exact match, and when it stood in metrics.jsonl."""
    whole: float
    """The end of the process."""
    summary: dict[str, Any]
    """The run's summary.json."""


def environment(cache: Path, root: Path = ROOT) -> dict[str, str]:
    """Return the environment of a process that imports the jaxcalc of a checkout and has its caches in a folder.

    Matplotlib keeps its own cache: what it stores of the fonts has nothing to do with compiling.
    """
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return {**kept, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(cache), "MPLCONFIGDIR": mpl.get_cachedir()}


def train(options: Sequence[str], cache: Path, root: Path = ROOT) -> Training:
    """Run the train.py of a checkout in a process of its own, and return when it reached what.

    Raises `RuntimeError`, with what the process printed last, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder, Path(folder, "printed").open("w+") as printed:
        run_dir = Path(folder) / "run"
        metrics, arrived, n_bytes = run_dir / "metrics.jsonl", [], 0
        command = [sys.executable, str(root / "experiments" / "train.py"), "--run-dir", str(run_dir), *options]
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment(cache, root), stdout=printed, stderr=printed)
        try:
            while process.poll() is None:
                if metrics.exists() and metrics.stat().st_size > n_bytes:
                    text, seconds = metrics.read_bytes(), time.perf_counter() - start
                    n_bytes = len(text)
                    arrived += [seconds] * (text.count(b"\n") - len(arrived))
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        whole = time.perf_counter() - start
        if process.returncode:
            printed.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {printed.read()[-300:].strip()}")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        results = json.loads((run_dir / "summary.json").read_text())
    arrived += [whole] * (len(rows) - len(arrived))  # what was written after the last look
    timed = zip(rows, arrived, strict=True)
    checks = [(row["held-out_exact_match"], seconds) for row, seconds in timed if "by_operation" in row]
    return Training(arrived[0], checks, whole, results)


def training_rows(quick: bool) -> list[dict[str, Any]]:
    """Return how long each of `TRAININGS` takes, cold and warm, as medians over the seeds."""
    rows = []
    for task, options in TRAININGS[1:2] if quick else TRAININGS:
        runs: dict[str, list[Training]] = {"cold": [], "warm": []}
        for seed in range(1 if quick else 3):
            with tempfile.TemporaryDirectory() as cache:
                for start in runs:
                    runs[start].append(train([*options, "--seed", str(seed)], Path(cache)))
        rows += [training_row(task, start, trainings) for start, trainings in runs.items()]
    return rows


def training_row(task: str, start: str, trainings: Sequence[Training]) -> dict[str, Any]:
    """Return the medians over some trainings that differ in their seeds.

    A threshold has None if half of the seeds or fewer reach it.
    """
    whole = summary([training.whole for training in trainings])
    finals = [training.summary["held_out_exact_match"] for training in trainings]
    speeds = [training.summary["examples_per_second"] for training in trainings]
    reached = {str(threshold): [reached_at(training, threshold) for training in trainings] for threshold in THRESHOLDS}
    medians = {threshold: statistics.median(seconds) for threshold, seconds in reached.items()}
    return {
        "task": task,
        "start": start,
        "steps": trainings[0].summary["steps"],
        "seeds": len(trainings),
        "first_steps": statistics.median(training.first_steps for training in trainings),
        "thresholds": {key: value if value < float("inf") else None for key, value in medians.items()},
        "whole": whole["median"],
        "spread": whole["spread"],
        "noisy": whole["noisy"],
        "examples_per_second": statistics.median(speeds),
        "held_out": statistics.median(finals),
    }


def reached_at(training: Training, threshold: float) -> float:
    """Return when a training first reached a held-out exact match; infinity if it never did."""
    return min((seconds for match, seconds in training.checks if match >= threshold), default=float("inf"))


def ask_rows(quick: bool) -> list[dict[str, Any]]:
    """Return the seconds of a process of ask.py, cold and warm."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, ROOT / "experiments" / "train.py", "--run-dir", run_dir, "--steps", "1"]
        subprocess.run(command, check=True, capture_output=True, env=environment(Path(folder)))
        ask = [sys.executable, ROOT / "experiments" / "ask.py", run_dir, "two plus three"]
        for _ in range(3 if quick else 6):
            with tempfile.TemporaryDirectory() as cache:
                for times in seconds.values():
                    clock = time.perf_counter()
                    subprocess.run(ask, check=True, capture_output=True, env=environment(Path(cache)))
                    times.append(time.perf_counter() - clock)
    rows = []
    for start, times in seconds.items():  # the first of all is not counted: the disk is cold as well
        taken = summary(times[1:])
        rows.append({"start": start, "seconds": taken["median"], "spread": taken["spread"], "noisy": taken["noisy"]})
    return rows
