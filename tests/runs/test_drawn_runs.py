"""Runs whose problems are drawn: trained, resumed, asked, tested; what needs a complete table says so."""

import json
import subprocess
import sys
from pathlib import Path

import addition
import ask
import evaluate
import explore
import lens
import pytest
import train
import watch

import jaxcalc
from jaxcalc import runs
from jaxcalc.runs import checkpoint, report
from jaxcalc.tasks.problems import Problem

TINY = [
    "--notation", "digits-reversed", "--ops", "plus", "--max-number", "198", "--model.d-model", "16",
    "--model.n-heads", "2", "--model.d-ff", "32", "--model.n-layers", "1", "--batch-size", "64",
    "--steps", "20", "--snapshots", "2", "--json",
]  # fmt: skip


def script(monkeypatch: pytest.MonkeyPatch, main, options, *arguments: object, defaults=lambda _: None) -> int:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    return report.run_script(main, options, defaults)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "run"
    subprocess.run([sys.executable, train.__file__, *TINY, "--run-dir", path], check=True, capture_output=True)
    return path


def test_the_run_says_its_task_and_its_lengths(run: Path) -> None:
    task = jaxcalc.load_run(run).task
    assert isinstance(task, jaxcalc.Arithmetic)
    assert (task.tokenizer.max_number, task.terms, task.tokenizer.notation) == (198, 2, "digits-reversed")
    summary = json.loads((run / runs.SUMMARY).read_text())
    by_digits = summary["by_digits"]
    assert sum(row["problems"] for row in by_digits.values()) == summary["n_held_out"] == 2048
    assert all(0 <= row["low"] <= row["exact_match"] <= row["high"] <= 1 for row in by_digits.values())
    assert set(summary["by_carry_chain"]) <= {"0", "1", "2"}


@pytest.mark.slow
def test_it_resumes_to_the_same_parameters(run: Path, tmp_path: Path) -> None:
    stopped = [option if option != "20" else "10" for option in TINY]
    half = [*stopped, "--schedule-steps", "20", "--run-dir", tmp_path / "run"]
    subprocess.run([sys.executable, train.__file__, *half], check=True, capture_output=True)
    more = ["--resume", tmp_path / "run", "--steps", "20", "--json"]
    subprocess.run([sys.executable, train.__file__, *more], check=True, capture_output=True)
    marks = [checkpoint.read_manifest(path / runs.CHECKPOINTS, 20)["leaves"] for path in (run, tmp_path / "run")]
    assert marks[0] == marks[1]


def test_it_answers(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(monkeypatch, ask.main, ask.AskOptions, run, "58 + forty-two", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["expected"], answer["drawn"], answer["runners_up"]) == (100, True, [])
    assert script(monkeypatch, watch.main, watch.WatchOptions, run, "58 + 42", "--json") == 0
    assert json.loads(capsys.readouterr().out)["target"] == "0"
    assert script(monkeypatch, evaluate.main, evaluate.EvaluateOptions, run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["by_digits"].keys() <= {"1", "2", "3"}


def test_pairs_have_the_carry_chains_that_they_are_made_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [run, "--digits", "2", "--pairs", "200"]
    assert script(monkeypatch, addition.main, addition.AdditionOptions, *options, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    chains = {int(chain): row["problems"] for chain, row in result["Long carry chains"]["by_carry_chain"].items()}
    assert sum(chains.values()) == 200
    assert 0 not in chains
    assert chains[2] >= 100
    assert result["Random pairs"]["held_out"]["problems"] > 5
    assert script(monkeypatch, addition.main, addition.AdditionOptions, *options) == 0
    assert "carries in a row" in capsys.readouterr().out
    # Numbers that the run's task does not hold are refused.
    assert script(monkeypatch, addition.main, addition.AdditionOptions, run, "--digits", "3") == 2
    assert "is not a problem of this task" in capsys.readouterr().err


def test_what_needs_a_complete_table_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, options in ((explore, explore.ExploreOptions), (lens, lens.LensOptions)):
        assert script(monkeypatch, module.main, options, run) == 2
        assert "complete table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--notation", "digits", "--split", "family"], "--split is for a complete table; leave out --notation"),
        (["--notation", "words", "--copies", "2"], "--copies is for a complete table"),
        (["--terms", "3"], "--terms is for problems that are drawn; add --notation"),
        (["--notation", "words", "--terms", "3"], "only plus and minus"),
        (["--notation", "words", "--max-number", "1000000000"], "max_number is 1000000000"),
    ],
)
def test_options_of_the_other_kind_of_task_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert script(monkeypatch, train.main, train.TrainOptions, *arguments, "--run-dir", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_pair_with_a_chain_carries_over_so_many_places() -> None:
    rng = addition.random.Random(0)
    for chain in range(1, 11):
        for _ in range(50):
            found = jaxcalc.carry_chain(Problem(addition.with_chain(rng, 10, chain), ("plus",)))
            assert found is not None
            assert found >= chain


def test_a_carry_chain_is_what_adding_by_hand_finds() -> None:
    rng = addition.random.Random(0)
    for _ in range(2_000):
        a, b = (rng.randrange(10 ** rng.randrange(1, 12)) for _ in range(2))
        assert (
            jaxcalc.carry_chain(Problem((a, b), ("plus",)))
            == jaxcalc.carry_chain(Problem((a + b, b), ("minus",)))
            == by_hand(a, b)
        )
    assert jaxcalc.carry_chain(Problem((2, 3), ("times",))) is None
    assert jaxcalc.carry_chain(Problem((95, 17, 2), ("plus", "minus"))) == 2


def by_hand(a: int, b: int) -> int:
    carry = run = longest = 0
    while a or b:
        carry = int(a % 10 + b % 10 + carry >= 10)
        run = run + 1 if carry else 0
        a, b, longest = a // 10, b // 10, max(longest, run)
    return longest
