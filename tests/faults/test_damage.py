"""Any change in the files of a checkpoint is found, and the newest good state comes back."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import bits, bits_at, check_same_run, copied, files, tell, train, with_flipped_bit

from jaxcalc import TrainState, runs
from jaxcalc.runs import checkpoint

N_FLIPS, N_FLIPS_LONG = 150, 1_000
BLOCK = 512


def like(run: Path) -> TrainState:
    return runs.read_config(run).state_like()


@pytest.fixture(scope="module")
def saved(stopped_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run; each test puts back every file that it changes."""
    return copied(stopped_run, tmp_path_factory.mktemp("saved") / "run") / "checkpoints"


def is_found(folder: Path, step: int, like: TrainState) -> bool:
    """Return whether restoring a checkpoint raises `DamagedError` with its path."""
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
        yield path, with_flipped_bit(path.read_bytes(), chance)


def check_all_flips_are_found(folder: Path, n: int) -> int:
    state, chance, n_found = like(folder.parent), random.Random(0), 0
    paths = sorted(path for path in (folder / "000040").rglob("*") if path.is_file())
    for path, changed in flips(paths, n, chance):
        good = path.read_bytes()
        path.write_bytes(changed)
        n_found += is_found(folder, 40, state)
        path.write_bytes(good)
    assert n_found == n
    assert bits(checkpoint.restore(folder, 40, state)[0])  # the last file is good again
    return n_found


def test_every_flipped_bit_is_found(saved: Path) -> None:
    check_all_flips_are_found(saved, N_FLIPS)


@pytest.mark.faults
def test_every_one_of_many_flipped_bits_is_found(saved: Path, record_property: Callable[[str, object], None]) -> None:
    tell(record_property, flips=N_FLIPS_LONG, found=check_all_flips_are_found(saved, N_FLIPS_LONG))


@pytest.mark.faults
def test_every_flipped_bit_of_a_manifest_is_found(saved: Path, record_property: Callable[[str, object], None]) -> None:
    """One bit in each byte: this breaks the encoding, numbers, names and the checksum itself."""
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
    """Yield a file cut to nothing, to one byte, to all but one byte, and at places in between."""
    for index in sorted({0, 1, len(data) - 1, *(len(data) * step // n for step in range(1, n))}):
        if index < len(data):
            yield data[:index]


def zeroed(data: bytes) -> Iterator[bytes]:
    """Yield a file with one block after the other set to zero."""
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
    data = [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    largest = max(data, key=lambda file: file.stat().st_size)
    if how == "flip":
        largest.write_bytes(with_flipped_bit(largest.read_bytes(), random.Random(3)))
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
