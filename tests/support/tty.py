"""A program on a terminal of its own, and what that terminal shows.

Invariant: the program is killed at the end if it has not ended, and no wait is without end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import pyte

__all__ = ["KEYS", "Tty", "on_tty"]

_SECONDS: Final = 60
_ESCAPE: Final = 0.3
#: What a terminal sends for a key.
KEYS: Final = {
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "end": "\x1b[F",
    "home": "\x1b[H",
    "ctrl+c": "\x03",
    "ctrl+z": "\x1a",
}


class Tty:
    """The person's side of the terminal. `raw` is everything the program wrote."""

    def __init__(self, pid: int, fd: int, columns: int, lines: int) -> None:
        self.pid = pid
        self.raw = b""
        self._fd = fd
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._status: int | None = None

    @property
    def lines(self) -> list[str]:
        """What the screen shows."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """What the screen shows, as one text."""
        return "\n".join(self.lines)

    def line(self, text: str) -> str:
        """Return the line with a text, as soon as it is there: a screen is drawn in parts."""
        self.until(text)
        return next(line for line in self.lines if text in line)

    def press(self, *keys: str) -> None:
        """Press keys, by name or as text."""
        for key in keys:
            os.write(self._fd, KEYS.get(key, key).encode())
            # An escape with something right after it is another key.
            end = time.monotonic() + _ESCAPE if key == "escape" else 0.0
            while (left := end - time.monotonic()) > 0:
                self.read(left)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal."""
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, size)
        self._screen.resize(lines, columns)

    def read(self, seconds: float) -> bool:
        """Take what comes within that time; False when there is no program any more."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.raw += data
        # pyte knows no private modes with a `$` and prints the rest of them.
        self._stream.feed(data)
        return bool(data)

    def until(self, condition: str | Callable[[], object]) -> None:
        """Wait for a text, or for anything else."""
        end = time.monotonic() + _SECONDS

        def holds() -> object:
            return condition in self.text if isinstance(condition, str) else condition()

        while not holds():
            assert time.monotonic() < end, f"no {condition!r} on:\n{self.text}"
            assert self.read(0.2) or holds(), f"ended without {condition!r}:\n{self.text}"

    def wait(self) -> int:
        """Wait for the end of the program; return its exit status (negative: a signal)."""
        end = time.monotonic() + _SECONDS
        while self._status is None:
            assert time.monotonic() < end, f"still there:\n{self.text}"
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                while self.read(0.1) and select.select([self._fd], [], [], 0)[0]:
                    pass
                self._status = os.waitstatus_to_exitcode(status)
            else:
                self.read(0.1)
        return self._status

    def modes(self) -> int:
        """Return the local modes of the terminal (termios(3)): raw or cooked, echo or not."""
        return int(termios.tcgetattr(self._fd)[3])

    def close(self) -> None:
        """End the program if it has not."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)


@contextlib.contextmanager
def on_tty(
    argv: Sequence[str],
    env: Mapping[str, str],
    columns: int = 80,
    lines: int = 24,
    cwd: str | os.PathLike[str] = ".",
) -> Iterator[Tty]:
    """Start a program on a new terminal."""
    pid, fd = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.chdir(cwd)
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606  # the program of the test
        finally:
            os._exit(127)
    terminal = Tty(pid, fd, columns, lines)
    try:
        yield terminal
    finally:
        terminal.close()
