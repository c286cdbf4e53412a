"""The guard of a run: it logs every step, and leaves out or stops at a step that is not finite."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxcalc.backprop import NonFinite, first_nonfinite
from jaxcalc.batch import Batch, batch_at
from jaxcalc.reprs import outline
from jaxcalc.runs.config import RunConfig
from jaxcalc.runs.configfile import write_json
from jaxcalc.runs.files import NONFINITE, write_whole
from jaxcalc.runs.metrics import read_metrics
from jaxcalc.scale import processes
from jaxcalc.tasks.task import Task
from jaxcalc.training import Metrics, TrainState

NOT_FINITE = 3
"""The exit status after a step that was not finite."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """Calls the compiled steps of a run so that no step which is not finite goes unseen."""

    path: Path
    """The run's folder."""
    config: RunConfig
    task: Task
    spread_task: Task
    """The task as the compiled steps take it: on every device of a mesh."""
    call: Callable[..., tuple[TrainState, Metrics]]
    """The compiled steps."""
    log: Callable[..., None]
    """Appends rows to metrics.jsonl."""
    stop: Callable[[str, int, TrainState], None]
    """Ends the run: why, the exit status, the state to save."""

    __repr__ = outline

    def steps(self, state: TrainState, task: Task, *, seed: int, stop: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Return the state at step `stop`, and the metrics, a value per step that was made.

        A step that is not finite is left out as often as --skip-nonfinite allows; after that the session stops, with
        the state before the step.
        """
        parts: list[dict[str, np.ndarray]] = []
        while True:
            step = int(state.step)
            state, metrics = self.call(state, self.spread_task, seed=seed, stop=stop)
            done = int(state.step)
            made = {name: np.asarray(values)[: done - step] for name, values in metrics.items()}
            self.log(*rows_of(step, made))
            parts.append(made)
            if done < stop:
                state = self._leave_out(state, {name: float(values[-1]) for name, values in metrics.items()})
            if done + 1 >= stop:
                return state, {name: np.concatenate([part[name] for part in parts]) for name in made}

    def _leave_out(self, state: TrainState, metrics: dict[str, float]) -> TrainState:
        """Return the state with the step after it left out; `metrics` are of that step."""
        step, path = int(state.step), self.path
        wrong = self._examine(state, metrics)
        n_skipped = sum("skipped" in row for row in read_metrics(path)) if processes.is_main() else 0
        if processes.agree(n_skipped) >= self.config.keeping.skip_nonfinite:
            why = (
                f"Stopped: {wrong}. The state of step {step:,}, before it, is saved. Leave such a step out with:\n"
                f"  python experiments/train.py --resume {path} --skip-nonfinite {n_skipped + 1}"
            )
            self.stop(why, NOT_FINITE, state)
        if processes.is_main():
            print(f"warning: {wrong}; step {step + 1:,} is left out", file=sys.stderr)
        self.log({"step": step + 1, "skipped": wrong})
        return state.replace(step=state.step + 1)

    def _examine(self, state: TrainState, metrics: dict[str, float]) -> str:
        """Save the batch of a step that was not finite, and return what was wrong and where it began."""
        step, params = int(state.step), processes.whole(state.params)
        if not processes.is_main():
            return ""
        schedule = self.config.schedule
        batch = batch_at(self.task, schedule.seed, step, schedule.batch_size, schedule.loss_on)
        found = first_nonfinite(params, batch)
        values = {name: metrics[name] for name in ("loss", "grad_norm")}
        file = save_nonfinite(self.path, step + 1, batch, found, values)
        return (
            f"step {step + 1:,} is not finite (loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}), "
            f"first in: {found or 'the update'}; its batch is in {file}"
        )


def rows_of(first: int, metrics: dict[str, np.ndarray]) -> list[dict[str, float | int]]:
    """Return a row for each of the steps `first` + 1, `first` + 2, …

    >>> rows_of(4, {"loss": np.array([2.5, 1.5])})
    [{'step': 5, 'loss': 2.5}, {'step': 6, 'loss': 1.5}]
    """
    columns = (values.tolist() for values in metrics.values())
    return [
        {"step": step, **dict(zip(metrics, values, strict=True))}
        for step, values in enumerate(zip(*columns, strict=True), first + 1)
    ]


def save_nonfinite(path: Path, step: int, batch: Batch, found: NonFinite | None, metrics: dict[str, float]) -> Path:
    """Write the batch of a step that was not finite, and beside it where that began; return the batch's file."""
    file = path / NONFINITE / f"{step:06}.safetensors"
    file.parent.mkdir(exist_ok=True)
    values = {name: str(value) for name, value in metrics.items()}
    write_json(
        file.with_suffix(".json"), {"step": step, "metrics": values, "first": found._asdict() if found else None}
    )
    arrays = {"tokens": np.asarray(batch.tokens), "mask": np.asarray(batch.mask)}
    write_whole(file, [safetensors.numpy.save(arrays)])
    return file
