"""A page of the project in a browser, for the tests."""

import time
from pathlib import Path
from typing import Any

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Tab:
    """The page in a browser without a network, and every message of its console."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.messages: list[str] = []
        context = browser.new_context(offline=True, **options)
        self.page = context.new_page()
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(file.as_uri())
        self.wait("globalThis.jaxcalc !== undefined")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true. Playwright's own way uses `eval`, which the policy of the page forbids."""
        deadline = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, (condition, self.messages)
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def ask(self, text: str) -> str:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        return self.text("#answer").replace("\n", " ")

    def look_inside(self) -> None:
        self.page.evaluate("document.getElementById('inside').open = true")
        self.wait("document.querySelectorAll('#main section').length === 11")

    def step(self, n: int) -> None:
        """Take one step, the n-th. The worker computes it, and then its credit."""
        self.page.click("#do-step")
        self.wait(f"jaxcalc.app.stepped === {n} && jaxcalc.app.last.credit !== null")

    def state(self, expression: str) -> Any:
        return self.page.evaluate(f"(() => {{ const {{ app }} = jaxcalc; return {expression}; }})()")
