"""What the processes of a run tell their supervisor, over a pipe.

Invariant: a message is one write of less than PIPE_BUF bytes, so messages of several
processes never mix; reading stops at the first thing that is not a message.
"""

from __future__ import annotations

import contextlib
import enum
import os
from typing import Final, NamedTuple

__all__ = ["Kind", "Message", "decode", "send"]

_LIMIT: Final = 4000  # PIPE_BUF is 4096


class Kind(enum.Enum):
    """NOTE: something could not be had. STOPPED: the command was. The others: it failed."""

    NOTE = "note"
    STOPPED = "stopped"
    DAEMON_FAILED = "daemon"
    SETUP_FAILED = "setup"


class Message(NamedTuple):
    """`status` is the exit status that a failure leads to."""

    kind: Kind
    text: str
    status: int


def send(fd: int, kind: Kind, text: str = "", status: int = 0) -> None:
    """Send a message; a supervisor that is gone is not told."""
    words = " ".join(text.replace("\n", " ").split("\0"))
    data = f"{kind.value}\0{status}\0{words}".encode("utf-8", "backslashreplace")[:_LIMIT] + b"\n"
    with contextlib.suppress(OSError):
        os.write(fd, data)


def decode(data: bytes) -> list[Message]:
    """Return the messages in what was read from the pipe."""
    found = []
    for line in data.split(b"\n"):
        fields = line.split(b"\0")
        if len(fields) != 3:  # noqa: PLR2004  # kind, status, text
            break
        text = fields[2].decode("utf-8", "replace")
        found.append(Message(Kind(fields[0].decode()), text, int(fields[1])))
    return found
