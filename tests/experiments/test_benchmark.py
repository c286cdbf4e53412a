"""The benchmark: what it compares is the same thing, and what it prints is what it measured."""

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import benchmark
import benchmark_commits
import benchmark_conditions
import benchmark_processes
import benchmark_systems
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timing
from benchmark import BenchmarkOptions
from benchmark_processes import Training, training_row
from benchmark_rows import multiples, step_row, useful_flops
from benchmark_tables import growth_figure
from scripts import run_script
from timing import Rounds

import jaxcalc
from jaxcalc import Batch, InputError, Params
from jaxcalc.scale import cost

TASK = jaxcalc.calculator(max_number=6)
CONFIG = jaxcalc.ModelConfig(TASK.vocab_size, 16, n_heads=2, d_ff=32, n_layers=1, context_length=TASK.context_length)


@pytest.fixture(scope="module")
def small() -> tuple[Params, Batch]:
    params = jaxcalc.init(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)
    return params, jaxcalc.batch_of(TASK, TASK.tokens[:8])


def test_linen_takes_the_same_step(small: tuple[Params, Batch]) -> None:
    ours, _ = benchmark_systems.jaxcalc_step(*small)
    theirs, _ = benchmark_systems.linen_step(*small)
    state, metrics = ours()
    linen_state, loss = theirs()
    assert loss == pytest.approx(float(metrics["loss"]), rel=1e-5)
    np.testing.assert_allclose(
        state.params["output"]["unembed"], linen_state.params["unembed"]["kernel"], rtol=1e-3, atol=1e-5
    )


def test_pytorch_takes_the_same_step(small: tuple[Params, Batch]) -> None:
    torch = pytest.importorskip("torch")
    from baseline_torch import Model, to_torch, train_step

    params, batch = small
    config = jaxcalc.config_of(params)
    model = Model(config)
    model.load_state_dict({name: torch.tensor(leaf) for name, leaf in to_torch(params).items()})
    logits = model(torch.tensor(np.array(batch.tokens[:, :-1], np.int64))).detach().numpy()
    np.testing.assert_allclose(logits, jaxcalc.apply(params, batch.tokens[:, :-1]), rtol=1e-3, atol=1e-4)
    step = train_step(config, np.asarray(batch.tokens), np.asarray(batch.mask), 1e-3, 1e-4, 1.0, to_torch(params))
    ours, _ = benchmark_systems.jaxcalc_step(params, batch)
    _, metrics = ours()
    assert float(step()) == pytest.approx(float(metrics["loss"]), rel=1e-4)
    state, _ = ours()
    second = jaxcalc.loss(state.params, batch)
    assert float(step()) == pytest.approx(float(second), rel=1e-3)  # after one step of each optimizer


def test_the_scanned_steps_go_on_learning(small: tuple[Params, Batch]) -> None:
    call, cost = benchmark_systems.jaxcalc_steps(small[0], TASK, 16)
    first, later = call()["loss"], [call() for _ in range(4)][-1]["loss"]
    assert first.shape == (benchmark_systems.STEPS_PER_CALL,)
    assert later.mean() < first.mean()
    assert cost["compile_seconds"] > 0
    assert cost["memory_mib"] > 0


@pytest.mark.slow
def test_a_population_goes_on_learning() -> None:
    call, _ = benchmark_systems.population_steps(CONFIG, TASK, n_models=3, size=16)
    first, later = call()["loss"], [call() for _ in range(4)][-1]["loss"]
    assert first.shape == (3, benchmark_systems.STEPS_PER_CALL)
    assert (later.mean(axis=1) < first.mean(axis=1)).all()


@pytest.mark.slow
def test_the_recipe_steps_are_those_of_train() -> None:
    with benchmark_systems.recipe_steps() as (call, cost):
        first, later = call()["loss"], [call() for _ in range(4)][-1]["loss"]
    assert later.mean() < first.mean()
    assert cost["memory_mib"] > 0


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("n_answers", [2, 5])
def test_the_useful_products_are_those_of_the_gradient(n_layers: int, n_answers: int) -> None:
    config = jaxcalc.ModelConfig(11, 16, n_heads=2, d_ff=48, n_layers=n_layers, context_length=6)
    params = jaxcalc.init(jax.random.key(0), config)
    batch = Batch(jnp.ones((4, 7), int), jnp.ones((4, n_answers)))
    traced = jax.make_jaxpr(jax.value_and_grad(jaxcalc.loss))(params, batch)
    assert 4 * useful_flops(params, 6, n_answers) == cost.flops(traced)


