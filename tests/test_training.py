import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct
from flax.core import FrozenDict

import jaxcalc
from jaxcalc import (
    Batch,
    InputError,
    Params,
    Task,
    batch_at,
    create_state,
    in_microbatches,
    loss,
    make_optimizer,
    train_step,
    train_steps,
)
from jaxcalc.optimizers import OptimizerName

SGD, ADAM = optax.sgd(0.01), optax.adam(0.1)
"""Optimizers for many tests, whose steps JAX then compiles once."""


@pytest.fixture(scope="module")
def small() -> Task:
    return jaxcalc.calculator(max_number=10)


def new_state(task: Task, tx: optax.GradientTransformation) -> jaxcalc.TrainState:
    config = jaxcalc.ModelConfig(task.vocab_size, 16, 2, 32, 1, task.context_length)
    return create_state(jaxcalc.init(jax.random.key(0), config), tx)


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    config = jaxcalc.ModelConfig(task.vocab_size, 16, 2, 32, 1, task.context_length)
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, jaxcalc.init(jax.random.key(1), config))


def test_a_step_of_sgd_is_the_weights_minus_the_rate_times_the_gradient(params: Params, batch: Batch) -> None:
    state, metrics = train_step(create_state(params, SGD), batch)
    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    expected = jax.tree.map(lambda weight, grad: weight - 0.01 * grad, params, grads)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-7)
    assert int(state.step) == 1
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    ratio = 0.01 * optax.tree.norm(grads) / optax.tree.norm(params)
    assert float(metrics["update_ratio"]) == pytest.approx(float(ratio), rel=1e-3)


def test_token_accuracy_counts_the_tokens_that_count(params: Params, batch: Batch) -> None:
    _, metrics = train_step(create_state(params, SGD), batch)
    guesses = np.asarray(jax.jit(jaxcalc.apply)(params, batch.tokens[:, :-1]).argmax(axis=-1))[:, -3:]
    right = (guesses == np.asarray(batch.tokens)[:, -3:])[np.asarray(batch.mask) == 1]
    assert float(metrics["token_accuracy"]) == pytest.approx(right.mean())


def test_the_weight_of_the_story() -> None:
    """Weight 0.5, gradient 0.1, learning rate 0.01: the new weight is 0.499."""
    tx = optax.sgd(0.01)
    updates, _ = tx.update(jnp.array(0.1), tx.init(jnp.array(0.5)))
    assert float(optax.apply_updates(jnp.array(0.5), updates)) == pytest.approx(0.499)


@pytest.mark.parametrize(("name", "loss_on"), [("muon", "answer"), ("adamw", "all")])
def test_scanned_steps_equal_single_steps(small: Task, name: OptimizerName, loss_on: jaxcalc.batch.LossOn) -> None:
    tx = make_optimizer(name, n_steps=20, warmup_steps=2)
    stepped, losses = new_state(small, tx), []
    for step in range(6):
        stepped, metrics = train_step(stepped, batch_at(small, 3, step, 32, loss_on))
        losses.append(float(metrics["loss"]))
    scanned = new_state(small, tx)
    all_metrics = []
    for _ in range(2):
        scanned, metrics = train_steps(scanned, small, seed=3, n_steps=3, batch_size=32, loss_on=loss_on)
        all_metrics.append(metrics["loss"])
    np.testing.assert_allclose(np.concatenate(all_metrics), losses, rtol=1e-5)
    chex.assert_trees_all_close(scanned.params, stepped.params, rtol=1e-4, atol=1e-5)
    assert int(scanned.step) == int(stepped.step) == 6


