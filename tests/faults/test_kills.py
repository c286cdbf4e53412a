"""kill -9 at any moment loses nothing that was saved, and the run goes on as if nothing had interrupted it."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import pytest
import saver
from harness import (
    bits,
    bits_at,
    check_clean,
    check_same_run,
    check_unlocked,
    copied,
    files,
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
from jaxcalc.runs import checkpoint, manifest
from jaxcalc.runs.manifest import check_files

LAST = 240
CHAIN = (*TINY, "--steps", str(LAST), "--checkpoint-every", "20", "--snapshots", "6")
N_KILLS, MOST_IN_A_CHAIN = 60, 12
"""Of whole runs in the long test."""
N_ENDED = 5
"""Saves in a row that end before they are killed: then each call has been one to be killed at. Their number varies."""
RANDOM_SAVES = 60
"""Kills of a save at a random time in the long test, beside those at each call."""


def go_on(run: Path) -> list[str | Path]:
    """Return the arguments with which a killed run is started again."""
    return ["--resume", run] if (run / "config.json").exists() else ["--run-dir", run, *CHAIN]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train("--run-dir", path, *CHAIN).status == 0
    return path


def test_a_run_that_is_killed_and_then_interrupted_loses_nothing(small_run: Path, tmp_path: Path) -> None:
    """A kill -9, another writer meanwhile, and Ctrl-C in a run that is made longer: bit for bit `small_run`."""
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
    """Check that a run was bit for bit another one, as far as both went."""
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
                    "before its folder" if not (run / "config.json").exists()
                    else "before a checkpoint" if newest(run) < 0
                    else "with one" if not (run / "summary.json").exists()
                    else "after its summary"
                ] += 1  # fmt: skip
        (run / ".writer").unlink(missing_ok=True)  # there if it was killed after its summary
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


class Moments:
    """Copies a folder at every call of this process that changes a file in it: what a kill at that moment leaves."""

    now: ClassVar["Moments | None"] = None
    EVENTS: ClassVar = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies, self.n = folder, copies, 0
        self.lock = threading.Lock()

    @classmethod
    def hook(cls, event: str, args: tuple[Any, ...]) -> None:
        """Python calls it at every event; it cannot be removed."""
        self = cls.now
        if self is None or event not in cls.EVENTS or getattr(COPYING, "is_on", False):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        COPYING.is_on = True
        try:
            with self.lock:
                copy_as_it_is(self.folder, self.copies / f"{self.n:04}")
                self.n += 1
        finally:
            COPYING.is_on = False

    def __enter__(self) -> "Moments":
        type(self).now = self
        return self

    def __exit__(self, *_: object) -> None:
        type(self).now = None


COPYING = threading.local()
sys.addaudithook(Moments.hook)


def copy_as_it_is(folder: Path, to: Path) -> None:
    """Copy what is there, in whatever state; other threads go on with it."""
    with contextlib.suppress(shutil.Error, FileNotFoundError):
        shutil.copytree(folder, to)


def check_left(folder: Path, least: int) -> int:
    """Check what a killed writer of `saver` left: one of its states, no older than `least`, and nothing else."""
    checkpoints = folder / "checkpoints"
    there = checkpoint.steps(checkpoints)
    assert max(there, default=0) >= least
    told: list[str] = []
    checkpoint.clean(checkpoints)
    check_clean(folder)
    assert checkpoint.steps(checkpoints) == there
    if not there:
        return 0
    state, manifest = checkpoint.restore_newest(checkpoints, saver.state_of(0), told.append)
    step = int(state.step)
    assert (told, step) == ([], there[-1])
    assert bits(state) == bits(saver.state_of(step))
    for other in there[:-1]:
        check_files(checkpoints / f"{other:06}", checkpoint.read_manifest(checkpoints, other))
    with runs.MetricsFile(folder / "metrics.jsonl", manifest["metrics"]):
        pass
    assert [row["step"] for row in runs.read_metrics(folder)] == list(range(1, step + 1))
    return step


def saved(folder: Path, *steps: int, moments: bool = False) -> None:
    """Save states of `saver` here, the last of them watched."""
    copies = folder.with_name("copies")
    copies.mkdir(exist_ok=True)
    with runs.MetricsFile(folder / "metrics.jsonl") as metrics:
        writer = checkpoint.Writer(folder / "checkpoints", {"of": "a test"}, saver.KEPT, saver.NEWEST)
        for step in steps:
            with Moments(folder, copies) if moments and step == steps[-1] else contextlib.nullcontext():
                metrics.write(*({"step": each} for each in range(step - 9, step + 1)))
                writer.save(saver.state_of(step), metrics=metrics.mark())
                writer.wait()


def test_a_kill_at_any_call_of_a_save_leaves_the_newest_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    saved(folder, 10, 20, 30, 40, moments=True)
    copies = sorted((tmp_path / "copies").iterdir())
    newest_left = [check_left(copy, 30) for copy in copies]
    assert len(copies) > 20
    assert set(newest_left) == {30, 40}
    assert newest_left == sorted(newest_left)
    assert not (folder / "checkpoints" / "000020").exists()  # pruned, and a kill in the middle of that was among them


def test_a_kill_at_any_call_of_a_deletion_leaves_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    saved(folder, 10, 20, 30)
    good = files(folder / "checkpoints" / "000020")
    with Moments(folder, tmp_path / "copies") as moments:
        checkpoint.remove(folder / "checkpoints" / "000030")
    assert moments.n > 5
    first, *others = sorted((tmp_path / "copies").iterdir())
    assert check_left(first, 30) == 30  # before its manifest is deleted
    for copy in others:
        assert checkpoint.steps(copy / "checkpoints") == [20]
        assert checkpoint.clean(copy / "checkpoints") in (["000030"], [])
        assert checkpoint.clean(copy / "checkpoints") == []
        assert files(copy / "checkpoints" / "000020") == good


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_any_call_of_beginning_a_run_leaves_a_folder_in_which_it_can_begin(
    tmp_path: Path, small_run: Path, overwrite: bool
) -> None:
    if overwrite:
        copied(small_run, tmp_path / "run")
    else:
        (tmp_path / "run").mkdir()
    with Moments(tmp_path / "run", tmp_path / "copies") as moments, runs.writing(tmp_path / "run"):
        runs.start_run(tmp_path / "run", runs.RunConfig(), overwrite)
    assert moments.n > 2
    for copy in sorted((tmp_path / "copies").iterdir()):
        runs.check_free(copy, overwrite=True)


class Killed(BaseException):
    """As if the process ended there."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("owner", "name", "is_saved"),
    [
        (checkpoint, "remove", False),
        (checkpoint, "_complete", False),
        (checkpoint, "_read", False),
        (checkpoint, "fingerprint", False),
        (manifest, "_files", False),
        (manifest, "_written", False),
        (os, "fsync", False),
        (Path, "replace", False),
        (checkpoint, "prune", True),
        (shutil, "rmtree", True),
    ],
)
def test_a_save_that_ends_at_any_stage_of_it_does_not_count_before_its_manifest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, is_saved: bool
) -> None:
    saved(tmp_path, 10, 20, 30)
    writer = checkpoint.Writer(tmp_path / "checkpoints", {"of": "a test"}, saver.KEPT, saver.NEWEST)
    with runs.MetricsFile(
        tmp_path / "metrics.jsonl", checkpoint.read_manifest(tmp_path / "checkpoints", 30)["metrics"]
    ) as m:
        m.write(*({"step": step} for step in range(31, 41)))
        mark = m.mark()
        monkeypatch.setattr(owner, name, killed)
        with pytest.raises(Killed):  # noqa: PT012
            writer.save(saver.state_of(40), metrics=mark)
            writer.wait()
    monkeypatch.undo()
    assert check_left(tmp_path, 30) == (40 if is_saved else 30)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Callable[..., tuple[list[str], int]]]:
    """Start a server of writers; yield what sends an order, and returns what the writer said and how it ended."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("counting the calls of a process needs Linux and a C compiler")
    (folder / "shim.c").write_text(saver.SHIM)
    shim = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", shim, folder / "shim.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim), "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, saver.__file__], env=environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def send(kill_after: float | None = None, **order: Any) -> tuple[list[str], int]:
            print(json.dumps(order), file=process.stdin, flush=True)
            pid = json.loads(process.stdout.readline())["pid"]
            if kill_after is not None:
                time.sleep(kill_after)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            answer = json.loads(process.stdout.readline())
            return answer["said"], answer["status"]

        yield send
        process.stdin.close()
        assert process.wait(60) == 0


def last_said(said: list[str]) -> int:
    return max((int(line) for line in said if line.isdigit()), default=0)


@pytest.mark.faults
def test_a_kill_at_each_system_call_of_a_save_leaves_the_newest_checkpoint(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """At the first call that changes a file, at the second, …, up to the last."""
    n_kills, n_calls, n_new = 0, [], 0
    with server(tmp_path) as send:
        for n_earlier in (0, 4, 4):  # the first save of all, and one after which old ones are deleted
            folder = tmp_path / f"{len(n_calls)}"
            folder.mkdir()
            if n_earlier:
                assert send(folder=str(folder), n=n_earlier, kill=0)[1] == 0
            n, n_ended, step = 0, 0, 10 * n_earlier
            while n_ended < N_ENDED:
                n += 1
                said, status = send(folder=str(folder), n=1, kill=n)
                assert status in (0, -signal.SIGKILL), said
                n_ended = n_ended + 1 if status == 0 else 0
                n_kills += status != 0
                left = check_left(folder, max(step, last_said(said)))
                assert left in (step, step + 10)
                n_new += left > step and status != 0
                step = left
                if n_earlier == 0:  # the first save again
                    shutil.rmtree(folder)
                    folder.mkdir()
                    step = 0
            n_calls.append(n - N_ENDED)
    assert min(n_calls) > 50
    tell(record_property, kills=n_kills, calls=n_calls, kills_after_the_manifest=n_new)


@pytest.mark.faults
def test_a_kill_at_each_system_call_of_a_deletion_leaves_the_others(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    n_kills = 0
    with server(tmp_path) as send:
        folder = tmp_path / "folder"
        folder.mkdir()
        assert send(folder=str(folder), n=3, kill=0)[1] == 0
        n, status = 0, -signal.SIGKILL
        while status == -signal.SIGKILL:
            n += 1
            there = newest(folder)
            said, status = send(folder=str(folder), n=1, kill=n, remove=True)
            assert status in (0, -signal.SIGKILL), said
            n_kills += status != 0
            assert check_left(folder, there - 10) == (there if n == 1 else there - 10)
            if n > 1:
                assert send(folder=str(folder), n=1, kill=0)[1] == 0
    assert n_kills > 10
    tell(record_property, kills=n_kills)


@pytest.mark.faults
def test_a_kill_at_any_time_of_a_save_leaves_the_newest_checkpoint(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(1)
    n_kills, step = 0, 0
    folder = tmp_path / "folder"
    folder.mkdir()
    with server(tmp_path) as send:
        clock = time.monotonic()
        assert send(folder=str(folder), n=3, kill=0)[1] == 0
        most = time.monotonic() - clock
        for _ in range(RANDOM_SAVES):
            said, status = send(chance.uniform(0, most), folder=str(folder), n=3, kill=0)
            assert status in (0, -signal.SIGKILL), said
            step = check_left(folder, max(step, last_said(said)))
            n_kills += status != 0
    assert n_kills > RANDOM_SAVES / 2
    tell(record_property, kills=n_kills, steps=step)
