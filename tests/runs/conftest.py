"""Models for what is about files and not about sizes."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

import jaxcalc

MakeParams = Callable[[jaxcalc.ModelConfig], jaxcalc.Params]


@pytest.fixture(scope="session")
def make_params() -> MakeParams:
    """Return parameters from a normal distribution, drawn by NumPy, which compiles nothing.

    With this seed an exported model gives answers of every length.
    """

    def make(config: jaxcalc.ModelConfig) -> jaxcalc.Params:
        shapes = jax.eval_shape(lambda: jaxcalc.init(jax.random.key(0), config))
        numbers = np.random.default_rng(1)
        return jax.device_put(jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(leaf.dtype), shapes))

    return make


@pytest.fixture(scope="session")
def tiny(make_params: MakeParams) -> jaxcalc.Params:
    """One block of width 8 with four heads."""
    return make_params(jaxcalc.ModelConfig(35, 8, 4, 12, 1, 6))