def test_training_is_reproducible_bit_for_bit(small: Task) -> None:
    tx = make_optimizer("muon", n_steps=10)
    runs = [train_steps(new_state(small, tx), small, seed=0, n_steps=10, batch_size=32) for _ in range(2)]
    chex.assert_trees_all_equal(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_every_optimizer_learns_a_small_table(name: OptimizerName) -> None:
    task = jaxcalc.calculator(("plus",), max_number=5, split="none")
    state = new_state(task, make_optimizer(name, n_steps=300))
    state, metrics = train_steps(state, task, seed=0, n_steps=300, batch_size=21)
    assert float(metrics["loss"][0]) == pytest.approx(np.log(task.vocab_size), rel=0.02)
    assert float(metrics["loss"][-1]) < 0.1
    assert jaxcalc.evaluate(state.params, task, task.train_rows).exact_match == 1


def test_the_single_step_keeps_its_input_and_the_scanned_one_donates_it(small: Task) -> None:
    state = new_state(small, SGD)
    train_step(state, batch_at(small, 0, 0, 8))
    assert not state.params["embed"]["token"].is_deleted()
    train_steps(state, small, seed=0, n_steps=1, batch_size=8)
    assert state.params["embed"]["token"].is_deleted()


def test_the_first_parameters_outlive_the_training_that_began_with_them(small: Task) -> None:
    first = new_state(small, SGD).params
    state = create_state(first, SGD)
    state, _ = train_steps(state, small, seed=0, n_steps=1, batch_size=8)
    assert jaxcalc.compare(first, state.params).rows["total"]["ratio"] != 1
    again, _ = train_steps(create_state(first, SGD), small, seed=0, n_steps=1, batch_size=8)
    chex.assert_trees_all_equal(again.params, state.params)


SHARING = {
    "the parameters": optax.contrib.dog(0.1),
    "a key of its own": optax.noisy_sgd(0.1, key=jax.random.key(0)),
    "a rate of its own": optax.inject_hyperparams(optax.sgd)(learning_rate=jnp.float32(0.1)),
}


@pytest.mark.parametrize("what", SHARING)
def test_an_optimizer_whose_state_holds_what_it_was_given_trains_and_keeps_it(small: Task, what: str) -> None:
    params = {"embed": jnp.eye(small.vocab_size, 4), "unembed": jnp.ones((4, small.vocab_size))}
    runs = []
    for _ in range(2):
        state = create_state(params, SHARING[what], bigram)
        runs.append(train_steps(state, small, seed=0, n_steps=2, batch_size=8)[0].params)
    chex.assert_trees_all_equal(*runs)


def test_nothing_is_compiled_again_after_the_first_call(small: Task) -> None:
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def apply(params: Params, tokens: jax.Array, last: int | None = None) -> jax.Array:
        return jaxcalc.apply(params, tokens, last)

    tx = optax.adam(1e-3)
    state = new_state(small, tx).replace(apply_fn=apply)
    for step in range(3):
        state, _ = train_step(state, batch_at(small, 0, step, 8))
    chex.clear_trace_counter()
    for seed in range(3):
        state, _ = train_steps(state, small, seed=seed, n_steps=2, batch_size=8)


def test_nothing_moves_between_host_and_device_inside_the_scanned_steps(small: Task) -> None:
    state, seed = new_state(small, optax.adam(1e-3)), jnp.int32(0)
    compiled = train_steps.lower(state, small, seed=seed, n_steps=3, batch_size=8).compile()
    with jax.transfer_guard("disallow"):
        state, _ = compiled(state, small, seed=seed)
    assert int(state.step) == 3


@pytest.mark.slow
def test_another_model_trains_with_the_same_step(small: Task) -> None:
    class BagOfWords(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            x = nn.Embed(small.vocab_size, 16)(tokens).cumsum(axis=1)
            return nn.Dense(small.vocab_size)(nn.relu(nn.Dense(64)(x)))

    model = BagOfWords()

    def apply_fn(params: dict, tokens: jax.Array, last: int | None = None) -> jax.Array:
        return model.apply(params, tokens)[:, -(last or 0) :]

    params = jax.jit(model.init)(jax.random.key(0), small.tokens[:1, :-1])
    state = create_state(params, optax.adam(1e-2), apply_fn)
    first = None
    for step in range(100):
        state, metrics = train_step(state, batch_at(small, 0, step, 32))
        first = first or float(metrics["loss"])
    assert float(metrics["loss"]) < 0.7 * first


class Pair(NamedTuple):
    embed: jax.Array
    unembed: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    embed: jax.Array
    unembed: jax.Array


@struct.dataclass
class Structured:
    embed: jax.Array
    unembed: jax.Array


class Module(nnx.Module):
    def __init__(self, embed: jax.Array, unembed: jax.Array) -> None:
        self.embed, self.unembed = nnx.Param(embed), nnx.Param(unembed)


FORMS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "list": lambda **leaves: list(leaves.values()),
    "tuple": lambda **leaves: tuple(leaves.values()),
    "NamedTuple": Pair,
    "FrozenDict": FrozenDict,
    "registered dataclass": Registered,
    "flax.struct.dataclass": Structured,
    "nnx.Module": Module,
    "nnx.State": lambda **leaves: nnx.state(Module(**leaves)),
}


def bigram(params: Any, tokens: jax.Array, last: int | None = None) -> jax.Array:
    """Predict the next token from the last one alone; `params` is any pytree of an embedding and an unembedding."""
    embed, unembed = jax.tree.leaves(params)
    return (embed[tokens] @ unembed)[:, -(last or 0) :]


@pytest.mark.parametrize("form", FORMS)
def test_any_pytree_is_trained_as_a_dict_is(small: Task, form: str) -> None:
    size = small.vocab_size
    weights = {"embed": jnp.eye(size, 4), "unembed": jnp.ones((4, size)) / 8}
    batch = batch_at(small, 0, 0, 8)
    expected = train_step(create_state(weights, ADAM, bigram), batch)[0].params
    params = FORMS[form](**weights)
    state, metrics = train_step(create_state(params, ADAM, bigram), batch)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    chex.assert_trees_all_close(jax.tree.leaves(state.params), jax.tree.leaves(expected), rtol=1e-6)
    state, later = train_steps(state, small, seed=0, n_steps=2, batch_size=8)
    assert float(later["loss"][-1]) < float(metrics["loss"])
    chex.assert_tree_all_finite(jax.tree.leaves(state.params))


def test_a_leaf_that_is_no_array_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"params\.mlp\.activation is a \w+, not an array; keep it out"):
        create_state({"mlp": {"activation": jax.nn.relu, "up": jnp.ones(3)}}, ADAM)


