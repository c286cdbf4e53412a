"""gpu.py runs on a CPU, and its profile names operations."""

import json
from pathlib import Path
from types import SimpleNamespace

import gpu
import pytest
from scripts import run_script


def test_a_profile_adds_up_what_is_called_alike_on_the_device() -> None:
    def line(name: str, **nanoseconds: int) -> SimpleNamespace:
        events = [SimpleNamespace(name=name.replace("_dot_", "."), duration_ns=n) for name, n in nanoseconds.items()]
        return SimpleNamespace(name=name, events=events)

    python = line("python", step=100)
    threads = line("tf_XLAEigen/1", dot_dot_1=1, dot_dot_23=2, fusion_4=3, **{"ThunkExecutor::Execute": 50})
    host = SimpleNamespace(name="/host:CPU", lines=[python, threads])
    assert gpu.by_kind(SimpleNamespace(planes=[host])) == {"dot": 3, "fusion": 3}
    device = SimpleNamespace(name="/device:GPU:0", lines=[line("Stream #1(Compute)", gemm=7), line("Steps", one=9)])
    assert gpu.by_kind(SimpleNamespace(planes=[host, device])) == {"gemm": 7}


@pytest.mark.slow
def test_it_runs_on_a_cpu_and_says_so(tmp_path: Path) -> None:
    ended = run_script("gpu", "--json", tmp_path / "gpu.json", "--profile", tmp_path / "profile")
    assert ended.status == 0
    assert "JAX finds no accelerator" in ended.err
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result) == ["ladder", "populations", "decoding", "profile"]
    assert all(section["conditions"]["platform"] == "cpu" for section in result.values())
    assert [row["system"] for row in result["ladder"]["rows"]] == ["100K"]
    assert 0 < sum(row["share"] for row in result["profile"]["rows"]) <= 1
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ended = run_script("gpu", "--json", tmp_path / "nowhere" / "gpu.json")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "there is no folder" in ended.err
