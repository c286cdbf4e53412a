"""Film the lesson of a run's page, scene by scene, as an animated WebP.

python tests/explorer/film.py runs/calculator experiments/results/lesson.webp
→ less than 500 KB; it needs Chromium and takes half a minute.
"""

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import jaxcalc

FRAMES_PER_SECOND = 10
QUALITY = 32
REST_MS = 500
"""How long each scene rests at its end."""
STAGE = {"x": 20, "y": 127, "width": 922, "height": 503}
"""Where the stage is on a page of 1280 × 800."""


def film(page_file: Path, target: Path) -> None:
    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto(page_file.as_uri())
        while not page.evaluate("globalThis.jaxcalc !== undefined"):
            time.sleep(0.1)
        page.evaluate("jaxcalc.transport.pause(), document.getElementById('save').style.setProperty('display', 'none')")
        ends = page.evaluate("[0, 1, 2, 3, 4].map((scene) => jaxcalc.transport.endOf(scene))")
        frames, durations = [], []
        for i in range(int(ends[-1] * FRAMES_PER_SECOND)):
            page.evaluate("(seconds) => jaxcalc.transport.seek(seconds)", i / FRAMES_PER_SECOND)
            frames.append(Image.open(io.BytesIO(page.screenshot(clip=STAGE))).convert("RGB"))
            durations.append(1000 // FRAMES_PER_SECOND)
        for end in ends:
            durations[min(int(end * FRAMES_PER_SECOND), len(durations) - 1)] += REST_MS
        shown = {"duration": durations, "loop": 0, "quality": QUALITY, "method": 4}
        frames[0].save(target, save_all=True, append_images=frames[1:], **shown)
        chromium.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(jaxcalc.explore(sys.argv[1]).html, encoding="utf-8")
        film(file, Path(sys.argv[2]))
