"""The same `train_step` on many devices: a mesh, rules for where each leaf lies, and a model that keeps to them.

The devices form a grid with two axes. Along "data" they share the examples of a batch, along "model" the heads and the
hidden width of every block. A rule says of a leaf, by its path, which of its axes is cut along which of the mesh.
Everything else is XLA's: it sees where the arrays lie and adds the communication to the one program (GSPMD, Xu et al.
2021).

    mesh = sharding.make_mesh(data=4, model=2)
    apply_fn = sharding.sharded(mesh, sharding.FULLY_SHARDED)
    state = sharding.place(jaxcalc.create_state(params, tx, apply_fn), mesh, sharding.FULLY_SHARDED)
    state, metrics = jaxcalc.train_step(state, batch)  # as ever
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.sharding import PartitionSpec as P

from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import apply

Rules = tuple[tuple[str, PartitionSpec], ...]
"""The end of a leaf's dotted path, as a regular expression, and how its axes are cut; the first that fits holds.

A leaf that no rule names is whole on every device. The moments of an optimizer end in the paths of
their parameters, so they lie where those do.
"""

TENSOR_PARALLEL: Rules = (
    (r"attention\.(query|key|value)", P(None, "model")),  # [D, H, K] by head
    (r"attention\.out", P("model")),  # [H, K, D] by head
    (r"mlp\.up", P(None, "model")),  # [D, F] by hidden width
    (r"mlp\.down", P("model")),  # [F, D] by hidden width
)
"""Heads and hidden width along "model" (Shoeybi et al. 2019). Along "data" each leaf is whole: where model=1, this is
data parallelism."""

FULLY_SHARDED: Rules = (
    (r"embed\.(token|position)", P(None, "data")),  # [V, D] and [C, D]
    (r"attention\.(query|key|value)", P("data", "model")),
    (r"attention\.out", P("model", None, "data")),
    (r"mlp\.up", P("data", "model")),
    (r"mlp\.down", P("model", "data")),
    (r"output\.unembed", P("data")),  # [D, V]
)
"""Besides, the model width along "data" (Rajbhandari et al. 2020, ZeRO stage 3): a device stores its part of parameters
and moments, and gathers what a block needs just before it."""


def make_mesh(data: int, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a grid of `data` times `model` devices, the first of `devices` (of `jax.devices()` if left out).

    Raises `InputError` where there are not so many.

    >>> make_mesh(data=1).axis_names
    ('data', 'model')
    """
    there = jax.devices() if devices is None else devices
    if min(data, model) < 1 or data * model > len(there):
        raise InputError(
            f"a mesh of data={data}, model={model} takes {data * model} devices; there are {len(there)} (a CPU can be "
            'made into several before JAX starts: jax.config.update("jax_num_cpu_devices", n))'
        )
    grid = np.asarray(there[: data * model]).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Any:
    """Return where each leaf lies: a tree of `NamedSharding`, of arrays or of shapes alone.

    Raises `InputError` where an axis does not divide evenly, and says which sizes of the mesh would do.
    """
    cut_lengths: dict[str, dict[int, str]] = {"data": {}, "model": {}}

    def of(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = next((spec for pattern, spec in rules if re.search(rf"(^|\.){pattern}$", name)), P())
        for axis, cut in enumerate(spec):
            if cut is not None:
                cut_lengths[cut].setdefault(leaf.shape[axis], f"axis {axis} of {name} {list(leaf.shape)}")
        return NamedSharding(mesh, spec)

    placed = jax.tree.map_with_path(of, tree)
    for cut, lengths in cut_lengths.items():
        wrong = [f"{length} ({where})" for length, where in lengths.items() if length % mesh.shape[cut]]
        if wrong:
            common = math.gcd(*lengths)
            fit = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise InputError(f"{cut}={mesh.shape[cut]} does not divide {', '.join(wrong)}; {cut} may be {fit}")
    return placed


def place(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """Return a tree of the same values, such as a `TrainState`, whose leaves lie as the rules say.

    Of shapes alone (`jax.eval_shape`), such as `jaxcalc.checkpoint.restore` takes, the same with their shardings.

    Raises `InputError` as `shardings` does.
    """

    def put_or_say(leaf: Any, where: NamedSharding) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        return put(leaf, where)

    return jax.tree.map(put_or_say, tree, shardings(tree, mesh, rules))


def put(array: Any, where: jax.sharding.Sharding) -> jax.Array:
    """Return an array that lies somewhere; of several processes each has the whole of it before.

    `jax.device_put` alone makes arrays there that cannot be read, where a process has one device (jax 0.10.1).
    """
    if jax.process_count() == 1 or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return jax.device_put(array, where)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])


