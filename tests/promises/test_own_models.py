"""A model of one's own is trained, evaluated, asked and blamed; what cannot be one is named at its first call."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcalc
from jaxcalc import Calculator, InputError, evaluate, generate
from jaxcalc.batch import PAD_ID
from jaxcalc.tasks.tokenizer import END_ID

Model = tuple[Any, Callable[..., jax.Array]]
ADAM = optax.adam(0.02)


@pytest.fixture(scope="module")
def small() -> Calculator:
    return jaxcalc.calculator(operations=("plus",), max_number=9)


def windowed(params: Any, tokens: jax.Array, last: int) -> jax.Array:
    """The next word from the last five."""
    padded, n = jnp.pad(tokens, ((0, 0), (4, 0))), tokens.shape[1]
    words = jnp.stack([padded[:, end : end + 5] for end in range(n - last, n)], axis=1)
    hidden = jax.nn.relu(jnp.einsum("BTWD,WDF->BTF", params["embed"][words], params["up"]))
    return hidden @ params["down"]


def plain(n_words: int) -> Model:
    shapes = {"embed": (n_words, 8), "up": (5, 8, 32), "down": (32, n_words)}
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = {name: 0.3 * jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys, strict=True)}
    return drawn, windowed


class Mean(eqx.Module):
    """Reads all words at once, each at its distance from the end, so that every length is another function."""

    embed: eqx.nn.Embedding
    head: eqx.nn.Linear
    n_words: int = 0

    def __call__(self, tokens: jax.Array) -> jax.Array:
        place = jnp.arange(tokens.shape[0])[::-1, None] + 1
        return self.head((jax.vmap(self.embed)(tokens) / place).sum(axis=0) * tokens.shape[0])


def equinox_module(n_words: int) -> Model:
    first, second = jax.random.split(jax.random.key(1))
    module = Mean(eqx.nn.Embedding(n_words, 16, key=first), eqx.nn.Linear(16, n_words, key=second), n_words)
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def net(params: Any, tokens: jax.Array, last: int) -> jax.Array:
        read = jax.vmap(eqx.combine(params, static))
        return jnp.stack([read(tokens[:, :end]) for end in range(tokens.shape[1] + 1)[-last:]], axis=1)

    return params, net


class Bigram(nnx.Module):
    def __init__(self, n_words: int) -> None:
        self.embed = nnx.Embed(n_words, 16, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(16, n_words, rngs=nnx.Rngs(1))
        self.dropout = nnx.Dropout(0.0, rngs=nnx.Rngs(2))  # its key and count are no parameters

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.embed(tokens)))


def nnx_module(n_words: int) -> Model:
    graph, params, rest = nnx.split(Bigram(n_words), nnx.Param, ...)
    return params, lambda params, tokens, last: nnx.merge(graph, params, rest)(tokens)[:, -last:]


@pytest.fixture(scope="module", params=[plain, equinox_module, nnx_module])
def model(request: pytest.FixtureRequest, small: Calculator) -> Model:
    return request.param(small.vocab_size)


def test_a_model_is_trained_evaluated_asked_and_blamed(model: Model, small: Calculator) -> None:
    params, net = model
    batch = jaxcalc.batch_at(small, seed=0, step=0, size=16)
    state, metrics = jaxcalc.train_steps(
        jaxcalc.create_state(params, ADAM, net), small, seed=0, n_steps=40, batch_size=16
    )
    assert metrics["loss"][-1] < 0.8 * metrics["loss"][0]

    prompts = small.tokens[::5, : small.prompt_length]
    tokens, log_probs = generate(state.params, prompts, small.answer_length, apply_fn=net)
    sequence, ended = prompts, np.zeros(len(prompts), bool)
    for step in range(small.answer_length):
        logits = jax.jit(net, static_argnames="last")(state.params, sequence, last=1)[:, 0]
        expected = np.where(ended, PAD_ID, logits.argmax(axis=-1))
        np.testing.assert_array_equal(tokens[:, step], expected)
        log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), expected[:, None], 1)[:, 0]
        np.testing.assert_allclose(log_probs[:, step], np.where(ended, 0, log_p), rtol=1e-3, atol=1e-5)
        ended |= expected == END_ID
        sequence = jnp.concatenate([sequence, tokens[:, step : step + 1]], axis=1)

    rows = np.arange(0, len(small.tokens), 5)
    evaluation = evaluate(state.params, small, rows, apply_fn=net)
    np.testing.assert_array_equal(evaluation.generated, tokens)
    right = (np.asarray(tokens) == np.asarray(small.tokens)[rows, small.prompt_length :]).all(axis=1)
    np.testing.assert_array_equal(evaluation.correct, right)

    grads = jax.jit(jax.grad(jaxcalc.loss), static_argnums=2)(params, batch, net)
    step = jaxcalc.steps.take_step(optax.sgd(0.01), grads, optax.sgd(0.01).init(params), params)
    credit = jaxcalc.blame.assign_credit(params, step, batch, n_points=4, apply_fn=net)
    assert credit.total == pytest.approx(jaxcalc.blame.actual_drop(params, step, batch, net), rel=1e-2)
    assert jaxcalc.blame.assign_blame(grads, step).total == pytest.approx(credit.total, rel=0.2)


def test_samples_of_a_model_are_drawn_by_key_among_the_likeliest(small: Calculator) -> None:
    params, net = plain(small.vocab_size)
    prompts = jnp.broadcast_to(small.tokens[7, : small.prompt_length], (300, small.prompt_length))
    drawn = [generate(params, prompts, 1, jax.random.key(key), 2.0, 3, apply_fn=net)[0] for key in (0, 0, 1)]
    likeliest = np.argsort(-np.asarray(net(params, prompts[:1], last=1)[0, 0]))[:3]
    assert set(np.asarray(drawn[0])[:, 0].tolist()) == set(likeliest.tolist())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    with pytest.raises(InputError, match=f"top_k is 99; it must be from 1 to {small.vocab_size}"):
        generate(params, prompts, 1, jax.random.key(0), 2.0, 99, apply_fn=net)


def test_the_model_under_another_name_answers_as_its_cache_does(small: Calculator) -> None:
    config = jaxcalc.ModelConfig(small.vocab_size, 16, 2, 32, 1, small.context_length)
    params = jaxcalc.init(jax.random.key(3), config)
    full = functools.partial(jaxcalc.apply)
    prompts = small.tokens[::7, : small.prompt_length]
    for ours, theirs in zip(
        generate(params, prompts, small.answer_length),
        generate(params, prompts, small.answer_length, apply_fn=full),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_population_of_models_is_asked(small: Calculator) -> None:
    params, net = plain(small.vocab_size)
    rows = small.held_out_rows
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)
    found = jaxcalc.population.correct(both, small, rows, apply_fn=net)
    for member, own in enumerate((params, jax.tree.map(jnp.negative, params))):
        np.testing.assert_array_equal(found[member], evaluate(own, small, rows, apply_fn=net).correct)


def test_the_same_function_is_traced_once(small: Calculator) -> None:
    params, _ = plain(small.vocab_size)
    n_traces = 0

    def net(params: Any, tokens: jax.Array, last: int) -> jax.Array:
        nonlocal n_traces
        n_traces += 1
        return windowed(params, tokens, last)

    prompts = small.tokens[:4, : small.prompt_length]
    generate(params, prompts, 1, apply_fn=net)
    before = n_traces
    generate(params, prompts, 1, apply_fn=net)
    assert n_traces == before > 0


def wide(columns: int) -> Callable[..., jax.Array]:
    return lambda params, tokens, last: params["w"][tokens[:, -last:], :columns]


BROKEN: dict[str, tuple[Any, str]] = {
    "ignores last": (
        lambda params, tokens, last: params["w"][tokens],
        r"returns float32 of shape \(4, 5, 40\) for tokens of shape \(4, 5\) and last=\d; expected .* \(4, \d, V\)",
    ),
    "returns a tuple": (
        lambda params, tokens, last: (params["w"][tokens[:, -last:]], params["w"]),
        r"returns a tuple of shapes \(4, \d, 40\), \(40, 40\); expected an array of logits of shape \(4, \d, V\)",
    ),
    "returns integers": (lambda params, tokens, last: tokens[:, -last:, None], "returns int32 of shape"),
    "lacks last": (
        lambda params, tokens: params["w"][tokens],
        r"cannot be called as apply_fn\(params, tokens, last=\d",
    ),
    "is nothing": (None, "cannot be called as"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_model_is_named_at_its_first_call(case: str, small: Calculator) -> None:
    net, message = BROKEN[case]
    params = {"w": jnp.zeros((40, 40))}
    batch = jaxcalc.batch_at(small, seed=0, step=0, size=4)
    batch = jaxcalc.Batch(batch.tokens[:, :6], batch.mask)
    with pytest.raises(InputError, match=message) as caught:
        jaxcalc.train_step(jaxcalc.create_state(params, ADAM, net), batch)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        jaxcalc.loss(params, batch, net)
    with pytest.raises(InputError, match=message):
        generate(params, batch.tokens[:, :5], 2, apply_fn=net)


def test_too_few_columns_for_the_words_to_predict_are_named(small: Calculator) -> None:
    params, net = {"w": jnp.zeros((40, 40))}, wide(5)
    batch = jaxcalc.batch_at(small, seed=0, step=0, size=16)
    highest = int(np.asarray(batch.tokens)[:, small.prompt_length :].max())
    with pytest.raises(InputError, match=rf"shape \(16, 2, 5\); expected at least \(16, 2, {highest + 1}\)"):
        jaxcalc.loss(params, batch, net)
    with pytest.raises(InputError, match=r"shape \(16, 2, 5\); expected"):
        jax.jit(lambda params: jaxcalc.loss(params, batch, net))(params)
    with pytest.raises(InputError, match=r"shape \(\d+, 1, 5\); expected at least \(\d+, 1, \d+\)"):
        evaluate(params, small, small.train_rows, apply_fn=net)
    assert np.isfinite(jaxcalc.loss(params, batch, wide(highest + 1)))
    for state in (
        jaxcalc.create_state(params, ADAM, apply_fn=net),
        jaxcalc.create_state(jaxcalc.init(0, jaxcalc.ModelConfig(5, 16, 2, 32, 1)), ADAM),
    ):
        with pytest.raises(InputError, match=rf"have shape \(4, 2, 5\); expected \(4, 2, {small.vocab_size}\)"):
            jaxcalc.train_steps(state, small, seed=0, n_steps=1, batch_size=4)


@pytest.mark.parametrize("leaf", [jnp.arange(3), np.array([True]), 3, jax.random.key(0)], ids=repr)
def test_a_leaf_without_a_gradient_is_named_with_what_to_do(leaf: Any) -> None:
    message = r"params\.inner\.n is \S+\[.*\], which has no gradient; .*is_inexact_array.*nnx\.Param"
    with pytest.raises(InputError, match=message):
        jaxcalc.create_state({"inner": {"n": leaf}, "w": jnp.ones(2)}, ADAM, windowed)


def test_modules_given_whole_are_named(small: Calculator) -> None:
    params, net = equinox_module(small.vocab_size)
    module = eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    with pytest.raises(InputError, match="apply_fn is a MLP without a hash"):
        jaxcalc.create_state(params, ADAM, module)
    with pytest.raises(InputError, match="apply_fn is a MLP without a hash"):
        generate(params, small.tokens[:1], 1, apply_fn=module)
    with pytest.raises(InputError, match=r"params\.activation is a \w+, not an array; keep it out"):
        generate(module, small.tokens[:1], 1, apply_fn=net)


def test_what_knows_our_model_alone_says_so(small: Calculator, tmp_path: Path) -> None:
    params, _ = equinox_module(small.vocab_size)
    batch = jaxcalc.batch_at(small, seed=0, step=0, size=4)
    rows, tokens = small.train_rows[:4], batch.tokens[:, :-1]
    for call in (
        lambda: generate(params, tokens, 1),
        lambda: evaluate(params, small, rows),
        lambda: jaxcalc.trace(params, tokens),
        lambda: jaxcalc.config_of(params),
        lambda: list(jaxcalc.backprop.walk(params, batch)),
        lambda: jaxcalc.backprop.first_nonfinite(params, batch),
        lambda: jaxcalc.lens.residual_sites(params),
        lambda: jaxcalc.lens.attention_by_role(params, small, rows),
        lambda: jaxcalc.lens.answer_states(params, small, rows),
        lambda: jaxcalc.lens.logit_lens(params, batch),
        lambda: jaxcalc.lens.direct_contributions(params, batch),
        lambda: jaxcalc.interventions.ablate_head(params, tokens, 0, 0),
        lambda: jaxcalc.export_answerer(params, small),
    ):
        with pytest.raises(InputError, match=r"as in jaxcalc\.init; another model"):
            call()


def test_random_directions_pass_over_scalars() -> None:
    direction = jaxcalc.landscape.random_direction(jax.random.key(0), {"scale": jnp.ones(()), "w": jnp.ones((2, 3))})
    assert float(direction["scale"]) == 0
    assert float(jnp.abs(direction["w"]).sum()) > 0
