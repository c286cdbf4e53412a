"""ask.py and evaluate.py: what a trained model answers."""

import json
from pathlib import Path

import pytest
from scripts import run_script


def test_ask_answers(small_run: Path) -> None:
    status, out, _ = run_script("ask", small_run, "2 + 3", "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["prompt"] == "two plus three equals"
    assert answer["expected"] == 5
    assert answer["correct"] == (answer["value"] == 5)
    assert answer["membership"] in ("training", "held out")
    assert 0 < answer["probability"] <= 1
    assert len(answer["runners_up"]) == 4
    total = answer["probability"] + sum(other["probability"] for other in answer["runners_up"])
    assert total <= 1.0001
    assert answer["value"] not in [other["value"] for other in answer["runners_up"]]

    status, out, _ = run_script("ask", small_run, "two plus three")
    assert status == 0
    assert "two plus three equals → " in out
    assert "runners-up: " in out
    assert "This problem was" in out


@pytest.mark.parametrize(
    ("question", "truth"), [("6 + 6", "12"), ("2 - 3", "-1"), ("5 / 2", "no whole number"), ("6 x 6", "36")]
)
def test_ask_says_when_a_problem_is_outside_the_training_range(small_run: Path, question: str, truth: str) -> None:
    status, out, _ = run_script("ask", small_run, question)
    assert status == 0
    assert f"The true answer is {truth}: outside what the model was trained on" in out
    assert json.loads(run_script("ask", small_run, question, "--json")[1])["correct"] is False


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the prompt is empty"),
        ("two pluss three", "unknown word 'pluss'; did you mean 'plus'?"),
        ("7 + 1", "number out of range: '7'"),
        ("one plus two plus three", "2 operations"),
        ("one divided by zero", "division by zero"),
        ("one plus " * 1000, "at most 1,000"),
        ("<script>alert(1)</script>", "unknown word '<'"),
    ],
)
def test_ask_refuses_what_is_no_question_in_one_line(small_run: Path, question: str, message: str) -> None:
    status, out, err = run_script("ask", small_run, question)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_ask_reads_questions_line_by_line(small_run: Path) -> None:
    status, out, err = run_script("ask", small_run, "--json", stdin="1 + 1\ntwo pluss three\n2 + 2\n")
    prompts = [json.loads(line)["prompt"] for line in out.splitlines()]
    assert prompts == ["one plus one equals", "two plus two equals"]
    assert "unknown word 'pluss'" in err
    assert status == 2


def test_evaluate_agrees_with_the_summary(small_run: Path) -> None:
    summary = json.loads((small_run / "summary.json").read_text())
    status, out, _ = run_script("evaluate", small_run, "--json")
    result = json.loads(out)
    assert status == 0
    for name in ("held_out_exact_match", "train_exact_match", "by_operation"):
        assert result[name] == summary[name]
    assert [error["problem"] for error in result["errors"]] == [error["problem"] for error in summary["errors"]]
    status, out, _ = run_script("evaluate", small_run)
    assert "Exact match" in out
    assert "problems decoded in" in out


@pytest.mark.parametrize("script", ["ask", "evaluate", "watch"])
def test_a_run_folder_that_is_missing_is_one_line(tmp_path: Path, script: str) -> None:
    status, _, err = run_script(script, tmp_path / "nowhere", *(["1 + 1"] if script != "evaluate" else []))
    assert status == 2
    assert "there is no run folder" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("script", ["ask", "evaluate"])
def test_a_run_that_is_unfinished_or_of_other_code_is_one_line(small_run: Path, tmp_path: Path, script: str) -> None:
    question = ["1 + 1"] if script == "ask" else []
    config = (small_run / "config.json").read_text()
    for text, message in ((config, "is unfinished"), (config.replace('"format": 4', '"format": 0'), "has format 0")):
        (tmp_path / "config.json").write_text(text)
        status, _, err = run_script(script, tmp_path, *question)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
