"""The arithmetic behind each number of the page: its sums, against JAX and in a real browser."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from browsers import Tab

import jaxcalc
from jaxcalc import Batch, Run, named_leaves
from jaxcalc.optimizers import ADAM_BETAS

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("arithmetic_golden.mjs")
RATE = 0.01
EXACT = 1e-9


class Lesson(NamedTuple):
    """A question of the run, the word to learn, and how many steps the optimizer has behind it."""

    prompt: str
    target: str | None
    kind: str = "sgd"
    before: int = 0


LESSONS = (
    Lesson("two times seven equals", None),
    Lesson("forty two divided by six equals", None, "adam"),
    Lesson("ninety five minus eight equals eighty", "three", "adam", 2),
)


class Expected(NamedTuple):
    """What JAX computes of a lesson in float64."""

    tokens: list[int]
    target: int
    loss: float
    activations: dict[str, np.ndarray]
    messages: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    update: dict[str, np.ndarray]


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def expect(run: Run, lesson: Lesson) -> Expected:
    task = run.task
    words = task.tokenizer.vocabulary
    question, _, begun = lesson.prompt.partition(" equals")
    row = task.row(question)
    answer = np.asarray(task.tokens)[row]
    tokens = [*answer[: task.prompt_length].tolist(), *(words.index(word) for word in begun.split())]
    target = words.index(lesson.target) if lesson.target else int(answer[len(tokens)])
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), run.params)
    batch = Batch(jnp.asarray([[*tokens, target]]), jnp.ones((1, 1)))
    ids = jnp.asarray([tokens])
    _, activations = jaxcalc.trace(params, ids)
    zeros = jax.tree.map(jnp.zeros_like, activations)

    def tapped(taps: Any) -> jax.Array:
        logits, _ = jaxcalc.trace(params, ids, taps)
        return -jax.nn.log_softmax(logits[0, -1])[target]

    loss, grads = jax.value_and_grad(jaxcalc.loss)(params, batch)
    tx = optax.sgd(RATE) if lesson.kind == "sgd" else optax.adam(RATE, *ADAM_BETAS)
    state = tx.init(params)
    for _ in range(lesson.before):
        _, state = tx.update(grads, state)
    update, _ = tx.update(grads, state)
    first = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in (activations, jax.grad(tapped)(zeros))]
    return Expected(tokens, target, float(loss), *map(flat, first), *map(flat, (params, grads, update)))


@pytest.fixture(scope="module")
def expected(run: Run) -> list[Expected]:
    with jax.enable_x64(True):
        return [expect(run, lesson) for lesson in LESSONS]


def stages_of(run: Run) -> dict[str, str]:
    """Return the path of each stage by its name, upwards."""
    blocks = range(len(run.params["blocks"]))
    layers = {f"block {i} {layer}": f"blocks.{i}.{layer}" for i in blocks for layer in ("attention", "mlp")}
    return {"embed": "embed", **layers, "output": "output"}


def questions(run: Run, of: Expected) -> list[dict[str, Any]]:
    """Return what is asked of a lesson: words, arcs, boxes, weights of every array, and the story's four boxes."""
    rng = np.random.default_rng(0)
    last = len(of.tokens) - 1
    stages = stages_of(run)
    asked: list[dict[str, Any]] = [{"kind": "loss"}]
    asked += [{"kind": "bar", "word": word} for word in {of.target, *rng.integers(0, 30, 3).tolist()}]
    for stage in (name for name in stages if "attention" in name):
        for head in range(4):
            to = int(rng.integers(0, last + 1))
            pairs = [(last, int(rng.integers(0, last + 1))), (to, int(rng.integers(0, to + 1)))]
            asked += [{"kind": "arc", "stage": stage, "head": head, "position": t, "from": s} for t, s in pairs]
    for stage in stages:
        for position in range(last + 1) if stage != "output" else [last]:
            asked += [{"kind": "node", "stage": stage, "position": position}]
            asked += [{**asked[-1], "dimension": int(rng.integers(0, 64))}]
    for name, grads in of.grads.items():
        for index in (int(np.abs(grads).argmax()), int(rng.integers(0, grads.size))):
            asked += [{"kind": "weight", "weight": {"name": name, "index": index}}]
    names = ("tokenizer", "embeddings", "attention, feed-forward", "output")
    return asked + [{"kind": "cell", "stage": name} for name in names]


