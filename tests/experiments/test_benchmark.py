"""The benchmark: what it compares is the same thing, and what it prints is what it measured."""

import itertools
import json
from pathlib import Path

import benchmark
import benchmark_systems
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark import BenchmarkOptions
from benchmark_processes import TrainingTimes, soonest
from benchmark_tables import growth_figure
from timing import measure

import jaxcalc
from jaxcalc import Batch, InputError, Params

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


def test_the_speed_of_a_step_is_its_flops_over_its_time(small: tuple[Params, Batch]) -> None:
    row = benchmark.step_row(small[0], size=8, length=10, seconds=0.5, peak=2.0)
    assert row["examples_per_second"] == 16
    assert row["ms"] == 500
    assert row["gflops"] == pytest.approx(6 * jaxcalc.count(small[0]) * 10 * 16 / 1e9)
    assert row["share_of_peak"] == pytest.approx(row["gflops"] / 2)


def test_functions_take_turns_and_the_median_counts() -> None:
    order: list[str] = []

    def called(name: str) -> jax.Array:
        order.append(name)
        return jnp.zeros(())

    seconds = measure({name: lambda name=name: called(name) for name in ("a", "b")}, quick=True)
    assert seconds.keys() == {"a", "b"}
    assert all(second > 0 for second in seconds.values())
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"] * 3  # warm-up, forwards, backwards, forwards


def test_the_soonest_is_the_median_seed_of_the_shortest_training() -> None:
    def run(first: float, second: float) -> TrainingTimes:
        return TrainingTimes([(0.9, first), (0.99, second)], final=0.99, compile=1.0)

    by_steps = {100: [run(1, 9), run(2, 8), run(3, 7)], 200: [run(4, 5), run(5, 6), run(6, 7)]}
    assert soonest(by_steps, 0.9) == {"seconds": 2, "without_compilation": 1, "steps": 100}
    assert soonest(by_steps, 0.98) == {"seconds": 6, "without_compilation": 5, "steps": 200}
    assert soonest(by_steps, 0.999)["seconds"] is None


def test_the_tables_are_made_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "machine": {"cpu": "abacus", "cores": 2, "python": "3.11", "jax": "0.10"},
        "matmul_peak_gflops": 100.0,
        "train_step": [
            {
                "system": "Linen",
                "batch": 64,
                "length": 8,
                "ms": 1.5,
                "examples_per_second": 42_000.0,
                "gflops": 50.0,
                "share_of_peak": 0.5,
            }
        ],
        "population": [
            {
                "models": 4,
                "batch": 64,
                "ms_at_once": 2.0,
                "ms_one_after_another": 5.0,
                "times_as_fast": 2.5,
                "compile_seconds": 1.0,
                "memory_mib": 7.4,
            }
        ],
        "time_to_accuracy": {
            "sums": {"thresholds": {"0.995": {"seconds": 12.34, "without_compilation": None, "steps": 600}}}
        },
    }
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(result))
    assert benchmark.main(BenchmarkOptions(markdown=path)) == 0
    out = capsys.readouterr().out
    assert "abacus, 2 cores, with python 3.11, jax 0.10" in out
    assert "| Linen | 64 | 8 | 1.50 | 42,000 | 50 | 50% | – | – |" in out
    assert "| 4 | 64 | 2.00 | 5.00 | 2.50 | 1.0 | 7 |" in out
    assert "| sums | 99.5% | 12.3 | – | 600 |" in out
    assert "| float32 matmul peak | 100 GFLOP/s |" in out


def test_a_file_that_is_none_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(InputError, match=r"other\.json is not a file that --json wrote"):
        benchmark.main(BenchmarkOptions(markdown=tmp_path / "other.json"))
    with pytest.raises(InputError, match="there is no folder"):
        benchmark.main(BenchmarkOptions(json=tmp_path / "nowhere" / "file.json"))


def test_the_figure_shows_every_size(tmp_path: Path) -> None:
    growth = {
        axis: [{axis: first * 2**power, "ratio": 2.0**power} for power in range(3)]
        for axis, first in benchmark.GROWTH.items()
    }
    growth_figure(tmp_path / "growth.png", growth)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
