"""Faults that the page once had, each as a kind: what must hold at every size, in every medium, for every control."""

import re
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browsers import Tab

pytestmark = pytest.mark.slow
WIDTHS = (320, 390, 768, 1024, 1280, 1920)
PLACES = """(selector) => [...document.querySelectorAll(selector)].map((node) => {
  const { left, top, right, bottom, width, height } = node.getBoundingClientRect();
  const name = node.id || node.getAttribute("aria-label") || node.textContent.trim() || node.value || node.outerHTML;
  return { name, left, top, right, bottom, width, height };
}).filter(({ width, height }) => width && height)"""


def places(tab: Tab, selector: str) -> list[dict[str, Any]]:
    return tab.page.evaluate(PLACES, selector)


def sized(browser: Any, file: Path, width: int, height: int, **options: Any) -> Tab:
    return Tab(browser, file, viewport={"width": width, "height": height}, **options)


def open_live(tab: Tab) -> None:
    tab.page.click("#tab-live")
    tab.wait("Boolean(jaxcalc.live()?.verdicts)")


def overlap(a: dict[str, float], b: dict[str, float]) -> float:
    across = min(a["right"], b["right"]) - max(a["left"], b["left"])
    down = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
    return max(across, 0) * max(down, 0)


@pytest.fixture
def inside(tab: Tab) -> Tab:
    tab.look_inside()
    return tab


# The curve of a step.


def test_the_curve_of_a_step_is_smooth_and_holds_nothing_up(inside: Tab) -> None:
    inside.wait("Boolean(document.querySelector('#promise .curve'))")
    before = inside.page.get_attribute("#promise .curve", "d")
    inside.page.evaluate("jaxcalc.app.setSnapshot(0)")
    inside.page.evaluate("jaxcalc.app.setOptimizer('sgd', 0.2)")  # so far that the curve bends
    inside.wait(f"document.querySelector('#promise .curve')?.getAttribute('d') !== {before!r}")
    curve, long_tasks = inside.page.evaluate("""async () => {
      const { app } = jaxcalc;
      const tasks = [];
      new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ type: "longtask" });
      await new Promise((resume) => setTimeout(resume, 300));
      tasks.length = 0;
      app.pending.losses = null;
      const curve = await app.curve();
      await new Promise((resume) => setTimeout(resume, 100));
      return [curve, tasks];
    }""")
    assert long_tasks == []
    assert len(curve) > 32
    assert [curve[0][0], curve[-1][0]] == [0, 2]
    losses = [loss for _, loss in curve]
    height = max(losses) - min(losses)
    ts = [t for t, _ in curve]
    for i in range(2, len(curve)):  # a point between two others lies near the line through them
        (a, low), (t, loss), (b, high) = curve[i - 2 : i + 1]
        line = low + (high - low) * (t - a) / (b - a)
        assert abs(loss - line) < 0.03 * height, t
    assert all(a < b for a, b in pairwise(ts))
    at_one = curve[ts.index(1)][1]
    assert inside.state("app.loss - app.pending.actual") == pytest.approx(at_one, rel=1e-12)


# Help.


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_help_stands_beside_what_it_explains(browser: Any, file: Path, width: int, height: int) -> None:
    tab = sized(browser, file, width, height)
    tab.look_inside()
    covered = "table, figure, p, h2, h3"
    buttons = tab.page.locator(".what").all()
    assert len(buttons) > 20
    for button in buttons:
        button.evaluate("(node) => node.scrollIntoView({ block: 'center' })")
        button.evaluate("(node) => node.click()")
        (help_box,) = places(tab, "#help")
        box, thing = button.evaluate(
            f"""(node) => [node, node.closest({covered!r}) ?? node.parentElement].map((each) => {{
              const {{ left, top, right, bottom }} = each.getBoundingClientRect();
              return {{ left, top, right, bottom }};
            }})"""
        )
        name = button.get_attribute("aria-label")
        assert help_box["left"] >= 0, name
        assert help_box["right"] <= width, name
        assert help_box["top"] >= 0, name
        assert help_box["bottom"] <= height, name
        assert overlap(help_box, box) == 0, name
        assert overlap(help_box, thing) == 0, name
        away = max(help_box["left"] - box["right"], box["left"] - help_box["right"], 0) + max(
            help_box["top"] - box["bottom"], box["top"] - help_box["bottom"], 0
        )
        assert away < 300, name
        tab.page.keyboard.press("Escape")
    tab.page.context.close()


