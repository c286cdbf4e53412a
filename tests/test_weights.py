import jax
import jax.numpy as jnp
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task, make_optimizer
from jaxcalc.optimizers import ADAM_BETAS, OptimizerName
from jaxcalc.steps import Step, take_step
from jaxcalc.weights import _optimizer_state, find_weight, weight_story

grad = jax.jit(jax.grad(jaxcalc.loss))


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, 16, 2, 24, 1))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def fourth(params: Params, batch: Batch) -> tuple[Params, Params, Step]:
    """The fourth step of Adam with weight decay and clipping: the parameters before it, the gradient, the step."""
    tx = make_optimizer("adamw", None, 1e-3, weight_decay=1.0, clip_norm=0.5)
    unclipped = make_optimizer("adamw", None, 1e-3, weight_decay=1.0)
    opt_state = tx.init(params)
    for _ in range(3):
        step = take_step(tx, grad(params, batch), opt_state, params, unclipped)
        params, opt_state = step.params, step.opt_state
    grads = grad(params, batch)
    return params, grads, take_step(tx, grads, opt_state, params, unclipped)


def test_the_weight_of_the_story_goes_from_a_half_to_0_499() -> None:
    params, grads = {"w": jnp.array([0.5])}, {"w": jnp.array([0.1])}
    batch = Batch(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 1)))

    def apply_fn(params: dict, tokens: jax.Array, last: int) -> jax.Array:
        """A loss of 0.1 w + 1: its gradient is 0.1 everywhere."""
        return jnp.stack([0.0, jnp.log(jnp.expm1(0.1 * params["w"][0] + 1))])[None, None]

    tx = optax.sgd(0.01)
    step = take_step(tx, grads, tx.init(params), params)
    story = weight_story("w[0]", params, grads, step, batch, None, apply_fn)
    assert story.new_value == pytest.approx(0.499, abs=1e-7)
    assert story.step == pytest.approx(-0.01 * 0.1)
    assert story.finite_difference == pytest.approx(0.1, abs=1e-9)
    assert story.state == {}


@pytest.mark.parametrize(
    "path",
    [
        "embed.token[9,3]",
        "blocks.0.attention.query[3,1,5]",
        "blocks.0.attention.norm[7]",
        "blocks.0.mlp.down[20,13]",
        "output.unembed[0,12]",
    ],
)
def test_the_gradient_is_what_a_finite_difference_says(
    fourth: tuple[Params, Params, Step], batch: Batch, path: str
) -> None:
    params, grads, step = fourth
    story = weight_story(path, params, grads, step, batch, ADAM_BETAS)
    leaf = path.partition("[")[0]
    scale = float(jnp.abs(jaxcalc.named_leaves(grads)[leaf]).max())
    assert abs(story.finite_difference - story.gradient) < 1e-5 * scale
    assert story.step == pytest.approx(story.from_gradient + story.weight_decay + story.clipping, abs=1e-9)
    assert story.new_value == pytest.approx(story.value + story.step, rel=1e-6)


def test_adams_moments_with_bias_correction_explain_its_step(fourth: tuple[Params, Params, Step], batch: Batch) -> None:
    story = weight_story("embed.token[9,3]", *fourth, batch, ADAM_BETAS)
    state = story.state
    assert state["mu_hat"] == pytest.approx(state["mu"] / (1 - 0.9**4))
    assert state["nu_hat"] == pytest.approx(state["nu"] / (1 - 0.99**4))
    assert story.step == pytest.approx(-1e-3 * state["mu_hat"] / (state["nu_hat"] ** 0.5 + 1e-8), rel=1e-3)
    assert set(weight_story("embed.token[9,3]", *fourth, batch).state) == {"mu", "nu"}


def test_a_momentum_optimizer_remembers_its_trace(params: Params, batch: Batch) -> None:
    grads, tx = grad(params, batch), make_optimizer("sgd", None, 0.3)
    step = take_step(tx, grads, tx.init(params), params)
    story = weight_story("output.unembed[0,12]", params, grads, step, batch, ADAM_BETAS)
    assert story.state == {"trace": pytest.approx(story.gradient)}
    assert story.step == pytest.approx(-0.3 * story.gradient, rel=1e-5)
    empty = batch._replace(mask=jnp.zeros_like(batch.mask))
    with pytest.raises(InputError, match="mask is all zero"):
        weight_story("output.norm[0]", params, grads, step, empty)


