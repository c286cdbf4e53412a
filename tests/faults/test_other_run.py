"""A run is resumed only with its own options and files; an error lists every difference."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import bits_at, check_clean, config_of, copied, files, metrics, newest, patched, steps_of, train

import jaxcalc
from jaxcalc import InputError, TrainState, named_leaves, runs
from jaxcalc.runs import checkpoint


def leaves(state: TrainState) -> dict[str, str]:
    """Return the dtype and shape of each leaf that a checkpoint holds."""
    found = named_leaves({"params": state.params, "opt_state": state.opt_state})
    return {name: f"{leaf.dtype}{list(leaf.shape)}".replace(" ", "") for name, leaf in found.items()}


def check_refused(run: Path, config: runs.RunConfig) -> int:
    """Check that a checkpoint is refused for another configuration, and that the error lists each leaf that differs."""
    there, here = (leaves(each.state_like()) for each in (config_of(run), config))
    differ = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    with pytest.raises(InputError, match="is of another model, optimizer or dtype: ") as error:
        runs.load_checkpoint(run, config, 40)
    assert not isinstance(error.value, checkpoint.DamagedError)
    for name in differ:
        assert f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here" in str(error.value)
    assert str(error.value).count(" there and ") == len(differ)
    return len(differ)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"d_model": 32}},
        {"model": {"n_heads": 4}},
        {"model": {"d_ff": 64}},
        {"model": {"n_layers": 2}},
        {"task": {"max_number": 7}},
        {"task": {"max_number": 21}},
        {"optimizer": {"optimizer": "adamw"}},
        {"optimizer": {"optimizer": "sgd"}},
        {"optimizer": {"optimizer": "sgd"}, "model": {"n_layers": 2, "d_model": 32}},
    ],
    ids=str,
)
def test_another_model_or_optimizer_is_refused_with_every_leaf(stopped_run: Path, change: dict[str, Any]) -> None:
    config = config_of(stopped_run)
    sections = {name: dataclasses.replace(getattr(config, name), **entries) for name, entries in change.items()}
    other = dataclasses.replace(config, **sections)
    assert check_refused(stopped_run, other) > 0


def test_another_task_is_refused_with_every_difference(stopped_run: Path) -> None:
    """Even if all shapes are the same."""
    config = config_of(stopped_run)
    ops = ("minus", "plus", "times", "divided-by")
    task = dataclasses.replace(config.task, ops=ops, held_out=0.3, copies=4)
    schedule = dataclasses.replace(config.schedule, seed=3, batch_size=16)
    other = dataclasses.replace(config, task=task, schedule=schedule, task_seed=3)
    with pytest.raises(InputError, match=r"is of another run than config\.json") as error:
        runs.load_checkpoint(stopped_run, other, 40)
    listed = str(error.value).split("config.json: ")[1].split("; ")
    assert sorted(line.split(" is ")[0] for line in listed) == [
        "schedule.batch_size",
        "schedule.seed",
        "task.copies",
        "task.held_out",
        "task.ops",
        "task_seed",
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_another_dtype_is_refused_and_nothing_is_cast(stopped_run: Path, tmp_path: Path, dtype: str) -> None:
    state, manifest = runs.load_checkpoint(stopped_run, config_of(stopped_run), 40)
    like = config_of(stopped_run).state_like()

    def cast(leaf: jax.Array) -> np.ndarray:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return np.asarray(leaf).astype(jnp.dtype(dtype)) if is_float else np.asarray(leaf)

    other = state.replace(**jax.tree.map(cast, {"params": state.params, "opt_state": state.opt_state}))
    info = {name: manifest[name] for name in ("config", "environment", "vocabulary", "metrics")}
    writer = checkpoint.Writer(tmp_path / "checkpoints", info)
    writer.save(other)
    writer.wait()
    before = files(tmp_path)
    told: list[str] = []
    with pytest.raises(InputError, match="is of another model, optimizer or dtype: ") as error:
        checkpoint.restore_newest(tmp_path / "checkpoints", like, told.append)
    listed = str(error.value).split("dtype: ")[1].split("; ")
    floats = [name for name, kind in leaves(like).items() if kind.startswith("float32")]
    assert [line.split(" is ")[0] for line in listed] == floats
    assert all(f" is {dtype}[" in line and " there and float32[" in line for line in listed)
    assert (told, files(tmp_path)) == ([], before)


@pytest.mark.parametrize(
    ("arguments", "differences"),
    [
        (["--model.d-model", "32"], ["--model.d-model is 16 there and 32 here"]),
        (["--max-number", "9", "--seed", "7"], ["--max-number is 6 there and 9", "--seed is 0 there and 7"]),
        (["--optimizer", "sgd", "--learning-rate", "0.1"], ["--optimizer is muon there", "--learning-rate is 0."]),
        (["--ops", "plus", "minus"], ["--ops is ", "('plus', 'minus') here"]),
        (["--output", "digits"], ["--output is words there and digits here"]),
        (["--batch-size", "8", "--loss-on", "all", "--clip-norm", "1"], ["--batch-size", "--loss-on", "--clip-norm"]),
        (["--schedule-steps", "70"], ["--schedule-steps is 60 there and 70 here"]),
        (["--run-dir", "elsewhere"], ["--run-dir is ", " there and elsewhere here"]),
        (["--overwrite"], ["--overwrite is False there and True here"]),
        (["--run-dir", "elsewhere", "--overwrite"], ["--run-dir is ", "--overwrite is "]),
    ],
)
def test_a_run_is_not_resumed_with_other_options(
    stopped_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], differences: list[str]
) -> None:
    run = copied(stopped_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = files(run)
    ended = train("--resume", run, *arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert ended.err.startswith("error: --resume goes on with a run as it was: ")
    for text in differences:
        assert text in ended.err
    assert ended.err.count(" there and ") == sum(text.startswith("--") for text in differences)
    assert files(run) == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_is_resumed_or_forked_but_not_both(stopped_run: Path) -> None:
    ended = train("--resume", stopped_run, "--fork", f"{stopped_run}@20")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "--resume goes on with a run, --fork begins a new one; give one of them" in ended.err


def test_a_run_is_not_resumed_for_fewer_steps_than_it_has(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    before = files(run)
    ended = train("--resume", run, "--steps", "30")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert files(run) == before


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--max-number", "7"], "--max-number is 6 there and 7 here"),
        (["--ops", "plus"], "--ops is "),
        (["--output", "digits"], "--output is words there and digits here"),
        (["--split", "random"], "--split is orbit there and random here"),
        (["--held-out", "0.1"], "--held-out is 0.2 there and 0.1 here"),
        (["--copies", "1"], "--copies is 3 there and 1 here"),
        (["--model.n-layers", "2", "--model.d-ff", "8"], "--model.n-layers is 1 there and 2 here"),
        (["--optimizer", "adamw"], "--optimizer is muon there and adamw here"),
    ],
)
def test_a_fork_is_of_the_same_task_model_and_optimizer(
    stopped_run: Path, tmp_path: Path, arguments: list[str], difference: str
) -> None:
    ended = train("--fork", f"{stopped_run}@20", "--run-dir", tmp_path / "fork", *arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert "--fork keeps the task, the model and the kind of optimizer: " in ended.err
    assert difference in ended.err
    assert not (tmp_path / "fork").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{run}", "it must be RUN@STEP, such as runs/calculator@290"),
        ("{run}@", "it must be RUN@STEP"),
        ("@20", "it must be RUN@STEP"),
        ("{run}@-20", "it must be RUN@STEP"),
        ("{run}@twenty", "it must be RUN@STEP"),
        ("{run}@2.0", "it must be RUN@STEP"),
        ("{run}@²", "it must be RUN@STEP"),
        ("{run}@ 20", "it must be RUN@STEP"),
        ("{run}@25", "has no snapshot of step 25; there are 0, 10, 20, 30, 40"),
        ("{run}@99999999999999999999", "--steps is 60; it counts those before the fork too"),
        ("{run}/nowhere@20", "there is no run folder "),
        ("{run}/checkpoints@20", "is not a run folder: it has no config.json"),
        ("a@b@20", "there is no run folder a@b"),
    ],
)
def test_a_fork_needs_a_run_and_one_of_its_steps(stopped_run: Path, tmp_path: Path, source: str, message: str) -> None:
    ended = train("--fork", source.format(run=stopped_run), "--run-dir", tmp_path / "fork")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert message in ended.err
    left = tmp_path / "fork"
    assert not left.exists() or {path.name for path in left.iterdir()} <= {".lock"}


def problems(task: jaxcalc.Task, rows: Any) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.asarray(task.problems)[np.asarray(rows)].tolist()}


@pytest.fixture(scope="module")
def fork(stopped_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fork") / "run"
    ended = train(
        "--fork", f"{stopped_run}@20", "--run-dir", path, "--seed", "5", "--steps", "40", "--learning-rate", "0.01"
    )
    assert ended.status == 0, ended.err
    return path


def test_a_fork_begins_with_the_state_of_its_source(stopped_run: Path, fork: Path) -> None:
    assert runs.checkpoint_steps(fork)[0] == 20
    assert bits_at(fork, 20) == bits_at(stopped_run, 20)
    assert steps_of(fork) == list(range(21, 41))
    config = config_of(fork)
    assert config.forked_from == f"{stopped_run}@20"
    assert (config.schedule.seed, config.optimizer.learning_rate) == (5, 0.01)
    ours, theirs = ([row for row in metrics(run) if row["step"] == 21][0] for run in (fork, stopped_run))  # noqa: RUF015
    assert ours["loss"] != theirs["loss"]  # another batch


def test_a_fork_never_learns_what_its_source_held_out(stopped_run: Path, fork: Path) -> None:
    source, task = (config_of(run).make_task() for run in (stopped_run, fork))
    held_out = problems(source, source.held_out_rows)
    assert held_out
    assert problems(task, task.held_out_rows) == held_out
    assert not problems(task, task.train_rows) & held_out
    assert sorted(map(tuple, np.asarray(task.lessons).tolist())) == sorted(
        map(tuple, np.asarray(source.lessons).tolist())
    )
    summary = json.loads((fork / "summary.json").read_text())
    assert summary["first_step"] == 20
    assert summary["n_held_out"] == len(held_out)


def test_a_fork_leaves_its_source_as_it_was(stopped_run: Path, fork: Path) -> None:
    assert newest(stopped_run) == 40
    assert steps_of(stopped_run) == list(range(1, 41))
    assert fork.exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.faults
def test_a_fork_that_is_killed_before_its_first_checkpoint_goes_on_from_its_source(
    stopped_run: Path, fork: Path, tmp_path: Path
) -> None:
    options = ("--seed", "5", "--steps", "40", "--learning-rate", "0.01")

    def kill(_: Any) -> Any:
        def save(*_: Any, **__: Any) -> None:
            raise Killed

        return save

    source = copied(stopped_run, tmp_path / "source")
    run = tmp_path / "run"
    with patched(checkpoint.Writer, "save", kill), pytest.raises(Killed):
        train("--fork", f"{source}@20", "--run-dir", run, *options)
    assert newest(run) == -1
    source.rename(tmp_path / "moved")
    ended = train("--resume", run)
    assert (ended.status, ended.err.splitlines()[-1].startswith("error: there is no run folder")) == (2, True)
    (tmp_path / "moved").rename(source)
    ended = train("--resume", run)
    assert ended.status == 0, ended.err
    check_clean(run)
    assert metrics(run) == metrics(fork)
    assert bits_at(run, 40) == bits_at(fork, 40)


@pytest.mark.faults
def test_a_fork_of_a_fork_keeps_the_split_of_the_first_source(stopped_run: Path, fork: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train("--fork", f"{fork}@40", "--run-dir", run, "--seed", "9", "--steps", "50")
    assert ended.status == 0, ended.err
    assert config_of(run).task == config_of(stopped_run).task
    assert config_of(run).task_seed == config_of(stopped_run).task_seed
    assert bits_at(run, 40) == bits_at(fork, 40)
    ended = train("--fork", f"{run}@40", "--run-dir", tmp_path / "none", "--steps", "40")
    assert ended.status == 2
    assert re.search(r"--steps is 40; it counts those before the fork too: more than 40", ended.err)
