"""A step that is not finite never gets into the state, and the place where it began is named."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import bits, is_finite, patched

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task, TrainState, named_leaves
from jaxcalc.backprop import first_nonfinite
from jaxcalc.batch import PAD_ID
from jaxcalc.runs import checkpoint

NAN, INF = float("nan"), float("inf")
TX = optax.adam(0.1)


@pytest.fixture(scope="module")
def small() -> Task:
    return jaxcalc.calculator(("plus",), max_number=5, split="none")


def new_params(task: Task) -> Params:
    return jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size, 8, 2, 8, 2, task.context_length))


def changed(params: Params, name: str, change: Callable[[jax.Array], jax.Array]) -> Params:
    """Return parameters with one leaf changed."""
    leaves = {path: change(leaf) if path == name else leaf for path, leaf in named_leaves(params).items()}
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def poison(array: jax.Array, value: float) -> jax.Array:
    return array.at[(-1,) * array.ndim].set(value)


@jax.custom_vjp
def backward_breaks(logits: jax.Array, is_bad: jax.Array) -> jax.Array:
    """Return the logits as they are; the gradient is infinite where `is_bad`."""
    return logits


backward_breaks.defvjp(
    lambda logits, is_bad: (logits, is_bad), lambda is_bad, message: (jnp.where(is_bad, INF, message), None)
)


def marked(params: Params, tokens: jax.Array, last: int | None = None) -> jax.Array:
    """The model, with a backward pass that breaks when a batch begins with padding, which no real batch does."""
    return backward_breaks(jaxcalc.apply(params, tokens, last), tokens[0, 0] == PAD_ID)


def is_in(bad: jax.Array, step: jax.Array) -> jax.Array:
    """Return whether a step is in a set of steps below 31, given as the bits of a number."""
    return (bad >> jnp.minimum(step, 31)) & 1 == 1


class FaultyState(NamedTuple):
    """The state of `breaking_updates`: updates so far, and the bad ones as bits."""

    count: jax.Array
    bad: jax.Array


def breaking_updates() -> optax.GradientTransformation:
    """Return a transformation that makes some updates too large. It counts updates, not steps."""

    def update(updates: Any, state: FaultyState, params: Any = None) -> tuple[Any, FaultyState]:
        scale = jnp.where(is_in(state.bad, state.count), 3e38, 1.0)
        return jax.tree.map(lambda leaf: 100 * scale * leaf, updates), state._replace(count=state.count + 1)

    return optax.GradientTransformation(lambda params: FaultyState(jnp.int32(0), jnp.int32(0)), update)


class Faulty:
    """Trains with values that are not finite at some steps; one compiled program serves all sets of steps."""

    def __init__(self, task: Task, what: str) -> None:
        self.task, self.what = task, what
        self.tx = optax.chain(optax.scale_by_adam(), optax.scale(-0.001), breaking_updates())
        self.real_batch_at = jaxcalc.training.batch_at

    def start(self) -> TrainState:
        return jaxcalc.create_state(new_params(self.task), self.tx, marked)

    def batch_at(self, task: Task, bad: jax.Array, step: jax.Array, *rest: Any) -> Batch:
        """Replace `jaxcalc.batch_at`; the seed says which steps are bad."""
        batch = self.real_batch_at(task, 0, step, *rest)
        if self.what == "mask":
            return batch._replace(mask=jnp.where(is_in(bad, step), NAN, batch.mask))
        first = jnp.where(is_in(bad, step) & (self.what == "gradient"), PAD_ID, batch.tokens[0, 0])
        return batch._replace(tokens=batch.tokens.at[0, 0].set(first))

    def steps(
        self, state: TrainState, bad: list[int], n: int = 10, **options: Any
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Return what `train_steps` returns, without donating the state."""
        chosen = jnp.int32(sum(1 << step for step in bad))
        adam, rate, (count, _) = state.opt_state
        opt_state = adam, rate, FaultyState(count, chosen if self.what == "update" else jnp.int32(0))
        state = jax.tree.map(jnp.copy, state.replace(opt_state=opt_state))
        state, found = jaxcalc.train_steps(state, self.task, seed=chosen, n_steps=n, batch_size=8, **options)
        adam, rate, (count, _) = state.opt_state
        return state.replace(opt_state=(adam, rate, FaultyState(count, jnp.int32(0)))), jax.device_get(found)


