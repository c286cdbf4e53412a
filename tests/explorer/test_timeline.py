"""The ledgers on the page: their numbers, and the timeline that follows the slider."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Tab
from scripts import run_script

import jaxcalc
from jaxcalc import Explorer, InputError
from jaxcalc.explorer import page
from jaxcalc.explorer.timeline import N_POINTS, timeline_data
from jaxcalc.runs.account import Ledger, LessonRow

SNAPSHOTS = (0, 10, 20, 30, 40, 50, 60)
"""The steps of the snapshots of `small_run`."""


def account(question: str = "two plus three equals five", n_steps: int = 60) -> Ledger:
    """Return a ledger as of a run whose steps move in any direction."""
    rng = np.random.default_rng(n_steps + len(question))
    by_stage = {name: rng.normal(0.05, 0.1, n_steps) for name in ("block 0 attention", "block 0 mlp", "output")}
    drops = np.sum([*by_stage.values()], axis=0) + 1e-5
    return Ledger(
        question=question,
        steps=np.arange(n_steps),
        surprise=10.5 - np.append(0, np.cumsum(drops)),
        by_stage=by_stage,
        by_head=by_stage,
        by_lesson=tuple(
            LessonRow(f"{question}, lesson {nats}", float(nats), 7, "the inverse operation")
            for nats in range(12, -8, -1)
        ),
        weight_decay=0.0,
        before=0.0,
        rounding=0.0,
    )


def test_the_numbers_of_the_page_are_those_of_the_ledger() -> None:
    ledger = account()
    data: Any = timeline_data(ledger, SNAPSHOTS)
    steps = np.array(data["steps"])
    assert {*SNAPSHOTS} <= {*steps.tolist()}
    assert (np.diff(steps) > 0).all()
    assert data["question"] == ledger.question
    assert data["remainder"] == pytest.approx(ledger.remainder, rel=5e-4)
    assert data["surprise"] == pytest.approx(ledger.surprise[steps], rel=5e-4)
    assert [stage["name"] for stage in data["stages"]] == [*ledger.by_stage]
    for stage, added in zip(data["stages"], ledger.by_stage.values(), strict=True):
        assert stage["credit"] == pytest.approx([added[:step].sum() for step in steps], rel=5e-4)
    assert [row["nats"] for row in data["taught"]] == [*range(12, 2, -1)]
    assert [row["nats"] for row in data["against"]] == [*range(-7, -2)]
    assert data["taught"][0] == ledger.by_lesson[0]._asdict()


def test_a_long_run_has_no_more_points_than_a_short_one() -> None:
    data: Any = timeline_data(account(n_steps=100_000), (0, 12_345, 100_000))
    assert len(data["steps"]) <= N_POINTS + 3
    assert {0, 12_345, 100_000} <= {*data["steps"]}


def test_a_ledger_of_a_part_of_the_run_is_refused(small_run: Path) -> None:
    with pytest.raises(InputError, match="goes from step 0 to 35, and the run has a snapshot of step 60"):
        jaxcalc.explore(small_run, ledgers=[account(n_steps=35)])


def test_the_script_puts_the_ledger_of_a_question_into_the_page(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    ended = run_script("explore", small_run, "--ledger", "two plus three", "--no-open", "--output", out)
    assert ended.status == 0, ended.err
    (data,) = re.findall(r'id="data">(.*?)</script>', out.read_text(encoding="utf-8"))
    (shown,) = json.loads(data)["ledgers"]
    assert shown["question"] == "two plus three equals five"
    assert {*SNAPSHOTS} <= {*shown["steps"]}
    assert shown["surprise"][0] - shown["surprise"][-1] > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ledger", *["two plus three"] * 9], "--ledger has 9 questions; a page has room for at most 8"),
        (["--ledger", "six plus six"], "'six plus six' is not in the task's table"),
    ],
)
def test_the_script_refuses_what_has_no_place(small_run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    ended = run_script("explore", small_run, *words, "--no-open", "--output", tmp_path / "page.html")
    assert ended.status == 2
    assert ended.err.startswith(f"error: {message}")
    assert not (tmp_path / "page.html").exists()


def test_the_page_without_a_run_has_no_ledger() -> None:
    ended = run_script("explore", "--live", "--ledger", "two plus three", "--no-open")
    assert ended.status == 2
    assert "--ledger needs a run folder" in ended.err


# In a browser.


@pytest.fixture(scope="module")
def explorer(small_run: Path) -> Explorer:
    return jaxcalc.explore(small_run, ledgers=[account(), account("one plus one equals two")])


@pytest.mark.slow
def test_a_ledger_takes_the_place_of_a_snapshot(
    small_run: Path, explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_BYTES", len(explorer.html.encode()) + 100)
    whole = jaxcalc.explore(small_run, ledgers=[account(), account("one plus one equals two")])
    assert whole.left_out == ()
    three = jaxcalc.explore(small_run, ledgers=[account()] * 3)
    assert len(three.left_out) == 1
    assert len(three.html.encode()) <= page.MOST_BYTES


def cursors(tab: Tab) -> list[float]:
    """Return where the cursors of the timeline's charts are."""
    return tab.page.evaluate("[...document.querySelectorAll('#ledger .cursor')].map((node) => node.x1.baseVal.value)")


