"""kill -9 at any call of a save, a deletion or the beginning of a run: the newest complete checkpoint stays."""

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
    check_clean,
    copied,
    files,
    newest,
    tell,
)
from scripts import child_environment

from jaxcalc import runs
from jaxcalc.runs import checkpoint, manifest
from jaxcalc.runs.manifest import check_files

N_ENDED = 5
"""A save makes a varying number of calls; after so many saves in a row that ended first, all calls were tried."""
RANDOM_SAVES = 60
"""How many saves the long test kills at a random time."""


class Moments:
    """Copies a folder before each call of this process that changes a file, as a kill at that moment would leave it."""

    now: ClassVar["Moments | None"] = None
    EVENTS: ClassVar = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies, self.n = folder, copies, 0
        self.lock = threading.Lock()

    @classmethod
    def hook(cls, event: str, args: tuple[Any, ...]) -> None:
        """Copy the folder at an event of Python's; such a hook cannot be removed."""
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
    """Copy a folder while other threads may change it."""
    with contextlib.suppress(shutil.Error, FileNotFoundError):
        shutil.copytree(folder, to)


def check_left(folder: Path, least: int) -> int:
    """Check that a killed writer of `saver` left one of its states, no older than `least`; return its step."""
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
    """Save states of `saver`; with `moments`, copy the folder during the last save."""
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
    assert not (folder / "checkpoints" / "000020").exists()  # so kills during its deletion were tried too


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
    """Stands for the end of the process."""


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
    """Start a server of writers; yield a function that sends an order and returns what was printed, and the status."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("counting the calls of a process needs Linux and a C compiler")
    (folder / "shim.c").write_text(saver.SHIM)
    shim = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", shim, folder / "shim.c", "-ldl"], check=True)
    environment = child_environment(LD_PRELOAD=str(shim), JAX_NUM_CPU_DEVICES=str(jax.device_count()))
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


def last_said(printed: list[str]) -> int:
    return max((int(line) for line in printed if line.isdigit()), default=0)


@pytest.mark.faults
def test_a_kill_at_each_system_call_of_a_save_leaves_the_newest_checkpoint(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """At the first call that changes a file, at the second, …, up to the last."""
    n_kills, n_calls, n_new = 0, [], 0
    with server(tmp_path) as send:
        for n_earlier in (0, 4, 4):  # the first save, and two that delete old ones
            folder = tmp_path / f"{len(n_calls)}"
            folder.mkdir()
            if n_earlier:
                assert send(folder=str(folder), n=n_earlier, kill=0)[1] == 0
            n, n_ended, step = 0, 0, 10 * n_earlier
            while n_ended < N_ENDED:
                n += 1
                printed, status = send(folder=str(folder), n=1, kill=n)
                assert status in (0, -signal.SIGKILL), printed
                n_ended = n_ended + 1 if status == 0 else 0
                n_kills += status != 0
                left = check_left(folder, max(step, last_said(printed)))
                assert left in (step, step + 10)
                n_new += left > step and status != 0
                step = left
                if n_earlier == 0:  # start again from an empty folder
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
            printed, status = send(folder=str(folder), n=1, kill=n, remove=True)
            assert status in (0, -signal.SIGKILL), printed
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
            printed, status = send(chance.uniform(0, most), folder=str(folder), n=3, kill=0)
            assert status in (0, -signal.SIGKILL), printed
            step = check_left(folder, max(step, last_said(printed)))
            n_kills += status != 0
    assert n_kills > RANDOM_SAVES / 2
    tell(record_property, kills=n_kills, steps=step)
