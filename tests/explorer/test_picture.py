"""A scene as a file: as the drawing, and in pixels."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from browsers import Tab
from PIL import Image

pytestmark = pytest.mark.slow


def at_the_end_of_backward(tab: Tab) -> str:
    """Return the name that the files of this scene have."""
    tab.page.evaluate("jaxcalc.transport.showEnd(2)")
    tab.wait("document.querySelector('svg.stage').dataset.scene === 'backward'")
    return f"{tab.page.input_value('#prompt')} backward"


def saved(tab: Tab, kind: str, folder: Path) -> tuple[str, Path]:
    with tab.page.expect_download() as download:
        tab.page.click(f"#save-{kind}")
    path = folder / f"scene.{kind}"
    download.value.save_as(path)
    return download.value.suggested_filename, path


def colour(tab: Tab, variable: str) -> np.ndarray:
    """Return what a colour of the page is now, as RGB."""
    text = tab.page.evaluate(
        """(variable) => {
          const probe = document.body.appendChild(document.createElement("i"));
          probe.style.color = `var(${variable})`;
          const { color } = getComputedStyle(probe);
          probe.remove();
          return color;
        }""",
        variable,
    )
    return np.array([int(part) for part in re.findall(r"\d+", text)[:3]])


def share_of(pixels: np.ndarray, rgb: np.ndarray) -> float:
    return float((np.abs(pixels.astype(int) - rgb).max(-1) <= 3).mean())


def test_a_scene_is_saved_as_a_drawing(tab: Tab, tmp_path: Path) -> None:
    name = at_the_end_of_backward(tab)
    called, path = saved(tab, "svg", tmp_path)
    assert called == f"{name}.svg"
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "attention" in "".join(root.itertext())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_scene_is_saved_in_pixels(browser: Any, file: Path, tmp_path: Path, theme: str) -> None:
    """Twice as large as on the page, in the colours that are seen there, whatever the system prefers."""
    tab = Tab(browser, file, color_scheme="light")
    if theme == "dark":
        tab.page.click("#theme")
    name = at_the_end_of_backward(tab)
    called, path = saved(tab, "png", tmp_path)
    assert called == f"{name}.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    box = tab.page.locator("svg.stage").bounding_box()
    assert pixels.shape[:2] == (int(2 * box["height"]), int(2 * box["width"]))
    assert share_of(pixels, colour(tab, "--card")) > 0.3  # the ground
    assert share_of(pixels, colour(tab, "--band")) > 0.1
    for drawn in ("--back", "--back-soft", "--ink", "--rail"):  # messages, blame, words, boxes
        assert share_of(pixels, colour(tab, drawn)) > 5e-4, drawn
    assert not tab.messages
    tab.page.context.close()
