"""The scripts, as people run them."""

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import chex
import jax
import nbclient
import nbformat
import pytest

import jaxcalc
from jaxcalc import runs
from jaxcalc.runs import cli
from jaxcalc.scale import cost

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALL = [
    "--max-number", "6", "--steps", "60", "--batch-size", "32", "--model.d-model", "32", "--model.n-heads", "2",
    "--model.d-ff", "64", "--model.n-layers", "1", "--held-out", "0.2",
]  # fmt: skip


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script, EXPERIMENTS / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


class Scripts:
    """Runs a script in this process: `scripts("train", "--steps", "5")` returns (status, stdout, stderr)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, script: str, *arguments: str | Path) -> tuple[int, str, str]:
        module = load(script)
        self.monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        options = next(getattr(module, name) for name in dir(module) if name == f"{script.capitalize()}Options")
        self.capsys.readouterr()
        try:
            defaults = {"defaults": module.defaults} if hasattr(module, "defaults") else {}
            status = cli.run_script(module.main, options, **defaults)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *self.capsys.readouterr()


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scripts:
    return Scripts(monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, trained by the script in a process of its own."""
    path = tmp_path_factory.mktemp("runs") / "small"
    command = [sys.executable, EXPERIMENTS / "train.py", "--run-dir", path, *SMALL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path / "stdout.txt").write_text(result.stdout)
    (path / "stderr.txt").write_text(result.stderr)
    return path


