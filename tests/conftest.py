"""Fixtures that several test modules share; each is made once."""

import jax
import pytest

import jaxcalc


@pytest.fixture(scope="session")
def task() -> jaxcalc.Task:
    return jaxcalc.calculator()


@pytest.fixture(scope="session")
def params(task: jaxcalc.Task) -> jaxcalc.Params:
    """Parameters large enough that every path through the model matters."""
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, context_length=task.context_length))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="session")
def batch(task: jaxcalc.Task) -> jaxcalc.Batch:
    return jaxcalc.batch_at(task, seed=0, step=0, size=16)
