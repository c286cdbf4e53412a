import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxcalc
from jaxcalc import InputError, Params, load_params, load_run, named_leaves, save_params
from jaxcalc.checkpoint import (
    load_snapshot,
    optimizer_of,
    save_snapshot,
    snapshot_steps,
    start_run,
    write_json,
)

OPTIMIZER = {"optimizer": "muon", "steps": 10, "learning_rate": None, "weight_decay": None, "clip_norm": None}
TASK = {"operations": ["plus"], "max_number": 5, "output": "words", "split": "none", "held_out": 0.1, "seed": 0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of an untrained model."""
    task = jaxcalc.calculator(("plus",), 5, split="none")
    model = jaxcalc.ModelConfig(task.vocab_size, 8, 2, 8, 1, task.context_length)
    path = tmp_path / "a run with ünïcode"
    start_run(path, {"task": TASK, "model": model.__dict__, **OPTIMIZER}, overwrite=False)
    params = jaxcalc.init(jax.random.key(0), model)
    save_params(path / "model.safetensors", params)
    save_snapshot(path, jaxcalc.create_state(params, optimizer_of(OPTIMIZER)))
    write_json(path / "summary.json", {"steps": 0})
    return path


def test_parameters_come_back_bit_for_bit(params: Params, tmp_path: Path) -> None:
    save_params(tmp_path / "model.safetensors", params)
    chex.assert_trees_all_equal(load_params(tmp_path / "model.safetensors"), params)
    assert not list(tmp_path.glob("*.partial"))


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
    save_snapshot(run, state)
    assert snapshot_steps(run) == [0, 2]
    back = load_snapshot(loaded, 2)
    chex.assert_trees_all_equal(
        (back.step, back.params, back.opt_state), (state.step, state.params, state.opt_state), strict=True
    )
    batch = jaxcalc.batch_at(loaded.task, 0, 2, 8)
    chex.assert_trees_all_equal(jaxcalc.train_step(back, batch)[0].params, jaxcalc.train_step(state, batch)[0].params)


def test_a_step_without_a_snapshot_is_refused_with_the_list(run: Path) -> None:
    loaded = load_run(run)
    save_snapshot(run, load_snapshot(loaded, 0).replace(step=40))
    with pytest.raises(InputError, match=r"has no snapshot of step 7; there are 0, 40$"):
        load_snapshot(loaded, 7)
    for step in (0, 40):
        (run / "snapshots" / f"{step:06}.safetensors").unlink()
    with pytest.raises(InputError, match=r"no snapshot of step 0; it has none; train it again with --snapshots"):
        load_snapshot(loaded, 0)


def test_a_snapshot_of_something_else_is_refused(run: Path) -> None:
    loaded = load_run(run)
    path = run / "snapshots" / "000000.safetensors"
    arrays = safetensors.numpy.load_file(path)
    missing = {name: array for name, array in arrays.items() if not name.endswith("mu.embed.token")}
    for changed, message in (
        (missing, r"mu\.embed\.token is missing or not float32\[10, 8\]"),
        ({**arrays, "params.embed.token": np.zeros((10, 8))}, r"params\.embed\.token is missing or not float32"),
        ({**arrays, "more": np.zeros(1)}, "more belongs to no state of this run"),
    ):
        safetensors.numpy.save_file(changed, path)
        with pytest.raises(InputError, match=message):
            load_snapshot(loaded, 0)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"cannot read .*000000\.safetensors"):
        load_snapshot(loaded, 0)


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
        ({"task": {**TASK, "colour": "blue"}}, "was written by other code"),
        ({"task": None}, "was written by other code"),
        ({"task": {**TASK, "max_number": 50}}, "has vocabulary 10"),
        ({"model": {"vocab_size": 10}}, "holds a model of"),
        ({"model": {"vocab": 10}}, "was written by other code"),
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


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("embed.token", np.full((35, 64), np.nan, np.float32), r"embed\.token is float32, or not finite"),
        ("embed.token", np.zeros((35, 64), np.float16), r"embed\.token is float16"),
        ("embed.token", np.zeros((35, 63), np.float32), r"embed\.\w+ has shape"),
        ("embed.extra", np.zeros(3, np.float32), r"extra leaf 'embed\.extra'"),
        ("blocks.7.mlp.up", np.zeros((64, 256), np.float32), r"blocks are .*without a gap"),
        ("embed", np.zeros(3, np.float32), r"names do not form a tree|no leaf 'embed"),
    ],
)
def test_files_that_hold_no_model_are_refused(
    params: Params, tmp_path: Path, name: str, array: np.ndarray, message: str
) -> None:
    arrays = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()} | {name: array}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        load_params(tmp_path / "model.safetensors")


def test_overwriting_deletes_the_runs_files_and_nothing_else(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds a run already"):
        start_run(run, {}, overwrite=False)
    assert (run / "model.safetensors").exists()
    start_run(run, {}, overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "notes.txt", "snapshots"]
    assert not list((run / "snapshots").iterdir())


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not a run folder"):
            start_run(tmp_path, {}, overwrite)
    with pytest.raises(InputError, match="is not a run folder"):
        start_run(tmp_path / "thesis.tex", {}, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file/run"):
        start_run(tmp_path / "file" / "run", {}, overwrite=False)
