"""A number that is not finite stops training before it is in the state, and where it began is said."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from harness import bits, bits_at, check_unlocked, config_of, metrics, newest, patched, steps_of, train
from scripts import TINY

import jaxcalc
from jaxcalc import Batch, InputError, Params, Task, TrainState, named_leaves, runs
from jaxcalc.backprop import first_nonfinite
from jaxcalc.batch import PAD_ID
from jaxcalc.runs import checkpoint, guard

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
    """The model; a batch that begins with padding, as no real one does, breaks its backward pass."""
    return backward_breaks(jaxcalc.apply(params, tokens, last), tokens[0, 0] == PAD_ID)


def is_in(bad: jax.Array, step: jax.Array) -> jax.Array:
    """Return whether a step is in a set of steps below 31, which is given as the bits of a number."""
    return (bad >> jnp.minimum(step, 31)) & 1 == 1


class FaultyState(NamedTuple):
    """Of the optimizer below."""

    count: jax.Array
    bad: jax.Array


def breaking_updates() -> optax.GradientTransformation:
    """Return what makes the updates of some steps too large. A step that is left out it meets again."""

    def update(updates: Any, state: FaultyState, params: Any = None) -> tuple[Any, FaultyState]:
        scale = jnp.where(is_in(state.bad, state.count), 3e38, 1.0)
        return jax.tree.map(lambda leaf: 100 * scale * leaf, updates), state._replace(count=state.count + 1)

    return optax.GradientTransformation(lambda params: FaultyState(jnp.int32(0), jnp.int32(0)), update)


class Faulty:
    """Training in which something is not finite at some steps; one compiled program for all sets of steps."""

    def __init__(self, task: Task, what: str) -> None:
        self.task, self.what = task, what
        self.tx = optax.chain(optax.scale_by_adam(), optax.scale(-0.001), breaking_updates())
        self.real_batch_at = jaxcalc.training.batch_at

    def start(self) -> TrainState:
        return jaxcalc.create_state(new_params(self.task), self.tx, marked)

    def batch_at(self, task: Task, bad: jax.Array, step: jax.Array, *rest: Any) -> Batch:
        """Stand in for `jaxcalc.batch_at`, the steps in the place of the seed."""
        batch = self.real_batch_at(task, 0, step, *rest)
        if self.what == "mask":
            return batch._replace(mask=jnp.where(is_in(bad, step), NAN, batch.mask))
        first = jnp.where(is_in(bad, step) & (self.what == "gradient"), PAD_ID, batch.tokens[0, 0])
        return batch._replace(tokens=batch.tokens.at[0, 0].set(first))

    def steps(
        self, state: TrainState, bad: list[int], n: int = 10, **options: Any
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Return what `train_steps` does, from a state that is kept."""
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


def is_finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


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
        np.testing.assert_array_equal(values[bad[0] :], np.full(10 - bad[0], values[-1]))  # of the bad step
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
    for stop in (10, 3):  # it is there already, or beyond
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
        "batch", "mask", "mask",
    )  # fmt: skip


def test_where_only_the_gradient_overflows_is_named(small: Task, small_batch: Batch) -> None:
    params = new_params(small)
    network = jaxcalc.backprop.stages(params, small_batch)
    # The forward pass is as it was; the message that a stage hands back becomes too large to be squared.
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


# The script.

RUN = (*TINY, "--steps", "40", "--checkpoint-every", "10")


def poisoned(*bad: int) -> Callable[[Any], Any]:
    """Return what makes the mask of some steps' batches infinite, everywhere."""

    def wrap(batch_at: Any) -> Any:
        def bad_batch_at(task: Task, seed: int, step: int, *rest: Any) -> Batch:
            batch = batch_at(task, seed, step, *rest)
            return batch._replace(mask=jnp.where(jnp.isin(step, jnp.array(bad)), INF, batch.mask))

        return bad_batch_at

    return wrap


def poisoned_train(bad: tuple[int, ...], *arguments: str | Path) -> Any:
    wrap = poisoned(*bad)
    with patched(guard, "batch_at", wrap), patched(jaxcalc.training, "batch_at", wrap):
        return train(*arguments)


def check_batch_is_kept(run: Path, step: int, wrap: Callable[[Any], Any] = lambda function: function) -> dict[str, Any]:
    """Check that the batch of a step, counted from 1, is in its file, and return what is beside it."""
    config = config_of(run)
    task = config.make_task()
    schedule = config.schedule
    expected = wrap(jaxcalc.batch_at)(task, schedule.seed, step - 1, schedule.batch_size, schedule.loss_on)
    found = safetensors.numpy.load_file(run / "nonfinite" / f"{step:06}.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: np.asarray(array).tobytes() for name, array in expected._asdict().items()
    }
    return json.loads((run / "nonfinite" / f"{step:06}.json").read_text())


