"""The loss around a point: how sharply it curves, and its values along a direction.

A picture of a loss landscape shows one or two of a hundred thousand directions. Its shape depends on how the
directions are scaled (Li et al. 2018), and a random direction says nothing about the one that training took.
"""

import functools

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxcalc.batch import Batch
from jaxcalc.losses import ApplyFn, loss
from jaxcalc.model import apply
from jaxcalc.params import Params, axes_of
from jaxcalc.trees import named_leaves


def hessian_vector(params: Params, vector: Params, batch: Batch, apply_fn: ApplyFn = apply) -> Params:
    """Return H v, the loss's second derivatives times v, a tree like the parameters.

    It is the derivative of the gradient along v, forward over reverse; H is never formed.

    >>> import jaxcalc
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35))
    >>> batch = jaxcalc.batch_at(jaxcalc.calculator(), seed=0, step=0, size=4)
    >>> jax.jit(hessian_vector)(params, params, batch)["output"]["norm"].shape
    (64,)
    """
    return jax.jvp(jax.grad(lambda p: loss(p, batch, apply_fn)), (params,), (vector,))[1]


@functools.partial(jax.jit, static_argnames=("n_steps", "apply_fn"))
def sharpness(
    key: jax.Array, params: Params, batch: Batch, n_steps: int = 16, apply_fn: ApplyFn = apply
) -> tuple[jax.Array, jax.Array]:
    """Return the Hessian's largest eigenvalue and a bound on its error: some eigenvalue lies within the bound. Jitted.

    Lanczos from a random vector. Each new vector is made orthogonal to all earlier ones, twice, so that float32
    suffices. The bound is the residual norm |β s| (Parlett 1998). Gradient descent with a rate above 2 / sharpness
    diverges along this eigenvector.

    Args:
      n_steps: Hessian-vector products, at most the number of parameters; each costs about two gradients.
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
    """Return a random direction, filter-normalised (Li et al. 2018).

    A filter is the weights that feed one output unit, or one embedding. Each filter has the norm of the weights that
    it is added to. The gains of the norms do not move.

    >>> import jaxcalc
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35))
    >>> column = lambda tree: float(jnp.linalg.norm(tree["blocks"][0]["mlp"]["up"][:, 7]))
    >>> abs(column(random_direction(jax.random.key(1), params)) / column(params) - 1) < 1e-5
    True
    """
    leaves = named_leaves(params)
    keys = jax.random.split(key, len(leaves))

    def filters(key: jax.Array, name: str, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        drawn = jax.random.normal(key, leaf.shape, leaf.dtype)
        axes = axes_of(name).filter_axes or 0
        size, goal = (jnp.sqrt((x**2).sum(axis=axes, keepdims=True)) for x in (drawn, leaf))
        return drawn * goal / size

    drawn = [filters(key, name, leaf) for key, (name, leaf) in zip(keys, leaves.items(), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), drawn)


@functools.partial(jax.jit, static_argnames="apply_fn")
def loss_along(
    params: Params, direction: Params, distances: jax.Array, batch: Batch, apply_fn: ApplyFn = apply
) -> jax.Array:
    """Return the loss at params + t · direction for each distance t, `[n]` in nats. Jitted."""

    def loss_there(t: jax.Array) -> jax.Array:
        return loss(jax.tree.map(lambda p, d: p + t * d, params, direction), batch, apply_fn)

    return jax.lax.map(loss_there, distances)