def sharded(mesh: Mesh, rules: Rules, apply_fn: ApplyFn = apply) -> ApplyFn:
    """Return a model that computes what `apply_fn` does, the examples of a batch divided along "data".

    What is cut along "data" is gathered before it is used, so that its gradient comes back cut again; what is
    cut along "model" stays so.

    Raises `InputError` where the batch does not divide evenly, and says what would.
    """

    def sharded_apply(params: Any, tokens: jax.Array, last: int | None = None) -> jax.Array:
        check_batch(tokens.shape[0], mesh)
        in_use = jax.tree.map(
            lambda where: NamedSharding(mesh, P(*(None if cut == "data" else cut for cut in where.spec))),
            shardings(params, mesh, rules),
        )
        params = jax.lax.with_sharding_constraint(params, in_use)
        tokens = jax.lax.with_sharding_constraint(tokens, NamedSharding(mesh, P("data")))
        return apply_fn(params, tokens, last=last)

    return sharded_apply


def check_batch(size: int, mesh: Mesh) -> None:
    """Raise `InputError` where a batch does not divide evenly along "data", and say what would."""
    n_parts = mesh.shape["data"]
    if size % n_parts:
        raise InputError(
            f"a batch of {size} does not divide evenly along data={n_parts}; one of {size + -size % n_parts} would, or "
            f"data={math.gcd(size, n_parts)}"
        )


def data_parallel(devices: Sequence[Any], apply_fn: ApplyFn = apply) -> ApplyFn:
    """Return a model that computes what `apply_fn` does, each device for its part of the batch.

    For `jaxcalc.create_state(params, tx, apply_fn=…)`: `train_step` and `train_steps` then learn on all devices. Every
    device holds all parameters, and tokens and logits are whole on each, so that it takes the same step as the others.
    They meet twice a step: to gather the logits, and, going back, to add up the gradients of their parts. Since the
    parameters are sent as one vector, that is one sum and not one a leaf.

    A CPU is one device unless its cores are made into several before JAX starts; for short steps two devices of one
    core are faster than one device of two, because they wait for each other once a step and not in every product.

    Args:
      devices: such as `jax.devices()`.
      apply_fn: any model with the signature of `jaxcalc.apply`.

    Raises `InputError` where the batch does not divide evenly among the devices.

    >>> import jax.numpy as jnp, optax, jaxcalc
    >>> task = jaxcalc.calculator(max_number=20)
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> state = jaxcalc.create_state(params, optax.adamw(1e-3), apply_fn=data_parallel(jax.devices()))
    >>> state, metrics = jaxcalc.train_step(state, jaxcalc.batch_at(task, seed=0, step=0, size=64))
    """
    mesh = Mesh(np.asarray(devices), ("data",))
    whole, by_example = PartitionSpec(), PartitionSpec("data")

    def parallel_apply(params: Any, tokens: jax.Array, last: int | None = None) -> jax.Array:
        if tokens.shape[0] % len(devices):
            raise InputError(f"a batch of {tokens.shape[0]} does not divide evenly among {len(devices)} devices")
        vector, unravel = ravel_pytree(params)

        def apply_part(vector: jax.Array, tokens: jax.Array) -> jax.Array:
            own = jax.lax.pcast(vector, "data", to="varying")  # whose transpose is the sum over the devices
            return apply_fn(unravel(own), tokens, last=last)

        by_part = jax.shard_map(apply_part, mesh=mesh, in_specs=(whole, by_example), out_specs=by_example)
        tokens = jax.lax.with_sharding_constraint(tokens, NamedSharding(mesh, whole))
        return jax.lax.with_sharding_constraint(by_part(vector, tokens), NamedSharding(mesh, whole))

    return parallel_apply