# Controls.


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_every_control_is_large_enough(browser: Any, file: Path, width: int) -> None:
    """An arc of attention has the shape of its curve; what it opens is in the part about attention too."""
    controls = "button, input, select, summary, canvas, a[href]:not(.skip), [role=button]:not(path)"
    tab = sized(browser, file, width, 800)
    tab.look_inside()
    tab.page.get_by_role("button", name="Teach it").click()
    tab.wait("document.querySelectorAll('#broken .examples button').length > 0")
    found = places(tab, controls)
    assert len(found) > 60
    open_live(tab)
    found += places(tab, controls)
    assert [each for each in found if min(each["width"], each["height"]) < 23.99] == []
    tab.page.context.close()


def test_the_focus_is_never_lost(inside: Tab) -> None:
    focused = "document.activeElement.id"
    inside.page.focus("#do-step")
    inside.step(1)
    for undo, then in (("#undo", "do-step"), ("#reset", "do-step"), ("#undo-lesson", "teach")):
        if not inside.state("app.stepped"):
            inside.step(1)
        inside.page.focus(undo)
        inside.page.keyboard.press("Enter")
        inside.wait("jaxcalc.app.stepped === 0")
        inside.wait(f"{focused} === {then!r}")
    inside.step(1)
    inside.page.evaluate("jaxcalc.app.setSnapshot(0)")
    inside.wait("Boolean(document.getElementById('branch'))")
    inside.page.focus("#branch")
    inside.page.keyboard.press("Enter")
    inside.wait("jaxcalc.app.stepped === 1")
    assert inside.page.evaluate(focused) == "age"
    open_live(inside)
    inside.page.focus("#live-step")
    inside.page.keyboard.press("Enter")
    inside.wait("jaxcalc.live().run.step === 1")
    inside.wait(f"{focused} === 'live-step' || {focused} === 'live-play'")


def test_the_weight_keeps_its_focus_while_results_arrive(inside: Tab) -> None:
    inside.page.focus("#weight canvas")
    inside.page.evaluate("jaxcalc.app.teach(1)")
    inside.wait("jaxcalc.app.last?.credit")
    assert inside.page.evaluate("document.activeElement.matches('#weight canvas')")


SAID = """() => [...document.querySelectorAll('[aria-live=polite], [role=status], [role=alert], output')]
  .map((node) => node.textContent).join(' | ')"""
ARROW = "dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }))"


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        (f"document.querySelector('#weight canvas').{ARROW}", "0, 1]: value"),
        ("choose('leaf', 'output.norm')", "output.norm[0]: value"),
        ("choose('target', jaxcalc.app.words.indexOf('seventy'))", "−ln p(seventy)"),
        ("choose('optimizer', 'adam')", "The gradient predicts a drop of"),
        (f"document.querySelector('#table canvas').{ARROW}", "zero plus one: "),
        ("document.querySelectorAll('.pattern')[5].querySelector('[tabindex=\"0\"]').focus()", "block 1, head 1:"),
        ("choose('snapshot', 1, 'input')", "step 10"),
        ("document.getElementById('do-step').click()", "Your last step"),
    ],
)
def test_what_a_pick_changes_is_said(inside: Tab, pick: str, expected: str) -> None:
    inside.page.evaluate("""() => {
      globalThis.choose = (id, value, event = 'change') => {
        const node = document.getElementById(id);
        node.value = value;
        node.dispatchEvent(new Event(event));
      };
    }""")
    before = inside.page.evaluate(SAID)
    inside.page.evaluate(pick)
    inside.wait(f"({SAID})() !== {before!r} && ({SAID})().includes({expected!r})")


