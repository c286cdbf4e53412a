"""The page in Firefox: the same as in Chromium, to the last digits of its numbers."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import firefox
import numpy as np
import pytest
from browsers import Tab
from firefox import Firefox, FirefoxTab

import jaxcalc
from jaxcalc import Run
from jaxcalc.runs.text import percent

pytestmark = pytest.mark.slow
SCENES = ["forward", "surprise", "backward", "update", "again"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    pytest.importorskip("websockets.sync.client", reason="websockets is not installed: pip install -e '.[dev]'")
    found = next(filter(None, map(shutil.which, firefox.FIREFOX)), None)
    if found is None:
        names = ", ".join(firefox.FIREFOX)
        pytest.skip(f"none of {names} is installed, such as by: apt-get install firefox-esr")
    with firefox.started(found, tmp_path_factory.mktemp("firefox")) as started:
        yield started


@pytest.fixture
def fox(running: Firefox, file: Path) -> Iterator[FirefoxTab]:
    opened = FirefoxTab(running, file)
    yield opened
    assert not opened.messages
    asked = {each["request"]["url"].split(":")[0] for each in opened.told("network.beforeRequestSent")}
    assert asked <= {"file", "blob", "data"}
    opened.close()


def test_it_opens_offline_and_answers_as_the_library_does(fox: FirefoxTab, run: Run) -> None:
    assert not fox.evaluate("navigator.onLine")
    question = fox.evaluate("document.getElementById('prompt').value").split(" equals")[0]
    for asked in (question, "two plus three", "seven times eight"):
        shown = fox.text("#answer").replace("\n", " ") if asked == question else fox.ask(asked)
        expected = jaxcalc.evaluate(run.params, run.task, np.array([run.task.row(asked)]))
        answer = jaxcalc.evaluation.answer_text(run.task, expected.generated[0])
        assert f"{asked} equals" in shown
        assert f"→ {answer} {percent(float(expected.probability[0]))[:3]}" in shown
        assert ("✓ right" in shown) == expected.correct[0]


def test_the_five_scenes_play(fox: FirefoxTab) -> None:
    fox.evaluate("""(() => {
      globalThis.played = [];
      const stage = document.querySelector("svg.stage");
      const look = () => {
        if (played.at(-1) !== stage.dataset.scene) played.push(stage.dataset.scene);
      };
      new MutationObserver(look).observe(stage, { attributes: true, attributeFilter: ["data-scene"] });
      jaxcalc.transport.seek(0);
    })()""")
    fox.click("#transport-play")
    fox.wait("played.at(-1) === 'again' && !jaxcalc.transport.playing")
    assert fox.evaluate("played")[-5:] == SCENES
    fox.evaluate("jaxcalc.transport.showEnd(2)")
    shares = fox.evaluate("[...document.querySelectorAll('.stage .summary .share')].map((node) => node.textContent)")
    assert sum(float(text.split()[0]) for text in shares if "%" in text) == pytest.approx(100, abs=0.2)


def test_a_lesson_in_the_worker_lowers_the_loss(fox: FirefoxTab) -> None:
    before = fox.evaluate("jaxcalc.app.loss")
    fox.click("#teach")
    fox.wait("jaxcalc.app.stepped === 1 && jaxcalc.app.last.credit !== null")
    assert fox.evaluate("jaxcalc.app.loss") < before
    assert not fox.evaluate("jaxcalc.app.engine.isSlow")
    fox.click("#undo-lesson")
    fox.wait("jaxcalc.app.stepped === 0")
    assert fox.evaluate("jaxcalc.app.loss") == before


def test_every_part_inside_is_filled(fox: FirefoxTab) -> None:
    fox.click("#inside summary")
    fox.wait("document.querySelectorAll('#main section').length === 11")
    lengths = fox.evaluate("[...document.querySelectorAll('#main section')].map((node) => node.innerText.length)")
    assert min(lengths) > 80
    fox.click("#main .what")
    fox.wait("document.getElementById('help').matches(':popover-open')")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(running: Firefox, file: Path, width: int) -> None:
    tab = FirefoxTab(running, file, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = tab.evaluate("[...document.querySelectorAll('#stage svg, #transport')].map((n) => n.clientWidth)")
    assert all(0 < each <= width for each in boxes)
    tab.close()


NUMBERS = """(async () => {
  const { app, namedLeaves, gradient, adam } = jaxcalc;
  app.setPrompt("seven times eight");
  const { tokens, target, params, moment } = app;
  const flat = (tree) => Object.values(namedLeaves(tree)).flatMap(({ data }) => Array.from(data));
  const grads = gradient(params, tokens, target);
  const { update } = adam(0.01, ...app.data.adam_betas).update(grads, adam(0.01, ...app.data.adam_betas).init(params));
  await app.teach(1);
  const each = { logits: moment.logits.data, loss: [moment.loss], blame: Object.values(moment.blame.nats) };
  return [...Object.values(each).flatMap((data) => Array.from(data)), ...flat(grads), ...flat(update), app.loss];
})()"""
TWENTY_STEPS = """(async () => {
  const { data, settings, lessons } = jaxcalc.live();
  let points = [];
  const keep = (report) => void (points = points.concat(report.points));
  keep(await jaxcalc.app.engine.run("live", { data, settings, run: null, until: 20 }, keep));
  return points.map(({ loss }) => loss);
})()"""


def test_its_numbers_are_those_of_chromium(fox: FirefoxTab, tab: Tab) -> None:
    here, there = (np.array(each.evaluate(NUMBERS)) for each in (fox, tab.page))
    assert len(here) > 2 * 103_616
    assert np.abs(here - there).max() <= 1e-12 * max(1, np.abs(there).max())


def test_twenty_steps_of_training_are_those_of_chromium(fox: FirefoxTab, tab: Tab) -> None:
    fox.click("#tab-live")
    fox.wait("jaxcalc.live()?.verdicts")
    tab.page.click("#tab-live")
    tab.wait("Boolean(jaxcalc.live()?.verdicts)")
    here, there = (np.array(each.evaluate(TWENTY_STEPS)) for each in (fox, tab.page))
    assert len(here) == 20
    assert here == pytest.approx(there, rel=1e-12)
    assert here[-1] < here[0]
    fox.click("#live-play")
    fox.wait("jaxcalc.live().run.step >= 20")
    fox.click("#live-play")
    fox.wait("!jaxcalc.live().playing")
    assert not fox.evaluate("jaxcalc.live().problem || jaxcalc.live().engine.isSlow")
    assert fox.evaluate("document.querySelectorAll('.live-grids figure').length") == 2
