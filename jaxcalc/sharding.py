"""One batch on many devices: the same `train_step`, with each device working on its part of the batch."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import apply


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
