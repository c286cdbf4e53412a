"""The notebooks: committed without outputs, and run from top to bottom."""

import ast
import asyncio
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from readmes import blocks
from scripts import EXPERIMENTS

NOTEBOOKS = sorted(path.stem for path in EXPERIMENTS.glob("*.ipynb"))


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(EXPERIMENTS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs_and_parses(name: str) -> None:
    for cell in code_cells(name):
        assert (cell.outputs, cell.execution_count, dict(cell.metadata)) == ([], None, {}), cell.id
        ast.parse(cell.source)
        assert max(map(len, cell.source.splitlines())) <= 120, cell.id


def test_the_notebook_and_the_front_door_have_the_same_loop() -> None:
    text = next(block.text for block in blocks("README.md") if block.language == "python")
    imports, _, loop = text.partition("\n\n")
    assert imports == "import jax, jaxcalc"
    assert next(cell.source for cell in code_cells("how_it_learns") if cell.id == "loop") == loop.strip()


@pytest.mark.slow
def test_the_notebooks_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run both at once, as on two cores, in a folder without a run; and read what they say."""
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):  # the tests' own, which slow down what trains for long
        monkeypatch.delenv(name, raising=False)
    notebooks = {name: nbformat.read(EXPERIMENTS / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS}

    async def run_all() -> None:
        place = {"metadata": {"path": str(tmp_path)}}
        clients = [nbclient.NotebookClient(each, timeout=300, resources=place) for each in notebooks.values()]
        await asyncio.gather(*(client.async_execute() for client in clients))

    asyncio.run(run_all())
    learn, gradients = (outputs_of(notebooks[name]) for name in ("how_it_learns", "gradients"))
    for name, outputs in {**learn, **gradients}.items():
        assert not any(output.get("name") == "stderr" for output in outputs), name

    # how_it_learns: the loss falls, and every claim is shown.
    accuracies = [float(share) for share in re.findall(r"held-out problems: ([\d.]+)%", text_of(learn["answers"]))]
    assert accuracies[0] < 1
    assert accuracies[1] > 90
    assert "not yet" not in text_of(learn["thresholds"])
    total, actual = (
        float(re.search(rf"{line} .*?([\d.]+) nats$", text_of(learn["blame-credit"]), re.MULTILINE).group(1))
        for line in ("sum .* credit", "actual drop")
    )
    assert actual == pytest.approx(total, rel=0.02)
    assert "shares together: 1.0000" in text_of(gradients["examples"])
    assert text_of(learn["arithmetic"]) == "0.5 − 0.01 · 0.1 = 0.499\n"
    assert float(text_of(learn["four-phases"]).split()[-1]) < 1e-5
    for cell in ("live", "ranked", "messages", "pipeline", "landscape", "number-map", "before-and-after"):
        assert any("image/png" in output.get("data", {}) for output in learn[cell]), cell
    assert sum("image/png" in output.get("data", {}) for output in learn["attention-pictures"]) == 2
    assert len(learn["live"]) == 2, "the live figure is one picture that is updated, then the time"

    # gradients: what is computed in two ways agrees.
    assert float(text_of(gradients["ablate"]).split()[-1]) < 1e-4
    assert float(text_of(gradients["taps"]).splitlines()[0].split()[-1]) < 1e-5
    assert float(re.search(r"two gradients: ([\d.]+)", text_of(gradients["hvp"])).group(1)) > 0.9999
    trees = [output.get("data", {}).get("text/html", "") for output in [*learn["grad"], *gradients["grads"]]]
    assert sum("treescope" in tree for tree in trees) == 2


def outputs_of(notebook: nbformat.NotebookNode) -> dict[str, list[nbformat.NotebookNode]]:
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text_of(outputs: list[nbformat.NotebookNode]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")
