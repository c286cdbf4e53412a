import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task, make_optimizer
from jaxcalc.backprop import walk
from jaxcalc.blame import (
    Level,
    Step,
    actual_drop,
    blame,
    credit,
    example_blame,
    find_weight,
    mean_gradient,
    message_strengths,
    take_step,
    token_blame,
    token_grads,
    weight_story,
)
from jaxcalc.optimizers import ADAM_BETAS, OptimizerName
from jaxcalc.training import train_step

loss = jax.jit(jaxcalc.loss)
grad = jax.jit(jax.grad(jaxcalc.loss))
grads_by_token = jax.jit(lambda params, batch: token_grads(params, walk(params, batch)))
STAGES = ["embed", "block 0 attention", "block 0 mlp", "block 1 attention", "block 1 mlp", "output"]
LEVELS: tuple[Level, ...] = ("stage", "block", "head", "leaf", "weight")


@pytest.fixture(scope="module")
def grads(params: Params, batch: Batch) -> Params:
    return grad(params, batch)


def inner(a: Params, b: Params) -> float:
    """⟨a, b⟩ in float64."""
    products = jax.tree.map(lambda x, y: np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)), a, b)
    return float(sum(jax.tree.leaves(products)))


def first_step(tx: optax.GradientTransformation, grads: Params, params: Params) -> Step:
    return take_step(tx, grads, tx.init(params), params)


@pytest.fixture(scope="module")
def warm(task: Task, params: Params) -> jaxcalc.TrainState:
    """A state with momentum: some steps of Adam with weight decay and clipping."""
    state = jaxcalc.create_state(params, make_optimizer("adamw", None, 1e-3, weight_decay=1.0, clip_norm=0.5))
    for step in range(3):
        state, _ = train_step(state, jaxcalc.batch_at(task, 5, step, 16))
    return state


@pytest.fixture(scope="module")
def warm_step(warm: jaxcalc.TrainState, batch: Batch) -> tuple[Params, Step]:
    grads = grad(warm.params, batch)
    unclipped = make_optimizer("adamw", None, 1e-3, weight_decay=1.0)
    return grads, take_step(warm.tx, grads, warm.opt_state, warm.params, unclipped)


