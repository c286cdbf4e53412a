"""Many devices: the step of the whole batch, and how often the devices meet for it."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task
from jaxcalc.runs import checkpoint
from jaxcalc.scale.sharding import (
    FULLY_SHARDED,
    TENSOR_PARALLEL,
    Rules,
    data_parallel,
    make_mesh,
    place,
    sharded,
    shardings,
)


@pytest.fixture(scope="module")
def devices() -> list[jax.Device]:
    assert len(jax.devices()) >= 8, "conftest.py makes eight devices of the CPU"
    return jax.devices()[:2]


SGD = optax.sgd(0.1)
"""One optimizer for several tests, whose steps JAX then compiles once; its step is the gradient itself."""
MESHES = [(8, 1, TENSOR_PARALLEL), (2, 4, TENSOR_PARALLEL), (2, 4, FULLY_SHARDED)]


SPECS = {  # TENSOR_PARALLEL, FULLY_SHARDED
    "embed.token": (P(), P(None, "data")),
    "embed.position": (P(), P(None, "data")),
    "blocks.0.attention.norm": (P(), P()),
    "blocks.0.attention.query": (P(None, "model"), P("data", "model")),
    "blocks.0.attention.key": (P(None, "model"), P("data", "model")),
    "blocks.0.attention.value": (P(None, "model"), P("data", "model")),
    "blocks.0.attention.out": (P("model"), P("model", None, "data")),
    "blocks.0.mlp.norm": (P(), P()),
    "blocks.0.mlp.up": (P(None, "model"), P("data", "model")),
    "blocks.0.mlp.down": (P("model"), P("model", "data")),
    "output.norm": (P(), P()),
    "output.unembed": (P(), P("data")),
}
"""How each leaf is cut, by hand."""


def state_on(
    params: Params, tx: optax.GradientTransformation, data: int, model: int, rules: Rules
) -> jaxcalc.TrainState:
    mesh = make_mesh(data, model)
    state = jaxcalc.create_state(jax.tree.map(jnp.copy, params), tx, sharded(mesh, rules))
    return place(state, mesh, rules)


@pytest.fixture(scope="module")
def small(task: Task) -> Params:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, 16, 4, 32, 1, task.context_length))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def alone(task: Task, small: Params) -> tuple[jaxcalc.TrainState, jaxcalc.Metrics]:
    state = jaxcalc.create_state(jax.tree.map(jnp.copy, small), optax.adam(1e-3))
    return jaxcalc.train_steps(state, task, seed=0, n_steps=5, batch_size=16)


def test_every_leaf_and_its_moments_lie_where_the_rules_say(small: Params) -> None:
    state = jax.eval_shape(lambda: jaxcalc.create_state(small, optax.adam(1e-3)))
    for column, rules in enumerate((TENSOR_PARALLEL, FULLY_SHARDED)):
        placed = shardings(state, make_mesh(2, 4), rules)
        expected = {name: specs[column] for name, specs in SPECS.items()}
        for tree in (placed.params, placed.opt_state[0].mu, placed.opt_state[0].nu):
            assert {name: leaf.spec for name, leaf in jaxcalc.named_leaves(tree).items()} == expected
        assert placed.step.spec == placed.opt_state[0].count.spec == P()


def test_another_model_brings_its_own_axes() -> None:
    params = {"dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}, "scale": jnp.ones(())}
    mesh, rules, axes = make_mesh(2, 3), {"F": "model"}, {"dense.kernel": "D->F", "dense.bias": "F"}
    placed = place(params, mesh, rules, axes)
    specs = {name: leaf.sharding.spec for name, leaf in jaxcalc.named_leaves(placed).items()}
    assert specs == {"dense.kernel": P(None, "model"), "dense.bias": P(), "scale": P()}

    def apply_fn(params: dict, tokens: jax.Array, last: int | None = None) -> jax.Array:
        return params["dense"]["kernel"][tokens] + params["dense"]["bias"] * params["scale"]

    tokens = jnp.array([[0, 1], [2, 3]])
    found = jax.jit(sharded(mesh, rules, apply_fn, axes))(placed, tokens)
    np.testing.assert_array_equal(found, apply_fn(params, tokens))


@pytest.mark.parametrize(("data", "model", "rules"), MESHES)
def test_steps_on_a_mesh_are_those_of_one_device_and_exchange_only_what_they_must(
    task: Task, small: Params, alone: tuple[jaxcalc.TrainState, jaxcalc.Metrics], data: int, model: int, rules: Rules
) -> None:
    state = state_on(small, optax.adam(1e-3), data, model, rules)
    placed = shardings(state, make_mesh(data, model), rules)
    steps = jaxcalc.train_steps.lower(state, task, seed=0, n_steps=5, batch_size=16).compile()
    state, metrics = steps(state, task, seed=0)
    chex.assert_trees_all_close(metrics, alone[1], rtol=1e-4)  # so each step saw the same examples
    chex.assert_trees_all_close(state.params, alone[0].params, rtol=1e-3, atol=1e-5)
    for (path, leaf), expected in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path
    part = {shard.data.shape for shard in state.opt_state[0].mu["blocks"][0]["mlp"]["up"].addressable_shards}
    assert part == {(16 // (data if rules is FULLY_SHARDED else 1), 32 // model)}

    program = steps.as_text()
    kinds = set(re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", program))
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", program)
    assert "all-reduce" in kinds  # of gradients along data, of partial sums along model
    if rules is TENSOR_PARALLEL:
        assert kinds == {"all-reduce"}  # no parameter leaves the devices that hold it
    else:
        # Each parameter along data, once, before it is used; never along model, and never a moment.
        assert kinds == {"all-reduce", "all-gather"}
        cut = [
            leaf.size // (model if "model" in sharding.spec else 1)
            for leaf, sharding in zip(jax.tree.leaves(small), jax.tree.leaves(placed.params), strict=True)
            if "data" in sharding.spec
        ]
        sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in gathered]
        assert sorted(sizes) == sorted(cut)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True])
def test_each_device_makes_its_own_rows_of_a_batch(task: Task, drawn: bool) -> None:
    """In the compiled program no integer array but the task's own has all 64 rows, or all their numbers."""
    if drawn:
        task = jaxcalc.arithmetic(999, ("plus",), notation="digits")
    config = jaxcalc.ModelConfig(task.vocab_size, 16, 4, 24, 1, task.context_length)
    state = state_on(jaxcalc.init(jax.random.key(0), config), optax.sgd(0.1), 8, 1, TENSOR_PARALLEL)
    program = jaxcalc.train_steps.lower(state, task, seed=0, n_steps=2, batch_size=64).compile().as_text()
    shapes = set(re.findall(r"\b[us]32\[([\d,]+)\]", program))
    first = {tuple(map(int, shape.split(","))) for shape in shapes}
    width = task.tokens.shape[1]
    assert (8, width) in first or (8, 1, width) in first
    assert not {shape for shape in first if shape[0] == 64 and len(shape) > 1 and shape[1] > 1}


