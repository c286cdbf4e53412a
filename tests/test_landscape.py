"""The curvature and the loss along directions, against dense algebra."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxcalc
from jaxcalc import landscape


@pytest.fixture(scope="module")
def small() -> tuple[jaxcalc.Params, jaxcalc.Batch]:
    task = jaxcalc.calculator(operations=("plus",), max_number=9)
    config = jaxcalc.ModelConfig(task.vocab_size, 4, 1, 4, 1, task.context_length)
    params = jax.tree.map(lambda leaf: 5 * leaf, jaxcalc.init(jax.random.key(0), config))
    return params, jaxcalc.batch_at(task, seed=0, step=0, size=16)


def two_layers(params: dict, tokens: jax.Array, last: int) -> jax.Array:
    return jnp.tanh(params["in"][tokens[:, -last:]]) @ params["out"]


@pytest.mark.slow
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(small: tuple) -> None:
    _, batch = small
    keys, n_words = jax.random.split(jax.random.key(0)), int(batch.tokens.max()) + 1
    params: Any = {"in": jax.random.normal(keys[0], (n_words, 6)), "out": jax.random.normal(keys[1], (6, n_words))}
    flat, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda x: jaxcalc.loss(unravel(x), batch, two_layers)))(flat)
    largest = np.linalg.eigvalsh(np.asarray(hessian, np.float64))[-1]
    assert largest > 0.1
    found, error = landscape.sharpness(jax.random.key(1), params, batch, 40, two_layers)
    assert float(found) == pytest.approx(largest, rel=1e-3)
    assert abs(float(found) - largest) <= float(error) + 1e-3 * largest
    rough, bound = landscape.sharpness(jax.random.key(1), params, batch, 2, two_layers)
    assert float(rough) < float(found)  # fewer steps find less, and say so
    assert float(bound) > float(error)

    vector = jax.tree.map(jnp.ones_like, params)
    product = ravel_pytree(landscape.hessian_vector(params, vector, batch, two_layers))[0]
    chex.assert_trees_all_close(product, hessian @ jnp.ones_like(flat), rtol=1e-3, atol=1e-4)


def test_loss_along_a_direction_is_the_loss_there(small: tuple) -> None:
    params, batch = small
    direction = landscape.random_direction(jax.random.key(2), params)
    found = landscape.loss_along(params, direction, jnp.array([0.0, 0.5, -1.0]), batch)
    moved = jax.tree.map(lambda p, d: p - d, params, direction)
    loss = jax.jit(jaxcalc.loss)
    expected = jnp.stack([loss(params, batch), loss(moved, batch)])
    chex.assert_trees_all_close(found[::2], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_random_direction_has_the_norms_of_the_weights_filter_by_filter() -> None:
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(35, 32, 2, 64, 1))
    direction = landscape.random_direction(jax.random.key(0), params)
    chex.assert_trees_all_equal_shapes(direction, params)
    block, drawn = params["blocks"][0]["attention"], direction["blocks"][0]["attention"]
    for name, axes in (("query", 0), ("value", 0), ("out", (0, 1))):
        sizes = [np.sqrt((np.asarray(leaf[name]) ** 2).sum(axis=axes)) for leaf in (block, drawn)]
        np.testing.assert_allclose(*sizes, rtol=1e-5)
    rows = [np.linalg.norm(tree["embed"]["token"], axis=1) for tree in (params, direction)]
    np.testing.assert_allclose(*rows, rtol=1e-5)
    assert not drawn["norm"].any()
    other = landscape.random_direction(jax.random.key(1), params)
    cosine = jaxcalc.compare(direction, other).rows["total"]["cosine"]
    assert abs(cosine) < 0.05


def test_the_plane_through_snapshots_is_that_of_numpy_and_holds_the_path() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 5)) * [9, 4, 1, 0.5, 0.1]
    snapshots = [{"a": jnp.asarray(p[:2], jnp.float32), "b": jnp.asarray(p[2:], jnp.float32)} for p in points]
    plane = landscape.path_plane(snapshots)  # any tree
    flat = [np.asarray(ravel_pytree(tree)[0], np.float64) for tree in (plane.center, plane.across, plane.up)]
    values = np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1]
    np.testing.assert_allclose(plane.shares, values[:2] / values.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.stack(flat[1:]) @ np.stack(flat[1:]).T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(plane.path, (points - flat[0]) @ np.stack(flat[1:]).T, atol=1e-4)
    assert plane.path[0, 0] <= plane.path[-1, 0]


def test_the_loss_on_the_plane_is_the_loss_there(small: tuple) -> None:
    params, batch = small
    snapshots = [jax.tree.map(lambda p, k=k: p * (1 + 0.3 * k), params) for k in range(2)]
    snapshots.append(jax.tree.map(jnp.cos, params))
    plane = landscape.path_plane(snapshots)  # three snapshots lie on their plane
    assert float(plane.shares.sum()) == pytest.approx(1)
    xs, ys = plane.path[:, 0], plane.path[:2, 1]
    grid = landscape.loss_on(plane, xs, ys, batch)
    assert grid.shape == (2, 3)
    loss = jax.jit(jaxcalc.loss)
    expected = [float(loss(snapshot, batch)) for snapshot in snapshots[:2]]
    np.testing.assert_allclose([grid[0, 0], grid[1, 1]], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        ([[0.0, 0.0], [1.0, 0.0]], "got 2 snapshots; a plane needs at least three"),
        ([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]], "all snapshots lie on one line"),
        ([[0.0, 0.0], [1.0, 0.0], [3.0]], r"w is float32\[2\] in snapshot 0 and float32\[1\] in snapshot 2"),
    ],
)
def test_snapshots_without_a_plane_are_refused(snapshots: list, message: str) -> None:
    with pytest.raises(jaxcalc.InputError, match=message):
        landscape.path_plane([{"w": jnp.array(values)} for values in snapshots])
    with pytest.raises(jaxcalc.InputError, match="only snapshot 1 has a leaf 'v'"):
        landscape.path_plane([{}, {"v": jnp.zeros(1)}, {}])
