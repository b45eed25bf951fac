"""The shell sessions shown in README.rst, run for real.

Every `.. code-block:: console` of the file is one stretch of a single session of a user
without rights in an empty directory that holds `app.tar`. Standard output is a terminal,
as it is for somebody who reads the page and types along.

`python -m support.readme` (with `tests` on the path) writes the real output into the file.

Invariant: what differs between two machines (ids, sizes, ages, process numbers, the
directory) is masked in both texts before they are compared; nothing else is.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import select
import sys
from collections.abc import Iterator
from typing import Final

import attrs

from support import image_builder
from support.commands import CHECKOUT
from support.rootless import NOBODY, popen_as_nobody
from support.workspace import Workspace, workspace

__all__ = ["README", "Step", "mask", "run_step", "session", "steps"]

README: Final = CHECKOUT / "README.rst"
_BLOCK: Final = ".. code-block:: console"
_INDENT: Final = "    "
_HOME: Final = "/home/me"
_COLUMNS: Final = 88
#: What a progress bar leaves nothing of on a terminal.
_PROGRESS: Final = re.compile(r"(?:reading|archiving|verifying|writing) .*")
_STRANGER: Final = re.compile(r"/\S+ +\? +\? ")
_MASKS: Final = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "<digest>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b\d+(?:\.\d+)?[kMGT]?B\b"), "<size>"),
    (re.compile(r"\b\d+ (?:second|minute|hour|day|week|month|year)s? ago\b|\bjust now\b"), "<age>"),
    (re.compile(r"(?<=  )\d{2,7}(?=  )"), "<pid>"),
    (re.compile(r"[A-Z][a-z]{2} +\d+ +(?:\d{4}|\d\d:\d\d)\b"), "<date>"),
    (re.compile(r" +"), " "),
)


@attrs.frozen
class Step:
    """One `$ command` of the file: its first and last line (0-based, end exclusive)."""

    command: str
    expected: tuple[str, ...]
    first: int
    end: int


def steps(text: str) -> Iterator[Step]:
    """Yield the commands of all console blocks in order."""
    lines = text.splitlines()
    inside = False
    start = -1
    for number, line in enumerate([*lines, "end"]):
        ends = bool(line) and not line.startswith(_INDENT)
        if start >= 0 and (ends or line.startswith(f"{_INDENT}$ ")):
            end = number
            while not lines[end - 1].strip():
                end -= 1
            command = lines[start].removeprefix(f"{_INDENT}$ ")
            shown = tuple(item.removeprefix(_INDENT) for item in lines[start + 1 : end])
            yield Step(command, shown, start, end)
            start = -1
        if ends:
            inside = line.startswith(_BLOCK)
        elif inside and line.startswith(f"{_INDENT}$ "):
            start = number


def mask(lines: tuple[str, ...] | list[str]) -> list[str]:
    """Return lines in the form in which they can be compared."""
    masked = []
    for text in lines:
        line = text
        for pattern, word in _MASKS:
            line = pattern.sub(word, line)
        masked.append(line.rstrip())
    return masked


def run_step(place: Workspace, command: str) -> list[str]:
    """Run a command; return what a terminal would show when it is done."""
    ours, theirs = os.openpty()
    words, words_in = os.pipe()
    env = {**place.env, "COLUMNS": str(_COLUMNS), "TERM": "dumb", "USER": "me"}
    try:
        with popen_as_nobody(
            ["sh", "-c", command], env=env, cwd=place.path, stdout=theirs, stderr=words_in
        ) as child:
            os.close(theirs)
            os.close(words_in)
            theirs = words_in = -1
            output, said = b"", b""
            # The mount daemon keeps neither open, so both end with the command.
            waiting = {ours, words}
            while waiting:
                for fd in select.select(list(waiting), [], [], 60)[0]:
                    part = b""
                    with contextlib.suppress(OSError):  # EIO: the terminal's other end is closed
                        part = os.read(fd, 65536)
                    if not part:
                        waiting.discard(fd)
                    elif fd == ours:
                        output += part
                    else:
                        said += part
            child.wait()
    finally:
        for fd in (ours, theirs, words, words_in):
            if fd >= 0:
                os.close(fd)
    lines = [line for line in said.decode().splitlines() if not _PROGRESS.fullmatch(line)]
    lines += output.decode().replace("\r\n", "\n").splitlines()
    # Mounts without a record: other tests of this machine run as the same user.
    lines = [line for line in lines if not _STRANGER.match(line)]
    return [_as_me(line, str(place.path)) for line in lines]


def _as_me(line: str, path: str) -> str:
    """Return a line with the user's names and home as the file has them, columns kept."""

    def shorter(match: re.Match[str]) -> str:
        text = match[0].replace(path, _HOME)
        return text.ljust(len(match[0])) if match[0].endswith("  ") else text

    # A cell of a table ends with two blanks: what the name loses they gain.
    line = re.sub(re.escape(path) + r"[^ ]*(?: {2,})?", shorter, line)
    user = pwd.getpwuid(NOBODY if os.geteuid() == 0 else os.geteuid())
    group = grp.getgrgid(user.pw_gid).gr_name
    return re.sub(rf"\b{user.pw_name}\b|\b{group}\b", "me", line).rstrip()


@contextlib.contextmanager
def session() -> Iterator[Workspace]:
    """Give the directory in which the commands of the file run."""
    image = image_builder.build(CHECKOUT / ".demo")
    with workspace() as place:
        place.give(image.archive, "app.tar")
        yield place


def _update() -> None:
    text = README.read_text()
    lines = text.splitlines()
    with session() as place:
        results = [(step, run_step(place, step.command)) for step in steps(text)]
    for step, shown in reversed(results):
        lines[step.first + 1 : step.end] = [f"{_INDENT}{line}".rstrip() for line in shown]
    README.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    _update()
    print(f"{README} updated", file=sys.stderr)  # noqa: T201  # run by hand
