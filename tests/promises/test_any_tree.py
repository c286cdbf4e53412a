"""Every leaf of every tree is right in tables, fingerprints, checkpoints and files, or refused by its name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcalc import InputError, compare, count, fingerprint, fingerprints, summary

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
