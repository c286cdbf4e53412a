"""A disk that is full or read-only: one line says so, and nothing that was saved is lost."""

import contextlib
import gc
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import (
    before,
    bits_at,
    check_clean,
    check_refused,
    check_same_run,
    check_unlocked,
    copied,
    files,
    newest,
    nth,
    patched,
    start,
    steps_of,
    tell,
    train,
)
from scripts import SMALL, STEPS

from jaxcalc import InputError, runs
from jaxcalc.runs import checkpoint, figures, guard, results

# When a save fails, Orbax leaves coroutines behind, which warn when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine")


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """Collect garbage while its warnings are still ignored."""
    yield
    gc.collect()


@contextlib.contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def limited(n_bytes: int) -> Callable[[Any], Any]:
    """Return a wrapper that limits the size of files while a function runs."""

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with file_size_limit(n_bytes):
                return original(*args, **kwargs)

        return call

    return wrap


def test_a_checkpoint_that_does_not_fit_is_one_line_and_the_others_stay(
    stopped_run: Path, small_run: Path, tmp_path: Path
) -> None:
    run = copied(stopped_run, tmp_path / "run")

    def within_limit(original: Any) -> Any:
        def save(writer: checkpoint.Writer, *args: Any, **kwargs: Any) -> None:
            with file_size_limit(9_000):
                original(writer, *args, **kwargs)
                writer.wait()

        return save

    with patched(checkpoint.Writer, "save", within_limit):
        ended = train("--resume", run)
    check_refused(
        ended, f"cannot write {run / 'checkpoints'}/0000", "bytes of arrays): ", "the intact checkpoints are those of"
    )
    assert "go on with --resume" in ended.err
    intact = runs.checkpoint_steps(run)
    assert {0, 20, 40} <= set(intact)
    assert f"steps {', '.join(map(str, intact))};" in ended.err
    for step in intact:
        assert bits_at(run, step) == bits_at(small_run, step)
    check_unlocked(run)
    assert train("--resume", run).status == 0
    check_clean(run)
    check_same_run(run, small_run)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a small disk at a folder; yield a function that remounts it with other options."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", str(path)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill the disk but for `leave` bytes; return the file that fills it."""
    rest = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(max(rest.f_bavail * rest.f_frsize - leave, 0)))
    return filler


@pytest.mark.faults
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    stopped_run: Path, small_run: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "4m"):
        run = copied(stopped_run, tmp_path / "disk" / "run")
        filler = fill(tmp_path / "disk", 60_000)
        ended = train("--resume", run)
        check_refused(ended, f"cannot write {run}/", "No space left on device", " bytes")
        assert newest(run) >= 40
        assert bits_at(run, 40) == bits_at(stopped_run, 40)
        check_unlocked(run)
        filler.unlink()
        assert train("--resume", run).status == 0
        check_clean(run)
        check_same_run(run, small_run)


@pytest.mark.faults
@pytest.mark.parametrize("leave", [0, 4096, 8192, 16_384, 32_768, 65_536, 98_304, 131_072, 196_608, 262_144])
def test_a_disk_that_fills_up_at_any_point_is_one_line(
    stopped_run: Path, small_run: Path, tmp_path: Path, leave: int
) -> None:
    """It may fill up at a checkpoint, its manifest, metrics.jsonl, the model, the figure or the summary."""
    with small_disk(tmp_path / "disk", "4m"):
        run = copied(stopped_run, tmp_path / "disk" / "run")
        filler = fill(tmp_path / "disk", leave)
        ended = train("--resume", run)
        check_refused(ended, str(run))
        assert newest(run) >= 40
        assert bits_at(run, newest(run)) == bits_at(small_run, newest(run))
        assert not (run / "summary.json").exists()
        filler.unlink()
        assert train("--resume", run).status == 0
        check_same_run(run, small_run)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [
        (runs.MetricsFile, "write", "metrics.jsonl"),
        (results, "save_params", "model.safetensors"),
        (figures, "learning_curve", "learning_curve.png"),
        (results, "write_summary", "summary.json"),
        (checkpoint, "_complete", "manifest.json"),
        (guard, "save_nonfinite", "nonfinite"),
    ],
)
def test_each_file_that_does_not_fit_is_named(
    stopped_run: Path, small_run: Path, tmp_path: Path, owner: Any, name: str, file: str
) -> None:
    run = copied(stopped_run, tmp_path / "run")
    size = {"metrics.jsonl": (run / "metrics.jsonl").stat().st_size + 100, "nonfinite": 400}.get(file, 50)
    arguments: list[str | Path] = ["--resume", run]
    if file == "nonfinite":
        shutil.rmtree(run)
        arguments = ["--run-dir", run, *SMALL, "--optimizer", "sgd", "--learning-rate", "1e30"]
    with patched(owner, name, limited(size)):
        ended = train(*arguments)
    check_refused(ended, str(run))
    if file not in ("manifest.json", "nonfinite"):
        check_refused(ended, f"cannot write {run / file}", ": File too large")
    check_unlocked(run)
    if file == "nonfinite":
        return
    assert newest(run) >= 40
    assert train("--resume", run).status == 0
    check_clean(run)
    check_same_run(run, small_run)


def test_a_disk_that_cannot_be_written_is_one_line(stopped_run: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as remount:
        run = copied(stopped_run, tmp_path / "disk" / "run")
        found = files(run)
        remount("ro")
        for arguments in (["--resume", run], ["--run-dir", tmp_path / "disk" / "new", *SMALL]):
            ended = train(*arguments)
            check_refused(ended, "cannot write to ", "Read-only file system")
            assert ended.err.count("\n") == 1
        assert bits_at(run, 40) == bits_at(stopped_run, 40)  # it can still be read
        assert files(run) == found


@pytest.mark.faults
def test_a_limit_on_files_of_a_process_is_one_line(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Here a process has the limit from its start on."""
    if sys.platform != "linux":
        pytest.skip("as Linux says it")
    run = tmp_path / "run"
    with start("--run-dir", run, *SMALL) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (6_000, 6_000))
        err = process.communicate(timeout=240)[1]
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: cannot write ")
    assert "bytes" in err
    ended = train("--resume", run)
    assert ended.status == 0, ended.err
    assert steps_of(run) == list(range(1, STEPS + 1))
    tell(record_property, limited_processes=1)


@pytest.mark.faults
def test_the_folder_is_held_until_the_last_save_is_over(stopped_run: Path, tmp_path: Path) -> None:
    """Also when the run ends with an error while a checkpoint is written in the background."""
    run = copied(stopped_run, tmp_path / "run")
    over: list[bool] = []

    def slow(original: Any) -> Any:
        def complete(*args: Any) -> None:
            time.sleep(2)
            original(*args)
            over.append((run / ".writer").exists())

        return complete

    def fail() -> None:
        raise InputError("the disk is full")

    with patched(checkpoint, "_complete", slow), patched(runs.MetricsFile, "write", before(nth(3, fail))):
        check_refused(train("--resume", run), "the disk is full")
        ended_first = not over
        while not over:
            time.sleep(0.1)
    assert over == [True]
    assert not ended_first
    check_unlocked(run)
