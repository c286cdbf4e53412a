"""Training from nothing in the page: its batched engine under Node against JAX, and the page in a browser."""

import base64
import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browsers import Tab
from scripts import run_script

import jaxcalc
from jaxcalc import ModelConfig, Params
from jaxcalc.explorer import explore_live, live
from jaxcalc.optimizers import DEFAULT_LEARNING_RATE, make_optimizer
from jaxcalc.tasks.table import Calculator
from jaxcalc.trees import named_leaves

SCRIPT = Path(__file__).with_name("live_golden.mjs")
N_STEPS = 20

Ask = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def ask(ask_node: Callable[[Path, str, Any], Any]) -> Ask:
    """(topic, question) → what live_golden.mjs answers."""
    return functools.partial(ask_node, SCRIPT)


@pytest.fixture(scope="module")
def small() -> Calculator:
    return jaxcalc.calculator(live.OPERATIONS, live.MAX_NUMBER)


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one block", "two blocks"])
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


def test_a_step_that_leaves_the_numbers_behind_is_refused(ask: Ask) -> None:
    settings = live.SETTINGS | {"optimizer": "sgd", "rate": 1e200}
    refused = ask("refusal", {"data": live.live_data(), "settings": settings})
    assert "reset, and choose a smaller rate" in refused["message"]
    assert refused["finite"]


# The page.


def opened(browser: Any, file: Path, width: int = 1280) -> Tab:
    tab = Tab(browser, file, viewport={"width": width, "height": 800})
    tab.wait("Boolean(jaxcalc.live()?.verdicts)")
    return tab


def of_live(tab: Tab, expression: str) -> Any:
    return tab.page.evaluate(f"(() => {{ const live = jaxcalc.live(); return {expression}; }})()")


