"""Several processes: two with two devices each train the run that one with four does; one of them writes and prints."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from scripts import free_port, run_script, start_script, start_two

import jaxcalc
from jaxcalc import runs
from jaxcalc.errors import InputError
from jaxcalc.runs import checkpoint
from jaxcalc.scale import processes

MESHED = [
    "--ops", "plus", "--max-number", "9", "--model.d-model", "16", "--model.n-heads", "2", "--model.d-ff", "32",
    "--model.n-layers", "1", "--batch-size", "16", "--optimizer", "adamw", "--steps", "20", "--snapshots", "2",
    "--mesh", "data=4", "--json",
]  # fmt: skip


def together(*options: object) -> list[tuple[str, str]]:
    """Train in two processes, both of which must succeed; return what each printed to stdout and stderr."""
    return finished(start_two("train", *options))


def finished(started: "list[subprocess.Popen[str]]") -> list[tuple[str, str]]:
    printed = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    return printed


def alone(*options: object) -> None:
    ended = run_script("train", *options)
    assert ended.status == 0, ended.err


@pytest.fixture(scope="module")
def runs_of_both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("processes")
    alone(*MESHED, "--run-dir", folder / "one")
    return folder / "one", folder / "two", together(*MESHED, "--run-dir", folder / "two")


@pytest.mark.slow
def test_two_processes_train_what_one_does(runs_of_both: tuple[Path, Path, Any]) -> None:
    solo, pair, _ = runs_of_both
    params = [jaxcalc.load_run(path).params for path in (solo, pair)]
    chex.assert_trees_all_close(*params, rtol=1e-4, atol=1e-5)  # sums in another order
    lines = [[line for line in runs.read_metrics(path) if "loss" in line] for path in (solo, pair)]
    assert [line["step"] for line in lines[1]] == list(range(1, 21))
    for mine, theirs in zip(*lines, strict=True):
        chex.assert_trees_all_close(mine, theirs, rtol=1e-4)
    first = [checkpoint.read_manifest(path / runs.CHECKPOINTS, 0) for path in (solo, pair)]
    assert first[0]["leaves"] == first[1]["leaves"]  # before any sum, bit for bit
    assert [manifest["environment"]["processes"] for manifest in first] == [1, 2]


@pytest.mark.slow
def test_only_process_0_writes_and_prints(runs_of_both: tuple[Path, Path, Any]) -> None:
    _, pair, (main, other) = runs_of_both
    assert json.loads(main[0])["steps"] == 20
    assert other == ("", "")
    assert {path.name for path in pair.iterdir()} == {
        runs.CONFIG, runs.METRICS, runs.SUMMARY, runs.MODEL, runs.CURVE, runs.CHECKPOINTS, ".lock",
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(runs_of_both: tuple[Path, Path, Any]) -> None:
    solo, pair, _ = runs_of_both
    together("--resume", solo, "--steps", "30", "--json")
    alone("--resume", pair, "--steps", "30", "--json", "--mesh", "data=2,model=2")
    params = [jaxcalc.load_run(path).params for path in (solo, pair)]
    chex.assert_trees_all_close(*params, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_cluster_that_jax_detects_needs_no_flags(tmp_path: Path) -> None:
    """Two processes as Slurm starts them, each with one device."""
    options = [*MESHED[: MESHED.index("--mesh")], "--mesh", "data=2", "--json", "--run-dir", tmp_path / "run"]
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    started = []
    for index in range(2):
        slurm = {**job, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        started.append(start_script("train", *options, env={**os.environ, **slurm}))
    main, other = finished(started)
    assert json.loads(main[0])["steps"] == 20
    assert other == ("", "")
    manifest = checkpoint.read_manifest(tmp_path / "run" / runs.CHECKPOINTS, 20)
    assert manifest["environment"]["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-processes", "2"], "--coordinator-address, --num-processes, --process-id go together"),
        (["--coordinator-address", "localhost:1", "--num-processes", "2", "--process-id", "0"], "need a --mesh"),
        (
            ["--coordinator-address", "localhost:1", "--num-processes", "2", "--process-id", "2", "--mesh", "data=4"],
            "--process-id is 2; it must be from 0 to 1",
        ),
        (
            ["--coordinator-address", "localhost:1", "--num-processes", "3", "--process-id", "0", "--mesh", "data=4"],
            "--mesh data=4 is 4 devices, which --num-processes 3 does not divide",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    status, _, err = run_script("train", *arguments, "--run-dir", tmp_path / "run")
    assert status == 2
    assert message in err


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":12345", "localhost:99999", "foo bar:3"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=f"coordinator_address is '{address}'"):
        processes.join(address, 2, 0)


@pytest.mark.parametrize("axes", [(), ("data",)])
def test_arrays_of_several_devices_become_whole_on_one(axes: tuple[str, ...]) -> None:
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    there = jax.device_put(jnp.arange(6.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))
    here = processes.whole({"a": there})["a"]
    assert len(here.devices()) == 1
    assert here.tolist() == list(range(6))


def test_one_process_agrees_with_itself() -> None:
    assert processes.is_main()
    assert processes.agree(7) == 7
    with processes.together("go on"):
        processes.wait("nobody")
    assert not processes.join()