# Drawings.


@pytest.mark.parametrize("density", [1, 2])
def test_canvases_follow_their_place_and_the_screen(browser: Any, file: Path, density: int) -> None:
    tab = sized(browser, file, 1280, 800, device_scale_factor=density)
    tab.look_inside()
    sizes = """[...document.querySelectorAll('#weight canvas, #table canvas')].map((node) =>
      [node.width, node.clientWidth, node.closest('.scroll').clientWidth])"""
    wide = tab.page.evaluate(sizes)
    tab.page.set_viewport_size({"width": 390, "height": 800})
    tab.wait(f"JSON.stringify({sizes}) !== {str(wide).replace(' ', '')!r}")
    narrow = tab.page.evaluate(sizes)
    for (_, before, _), (pixels, after, room) in zip(wide, narrow, strict=True):
        assert after < before
        assert after <= room
        assert abs(pixels - density * after) <= 1
    # Something is drawn.
    drawn = """[...document.querySelectorAll('#weight canvas, #table canvas')].map((node) =>
      new Set(node.getContext('2d').getImageData(0, 0, node.width, node.height).data).size)"""
    assert min(tab.page.evaluate(drawn)) > 3
    tab.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("corner", ["first", "last"])
def test_the_frame_of_the_chosen_cell_is_whole_and_seen(browser: Any, file: Path, scheme: Any, corner: str) -> None:
    tab = sized(browser, file, 1280, 800, color_scheme=scheme)
    tab.look_inside()
    for canvas in ("#weight canvas", "#table canvas"):
        tab.page.evaluate(
            """([selector, corner]) => {
          const node = document.querySelector(selector);
          const { left, top, width, height } = node.getBoundingClientRect();
          const at = corner === "first" ? 2 : -2;
          const [clientX, clientY] = [left + (at + width) % width, top + (at + height) % height];
          node.dispatchEvent(new MouseEvent("click", { clientX, clientY }));
        }""",
            [canvas, corner],
        )
        # All four sides of the frame have the ink of the page, in the corner of the canvas.
        ink, sides = tab.page.evaluate(
            """([selector, corner]) => {
          const node = document.querySelector(selector);
          const { width, height } = node;
          const { data } = node.getContext("2d").getImageData(0, 0, width, height);
          const ink = getComputedStyle(node).color.match(/\\d+/g).slice(0, 3).map(Number);
          const isInk = (x, y) => ink.every((value, i) => Math.abs(value - data[4 * (y * width + x) + i]) < 3);
          const [x, y] = corner === "first" ? [0, 0] : [width - 1, height - 1];
          const way = corner === "first" ? 1 : -1;
          let side = 0;
          while (side < 30 && isInk(x + way * side, y)) side++;
          const far = side - 1;
          const on = Array.from({ length: side }, (_, i) => way * i);
          return [ink, [
            side,
            on.every((i) => isInk(x + i, y)),
            on.every((i) => isInk(x, y + i)),
            on.every((i) => isInk(x + i, y + way * far)),
            on.every((i) => isInk(x + way * far, y + i)),
          ]];
        }""",
            [canvas, corner],
        )
        assert 5 <= sides[0] <= 16, canvas
        assert all(sides[1:]), canvas
        assert (sum(ink) > 384) == (scheme == "dark")
    tab.page.context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_text_is_readable_and_nothing_scrolls_sideways(browser: Any, file: Path, width: int) -> None:
    tab = sized(browser, file, width, 800)
    tab.look_inside()
    tab.wait("Boolean(document.querySelector('#promise .curve'))")
    tab.page.evaluate("jaxcalc.transport.showEnd(2)")
    sizes = """[...document.querySelectorAll('svg text')].filter((node) => node.getBoundingClientRect().width)
      .map((node) => [node.textContent, parseFloat(getComputedStyle(node).fontSize) * node.getScreenCTM().a])"""
    charts = tab.page.evaluate(sizes)
    assert len(charts) > 40
    assert [each for each in charts if each[1] < 10.99] == []
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    # A name or a word of the stage and of a chart lies inside its drawing.
    outside = """[...document.querySelectorAll('svg.stage text, svg.chart text')].filter((node) => {
      const [text, svg] = [node, node.ownerSVGElement].map((each) => each.getBoundingClientRect());
      return text.width && (text.left < svg.left - 1 || text.right > svg.right + 1);
    }).map((node) => node.textContent)"""
    for scene in range(5):
        tab.page.evaluate(f"jaxcalc.transport.showEnd({scene})")
        assert tab.page.evaluate(outside) == [], scene
    open_live(tab)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.page.context.close()


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_headings_labels_whole_numbers_and_equals(browser: Any, file: Path, width: int) -> None:
    tab = sized(browser, file, width, 844)
    tab.look_inside()
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.page.evaluate("jaxcalc.app.setOptimizer('sgd', 1e-7)")  # so that there are small numbers
    seen = places(tab, "h1, label[for=prompt], #main h2, #main label")
    assert len(seen) >= 2 + 10 + 4
    assert all(each["left"] >= 0 and each["right"] <= width for each in seen)
    broken = """() => {
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      const found = [];
      const range = document.createRange();
      while (walker.nextNode()) {
        const { data } = walker.currentNode;
        if (walker.currentNode.parentElement.closest("script, style")) continue;
        for (const match of data.matchAll(/[−-]?\\d[\\d.,]*(e[−-]?\\d+)?/g)) {
          range.setStart(walker.currentNode, match.index);
          range.setEnd(walker.currentNode, match.index + match[0].length);
          const lines = new Set([...range.getClientRects()].map(({ top }) => Math.round(top)));
          if (lines.size > 1) found.push(match[0]);
        }
      }
      return found;
    }"""
    assert tab.page.evaluate("document.body.innerText.match(/\\de[−-]\\d/g).length") > 3
    assert tab.page.evaluate(broken) == []
    for table in tab.page.locator(".heat-table").all():
        table.evaluate("(node) => node.scrollIntoView()")
        last = table.locator("thead th").last
        assert last.inner_text() == "equals"
        box, room = last.bounding_box(), table.bounding_box()
        assert box["x"] + box["width"] <= room["x"] + room["width"] + 1
    tab.page.context.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024)])