def held_out(tab: Tab, operation: str) -> float:
    """Return the share of right answers among the held-out problems of an operation."""
    rows = f"live.lessons.flatMap((l, i) => l.held && l.operation === '{operation}' ? [live.verdicts[i] > 127] : [])"
    return float(np.mean(of_live(tab, rows)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "live.html"
    path.write_text(explore_live().html, encoding="utf-8")
    return path


@pytest.fixture
def tab(browser: Any, file: Path) -> Iterator[Tab]:
    tab = opened(browser, file)
    yield tab
    assert not tab.messages
    tab.page.context.close()


@pytest.mark.slow
def test_it_learns_in_less_than_a_minute_without_holding_up_the_page(tab: Tab) -> None:
    tab.page.evaluate("""() => {
      globalThis.longTasks = [];
      new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ type: "longtask" });
    }""")
    start = time.monotonic()
    tab.page.click("#live-play")
    while held_out(tab, "plus") < 0.95:
        assert time.monotonic() - start < 60
        time.sleep(0.2)
    assert not of_live(tab, "live.engine.isSlow")
    tab.page.click("#live-play")
    assert tab.page.evaluate("longTasks") == []


@pytest.mark.slow
def test_it_plays_pauses_steps_and_begins_anew(tab: Tab) -> None:
    start = of_live(tab, "live.run.params.output.unembed.data[5]")
    tab.page.click("#live-step")
    tab.wait("jaxcalc.live().run.step === 1")
    tab.page.click("#live-play")
    tab.wait("jaxcalc.live().run.step > 5")
    tab.page.click("#live-play")
    tab.wait("!jaxcalc.live().playing")
    paused = of_live(tab, "[live.run.step, live.points.length]")
    assert paused[0] == paused[1]
    time.sleep(0.5)
    assert of_live(tab, "[live.run.step, live.points.length]") == paused
    assert of_live(tab, "live.points.every(({ step }, i) => step === i)")
    assert of_live(tab, "live.run.params.output.unembed.data[5]") != start
    tab.page.click("#live-reset")
    tab.wait("jaxcalc.live().run.step === 0")
    assert of_live(tab, "[live.run.params.output.unembed.data[5], live.points.length]") == [start, 0]


@pytest.mark.slow
def test_pausing_changes_nothing_of_what_is_learned(tab: Tab) -> None:
    """The same steps, in one go and with pauses between."""
    losses = []
    for pauses in (0, 3):
        tab.page.evaluate(
            """async (pauses) => {
          const live = jaxcalc.live();
          await live.reset();
          for (let i = 0; i < pauses; i++) await live.step();
          live.play();
        }""",
            pauses,
        )
        tab.wait("jaxcalc.live().run.step >= 12")
        tab.page.evaluate("() => jaxcalc.live().pause()")
        losses.append(of_live(tab, "live.points.slice(0, 12).map(({ loss }) => loss)"))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_setting_applies_at_once_or_says_that_it_waits(tab: Tab) -> None:
    tab.page.check("input[value=times]")
    tab.wait("document.querySelectorAll('.live-grids figure').length === 3")
    assert not tab.page.inner_text("#live-note")
    tab.page.click("#live-step")
    tab.wait("jaxcalc.live().run.step === 1")
    tab.page.select_option(".live-settings select >> nth=0", "sgd")
    tab.wait("document.getElementById('live-note').textContent.includes('Reset begins it')")
    assert of_live(tab, "[live.settings.optimizer, live.wanted.optimizer, live.wanted.rate]") == ["muon", "sgd", 0.1]
    for name, value in (("Rate", "-1"), ("Batch", "2.5"), ("Seed", "")):
        tab.page.get_by_label(name).fill(value)
        tab.page.get_by_label(name).blur()
        tab.wait(f"document.getElementById('live-note').textContent.startsWith('The {name.lower()} is')")
        assert tab.page.get_by_label(name).get_attribute("aria-invalid") == "true"
    assert of_live(tab, "live.wanted.rate") == 0.1
    for name in ("plus", "minus", "times"):
        tab.page.uncheck(f"input[value={name}]") if name != "times" else tab.page.click(f"input[value={name}]")
    tab.wait("document.getElementById('live-note').textContent.startsWith('Choose at least one')")
    assert tab.page.is_checked("input[value=times]")


@pytest.mark.slow
def test_one_question_is_watched(tab: Tab) -> None:
    tab.page.fill("#live-question", "three plus four")
    tab.wait("/held out|training/.test(document.getElementById('live-answer').textContent)")
    tab.page.fill("#live-question", "three pluss <b>")
    tab.wait("document.getElementById('live-answer').textContent.includes('unknown word')")
    assert tab.page.get_attribute("#live-question", "aria-invalid") == "true"
    box = tab.page.locator(".live-grids svg").nth(0).bounding_box()
    tab.page.mouse.click(box["x"] + box["width"] * 3.5 / 21, box["y"] + box["height"] * 2.5 / 21)
    tab.wait("document.getElementById('live-question').value === 'two plus three'")
    tab.wait("document.querySelector('.live-stage .word.right')?.textContent.includes('five')")


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out(browser: Any, file: Path, width: int) -> None:
    tab = opened(browser, file, width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.page.context.close()


@pytest.mark.slow
def test_the_frame_of_a_notebook_fits_the_page_and_trains(browser: Any, tmp_path: Path) -> None:
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{explore_live()._repr_html_()}", encoding="utf-8")
    page = browser.new_page(viewport={"width": 700, "height": 600})
    page.goto(notebook.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("#live-play").click()
    frame.locator(".live-where", has_text="loss").wait_for(timeout=10_000)
    inside = page.frames[-1]
    assert not inside.evaluate("jaxcalc.live().engine.isSlow")
    for width in (700, 1100, 400):
        page.set_viewport_size({"width": width, "height": 600})
        time.sleep(0.5)
        shown, high = inside.evaluate("[innerHeight, document.documentElement.scrollHeight]")
        assert shown == high
        assert 400 < shown < 2500
    page.close()


def test_the_file_is_small_and_may_do_nothing_but_compute() -> None:
    html = explore_live().html
    assert len(html.encode()) < 300_000
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "worker-src blob:;" in policy
    assert "unsafe" not in policy
    assert len(repr(explore_live())) < 80


def test_the_script_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "a page.html"
    written = run_script("explore", "--live", "--no-open", "--json", "--output", file)
    assert written.status == 0
    assert json.loads(written.out) == {"path": str(file), "bytes": file.stat().st_size, "steps": [], "left_out": []}
    assert file.read_text(encoding="utf-8") == explore_live().html
    for wrong in ([], [tmp_path, "--live"]):
        refused = run_script("explore", *wrong, "--no-open")
        assert refused.status == 2
        assert refused.err == "error: give a run folder, or --live for the page that trains from nothing\n"
