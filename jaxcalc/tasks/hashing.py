"""Hashes and permutations of whole numbers, on the device, that need no table."""

import jax
import jax.numpy as jnp

ROUNDS = 4


def shuffle(keys: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """Return where a pseudo-random permutation of range(n) sends each index; `keys` is uint32 `[B, rounds]`.

    A Feistel network permutes the next power of two, and what falls outside range(n) walks on until it
    falls inside (Black and Rogaway 2002). It costs O(B) where sorting all n costs 100 times as much.
    """
    bits = max(2, (n - 1).bit_length())

    def permute(value: jax.Array) -> jax.Array:
        low = bits // 2
        high = bits - low
        left, right = value >> low, value & ((1 << low) - 1)
        for round_ in range(ROUNDS):
            left, right = right, (left ^ mix(right, keys[:, round_])) & ((1 << high) - 1)
            low, high = high, low
        return (left << low) | right

    def walk(value: jax.Array) -> jax.Array:
        return jnp.where(value >= n, permute(value), value)

    return jax.lax.while_loop(lambda value: (value >= n).any(), walk, permute(index.astype(jnp.uint32)))


def mix(value: jax.Array, key: jax.Array) -> jax.Array:
    """Return uint32 in which each bit of value and key, uint32 too, counts."""
    value = (value ^ key) * jnp.uint32(0x9E3779B1)
    value = (value ^ (value >> 15)) * jnp.uint32(0x85EBCA77)
    return value ^ (value >> 13)