NESTED = {"w": jnp.full((2, 3), 0.5), "b": {"w": jnp.full(4, 0.25)}}
STATES = {
    "adam": (optax.adam(0.1), {"mu", "nu", "mu_hat", "nu_hat"}, {"mu", "nu", "mu_hat", "nu_hat"}),
    "adafactor": (optax.adafactor(0.1, min_dim_size_to_factor=2), set(), {"v"}),
    "not factored": (optax.adafactor(0.1), {"v"}, {"v"}),
    "lookalike owners": (
        optax.chain(optax.scale_by_adam(b1=0.9), optax.scale_by_adam(b1=0.5)),
        {f"{owner}.{name}" for owner in (0, 1) for name in ("mu", "nu", "mu_hat", "nu_hat")},
        {f"{owner}.{name}" for owner in (0, 1) for name in ("mu", "nu", "mu_hat", "nu_hat")},
    ),
    "one part each": (
        optax.partition({"m": optax.trace(0.9), "a": optax.adam(0.1)}, {"w": "m", "b": {"w": "a"}}),
        {"trace"},
        {"mu", "nu", "mu_hat", "nu_hat"},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_a_weight_is_its_own_and_no_namesakes(name: str) -> None:
    tx, *expected = STATES[name]
    grads = {"w": jnp.arange(6.0).reshape(2, 3), "b": {"w": jnp.arange(10.0, 14.0)}}
    _, opt_state = tx.update(grads, tx.init(NESTED), NESTED)
    for leaf, index, gradient, names in (("w", (1, 2), 5.0, expected[0]), ("b.w", (3,), 13.0, expected[1])):
        state = _optimizer_state(opt_state, NESTED, leaf, index, (0.9, 0.999))
        assert state.keys() == names
        if name in ("adam", "one part each") and "mu_hat" in names:
            assert state["mu_hat"] == pytest.approx(gradient, rel=1e-5)
            assert state["nu_hat"] == pytest.approx(gradient**2, rel=1e-4)
        if "v" in names:
            assert state["v"] == pytest.approx(gradient**2, rel=1e-4)


def test_a_parameter_that_is_one_number_has_no_count_or_key_in_its_state() -> None:
    tx = optax.chain(optax.adam(0.1), optax.add_noise(0.1, 0.1, jax.random.key(0)))
    assert _optimizer_state(tx.init(jnp.float32(1)), jnp.float32(1), "", (), None).keys() == {"mu", "nu"}


@pytest.mark.parametrize(("name", "names"), [("muon", "mu"), ("adamw", "mu nu mu_hat nu_hat"), ("sgd", "trace")])
def test_our_own_optimizers_show_the_names_of_old(
    name: OptimizerName, names: str, params: Params, batch: Batch
) -> None:
    state = make_optimizer(name, 10, clip_norm=1.0).init(params)
    state = optax.tree.set(state, count=jnp.int32(1))
    leaf = "blocks.0.attention.query"
    assert list(_optimizer_state(state, params, leaf, (3, 1, 5), ADAM_BETAS)) == names.split()
    hats = _optimizer_state(state, params, "embed.token", (9, 3), ADAM_BETAS)
    assert "nu_hat" in hats or name == "sgd"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blocks.0.attention.quer[3,1,5]", r"are named 'blocks\.0\.attention\.quer'; the nearest are blocks\.0"),
        ("query", r"the nearest are .*query"),
        ("", "no weights are named ''"),
        ("[", r"no weights are named '\['"),
        ("blocks.0.attention.query", r"does not name one weight: blocks\.0\.attention\.query has shape \(16, 2, 8\)"),
        ("blocks.0.attention.query[3,1]", r"its last is blocks\.0\.attention\.query\[15,1,7\]"),
        ("blocks.0.attention.query[16,0,0]", "does not name one weight"),
        ("blocks.0.attention.query[-1,0,0]", "no weights are named"),
    ],
)
def test_a_path_that_names_no_weight_is_refused_with_the_nearest(params: Params, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_weight(params, path)
