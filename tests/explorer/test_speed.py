"""How fast the page is, in Chromium. These tests measure, and print what they measured: pytest -n 0 -m slow -s.

What else runs on a machine makes every wall-clock time longer, so a long task is one that takes long on the processor,
and the frames are those of the best of three plays. Each figure comes with the time of one fixed loop in the same page:
about 25 to 45 ms on a quiet machine.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsers import Tab

pytestmark = pytest.mark.slow
LONGEST_TASK = 50  # milliseconds on the processor
LONGEST_FRAME = 34  # milliseconds, two frames of a screen with 60
Say = Callable[..., None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def say(what: str, tab: Tab, **figures: float) -> None:
        loop = """(() => {
          const start = performance.now();
          let sum = 0;
          for (let i = 0; i < 2e7; i++) sum += Math.sqrt(i);
          return performance.now() - start + 0 * sum;
        })()"""
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        with capsys.disabled():
            print(f"\n{what}: {shown}; the loop {tab.page.evaluate(loop):.0f} ms")

    return say


@contextmanager
def traced(browser: Any, tab: Tab) -> Iterator[list[float]]:
    """Yield a list that gets the milliseconds on the processor of every task of the page's main thread."""
    tasks: list[float] = []
    browser.start_tracing(page=tab.page, categories=["toplevel", "devtools.timeline"])
    try:
        yield tasks
    finally:
        events = json.loads(browser.stop_tracing())["traceEvents"]
    named = [event for event in events if event["name"] == "thread_name"]
    main = {(each["pid"], each["tid"]) for each in named if each["args"]["name"] == "CrRendererMain"}
    by_process = defaultdict(list)
    for event in events:
        if event["name"].endswith("RunTask") and "tdur" in event and (event["pid"], event["tid"]) in main:
            by_process[event["pid"]].append(event["tdur"] / 1000)
    tasks += max(by_process.values(), key=sum)


def test_the_first_answer_comes_at_once(browser: Any, file: Path, say: Say) -> None:
    """Within half a second after the file is read and parsed."""
    after = []
    for _ in range(3):
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.add_init_script("""
          new MutationObserver((_, observer) => {
            if (!document.getElementById("answer")?.textContent) return;
            globalThis.answeredAt = performance.now();
            observer.disconnect();
          }).observe(document, { childList: true, subtree: true });
        """)
        page.goto(file.as_uri())
        tab = Tab.__new__(Tab)
        tab.page, tab.messages = page, []
        tab.wait("globalThis.answeredAt !== undefined")
        parsed, answered = page.evaluate("[performance.getEntriesByType('navigation')[0].domInteractive, answeredAt]")
        after.append(answered - parsed)
        say("first answer, ms", tab, parsed=parsed, answered=answered, between=answered - parsed)
        context.close()
    assert min(after) <= 500


def test_a_keystroke_is_answered_at_once(browser: Any, tab: Tab, say: Say) -> None:
    """From the key to the frame that shows its answer."""
    tab.wait("!jaxcalc.transport.playing")
    tab.page.evaluate("""() => {
      globalThis.keys = [];
      document.getElementById("prompt").addEventListener("input", ({ timeStamp }) => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => keys.push(performance.now() - timeStamp);
        requestAnimationFrame(() => port2.postMessage(null)); // received after the frame is made
      });
    }""")
    tab.page.fill("#prompt", "")
    with traced(browser, tab) as tasks:
        for key in "two plus three" + "teen times seven":
            tab.page.keyboard.press("Space" if key == " " else key)
            time.sleep(0.06)
    keys = tab.page.evaluate("keys")[-30:]
    assert len(keys) == 30
    say("30 keys, ms", tab, median=statistics.median(keys), worst=max(keys), task=max(tasks))
    assert statistics.median(keys) <= 50
    assert max(tasks) <= LONGEST_TASK


PLAY = """() => new Promise((resolve) => {
  const { transport } = jaxcalc, frames = [];
  let last = null;
  transport.seek(0);
  transport.play(0);
  const tick = (now) => {
    if (last !== null) frames.push(now - last);
    last = now;
    if (transport.playing) requestAnimationFrame(tick);
    else resolve(frames);
  };
  requestAnimationFrame(tick);
})"""
IDLE = """() => new Promise((resolve) => {
  const frames = [];
  let last = null;
  const tick = (now) => {
    if (last !== null) frames.push(now - last);
    last = now;
    document.body.style.setProperty("background", frames.length % 2 ? "white" : "silver");
    if (frames.length < 480) requestAnimationFrame(tick);
    else resolve(frames);
  };
  requestAnimationFrame(tick);
})"""


def test_all_scenes_play_without_a_hitch(browser: Any, tab: Tab, say: Say) -> None:
    """The best of three plays; with frames that come late even in an empty page, the machine is too busy to tell."""
    tab.wait("!jaxcalc.transport.playing")
    with traced(browser, tab) as tasks:
        plays = [tab.page.evaluate(PLAY) for _ in range(3)]
    best = min(plays, key=max)
    assert max(tasks) <= LONGEST_TASK
    empty = browser.new_page()
    idle = min((empty.evaluate(IDLE) for _ in range(2)), key=max)
    empty.close()
    figures = {
        "median": statistics.median(best),
        "worst": max(best),
        "task": max(tasks),
        "worst of an empty": max(idle),
    }
    say("frames of five scenes, ms", tab, **figures)
    assert statistics.median(best) <= 17
    if max(best) > LONGEST_FRAME < max(idle):
        pytest.skip(f"the machine is busy: a frame of an empty page took {max(idle):.0f} ms")
    assert max(best) <= LONGEST_FRAME


def test_teaching_blocks_nothing(browser: Any, tab: Tab, say: Say) -> None:
    """Four lessons, played, with the whole table answered again beside them."""
    tab.wait("!jaxcalc.transport.playing")
    with traced(browser, tab) as tasks:
        for n in range(1, 5):
            tab.page.click("#teach")
            tab.wait(f"jaxcalc.app.stepped === {n}")
        time.sleep(3)
    say("four lessons, ms", tab, task=max(tasks))
    assert max(tasks) <= LONGEST_TASK


def test_a_thousand_lessons_stay_small(tab: Tab, say: Say) -> None:
    """What is kept so that steps can be undone is bounded: arrays and objects together stay below 60 MB."""
    session = tab.page.context.new_cdp_session(tab.page)

    def megabytes() -> float:
        session.send("HeapProfiler.collectGarbage")
        usage = session.send("Runtime.getHeapUsage")
        return (usage["usedSize"] + usage["backingStorageSize"]) / 1e6

    fresh = megabytes()
    for kind, rate in (("sgd", 1e-6), ("adam", 1e-5)):
        tab.page.evaluate(
            """async ([kind, rate]) => {
              jaxcalc.app.setOptimizer(kind, rate);
              for (let i = 0; i < 500; i++) await jaxcalc.app.teach(1);
            }""",
            [kind, rate],
        )
        say(f"500 lessons with {kind}, MB", tab, fresh=fresh, now=megabytes())
    assert tab.state("app.stepped") == 1000
    assert megabytes() < 60