def test_a_phone_and_a_tablet_open_on_the_stage_and_the_lesson(
    browser: Any, file: Path, width: int, height: int
) -> None:
    tab = sized(browser, file, width, height)
    (transport,) = places(tab, "#transport")
    end = transport["top"]
    for selector in ("#sentence", "#prompt", "#answer", "#teach", "#teach-until", "#lesson", ".stage .word"):
        for box in places(tab, selector):
            assert 0 <= box["top"] < box["bottom"] <= end, selector
    tab.page.context.close()


@pytest.mark.parametrize(("width", "height"), [(640, 400), (320, 200)])
def test_a_zoomed_page_has_room_for_its_content(browser: Any, file: Path, width: int, height: int) -> None:
    """A window of 1280 × 800 at 200 and at 400 %."""
    tab = sized(browser, file, width, height)
    tab.look_inside()
    sticky = tab.page.evaluate("""() => {
      document.querySelector("#stage").scrollIntoView();
      const seen = [...document.querySelectorAll("body *")]
        .filter((node) => ["sticky", "fixed"].includes(getComputedStyle(node).position))
        .map((node) => node.getBoundingClientRect())
        .filter(({ width }) => width > innerWidth / 2);
      return seen.reduce((sum, { top, bottom }) => sum + Math.min(bottom, innerHeight) - Math.max(top, 0), 0);
    }""")
    (header,) = places(tab, "header")
    assert header["height"] + sticky < height / 3
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    cut = """[...document.querySelectorAll('button, label, h1, h2, h3, th, td, p, summary')].filter((node) => {
      const { overflowX } = getComputedStyle(node);
      return node.clientWidth && overflowX !== "visible" && node.scrollWidth > node.clientWidth + 1;
    }).map((node) => node.id || node.textContent.slice(0, 30))"""
    assert [each for each in tab.page.evaluate(cut) if each != "said-of-weight"] == []
    # Everything can be brought into view, below nothing that sticks.
    for selector in ("#teach", "#undo-lesson", "#scene-again", "#stage .word", "#main section:last-child canvas"):
        node = tab.page.locator(selector).first
        node.evaluate("(each) => each.scrollIntoView({ block: 'center' })")
        assert node.evaluate("""(each) => {
          const { left, top, width, height } = each.getBoundingClientRect();
          const [x, y] = [left + width / 2, Math.min(Math.max(top + height / 2, 8), innerHeight - 8)];
          return each.contains(document.elementFromPoint(x, y));
        }"""), selector
    tab.page.context.close()