@pytest.fixture(scope="module")
def answers(
    run: Run, expected: list[Expected], node: str, tmp_path_factory: pytest.TempPathFactory
) -> list[list[tuple[dict[str, Any], dict[str, Any]]]]:
    """For each lesson, each question with its sums by name."""

    def pack(leaf: Any) -> dict[str, Any]:
        wide = np.asarray(leaf, np.float64)
        return {"shape": wide.shape, "data": base64.b64encode(wide.tobytes()).decode()}

    asked = [questions(run, of) for of in expected]
    lessons = [
        {**lesson._asdict(), "rate": RATE, "tokens": of.tokens, "target": of.target, "asked": each}
        for lesson, of, each in zip(LESSONS, expected, asked, strict=True)
    ]
    file = tmp_path_factory.mktemp("arithmetic") / "questions.json"
    words = run.task.tokenizer.vocabulary
    question = {"params": jax.tree.map(pack, run.params), "lessons": lessons, "words": words, "betas": ADAM_BETAS}
    file.write_text(json.dumps(question))
    answer = subprocess.run([node, SCRIPT, file], capture_output=True, encoding="utf-8")
    assert answer.returncode == 0, answer.stderr
    return [
        [(each, {item["name"]: item for item in found["sums"]}) for each, found in zip(one, answer_, strict=True)]
        for one, answer_ in zip(asked, json.loads(answer.stdout), strict=True)
    ]


def test_the_terms_and_the_rest_add_up_to_the_number(answers: Any) -> None:
    n = 0
    for question, sums in (each for lesson in answers for each in lesson):
        for name, item in sums.items():
            values = [term["value"] for term in item["terms"]]
            rest = item["rest"] or {"n": 0, "value": 0.0}
            assert sum(values) + rest["value"] == pytest.approx(item["total"], rel=EXACT, abs=1e-300), (question, name)
            assert np.all(np.diff(np.abs(values)) <= 0)
            assert len(values) in range(10)
            for term in item["terms"]:
                factors = [factor["value"] for factor in term["factors"] if factor]
                if factors:
                    assert np.prod(factors) == pytest.approx(term["value"], rel=EXACT, abs=1e-300), (question, name)
            n += 1
    assert n > 500


def follows(item: dict[str, Any], start: str) -> float:
    (value,) = [value for label, value, *_ in item["follows"] if label.startswith(start)]
    return value


def close(value: float, to: Any, scale: float = 0.0) -> None:
    assert value == pytest.approx(float(to), rel=EXACT, abs=EXACT * scale)


def of_kind(answers: Any, expected: list[Expected], kind: str) -> list[tuple[dict[str, Any], dict[str, Any], Expected]]:
    found = [
        (question, sums, of)
        for lesson, of in zip(answers, expected, strict=True)
        for question, sums in lesson
        if question["kind"] == kind
    ]
    assert found
    return found


def test_the_numbers_of_a_word_are_those_of_jax(answers: Any, expected: list[Expected]) -> None:
    for question, sums, of in of_kind(answers, expected, "bar") + of_kind(answers, expected, "loss"):
        word = question.get("word", of.target)
        logits = of.activations["output.normed"][-1] @ of.params["output.unembed"]
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        close(sums["score"]["total"], logits[word], np.abs(logits).max())
        close(follows(sums["probability"], "p ="), p[word])
        assert ("surprise" in sums) == (word == of.target)
        if word == of.target:
            close(sums["surprise"]["total"], of.loss)
            close(sums["gradient"]["total"], -p[np.arange(p.size) != word].sum())
        else:
            close(sums["gradient"]["total"], p[word])


