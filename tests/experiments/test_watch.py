"""What watch.py shows, beyond what every script keeps."""

import json
import sys
from pathlib import Path

import pytest
import train
import watch

from jaxcalc.runs import report

TINY = [
    *("--optimizer", "sgd", "--learning-rate", "0.1", "--ops", "plus", "--max-number", "6", "--held-out", "0.2"),
    *("--batch-size", "8", "--schedule-steps", "4", "--steps", "8", "--snapshots", "1"),
    *("--model.d-model", "16", "--model.n-heads", "2", "--model.d-ff", "24", "--model.n-layers", "1"),
]


def test_the_learning_rate_is_that_of_the_runs_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was resumed for more steps has a schedule that ended before it: 1 % of the peak from then on."""
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--run-dir", str(run)])
    assert report.run_script(train.main, train.TrainOptions, train.defaults) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["watch.py", str(run), "two plus three", "--step", "8", "--json"])
    assert report.run_script(watch.main, watch.WatchOptions) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["optimizer"] == {"name": "sgd", "of": "the run's own", "learning_rate": pytest.approx(0.001)}
    weight = result["weight"]
    assert weight["step"] == pytest.approx(-0.001 * weight["state"]["trace"], rel=1e-4)
