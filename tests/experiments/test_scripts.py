"""What every script of experiments/ has in common, and what export.py says of a prompt."""

import re
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
        "explore",
        "export",
        "addition",
        "sweep",
        "data_efficiency",
        "benchmark",
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
