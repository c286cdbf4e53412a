"""The options of train.py, and the configuration of a run that they ask for."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxcalc
from jaxcalc import runs
from jaxcalc.batch import LossOn
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn
from jaxcalc.model import SIZES, SizeName
from jaxcalc.optimizers import DEFAULT_LEARNING_RATE, DEFAULT_WEIGHT_DECAY, OptimizerName
from jaxcalc.runs import checkpoint
from jaxcalc.scale import large, processes, sharding
from jaxcalc.tasks.task import Split
from jaxcalc.tasks.tokenizer import Notation
from jaxcalc.training import check_microbatches

RARE = ("times", "divided by")  # operations with few problems in the table
CHUNK = 10  # steps in a call: one compiled program for every run and every way to interrupt it


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    d_model: int = 64
    """Width of the residual stream."""
    n_heads: int = 4
    """Attention heads in a block; they must divide the width."""
    d_ff: int = 256
    """Hidden width of the feed-forward layers."""
    n_layers: int = 2
    """Blocks."""


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    ops: tuple[str, ...] = ("plus", "minus", "times", "divided-by")
    """Operations, one or more of: plus minus times divided-by."""
    max_number: int = 99
    """Largest operand and largest answer."""
    notation: Notation | None = None
    """Draw problems instead of listing them all, and write all their numbers in words, in digits, or in digits
    reversed: for numbers up to 999,999,999 in words, of 30 digits in digits."""
    terms: int = 2
    """Numbers in a problem that is drawn."""
    output: Notation = "words"
    """How answers are written: in words, in digits, or in digits with the lowest first."""
    split: Split = "orbit"
    """What stays together when problems are held out: a + b with b + a (orbit), all problems of one fact
    (family), or nothing (random). Or hold nothing out (none)."""
    held_out: float = 0.1
    """Share of each operation's problems that training never sees."""
    copies: int = 3
    """How often an epoch visits each times and divided-by problem, of which there are few."""
    inverse_copies: int = 2
    """How often it visits their inverse questions, such as "nine equals divided by six" for 54 / 6; 0 for never."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(TaskOptions):
    """Train a calculator language model and leave a run folder that answers questions."""

    run_dir: Path = Path("runs/calculator")
    """Folder to write; it must not hold a run yet."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    resume: Path | None = None
    """Go on with the run in this folder, from its newest good checkpoint, with its own options. Of these only --steps
    and what follows --loss-on may be given anew."""
    fork: str | None = None
    """Begin a new run from a checkpoint of another, RUN@STEP, with that run's options where no others are given."""
    json: bool = False
    """Print the summary as JSON to stdout, and the tables to stderr."""
    seed: int = 0
    """Chooses the held-out problems, the first weights and the order of the batches."""
    steps: int = 1_200
    """Training steps, those before --resume or --fork included."""
    schedule_steps: int | None = None
    """Steps after which the learning rate has fallen to 1 % of its peak, where it stays; --steps if left out."""
    batch_size: int = 512
    """Problems in each step."""
    optimizer: OptimizerName = "muon"
    """How gradients become steps."""
    learning_rate: float | None = None
    """Peak of the learning rate after warm-up; the optimizer's own default if left out."""
    weight_decay: float | None = None
    """Weight decay; the optimizer's own default if left out."""
    clip_norm: float | None = None
    """Scale gradients of a larger norm than this down to it; no clipping if left out."""
    loss_on: LossOn = "answer"
    """Which tokens the loss is on: the answer and its end, or all."""
    snapshots: int = 12
    """How many checkpoints to keep for good, the first of step 0 and the others at log-spaced steps."""
    checkpoint_every: int = 200
    """Steps between two other checkpoints, of which only the newest are kept."""
    keep: int = 2
    """How many of those are kept while the run goes on; the newest, when it is finished."""
    skip_nonfinite: int = 0
    """How many steps whose loss or gradient is not finite may be left out before the run stops."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In what the model is computed; parameters, optimizer state and loss are float32 in any case."""
    microbatches: int = 1
    """In how many parts a batch is gone through before its update; the activations of one are held at a time."""
    remat: bool = False
    """Keep only what goes into each block, and compute the rest again for the gradient; on a CPU only with --scan."""
    scan: bool = False
    """Compile one block and loop over the depth."""
    mesh: str = ""
    """A grid of devices, such as data=4,model=2: examples are divided along data, heads and hidden width along model.
    One device if left out. A CPU is made into as many devices as the mesh needs."""
    fully_sharded: bool = False
    """Cut parameters and optimizer state along data as well, so that a device stores only its part."""
    size: SizeName | None = None
    """A model of about so many parameters; what is given of --model counts before it."""
    coordinator_address: str | None = None
    """Where process 0 of several is to be found, such as localhost:12345; a cluster that JAX detects needs none."""
    num_processes: int | None = None
    """How many processes share the mesh."""
    process_id: int | None = None
    """Which of them this one is, from 0."""
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)


