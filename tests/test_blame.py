import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task, make_optimizer
from jaxcalc.backprop import walk
from jaxcalc.blame import (
    Level,
    actual_drop,
    assign_blame,
    assign_credit,
    example_blame,
    mean_gradient,
    token_blame,
    token_grads,
)
from jaxcalc.losses import ApplyFn
from jaxcalc.optimizers import OptimizerName
from jaxcalc.steps import Step, take_step

loss = jax.jit(jaxcalc.loss)
grad = jax.jit(jax.grad(jaxcalc.loss))
grads_by_token = jax.jit(lambda params, batch: token_grads(params, walk(params, batch)))
STAGES = ["embed", "block 0 attention", "block 0 mlp", "block 1 attention", "block 1 mlp", "output"]
LEVELS: tuple[Level, ...] = ("part", "stage", "block", "head", "leaf", "weight")


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, 16, 2, 24, 2))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def grads(params: Params, batch: Batch) -> Params:
    return grad(params, batch)


@pytest.fixture(scope="module")
def mixed_step(params: Params) -> Step:
    """A step of three random parts."""
    names = jaxcalc.named_leaves(params)

    def drawn(seed: int) -> Params:
        rng = np.random.default_rng(seed)
        leaves = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in names.values()]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    parts = [drawn(seed) for seed in range(3)]
    update = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    return Step(update, *parts, jax.tree.map(np.add, params, update), None)


def inner(a: Params, b: Params) -> float:
    """⟨a, b⟩ in float64."""
    products = jax.tree.map(lambda x, y: np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)), a, b)
    return float(sum(jax.tree.leaves(products)))


def sgd_step(rate: float, grads: Params, params: Params) -> Step:
    tx = optax.sgd(rate)
    return take_step(tx, grads, tx.init(params), params)


# Blame.


def test_for_plain_sgd_blame_is_the_squared_gradient(params: Params, grads: Params) -> None:
    account = assign_blame(grads, sgd_step(0.01, grads, params))
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
    params: Params, grads: Params, mixed_step: Step, level: Level
) -> None:
    step = mixed_step
    account = assign_blame(grads, step, level)
    assert account.total == pytest.approx(-inner(grads, step.update), rel=1e-5)
    shares = {name: nats / account.total for name, nats in account.nats.items()}
    assert account.shares == (shares if account.total > 1e-4 else None)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
    assert account.nats["weight decay"] == pytest.approx(-inner(grads, step.weight_decay))
    assert account.nats["clipping"] == pytest.approx(-inner(grads, step.clipping))
    rows = {"part": 4, "stage": 6, "block": 4, "head": 4 + 2 * (2 + 1), "leaf": 20, "weight": jaxcalc.count(params)}
    assert len(account.nats) == rows[level] + 2


def test_a_head_is_blamed_for_its_own_slices(params: Params, grads: Params) -> None:
    step = sgd_step(1.0, grads, params)
    attention = grads["blocks"][1]["attention"]
    own = [attention[name][:, 1] for name in ("query", "key", "value")] + [attention["out"][1]]
    heads = assign_blame(grads, step, "head").nats
    assert heads["block 1 head 1"] == pytest.approx(sum(inner(leaf, leaf) for leaf in own))
    weights = assign_blame(grads, step, "weight").nats
    assert weights["blocks.1.attention.out[1,3,5]"] == pytest.approx(float(attention["out"][1, 3, 5]) ** 2)


def test_a_part_is_all_blocks_together(params: Params, grads: Params) -> None:
    step = sgd_step(1.0, grads, params)
    parts, by_stage = assign_blame(grads, step, "part").nats, assign_blame(grads, step).nats
    assert list(parts) == ["attention", "feed-forward", "embeddings", "output"]
    for part, stage in (("attention", "attention"), ("feed-forward", "mlp")):
        assert parts[part] == pytest.approx(by_stage[f"block 0 {stage}"] + by_stage[f"block 1 {stage}"])
    assert (parts["embeddings"], parts["output"]) == (by_stage["embed"], by_stage["output"])


