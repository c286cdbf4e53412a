import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task
from jaxcalc.backprop import Stage, backward, collect, forward, message_strengths, stages, walk

grad = jax.jit(jax.grad(jaxcalc.loss))
collected = jax.jit(lambda params, batch: collect(params, walk(params, batch)))
STAGES = ["output", "block 1 mlp", "block 1 attention", "block 0 mlp", "block 0 attention", "embed"]


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, 16, 2, 24, 2))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


def relative_error(ours: Params, theirs: Params) -> float:
    """The largest ‖ours − theirs‖ / ‖theirs‖ over the leaves."""
    errors = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), ours, theirs)
    return max(jax.tree.leaves(errors))


def test_the_walk_visits_every_stage_backwards_and_fits_together(params: Params, batch: Batch) -> None:
    walked = list(walk(params, batch))
    assert [step.name for step in walked] == ["loss", *STAGES]
    for later, earlier in itertools.pairwise(walked):
        np.testing.assert_array_equal(later.input, earlier.output)
        np.testing.assert_array_equal(later.message_out, earlier.message_in)
    for step in walked:
        assert step.message_in.shape == step.output.shape
    assert float(walked[0].message_in) == 1
    assert walked[-1].message_out is None
    np.testing.assert_array_equal(walked[-1].input, batch.tokens[:, :-1])
    assert float(walked[0].output) == pytest.approx(float(jaxcalc.loss(params, batch)), rel=1e-5)


def test_the_output_error_is_p_minus_one_hot(params: Params, batch: Batch) -> None:
    loss_stage = next(walk(params, batch))
    p = jax.nn.softmax(loss_stage.input[:, -3:])
    expected = (p - jax.nn.one_hot(batch.tokens[:, -3:], 35)) * batch.mask[..., None] / batch.mask.sum()
    np.testing.assert_allclose(loss_stage.message_out[:, -3:], expected, rtol=1e-4, atol=1e-8)
    assert (loss_stage.message_out[:, :-3] == 0).all()


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_the_collected_gradients_equal_jax_grad(task: Task, params: Params, loss_on: jaxcalc.batch.LossOn) -> None:
    batch = jaxcalc.batch_at(task, 0, 0, 16, loss_on)
    ours, theirs = collected(params, batch), grad(params, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize(
    ("d_model", "n_heads", "d_ff", "n_layers", "size"),
    [(16, 2, 24, 1, 1), pytest.param(24, 3, 20, 2, 5, marks=pytest.mark.slow)],
)
def test_in_float64_they_agree_to_1e_12(
    task: Task, d_model: int, n_heads: int, d_ff: int, n_layers: int, size: int
) -> None:
    with jax.enable_x64(True):
        params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(35, d_model, n_heads, d_ff, n_layers))
        params = jax.tree.map(lambda leaf: 2 * leaf.astype(jnp.float64), params)
        batch = jaxcalc.batch_at(task, 0, 0, size)
        assert relative_error(collected(params, batch), grad(params, batch)) < 1e-12


def test_a_pruned_model_is_walked_like_any_other(params: Params, batch: Batch) -> None:
    attention = params["blocks"][0]["attention"]
    sliced = {name: attention[name][:, 1:] for name in ("query", "key", "value")}
    block = {**params["blocks"][0], "attention": {**attention, **sliced, "out": attention["out"][1:]}}
    pruned = {**params, "blocks": [block, params["blocks"][1]]}
    assert relative_error(collected(pruned, batch), grad(pruned, batch)) < 1e-6


def test_a_tied_weight_gets_the_blame_of_both_its_uses(params: Params, batch: Batch) -> None:
    def tie(params: dict) -> dict:
        return {**params, "output": {**params["output"], "unembed": params["embed"]["token"].T}}

    tied = {**params, "output": {"norm": params["output"]["norm"]}}
    network = [
        stage if stage.name != "output" else Stage("output", lambda p: tie(p)["output"], stage.apply)
        for stage in stages(params, batch)
    ]
    ours = jax.jit(lambda tied: collect(tied, backward(forward(tied, batch.tokens[:, :-1], network))))(tied)
    theirs = jax.jit(jax.grad(lambda p: jaxcalc.loss(tie(p), batch)))(tied)
    assert relative_error(ours, theirs) < 1e-6
    assert relative_error(ours["embed"], grad(tie(tied), batch)["embed"]) > 0.01


def test_message_strengths_are_norms_at_each_position(params: Params, batch: Batch) -> None:
    walked = list(walk(params, batch))
    strengths = message_strengths(walked)
    assert list(strengths) == STAGES
    for step in walked:
        if step.name != "loss":
            expected = [np.linalg.norm(np.asarray(step.message_in)[:, t]) for t in range(8)]
            np.testing.assert_allclose(strengths[step.name], expected, rtol=1e-5)
    assert (strengths["output"][:5] == 0).all()  # the loss reads the last three positions
    assert (strengths["embed"] > 0).all()


def test_a_walk_can_be_stepped_and_stopped(params: Params, batch: Batch) -> None:
    steps = walk(params, batch)
    assert next(steps).name == "loss"
    assert next(steps).grads["unembed"].shape == (16, 35)
    steps.close()


def test_bad_input_is_named(params: Params, batch: Batch) -> None:
    down = params["blocks"][1]["mlp"]["down"].at[3, 1].set(jnp.nan)
    block = {**params["blocks"][1], "mlp": {**params["blocks"][1]["mlp"], "down": down}}
    with pytest.raises(InputError, match=r"the parameter blocks\.1\.mlp\.down\[3, 1\] is nan"):
        next(walk({**params, "blocks": [params["blocks"][0], block]}, batch))
    with pytest.raises(InputError, match="mask is all zero"):
        next(walk(params, batch._replace(mask=jnp.zeros_like(batch.mask))))
    with pytest.raises(InputError, match=r"no leaf 'output\.unembed'"):
        next(walk({**params, "output": {"norm": params["output"]["norm"]}}, batch))
