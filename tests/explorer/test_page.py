"""The explorer's page: how it is made, and how it behaves in a real browser."""

import base64
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from browsers import Tab
from scripts import run_script

import jaxcalc
from jaxcalc import Explorer, InputError, Run, runs
from jaxcalc.explorer import page
from jaxcalc.runs.text import percent
from jaxcalc.trees import named_leaves

pytestmark = pytest.mark.slow

# The file.


def test_the_page_holds_the_run(run: Run, explorer: Explorer) -> None:
    assert explorer.steps == (*runs.checkpoint_steps(run.path),)
    assert explorer.left_out == ()
    assert len(explorer.html.encode()) < page.MOST_BYTES
    assert "<title>jaxcalc explorer: a run &amp; &lt;more&gt;</title>" in explorer.html


def test_a_whole_run_fits_into_six_megabytes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_states", lambda run: dict.fromkeys(range(12), run.params))
    whole = jaxcalc.explore(run)
    assert len(whole.steps) == 12
    assert len(whole.html.encode()) < page.MOST_BYTES


def test_what_does_not_fit_is_left_out_and_named(run: Run, explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_BYTES", len(explorer.html.encode()) - 1)
    smaller = jaxcalc.explore(run)
    assert len(smaller.html.encode()) <= page.MOST_BYTES
    assert smaller.steps[0] == 0
    assert smaller.steps[-1] == 120
    assert {*smaller.steps, *smaller.left_out} == {*explorer.steps}
    assert len(smaller.left_out) == 1
    monkeypatch.setattr(page, "MOST_BYTES", 100_000)
    with pytest.raises(InputError, match="103,616 parameters, too many for a page of 100,000 bytes"):
        jaxcalc.explore(run)


def test_the_policy_allows_nothing_but_the_page_itself(explorer: Explorer) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', explorer.html)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.findall(r'(?:src|href)="(?!#)', explorer.html.split("<script")[0])


def test_every_module_is_in_a_page_and_none_hides_a_name_of_another() -> None:
    sources = {path.stem for path in Path(page.__file__).parent.glob("*.mjs")}
    assert sources == {*page._modules("main"), *page._modules("main_live")}
    for entry in ("main", "main_live"):
        script = page._script(entry)
        assert not re.findall(r"^(?:import|export)\b", script, re.MULTILINE)
        names = re.findall(r"^(?:async )?(?:function\*?|const|let|class) (\w+)", script, re.MULTILINE)
        assert [name for name, n in Counter(names).items() if n > 1] == []


def test_a_notebook_shows_the_page_in_a_sandbox(explorer: Explorer) -> None:
    frame = explorer._repr_html_()
    frame, _, script = frame.partition("</iframe>")
    assert frame.startswith('<iframe class="jaxcalc" sandbox="allow-scripts" srcdoc="&lt;!doctype html&gt;')
    assert frame.count('"') == frame.count('="') * 2
    assert script.startswith("<script>")
    assert script.count("</") == 1


# In a browser.


def test_the_frame_of_a_notebook_is_alive(browser: Any, explorer: Explorer, tmp_path: Path) -> None:
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{explorer._repr_html_()}", encoding="utf-8")
    opened = browser.new_page()
    opened.goto(notebook.as_uri())
    frame = opened.frame_locator("iframe")
    frame.locator("#prompt").fill("two plus three")
    frame.locator("#answer", has_text="two plus three").wait_for(timeout=10_000)
    assert "two plus three equals" in frame.locator("#answer").inner_text()
    opened.close()


def test_it_answers_as_the_library_does(tab: Tab, run: Run) -> None:
    rows = np.concatenate([run.task.held_out_rows[::100], run.task.train_rows[::1500]])
    expected = jaxcalc.evaluate(run.params, run.task, rows)
    for index, row in enumerate(rows.tolist()):
        shown = tab.ask(jaxcalc.evaluation.prompt_text(run.task, row))
        answer = jaxcalc.evaluation.answer_text(run.task, expected.generated[index])
        assert f"→ {answer} {percent(float(expected.probability[index]))[:3]}" in shown
        assert ("right" in shown) == expected.correct[index]
        assert run.task.membership(run.task.problem(row)).replace("training", "was in training") in shown


def test_its_numbers_are_those_of_jax(tab: Tab, run: Run) -> None:
    """In the page's own snapshots, trained and untrained, on fifty questions."""
    leaves = list(named_leaves(run.params))
    compute = """([tokens, target]) => {
      const { app, trace, loss, gradient, sgd, adam, along, namedLeaves } = jaxcalc;
      const grads = gradient(app.params, tokens, target);
      const after = [sgd(0.05), adam(0.01, ...app.data.adam_betas)].map((optimizer) =>
        along(app.params, optimizer.update(grads, optimizer.init(app.params)).update));
      const leaves = [grads, ...after].flatMap((tree) => Object.values(namedLeaves(tree)));
      const arrays = [trace(app.params, tokens).logits, ...leaves];
      const flat = Float32Array.from(arrays.flatMap(({ data }) => Array.from(data)));
      let text = "";
      new Uint8Array(flat.buffer).forEach((byte) => (text += String.fromCharCode(byte)));
      return [Object.keys(namedLeaves(grads)), loss(app.params, tokens, target), btoa(text)];
    }"""
    rows = np.linspace(0, len(run.task.problems) - 1, 25).astype(int)
    for snapshot, step in ((0, 0), (3, 120)):
        tab.page.evaluate("(index) => jaxcalc.app.setSnapshot(index)", snapshot)
        saved = runs.load_snapshot(run, step).params
        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), saved)
            for row in rows:
                tokens = run.task.tokens[row][: run.task.prompt_length + 1]
                names, loss, packed = tab.page.evaluate(compute, [tokens[:-1].tolist(), int(tokens[-1])])
                expected_loss, arrays = _expected(params, tokens[None])
                assert names == leaves
                assert loss == pytest.approx(float(expected_loss), rel=1e-6, abs=1e-9)
                got = np.frombuffer(base64.b64decode(packed), np.float32)
                parts = np.split(got, np.cumsum([array.size for array in arrays])[:-1])
                for part, array in zip(parts, arrays, strict=True):
                    wide = np.asarray(array, np.float64).ravel()
                    assert np.abs(part - wide).max() <= 1e-6 * np.abs(wide).max()  # float32 on the way here


