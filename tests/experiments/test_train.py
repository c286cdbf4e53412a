"""train.py: what it writes, what it prints, and what it refuses."""

import dataclasses
import importlib
import json
import re
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path

import chex
import jax
import pytest
from scripts import SMALL, TINY, Ended, run_script

import jaxcalc
from jaxcalc import runs
from jaxcalc.runs.config import log_spaced_steps


def test_training_leaves_a_finished_run(small_run: Path) -> None:
    summary = json.loads((small_run / "summary.json").read_text())
    promised = """n_params n_train n_held_out held_out_exact_match train_exact_match by_operation errors
        steps examples_per_second seconds seed split versions device"""
    assert set(promised.split()) <= set(summary)
    assert set(summary["seconds"]) == {"compile", "first_step", "train", "evaluate", "total"}
    assert summary["n_train"] + summary["n_held_out"] == 28 + 28 + 27 + 20
    assert summary["steps"] == 60
    n_wrong = sum(error["membership"] == "held out" for error in summary["errors"])
    assert summary["held_out_exact_match"] == pytest.approx(1 - n_wrong / summary["n_held_out"])
    assert (small_run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_records_the_rates_that_it_used(small_run: Path) -> None:
    config = json.loads((small_run / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == jaxcalc.optimizers.DEFAULT_LEARNING_RATE["muon"]
    assert config["optimizer"]["weight_decay"] == jaxcalc.optimizers.DEFAULT_WEIGHT_DECAY["muon"]


def test_every_step_is_logged_once(small_run: Path) -> None:
    lines = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 61))
    checks = [line for line in lines if "held-out_exact_match" in line]
    assert checks[-1]["step"] == 60
    assert lines[0]["loss"] > lines[-2]["loss"]


def test_training_prints_what_happens(small_run: Path, small_training: Ended) -> None:
    _, out, err = small_training
    for text in ("The model", "block 0 attention", "divided by", "Before and after", "Exact match", "Wrong answers"):
        assert text in out
    assert f'python experiments/ask.py {small_run} "two plus three"' in out
    assert f"python experiments/evaluate.py {small_run}" in out
    assert "step 60/60 (1,920 examples)  loss" in err
    assert "60 steps of 32: 1,920 examples seen in" in out
    assert "Traceback" not in err
    assert max(map(len, out.split("Saved in")[0].splitlines())) <= 80


@pytest.mark.slow
def test_a_table_may_hold_out_no_problem_of_an_operation(tmp_path: Path) -> None:
    tiny = ["--max-number", "4", "--batch-size", "4", "--held-out", "0.04", "--steps", "2"]
    status, out, _ = run_script("train", "--run-dir", tmp_path / "run", *TINY, *tiny)
    assert status == 0
    by_operation = json.loads((tmp_path / "run" / "summary.json").read_text())["by_operation"]
    assert {row["n_held_out"] for row in by_operation.values()} == {0, 1}
    assert "0 of 0" in out


def test_an_earlier_run_is_not_overwritten_unless_asked(small_run: Path) -> None:
    before = {path: path.read_bytes() for path in small_run.rglob("*.*") if path.is_file()}
    assert len(before) > 10
    status, _, err = run_script("train", "--run-dir", small_run, *SMALL)
    assert status == 2
    assert "holds a run already; choose another --run-dir or add --overwrite" in err
    assert {path: path.read_bytes() for path in small_run.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "-5"], "--steps is -5"),
        (["--steps", "0"], "--steps is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--batch-size", "100000"], "batch size is 100000; it must be from 1 to 10,211"),
        (["--seed", "-1"], "--seed is -1"),
        (["--copies", "0"], "--copies is 0"),
        (["--inverse-copies", "-1"], "--inverse-copies is -1"),
        (["--snapshots", "-1"], "--snapshots is -1"),
        (["--clip-norm", "0"], "clip_norm is 0.0"),
        (["--model.n-heads", "5"], "n_heads is 5, which does not divide d_model, 64"),
        (["--model.n-layers", "0"], "n_layers is 0"),
        (["--ops", "plus", "modulo"], "unknown operation 'modulo'"),
        (["--ops"], "at least one of"),
        (["--max-number", "0"], "max_number is 0"),
        (["--max-number", "5000"], "max_number is 5000"),
        (["--held-out", "1.5"], "held_out is 1.5"),
        (["--learning-rate", "-1"], "learning_rate is -1.0"),
        (["--learning-rate", "inf"], "learning_rate is inf"),
        (["--weight-decay", "-1"], "weight_decay is -1.0"),
    ],
)
def test_a_flag_out_of_range_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    status, out, err = run_script("train", "--run-dir", tmp_path / "run", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--optimizer", "adam"], ["--split", "half"], ["--colour"]])
def test_a_flag_that_does_not_parse_is_a_usage_error(arguments: list[str]) -> None:
    status, out, err = run_script("train", *arguments)
    assert (status, out) == (2, "")
    assert arguments[0] in err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "run", tmp_path / "file"):
        status, _, err = run_script("train", "--run-dir", path, *SMALL)
        assert status == 2
        assert str(path) in err
        assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def flags(options: type) -> Iterator[str]:
    """Yield the flag of each field of an options class, also of the dataclasses in it."""
    types = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if dataclasses.is_dataclass(kind := types[field.name]):
            yield from flags(typing.cast("type", kind))
        else:
            yield field.name.replace("_", "-")