def test_the_speed_of_a_step_is_its_flops_over_its_time(small: tuple[Params, Batch]) -> None:
    params, n_answers = small[0], 3
    row = step_row(params, size=8, length=10, n_answers=n_answers, steps=Rounds([0.5, 0.5], [4e9, 4e9]))
    assert row["examples_per_second"] == 16
    assert row["ms"] == 500
    assert row["gflops"] == pytest.approx(6 * jaxcalc.count(params) * 10 * 16 / 1e9)
    assert row["share_of_peak"] == pytest.approx(row["gflops"] / 4)
    assert row["useful_share"] == pytest.approx(16 * useful_flops(params, 10, n_answers) / 4e9)
    assert (row["peak_gflops"], row["spread"], row["noisy"]) == (4, 0, False)


def test_a_share_of_the_peak_is_taken_within_each_round(small: tuple[Params, Batch]) -> None:
    """The machine is half as fast in one round: the share stays, and the spread says so."""
    flops = 6 * jaxcalc.count(small[0]) * 10 * 8
    row = step_row(small[0], 8, 10, 3, Rounds([1.0, 2.0, 1.0, 2.0], [2 * flops, flops, 2 * flops, flops]))
    assert row["share_of_peak"] == 0.5
    assert row["noisy"]


def test_the_spread_is_the_middle_half_over_the_median() -> None:
    assert timing.summary([9, 10, 10, 11, 99]) == {"median": 10, "spread": 0.1, "noisy": False}
    assert timing.summary([7, 8, 10, 11, 12]) == {"median": 10, "spread": 0.3, "noisy": True}
    assert timing.summary([5]) == {"median": 5, "spread": None, "noisy": False}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    ours, theirs = [1, 4, 2], [3, 12, 4]  # the second round was slow for both, the third for us
    assert timing.ratio(theirs, ours)["median"] == 3
    assert np.median(theirs) / np.median(ours) == 2


def test_functions_take_turns_and_the_peak_is_the_faster_of_its_neighbours() -> None:
    order: list[str] = []
    peaks = iter(range(100, 200))

    def turn(name: str) -> float:
        order.append(name)
        return len(order)

    taken = timing.rounds({name: lambda name=name: turn(name) for name in "abc"}, quick=True, peak=lambda: next(peaks))
    assert "".join(order) == "abccbaabc"
    assert taken["a"] == Rounds([1, 6, 7], [101, 107, 109])
    assert taken["c"] == Rounds([3, 4, 9], [103, 105, 111])


def test_a_turn_warms_up_and_measure_returns_medians() -> None:
    order: list[str] = []

    def called(name: str) -> jax.Array:
        order.append(name)
        return jnp.zeros(())

    seconds = timing.measure({name: lambda name=name: called(name) for name in "ab"}, quick=True)
    assert seconds.keys() == {"a", "b"}
    assert all(second > 0 for second in seconds.values())
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"] * 3  # warm-up, forwards, backwards, forwards


def test_a_multiple_is_that_of_the_better_pytorch_at_the_same_length() -> None:
    steps = {
        ("train_step", 8): Rounds([1, 2, 1], []),
        ("Flax Linen", 8): Rounds([1, 2, 1], []),
        ("PyTorch", 8): Rounds([3, 6, 3], []),
        ("torch.compile", 8): Rounds([2, 4, 9], []),
        ("PyTorch", 15): Rounds([5, 5, 5], []),
    }
    rows = multiples(steps, length=8, size=64)
    assert [(row["to"], row["ratio"]) for row in rows] == [
        ("PyTorch, T 15", 5),
        ("PyTorch, same T", 2),
        ("Linen, same T", 1),
    ]
    assert [row["noisy"] for row in rows] == [True, True, False]


def test_a_training_is_the_median_of_its_seeds() -> None:
    def run(first: float, second: float, whole: float) -> Training:
        summary = {"held_out_exact_match": 0.99, "examples_per_second": 7.0, "steps": 600}
        return Training(1.0, [(0.98, first), (0.99, second)], whole, summary)

    row = training_row("sums", "cold", [run(1, 9, 10), run(2, 8, 11), run(3, float("inf"), 12)])
    assert row["thresholds"] == {"0.98": 2, "0.99": 9, "0.995": None, "0.999": None}
    assert (row["whole"], row["held_out"], row["steps"], row["seeds"]) == (11, 0.99, 600, 3)


def test_a_process_is_watched_while_it_writes(tmp_path: Path) -> None:
    """It notes when lines arrive, passes the caches on, and says what a process that failed has printed."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "train.py").write_text(
        """