@jax.jit
def _expected(params: jaxcalc.Params, tokens: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    batch = jaxcalc.Batch(tokens, jnp.ones((1, 1)))
    loss, grads = jax.value_and_grad(jaxcalc.loss)(params, batch)
    after = [
        optax.apply_updates(params, tx.update(grads, tx.init(params))[0])
        for tx in (optax.sgd(0.05), optax.adam(0.01, *jaxcalc.optimizers.ADAM_BETAS))
    ]
    logits = jaxcalc.apply(params, tokens[:, :-1])
    return loss, [logits, *(leaf for tree in (grads, *after) for leaf in named_leaves(tree).values())]


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("", "the prompt is empty"),
        ("two pluss three", "unknown word 'pluss'; did you mean 'plus'?"),
        ("<script>alert(1)</script>", "unknown word '<'"),
        ('<img src=x onerror="alert(1)">', "unknown word '<'"),
        ("x" * 10_000, "the text has 10,000 characters; at most 1,000 are read"),
        ("🙂 plus 🙂", "unknown word '🙂'"),
        ("seven / 0", "division by zero has no answer"),
        ("100 + 1", "number out of range: '100'"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_changes_nothing(tab: Tab, prompt: str, error: str) -> None:
    before = tab.state("app.tokens")
    tab.ask(prompt)
    assert error in tab.text("#problem")
    assert tab.page.locator("#problem *").count() == 0  # the message, as text
    assert tab.page.get_attribute("#prompt", "aria-invalid") == "true"
    assert tab.state("app.tokens") == before
    assert "two plus three equals" in tab.ask("two plus three")


def test_a_step_can_be_taken_and_taken_back(tab: Tab) -> None:
    tab.look_inside()
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.ask("two plus three")
    tab.page.fill("#rate", "0.01")
    before = tab.state("[app.loss, app.probabilities[app.target]]")
    promised = tab.state("app.pending.actual")
    assert promised > 0
    tab.step(1)
    after = tab.state("[app.loss, app.probabilities[app.target]]")
    assert before[0] - after[0] == pytest.approx(promised, rel=1e-9)
    assert after[1] > before[1]
    credit, remainder = tab.state("[app.last.credit.total, app.last.credit.remainder]")
    assert abs(remainder) <= 0.01 * promised
    assert credit + remainder == pytest.approx(promised, rel=1e-9)
    assert "actual drop" in tab.text("#credit")
    tab.step(2)
    assert "2 taken" in tab.text("#stepped")
    tab.page.click("#undo")
    assert tab.state("[app.loss, app.probabilities[app.target]]") == after
    tab.step(2)
    tab.page.click("#reset")
    tab.wait("jaxcalc.app.stepped === 0")
    assert tab.state("[app.loss, app.probabilities[app.target]]") == before
    assert tab.page.is_disabled("#undo")


def test_undo_goes_back_as_far_as_the_steps_are_kept(tab: Tab) -> None:
    tab.look_inside()
    tab.page.evaluate("jaxcalc.app.history.room = 0")  # keeps one step
    tab.step(1)
    tab.step(2)
    tab.page.evaluate("jaxcalc.app.undo()")
    tab.page.evaluate("jaxcalc.app.undo()")
    assert tab.state("app.stepped") == 1


def test_too_large_a_rate_makes_it_worse_and_says_so(tab: Tab) -> None:
    tab.look_inside()
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.ask("seven times eight")
    tab.page.fill("#rate", "0.0001")
    assert 0 < tab.state("app.pending.actual") == pytest.approx(tab.state("app.pending.blame.total"), rel=0.1)
    assert "Too large" not in tab.text("#promise")
    tab.page.fill("#rate", "0.5")
    assert tab.state("app.pending.blame.total") > 0 > tab.state("app.pending.actual")
    assert "Too large: the loss would rise by" in tab.text("#promise")
    before = tab.state("app.loss")
    tab.step(1)
    assert tab.state("app.loss") > before
    tab.page.fill("#rate", "-1")
    assert "must be a number above 0" in tab.text("#rate-error")
    assert tab.state("app.rate") == 0.5


def test_adam_goes_on_from_its_moments(tab: Tab) -> None:
    tab.look_inside()
    tab.page.select_option("#optimizer", "adam")
    tab.step(1)
    assert tab.state("app.optimizerState.count") == 1
    tab.step(2)
    assert tab.state("app.optimizerState.count") == 2
    tab.page.click("#undo")
    assert tab.state("app.optimizerState.count") == 1


def test_any_word_can_be_the_target(tab: Tab, run: Run) -> None:
    tab.look_inside()
    tab.ask("two plus three")
    seventy = run.task.tokenizer.ids["seventy"]
    tab.page.select_option("#target", str(seventy))
    assert "−ln p(seventy)" in tab.text("#surprise")
    assert tab.state("app.loss") == pytest.approx(-np.log(tab.state(f"app.probabilities[{seventy}]")), rel=1e-9)
    tab.ask("two plus three equals five")
    assert tab.state("app.words[app.target]") == "<end>"


def test_the_slider_and_the_player_replay_the_run(tab: Tab) -> None:
    tab.look_inside()
    tab.ask("two plus three")
    tab.page.focus("#snapshot")
    tab.page.keyboard.press("Home")
    tab.wait("document.getElementById('snapshot-step').textContent === 'step 0'")
    assert tab.state("app.loss") == pytest.approx(np.log(35), abs=0.3)
    assert re.search(r"Right: \d+ of 11,344", tab.text("#score"))
    tab.page.click("#play")
    tab.wait("document.getElementById('snapshot-step').textContent === 'step 120'")
    tab.wait("document.getElementById('play').textContent.includes('Play')")


def test_the_table_is_the_evaluation_and_a_cell_asks_its_problem(tab: Tab, run: Run) -> None:
    tab.look_inside()
    evaluation = jaxcalc.evaluate(run.params, run.task, np.arange(len(run.task.problems)))
    assert f"Right: {int(evaluation.correct.sum()):,} of 11,344" in tab.text("#score")
    canvas = tab.page.locator("#table canvas").nth(0)
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 3.5 / 100, "y": box["height"] * 2.5 / 100})
    assert tab.page.input_value("#prompt") == "two plus three"
    assert "two plus three equals" in tab.text("#answer")
    canvas.focus()
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("Enter")
    assert tab.page.input_value("#prompt") == "three plus three"


