"""Driving the explorer in this process, and the parts of docs/explore.rst made from it.

`python -m support.exploring` (with `tests` on the path) writes them into the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input
from textual.worker import WorkerCancelled

from support.commands import CHECKOUT
from unionfs.explore.app import ExploreApp
from unionfs.explore.base import Severity
from unionfs.explore.keys import key_table
from unionfs.explore.lists import LayerList, RowList, TreeList
from unionfs.explore.model import Explorer
from unionfs.explore.rows import Row
from unionfs.insight.where import of_directories

__all__ = ["PAGE", "Driver", "driving", "keys_part", "part", "play", "screen_part"]

PAGE: Final = CHECKOUT / "docs" / "explore.rst"
_WIDTH: Final = 80
_ROUNDS: Final = 3
_SECONDS: Final = 30
#: The screen is laid out and drawn anew as often as this, in seconds.
_FRAME: Final = 0.02


@attrs.frozen
class Driver:
    """The app as a person at the keyboard has it."""

    app: ExploreApp
    pilot: Pilot[int]
    #: The notices so far.
    said: list[str]

    async def settle(self) -> None:
        """Wait until threads and messages have done what was asked."""
        quiet = 0
        # One message may lead to a thread, its end to a message, and so on.
        while quiet < _ROUNDS:
            quiet = 0 if any(not worker.is_finished for worker in self.app.workers) else quiet + 1
            with contextlib.suppress(WorkerCancelled):  # a newer one took its place
                await self.app.workers.wait_for_complete()
            # Not a pause without end, which waits for an idle processor: others keep it busy.
            await self.pilot.pause(_FRAME)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that a thread does which is not waited for any more."""
        end = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < end, self.text
            await self.pilot.pause(_FRAME)

    def touch(self, *keys: str) -> None:
        """Press keys and go on at once."""
        for key in keys:
            char = key if len(key) == 1 else None
            self.app.post_message(events.Key(key, char))

    async def press(self, *keys: str) -> None:
        """Press keys, waiting after each for what it does."""
        for key in keys:
            self.touch(key)
            await self.settle()

    async def type(self, text: str) -> None:
        """Put a text in place of what is in a prompt, and press enter."""
        self.fill(text)
        await self.press("enter")

    def fill(self, text: str) -> None:
        """Put a text in place of what is in a prompt."""
        self.app.screen.query_one(Input).value = text

    def lines(self) -> list[str]:
        """Return what the screen shows."""
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips]

    @property
    def text(self) -> str:
        """What the screen shows, as one text."""
        return "\n".join(self.lines())

    @property
    def tree(self) -> TreeList:
        """The tree."""
        return self.app.files

    @property
    def layers(self) -> LayerList:
        """The layers."""
        return self.app.layers

    @property
    def current(self) -> Row:
        """The row under the cursor."""
        assert self.tree.current is not None
        return self.tree.current

    @property
    def path(self) -> bytes:
        """The path under the cursor."""
        return self.current.path

    def paths(self) -> list[bytes]:
        """Return the paths of all rows of the tree."""
        assert self.tree.rows is not None
        return [self.tree.rows[at].path for at in range(len(self.tree.rows))]

    def list_on_top(self) -> RowList:
        """Return the list of the screen that is on top."""
        return self.app.screen.query_one(RowList)


class _Noting(ExploreApp):
    """The app, with its notices kept: on the screen they stay for seconds only."""

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(explorer)
        self.said: list[str] = []

    def say(self, text: str, severity: Severity = "information") -> None:
        self.said.append(text)
        super().say(text, severity)


@asynccontextmanager
async def driving(
    explorer: Explorer, width: int, height: int, *, wait: bool
) -> AsyncIterator[Driver]:
    """Run the app on a screen of a size that nobody sees."""
    app = _Noting(explorer)
    async with app.run_test(size=(width, height)) as pilot:
        driver = Driver(app, pilot, app.said)
        if wait:
            await driver.settle()
        yield driver


def play(
    explorer: Explorer,
    script: Callable[[Driver], Awaitable[None]],
    width: int = 80,
    height: int = 24,
    *,
    wait: bool = True,
) -> None:
    """Drive the app through a script (textual is asyncio's, the tests are trio's).

    Without `wait` the script begins before the layers are read.
    """

    async def run() -> None:
        async with driving(explorer, width, height, wait=wait) as driver:
            await script(driver)

    asyncio.run(run())


# -- the page ----------------------------------------------------------------------


def keys_part() -> str:
    """Return the table of keys."""
    table = key_table()
    left = max(len(keys) for keys, _ in table) + 4
    right = max(len(text) for _, text in table) + 2
    bar = f"{'=' * left} {'=' * right}"
    rows = [f"{f'``{keys}``':<{left}} {text.replace('`', '``')}" for keys, text in table]
    return "\n".join([bar, *rows, bar])


def screen_part() -> str:
    """Return the picture: the layers of docs/whiteouts.rst with a directory open."""
    with tempfile.TemporaryDirectory() as place:
        paths = [os.fsencode(path) for path in _layers(Path(place))]
        with Explorer(of_directories(paths)) as explorer:
            found: list[str] = []

            async def script(driver: Driver) -> None:
                await driver.press("h", "tab", "down", "tab", "down", "right", "down", "down")
                found.extend(driver.lines())

            play(explorer, script, _WIDTH, 18)
    # The directory has another name every time.
    found = [
        re.sub(r"(?<=path    )\S+ *", lambda at: "/home/me/mid".ljust(len(at[0])), line)
        for line in found
    ]
    return "::\n\n" + "\n".join(f"    {line}".rstrip() for line in found)


def _layers(place: Path) -> list[Path]:
    """Make the layers of the stories; return them top first."""
    files = {
        "base/etc/motd": b"hello\n",
        "base/etc/app.conf": b"v1\n",
        "base/usr/share/doc/app/manual": bytes(40000),
        "mid/etc/app.conf": b"version-2\n",
        "mid/etc/.wh.motd": b"",
        "mid/usr/share/doc/.wh..wh..opq": b"",
        "top/etc/.wh.app.conf": b"",
    }
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in place.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return [place / name for name in ("top", "mid", "base")]


def part(name: str, text: str) -> str:
    """Return the part of the page between its mark and the end."""
    match = re.search(
        rf"^\.\. {name}: [^\n]*\n\n(.*?)\n*^\.\. end$", text, re.MULTILINE | re.DOTALL
    )
    assert match, name
    return match[1]


def _update() -> None:
    text = PAGE.read_text()
    for name, made in (("screen", screen_part()), ("keys", keys_part())):
        text = re.sub(
            rf"^(\.\. {name}: [^\n]*\n\n).*?^(\.\. end)$",
            lambda match, made=made: f"{match[1]}{made}\n\n{match[2]}",  # type: ignore[misc]  # bound now
            text,
            count=1,
            flags=re.MULTILINE | re.DOTALL,
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    _update()
    print(f"{PAGE} updated", file=sys.stderr)  # noqa: T201  # run by hand
