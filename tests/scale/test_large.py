"""Other ways to compute the same model: equal logits and gradients, and what each is there for."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, ModelConfig, Params
from jaxcalc.losses import ApplyFn
from jaxcalc.scale import cost
from jaxcalc.scale.large import block, fused_block, in_dtype, remat, scanned, unrolled
from jaxcalc.scale.sharding import FULLY_SHARDED, TENSOR_PARALLEL, Rules, make_mesh, place, sharded

VARIANTS = {
    "remat": unrolled(remat()),
    "fused": unrolled(fused_block),
    "scanned": scanned(),
    "scanned, remat, fused": scanned(remat(fused_block)),
}
N_LAYERS = 3
TX = optax.sgd(0.1, momentum=0.9)


@pytest.fixture(scope="module")
def deep() -> Params:
    params = jaxcalc.init(jax.random.key(1), ModelConfig(35, 16, 4, 32, N_LAYERS))
    return jax.tree.map(lambda leaf: leaf * 2 if leaf.ndim > 1 else leaf, params)


def results(apply_fn: ApplyFn, params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array, Params]:
    """Return all logits, the last three, and the gradient of a function of those, in float64."""
    with jax.enable_x64(True):  # where rounding hides nothing
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

        def score(params: Params) -> tuple[jax.Array, jax.Array]:
            logits = apply_fn(params, tokens, last=3)
            return jnp.sin(logits).sum(), logits

        grads, last = jax.jit(jax.grad(score, has_aux=True))(wide)
        return jax.jit(apply_fn)(wide, tokens), last, grads


@pytest.fixture(scope="module")
def expected(deep: Params, batch: Batch) -> tuple[jax.Array, jax.Array, Params]:
    return results(jaxcalc.apply, deep, batch.tokens[:, :-1])


@pytest.fixture(scope="module")
def exact(deep: Params, batch: Batch) -> tuple[jaxcalc.TrainState, jaxcalc.Metrics]:
    """The step of the model as it is."""
    return jaxcalc.train_step(jaxcalc.create_state(deep, TX), batch)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gradients_are_those_of_apply(
    deep: Params, batch: Batch, expected: tuple[jax.Array, jax.Array, Params], name: str
) -> None:
    found = results(VARIANTS[name], deep, batch.tokens[:, :-1])
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float64)}
    # jax.nn.dot_product_attention takes its softmax in float32, whatever it is given.
    tolerance = 1e-5 if "fused" in name else 1e-11
    chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance)


def compiled_step(params: Params, apply_fn: ApplyFn) -> Any:
    batch = Batch(jnp.ones((64, 9), int), jnp.ones((64, 3)))
    return jaxcalc.train_step.lower(jaxcalc.create_state(params, optax.sgd(0.1), apply_fn), batch).compile()


@pytest.mark.slow
def test_a_scanned_block_is_once_in_the_program_and_with_remat_keeps_no_activations(deep: Params) -> None:
    deeper: Any = {**deep, "blocks": 2 * deep["blocks"]}
    programs = {
        "unrolled": compiled_step(deep, jaxcalc.apply),
        "scanned": compiled_step(deep, scanned()),
        "scanned, deeper": compiled_step(deeper, scanned()),
        "scanned, deeper, remat": compiled_step(deeper, scanned(remat())),
    }
    n_products = {name: len(re.findall(r" dot\(", program.as_text())) for name, program in programs.items()}
    temporaries = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    assert n_products["scanned, deeper"] == n_products["scanned"] < n_products["unrolled"]
    assert temporaries["scanned, deeper"] > 1.5 * temporaries["scanned"]
    assert temporaries["scanned, deeper, remat"] < 0.5 * temporaries["scanned, deeper"]


def test_remat_computes_every_block_again_on_the_way_back_and_nothing_else(deep: Params) -> None:
    def n_flops(apply_fn: ApplyFn) -> int:
        grad = jax.grad(lambda params: apply_fn(params, jnp.ones((2, 8), int)).sum())
        return cost.flops(jax.make_jaxpr(grad)(deep))

    x_BTD = jnp.ones((2, 8, 16))
    again = cost.flops(jax.make_jaxpr(lambda params: block(params, x_BTD, None))(deep["blocks"][0]))
    down = 2 * x_BTD.size * 32  # the last product of a block, whose result the backward pass does not need
    assert n_flops(unrolled(remat())) - n_flops(unrolled()) == N_LAYERS * (again - down)
    assert n_flops(scanned(remat())) == n_flops(unrolled(remat()))


@pytest.mark.slow
def test_a_narrow_model_learns_in_float32_and_computes_in_bfloat16(
    deep: Params, batch: Batch, exact: tuple[jaxcalc.TrainState, jaxcalc.Metrics]
) -> None:
    new, metrics = jaxcalc.train_step(jaxcalc.create_state(deep, TX, in_dtype(jnp.bfloat16)), batch)
    expected, expected_metrics = exact
    kept = (new.params, new.opt_state, metrics)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=0.03)
    moved, should = (jax.tree.map(jnp.subtract, each.params, deep) for each in (new, expected))
    assert optax.tree.vdot(moved, should) > 0.9 * optax.tree.norm(moved) * optax.tree.norm(should)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(should), strict=True))
    program = str(jax.make_jaxpr(lambda params: in_dtype(jnp.bfloat16)(params, batch.tokens[:, :-1]))(deep))
    products = re.findall(r":(\w+)\[\S+\] = dot_general\[", program)
    assert products.count("bf16") == 7  # six weights and the mixing of the values: a stage is printed once
    assert products.count("f32") == 2  # the scores and the logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "dtype", "tolerance", "up"),
    [
        (FULLY_SHARDED, jnp.float32, 1e-5, ("data", "model")),
        pytest.param(TENSOR_PARALLEL, jnp.bfloat16, 1e-2, (None, "model"), marks=pytest.mark.slow),
    ],
)
def test_all_of_it_on_a_mesh_is_the_step_of_one_device(
    deep: Params,
    batch: Batch,
    exact: tuple[jaxcalc.TrainState, jaxcalc.Metrics],
    rules: Rules,
    dtype: type,
    tolerance: float,
    up: tuple[str | None, ...],
) -> None:
    mesh = make_mesh(2, 4)
    apply_fn = in_dtype(dtype, sharded(mesh, rules, scanned(remat(fused_block))))
    state, _ = jaxcalc.in_microbatches(4)(place(jaxcalc.create_state(deep, TX, apply_fn), mesh, rules), batch)
    chex.assert_trees_all_close(state.params, exact[0].params, rtol=tolerance, atol=tolerance)
    assert state.params["blocks"][0]["mlp"]["up"].sharding.spec == jax.sharding.PartitionSpec(*up)


def test_what_cannot_be_scanned_or_read_is_refused(deep: Params, batch: Batch) -> None:
    tokens = batch.tokens[:, :-1]
    mlp = {**deep["blocks"][1]["mlp"], "up": jnp.ones((16, 9)), "down": jnp.ones((9, 16))}
    pruned: Any = {**deep, "blocks": [deep["blocks"][0], {**deep["blocks"][1], "mlp": mlp}, deep["blocks"][2]]}
    with pytest.raises(InputError, match=r"mlp\.down has shape \(9, 16\) in block 1 and \(32, 16\) in block 0"):
        scanned()(pruned, tokens)
    assert unrolled()(pruned, tokens).shape == (16, 8, 35)
    for apply_fn in (scanned(), unrolled()):
        with pytest.raises(InputError, match="'blocks'"):
            apply_fn({**deep, "blocks": []}, tokens)
        with pytest.raises(InputError, match="9 tokens; the context length is 8"):
            apply_fn(deep, batch.tokens)


def test_one_block_is_scanned_as_well(deep: Params, batch: Batch) -> None:
    shallow: Any = {**deep, "blocks": deep["blocks"][:1]}
    tokens = batch.tokens[:, :-1]
    np.testing.assert_allclose(scanned()(shallow, tokens), jaxcalc.apply(shallow, tokens), rtol=1e-4, atol=1e-5)
