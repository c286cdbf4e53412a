"""What a training run is asked for, what makes it survive, what it leaves behind, and reading it back.

config      the configuration: what tyro parses and config.json stores
configfile  config.json, in the format that is written now and the one before
options     the command line of train.py
session     what makes a training loop survive
placement   the devices of a run, and its compiled steps
guard       steps that are not finite
asking      one question to a trained model
claim       the folder of a new run, and the right to write to a folder
folder      the files of a run
summary     summary.json
metrics     metrics.jsonl
checkpoint  the whole training state at a step
manifest    what a checkpoint says about itself, and finding damage
results     the end of a run: evaluation, summary, what is printed
share       the file in which a trained model is shared
stablehlo   a trained model as a program that needs no jaxcalc
report      tables and progress in the terminal
style       the style of all figures
figures     the learning curve
pipeline    the way from text to answer, and the blame on the way back
text        numbers for people
files       paths, and writing a file whole or not at all
cli         how a script reads its command line and ends
"""

from jaxcalc.runs import checkpoint
from jaxcalc.runs.claim import check_free, start_run, writing
from jaxcalc.runs.config import RunConfig
from jaxcalc.runs.configfile import CONFIG, read_config, write_config, write_json
from jaxcalc.runs.files import CHECKPOINTS, CURVE, EXPLORER, MODEL, SUMMARY
from jaxcalc.runs.folder import (
    Run,
    calculator_of,
    checkpoint_steps,
    environment,
    load_checkpoint,
    load_run,
    load_snapshot,
    resume,
    versions,
)
from jaxcalc.runs.guard import save_nonfinite
from jaxcalc.runs.metrics import METRICS, MetricsFile, read_metrics
from jaxcalc.runs.session import Session, open_session
from jaxcalc.runs.share import load_metadata, load_params, save_params
from jaxcalc.runs.stablehlo import export_answerer

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "CURVE",
    "EXPLORER",
    "METRICS",
    "MODEL",
    "SUMMARY",
    "MetricsFile",
    "Run",
    "RunConfig",
    "Session",
    "calculator_of",
    "check_free",
    "checkpoint",
    "checkpoint_steps",
    "environment",
    "export_answerer",
    "load_checkpoint",
    "load_metadata",
    "load_params",
    "load_run",
    "load_snapshot",
    "open_session",
    "read_config",
    "read_metrics",
    "resume",
    "save_nonfinite",
    "save_params",
    "start_run",
    "versions",
    "write_config",
    "write_json",
    "writing",
]