@pytest.fixture(scope="module", params=["mask", "gradient", "update"])
def faulty(small: Task, request: pytest.FixtureRequest) -> Iterator[Faulty]:
    made = Faulty(small, request.param)
    with patched(jaxcalc.training, "batch_at", lambda _: made.batch_at):
        yield made


@pytest.mark.parametrize("bad", [[0], [1], [4], [9], [3, 4, 5], list(range(10))])
def test_the_state_is_the_one_before_the_bad_step(faulty: Faulty, bad: list[int]) -> None:
    expected, good = faulty.steps(faulty.start(), [], stop=bad[0])
    state, found = faulty.steps(faulty.start(), bad, stop=1_000)
    assert int(state.step) == int(state.opt_state[0].count) == bad[0]
    assert bits(state) == bits(expected)
    assert is_finite((state.params, state.opt_state))
    for name, values in found.items():
        assert values.shape == (10,)
        np.testing.assert_array_equal(values[: bad[0]], good[name][: bad[0]])
        np.testing.assert_array_equal(values[bad[0] :], np.full(10 - bad[0], values[-1]))  # the bad step again
    assert np.isfinite(found["loss"][-1]) == (faulty.what != "mask")
    assert np.isfinite(found["grad_norm"][-1]) == (faulty.what == "update")
    assert not np.isfinite(found["update_ratio"][-1])


def test_a_bad_step_is_left_out_by_counting_on_and_stop_is_kept(faulty: Faulty) -> None:
    if faulty.what == "update":
        pytest.skip("there it is not the step that is bad but the optimizer, for good")
    state, made, bad = faulty.start(), [], [3, 4, 8]
    for stop in (2, 10, 10, 10, 10):
        before = int(state.step)
        state, found = faulty.steps(state, bad, stop=stop)
        made.append((before, int(state.step)))
        assert is_finite((state.params, state.opt_state))
        if int(state.step) in bad:
            state = state.replace(step=state.step + 1)
    assert made == [(0, 2), (2, 3), (4, 4), (5, 8), (9, 10)]
    assert int(state.opt_state[0].count) == 10 - len(bad)
    assert math.isfinite(found["loss"][0])
    for stop in (10, 3):  # it is at or beyond this step already
        assert bits(faulty.steps(state, bad, stop=stop)[0]) == bits(state)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_parameter_that_is_not_finite_is_never_trained(small: Task, value: float) -> None:
    for name in ("blocks.1.mlp.up", "output.norm"):
        params = changed(new_params(small), name, lambda leaf: poison(leaf, value))
        state = jaxcalc.create_state(params, TX)
        before = bits(state)
        state, _ = jaxcalc.train_steps(state, small, seed=0, n_steps=10, batch_size=8)
        assert bits(state) == before


def leaf_names() -> list[str]:
    task = jaxcalc.calculator(("plus",), max_number=5, split="none")
    return list(named_leaves(jax.eval_shape(lambda: new_params(task))))


def stage_of(name: str) -> str:
    """Return the stage of a parameter, from its path."""
    stage, *rest = name.split(".")
    return f"block {rest[0]} {rest[1]}" if stage == "blocks" else stage


@pytest.fixture(scope="module")
def small_batch(small: Task) -> Batch:
    return jaxcalc.batch_at(small, 0, 0, 8)


@pytest.mark.parametrize("name", leaf_names())
def test_every_parameter_that_is_not_finite_is_named(small: Task, small_batch: Batch, name: str) -> None:
    params = new_params(small)
    for value in (NAN, INF):
        found = first_nonfinite(changed(params, name, lambda leaf: poison(leaf, value)), small_batch)  # noqa: B023
        assert found == (stage_of(name), "parameter", name)
    assert str(found) == f"{stage_of(name)}, parameter {name}"


