"""kill -9 at any moment of training: nothing that was saved is lost, and the run goes on bit for bit."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    bits_at,
    check_clean,
    check_same_run,
    check_unlocked,
    metrics,
    newest,
    start,
    steps_of,
    tell,
    train,
    wait_for,
)
from scripts import SMALL, TINY

from jaxcalc import runs

LAST = 240
CHAIN = (*TINY, "--steps", str(LAST), "--checkpoint-every", "20", "--snapshots", "6")
N_KILLS, MOST_IN_A_CHAIN = 60, 12
"""How many runs the long test kills, and how often it kills one run."""


def go_on(run: Path) -> list[str | Path]:
    """Return the options that start a killed run again."""
    return ["--resume", run] if (run / "config.json").exists() else ["--run-dir", run, *CHAIN]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train("--run-dir", path, *CHAIN).status == 0
    return path


@pytest.mark.slow
def test_a_run_that_is_killed_and_then_interrupted_loses_nothing(small_run: Path, tmp_path: Path) -> None:
    """After kill -9, a refused second writer and Ctrl-C, all steps are still those of `small_run`."""
    run = tmp_path / "run"
    with start("--run-dir", run, *SMALL) as process:
        wait_for(lambda: newest(run) >= 10, process)
        os.kill(process.pid, signal.SIGSTOP)
        ended = train("--resume", run)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert ended.status == 2
    assert f"{run} is being written by process {process.pid} on " in ended.err
    assert ended.err.count("\n") == 1
    check_same_steps(run, small_run)

    with start("--resume", run, "--steps", "100000", "--json") as process:
        wait_for(lambda: newest(run) >= 30, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGINT
    assert "stopping after these steps" in err
    assert "Stopped by SIGINT after" in err
    assert "Traceback" not in err
    assert "not bit for bit" not in err
    result = json.loads(out)  # with --json, this alone is on stdout
    assert 30 <= result["steps"] < 100_000
    assert result["steps"] == newest(run)
    assert steps_of(run) == list(range(1, newest(run) + 1))
    assert not (run / "summary.json").exists()
    check_clean(run)
    check_unlocked(run)
    check_same_steps(run, small_run)


def check_same_steps(run: Path, reference: Path) -> None:
    """Check that the steps that two runs share are the same, bit for bit."""
    last = min(newest(run), newest(reference))
    rows = [[row for row in metrics(each) if row["step"] <= last] for each in (run, reference)]
    assert rows[0] == rows[1]
    for step in runs.checkpoint_steps(reference):
        if step <= last:
            assert bits_at(run, step) == bits_at(reference, step)


@pytest.mark.faults
def test_runs_that_are_killed_at_random_moments_are_bit_for_bit_one_that_was_not(
    uninterrupted: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(0)
    clock = time.monotonic()
    with start("--run-dir", tmp_path / "first", *CHAIN) as process:
        assert process.wait(240) == 0
    uninterrupted_seconds = time.monotonic() - clock
    check_same_run(tmp_path / "first", uninterrupted)
    shutil.rmtree(tmp_path / "first")
    n_kills, n_chains = 0, 0
    reached = dict.fromkeys(("before its folder", "before a checkpoint", "with one", "after its summary"), 0)
    while n_kills < N_KILLS or n_chains == 0:
        run, n_chain = tmp_path / f"run {n_chains}", 0
        while not (run / "summary.json").exists():
            before = newest(run)
            with start(*go_on(run)) as process:
                if chance.random() < 0.5:  # any time at all, or soon after it began to write
                    delay = chance.uniform(0, 0.8 * uninterrupted_seconds)
                else:
                    with contextlib.suppress(AssertionError):
                        wait_for(lambda: writer_of(run) == process.pid, process)  # noqa: B023
                    delay = chance.uniform(0, 0.3 * uninterrupted_seconds)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(delay if n_chain < MOST_IN_A_CHAIN else None)
                process.kill()
                err = process.communicate()[1]
            assert process.returncode in (0, -signal.SIGKILL), err
            assert "Traceback" not in err
            assert "not bit for bit" not in err
            assert newest(run) >= before
            if process.returncode:
                n_kills, n_chain = n_kills + 1, n_chain + 1
                reached[
                    "before its folder"
                    if not (run / "config.json").exists()
                    else "before a checkpoint"
                    if newest(run) < 0
                    else "with one"
                    if not (run / "summary.json").exists()
                    else "after its summary"
                ] += 1
        (run / ".writer").unlink(missing_ok=True)  # left by a kill after the summary
        check_clean(run)
        check_same_run(run, uninterrupted)
        shutil.rmtree(run)
        n_chains += 1
    tell(record_property, kills=n_kills, chains=n_chains, **reached)


def writer_of(run: Path) -> int:
    try:
        return int((run / ".writer").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