# The step taken apart.


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
def test_the_step_is_the_one_that_training_makes(name: OptimizerName, params: Params, batch: Batch) -> None:
    state = jaxcalc.create_state(params, make_optimizer(name, n_steps=100))
    after, _ = train_step(state, batch)
    step = take_step(state.tx, grad(params, batch), state.opt_state, params)
    moved = jax.tree.map(jnp.subtract, after.params, params)
    assert inner(moved, moved) > 0
    chex.assert_trees_all_close(step.params, after.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(step.opt_state, after.opt_state, rtol=1e-4, atol=1e-6)


def test_the_parts_of_a_step_are_its_gradient_its_decay_and_its_clipping(
    warm: jaxcalc.TrainState, warm_step: tuple[Params, Step]
) -> None:
    grads, step = warm_step
    total = jax.tree.map(lambda *parts: sum(parts), step.from_gradient, step.weight_decay, step.clipping)
    chex.assert_trees_all_close(total, step.update, atol=1e-8)
    for name, decay in jaxcalc.named_leaves(step.weight_decay).items():  # decoupled: −rate · decay · weight
        is_matrix = name.startswith("blocks") and not name.endswith("norm")
        expected = -1e-3 * jaxcalc.named_leaves(warm.params)[name] if is_matrix else np.zeros(decay.shape)
        np.testing.assert_allclose(decay, expected, atol=3e-9)
    norm = float(optax.tree.norm(grads))
    assert norm > 0.5  # so clipping has work to do
    clipped = jax.tree.map(lambda g: g * 0.5 / norm, grads)
    without = make_optimizer("adamw", None, 1e-3, weight_decay=1.0)
    chex.assert_trees_all_close(
        step.update, take_step(without, clipped, warm.opt_state, warm.params).update, rtol=1e-4, atol=1e-8
    )


# Blame.


def test_for_plain_sgd_blame_is_the_squared_gradient(params: Params, grads: Params) -> None:
    account = blame(grads, first_step(optax.sgd(0.01), grads, params))
    squares = {"embed": inner(grads["embed"], grads["embed"]), "output": inner(grads["output"], grads["output"])}
    for index, block in enumerate(grads["blocks"]):
        for name in ("attention", "mlp"):
            squares[f"block {index} {name}"] = inner(block[name], block[name])
    assert account.shares is not None
    assert set(account.shares) == set(STAGES)
    for name, share in account.shares.items():
        assert share == pytest.approx(squares[name] / sum(squares.values()), rel=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_at_every_level_blame_sums_to_the_predicted_drop(
    params: Params, warm_step: tuple[Params, Step], level: Level
) -> None:
    grads, step = warm_step
    account = blame(grads, step, level)
    assert account.total == pytest.approx(-inner(grads, step.update), rel=1e-5)
    assert account.shares is not None
    assert sum(account.shares.values()) == pytest.approx(1, abs=1e-12)
    assert account.nats["weight decay"] == pytest.approx(-inner(grads, step.weight_decay))
    assert account.nats["clipping"] == pytest.approx(-inner(grads, step.clipping))
    rows = {"stage": 6, "block": 4, "head": 4 + 2 * (4 + 1), "leaf": 20, "weight": jaxcalc.count(params)}
    assert len(account.nats) == rows[level] + 2


def test_a_head_is_blamed_for_its_own_slices(params: Params, grads: Params) -> None:
    step = first_step(optax.sgd(1.0), grads, params)
    attention = grads["blocks"][1]["attention"]
    own = [attention[name][:, 2] for name in ("query", "key", "value")] + [attention["out"][2]]
    heads = blame(grads, step, "head").nats
    assert heads["block 1 head 2"] == pytest.approx(sum(inner(leaf, leaf) for leaf in own))
    weights = blame(grads, step, "weight").nats
    assert weights["blocks.1.attention.out[2,3,5]"] == pytest.approx(float(attention["out"][2, 3, 5]) ** 2)


def test_momentum_can_make_a_share_negative(params: Params, grads: Params) -> None:
    tx = optax.sgd(0.01, momentum=0.9)
    momentum, *rest = tx.init(params)
    against = {**jax.tree.map(lambda leaf: -3 * leaf, grads), "output": momentum.trace["output"]}  # there it is zero
    account = blame(grads, take_step(tx, grads, (momentum._replace(trace=against), *rest), params))
    assert account.nats["embed"] < 0 < account.nats["output"]


def test_shares_of_next_to_nothing_are_withheld(params: Params, grads: Params) -> None:
    account = blame(grads, first_step(optax.sgd(1e-9), grads, params))
    assert account.shares is None
    assert "below 0.0001 nats" in str(account.withheld)
    assert "no percentages" in repr(account)
    uphill = blame(grads, first_step(optax.sgd(-0.1), grads, params))
    assert uphill.total < 0
    assert uphill.shares is None


# Credit.


@pytest.mark.parametrize(("name", "learning_rate"), [("muon", None), ("adamw", None), ("sgd", None), ("sgd", 0.01)])
@pytest.mark.parametrize("size", [1, 256])
def test_credit_sums_to_the_actual_drop(
    task: Task, name: OptimizerName, learning_rate: float | None, size: int
) -> None:
    """For the default model, untrained, whose steps are the largest."""
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    batch = jaxcalc.batch_at(task, 0, 0, size)
    tx = make_optimizer(name, None, learning_rate)
    step = first_step(tx, grad(params, batch), params)
    account, drop = credit(params, step, batch), actual_drop(params, step, batch)
    after = optax.apply_updates(params, step.update)
    assert drop == pytest.approx(float(loss(params, batch)) - float(loss(after, batch)), abs=1e-6)
    assert abs(drop) > 1e-3
    assert abs(drop - account.total) < 0.01 * abs(drop)


def test_the_mean_gradient_of_a_quadratic_is_exact() -> None:
    """L = Σ aᵢ wᵢ² / 2 has ∇L = a w, whose mean along the step is a (w + Δ / 2)."""
    batch = Batch(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 1)))
    a, w, delta = jnp.array([1.0, 3.0]), jnp.array([2.0, -1.0]), jnp.array([-0.5, 0.25])

    def apply_fn(params: dict, tokens: jax.Array, last: int) -> jax.Array:
        """Logits (0, ln(e^L − 1)), so that the loss of token 0 is L itself."""
        value = (a * params["w"] ** 2).sum() / 2
        return jnp.stack([0.0, jnp.log(jnp.expm1(value))])[None, None]

    step = Step({"w": delta}, {"w": delta}, {"w": 0 * delta}, {"w": 0 * delta}, {"w": w + delta}, None)
    mean = mean_gradient({"w": w}, step, batch, 1, apply_fn)
    np.testing.assert_allclose(mean["w"], a * (w + delta / 2), rtol=1e-5)
    account = credit({"w": w}, step, batch, "weight", 1, apply_fn)
    assert account.nats["w[0]"] == pytest.approx(-(2 - 0.25) * -0.5, rel=1e-5)
    assert account.total == pytest.approx(actual_drop({"w": w}, step, batch, apply_fn), rel=1e-5)


