"""The loss around a point: how sharply it curves, and what it is along a direction.

A picture of a loss landscape shows one or two directions of a hundred thousand. Its shape depends on how
the directions are scaled (Li et al. 2018), and a random direction says nothing of the one that training took.
"""

import functools

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxcalc.batch import Batch
from jaxcalc.losses import ApplyFn, loss
from jaxcalc.model import apply
from jaxcalc.params import Params


def hessian_vector(params: Params, vector: Params, batch: Batch, apply_fn: ApplyFn = apply) -> Params:
    """Return H v, the loss's second derivatives times a tree like the parameters: the derivative of the gradient
    along v, forward over reverse, without ever forming H.

    >>> import jaxcalc
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35))
    >>> batch = jaxcalc.batch_at(jaxcalc.calculator(), seed=0, step=0, size=4)
    >>> hessian_vector(params, params, batch)["output"]["norm"].shape
    (64,)
    """
    return jax.jvp(jax.grad(lambda p: loss(p, batch, apply_fn)), (params,), (vector,))[1]


@functools.partial(jax.jit, static_argnames=("n_steps", "apply_fn"))
def sharpness(
    key: jax.Array, params: Params, batch: Batch, n_steps: int = 16, apply_fn: ApplyFn = apply
) -> tuple[jax.Array, jax.Array]:
    """Return the Hessian's largest eigenvalue and a bound on its error: some eigenvalue lies within it. Jitted.

    Lanczos from a random vector, each new one made orthogonal to all before it, twice, so that float32 suffices; the
    bound is the residual norm |β s| (Parlett 1998). Gradient descent of a larger rate than 2 / sharpness climbs.

    Args:
      n_steps: Hessian-vector products, each the cost of about two gradients; at most the number of parameters.
    """
    flat, unravel = ravel_pytree(params)

    def product(vector: jax.Array) -> jax.Array:
        return ravel_pytree(hessian_vector(params, unravel(vector), batch, apply_fn))[0]

    def body(carry: tuple[jax.Array, jax.Array], step: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        basis, vector = carry
        basis = basis.at[step].set(vector)
        image = product(vector)
        alpha = vector @ image
        for _ in range(2):
            image = image - (basis @ image) @ basis
        beta = jnp.linalg.norm(image)
        return (basis, image / jnp.maximum(beta, 1e-30)), jnp.stack([alpha, beta])

    first = jax.random.normal(key, flat.shape, flat.dtype)
    start = (jnp.zeros((n_steps, flat.size), flat.dtype), first / jnp.linalg.norm(first))
    (alpha, beta) = jax.lax.scan(body, start, jnp.arange(n_steps))[1].T
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    return values[-1], jnp.abs(beta[-1] * vectors[-1, -1])


def random_direction(key: jax.Array, params: Params) -> Params:
    """Return a random direction, filter-normalised (Li et al. 2018): what feeds one output unit, and each
    embedding, has the norm of the weights it is added to; the gains of the norms stay as they are.

    >>> import jaxcalc
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35))
    >>> column = lambda tree: float(jnp.linalg.norm(tree["blocks"][0]["mlp"]["up"][:, 7]))
    >>> abs(column(random_direction(jax.random.key(1), params)) / column(params) - 1) < 1e-5
    True
    """
    paths, structure = jax.tree.flatten_with_path(params)
    keys = jax.random.split(key, len(paths))
    inputs = {"token": 1, "position": 1, "out": (0, 1)}  # the axes of one filter; the first axis elsewhere

    def filters(key: jax.Array, name: str, leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 1:
            return jnp.zeros_like(leaf)
        drawn = jax.random.normal(key, leaf.shape, leaf.dtype)
        axes = inputs.get(name, 0)
        size, goal = (jnp.sqrt((x**2).sum(axis=axes, keepdims=True)) for x in (drawn, leaf))
        return drawn * goal / size

    leaves = [filters(key, path[-1].key, leaf) for key, (path, leaf) in zip(keys, paths, strict=True)]
    return jax.tree.unflatten(structure, leaves)


@functools.partial(jax.jit, static_argnames="apply_fn")
def loss_along(
    params: Params, direction: Params, distances: jax.Array, batch: Batch, apply_fn: ApplyFn = apply
) -> jax.Array:
    """Return the loss at params + t · direction for each distance t, `[n]` in nats. Jitted."""

    def at(t: jax.Array) -> jax.Array:
        return loss(jax.tree.map(lambda p, d: p + t * d, params, direction), batch, apply_fn)

    return jax.lax.map(at, distances)
