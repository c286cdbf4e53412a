"""Two commits of this project side by side, for benchmark.py --compare."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark_conditions import ROOT, commit, git  # beside this script
from benchmark_processes import Training, environment, train
from timing import ratio, rounds, summary

from jaxcalc.errors import InputError
from jaxcalc.scale.cost import n_cores

COMMAND = ["--steps", "100"]
"""Options of train.py, as a command that begins cold and as one that finds the cache of the one before."""


def resolved(names: Sequence[str]) -> list[str]:
    """Return the hashes of one or two commits. Raises `InputError` for more, and for a name that is no commit."""
    if len(names) > 2:
        raise InputError(f"--compare takes one commit or two, not {len(names)}")
    hashes = []
    for name in names:
        found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if found is None:
            raise InputError(f"--compare {name}: there is no such commit in {ROOT}")
        hashes.append(found)
    return hashes


def compare(hashes: Sequence[str], quick: bool) -> dict[str, Any]:
    """Return how many times as fast the second of two commits is, in steps of training and in commands.

    Each commit has a process, and the two take turns. A single commit is compared with this checkout as it stands.

    Raises `InputError` for a commit that cannot be measured.
    """
    with checkouts(hashes) as checked_out:
        rows = compared_steps(checked_out, quick) + compared_commands(checked_out, quick)
        return {"commits": [name for name, _ in checked_out], "rows": rows}


@contextlib.contextmanager
def checkouts(hashes: Sequence[str]) -> Iterator[list[tuple[str, Path]]]:
    """Yield two commits' names and files; the files are in a temporary folder, which SIGTERM removes as well."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="jaxcalc-compare-") as folder:
            found = []
            for index, name in enumerate(hashes):
                root = Path(folder) / str(index)
                archive = ["git", "-C", str(ROOT), "archive", name]
                files = subprocess.run(archive, check=True, capture_output=True).stdout
                with tarfile.open(fileobj=io.BytesIO(files)) as tar:
                    tar.extractall(root, filter="data")
                found.append((name[:7], root))
            yield [*found, (f"{commit()} here", ROOT)][:2]
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def worker(name: str, root: Path, cache: Path, quick: bool) -> Iterator[Callable[[str], Any]]:
    """Yield a function that sends a line to benchmark_worker.py, with the jaxcalc of a commit, and returns its answer.

    The function raises `InputError` if the commit lacks what is timed.
    """
    here = Path(__file__).parent
    path = {"PYTHONPATH": os.pathsep.join([str(root), str(here)]), "JAX_NUM_CPU_DEVICES": str(n_cores())}
    command = [sys.executable, "-c", "import benchmark_worker; benchmark_worker.main()", "quick" if quick else "full"]
    pipes = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile("w+") as errors:
        process: Any = subprocess.Popen(command, env=environment(cache, root) | path, cwd=root, stderr=errors, **pipes)

        def ask(line: str) -> Any:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{line}\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                errors.seek(0)
                *_, last = ["its process ended", *errors.read().strip().splitlines()]
                raise InputError(f"{name} cannot be measured: {last}")
            return json.loads(answer)

        try:
            yield ask
        finally:
            process.kill()
            process.communicate()


def compared_steps(checked_out: list[tuple[str, Path]], quick: bool) -> list[dict[str, Any]]:
    """Return a row for each training step that both commits can take, in ms."""
    with contextlib.ExitStack() as held:
        cache = Path(held.enter_context(tempfile.TemporaryDirectory()))
        first, second = (held.enter_context(worker(name, root, cache, quick)) for name, root in checked_out)
        also, rows = second("cases"), []
        for case in first("cases"):
            if case not in also:
                print(f"{case}: only the first commit has it", file=sys.stderr)
                continue
            taken = rounds({"first": lambda case=case: first(case), "second": lambda case=case: second(case)}, quick)
            rows.append(row(case, "ms", [[1e3 * seconds for seconds in each.seconds] for each in taken.values()]))
    return rows


def compared_commands(checked_out: list[tuple[str, Path]], quick: bool) -> list[dict[str, Any]]:
    """Return rows for a short train.py, cold and warm: seconds to the first steps and to the end."""
    taken: dict[str, list[list[float]]] = {}

    def note(index: int, start: str, training: Training) -> None:
        for what, seconds in (("first steps", training.first_steps), ("end", training.whole)):
            taken.setdefault(f"{start} command, {what}", [[], []])[index].append(seconds)

    for number in range(1 if quick else 3):
        for index, (name, root) in list(enumerate(checked_out))[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as cache:
                try:
                    note(index, "cold", train(COMMAND, Path(cache), root))
                    note(index, "warm", train(COMMAND, Path(cache), root))
                except RuntimeError as error:
                    raise InputError(f"{name} cannot be measured: {error}") from error
    return [row(name, "s", seconds) for name, seconds in taken.items()]


def row(what: str, unit: str, values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return how two commits compare in one thing: both medians, and how many times as fast the second one is."""
    first, second = values
    medians = {"first": summary(first)["median"], "second": summary(second)["median"]}
    times = ratio(first, second)
    return {"what": what, "unit": unit, **medians, "times_as_fast": times.pop("median"), **times}
