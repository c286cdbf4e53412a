"""Fixtures that several test modules share.

Runs, each trained once per session and shared by all test processes. Nobody writes into them; a test that changes a
run copies it first.

    small_run       all four operations up to 6, one block of width 16, 60 steps, snapshots at 0, 10, …, 60
    small_training  how train.py ended when it made that run: status, stdout, stderr
    stopped_run     the same run, stopped by SIGTERM after 40 of its steps
    drawn_run       additions up to 198, drawn, in reversed digits; 20 steps, snapshots at 0, 10 and 20
    default_run     the default task and model (two blocks of width 64), cut short: 120 steps of 256, 4 snapshots

`small_run` serves wherever any run does; `default_run` takes half a minute and is for slow tests.
"""

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import hypothesis
import jax
import pytest
from scripts import DRAWN, SMALL, Ended, run_script

import jaxcalc
from jaxcalc import runs

COMPILED = tempfile.TemporaryDirectory(prefix="jaxcalc-tests-")
QUICK_COMPILING = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # later versions do not know this flag; it divides compile time by three
    QUICK_COMPILING.append("--xla_cpu_use_fusion_emitters=false")

LONGEST = (
    "test_training.py",
    "test_readme.py",
    "test_processes.py",
    "test_engine.py",
    "test_kills.py",
    "test_lens.py",
    "test_blame.py",
    "test_population.py",
    "test_backprop.py",
    "test_sharding.py",
    "test_drawn.py",
    "test_watch.py",
)
"""The files of tests that take longest."""
DEFAULT = ("--steps", "120", "--batch-size", "256", "--snapshots", "4")
"""The options of `default_run`."""


def pytest_configure(config: pytest.Config) -> None:
    """Make eight devices of a CPU, and spend little time on compiling.

    A test's program runs for moments, so compiling it well costs more than it saves. What one process compiled, all
    others read from a cache.
    """
    jax.config.update("jax_num_cpu_devices", 8)
    if not hasattr(config, "workerinput"):  # in the process that starts the others, which inherit this
        os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK_COMPILING])
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # the cache warns in vain: github.com/jax-ml/jax/issues/38445
        jax.config.update("jax_compilation_cache_dir", COMPILED.name)  # JAX has read the environment already
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


# Property tests look at few cases, others each time; a failure prints how to repeat it. Look at more with:
# pytest --hypothesis-profile thorough
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None, print_blob=True)
hypothesis.settings.register_profile("thorough", max_examples=1_000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: each is run by one process, and a long one at the end would keep it alone busy."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs() -> Iterator[None]:
    """Forget compiled programs before they are too many: each is some memory maps, and Linux allows 65,530 of these."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 35_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def task() -> jaxcalc.Task:
    return jaxcalc.calculator()


@pytest.fixture(scope="session")
def params(task: jaxcalc.Task) -> jaxcalc.Params:
    """Parameters large enough that every path through the model matters."""
    params = jaxcalc.init(jax.random.key(1), jaxcalc.ModelConfig(task.vocab_size, context_length=task.context_length))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="session")
def batch(task: jaxcalc.Task) -> jaxcalc.Batch:
    return jaxcalc.batch_at(task, seed=0, step=0, size=16)


@contextlib.contextmanager
def shared(
    factory: pytest.TempPathFactory, request: pytest.FixtureRequest, name: str, make: Callable[[Path], None]
) -> Iterator[Path]:
    """Yield a folder that the first test process to come fills with `make`; check at the end that nobody changed it."""
    own = factory.getbasetemp()
    root = own.parent if hasattr(request.config, "workerinput") else own  # the parent is common to all workers
    folder = root / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    with filelock.FileLock(folder.with_suffix(".lock")):
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by one that failed
            folder.mkdir()
            make(folder)
            done.touch()
    before = _files(folder)
    yield folder
    assert _files(folder) == before, f"a test changed the shared {name}; it must copy it first"


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of each file in a folder, apart from those of locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".writer")]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def train(folder: Path, options: tuple[str, ...], status: int = 0) -> None:
    """Train folder/run with train.py, which must end with a status, and keep how it ended in folder/ended.json."""
    ended = run_script("train", "--run-dir", folder / "run", *options)
    assert ended.status == status, ended.err
    (folder / "ended.json").write_text(json.dumps(ended))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A finished run of the smallest size. Do not write into it."""
    with shared(tmp_path_factory, request, "small", lambda folder: train(folder, SMALL)) as folder:
        yield folder / "run"


@pytest.fixture(scope="session")
def small_training(small_run: Path) -> Ended:
    """How train.py ended when it made `small_run`."""
    return Ended(*json.loads(small_run.with_name("ended.json").read_text()))


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The run of `small_run`, stopped in order after 40 of its steps. Do not write into it."""

    def make(folder: Path) -> None:
        write, n_calls = runs.MetricsFile.write, 0

        def stop_at_seventh(self: runs.MetricsFile, *rows: dict) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 7:  # there are two calls every ten steps: losses, then the held-out results
                signal.raise_signal(signal.SIGTERM)
            write(self, *rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs.MetricsFile, "write", stop_at_seventh)
            train(folder, SMALL, 128 + signal.SIGTERM)
        steps = [row["step"] for row in runs.read_metrics(folder / "run") if "loss" in row]
        assert steps == list(range(1, 41))

    with shared(tmp_path_factory, request, "stopped", make) as folder:
        yield folder / "run"


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A finished run whose problems are drawn. Do not write into it."""
    with shared(tmp_path_factory, request, "drawn", lambda folder: train(folder, DRAWN)) as folder:
        yield folder / "run"


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A finished run of the default task and model, after a tenth of the steps. Do not write into it."""
    with shared(tmp_path_factory, request, "default", lambda folder: train(folder, DEFAULT)) as folder:
        yield folder / "run"