def test_for_a_small_step_credit_is_blame(params: Params, grads: Params, batch: Batch) -> None:
    step = first_step(optax.sgd(1e-5), grads, params)
    foreseen, earned = blame(grads, step), credit(params, step, batch)
    for name in STAGES:
        assert earned.nats[name] == pytest.approx(foreseen.nats[name], rel=0.01)


# Messages, tokens, examples.


def test_message_strengths_are_norms_at_each_position(params: Params, batch: Batch) -> None:
    strengths = message_strengths(walk(params, batch))
    assert list(strengths) == list(reversed(STAGES))
    for step in walk(params, batch):
        if step.name != "loss":
            expected = [float(jnp.linalg.norm(step.message_in[:, t])) for t in range(8)]
            np.testing.assert_allclose(strengths[step.name], expected, rtol=1e-5)
    assert (strengths["output"][:5] == 0).all()  # the loss reads the last three positions
    assert (strengths["embed"] > 0).all()


def test_token_gradients_sum_to_the_gradient(params: Params, batch: Batch, grads: Params) -> None:
    by_token = grads_by_token(params, batch)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf.sum(axis=0), by_token), grads, rtol=1e-4, atol=1e-6)
    step = first_step(optax.sgd(0.1), grads, params)
    nats = token_blame(by_token, step)
    assert nats.shape == (8,)
    assert nats.sum() == pytest.approx(blame(grads, step).total, rel=1e-4)


def test_a_token_gradient_is_that_of_a_model_with_other_weights_there(params: Params, batch: Batch) -> None:
    """Position 4 alone gets weights of its own: in the embeddings, in an mlp, and as key and value."""
    by_token, t = grads_by_token(params, batch), 4
    is_here = jnp.arange(8)[:, None] == t

    def with_own(own: dict) -> jax.Array:
        """The network written out, position t reading `own` in three leaves of block 1 and one of the embeddings."""
        model, (first, second) = jaxcalc.model, params["blocks"]
        tokens = batch.tokens[:, :-1]
        here = {**params["embed"], "token": own["token"]}
        x = jnp.where(is_here, model.embed(here, tokens)[0], model.embed(params["embed"], tokens)[0])
        x = model.mlp(first["mlp"], model.attention(first["attention"], x)[0])[0]
        attention = second["attention"]
        here = {**attention, "key": own["key"], "value": own["value"]}
        key, value = (
            jnp.where(is_here[..., None], a, b)
            for a, b in zip(model.keys_values(here, x), model.keys_values(attention, x), strict=True)
        )
        x = model.attend(attention, x, key, value)[0]
        here = {**second["mlp"], "up": own["up"]}
        x = jnp.where(is_here, model.mlp(here, x)[0], model.mlp(second["mlp"], x)[0])
        return jaxcalc.cross_entropy(model.output(params["output"], x)[0][:, -3:], batch)

    second = params["blocks"][1]
    own = {"token": params["embed"]["token"], "key": second["attention"]["key"],
           "value": second["attention"]["value"], "up": second["mlp"]["up"]}  # fmt: skip
    expected = jax.jit(jax.grad(with_own))(own)
    block = by_token["blocks"][1]
    ours = {"token": by_token["embed"]["token"], "key": block["attention"]["key"],
            "value": block["attention"]["value"], "up": block["mlp"]["up"]}  # fmt: skip
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[t], ours), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("chunk", [4, 5, 64])
def test_example_blame_is_the_share_of_each_examples_own_gradient(
    params: Params, batch: Batch, grads: Params, chunk: int
) -> None:
    result = example_blame(params, batch, chunk)
    assert result.shares.sum() == pytest.approx(1, abs=1e-4)
    n, square = 16, inner(grads, grads)
    own = [grad(params, Batch(batch.tokens[i : i + 1], batch.mask[i : i + 1])) for i in range(n)]
    weights = np.asarray(batch.mask.sum(axis=1) / batch.mask.sum(), np.float64) * n  # longer answers count for more
    for i in (0, 7, 15):
        assert result.shares[i] == pytest.approx(weights[i] * inner(own[i], grads) / (n * square), rel=1e-3, abs=1e-6)
    scaled = [jax.tree.map(lambda leaf, w=w: np.asarray(leaf, np.float64) * w, g)
              for g, w in zip(own, weights, strict=True)]  # fmt: skip
    trace = sum(inner(d, d) for d in (jax.tree.map(np.subtract, g, grads) for g in scaled)) / (n - 1)
    signal = square - trace / n
    assert result.noise_scale == (pytest.approx(trace / signal, rel=1e-3) if signal > 0 else None)


