"""Every leaf of every tree is right in tables, fingerprints, checkpoints and files, or refused by its name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcalc import (
    Batch,
    InputError,
    TrainState,
    compare,
    count,
    create_state,
    fingerprint,
    fingerprints,
    load_metadata,
    load_params,
    save_params,
    summary,
    train_step,
)
from jaxcalc.runs import checkpoint

DTYPES = sorted({np.dtype(kind) for kind in vars(jnp).values() if isinstance(kind, type(jnp.float32))}, key=str)
"""Every dtype that JAX has."""


def values_of(dtype: np.dtype) -> np.ndarray:
    """Return an array `[2, 3]` of a dtype: numbers that the dtype has, exactly."""
    return np.array([[1, 2, 0.5], [0, -1, 1]]).astype(np.float32).astype(dtype)


def test_leaves_of_different_dtypes_stand_in_one_table() -> None:
    tree = {"mu": jnp.full(4, 3, jnp.bfloat16), "count": jnp.int32(8), "half": np.ones(1, np.float16), "on": True}
    row = summary(tree).rows["total"]
    assert (row["array"], row["norm"], row["min"], row["max"]) == ("7", pytest.approx(102**0.5), 1, 8)
    assert compare(tree, tree).rows["total"]["cosine"] == pytest.approx(1)
    state = optax.adam(1e-3, mu_dtype=jnp.bfloat16).init({"w": jnp.ones(3)})
    assert summary(state).rows["total"]["array"] == str(count(state)) == "7"


def test_an_empty_tree_has_a_total() -> None:
    for tree in ((), {}, None, optax.sgd(0.1).init({})):
        assert summary(tree).rows["total"]["array"] == "0"
        assert compare(tree, tree).rows["total"]["norm a"] == 0
        assert repr(summary(tree)).splitlines()[1].startswith("total")
        assert (count(tree), fingerprint(tree)) == (0, {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_told_as_it_is(dtype: np.dtype) -> None:
    array = values_of(dtype)
    wide = array.astype(np.complex128)
    row = summary({"x": array}).rows["x"]
    assert row["norm"] == pytest.approx(np.linalg.norm(wide), nan_ok=True)
    assert row["bad"] == np.isnan(wide).sum()
    if dtype.kind != "c":
        assert (row["min"], row["max"]) == pytest.approx((wide.real.min(), wide.real.max()), nan_ok=True)
    expected = np.nan if row["bad"] else 0.5
    assert compare([array], [2 * wide]).rows["0"]["ratio"] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fingerprint_depends_on_the_values_alone(dtype: np.dtype) -> None:
    array = values_of(dtype)
    twice = np.repeat(array, 2, axis=1)
    mark = fingerprint(array)
    for same in (np.asfortranarray(array), twice[:, ::2], array[::-1][::-1], array.T.copy().T):
        assert fingerprint(same) == mark
    assert fingerprint(array[::-1]) != mark
    if dtype in (jnp.int1, jnp.uint1):
        return  # JAX 0.10 cannot copy them to a device
    with jax.enable_x64(True):
        on_device = jnp.asarray(array)
        assert fingerprint(on_device) == mark
        if dtype.name.startswith(("int2", "int4", "uint2", "uint4", "float4", "float6")):
            return  # what is smaller than a byte is hashed on the host
        a, b = fingerprints._device_checksum(on_device)
    assert mark[""].endswith(f" {int(a):08x}{int(b):08x}")


def test_fingerprints_are_those_of_checkpoints_that_exist() -> None:
    found = fingerprint([values_of(np.dtype(kind)) for kind in ("float32", "bfloat16", "int32", "float64", "bool")])
    assert found == {
        "0": "float32[2,3] 8dd6f686492931af",
        "1": "bfloat16[2,3] b61b3ed34087fdf5",
        "2": "int32[2,3] 7e80784a908433e5",
        "3": "float64[2,3] f5a1cd5787b54a90",
        "4": "bool[2,3] 7c49a29acb70fb35",
    }


def test_an_array_in_the_other_byte_order_has_the_same_fingerprint() -> None:
    assert fingerprint(np.arange(5, dtype=">i8")) == fingerprint(np.arange(5, dtype="<i8"))


def test_prng_keys_are_hashed_by_their_data_and_are_no_numbers() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    tree = {"keys": keys, "w": np.ones(2, np.float32)}
    rows = summary(tree).rows
    assert (rows["keys"]["array"], rows["keys"].get("norm"), rows["total"]["array"]) == ("key<fry>[3]", None, "2")
    assert rows["total"]["norm"] == pytest.approx(2**0.5)
    assert compare(tree, tree).rows["total"]["norm a"] == pytest.approx(2**0.5)
    assert count(tree) == 5
    kind, mark = fingerprint(keys)[""].split()
    assert (kind, mark) == ("key<fry>[3]", fingerprint(jax.random.key_data(keys))[""].split()[1])
    assert fingerprint(jax.random.split(jax.random.key(1), 3)) != fingerprint(keys)
    with pytest.raises(InputError, match=r"k is PRNG keys in b only"):
        compare({"k": np.ones(3)}, {"k": keys})


class Other:
    def __repr__(self) -> str:
        return "a\nb"


def deleted(array: jax.Array) -> jax.Array:
    array.delete()
    return array


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "text": (lambda: "resnet", "'resnet'"),
    "bytes": (lambda: b"resnet", "b'resnet'"),
    "object": (Other, "a Other"),
    "function": (lambda: jnp.tanh, "a "),
    "shape": (lambda: jax.ShapeDtypeStruct((2,), np.float32), "a ShapeDtypeStruct"),
    "many bits": (lambda: 2**70, "1180591620717411303424"),
    "texts": (lambda: np.array(["a"]), "str32[1]"),
    "objects": (lambda: np.array([None]), "object[1]"),
    "record": (lambda: np.zeros(2, [("a", int)]), "void64[2]"),
    "date": (lambda: np.zeros(1, "M8[s]"), "datetime64[s][1]"),
    "span": (lambda: np.zeros(1, "m8[s]"), "timedelta64[s][1]"),
    "padded": (lambda: np.longdouble([1, 2]), "float128[2]"),
    "masked": (lambda: np.ma.masked_array([1, 2], [0, 1]), "a MaskedArray"),
    "no tangent": (lambda: np.zeros(2, jax.dtypes.float0), "void[2]"),
    "deleted": (lambda: deleted(jnp.ones(2)), "deleted"),
    "deleted key": (lambda: deleted(jax.random.key(0)), "deleted"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_array_of_numbers_is_refused_by_name(case: str) -> None:
    make, told = REFUSED[case]
    tree = {"x": [make()]}
    for function in (summary, fingerprint, lambda tree: compare(tree, tree)):
        with pytest.raises(InputError) as error:
            function(tree)
        assert str(error.value).startswith(f"x.0 is {told}")
        assert "\n" not in str(error.value)


def test_inside_a_transformation_only_what_needs_no_values_works() -> None:
    @jax.jit
    def f(x: jax.Array) -> jax.Array:
        assert count({"w": x}) == 6
        for function in (summary, fingerprint):
            with pytest.raises(InputError, match="w has no values inside a JAX transformation"):
                function({"w": x})
        return x

    f(jnp.ones((2, 3)))
    with pytest.raises(InputError, match="w is 'text'; expected an array"):
        count({"w": "text"})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": 1}, "a.b": 2}, "two leaves have the name 'a.b'"),
        ({"a.b": 1, "a": 2}, "two rows of the table would have the name 'a'"),
        ({"total": 1}, "two rows of the table would have the name 'total'"),
        ({"total": {"w": 1}}, "two rows of the table would have the name 'total'"),
        ({1: 2, "a": 3}, "keys that can be sorted"),
    ],
)
def test_names_are_unique_or_refused(tree: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        summary(tree)


def saved(folder: Path, params: Any) -> TrainState:
    """Return a state that holds these parameters as they are, once it is a checkpoint of step 0."""
    state = create_state({}, optax.sgd(0.1)).replace(params=params)
    with checkpoint.Writer(folder, {}) as writer:
        writer.save(state)
        writer.wait()
    return state


def test_numpy_arrays_and_numbers_come_back_from_a_checkpoint_as_they_are(tmp_path: Path) -> None:
    state = saved(
        tmp_path,
        {
            "array": np.arange(6.0).reshape(2, 3).T,
            "scalars": [np.float32(1.5), np.int64(2**40), jnp.float32(1.5)],
            "numbers": [3, True, 2.5, 1j],
            "none": None,
        },
    )
    restored = checkpoint.restore(tmp_path, 0, state)[0].params
    assert jax.tree.map(type, restored) == jax.tree.map(type, state.params)
    assert fingerprint(restored) == fingerprint(state.params)
    wrong = state.replace(params={**state.params, "scalars": [np.float32(1.5), "text", jnp.float32(1.5)]})
    with pytest.raises(InputError, match=r"params\.scalars\.1 is int64\[\] there and str128\[\] here"):
        checkpoint.restore(tmp_path, 0, wrong)


def test_every_dtype_comes_back_from_a_checkpoint_or_is_refused_by_name(tmp_path: Path) -> None:
    refused = checkpoint._UNWRITABLE
    state = saved(
        tmp_path, {str(dtype): values_of(dtype) for dtype in DTYPES if finite(dtype) and str(dtype) not in refused}
    )
    assert fingerprint(checkpoint.restore(tmp_path, 0, state)[0].params) == fingerprint(state.params)
    for dtype in DTYPES:
        if str(dtype) in refused:
            with pytest.raises(InputError, match=rf"Orbax cannot write params\.w, {dtype}\[2,3\]; keep it out"):
                saved(tmp_path, {"w": values_of(dtype)})
    with pytest.raises(InputError, match=r"Orbax cannot write params\.w, float32\[0,3\]; keep it out"):
        saved(tmp_path, {"w": jnp.ones((0, 3))})
    with pytest.raises(InputError, match=r"^params\.f is a function; expected"):
        saved(tmp_path, {"f": lambda x: x})


def finite(dtype: np.dtype) -> bool:
    return bool(np.isfinite(values_of(dtype)).all())


class Pair(NamedTuple):
    a: Any
    b: Any


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ([1.0, 2.0], {"0": 1.0, "1": 2.0}),
        ({"0": 1.0, "1": 2.0}, (1.0, 2.0)),
        ({"a.b": 1.0}, {"a": {"b": 1.0}}),
        ({"0": 1.0}, {0: 1.0}),
        (Pair(1.0, 2.0), {"a": 1.0, "b": 2.0}),
    ],
)
def test_a_checkpoint_is_restored_into_no_other_kind_of_tree(tmp_path: Path, there: Any, here: Any) -> None:
    state = saved(tmp_path, there)
    assert checkpoint.restore(tmp_path, 0, state)[0].params == there
    with pytest.raises(InputError, match=r"is of a tree of another structure: params\.(0|a)\S* is \['params'\]"):
        checkpoint.restore(tmp_path, 0, state.replace(params=here))


def test_a_checkpoint_from_before_paths_were_kept_still_comes_back(tmp_path: Path) -> None:
    state = saved(tmp_path, {"w": [jnp.ones(2)]})
    manifest = checkpoint.read_manifest(tmp_path, 0)
    del manifest["paths"]
    checkpoint.write_manifest(tmp_path / "000000", manifest)
    assert fingerprint(checkpoint.restore(tmp_path, 0, state)[0].params) == fingerprint(state.params)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_state_with_a_key_trains_and_is_told_saved_and_restored(tmp_path: Path, batch: Batch, impl: str) -> None:
    tx = optax.noisy_sgd(0.1, eta=0.1, key=jax.random.key(0, impl=impl))
    start = create_state({"table": jnp.eye(36)}, tx, lambda params, tokens, last=0: params["table"][tokens[:, -last:]])
    state, _ = train_step(start, batch)
    assert "key<" in repr(summary(state.opt_state))
    with checkpoint.Writer(tmp_path, {}) as writer:
        writer.save(state)
    for like in (start, jax.eval_shape(lambda: start)):
        restored, _ = checkpoint.restore(tmp_path, 1, like)
        assert fingerprint(restored.opt_state) == fingerprint(state.opt_state) != fingerprint(start.opt_state)
    again, expected = (train_step(each, batch)[0] for each in (restored, state))
    assert fingerprint(again.params) == fingerprint(expected.params)
    raw = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if leaf.ndim == 0 and "key" in str(leaf.dtype) else leaf, start
    )
    with pytest.raises(InputError, match=r"opt_state\.\S+key is key<\w+>\[\] there and uint32\[\d\] here"):
        checkpoint.restore(tmp_path, 1, raw)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias_0: Any


def test_parameters_of_any_model_come_back_from_a_file(tmp_path: Path) -> None:
    params = {"a/b": (Layer(jnp.arange(6.0).reshape(2, 3), jnp.float32(2)), [np.ones((1,) * 8, np.float32)]), "n": None}
    save_params(tmp_path / "model", params, {"note": "mine"})
    for like in (params, jax.eval_shape(lambda: params)):
        loaded = load_params(tmp_path / "model", like=like)
        assert jax.tree.structure(loaded) == jax.tree.structure(params)
        assert fingerprint(loaded) == fingerprint(params) == load_metadata(tmp_path / "model")["fingerprint"]
    with pytest.raises(InputError, match=r"; to load another model, call load_params\(path, like="):
        load_params(tmp_path / "model")
    for wrong, message in (
        ({**params, "n": 1.0}, r"it is of another model: n is missing there and float64\[\] here"),
        ({"n": 1.0}, r"a/b\.0\.kernel is float32\[2,3\] there and missing here"),
        (
            jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params),
            r"float32\[2,3\] there and bfloat16\[2,3\] here",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load_params(tmp_path / "model", like=wrong)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.random.key(0), r"key<fry>\[\], empty or not finite; expected finite float32"),
        (jnp.ones(2, jnp.bfloat16), r"bfloat16\[2\], empty or not finite; expected finite float32"),
        (3, r"int64\[\], empty or not finite"),
        (jnp.tanh, r"a \w+; expected an array of numbers"),
    ],
)
def test_a_leaf_that_a_file_cannot_hold_is_refused_by_name(tmp_path: Path, leaf: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^layers\.1 is {message}"):
        save_params(tmp_path / "model", {"layers": [jnp.ones(2), leaf]})
    for tree in (jnp.ones(2), {"a b": jnp.ones(2)}, {"__metadata__": jnp.ones(2)}, {"w": jnp.ones((1,) * 9)}):
        with pytest.raises(InputError, match=r"^a leaf is '.*' with \d axes; expected a name in ASCII without spaces"):
            save_params(tmp_path / "model", tree)
    assert not list(tmp_path.iterdir())