def test_weight_decay_is_only_on_block_matrices(params: Params) -> None:
    zeros = jax.tree.map(jnp.zeros_like, params)
    for name in ("muon", "adamw", "sgd"):
        tx = make_optimizer(name, n_steps=100, weight_decay=0.5, warmup_steps=0)
        updates, _ = tx.update(zeros, tx.init(params), params)
        for path, update in jaxcalc.named_leaves(updates).items():
            is_matrix = path.startswith("blocks") and not path.endswith("norm")
            assert bool((update != 0).any()) == is_matrix, (name, path)


def test_the_rate_warms_up_and_decays(params: Params) -> None:
    tx = make_optimizer("sgd", n_steps=100, learning_rate=1.0, warmup_steps=10)
    ones, state, rates = {"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}), []
    for _ in range(101):
        _, new = tx.update(ones, state, ones)
        updates, _ = tx.update(ones, optax.tree.set(state, trace={"w": jnp.zeros(1)}), ones)
        rates.append(-float(updates["w"][0]))
        state = new
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])  # the first step moves already
    assert max(rates) == rates[10] == pytest.approx(1)
    assert rates[100] == pytest.approx(0.01)


def test_without_a_number_of_steps_the_rate_is_constant() -> None:
    tx = make_optimizer("sgd", None, learning_rate=0.5)
    grads = {"w": jnp.ones(1)}
    first, state = tx.update(grads, tx.init(grads), grads)
    later, _ = tx.update(grads, optax.tree.set(state, trace={"w": jnp.zeros(1)}), grads)
    assert float(first["w"][0]) == float(later["w"][0]) == -0.5


@pytest.mark.parametrize(("clip_norm", "expected"), [(1.0, 1.0), (6.0, 5.0), (None, 5.0)])
def test_gradients_are_clipped_to_the_norm_asked_for(clip_norm: float | None, expected: float) -> None:
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    tx = make_optimizer("sgd", None, learning_rate=1.0, clip_norm=clip_norm)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    assert float(optax.tree.norm(updates)) == pytest.approx(expected)
    assert float(updates["a"][0]) == pytest.approx(-0.6 * expected)


