import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcalc
from jaxcalc import InputError, Params, Task, generate
from jaxcalc.batch import PAD_ID
from jaxcalc.decoding import empty_cache, extend
from jaxcalc.tasks.tokenizer import END_ID

apply = jax.jit(jaxcalc.apply)


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    """Two blocks, so that one block's cache is not the other's."""
    config = jaxcalc.ModelConfig(task.vocab_size, 16, 2, 32, 2, task.context_length)
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, jaxcalc.init(jax.random.key(1), config))


@pytest.fixture(scope="module")
def prompts(task: Task) -> jax.Array:
    return task.tokens[::500, : task.prompt_length]


def test_cached_decoding_equals_the_full_forward_pass(task: Task, params: Params) -> None:
    tokens = task.tokens[::500, :8]
    expected = apply(params, tokens)
    step = jax.jit(extend)
    for prefill in (1, 3, 6, 8):
        logits, cache = step(params, tokens[:, :prefill], empty_cache(params, len(tokens), 8), 0)
        np.testing.assert_allclose(logits, expected[:, prefill - 1], rtol=1e-3, atol=1e-4)
        for position in range(prefill, 8):
            logits, cache = step(params, tokens[:, position : position + 1], cache, position)
            np.testing.assert_allclose(logits, expected[:, position], rtol=1e-3, atol=1e-4)


def test_greedy_is_the_likeliest_token_each_time_until_the_end(params: Params, prompts: jax.Array) -> None:
    # Give the end token the output weights of a token that some answers begin with, so that these end early.
    common = int(jnp.bincount(apply(params, prompts)[:, -1].argmax(axis=-1), length=35).argmax())
    swap = jnp.arange(35).at[jnp.array([common, END_ID])].set(jnp.array([END_ID, common]))
    ending = {**params, "output": {**params["output"], "unembed": params["output"]["unembed"][:, swap]}}
    tokens, log_probs = generate(ending, prompts, 3)
    sequence, ended = prompts, np.zeros(len(prompts), bool)
    for step in range(3):
        logits = apply(ending, sequence)[:, -1]
        expected = np.where(ended, PAD_ID, logits.argmax(axis=-1))
        np.testing.assert_array_equal(tokens[:, step], expected)
        log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), expected[:, None], 1)[:, 0]
        np.testing.assert_allclose(log_probs[:, step], np.where(ended, 0, log_p), rtol=1e-3, atol=1e-4)
        ended |= expected == END_ID
        sequence = jnp.concatenate([sequence, tokens[:, step : step + 1]], axis=1)
    assert ended.any()
    assert not ended.all()


def test_samples_follow_the_distribution(params: Params, prompts: jax.Array) -> None:
    n = 4096
    prompt = jnp.broadcast_to(prompts[3], (n, prompts.shape[1]))
    logits = apply(params, prompts[3:4])[0, -1]
    for temperature in (1.0, 2.0):
        tokens, _ = generate(params, prompt, 1, jax.random.key(0), temperature)
        shares = np.bincount(np.asarray(tokens)[:, 0], minlength=35) / n
        # Five standard deviations of a share, (p (1 - p) / n)^½.
        p = np.asarray(jax.nn.softmax(logits / temperature))
        assert (np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / n) + 1e-3).all()


def test_top_k_draws_only_from_the_k_likeliest(params: Params, prompts: jax.Array) -> None:
    prompt = jnp.broadcast_to(prompts[0], (1000, prompts.shape[1]))
    tokens, _ = generate(params, prompt, 1, jax.random.key(0), 5.0, 3)
    likeliest = np.argsort(-np.asarray(apply(params, prompts[:1])[0, -1]))[:3]
    assert set(np.asarray(tokens)[:, 0].tolist()) == set(likeliest.tolist())
    greedy, _ = generate(params, prompts, 3)
    likeliest_only, _ = generate(params, prompts, 3, jax.random.key(0), 1.0, 1)
    np.testing.assert_array_equal(greedy, likeliest_only)


def test_the_same_key_draws_the_same_answer(params: Params, prompts: jax.Array) -> None:
    first, again, other = (generate(params, prompts, 3, jax.random.key(seed), 3.0)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_tokens": 4}, "a prompt of 6 and 4 more tokens.*reads 8 positions"),
        ({"n_tokens": 0}, "a prompt of 6 and 0 more tokens"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 36}, "top_k is 36; it must be from 1 to 35"),
        ({"prompts": np.full((1, 6), 99)}, "token id 99"),
    ],
)
def test_bad_arguments_are_named(params: Params, prompts: jax.Array, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(**{"params": params, "prompts": prompts, "n_tokens": 3, "key": jax.random.key(0), **arguments})
