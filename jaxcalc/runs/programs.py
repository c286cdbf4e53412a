"""Compiled programs: kept on disk, so that the next start compiles nothing, and compiled several at once."""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import platform
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxlib import utils  # pyright: ignore[reportAttributeAccessIssue]

QUICK_TO_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""Compiler options for a program that runs once, on one sentence: compiling it takes a thousand times as long as
running it."""
if jax.__version_info__ < (0, 11):  # later versions do not know this option, which halves the time of compiling here
    QUICK_TO_COMPILE["xla_cpu_use_fusion_emitters"] = False
MOST_BYTES = 2**28
"""How large the folder of programs may grow; JAX then deletes those that were not used for longest."""


@functools.cache  # once per process
def keep_programs() -> None:
    """Keep compiled programs on disk: in $XDG_CACHE_HOME/jaxcalc/programs, where XDG_CACHE_HOME is ~/.cache if unset.

    Where the user has chosen a folder (JAX_COMPILATION_CACHE_DIR), JAX's own settings hold. A program is kept under a
    hash of its text, the compiler's version and options, and the devices. One that cannot be read or written is
    compiled, as if there were no folder.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        with contextlib.suppress(RuntimeError):  # a user without a home
            caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
            jax.config.update("jax_compilation_cache_dir", str(Path(caches, "jaxcalc", "programs", _processor())))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.__version_info__ < (0, 12):
        _read_in_silence()


Lower = Callable[[], jax.stages.Lowered]
"""Traces a program and returns what XLA is to compile."""


def compile_at_once(*programs: Lower, meanwhile: Callable[[], object] = lambda: None) -> list[jax.stages.Compiled]:
    """Return the compiled programs. XLA compiles one in a thread while Python traces the next and does `meanwhile`."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiling = [pool.submit(lower().compile) for lower in programs]
        meanwhile()
    return [program.result() for program in compiling]


def compile_in_background(lower: Lower) -> None:
    """Compile a program in a thread. Who calls it meanwhile waits for that thread: JAX compiles a program once."""

    def compile_it() -> None:
        with contextlib.suppress(Exception):  # who calls it is told
            lower().compile()

    threading.Thread(target=compile_it).start()


def _processor() -> str:
    """Return a name for the instructions of this CPU, so that machines that share a home keep programs apart."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            instructions = next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        instructions = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:8]}"


def _read_in_silence() -> None:
    """Keep XLA from logging an error for each program of a CPU that it reads.

    It takes two preferences of the compiler for instructions that the CPU lacks (jax-ml/jax issue 38445; version 0.12
    does not). What else it would log as an error while it reads or compiles is lost.
    """
    usual, reading = int(os.environ["TF_CPP_MIN_LOG_LEVEL"]), set[int]()  # JAX sets this variable if it is not set

    def begins(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/compile_requests_use_cache" and jax.default_backend() == "cpu":
            reading.add(threading.get_ident())
            utils.absl_set_min_log_level(3)  # only what ends the process

    def ends(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and reading:
            reading.discard(threading.get_ident())
            if not reading:
                utils.absl_set_min_log_level(usual)

    jax.monitoring.register_event_listener(begins)
    jax.monitoring.register_event_duration_secs_listener(ends)
