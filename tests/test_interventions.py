"""A model changed on the way, against a model changed by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcalc
from jaxcalc import InputError, interventions, lens
from jaxcalc.params import axes_of
from jaxcalc.tasks.task import Task


@pytest.fixture(scope="module")
def params(task: Task) -> jaxcalc.Params:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, 16, 2, 24, 2))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def rows(task: Task) -> np.ndarray:
    return np.random.default_rng(0).choice(len(task.tokens), 16, replace=False)


apply = jax.jit(jaxcalc.apply)


def test_an_ablated_head_is_a_head_cut_off(params: jaxcalc.Params, task: Task, rows: np.ndarray) -> None:
    tokens, _ = lens.read(task, rows)
    for block, head in ((0, 1), (1, 0)):
        kept = np.delete(np.arange(2), head)
        cut = jax.tree.map(lambda leaf: leaf, params)
        attention = cut["blocks"][block]["attention"]
        for name in ("query", "key", "value", "out"):
            axis = axes_of(f"attention.{name}").letters.index("H")
            attention[name] = jnp.take(attention[name], kept, axis=axis)
        chex.assert_trees_all_close(
            interventions.ablate_head(params, tokens, block, head), apply(cut, tokens), rtol=1e-4, atol=1e-5
        )


def test_mean_ablation_leaves_what_a_head_always_says(params: jaxcalc.Params, task: Task, rows: np.ndarray) -> None:
    tokens, _ = lens.read(task, rows)
    same = jnp.repeat(tokens[:1], 4, axis=0)
    untouched = apply(params, same)
    chex.assert_trees_all_close(
        interventions.ablate_head(params, same, 0, 1, mean=True), untouched, rtol=1e-4, atol=1e-5
    )
    assert jnp.abs(interventions.ablate_head(params, same, 0, 1) - untouched).max() > 0.01
    assert jnp.abs(interventions.ablate_head(params, tokens, 0, 1, mean=True) - apply(params, tokens)).max() > 0.01


def test_interventions_see_those_before_them(params: jaxcalc.Params, task: Task, rows: np.ndarray) -> None:
    tokens, _ = lens.read(task, rows)
    here, there = tokens[:8], tokens[8:16]
    chex.assert_trees_all_close(interventions.intervene(params, here, {})[0], apply(params, here))
    other = jaxcalc.trace(params, there)[1]
    edits = {
        "blocks.1.attention.out": lambda out: 2 * out,  # named first, but it comes later in the network
        "embed.residual": lambda _: other["embed"]["residual"],
    }
    logits, activations = interventions.intervene(params, here, edits)
    stronger = jax.tree.map(lambda leaf: leaf, params)
    stronger["blocks"][1]["attention"]["out"] = 2 * params["blocks"][1]["attention"]["out"]
    chex.assert_trees_all_close(logits, apply(stronger, there), rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(activations["blocks"][0], other["blocks"][0], rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"'blocks\.2\.mlp\.out' is no activation; there are embed\.residual"):
        interventions.intervene(params, here, {"blocks.2.mlp.out": lambda out: out})


def test_twins_differ_in_the_operation_alone(task: Task) -> None:
    here, there = interventions.twins(task, "plus", "minus")
    problems = np.asarray(task.problems)
    assert len(here) > 2000
    np.testing.assert_array_equal(problems[here][:, [0, 2]], problems[there][:, [0, 2]])
    assert set(problems[here, 1]) == {0}
    assert set(problems[there, 1]) == {1}
    assert (problems[here, 3] != problems[there, 3]).all()
    with pytest.raises(InputError, match="no operation 'modulo'"):
        interventions.twins(task, "plus", "modulo")


def test_patching_and_steering_at_the_embedding_make_the_other_question(params: jaxcalc.Params, task: Task) -> None:
    here, there = (rows[:32] for rows in interventions.twins(task, "plus", "minus"))
    (tokens, _), (others, _) = lens.read(task, here), lens.read(task, there)
    asked = jnp.concatenate([tokens[:, : task.prompt_length], others[:, task.prompt_length :]], axis=1)
    is_operation = jnp.asarray(lens.roles(task, here) == lens.ROLES.index("operation"))
    expected = apply(params, others)
    patched = interventions.patch(params, asked, others, "embed.residual", is_operation)
    chex.assert_trees_all_close(patched, expected, rtol=1e-4, atol=1e-4)
    ids = task.tokenizer.ids
    direction = params["embed"]["token"][ids["minus"]] - params["embed"]["token"][ids["plus"]]
    steered = interventions.steer(params, asked, direction, "embed.residual", is_operation)
    chex.assert_trees_all_close(steered, expected, rtol=1e-3, atol=1e-3)
    nowhere = interventions.patch(params, asked, others, "blocks.0.mlp.residual", jnp.zeros_like(is_operation))
    chex.assert_trees_all_close(nowhere, apply(params, asked))
