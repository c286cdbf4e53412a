"""The explorer's JavaScript engine, run under Node, against the library.

JAX writes down in float64 what it computes for more than fifty lessons. explorer_golden.mjs computes it again and says
by how much each array differs. Both tokenizers read the same texts.
"""

import base64
import functools
import random
import re
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
from jaxcalc.backprop import collect, stages, walk
from jaxcalc.batch import PAD_ID
from jaxcalc.blame import Account, assign_blame, assign_credit
from jaxcalc.model import NORM_EPSILON
from jaxcalc.optimizers import ADAM_BETAS
from jaxcalc.runs.programs import QUICK_TO_COMPILE
from jaxcalc.steps import take_step
from jaxcalc.tasks.words import EQUALS, normalize

ENGINE = Path(jaxcalc.explorer.page.__file__).with_name("model.mjs")
SCRIPT = Path(__file__).with_name("explorer_golden.mjs")
OPTIMIZER_ARGUMENTS = {"sgd": [0.05], "adam": [0.01, *ADAM_BETAS]}
OPTIMIZERS = {"sgd": optax.sgd(0.05), "adam": optax.adam(0.01, *ADAM_BETAS)}
NODES = 8
N_POINTS = 256
"""Of JAX's quadrature for credit: so many that it agrees with the drop too."""

Ask = Callable[[str, Any], Any]
Errors = list[dict[str, float]]


@pytest.fixture(scope="module")
def ask(ask_node: Callable[[Path, str, Any], Any]) -> Ask:
    """(topic, question) → what explorer_golden.mjs answers."""
    return functools.partial(ask_node, SCRIPT)


def pack(array: Any) -> dict[str, Any]:
    wide = np.asarray(array, np.float64)
    return {"shape": wide.shape, "data": base64.b64encode(wide.tobytes()).decode()}


# Golden values.


class Lesson(NamedTuple):
    """One word to learn from, after some tokens."""

    model: str
    tokens: list[int]
    target: int
    n_points: int = 0
    """Of the quadrature for credit; 0 for none."""


