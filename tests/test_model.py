import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baseline_linen import LinenModel, to_linen
from jax.flatten_util import ravel_pytree

import jaxcalc
from jaxcalc import Batch, InputError, ModelConfig, Params, config_of, count, init, loss, named_leaves, trace
from jaxcalc.params import check_params

apply = jax.jit(jaxcalc.apply, static_argnames="last")  # op by op, each test would compile hundreds of programs
TOKENS = jax.random.randint(jax.random.key(0), (4, 8), 0, 35)


@pytest.fixture(scope="module")
def params() -> Params:
    """Parameters of two small blocks, large enough that every path through the model matters."""
    params = init(jax.random.key(1), ModelConfig(35, d_model=16, n_heads=4, d_ff=32))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.mark.parametrize("sizes", [(16, 4, 32, 1), pytest.param((24, 3, 40, 3), marks=pytest.mark.slow)])
def test_logits_and_gradients_equal_an_independent_linen_model(sizes: tuple[int, ...]) -> None:
    config = ModelConfig(35, *sizes)
    params = init(jax.random.key(3), config)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        linen = LinenModel(config)
        np.testing.assert_allclose(
            apply(params, TOKENS), jax.jit(linen.apply)(to_linen(params), TOKENS), rtol=1e-10, atol=1e-12
        )
        weights = jax.random.normal(jax.random.key(5), (4, 8, 35))
        ours = jax.jit(jax.grad(lambda p: (apply(p, TOKENS) * weights).sum()))(params)
        theirs = jax.jit(jax.grad(lambda p: (linen.apply(p, TOKENS) * weights).sum()))(to_linen(params))
        chex.assert_trees_all_close(to_linen(ours), theirs, rtol=1e-8, atol=1e-10)


def test_the_default_model_has_about_100_thousand_parameters() -> None:
    assert count(jax.eval_shape(lambda: init(jax.random.key(0), ModelConfig(35)))) == 103_616


@pytest.mark.parametrize(("name", "named"), [("100K", 1e5), ("1M", 1e6), ("10M", 1e7), ("100M", 1e8)])
def test_a_size_has_about_the_parameters_in_its_name(name: jaxcalc.model.SizeName, named: float) -> None:
    config = ModelConfig(35, **jaxcalc.SIZES[name])
    assert count(jax.eval_shape(lambda: init(jax.random.key(0), config))) == pytest.approx(named, rel=0.07)
    assert config.d_model % (64 if name == "100K" else 128) == 0
    assert 16 <= config.d_model / config.n_heads <= 64
    assert name != "100K" or config == ModelConfig(35)  # the default


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
def test_narrow_parameters_are_computed_with_and_give_wide_logits(params: Params, dtype: type, rtol: float) -> None:
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    (logits, activations), (expected, _) = (trace(tree, TOKENS) for tree in (narrow, params))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(activations)} == {jnp.dtype(dtype)}
    spread = float(expected.std())
    assert 0 < float(jnp.abs(logits - expected).mean()) < 5 * rtol * spread
    grads, exact = (jax.jit(jax.grad(lambda p: apply(p, TOKENS)[:, -1].std()))(tree) for tree in (narrow, params))
    for name, leaf in named_leaves(grads).items():
        assert leaf.dtype == dtype, name
        assert jnp.isfinite(leaf).all(), name
        wide, other = leaf.astype(jnp.float32).ravel(), named_leaves(exact)[name].ravel()
        assert wide @ other > (1 - 30 * rtol) * jnp.linalg.norm(wide) * jnp.linalg.norm(other), name


def test_the_mean_square_is_not_taken_in_float16() -> None:
    x = jnp.full((1, 64), 300, jnp.float16)  # float16 cannot hold its square
    np.testing.assert_allclose(jaxcalc.model.rms_norm(x), 1, rtol=1e-3)


def test_later_tokens_never_change_earlier_predictions(params: Params) -> None:
    logits = apply(params, TOKENS)
    for position in range(8):
        changed = apply(params, TOKENS.at[:, position].add(1) % 35)
        np.testing.assert_array_equal(changed[:, :position], logits[:, :position])
        assert (changed[:, position:] != logits[:, position:]).any(axis=(0, 2)).all()


