"""The library runs under each of JAX's strict settings.

The fast tests trace every function that can be traced, which is where most settings bite, and run a few. The slow one
runs all functions under all settings.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, Params, Task, backprop, blame, interventions, landscape, lens, population, steps, weights

TX = jaxcalc.make_optimizer("muon", 10, clip_norm=1.0)
OTHER = functools.partial(jaxcalc.apply)
"""A model that has no cache."""
SETTINGS = {
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
    "jax_debug_nans": True,
    "jax_debug_key_reuse": True,
    "jax_check_tracer_leaks": True,
    "jax_enable_x64": True,
    "jax_disable_jit": True,
}


@contextlib.contextmanager
def strict(*settings: str) -> Iterator[None]:
    before = {setting: getattr(jax.config, setting) for setting in settings}
    try:
        for setting in settings:
            jax.config.update(setting, SETTINGS[setting])
        yield
    finally:
        for setting, value in before.items():
            jax.config.update(setting, value)


@pytest.fixture(scope="module")
def small() -> Task:
    return jaxcalc.calculator(max_number=6)


@pytest.fixture(scope="module")
def drawn() -> Task:
    return jaxcalc.arithmetic(max_number=99, notation="digits", operations=("plus", "times"))


@pytest.fixture(scope="module")
def params(small: Task) -> Params:
    return jaxcalc.init(jax.random.key(0), config_for(small))


def config_for(task: Task) -> jaxcalc.ModelConfig:
    return jaxcalc.ModelConfig(task.vocab_size, 16, 2, 32, 1, task.context_length)


def trained(params: Params, batch: Batch, tx: Any, apply_fn: Callable[..., jax.Array] = jaxcalc.apply) -> Any:
    return jaxcalc.train_step(jaxcalc.create_state(params, tx, apply_fn), batch)


def traceable(task: Any, drawn: Task, params: Params) -> dict[str, Callable[[], Any]]:
    """Return calls of every function that works under `jit`, by name."""
    config, rows, dtype = config_for(task), np.arange(8), params["output"]["norm"].dtype
    batch = jaxcalc.batch_at(task, 0, 0, 8)
    tokens, prompts, where = batch.tokens[:, :-1], batch.tokens[:, : task.prompt_length], batch.tokens[:, 1:] > 0
    states, labels = jnp.ones((7, 16), dtype), jnp.arange(7)
    line = states * labels[:, None].astype(dtype)
    key = functools.partial(jax.random.key, 0)  # each call has a key of its own
    large, sharding = jaxcalc.large, jaxcalc.sharding
    decode = functools.partial(jaxcalc.generate, params, prompts, task.answer_length)
    return {
        "init": lambda: jaxcalc.init(key(), config),
        "batch_at": lambda: jaxcalc.batch_at(task, 0, 3, 8, "all"),
        "drawn": lambda: jaxcalc.batch_at(drawn, 0, 3, 8),
        "apply": lambda: jaxcalc.apply(params, tokens),
        "loss": lambda: jaxcalc.loss(params, batch),
        "train_step": lambda: trained(params, batch, TX),
        "adamw": lambda: trained(params, batch, jaxcalc.make_optimizer("adamw", 10)),
        "sgd": lambda: trained(params, batch, jaxcalc.make_optimizer("sgd", 10)),
        "bfloat16": lambda: trained(params, batch, optax.sgd(0.1), large.in_dtype(jnp.bfloat16)),
        "scanned": lambda: trained(params, batch, optax.sgd(0.1), large.scanned(large.remat())),
        "parallel": lambda: trained(params, batch, optax.sgd(0.1), sharding.data_parallel(jax.devices()[:1])),
        "parts": lambda: jaxcalc.in_microbatches(2)(jaxcalc.create_state(params, TX), batch),
        "train_steps": lambda: jaxcalc.train_steps(
            jaxcalc.create_state(params, optax.adam(0.1)), task, seed=0, n_steps=2, batch_size=8
        ),
        "generate": lambda: decode(),
        "sample": lambda: decode(key(), 0.7, 3),
        "uncached": lambda: decode(key(), 0.7, 3, apply_fn=OTHER),
        "answers": lambda: jaxcalc.evaluation.answer_log_probs(params, task, prompts[0]),
        "backward": lambda: backprop.collect(params, backprop.walk(params, batch)),
        "by_token": lambda: blame.token_grads(params, backprop.walk(params, batch)),
        "take_step": lambda: steps.take_step(TX, params, jaxcalc.create_state(params, TX).opt_state, params),
        "curvature": lambda: landscape.hessian_vector(params, params, batch),
        "sharpness": lambda: landscape.sharpness(key(), params, batch, 3),
        "line": lambda: landscape.loss_along(
            params, landscape.random_direction(key(), params), jnp.linspace(-1, 1, 3), batch
        ),
        "numbers": lambda: (lens.number_states(params, task), lens.answer_states(params, task, rows)),
        "probe": lambda: (lens.probe(key(), states, labels), lens.probe(key(), states, labels % 2, 2)),
        "points": lambda: (lens.pca(line), lens.fourier_power(line)),
        "lens": lambda: (lens.logit_lens(params, batch), lens.direct_contributions(params, batch)),
        "ablate": lambda: interventions.ablate_head(params, tokens, 0, 1, True),
        "patch": lambda: interventions.patch(params, tokens, tokens[::-1], "blocks.0.mlp.residual", where),
        "steer": lambda: interventions.steer(params, tokens, states[0], "embed.residual", where),
        "population": lambda: population.correct(population.init(jnp.arange(2), config), task, jnp.arange(8)),
    }


def on_host(task: Any, params: Params) -> dict[str, Callable[[], Any]]:
    """Return calls of the functions that read values, by name."""
    batch = jaxcalc.batch_at(task, 0, 0, 8)
    grads = jax.jit(jax.grad(jaxcalc.loss))(params, batch)
    step = steps.take_step(TX, grads, jaxcalc.create_state(params, TX).opt_state, params)
    rates = np.array([1e-3, 2e-3], np.float32)

    def members() -> Any:
        first = population.init(jnp.arange(2), config_for(task))
        state = population.create_state(first, optax.adamw, learning_rate=rates)
        return population.train_steps(state, task, seeds=jnp.arange(2), n_steps=2, batch_size=8)

    return {
        "create": lambda: jaxcalc.create_state(params, TX),
        "evaluate": lambda: jaxcalc.evaluate(params, task, np.arange(8)).errors(),
        "evaluate another": lambda: jaxcalc.evaluate(params, task, np.arange(8), apply_fn=OTHER).total(),
        "blame": lambda: [blame.assign_blame(grads, step, level) for level in ("stage", "head", "weight")],
        "credit": lambda: blame.assign_credit(params, step, batch, n_points=2),
        "drop": lambda: blame.actual_drop(params, step, batch),
        "examples": lambda: blame.example_blame(params, batch),
        "attention": lambda: lens.attention_by_role(params, task, np.arange(8)),
        "weight": lambda: weights.weight_story("output.norm[7]", params, grads, step, batch),
        "nonfinite": lambda: backprop.first_nonfinite(params, batch),
        "tables": lambda: (repr(jaxcalc.summary(params)), repr(jaxcalc.compare(params, grads))),
        "fingerprint": lambda: jaxcalc.fingerprint(params),
        "members": members,
    }


QUICK = ("train_step", "generate", "evaluate", "credit")
"""What the fast tests run."""


def test_every_function_writes_out_ranks_and_dtypes(small: Task, drawn: Task, params: Params) -> None:
    with strict("jax_numpy_rank_promotion", "jax_numpy_dtype_promotion"):
        for call in traceable(small, drawn, params).values():
            jax.eval_shape(call)


def test_weights_and_metrics_are_float32_and_tokens_int32_under_64_bits(
    small: Task, drawn: Task, params: Params
) -> None:
    calls = traceable(small, drawn, params)
    with strict("jax_enable_x64"):
        for name in ("batch_at", "drawn"):
            assert jax.eval_shape(calls[name]).tokens.dtype == jnp.int32, name
        state, metrics = jax.eval_shape(calls["train_step"])
        found = {"train_step": (state.params, metrics)}
        found |= {name: jax.eval_shape(calls[name]) for name in ("init", "apply", "loss")}
    for name, shapes in found.items():
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}, name


@pytest.mark.slow
def test_a_model_is_trained_asked_and_blamed(small: Task, drawn: Task, params: Params) -> None:
    calls = {**traceable(small, drawn, params), **on_host(small, params)}
    with strict("jax_debug_nans", "jax_debug_key_reuse"):
        for name in (*QUICK, "sample"):
            calls[name]()
    for name in QUICK:
        calls[name]()  # sets up
    with strict("jax_transfer_guard"):
        for name in QUICK:
            calls[name]()


@pytest.mark.slow
def test_the_loss_leaks_no_tracer_and_does_not_depend_on_jit(small: Task, params: Params) -> None:
    batch = jaxcalc.batch_at(small, 0, 0, 4)
    with strict("jax_check_tracer_leaks"):
        jax.eval_shape(lambda: jaxcalc.loss(params, batch))
    expected = jax.jit(jaxcalc.loss)(params, batch)
    with strict("jax_disable_jit"):
        np.testing.assert_allclose(jaxcalc.loss(params, batch), expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_all_functions_run(setting: str, small: Task, drawn: Task, params: Params, tmp_path: Path) -> None:
    if setting == "jax_transfer_guard":
        calls = {name: jax.jit(call) for name, call in traceable(small, drawn, params).items()} | on_host(small, params)
        del calls["members"]  # makes its first population, which is a part of setting up
        for call in calls.values():
            call()
        with strict(setting):
            for call in calls.values():
                call()
        return
    with strict(setting):
        calls = traceable(small, drawn, params)
        if setting == "jax_check_tracer_leaks":  # minutes, were they compiled
            jax.eval_shape(lambda: [call() for call in calls.values()])
            return
        calls |= on_host(small, params)
        if setting == "jax_disable_jit":  # minutes, operation by operation
            for name in ("train_step", "train_steps", "parts", "take_step", "scanned", "credit", "members"):
                del calls[name]
        for call in calls.values():
            jax.block_until_ready(call())
        jaxcalc.save_params(tmp_path / "model", jaxcalc.init(jax.random.key(0), config_for(small)))
        jaxcalc.load_params(tmp_path / "model")
        jaxcalc.export_answerer(params, small, ("cpu",))
