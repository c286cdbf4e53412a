"""The configuration of a run: frozen dataclasses that a command line parses and config.json stores.

An option is one field here and the line that uses it. Its metadata says the least value that it may have, and
whether it may change when a run is resumed or forked.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

import jax
import numpy as np
import optax

from jaxcalc.batch import LossOn
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import ModelConfig, apply, init
from jaxcalc.optimizers import DEFAULT_LEARNING_RATE, DEFAULT_WEIGHT_DECAY, OptimizerName, make_optimizer, schedule
from jaxcalc.scale import large
from jaxcalc.tasks.drawn import arithmetic
from jaxcalc.tasks.table import calculator
from jaxcalc.tasks.task import Split, Task
from jaxcalc.tasks.tokenizer import Notation

if TYPE_CHECKING:
    from jaxcalc.training import TrainState  # and with it Flax, for which asking a model need not wait

FORMAT = 4
"""The version of config.json that is written. Format 3 is read too."""
CHUNK = 10
"""Steps per call of the compiled program: one program serves every run and every way to interrupt it."""
RARE: tuple[str, ...] = ("times", "divided by")
"""The operations that have few problems in a table."""


def option(default: Any, least: int | None = None, may_change: Literal["never", "fork", "resume"] = "never") -> Any:
    """Return a field with a default. What may change when a run is resumed may also change when it is forked."""
    return dataclasses.field(default=default, metadata={"least": least, "may_change": may_change})


in_fork = functools.partial(option, may_change="fork")
in_resume = functools.partial(option, may_change="resume")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is to be learned."""

    ops: tuple[str, ...] = ("plus", "minus", "times", "divided-by")
    """Operations, one or more of: plus minus times divided-by."""
    max_number: int = 99
    """Largest operand and largest answer."""
    notation: Notation | None = None
    """Draw problems instead of listing them all, and write all numbers in words, in digits, or in digits reversed.
    Words go up to 999,999,999, digits up to 30 places."""
    terms: int = 2
    """Numbers in a drawn problem."""
    output: Notation = "words"
    """How answers are written: in words, in digits, or in digits reversed."""
    split: Split = "orbit"
    """What stays together when problems are held out: a + b with b + a (orbit), all problems of one fact
    (family), or nothing (random). Or hold nothing out (none)."""
    held_out: float = 0.1
    """Share of each operation's problems that training never sees."""
    copies: int = option(3, least=1)
    """How often an epoch visits each times and divided-by problem. There are few of these."""
    inverse_copies: int = option(2, least=0)
    """How often it visits their inverse questions, such as "nine equals divided by six" for 54 / 6; 0 for never."""

    def make(self, seed: int) -> Task:
        """Return the task: a complete table or, with a notation, one that draws its problems.

        Raises `InputError` for an option of the other kind of task, and as `calculator` and `arithmetic` do.
        """
        drawn = ("notation", "terms")
        listed = ("output", "split", "copies", "inverse_copies")
        wrong, why = (
            (drawn, "is for problems that are drawn; add --notation")
            if self.notation is None
            else (listed, "is for a complete table; leave out --notation")
        )
        for name in wrong:
            if getattr(self, name) != getattr(TaskConfig, name):
                raise InputError(f"--{name.replace('_', '-')} {why}")
        return _make_task(self, seed)


@functools.lru_cache(maxsize=4)
def _make_task(config: TaskConfig, seed: int) -> Task:
    operations = tuple(name.replace("-", " ") for name in config.ops)
    with jax.ensure_compile_time_eval():  # arrays, not tracers, where a function that is being traced asks first
        if config.notation is not None:
            return arithmetic(config.max_number, operations, config.terms, config.notation, config.held_out, seed)
        copies, inverse = (dict.fromkeys(RARE, n) for n in (config.copies, config.inverse_copies))
        return calculator(
            operations, config.max_number, config.output, config.split, config.held_out, seed, copies, inverse
        )