def test_the_numbers_of_an_arc_are_those_of_jax(answers: Any, expected: list[Expected]) -> None:
    for question, sums, of in of_kind(answers, expected, "arc"):
        layer = f"blocks.{question['stage'].split()[1]}.attention"
        head, to, start = question["head"], question["position"], question["from"]
        query, key = of.activations[f"{layer}.query"], of.activations[f"{layer}.key"]
        close(sums["score"]["total"], query[to, head] @ key[start, head] / np.sqrt(query.shape[-1]), 1)
        close(follows(sums["share"], "share ="), of.activations[f"{layer}.pattern"][head, to, start])
        messages = of.messages[f"{layer}.pattern"][head]
        close(sums["message"]["total"], messages[to, start], np.abs(messages).max())


def test_the_numbers_of_a_box_are_those_of_jax(answers: Any, expected: list[Expected], run: Run) -> None:
    stages = list(stages_of(run).items())
    for question, sums, of in of_kind(answers, expected, "node"):
        level = [name for name, _ in stages].index(question["stage"])
        t, is_last = question["position"], question["stage"] == "output"
        path = stages[level][1]
        stream = of.activations["output.normed" if is_last else f"{path}.residual"][t]
        d = question.get("dimension", int(np.abs(stream).argmax()))
        close(sums["number"]["total"], stream[d], np.abs(stream).max())
        close(follows(sums["length"], "length ="), np.linalg.norm(stream))
        if is_last:
            logits = of.activations["output.normed"][-1] @ of.params["output.unembed"]
            arriving = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            arriving[of.target] -= 1
        else:
            arriving = of.messages[f"{path}.residual"][t]
        close(follows(sums["strength"], "length ="), np.linalg.norm(arriving))
        if level and np.any(arriving):
            below = of.messages[f"{stages[level - 1][1]}.residual"][t]
            d = question.get("dimension", int(np.abs(below).argmax()))
            close(sums["message"]["total"], below[d], np.abs(below).max())
        else:
            assert "message" not in sums


def test_the_blame_of_boxes_adds_up_to_that_of_the_stages_of_jax(
    answers: Any, expected: list[Expected], run: Run
) -> None:
    def blame(of: Expected, path: str) -> float:
        names = [name for name in of.grads if name.startswith(f"{path}.")]
        return -sum(float(np.vdot(of.grads[name], of.update[name])) for name in names)

    for of in expected:
        boxes = [(question, sums) for question, sums, about in of_kind(answers, expected, "node") if about is of]
        for stage, path in stages_of(run).items():
            mine = [sums["blame"]["total"] for q, sums in boxes if q["stage"] == stage and "dimension" not in q]
            assert sum(mine) == pytest.approx(blame(of, path), rel=1e-7)  # Adam magnifies what rounding did
        parts = {q["stage"]: sums["blame"] for q, sums, about in of_kind(answers, expected, "cell") if about is of}
        assert parts["tokenizer"]["terms"] == []
        paths = {"embeddings": "embed", "attention, feed-forward": "blocks", "output": "output"}
        for name, path in paths.items():
            assert parts[name]["total"] == pytest.approx(blame(of, path), rel=1e-7)
        shares = [follows(parts[name], "share") for name in paths]
        assert sum(shares) == pytest.approx(1)


def test_the_numbers_of_a_weight_are_those_of_jax(answers: Any, expected: list[Expected]) -> None:
    agree = []
    for question, sums, of in of_kind(answers, expected, "weight"):
        name, index = question["weight"].values()
        weight, gradient, step = (float(tree[name].flat[index]) for tree in (of.params, of.grads, of.update))
        largest = np.abs(of.grads[name]).max()
        close(sums["gradient"]["total"], gradient, largest)
        agree.append(abs(follows(sums["gradient"], "measured") - gradient) < 1e-5 * largest)
        assert follows(sums["step"], "the step") == pytest.approx(step, rel=1e-7, abs=1e-12)
        close(sums["step"]["total"], weight + step, 1e-3)
        assert sums["blame"]["total"] == pytest.approx(-gradient * step, rel=1e-7, abs=1e-15)
    assert np.mean(agree) > 0.97  # the others switch a hidden unit on or off


