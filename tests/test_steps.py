import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcalc
from jaxcalc import Batch, Params, Task, make_optimizer
from jaxcalc.optimizers import ADAM_BETAS, OptimizerName
from jaxcalc.steps import Step, forget, take_step
from jaxcalc.training import train_step

grad = jax.jit(jax.grad(jaxcalc.loss))


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, 16, 2, 24, 1))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_the_step_is_the_one_that_training_makes(name: OptimizerName, params: Params, batch: Batch) -> None:
    state = jaxcalc.create_state(params, make_optimizer(name, n_steps=100))
    after, _ = train_step(state, batch)
    step = take_step(state.tx, grad(params, batch), state.opt_state, params)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(step.update)) > 1e-4
    chex.assert_trees_all_close(step.params, after.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(step.opt_state, after.opt_state, rtol=1e-4, atol=1e-6)


def test_the_parts_of_a_step_are_its_gradient_its_decay_and_its_clipping(params: Params, batch: Batch) -> None:
    """After some steps, so that momentum of earlier gradients is there too."""
    tx = make_optimizer("adamw", None, 1e-3, weight_decay=1.0, clip_norm=0.5)
    unclipped = make_optimizer("adamw", None, 1e-3, weight_decay=1.0)
    opt_state = tx.init(params)
    for _ in range(3):
        before, grads = params, grad(params, batch)
        earlier, step = opt_state, take_step(tx, grads, opt_state, params, unclipped)
        params, opt_state = step.params, step.opt_state
    total = jax.tree.map(lambda *parts: sum(parts), step.from_gradient, step.weight_decay, step.clipping)
    chex.assert_trees_all_close(total, step.update, atol=1e-8)
    for name, decay in jaxcalc.named_leaves(step.weight_decay).items():  # decoupled: −rate · decay · weight
        is_matrix = name.startswith("blocks") and not name.endswith("norm")
        expected = -1e-3 * jaxcalc.named_leaves(before)[name] if is_matrix else np.zeros(decay.shape)
        np.testing.assert_allclose(decay, expected, atol=3e-9)
    norm = float(optax.tree.norm(grads))
    assert norm > 0.5  # so clipping has work to do
    clipped = jax.tree.map(lambda g: g * 0.5 / norm, grads)
    expected = take_step(unclipped, clipped, earlier, before).update
    chex.assert_trees_all_close(step.update, expected, rtol=1e-4, atol=1e-8)


@given(value=st.floats(-2, 2), gradient=st.floats(-2, 2), rate=st.floats(1e-4, 1))
@settings(max_examples=10, deadline=None)
def test_plain_sgd_reads_as_w_minus_rate_times_g(value: float, gradient: float, rate: float) -> None:
    tx = optax.sgd(rate)
    params, grads = {"w": jnp.float32(value)}, {"w": jnp.float32(gradient)}
    step: Step = take_step(tx, grads, tx.init(params), params)
    assert float(step.params["w"]) == pytest.approx(value - rate * gradient, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_a_state_that_forgot_makes_the_step_of_equal_gradients(
    name: OptimizerName, params: Params, batch: Batch
) -> None:
    """After steps with one gradient only, there is nothing to forget but a sum of it: momentum turns nothing."""
    tx, grads = make_optimizer(name, None), grad(params, batch)
    opt_state = tx.init(params)
    steps = [take_step(tx, grads, opt_state, params)]
    for _ in range(2):
        steps.append(take_step(tx, grads, steps[-1].opt_state, params))
    forgot = take_step(tx, grads, forget(steps[1].opt_state, grads, ADAM_BETAS[0], 2), params)
    expected = steps[0 if name == "sgd" else 2].from_gradient  # a trace forgets the sum
    chex.assert_trees_all_close(forgot.from_gradient, expected, rtol=1e-2, atol=1e-5)
    other = take_step(tx, jax.tree.map(jnp.negative, grads), steps[1].opt_state, params).opt_state
    chex.assert_trees_all_close(
        take_step(tx, grads, forget(other, grads, ADAM_BETAS[0], 3), params).from_gradient,
        take_step(tx, grads, forget(steps[2].opt_state, grads, ADAM_BETAS[0], 3), params).from_gradient,
        rtol=1e-2,
        atol=1e-5,
    )