def test_gradients_reach_back_to_the_first_token_and_never_forward(params: Params) -> None:
    _, activations = trace(params, TOKENS)
    zero = jnp.zeros_like(activations["embed"]["residual"])

    @jax.jit
    @jax.grad
    def message(tap: jax.Array, position: int) -> jax.Array:
        return trace(params, TOKENS, {"embed": {"residual": tap}})[0][:, position].std()

    for position in range(8):
        strength = jnp.abs(message(zero, position)).sum(axis=(0, 2))
        assert (strength[: position + 1] > 0).all()
        assert (strength[position + 1 :] == 0).all()


def test_examples_of_a_batch_do_not_mix(params: Params) -> None:
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(params, TOKENS[order]), apply(params, TOKENS)[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last", [1, 3, 8])
def test_the_last_logits_are_those_of_the_whole_sequence(params: Params, last: int) -> None:
    np.testing.assert_allclose(apply(params, TOKENS, last=last), apply(params, TOKENS)[:, -last:], rtol=1e-4, atol=1e-5)


def test_jit_changes_nothing(params: Params) -> None:
    np.testing.assert_allclose(apply(params, TOKENS), jaxcalc.apply(params, TOKENS), rtol=1e-4, atol=1e-5)


def test_gradients_agree_with_finite_differences(batch: Batch) -> None:
    with jax.enable_x64(True):
        params = init(jax.random.key(2), ModelConfig(35, d_model=8, n_heads=2, d_ff=12, n_layers=1))
        flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: 3 * leaf.astype(jnp.float64), params))
        chex.assert_numerical_grads(
            jax.jit(lambda flat: loss(unravel(flat), batch)), (flat,), order=1, atol=1e-9, eps=1e-6
        )


def test_gradients_per_example_add_up_to_the_batch(params: Params, batch: Batch) -> None:
    examples = jax.tree.map(lambda x: x[:, None], batch)
    of_each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, examples)
    shares = batch.mask.sum(axis=1) / batch.mask.sum()  # of the tokens that count
    added = jax.tree.map(lambda grads: jnp.tensordot(shares, grads, 1), of_each)
    chex.assert_trees_all_close(added, jax.jit(jax.grad(loss))(params, batch), rtol=1e-4, atol=1e-6)


def test_no_parameter_is_dead(params: Params, batch: Batch) -> None:
    for name, grad in named_leaves(jax.jit(jax.grad(loss))(params, batch)).items():
        assert jnp.isfinite(grad).all(), name
        assert (grad != 0).any(), name


def test_attention_rows_are_causal_distributions(params: Params) -> None:
    _, activations = trace(params, TOKENS)
    for block in activations["blocks"]:
        pattern = block["attention"]["pattern"]
        np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-6)
        assert (jnp.triu(pattern, 1) == 0).all()


def test_zero_taps_change_nothing_and_their_gradient_is_the_message(params: Params, batch: Batch) -> None:
    logits, activations = trace(params, TOKENS)
    zeros = jax.tree.map(jnp.zeros_like, activations)
    np.testing.assert_array_equal(trace(params, TOKENS, zeros)[0], logits)
    chex.assert_trees_all_equal_shapes(trace(params, TOKENS, zeros)[1], activations)

    # By the chain rule, the message at the embedding is what reaches the token table, gathered by token.
    def score(taps: dict) -> jax.Array:
        return trace(params, TOKENS, taps)[0][:, -1].std()

    message = jax.jit(jax.grad(score))(zeros)["embed"]["residual"]
    table = jax.jit(jax.grad(lambda p: apply(p, TOKENS)[:, -1].std()))(params)["embed"]["token"]
    np.testing.assert_allclose(jnp.zeros_like(table).at[TOKENS].add(message), table, rtol=1e-4, atol=1e-7)


