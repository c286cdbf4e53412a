"""Whatever is changed in a run's files is found, and the newest good state comes back."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import bits, bits_at, check_same_run, copied, differs, files, metrics, names, tell, train

from jaxcalc import InputError, TrainState, runs
from jaxcalc.runs import checkpoint, folder, session
from jaxcalc.runs.config import RunConfig
from jaxcalc.runs.configfile import changes

N_FLIPS, N_FLIPS_LONG = 150, 1_000
BLOCK = 512


def like(run: Path) -> TrainState:
    return runs.read_config(run).state_like()


@pytest.fixture(scope="module")
def saved(stopped_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run's checkpoints, of which each test leaves every file as it was."""
    return copied(stopped_run, tmp_path_factory.mktemp("saved") / "run") / "checkpoints"


def is_found(folder: Path, step: int, like: TrainState) -> bool:
    """Return whether a damaged checkpoint is refused as such, by its name."""
    try:
        checkpoint.restore(folder, step, like)
    except checkpoint.DamagedError as error:
        return str(folder / f"{step:06}") in str(error)
    return False


def flips(paths: list[Path], n: int, chance: random.Random) -> Iterator[tuple[Path, bytes]]:
    """Yield files and their bytes with a bit flipped: each file a few times, then any bit of all of them."""
    each = n // 4 // len(paths)
    assert each >= 1
    sizes = [path.stat().st_size for path in paths]
    for path in paths * each + chance.choices(paths, sizes, k=n - each * len(paths)):
        yield path, differs(path.read_bytes(), chance)


def check_all_flips_are_found(folder: Path, n: int) -> int:
    state, chance, n_found = like(folder.parent), random.Random(0), 0
    paths = sorted(path for path in (folder / "000040").rglob("*") if path.is_file())
    for path, changed in flips(paths, n, chance):
        good = path.read_bytes()
        path.write_bytes(changed)
        n_found += is_found(folder, 40, state)
        path.write_bytes(good)
    assert n_found == n
    assert bits(checkpoint.restore(folder, 40, state)[0])  # and nothing but the flips was found
    return n_found


def test_every_flipped_bit_is_found(saved: Path) -> None:
    check_all_flips_are_found(saved, N_FLIPS)


@pytest.mark.faults
def test_every_one_of_many_flipped_bits_is_found(saved: Path, record_property: Callable[[str, object], None]) -> None:
    tell(record_property, flips=N_FLIPS_LONG, found=check_all_flips_are_found(saved, N_FLIPS_LONG))


@pytest.mark.faults
def test_every_flipped_bit_of_a_manifest_is_found(saved: Path, record_property: Callable[[str, object], None]) -> None:
    """One of each byte: text that is no text, numbers that are others, names, and the checksum itself."""
    path, chance, state = saved / "000040" / "manifest.json", random.Random(2), like(saved.parent)
    good, n_found = path.read_bytes(), 0
    for index in range(len(good)):
        changed = bytearray(good)
        changed[index] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(changed))
        n_found += is_found(saved, 40, state)
    path.write_bytes(good)
    assert n_found == len(good)
    tell(record_property, manifest_flips=len(good), found=n_found)


