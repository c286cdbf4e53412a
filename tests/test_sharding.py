"""Many devices: the step of the whole batch, and how often the devices meet for it."""

import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task
from jaxcalc.sharding import data_parallel


@pytest.fixture(scope="module")
def devices() -> list[jax.Device]:
    assert len(jax.devices()) >= 2, "conftest.py makes two devices of the CPU"
    return jax.devices()[:2]


def test_two_devices_take_the_step_of_one(params: Params, batch: Batch, devices: list[jax.Device]) -> None:
    tx = optax.sgd(0.1)  # whose step is the gradient itself
    alone, metrics = jaxcalc.train_step(jaxcalc.create_state(params, tx), batch)
    together, their_metrics = jaxcalc.train_step(jaxcalc.create_state(params, tx, data_parallel(devices)), batch)
    chex.assert_trees_all_close(together.params, alone.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(their_metrics, metrics, rtol=1e-5)
    assert together.params["embed"]["token"].sharding.device_set == set(devices)


def test_many_steps_on_two_devices_are_those_of_one(task: Task, params: Params, devices: list[jax.Device]) -> None:
    def train(apply_fn: jaxcalc.losses.ApplyFn) -> Params:
        state = jaxcalc.create_state(jax.tree.map(jnp.copy, params), optax.sgd(0.01), apply_fn)
        return jaxcalc.train_steps(state, task, seed=0, n_steps=5, batch_size=16)[0].params

    chex.assert_trees_all_close(train(data_parallel(devices)), train(jaxcalc.apply), rtol=1e-4, atol=1e-5)


def test_the_devices_meet_twice_a_step(task: Task, params: Params, devices: list[jax.Device]) -> None:
    state = jaxcalc.create_state(params, optax.adam(1e-3), data_parallel(devices))
    lowered = jaxcalc.train_steps.lower(state, task, seed=0, n_steps=3, batch_size=16)
    meetings = re.findall(r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(",
                          lowered.compile().as_text())  # fmt: skip
    assert sorted(kind for _, kind in meetings) == ["all-gather", "all-reduce"]
    (gradient,) = (shape for shape, kind in meetings if kind == "all-reduce")
    assert gradient.startswith(f"f32[{jaxcalc.count(params)}]")


def test_a_batch_that_does_not_divide_is_refused(task: Task, params: Params, devices: list[jax.Device]) -> None:
    state = jaxcalc.create_state(params, optax.sgd(0.1), data_parallel(devices))
    with pytest.raises(InputError, match="a batch of 15 does not divide evenly among 2 devices"):
        jaxcalc.train_step(state, jaxcalc.batch_at(task, 0, 0, 15))
