"""A page of the project in Firefox as it is installed, driven over WebDriver BiDi: Playwright drives only its own."""

import base64
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

FIREFOX = ("firefox", "firefox-esr")
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "ArrowRight": "\ue014", "ArrowLeft": "\ue012"}
EVENTS = ["log.entryAdded", "network.beforeRequestSent"]
PREFERENCES = {"layout.css.prefers-color-scheme.content-override": 1}  # 0 dark, 1 light


class Firefox:
    """A running Firefox: commands go to it by name, and what it tells in between is kept."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.ids = itertools.count()
        self.told: list[dict[str, Any]] = []
        self.send("session.new", capabilities={})
        self.send("session.subscribe", events=EVENTS)

    def send(self, method: str, **params: Any) -> Any:
        """Send a command of https://w3c.github.io/webdriver-bidi and return its result."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self.socket.recv(timeout=30))).get("id") != number:
            self.told.append(message)
        assert message["type"] == "success", message
        return message["result"]


@contextmanager
def started(path: str, profile: Path) -> Iterator[Firefox]:
    """Run Firefox without a window, with a new profile in a folder."""
    from websockets.sync.client import connect

    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
    (profile / "user.js").write_text("".join(lines), encoding="utf-8")
    command = [path, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0"]
    with subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as process:
        try:
            address = _address(profile / "WebDriverBiDiServer.json")
            with connect(address, max_size=None, proxy=None, ping_interval=None) as socket:
                yield Firefox(socket)
        finally:
            process.terminate()


def _address(file: Path) -> str:
    """Wait for the file in which Firefox says where it listens."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            server = json.loads(file.read_text(encoding="utf-8"))
            return f"ws://{server['ws_host']}:{server['ws_port']}/session"
        time.sleep(0.05)
    raise TimeoutError("Firefox does not listen")


class FirefoxTab:
    """The page in a tab of Firefox without a network, every message of its console, and what it asked for."""

    def __init__(self, firefox: Firefox, file: Path, width: int = 1280, height: int = 800) -> None:
        self.firefox = firefox
        user = firefox.send("browser.createUserContext")["userContext"]
        firefox.send("emulation.setNetworkConditions", networkConditions={"type": "offline"}, userContexts=[user])
        self.context = firefox.send("browsingContext.create", type="tab", userContext=user)["context"]
        self.send("browsingContext.setViewport", viewport={"width": width, "height": height})
        self.send("browsingContext.navigate", url=file.as_uri(), wait="complete")
        self.wait("globalThis.jaxcalc !== undefined")

    def send(self, method: str, **params: Any) -> Any:
        return self.firefox.send(method, context=self.context, **params)

    def told(self, method: str) -> list[dict[str, Any]]:
        """Return what Firefox told about this tab."""
        events = [each["params"] for each in self.firefox.told if each.get("method") == method]
        return [each for each in events if each.get("context", each.get("source", {}).get("context")) == self.context]

    @property
    def messages(self) -> list[str]:
        return [each["text"] for each in self.told("log.entryAdded")]

    def evaluate(self, expression: str) -> Any:
        """Evaluate an expression, or a promise of one, and return its value. NaN becomes None, as in JSON."""
        answer = self.firefox.send(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self.context},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer["exceptionDetails"]["text"]
        return json.loads(answer["result"].get("value", "null"))

    def wait(self, condition: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < deadline, (condition, self.messages)
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """Press the mouse on an element, as a hand does."""
        element = self.firefox.send(
            "script.evaluate",
            expression=f"document.querySelector({json.dumps(selector)})",
            target={"context": self.context},
            awaitPromise=False,
        )["result"]["sharedId"]
        self.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{ block: 'nearest' }})")
        origin = {"type": "element", "element": {"sharedId": element}}
        press = [{"type": "pointerMove", "x": 0, "y": 0, "origin": origin}]
        press += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        self.send("input.performActions", actions=[{"type": "pointer", "id": "mouse", "actions": press}])

    def press(self, *keys: str) -> None:
        values = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": value} for value in values for kind in ("keyDown", "keyUp")]
        self.send("input.performActions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def ask(self, text: str) -> str:
        self.evaluate("document.getElementById('prompt').select()")
        self.press(*text, "Enter")
        return self.text("#answer").replace("\n", " ")

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.send("browsingContext.captureScreenshot")["data"]))

    def close(self) -> None:
        self.send("browsingContext.close")
