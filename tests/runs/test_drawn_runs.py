"""Runs whose problems are drawn: they are trained, resumed, asked and tested, and scripts for tables refuse them."""

import json
import shutil
from pathlib import Path
from typing import Any

import addition
import pytest
from scripts import run_script

import jaxcalc
from jaxcalc import runs
from jaxcalc.runs import checkpoint
from jaxcalc.tasks.problems import Problem


def test_the_run_says_its_task_and_its_lengths(drawn_run: Path) -> None:
    task = jaxcalc.load_run(drawn_run).task
    assert isinstance(task, jaxcalc.Arithmetic)
    assert (task.tokenizer.max_number, task.terms, task.tokenizer.notation) == (198, 2, "digits-reversed")
    summary = json.loads((drawn_run / runs.SUMMARY).read_text())
    by_digits = summary["by_digits"]
    assert sum(row["problems"] for row in by_digits.values()) == summary["n_held_out"] == 2048
    assert all(0 <= row["low"] <= row["exact_match"] <= row["high"] <= 1 for row in by_digits.values())
    assert set(summary["by_carry_chain"]) <= {"0", "1", "2"}


@pytest.mark.slow
def test_it_resumes_to_the_same_parameters(drawn_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(drawn_run, run)
    (run / runs.SUMMARY).unlink()
    shutil.rmtree(run / runs.CHECKPOINTS / "000020")
    assert run_script("train", "--resume", run).status == 0
    fingerprints = [checkpoint.read_manifest(path / runs.CHECKPOINTS, 20)["leaves"] for path in (drawn_run, run)]
    assert fingerprints[0] == fingerprints[1]


def answer_of(script: str, *arguments: object) -> dict[str, Any]:
    """Return what a script prints as JSON."""
    status, out, err = run_script(script, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def test_it_answers(drawn_run: Path) -> None:
    answer = answer_of("ask", drawn_run, "58 + forty-two")
    assert (answer["expected"], answer["drawn"], answer["runners_up"]) == (100, True, [])
    assert answer_of("watch", drawn_run, "58 + 42")["target"] == "0"
    assert answer_of("evaluate", drawn_run)["by_digits"].keys() <= {"1", "2", "3"}


def test_pairs_have_the_carry_chains_that_they_are_made_for(drawn_run: Path) -> None:
    options = [drawn_run, "--digits", "2", "--pairs", "200"]
    result = answer_of("addition", *options)
    chains = {int(chain): row["problems"] for chain, row in result["Long carry chains"]["by_carry_chain"].items()}
    assert sum(chains.values()) == 200
    assert 0 not in chains
    assert chains[2] >= 100
    assert result["Random pairs"]["held_out"]["problems"] > 5
    assert result["Extremes"]["all"]["problems"] == 6
    status, out, _ = run_script("addition", *options)
    assert status == 0
    assert "carries in a row" in out
    status, _, err = run_script("addition", drawn_run, "--digits", "3")  # numbers beyond those of the run's task
    assert status == 2
    assert "is not a problem of this task" in err


@pytest.mark.parametrize("script", ["explore", "lens"])
def test_what_needs_a_complete_table_says_so(drawn_run: Path, script: str) -> None:
    status, _, err = run_script(script, drawn_run)
    assert status == 2
    assert "complete table" in err


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
def test_options_of_the_other_kind_of_task_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    status, _, err = run_script("train", *arguments, "--run-dir", tmp_path / "run")
    assert status == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_the_extremes_are_asked() -> None:
    largest = 10**10 - 1
    assert {(0, 0), (largest, largest), (largest, 1), (999, 1), (1, 9)} <= set(addition.extremes(10))


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
