"""A run's folder that is locked, forbidden, oddly named or moved: one line says so, or the run goes on."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    bits_at,
    check_clean,
    check_refused,
    check_same_run,
    check_unlocked,
    copied,
    files,
    newest,
    start,
    steps_of,
    stop_at_write,
    train,
    wait_for,
)
from scripts import SMALL, TINY

from jaxcalc import runs
from jaxcalc.runs import checkpoint

NOBODY = 65534


def test_a_second_writer_is_refused_and_changes_nothing(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    with runs.writing(run):
        found = files(run)
        for arguments in (["--resume", run], ["--run-dir", run, *SMALL, "--overwrite"]):
            ended = train(*arguments)
            check_refused(ended, f"{run} is being written by process {os.getpid()} on ", "wait for it or stop it")
            assert ended.err.count("\n") == 1
        assert files(run) == found
    check_unlocked(run)


@pytest.mark.faults
def test_a_writer_that_is_killed_leaves_the_folder_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start("--run-dir", run, *TINY, "--steps", "100000", "--checkpoint-every", "20") as process:
        wait_for(lambda: newest(run) >= 20, process)
        os.kill(process.pid, signal.SIGSTOP)  # it holds the folder and changes nothing
        found = files(run)
        for arguments in (["--resume", run], ["--run-dir", run, *SMALL], ["--run-dir", run, *SMALL, "--overwrite"]):
            ended = train(*arguments)  # and does not wait, as the other process would never end
            check_refused(ended, str(run))
            if arguments[-1] in ("--overwrite", run):
                assert f"is being written by process {process.pid} on " in ended.err
        assert files(run) == found
        with start("--resume", run) as second:
            assert second.wait(120) == 2
        process.kill()
    step = newest(run)
    ended = train("--resume", run, "--steps", str(step + 10))
    assert ended.status == 0, ended.err
    assert steps_of(run) == list(range(1, step + 11))
    check_clean(run)
    check_unlocked(run)


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Be a user who owns nothing."""
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("only root can be another user")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def passable(path: Path) -> Iterator[None]:
    """Let every user into a folder and all folders above it."""
    above = [folder for folder in (path, *path.parents) if folder.stat().st_mode & 0o005 != 0o005]
    modes = [folder.stat().st_mode for folder in above]
    for folder in above:
        folder.chmod(0o755)
    try:
        yield
    finally:
        for folder, mode in zip(above, modes, strict=True):
            folder.chmod(mode)


def test_a_folder_of_somebody_else_is_one_line(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    found = files(run)
    with passable(tmp_path):
        for arguments in (
            ["--resume", run],
            ["--run-dir", run, *SMALL, "--overwrite"],
            ["--run-dir", tmp_path / "new", *SMALL],
            ["--fork", f"{run}@20", "--run-dir", tmp_path / "new" / "fork"],
        ):
            with another_user():
                ended = train(*arguments)
            check_refused(ended, "cannot write to ", "Permission denied")
            assert ended.err.count("\n") == 1
    assert files(run) == found
    assert not (tmp_path / "new").exists()


def test_a_folder_into_which_one_may_not_look_is_one_line(stopped_run: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    run = copied(stopped_run, tmp_path / "closed" / "run")
    with passable(tmp_path):
        for arguments in (["--run-dir", run, *SMALL], ["--resume", run], ["--fork", f"{run}@20"]):
            with another_user():
                ended = train(*arguments)
            check_refused(ended, str(run))


@pytest.mark.faults
@pytest.mark.parametrize("name", ["runs/one", "a run", "ünï cødé/数 🧮", "'quoted' \"run\"", "-dash", "a@b", "100%"])
def test_any_name_of_a_folder_trains_stops_and_goes_on(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with stop_at_write(4):
        ended = train(f"--run-dir={name}", *SMALL)
    assert ended.status == 128 + signal.SIGTERM, ended.err
    assert bits_at(Path(name), newest(Path(name))) == bits_at(small_run, newest(Path(name)))
    ended = train(f"--resume={name}")
    assert ended.status == 0, ended.err
    check_clean(tmp_path / name)
    check_same_run(tmp_path / name, small_run)
    run = runs.load_run(Path(name))
    assert int(runs.load_snapshot(run, 30).step) == 30
    ended = train("--fork", f"{name}@50", "--run-dir", f"{name} forked") if name[0] != "-" else None
    assert ended is None or ended.status == 0, ended.err


def scramble(folder: Path, chance: random.Random) -> None:
    """Set the times of all files at random, up to 400 days off."""
    for path in [folder, *folder.rglob("*")]:
        when = time.time() + chance.uniform(-400, 400) * 86_400
        os.utime(path, (when, when))


def test_the_newest_is_newest_by_its_step_whatever_the_clock_said(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    for seed in range(5):
        scramble(run, random.Random(seed))
        for step, year in ((0, 2035), (40, 1999)):  # the oldest step gets the latest time
            os.utime(run / "checkpoints" / f"{step:06}", (year * 31_556_952.0 - 6.2e10,) * 2)
        state, _ = checkpoint.restore_newest(run / "checkpoints", runs.read_config(run).state_like(), pytest.fail)
        assert int(state.step) == 40
        checkpoint.prune(run / "checkpoints", kept={0}, newest=4 - seed // 2)
    assert runs.checkpoint_steps(run) == [0, 30, 40]


@pytest.mark.faults
def test_a_moved_or_copied_run_goes_on_there_bit_for_bit(stopped_run: Path, small_run: Path, tmp_path: Path) -> None:
    copy = copied(stopped_run, tmp_path / "some" / "where" / "copy")
    shutil.move(copied(stopped_run, tmp_path / "run"), tmp_path / "moved")
    scramble(tmp_path / "moved", random.Random(7))
    for run in (copy, tmp_path / "moved"):
        ended = train("--resume", run)
        assert ended.status == 0, ended.err
        assert "warning" not in ended.err
        check_same_run(run, small_run)
    link = tmp_path / "link"
    link.symlink_to(copied(stopped_run, tmp_path / "target"))
    assert train("--resume", link).status == 0
    check_same_run(tmp_path / "target", small_run)