def test_one_weight_tells_its_story(tab: Tab) -> None:
    tab.look_inside()
    tab.page.evaluate("jaxcalc.app.setSnapshot(0)")
    tab.page.select_option("#leaf", "blocks.1.mlp.down")
    tab.page.locator("#weight canvas").click(position={"x": 30, "y": 30})
    name = tab.text("#story h3")
    assert re.fullmatch(r"blocks\.1\.mlp\.down\[\d+, \d+\]", name)
    rows = dict(re.findall(r"^([a-z ]+)\?\t(\S+)", tab.text("#story"), re.MULTILINE))  # each label has its help
    numbers = {label: float(number.replace("−", "-")) for label, number in rows.items()}
    assert numbers["finite difference"] == pytest.approx(numbers["gradient"], rel=1e-3, abs=1e-9)
    assert numbers["new value"] == pytest.approx(numbers["value"] + numbers["step"], rel=1e-4)
    tab.page.keyboard.press("ArrowRight")
    assert tab.text("#story h3") != name


def test_every_control_has_a_name_and_every_part_its_help(tab: Tab) -> None:
    tab.look_inside()
    controls = 'button, input, select, canvas, [tabindex="0"]'
    named = "(node) => node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length"
    unnamed = tab.page.evaluate(
        f"[...document.querySelectorAll('{controls}')].filter((node) => !({named})(node)).map((node) => node.outerHTML)"
    )
    assert unnamed == []
    for part in tab.page.locator("#main section").all():
        assert part.locator(".what").count() >= 1
    tab.page.locator("#blame .what").first.click()
    assert tab.page.is_visible("#help")
    tab.page.keyboard.press("Escape")
    assert tab.page.is_hidden("#help")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_of_the_page(browser: Any, file: Path, width: int, scheme: Any) -> None:
    tab = Tab(browser, file, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not tab.messages
    tab.page.context.close()


def test_the_script_writes_the_page(run: Run, tmp_path: Path) -> None:
    options = [run.path, "--no-open", "--json", "--output"]
    written = run_script("explore", *options, tmp_path / "a page.html")
    assert written.status == 0
    result = json.loads(written.out)
    assert result["bytes"] == (tmp_path / "a page.html").stat().st_size < 6_000_000
    assert result["steps"] == runs.checkpoint_steps(run.path)
    refused = run_script("explore", *options, tmp_path / "no" / "where.html")
    assert refused.status == 2
    assert refused.err.startswith("error: cannot write")
    assert refused.err.count("\n") == 1
