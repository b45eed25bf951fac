"""Driving the explorer in this process, and the parts of docs/explore.rst made from it.

`python -m support.exploring` (with `tests` on the path) writes them into the page.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
from textual.pilot import Pilot

from support.commands import CHECKOUT
from unionfs.explore.app import ExploreApp, key_table
from unionfs.explore.lists import LayerList, RowList, TreeList
from unionfs.explore.model import Explorer
from unionfs.insight.where import of_directories

__all__ = ["PAGE", "Driver", "driving", "keys_part", "part", "play", "screen_part"]

PAGE: Final = CHECKOUT / "docs" / "explore.rst"
_WIDTH: Final = 80


@attrs.frozen
class Driver:
    """The app as a person at the keyboard has it."""

    app: ExploreApp
    pilot: Pilot[int]

    async def settle(self) -> None:
        """Wait until threads and messages have done what was asked."""
        for _ in range(3):
            await self.app.workers.wait_for_complete()
            await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        """Press keys, waiting after each for what it does."""
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    async def type(self, text: str) -> None:
        """Type a text and enter into a prompt, in place of what is there."""
        await self.press("ctrl+a", "ctrl+k")
        for char in text:
            await self.pilot.press(char if char.isalnum() else _NAMES.get(char, char))
        await self.press("enter")

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
        return self.app.query_one(TreeList)

    @property
    def layers(self) -> LayerList:
        """The layers."""
        return self.app.query_one(LayerList)

    @property
    def path(self) -> bytes:
        """The path under the cursor."""
        assert self.tree.current is not None
        return self.tree.current.path

    def paths(self) -> list[bytes]:
        """Return the paths of all rows of the tree."""
        assert self.tree.rows is not None
        return [self.tree.rows[at].path for at in range(len(self.tree.rows))]

    def said(self) -> list[str]:
        """Return the notices so far."""
        return [str(notice.message) for notice in self.app._notifications]

    def list_on_top(self) -> RowList:
        """Return the list of the screen that is on top."""
        return self.app.screen.query_one(RowList)


_NAMES: Final = {
    "/": "slash",
    ".": "full_stop",
    "-": "minus",
    "_": "underscore",
    "\\": "backslash",
    "$": "dollar_sign",
    "(": "left_parenthesis",
}


@asynccontextmanager
async def driving(explorer: Explorer, width: int = 80, height: int = 24) -> AsyncIterator[Driver]:
    """Run the app on a screen of a size that nobody sees."""
    app = ExploreApp(explorer)
    async with app.run_test(size=(width, height)) as pilot:
        driver = Driver(app, pilot)
        await driver.settle()
        yield driver


def play(
    explorer: Explorer,
    script: Callable[[Driver], Awaitable[None]],
    width: int = 80,
    height: int = 24,
) -> None:
    """Drive the app through a script (textual is asyncio's, the tests are trio's)."""

    async def run() -> None:
        async with driving(explorer, width, height) as driver:
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