# What tells a task that lists all its problems, and one that draws them, apart from others of its kind.
COPIES = ("copies", "inverse_copies")
LISTED = ("max_number", "output", "split", "held_out", *COPIES)
DRAWN = ("max_number", "notation", "terms", "held_out")
# What a configuration takes from the options as it is.
TRAINING = (
    "seed", "steps", "schedule_steps", "batch_size", "optimizer", "learning_rate", "weight_decay", "clip_norm",
    "loss_on", "snapshots", "checkpoint_every", "keep", "skip_nonfinite",
    "dtype", "microbatches", "remat", "scan", "mesh", "fully_sharded",
)  # fmt: skip
# What may be other than in the run that is resumed, or forked.
PROCESSES = ("coordinator_address", "num_processes", "process_id")
FREE_IN_RESUME = {"json", "resume", "size", *PROCESSES, *runs.KEEPING}
FREE_IN_FORK = {"json", "size", "fork", "run_dir", "overwrite", *PROCESSES, *TRAINING} - {"optimizer"}


def check(options: TrainOptions) -> None:
    """Raise `InputError` for a number that nothing in the library would refuse by the name of its flag."""
    for name, least in (
        ("steps", 1),
        ("batch_size", 1),
        ("microbatches", 1),
        ("copies", 1),
        ("inverse_copies", 0),
        ("seed", 0),
        ("snapshots", 0),
        ("checkpoint_every", 1),
        ("keep", 1),
        ("skip_nonfinite", 0),
        *((("schedule_steps", 1),) if options.schedule_steps is not None else ()),
    ):
        value = getattr(options, name)
        if not least <= value < 2**31:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be from {least} to {2**31 - 1:,}")


def defaults(options: TrainOptions) -> TrainOptions | None:
    """Return the options of the run that is resumed or forked: what holds where the command line says nothing."""
    if options.resume and options.fork:
        raise InputError("--resume goes on with a run, --fork begins a new one; give one of them")
    if options.size and (options.resume or options.fork):
        raise InputError(f"--size {options.size} is for a new model; --resume and --fork keep the run's")
    if options.resume:
        return dataclasses.replace(stored(options.resume, options), resume=options.resume, run_dir=options.resume)
    if options.fork:
        return dataclasses.replace(stored(fork_of(options)[0], options), fork=options.fork)
    return TrainOptions(model=ModelOptions(**SIZES[options.size])) if options.size else None


