"""Compiled programs are kept: the second start compiles nothing, prints nothing more, and answers the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import EXPERIMENTS, TINY

COUNT = """
import atexit, runpy, sys
import jax.monitoring
counts = {"compiled": 0, "read": 0}
def count(event, **_):
    counts["compiled"] += event.endswith("/cache_misses")
    counts["read"] += event.endswith("/cache_hits")
jax.monitoring.register_event_listener(count)
_, counted, script, *options = sys.argv
atexit.register(lambda: open(counted, "w").write(f"{counts['compiled']} {counts['read']}"))
sys.argv = ["train.py", *options]
runpy.run_path(script, run_name="__main__")
"""
OWN = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "TF_CPP_MIN_LOG_LEVEL")
"""What the other tests set, and a user does not."""


def train(folder: Path, name: str, *options: str, **variables: str) -> tuple[list[int], list[str], bytes]:
    """Train a run in a process of its own; return how many programs it compiled and read, its stderr, its model."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    environment = {**environment, "XDG_CACHE_HOME": str(folder / "caches"), "COLUMNS": "80", **variables}
    counts, run = folder / f"{name}.txt", folder / name
    script = ("-c", COUNT, counts, EXPERIMENTS / "train.py", "--run-dir", run)
    command = [sys.executable, *map(str, script), *TINY, "--steps", "20", *options]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    steps = [line.split("  ")[0] for line in ended.stderr.splitlines()]  # without the seconds
    return [int(n) for n in counts.read_text().split()], steps, (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("mesh", [(), pytest.param(("--mesh", "data=2"), marks=pytest.mark.slow)])
def test_the_second_start_compiles_nothing_says_nothing_more_and_learns_the_same(
    tmp_path: Path, mesh: tuple[str, ...]
) -> None:
    (compiled, _), said, model = train(tmp_path, "first", *mesh)
    assert 0 < compiled <= 8
    assert train(tmp_path, "second", *mesh) == ([0, compiled], said, model)
    kept = tmp_path / "caches" / "jaxcalc" / "programs"
    for name in ("train_steps", "_generate"):
        assert len(list(kept.glob(f"*/jit_{name}-*-cache"))) == 1


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_and_a_damaged_program_cost_only_time(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "jaxcalc").touch()  # where the folder would be
    (_, read), said, model = train(tmp_path, "without")
    assert read == 0
    (tmp_path / "caches" / "jaxcalc").unlink()
    assert train(tmp_path, "first")[1:] == (said, model)
    for program in (tmp_path / "caches").rglob("jit_train_steps-*-cache"):
        program.write_bytes(program.read_bytes()[:1000])
    (_, read), *again = train(tmp_path, "again")
    assert read > 0
    assert tuple(again) == (said, model)


def test_the_folder_that_the_user_chose_is_used(tmp_path: Path) -> None:
    chosen = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    train(tmp_path, "first", **chosen)
    assert list((tmp_path / "own").glob("jit_train_steps-*"))
    assert not (tmp_path / "caches" / "jaxcalc").exists()
