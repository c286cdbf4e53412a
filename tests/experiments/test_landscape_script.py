"""landscape.py finds the three steps along a gradient, and draws what it says."""

import json
from pathlib import Path

import landscape
import numpy as np
import pytest
from scripts import run_script

from jaxcalc import InputError, runs


def test_a_step_is_too_small_right_or_too_large() -> None:
    rates = np.arange(1, 60) / 10
    found = landscape.three_strides(4.0, (2 - rates) ** 2)  # falls to 0 at 2, back at 4 at rate 4, 8 at 4.83
    assert {name: rates[index] for name, index in found.items()} == {"too small": 0.1, "right": 2.0, "too large": 4.9}


def test_a_second_valley_is_not_the_right_one() -> None:
    losses = np.array([2.9, 2.8, 1.5, 2.0, 2.5, 2.4, 0.1, 0.0])
    assert landscape.three_strides(3.0, losses) == {"too small": 0, "right": 2, "too large": 4}


def test_where_every_step_helps_none_is_too_large() -> None:
    assert landscape.three_strides(1.0, np.array([0.95, 0.92, 0.5, 0.2, 0.1])) == {"too small": 1, "right": 4}
    with pytest.raises(InputError, match="no direction downhill"):
        landscape.three_strides(1.0, np.array([1.1, 0.2]))


@pytest.mark.slow
def test_it_draws_both_and_tells_the_numbers_drawn(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "GRID", 5)
    ended = run_script("landscape", small_run, "two plus three", "--out", tmp_path, "--json")
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    gradient, path = found["gradient"], found["path"]
    assert gradient["says"] != gradient["target"] == "five"
    assert [stride["name"] for stride in gradient["strides"]][:2] == ["too small", "right"]
    assert gradient["strides"][1]["loss"] < 0.9 * gradient["before"]
    assert path["steps"] == runs.checkpoint_steps(small_run)
    assert np.shape(path["grid"]) == (len(path["ys"]), len(path["xs"]))
    assert {file.name for file in tmp_path.iterdir()} == {"path.png", "gradient.png"}


def test_what_cannot_be_drawn_is_one_line(small_run: Path) -> None:
    for arguments, message in (
        (["two plus"], "there is no number after 'plus'"),
        (["two plus three", "--step", "1"], "has no snapshot of step 1; there are 0"),
        (["six plus six"], "has no answer from 0 to 6"),
    ):
        ended = run_script("landscape", small_run, *arguments)
        assert (ended.status, ended.out) == (2, "")
        assert message in ended.err
        assert ended.err.count("\n") == 1