@dataclasses.dataclass(frozen=True)
class SizesConfig:
    """The sizes of the model that do not follow from the task."""

    d_model: int = 64
    """Width of the residual stream."""
    n_heads: int = 4
    """Attention heads in a block; they must divide the width."""
    d_ff: int = 256
    """Hidden width of the feed-forward layers."""
    n_layers: int = 2
    """Blocks."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become steps."""

    optimizer: OptimizerName = "muon"
    """How gradients become steps."""
    learning_rate: float | None = in_fork(None)
    """Peak of the learning rate after warm-up; the optimizer's own default if left out."""
    weight_decay: float | None = in_fork(None)
    """Weight decay; the optimizer's own default if left out."""
    clip_norm: float | None = in_fork(None)
    """Scale gradients of a larger norm than this down to it; no clipping if left out."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Which steps are taken."""

    seed: int = in_fork(0, least=0)
    """Chooses the held-out problems, the first weights and the order of the batches."""
    steps: int = in_resume(1_200, least=1)
    """Training steps, those before --resume or --fork included."""
    schedule_steps: int | None = in_fork(None, least=1)
    """The step at which the learning rate reaches 1 % of its peak; it stays there. --steps if left out."""
    batch_size: int = in_fork(512, least=1)
    """Problems in each step."""
    loss_on: LossOn = in_fork("answer")
    """Which tokens the loss is on: the answer and its end, or all."""


@dataclasses.dataclass(frozen=True)
class ComputingConfig:
    """How and where a step is computed. Apart from `dtype`, this changes at most the rounding."""

    dtype: Literal["float32", "bfloat16"] = in_fork("float32")
    """The dtype in which the model is computed. Parameters, optimizer state and loss are float32 in any case."""
    microbatches: int = in_resume(1, least=1)
    """Parts of a batch, computed one after another before the update. Memory holds the activations of one part."""
    remat: bool = in_resume(False)
    """Store only the input of each block and compute the rest again for the gradient; on a CPU only with --scan."""
    scan: bool = in_resume(False)
    """Compile one block and loop over the depth."""
    mesh: str = in_resume("")
    """A grid of devices, such as data=4,model=2: examples are divided along data, heads and hidden width along model.
    A CPU is made into as many devices as the mesh needs. If left out, all local devices share the examples, of a CPU
    one for each core; data=1 is one device."""
    fully_sharded: bool = in_resume(False)
    """Cut parameters and optimizer state along data as well, so that each device stores only its part."""


