"""The same `train_step` on many devices: a mesh, rules that place each leaf, and a model that keeps to them.

The devices form a grid with two axes. Along "data" they share the examples of a batch; along "model" they share the
heads and the hidden width of every block. A rule cuts one axis of the parameters, given by its letter, along one axis
of the mesh. XLA does the rest: it sees where the arrays lie and adds the communication to the program (GSPMD, Xu et
al. 2021).

    mesh = sharding.make_mesh(data=4, model=2)
    apply_fn = sharding.sharded(mesh, sharding.FULLY_SHARDED)
    state = sharding.place(jaxcalc.create_state(params, tx, apply_fn), mesh, sharding.FULLY_SHARDED)
    state, metrics = jaxcalc.train_step(state, batch)  # as on one device
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import apply
from jaxcalc.params import AXES, Axes, tree_axes
from jaxcalc.trees import dotted

Rules = Mapping[str, str]
"""The axes that are cut: the letter of an axis of the parameters, and the axis of the mesh along which it is cut.

The letters of a leaf come from the table of axes, `jaxcalc.params.AXES`. A leaf that the table does not name and a
vector, such as a norm's gains, are whole on every device. An optimizer's moments lie where their parameters lie.
"""

TENSOR_PARALLEL: Rules = {"H": "model", "F": "model"}
"""Heads and hidden width are cut along "model" (Shoeybi et al. 2019). Along "data" each leaf is whole, so with model=1
this is data parallelism."""

FULLY_SHARDED: Rules = {**TENSOR_PARALLEL, "D": "data"}
"""The model width is cut along "data" too (Rajbhandari et al. 2020, ZeRO stage 3). A device stores its part of the
parameters and moments, and gathers what a block needs just before it runs."""


def make_mesh(data: int, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a grid of `data` times `model` devices, the first of `devices` or, if left out, of `jax.devices()`.

    Raises `InputError` if there are fewer devices than that.

    >>> make_mesh(data=1).axis_names
    ('data', 'model')
    """
    n_devices = len(jax.devices() if devices is None else devices)
    if min(data, model) < 1 or data * model > n_devices:
        raise InputError(
            f"a mesh of data={data}, model={model} takes {data * model} devices; there are {n_devices} (a CPU can be "
            'made into several before JAX starts: jax.config.update("jax_num_cpu_devices", n))'
        )
    return jax.make_mesh((data, model), ("data", "model"), (AxisType.Auto, AxisType.Auto), devices=devices)


def partition(axes: Axes, rules: Rules) -> P:
    """Return how rules cut a leaf with these axes.

    >>> tuple(partition(Axes("D", "HK"), FULLY_SHARDED))
    ('data', 'model')
    """
    cuts = [rules.get(letter) for letter in axes.letters] if axes.inputs else []
    while cuts and cuts[-1] is None:
        cuts.pop()
    return P(*cuts)


def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Rules, axes: Mapping[str, str] = AXES) -> Any:
    """Return where each leaf of a tree of arrays or shapes lies, as a tree of `NamedSharding`.

    Args:
      axes: the table of axes; a model with other leaves brings its own.

    Raises `InputError` for an axis that does not divide evenly; the message says which sizes of the mesh would do.
    """
    cut_lengths: dict[str, dict[int, str]] = {"data": {}, "model": {}}

    def placed(path: jax.tree_util.KeyPath, leaf: Any, leaf_axes: Axes) -> NamedSharding:
        spec = partition(leaf_axes, rules)
        for axis, cut in enumerate(spec):
            if cut is not None:
                cut_lengths[cut].setdefault(leaf.shape[axis], f"axis {axis} of {dotted(path)} {list(leaf.shape)}")
        return NamedSharding(mesh, spec)

    result = jax.tree.map_with_path(placed, tree, tree_axes(tree, axes))
    for cut, lengths in cut_lengths.items():
        wrong = [f"{length} ({leaf})" for length, leaf in lengths.items() if length % mesh.shape[cut]]
        if wrong:
            common = math.gcd(*lengths)
            divisors = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise InputError(f"{cut}={mesh.shape[cut]} does not divide {', '.join(wrong)}; {cut} may be {divisors}")
    return result


