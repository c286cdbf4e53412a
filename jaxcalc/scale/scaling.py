"""What a step costs on many devices, on paper: the bytes that they exchange, and the seconds that follow.

`traffic` says what a step on a mesh must exchange, from the shapes and the rules alone; `exchanged` reads from a
compiled program what it does exchange; tests hold the one against the other. `step_time` turns it into
seconds on accelerators that need not be there.
"""

import math
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from jaxcalc.model import ModelConfig, init
from jaxcalc.scale.sharding import Rules, shardings
from jaxcalc.trees import count


class Traffic(NamedTuple):
    """What each device puts into the collectives of one step, in bytes."""

    gradients: int
    """Added up along "data": the gradient of every parameter, as much of it as "model" leaves to a device."""
    gathered: int
    """Parameters brought together along "data", before they are used."""
    activations: int
    """Partial sums along "model": of the blocks' outputs going forwards, of their inputs' gradients going back."""


def traffic(
    config: ModelConfig, batch_size: int, answer_length: int, data: int, model: int, rules: Rules, n_bytes: int = 4
) -> Traffic:
    """Return what a step of `jaxcalc.sharding.sharded` exchanges on a mesh of `data` times `model` devices.

    Args:
      batch_size: examples in all; each has `config.context_length` positions.
      answer_length: positions that the last block computes.
      n_bytes: of a number; gradients and parameters in float32 have 4.

    Raises `InputError` where sizes do not divide.

    >>> from jaxcalc.scale.sharding import TENSOR_PARALLEL
    >>> traffic(ModelConfig(vocab_size=35), 256, 3, data=8, model=1, rules=TENSOR_PARALLEL)
    Traffic(gradients=414464, gathered=0, activations=0)
    """
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    mesh = AbstractMesh((data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    parts = [  # of each leaf the numbers that "model" leaves to a device, and whether it is cut along "data"
        (leaf.size // (model if "model" in where.spec else 1), "data" in where.spec)
        for leaf, where in zip(jax.tree.leaves(params), jax.tree.leaves(shardings(params, mesh, rules)), strict=True)
    ]
    own = sum(size for size, _ in parts)
    whole = config.context_length
    # Forwards each block adds up what attention and feed-forward put out; backwards, what came in at query, key, value
    # and feed-forward. The last block has keys and values of all positions, and all else of the answer's.
    positions = (config.n_layers - 1) * 6 * whole + 2 * whole + 4 * answer_length
    return Traffic(
        gradients=n_bytes * own * (data > 1),
        gathered=n_bytes * sum(size for size, is_cut in parts if is_cut) * (data > 1),
        activations=n_bytes * batch_size // data * positions * config.d_model * (model > 1),
    )


def exchanged(program: str) -> dict[str, int]:
    """Return the bytes that each device puts into a compiled program's collectives, by kind, but for single numbers.

    Args:
      program: as `jax.jit(f).lower(…).compile().as_text()` gives it.

    >>> exchanged("  %sum = f32[8,4]{1,0} all-reduce(f32[8,4]{1,0} %x), channel_id=1")
    {'all-reduce': 128}
    """
    found: dict[str, int] = {}
    for shapes, kind in re.findall(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(", program):
        for dtype, sizes in re.findall(r"\b([a-z]+\d+)\[([\d,]+)\]", shapes):
            n_bytes = int(re.sub(r"\D", "", dtype)) // 8
            found[kind] = found.get(kind, 0) + n_bytes * math.prod(map(int, sizes.split(",")))
    return found


_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Accelerator(NamedTuple):
    """A kind of device and how its like are connected, by what its maker says."""

    name: str
    flops: float
    """Multiply-adds a second, twice, in bfloat16 matrix products."""
    memory: float
    """Bytes a second to and from its own memory."""
    group: int
    """How many are connected directly."""
    link: float
    """Bytes a second that each sends within the group."""
    network: float
    """Bytes a second that each sends beyond it."""
    latency: float = 5e-6
    """Seconds that each of the log₂ n rounds of a collective takes at least; assumed."""


H100 = Accelerator("H100 SXM, InfiniBand NDR", 989e12, 3.35e12, 8, 450e9, 50e9)
"""NVIDIA's H100 data sheet: 989 TFLOP/s dense, 3.35 TB/s, NVLink 900 GB/s both ways; one 400 Gb/s adapter each."""
TPU_V5P = Accelerator("TPU v5p", 459e12, 2.765e12, 8960, 300e9, 25e9)
"""Google Cloud's documentation: 459 TFLOP/s, 2,765 GB/s, 4,800 Gb/s of links a chip both ways, pods of 8,960 chips."""


class StepTime(NamedTuple):
    """Seconds of one step, by what they go to."""

    compute: float
    memory: float
    """The optimizer's reading and writing of parameters, gradients and two moments."""
    exchange: float

    @property
    def apart(self) -> float:
        """Where nothing is exchanged while something is computed."""
        return self.compute + self.memory + self.exchange

    @property
    def overlapped(self) -> float:
        """Where everything is."""
        return max(self.compute + self.memory, self.exchange)


def step_time(
    config: ModelConfig,
    batch_size: int,
    answer_length: int,
    data: int,
    model: int,
    rules: Rules,
    on: Accelerator,
    utilisation: float = 0.4,
) -> StepTime:
    """Return the seconds of one step of mixed precision on a mesh of `data` times `model` accelerators, on paper.

    Assumed is: 6 · parameters · positions operations, divided evenly, at the share `utilisation` of the peak; Adam with
    float32 master weights, 28 bytes a parameter of a device; collectives in rings (2 (n − 1) / n of the bytes sent and
    received for a sum, half of that to gather or to add up in parts), within a group first and then, for a group's
    share, between groups; "model" within a group; parameters and activations exchanged in bfloat16, gradients in
    float32. Stragglers, input and everything else: nothing.

    >>> time = step_time(ModelConfig(vocab_size=35), 256, 3, data=8, model=1, rules=(), on=H100)
    >>> time.exchange > time.compute  # a small model on a fast device
    True
    """
    sent = traffic(config, batch_size, answer_length, data, model, rules)
    n_params = count(jax.eval_shape(lambda: init(jax.random.key(0), config)))
    n_devices, is_cut = data * model, sent.gathered > 0
    stored = n_params / (n_devices if is_cut else model)
    near = max(1, min(data, on.group // model))  # of those that share a "data" axis, how many are in a group
    # Added up in parts where each device keeps but its part.
    exchange = _ring(sent.gradients, data, near, on) * (1 if is_cut else 2)
    exchange += _ring(sent.gathered / 2, data, near, on)
    exchange += 2 * _ring(sent.activations / 2, model, model, on)
    return StepTime(
        compute=6 * n_params * batch_size * config.context_length / n_devices / (on.flops * utilisation),
        memory=28 * stored / on.memory,
        exchange=exchange,
    )


def _ring(n_bytes: float, n: int, near: int, on: Accelerator) -> float:
    """Return the seconds to bring together, or add up in parts, so many bytes among n devices in groups of `near`."""
    if n == 1 or n_bytes == 0:
        return 0.0
    groups = n // near
    seconds = n_bytes * (near - 1) / near / on.link + n_bytes / near * (groups - 1) / groups / on.network
    return seconds + on.latency * float(np.log2(n))
