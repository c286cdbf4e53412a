"""What a step costs: bytes and operations against counts by hand, and the refusal of a state that does not fit."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, ModelConfig, Params, Task
from jaxcalc.scale import cost, large, sharding


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    return jaxcalc.init(jax.random.key(1), ModelConfig(task.vocab_size, 16, 4, 32, 1, task.context_length))


def test_the_bytes_of_a_state_are_those_of_its_leaves_on_a_device(params: Params) -> None:
    state = jaxcalc.create_state(params, optax.adam(1e-3))
    n = 4 * jaxcalc.count(params)
    whole = {"parameters": n, "gradients": n, "optimizer state": 2 * n + 4}
    assert cost.state_bytes(state) == cost.state_bytes(jax.eval_shape(lambda: state)) == whole
    mesh = sharding.make_mesh(2, 4)
    placed = sharding.place(jax.eval_shape(lambda: state), mesh, sharding.FULLY_SHARDED)
    norms = 4 * sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 1)
    ends = 4 * (jaxcalc.count(params["embed"]) + params["output"]["unembed"].size)
    assert cost.state_bytes(placed)["parameters"] == norms + ends / 2 + (n - norms - ends) / 8
    assert cost.state_bytes(placed) == cost.state_bytes(sharding.place(state, mesh, sharding.FULLY_SHARDED))


def test_the_bytes_of_a_program_are_those_that_xla_lays_out(task: Task, params: Params) -> None:
    state = jaxcalc.create_state(params, optax.adam(1e-3))
    programs = [
        jaxcalc.train_steps.lower(state, task, seed=0, n_steps=2, batch_size=size).compile() for size in (32, 256)
    ]
    few, many = (cost.step_bytes(state, program) for program in programs)
    expected = cost.state_bytes(state)
    for sizes in (few, many):
        assert sizes["parameters"] == expected["parameters"]
        assert sizes["optimizer state"] == expected["optimizer state"]
        assert sizes["temporaries"] > expected["gradients"]
        # The state is updated in place, and the step takes from the task only the arrays that it needs.
        assert 0 < sizes["task and metrics"] < sum(leaf.nbytes for leaf in jax.tree.leaves(task))
    assert many["temporaries"] > 5 * few["temporaries"]


def test_products_are_counted_as_by_hand(params: Params) -> None:
    n, length, batch = 8, 8, Batch(jnp.ones((8, 9), int), jnp.ones((8, 8)))
    weights = jaxcalc.count(params) - jaxcalc.count(params["embed"]) - 3 * 16  # two products forward, four backward
    attention = 2 * 2 * n * length * length * 16  # query · key and pattern · value
    jaxpr = jax.make_jaxpr(lambda params: jax.grad(jaxcalc.loss)(params, batch))(params)
    assert cost.flops(jaxpr) == 6 * weights * n * length + 3 * attention
    forward = jax.make_jaxpr(lambda params: jaxcalc.loss(params, batch))(params)
    assert cost.flops(forward) == 2 * weights * n * length + attention


def test_products_in_loops_are_counted_as_often_as_they_run(task: Task, params: Params) -> None:
    def counted(apply_fn: jaxcalc.losses.ApplyFn = jaxcalc.apply, n_steps: int = 1, n_parts: int = 1) -> int:
        state = jaxcalc.create_state(params, optax.sgd(0.1), apply_fn)
        step_fn = jaxcalc.in_microbatches(n_parts) if n_parts > 1 else jaxcalc.train_step
        settings = {"n_steps": n_steps, "batch_size": 16, "step_fn": step_fn}
        return cost.flops(jaxcalc.train_steps.trace(state, task, seed=0, **settings).jaxpr)

    assert counted(n_steps=3) == 3 * counted()
    assert counted(n_parts=4) == counted(large.scanned()) == counted()
    branches = jax.make_jaxpr(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x))(jnp.ones((2, 2)))
    assert cost.flops(branches) == 2 * 2 * 2**3


def test_the_peak_is_that_of_a_product_and_quickly_found() -> None:
    assert 1e8 < cost.matmul_peak() < 1e17
    assert cost.step_seconds(3e9, 2e9) == 1.5 / cost.UTILISATION


def test_what_does_not_fit_is_refused_with_every_size() -> None:
    sizes = {"parameters": 2**29, "optimizer state": 2**30}
    cost.check_fits(sizes, 3 * 2**29)
    cost.check_fits(sizes, None)
    message = "it does not fit: parameters 512.0 MiB + optimizer state 1.0 GiB = 1.5 GiB; a device has 1.5 GiB"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cost.check_fits(sizes, 3 * 2**29 - 1)


def test_a_device_holds_what_it_says_and_cpu_devices_share_the_machine() -> None:
    def device(platform: str, **stats: int) -> SimpleNamespace:
        return SimpleNamespace(platform=platform, memory_stats=lambda: stats or None)

    assert cost.available_bytes([device("gpu", bytes_limit=7), device("gpu", bytes_limit=5)]) == 5
    assert cost.available_bytes([device("gpu")]) is None
    whole, share = (cost.available_bytes([device("cpu")] * n) for n in (1, 8))
    assert whole is not None
    assert share is not None
    assert 2**24 < share < whole / 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max\n", "memory.current": "5", "memory.stat": "inactive_file 2"}, None),
        ({"memory.max": "100\n", "memory.current": "50\n", "memory.stat": "anon 4\ninactive_file 20\n"}, 70),
        (
            {
                "memory/memory.limit_in_bytes": "100\n",
                "memory/memory.usage_in_bytes": "50",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 20",
            },
            70,
        ),
        ({}, None),
    ],
)
def test_what_a_control_group_leaves(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cost._group_bytes(tmp_path) == expected


def test_a_model_of_the_named_sizes_is_predicted_without_being_there() -> None:
    config = ModelConfig(35, **jaxcalc.SIZES["100M"])
    like = jax.eval_shape(
        lambda: jaxcalc.create_state(jaxcalc.init(jax.random.key(0), config), jaxcalc.make_optimizer("adamw", 10))
    )
    assert cost.state_bytes(like) == pytest.approx(
        {"parameters": 4e8, "gradients": 4e8, "optimizer state": 8e8}, rel=0.01
    )
    batch = Batch(jnp.ones((64, 9), int), jnp.ones((64, 8)))
    n_flops = cost.flops(jaxcalc.train_step.trace(like, batch).jaxpr)
    assert n_flops == pytest.approx(6 * jaxcalc.count(like.params) * 64 * 8, rel=0.02)