def shortened(data: bytes, n: int) -> Iterator[bytes]:
    """Yield a file cut off at its start, in its middle, before its end, and at others in between."""
    for index in sorted({0, 1, len(data) - 1, *(len(data) * step // n for step in range(1, n))}):
        if index < len(data):
            yield data[:index]


def zeroed(data: bytes) -> Iterator[bytes]:
    """Yield a file with each of its blocks lost."""
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        if any(block):
            yield data[:start] + bytes(len(block)) + data[start + BLOCK :]


@pytest.mark.parametrize("n", [4, pytest.param(100, marks=pytest.mark.faults)])
def test_every_file_that_is_cut_or_partly_lost_is_found(saved: Path, n: int) -> None:
    state, n_done = like(saved.parent), 0
    for path in sorted(path for path in (saved / "000040").rglob("*") if path.is_file()):
        good = path.read_bytes()
        for changed in (*shortened(good, n), *zeroed(good), good + b"\0", good + good):
            path.write_bytes(changed)
            assert is_found(saved, 40, state), (path, len(changed))
            n_done += 1
        path.write_bytes(good)
    assert n_done > 60


def test_every_file_that_is_missing_or_of_another_checkpoint_is_found(saved: Path, tmp_path: Path) -> None:
    state, n_exchanged = like(saved.parent), 0
    for name, good in files(saved / "000040").items():
        path, other = saved / "000040" / name, saved / "000020" / name
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(checkpoint.DamagedError):
            checkpoint.restore(saved, 40, state)
        path.write_bytes(other.read_bytes() if other.exists() else b"other")
        if path.read_bytes() != good:
            assert is_found(saved, 40, state), name
            n_exchanged += 1
        (tmp_path / "elsewhere").replace(path)
    assert n_exchanged > 5
    (saved / "000040" / "d" / "more").write_text("")
    assert is_found(saved, 40, state)
    (saved / "000040" / "d" / "more").unlink()
    checkpoint.restore(saved, 40, state)


def test_a_checkpoint_under_the_name_of_another_step_is_found(saved: Path) -> None:
    copied(saved / "000020", saved / "000050")
    assert is_found(saved, 50, like(saved.parent))
    shutil.rmtree(saved / "000050")


@pytest.mark.parametrize("name", ["40", "0000050", "²", "٤٠"])
def test_a_folder_that_no_writer_names_so_is_not_in_the_way(stopped_run: Path, tmp_path: Path, name: str) -> None:
    folder = copied(stopped_run / "checkpoints", tmp_path / "checkpoints")
    copied(folder / "000020", folder / name)
    told: list[str] = []
    state, _ = checkpoint.restore_newest(folder, like(stopped_run), told.append)
    assert int(state.step) == 40


def damage(folder: Path, how: str, step: int) -> None:
    """Damage a checkpoint in one of a few ways."""
    path = folder / f"{step:06}"
    largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    if how == "flip":
        largest.write_bytes(differs(largest.read_bytes(), random.Random(3)))
    elif how == "cut":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif how == "missing":
        largest.unlink()
    elif how == "manifest":
        (path / "manifest.json").write_bytes(b"")
    elif how == "unreadable":  # a folder where a file was
        largest.unlink()
        largest.mkdir()
    elif how == "exchanged":
        shutil.copytree(folder / "000020", path, dirs_exist_ok=True)


@pytest.mark.parametrize("how", ["flip", "cut", "missing", "manifest", "unreadable", "exchanged"])
def test_the_newest_good_one_comes_back_and_the_bad_ones_are_kept_aside(
    stopped_run: Path, tmp_path: Path, how: str
) -> None:
    folder = copied(stopped_run, tmp_path / "run") / "checkpoints"
    for step in (30, 40):
        damage(folder, how, step)
    bad = files(folder / "000040")
    told: list[str] = []
    state, manifest = checkpoint.restore_newest(folder, like(stopped_run), told.append)
    assert (int(state.step), manifest["step"]) == (20, 20)
    assert bits(state) == bits_at(stopped_run, 20)
    assert len(told) == 2
    for text, step in zip(told, (40, 30), strict=True):
        assert f"{step:06} " in text or f"{step:06}/" in text
        assert "damaged" in text
        assert f"kept as {step:06}.damaged, going back to an earlier checkpoint" in text
    assert checkpoint.steps(folder) == [0, 10, 20]
    assert files(folder / "000040.damaged") == bad


def test_a_run_goes_on_from_before_the_damage_bit_for_bit(stopped_run: Path, small_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    damage(run / "checkpoints", "flip", 40)
    bad = files(run / "checkpoints" / "000040")
    ended = train("--resume", run)
    assert ended.status == 0, ended.err
    assert "warning: " in ended.err
    assert "kept as 000040.damaged, going back to an earlier checkpoint" in ended.err
    assert files(run / "checkpoints" / "000040.damaged") == bad
    shutil.rmtree(run / "checkpoints" / "000040.damaged")
    check_same_run(run, small_run)


def test_a_checkpoint_that_is_damaged_twice_is_kept_once(stopped_run: Path, tmp_path: Path) -> None:
    folder = copied(stopped_run, tmp_path / "run") / "checkpoints"
    copied(folder / "000040", folder / "000040.damaged")
    damage(folder, "cut", 40)
    bad = files(folder / "000040")
    checkpoint.restore_newest(folder, like(stopped_run), lambda _: None)
    assert files(folder / "000040.damaged") == bad


def test_without_a_good_checkpoint_nothing_is_deleted(stopped_run: Path, tmp_path: Path) -> None:
    run = copied(stopped_run, tmp_path / "run")
    for step in runs.checkpoint_steps(run):
        damage(run / "checkpoints", "missing", step)
    found = sorted(files(run).values())
    ended = train("--resume", run)
    assert ended.status == 2
    assert "holds no checkpoint that is complete and undamaged; train again from the start" in ended.err
    assert sorted(files(run).values()) == found
    assert ended.err.count("warning: ") == 5


@pytest.mark.parametrize("how", ["flipped", "shorter", "gone", "a line less"])
def test_metrics_that_are_damaged_are_refused_and_nothing_is_lost(stopped_run: Path, tmp_path: Path, how: str) -> None:
    run = copied(stopped_run, tmp_path / "run")
    path = run / "metrics.jsonl"
    good = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        lines = good.splitlines(keepends=True)
        changed = {"flipped": differs(good, random.Random(4)), "shorter": good[:-1], "a line less": b"".join(lines[1:])}
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
    """What is no JSON, no option, no number, another number: never a traceback, and never another run unnoticed."""
    run = copied(stopped_run, tmp_path / "run")
    good, chance = (run / "config.json").read_bytes(), random.Random(5)
    before = files(run)
    n_refused, n_same, n = 0, 0, 250
    reached: list[RunConfig] = []
    monkeypatch.setattr(session, "MetricsFile", lambda *_: pytest.fail("a step further"))
    resume = folder.resume

    def only_resume(path: Path, config: RunConfig, warn: Callable[[str], None], like: TrainState) -> None:
        resume(path, config, warn, like)
        reached.append(config)
        raise InputError("it would go on")

    monkeypatch.setattr(folder, "resume", only_resume)
    wrong: list[str] = []
    for _ in range(n):
        changed = differs(good, chance)
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
    for config in reached:  # it is the same run but for what may be changed in one
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
