"""The loss around a point and along a run's path: how sharply it curves, its values along a line and on a plane.

A picture of a loss landscape shows one or two of a hundred thousand directions. Its shape depends on how the
directions are scaled (Li et al. 2018), and a random direction says nothing about the one that training took.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxcalc.batch import Batch
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, loss
from jaxcalc.model import apply
from jaxcalc.params import Params, axes_of
from jaxcalc.reprs import outline
from jaxcalc.trees import array_type, named_arrays, named_leaves


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


class Plane(NamedTuple):
    """A plane in the space of the weights: center + x · across + y · up."""

    center: Params
    """The mean of the snapshots."""
    across: Params
    """The direction of length 1 along which the snapshots vary most."""
    up: Params
    """The direction of length 1, at a right angle to `across`, along which they vary most beside it."""
    path: jax.Array
    """Where each snapshot falls on the plane, `[n, 2]`: x and y. The first is to the left of the last."""
    shares: jax.Array
    """The share of the snapshots' variance along `across` and along `up`, `[2]`."""

    __repr__ = outline


def path_plane(snapshots: Sequence[Params]) -> Plane:
    """Return the plane nearest to all snapshots of a run, by PCA of their weights.

    The snapshots lie beside the plane, so the loss on it is not quite their own. PCA bends any long path, a random
    walk too, so the bend says little (Antognini and Sohl-Dickstein 2018).

    Raises `InputError` for fewer than three snapshots, for trees that differ, and for snapshots on one line.

    >>> plane = path_plane([{"w": jnp.array(w)} for w in ([0.0, 0, 5], [4.0, 0, 5], [4.0, 3, 5])])
    >>> [round(float(share), 2) for share in plane.shares], round(float(plane.shares.sum()), 4)
    ([0.78, 0.22], 1.0)
    """
    if len(snapshots) < 3:
        raise InputError(f"got {len(snapshots)} snapshots; a plane needs at least three")
    first, *others = map(named_arrays, snapshots)
    for index, other in enumerate(others, start=1):
        _check_same(first, other, index)
    unravel = ravel_pytree(snapshots[0])[1]
    points = jnp.stack([ravel_pytree(snapshot)[0] for snapshot in snapshots])
    center = points.mean(axis=0)
    left, sizes, directions = jnp.linalg.svd(points - center, full_matrices=False)
    if sizes[1] <= 1e-5 * sizes[0]:
        raise InputError("all snapshots lie on one line, so they span no plane; give snapshots further apart")
    path = left[:, :2] * sizes[:2]
    signs = jnp.where(path[-1] >= path[0], 1, -1)
    across, up = directions[:2] * signs[:, None]
    return Plane(unravel(center), unravel(across), unravel(up), path * signs, sizes[:2] ** 2 / (sizes**2).sum())


def _check_same(first: dict[str, jax.Array], other: dict[str, jax.Array], index: int) -> None:
    """Raise `InputError` naming the first leaf in which a snapshot differs from the first one."""
    for name in (*first, *other):
        if name not in first or name not in other:
            raise InputError(f"only snapshot {index if name in other else 0} has a leaf {name!r}")
        if array_type(first[name]) != array_type(other[name]):
            kinds = f"{array_type(first[name])} in snapshot 0 and {array_type(other[name])} in snapshot {index}"
            raise InputError(f"{name} is {kinds}; give snapshots of one run")


@functools.partial(jax.jit, static_argnames="apply_fn")
def loss_on(plane: Plane, xs: jax.Array, ys: jax.Array, batch: Batch, apply_fn: ApplyFn = apply) -> jax.Array:
    """Return the loss at each point of a grid on a plane, `[len(ys), len(xs)]` in nats. Jitted."""

    def loss_there(point: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = point
        there = jax.tree.map(lambda c, a, u: c + x * a + y * u, plane.center, plane.across, plane.up)
        return loss(there, batch, apply_fn)

    x, y = jnp.meshgrid(xs, ys)
    return jax.lax.map(loss_there, (x.ravel(), y.ravel())).reshape(x.shape)
