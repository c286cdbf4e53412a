"""Run the scripts of experiments/ from tests: in this process, or in one of their own.

Starting Python and importing JAX takes seconds, so tests call a script in this process with `run_script`. Only tests
of processes themselves (signals, kills, several processes) start one with `start_script`.
"""

import ast
import contextlib
import importlib
import io
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

TINY = (
    "--max-number", "6", "--batch-size", "32", "--model.d-model", "16", "--model.n-heads", "2", "--model.d-ff", "32",
    "--model.n-layers", "1", "--held-out", "0.2",
)  # fmt: skip
"""Options of the smallest task and model."""
STEPS = 60
SMALL = (*TINY, "--steps", str(STEPS), "--checkpoint-every", "20")
"""The options of the fixture `small_run`."""
DRAWN = (
    "--notation", "digits-reversed", "--ops", "plus", "--max-number", "198", "--model.d-model", "16",
    "--model.n-heads", "2", "--model.d-ff", "32", "--model.n-layers", "1", "--batch-size", "64",
    "--optimizer", "adamw", "--steps", "20", "--snapshots", "3", "--json",
)  # fmt: skip
"""The options of the fixture `drawn_run`."""


class Ended(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


def run_script(name: str, *arguments: object, stdin: str = "") -> Ended:
    """Run experiments/NAME.py with the arguments in this process, from what stands under its `if __name__ == ...`.

    The module is imported once per test process, so what it compiled is kept.
    """
    jax.devices()  # start JAX, so that a script with a mesh cannot choose the number of devices for all tests
    module = importlib.import_module(name)
    path = EXPERIMENTS / f"{name}.py"
    *_, guard = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(guard, ast.If), f"{path} does not end with: if __name__ == '__main__'"
    code = compile(ast.Module(guard.body, type_ignores=[]), path, "exec")
    out, err = io.StringIO(), io.StringIO()
    status: Any = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # a script may set its own, for its own process
        try:
            exec(code, vars(module))
        except SystemExit as stop:
            status = stop.code
    return Ended(int(status or 0), out.getvalue(), err.getvalue())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment of a process that a test may kill.

    It reads the programs that other processes compiled and writes none: a kill would leave half of one.
    """
    return {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9", **more}


def start_two(name: str, *arguments: object) -> "list[subprocess.Popen[str]]":
    """Start a script in two processes that share a mesh, as its three flags for processes say."""
    where = ["--coordinator-address", f"localhost:{free_port()}", "--num-processes", "2", "--process-id"]
    command = [sys.executable, EXPERIMENTS / f"{name}.py", *map(str, arguments), *where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, str(index)], env=child_environment(), **pipes) for index in range(2)]


def start_script(
    name: str, *arguments: object, before: Sequence[object] = (), **options: Any
) -> "subprocess.Popen[str]":
    """Start experiments/NAME.py in a process of its own, with as many devices as this one has.

    Args:
      before: what stands before the script on the command line, such as another script that runs it.
      options: those of `subprocess.Popen`; stdout and stderr are pipes of text.
    """
    environment = child_environment(JAX_NUM_CPU_DEVICES=str(jax.device_count()), MPLBACKEND="agg")
    command = [sys.executable, *map(str, before), EXPERIMENTS / f"{name}.py", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{"env": environment, **pipes, **options})