def test_a_loop_over_seeds_compiles_once(small: Task) -> None:
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def apply_fn(params: dict, tokens: jax.Array, last: int | None = None) -> jax.Array:
        return bigram(params, tokens, last)

    params = {"embed": jnp.ones((small.vocab_size, 4)), "unembed": jnp.ones((4, small.vocab_size))}
    for seed in range(2):
        state = create_state(params, make_optimizer("adamw", 100, 0.1), apply_fn)
        train_steps(state, small, seed=seed, n_steps=2, batch_size=8)


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_equal_arguments_give_the_same_optimizer_and_others_another(name: OptimizerName) -> None:
    tx = make_optimizer(name, 100, axes={"w": "D->F"})
    assert make_optimizer(name, n_steps=100, learning_rate=None, axes={"w": "D->F"}) is tx
    others = {"n_steps": 99}, {"learning_rate": 0.1}, {"axes": {"w": "F->D"}}, {"clip_norm": 1.0}, {"warmup_steps": 9}
    assert all(
        make_optimizer(**{"name": name, "n_steps": 100, "axes": {"w": "D->F"}, **other}) is not tx for other in others
    )


def test_rates_that_are_arrays_or_traced_are_used_and_never_kept() -> None:
    def moved(rate: jax.Array) -> jax.Array:
        tx = make_optimizer("sgd", None, rate)
        return tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))[0][0]

    np.testing.assert_allclose(jax.vmap(moved)(jnp.array([0.1, 0.2])), [-0.1, -0.2])
    assert [float(moved(jnp.float32(rate))) for rate in (0.5, 0.25)] == [-0.5, -0.25]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adam"}, "optimizer is 'adam'; it must be one of 'muon', 'adamw', 'sgd'"),
        ({"name": "muon", "learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"name": "muon", "learning_rate": float("nan")}, "learning_rate is nan"),
        ({"name": "muon", "weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"name": "muon", "n_steps": 0}, "n_steps is 0"),
        ({"name": "muon", "clip_norm": 0.0}, "clip_norm is 0.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_optimizer(**{"n_steps": 10, **arguments})


@pytest.mark.parametrize("n", [1, 2, 8])
def test_microbatches_take_the_step_of_the_whole_batch(params: Params, batch: Batch, n: int) -> None:
    mask = batch.mask.at[:8].set(0).at[0, 0].set(1)  # parts of very different numbers of tokens that count, one of none
    uneven = batch._replace(mask=mask)
    assert n == 1 or len({float(part.sum()) for part in mask.reshape(n, -1)}) > 1
    state = create_state(params, SGD)  # its step is the gradient itself
    whole, metrics = train_step(state, uneven)
    parts, their_metrics = in_microbatches(n)(state, uneven)
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(their_metrics, metrics, rtol=1e-5)
    assert int(parts.step) == 1


def test_microbatches_hold_the_activations_of_one(params: Params) -> None:
    state = create_state(params, SGD)
    batch = Batch(jnp.ones((256, 9), int), jnp.ones((256, 3)))
    whole, parts = (
        step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
        for step in (train_step, in_microbatches(4))
    )
    n_bytes = 4 * jaxcalc.count(params)
    assert parts - 2 * n_bytes < 0.3 * whole  # twice the gradients beside a quarter of the activations


def test_scanned_steps_take_the_step_they_are_given(small: Task) -> None:
    whole, metrics = train_steps(new_state(small, SGD), small, seed=0, n_steps=3, batch_size=32)
    step_fn = in_microbatches(4)
    parts, their_metrics = train_steps(new_state(small, SGD), small, seed=0, n_steps=3, batch_size=32, step_fn=step_fn)
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(their_metrics, metrics, rtol=1e-4)


@pytest.mark.parametrize(("given", "missing"), [("grad_norm", "loss"), ("loss", "grad_norm")])
def test_a_step_without_the_metrics_that_guard_it_is_refused(small: Task, given: str, missing: str) -> None:
    def step_fn(state: jaxcalc.TrainState, batch: Batch) -> tuple[jaxcalc.TrainState, jaxcalc.Metrics]:
        return state, {given: jnp.float32(0)}

    with pytest.raises(InputError, match=f"the metrics of step_fn have no '{missing}', .*; they have '{given}'"):
        train_steps(new_state(small, SGD), small, seed=0, n_steps=1, batch_size=4, step_fn=step_fn)


def test_a_batch_that_does_not_divide_is_refused_with_what_would(params: Params, batch: Batch) -> None:
    with pytest.raises(InputError, match="a batch of 16 does not divide into 3 microbatches; it does into 1, 2, 4, 8"):
        in_microbatches(3)(create_state(params, SGD), batch)
    with pytest.raises(InputError, match="number of microbatches is 0"):
        in_microbatches(0)
