"""Seconds of whole processes for benchmark.py: training until an accuracy is reached, and one question to ask.py."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

EXPERIMENTS = Path(__file__).parent


class Training(NamedTuple):
    """One way to train, tried with several numbers of steps."""

    name: str
    options: list[str]
    """Of train.py."""
    numbers_of_steps: tuple[int, ...]
    thresholds: tuple[float, ...]
    """Held-out exact matches; each counts with the number of steps that reaches it soonest."""


TRAININGS = (
    Training("four operations, orbit split", [], (600, 1200), (0.97, 0.98, 0.99, 0.995)),
    Training(
        "three operations, random split",
        ["--ops", "plus", "minus", "times", "--split", "random"],
        (400, 600, 1200),
        (0.98, 0.99, 0.995, 0.999),
    ),
)


class TrainingTimes(NamedTuple):
    """When one process reached what, in seconds since the process was started."""

    checks: list[tuple[float, float]]
    """Held-out exact match, and when it was measured."""
    final: float
    """Held-out exact match of the whole run."""
    compile: float
    """Seconds of compiling."""


def time_to_accuracy(quick: bool) -> dict[str, dict[str, object]]:
    """Return the seconds from starting the process to each held-out exact match, the median over the seeds."""
    times: dict[str, dict[str, object]] = {}
    seeds = range(1) if quick else range(5)
    for training in TRAININGS:
        by_steps = {
            steps: [train([*training.options, "--steps", str(steps), "--seed", str(seed)]) for seed in seeds]
            for steps in (training.numbers_of_steps[:1] if quick else training.numbers_of_steps)
        }
        times[training.name] = {
            "seeds": list(seeds),
            "final": {steps: [run.final for run in runs] for steps, runs in by_steps.items()},
            "thresholds": {str(threshold): soonest(by_steps, threshold) for threshold in training.thresholds},
        }
    return times


def train(options: Sequence[str]) -> TrainingTimes:
    """Run train.py in a process of its own and return when it reached what."""
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
    return TrainingTimes(checks, summary["held_out_exact_match"], summary["seconds"]["compile"])


def soonest(by_steps: Mapping[int, Sequence[TrainingTimes]], threshold: float) -> dict[str, float | None]:
    """Return how soon the median seed reaches a threshold, by the number of steps that gets there first.

    All values are None if no number of steps gets there.
    """
    best: dict[str, float | None] = {"seconds": None, "without_compilation": None, "steps": None}
    for steps, runs in by_steps.items():
        when = [
            min((seconds for match, seconds in run.checks if match >= threshold), default=float("inf")) for run in runs
        ]
        median = statistics.median(when)
        if median < (best["seconds"] or float("inf")):
            warm = statistics.median(seconds - run.compile for seconds, run in zip(when, runs, strict=True))
            best = {"seconds": median, "without_compilation": warm, "steps": steps}
    return best


def ask_seconds(quick: bool) -> dict[str, float]:
    """Return the seconds of a process of ask.py, without and with JAX's compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, EXPERIMENTS / "train.py", "--run-dir", run_dir, "--steps", "1", "--snapshots", "0"]
        subprocess.run(command, check=True, capture_output=True)
        cached = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        seconds: dict[str, list[float]] = {"cold": [], "cached": []}
        for _ in range(4 if quick else 6):  # the first round fills the caches and is not counted
            for name, extra in (("cold", {}), ("cached", cached)):
                start = time.perf_counter()
                ask = [sys.executable, EXPERIMENTS / "ask.py", run_dir, "two plus three"]
                subprocess.run(ask, check=True, capture_output=True, env={**os.environ, **extra})
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}