def lessons_of(task: Task, model: str, seed: int) -> list[Lesson]:
    """Return lessons on each operation: the first word of an answer, a later one, and a wrong word anywhere."""
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
    """Float32 parameters before and after a short training; no two sizes are equal."""
    config = ModelConfig(task.vocab_size, d_model=20, n_heads=4, d_ff=28, context_length=task.context_length)
    untrained = jaxcalc.init(jax.random.key(0), config)
    state = jaxcalc.create_state(untrained, optax.adam(1e-2))
    batch = jaxcalc.batch_of(task, task.tokens[task.train_rows[::40]])
    losses = []
    for _ in range(60):
        state, metrics = jaxcalc.train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
    return {"untrained": untrained, "trained": state.params}


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def compute(params: Params, batch: Batch) -> dict[str, Any]:
    """Return the trees of arrays that JavaScript is to compute again."""
    logits, activations = jaxcalc.trace(params, batch.tokens[:, :-1])
    walked = list(walk(params, batch))
    grads = collect(params, walked)  # the walk's own tests compare it with jax.grad
    messages = [stage.message_in for stage in reversed(walked)]
    names = [stage.name for stage in stages(params, batch)]
    after = {name: optax.apply_updates(params, tx.update(grads, tx.init(params))[0]) for name, tx in OPTIMIZERS.items()}
    first = functools.partial(jax.tree.map, lambda leaf: leaf[0] if leaf.ndim else leaf)
    return {
        "logits": first(logits),
        "activation": first(activations),
        "loss": jaxcalc.loss(params, batch),
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
    quantities["blame"] = rows(assign_blame(grads, step))
    if lesson.n_points:
        quantities["credit"] = rows(assign_credit(params, step, batch, n_points=lesson.n_points))
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
    """Return the index of the weight with the largest gradient in each leaf, by the name of the leaf."""
    heaviest = {name: int(np.argmax(np.abs(leaf))) for name, leaf in expected.items()}
    return {name.split("/")[1]: index for name, index in heaviest.items() if name.startswith("gradient/")}


def compare(ask: Ask, models: dict[str, Params], golden: Golden, with_differences: bool = False) -> Errors:
    """Return for each lesson how much JavaScript differs from each expected array, relative to its largest value."""
    lessons = []
    for lesson, expected in zip(*golden, strict=True):
        packed = {name: pack(leaf) for name, leaf in expected.items() if not name.startswith("credit/")}
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
    """Return the largest error of a quantity, with its array and its lesson."""
    return max(
        (error, name, index)
        for index, of_lesson in enumerate(errors)
        for name, error in of_lesson.items()
        if name.split("/")[0] == quantity
    )


BOUND = 1e-9


def test_there_are_fifty_lessons_half_of_them_on_trained_parameters(task: Task, golden: Golden) -> None:
    models = [lesson.model for lesson in golden.lessons]
    assert len(models) >= 50
    assert models.count("trained") == models.count("untrained")
    assert {len(lesson.tokens) - task.prompt_length for lesson in golden.lessons} == {0, 1, 2}


@pytest.mark.parametrize("quantity", ["logits", "activation", "loss", "message", "gradient", "sgd", "blame"])
def test_javascript_computes_what_jax_does(quantity: str, errors: Errors) -> None:
    error, *where = largest(errors, quantity)
    assert error < BOUND, where


def test_javascript_makes_the_same_first_step_of_adam(errors: Errors) -> None:
    # Adam's first step is rate · g / (|g| + 1e-8): where g is around 1e-8 it magnifies what rounding did to g.
    error, *where = largest(errors, "adam")
    assert error < 1e-8, where


def test_javascript_finds_the_gradient_by_finite_differences_too(errors: Errors) -> None:
    of_weight = [(name, error) for of_lesson in errors for name, error in of_lesson.items() if name[:4] == "diff"]
    assert len(of_weight) > 1000
    assert max(error for name, error in of_weight if name.startswith("difference/output.")) < 1e-5
    # Before the last ReLU a few are wide of the gradient: those that switch a hidden unit on or off.
    assert np.mean([error < 1e-5 for _, error in of_weight]) > 0.995


def test_the_credits_add_up_to_the_drop_that_two_forward_passes_show(
    ask: Ask, models: dict[str, Params], golden: Golden
) -> None:
    question = {
        "models": jax.tree.map(pack, models),
        "lessons": [lesson._asdict() for lesson in golden.lessons if lesson.n_points],
        "rates": [0.05, 1, 30, 1000],
    }
    credits = ask("credits", question)
    assert len(credits) == 32
    for credit in credits:
        assert credit["drop"] == credit["actual"]
        assert credit["total"] == pytest.approx(sum(credit["nats"].values()))
        assert credit["remainder"] == pytest.approx(credit["drop"] - credit["total"])
        # Within 1 %; where a thousand nats cancel to three, within what the most points of a long step can tell.
        assert abs(credit["remainder"]) < 0.01 * abs(credit["actual"]) + 2e-4 * sum(map(abs, credit["nats"].values()))


def test_each_stage_gets_the_credit_that_jax_gives_it(ask: Ask, models: dict[str, Params], golden: Golden) -> None:
    chosen = [index for index, lesson in enumerate(golden.lessons) if lesson.n_points]
    lessons = [golden.lessons[index]._asdict() for index in chosen]
    question = {"models": jax.tree.map(pack, models), "lessons": lessons, "rates": OPTIMIZER_ARGUMENTS["sgd"]}
    for index, credit in zip(chosen, ask("credits", question), strict=True):
        # Both are quadratures: where large credits cancel to a small drop, each is exact to a share of what cancels.
        bound = 0.02 * abs(credit["actual"]) + 0.002 * sum(map(abs, credit["nats"].values()))
        for name, nats in credit["nats"].items():
            assert nats == pytest.approx(golden.expected[index][f"credit/{name}"], abs=bound), (index, name)


def test_the_comparison_notices_a_weight_that_is_three_percent_off(
    ask: Ask, models: dict[str, Params], golden: Golden
) -> None:
    chosen = next(index for index, lesson in enumerate(golden.lessons) if lesson.model == "trained")
    quantities = ("logits", "loss", "gradient")
    expected = {name: leaf for name, leaf in golden.expected[chosen].items() if name.split("/")[0] in quantities}
    changed = {}
    for name, index in heaviest(expected).items():
        leaves = {leaf: np.array(value, np.float64) for leaf, value in named_leaves(models["trained"]).items()}
        leaves[name].flat[index] *= 1.03
        changed[name] = jax.tree.unflatten(jax.tree.structure(models["trained"]), leaves.values())
    lessons = [golden.lessons[chosen]._replace(model=name, n_points=0) for name in changed]
    for name, error in zip(changed, compare(ask, changed, Golden(lessons, [expected] * len(lessons))), strict=True):
        for quantity in quantities:
            assert largest([error], quantity)[0] > 1000 * BOUND, (name, quantity)


def test_javascript_makes_the_same_updates_several_times_in_a_row(ask: Ask) -> None:
    rng = np.random.default_rng(0)
    params = {"list": [{"matrix": np.zeros((30, 20))}], "vector": np.zeros(50)}
    gradients = []
    for _ in range(4):
        scales = jax.tree.map(lambda leaf: 10.0 ** rng.integers(-12, 4, leaf.shape), params)
        gradients.append(jax.tree.map(lambda scale: rng.normal(size=scale.shape) * scale, scales))
        gradients[-1]["vector"][:5] = 0
    updates: dict[str, list[Any]] = {name: [] for name in OPTIMIZERS}
    with jax.enable_x64(True):
        for name, tx in OPTIMIZERS.items():
            state = tx.init(wide(params))
            for grads in gradients:
                update, state = jax.jit(tx.update)(wide(grads), state)
                updates[name].append(jax.tree.map(pack, update))
    question = {
        "gradients": [jax.tree.map(pack, grads) for grads in gradients],
        "updates": updates,
        "optimizers": OPTIMIZER_ARGUMENTS,
    }
    errors = ask("updates", question)
    assert len(errors) == len(OPTIMIZERS) * 4 * 2
    assert max(errors) < 1e-12


# Teaching.


@pytest.fixture(scope="module")
def taught(ask: Ask, models: dict[str, Params], golden: Golden) -> list[dict[str, Any]]:
    """Steps with the suggested rate, one that is far too large, and one that overflows."""
    question = {
        "models": jax.tree.map(pack, models),
        "lessons": [lesson._asdict() for lesson in golden.lessons[::14]],
        "kinds": list(OPTIMIZERS),
        "rates": [None, 1, 1e300],
        "betas": ADAM_BETAS,
    }
    return ask("teach", question)


def test_the_suggested_rate_promises_half_of_the_loss(taught: list[dict[str, Any]]) -> None:
    suggested = [step for step in taught if step["given"] is None]
    assert len(suggested) == 8
    for step in suggested:
        assert step["promise"] == pytest.approx(step["before"] / 2, rel=1e-9)
        assert step["after"] == step["measured"]
        assert step["measured"] < step["before"]
        assert abs(step["remainder"]) <= 0.01 * abs(step["before"] - step["measured"])


def test_a_step_that_is_not_finite_is_refused_and_names_its_rate(taught: list[dict[str, Any]]) -> None:
    for step in taught:
        if step["given"] == 1e300:
            assert step["refused"].startswith("the learning rate 1e+300 is too large")
            assert "smaller rate" in step["refused"]
        else:
            assert "refused" not in step


def test_the_curve_along_a_step_is_near_the_loss_everywhere(taught: list[dict[str, Any]]) -> None:
    for step in taught:
        if "refused" in step:
            continue
        ts, losses = np.array(step["losses"]).T
        assert (ts[0], ts[-1]) == (0, 2)
        assert len(ts) >= 65
        for t, loss in step["along"]:
            assert abs(np.interp(t, ts, losses) - loss) < 0.015 * np.ptp(losses), (step["rate"], t)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_thousand_own_steps_take_less_than_sixty_megabytes_and_can_be_undone(ask: Ask, task: Task, kind: str) -> None:
    params = jaxcalc.init(jax.random.key(0), ModelConfig(task.vocab_size))
    tokens = np.asarray(task.tokens)[0, : task.prompt_length].tolist()
    question = {"params": jax.tree.map(pack, params), "tokens": tokens, "target": 8, "kind": kind}
    answer = ask("history", question | {"betas": ADAM_BETAS, "n": 1000})
    assert answer["bytes"] < 60e6
    assert answer["depth"] >= 10
    assert answer["same"]
    assert answer["left"] == 0


def test_the_table_is_what_greedy_decoding_answers(ask: Ask, models: dict[str, Params]) -> None:
    task = jaxcalc.calculator(operations=("plus", "times"), max_number=20)
    config = ModelConfig(task.vocab_size, d_model=20, n_heads=4, d_ff=28, context_length=task.context_length)
    state = jaxcalc.create_state(jaxcalc.init(jax.random.key(1), config), optax.adam(1e-2))
    batch = jaxcalc.batch_of(task, task.tokens)
    for _ in range(60):
        state, _ = jaxcalc.train_step(state, batch)
    evaluation = jaxcalc.evaluate(state.params, task, np.arange(len(task.problems)))
    assert 0.1 < np.mean(evaluation.correct) < 0.9
    tokens = np.asarray(task.tokens)[::9, :-1].tolist()
    question = {"params": jax.tree.map(pack, state.params), "task": about(task), "sequences": tokens, "sample": 50}
    answer = ask("table", question)
    assert answer["difference"] < 1e-12
    a, operation, b, _ = np.asarray(task.problems).T
    verdicts = np.array(answer["verdicts"]).reshape(2, 21, 21)
    of_problem = verdicts[operation, a, b]
    assert np.count_nonzero(verdicts) == len(task.problems)
    np.testing.assert_array_equal(of_problem > 127, evaluation.correct)
    np.testing.assert_allclose((of_problem % 128 - 1) / 126, evaluation.probability, atol=0.5 / 126 + 1e-4)
    assert 50 <= answer["progress"][0][0] <= 60
    assert all(done == answered for done, answered, _ in answer["progress"])
    assert answer["progress"][-1] == [len(task.problems)] * 3


# Text.

TASKS: dict[str, dict[str, Any]] = {
    "words": {},
    "digits": {"output": "digits"},
    "reversed": {"output": "digits-reversed"},
    "fewer operations": {"operations": ("plus", "minus"), "max_number": 20, "output": "digits-reversed"},
    "hundreds": {"operations": ("plus", "times"), "max_number": 120},
}
SYMBOLS = ["2 + 3", "2+3=", "42 x 2", "42×2", "42 * 2", "9 − 1", "9 - 1", "8 / 2", "8 ÷ 2", "8÷2", "7 : 2", "7 x x 2"]
NUMBERS = [
    "two plus three", " TWO  Plus\tthree ", "forty-two minus fortytwo", "twentyone plus twenty one",
    "forty--two + 1", "fourtyten plus one", "five-three plus one", "twenty eleven plus two", "two three plus one",
    "ten and one plus two", "and plus two", "two and plus three", "one hundred and five plus one",
    "one hundred five + 1", "hundred plus one", "one thousand + 1", "one thousand and one hundred + 1",
    "zero one + 2", "007 + 0", "1,5 + 2", "100 + 1", "1000000000 + 1", "999999999 + 1", f"{'0' * 40}5 + 1",
    f"{'7' * 30} + 1", f"1 + {'7' * 30}", f"four{' two' * 14}", f"seven{' two' * 14}",
]  # fmt: skip
NO_QUESTIONS = [
    "", "   ", "plus", "two", "equals", "two plus", "plus two", "two equals", "equals two plus three", "two = 3 + 4",
    "two plus three minus four", "1 + 2 - 3 + 4 - 5 + 6", "two plus three equals equals", "two <pad> plus three",
    "<pad> <pad> two plus three", "<END> plus 1", "7 / 0", "7 / zero", "0 / 7", "7 - 8", "99 x 99", "7 / 2",
    "7 " * 30,
]  # fmt: skip
MISSPELT = [
    "two pluss three", "two plsu three", "fourty plus two", "twleve times two", "tow plus tree",
    "two plus three equal", "8 divide by 2", "8 divided 2", "8 divided byte 2", "8 divided \t\n by 2",
    "8 divided\x1cby 2", "8 divided\u2003by 2", "8 dividedby 2", "xyzzy", "two minos three", "a" * 60, "eq",
    "thirten + 1", "constructor", "__proto__ + 1",
]  # fmt: skip
UNICODE = [
    "２ + 3", "½ plus 1", "² + 1", "Ⅷ plus 1", "١ + 2", "é", "e\u0301", "ſeven plus one", "İ plus 1", "ΟΔΟΣ plus 1",
    "\u212a plus 1", "二 plus 三", "two\u00a0plus\u2003three", "two\u200bplus three", "\ufeff2 + 3", "\x85",
    "\x1c2 + 3", "\x7f", "\u2028", "\u061c", "\ue000", "\U000e0001", "🙂", "two 🙂 three", "👩\u200d👧 plus one",
    "²" * 3 + "2 + 3", "3② + 1", "２＋３", "９－１＝８", "4 ∗ 2", "4 · 2", "8 ⁄ 2", "8∕2 ", "5 – 3", "5—3", "5\u20103",
    "5\u20153", "thir\u00adteen + 1", "\u2060two\ufeff + 1", "ﷺ + 1", "𝟐 + 𝟑", "what’s 2 + 3…", "…" * 999 + "a",
    "ﬁve + 1", "Ⅹ + 1",
    "🙂" * 41, "twenty\u2011two + 1", "twentytwo² + 1", "étwentytwo + 1", "divided byé", "divided by_", "1_000 + 1",
]  # fmt: skip
SENTENCES = (
    """
What is two plus three?|what  is 2 + 3 = ?|what's 2 + 3.|How much is 7 x 8?|what is|whatis 2 + 3|what isn't
two plus three? |2 + 3 . . .|?|...|2 ? + 3|5 + 3! |is 2 + 3|2 + 3 = 5.|one thousand, two hundred and thirty-four + 1
one million , one + 1|two, three + 1|thousand, + 1|1,234 + 1|1 + 1,000,000|0,005 + 1|1,23 + 1|1,234,56 + 1|1.5 + 2
1,234.5 + 1|,|two plus three,|negative five + 1|1 + negative 5|negative|-5 + 2|2 + -3|2 plus-three|- - 1|minus two
2 - - 3|0x10|0X1F + 1|0xg|00x10|10x10|0 x 10|x|0xffffffffffffffffffffffffffffffffffffffffffffffffff
twenty-one-plus-one|2-plus-3|9-8-equals1|9-plus1|eight-divided-by-two|8 divided-by 2|8 divided--by 2|9-minus-1-equals
one-hundred-five + 1|one hundred-and-five + 1|one-hundred-twenty + 1|two-and-three|eight-two|two -plus- one|exit
into|quit|help|often|money|equl|divide|divided|dividedly|to + 1|sixth|hudnred
""".strip()
    .replace("\n", "|")
    .split("|")
)
HOSTILE = [
    "<script>", "<script>alert(1)</script>", "two plus <b>three</b>", "it's", "'", '"', "'\"", "\\", "\\'", "\0",
    "two; plus", "%00", "&lt;", "${2} + 3", "x" * 1_000, "x" * 10_000, "7" * 1_001, "🙂" * 600, "🙂" * 1_000,
    "🙂" * 1_001, f"2 + 3{' ' * 995}", f"2 + 3{' ' * 996}",
]  # fmt: skip
BEGUN = [
    "7 x 8 equals fifty", "7 x 8 = fifty six", "7*8=56", "7*8=fifty six <end>", "7 x 8 equals fifty plus",
    "7 x 8 = 5 6", "7 x 8 equals two", "2 + 3 = 5 = 5", "2 + 3 = five <pad>", "9 + 9 = 18", "9 + 9 = 81",
    "9 + 9 = one 8", "9 + 9 = 8 one", "5 + 5 = <end>", "2 + 3 = 0005", "2 + 3 = 123456789012", "2 + 3 = fife",
    "2 + 3 = 🙂", "2 + = 5", "2 + 3 + 4 = 9",
]  # fmt: skip
TELLING = [*SYMBOLS, *NUMBERS, *NO_QUESTIONS, *MISSPELT, *UNICODE, *SENTENCES, *HOSTILE, *BEGUN]


def random_texts(task: Task, n: int) -> list[str]:
    """Return questions in many spellings, some with something strange in them, and mixtures of words and noise."""
    rng = random.Random(1)
    vocabulary = task.tokenizer.vocabulary
    fragments = [
        "forty-two", "fortytwo", "twenty", "eleven", "hundred", "and", "by", "divided", "divided  by", "divided\x85by",
        "plsu", "twleve", "x", "×", "÷", "−", "=", "007", "1234567890123", "<", "<script>", "🙂", "½", "²", "é", "İ",
        "Σ",
        "'", '"', "\\", "\n", "\x85", "\u200b", "\u3000", "_", "-", "–", "\u2011", "２", "＋", "?", ".", ",", "what is",
        "negative", "0x", "thousand,", "-and-", "-hundred-",
    ]  # fmt: skip

    def strange() -> str:
        if rng.random() < 0.7:
            return rng.choice(fragments)
        while True:  # what had no name in Unicode 3.2 may have one for Python and none for Node, or the other way round
            character = chr(rng.randrange(rng.choice([0x250, 0x3000, 0x110000])))
            if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs"):
                return character

    def number() -> str:
        value = rng.randrange(task.tokenizer.max_number + 2)
        words = number_to_words(value)
        return rng.choice([str(value), words, words.upper(), words.replace(" ", "-"), words.replace(" ", "")])

    def question() -> str:
        operations = [*task.tokenizer.operations, "+", "-", "*", "/"]
        parts = [number(), rng.choice(operations), number(), *rng.choice([[], ["="], [EQUALS, number()]])]
        if rng.random() < 0.4:
            parts.insert(rng.randrange(len(parts) + 1), strange())
        return rng.choice([" ", " ", "", "\t"]).join(parts)

    def mixture() -> str:
        parts = [rng.choice([rng.choice(vocabulary), strange()]) for _ in range(rng.randrange(7))]
        return rng.choice([" ", ""]).join(parts)

    return [rng.choice([question, question, mixture])() for _ in range(n)]


QUESTION = re.compile(r".*?(=|(?<![^\W\d_])equals(?![^\W\d_]))", re.DOTALL)


def read(task: Task, text: str) -> dict[str, Any] | str:
    """Return what Python reads in a text, a question and maybe the beginning of its answer, or its error."""
    try:
        words = task.tokenizer.canonical(text)
        begun = words[words.index(EQUALS) + 1 :] if EQUALS in words else []
        asked = QUESTION.match(normalize(text))[0] if begun else text
        (a, b), (operation,) = problem = task.parse(asked)
        answer = problem.answer if task.row(problem) is not None else None
        return {
            "problem": [a, operation, b],
            "answer": answer,
            "spelled": None if answer is None else task.tokenizer.spell(answer),
            "ids": [*task.encode(asked).tolist(), *(task.tokenizer.ids[word] for word in begun)],
        }
    except InputError as error:
        return str(error)


def about(task: Task) -> dict[str, Any]:
    """Return what the JavaScript tokenizer needs to know of a task."""
    return {
        "vocabulary": task.tokenizer.vocabulary,
        "operations": task.tokenizer.operations,
        "max_number": task.tokenizer.max_number,
        "output": task.tokenizer.output,
        "prompt_length": task.prompt_length,
        "answer_length": task.answer_length,
    }


class Reading(NamedTuple):
    """What both read in each text."""

    python: dict[str, Any]
    javascript: dict[str, Any]


@pytest.fixture(scope="module")
def readings(ask: Ask) -> dict[str, Reading]:
    tasks = {name: jaxcalc.calculator(**arguments) for name, arguments in TASKS.items()}
    texts = {name: [*TELLING, *random_texts(task, 300)] for name, task in tasks.items()}
    question = [{"task": about(task), "texts": texts[name]} for name, task in tasks.items()]
    return {
        name: Reading({text: read(task, text) for text in texts[name]}, dict(zip(texts[name], answer, strict=True)))
        for (name, task), answer in zip(tasks.items(), ask("texts", question), strict=True)
    }


@pytest.mark.parametrize("name", TASKS)
def test_both_tokenizers_read_the_same_in_every_text_or_refuse_it_with_the_same_words(
    name: str, readings: dict[str, Reading]
) -> None:
    python, javascript = readings[name]
    differences = {text: (python[text], javascript[text]) for text in python if python[text] != javascript[text]}
    assert not differences
    n_refused = sum(isinstance(result, str) for result in python.values())
    assert 0.1 < n_refused / len(python) < 0.9


def test_a_number_of_words_and_digits_is_in_range_too(ask: Ask) -> None:
    task = jaxcalc.calculator(**TASKS["fewer operations"])
    ((javascript,),) = ask("texts", [{"task": about(task), "texts": ["20 + twenty 8"]}])
    python = read(task, "20 + twenty 8")
    assert python == javascript == "number out of range: 'twenty eight'; this vocabulary goes from 0 to 20"


def test_a_begun_answer_follows_the_question(task: Task, readings: dict[str, Reading]) -> None:
    ids = readings["words"].javascript["7 x 8 equals fifty"]["ids"]
    assert task.tokenizer.decode(ids) == "<pad> <pad> seven times eight equals fifty"
    digits = readings["reversed"].javascript["9 + 9 = 81"]
    assert (digits["answer"], digits["spelled"]) == (18, ["8", "1"])


# Numbers and trees.


def test_both_say_numbers_alike_and_integrate_alike(ask: Ask) -> None:
    numbers = [*range(1000), 1_000, 1_001, 12_345, 100_000, 999_999, 1_000_000, 70_000_005, 999_999_999]
    answer = ask("numbers", {"numbers": numbers, "n_points": NODES})
    assert answer["words"] == [number_to_words(number) for number in numbers]
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    np.testing.assert_allclose(
        sorted(answer["quadrature"]), np.stack([(nodes + 1) / 2, weights / 2], axis=1), rtol=1e-12
    )


def test_both_name_the_leaves_of_a_tree_alike_and_measure_them_alike(ask: Ask, models: dict[str, Params]) -> None:
    params = models["untrained"]
    rows, shape = np.asarray(params["embed"]["token"], np.float64), (3, 2, 5)
    answer = ask("trees", {"tree": jax.tree.map(pack, params), "rows": pack(rows), "shape": shape})
    assert sorted(answer["names"]) == sorted(named_leaves(params))
    assert answer["rebuilt"]
    squares = [np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(params)]
    assert answer["norm"] == pytest.approx(np.sqrt(sum(squares)), rel=1e-12)
    np.testing.assert_allclose(answer["rowNorms"], np.linalg.norm(rows, axis=1), rtol=1e-12)
    assert answer["places"] == [list(place) for place in np.ndindex(shape)]


def test_both_add_the_same_epsilon_in_a_norm() -> None:
    assert f"export const EPSILON = {float(NORM_EPSILON):.0e};".replace("e-06", "e-6") in ENGINE.read_text(
        encoding="utf-8"
    )
