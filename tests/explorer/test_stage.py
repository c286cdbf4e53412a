"""The opening of the page and its stage: five scenes of one step of learning, in a real browser."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Tab
from scripts import run_script

import jaxcalc
from jaxcalc import Run

pytestmark = pytest.mark.slow
SCENES = ("forward", "surprise", "backward", "update", "again")


def at_the_end_of(tab: Tab, scene: str) -> None:
    tab.page.evaluate(
        f"jaxcalc.transport.pause(), jaxcalc.transport.seek(jaxcalc.transport.endOf({SCENES.index(scene)}) - 0.01)"
    )
    tab.wait(f"document.querySelector('svg.stage').dataset.scene === {scene!r}")


def texts(tab: Tab, selector: str) -> list[str]:
    return tab.page.evaluate(
        "(selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent)", selector
    )


def test_it_opens_on_a_held_out_problem_that_is_wrong(tab: Tab, run: Run) -> None:
    assert "A network of 103,616 numbers that learned arithmetic" in tab.text("#sentence")
    question = tab.page.input_value("#prompt")
    (evaluation,) = [jaxcalc.evaluate(run.params, run.task, np.array([run.task.row(question)]))]
    assert not evaluation.correct[0]
    assert run.task.membership(run.task.parse(question)) == "held out"
    chips = texts(tab, "#chips button")
    assert [("wrong, held out" in chip, "right" in chip, "untrained" in chip) for chip in chips] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_a_run_without_plus_opens_on_a_problem_of_its_own(browser: Any, tmp_path: Path) -> None:
    """It answers all of its few problems right, so that the page looks for an earlier snapshot that does not."""
    sizes = ("--ops", "minus", "--max-number", "4", "--split", "none", "--batch-size", "8", "--steps", "400")
    trained = run_script("train", "--run-dir", tmp_path / "run", *sizes)
    assert trained.status == 0, trained.err
    page = tmp_path / "page.html"
    page.write_text(jaxcalc.explore(tmp_path / "run").html, encoding="utf-8")
    tab = Tab(browser, page)
    assert " minus " in tab.page.input_value("#prompt")
    chips = texts(tab, "#chips button")
    assert len(chips) == 2
    assert "wrong, after" in chips[0]
    assert not tab.messages
    tab.page.context.close()


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080)])
def test_all_of_it_is_seen_without_scrolling(browser: Any, file: Path, width: int, height: int) -> None:
    tab = Tab(browser, file, viewport={"width": width, "height": height})
    for seen in ("#sentence", "#chips", "#stage svg", "#transport"):
        box = tab.page.locator(seen).first.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height, seen
    button = tab.page.get_by_role("button", name="Teach it").bounding_box()
    assert button["y"] + button["height"] <= height
    tab.page.context.close()


def test_the_five_scenes_show_the_numbers_of_the_moment(tab: Tab) -> None:
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.ask("two plus three")
    p = tab.state("app.moment.probabilities[app.target]")
    at_the_end_of(tab, "surprise")
    assert f"−ln {p:.3g}" in texts(tab, ".stage .surprise")[0]
    at_the_end_of(tab, "backward")
    assert texts(tab, ".stage .surprise")[0].startswith(f"p − 1 = −{1 - p:.3f}")
    shares = [float(text.split()[0]) for text in texts(tab, ".stage .summary .share") if "%" in text]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)
    blame = tab.state("app.moment.blame")
    assert shares[0] == pytest.approx(100 * blame["nats"]["embed"] / blame["total"], abs=0.06)
    at_the_end_of(tab, "again")
    after = tab.state("app.after.probabilities[app.target]")
    assert after > p
    assert f"→ {100 * after:.0f}" in "".join(texts(tab, ".stage .word.right .p"))


def test_a_lesson_promises_half_of_the_loss_and_is_taken_back(tab: Tab) -> None:
    before = tab.state("app.loss")
    assert tab.state("app.moment.blame.total") == pytest.approx(before / 2, rel=1e-9)
    tab.page.get_by_role("button", name="until right").click()
    tab.wait("jaxcalc.app.stepped > 0 && jaxcalc.app.isRightWord()")
    assert tab.state("app.loss") < before
    tab.wait("/answers were right and are wrong now/.test(document.getElementById('broken').textContent)")
    tab.page.click("#undo-lesson")
    tab.wait("jaxcalc.app.stepped === 0")
    assert tab.state("app.loss") == before


def test_own_steps_are_kept_when_another_snapshot_is_chosen(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Teach it").click()
    tab.wait("jaxcalc.app.stepped === 1")
    taught = tab.state("app.loss")
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.wait("jaxcalc.app.snapshot === 0 && jaxcalc.app.stepped === 0")
    tab.page.click("#branch")
    tab.wait("jaxcalc.app.stepped === 1")
    assert tab.state("app.loss") == taught


def test_all_numbers_of_a_stage_are_one_click_behind_the_sum(tab: Tab) -> None:
    behind = tab.page.get_by_role("button", name="All numbers of this stage")
    tab.page.locator(".stage .word.pickable").first.click()
    behind.click()
    assert tab.page.evaluate("document.activeElement.id") == "output"
    tab.page.get_by_role("button", name="block 0 mlp at equals").click()
    behind.click()
    assert tab.page.is_hidden("#arithmetic")
    assert tab.page.evaluate("document.activeElement.id") == "weight"
    assert re.match(r"blocks\.0\.mlp\.\w+\[", tab.text("#story h3"))
    (blame,) = re.findall(r"^blame\?\t(\S+)", tab.text("#story"), re.MULTILINE)
    mlp = "(tree) => Object.entries(jaxcalc.namedLeaves(tree)).filter(([name]) => name.startsWith('blocks.0.mlp.'))"
    flat = f"((tree) => ({mlp})(tree).flatMap(([, leaf]) => Array.from(leaf.data)))"
    grads, update = (np.array(tab.state(f"{flat}({tree})")) for tree in ("app.grads", "app.pending.update"))
    assert float(blame.replace("−", "-")) == pytest.approx((-grads * update).max(), rel=1e-3)


def test_the_keys_and_reduced_motion(browser: Any, file: Path) -> None:
    tab = Tab(browser, file, reduced_motion="reduce")
    at_the_end_of(tab, "forward")
    before = tab.state("jaxcalc.transport.seconds")
    tab.page.focus("#transport input")
    tab.page.keyboard.press("ArrowRight")
    assert tab.state("jaxcalc.transport.seconds") > before
    tab.page.context.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, file: Path, width: int, scheme: Any) -> None:
    """With the numbers inside open, in the third scene, and in the tab that trains."""
    source = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/explorer")
    tab = Tab(browser, file, viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    tab.look_inside()
    at_the_end_of(tab, "backward")
    tab.page.evaluate(source.read_text(encoding="utf-8"))
    for name in ("run", "live"):
        tab.page.click(f"#tab-{name}")
        if name == "live":
            tab.wait("Boolean(jaxcalc.live()?.verdicts)")
        found = tab.page.evaluate("axe.run().then(({ violations }) => violations)")
        assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []
    tab.page.context.close()


SHOWN = "[app.prompt, app.snapshot, app.target, app.kind, app.rate, app.loss, jaxcalc.transport.index]"


def test_a_copied_link_shows_the_same(tab: Tab, browser: Any, file: Path) -> None:
    tab.page.evaluate("jaxcalc.app.setSnapshot(1)")
    tab.ask("seven times eight equals fifty")
    tab.page.evaluate("jaxcalc.app.setOptimizer('adam', 0.002)")
    tab.page.evaluate("jaxcalc.app.setTarget(jaxcalc.app.words.indexOf('seven'))")
    at_the_end_of(tab, "backward")
    tab.wait("location.hash.endsWith('scene=backward')")
    address = tab.page.evaluate("location.href")
    assert "question=seven+times+eight+equals+fifty&step=10&target=seven&optimizer=adam&rate=0.002" in address
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(address)
    again = Tab.__new__(Tab)
    again.page, again.messages = page, []
    again.wait("globalThis.jaxcalc !== undefined")
    assert again.state(SHOWN) == tab.state(SHOWN)
    page.goto("about:blank")
    page.goto(address.replace("step=10", "step=11"))
    again.wait("globalThis.jaxcalc !== undefined")
    assert again.text("#problem") == (
        "The link's step “11” is not a snapshot of this page, so the page opens as it does without the link."
    )
    context.close()