def test_momentum_can_make_a_share_negative(params: Params, grads: Params) -> None:
    tx = optax.sgd(0.01, momentum=0.9)
    momentum, *rest = tx.init(params)
    against = {**jax.tree.map(lambda leaf: -3 * leaf, grads), "output": momentum.trace["output"]}  # there it is zero
    account = assign_blame(grads, take_step(tx, grads, (momentum._replace(trace=against), *rest), params))
    assert account.nats["embed"] < 0 < account.nats["output"]


def test_shares_of_next_to_nothing_are_withheld(params: Params, grads: Params) -> None:
    account = assign_blame(grads, sgd_step(1e-9, grads, params))
    assert account.shares is None
    assert "below 0.0001 nats" in str(account.withheld)
    assert "no percentages" in repr(account)
    uphill = assign_blame(grads, sgd_step(-0.1, grads, params))
    assert uphill.total < 0
    assert uphill.shares is None


# Credit.


@pytest.mark.parametrize(("name", "learning_rate"), [("muon", None), ("adamw", None), ("sgd", None), ("sgd", 0.01)])
def test_credit_sums_to_the_actual_drop(task: Task, name: OptimizerName, learning_rate: float | None) -> None:
    """For an untrained model of the default width, whose steps are the largest, on one example and on many."""
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size, n_layers=1))
    tx = make_optimizer(name, None, learning_rate)
    for size in (1, 256):
        batch = jaxcalc.batch_at(task, 0, 0, size)
        step = take_step(tx, grad(params, batch), tx.init(params), params)
        account, drop = assign_credit(params, step, batch), actual_drop(params, step, batch)
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
    account = assign_credit({"w": w}, step, batch, "weight", 1, apply_fn)
    assert account.nats["w[0]"] == pytest.approx(-(2 - 0.25) * -0.5, rel=1e-5)
    assert account.total == pytest.approx(actual_drop({"w": w}, step, batch, apply_fn), rel=1e-5)


def test_for_a_small_step_credit_is_blame(params: Params, grads: Params, batch: Batch) -> None:
    step = sgd_step(1e-5, grads, params)
    foreseen, earned = assign_blame(grads, step), assign_credit(params, step, batch)
    for name in STAGES:
        assert earned.nats[name] == pytest.approx(foreseen.nats[name], rel=0.01)


# Tokens, examples.


def test_token_gradients_sum_to_the_gradient(params: Params, batch: Batch, grads: Params) -> None:
    by_token = grads_by_token(params, batch)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf.sum(axis=0), by_token), grads, rtol=1e-4, atol=1e-6)
    step = sgd_step(0.1, grads, params)
    nats = token_blame(by_token, step)
    assert nats.shape == (8,)
    assert nats.sum() == pytest.approx(assign_blame(grads, step).total, rel=1e-4)


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
    own = {
        "token": params["embed"]["token"],
        "key": second["attention"]["key"],
        "value": second["attention"]["value"],
        "up": second["mlp"]["up"],
    }
    expected = jax.jit(jax.grad(with_own))(own)
    block = by_token["blocks"][1]
    ours = {
        "token": by_token["embed"]["token"],
        "key": block["attention"]["key"],
        "value": block["attention"]["value"],
        "up": block["mlp"]["up"],
    }
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[t], ours), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_example_blame_is_the_share_of_each_examples_own_gradient(params: Params, batch: Batch, grads: Params) -> None:
    result = example_blame(params, batch, chunk=5)
    assert result.shares.sum() == pytest.approx(1, abs=1e-4)
    n, square = 16, inner(grads, grads)
    own = [grad(params, Batch(batch.tokens[i : i + 1], batch.mask[i : i + 1])) for i in range(n)]
    weights = np.asarray(batch.mask.sum(axis=1) / batch.mask.sum(), np.float64) * n  # longer answers count for more
    for i in (0, 7, 15):
        assert result.shares[i] == pytest.approx(weights[i] * inner(own[i], grads) / (n * square), rel=1e-3, abs=1e-6)
    scaled = [
        jax.tree.map(lambda leaf, w=w: np.asarray(leaf, np.float64) * w, g) for g, w in zip(own, weights, strict=True)
    ]
    trace = sum(inner(d, d) for d in (jax.tree.map(np.subtract, g, grads) for g in scaled)) / (n - 1)
    signal = square - trace / n
    assert result.noise_scale == (pytest.approx(trace / signal, rel=1e-3) if signal > 0 else None)