@pytest.mark.slow
def test_the_timeline_follows_the_slider(tab: Tab) -> None:
    tab.look_inside()
    ledger = account()
    tab.page.focus("#snapshot")
    places = []
    for key, step in (("Home", 0), ("ArrowRight", 10), ("End", 60)):
        tab.page.keyboard.press(key)
        tab.wait(f"document.getElementById('snapshot-step').textContent === 'step {step}'")
        tab.wait("document.querySelectorAll('#ledger .cursor').length === 2")
        places.append(cursors(tab))
        assert tab.text("#ledger-said").startswith(f"At step {step} ")
        shown = [float(text.split()[-1].replace("−", "-")) for text in tab.text("#ledger .legend").split("\n")]
        assert shown == pytest.approx([added[:step].sum() for added in ledger.by_stage.values()], rel=5e-3)
    for before, after in itertools.pairwise(places):
        assert all(a < b for a, b in zip(before, after, strict=True))
    drop, start = ledger.drop, ledger.surprise[0]
    assert f"had lost {drop:.3g} of its {start:.3g} nats, the largest part by " in tab.text("#ledger-said")


@pytest.mark.slow
def test_a_click_on_the_timeline_chooses_the_nearest_snapshot(tab: Tab) -> None:
    tab.look_inside()
    drawing = tab.page.locator("#ledger svg.chart").first
    drawing.click(position={"x": 54, "y": 80})
    tab.wait("document.getElementById('snapshot-step').textContent === 'step 0'")
    assert tab.text("#ledger-said") == "At step 0 the surprise was 10.5 nats."


@pytest.mark.slow
def test_another_question_has_its_own_ledger(tab: Tab) -> None:
    tab.look_inside()
    assert "two plus three equals five, lesson 12" in tab.text("#ledger")
    before = tab.text("#ledger-said")
    tab.page.select_option("#ledger-question", label="one plus one equals two")
    assert tab.text("#ledger-said") != before
    assert "one plus one equals two, lesson 12" in tab.text("#ledger table >> nth=0")
    assert "one plus one equals two, lesson -7" in tab.text("#ledger table >> nth=1")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_everyone_can_use_the_timeline(browser: Any, file: Path, width: int, scheme: Any) -> None:
    source = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/explorer")
    tab = Tab(browser, file, viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    tab.look_inside()
    assert tab.page.evaluate("((node) => node.scrollWidth <= node.clientWidth)(document.getElementById('replay'))")
    tab.page.evaluate(source.read_text(encoding="utf-8"))
    found = tab.page.evaluate("axe.run('#ledger').then(({ violations }) => violations)")
    assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []
    assert not tab.messages
    tab.page.context.close()


@pytest.mark.slow
def test_without_ledgers_nothing_of_them_is_shown(browser: Any, small_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(jaxcalc.explore(small_run).html, encoding="utf-8")
    tab = Tab(browser, path)
    tab.look_inside()
    assert tab.page.locator("#ledger, #ledger-question").count() == 0
    assert not tab.messages
    tab.page.context.close()
