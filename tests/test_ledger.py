"""The ledger: its sums, in float64 and for every optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, Calculator, ledger
from jaxcalc.batch import batch_of

N, SIZE = 10, 16


@pytest.fixture(scope="module")
def task() -> Calculator:
    return jaxcalc.calculator(max_number=9)


def trained(task: Calculator, tx: optax.GradientTransformation) -> list[ledger.Moves]:
    """Return the steps of a tiny run in two parts, the last one first."""
    params = jaxcalc.init(0, jaxcalc.ModelConfig(task.vocab_size, 8, 2, 16, 1, task.context_length))
    if jax.config.read("jax_enable_x64"):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    state, states, norms = jaxcalc.create_state(params, tx), [], []
    for step in range(N):
        states.append(state)
        state, metrics = jaxcalc.train_step(state, jaxcalc.batch_at(task, 0, step, SIZE))
        norms.append(metrics["grad_norm"])
    states.append(state)

    def moves(start: int, end: int) -> ledger.Moves:
        kept = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states[start : end + 1])
        return ledger.Moves(start, kept.params, kept.opt_state, jnp.stack(norms[start:end]))

    return [moves(N // 2, N), moves(0, N // 2)]


def questions(task: Calculator, n: int = 2) -> Batch:
    return batch_of(task, task.tokens[task.held_out_rows[:n]])


def rows_of(task: Calculator, tx: Any, backwards: list[ledger.Moves], n: int = 2, **options: Any) -> ledger.Rows:
    """Return the rows of all steps, in order."""
    found = [*ledger.rows(backwards, task, questions(task, n), tx, seed=0, batch_size=SIZE, **options)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(rows[1:] for rows in reversed(found)))
    return ledger.Rows(found[-1].first, *joined)


def by_leaves(rows: ledger.Rows) -> np.ndarray:
    return np.sum([leaf.reshape(*leaf.shape[:2], -1).sum(axis=(0, 2)) for leaf in rows.leaves.values()], axis=0)


def by_examples(rows: ledger.Rows) -> np.ndarray:
    return (rows.examples.sum(axis=2) + rows.decay + rows.rounding).sum(axis=0) + rows.before[0]


OWN = {
    "sgd": {"weight_decay": 0.1},
    "adamw": {},
    "muon": {},
    "muon with clipping": {"clip_norm": 0.5},
}


@pytest.mark.parametrize("name", OWN)
def test_the_examples_add_up_to_the_steps_and_the_steps_to_the_drop(task: Calculator, name: str) -> None:
    with jax.enable_x64(True):
        tx = jaxcalc.make_optimizer(name.split()[0], N, **OWN[name])  # pyright: ignore[reportArgumentType]
        rows = rows_of(task, tx, trained(task, tx), tolerance=1e-7)
        whole, rounding = rows.drop.sum(axis=0), abs(rows.rounding).sum(axis=0)
    assert (whole > 0.1).all()
    np.testing.assert_allclose(by_leaves(rows), whole, rtol=1e-3)  # ReLU's kinks: a quadrature converges slowly
    # Optax keeps Muon's coefficients in float32.
    exact = 1e-9 if "muon" in name else 1e-13
    np.testing.assert_allclose(by_examples(rows), by_leaves(rows), rtol=0, atol=exact)
    assert (rounding < exact).all()


def test_a_run_without_its_beginning_names_what_the_momentum_brought_along(task: Calculator) -> None:
    tx = jaxcalc.make_optimizer("adamw", N)
    rows = rows_of(task, tx, trained(task, tx)[:1])
    assert rows.first == N // 2
    assert (abs(rows.before[0]) > 1e-3).all()
    np.testing.assert_allclose(by_examples(rows), by_leaves(rows), atol=1e-5)


def test_a_direction_finds_the_example_that_moved_the_weights(task: Calculator) -> None:
    # One step of plain descent: the row of an example is rate · ⟨−w, g_i⟩, with each gradient computed alone.
    tx = jaxcalc.make_optimizer("sgd", None, 1e-4)
    moves = trained(task, tx)[1]
    params, opt_state = (jax.tree.map(lambda leaf: leaf[:2], tree) for tree in (moves.params, moves.opt_state))
    first = ledger.Moves(0, params, opt_state, moves.grad_norm[:1])
    row = rows_of(task, tx, [first])
    params, batch = jax.tree.map(lambda leaf: leaf[0], first.params), jaxcalc.batch_at(task, 0, 0, SIZE)
    gradient = jax.jit(jax.grad(jaxcalc.loss))
    n_counted = batch.mask.sum()
    for index in (0, 5):
        alone = jax.tree.map(lambda x, index=index: x[index][None], batch)
        share = alone.mask.sum() / n_counted
        asked = jax.tree.map(lambda x: x[:1], questions(task))
        dot = optax.tree.vdot(gradient(params, alone), gradient(params, asked)) * asked.mask.sum()
        assert row.examples[0, 0, index] == pytest.approx(float(1e-4 * share * dot), rel=0.02)


@pytest.mark.parametrize("name", ["adagrad", "lion", "rmsprop"])
def test_the_steps_of_any_optimizer_add_up_to_the_drop(task: Calculator, name: str) -> None:
    tx = getattr(optax, name)(1e-2)
    rows = rows_of(task, tx, trained(task, tx), tolerance=1e-5)
    np.testing.assert_allclose(by_leaves(rows), rows.drop.sum(axis=0), atol=5e-3)
    assert rows.examples.shape == (N, 2, 0)


def test_many_questions_by_gradients_are_each_alone_by_products(
    task: Calculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx = jaxcalc.make_optimizer("adamw", N)
    moves = trained(task, tx)
    few = rows_of(task, tx, moves, tolerance=1e-6)
    monkeypatch.setattr(ledger, "N_TOGETHER", 3)
    many = rows_of(task, tx, moves, ledger.FEW + 1, tolerance=1e-6)
    assert few.examples.shape[1] <= ledger.FEW
    np.testing.assert_allclose(many.examples[:, :2], few.examples, atol=1e-5)
    np.testing.assert_allclose(by_examples(many), by_leaves(many), atol=1e-4)