def test_the_noise_scale_of_known_noise() -> None:
    """Gradients N(μ, σ² I) in d dimensions have tr(Σ) / ‖G‖² = d σ² / ‖μ‖², here 100."""
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.normal(size=(4096, 50)), jnp.float32) * 2 + 0.2

    def apply_fn(params: dict, tokens: jax.Array, last: int) -> jax.Array:
        value = params["w"] @ targets[tokens[:, 0]].T  # its gradient is the example's row
        return jnp.stack([value * 0, jnp.log(jnp.expm1(10.0 + value))], axis=-1)[:, None]

    tokens = jnp.stack([jnp.arange(4096), jnp.zeros(4096, int)], axis=1)
    result = example_blame({"w": jnp.zeros(50)}, Batch(tokens, jnp.ones((4096, 1))), 512, apply_fn)
    assert result.noise_scale == pytest.approx(50 * 4 / (50 * 0.04), rel=0.2)


def test_one_example_has_all_the_blame_and_no_noise_scale(params: Params, batch: Batch) -> None:
    result = example_blame(params, Batch(batch.tokens[:1], batch.mask[:1]))
    assert result.shares == pytest.approx([1], abs=1e-4)  # √100,000 products of float32 round by about 2e-5
    assert result.noise_scale is None


# One weight.


@given(value=st.floats(-2, 2), gradient=st.floats(-2, 2), rate=st.floats(1e-4, 1))
@settings(max_examples=25, deadline=None)
def test_plain_sgd_reads_as_w_minus_rate_times_g(value: float, gradient: float, rate: float) -> None:
    params, grads = {"w": jnp.float32(value)}, {"w": jnp.float32(gradient)}
    step = first_step(optax.sgd(rate), grads, params)
    assert float(step.params["w"]) == pytest.approx(value - rate * gradient, rel=1e-5, abs=1e-6)


def test_the_weight_of_the_story_goes_from_a_half_to_0_499() -> None:
    params, grads = {"w": jnp.array([0.5])}, {"w": jnp.array([0.1])}
    batch = Batch(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 1)))

    def apply_fn(params: dict, tokens: jax.Array, last: int) -> jax.Array:
        """A loss of 0.1 w + 1: its gradient is 0.1 everywhere."""
        return jnp.stack([0.0, jnp.log(jnp.expm1(0.1 * params["w"][0] + 1))])[None, None]

    story = weight_story("w[0]", params, grads, first_step(optax.sgd(0.01), grads, params), batch, None, apply_fn)
    assert story.new_value == pytest.approx(0.499, abs=1e-7)
    assert story.step == pytest.approx(-0.01 * 0.1)
    assert story.finite_difference == pytest.approx(0.1, abs=1e-9)
    assert story.state == {}


@pytest.mark.parametrize(
    "path", ["embed.token[9,3]", "blocks.0.attention.query[3,1,5]", "blocks.1.attention.norm[7]",
             "blocks.1.mlp.down[200,63]", "output.unembed[0,12]"])  # fmt: skip
def test_the_gradient_is_what_a_finite_difference_says(
    warm: jaxcalc.TrainState, batch: Batch, warm_step: tuple[Params, Step], path: str
) -> None:
    grads, step = warm_step
    story = weight_story(path, warm.params, grads, step, batch, ADAM_BETAS)
    leaf = path.partition("[")[0]
    scale = float(jnp.abs(jaxcalc.named_leaves(grads)[leaf]).max())
    assert abs(story.finite_difference - story.gradient) < 1e-5 * scale
    assert story.step == pytest.approx(story.from_gradient + story.weight_decay + story.clipping, abs=1e-9)
    assert story.new_value == pytest.approx(story.value + story.step, rel=1e-6)