def test_one_step_is_the_same_train_step(small: Params, batch: Batch) -> None:
    expected, _ = jaxcalc.train_step(jaxcalc.create_state(small, SGD), batch)
    state, _ = jaxcalc.train_step(state_on(small, SGD, 2, 4, FULLY_SHARDED), batch)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-4, atol=1e-6)


def test_what_does_not_divide_is_refused_with_what_would(small: Params, task: Task) -> None:
    mesh = make_mesh(2, 3)
    with pytest.raises(InputError, match=r"^model=3 does not divide 4 \(axis 1 of .*\), 32 \(axis .* may be 1, 2, 4$"):
        place(small, mesh, TENSOR_PARALLEL)
    with pytest.raises(InputError, match=r"data=7 does not divide 16 .* data may be 1, 2, 4, 8, 16$"):
        place(small, make_mesh(7), FULLY_SHARDED)
    state = state_on(small, optax.sgd(0.1), 8, 1, TENSOR_PARALLEL)
    with pytest.raises(
        InputError, match="a batch of 20 does not divide evenly along data=8; one of 24 would, or data=4"
    ):
        jaxcalc.train_step(state, jaxcalc.batch_at(task, 0, 0, 20))
    with pytest.raises(InputError, match=r"data=4, model=3 takes 12 devices; there are 8 \(a CPU can be made"):
        make_mesh(4, 3)
    with pytest.raises(InputError, match="data=0, model=1"):
        make_mesh(0)


def test_a_checkpoint_of_one_mesh_goes_on_another_with_the_same_fingerprints(small: Params, tmp_path: Path) -> None:
    state = state_on(small, optax.adam(1e-3), 2, 4, FULLY_SHARDED)
    with checkpoint.Writer(tmp_path, {}) as writer:
        writer.save(state)
    like = jax.eval_shape(lambda: jaxcalc.create_state(small, optax.adam(1e-3)))
    for data, model, rules in [*MESHES, (1, 1, TENSOR_PARALLEL)]:
        mesh = make_mesh(data, model)
        restored, manifest = checkpoint.restore(tmp_path, 0, place(like, mesh, rules))
        chex.assert_trees_all_equal(restored.params, small)
        assert restored.params["blocks"][0]["mlp"]["up"].sharding.mesh.shape == mesh.shape
        prints = jaxcalc.fingerprint({"params": restored.params, "opt_state": restored.opt_state})
        assert prints == manifest["leaves"]


def test_two_devices_take_the_step_of_one(small: Params, batch: Batch, devices: list[jax.Device]) -> None:
    alone, metrics = jaxcalc.train_step(jaxcalc.create_state(small, SGD), batch)
    together, their_metrics = jaxcalc.train_step(jaxcalc.create_state(small, SGD, data_parallel(devices)), batch)
    chex.assert_trees_all_close(together.params, alone.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(their_metrics, metrics, rtol=1e-5)
    assert together.params["embed"]["token"].sharding.device_set == set(devices)


def test_many_steps_on_two_devices_are_those_of_one_and_they_meet_twice_per_step(
    task: Task, small: Params, alone: tuple[jaxcalc.TrainState, jaxcalc.Metrics], devices: list[jax.Device]
) -> None:
    state = jaxcalc.create_state(jax.tree.map(jnp.copy, small), optax.adam(1e-3), data_parallel(devices))
    steps = jaxcalc.train_steps.lower(state, task, seed=0, n_steps=5, batch_size=16).compile()
    state, metrics = steps(state, task, seed=0)
    chex.assert_trees_all_close(metrics, alone[1], rtol=1e-4)
    chex.assert_trees_all_close(state.params, alone[0].params, rtol=1e-3, atol=1e-5)
    collectives = r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("
    meetings = re.findall(collectives, steps.as_text())
    assert sorted(kind for _, kind in meetings) == ["all-gather", "all-reduce"]
    (gradient,) = (shape for shape, kind in meetings if kind == "all-reduce")
    assert gradient.startswith(f"f32[{jaxcalc.count(small)}]")


def test_a_batch_that_does_not_divide_is_refused(task: Task, small: Params, devices: list[jax.Device]) -> None:
    state = jaxcalc.create_state(small, optax.sgd(0.1), data_parallel(devices))
    with pytest.raises(InputError, match="a batch of 15 does not divide evenly among 2 devices"):
        jaxcalc.train_step(state, jaxcalc.batch_at(task, 0, 0, 15))