def stored(run: Path, options: TrainOptions) -> TrainOptions:
    """Return the options of a run from its configuration, with the devices of its mesh or of that in the options."""
    config = runs.read_config(run)
    use_devices(options.mesh or str(config.get("mesh", "")), options)
    try:
        task, _, _ = config["task"], config["snapshot_steps"][-1], runs.state_like(config)
        runs.task_of(task)
        return TrainOptions(
            **{name: config[name] for name in TRAINING},
            **{name: task[name] for name in (*DRAWN, *LISTED) if name in task and name not in COPIES},
            **{name: task[name][RARE[0]] for name in COPIES if name in task},
            ops=tuple(name.replace(" ", "-") for name in task["operations"]),
            model=ModelOptions(*(config["model"][field.name] for field in dataclasses.fields(ModelOptions))),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{run / runs.CONFIG} was written by other code: {error!r}") from error


def fork_of(options: TrainOptions) -> tuple[Path, int]:
    """Return the run and the step that --fork names."""
    run, _, step = str(options.fork).rpartition("@")
    if not run or not step.isdecimal():
        raise InputError(f"--fork is {options.fork!r}; it must be RUN@STEP, such as runs/calculator@290")
    return Path(run), int(step)


def configure(options: TrainOptions) -> dict[str, Any]:
    """Return the configuration of the run that the options ask for."""
    if options.resume:
        refuse_changes(options, options.resume, FREE_IN_RESUME, "--resume goes on with a run as it was")
        config = runs.read_config(options.resume)
    elif options.fork:
        run, step = fork_of(options)
        refuse_changes(options, run, FREE_IN_FORK, "--fork keeps the task, the model and the kind of optimizer")
        config = {**runs.read_config(run), "forked_from": {"run": str(run), "step": step}, "snapshot_steps": [step]}
        if options.steps <= step:
            raise InputError(f"--steps is {options.steps}; it counts those before the fork too: more than {step:,}")
    else:
        task_config = task_config_of(options, options.seed)
        task = runs.task_of(task_config)
        model = jaxcalc.ModelConfig(
            vocab_size=task.vocab_size, context_length=task.context_length, **dataclasses.asdict(options.model)
        )
        config = {"task": task_config, "model": dataclasses.asdict(model), "snapshot_steps": [-1]}
    config |= {name: getattr(options, name) for name in TRAINING}
    # A run says its numbers, whatever later versions take by default.
    if options.learning_rate is None:
        config["learning_rate"] = DEFAULT_LEARNING_RATE[options.optimizer]
    if options.weight_decay is None:
        config["weight_decay"] = DEFAULT_WEIGHT_DECAY[options.optimizer]
    if options.schedule_steps is None:
        config["schedule_steps"] = options.steps
    runs.optimizer_of(config)  # refuses numbers out of range
    check_microbatches(config["batch_size"], config["microbatches"])
    placed(runs.state_like(config), config)  # refuses sizes that do not divide evenly
    # A run that becomes longer keeps the snapshots that it has.
    last, more = config["snapshot_steps"][-1], snapshot_steps(options.snapshots, CHUNK, options.steps)
    config["snapshot_steps"] = [step for step in config["snapshot_steps"] if step >= 0] + [s for s in more if s > last]
    return config


def mesh_sizes(text: str) -> dict[str, int]:
    """Return the sizes of a mesh, such as {"data": 4, "model": 2}, from how --mesh says them."""
    sizes = {name: size for name, _, size in (part.partition("=") for part in text.split(","))}
    if not sizes.keys() <= {"data", "model"} or "data" not in sizes or not all(map(str.isdecimal, sizes.values())):
        raise InputError(f"--mesh is {text!r}; it must be such as data=4 or data=4,model=2")
    return {name: int(size) for name, size in sizes.items()}


def use_devices(mesh: str, options: TrainOptions) -> None:
    """Join the other processes, if there are any, and make a CPU into as many devices as a mesh needs of each.

    If JAX has started, nothing is done; `sharding.make_mesh` says whether there are enough.
    """
    address, n, index = (getattr(options, name) for name in PROCESSES)
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in PROCESSES)
    if None in (address, n, index) and (address, n, index) != (None, None, None):
        raise InputError(f"{flags} go together; give all of them, or none where JAX detects the cluster")
    if not mesh:
        if n is not None:
            raise InputError(f"{flags} need a --mesh, such as --mesh data={n}, which goes over all processes")
        return
    n_devices = max(1, math.prod(mesh_sizes(mesh).values()))
    if n is not None and not 0 <= index < n:
        raise InputError(f"--process-id is {index}; it must be from 0 to {n - 1}, --num-processes less one")
    if n is not None and n_devices % n:
        raise InputError(f"--mesh {mesh} is {n_devices} devices, which --num-processes {n} does not divide")
    if n is None and processes.join():
        return  # what a cluster has is for the cluster to say
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", n_devices // (n or 1))
    if n is not None:
        processes.join(address, n, index)