# Other media.


COLOURS = """(selector) => [...document.querySelectorAll(selector)].map((node) => {
  const style = getComputedStyle(node, selector.startsWith(".pattern") ? "::after" : null);
  return [style.backgroundColor, style.backgroundImage, style.forcedColorAdjust, style.printColorAdjust];
})"""
DRAWN = (".track i", ".pattern i:not(.masked)", ".legend i", "td.heat", "#live .swatch:not(.key-held)")


@pytest.mark.parametrize("media", [{"media": "print"}, {"forced_colors": "active"}])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_and_forced_colours_keep_what_is_drawn(browser: Any, file: Path, media: Any, scheme: Any) -> None:
    tab = sized(browser, file, 1000, 800, color_scheme=scheme)
    tab.look_inside()
    open_live(tab)
    tab.page.click("#tab-run")
    tab.page.emulate_media(color_scheme=scheme, **media)
    is_print = "media" in media
    for selector in DRAWN:
        found = tab.page.evaluate(COLOURS, selector)
        assert found, selector
        for colour, image, forced, printed in found:
            assert colour != "rgba(0, 0, 0, 0)" or image != "none", selector
            assert (printed == "exact") if is_print else (forced == "none"), selector
    # What is painted: a bar differs from its track, the strongest attention from the weakest.
    for selector in ("#predictions .track i", ".pattern i:not(.masked)"):
        node = tab.page.locator(selector).first
        assert len(set(node.screenshot())) > 10
    assert tab.page.evaluate("getComputedStyle(document.getElementById('transport')).position") in (
        ("static",) if is_print else ("static", "sticky")
    )
    if is_print:
        ground = tab.page.evaluate("getComputedStyle(document.querySelector('#main section')).backgroundColor")
        assert ground == "rgb(255, 255, 255)"
        assert all(tab.page.locator("#main section").nth(i).is_visible() for i in range(10))
    else:
        pressed = "[...document.querySelectorAll('#tabs button')].map((node) => getComputedStyle(node).backgroundColor)"
        here, other = tab.page.evaluate(pressed)
        assert here != other
    tab.page.context.close()


def test_it_prints_on_paper(inside: Tab, tmp_path: Path) -> None:
    """On several pages, and with the colours of backgrounds, although the browser is asked to print no backgrounds."""
    inside.page.pdf(path=tmp_path / "page.pdf", print_background=False)
    paper = (tmp_path / "page.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", paper)) >= 4
    streams = [zlib.decompress(part) for part in re.findall(rb"stream\n(x.*?)\nendstream", paper, re.DOTALL)]
    fills = [re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", stream) for stream in streams]
    colours = {tuple(round(255 * float(value)) for value in fill) for page in fills for fill in page}
    assert (206, 92, 0) in colours  # of the table's legend, and of nothing that is drawn as lines or text
