"""The ledger of a run: a replay in the run's own bits, whose rows add up, or a refusal."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scripts import run_script

import jaxcalc
from jaxcalc import InputError
from jaxcalc.runs import account, replay
from jaxcalc.runs.folder import calculator_of


@pytest.fixture(scope="module")
def whole(small_run: Path) -> account.Ledger:
    return jaxcalc.load_run(small_run).ledger("two plus three")


def test_every_level_adds_up_to_the_drop(whole: account.Ledger) -> None:
    assert whole.drop > 1
    assert abs(whole.remainder) < 0.01 * whole.drop
    assert whole.steps.tolist() == list(range(60))
    by_step = whole.by_step.sum()
    assert sum(added.sum() for added in whole.by_head.values()) == pytest.approx(by_step)
    lessons = sum(row.nats for row in whole.by_lesson)
    assert lessons + whole.weight_decay + whole.before + whole.rounding == pytest.approx(by_step, abs=1e-5)
    assert sum(whole.by_relation.values()) == pytest.approx(lessons)
    assert whole.before == 0
    assert abs(whole.rounding) < 1e-3
    assert sum(row.visits for row in whole.by_lesson) == 60 * 32


def test_the_surprise_is_that_of_the_snapshots(small_run: Path, whole: account.Ledger) -> None:
    run = jaxcalc.load_run(small_run)
    for step in run.steps:
        probability = run.ask("two plus three", step)["probability"]
        answered = run.ask("two plus three", step)["answer"]
        if answered == "five":
            assert np.exp(-whole.surprise[step]) == pytest.approx(probability, rel=1e-4)


def test_many_questions_at_once_are_each_alone_and_until_ends_it(small_run: Path, whole: account.Ledger) -> None:
    run = jaxcalc.load_run(small_run)
    two = account.ledgers(run.path, run.config, calculator_of(run), ["one plus one", "two plus three"], until=30)
    assert [len(ledger.steps) for ledger in two] == [30, 30]
    np.testing.assert_allclose(two[1].surprise, whole.surprise[:31], atol=1e-5)
    np.testing.assert_allclose(two[1].by_step, whole.by_step[:30], atol=2e-3)


def test_what_teaches_a_wrong_answer_is_another_account(small_run: Path) -> None:
    wrong = jaxcalc.load_run(small_run).ledger("two plus three", until=20, answer=4)
    assert wrong.question == "two plus three equals four"
    assert abs(wrong.remainder) < 0.01 * max(abs(wrong.drop), account.SMALLEST_DROP)


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("six plus six", {}, "not in the task's table"),
        ("two plus three", {"until": 0}, "until is 0; it must be from 1 to 60"),
        ("two plus three", {"until": 61}, "until is 61"),
        ("two plus three", {"answer": 7}, "the answer is 7; it must be from 0 to 6"),
    ],
)
def test_what_has_no_account_is_refused(small_run: Path, question: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        jaxcalc.load_run(small_run).ledger(question, **options)


def test_another_number_of_devices_is_refused(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay.jax, "device_count", lambda: 3)
    with pytest.raises(InputError, match=r"was trained on 8 devices, and JAX has 3 here.*JAX_NUM_CPU_DEVICES=8"):
        jaxcalc.load_run(small_run).ledger("two plus three")


def test_another_optimizer_is_refused_with_the_first_leaf(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = jaxcalc.make_optimizer("muon", 60, 0.01)  # as other software would take another step
    monkeypatch.setattr("jaxcalc.runs.config.RunConfig.make_optimizer", lambda self, clip=True: other)
    with pytest.raises(InputError, match=r"does not end in its checkpoint of step 60: \d+ of \d+ leaves differ, first"):
        jaxcalc.load_run(small_run).ledger("two plus three")


@pytest.mark.slow
def test_a_run_that_draws_its_problems_is_refused(drawn_run: Path) -> None:
    with pytest.raises(InputError, match="were drawn"):
        jaxcalc.load_run(drawn_run).ledger("two plus three")


def test_the_script_says_when_and_from_what_it_was_learned(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "ledger.png"
    ended = run_script("ledger", small_run, "two plus three", "--compare", "one plus one", "--out", out)
    assert ended.status == 0, ended.err
    for said in ("two plus three equals five", "one plus one equals two", "a drop of", "The 20 lessons"):
        assert said in ended.out
    assert out.read_bytes().startswith(b"\x89PNG")
    ended = run_script("ledger", small_run, "two plus three", "--until", 20, "--json", "--out", out)
    (found,) = json.loads(ended.out)
    assert found["question"] == "two plus three equals five"
    assert len(found["steps"]) == 20
    assert sum(row["nats"] for row in found["by_lesson"]) == pytest.approx(found["drop"], abs=0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--wrong", "--compare", "one plus one"], "do not go together"),
        (["--out", "missing/ledger.png"], "there is no folder missing"),
        (["--out", "ledger.txt"], "its name must end in .png, .svg, .pdf"),
    ],
)
def test_the_script_refuses_before_it_computes(small_run: Path, words: list[str], message: str) -> None:
    ended = run_script("ledger", small_run, "two plus three", *words)
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert message in ended.err


def test_a_stopped_script_leaves_nothing(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "ledger.png"
    monkeypatch.setattr(os, "fsync", stop)  # while the figure is written
    with pytest.raises(KeyboardInterrupt):
        run_script("ledger", small_run, "two plus three", "--until", 20, "--out", out)
    assert not [*tmp_path.iterdir()]


def test_the_script_explains_a_wrong_answer_and_refuses_a_right_one(small_run: Path, tmp_path: Path) -> None:
    run, out = jaxcalc.load_run(small_run), tmp_path / "ledger.png"
    texts = [f"{a} plus {b}" for a in range(4) for b in range(3)]
    answers = {text: run.ask(text) for text in texts}
    wrong = next(text for text, answer in answers.items() if not answer["correct"] and answer["value"] is not None)
    right = next(text for text, answer in answers.items() if answer["correct"])
    ended = run_script("ledger", small_run, wrong, "--wrong", "--json", "--until", 20, "--out", out)
    assert json.loads(ended.out)[0]["question"].endswith(f"equals {answers[wrong]['answer']}")
    assert "--wrong needs a wrong number" in run_script("ledger", small_run, right, "--wrong").err
