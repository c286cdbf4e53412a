"""watch.py: one step of learning, looked at closely."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import watch
import watch_learning
import watch_tables
import watch_weight
from scripts import EXPERIMENTS, TINY, run_script

import jaxcalc
from jaxcalc import runs
from jaxcalc.blame import mean_gradient
from jaxcalc.runs import asking


def watched(*arguments: str | Path) -> dict:
    status, out, err = run_script("watch", *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--optimizer", "sgd", "--step", "30"], ["--optimizer", "adamw", "--learning-rate", "1e-3"], ["--step", "30"]],
)
def test_watch_adds_up(small_run: Path, arguments: list[str]) -> None:
    step = [] if "--step" in arguments else ["--step", "0"]
    result = watched(small_run, "two plus three", *arguments, *step)
    promised = "tokens predictions surprise_nats stages blame predicted_drop credit actual_drop residual weight"
    assert set(promised.split()) <= set(result)
    assert [token["token"] for token in result["tokens"]] == ["two", "plus", "three", "equals"]
    assert result["target"] == "five"
    assert len(result["predictions"]) == 5
    assert result["surprise_nats"] == pytest.approx(-math.log(result["probability"]))
    names = ["embed", "block 0 attention", "block 0 mlp", "output"]
    assert [stage["name"] for stage in result["stages"]] == ["loss", *reversed(names)]
    for later, earlier in itertools.pairwise(result["stages"]):
        assert later["message_out"] == earlier["message_in"]
    rows = [*names, "weight decay"] if "sgd" not in arguments else names  # sgd decays nothing
    assert list(result["blame"]) == list(result["credit"]) == rows
    assert sum(result["blame"].values()) == pytest.approx(1)
    assert sum(result["blame_nats"].values()) == pytest.approx(result["predicted_drop"])
    assert sum(result["token_blame"]) == pytest.approx(
        result["predicted_drop"] - result["blame_nats"].get("weight decay", 0), rel=1e-3
    )
    drop = result["surprise_nats"] - result["after"]["surprise_nats"]
    assert result["actual_drop"] == pytest.approx(drop)
    assert result["residual"] == pytest.approx(drop - sum(result["credit"].values()))
    assert abs(result["residual"]) < 0.01 * abs(drop)
    weight = result["weight"]
    assert weight["new_value"] == pytest.approx(weight["value"] + weight["step"])
    assert weight["finite_difference"] == pytest.approx(weight["gradient"], rel=1e-3)


@pytest.mark.slow
def test_watch_is_reproducible_bit_for_bit(small_run: Path) -> None:
    arguments = [small_run, "two plus three", "--step", "30"]
    here = watched(*arguments)
    command = [sys.executable, EXPERIMENTS / "watch.py", *arguments, "--json"]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(elsewhere.stdout) == here == watched(*arguments)


def test_watch_with_plain_sgd_reads_as_the_weight_minus_the_rate_times_the_gradient(small_run: Path) -> None:
    path = "blocks.0.attention.query[3,1,5]"
    arguments = [small_run, "2 + 3", "--step", "0", "--optimizer", "sgd", "--learning-rate", "0.01", "--weight", path]
    weight = watched(*arguments)["weight"]
    assert weight["path"] == path
    assert weight["new_value"] == pytest.approx(weight["value"] - 0.01 * weight["gradient"], rel=1e-5)
    status, out, _ = run_script("watch", *arguments)
    assert status == 0
    assert f"One weight: {path}" in out


def test_watch_can_ask_for_a_later_word(small_run: Path) -> None:
    result = watched(small_run, "one plus one equals two", "--step", "0")
    assert result["target"] == "<end>"
    assert result["tokens"][-1]["token"] == "two"


def test_watch_prints_plain_text_for_80_columns(small_run: Path) -> None:
    status, out, _ = run_script("watch", small_run, "two plus three", "--step", "0")
    assert status == 0
    for text in (
        "Text → tokens",
        "Forward",
        "Likeliest words",
        "Surprise = −ln p(five)",
        "Backward",
        "blame before",
        "credit after",
        "One weight: ",
        "finite difference",
        "p(five) went from",
    ):
        assert text in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "…" not in out


def test_watch_opens_at_the_newest_snapshot_that_is_wrong(small_run: Path) -> None:
    question = "two plus three"
    rows = watched(small_run, question, "--replay")["replay"]
    wrong = [row["step"] for row in rows if row["predictions"][0]["token"] != "five"]
    result = watched(small_run, question)
    assert (result["chosen"], result["step"]) == ("newest wrong", wrong[-1])
    status, out, _ = run_script("watch", small_run, question)
    assert status == 0
    assert out.startswith("two plus three equals ___\n")
    assert "the newest of its snapshots that is wrong" in " ".join(out.split())
    assert '"two plus three" --step 0' in " ".join(out.replace("\\", " ").split())
    whens = [row["when"] for row in result["before_and_after"]]
    assert whens == ["first", "here", "after this step", "last"][: 4 - (wrong[-1] == 60)]
    assert result["before_and_after"][0]["step"] == 0
    assert max(map(len, out.splitlines())) <= 80


def test_watch_follows_one_weight_of_a_word_from_plain_sgd_to_the_step(small_run: Path) -> None:
    result = watched(small_run, "two plus three", "--step", "30")
    weight = result["weight"]
    words = {token["id"] for token in result["tokens"]} - {0}
    assert int(re.fullmatch(r"embed\.token\[(\d+),\d+\]", weight["path"])[1]) in words  # never padding
    ways = watch_weight.ways_to_the_step(result)
    assert ways[0][0] == "plain SGD"
    assert ways[0][2] == pytest.approx(-weight["learning_rate"] * weight["gradient"])
    assert sum(change for _, change, _ in ways) == pytest.approx(weight["step"], rel=1e-4)
    plain = watched(small_run, "two plus three", "--step", "30", "--optimizer", "sgd")
    assert watch_weight.verdict(watch_weight.ways_to_the_step(plain)) == "The step is that of plain SGD."


def test_the_verdict_names_what_turned_a_step() -> None:
    ways = [("plain SGD", -0.2, -0.2), ("Adam instead", 0.1, -0.1), ("momentum", 0.3, 0.2)]
    assert "momentum turned the step: it adds +0.3 and makes it +0.2" in watch_weight.verdict(ways)
    assert "0.5 times as long" in watch_weight.verdict(ways[:2])
    back = [*ways, ("weight decay", -0.3, -0.1)]
    assert "against the gradient too" in watch_weight.verdict(back)


def test_what_was_promised_is_explained_as_it_came(small_run: Path) -> None:
    result = watched(small_run, "two plus three", "--step", "0")
    assert watch_tables.promise({**result, "actual_drop": -1.0, "predicted_drop": 2.0}).endswith("the surprise rises.")
    assert "more than the 1.5 nats" in watch_tables.promise({**result, "predicted_drop": 13.3, "surprise_nats": 1.5})
    assert "flattens" not in watch_tables.promise({**result, "predicted_drop": 0.1, "actual_drop": 0.1})


@pytest.mark.parametrize("nats", [0.863, 3.4641, 2.8082e-05, 1e-9, 3e-17, 0.0, 41.2])
def test_the_logarithm_of_what_is_printed_is_what_is_printed(nats: float) -> None:
    p, said = watch_tables.written(math.exp(-nats), nats)
    assert -math.log(float(p)) == pytest.approx(float(said), rel=0.06, abs=1e-15)
    assert said == f"{nats:.4g}" or nats < 1e-11


def test_the_mean_gradient_is_that_of_the_library(small_run: Path) -> None:
    run = jaxcalc.load_run(small_run)
    state = watch_learning.host(runs.load_snapshot(run, 30))
    batch = watch_learning.host(asking.next_word(run.task, "two plus three"))
    _, grads, _ = watch_learning.study(state.params, batch)
    step = watch_learning.make_step(run, state, grads, None, None).step
    ours, theirs = watch_learning.mean_gradient(state.params, step, batch), mean_gradient(state.params, step, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), ours, theirs)


def test_watch_withholds_percentages_of_next_to_nothing(small_run: Path) -> None:
    arguments = [small_run, "two plus three", "--step", "0", "--optimizer", "sgd", "--learning-rate", "1e-7"]
    result = watched(*arguments)
    assert result["blame"] is None
    assert "below 0.0001 nats" in result["withheld"]
    _, out, _ = run_script("watch", *arguments)
    assert "No percentages: the total" in out
    assert "%" not in out.split("credit after")[1].split("Blame by")[0]


def test_watch_replays_a_run(small_run: Path) -> None:
    result = watched(small_run, "two plus three", "--replay")
    assert [snapshot["step"] for snapshot in result["replay"]] == [0, 10, 20, 30, 40, 50, 60]
    first = watched(small_run, "two plus three", "--step", "0")
    replayed, shown = result["replay"][0]["predictions"], first["predictions"]  # by two programs, which round apart
    assert [word["token"] for word in replayed] == [word["token"] for word in shown]
    probabilities = [[word["probability"] for word in words] for words in (replayed, shown)]
    assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-6)
    status, out, _ = run_script("watch", small_run, "two plus three", "--replay")
    assert status == 0
    assert "two plus three equals → five" in out
    assert "examples seen" in out
    assert [row["examples"] for row in result["replay"]] == [32 * step for step in range(0, 70, 10)]
    assert "For five, p passes 94 % for good" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_word_is_known_where_it_stays_known() -> None:
    rows = [{"step": step, "examples": 32 * step} for step in (0, 10, 20, 30)]
    assert watch.first_for_good(rows, [True, False, True, True]) == {"step": 20, "examples": 640, "before": 10}
    assert watch.first_for_good(rows, [True] * 4) == {"step": 0, "examples": 0, "before": None}
    assert watch.first_for_good(rows, [True, True, True, False]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two plus three", "--step", "7"], "has no snapshot of step 7; there are 0, 10, 20, 30, 40, 50, 60"),
        (["two plus three", "--step", "-1"], "has no snapshot of step -1"),
        (["two plus three", "--weight", "blocks.0.attention.quey[0,0,0]"], "the nearest are blocks.0.attention.query"),
        (["two plus three", "--weight", "output.norm[99]"], "its last is output.norm[15]"),
        (["two plus three", "--learning-rate", "0.1"], "name one with --optimizer"),
        (["two plus three", "--optimizer", "sgd", "--learning-rate", "-1"], "learning_rate is -1.0"),
        (["two plus three", "--replay", "--step", "0"], "leave out --step"),
        (["two plus three equals four"], "'four' does not begin the right answer, 'five'"),
        (["two minus three"], "has no answer from 0 to 6"),
        (["six plus six"], "has no answer from 0 to 6"),
        (["two pluss three"], "unknown word 'pluss'"),
        ([""], "the prompt is empty"),
    ],
)
def test_watch_refuses_bad_input_in_one_line(small_run: Path, arguments: list[str], message: str) -> None:
    status, out, err = run_script("watch", small_run, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_damaged_snapshot_is_one_line(small_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_run, broken)
    path = broken / "checkpoints" / "000030" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])
    status, _, err = run_script("watch", broken, "two plus three", "--step", "30")
    assert status == 2
    assert "000030 is damaged: its file _METADATA has changed" in err
    assert err.count("\n") == 1


def test_a_run_without_snapshots_keeps_its_newest_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    status, _, _ = run_script("train", "--run-dir", path, *TINY, "--steps", "2", "--snapshots", "0")
    assert status == 0
    assert runs.checkpoint_steps(path) == [2]
    shutil.rmtree(path / "checkpoints")
    for arguments in ([], ["--replay"]):
        status, _, err = run_script("watch", path, "two plus three", *arguments)
        assert status == 2
        assert "train it again with --snapshots" in err


@pytest.mark.slow
def test_the_learning_rate_is_that_of_the_runs_schedule(tmp_path: Path) -> None:
    """A run that is resumed for more steps keeps its schedule, which has ended: 1 % of the peak from then on."""
    run = tmp_path / "run"
    sgd = ["--optimizer", "sgd", "--learning-rate", "0.1", "--steps", "4", "--snapshots", "1"]
    assert run_script("train", *TINY, *sgd, "--run-dir", run).status == 0
    assert run_script("train", "--resume", run, "--steps", "8").status == 0
    result = json.loads(run_script("watch", run, "two plus three", "--step", "8", "--json").out)
    assert result["optimizer"] == {"name": "sgd", "of": "the run's own", "learning_rate": pytest.approx(0.001)}
    weight = result["weight"]
    assert weight["step"] == pytest.approx(-0.001 * weight["state"]["trace"], rel=1e-4)
