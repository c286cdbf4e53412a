"""What the page trains from nothing (host): a small task and a small model, as plain data."""

from typing import Any

from jaxcalc.optimizers import DEFAULT_LEARNING_RATE
from jaxcalc.tasks.tokenizer import Tokenizer

OPERATIONS = ("plus", "minus", "times")
MAX_NUMBER = 20
"""Largest operand and largest answer. Up to here each number is one word."""
MODEL = {"positions": 5, "width": 32, "heads": 4, "hidden": 128, "blocks": 1}
DECAYS = {"muon": 1.0, "adamw": 20.0, "sgd": 0.0}
"""Weight decay by optimizer. So small a table is learned by heart unless the weights are kept small."""
RATES = DEFAULT_LEARNING_RATE | {"adamw": 1e-2}
STEPS = 800
"""Steps of a training; its last steps have 1 % of the rate."""
SETTINGS = {"operations": ["plus", "minus"], "optimizer": "muon", "batch": 128, "seed": 0, "share": 0.1}
"""With these it answers the held-out problems after about 20 seconds."""


def task_data() -> dict[str, object]:
    """Return the task as the page's tokenizer takes it: each sequence is a, operation, b, equals, answer, end."""
    tokenizer = Tokenizer(OPERATIONS, MAX_NUMBER, "words")
    return {
        "vocabulary": tokenizer.vocabulary,
        "operations": OPERATIONS,
        "max_number": MAX_NUMBER,
        "output": "words",
        "prompt_length": 4,
        "answer_length": 2,
    }


def live_data() -> dict[str, Any]:
    """Return all that the page needs to train from nothing."""
    return {
        "task": task_data(),
        "model": MODEL,
        "decays": DECAYS,
        "rates": RATES,
        "steps": STEPS,
        "settings": SETTINGS,
    }