def test_training_leaves_a_whole_run(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    promised = """n_params n_train n_held_out held_out_exact_match train_exact_match by_operation errors
        steps examples_per_second seconds seed split versions device"""
    assert set(promised.split()) <= set(summary)
    assert set(summary["seconds"]) == {"compile", "train", "evaluate", "total"}
    assert summary["n_train"] + summary["n_held_out"] == 28 + 28 + 27 + 20
    assert summary["steps"] == 60
    n_wrong = sum(error["membership"] == "held out" for error in summary["errors"])
    assert summary["held_out_exact_match"] == pytest.approx(1 - n_wrong / summary["n_held_out"])
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_says_the_rates_that_it_used(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["learning_rate"] == jaxcalc.optimizers.DEFAULT_LEARNING_RATE["muon"]
    assert config["weight_decay"] == jaxcalc.optimizers.DEFAULT_WEIGHT_DECAY["muon"]


def test_every_step_is_logged_once(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 61))
    checks = [line for line in lines if "held-out_exact_match" in line]
    assert checks[-1]["step"] == 60
    assert lines[0]["loss"] > lines[-2]["loss"]


def test_training_says_what_happens(trained: Path) -> None:
    out, err = ((trained / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    for text in ("The model", "block 0 attention", "divided by", "Before and after", "Exact match", "Wrong answers"):
        assert text in out
    assert f'python experiments/ask.py {trained} "two plus three"' in out
    assert f"python experiments/evaluate.py {trained}" in out
    assert "step 60/60  loss" in err
    assert "Traceback" not in err
    assert max(map(len, out.split("Saved in")[0].splitlines()[:-1])) <= 80


def test_a_table_may_hold_out_no_problem_of_an_operation(scripts: Scripts, tmp_path: Path) -> None:
    tiny = ["--max-number", "4", "--batch-size", "4", "--held-out", "0.04", "--steps", "2"]
    status, out, _ = scripts("train", "--run-dir", tmp_path / "run", *SMALL, *tiny)
    assert status == 0
    by_operation = json.loads((tmp_path / "run" / "summary.json").read_text())["by_operation"]
    assert {row["n_held_out"] for row in by_operation.values()} == {0, 1}
    assert "0 of 0" in out


def test_a_run_that_is_there_is_kept_unless_asked(scripts: Scripts, trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*.*") if path.is_file()}
    assert len(before) > 10
    status, _, err = scripts("train", "--run-dir", trained, *SMALL)
    assert status == 2
    assert "holds a run already; choose another --run-dir or add --overwrite" in err
    assert {path: path.read_bytes() for path in trained.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "-5"], "--steps is -5"),
        (["--steps", "0"], "--steps is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--batch-size", "100000"], "batch size is 100000; it must be from 1 to 10,211"),
        (["--seed", "-1"], "--seed is -1"),
        (["--copies", "0"], "--copies is 0"),
        (["--inverse-copies", "-1"], "--inverse-copies is -1"),
        (["--snapshots", "-1"], "--snapshots is -1"),
        (["--clip-norm", "0"], "clip_norm is 0.0"),
        (["--model.n-heads", "5"], "n_heads is 5, which does not divide d_model, 64"),
        (["--model.n-layers", "0"], "n_layers is 0"),
        (["--ops", "plus", "modulo"], "unknown operation 'modulo'"),
        (["--ops"], "at least one of"),
        (["--max-number", "0"], "max_number is 0"),
        (["--max-number", "5000"], "max_number is 5000"),
        (["--held-out", "1.5"], "held_out is 1.5"),
        (["--learning-rate", "-1"], "learning_rate is -1.0"),
        (["--learning-rate", "inf"], "learning_rate is inf"),
        (["--weight-decay", "-1"], "weight_decay is -1.0"),
    ],
)
def test_a_flag_out_of_range_is_one_line(scripts: Scripts, tmp_path: Path, arguments: list[str], message: str) -> None:
    status, out, err = scripts("train", "--run-dir", tmp_path / "run", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--optimizer", "adam"], ["--split", "half"], ["--colour"]])
def test_a_flag_that_does_not_parse_is_a_usage_error(scripts: Scripts, arguments: list[str]) -> None:
    status, out, err = scripts("train", *arguments)
    assert (status, out) == (2, "")
    assert arguments[0] in err


def test_a_folder_that_cannot_be_written_is_one_line(scripts: Scripts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "run", tmp_path / "file"):
        status, _, err = scripts("train", "--run-dir", path, *SMALL)
        assert status == 2
        assert str(path) in err
        assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_every_option_is_explained(scripts: Scripts) -> None:
    for script in ("train", "ask", "evaluate", "watch"):
        fields = load(script).__dict__[f"{script.capitalize()}Options"].__dataclass_fields__
        status, out, _ = scripts(script, "--help")
        assert status == 0
        for name in fields:
            assert name in ("run", "question", "model") or f"--{name.replace('_', '-')}" in out
        assert "(required)" not in out or script != "train"


def test_ctrl_c_ends_in_order_and_json_is_alone_on_stdout(scripts: Scripts, tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, EXPERIMENTS / "train.py", "--run-dir", path, *SMALL, "--steps", "100000", "--json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() or (path / "metrics.jsonl").stat().st_size == 0:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after these steps" in err
    assert "Stopped by SIGINT after" in err
    assert "Traceback" not in err
    result = json.loads(out)  # with --json the tables go to stderr, and stdout holds this alone
    assert 0 < result["steps"] < 100_000
    assert result["steps"] == runs.snapshot_steps(path)[-1]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, result["steps"] + 1))
    assert not (path / "summary.json").exists()

    status, _, err = scripts("ask", path, "1 + 1")
    assert status == 2
    assert f"is unfinished: it has no summary.json; finish it with: python experiments/train.py --resume {path}" in err
    status, out, _ = scripts("train", "--resume", path, "--steps", result["steps"], "--json")
    assert status == 0
    assert json.loads(out) == json.loads((path / "summary.json").read_text())
    assert json.loads(out)["steps"] == json.loads(out)["first_step"] == result["steps"]


def test_ask_answers(scripts: Scripts, trained: Path) -> None:
    status, out, _ = scripts("ask", trained, "2 + 3", "--json")
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

    status, out, _ = scripts("ask", trained, "two plus three")
    assert status == 0
    assert "two plus three equals → " in out
    assert "runners-up: " in out
    assert "This problem was" in out


