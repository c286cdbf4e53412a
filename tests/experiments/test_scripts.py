"""What every script of experiments/ has in common, and what export.py says of a prompt."""

import re
from pathlib import Path
from typing import Any

import export
import pytest
from scripts import EXPERIMENTS, run_script

import jaxcalc

SCRIPTS = [path.stem for path in sorted(EXPERIMENTS.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


def test_all_scripts_are_found() -> None:
    assert {
        "train",
        "ask",
        "evaluate",
        "watch",
        "lens",
        "landscape",
        "ledger",
        "removal",
        "horizon",
        "explore",
        "export",
        "addition",
        "sweep",
        "data_efficiency",
        "benchmark",
        "gpu",
        "scaling",
        "larger_models",
        "animate",
    } == {*SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_its_options_and_prints_json(name: str) -> None:
    ended = run_script(name, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert re.search(r"--json\b", ended.out)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_begins_with_its_command(name: str) -> None:
    docstring = (EXPERIMENTS / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert f"python experiments/{name}.py" in docstring


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run_script(name, "--help").out.splitlines())) <= 80


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "command",
    [
        "ask runs/small two plus three",
        "ask runs/small six times six",
        "evaluate runs/small",
        "export runs/small --out model.stablehlo --table",
        "ask runs/drawn one hundred and two plus ninety six",
        "explore runs/small --no-open --output page.html",
        pytest.param("landscape runs/small --out figures", marks=SLOW),
        pytest.param("animate runs/small --output learning.gif", marks=SLOW),
        pytest.param("addition runs/drawn --digits 2 --pairs 20", marks=SLOW),
        pytest.param("evaluate runs/drawn", marks=SLOW),
        pytest.param("landscape runs/drawn --out figures", marks=SLOW),
        pytest.param("scaling --paper-only", marks=SLOW),
    ],
)
def test_what_is_printed_fits_80_columns(
    command: str, small_run: Path, drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "small").symlink_to(small_run)
    (tmp_path / "runs" / "drawn").symlink_to(drawn_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    ended = run_script(*command.split())
    assert ended.status == 0, ended.err
    assert [line for line in ended.out.splitlines() if len(line) > 80] == []


NUMBERS = {
    "words": "numbers in words, one token per word",
    "digits": "numbers in digits, one token per digit, the highest digit first",
    "digits-reversed": "numbers in digits, one token per digit, the lowest digit first",
}


def test_the_exported_vocabulary_says_how_the_prompt_of_a_table_is_laid_out() -> None:
    task = jaxcalc.calculator(max_number=30)
    layout = f"number, operation, number, equals_id; {NUMBERS['words']}; padded on the left with pad_id"
    check_layout(task, layout, "12 + 5", "<pad> <pad> twelve plus five equals")


@pytest.mark.parametrize(
    ("notation", "side", "prompt"),
    [
        ("digits", "left", "1 2 plus <pad> 5 plus 3 1 equals"),
        ("digits-reversed", "right", "2 1 plus 5 <pad> plus 1 3 equals"),
    ],
)
def test_the_exported_vocabulary_says_how_a_drawn_prompt_is_laid_out(notation: Any, side: str, prompt: str) -> None:
    task = jaxcalc.arithmetic(max_number=99, operations=("plus",), notation=notation, terms=3)
    order = "number, operation, number, operation, number, equals_id"
    padding = f"each number padded on the {side} with pad_id to 2 tokens"
    check_layout(task, f"{order}; {NUMBERS[notation]}; {padding}", "12 + 5 + 31", prompt)


def check_layout(task: jaxcalc.Task, layout: str, question: str, prompt: str) -> None:
    assert task.tokenizer.decode(task.encode(question)) == prompt
    vocabulary = export.vocabulary_of(task)
    assert vocabulary["input"] == f"int32 [batch, prompt_length]: {layout}"
    assert vocabulary["prompt_length"] == len(prompt.split())