def test_adams_moments_with_bias_correction_explain_its_step(
    warm: jaxcalc.TrainState, batch: Batch, warm_step: tuple[Params, Step]
) -> None:
    grads, step = warm_step
    story = weight_story("embed.token[9,3]", warm.params, grads, step, batch, ADAM_BETAS)
    state = story.state
    assert state["mu_hat"] == pytest.approx(state["mu"] / (1 - 0.9**4))  # the fourth step
    assert state["nu_hat"] == pytest.approx(state["nu"] / (1 - 0.99**4))
    assert story.step == pytest.approx(-1e-3 * state["mu_hat"] / (state["nu_hat"] ** 0.5 + 1e-8), rel=1e-3)
    assert set(weight_story("embed.token[9,3]", warm.params, grads, step, batch).state) == {"mu", "nu"}


def test_a_momentum_optimizer_remembers_its_trace(params: Params, grads: Params, batch: Batch) -> None:
    step = first_step(make_optimizer("sgd", None, 0.3), grads, params)
    story = weight_story("output.unembed[0,12]", params, grads, step, batch, ADAM_BETAS)
    assert story.state == {"trace": pytest.approx(story.gradient)}
    assert story.step == pytest.approx(-0.3 * story.gradient, rel=1e-5)


# Someone else's trees, and bad input.


def test_blame_works_on_any_pytree() -> None:
    tx = optax.adamw(0.1)
    params = {"encoder": {"dense": {"kernel": jnp.ones((2, 3))}}, "scale": jnp.ones(())}
    grads = jax.tree.map(lambda leaf: leaf * 0.5, params)
    step = take_step(tx, grads, tx.init(params), params)
    for level, name in itertools.product(LEVELS, ("scale",)):
        rows = blame(grads, step, level).nats
        assert any(row.startswith(name) for row in rows)
    assert set(blame(grads, step).nats) == {"encoder dense", "scale", "weight decay"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blocks.0.attention.quer[3,1,5]", r"are named 'blocks\.0\.attention\.quer'; the nearest are blocks\.0"),
        ("query", r"the nearest are .*query"),
        ("", "no weights are named ''"),
        ("[", r"no weights are named '\['"),
        ("blocks.0.attention.query", r"is no single weight: blocks\.0\.attention\.query has shape \(64, 4, 16\)"),
        ("blocks.0.attention.query[3,1]", r"its last is blocks\.0\.attention\.query\[63,3,15\]"),
        ("blocks.0.attention.query[64,0,0]", "is no single weight"),
        ("blocks.0.attention.query[-1,0,0]", "no weights are named"),
    ],
)  # fmt: skip
def test_a_path_that_names_no_weight_is_refused_with_the_nearest(params: Params, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_weight(params, path)


def test_bad_input_is_named(params: Params, grads: Params, batch: Batch) -> None:
    step = first_step(optax.sgd(0.1), grads, params)
    with pytest.raises(InputError, match="level is 'layer'"):
        blame(grads, step, "layer")  # pyright: ignore[reportArgumentType]
    broken = {**grads, "output": {**grads["output"], "norm": grads["output"]["norm"].at[3].set(jnp.nan)}}
    with pytest.raises(InputError, match=r"the gradient or the update of output\.norm is not finite"):
        blame(broken, step)
    empty = batch._replace(mask=jnp.zeros_like(batch.mask))
    for function in (lambda: credit(params, step, empty),
                     lambda: example_blame(params, empty), lambda: actual_drop(params, step, empty),
                     lambda: weight_story("output.norm[0]", params, grads, step, empty)):  # fmt: skip
        with pytest.raises(InputError, match="mask is all zero"):
            function()
    with pytest.raises(InputError, match="chunk is 0"):
        example_blame(params, batch, 0)
    with pytest.raises(InputError, match="n_points is 0"):
        mean_gradient(params, step, batch, 0)
    bad = {**params, "output": {**params["output"], "norm": params["output"]["norm"].at[3].set(jnp.inf)}}
    with pytest.raises(InputError, match="squared norm of the gradient is nan"):
        example_blame(bad, batch)
