"""train.py stops at steps that are not finite, or leaves them out, as often as it may."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from harness import bits_at, check_unlocked, config_of, is_finite, metrics, newest, patched, steps_of, train
from scripts import TINY

import jaxcalc
from jaxcalc import Batch, Task, runs
from jaxcalc.runs import guard

RUN = (*TINY, "--steps", "40", "--checkpoint-every", "10")


def poisoned(*bad: int) -> Callable[[Any], Any]:
    """Return a wrapper of `batch_at` that makes the mask infinite at some steps, counted from 0."""

    def wrap(batch_at: Any) -> Any:
        def bad_batch_at(task: Task, seed: int, step: int, *rest: Any) -> Batch:
            batch = batch_at(task, seed, step, *rest)
            return batch._replace(mask=jnp.where(jnp.isin(step, jnp.array(bad)), np.inf, batch.mask))

        return bad_batch_at

    return wrap


def poisoned_train(bad: tuple[int, ...], *arguments: str | Path) -> Any:
    wrap = poisoned(*bad)
    with patched(guard, "batch_at", wrap), patched(jaxcalc.training, "batch_at", wrap):
        return train(*arguments)


def check_batch_is_kept(run: Path, step: int, wrap: Callable[[Any], Any] = lambda function: function) -> dict[str, Any]:
    """Check that the batch of a step, counted from 1, was saved; return the JSON that was saved with it."""
    config = config_of(run)
    task, schedule = config.make_task(), config.schedule
    expected = wrap(jaxcalc.batch_at)(task, schedule.seed, step - 1, schedule.batch_size, schedule.loss_on)
    found = safetensors.numpy.load_file(run / "nonfinite" / f"{step:06}.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: np.asarray(array).tobytes() for name, array in expected._asdict().items()
    }
    return json.loads((run / "nonfinite" / f"{step:06}.json").read_text())


BAD = (12, 13, 36)  # counted from 0


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A run with three bad steps: its folder, how it stopped at the second, and how it ended after --resume."""
    run = tmp_path_factory.mktemp("skipping") / "run"
    first = poisoned_train(BAD, "--run-dir", run, *RUN, "--skip-nonfinite", "1", "--json")
    assert (newest(run), steps_of(run), (run / "summary.json").exists()) == (13, list(range(1, 14)), False)
    check_unlocked(run)
    return run, first, poisoned_train(BAD, "--resume", run, "--skip-nonfinite", "3")


def test_bad_steps_stop_a_run_and_are_left_out_as_often_as_allowed(skipping: tuple[Path, Any, Any]) -> None:
    run, ended, resumed = skipping
    assert ended.status == 3
    assert "step 13 is left out" in ended.err
    assert "Stopped: step 14 is not finite (loss nan, gradient norm nan), first in: batch, mask mask" in ended.err
    assert f"--resume {run} --skip-nonfinite 2" in ended.err
    assert str(run / "nonfinite" / "000014.safetensors") in ended.err
    assert json.loads(ended.out)["steps"] == 13

    assert resumed.status == 0, resumed.err
    assert steps_of(run) == list(range(1, 41))
    assert [row["step"] for row in metrics(run) if "skipped" in row] == [13, 14, 37]
    assert json.loads((run / "summary.json").read_text())["skipped_steps"] == 3
    for step in (13, 14, 37):
        printed = check_batch_is_kept(run, step, poisoned(*BAD))
        assert printed["step"] == step
        assert printed["first"] == {"stage": "batch", "what": "mask", "leaf": "mask"}
        assert set(printed["metrics"].values()) == {"nan"}
    for step in runs.checkpoint_steps(run):
        state, _ = runs.load_checkpoint(run, config_of(run), step)
        assert is_finite((state.params, state.opt_state))


def without_paths(run: Path) -> list[dict[str, Any]]:
    return [{**row, "skipped": True} if "skipped" in row else row for row in metrics(run)]


@pytest.mark.faults
def test_bad_steps_are_counted_over_resumes_and_it_is_the_same_to_leave_them_out_at_once(
    skipping: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    at_once, step_by_step = tmp_path / "at once", tmp_path / "step by step"
    assert poisoned_train(BAD, "--run-dir", at_once, *RUN, "--skip-nonfinite", "3").status == 0
    assert poisoned_train(BAD, "--run-dir", step_by_step, *RUN).status == 3
    for n, done in ((0, 12), (1, 13), (1, 13), (2, 36), (2, 36), (3, 40)):
        ended = poisoned_train(BAD, "--resume", step_by_step, "--skip-nonfinite", str(n))
        assert ended.status == (0 if n == 3 else 3), ended.err
        assert newest(step_by_step) == done
        assert steps_of(step_by_step) == list(range(1, done + 1))
    for run in (at_once, step_by_step):
        assert bits_at(run, 40) == bits_at(skipping[0], 40)
        assert without_paths(run) == without_paths(skipping[0])


RATE = ("--optimizer", "sgd", "--learning-rate", "1e30")


@pytest.mark.faults
def test_a_rate_that_is_too_high_stops_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train("--run-dir", run, *RUN, *RATE)
    assert ended.status == 3
    step = newest(run)
    assert 0 <= step < 10
    assert f"Stopped: step {step + 1} is not finite" in ended.err
    printed = check_batch_is_kept(run, step + 1)
    assert printed["first"] is None or printed["first"]["stage"] != "batch"
    assert steps_of(run) == list(range(1, step + 1))
    state, _ = runs.load_checkpoint(run, config_of(run), step)
    assert is_finite((state.params, state.opt_state))


@pytest.mark.faults
def test_a_run_may_leave_out_nearly_all_of_its_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train("--run-dir", run, *RUN, *RATE, "--skip-nonfinite", "1000")
    assert ended.status == 0, ended.err
    assert steps_of(run) == list(range(1, 41))
    assert sum("skipped" in row for row in metrics(run)) > 20
    state, _ = runs.load_checkpoint(run, config_of(run), 40)
    assert is_finite((state.params, state.opt_state))
