"""What a step costs on many devices, on paper: the bytes that they exchange, and the seconds that follow.

`traffic` computes from shapes and rules what a step on a mesh must exchange, and `exchanged` reads from a compiled
program what it does exchange; the tests compare the two. `step_time` predicts seconds on accelerators that this
machine need not have.
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
    """The bytes that each device puts into the collectives of one step."""

    gradients: int
    """Summed along "data": the gradients of the parameters that "model" leaves to a device."""
    gathered: int
    """Parameters gathered along "data" before they are used."""
    activations: int
    """Partial sums along "model": of the blocks' outputs forwards, of the gradients of their inputs backwards."""


def traffic(
    config: ModelConfig, batch_size: int, answer_length: int, data: int, model: int, rules: Rules, n_bytes: int = 4
) -> Traffic:
    """Return what a step of `jaxcalc.sharding.sharded` exchanges on a mesh of `data` times `model` devices.

    Args:
      batch_size: examples in the whole batch; each has `config.context_length` positions.
      answer_length: positions that the last block computes.
      n_bytes: bytes per number, 4 for float32.

    Raises `InputError` for sizes that do not divide evenly.

    >>> from jaxcalc.scale.sharding import TENSOR_PARALLEL
    >>> traffic(ModelConfig(vocab_size=35), 256, 3, data=8, model=1, rules=TENSOR_PARALLEL)
    Traffic(gradients=414464, gathered=0, activations=0)
    """
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    mesh = AbstractMesh((data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    cuts = [sharding.spec for sharding in jax.tree.leaves(shardings(params, mesh, rules))]
    parts = [  # how many numbers of each leaf "model" leaves to a device, and whether the leaf is cut along "data"
        (leaf.size // (model if "model" in cut else 1), "data" in cut)
        for leaf, cut in zip(jax.tree.leaves(params), cuts, strict=True)
    ]
    own = sum(size for size, _ in parts)
    whole = config.context_length
    # In the forward pass each block sums the outputs of attention and feed-forward; in the backward pass, the gradients
    # of query, key, value and feed-forward inputs. The last block has keys and values for all positions, and everything
    # else for the answer's only.
    positions = (config.n_layers - 1) * 6 * whole + 2 * whole + 4 * answer_length
    return Traffic(
        gradients=n_bytes * own * (data > 1),
        gathered=n_bytes * sum(size for size, is_cut in parts if is_cut) * (data > 1),
        activations=n_bytes * batch_size // data * positions * config.d_model * (model > 1),
    )


def exchanged(program: str) -> dict[str, int]:
    """Return the bytes that each device puts into a compiled program's collectives, by kind. Scalars do not count.

    Args:
      program: the text from `jax.jit(f).lower(…).compile().as_text()`.

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
    """A kind of device and its connections, by its maker's figures."""

    name: str
    flops: float
    """Floating-point operations per second in bfloat16 matrix products; a multiply-add is two."""
    memory: float
    """Bytes per second to and from its own memory."""
    group: int
    """How many devices are connected directly."""
    link: float
    """Bytes per second that each device sends within the group."""
    network: float
    """Bytes per second that each device sends beyond the group."""
    latency: float = 5e-6
    """Seconds that each of the log₂ n rounds of a collective takes at least; an assumption."""


H100 = Accelerator("H100 SXM, InfiniBand NDR", 989e12, 3.35e12, 8, 450e9, 50e9)
"""NVIDIA's H100 data sheet: 989 TFLOP/s dense, 3.35 TB/s, NVLink 900 GB/s both ways; one 400 Gb/s adapter each."""
TPU_V5P = Accelerator("TPU v5p", 459e12, 2.765e12, 8960, 300e9, 25e9)
"""Google Cloud's documentation: 459 TFLOP/s, 2,765 GB/s, links of 4,800 Gb/s per chip both ways, pods of 8,960."""


class StepTime(NamedTuple):
    """The seconds of one step, by their use."""

    compute: float
    memory: float
    """For the optimizer to read and write parameters, gradients and two moments."""
    exchange: float

    @property
    def apart(self) -> float:
        """The seconds if the devices never compute and exchange at the same time."""
        return self.compute + self.memory + self.exchange

    @property
    def overlapped(self) -> float:
        """The seconds if they always do."""
        return max(self.compute + self.memory, self.exchange)


def step_time(
    config: ModelConfig,
    batch_size: int,
    answer_length: int,
    data: int,
    model: int,
    rules: Rules,
    accelerator: Accelerator,
    utilisation: float = 0.4,
) -> StepTime:
    """Return the predicted seconds of one mixed-precision step on a mesh of `data` times `model` accelerators.

    The assumptions: 6 · parameters · positions operations, divided evenly, at the share `utilisation` of the peak. Adam
    with float32 master weights, 28 bytes per parameter of a device. Collectives in rings, first within a group and
    then between groups: a sum sends and receives 2 (n − 1) / n of the bytes; gathering, or summing in parts, half of
    that. "model" lies within a group. Parameters and activations travel in bfloat16, gradients in float32. Stragglers,
    input and everything else cost nothing.

    >>> time = step_time(ModelConfig(vocab_size=35), 256, 3, data=8, model=1, rules={}, accelerator=H100)
    >>> time.exchange > time.compute  # a small model on a fast device
    True
    """
    sent = traffic(config, batch_size, answer_length, data, model, rules)
    n_params = count(jax.eval_shape(lambda: init(jax.random.key(0), config)))
    n_devices, is_cut = data * model, sent.gathered > 0
    stored = n_params / (n_devices if is_cut else model)
    near = max(1, min(data, accelerator.group // model))  # how many devices along "data" are in one group
    # A device that keeps only its part of a sum needs half of the traffic of a whole sum.
    exchange = _ring(sent.gradients, data, near, accelerator) * (1 if is_cut else 2)
    exchange += _ring(sent.gathered / 2, data, near, accelerator)
    exchange += 2 * _ring(sent.activations / 2, model, model, accelerator)
    return StepTime(
        compute=6 * n_params * batch_size * config.context_length / n_devices / (accelerator.flops * utilisation),
        memory=28 * stored / accelerator.memory,
        exchange=exchange,
    )


def _ring(n_bytes: float, n: int, near: int, accelerator: Accelerator) -> float:
    """Return the seconds to gather, or to sum in parts, so many bytes among n devices in groups of `near`."""
    if n == 1 or n_bytes == 0:
        return 0.0
    groups = n // near
    within = n_bytes * (near - 1) / near / accelerator.link
    between = n_bytes / near * (groups - 1) / groups / accelerator.network
    return within + between + accelerator.latency * float(np.log2(n))
