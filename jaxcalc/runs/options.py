"""The command line of a training script: a new run, one that goes on, or one that begins from another's checkpoint."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxcalc.batch import batch_at
from jaxcalc.errors import InputError
from jaxcalc.model import SIZES, SizeName
from jaxcalc.runs.config import (
    ComputingConfig,
    KeepingConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SizesConfig,
    TaskConfig,
)
from jaxcalc.runs.configfile import read_config
from jaxcalc.runs.manifest import differences
from jaxcalc.runs.placement import ProcessOptions, placed, use_devices

WithoutPrefix = tyro.conf.arg(name="")
SECTIONS = ("task", "model", "optimizer", "schedule", "computing", "keeping")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a calculator language model and leave a run folder that answers questions."""

    run_dir: Path = Path("runs/calculator")
    """Folder to write; it must not hold a run yet."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    resume: Path | None = None
    """Go on with the run in this folder, from its newest good checkpoint and with its own options. Only --steps, and
    the options of computing (without --dtype) and keeping, may be given anew."""
    fork: str | None = None
    """Begin a new run from a checkpoint of another, RUN@STEP, with that run's options where no others are given."""
    size: SizeName | None = None
    """A model of about this many parameters. Options of --model go before it."""
    json: bool = False
    """Print the summary as JSON to stdout, and the tables to stderr."""
    task: Annotated[TaskConfig, WithoutPrefix] = TaskConfig()
    model: SizesConfig = SizesConfig()
    optimizer: Annotated[OptimizerConfig, WithoutPrefix] = OptimizerConfig()
    schedule: Annotated[ScheduleConfig, WithoutPrefix] = ScheduleConfig()
    computing: Annotated[ComputingConfig, WithoutPrefix] = ComputingConfig()
    keeping: Annotated[KeepingConfig, WithoutPrefix] = KeepingConfig()
    processes: Annotated[ProcessOptions, WithoutPrefix] = ProcessOptions()

    @property
    def sections(self) -> dict[str, Any]:
        """The sections of a `RunConfig` that were asked for."""
        return {name: getattr(self, name) for name in SECTIONS}

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self.resume or self.run_dir


def defaults(options: TrainOptions) -> TrainOptions | None:
    """Return the defaults of the command line: the options of the run that is resumed or forked, or of a size."""
    if options.resume and options.fork:
        raise InputError("--resume goes on with a run, --fork begins a new one; give one of them")
    if options.size and (options.resume or options.fork):
        raise InputError(f"--size {options.size} is for a new model; --resume and --fork keep the run's")
    if options.resume:
        stored = {name: getattr(_stored(options.resume, options), name) for name in SECTIONS}
        return TrainOptions(resume=options.resume, run_dir=options.resume, **stored)
    if options.fork:
        stored = {name: getattr(_stored(fork_of(options)[0], options), name) for name in SECTIONS}
        return TrainOptions(fork=options.fork, **stored)
    return TrainOptions(model=SizesConfig(**SIZES[options.size])) if options.size else None


def fork_of(options: TrainOptions) -> tuple[Path, int]:
    """Return the run and the step that --fork names."""
    run, _, step = str(options.fork).rpartition("@")
    if not run or not step.isdecimal():
        raise InputError(f"--fork is {options.fork!r}; it must be RUN@STEP, such as runs/calculator@290")
    return Path(run), int(step)


def configure(options: TrainOptions) -> RunConfig:
    """Return the configuration of the run that the options ask for, every number in it said.

    It joins the other processes and makes the devices of the mesh first.

    Raises `InputError` for everything that can be wrong with the options, before any file is written.
    """
    if not options.resume and not options.fork:
        config = RunConfig(**options.sections)
    elif options.resume:
        config = _changed(options, options.resume, {"resume"}, "--resume goes on with a run as it was")
    else:
        run, step = fork_of(options)
        why = "--fork keeps the task, the model and the kind of optimizer"
        config = dataclasses.replace(
            _changed(options, run, {"resume", "fork"}, why), forked_from=f"{run}@{step}", snapshot_steps=(step,)
        )
        if options.schedule.steps <= step:
            raise InputError(
                f"--steps is {options.schedule.steps}; it counts those before the fork too: more than {step:,}"
            )
    config = config.filled()
    use_devices(config.computing.mesh, options.processes)
    task, schedule = config.make_task(), config.schedule
    jax.eval_shape(lambda: batch_at(task, schedule.seed, 0, schedule.batch_size))  # refuses a wrong size
    placed(config.state_like(), config)  # refuses sizes that do not divide evenly
    return config


def _stored(run: Path, options: TrainOptions) -> RunConfig:
    """Return the configuration of a run, once the devices of its mesh, or of that in the options, are made."""
    config = read_config(run)
    use_devices(options.computing.mesh or config.computing.mesh, options.processes)
    return config


def _changed(options: TrainOptions, run: Path, may_change: set[str], why: str) -> RunConfig:
    """Return the configuration of a run with the options in it that were given anew.

    Raises `InputError` with every option that is other than in the run and may not be.
    """
    stored = read_config(run)
    like = TrainOptions(resume=options.resume, run_dir=run, **{name: getattr(stored, name) for name in SECTIONS})
    fixed = [
        {flag: value for flag, value, allowed in _flags(each) if allowed not in may_change} for each in (like, options)
    ]
    changed = differences(*fixed)
    if changed:
        raise InputError(f"{why}: {'; '.join(changed)} ({run})")
    return dataclasses.replace(stored, **options.sections)


def _flags(options: TrainOptions) -> Iterator[tuple[str, Any, str]]:
    """Yield the flag of each option that a run depends on, its value, and when it may change."""
    yield "--run-dir", options.run_dir, "fork"
    yield "--overwrite", options.overwrite, "fork"
    for name in SECTIONS:
        prefix = "model." if name == "model" else ""
        section = getattr(options, name)
        for each in dataclasses.fields(section):
            flag = f"--{prefix}{each.name}".replace("_", "-")
            yield flag, getattr(section, each.name), each.metadata.get("may_change", "never")
