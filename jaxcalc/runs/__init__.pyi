from jaxcalc.runs import checkpoint
from jaxcalc.runs.account import Ledger, ledgers
from jaxcalc.runs.claim import check_free, start_run, writing
from jaxcalc.runs.config import RunConfig
from jaxcalc.runs.configfile import CONFIG, environment, read_config, versions, write_config, write_json
from jaxcalc.runs.files import CHECKPOINTS, CURVE, EXPLORER, MODEL, SUMMARY
from jaxcalc.runs.folder import (
    Run,
    calculator_of,
    checkpoint_steps,
    load_checkpoint,
    load_run,
    load_snapshot,
    resume,
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
    "Ledger",
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
    "ledgers",
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
