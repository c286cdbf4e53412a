"""What the fault tests share: ways to train and to break training, and checks of what a run left."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from scripts import Ended, run_script, start_script

from jaxcalc import load_params, named_leaves, runs


def train(*arguments: object) -> Ended:
    """Run train.py in this process, which keeps what it has compiled."""
    return run_script("train", *arguments)


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start train.py in a process of its own; for the options see `start_script`."""
    return start_script("train", *arguments, **options)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait until a condition holds; fail if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.002)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the time of day."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in runs.read_metrics(run)]


def steps_of(run: Path) -> list[int]:
    """Return the steps in metrics.jsonl, made or skipped, in its order."""
    return [row["step"] for row in runs.read_metrics(run) if "loss" in row or "skipped" in row]


def config_of(run: Path) -> runs.RunConfig:
    return runs.read_config(run)


def bits(state: Any) -> dict[str, tuple[str, bytes]]:
    """Return the dtype and all bits of each leaf of parameters and optimizer state, and of the step."""
    leaves = named_leaves({"params": state.params, "opt_state": state.opt_state, "step": state.step})
    return {name: (str(leaf.dtype), np.asarray(leaf).tobytes()) for name, leaf in leaves.items()}


def bits_at(run: Path, step: int) -> dict[str, tuple[str, bytes]]:
    """Return the `bits` of a run's checkpoint."""
    return bits(runs.load_checkpoint(run, config_of(run), step)[0])


def files(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def names(run: Path) -> list[str]:
    """Return what is in a run's folder and in its checkpoints/, such as "checkpoints/000040"."""
    found = [*run.iterdir(), *(run / "checkpoints").iterdir()]
    return sorted(path.relative_to(run).as_posix() for path in found)


def check_refused(ended: Ended, *texts: str) -> None:
    """Check that a script ended with status 2 and one line that holds all the texts."""
    assert ended.status == 2, ended.err
    assert "Traceback" not in ended.err
    *_, last = ended.err.splitlines()
    assert last.startswith("error: ")
    for text in texts:
        assert text in last


def check_same_run(run: Path, reference: Path) -> None:
    """Check that an interrupted run equals an uninterrupted one, bit for bit, and that nothing is left behind."""
    last = config_of(reference).schedule.steps
    assert steps_of(run) == list(range(1, last + 1))
    assert metrics(run) == metrics(reference)
    assert names(run) == names(reference)
    assert runs.checkpoint_steps(run) == runs.checkpoint_steps(reference)
    for step in runs.checkpoint_steps(run):
        assert bits_at(run, step) == bits_at(reference, step), step
    found, expected = (load_params(path / "model.safetensors") for path in (run, reference))
    chex.assert_trees_all_equal(found, expected, strict=True)
    check_unlocked(run)


def check_unlocked(run: Path) -> None:
    assert not (run / ".writer").exists()
    with runs.writing(run):
        pass


def check_clean(run: Path) -> None:
    """Check that nothing half-written is in a run's folder."""
    folder = run / "checkpoints"
    assert not [
        path for path in run.rglob("*") if path.name.endswith(".partial") or "orbax-checkpoint-tmp" in path.name
    ]
    for path in folder.iterdir() if folder.exists() else ():
        assert (path / "manifest.json").is_file(), path


def newest(run: Path) -> int:
    """Return the step of the newest complete checkpoint, −1 where there is none."""
    return max(runs.checkpoint_steps(run), default=-1)


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, symlinks=True)
    return to


@contextlib.contextmanager
def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute with `make(original)`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, make(getattr(owner, name)))
        yield


def before(action: Callable[..., None]) -> Callable[[Any], Any]:
    """Return a wrapper that runs an action before each call of a function, with the same arguments."""

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            action(*args, **kwargs)
            return original(*args, **kwargs)

        return call

    return wrap


def nth(n: int, action: Callable[[], Any]) -> Callable[..., None]:
    """Return a function whose n-th call, counted from 1, runs an action."""
    calls = iter(range(1, 10**9))

    def call(*_: Any, **__: Any) -> None:
        if next(calls) == n:
            action()

    return call


def stop_at_write(n: int, number: int = signal.SIGTERM) -> contextlib.AbstractContextManager[None]:
    """Raise a signal just before lines are written to metrics.jsonl for the n-th time."""
    return patched(runs.MetricsFile, "write", before(nth(n, lambda: signal.raise_signal(number))))


def with_flipped_bit(data: bytes, random: random.Random) -> bytes:
    """Return bytes with one random bit flipped."""
    changed = bytearray(data)
    bit = random.randrange(8 * len(data))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def tell(record: Callable[[str, object], None], **counts: object) -> None:
    """Report the counts of a long test, as pytest properties and on stdout (see them with -s)."""
    for name, value in counts.items():
        record(name, value)
    print("faults:", json.dumps(counts))
