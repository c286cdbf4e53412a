"""jaxcalc teaches a small transformer to calculate in English words, and shows how it learns."""

from jaxcalc import backprop, blame, checkpoint, cost, landscape, large, lens, population, scaling, sharding
from jaxcalc.decoding import generate
from jaxcalc.errors import InputError
from jaxcalc.evaluation import Evaluation, evaluate
from jaxcalc.losses import cross_entropy, loss, surprise
from jaxcalc.model import SIZES, ModelConfig, Params, apply, config_of, init, trace
from jaxcalc.page import Explorer, explorer
from jaxcalc.problems import Expression, Problem, carry_chain
from jaxcalc.runs import Run, load_run
from jaxcalc.sampled import Arithmetic, arithmetic
from jaxcalc.share import export_answerer, load_metadata, load_params, save_params
from jaxcalc.tasks import Batch, Calculator, Task, batch_at, batch_of, calculator
from jaxcalc.tokenizer import Tokenizer
from jaxcalc.training import Metrics, TrainState, create_state, in_microbatches, make_optimizer, train_step, train_steps
from jaxcalc.trees import TreeTable, compare, count, fingerprint, named_leaves, summary
from jaxcalc.words import number_to_words, words_to_number

__all__ = [
    "SIZES",
    "Arithmetic",
    "Batch",
    "Calculator",
    "Evaluation",
    "Explorer",
    "Expression",
    "InputError",
    "Metrics",
    "ModelConfig",
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
    "evaluate",
    "explorer",
    "export_answerer",
    "fingerprint",
    "generate",
    "in_microbatches",
    "init",
    "landscape",
    "large",
    "lens",
    "load_metadata",
    "load_params",
    "load_run",
    "loss",
    "make_optimizer",
    "named_leaves",
    "number_to_words",
    "population",
    "save_params",
    "scaling",
    "sharding",
    "summary",
    "surprise",
    "trace",
    "train_step",
    "train_steps",
    "words_to_number",
]