# In a browser.


def rendered(tab: Tab, selector: str) -> dict[str, float]:
    return tab.page.evaluate(
        "(selector) => document.querySelector(selector).getBoundingClientRect().toJSON()", selector
    )


def total(tab: Tab) -> float:
    return float(tab.text("#arithmetic .total td").replace("−", "-"))


def chosen(tab: Tab) -> str:
    return tab.text("#arithmetic [aria-pressed=true]")


def test_a_click_shows_the_sum_beside_the_stage(tab: Tab) -> None:
    tab.page.evaluate("jaxcalc.transport.pause(), jaxcalc.transport.seek(jaxcalc.transport.endOf(0) - 0.01)")
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    word = tab.page.locator(".stage .word.pickable").first
    word.click()
    assert tab.text("#arithmetic h2").startswith("the word “")
    assert chosen(tab) == "score"
    likeliest = "Math.max(...app.scores())"
    assert total(tab) == pytest.approx(tab.state(likeliest), rel=1e-4)
    values = tab.page.locator("#arithmetic tbody td:last-child").all_inner_texts()
    terms = [float(text.replace("−", "-")) for text in values]
    assert sum(terms) == pytest.approx(total(tab), abs=0.05)
    panel, stage = rendered(tab, "#arithmetic"), rendered(tab, "#stage")
    assert panel["left"] >= stage["right"]
    assert panel["bottom"] <= 800
    assert tab.page.locator(".stage [data-shown]").count() == 1
    tab.page.click("#arithmetic [aria-label=Close]")
    assert tab.page.is_hidden("#arithmetic")
    assert tab.page.locator(".stage [data-shown]").count() == 0


def test_the_keys_alone_go_from_a_word_to_a_weight_and_back(tab: Tab) -> None:
    tab.page.evaluate("jaxcalc.transport.pause(), jaxcalc.transport.seek(jaxcalc.transport.endOf(0) - 0.01)")
    tab.page.locator(".stage .word.pickable").first.focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "arithmetic-title"

    def go(key: str) -> None:
        for _ in range(30):
            if tab.page.evaluate("document.activeElement.dataset.key") == key:
                return tab.page.keyboard.press("Enter")
            tab.page.keyboard.press("Tab")
        raise AssertionError(key)

    go("0 0")
    assert tab.text("#arithmetic h2") == "output at “equals”"
    assert tab.page.evaluate("document.activeElement.id") == "arithmetic-title"
    go("0 0")
    assert tab.text("#arithmetic h2") == "block 1 feed-forward at “equals”"
    d = int(tab.page.input_value("#arithmetic input"))
    stream = tab.state(f"Array.from(app.activations.blocks[1].mlp.residual.data).slice(-64)[{d}]")
    assert total(tab) == pytest.approx(stream, rel=1e-4)
    go("blame")
    assert chosen(tab) == "blame"
    assert tab.page.evaluate("document.activeElement.dataset.key") == "blame"
    go("0")
    assert tab.text("#arithmetic h2").startswith("weight blocks.1.mlp.")
    go("back")
    assert chosen(tab) == "blame"
    tab.page.keyboard.press("Escape")
    assert tab.page.is_hidden("#arithmetic")
    assert tab.page.evaluate("document.activeElement.classList.contains('word')")


