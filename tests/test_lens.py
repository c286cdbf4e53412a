"""What is read from a model, against plain recomputation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcalc
from jaxcalc import lens
from jaxcalc.tasks.task import Task


@pytest.fixture(scope="module")
def params(task: Task) -> jaxcalc.Params:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, 16, 2, 24, 2))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def rows(task: Task) -> np.ndarray:
    return np.random.default_rng(0).choice(len(task.tokens), 64, replace=False)


def row(task: Task, question: str) -> int:
    found = task.row(task.parse(question))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("two plus three", "start start first_ones operation second_ones equals answer answer"),
        ("20 + 34", "start first_tens operation second_tens second_ones equals answer answer"),
        ("ninety nine minus thirteen", "start first_tens first_ones operation second_ones equals answer answer"),
        ("64 / 32", "first_tens first_ones operation second_tens second_ones equals answer answer"),
    ],
)
def test_roles_name_what_each_position_holds(task: Task, question: str, expected: str) -> None:
    (found,) = lens.roles(task, [row(task, question)])
    assert [lens.ROLES[role].replace(" ", "_") for role in found] == expected.split()


def test_roles_of_large_numbers() -> None:
    task = jaxcalc.calculator(operations=("minus",), max_number=120)
    (found,) = lens.roles(task, [row(task, "120 - 105")])
    names = [lens.ROLES[role] for role in found]
    assert names[:7] == ["first tens"] * 3 + ["operation"] + ["second tens"] * 2 + ["second ones"]


def test_attention_by_role_is_the_mean_of_the_patterns(params: jaxcalc.Params, task: Task, rows: np.ndarray) -> None:
    found = np.asarray(lens.attention_by_role(params, task, rows))
    pattern = np.asarray(
        jax.jit(jaxcalc.trace)(params, lens.read(task, rows)[0])[1]["blocks"][1]["attention"]["pattern"]
    )
    role = lens.roles(task, rows)
    expected = np.zeros((len(lens.ROLES), len(lens.ROLES)))
    for b, t in np.ndindex(role.shape):
        np.add.at(expected[role[b, t]], role[b], pattern[b, 1, t] / (role == role[b, t]).sum())
    np.testing.assert_allclose(found[1, 1], expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    without = np.asarray(lens.attention_by_role(params, task, [row(task, "64 / 32")]))
    assert not without[:, :, lens.ROLES.index("start")].any()


def test_states_are_those_of_questions(params: jaxcalc.Params, task: Task) -> None:
    trace = jax.jit(jaxcalc.trace)
    states = lens.number_states(params, task)
    assert states.shape == (5, 100, 16)
    for number, question in ((42, "42 + 5"), (7, "7 times 11"), (90, "90 / 10")):
        index = row(task, question)
        activations = trace(params, lens.read(task, [index])[0])[1]
        place = task.prompt_length - 4
        expected = jaxcalc.named_leaves(activations)
        for stage, name in enumerate(lens.residual_sites(params)):
            chex.assert_trees_all_close(states[stage, number], expected[name][0, place], rtol=1e-4, atol=1e-5)
        found = lens.answer_states(params, task, [index])
        chex.assert_trees_all_close(found[4, 0], activations["blocks"][1]["mlp"]["residual"][0, place + 3], rtol=1e-4)


def test_a_probe_reads_what_is_linear_and_nothing_that_is_not() -> None:
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(size=(100, 64)), jnp.float32)
    labels = jnp.arange(100) % 5
    marked = states.at[:, :5].add(6 * jax.nn.one_hot(labels, 5))
    key = jax.random.key(0)
    assert lens.probe(key, marked, labels, 5) > 0.95
    assert lens.probe(key, states, labels, 5) < 0.4  # 64 numbers a point, fitted on 90 points: chance is 0.2
    assert lens.probe(key, marked, jax.random.permutation(key, labels), 5) < 0.4
    wide = jnp.asarray(rng.normal(size=(1000, 8)), jnp.float32)
    assert lens.probe(key, wide, wide @ jnp.arange(8.0)) > 0.95
    assert abs(lens.probe(key, wide, jnp.asarray(rng.normal(size=1000)))) < 0.05


def test_fourier_power_names_the_period() -> None:
    x = jnp.arange(100)
    circle = jnp.stack([jnp.cos(2 * jnp.pi * x / 10), jnp.sin(2 * jnp.pi * x / 10), jnp.full(100, 3.0)], axis=1)
    power = lens.fourier_power(circle)
    assert power.shape == (50,)
    assert power[100 // 10 - 1] == pytest.approx(1, abs=1e-4)
    noise = lens.fourier_power(jax.random.normal(jax.random.key(0), (100, 64)))
    assert noise.sum() == pytest.approx(1, abs=1e-5)
    assert noise.max() < 0.04


def test_pca_finds_the_plane_of_points() -> None:
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(50, 2)) * [5, 2]
    points = jnp.asarray(flat @ np.linalg.qr(rng.normal(size=(8, 2)))[0].T + 3, jnp.float32)
    coordinates, shares = lens.pca(points)
    expected = np.sort(np.linalg.eigvalsh(np.cov(flat.T)))[::-1]
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.var(coordinates, axis=0, ddof=1), expected, rtol=1e-4)


def test_the_last_lens_is_the_model(params: jaxcalc.Params, task: Task, rows: np.ndarray) -> None:
    tokens, batch = lens.read(task, rows)
    found = lens.logit_lens(params, batch)
    assert found.shape == (5, 64, 3)
    logits = jax.jit(jaxcalc.apply)(params, tokens)
    chex.assert_trees_all_close(found[-1].sum(axis=1), lens.answer_log_prob(logits, batch), rtol=1e-4)
    assert jnp.abs(found[-1] - found[0]).max() > 0.1
    grads = jax.jit(jax.grad(lambda p: lens.logit_lens(p, batch)[2].sum()))(params)
    assert jnp.abs(grads["blocks"][0]["mlp"]["up"]).max() > 0
    assert not grads["blocks"][1]["mlp"]["up"].any()  # what comes after a stage does not matter to it


def test_contributions_add_up_to_the_logit(params: jaxcalc.Params, task: Task, rows: np.ndarray) -> None:
    tokens, batch = lens.read(task, rows)
    parts = lens.direct_contributions(params, batch)
    blocks = [f"block {block} {part}" for block in range(2) for part in ("head 0", "head 1", "mlp")]
    assert sorted(parts) == sorted(["embed", *blocks])
    logits = jax.jit(jaxcalc.apply)(params, tokens)[:, -batch.mask.shape[1] :]
    right = jnp.take_along_axis(logits, jaxcalc.losses.targets(batch)[..., None], axis=2)[..., 0]
    total = sum(parts.values(), jnp.zeros(()))
    chex.assert_trees_all_close(total, right - logits.mean(axis=-1), rtol=1e-4, atol=1e-4)


def test_answers_read_with_the_right_ones_before_them_are_those_decoded() -> None:
    task = jaxcalc.calculator(operations=("plus", "times"), max_number=20)
    config = jaxcalc.ModelConfig(task.vocab_size, 16, 2, 32, 1, task.context_length)
    state = jaxcalc.create_state(jaxcalc.init(jax.random.key(0), config), jaxcalc.make_optimizer("muon", 100))
    state, _ = jaxcalc.train_steps(state, task, seed=0, n_steps=100, batch_size=64)
    every = np.arange(len(task.tokens))
    tokens, batch = lens.read(task, every)
    right = lens.answers_right(jaxcalc.apply(state.params, tokens), batch)
    assert 0.1 < right.mean() < 0.99
    np.testing.assert_array_equal(right, jaxcalc.evaluate(state.params, task, every).correct)
