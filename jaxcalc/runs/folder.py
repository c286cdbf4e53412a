"""Run folders: what a training run leaves behind, and how it is read back strictly.

config.json        the options of the run: enough to rebuild its task and its untrained model, and to go on
metrics.jsonl      a line per training step; lines with held-out results between
checkpoints/       the whole training state at some steps, such as 000040: see `jaxcalc.runs.checkpoint`
model.safetensors  the trained parameters, an array per leaf, named by its path
summary.json       the results; written last, so a run without it is unfinished
learning_curve.png
explorer.html      the page that explore.py makes of all this
lens/              the figures and findings of lens.py
landscape/         the figures of landscape.py
nonfinite/         the batches whose step was not finite, and where it went wrong
.lock, .writer     there while a process writes to the folder
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcalc.backprop import Backward, walk
from jaxcalc.errors import InputError
from jaxcalc.model import config_of
from jaxcalc.params import Params
from jaxcalc.reprs import outline
from jaxcalc.runs import checkpoint
from jaxcalc.runs.asking import Answer, ask, next_word
from jaxcalc.runs.config import RunConfig
from jaxcalc.runs.configfile import (
    CONFIG,
    AnyConfig,
    Json,
    changes,
    check_config,
    environment,
    flat,
    from_json,
    read_config,
    to_json,
)
from jaxcalc.runs.files import CHECKPOINTS, MODEL, SUMMARY, PathLike
from jaxcalc.runs.manifest import Manifest, differences
from jaxcalc.runs.share import load_metadata, load_params
from jaxcalc.runs.summary import read_summary
from jaxcalc.scale import processes
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.task import Task

if TYPE_CHECKING:
    from jaxcalc.runs.account import Ledger
    from jaxcalc.training import TrainState  # and with it Flax, for which asking a model need not wait


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, read back: `load_run` returns it.

    Where a method takes a step, it is that of a snapshot; without one, the method takes the trained parameters.
    """

    path: Path
    config: RunConfig
    summary: Json
    task: Task
    params: Params

    @property
    def steps(self) -> list[int]:
        """The steps of the run's snapshots, ascending."""
        return checkpoint_steps(self.path)

    def at(self, step: int) -> Params:
        """Return the parameters of a snapshot; `jaxcalc.runs.load_snapshot` returns its whole training state.

        Raises `InputError` for a step without a snapshot (it lists those there are), and for a damaged one.
        """
        return load_snapshot(self, step).params

    def ask(self, question: str, step: int | None = None) -> Answer:
        """Return the model's answer to a question such as "two plus three", and what is right.

        Raises `InputError` as `at` does, and for a text that is not one question.
        """
        return ask(self._params(step), self.task, question)

    def walk(self, question: str, step: int | None = None) -> Iterator[Backward]:
        """Walk back from the surprise at a question's next word, as `jaxcalc.backprop.walk` does on a batch.

        "seven times eight equals fifty" asks for the word after: "six". Raises `InputError` as `ask` does, and for a
        question without an answer that the task contains.
        """
        return walk(self._params(step), next_word(self.task, question))

    def ledger(self, question: str, until: int | None = None, answer: int | None = None) -> "Ledger":
        """Return what brought the surprise at a question's answer to where it is: every step, stage and lesson.

        It takes the run again, in a few times the seconds of its training. `jaxcalc.runs.account.ledgers` does many
        questions at once, and raises what this raises.

        Args:
          until: the step at which the account ends; the last one if left out.
          answer: the number whose surprise it is; the right answer if left out.
        """
        from jaxcalc.runs.account import ledgers

        return ledgers(self.path, self.config, calculator_of(self), [question], until, [answer])[0]

    def _params(self, step: int | None) -> Params:
        return self.params if step is None else self.at(step)

    __repr__ = outline


def load_run(path: PathLike) -> Run:
    """Return a finished run, its task rebuilt and its parameters checked.

    Raises `InputError` for a folder that is missing, not a run, unfinished or written by other code, and for files
    that contradict each other.
    """
    path = Path(path)
    config = read_config(path)
    summary, _ = read_summary(path)
    params = load_params(path / MODEL)
    _check_model_file(path, config, summary)
    task = config.make_task()
    found = config_of(params)
    if found.vocab_size != task.vocab_size or found.context_length < task.context_length:
        raise InputError(
            f"{path / MODEL} has vocabulary {found.vocab_size} and context {found.context_length}; "
            f"the run's task needs {task.vocab_size} and {task.context_length}"
        )
    if found != config.make_model():
        raise InputError(f"{path / MODEL} holds a model of {found}, but {CONFIG} says {config.make_model()}")
    check_config(path, config)
    return Run(path, config, summary, task, params)