import json, os, sys, time
run = sys.argv[2]
os.mkdir(run)
if "--fail" in sys.argv:
    sys.exit("error: no such thing")
with open(f"{run}/metrics.jsonl", "w") as file:
    print('{"step": 1}', file=file, flush=True)
    time.sleep(0.4)
    print('{"by_operation": {}, "held-out_exact_match": 0.5}', file=file, flush=True)
    time.sleep(0.4)
with open(f"{run}/summary.json", "w") as file:
    json.dump({"cache": os.environ["XDG_CACHE_HOME"], "path": os.environ["PYTHONPATH"]}, file)
"""
    )
    training = benchmark_processes.train([], tmp_path / "cache", tmp_path)
    assert training.summary == {"cache": str(tmp_path / "cache"), "path": str(tmp_path)}
    ((match, checked),) = training.checks
    assert match == 0.5
    assert training.first_steps < checked < training.whole
    with pytest.raises(RuntimeError, match="failed: error: no such thing"):
        benchmark_processes.train(["--fail"], tmp_path / "cache", tmp_path)


def test_the_conditions_say_what_else_the_machine_did(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([(100.0, 5.0, 10.0), (100.5, 5.0, 10.25)])
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(benchmark_conditions, "_cpu_seconds", lambda: next(used))
    monkeypatch.setattr(benchmark_conditions.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmark_conditions.os, "cpu_count", lambda: 1)
    with benchmark_conditions.observed() as conditions:
        pass
    assert (conditions["seconds"], conditions["others_cpu"], conditions["stolen_cpu"]) == (2, 0.125, 0)
    assert len(conditions["load"]) == 2
    assert {"cpu", "cores", "device", "jax", "commit", "began"} <= conditions.keys()


CONDITIONS = {
    "cpu": "abacus",
    "cores": 2,
    "python": "3.11",
    "jax": "0.10",
    "commit": "abc1234+",
    "quick": False,
    "seconds": 90.4,
    "load": [0.5, 1.25],
    "others_cpu": 0.31,
    "stolen_cpu": None,
}
STEP = {
    "system": "train_step",
    "batch": 64,
    "length": 8,
    "ms": 1.5,
    "spread": 0.25,
    "noisy": True,
    "examples_per_second": 42_000.0,
    "share_of_peak": 0.5,
    "useful_share": 0.4,
    "peak_gflops": 99.6,
}
POPULATION = {
    "models": 4,
    "batch": 64,
    "ms_at_once": 2.0,
    "ms_one_after_another": 5.0,
    "times_as_fast": 2.5,
    "spread": 0.01,
    "noisy": False,
    "compile_seconds": 1.0,
    "memory_mib": 7.4,
}
TRAINING = {
    "task": "sums",
    "start": "warm",
    "steps": 600,
    "first_steps": 4.56,
    "thresholds": {"0.98": 9.0, "0.99": 10.0, "0.995": 12.34, "0.999": None},
    "whole": 20.0,
    "spread": 0.03,
    "noisy": False,
    "held_out": 0.9973,
}
TIMES = {"ratio": 2.5, "spread": 0.3, "noisy": True}
COMPARED = {"what": "train_step 64", "unit": "ms", "first": 4.0, "second": 2.0, "times_as_fast": 2.0}
RESULT: dict[str, Any] = {
    "steps": {
        "conditions": CONDITIONS,
        "rows": [STEP, {**STEP, "system": "PyTorch", "length": 15, "spread": 0.2, "noisy": False}],
        "ratios": [{"system": "train_step", "batch": 64, "to": "PyTorch, T 15", **TIMES}],
    },
    "populations": {"conditions": CONDITIONS, "rows": [POPULATION]},
    "training": {"conditions": CONDITIONS, "rows": [TRAINING]},
    "compare": {
        "conditions": CONDITIONS,
        "commits": ["aaa", "bbb"],
        "rows": [{**COMPARED, "spread": 0.25, "noisy": True}, {**COMPARED, "spread": None, "noisy": False}],
    },
}


def test_the_tables_are_made_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(RESULT))
    assert benchmark.main(BenchmarkOptions(markdown=path)) == 0
    out = capsys.readouterr().out
    assert out.count("abacus, 2 cores, with python 3.11, jax 0.10") == 1
    assert "| train_step | 64 | 1.50 | 25% noisy | 42,000 | 50% | 40% | – |" in out
    assert "| PyTorch, T 15 | 64 | 1.50 | 20% | 42,000 | 50% | 40% | – |" in out
    assert "| train_step | 64 | 2.50 noisy | – | – |" in out
    assert "| 4 | 64 | 2.00 | 1% | 5.00 | 2.50 | 1.0 | 7 |" in out
    assert "| sums: steps | first | 98.0% |" in out
    assert "| 600, warm | 4.6 | 9.0 | 10.0 | 12.3 | – | 20.0 | 3% | 99.7% |" in out
    assert "| train_step 64 | 4.00 ms | 2.00 ms | 2.00 | 25% noisy |" in out
    assert "| train_step 64 | 4.00 ms | 2.00 ms | 2.00 | – |" in out
    assert "| steps | abc1234+ | 100 to 100 | 0.5 → 1.2 | 31% | – | 90 |" in out


def test_sections_that_are_not_measured_stay_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # JAX has started here
    asked = [{"start": "cold", "seconds": 2.0, "spread": 0.1, "noisy": False}]
    monkeypatch.setitem(benchmark.SECTIONS, "ask", lambda quick: {"rows": asked})
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(RESULT))
    assert benchmark.main(BenchmarkOptions(json=path, only=("ask",))) == 0
    result = json.loads(path.read_text())
    assert list(result) == ["steps", "populations", "ask", "training", "compare"]
    assert result["ask"]["rows"] == asked
    assert result["ask"]["conditions"].keys() >= {"load", "commit", "seconds"}
    assert result["steps"] == RESULT["steps"]
    assert "ask.py, cold" in capsys.readouterr().out


def test_a_file_that_is_none_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(InputError, match=r"other\.json is not a file that --json wrote"):
        benchmark.main(BenchmarkOptions(markdown=tmp_path / "other.json"))
    with pytest.raises(InputError, match=r"other\.json is not a file that --json wrote"):
        benchmark.main(BenchmarkOptions(json=tmp_path / "other.json", only=("ask",)))
    with pytest.raises(InputError, match="there is no folder"):
        benchmark.main(BenchmarkOptions(json=tmp_path / "nowhere" / "file.json"))


def test_what_is_no_commit_is_refused_in_one_line() -> None:
    for names, why in (["nonsense"], "there is no such commit in"), ([*"abc"], "takes one commit or two, not 3"):
        ended = run_script("benchmark", "--compare", *names)
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith("error: --compare ")
        assert why in ended.err
        assert ended.err.count("\n") == 1


@pytest.fixture
def head() -> str:
    (found,) = benchmark_commits.resolved(["HEAD"]) if benchmark_conditions.commit() else pytest.skip("not in Git")
    return found


@pytest.mark.parametrize("stopped", [False, True])
def test_the_files_of_a_commit_are_gone_afterwards(head: str, stopped: bool) -> None:
    def use() -> Path:
        with benchmark_commits.checkouts([head]) as ((name, root), (_, here)):
            assert (name, here) == (head[:7], benchmark_conditions.ROOT)
            assert (root / "jaxcalc" / "__init__.py").is_file()
            roots.append(root)
            if stopped:
                signal.raise_signal(signal.SIGTERM)
        return root

    roots: list[Path] = []
    if stopped:
        with pytest.raises(SystemExit, match="143"):
            use()
    else:
        use()
    assert not roots[0].exists()
    assert signal.getsignal(signal.SIGTERM) is not None


def test_a_commit_that_lacks_what_is_timed_is_named(tmp_path: Path) -> None:
    (tmp_path / "jaxcalc").mkdir()
    (tmp_path / "jaxcalc" / "__init__.py").touch()
    refused = pytest.raises(InputError, match=r"abc1234 cannot be measured: AttributeError: module 'jaxcalc' has no")
    with benchmark_commits.worker("abc1234", tmp_path, tmp_path / "cache", quick=True) as ask, refused:
        ask("cases")


@pytest.mark.slow
def test_a_commit_is_as_fast_as_itself(head: str) -> None:
    with benchmark_commits.checkouts([head, head]) as both:
        rows = benchmark_commits.compared_steps(both, quick=True)
    assert {"train_step 256", "train_steps 512, Muon"} <= {row["what"] for row in rows}
    assert all(row["first"] > 0 and row["second"] > 0 for row in rows)


def test_the_figure_shows_every_size(tmp_path: Path) -> None:
    growth = [
        {"axis": axis, "size": first * 2**power, "ratio": 2.0**power}
        for axis, first in benchmark.GROWTH.items()
        for power in range(3)
    ]
    growth_figure(tmp_path / "growth.png", growth)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
