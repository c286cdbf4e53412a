"""A run that is read back is the run that was written, or an error names the file that is not."""

import csv
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import export
import jax
import numpy as np
import pytest
from evaluate import read_problems
from scripts import SMALL, run_script

import jaxcalc
from jaxcalc import InputError, runs
from jaxcalc.runs.text import percent


def shown(run: Path, step: int | None = None) -> dict[str, Any]:
    """Return every number that scripts and pages show of a run; of its snapshots those of one step."""
    loaded = jaxcalc.load_run(run)
    snapshot = None if step is None else jaxcalc.fingerprint(runs.load_snapshot(loaded, step).params)
    return {
        "config": loaded.config,
        "summary": loaded.summary,
        "params": jaxcalc.fingerprint(loaded.params),
        "metrics": runs.read_metrics(run),
        "snapshot": snapshot,
    }


def flip(path: Path, chance: random.Random) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "n_flips", "least"),
    [("config.json", 60, 0.5), ("summary.json", 40, 0.9), ("metrics.jsonl", 40, 1), ("model.safetensors", 40, 1)],
)
def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(run: Path, name: str, n_flips: int, least: float) -> None:
    before, good = shown(run), (run / name).read_bytes()
    refused: list[str] = []
    for seed in range(n_flips):
        flip(run / name, random.Random(seed))
        try:
            assert shown(run) == before, f"flip {seed} of {name} passed unnoticed"
        except InputError as error:
            refused.append(str(error))
        (run / name).write_bytes(good)
    assert len(refused) >= least * n_flips
    assert all(name in message and "\n" not in message for message in refused)


def test_a_flipped_bit_in_a_snapshot_is_refused_by_its_step(run: Path) -> None:
    folder = run / "checkpoints" / "000040"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 5
    before = shown(run, 40)
    for seed, path in enumerate(files):
        good = path.read_bytes()
        flip(path, random.Random(seed))
        with pytest.raises(InputError, match="000040"):
            shown(run, 40)
        path.write_bytes(good)
    assert shown(run, 40) == before


def test_a_run_whose_files_are_of_two_runs_is_refused_with_every_difference(run: Path) -> None:
    good = (run / "config.json").read_text()
    for old, new, message in [
        ('"seed": 0', '"seed": 4', "schedule.seed is 0 there and 4 here$"),
        ('"task_seed": 0', '"task_seed": 5', "task_seed is 0 there and 5 here$"),
        ('"checkpoint_every": 20', '"checkpoint_every": 30', "keeping.checkpoint_every is 20 there and 30 here$"),
        ('"steps": 60', '"steps": 70', "schedule.steps is 60 there and 70 here$"),
    ]:
        assert old in good
        (run / "config.json").write_text(good.replace(old, new, 1))
        with pytest.raises(InputError, match=rf"model\.safetensors is of another run than config\.json: {message}"):
            jaxcalc.load_run(run)
    (run / "config.json").write_text(good)
    summary = json.loads((run / "summary.json").read_text())
    runs.write_json(run / "summary.json", {**summary, "n_params": 1})
    for script in ("ask", "evaluate", "explore"):
        ended = run_script(script, run, *(["two plus three"] if script == "ask" else []))
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert "summary.json is not what was written" in ended.err


