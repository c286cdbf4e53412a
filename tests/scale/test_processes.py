"""Several processes: two of two devices each train what one of four does; one of them writes and prints."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import pytest
import train

import jaxcalc
from jaxcalc import runs
from jaxcalc.errors import InputError
from jaxcalc.runs import checkpoint, cli
from jaxcalc.scale import processes

TINY = [
    "--ops", "plus", "--max-number", "9", "--model.d-model", "16", "--model.n-heads", "2", "--model.d-ff", "32",
    "--model.n-layers", "1", "--batch-size", "16", "--optimizer", "adamw", "--steps", "20", "--snapshots", "2",
    "--mesh", "data=4", "--json",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(*options: object) -> list[subprocess.Popen[str]]:
    """Start two processes that train with the same options."""
    where = ["--coordinator-address", f"localhost:{free_port()}", "--num-processes", "2", "--process-id"]
    return [
        subprocess.Popen([sys.executable, train.__file__, *where, str(index), *map(str, options)],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]  # fmt: skip


def together(*options: object) -> list[tuple[str, str]]:
    """Return what two processes printed to stdout and stderr, both of which ended well."""
    started = start(*options)
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return said


def alone(*options: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, train.__file__, *map(str, options)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runs_of_both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("processes")
    alone(*TINY, "--run-dir", folder / "one")
    return folder / "one", folder / "two", together(*TINY, "--run-dir", folder / "two")


def test_two_processes_train_what_one_does(runs_of_both: tuple[Path, Path, Any]) -> None:
    one, two, _ = runs_of_both
    params = [jaxcalc.load_run(path).params for path in (one, two)]
    chex.assert_trees_all_close(*params, rtol=1e-4, atol=1e-5)  # sums in another order
    lines = [[line for line in runs.read_metrics(path) if "loss" in line] for path in (one, two)]
    assert [line["step"] for line in lines[1]] == list(range(1, 21))
    for mine, theirs in zip(*lines, strict=True):
        chex.assert_trees_all_close(mine, theirs, rtol=1e-4)
    first = [checkpoint.read_manifest(path / runs.CHECKPOINTS, 0) for path in (one, two)]
    assert first[0]["leaves"] == first[1]["leaves"]  # before any sum, bit for bit
    assert [manifest["environment"]["processes"] for manifest in first] == [1, 2]


def test_only_process_0_writes_and_prints(runs_of_both: tuple[Path, Path, Any]) -> None:
    _, two, (main, other) = runs_of_both
    assert json.loads(main[0])["steps"] == 20
    assert other == ("", "")
    assert {path.name for path in two.iterdir()} == {
        runs.CONFIG, runs.METRICS, runs.SUMMARY, runs.MODEL, runs.CURVE, runs.CHECKPOINTS, ".lock",
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(runs_of_both: tuple[Path, Path, Any]) -> None:
    one, two, _ = runs_of_both
    together("--resume", one, "--steps", "30", "--json")
    alone("--resume", two, "--steps", "30", "--json", "--mesh", "data=2,model=2")
    params = [jaxcalc.load_run(path).params for path in (one, two)]
    chex.assert_trees_all_close(*params, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_cluster_that_jax_detects_needs_no_flags(tmp_path: Path) -> None:
    """Two processes as Slurm starts them, each with one device."""
    options = [*TINY[: TINY.index("--mesh")], "--mesh", "data=2", "--json", "--run-dir", tmp_path / "run"]
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    started = []
    for index in range(2):
        slurm = {**job, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        started.append(
            subprocess.Popen([sys.executable, train.__file__, *map(str, options)], env={**os.environ, **slurm},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert json.loads(said[0][0])["steps"] == 20
    assert said[1] == ("", "")
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
def test_flags_that_do_not_fit_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--run-dir", str(tmp_path / "run")])
    assert cli.run_script(train.main, train.TrainOptions, train.defaults) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":12345", "localhost:99999", "foo bar:3"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=f"coordinator_address is '{address}'"):
        processes.join(address, 2, 0)


def test_one_process_agrees_with_itself() -> None:
    assert processes.is_main()
    assert processes.agree(7) == 7
    tree = {"a": 1}
    assert processes.whole(tree) is tree
    with processes.together("go on"):
        processes.wait("nobody")
    assert not processes.join()
