"""Ctrl-C and SIGTERM end a run in order at any moment, and it goes on from there bit for bit."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import (
    before,
    bits_at,
    check_clean,
    check_same_run,
    check_unlocked,
    config_of,
    copied,
    metrics,
    newest,
    nth,
    patched,
    start,
    steps_of,
    stop_at_write,
    tell,
    train,
    wait_for,
)
from scripts import SMALL, STEPS, TINY

import jaxcalc
from jaxcalc import runs
from jaxcalc.runs import checkpoint, claim, figures, report, results

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAST = 240
LONG = (*TINY, "--steps", str(LAST), "--checkpoint-every", "20", "--snapshots", "6")
N_SIGNALS, MOST_IN_A_CHAIN = 30, 8
"""How many signals the long test sends, and how many to one run."""


def check_stopped(run: Path) -> None:
    """Check that all steps are saved, and that the folder is free."""
    check_clean(run)
    check_unlocked(run)
    assert newest(run) == max(steps_of(run), default=0)
    assert steps_of(run) == list(range(1, newest(run) + 1))


def test_a_stopped_run_goes_on_bit_for_bit(stopped_run: Path, small_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    check_stopped(run)
    with patched(report, "wrong_answers", before(nth(1, lambda: signal.raise_signal(signal.SIGINT)))):
        ended = train("--resume", run)  # it is stopped again, during the evaluation at its end
    assert ended.status == 128 + signal.SIGINT
    assert not (run / "summary.json").exists()
    check_stopped(run)
    ended = train("--resume", run)
    assert ended.status == 0, ended.err
    assert "warning" not in ended.err
    check_same_run(run, small_run)
    assert (run / "model.safetensors").read_bytes() == (small_run / "model.safetensors").read_bytes()


def raise_from_anywhere(number: int) -> None:
    """Send this process a signal from any thread; Python handles it in the main one."""
    os.kill(os.getpid(), number)


@pytest.mark.faults
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_any_stage_ends_in_order(
    small_run: Path, tmp_path: Path, number: int, record_property: Callable[[str, object], None]
) -> None:
    run = tmp_path / "run"
    stages: list[tuple[Any, str, int]] = [
        (claim, "start_run", 1),
        (report, "parameters_table", 1),
        (report, "ProgressLine", 1),
        (jaxcalc, "evaluate", 1),  # before the first step
        (checkpoint.Writer, "save", 1),
        (jaxcalc, "evaluate", 2),
        (checkpoint.Writer, "save", 2),
        (checkpoint, "_complete", 1),
        (checkpoint, "prune", 1),
        (runs.MetricsFile, "write", 1),
        (runs.MetricsFile, "mark", 2),
        (checkpoint.Writer, "wait", 3),
        (checkpoint, "restore_newest", 1),
        (results, "write_summary", 1),
        (report, "wrong_answers", 1),  # after the last step, before the summary
        (results, "save_params", 1),
        (figures, "learning_curve", 1),
        (report, "by_operation", 1),
    ]
    done: list[str] = []
    for owner, name, n in stages:
        arguments = ["--resume", run] if (run / "config.json").exists() else ["--run-dir", run, *SMALL]
        was = newest(run)
        with patched(owner, name, before(nth(n, lambda: raise_from_anywhere(number)))):
            ended = train(*arguments)
        assert ended.status in (0, 128 + number), (name, n, ended.err)
        if (run / "summary.json").exists():  # this call came after the summary, or not at all
            check_same_run(run, small_run)
            shutil.rmtree(run)
            continue
        done.append(f"{name} {n}")
        assert ended.status == 128 + number
        assert newest(run) >= was
        check_stopped(run)
        if newest(run) < STEPS:
            assert f"Stopped by {signal.Signals(number).name} after {newest(run):,} of {STEPS:,} steps" in ended.err
            assert f"Go on:        python experiments/train.py --resume {run}" in ended.err
            assert "warning" not in ended.err
    if run.exists():
        assert train("--resume", run).status == 0
        check_same_run(run, small_run)
    assert len(done) >= 10, done
    tell(record_property, stages=done)


@pytest.mark.faults
def test_a_run_made_longer_is_bit_for_bit_one_of_that_length(small_run: Path, tmp_path: Path) -> None:
    run = copied(small_run, tmp_path / "run")
    assert train("--resume", run).status == 2  # nothing is left to do
    longer = str(STEPS + 35)
    with stop_at_write(3):  # it is stopped on the way
        assert train("--resume", run, "--steps", longer).status == 128 + signal.SIGTERM
    assert not (run / "summary.json").exists()
    check_stopped(run)
    assert train("--resume", run).status == 0
    at_once = tmp_path / "at once"
    options = (*TINY, "--steps", longer, "--schedule-steps", str(STEPS), "--checkpoint-every", "20")
    assert train("--run-dir", at_once, *options).status == 0
    assert metrics(run) == metrics(at_once)
    assert steps_of(run) == list(range(1, STEPS + 36))
    assert bits_at(run, STEPS + 35) == bits_at(at_once, STEPS + 35)
    assert config_of(run).schedule.schedule_steps == STEPS


@pytest.mark.faults
def test_processes_that_are_stopped_at_random_moments_lose_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(0)
    reference = tmp_path / "uninterrupted"
    assert train("--run-dir", reference, *LONG).status == 0  # this also compiles everything
    clock = time.monotonic()
    with start("--run-dir", tmp_path / "first", *LONG) as process:
        assert process.wait(240) == 0
    uninterrupted_seconds = time.monotonic() - clock
    n_signals, n_chains, statuses = 0, 0, {}
    while n_signals < N_SIGNALS:
        run, n_chain = tmp_path / f"run {n_chains}", 0
        while not (run / "summary.json").exists():
            number = chance.choice(SIGNALS)
            arguments = ["--resume", run] if (run / "config.json").exists() else ["--run-dir", run, *LONG]
            with start(*arguments) as process:
                if n_chain < MOST_IN_A_CHAIN:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(chance.uniform(0, uninterrupted_seconds))
                    process.send_signal(number)
                err = process.communicate(timeout=240)[1]
            n_chain += 1
            status = process.returncode
            statuses[status] = statuses.get(status, 0) + 1
            if status == 0:  # it ended before the signal
                continue
            n_signals += 1
            expected = {-number, 128 + number}
            if "stopping after these steps" not in err:  # it was still importing, and Python or NumPy ended it
                expected |= {1, -signal.SIGABRT}
            assert status in expected, err
            if status == 128 + number:
                assert "Traceback" not in err
                check_stopped(run)
        check_same_run(run, reference)
        n_chains += 1
    tell(record_property, signals=n_signals, chains=n_chains, statuses={str(key): n for key, n in statuses.items()})


@pytest.mark.faults
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once(tmp_path: Path, number: int) -> None:
    """The first signal waits for a save that takes minutes; the second does not."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import runpy, sys, time\nfrom jaxcalc.runs import checkpoint\ncomplete = checkpoint._complete\n"
        "checkpoint._complete = lambda *args: (time.sleep(600), complete(*args))\n"
        "sys.argv[0] = sys.argv.pop(1)\nsys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    run = tmp_path / "run"
    with start("--run-dir", run, *LONG, before=[slow]) as process:
        wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size, process)
        process.send_signal(number)
        assert process.stderr is not None
        while "stopping after these steps; a second time ends at once" not in process.stderr.readline():
            pass
        process.send_signal(number)
        assert process.wait(60) == -number
    ended = train("--resume", run)  # it starts again, as nothing was saved
    assert ended.status == 0, ended.err
    assert steps_of(run) == list(range(1, LAST + 1))
    check_clean(run)
    check_unlocked(run)