def test_where_a_finite_model_overflows_is_named(small: Task, small_batch: Batch) -> None:
    params = new_params(small)

    def found(*changes: tuple[str, Callable[[jax.Array], jax.Array]]) -> str:
        tree = params
        for name, change in changes:
            tree = changed(tree, name, change)
        assert is_finite(tree)
        return str(first_nonfinite(tree, small_batch))

    def huge(leaf: jax.Array) -> jax.Array:
        return jnp.full_like(leaf, 3e38)

    assert found() == "None"
    assert found(("embed.token", huge), ("embed.position", huge)) == "embed, output"
    for index in (0, 1):
        out, down = f"blocks.{index}.attention.out", f"blocks.{index}.mlp.down"
        value, up = f"blocks.{index}.attention.value", f"blocks.{index}.mlp.up"
        big = lambda leaf: jnp.full_like(leaf, 1e30) * jnp.sign(leaf)  # noqa: E731
        assert found((value, big), (out, big)) == f"block {index} attention, output"
        assert found((up, big), (down, big)) == f"block {index} mlp, output"
    assert found(("output.norm", huge), ("output.unembed", huge)) == "output, output"
    assert first_nonfinite(params, small_batch._replace(mask=small_batch.mask.at[0, 0].set(NAN))) == (
        "batch",
        "mask",
        "mask",
    )


def test_where_only_the_gradient_overflows_is_named(small: Task, small_batch: Batch) -> None:
    params = new_params(small)
    network = jaxcalc.backprop.stages(params, small_batch)
    # The forward pass is unchanged; the backward message of a stage becomes too large to be squared.
    for index, stage in enumerate(network[1:-1], 1):

        def apply(own: Any, x: jax.Array, stage: Any = stage) -> jax.Array:
            return stage.apply(own, enlarge(x))

        other = [*network[:index], stage._replace(apply=apply), *network[index + 1 :]]
        found = first_nonfinite(params, small_batch, other)
        before = network[index - 1].name
        assert found is not None
        assert (found.stage, found.what) == (before, "gradient"), str(found)
        assert found.leaf in named_leaves(params)
        assert stage_of(found.leaf) == before

        def breaks(own: Any, x: jax.Array, stage: Any = stage) -> jax.Array:
            return stage.apply(own, backward_breaks(x, jnp.array(True)))

        other = [*network[:index], stage._replace(apply=breaks), *network[index + 1 :]]
        assert str(first_nonfinite(params, small_batch, other)) == f"{stage.name}, message"


@jax.custom_vjp
def enlarge(x: jax.Array) -> jax.Array:
    return x


enlarge.defvjp(lambda x: (x, None), lambda _, message: (1e25 * message,))


def test_a_gradient_whose_norm_overflows_is_named(small: Task, small_batch: Batch) -> None:
    params = changed(new_params(small), "output.unembed", lambda leaf: 1e22 * leaf)
    _, found = jaxcalc.train_step(jaxcalc.create_state(params, TX), small_batch)
    assert np.isfinite(found["loss"])
    assert not np.isfinite(found["grad_norm"])
    assert str(first_nonfinite(params, small_batch)).startswith("output, gradient output.norm")


@pytest.mark.parametrize("value", [NAN, INF])
def test_no_state_with_a_bad_leaf_becomes_a_checkpoint(small: Task, tmp_path: Path, value: float) -> None:
    state = jaxcalc.create_state(new_params(small), TX)
    writer = checkpoint.Writer(tmp_path, {}, newest=3)
    writer.save(state)
    saved = {"params": state.params, "opt_state": state.opt_state}
    names = [name for name, leaf in named_leaves(saved).items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    for step, name in enumerate((names[0], names[-1]), 1):
        bad = changed(saved, name, lambda leaf: poison(leaf, value))
        writer.save(state.replace(step=jnp.int32(step), **bad))
        with pytest.raises(InputError, match=rf"{name} is not finite at step {step}; such a state is not saved"):
            writer.wait()
        assert checkpoint.steps(tmp_path) == [0]
        assert checkpoint.clean(tmp_path) == [f"{step:06}"]
