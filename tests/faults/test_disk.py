"""A disk that is full, read-only, shared or moved: a line that says so, and nothing that was saved is lost."""

import contextlib
import gc
import os
import random
import resource
import shutil
import signal
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
    check_same_run,
    check_unlocked,
    copied,
    files,
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

from jaxcalc import InputError, runs
from jaxcalc.runs import checkpoint, figures, guard, results

# Orbax leaves to the garbage what was still to be written when a save fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine")
NOBODY = 65534


@pytest.fixture(autouse=True)
def garbage() -> Iterator[None]:
    """Collect it here, where its complaints are ignored."""
    yield
    gc.collect()


def check_refused(ended: Any, *texts: str) -> None:
    """Check that a script ended with one line that says all this."""
    assert ended.status == 2, ended.err
    assert "Traceback" not in ended.err
    *_, last = ended.err.splitlines()
    assert last.startswith("error: ")
    for text in texts:
        assert text in last


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
    """Return what makes files hit a limit within a function."""

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
    """Mount a disk of a size at a folder; yield what mounts it again in another way, such as larger."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", str(path)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill the disk but for some bytes; return the file to be deleted."""
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
    """Also for a checkpoint's manifest, a line of metrics.jsonl, the model, the figure and the summary."""
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
        (results, "write_json", "summary.json"),
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
    if file == "summary.json":

        def only_summary(original: Any) -> Any:
            return lambda path, value: (limited(size)(original) if path.name == file else original)(path, value)

        wrap: Any = only_summary
    else:
        wrap = limited(size)
    with patched(owner, name, wrap):
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
        os.kill(process.pid, signal.SIGSTOP)  # nothing changes meanwhile
        found = files(run)
        for arguments in (["--resume", run], ["--run-dir", run, *SMALL], ["--run-dir", run, *SMALL, "--overwrite"]):
            clock = time.monotonic()
            ended = train(*arguments)
            assert time.monotonic() - clock < 10
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
    """Let everybody go into a folder, and through all above it."""
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
    """Set all times of files to other years, in no order."""
    for path in [folder, *folder.rglob("*")]:
        when = time.time() + chance.uniform(-400, 400) * 86_400
        os.utime(path, (when, when))


def test_the_newest_is_newest_by_its_step_whatever_the_clock_said(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    for seed in range(5):
        scramble(run, random.Random(seed))
        for step, year in ((0, 2035), (40, 1999)):  # and in the opposite order
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


@pytest.mark.faults
def test_a_limit_on_files_of_a_process_is_one_line(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The whole process has the limit, from its start on, and it is a process as people start it."""
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
    """Also where the run ends with an error while a checkpoint is being written in the background."""
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
