"""Products, dtypes and sums: how the model computes what it computes, fast and without losing digits."""

import contextlib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.errors import InputError, shown


def project(x: jax.Array, weights: jax.Array, n_axes: int = 1) -> jax.Array:
    """Return x times weights, summed over the last `n_axes` of x and the first `n_axes` of the weights.

    This is one product of two matrices, because on a CPU XLA runs its gradient 1.2 times as fast as that of an einsum.

    >>> project(jnp.ones((2, 8, 64)), jnp.ones((64, 4, 16))).shape
    (2, 8, 4, 16)
    """
    n_inputs = math.prod(weights.shape[:n_axes])
    product = x.reshape(-1, n_inputs) @ weights.reshape(n_inputs, -1)
    return product.reshape(*x.shape[:-n_axes], *weights.shape[n_axes:])


@contextlib.contextmanager
def default_promotion() -> Iterator[None]:
    """Promote dtypes and ranks as JAX does by default, for code of others (Optax) and arrays of any number of axes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return x as float32 if its dtype is narrower, and unchanged otherwise.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def quadrature(n_points: int) -> list[tuple[float, float]]:
    """Return (t, weight) of each point of ∫₀¹ f(t) dt ≈ Σ weight · f(t), by Gauss and Legendre.

    Raises `InputError` for `n_points` below 1.

    >>> round(sum(weight * t**3 for t, weight in quadrature(2)), 6)
    0.25
    """
    if n_points < 1:
        raise InputError(f"n_points is {n_points}; it must be at least 1")
    nodes, weights = np.polynomial.legendre.leggauss(n_points)  # on −1 … 1
    return [((node + 1) / 2, weight / 2) for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True)]


def as_key(key: jax.Array | int) -> jax.Array:
    """Return a key as it is, and of a seed the key that `jax.random.key` makes of it.

    Raises `InputError` for anything else.

    >>> as_key(3) == jax.random.key(3)
    Array(True, dtype=bool)
    """
    dtype = getattr(key, "dtype", np.dtype(int if isinstance(key, int) else object))
    shape = np.shape(key)
    if jnp.issubdtype(dtype, jnp.integer) and shape == ():
        return jax.random.key(key)
    if (jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()) or (dtype == np.uint32 and len(shape) == 1):
        return jnp.asarray(key)
    raise InputError(f"key is {shown(key)}; it must be a whole number or one key, such as jax.random.key(0)")
