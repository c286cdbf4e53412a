"""The experiments that train many models: a grid of them, and one for each share of the table."""

import json
from pathlib import Path

import data_efficiency
import jax
import pytest
import sweep
from data_efficiency import DataEfficiencyOptions
from sweep import SweepOptions

import jaxcalc
from jaxcalc import InputError, runs
from jaxcalc.runs.config import KeepingConfig, ScheduleConfig, SizesConfig, TaskConfig
from jaxcalc.runs.options import TrainOptions

MODEL = SizesConfig(d_model=16, n_heads=2, d_ff=32, n_layers=1)


@pytest.mark.slow
def test_a_sweep_trains_every_cell_and_judges_it_by_all_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SweepOptions(
        out=tmp_path / "sweep",
        json=True,
        task=TaskConfig(("plus",), 9, held_out=0.2),
        model=MODEL,
        steps=40,
        batch_size=16,
        seeds=(3, 4),
        learning_rate=(1e-4, 2e-2),
        weight_decay=(0.0, 1.0),
        threshold=0.1,
    )
    assert sweep.main(options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((options.out / "sweep.json").read_text())
    assert (options.out / "sweep.png").stat().st_size > 10_000
    assert len(result["models"]) == 8
    assert {cell["n_seeds"] for cell in result["cells"]} == {2}

    found = next(row for row in result["models"] if (row["seed"], row["learning_rate"]) == (4, 2e-2))
    task = options.task.make(seed=4)
    config = jaxcalc.ModelConfig(task.vocab_size, 16, 2, 32, 1, task.context_length)
    tx = jaxcalc.make_optimizer("muon", 40, 2e-2, 0.0)
    state = jaxcalc.create_state(jaxcalc.init(jax.random.key(4), config), tx)
    state, metrics = jaxcalc.train_steps(state, task, seed=4, n_steps=40, batch_size=16)
    assert found["loss"] == pytest.approx(float(metrics["loss"][-1]), rel=0.02)  # the same run, alone
    assert result["models"][0]["loss"] > 2 * found["loss"]  # a rate of 1e-4 learns too little


def test_a_cell_is_the_share_of_its_seeds_that_reach_the_threshold() -> None:
    models = [
        {"learning_rate": 0.1, "weight_decay": 0.0, "held_out_exact_match": share} for share in (0.98, 0.99, 1.0, 0.5)
    ]
    (cell,) = sweep.cells(models, threshold=0.99)
    assert cell == {
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "probability": 0.5,
        "median": 0.985,
        "worst": 0.5,
        "n_seeds": 4,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": (1, 1)}, "--seeds"),
        ({"threshold": 99.0}, "--threshold is 99.0"),
        ({"steps": 0}, "--steps is 0"),
        ({"task": TaskConfig(split="none", max_number=9)}, "--split none holds nothing out"),
        ({"learning_rate": (-1.0,), "batch_size": 16}, "learning_rate is -1.0"),
        ({"batch_size": 10**6}, "batch size is 1000000"),
    ],
)
def test_a_sweep_refuses_what_cannot_be_before_it_writes(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep.main(SweepOptions(**{"out": tmp_path / "sweep", "task": TaskConfig(max_number=9), **wrong}))
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match=r"sweep\.json exists"):
        sweep.main(SweepOptions(out=tmp_path))


def tiny_options(ops: tuple[str, ...], steps: int) -> TrainOptions:
    task, schedule = TaskConfig(ops, max_number=6), ScheduleConfig(steps=steps, batch_size=8)
    return TrainOptions(task=task, model=MODEL, schedule=schedule, keeping=KeepingConfig(snapshots=0))


@pytest.mark.slow
def test_data_efficiency_trains_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tiny_options(("plus", "times"), steps=10)
    options = DataEfficiencyOptions(out=tmp_path, json=True, held_out=(0.2, 0.6), seeds=(0, 1), train=small)
    assert data_efficiency.main(options) == 0
    first = json.loads(capsys.readouterr().out)
    assert [run["held_out"] for run in first["runs"]] == [0.2, 0.2, 0.6, 0.6]
    assert first["runs"][0]["n_train"] > first["runs"][2]["n_train"]
    assert first["shares"][1]["all"] == sorted(run["held_out_exact_match"] for run in first["runs"][2:])
    assert jaxcalc.load_run(tmp_path / "held_out_0.6_seed_1").task.held_out_rows.size > 0
    assert (tmp_path / "data_efficiency.png").stat().st_size > 10_000

    checkpoint_file = tmp_path / "held_out_0.2_seed_0" / runs.MODEL
    written = checkpoint_file.stat().st_mtime_ns
    assert data_efficiency.main(options) == 0
    assert checkpoint_file.stat().st_mtime_ns == written  # nothing is trained again
    with pytest.raises(InputError, match="trained with other options"):
        data_efficiency.main(DataEfficiencyOptions(out=tmp_path, held_out=(0.2,), seeds=(0,)))
    with pytest.raises(InputError, match=r"--train\.seed cannot be chosen"):
        data_efficiency.main(DataEfficiencyOptions(out=tmp_path, train=TrainOptions(schedule=ScheduleConfig(seed=1))))
    with pytest.raises(InputError, match=r"--train\.split none"):
        data_efficiency.main(DataEfficiencyOptions(out=tmp_path, train=TrainOptions(task=TaskConfig(split="none"))))


def test_data_efficiency_names_a_share_that_is_too_small(tmp_path: Path) -> None:
    small = tiny_options(("plus", "divided-by"), steps=1)
    with pytest.raises(InputError, match=r"--held-out 0\.05 holds out no problem of 'plus'"):
        data_efficiency.main(DataEfficiencyOptions(out=tmp_path, held_out=(0.5, 0.05), seeds=(0,), train=small))
    assert not list(tmp_path.iterdir())  # before anything was trained
