"""The findings of lens.py: verdicts follow from numbers, and an untrained model has none."""

import io
import json
import shutil
import sys
from pathlib import Path

import jax
import lens
import lens_figures
import lens_findings
import lens_measures
import lens_text
import numpy as np
import optax
import pytest
import train
from PIL import Image
from rich.console import Console

import jaxcalc
from jaxcalc.runs import cli
from jaxcalc.runs.config import KeepingConfig, ScheduleConfig, SizesConfig, TaskConfig
from jaxcalc.runs.options import TrainOptions

MODEL = SizesConfig(d_model=32, n_heads=2, d_ff=64, n_layers=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    paths = [folder / "one", folder / "two"]
    for seed, path in enumerate(paths):
        options = TrainOptions(
            run_dir=path,
            task=TaskConfig(("plus", "minus"), 30),
            model=MODEL,
            schedule=ScheduleConfig(seed, steps=300, batch_size=128),
            keeping=KeepingConfig(snapshots=4),
        )
        assert train.main(options) == 0
    return paths


def look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["lens.py", *map(str, arguments)])
    capsys.readouterr()
    status = cli.run_script(lens.main, lens.LensOptions)
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_findings_are_written_and_said(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = look(monkeypatch, capsys, *runs)
    assert status == 0
    assert "Saved 11 figures" in err
    assert "measuring the snapshot of step 0 …" in err
    assert max(map(len, out.splitlines())) <= 80
    folder = runs[0] / "lens"
    names = {"question", "attention", "ablation", "probes", "numbers", "periods", "output", "operation", "directions"}
    names |= {"learning", "landscape"}
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.svg")} == names

    result = json.loads((folder / "findings.json").read_text())
    markdown = (folder / "findings.md").read_text()
    assert [(swap["from"], swap["to"]) for swap in result["measures"]["swaps"]] == [
        ("plus", "minus"),
        ("minus", "plus"),
    ]
    assert len(result["stable"]) == len(result["findings"]) == 23
    for claim in result["findings"]:
        assert claim["holds"] == (claim["value"] > claim["control"] + claim["margin"])
        assert (f"**holds**. {claim['text'][0].upper()}{claim['text'][1:]}" in markdown) == claim["holds"]
    assert sum(claim["holds"] for claim in result["findings"]) > 10
    assert "seed 0 | seed 1" in markdown
    table = result["while_it_learns"]["snapshots"]
    assert [row["step"] for row in table] == jaxcalc.runs.checkpoint_steps(runs[0])
    assert table[0]["loss"] > table[-1]["loss"]
    assert table[-1]["exact_match_all"] > 0.3


@pytest.mark.slow
def test_measures_are_those_of_the_model(runs: list[Path]) -> None:
    run = jaxcalc.load_run(runs[0])
    found = json.loads((runs[0] / "lens" / "findings.json").read_text())["measures"]
    evaluation = jaxcalc.evaluate(run.params, run.task, np.arange(len(run.task.tokens)))
    for name, row in evaluation.by_operation().items():
        assert found["exact_match"][name] == pytest.approx(row["exact_match"], abs=1e-6)
    example = json.loads((runs[0] / "lens" / "findings.json").read_text())["question"]
    sizes = np.array(example["attention"]["block 0 head 1"]).sum(axis=1)
    assert len(example["words"]) == len(sizes)
    np.testing.assert_allclose(sizes, 1, atol=1e-5)
    contributions = sum(values[0] for values in found["contributions"].values())
    assert contributions > 1
    assert found["p_right_by_stage"][-1][0] > 0.3


@pytest.mark.slow
def test_nothing_is_found_in_an_untrained_model(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = look(monkeypatch, capsys, runs[0], "--step", "0", "--json", "--out", runs[0] / "blank")
    assert status == 0
    result = json.loads(out)
    assert [claim["claim"] for claim in result["findings"] if claim["holds"]] == []
    assert "None of 23 claims holds" in (runs[0] / "blank" / "findings.md").read_text()


def test_a_claim_holds_only_above_every_control() -> None:
    def holds(value: float, controls: list[float]) -> bool:
        return lens_findings.make_claim("t", "n", "text", value, controls, 0.1, "share")["holds"]

    assert holds(0.5, [0.1, 0.39])
    assert not holds(0.5, [0.1, 0.41])


def test_claims_are_tables_of_80_columns() -> None:
    text = 'when the stream at "equals" comes from another question, the right answer loses 26.4 nats'
    claims = [
        lens_findings.make_claim(
            "operations", 'after the embeddings, "equals" carries it', text, 26.4, [0.1], 0.5, "nats"
        ),
        lens_findings.make_claim(
            "output", "a stage says the word", "nobody says it", 0.003, [0.012], 0.05, "probability"
        ),
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(*lens_text.claim_tables(claims))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    held, not_held = (next(line for line in lines if start in line) for start in ("  holds", "does not"))
    assert "26.40 nats" in held
    assert "0.10 nats" in held
    assert "Operations" in lines[0]
    assert not_held.split()[-4:] == ["0", "%", "1", "%"]


def test_a_question_is_one_picture_and_measures_nothing(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lens, "measure", None)
    status, out, err = look(monkeypatch, capsys, small_run, "--question", "two plus three", "--out", tmp_path)
    assert (status, err) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"question.png", "question.svg"}
    said, path = out.splitlines()
    assert said.startswith('"two plus three": when the answer is due, block 0 head ')
    assert path == str(tmp_path / "question.png")
    with Image.open(path) as drawn:
        assert drawn.width >= 1_600  # twice a page's width


def test_every_name_of_a_head_is_the_one_that_blame_gives() -> None:
    shapes = jax.eval_shape(lambda key: jaxcalc.init(key, jaxcalc.ModelConfig(35, 16, 2, 16, 2)), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    named = [name for _, _, name in lens_measures.heads(params)]
    tx = optax.sgd(0.1)
    step = jaxcalc.steps.take_step(tx, params, tx.init(params), params)  # any gradient will do
    assert set(named) <= jaxcalc.blame.assign_blame(params, step, "head").nats.keys()


def test_the_learning_figure_says_when_each_operation_was_right() -> None:
    def snapshot(step: int, right: float) -> lens_measures.Snapshot:
        probes = dict.fromkeys(("magnitude", "ones digit", "tens digit", "parity"), 0.5)
        scores = {"exact_match": {"minus": 0.5, "divided by": right}, "answer_probes": probes}
        return {"step": step, "loss": 1.0, "exact_match_all": 0.7, "sharpness": 2.0, "sharpness_error": 0.1, **scores}

    history: lens_measures.History = {
        "n_problems": 10,
        "batch_size": 128,
        "snapshots": [snapshot(0, 0.1), snapshot(1_290, 0.95)],
        "mistakes_step": 0,
        "mistakes": {},
    }
    title = lens_figures.learning(history).get_suptitle().replace("\N{NO-BREAK SPACE}", " ")
    assert title == "90 % right: minus (not yet), divided by (step 1,290)"
    assert "divided by: 90 % of the whole table is right by step 1,290" in "".join(lens_text.learning_lines(history))


@pytest.mark.slow
def test_what_cannot_be_looked_at_is_one_line(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    options = TrainOptions(
        run_dir=other,
        task=TaskConfig(("plus",), 9),
        model=MODEL,
        schedule=ScheduleConfig(steps=1, batch_size=8),
        keeping=KeepingConfig(snapshots=0),
    )
    train.main(options)
    for arguments, message in (
        ([], "name at least one run folder"),
        ([tmp_path / "nowhere"], "there is no run folder"),
        ([runs[0], other], "has other operations, numbers or sizes"),
        ([*runs, "--step", "0"], "leave out the other runs"),
        ([*runs, "--question", "two plus three"], "leave out the other runs"),
        ([runs[0], "--step", "1"], "has no snapshot of step 1; there are 0"),
        ([runs[0], "--question", "30 + 30"], "'30 + 30' has no answer from 0 to 30"),
        ([runs[0], "--question", "two plus"], "there is no number after 'plus'"),
        ([runs[0], "--out", runs[0] / "config.json"], "cannot write to"),
    ):
        status, _, err = look(monkeypatch, capsys, *arguments)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
    shutil.rmtree(other / "checkpoints")
    status, out, _ = look(monkeypatch, capsys, other)  # one operation, and no snapshots
    assert status == 0
    assert "While it learns" not in out
    assert "Operations" not in out