def test_it_follows_the_moment(tab: Tab) -> None:
    tab.page.evaluate("jaxcalc.transport.pause(), jaxcalc.transport.seek(jaxcalc.transport.endOf(1) - 0.01)")
    tab.page.locator(".stage .surprise").click()
    assert chosen(tab) == "surprise"
    before = total(tab)
    assert before == pytest.approx(tab.state("app.loss"), rel=1e-4)
    tab.page.click("#teach")
    tab.wait("jaxcalc.app.stepped === 1")
    tab.page.evaluate("jaxcalc.transport.pause(), jaxcalc.transport.showEnd(4)")
    assert total(tab) == pytest.approx(tab.state("app.loss"), rel=1e-4)
    assert total(tab) < before
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.wait("jaxcalc.app.snapshot === 0")
    tab.page.evaluate("jaxcalc.transport.showEnd(1)")
    assert total(tab) == pytest.approx(tab.state("app.loss"), rel=1e-4)
    assert total(tab) != before


def test_the_cells_inside_show_their_sums_too(tab: Tab) -> None:
    tab.look_inside()
    cell = tab.page.locator("#stages tbody tr").nth(2).locator("button").nth(3)
    cell.click()
    assert chosen(tab) == "length"
    length = tab.page.locator("#arithmetic .follows td").first.inner_text()
    assert float(length) == pytest.approx(float(cell.inner_text()), rel=1e-2)
    tab.page.keyboard.press("Escape")
    assert tab.page.evaluate("document.activeElement.closest('#stages') !== null")
    tab.page.locator("#backward tbody tr").nth(1).locator("button").last.click()
    assert chosen(tab) == "strength"
    tab.page.locator("#attention .pattern").nth(1).locator("[tabindex='0']").focus()
    for key in ("ArrowLeft", "Enter"):
        tab.page.keyboard.press(key)
    assert "block 0 attention, head 1" in tab.text("#arithmetic h2")
    tab.page.locator("#weight canvas").focus()
    tab.page.keyboard.press("Enter")
    assert tab.text("#arithmetic h2") == "weight " + tab.text("#story h3")
    gradient = tab.page.locator("#story td.number").nth(1).inner_text()
    assert total(tab) == pytest.approx(float(gradient.replace("−", "-")), rel=1e-3)
    tab.page.keyboard.press("Escape")
    assert tab.page.evaluate("document.activeElement.closest('#weight') !== null")
    tab.page.locator("#weight canvas").click(position={"x": 20, "y": 20})
    shown = tab.text("#arithmetic h2")
    assert shown == "weight " + tab.text("#story h3")
    tab.page.keyboard.press("ArrowRight")  # a click leaves the focus in the matrix
    assert shown != "weight " + tab.text("#story h3")
    panel = rendered(tab, "#arithmetic")
    assert panel["top"] >= 0
    assert panel["bottom"] <= tab.page.viewport_size["height"]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_panel_covers_nothing_and_everyone_can_use_it(browser: Any, file: Path, width: int, scheme: Any) -> None:
    source = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/explorer")
    tab = Tab(browser, file, viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    tab.page.evaluate("jaxcalc.transport.pause(), jaxcalc.transport.seek(jaxcalc.transport.endOf(2) - 0.01)")
    tab.page.evaluate(source.read_text(encoding="utf-8"))
    picks = tab.page.locator(".stage [data-pick]")
    tab.page.locator("[aria-label^='block 1 mlp at equals']").click()
    assert chosen(tab) == "blame"
    for name in ("number", "length", "message", "strength", "blame"):
        tab.page.locator(f"#arithmetic [data-key={name}]").click()
        panel, stage = rendered(tab, "#arithmetic"), rendered(tab, "#stage")
        assert panel["left"] >= stage["right"] if width == 1280 else panel["top"] >= stage["bottom"]
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        small = tab.page.evaluate(
            "[...document.querySelectorAll('#arithmetic button')].map((node) => node.getBoundingClientRect())"
            ".filter(({ width, height }) => width < 24 || height < 24).length"
        )
        assert small == 0
        found = tab.page.evaluate("axe.run('#arithmetic').then(({ violations }) => violations)")
        assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []
    assert picks.count() > 30
    assert not tab.messages
    tab.page.context.close()
