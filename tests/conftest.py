"""Fixtures that several test modules share; each is made once."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

import jaxcalc

COMPILED = tempfile.TemporaryDirectory(prefix="jaxcalc-tests-")


def pytest_configure(config: pytest.Config) -> None:
    """Make eight devices of a CPU, and let the tests' processes share the programs that any of them compiled.

    The sharing saves a third of the time.
    """
    jax.config.update("jax_num_cpu_devices", 8)
    if not hasattr(config, "workerinput"):  # in the process that starts the others, which inherit this
        os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        # Each program runs for moments: LLVM's optimization would cost more than it saves.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # the cache warns in vain: github.com/jax-ml/jax/issues/38445


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs() -> Iterator[None]:
    """Forget compiled programs before they are too many: each is some memory maps, and Linux allows 65,530 of these."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 35_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def task() -> jaxcalc.Task:
    return jaxcalc.calculator()


@pytest.fixture(scope="session")
def params(task: jaxcalc.Task) -> jaxcalc.Params:
    """Parameters large enough that every path through the model matters."""
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, context_length=task.context_length))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="session")
def batch(task: jaxcalc.Task) -> jaxcalc.Batch:
    return jaxcalc.batch_at(task, seed=0, step=0, size=16)
