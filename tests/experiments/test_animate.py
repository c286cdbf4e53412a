"""animate.py draws a frame for each snapshot."""

from pathlib import Path

from PIL import Image
from scripts import run_script

from jaxcalc import runs


def test_each_snapshot_is_a_frame(small_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "learning.gif"
    ended = run_script("animate", small_run, "two plus three", "--output", path)
    assert ended.status == 0, ended.err
    steps = runs.checkpoint_steps(small_run)
    assert ended.out.startswith(f"{path}: {len(steps)} frames")
    with Image.open(path) as drawn:
        assert getattr(drawn, "n_frames", 1) == len(steps)


def test_a_run_that_draws_its_problems_is_refused(drawn_run: Path) -> None:
    ended = run_script("animate", drawn_run)
    assert ended.status == 2
    assert "only a run with a table" in ended.err