def linear(rows: jax.Array) -> ApplyFn:
    """A model of weights w whose loss on example i is 10 + w · rows[i], so that rows[i] is its gradient."""

    def apply_fn(params: dict, tokens: jax.Array, last: int) -> jax.Array:
        value = params["w"] @ rows[tokens[:, 0]].T
        return jnp.stack([value * 0, jnp.log(jnp.expm1(10.0 + value))], axis=-1)[:, None]

    return apply_fn


def test_the_noise_scale_of_known_noise() -> None:
    """Gradients N(μ, σ² I) in d dimensions have tr(Σ) / ‖G‖² = d σ² / ‖μ‖², here 100."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(4096, 50)), jnp.float32) * 2 + 0.2
    tokens = jnp.stack([jnp.arange(4096), jnp.zeros(4096, int)], axis=1)
    result = example_blame({"w": jnp.zeros(50)}, Batch(tokens, jnp.ones((4096, 1))), 512, linear(rows))
    assert result.noise_scale == pytest.approx(50 * 4 / (50 * 0.04), rel=0.2)


@pytest.mark.parametrize("chunk", [4, 5, 64])
def test_example_blame_is_the_same_in_chunks_of_any_size(chunk: int) -> None:
    rows = np.random.default_rng(0).normal(size=(16, 50)).astype(np.float32)
    tokens = jnp.stack([jnp.arange(16), jnp.zeros(16, int)], axis=1)
    result = example_blame({"w": jnp.zeros(50)}, Batch(tokens, jnp.ones((16, 1))), chunk, linear(jnp.asarray(rows)))
    mean = rows.mean(axis=0)
    np.testing.assert_allclose(result.shares, rows @ mean / (16 * mean @ mean), rtol=1e-3, atol=1e-4)


def test_one_example_has_all_the_blame_and_no_noise_scale() -> None:
    batch = Batch(jnp.zeros((1, 2), int), jnp.ones((1, 1)))
    result = example_blame({"w": jnp.zeros(50)}, batch, 64, linear(jnp.arange(50.0)[None]))
    assert result.shares == pytest.approx([1], abs=1e-4)
    assert result.noise_scale is None


# Other people's trees, and bad input.


def test_blame_works_on_any_pytree() -> None:
    tx = optax.adamw(0.1)
    params = {"encoder": {"dense": {"kernel": jnp.ones((2, 3))}}, "scale": jnp.ones(())}
    grads = jax.tree.map(lambda leaf: leaf * 0.5, params)
    step = take_step(tx, grads, tx.init(params), params)
    for level, name in itertools.product(LEVELS, ("scale",)):
        rows = assign_blame(grads, step, level).nats
        assert any(row.startswith(name) for row in rows)
    assert set(assign_blame(grads, step).nats) == {"encoder dense", "scale", "weight decay"}


def test_bad_input_is_named(params: Params, grads: Params, batch: Batch) -> None:
    step = sgd_step(0.1, grads, params)
    with pytest.raises(InputError, match="level is 'layer'"):
        assign_blame(grads, step, "layer")  # pyright: ignore[reportArgumentType]
    broken = {**grads, "output": {**grads["output"], "norm": grads["output"]["norm"].at[3].set(jnp.nan)}}
    with pytest.raises(InputError, match=r"the gradient or the update of output\.norm is not finite"):
        assign_blame(broken, step)
    empty = batch._replace(mask=jnp.zeros_like(batch.mask))
    for function in (
        lambda: assign_credit(params, step, empty),
        lambda: example_blame(params, empty),
        lambda: actual_drop(params, step, empty),
    ):
        with pytest.raises(InputError, match="mask is all zero"):
            function()
    with pytest.raises(InputError, match="chunk is 0"):
        example_blame(params, batch, 0)
    with pytest.raises(InputError, match="n_points is 0"):
        mean_gradient(params, step, batch, 0)
    bad = {**params, "output": {**params["output"], "norm": params["output"]["norm"].at[3].set(jnp.inf)}}
    with pytest.raises(InputError, match="squared norm of the gradient is nan"):
        example_blame(bad, batch)