@pytest.mark.parametrize("option", ["checkpoint_every", "keep", "steps"])
def test_a_changed_option_is_refused_before_a_run_goes_on_or_is_forked(
    stopped_run: Path, tmp_path: Path, option: str
) -> None:
    run = Path(shutil.copytree(stopped_run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    section = "schedule" if option == "steps" else "keeping"
    runs.write_json(run / "config.json", {**config, section: {**config[section], option: 77}})
    for how in (["--resume", run], ["--fork", f"{run}@40", "--steps", "50", "--run-dir", tmp_path / "fork"]):
        ended = run_script("train", *how)
        assert ended.status == 2
        assert f"error: {run / 'config.json'} is not what was written" in ended.err


def test_a_run_of_an_earlier_version_is_read_without_checksums(run: Path) -> None:
    before = shown(run)
    config = json.loads((run / "config.json").read_text())
    del config["checksum"]
    runs.write_json(run / "config.json", config)
    runs.write_json(run / "summary.json", before["summary"])
    assert shown(run) == before
    # The newest checkpoint has always said how metrics.jsonl was written.
    flip(run / "metrics.jsonl", random.Random(0))
    with pytest.raises(InputError, match=r"metrics\.jsonl is not what was written"):
        runs.read_metrics(run)
    runs.write_json(run / "summary.json", {**before["summary"], "train_exact_match": 1.0})
    with pytest.raises(InputError, match=r"of another run than summary\.json: train_exact_match is 0\.\d+ there and 1"):
        jaxcalc.load_run(run)


@pytest.fixture
def double() -> Iterator[None]:
    """JAX's setting that makes new arrays float64."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
def test_scripts_train_and_read_in_float32_under_jax_enable_x64(small_run: Path, tmp_path: Path, double: None) -> None:
    loaded = jaxcalc.load_run(small_run)
    before = jaxcalc.fingerprint(runs.load_snapshot(loaded, 60).params)
    assert before == jaxcalc.fingerprint(loaded.params)
    run = tmp_path / "run"
    for arguments in (["train", "--run-dir", run, *SMALL], ["ask", run, "2 + 3", "--step", 60]):
        jax.config.update("jax_enable_x64", True)
        ended = run_script(*map(str, arguments))
        assert ended.status == 0, ended.err
        assert ended.err.splitlines()[0].startswith("warning: JAX_ENABLE_X64 is set; a run is trained and read in ")
    assert jaxcalc.fingerprint(jaxcalc.load_run(run).params) == before


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "a line less": lambda path: path.write_bytes(path.read_bytes().rpartition(b'{"step"')[0]),
    "empty": lambda path: path.write_bytes(b""),
    "not text": lambda path: path.write_bytes(b"\xff\0" * 50),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_metrics_are_one_line_and_status_2(run: Path, how: str) -> None:
    DAMAGE[how](run / "metrics.jsonl")
    ended = run_script("explore", run, "--no-open")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert str(run / "metrics.jsonl") in ended.err
    assert not (run / "explorer.html").exists()


@pytest.mark.parametrize("line", [b'{"step": 1, "loss": 2', b"[1]", b'{"step": "one"}', b'{"step": 2, "loss": null}'])
def test_metrics_that_nothing_vouches_for_are_still_rows_of_numbers(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.5}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"line 2 of .*metrics\.jsonl is not"):
        runs.read_metrics(tmp_path)


def test_a_run_is_an_object_to_play_with(small_run: Path) -> None:
    run = jaxcalc.load_run(small_run)
    assert run.steps == runs.checkpoint_steps(small_run)
    assert (run.steps[0], run.steps[-1]) == (0, 60)
    jax.tree.map(np.testing.assert_array_equal, run.at(60), run.params)
    question = "two plus three"
    answers = {step: run.ask(question, step=step) for step in (0, 60)}
    assert answers[60] == run.ask(question) == json.loads(run_script("ask", small_run, question, "--json").out)
    assert answers[0] == json.loads(run_script("ask", small_run, question, "--step", 0, "--json").out)
    assert answers[0]["probability"] < answers[60]["probability"]
    for ask in (run.at, lambda step: run.ask(question, step), lambda step: run.walk(question, step)):
        with pytest.raises(InputError, match=r"has no snapshot of step 7; there are 0, 10, 20"):
            ask(7)
    with pytest.raises(InputError, match="did you mean 'plus'"):
        run.ask("two pluss three")


def test_a_run_walks_back_from_the_surprise_at_the_next_word(small_run: Path) -> None:
    run = jaxcalc.load_run(small_run)
    tokens = run.task.tokens[run.task.row("two plus three")][None, : run.task.prompt_length + 1]
    batch = jaxcalc.Batch(tokens, np.ones((1, 1), np.float32))
    for step in (None, 0):
        walk = run.walk("two plus three", step)
        stage = next(walk)
        assert stage.name == "loss"
        expected = jax.jit(jaxcalc.loss)(run.params if step is None else run.at(step), batch)
        np.testing.assert_allclose(stage.output, expected, rtol=1e-5)
    with pytest.raises(InputError, match="'2 - 3' has no answer from 0 to 6"):
        run.walk("2 - 3")


def test_an_accuracy_below_the_least_is_exit_status_1(small_run: Path) -> None:
    match = jaxcalc.load_run(small_run).summary["held_out_exact_match"]
    assert 0 < match < 1
    for least, status in ((match, 0), (min(1, match + 1e-6), 1)):
        ended = run_script("evaluate", small_run, "--json", "--min-accuracy", least)
        assert (ended.status, json.loads(ended.out)["held_out_exact_match"]) == (status, match)
        assert ended.err.count("\n") == status
    assert re.fullmatch(r"[\d.]+% of the held-out problems are right, below --min-accuracy [\d.]+%\n", ended.err)
    for wrong in ("99", "-0.1", "nan"):
        ended = run_script("evaluate", small_run, f"--min-accuracy={wrong}")
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("which", ["small_run", "drawn_run"])
def test_the_table_of_a_task_is_the_same_as_json_lines_and_as_csv(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    task = jaxcalc.load_run(request.getfixturevalue(which)).task
    lines_path, csv_path = export.write_table(task, tmp_path / "model.stablehlo")
    rows = [json.loads(line) for line in lines_path.read_text().splitlines()]
    with csv_path.open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert len(rows) == len(task.tokens)
    assert sum(row["membership"] == "held out" for row in rows) == task.held_out_rows.size
    for row in rows[:: len(rows) // 30]:
        problem = task.parse(row["question"])
        assert task.tokenizer.read(row["answer"].split()) == problem.answer
        assert (task.membership(problem), " ".join(problem.operations)) == (row["membership"], row["kind"])


def test_export_writes_the_table_beside_the_program(small_run: Path, tmp_path: Path) -> None:
    ended = run_script("export", small_run, "--out", tmp_path / "a.stablehlo", "--table", "--json")
    assert ended.status == 0, ended.err
    names = ["a.stablehlo", "a.table.csv", "a.table.jsonl", "a.vocabulary.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads(ended.out)["table"] == [str(tmp_path / "a.table.jsonl"), str(tmp_path / "a.table.csv")]


PAIRS = [("two plus three", "five"), ("2 x 3", "six"), ("six minus one", "five")]


def write_problems(path: Path) -> Path:
    """Write `PAIRS` as the kind of file that the name says."""
    if path.suffix == ".jsonl":
        text = "".join(
            json.dumps({"question": question, "answer": answer, "n": 1}) + "\n" for question, answer in PAIRS
        )
    else:
        text = "n,answer,question\r\n" + "".join(f'1,{answer},"{question}"\r\n' for question, answer in PAIRS)
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv"])
def test_problems_of_a_file_are_read_and_evaluated(small_run: Path, tmp_path: Path, name: str) -> None:
    path = write_problems(tmp_path / name)
    assert read_problems(path) == PAIRS
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets write it
    assert read_problems(path) == PAIRS
    run = jaxcalc.load_run(small_run)
    right = [run.ask(question)["correct"] for question, _ in PAIRS]
    ended = run_script("evaluate", small_run, "--problems", path, "--json", "--min-accuracy", 1)
    result = json.loads(ended.out)
    assert (ended.status, result["problems"]) == (0 if all(right) else 1, 3)
    assert result["exact_match"] == sum(right) / 3
    assert len(result["errors"]) == 3 - sum(right)
    assert run_script("evaluate", small_run, "--problems", path).out.endswith(
        f": {sum(right)} of 3 right: " + (percent(sum(right) / 3) + "\n")
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "two plus three", r"expected a file that ends in \.jsonl or \.csv"),
        ("a.jsonl", '{"question": "1 + 1", "answer": "two"}\n{"question": "1 + 1"', r"a\.jsonl, problem 2: "),
        ("a.jsonl", '{"question": "1 + 1", "answer": 2}', "problem 1 of .* that are texts"),
        ("a.jsonl", "[1]", "problem 1 of .* that are texts"),
        ("a.csv", "question,answr\n1 + 1,two\n", "problem 1 of .* that are texts"),
        ("a.csv", "question,answer\n1 + 1,two\n1 + 2\n", "problem 2 of .* that are texts"),
        ("a.csv", "question,answer\n", "holds no problem"),
        ("a.jsonl", "", "holds no problem"),
        ("a.csv", b"question,answer\n\xff,two\n", r"a\.csv, problem 1: "),
    ],
)
def test_a_file_of_problems_that_is_none_is_refused_in_one_line(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as error:
        read_problems(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_lost_file_of_problems_is_named(small_run: Path, tmp_path: Path) -> None:
    ended = run_script("evaluate", small_run, "--problems", tmp_path / "lost.csv")
    assert (ended.status, ended.out, ended.err) == (
        2,
        "",
        f"error: cannot read {tmp_path / 'lost.csv'}: No such file or directory\n",
    )