def test_patching_one_run_with_anothers_residual_gives_the_others_logits(params: Params) -> None:
    other = (TOKENS + 7) % 35
    (_, own), (expected, others) = trace(params, TOKENS), trace(params, other)
    for block in range(2):
        stage = [{}, {}]
        difference = others["blocks"][block]["mlp"]["residual"] - own["blocks"][block]["mlp"]["residual"]
        stage[block] = {"mlp": {"residual": difference}}
        patched, _ = trace(params, TOKENS, {"blocks": stage})
        np.testing.assert_allclose(patched, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"embed": {"residuals": jnp.zeros((4, 8, 16))}}, "'embed.residuals' names no activation"),
        ({"embed": {"residual": jnp.zeros((1, 8, 16))}}, r"'residual' has shape \(1, 8, 16\)"),
    ],
)
def test_taps_that_fit_nothing_are_refused(params: Params, taps: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace(params, TOKENS, taps)


def test_a_head_can_be_sliced_off(params: Params) -> None:
    attention = params["blocks"][0]["attention"]
    sliced = {
        "norm": attention["norm"],
        "out": attention["out"][:3],
        **{name: attention[name][:, :3] for name in ("query", "key", "value")},
    }
    pruned = {**params, "blocks": [{**params["blocks"][0], "attention": sliced}, params["blocks"][1]]}
    silenced = {**attention, "out": attention["out"].at[3].set(0)}
    same = {**params, "blocks": [{**params["blocks"][0], "attention": silenced}, params["blocks"][1]]}
    np.testing.assert_allclose(apply(pruned, TOKENS), apply(same, TOKENS), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"no ModelConfig has these shapes: n_heads is 3"):
        config_of(pruned)
    halved = {
        **params["blocks"][1],
        "mlp": {**params["blocks"][1]["mlp"], "up": jnp.ones((16, 9)), "down": jnp.ones((9, 16))},
    }
    with pytest.raises(InputError, match=r"no ModelConfig has these shapes: blocks\.1\.mlp\.down is \(9, 16\)"):
        config_of({**params, "blocks": [params["blocks"][0], halved]})


@pytest.mark.parametrize("sizes", [{}, {"d_model": 24, "n_heads": 3, "d_ff": 40, "n_layers": 3, "context_length": 20}])
def test_the_configuration_is_read_back_from_the_shapes(sizes: dict[str, int]) -> None:
    config = ModelConfig(35, **sizes)
    assert config_of(init(jax.random.key(0), config)) == config


def without(tree: dict, *path: str) -> dict:
    first, *rest = path
    if not rest:
        return {name: node for name, node in tree.items() if name != first}
    return {**tree, first: without(tree[first], *rest)}


def test_a_malformed_tree_is_refused_by_the_name_of_the_leaf(params: Params) -> None:
    embed, block = params["embed"], params["blocks"][0]
    malformed = {
        r"no leaf 'embed\.position'": without(params, "embed", "position"),
        r"no leaf 'output\.unembed'": without(params, "output", "unembed"),
        r"extra leaf 'embed\.bias'": {**params, "embed": {**embed, "bias": jnp.zeros(3)}},
        r"blocks\.1\.mlp\.down has shape \(16, 32\)": {
            **params,
            "blocks": [block, {**block, "mlp": {**block["mlp"], "down": block["mlp"]["up"]}}],
        },
        r"embed\.position has shape \(8, 17\)": {**params, "embed": {**embed, "position": jnp.zeros((8, 17))}},
        r"embed\.token has shape \(35,\)": {**params, "embed": {**embed, "token": jnp.zeros(35)}},
        r"embed\.token is 'table'": {**params, "embed": {**embed, "token": "table"}},
        "at least one block": {**params, "blocks": []},
        "as in jaxcalc.init": 3,
    }
    for message, tree in malformed.items():
        with pytest.raises(InputError, match=message):
            check_params(tree)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 9), int), "9 tokens; the context length is 8"),
        (np.full((1, 8), 35), "token id 35"),
        (np.full((1, 8), -1), "token id -1"),
        (np.zeros(8, int), r"expected integers of shape \[B, T\]"),
        (np.zeros((1, 8)), r"float.*expected integers"),
    ],
)
def test_bad_tokens_are_refused(params: Params, tokens: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        jaxcalc.apply(params, jnp.asarray(tokens))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_heads": 5}, "n_heads is 5, which does not divide d_model, 64"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"d_ff": -1}, "d_ff is -1"),
    ],
)
def test_bad_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig(35, **sizes)