def place(tree: Any, mesh: Mesh, rules: Rules, axes: Mapping[str, str] = AXES) -> Any:
    """Return a tree of the same values, such as a `TrainState`, whose leaves lie where the rules say.

    A tree of shapes (`jax.eval_shape`), such as `jaxcalc.checkpoint.restore` takes, gets the shardings only. `axes`
    is as in `shardings`.

    Raises `InputError` where `shardings` does.
    """

    def place_leaf(leaf: Any, sharding: NamedSharding) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return put(leaf, sharding)

    return jax.tree.map(place_leaf, tree, shardings(tree, mesh, rules, axes))


def put(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Return an array with a sharding. With several processes, each must hold the whole array.

    `jax.device_put` alone makes arrays that cannot be read back if a process has only one device (jax 0.10.1).
    """
    if jax.process_count() == 1 or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def sharded(mesh: Mesh, rules: Rules, apply_fn: ApplyFn = apply, axes: Mapping[str, str] = AXES) -> ApplyFn:
    """Return a model that computes what `apply_fn` does, with the examples of a batch divided along "data".

    A parameter that is cut along "data" is gathered before it is used, and its gradient is cut again. A parameter
    that is cut along "model" stays cut. `axes` is as in `shardings`.

    The model raises `InputError` for a batch that does not divide evenly.
    """

    def sharded_apply(params: Any, tokens: jax.Array, last: int | None = None) -> jax.Array:
        check_batch(tokens.shape[0], mesh)
        in_use = jax.tree.map(
            lambda stored: NamedSharding(mesh, P(*(None if cut == "data" else cut for cut in stored.spec))),
            shardings(params, mesh, rules, axes),
        )
        params = jax.lax.with_sharding_constraint(params, in_use)
        tokens = jax.lax.with_sharding_constraint(tokens, NamedSharding(mesh, P("data")))
        return apply_fn(params, tokens, last=last)

    return sharded_apply


def check_batch(size: int, mesh: Mesh) -> None:
    """Raise `InputError` for a batch that does not divide evenly along "data"; the message says which would."""
    n_parts = mesh.shape["data"]
    if size % n_parts:
        raise InputError(
            f"a batch of {size} does not divide evenly along data={n_parts}; one of {size + -size % n_parts} would, or "
            f"data={math.gcd(size, n_parts)}"
        )


def data_parallel(devices: Sequence[Any], apply_fn: ApplyFn = apply) -> ApplyFn:
    """Return a model that computes what `apply_fn` does, with the examples of a batch divided among devices.

    Given to `jaxcalc.create_state` as `apply_fn`, it makes `train_step` and `train_steps` learn on all devices. Every
    device holds all parameters, tokens and logits, and takes the same step. The devices exchange data twice per step:
    they gather the logits, and they add up the gradients of their parts. The parameters travel as one vector, so that
    there is one sum and not one per leaf.

    On a CPU, two devices of one core each are faster for short steps than one device of two cores, because they wait
    for each other twice per step and not in every product.

    Args:
      devices: such as `jax.devices()`.
      apply_fn: any model with the signature of `jaxcalc.apply`.

    The model raises `InputError` for a batch that does not divide evenly among the devices.

    >>> import jax.numpy as jnp, optax, jaxcalc
    >>> task = jaxcalc.calculator(max_number=20)
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> state = jaxcalc.create_state(params, optax.adamw(1e-3), apply_fn=data_parallel(jax.devices()))
    >>> state, metrics = jaxcalc.train_step(state, jaxcalc.batch_at(task, seed=0, step=0, size=64))
    """
    mesh = Mesh(np.asarray(devices), ("data",))
    whole, by_example = P(), P("data")

    def parallel_apply(params: Any, tokens: jax.Array, last: int | None = None) -> jax.Array:
        if tokens.shape[0] % len(devices):
            raise InputError(f"a batch of {tokens.shape[0]} does not divide evenly among {len(devices)} devices")
        vector, unravel = ravel_pytree(params)

        def apply_part(vector: jax.Array, tokens: jax.Array) -> jax.Array:
            own = jax.lax.pcast(vector, "data", to="varying")  # its transpose is the sum over the devices
            return apply_fn(unravel(own), tokens, last=last)

        by_part = jax.shard_map(apply_part, mesh=mesh, in_specs=(whole, by_example), out_specs=by_example)
        tokens = jax.lax.with_sharding_constraint(tokens, NamedSharding(mesh, whole))
        return jax.lax.with_sharding_constraint(by_part(vector, tokens), NamedSharding(mesh, whole))

    return parallel_apply
