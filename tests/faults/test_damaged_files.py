"""Damage to a run's metrics.jsonl or config.json is found, and nothing is lost."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import bits_at, copied, files, metrics, names, tell, train, with_flipped_bit

from jaxcalc import InputError, TrainState, runs
from jaxcalc.runs import folder, session
from jaxcalc.runs.configfile import changes


@pytest.mark.parametrize("how", ["flipped", "shorter", "gone", "a line less"])
def test_metrics_that_are_damaged_are_refused_and_nothing_is_lost(stopped_run: Path, tmp_path: Path, how: str) -> None:
    run = copied(stopped_run, tmp_path / "run")
    path = run / "metrics.jsonl"
    good = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        lines = good.splitlines(keepends=True)
        changed = {
            "flipped": with_flipped_bit(good, random.Random(4)),
            "shorter": good[:-1],
            "a line less": b"".join(lines[1:]),
        }
        path.write_bytes(changed[how])
    found = files(run)
    ended = train("--resume", run)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert str(path) in ended.err
    if how != "gone":
        assert f"the first {len(good):,} bytes of {path} are not those that were written; put back" in ended.err
    assert files(run) == found
    path.write_bytes(good)
    assert bits_at(run, 40) == bits_at(stopped_run, 40)
    assert metrics(run) == metrics(stopped_run)


def test_metrics_after_the_newest_checkpoint_are_cut_off(stopped_run: Path, tmp_path: Path) -> None:
    config = runs.read_config(stopped_run)
    run = copied(stopped_run, tmp_path / "run")
    for more in (b'{"step": 41, "loss": 1.0}\n', b'{"step": 42, "lo', b"\0\0\0\0"):
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(more)
    with runs.writing(run):
        resumed = runs.resume(run, config, pytest.fail, config.state_like())
        assert resumed is not None
        _, manifest = resumed
        with runs.MetricsFile(run / "metrics.jsonl", manifest["metrics"]):
            pass
    assert metrics(run) == metrics(stopped_run)


CHANGES = [
    ('"learning_rate": 0.04', '"learning_rate": 0.05', "optimizer.learning_rate is 0.04 there and 0.05 here"),
    ('"weight_decay": 0.25', '"weight_decay": 0.35', "optimizer.weight_decay is 0.25 there and 0.35 here"),
    ('"batch_size": 32', '"batch_size": 33', "schedule.batch_size is 32 there and 33 here"),
    ('"schedule_steps": 60', '"schedule_steps": 70', "schedule.schedule_steps is 60 there and 70 here"),
    ('"held_out": 0.2', '"held_out": 0.3', "task.held_out is 0.2 there and 0.3 here"),
    ('"loss_on": "answer"', '"loss_on": "all"', "schedule.loss_on is answer there and all here"),
    ('"clip_norm": null', '"clip_norm": 1.0', "optimizer.clip_norm is None there and 1.0 here"),
]


def test_a_configuration_in_which_digits_are_others_is_refused_with_each(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    text = (run / "config.json").read_text()
    for old, new, message in CHANGES:
        assert old in text
        (run / "config.json").write_text(text.replace(old, new))
        found = files(run)
        ended = train("--resume", run)
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), message
        assert ended.err.endswith(f"is of another run than config.json: {message}\n")
        assert files(run) == found
    both = text.replace(*CHANGES[0][:2]).replace(*CHANGES[1][:2]).replace('"seed": 0', '"seed": 1')
    (run / "config.json").write_text(both)
    err = train("--resume", run).err
    for message in (CHANGES[0][2], CHANGES[1][2], "schedule.seed is 0 there and 1 here"):
        assert message in err


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:The field .* is annotated with type:UserWarning")
def test_a_configuration_of_which_a_bit_is_flipped_is_refused_in_one_line_or_means_the_same(
    stopped_run: Path, tmp_path: Path, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the flip makes of it, there is no traceback, and no other run goes on unnoticed."""
    run = copied(stopped_run, tmp_path / "run")
    good, chance = (run / "config.json").read_bytes(), random.Random(5)
    before = files(run)
    n_refused, n_same, n = 0, 0, 250
    reached: list[runs.RunConfig] = []
    monkeypatch.setattr(session, "MetricsFile", lambda *_: pytest.fail("a step further"))
    resume = folder.resume

    def only_resume(path: Path, config: runs.RunConfig, warn: Callable[[str], None], like: TrainState) -> None:
        resume(path, config, warn, like)
        reached.append(config)
        raise InputError("it would go on")

    monkeypatch.setattr(folder, "resume", only_resume)
    wrong: list[str] = []
    for _ in range(n):
        changed = with_flipped_bit(good, chance)
        (run / "config.json").write_bytes(changed)
        try:
            ended = train("--resume", run)
        except Exception as error:
            wrong.append(f"{type(error).__name__} {error}")
            continue
        if ended.status != 2 or not ended.err.startswith("error: "):
            wrong.append(f"{ended.status}, {ended.err}")
        n_same += "it would go on" in ended.err
        n_refused += "it would go on" not in ended.err
    (run / "config.json").write_bytes(good)
    assert not wrong, "\n".join(wrong)
    assert n_refused > n / 2
    for config in reached:  # only options differ that may change when a run is resumed
        assert not changes(runs.read_config(run), config)
    assert files(run) == before
    tell(record_property, flips=n, refused=n_refused, of_what_may_change=n_same)


def test_a_lost_configuration_is_one_line(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    (run / "config.json").unlink()
    ended = train("--resume", run)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"error: {run} is not a run folder: it has no config.json\n"
    (run / "config.json").write_bytes(b"\0" * 800)
    ended = train("--resume", run)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "config.json" in ended.err
    assert "checkpoints/000040" in names(run)
