import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, Params, compare, count, fingerprint, fingerprints, named_leaves, summary


@pytest.fixture(scope="module")
def params() -> Params:
    return jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(35, d_model=16, n_heads=2, d_ff=32))


def test_every_leaf_has_its_path_and_is_counted(params: Params) -> None:
    leaves = named_leaves(params)
    assert leaves["blocks.1.attention.query"] is params["blocks"][1]["attention"]["query"]
    assert sum(leaf.size for leaf in leaves.values()) == count(params) == 5_424


def test_a_summary_says_what_is_in_each_leaf(params: Params) -> None:
    rows = summary(params).rows
    query = np.asarray(params["blocks"][0]["attention"]["query"])
    row = rows["blocks.0.attention.query"]
    assert row["array"] == "f32[16,2,8]"
    assert row["norm"] == pytest.approx(np.linalg.norm(query))
    assert row["rms"] == pytest.approx(np.sqrt((query.astype(float) ** 2).mean()))
    assert (row["min"], row["max"]) == (query.min(), query.max())
    assert set(named_leaves(params)) <= set(rows)


def test_subtotals_and_total_add_up_in_squares(params: Params) -> None:
    rows = summary(params).rows
    leaves = [row for row in rows.values() if not row["n_leaves"]]
    stages = [row for name, row in rows.items() if row["n_leaves"] and name != "total"]
    assert len(stages) == 6
    for part in (leaves, stages):
        assert sum(row["norm"] ** 2 for row in part) == pytest.approx(rows["total"]["norm"] ** 2)
    assert rows["total"]["array"] == "5424"


def test_zeros_and_non_finite_numbers_are_counted() -> None:
    row = summary({"x": jnp.array([0.0, 0.0, 1.0, jnp.nan, jnp.inf])}).rows["x"]
    assert (row["zeros"], row["bad"]) == ("40%", 2)


def test_other_peoples_trees_and_optimizer_states_work(params: Params) -> None:
    state = optax.adamw(1e-3).init(params)
    table = summary(state)
    assert "0.mu.blocks.0.mlp.up" in table.rows
    assert table.rows["0.mu.blocks.0.mlp.up"]["zeros"] == "100%"
    for tree in (
        {"count": 3, "flag": True},
        [np.zeros((0, 3)), np.int8([1])],
        jnp.ones(3, jnp.bfloat16),
        (),
    ):
        assert repr(summary(tree)).splitlines()
    with pytest.raises(InputError, match="name is 'resnet'; expected an array of numbers"):
        summary({"name": "resnet"})


def test_the_text_fits_80_columns(params: Params) -> None:
    lines = repr(summary(params)).splitlines()
    assert len(lines) == 1 + 6 + 20 + 1
    tiny = repr(summary(jax.tree.map(lambda leaf: 1e-7 * leaf, params))).splitlines()
    assert max(map(len, [*lines, *tiny])) <= 80
    assert lines[1].startswith("blocks.0.attention")
    assert lines[2].startswith("  key")


def test_a_notebook_shows_the_tree_itself(params: Params) -> None:
    html = summary(params)._repr_html_()
    assert "treescope-container" in html
    assert html != summary(params["embed"])._repr_html_()


def test_comparing_says_length_and_direction(params: Params, batch: Batch) -> None:
    grads = jax.jit(jax.grad(jaxcalc.loss))(params, batch)
    rows = compare(grads, jax.tree.map(lambda g: -2 * g, grads)).rows
    for row in rows.values():
        assert row["ratio"] == pytest.approx(0.5)
        assert row["cosine"] == pytest.approx(-1)
    up, weights = (np.asarray(tree["blocks"][1]["mlp"]["up"], np.float64).ravel() for tree in (grads, params))
    row = compare(grads, params).rows["blocks.1.mlp.up"]
    assert row["cosine"] == pytest.approx(up @ weights / np.linalg.norm(up) / np.linalg.norm(weights))
    assert compare({"w": np.zeros(2)}, {"w": np.ones(2)}).rows["w"]["cosine"] is None


def test_trees_that_do_not_match_are_refused_by_leaf() -> None:
    with pytest.raises(InputError, match=r"only a has a leaf 'x\.b'"):
        compare({"x": {"a": 1, "b": 2}}, {"x": {"a": 1}})
    with pytest.raises(InputError, match=r"w has shape \(2,\) in a and \(3,\) in b"):
        compare({"w": np.ones(2)}, {"w": np.ones(3)})


def test_a_fingerprint_is_the_same_wherever_the_array_is() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, np.int8, np.int32, np.uint8, bool):
        array = (100 * rng.normal(size=(6, 4))).astype(dtype)
        marks = [checksum(jnp.asarray(array)) for checksum in (fingerprints._checksum, fingerprints._device_checksum)]
        mark = f"{np.dtype(dtype).name}[6,4] {int(marks[0][0]):08x}{int(marks[0][1]):08x}"
        assert fingerprint([array])["0"] == fingerprint([jnp.asarray(array)])["0"] == mark
        np.testing.assert_array_equal(*marks)
    whole = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    for axes in (("data",), (None, "data"), ()):
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        split = jax.device_put(whole, spec)
        assert fingerprint(split) == fingerprint(whole) == fingerprint(np.asarray(whole))
        np.testing.assert_array_equal(fingerprints._device_checksum(split), fingerprints._device_checksum(whole))


def test_a_fingerprint_tells_every_flipped_bit_and_two_exchanged_elements() -> None:
    array = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    marks = {fingerprint(array)[""]}
    for index in range(array.size * 32):
        flipped = array.copy()
        flipped.view(np.uint32).ravel()[index // 32] ^= np.uint32(1 << index % 32)
        marks.add(fingerprint(flipped)[""])
    swapped = array.copy()
    swapped[0, 0], swapped[0, 1] = array[0, 1], array[0, 0]
    marks |= {fingerprint(swapped)[""], fingerprint(array.reshape(4, 3))[""], fingerprint(array.astype(np.float64))[""]}
    assert len(marks) == 1 + array.size * 32 + 3
    with pytest.raises(InputError, match=r"a\.b is 'text'; expected an array of numbers"):
        fingerprint({"a": {"b": "text"}})
