"""Fingerprints: a checksum of every leaf of a pytree, wherever the leaf's array is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.trees import array_type, data_of, named_arrays


def fingerprint(tree: Any) -> dict[str, str]:
    """Return a checksum of each leaf under its dotted path: its dtype, its shape and a hash of 64 bits.

    A bijection mixes each 32-bit word of the leaf with its index, and the results are added modulo 2³²; this is done
    with two different mixings. The hash therefore never misses a change within one word, and misses any other change
    with a probability of about 2⁻⁶⁴. No library's hash is used because this one does not depend on how an array is
    sharded: each device hashes its own part, and arrays in the host's memory are hashed there, by NumPy.

    Of typed PRNG keys, their data is hashed. Raises `InputError` naming the first leaf that is not an array of numbers.

    >>> fingerprint({"w": np.array([1.0, 2.0], np.float32), "step": 3})
    {'step': 'int64[] 1ab75600a1221922', 'w': 'float32[2] aeb554b4bb33503c'}
    """
    arrays = named_arrays(tree)
    with np.errstate(over="ignore"):  # the sums are meant to wrap
        sums = [_sums(data_of(array)) for array in arrays.values()]
    return {
        name: f"{array_type(array)} {a:08x}{b:08x}"
        for (name, array), (a, b) in zip(arrays.items(), jax.device_get(sums), strict=True)
    }


def _sums(array: Any) -> Any:
    """Return the two sums of an array, taken where the array is."""
    if array.dtype.itemsize == 1 and array.dtype != np.bool:
        n_bits = (jnp.iinfo if jnp.issubdtype(array.dtype, np.integer) else jnp.finfo)(array.dtype).bits
        if n_bits < 8:  # a device packs several into a byte, NumPy does not
            return _checksum(np.asarray(array).view("uint8") & np.uint8(2**n_bits - 1))
    return _checksum(np.asarray(array)) if _is_on_host(array) else _device_checksum(array)


def _is_on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


def _checksum(array: Any) -> Any:
    """Return the two sums of a NumPy or JAX array, uint32 `[2]`."""
    xp = jnp if isinstance(array, jax.Array) else np
    bits = array.astype("uint8") if array.dtype == np.bool else array
    if xp is np:  # a view needs words that lie side by side, in this machine's order
        bits = np.ascontiguousarray(bits, bits.dtype.newbyteorder("="))
    words = xp.atleast_1d(bits).view(f"uint{8 * min(array.dtype.itemsize, 4)}").astype("uint32")
    index = xp.arange(words.size, dtype="uint32").reshape(words.shape)
    return xp.stack([_mix(words ^ _mix(index + salt)).sum(dtype="uint32") for salt in _SALTS])


_device_checksum = jax.jit(_checksum)
_SALTS = np.uint32(1), np.uint32(0x9E3779B9)


def _mix(word: Any) -> Any:
    """Return each uint32 under a bijection in which every bit depends on every bit (Wellons 2018, lowbias32)."""
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)
