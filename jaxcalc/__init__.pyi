from jaxcalc import (
    backprop,
    blame,
    explorer,
    interventions,
    landscape,
    ledger,
    lens,
    population,
    runs,
    scale,
    steps,
    tasks,
    weights,
)
from jaxcalc.batch import Batch, Lessons, batch_at, batch_of, rows_at
from jaxcalc.decoding import generate
from jaxcalc.errors import InputError
from jaxcalc.evaluation import Evaluation, evaluate
from jaxcalc.explorer import Explorer, explore
from jaxcalc.fingerprints import fingerprint
from jaxcalc.losses import cross_entropy, loss, surprise
from jaxcalc.model import SIZES, ModelConfig, apply, config_of, init, trace
from jaxcalc.optimizers import make_optimizer
from jaxcalc.params import Params
from jaxcalc.runs import checkpoint
from jaxcalc.runs.folder import Run, load_run
from jaxcalc.runs.share import load_metadata, load_params, save_params
from jaxcalc.runs.stablehlo import export_answerer
from jaxcalc.scale import cost, large, scaling, sharding
from jaxcalc.tasks.drawn import Arithmetic, arithmetic
from jaxcalc.tasks.mixing import Curriculum, curriculum
from jaxcalc.tasks.own import OwnTask, batch_from, task_from
from jaxcalc.tasks.problems import Problem, carry_chain
from jaxcalc.tasks.table import Calculator, calculator
from jaxcalc.tasks.task import Task
from jaxcalc.tasks.tokenizer import Tokenizer
from jaxcalc.tasks.words import number_to_words, words_to_number
from jaxcalc.training import Metrics, TrainState, create_state, in_microbatches, train_step, train_steps
from jaxcalc.trees import TreeTable, compare, count, named_leaves, summary

__version__: str

__all__ = [
    "SIZES",
    "Arithmetic",
    "Batch",
    "Calculator",
    "Curriculum",
    "Evaluation",
    "Explorer",
    "InputError",
    "Lessons",
    "Metrics",
    "ModelConfig",
    "OwnTask",
    "Params",
    "Problem",
    "Run",
    "Task",
    "Tokenizer",
    "TrainState",
    "TreeTable",
    "apply",
    "arithmetic",
    "backprop",
    "batch_at",
    "batch_from",
    "batch_of",
    "blame",
    "calculator",
    "carry_chain",
    "checkpoint",
    "compare",
    "config_of",
    "cost",
    "count",
    "create_state",
    "cross_entropy",
    "curriculum",
    "evaluate",
    "explore",
    "explorer",
    "export_answerer",
    "fingerprint",
    "generate",
    "in_microbatches",
    "init",
    "interventions",
    "landscape",
    "large",
    "ledger",
    "lens",
    "load_metadata",
    "load_params",
    "load_run",
    "loss",
    "make_optimizer",
    "named_leaves",
    "number_to_words",
    "population",
    "rows_at",
    "runs",
    "save_params",
    "scale",
    "scaling",
    "sharding",
    "steps",
    "summary",
    "surprise",
    "task_from",
    "tasks",
    "trace",
    "train_step",
    "train_steps",
    "weights",
    "words_to_number",
]
