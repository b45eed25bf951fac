"""A headless Chromium that tests drive over a pipe, and what it noticed while it showed a page.

The protocol is the browser's own (DevTools, https://chromedevtools.github.io/devtools-protocol/):
JSON texts ended by NUL on its descriptors 3 and 4. No library is needed for that.

Invariant: nothing waits longer than `_PATIENCE`; when the context ends the browser, all its
processes and its profile are gone.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from unionfs.insight.where import Where

__all__ = ["Browser", "MakePage", "Tab", "browser"]

#: Writes the page of some layers; returns its path.
MakePage = Callable[[Where], Path]

_PATIENCE: Final = 60.0
_NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_FLAGS: Final = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it runs as root here, and shows our own page only
    "--no-first-run",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)
#: Told to the page before its own script: everything that its policy forbade.
_WATCH: Final = (
    "window.forbidden = []; document.addEventListener('securitypolicyviolation',"
    " event => window.forbidden.push(`${event.violatedDirective} ${event.blockedURI}`));"
)
_KEYS: Final = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
    "Home": (36, ""),
    "End": (35, ""),
    "Tab": (9, ""),
}


class Browser:
    """The running browser: commands go out, answers and events come in."""

    def __init__(self, process: subprocess.Popen[bytes], out: int, into: int) -> None:
        self.process = process
        self._out = out
        self._in = into
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Run a command and return its result; what happens meanwhile is added to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        until = time.monotonic() + _PATIENCE
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._in], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise EOFError(f"the browser ended ({self.process.poll()})")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def tab(self, page: Path, width: int = 1280, height: int = 800, scheme: str = "light") -> Tab:
        """Open a page of this machine and wait until its script says that it is ready."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, page.as_uri())
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            tab.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        colours = {"name": "prefers-color-scheme", "value": scheme}
        tab.call("Emulation.setEmulatedMedia", features=[colours])
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        tab.call("Page.navigate", url=tab.url)
        tab.wait("document.documentElement?.dataset.ready")
        return tab


@attrs.define(eq=False)
class Tab:
    """An open page."""

    browser: Browser
    session: str
    url: str

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Run a command of the protocol on this page."""
        return self.browser.call(method, self.session, **params)

    def js(self, expression: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until an expression is true; return its value."""
        until = time.monotonic() + _PATIENCE
        while True:
            found = self.js(expression)
            if found:
                return found
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.02)

    def key(self, name: str) -> None:
        """Press and release a key."""
        code, text = _KEYS.get(name, (ord(name[0].upper()), name))
        press = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **press)
        self.call("Input.dispatchKeyEvent", type="keyUp", **press)

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click on the middle of the first element that fits, with the mouse."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **place)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **place)

    def screenshot(self) -> bytes:
        """Return the window as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def pdf(self) -> bytes:
        """Return the page as it prints."""
        done = self.call("Page.printToPDF", printBackground=False)
        return base64.b64decode(done["data"])

    def _events(self, method: str) -> Iterator[dict[str, Any]]:
        for event in self.browser.events:
            if event.get("sessionId") == self.session and event["method"] == method:
                yield event["params"]

    def requests(self) -> set[str]:
        """Return what the page asked for, but for itself and what it holds itself."""
        urls = {event["request"]["url"] for event in self._events("Network.requestWillBeSent")}
        return {url for url in urls if url != self.url and not url.startswith("data:")}

    def complaints(self) -> list[str]:
        """Return errors, warnings and breaches of the page's policy; some events come late."""
        self.js("new Promise(done => setTimeout(done, 50))")
        found = [
            f"{event['type']}: {event['args']}"
            for event in self._events("Runtime.consoleAPICalled")
        ]
        found += [str(event) for event in self._events("Runtime.exceptionThrown")]
        found += [str(event["entry"]) for event in self._events("Log.entryAdded")]
        found += [str(event["issue"]) for event in self._events("Audits.issueAdded")]
        return found + list(self.js("window.forbidden"))


def _pipe() -> tuple[int, int]:
    """Return a pipe whose descriptors are none of those that the browser wants."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser for the block; skip the test where there is none."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("needs a browser: apt install chromium-headless-shell, as `make test` does")
    profile = tempfile.mkdtemp(prefix="unionfs-browser-")
    their_in, out = _pipe()
    into, their_out = _pipe()
    # The browser wants these numbers; bash, unlike Python, can give them without code after fork.
    script = f'exec "$@" 3<&{their_in} 4>&{their_out} {their_in}<&- {their_out}>&-'
    with open(os.path.join(profile, "log"), "wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(their_in, their_out),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Browser(process, out, into)
    finally:
        os.close(out)
        os.close(into)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(_PATIENCE)
        shutil.rmtree(profile, ignore_errors=True)
