"""ask.py and evaluate.py: what a trained model answers."""

import io
import json
import sys
from pathlib import Path

import ask
import jax
import pytest
from scripts import run_script

import jaxcalc
from jaxcalc import runs


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
    status, out, err = run_script("ask", small_run, "--json", stdin="1 + 1\ntwo pluss three\n\n2 + 2\n")
    first, refused, blank, last = map(json.loads, out.splitlines())
    assert (first["line"], first["prompt"]) == (1, "one plus one equals")
    error = "unknown word 'pluss'; did you mean 'plus'?"
    assert refused == {"line": 2, "question": "two pluss three", "error": error}
    assert (blank["line"], blank["question"]) == (3, "")
    assert (last["line"], last["prompt"]) == (4, "two plus two equals")
    assert (status, err) == (2, "")

    status, out, err = run_script("ask", small_run, stdin="1 + 1\ntwo pluss three\nwhat is 2 + 2?\n")
    assert [line.split(" equals")[0] for line in out.splitlines() if "→" in line] == ["one plus one", "two plus two"]
    assert (status, err) == (2, f"error: line 2: {error}\n")
    assert run_script("ask", small_run, stdin="1 + 1").status == 0


def test_ask_takes_a_question_without_quotes(small_run: Path) -> None:
    quoted = run_script("ask", small_run, "five minus two", "--json")
    assert run_script("ask", small_run, "five", "minus", "two", "--json") == quoted
    assert run_script("ask", small_run, "--json", "5", "-", "2") == quoted
    assert "line" not in json.loads(quoted.out)


def test_ask_answers_as_the_model_did_at_a_step(small_run: Path) -> None:
    run = jaxcalc.load_run(small_run)
    probabilities = []
    for step in (0, 60):
        answer = json.loads(run_script("ask", small_run, "2 + 3", "--json", "--step", step).out)
        params = runs.load_snapshot(run, step).params
        tokens, log_probs = jaxcalc.generate(params, run.task.encode("2 + 3")[None], run.task.answer_length)
        assert answer["answer"] == jaxcalc.evaluation.answer_text(run.task, tokens[0])
        assert answer["probability"] == pytest.approx(float(jax.numpy.exp(log_probs.sum())), rel=1e-4)
        probabilities.append(answer["probability"])
    assert probabilities[0] != probabilities[1]
    assert (
        run_script("ask", small_run, "2 + 3", "--json").out
        == run_script("ask", small_run, "2 + 3", "--json", "--step", 60).out
    )
    status, out, err = run_script("ask", small_run, "2 + 3", "--step", 61)
    assert (status, out) == (2, "")
    assert "has no snapshot of step 61; there are 0, 10," in err


@pytest.mark.parametrize("end", ["quit", "exit", "", None])
def test_ask_leaves_its_prompt_when_told_to(
    small_run: Path, end: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    lines = ["help", "two pluss three", "1 + 1", *([] if end is None else [end, "2 + 2"])]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(lines)))
    assert ask.main(ask.AskOptions(small_run)) == 0
    out, err = capsys.readouterr()
    assert "one plus one equals → " in out
    assert "two plus two" not in out
    assert err == f"{ask.HELP}\n{ask.HELP}\nerror: unknown word 'pluss'; did you mean 'plus'?\n"


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