@pytest.mark.parametrize(
    ("question", "truth"), [("6 + 6", "12"), ("2 - 3", "-1"), ("5 / 2", "no whole number"), ("6 x 6", "36")]
)
def test_ask_says_when_a_problem_is_outside_the_training_range(
    scripts: Scripts, trained: Path, question: str, truth: str
) -> None:
    status, out, _ = scripts("ask", trained, question)
    assert status == 0
    assert f"The true answer is {truth}: outside what the model was trained on" in out
    assert json.loads(scripts("ask", trained, question, "--json")[1])["correct"] is False


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
def test_ask_refuses_what_is_no_question_in_one_line(
    scripts: Scripts, trained: Path, question: str, message: str
) -> None:
    status, out, err = scripts("ask", trained, question)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_ask_reads_questions_line_by_line(trained: Path) -> None:
    command = [sys.executable, EXPERIMENTS / "ask.py", trained, "--json"]
    questions = "1 + 1\ntwo pluss three\n2 + 2\n"
    result = subprocess.run(command, input=questions, capture_output=True, text=True, check=False)
    assert [json.loads(line)["prompt"] for line in result.stdout.splitlines()] == [
        "one plus one equals", "two plus two equals"]  # fmt: skip
    assert "unknown word 'pluss'" in result.stderr
    assert result.returncode == 2