def _check_model_file(path: Path, config: RunConfig, summary: Json) -> None:
    """Raise `InputError` with every difference between the model file of a finished run and its other files."""
    metadata = load_metadata(path / MODEL)
    there, accuracy = metadata.get("config"), metadata.get("accuracy")
    if isinstance(there, dict):  # else other code wrote the file
        said = from_json(there, f"the configuration in {path / MODEL}")
        _refuse(f"{path / MODEL} is of another run than {CONFIG}", differences(_flat(said), _flat(config)))
    if isinstance(accuracy, dict):
        here = {name: summary.get(name) for name in accuracy}
        _refuse(f"{path / MODEL} is of another run than {SUMMARY}", differences(accuracy, here))


def _flat(config: RunConfig) -> Json:
    return flat(to_json(config))


def _refuse(why: str, changed: list[str]) -> None:
    if changed:
        raise InputError(f"{why}: {'; '.join(changed)}")


def calculator_of(run: Run) -> Calculator:
    """Return the task of a run that lists all its problems. Raises `InputError` for a run that draws them."""
    if not isinstance(run.task, Calculator):
        raise InputError(
            f"the problems of {run.path} were drawn; this needs a complete table, as a run without --notation has it"
        )
    return run.task


def checkpoint_steps(path: PathLike) -> list[int]:
    """Return the steps at which a run's folder holds a checkpoint, ascending."""
    return checkpoint.steps(Path(path) / CHECKPOINTS)


def load_snapshot(run: Run, step: int) -> "TrainState":
    """Return the training state of a run at a step, bit for bit as it was.

    Raises `InputError` for a step without a checkpoint (it lists those there are), for a damaged one, and for one of
    another run.
    """
    return load_checkpoint(run.path, run.config, step)[0]


def load_checkpoint(path: PathLike, config: RunConfig, step: int) -> "tuple[TrainState, Manifest]":
    """Return the training state of a run at a step, and the manifest; see `load_snapshot`."""
    steps = checkpoint_steps(path)
    if step not in steps:
        listed = f"there are {', '.join(map(str, steps))}" if steps else "it has none; train it again with --snapshots"
        raise InputError(f"{path} has no snapshot of step {step}; {listed}")
    state, manifest = checkpoint.restore(Path(path) / CHECKPOINTS, step, config.state_like())
    _check_same(Path(path), config, manifest)
    return state, manifest


def resume(
    path: Path, config: AnyConfig, warn: Callable[[str], None], like: "TrainState"
) -> "tuple[TrainState, Manifest] | None":
    """Return the newest good state of a run and its manifest, or None if the run ended before it had saved one.

    Only for a process that holds `writing`. It deletes what a killed writer left behind. It tells `warn` of that, of
    damaged checkpoints, and of every difference that may change the bits of the run.

    Args:
      like: the shapes of the state, and the shardings to restore it to.

    Raises `InputError` if no checkpoint is good, or if one is of another run (it lists every difference).
    """
    left: list[str] = []
    if processes.is_main():
        left = checkpoint.clean(path / CHECKPOINTS) + [file.name for file in path.glob("*.partial")]
        for file in path.glob("*.partial"):
            file.unlink()
    processes.wait("the folder is clean")
    if left:
        warn(f"removed what was not completely written: {', '.join(left)}")
    if not any((path / CHECKPOINTS).glob("[0-9]*")):
        check_config(path, config)
        warn(f"{path} has no checkpoint yet and begins anew")
        return None
    state, manifest = checkpoint.restore_newest(path / CHECKPOINTS, like, warn)
    _check_same(path, config, manifest)
    changed = differences(flat(manifest["environment"]), flat(environment(config)))
    if changed:
        warn(f"from here on the run is not bit for bit what it would have been: {'; '.join(changed)}")
    return state, manifest


def _check_same(path: Path, config: AnyConfig, manifest: Manifest) -> None:
    """Raise `InputError` with every difference between a run's configuration and that in a checkpoint."""
    where = f"{path / CHECKPOINTS}, step {manifest['step']:,},"
    there = from_json(manifest["config"], where) if isinstance(config, RunConfig) else manifest["config"]
    _refuse(f"{where} is of another run than {CONFIG}", changes(there, config))
    check_config(path, config)
