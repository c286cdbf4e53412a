"""The table of axes: everything that follows from it, against values written out by hand."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from optax.contrib import MuonDimensionNumbers

from jaxcalc import InputError, ModelConfig, Params, config_of, init, make_optimizer, named_leaves
from jaxcalc.params import AXES, HEAD_AXIS, axes_of, check_params, tree_axes
from jaxcalc.trees import dotted

MATRICES = {
    "query": MuonDimensionNumbers((0,), (1, 2)),
    "key": MuonDimensionNumbers((0,), (1, 2)),
    "value": MuonDimensionNumbers((0,), (1, 2)),
    "out": MuonDimensionNumbers((0, 1), (2,)),
    "up": MuonDimensionNumbers((0,), (1,)),
    "down": MuonDimensionNumbers((0,), (1,)),
}
"""How Muon reads a leaf, by the last part of its path; Adam has all other leaves."""
FILTERS = {"token": (1,), "position": (1,), "out": (0, 1), "norm": ()}
"""The axes of one filter; of all other leaves the first axis."""


@pytest.fixture(scope="module")
def params() -> Params:
    return init(jax.random.key(0), ModelConfig(35, d_model=16, n_heads=2, d_ff=24, n_layers=2))


def test_the_table_names_every_leaf_and_its_axes_fit_the_shapes(params: Params) -> None:
    sizes = {"V": 35, "C": 8, "D": 16, "H": 2, "K": 8, "F": 24}
    axes = named_leaves(tree_axes(params))
    assert {name.removeprefix("blocks.0.").removeprefix("blocks.1.") for name in axes} == AXES.keys()
    for name, leaf in named_leaves(params).items():
        assert leaf.shape == tuple(sizes[letter] for letter in axes[name].letters), name


def test_hidden_matrices_are_those_of_the_blocks(params: Params) -> None:
    for name, axes in named_leaves(tree_axes(params)).items():
        assert axes.is_hidden_matrix == (name.rpartition(".")[2] in MATRICES), name


def test_muon_in_stacks_takes_the_steps_of_optax(params: Params) -> None:
    ours = make_optimizer("muon", None, learning_rate=0.1, weight_decay=0.5)
    theirs = optax.chain(
        optax.identity(),
        optax.contrib.muon(
            optax.constant_schedule(0.1),
            weight_decay=0.5,
            adam_b2=0.99,
            adam_learning_rate=optax.constant_schedule(0.025),
            muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(
                lambda path, _: MATRICES.get(dotted(path).rpartition(".")[2]), params
            ),
        ),
    )
    weights: Any = params
    mine, other, state, other_state = weights, weights, ours.init(weights), theirs.init(weights)
    assert jax.tree.structure(state) == jax.tree.structure(other_state)  # an older run goes on
    for seed in range(3):
        grads = init(jax.random.key(seed + 1), config_of(params))
        updates, state = ours.update(grads, state, mine)
        other_updates, other_state = theirs.update(grads, other_state, other)
        mine, other = optax.apply_updates(mine, updates), optax.apply_updates(other, other_updates)
        chex.assert_trees_all_close((mine, state), (other, other_state), rtol=0, atol=1e-6)


def test_heads_and_filters_have_their_axes(params: Params) -> None:
    assert HEAD_AXIS == {"query": 1, "key": 1, "value": 1, "out": 0}
    for name, axes in named_leaves(tree_axes(params)).items():
        assert axes.filter_axes == FILTERS.get(name.rpartition(".")[2], (0,)), name


def test_moments_have_the_axes_of_their_parameters_and_other_leaves_none(params: Params) -> None:
    state = make_optimizer("adamw", 10).init(params)
    axes = named_leaves(tree_axes(state))
    assert str(axes["1.0.mu.blocks.1.attention.out"]) == "HK->D"
    assert str(axes["1.0.nu.embed.token"]) == "V->D"
    assert str(axes["1.0.count"]) == str(axes_of("another.out")) == str(axes_of("myattention.out")) == ""


def test_another_model_brings_its_own_table() -> None:
    table = {"dense.kernel": "D->F", "dense.bias": "F", "head.kernel": "D->V"}
    ones = {name: {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)} for name in ("dense", "head")}
    zeros = jax.tree.map(jnp.zeros_like, ones)
    for name in ("muon", "adamw", "sgd"):
        tx = make_optimizer(name, None, weight_decay=1.0, axes=table)
        updates, _ = tx.update(zeros, tx.init(ones), ones)
        decayed = {name for name, update in named_leaves(updates).items() if bool((update != 0).any())}
        assert decayed == {"dense.kernel"}, name


@pytest.mark.parametrize(
    ("leaf", "shape", "message"),
    [
        ("attention.value", (16, 3, 8), r"blocks\.1\.attention\.value has shape \(16, 3, 8\), axes D->HK; H is 2"),
        ("attention.out", (2, 9, 16), r"blocks\.1\.attention\.out has shape \(2, 9, 16\), axes HK->D; K is 8"),
        ("mlp.down", (25, 16), r"blocks\.1\.mlp\.down has shape \(25, 16\), axes F->D; F is 24"),
        ("mlp.norm", (17,), r"blocks\.1\.mlp\.norm has shape \(17,\), axes D; D is 16"),
        ("mlp.up", (16, 24, 1), r"blocks\.1\.mlp\.up has shape \(16, 24, 1\); expected axes D->F"),
    ],
)
def test_a_leaf_that_does_not_fit_its_block_is_refused(
    params: Params, leaf: str, shape: tuple[int, ...], message: str
) -> None:
    block = params["blocks"][1]
    wrong = jax.tree.map_with_path(lambda path, x: np.zeros(shape) if dotted(path) == leaf else x, block)
    with pytest.raises(InputError, match=message):
        check_params({**params, "blocks": [params["blocks"][0], wrong]})
