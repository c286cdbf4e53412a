import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import pytest

import jaxcalc
from jaxcalc import InputError, load_run, save_params
from jaxcalc.runs import checkpoint
from jaxcalc.runs.claim import start_run, writing
from jaxcalc.runs.config import RunConfig, ScheduleConfig, SizesConfig, TaskConfig
from jaxcalc.runs.configfile import environment, read_config, to_json, write_json
from jaxcalc.runs.files import mark_of
from jaxcalc.runs.folder import (
    checkpoint_steps,
    load_checkpoint,
    load_snapshot,
    resume,
)
from jaxcalc.runs.metrics import MetricsFile, read_metrics

CONFIG = RunConfig(
    task=TaskConfig(ops=("plus",), max_number=5, split="none"),
    model=SizesConfig(d_model=8, n_heads=2, d_ff=8, n_layers=1),
    schedule=ScheduleConfig(steps=10),
).filled()


def save(path: Path, state: jaxcalc.TrainState, config: RunConfig) -> None:
    info = {"config": to_json(config), "environment": environment(config), "metrics": mark_of(b"")}
    writer = checkpoint.Writer(path / "checkpoints", info, kept=range(100))
    writer.save(state)
    writer.wait()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of an untrained model."""
    path = tmp_path / "a run with ünïcode"
    start_run(path, CONFIG, overwrite=False)
    params = jaxcalc.init(jax.random.key(0), CONFIG.make_model())
    save_params(path / "model.safetensors", params)
    save(path, jaxcalc.create_state(params, CONFIG.make_optimizer()), CONFIG)
    write_json(path / "summary.json", {"steps": 0})
    return path


def test_a_finished_run_comes_back(run: Path) -> None:
    loaded = load_run(run)
    assert loaded.summary == {"steps": 0}
    assert loaded.task.tokenizer.operations == ("plus",)
    assert len(loaded.task.tokens) == 21


def test_a_snapshot_is_the_whole_training_state_bit_for_bit(run: Path) -> None:
    loaded = load_run(run)
    state = load_snapshot(loaded, 0)
    for step in range(2):
        state, _ = jaxcalc.train_step(state, jaxcalc.batch_at(loaded.task, 0, step, 8))
    save(run, state, loaded.config)
    assert checkpoint_steps(run) == [0, 2]
    back = load_snapshot(loaded, 2)
    chex.assert_trees_all_equal(
        (back.step, back.params, back.opt_state), (state.step, state.params, state.opt_state), strict=True
    )
    batch = jaxcalc.batch_at(loaded.task, 0, 2, 8)
    chex.assert_trees_all_equal(jaxcalc.train_step(back, batch)[0].params, jaxcalc.train_step(state, batch)[0].params)


def test_a_step_without_a_snapshot_is_refused_with_the_list(run: Path) -> None:
    loaded = load_run(run)
    save(run, load_snapshot(loaded, 0).replace(step=40), loaded.config)
    with pytest.raises(InputError, match=r"has no snapshot of step 7; there are 0, 40$"):
        load_snapshot(loaded, 7)
    for step in (0, 40):
        checkpoint.remove(run / "checkpoints" / f"{step:06}")
    with pytest.raises(InputError, match=r"no snapshot of step 0; it has none; train it again with --snapshots"):
        load_snapshot(loaded, 0)


def test_a_snapshot_of_another_run_is_refused_with_every_difference(run: Path) -> None:
    loaded = load_run(run)
    optimizer = dataclasses.replace(CONFIG.optimizer, learning_rate=0.5)
    other = dataclasses.replace(CONFIG, optimizer=optimizer, task_seed=7)
    message = r"optimizer\.learning_rate is 0\.04 there and 0\.5 here; task_seed is 0 there and 7 here$"
    with pytest.raises(InputError, match=message):
        load_snapshot(dataclasses.replace(loaded, config=other), 0)


def test_one_process_at_a_time_writes_to_a_run(run: Path) -> None:
    with writing(run):
        command = [
            sys.executable,
            "-c",
            f"from jaxcalc import runs\nfrom pathlib import Path\nwith runs.writing(Path({str(run)!r})): pass",
        ]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"is being written by process {os.getpid()} on " in second.stderr
    assert not (run / ".writer").exists()
    with writing(run):
        pass


def test_metrics_go_on_where_the_mark_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        metrics.write({"step": 1}, {"step": 2})
        mark = metrics.mark()
        metrics.write({"step": 3})
    with MetricsFile(path, mark) as metrics:
        metrics.write({"step": 3, "again": True})
        later = metrics.mark()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": true}\n'
    assert later["bytes"] == path.stat().st_size
    before = path.read_bytes().replace(b"1", b"7")
    path.write_bytes(before)
    with pytest.raises(InputError, match=r"the first 24 bytes of .* are not those that were written.*--fork"):
        MetricsFile(path, mark)
    assert path.read_bytes() == before


def test_a_run_goes_on_elsewhere_with_a_warning(run: Path) -> None:
    config, like = CONFIG, CONFIG.state_like()
    told: list[str] = []
    resumed = resume(run, config, told.append, like)
    assert resumed is not None
    state = resumed[0]
    assert (int(state.step), told) == (0, [])
    checkpoint.remove(run / "checkpoints" / "000000")
    elsewhere = {**environment(config), "threads": 96}
    info = {"config": to_json(config), "environment": elsewhere, "metrics": {}}
    writer = checkpoint.Writer(run / "checkpoints", info)
    writer.save(state)
    writer.wait()
    (run / "summary.json.partial").write_text("{")
    resume(run, config, told.append, like)
    assert told[0] == "removed what was not completely written: summary.json.partial"
    assert re.search(r"not bit for bit .*: threads is 96 there and \d+ here$", told[1])


def test_folders_that_are_no_finished_run_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run folder"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"is not a run folder: it has no config\.json"):
        load_run(tmp_path / "empty")
    (run / "summary.json").unlink()
    with pytest.raises(InputError, match="is unfinished"):
        load_run(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99"),
        ({"format": None}, "has format None"),
        ({"task": {**to_json(CONFIG)["task"], "colour": "blue"}}, "was written by other code.*colour"),
        (
            {"task": {**to_json(CONFIG)["task"], "max_number": "many"}},
            r"other code.*max_number is 'many'",
        ),
        ({"task": None}, "was written by other code"),
        ({"task": {**to_json(CONFIG)["task"], "max_number": 50}}, "has vocabulary 10"),
        ({"model": {**to_json(CONFIG)["model"], "d_model": 16}}, "holds a model of"),
        ({"model": {"vocab": 10}}, "was written by other code.*vocab"),
    ],
)
def test_a_run_of_other_code_is_refused(run: Path, change: dict, message: str) -> None:
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", {**config, **change})
    with pytest.raises(InputError, match=message):
        load_run(run)


def test_broken_files_are_refused_by_name(run: Path) -> None:
    (run / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"cannot read .*model\.safetensors"):
        load_run(run)
    (run / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*summary\.json"):
        load_run(run)
    (run / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        load_run(run)


def test_overwriting_deletes_the_runs_files_and_nothing_else(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    for made in ("lens/findings.json", "lens_step_40/attention.png", "explorer.html"):  # which other scripts wrote
        (run / made).parent.mkdir(exist_ok=True)
        (run / made).write_text("of the earlier run")
    with pytest.raises(InputError, match="holds a run already"):
        start_run(run, CONFIG, overwrite=False)
    assert (run / "model.safetensors").exists()
    start_run(run, CONFIG, overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "notes.txt"]


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not a run folder"):
            start_run(tmp_path, CONFIG, overwrite)
    with pytest.raises(InputError, match="is not a run folder"):
        start_run(tmp_path / "thesis.tex", CONFIG, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file/run"):
        start_run(tmp_path / "file" / "run", CONFIG, overwrite=False)


def test_a_run_that_was_ended_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "config.json.partial").write_text("{")
    start_run(tmp_path, CONFIG, overwrite=False)
    told: list[str] = []
    assert resume(tmp_path, CONFIG, told.append, CONFIG.state_like()) is None
    assert "has no checkpoint yet and begins anew" in told[0]


class Somewhere:
    """A path that is neither a str nor a Path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Somewhere])
def test_any_kind_of_path_will_do(run: Path, kind: Callable[[Path], str | os.PathLike[str]]) -> None:
    path = kind(run)
    assert load_run(path).path == run
    assert read_config(path) == CONFIG
    assert checkpoint_steps(path) == [0]
    assert int(load_checkpoint(path, CONFIG, 0)[0].step) == 0
    with MetricsFile(kind(run / "metrics.jsonl")) as metrics:
        assert metrics.mark()["bytes"] == 0
    assert read_metrics(path) == []