def test_evaluate_agrees_with_the_summary(scripts: Scripts, trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    status, out, _ = scripts("evaluate", trained, "--json")
    result = json.loads(out)
    assert status == 0
    for name in ("held_out_exact_match", "train_exact_match", "by_operation"):
        assert result[name] == summary[name]
    assert [error["problem"] for error in result["errors"]] == [error["problem"] for error in summary["errors"]]
    status, out, _ = scripts("evaluate", trained)
    assert "Exact match" in out
    assert "problems decoded in" in out


def test_training_keeps_snapshots_at_log_spaced_steps(scripts: Scripts, trained: Path) -> None:
    options = load("train_options")
    assert options.snapshot_steps(12, 10, 1200) == [0, 10, 20, 30, 40, 70, 110, 180, 290, 460, 740, 1200]
    assert options.snapshot_steps(1, 10, 1200) == [0]
    assert options.snapshot_steps(0, 10, 1200) == []
    assert options.snapshot_steps(2, 10, 7) == [0, 7]
    assert options.snapshot_steps(4, 10, 25) == [0, 10, 20, 25]
    run = jaxcalc.load_run(trained)
    assert runs.snapshot_steps(trained) == [0, 10, 20, 30, 40, 50, 60]
    untrained = jaxcalc.init(jax.random.key(0), jaxcalc.config_of(run.params))
    chex.assert_trees_all_close(
        runs.load_snapshot(run, 0).params, untrained, rtol=1e-6, atol=1e-7
    )  # train.py compiles it as one program, which rounds apart
    chex.assert_trees_all_equal(runs.load_snapshot(run, 60).params, run.params)


def test_training_goes_on_from_a_snapshot_bit_for_bit(trained: Path) -> None:
    run = jaxcalc.load_run(trained)
    state, expected = (runs.load_snapshot(run, step) for step in (20, 30))
    state, _ = jaxcalc.train_steps(state, run.task, seed=0, n_steps=10, batch_size=32)
    chex.assert_trees_all_equal(state.params, expected.params)
    chex.assert_trees_all_equal(state.opt_state, expected.opt_state)


@pytest.mark.slow
def test_a_run_on_a_mesh_is_the_run_and_goes_on_on_another(scripts: Scripts, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = ["--run-dir", path, *SMALL, "--schedule-steps", "60", "--steps", "20"]
    status, _, _ = scripts("train", *arguments, "--mesh", "data=4,model=2", "--fully-sharded")
    assert status == 0
    status, _, err = scripts("train", "--resume", path, "--steps", "30", "--mesh", "data=8")
    assert status == 0
    assert "not bit for bit" in err
    assert "mesh is data=4,model=2 there and data=8 here" in err
    losses, expected = (
        {row["step"]: row["loss"] for row in runs.read_metrics(each) if "loss" in row} for each in (path, trained)
    )
    assert list(losses) == list(range(1, 31))
    assert list(losses.values()) == pytest.approx([expected[step] for step in losses], rel=1e-3)


@pytest.mark.slow
def test_a_larger_model_trains_and_goes_on_in_other_microbatches(scripts: Scripts, tmp_path: Path) -> None:
    path = tmp_path / "run"
    width = ["--model.d-model", "32", "--model.d-ff", "64"]
    larger = ["--size", "1M", *width, "--model.n-layers", "2", "--dtype", "bfloat16", "--scan"]
    options = ["--microbatches", "2", "--mesh", "data=4,model=2"]
    task = ["--max-number", "6", "--held-out", "0.2", "--batch-size", "32", "--steps", "10", "--optimizer", "sgd"]
    status, out, err = scripts("train", "--run-dir", path, *task, *larger, *options)
    assert status == 0, err
    config = json.loads((path / "config.json").read_text())
    assert (config["dtype"], config["microbatches"], config["remat"], config["scan"]) == ("bfloat16", 2, False, True)
    sizes = {"d_model": 32, "n_heads": 4, "d_ff": 64, "n_layers": 2}  # what was given, and else that of the size
    assert {name: config["model"][name] for name in sizes} == sizes
    table = out.split("What a step is predicted to take")[1].split("Before and after")[0]
    for name in ("parameters", "optimizer state", "task and metrics", "temporaries", "all of the memory", "time"):
        assert re.search(rf"^{name} +│ +[\d.,]+ (MiB|ms)", table, flags=re.MULTILINE), name

    status, _, err = scripts("train", "--resume", path, "--steps", "20", "--microbatches", "4", "--remat")
    assert status == 0, err
    assert "microbatches is 2 there and 4 here" in err
    assert "remat is False there and True here" in err
    losses = [row["loss"] for row in runs.read_metrics(path) if "loss" in row]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jaxcalc.load_run(path).params)} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--microbatches", "3"], "a batch of 32 does not divide into 3 microbatches; it does into 1, 2, 4, 8, 16, 32"),
        (["--microbatches", "0"], "--microbatches is 0; it must be from 1"),
        (["--microbatches", "8", "--mesh", "data=8"], "a batch of 4 does not divide evenly along data=8"),
        (
            ["--size", "100M", "--model.d-model", "98304"],
            r"it does not fit: parameters [\d,.]+ GiB \+ gradients .* GiB$",
        ),
    ],
)
def test_what_a_larger_model_cannot_have_is_one_line(
    scripts: Scripts, tmp_path: Path, options: list[str], message: str
) -> None:
    status, out, err = scripts("train", "--run-dir", tmp_path / "run", *SMALL[:6], *options)
    assert (status, out) == (2, "")
    assert re.match(f"error: {message}", err)


