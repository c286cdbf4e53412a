"""A session makes a training loop survive: it locks the run's folder, saves, stops in order, and goes on.

    with open_session("runs/mine", {"rate": 1e-3}) as session:
        state = session.begin(start)        # the newest checkpoint in the folder, or else start()
        while int(state.step) < 300:
            state, metrics = jaxcalc.train_step(state, batch)
            session.log({"step": int(state.step), "loss": float(metrics["loss"])})
            session.keep(state)             # saves now and then

After Ctrl-C or SIGTERM the session saves the state and leaves the `with` block. A kill loses only what came after the
newest checkpoint. The same script, started again, goes on from there.
"""

import contextlib
import functools
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcalc import evaluation
from jaxcalc.errors import InputError
from jaxcalc.runs import checkpoint, claim, folder, placement
from jaxcalc.runs.config import KeepingConfig, RunConfig
from jaxcalc.runs.configfile import CONFIG, AnyConfig, Json, environment, to_json, write_config
from jaxcalc.runs.files import CHECKPOINTS, SUMMARY, Mark, PathLike
from jaxcalc.runs.guard import Guard
from jaxcalc.runs.metrics import METRICS, MetricsFile
from jaxcalc.runs.programs import QUICK_TO_COMPILE, compile_in_background
from jaxcalc.scale import processes
from jaxcalc.tasks.task import Task
from jaxcalc.training import TrainState

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Ends the `with` block of a session before the loop has ended; `open_session` catches it."""


@contextlib.contextmanager
def open_session(
    path: PathLike, config: AnyConfig, *, resume: bool | None = None, overwrite: bool = False
) -> Iterator["Session"]:
    """Hold a run's folder while a loop trains; yield the session that keeps the run.

    Args:
      path: the run's folder.
      config: what config.json says of the run: a `RunConfig` or any JSON object.
      resume: whether to go on with the run in the folder; if left out, whether the folder holds one.
      overwrite: replace the run in the folder.

    Raises `InputError` if the folder holds something else, or if another process writes to it.
    """
    path = Path(path)
    resuming = not overwrite and (path / CONFIG).exists() if resume is None else resume
    _silence_orbax()
    with contextlib.ExitStack() as held:
        again = f"go on from the last checkpoint with: python experiments/train.py --resume {path}"
        held.enter_context(processes.together(again))
        caught = held.enter_context(_signals())
        if not resuming and processes.is_main():
            claim.check_free(path, overwrite)
        # The other processes write the same files to a folder of their own, which is thrown away.
        own = path if processes.is_main() else Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(claim.writing(own))
        processes.wait("process 0 has the folder")
        session = Session(path, own, config, resuming, overwrite, caught, held)
        try:
            yield session
            session.end()
        except Stopped:
            print(session.stopped, file=sys.stderr)


class Session:
    """What `open_session` yields. A loop calls `begin`, then `log` and `keep` after each step or chunk of steps."""

    def __init__(
        self,
        path: Path,
        own: Path,
        config: AnyConfig,
        resuming: bool,
        overwrite: bool,
        caught: list[int],
        held: contextlib.ExitStack,
    ) -> None:
        self.path, self.config = path, config
        self.stopped, self.status = "", 0
        self._own, self._resuming, self._overwrite, self._caught, self._held = own, resuming, overwrite, caught, held
        self._keeping = config.keeping if isinstance(config, RunConfig) else KeepingConfig()
        self._snapshots = config.snapshot_steps if isinstance(config, RunConfig) else (0,)
        self._info: Json = {"config": to_json(config), "environment": environment(config)}
        self._resumed: tuple[TrainState, Mark] | None = None
        self._state: TrainState | None = None

    def prepare(
        self, start: Callable[[], TrainState], steps: functools.partial[Any], task: Task
    ) -> tuple[Callable[[], TrainState], Callable[..., Any]]:
        """Compile the programs of a run ahead of time, and return what takes the place of `start` and of `steps`.

        The new `start` returns the newest checkpoint, or the state of a fork, or what `start` returned, on the run's
        mesh. The new `steps` writes a line per step to metrics.jsonl, and leaves out or stops at a step that is not
        finite. Only for a session with a `RunConfig`.

        Args:
          start: returns the state of step 0.
          steps: `jaxcalc.train_steps` with its static arguments.

        Raises `InputError` if the run does not fit into memory (before its state is allocated and before the folder
        is changed), and if nothing is left to do.
        """
        config = self.config
        assert isinstance(config, RunConfig)
        self._info["vocabulary"] = list(task.tokenizer.vocabulary)
        like = placement.placed(jax.eval_shape(start), config)
        placement.check_state_fits(like, config)
        if self._resuming:
            self._restore(like)
        if self._resumed:
            step, last = int(self._resumed[0].step), config.schedule.steps
            if last < step or (last == step and (self.path / SUMMARY).exists()):
                raise InputError(f"{self.path} is at step {step:,} already; --steps is {last:,}, so nothing is left")
        first = jax.jit(start, compiler_options=QUICK_TO_COMPILE)
        is_new = not self._resumed and not config.forked_from
        also = [first.lower] if is_new else []
        self.compiled = placement.compiled(steps, task, like, config, *also, meanwhile=checkpoint.import_orbax)
        whole = jax.tree.map(processes.whole_like, like.params)
        compile_in_background(functools.partial(evaluation.lowered, whole, task))

        def begin() -> TrainState:
            return self.begin(lambda: placement.placed(first_state(), config).replace(**_functions(like)), like)

        def first_state() -> TrainState:
            if config.forked_from:
                source, _, step = config.forked_from.rpartition("@")
                state, _ = folder.load_checkpoint(source, folder.read_config(Path(source)), int(step))
                return state
            return first()

        spread_task = placement.spread(task, like)
        guard = Guard(self.path, config, task, spread_task, self.compiled.call, self.log, self.stop)
        return begin, guard.steps

    def _restore(self, like: TrainState) -> None:
        warn = functools.partial(print, "warning:", file=sys.stderr)
        resumed = folder.resume(self.path, self.config, warn, like)
        if resumed:
            state, manifest = resumed
            self._resumed = state, manifest["metrics"]

    def begin(self, start: Callable[[], TrainState], like: TrainState | None = None) -> TrainState:
        """Return the state from which training goes on: the newest checkpoint in the folder, or else `start()`.

        Raises `InputError` if the checkpoints are damaged or of another run.
        """
        if like is None and self._resuming:
            self._restore(jax.eval_shape(start))
        mark = None
        if self._resumed:
            state, mark = self._resumed
        else:
            state = start()
            claim.start_run(self._own, self.config, self._overwrite or self._resuming)
        own_mark = mark if processes.is_main() else None
        self._metrics = self._held.enter_context(MetricsFile(self._own / METRICS, own_mark))
        (self._own / SUMMARY).unlink(missing_ok=True)
        if self._resumed:  # only now: a finished run keeps the configuration that it was finished with
            write_config(self._own, self.config)
        processes.wait("the run is begun")
        writer = checkpoint.Writer(self.path / CHECKPOINTS, self._info, self._snapshots, self._keeping.keep)
        self._writer = self._held.enter_context(writer)
        self._state = state
        self._save()
        self._stop_if_told()
        return state

    @property
    def steps_done(self) -> int:
        """The step of the newest state that the session has seen."""
        return 0 if self._state is None else int(self._state.step)

    def log(self, *rows: Mapping[str, object]) -> None:
        """Append rows to metrics.jsonl. Raises `InputError` if the disk is full."""
        self._metrics.write(*rows)

    def keep(self, state: TrainState, first: int | None = None) -> None:
        """Save the state if a checkpoint is due; after a signal, save it in any case and leave the `with` block.

        Args:
          state: the state after some steps.
          first: the step before them; if left out, one less than the state's.

        Raises `InputError` if a checkpoint could not be written.
        """
        self._state = state
        step, every = int(state.step), self._keeping.checkpoint_every
        first = step - 1 if first is None else first
        if step in self._snapshots or step // every > first // every or processes.agree(self._writer.failed()):
            self._save()
        self._stop_if_told()

    def stop(self, why: str, status: int, state: TrainState) -> None:
        """Save a state, and leave the `with` block with this message and exit status."""
        self._state = state
        self._save_last()
        self.stopped, self.status = why, status
        raise Stopped

    def end(self) -> None:
        """Save the newest state; from here on a signal ends the process at once, since all is saved."""
        self._save_last()
        self._stop_if_told()
        for number in SIGNALS:
            signal.signal(number, lambda number, _: sys.exit(128 + number))

    def _stop_if_told(self) -> None:
        number = processes.agree(self._caught[0] if self._caught else 0)
        if number:
            assert self._state is not None
            self.stop(self._stopped_by(number, int(self._state.step)), 128 + number, self._state)

    def _stopped_by(self, number: int, step: int) -> str:
        name = signal.Signals(number).name
        if not isinstance(self.config, RunConfig):
            return f"Stopped by {name} after step {step:,}, which is saved. Start the script again to go on."
        return (
            f"Stopped by {name} after {step:,} of {self.config.schedule.steps:,} steps, all of which are saved.\n"
            f"Go on:        python experiments/train.py --resume {self.path}\n"
            f"Finish here:  python experiments/train.py --resume {self.path} --steps {step}"
        )

    def _save(self) -> None:
        assert self._state is not None
        missing = int(self._state.step) not in folder.checkpoint_steps(self.path)
        if processes.agree(processes.is_main() and missing):
            self._writer.save(self._state, metrics=self._metrics.mark())

    def _save_last(self) -> None:
        if self._state is not None:  # else the session was left before it had begun
            jax.block_until_ready(self._state)
            self._writer.wait()
            self._save()
            self._writer.wait()


def _functions(like: TrainState) -> dict[str, Any]:
    """Return the very functions that were compiled: a compiled program takes no others."""
    return {"apply_fn": like.apply_fn, "tx": like.tx}


def _silence_orbax() -> None:
    """Orbax logs what it raises as well, and leaves coroutines behind when a save fails."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda what: str(what.exc_value) == "Event loop is closed" or sys.__unraisablehook__(what)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Note the first SIGINT or SIGTERM in the list that is yielded; the second ends the process at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        caught.append(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Unbuffered: the signal may interrupt a write to the same stream.
        with contextlib.suppress(OSError):  # the reader of stderr may be gone
            os.write(2, b"\nstopping after these steps; a second time ends at once and saves nothing\n")

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
