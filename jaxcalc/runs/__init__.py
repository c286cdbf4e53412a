"""What a training run leaves behind, and reading it back.

folder      the files of a run
checkpoint  the whole training state at a step
manifest    what a checkpoint says about itself, and finding damage
share       the file in which a trained model is shared
stablehlo   a trained model as a program that needs no jaxcalc
report      tables and progress in the terminal
figures     the learning curve
text        numbers for people
files       paths, and writing a file whole or not at all
cli         how a script reads its options and ends
"""

from jaxcalc.runs import checkpoint
from jaxcalc.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    CURVE,
    EXPLORER,
    KEEPING,
    METRICS,
    MODEL,
    SUMMARY,
    Metrics,
    Run,
    calculator_of,
    check_free,
    environment,
    flat,
    load_checkpoint,
    load_run,
    load_snapshot,
    optimizer_of,
    read_config,
    read_metrics,
    resume,
    save_nonfinite,
    snapshot_steps,
    start_run,
    state_like,
    task_of,
    versions,
    write_config,
    write_json,
    writing,
)
from jaxcalc.runs.share import load_metadata, load_params, save_params
from jaxcalc.runs.stablehlo import export_answerer

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "CURVE",
    "EXPLORER",
    "KEEPING",
    "METRICS",
    "MODEL",
    "SUMMARY",
    "Metrics",
    "Run",
    "calculator_of",
    "check_free",
    "checkpoint",
    "environment",
    "export_answerer",
    "flat",
    "load_checkpoint",
    "load_metadata",
    "load_params",
    "load_run",
    "load_snapshot",
    "optimizer_of",
    "read_config",
    "read_metrics",
    "resume",
    "save_nonfinite",
    "save_params",
    "snapshot_steps",
    "start_run",
    "state_like",
    "task_of",
    "versions",
    "write_config",
    "write_json",
    "writing",
]
