import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task, batch_at, cross_entropy, surprise
from jaxcalc.losses import answer_logits, example_cross_entropy, token_cross_entropy

apply, loss = jax.jit(jaxcalc.apply), jax.jit(jaxcalc.loss)


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    config = jaxcalc.ModelConfig(task.vocab_size, 16, 2, 32, 1, task.context_length)
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, jaxcalc.init(jax.random.key(1), config))


def test_the_loss_is_minus_ln_p_of_the_right_tokens(params: Params, batch: Batch) -> None:
    probabilities = jax.nn.softmax(apply(params, batch.tokens[:, :-1]))
    surprises = [
        -np.log(float(probabilities[row, position - 1, batch.tokens[row, position]]))
        for row in range(16)
        for position in range(6, 9)
        if batch.tokens[row, position] != 0
    ]
    assert float(loss(params, batch)) == pytest.approx(np.mean(surprises), rel=1e-5)


def test_a_probability_of_42_percent_costs_87_hundredths() -> None:
    logits = jnp.log(jnp.array([[[0.47, 0.42, 0.11]]]))
    batch = Batch(jnp.array([[0, 1]]), jnp.ones((1, 1)))
    assert float(cross_entropy(logits, batch)) == pytest.approx(0.8675, abs=1e-4)


def test_token_example_and_mean_losses_add_up(params: Params, batch: Batch) -> None:
    logits = answer_logits(params, batch)
    per_token = token_cross_entropy(logits, batch)
    assert (per_token[batch.mask == 0] == 0).all()
    np.testing.assert_allclose(example_cross_entropy(logits, batch), per_token.sum(axis=1))
    assert float(cross_entropy(logits, batch)) == pytest.approx(float(per_token.sum() / batch.mask.sum()))


def test_masked_targets_have_no_influence(params: Params, batch: Batch) -> None:
    changed = Batch(
        jnp.where(jnp.pad(batch.mask, ((0, 0), (6, 0)), constant_values=1) == 0, 5, batch.tokens), batch.mask
    )
    assert (changed.tokens != batch.tokens).any()
    assert float(loss(params, changed)) == pytest.approx(float(loss(params, batch)), rel=1e-6)


def test_the_loss_can_be_on_all_tokens(task: Task, params: Params) -> None:
    batch = batch_at(task, 0, 0, 4, loss_on="all")
    logits = apply(params, batch.tokens[:, :-1])
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[:, 1:, None], axis=-1)[..., 0]
    expected = -(picked * batch.mask).sum() / batch.mask.sum()
    assert float(loss(params, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_in_which_no_token_counts_is_refused(params: Params, batch: Batch) -> None:
    with pytest.raises(InputError, match="mask is all zero"):
        jaxcalc.loss(params, batch._replace(mask=jnp.zeros_like(batch.mask)))


def test_surprise_in_nats_and_bits() -> None:
    for p, nats in ((0.42, 0.87), (0.35, 1.05), (0.94, 0.06), (1.0, 0.0)):
        assert surprise(p)[0] == pytest.approx(nats, abs=0.005)
        assert surprise(p)[1] == pytest.approx(surprise(p)[0] / np.log(2))
    for p in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="probability is"):
            surprise(p)
