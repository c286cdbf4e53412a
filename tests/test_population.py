"""A member of a population is what it would be alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import InputError, ModelConfig, population
from jaxcalc.tasks.task import Task

SEEDS = jnp.array([0, 7])
RATES = jnp.array([0.02, 0.005])
DECAYS = jnp.array([1.0, 0.0])


@pytest.fixture(scope="module")
def task() -> Task:
    return jaxcalc.calculator(operations=("plus", "times"), max_number=20)


@pytest.fixture(scope="module")
def config(task: Task) -> ModelConfig:
    return ModelConfig(task.vocab_size, d_model=16, n_heads=2, d_ff=32, n_layers=1, context_length=task.context_length)


def test_first_weights_are_those_of_each_seed(config: ModelConfig) -> None:
    params = population.init(SEEDS, config)
    for p, seed in enumerate(SEEDS):
        alone = jaxcalc.init(jax.random.key(seed), config)
        chex.assert_trees_all_close(population.member(params, p), alone, rtol=1e-6)


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "adamw")), "sgd"])
def test_each_member_equals_its_run_alone(
    task: Task, config: ModelConfig, name: jaxcalc.optimizers.OptimizerName
) -> None:
    """Seeds, rates and decays all differ. The runs are in float64, but Optax rounds the schedule's rates to float32."""
    with jax.enable_x64(True):
        make_tx = functools.partial(jaxcalc.make_optimizer, name, 6, warmup_steps=2)
        inits = [jaxcalc.init(jax.random.key(seed), config) for seed in SEEDS]
        firsts = [jax.tree.map(lambda leaf: leaf.astype(float), params) for params in inits]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *firsts)
        state = population.create_state(params, make_tx, learning_rate=RATES, weight_decay=DECAYS)
        settings = {"n_steps": 3, "batch_size": 32}
        for _ in range(2):
            state, metrics = population.train_steps(state, task, seeds=SEEDS, **settings)
        for p, (first, rate, decay) in enumerate(zip(firsts, RATES, DECAYS, strict=True)):
            alone = jaxcalc.create_state(first, make_tx(learning_rate=float(rate), weight_decay=float(decay)))
            for _ in range(2):
                alone, alone_metrics = jaxcalc.train_steps(alone, task, seed=SEEDS[p], **settings)
            found = population.member(state, p)
            chex.assert_trees_all_close(found.params, alone.params, rtol=1e-5, atol=1e-6)
            chex.assert_trees_all_close(population.member(metrics, p), alone_metrics, rtol=1e-5)
            assert int(found.step) == int(alone.step) == 6


def test_a_member_goes_on_alone(task: Task, config: ModelConfig) -> None:
    state = population.create_state(population.init(SEEDS, config), optax.adamw, learning_rate=RATES)
    batch = jaxcalc.batch_at(task, seed=0, step=0, size=32)
    alone, _ = jaxcalc.train_step(population.member(state, 1), batch)
    together, _ = jax.vmap(jaxcalc.train_step, in_axes=(0, None))(state, batch)
    chex.assert_trees_all_close(population.member(together, 1).params, alone.params, rtol=1e-5, atol=1e-7)


def test_hyperparameters_are_data(task: Task, config: ModelConfig) -> None:
    """Other values, another seed and later steps compile nothing: the optimizer is traced once."""
    traced = chex.assert_max_traces(jaxcalc.apply, n=1)
    chex.clear_trace_counter()
    state = population.create_state(population.init(SEEDS, config), optax.sgd, traced, learning_rate=RATES)
    for rates in (1 * RATES, 2 * RATES):
        state.opt_state.hyperparams["learning_rate"] = rates
        state, _ = population.train_steps(state, task, seeds=SEEDS + 1, n_steps=2, batch_size=16)


def test_answers_are_those_of_evaluate(task: Task, config: ModelConfig) -> None:
    state = population.create_state(population.init(SEEDS, config), optax.adamw, learning_rate=RATES)
    state, _ = population.train_steps(state, task, seeds=SEEDS, n_steps=100, batch_size=64)
    correct = population.correct(state.params, task, task.train_rows)
    assert 0 < correct.mean() < 1
    for p in range(len(SEEDS)):
        alone = jaxcalc.evaluate(population.member(state.params, p), task, task.train_rows)
        np.testing.assert_array_equal(correct[p], alone.correct)


def test_bad_input_is_named(task: Task, config: ModelConfig) -> None:
    params = population.init(SEEDS, config)
    make_tx = functools.partial(jaxcalc.make_optimizer, "muon", 10)
    with pytest.raises(InputError, match=r"learning_rate has shape \(1,\); expected \(2,\)"):
        population.create_state(params, make_tx, learning_rate=RATES[:1])
    with pytest.raises(InputError, match=r"no hyperparameter 'rate'; there are .*learning_rate"):
        population.create_state(params, make_tx, rate=RATES)
    with pytest.raises(InputError, match=r"no hyperparameter is given; name at least one of .*weight_decay"):
        population.create_state(params, make_tx)
    with pytest.raises(InputError, match="learning_rate is -"):
        population.create_state(params, make_tx, learning_rate=-RATES)
    with pytest.raises(InputError, match=r"no member 2; .* 0 to 1"):
        population.member(params, 2)
    with pytest.raises(InputError, match=r"output.unembed"):
        population.size(params | {"output": {**params["output"], "unembed": jnp.zeros((3, 16, 35))}})
    with pytest.raises(InputError, match="step"):
        population.member(jaxcalc.create_state(params, optax.sgd(0.1)), 0)
    state = population.create_state(params, optax.sgd, learning_rate=RATES)
    with pytest.raises(InputError, match=r"seeds have shape \(1,\); expected \(2,\)"):
        population.train_steps(state, task, seeds=SEEDS[:1], n_steps=1, batch_size=8)