def apply_fn_of(config: dict[str, Any]) -> ApplyFn:
    """Return the model of a run on one device, from its configuration, in float32."""
    block = large.remat(large.block) if config["remat"] else large.block
    if config["scan"]:
        return large.scanned(block)
    return large.unrolled(block) if config["remat"] else jaxcalc.apply


def placed(state: jaxcalc.TrainState, config: dict[str, Any]) -> jaxcalc.TrainState:
    """Return a state, or the shapes of one, with the run's model, both on the run's mesh if it has one."""
    apply_fn = apply_fn_of(config)
    mesh, rules = None, sharding.FULLY_SHARDED if config["fully_sharded"] else sharding.TENSOR_PARALLEL
    if config["mesh"]:
        sizes = mesh_sizes(config["mesh"])
        mesh = sharding.make_mesh(sizes["data"], sizes.get("model", 1))
        sharding.check_batch(config["batch_size"] // config["microbatches"], mesh)
        apply_fn = sharding.sharded(mesh, rules, apply_fn)
    if config["dtype"] != "float32":
        apply_fn = large.in_dtype(jnp.dtype(config["dtype"]), apply_fn)
    state = state.replace(apply_fn=apply_fn)
    return sharding.place(state, mesh, rules) if mesh else state


def devices_of(config: dict[str, Any]) -> list[Any]:
    """Return the devices of this process that a run uses."""
    devices = jax.devices()[: math.prod(mesh_sizes(config["mesh"]).values()) if config["mesh"] else 1]
    return [device for device in devices if device.process_index == jax.process_index()]


def refuse_changes(options: TrainOptions, run: Path, free: set[str], why: str) -> None:
    """Raise `InputError` with every option that is other than in a run and not free to be."""
    there, here = (dataclasses.asdict(each) for each in (defaults(options) or options, options))
    changed = checkpoint.differences(
        *(runs.flat({f"--{name}": value for name, value in each.items() if name not in free}) for each in (there, here))
    )
    if changed:
        raise InputError(f"{why}: {'; '.join(changed).replace('_', '-')} ({run})")


def task_config_of(options: TaskOptions, seed: int) -> dict[str, Any]:
    """Return the arguments of `jaxcalc.calculator` or, with a notation, `jaxcalc.arithmetic` that the options mean."""
    names, others = (LISTED, DRAWN) if options.notation is None else (DRAWN, LISTED)
    for name in set(others) - set(names):
        if getattr(options, name) != getattr(TaskOptions, name):
            which = (
                "is for problems that are drawn; add --notation"
                if options.notation is None
                else ("is for a complete table; leave out --notation")
            )
            raise InputError(f"--{name.replace('_', '-')} {which}")
    config = {name: getattr(options, name) for name in names}
    counts = {name: dict.fromkeys(RARE, config[name]) for name in COPIES if name in config}
    return {"operations": [name.replace("-", " ") for name in options.ops], "seed": seed, **config, **counts}


def snapshot_steps(n: int, every: int, last: int) -> list[int]:
    """Return step 0 and at most n − 1 log-spaced multiples of `every`, the last of them `last` itself."""
    if n < 2:
        return [0] * n
    spaced = np.round(np.geomspace(last, min(every, last), n - 1) / every).astype(int) * every
    return sorted({0, last, *(step for step in spaced.tolist() if 0 < step < last)})
