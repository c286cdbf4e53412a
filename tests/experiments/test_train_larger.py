"""train.py on meshes, in microbatches and in other dtypes, and models that do not fit in memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from scripts import SMALL, TINY, run_script

import jaxcalc
from jaxcalc import runs
from jaxcalc.runs.config import ComputingConfig, RunConfig, ScheduleConfig
from jaxcalc.runs.placement import mesh_of
from jaxcalc.scale import cost


@pytest.mark.slow
def test_a_run_on_a_mesh_is_the_run_and_goes_on_on_another(small_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = ["--run-dir", path, *SMALL, "--schedule-steps", "60", "--steps", "20"]
    status, _, _ = run_script("train", *arguments, "--mesh", "data=4,model=2", "--fully-sharded")
    assert status == 0
    status, _, err = run_script("train", "--resume", path, "--steps", "30", "--mesh", "data=8")
    assert status == 0
    assert "not bit for bit" in err
    assert "mesh is data=4,model=2 there and data=8 here" in err
    losses, expected = (
        {row["step"]: row["loss"] for row in runs.read_metrics(each) if "loss" in row} for each in (path, small_run)
    )
    assert list(losses) == list(range(1, 31))
    assert list(losses.values()) == pytest.approx([expected[step] for step in losses], rel=1e-3)


@pytest.mark.parametrize(
    ("batch_size", "microbatches", "mesh", "sizes"),
    [
        (512, 1, "", {"data": 8}),  # the tests have eight devices
        (512, 4, "", {"data": 4}),  # 32 examples on each
        (100, 1, "", {"data": 2}),  # three do not divide 100
        (33, 1, "", {"data": 1}),
        (16, 1, "", {"data": 1}),
        (512, 1, "data=2,model=4", {"data": 2, "model": 4}),
    ],
)
def test_a_run_divides_its_batches_over_all_devices(
    batch_size: int, microbatches: int, mesh: str, sizes: dict[str, int]
) -> None:
    computing = ComputingConfig(microbatches=microbatches, mesh=mesh)
    assert mesh_of(RunConfig(schedule=ScheduleConfig(batch_size=batch_size), computing=computing)) == sizes


@pytest.mark.slow
def test_a_run_on_all_devices_is_that_of_one(tmp_path: Path) -> None:
    options = [*SMALL, "--batch-size", "64", "--steps", "20"]
    for path, more in (("all", []), ("one", ["--mesh", "data=1"])):
        assert run_script("train", "--run-dir", tmp_path / path, *options, *more).status == 0
    several, one = (
        [row["loss"] for row in runs.read_metrics(tmp_path / path) if "loss" in row] for path in ("all", "one")
    )
    assert several == pytest.approx(one, rel=1e-4)
    assert several != one  # two devices add up in another order


def test_a_cpu_becomes_a_device_for_each_core() -> None:
    code = (
        "import jax; from jaxcalc.runs.placement import ProcessOptions, use_devices; from jaxcalc.scale import cost; "
        "use_devices('', ProcessOptions()); print(jax.device_count() - cost.n_cores())"
    )
    asked = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    for more, expected in (({}, 0), ({"JAX_NUM_CPU_DEVICES": "3"}, 3 - cost.n_cores())):
        found = subprocess.run([sys.executable, "-c", code], env={**asked, **more}, capture_output=True, text=True)
        assert found.stdout.strip() == str(expected), found.stderr


@pytest.mark.slow
def test_a_larger_model_trains_and_goes_on_in_other_microbatches(tmp_path: Path) -> None:
    path = tmp_path / "run"
    width = ["--model.d-model", "32", "--model.d-ff", "64"]
    larger = ["--size", "1M", *width, "--model.n-layers", "2", "--dtype", "bfloat16", "--scan"]
    options = ["--microbatches", "2", "--mesh", "data=4,model=2"]
    task = ["--max-number", "6", "--held-out", "0.2", "--batch-size", "32", "--steps", "10", "--optimizer", "sgd"]
    status, out, err = run_script("train", "--run-dir", path, *task, *larger, *options)
    assert status == 0, err
    config = json.loads((path / "config.json").read_text())
    computing = config["computing"]
    assert [computing[name] for name in ("dtype", "microbatches", "remat", "scan")] == ["bfloat16", 2, False, True]
    sizes = {"d_model": 32, "n_heads": 4, "d_ff": 64, "n_layers": 2}  # n_heads is that of 1M, the rest was given
    assert {name: config["model"][name] for name in sizes} == sizes
    table = out.split("What a step is predicted to take")[1].split("Before and after")[0]
    for name in ("parameters", "optimizer state", "task and metrics", "temporaries", "all of the memory", "time"):
        assert re.search(rf"^{name} +│ +[\d.,]+ (MiB|ms)", table, flags=re.MULTILINE), name

    status, _, err = run_script("train", "--resume", path, "--steps", "20", "--microbatches", "4", "--remat")
    assert status == 0, err
    assert "microbatches is 2 there and 4 here" in err
    assert "remat is False there and True here" in err
    losses = [row["loss"] for row in runs.read_metrics(path) if "loss" in row]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jaxcalc.load_run(path).params)} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--microbatches", "3"], "a batch of 32 does not divide into 3 microbatches; it does into 1, 2, 4, 8, 16, 32"),
        (["--microbatches", "0"], "--microbatches is 0; it must be from 1"),
        (["--microbatches", "8", "--mesh", "data=8"], "a batch of 4 does not divide evenly along data=8"),
        (
            ["--size", "100M", "--model.d-model", "98304"],
            r"it does not fit: parameters [\d,.]+ GiB \+ gradients .* GiB$",
        ),
    ],
)
def test_microbatches_and_sizes_that_do_not_fit_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    status, out, err = run_script("train", "--run-dir", tmp_path / "run", *TINY[:4], *options)
    assert (status, out) == (2, "")
    assert re.match(f"error: {message}", err)


def test_a_program_that_does_not_fit_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "available_bytes", lambda devices: 60_000)  # enough for the state and its gradients
    status, out, err = run_script("train", "--run-dir", tmp_path / "run", *SMALL, "--batch-size", "64")
    assert (status, out) == (2, "")
    assert re.search(
        r"^error: it does not fit: parameters 0.0 MiB .* \+ temporaries .*; a device has 0.1 MiB$", err, re.M
    )
    assert not (tmp_path / "run" / "config.json").exists()
    monkeypatch.undo()
    status, _, err = run_script("train", "--resume", tmp_path / "run", "--size", "1M")
    assert err == "error: --size 1M is for a new model; --resume and --fork keep the run's\n"


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=3", "a batch of 32 does not divide evenly along data=3; one of 33 would, or data=1"),
        ("data=1,model=4", "model=4 does not divide 2 (axis 1 of params.blocks.0.attention.key"),
        ("data=16", "a mesh of data=16, model=1 takes 16 devices; there are 8"),
        ("eight", "--mesh is 'eight'; it must be such as data=4 or data=4,model=2"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(tmp_path: Path, mesh: str, message: str) -> None:
    status, out, err = run_script("train", "--run-dir", tmp_path / "run", *SMALL, "--mesh", mesh)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