@dataclasses.dataclass(frozen=True)
class KeepingConfig:
    """What is kept of a run while it goes on, and for good."""

    snapshots: int = in_resume(12, least=0)
    """How many checkpoints to keep for good, the first of step 0 and the others at log-spaced steps."""
    checkpoint_every: int = in_resume(200, least=1)
    """Steps between two other checkpoints. Only the newest of these are kept."""
    keep: int = in_resume(2, least=1)
    """How many of these are kept while the run goes on. A finished run keeps one."""
    skip_nonfinite: int = in_resume(0, least=0)
    """How many steps whose loss or gradient is not finite may be left out before the run stops."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run was asked for. `config_of_json` and `to_json` read and write it."""

    task: TaskConfig = TaskConfig()
    model: SizesConfig = SizesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    computing: ComputingConfig = ComputingConfig()
    keeping: KeepingConfig = KeepingConfig()
    task_seed: int | None = None
    """Chooses the held-out problems; the seed of the schedule if None. A fork keeps the one of its run."""
    snapshot_steps: tuple[int, ...] = in_resume(())
    """The steps whose checkpoints are kept for good; `filled` chooses them."""
    forked_from: str | None = None
    """The run and the step that a fork began from, such as "runs/calculator@290"."""

    def filled(self) -> Self:
        """Return the same configuration with every number said, whatever later versions take by default.

        Raises `InputError` for a number that is out of range, naming its flag.
        """
        for config_field, value in _fields(self):
            least = config_field.metadata.get("least")
            if least is not None and value is not None and not least <= value < 2**31:
                flag = config_field.name.replace("_", "-")
                raise InputError(f"--{flag} is {value}; it must be from {least} to {2**31 - 1:,}")
        name = self.optimizer.optimizer
        rate, decay = self.optimizer.learning_rate, self.optimizer.weight_decay
        optimizer = dataclasses.replace(
            self.optimizer,
            learning_rate=DEFAULT_LEARNING_RATE[name] if rate is None else rate,
            weight_decay=DEFAULT_WEIGHT_DECAY[name] if decay is None else decay,
        )
        steps = self.schedule.steps
        filled_schedule = dataclasses.replace(self.schedule, schedule_steps=self.schedule.schedule_steps or steps)
        # A run that becomes longer keeps the snapshots that it has.
        last = max(self.snapshot_steps, default=-1)
        more = [step for step in log_spaced_steps(self.keeping.snapshots, CHUNK, steps) if step > last]
        filled = dataclasses.replace(
            self,
            optimizer=optimizer,
            schedule=filled_schedule,
            task_seed=self.schedule.seed if self.task_seed is None else self.task_seed,
            snapshot_steps=(*self.snapshot_steps, *more),
        )
        from jaxcalc.training import check_microbatches

        filled.make_optimizer()  # refuses numbers that are out of range
        check_microbatches(self.schedule.batch_size, self.computing.microbatches)
        return filled

    def make_task(self) -> Task:
        """Return the task. Raises `InputError` as `TaskConfig.make` does."""
        return self.task.make(self.schedule.seed if self.task_seed is None else self.task_seed)

    def make_model(self) -> ModelConfig:
        """Return the sizes of the model, those that the task asks for included."""
        task = self.make_task()
        return ModelConfig(task.vocab_size, context_length=task.context_length, **dataclasses.asdict(self.model))

    def make_optimizer(self, clip: bool = True) -> optax.GradientTransformation:
        """Return the optimizer, or the same without its clipping."""
        asked = self.optimizer
        return make_optimizer(
            asked.optimizer,
            self.schedule.schedule_steps or self.schedule.steps,
            asked.learning_rate,
            asked.weight_decay,
            asked.clip_norm if clip else None,
        )

    def make_schedule(self) -> optax.Schedule:
        """Return the learning rate as a function of the step."""
        rate = self.optimizer.learning_rate
        peak = DEFAULT_LEARNING_RATE[self.optimizer.optimizer] if rate is None else rate
        return schedule(peak, self.schedule.schedule_steps or self.schedule.steps)

    def make_apply_fn(self) -> ApplyFn:
        """Return the model as it is computed on one device, in float32."""
        block = large.remat(large.block) if self.computing.remat else large.block
        if self.computing.scan:
            return large.scanned(block)
        return large.unrolled(block) if self.computing.remat else apply

    def state_like(self) -> "TrainState":
        """Return the shapes and dtypes of the training state, float32 whatever JAX's default; nothing is computed."""
        from jaxcalc.training import create_state

        model, tx = self.make_model(), self.make_optimizer()
        with jax.enable_x64(False):
            return jax.eval_shape(lambda: create_state(init(jax.random.key(0), model), tx))


def log_spaced_steps(n: int, every: int, last: int) -> list[int]:
    """Return step 0 and at most n − 1 log-spaced multiples of `every`, the last of them `last` itself.

    >>> log_spaced_steps(5, 10, 1000)
    [0, 10, 50, 220, 1000]
    """
    if n < 2:
        return [0] * n
    spaced = np.round(np.geomspace(last, min(every, last), n - 1) / every).astype(int) * every
    return sorted({0, last, *(step for step in spaced.tolist() if 0 < step < last)})


def _fields(config: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Yield every field of a configuration and its sections, with its value."""
    for config_field in dataclasses.fields(config):
        value = getattr(config, config_field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield config_field, value
