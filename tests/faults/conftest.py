"""Runs that the fault tests share; each is made once, and copied by who changes it."""

import signal
from pathlib import Path

import pytest
from harness import SHORT, steps_of, stop_at_write, train


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert train("--run-dir", path, *SHORT).status == 0
    return path


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped in order after 40 of its steps."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with stop_at_write(7):
        ended = train("--run-dir", path, *SHORT)
    assert ended.status == 128 + signal.SIGTERM
    assert steps_of(path) == list(range(1, 41))
    return path
