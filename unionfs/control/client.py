"""The client's side of a control socket: blocking calls, no event loop.

Invariant: an answer of the daemon is returned or raised as the same class of error that the
daemon met; whatever happens to the connection becomes one `UnionfsError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, Final, Self

from unionfs import errors
from unionfs.control.protocol import MAX_ANSWER, Request, encode
from unionfs.errors import NotFoundError, UnionfsError, show

__all__ = ["Client", "connect", "connected"]

#: Seconds to wait for an answer: the daemon may have much to move away.
_PATIENCE: Final = 300.0
_CHUNK: Final = 1 << 16


def connect(path: bytes, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Connect to a socket whose path may be longer than an address can be (unix(7))."""
    link = socket.socket(socket.AF_UNIX, kind)
    try:
        place = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            link.connect(b"/proc/self/fd/%d/%b" % (place, os.path.basename(path)))
        finally:
            os.close(place)
    except BaseException:
        link.close()
        raise
    return link


@contextlib.contextmanager
def connected(path: bytes) -> Iterator[Client]:
    """Give a client for the block; NotFoundError when nobody listens."""
    try:
        link = connect(path)
    except OSError as exc:
        raise NotFoundError(
            f"the mount does not answer at {show(path)} ({exc.strerror}); is its process alive?"
        ) from None
    with link:
        yield Client(link)


class Client:
    """A connection to one mount."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._rest = bytearray()
        link.settimeout(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def ask(self, request: Request) -> Any:
        """Send a request and return what it is answered."""
        try:
            self._link.sendall(encode(request))
        except OSError as exc:
            raise UnionfsError(f"the mount has hung up: {exc.strerror}") from None
        line = self._line()
        if line is None:
            raise UnionfsError("the mount has ended without an answer")
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"]["kind"], UnionfsError)
            known = isinstance(kind, type) and issubclass(kind, UnionfsError)
            message = answer["error"]["message"]
            # Errors with more to say than a message come as their base class.
            raise (
                kind(message)
                if known and kind.__init__ is Exception.__init__
                else UnionfsError(message)
            )
        return answer["ok"]

    def events(self) -> Iterator[Any]:
        """Yield what follows the answer to `trace`, until the mount ends."""
        self._link.settimeout(None)
        while (line := self._line()) is not None:
            yield json.loads(line)

    def _line(self) -> bytes | None:
        start = 0
        while (end := self._rest.find(b"\n", start)) < 0:
            start = len(self._rest)
            try:
                part = self._link.recv(_CHUNK)
            except TimeoutError:
                raise UnionfsError(
                    f"the mount has not answered for {_PATIENCE:.0f} seconds"
                ) from None
            except OSError:
                part = b""
            if not part:
                return None
            self._rest += part
            if len(self._rest) > MAX_ANSWER:
                raise UnionfsError("the mount says more than anybody could read")
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line
