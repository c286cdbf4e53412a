"""A session around a training loop of one's own: it is saved, stopped in order, resumed bit for bit, and refused."""

import signal
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import optax
import pytest

import jaxcalc
from jaxcalc import InputError
from jaxcalc.runs import METRICS, checkpoint_steps, read_metrics
from jaxcalc.runs.session import open_session

STEPS = 12


@pytest.fixture(scope="module")
def start() -> Callable[[], jaxcalc.TrainState]:
    config = jaxcalc.ModelConfig(vocab_size=26, d_model=8, n_heads=2, d_ff=8, n_layers=1)
    tx = optax.adam(0.01)
    return lambda: jaxcalc.create_state(jaxcalc.init(jax.random.key(0), config), tx)


@pytest.fixture(scope="module")
def task() -> jaxcalc.Task:
    return jaxcalc.calculator(("plus", "minus"), max_number=20)


def train(
    path: Path,
    start: Callable[[], jaxcalc.TrainState],
    task: jaxcalc.Task,
    after: Callable[[int], None] = lambda _: None,
    **config: object,
) -> jaxcalc.TrainState | None:
    """Train as a script of one's own would, and return the last state, or None if the session was left before."""
    with open_session(path, {"rate": 0.01, **config}) as session:
        state = session.begin(start)
        while int(state.step) < STEPS:
            state, metrics = jaxcalc.train_step(state, jaxcalc.batch_at(task, 0, state.step, 8))
            session.log({"step": int(state.step), "loss": float(metrics["loss"])})
            after(int(state.step))
            session.keep(state)
        return state
    return None


def test_a_script_of_ones_own_is_stopped_and_goes_on(
    tmp_path: Path, start: Callable[[], jaxcalc.TrainState], task: jaxcalc.Task, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = tmp_path / "whole", tmp_path / "stopped"
    expected = train(whole, start, task)
    assert expected is not None
    assert checkpoint_steps(whole) == [0, STEPS]

    def interrupt(step: int) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    assert train(path, start, task, interrupt) is None
    assert "Stopped by SIGINT after step 5, which is saved. Start the script again to go on." in capsys.readouterr().err
    assert checkpoint_steps(path) == [0, 5]
    state = train(path, start, task)
    assert state is not None
    chex.assert_trees_all_equal((state.params, state.opt_state), (expected.params, expected.opt_state), strict=True)
    assert (path / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def test_a_crash_loses_what_came_after_the_newest_checkpoint(
    tmp_path: Path, start: Callable[[], jaxcalc.TrainState], task: jaxcalc.Task
) -> None:
    def crash(step: int) -> None:
        if step == 7:
            raise RuntimeError("the script has a fault")

    with pytest.raises(RuntimeError, match="the script has a fault"):
        train(tmp_path / "run", start, task, crash)
    assert checkpoint_steps(tmp_path / "run") == [0]
    assert train(tmp_path / "run", start, task) is not None
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_another_configuration_or_folder_is_refused(
    tmp_path: Path, start: Callable[[], jaxcalc.TrainState], task: jaxcalc.Task
) -> None:
    train(tmp_path / "run", start, task)
    with pytest.raises(InputError, match=r"is of another run than config\.json: width is missing there and 9 here"):
        train(tmp_path / "run", start, task, width=9)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="is not a run folder"):
        train(tmp_path / "thesis", start, task)
    with (
        open_session(tmp_path / "run", {"rate": 0.01}),
        pytest.raises(InputError, match="is being written by process"),
        open_session(tmp_path / "run", {"rate": 0.01}),
    ):
        pass