@pytest.mark.parametrize("script", ["train", "ask", "evaluate", "watch"])
def test_every_option_is_in_the_help(script: str) -> None:
    status, out, _ = run_script(script, "--help")
    assert status == 0
    options = typing.get_type_hints(importlib.import_module(script).main)["options"]
    for flag in flags(options):
        assert flag in ("run", "question") or re.search(rf"--([\w-]+\.)?{flag}\b", out)
    assert "(required)" not in out or script != "train"


def test_a_stopped_run_cannot_be_asked_and_can_be_finished_where_it_stopped(stopped_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    status, _, err = run_script("ask", run, "1 + 1")
    assert status == 2
    assert f"is unfinished: it has no summary.json; finish it with: python experiments/train.py --resume {run}" in err
    status, out, _ = run_script("train", "--resume", run, "--steps", 40, "--json")
    assert status == 0
    summary = json.loads(out)  # with --json, the tables go to stderr
    assert summary == jaxcalc.load_run(run).summary
    assert summary["steps"] == summary["first_step"] == 40


def test_training_keeps_snapshots_at_log_spaced_steps(small_run: Path) -> None:
    assert log_spaced_steps(12, 10, 1200) == [0, 10, 20, 30, 40, 70, 110, 180, 290, 460, 740, 1200]
    assert log_spaced_steps(1, 10, 1200) == [0]
    assert log_spaced_steps(0, 10, 1200) == []
    assert log_spaced_steps(2, 10, 7) == [0, 7]
    assert log_spaced_steps(4, 10, 25) == [0, 10, 20, 25]
    run = jaxcalc.load_run(small_run)
    assert runs.checkpoint_steps(small_run) == [0, 10, 20, 30, 40, 50, 60]
    untrained = jaxcalc.init(jax.random.key(0), jaxcalc.config_of(run.params))
    # train.py compiles `init` as one program, which rounds differently.
    chex.assert_trees_all_close(runs.load_snapshot(run, 0).params, untrained, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_equal(runs.load_snapshot(run, 60).params, run.params)


def test_training_goes_on_from_a_snapshot_bit_for_bit(small_run: Path) -> None:
    run = jaxcalc.load_run(small_run)
    state, expected = (runs.load_snapshot(run, step) for step in (20, 30))
    state, _ = jaxcalc.train_steps(state, run.task, seed=0, n_steps=10, batch_size=32)
    chex.assert_trees_all_equal(state.params, expected.params)
    chex.assert_trees_all_equal(state.opt_state, expected.opt_state)
