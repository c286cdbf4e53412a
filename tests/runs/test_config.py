"""The configuration of a run: one field per option, on the command line and in config.json."""

import dataclasses
import json
import sys

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcalc
from jaxcalc import InputError
from jaxcalc.runs import cli
from jaxcalc.runs.config import KeepingConfig, OptimizerConfig, RunConfig, ScheduleConfig, SizesConfig, TaskConfig
from jaxcalc.runs.configfile import changes, from_json, to_json
from jaxcalc.runs.options import SECTIONS, TrainOptions, configure, defaults

FORMAT_3 = {
    "format": 3,
    "task": {
        "operations": ["plus", "divided by"], "seed": 3, "max_number": 20, "output": "reversed", "split": "family",
        "held_out": 0.2, "copies": {"times": 4, "divided by": 4}, "inverse_copies": {"times": 1, "divided by": 1},
    },
    "model": {"vocab_size": 26, "d_model": 32, "n_heads": 2, "d_ff": 64, "n_layers": 1, "context_length": 5},
    "snapshot_steps": [0, 10, 60], "seed": 5, "steps": 60, "schedule_steps": 120, "batch_size": 64,
    "optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 6.4, "clip_norm": None, "loss_on": "all",
    "snapshots": 3, "checkpoint_every": 20, "keep": 1, "skip_nonfinite": 2, "dtype": "float32", "microbatches": 2,
    "remat": False, "scan": True, "mesh": "data=2", "fully_sharded": False,
    "forked_from": {"run": "runs/a@b", "step": 40},
}  # fmt: skip


def test_format_3_is_read() -> None:
    config = from_json(FORMAT_3, "config.json")
    assert config.task == TaskConfig(
        ("plus", "divided-by"),
        max_number=20,
        output="digits-reversed",
        split="family",
        held_out=0.2,
        copies=4,
        inverse_copies=1,
    )
    assert config.model == SizesConfig(32, 2, 64, 1)
    assert config.optimizer == OptimizerConfig("adamw", 0.003, 6.4)
    assert config.schedule == ScheduleConfig(5, 60, 120, 64, "all")
    assert config.keeping == KeepingConfig(3, 20, 1, 2)
    assert (config.computing.microbatches, config.computing.scan, config.computing.mesh) == (2, True, "data=2")
    assert (config.task_seed, config.snapshot_steps, config.forked_from) == (3, (0, 10, 60), "runs/a@b@40")
    drawn = {**FORMAT_3, "task": {"operations": ["plus"], "seed": 0, "max_number": 999, "notation": "digits",
                                  "terms": 3, "held_out": 0.1}}  # fmt: skip
    assert from_json(drawn, "config.json").task == TaskConfig(("plus",), 999, "digits", 3)


@pytest.mark.parametrize(
    "config", [RunConfig(task=TaskConfig(max_number=7)), RunConfig(task=TaskConfig(("plus",), 98, "digits"))]
)
def test_a_task_made_while_a_function_is_traced_holds_arrays(config: RunConfig) -> None:
    jax.eval_shape(lambda: jaxcalc.init(jax.random.key(0), config.make_model()))  # the first to ask for this task
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(config.make_task()))


rates = st.none() | st.floats(0, 1)
optimizers = st.builds(OptimizerConfig, learning_rate=rates, weight_decay=rates, clip_norm=rates)


@given(st.builds(RunConfig, schedule=st.builds(ScheduleConfig), optimizer=optimizers))
def test_a_configuration_comes_back_from_json(config: RunConfig) -> None:
    assert from_json(json.loads(json.dumps(to_json(config))), "config.json") == config


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("task", "max_number", 99.5),
        ("task", "split", "half"),
        ("task", "ops", [1]),
        ("schedule", "steps", True),
        ("schedule", "batch_size", None),
        ("computing", "remat", 1),
        ("keeping", "keep", "2"),
        ("optimizer", "momentum", 0.9),
    ],
)
def test_a_value_of_another_type_is_named(section: str, name: str, value: object) -> None:
    values = to_json(RunConfig())
    values[section] = {**values[section], name: value}
    with pytest.raises(InputError, match=rf"a\.json was written by other code: .*{name}"):
        from_json(values, "a.json")


def test_what_may_change_is_said_by_the_field() -> None:
    longer = dataclasses.replace(RunConfig(), schedule=ScheduleConfig(steps=2000), keeping=KeepingConfig(keep=5))
    assert changes(RunConfig(), longer) == []
    other = dataclasses.replace(longer, schedule=ScheduleConfig(steps=2000, batch_size=64))
    assert changes(RunConfig(), other) == ["schedule.batch_size is 512 there and 64 here"]


def test_every_option_is_a_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        cli.run_script(lambda _: 0, TrainOptions, defaults)
    text = capsys.readouterr().out
    for section in SECTIONS:
        for each in dataclasses.fields(getattr(RunConfig(), section)):
            prefix = "model." if section == "model" else ""
            assert f"--{prefix}{each.name}".replace("_", "-") in text


def test_a_filled_configuration_says_every_number() -> None:
    config = dataclasses.replace(RunConfig(), schedule=ScheduleConfig(steps=50, seed=4)).filled()
    assert (config.task_seed, config.schedule.schedule_steps, config.snapshot_steps[0]) == (4, 50, 0)
    assert config.optimizer == OptimizerConfig("muon", 0.04, 0.25)
    assert config.snapshot_steps[-1] == 50
    assert config.filled() == config
    longer = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=500)).filled()
    assert longer.snapshot_steps[: len(config.snapshot_steps)] == config.snapshot_steps
    assert (longer.snapshot_steps[-1], longer.schedule.schedule_steps) == (500, 50)
    assert float(longer.make_schedule()(50)) == pytest.approx(0.0004)


def test_options_become_a_configuration() -> None:
    small = TaskConfig(ops=("plus",), max_number=5, split="none")
    options = TrainOptions(task=small, schedule=ScheduleConfig(batch_size=8))
    config = configure(options)
    assert config.task == options.task
    assert config.make_task().tokenizer.operations == ("plus",)
    assert config.make_model().vocab_size == config.make_task().vocab_size
    with pytest.raises(InputError, match="--terms is for problems that are drawn; add --notation"):
        configure(TrainOptions(task=TaskConfig(terms=3)))
    with pytest.raises(InputError, match="--keep is 0; it must be from 1 to"):
        configure(TrainOptions(keeping=KeepingConfig(keep=0)))