def test_a_program_that_does_not_fit_leaves_no_run(
    scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "available_bytes", lambda devices: 200_000)  # enough for the state and its gradients
    status, out, err = scripts("train", "--run-dir", tmp_path / "run", *SMALL, "--batch-size", "64")
    assert (status, out) == (2, "")
    assert re.search(
        r"^error: it does not fit: parameters 0.0 MiB .* \+ temporaries .*; a device has 0.2 MiB$", err, re.M
    )
    assert not (tmp_path / "run" / "config.json").exists()
    monkeypatch.undo()
    status, _, err = scripts("train", "--resume", tmp_path / "run", "--size", "1M")
    assert err == "error: --size 1M is for a new model; --resume and --fork keep the run's\n"


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=3", "a batch of 32 does not divide evenly along data=3; one of 33 would, or data=1"),
        ("data=1,model=4", "model=4 does not divide 2 (axis 1 of params.blocks.0.attention.key"),
        ("data=16", "a mesh of data=16, model=1 takes 16 devices; there are 8"),
        ("eight", "--mesh is 'eight'; it must be such as data=4 or data=4,model=2"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(scripts: Scripts, tmp_path: Path, mesh: str, message: str) -> None:
    status, out, err = scripts("train", "--run-dir", tmp_path / "run", *SMALL, "--mesh", mesh)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def watched(scripts: Scripts, *arguments: str | Path) -> dict:
    status, out, err = scripts("watch", *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


PROMISED = """tokens predictions surprise_nats stages blame predicted_drop credit actual_drop residual weight"""


@pytest.mark.parametrize(
    "arguments", [[], ["--optimizer", "sgd"], ["--optimizer", "adamw", "--learning-rate", "1e-3"], ["--step", "30"]]
)
def test_watch_adds_up(scripts: Scripts, trained: Path, arguments: list[str]) -> None:
    step = [] if "--step" in arguments else ["--step", "0"]
    result = watched(scripts, trained, "two plus three", *arguments, *step)
    assert set(PROMISED.split()) <= set(result)
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
        result["predicted_drop"] - result["blame_nats"].get("weight decay", 0), rel=1e-3)  # fmt: skip
    drop = result["surprise_nats"] - result["after"]["surprise_nats"]
    assert result["actual_drop"] == pytest.approx(drop)
    assert result["residual"] == pytest.approx(drop - sum(result["credit"].values()))
    assert abs(result["residual"]) < 0.01 * abs(drop)
    weight = result["weight"]
    assert weight["new_value"] == pytest.approx(weight["value"] + weight["step"])
    assert weight["finite_difference"] == pytest.approx(weight["gradient"], rel=1e-3)


@pytest.mark.slow
def test_watch_is_reproducible_bit_for_bit(scripts: Scripts, trained: Path) -> None:
    arguments = [trained, "two plus three", "--step", "30"]
    here = watched(scripts, *arguments)
    command = [sys.executable, EXPERIMENTS / "watch.py", *arguments, "--json"]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(elsewhere.stdout) == here == watched(scripts, *arguments)


def test_watch_with_plain_sgd_reads_as_the_weight_minus_the_rate_times_the_gradient(
    scripts: Scripts, trained: Path
) -> None:
    path = "blocks.0.attention.query[3,1,5]"
    arguments = [trained, "2 + 3", "--step", "0", "--optimizer", "sgd", "--learning-rate", "0.01", "--weight", path]
    weight = watched(scripts, *arguments)["weight"]
    assert weight["path"] == path
    assert weight["new_value"] == pytest.approx(weight["value"] - 0.01 * weight["gradient"], rel=1e-5)
    status, out, _ = scripts("watch", *arguments)
    assert status == 0
    assert f"One weight: {path}" in out


def test_watch_can_ask_for_a_later_word(scripts: Scripts, trained: Path) -> None:
    result = watched(scripts, trained, "one plus one equals two", "--step", "0")
    assert result["target"] == "<end>"
    assert result["tokens"][-1]["token"] == "two"


def test_watch_prints_plain_text_for_80_columns(scripts: Scripts, trained: Path) -> None:
    status, out, _ = scripts("watch", trained, "two plus three", "--step", "0")
    assert status == 0
    for text in ("Text → tokens", "Forward", "Likeliest words", "Surprise = −ln p(five)", "Backward",
                 "blame before", "credit after", "One weight: ", "finite difference", "p(five) went from"):  # fmt: skip
        assert text in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "…" not in out


def test_watch_withholds_percentages_of_next_to_nothing(scripts: Scripts, trained: Path) -> None:
    arguments = [trained, "two plus three", "--step", "0", "--optimizer", "sgd", "--learning-rate", "1e-7"]
    result = watched(scripts, *arguments)
    assert result["blame"] is None
    assert "below 0.0001 nats" in result["withheld"]
    _, out, _ = scripts("watch", *arguments)
    assert "No percentages: the total" in out
    assert "%" not in out.split("credit after")[1].split("Blame by")[0]


def test_watch_replays_a_run(scripts: Scripts, trained: Path) -> None:
    result = watched(scripts, trained, "two plus three", "--replay")
    assert [at["step"] for at in result["replay"]] == [0, 10, 20, 30, 40, 50, 60]
    first = watched(scripts, trained, "two plus three", "--step", "0")
    replayed, shown = result["replay"][0]["predictions"], first["predictions"]  # by two programs, which round apart
    assert [word["token"] for word in replayed] == [word["token"] for word in shown]
    probabilities = [[word["probability"] for word in words] for words in (replayed, shown)]
    assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-6)
    status, out, _ = scripts("watch", trained, "two plus three", "--replay")
    assert status == 0
    assert "two plus three equals → five" in out
    assert len(out.splitlines()) == 3 + 7 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two plus three", "--step", "7"], "has no snapshot of step 7; there are 0, 10, 20, 30, 40, 50, 60"),
        (["two plus three", "--step", "-1"], "has no snapshot of step -1"),
        (["two plus three", "--weight", "blocks.0.attention.quey[0,0,0]"], "the nearest are blocks.0.attention.query"),
        (["two plus three", "--weight", "output.norm[99]"], "its last is output.norm[31]"),
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
def test_watch_refuses_bad_input_in_one_line(
    scripts: Scripts, trained: Path, arguments: list[str], message: str
) -> None:
    status, out, err = scripts("watch", trained, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_damaged_snapshot_is_one_line(scripts: Scripts, trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    path = broken / "checkpoints" / "000030" / "_METADATA"
    path.write_bytes(path.read_bytes()[:-1])
    status, _, err = scripts("watch", broken, "two plus three", "--step", "30")
    assert status == 2
    assert "000030 is damaged: its file _METADATA is changed" in err
    assert err.count("\n") == 1


def test_a_run_without_snapshots_keeps_its_newest_checkpoint(scripts: Scripts, tmp_path: Path) -> None:
    path = tmp_path / "run"
    status, _, _ = scripts("train", "--run-dir", path, *SMALL, "--steps", "2", "--snapshots", "0")
    assert status == 0
    assert runs.snapshot_steps(path) == [2]
    shutil.rmtree(path / "checkpoints")
    for arguments in ([], ["--replay"]):
        status, _, err = scripts("watch", path, "two plus three", *arguments)
        assert status == 2
        assert "train it again with --snapshots" in err


@pytest.mark.parametrize("script", ["ask", "evaluate", "watch"])
def test_a_run_folder_that_is_missing_is_one_line(scripts: Scripts, tmp_path: Path, script: str) -> None:
    status, _, err = scripts(script, tmp_path / "nowhere", *(["1 + 1"] if script != "evaluate" else []))
    assert status == 2
    assert "there is no run folder" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("script", ["ask", "evaluate"])
def test_a_run_that_is_unfinished_or_of_other_code_is_one_line(
    scripts: Scripts, trained: Path, tmp_path: Path, script: str
) -> None:
    question = ["1 + 1"] if script == "ask" else []
    config = (trained / "config.json").read_text()
    for text, message in ((config, "is unfinished"), (config.replace('"format": 3', '"format": 0'), "has format 0")):
        (tmp_path / "config.json").write_text(text)
        status, _, err = scripts(script, tmp_path, *question)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(trained: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(EXPERIMENTS / "how_it_learns.ipynb", as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "committed without outputs"
    (tmp_path / "experiments").mkdir()
    shutil.copytree(trained, tmp_path / "runs" / "calculator")  # where the notebook looks: ../runs/calculator
    place = {"metadata": {"path": str(tmp_path / "experiments")}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    total, actual = (float(re.search(rf"{line} .*?([\d.]+) nats$", text, re.MULTILINE).group(1))
                     for line in ("sum .* credit", "actual drop"))  # fmt: skip
    assert actual == pytest.approx(total, rel=0.01)
    assert "shares together: 1.0000" in text
    pictures = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    assert sum("treescope" in data.get("text/html", "") for data in pictures) >= 2
    assert any("image/png" in data for data in pictures)
