"""Hashes and permutations of whole numbers on the device, all without a table."""

import jax
import jax.numpy as jnp

from jaxcalc.errors import InputError

ROUNDS = 4
"""Rounds of `shuffle`, each with a key of its own."""


def visited(seed: int | jax.Array, step: int | jax.Array, size: int, epoch_length: int) -> jax.Array:
    """Return which of range(epoch_length) one training step visits, uint32 `[size]`.

    An epoch visits each exactly once, in an order of its own, and epochs follow each other without a gap. Raises
    `InputError` where the size times the epoch's length does not fit 32 bits.
    """
    if epoch_length * size >= 2**31:
        raise InputError(
            f"batch size is {size}; with {epoch_length:,} lessons per epoch it must be at most "
            f"{(2**31 - 1) // epoch_length:,}, as their product must fit 32 bits"
        )
    # This divides step * size by the epoch length without computing step * size, which overflows.
    epochs, remainder = jnp.divmod(jnp.asarray(step), epoch_length)
    carry, index = jnp.divmod(remainder * size + jnp.arange(size), epoch_length)
    key = jax.random.key(seed)
    keys = jax.vmap(lambda epoch: jax.random.bits(jax.random.fold_in(key, epoch), (ROUNDS,)))(epochs * size + carry)
    return shuffle(keys, index, epoch_length)


def shuffle(keys: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """Return where a pseudo-random permutation of range(n) sends each index, uint32 `[B]`.

    A Feistel network permutes the numbers below a power of two. A result that is n or more is permuted again until it
    falls below n (Black and Rogaway 2002). This costs O(B); sorting all n costs 100 times as much.

    Args:
      keys: uint32 `[B, ROUNDS]`; equal keys mean the same permutation.
      index: int `[B]`, each from 0 to n − 1.
      n: the length of what is permuted.
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
    """Return a hash, uint32, that depends on every bit of a value and a key, both uint32."""
    value = (value ^ key) * jnp.uint32(0x9E3779B1)
    value = (value ^ (value >> 15)) * jnp.uint32(0x85EBCA77)
    return value ^ (value >> 13)


def hash_problem(numbers: jax.Array, roles: jax.Array, seed: int) -> jax.Array:
    """Return a hash of each problem, uint32 `[...]`, that does not depend on the order of numbers with equal roles.

    Each number is hashed by its digits and their places (Zobrist 1970), then with its role, and the sum over the
    numbers is hashed again. A digit 0 adds nothing, so leading zeros do not count.

    Args:
      numbers: digits, int32 `[..., terms, n]`.
      roles: what each number does in the problem, any uint32 `[..., terms]`.
      seed: chooses the hash.
    """
    place = jnp.arange(numbers.shape[-1]) * 16
    by_digit = mix((place + numbers).astype(jnp.uint32), jnp.uint32(seed))
    by_number = mix(jnp.where(numbers > 0, by_digit, 0).sum(axis=-1, dtype=jnp.uint32), jnp.uint32(0x5BF03635))
    by_term = mix(by_number, roles)
    return mix(by_term.sum(axis=-1, dtype=jnp.uint32), jnp.uint32(seed))