BAD = (12, 13, 36)  # of the steps counted from 0: those after 12, 13 and 36 steps


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A run in which three steps are bad: how it stopped at the second, and how it ended when it was resumed."""
    run = tmp_path_factory.mktemp("skipping") / "run"
    first = poisoned_train(BAD, "--run-dir", run, *RUN, "--skip-nonfinite", "1", "--json")
    assert (newest(run), steps_of(run), (run / "summary.json").exists()) == (13, list(range(1, 14)), False)
    check_unlocked(run)
    return run, first, poisoned_train(BAD, "--resume", run, "--skip-nonfinite", "3")


def test_bad_steps_stop_a_run_and_are_left_out_as_often_as_allowed(skipping: tuple[Path, Any, Any]) -> None:
    run, ended, resumed = skipping
    assert ended.status == 3
    assert "step 13 is left out" in ended.err
    assert "Stopped: step 14 is not finite (loss nan, gradient norm nan), first in: batch, mask mask" in ended.err
    assert f"--resume {run} --skip-nonfinite 2" in ended.err
    assert str(run / "nonfinite" / "000014.safetensors") in ended.err
    assert json.loads(ended.out)["steps"] == 13

    assert resumed.status == 0, resumed.err
    assert steps_of(run) == list(range(1, 41))
    assert [row["step"] for row in metrics(run) if "skipped" in row] == [13, 14, 37]
    assert json.loads((run / "summary.json").read_text())["skipped_steps"] == 3
    for step in (13, 14, 37):
        said = check_batch_is_kept(run, step, poisoned(*BAD))
        assert said["step"] == step
        assert said["first"] == {"stage": "batch", "what": "mask", "leaf": "mask"}
        assert set(said["metrics"].values()) == {"nan"}
    for step in runs.checkpoint_steps(run):
        state, _ = runs.load_checkpoint(run, config_of(run), step)
        assert is_finite((state.params, state.opt_state))


def without_paths(run: Path) -> list[dict[str, Any]]:
    return [{**row, "skipped": True} if "skipped" in row else row for row in metrics(run)]


@pytest.mark.faults
def test_bad_steps_are_counted_over_resumes_and_it_is_the_same_to_leave_them_out_at_once(
    skipping: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    at_once, step_by_step = tmp_path / "at once", tmp_path / "step by step"
    assert poisoned_train(BAD, "--run-dir", at_once, *RUN, "--skip-nonfinite", "3").status == 0
    assert poisoned_train(BAD, "--run-dir", step_by_step, *RUN).status == 3
    for n, done in ((0, 12), (1, 13), (1, 13), (2, 36), (2, 36), (3, 40)):
        ended = poisoned_train(BAD, "--resume", step_by_step, "--skip-nonfinite", str(n))
        assert ended.status == (0 if n == 3 else 3), ended.err
        assert newest(step_by_step) == done
        assert steps_of(step_by_step) == list(range(1, done + 1))
    for run in (at_once, step_by_step):
        assert bits_at(run, 40) == bits_at(skipping[0], 40)
        assert without_paths(run) == without_paths(skipping[0])


RATE = ("--optimizer", "sgd", "--learning-rate", "1e30")


@pytest.mark.faults
def test_a_rate_that_is_too_high_stops_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train("--run-dir", run, *RUN, *RATE)
    assert ended.status == 3
    step = newest(run)
    assert 0 <= step < 10
    assert f"Stopped: step {step + 1} is not finite" in ended.err
    said = check_batch_is_kept(run, step + 1)
    assert said["first"] is None or said["first"]["stage"] != "batch"
    assert steps_of(run) == list(range(1, step + 1))
    state, _ = runs.load_checkpoint(run, config_of(run), step)
    assert is_finite((state.params, state.opt_state))


@pytest.mark.faults
def test_a_run_may_leave_out_nearly_all_of_its_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train("--run-dir", run, *RUN, *RATE, "--skip-nonfinite", "1000")
    assert ended.status == 0, ended.err
    assert steps_of(run) == list(range(1, 41))
    assert sum("skipped" in row for row in metrics(run)) > 20
    state, _ = runs.load_checkpoint(run, config_of(run), 40)
    assert is_finite((state.params, state.opt_state))
