"""The experiments that train without lessons: what removal.py compares, and how far horizon.py differentiates."""

import json
from pathlib import Path

import horizon
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import removal
from scripts import run_script

import jaxcalc


@pytest.fixture(scope="module")
def run() -> removal.Setting:
    return removal.setting(seed=0, n_steps=20, n_questions=2)


@pytest.mark.slow
def test_with_every_lesson_a_run_is_the_one_that_train_steps_takes(run: removal.Setting) -> None:
    fixed = {"seed": 0, "batch_size": run.batch_size, "n_steps": 20}
    every = removal.train(run.state, run.task, jnp.ones(len(run.task.lessons)), **fixed)[0]
    as_usual = jaxcalc.train_steps(jax.tree.map(jnp.copy, run.state), run.task, **fixed)[0]
    jax.tree.map(np.testing.assert_array_equal, every.params, as_usual.params)

    # A lesson that no batch holds is not missed, and one that a batch holds is.
    visited = np.concatenate([run.number[jaxcalc.rows_at(run.task, 0, step, run.batch_size)] for step in range(3)])
    unseen = np.setdiff1d(run.number, visited)[0]
    for removed, is_same in ((unseen, True), (visited[0], False)):
        of_row = jnp.asarray(run.number != removed, jnp.float32)
        params = removal.train(run.state, run.task, of_row, **{**fixed, "n_steps": 3})[0].params
        plain = removal.train(run.state, run.task, jnp.ones(len(of_row)), **{**fixed, "n_steps": 3})[0].params
        assert bool((params["output"]["unembed"] == plain["output"]["unembed"]).all()) == is_same


@pytest.mark.slow
def test_removal_prints_draws_and_stores_what_three_choices_of_lessons_change(tmp_path: Path) -> None:
    arguments = ("--steps", 60, "--questions", 2, "--subsets", 3, "--seeds", 1, "--out", tmp_path)
    ended = run_script("removal", *arguments)
    assert ended.status == 0, ended.err
    assert "Rank correlation with random removals" in ended.out
    result = json.loads((tmp_path / "removal.json").read_text())
    changes = result["seeds"][0]["removed"]["ledger"]
    assert result["removed"]["50"]["ledger"][0] == pytest.approx(np.mean(changes["50"]))
    # Without the fifty lessons that taught a question most, it is known worse, and worse than without random ones.
    assert 0 < result["removed"]["50"]["ledger"][0] > result["removed"]["50"]["random"][0]
    assert (tmp_path / "removal.png").stat().st_size > 10_000
    assert run_script("removal", "--questions", 0).err.startswith("error: --questions is 0")


@pytest.mark.slow
@pytest.mark.parametrize("name", horizon.optimizers(40))
def test_a_derivative_through_steps_is_a_finite_difference(run: removal.Setting, name: str) -> None:
    with jax.enable_x64(True):
        tx = horizon.optimizers(40)[name]
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), run.state.params)
        start = (params, tx.init(params), jnp.zeros((), jnp.int32))
        fixed = {"seed": 0, "batch_size": run.batch_size, "tx": tx, "n_steps": 20}
        of_lesson = jax.random.normal(jax.random.key(1), (len(run.lessons.tokens),), jnp.float64)

        @jax.jit
        def final(amount: jax.Array) -> jax.Array:
            of_row = (1 + amount * of_lesson)[run.number]
            return removal.surprises(horizon.train(start, run.task, of_row, **fixed)[0], run.questions).sum()

        # So near that no ReLU turns on or off: there the gradient jumps, and with it the next step.
        slope, far = jax.grad(final)(jnp.zeros((), jnp.float64)), 1e-7
        change = (final(jnp.asarray(far)) - final(jnp.asarray(-far))) / (2 * far)
        assert float(slope) == pytest.approx(float(change), rel=1e-4)


@pytest.mark.slow
def test_horizon_prints_where_the_correlation_falls(tmp_path: Path) -> None:
    arguments = ("--steps", 20, "--last", 10, "--questions", 2, "--lessons", 10, "--out", tmp_path)
    ended = run_script("horizon", *arguments)
    assert ended.status == 0, ended.err
    assert "first below 0.9" in ended.out
    found = json.loads((tmp_path / "horizon.json").read_text())
    assert min(found["correlation"]["SGD, momentum"]["10"]) > 0.8
    assert (tmp_path / "horizon.png").stat().st_size > 10_000
    assert run_script("horizon", "--last", 15).err.startswith("error: --last and --steps have 15")
