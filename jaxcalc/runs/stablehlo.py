"""A trained model as one StableHLO program that answers without jaxcalc (host)."""

from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp

from jaxcalc.decoding import generate
from jaxcalc.params import Params
from jaxcalc.tasks.task import Task


def export_answerer(params: Params, task: Task, platforms: Sequence[str] = ("cpu", "cuda", "tpu")) -> bytes:
    """Return greedy decoding with these parameters as a StableHLO program that JAX runs without jaxcalc.

    `jax.export.deserialize(program).call` takes prompts, int32 `[B, prompt_length]` for any B. It returns the answers,
    int32 `[B, answer_length]`, and the probability of each whole answer, float32 `[B]`. The parameters are constants
    of the program. The same input gives the same bytes. The program checks no token id: JAX replaces one outside the
    vocabulary by the nearest.

    Raises `InputError` as `jaxcalc.generate` does.

    >>> from jaxcalc import ModelConfig, calculator, init
    >>> task = calculator()
    >>> params = init(jax.random.key(0), ModelConfig(task.vocab_size, d_model=16, n_heads=2, d_ff=32, n_layers=1))
    >>> answerer = jax.export.deserialize(bytearray(export_answerer(params, task)))
    >>> [answer.str_short() for answer in answerer.out_avals]
    ['int32[batch,3]', 'float32[batch]']
    """
    weights = jax.device_get(params)  # NumPy arrays become constants of the program, wherever the parameters were

    def answer(prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens, log_probs = generate(weights, prompts, task.answer_length)
        return tokens, jnp.exp(log_probs.sum(axis=1))

    (batch,) = jax.export.symbolic_shape("batch")
    prompts = jax.ShapeDtypeStruct((batch, task.prompt_length), jnp.int32)
    limit = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # keeps this machine's paths out
    try:
        return bytes(jax.export.export(jax.jit(answer), platforms=platforms)(prompts).serialize())
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
