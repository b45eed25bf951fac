"""The least that anything readable here offers, and a part of a file as a file.

Invariant: nothing in `unionfs.archive` that takes a `Reader` seeks or closes it, and
closing a `Window` leaves the file under it open.
"""

from __future__ import annotations

import io
from typing import BinaryIO, Protocol

__all__ = ["Reader", "Window"]


class Reader(Protocol):
    """Anything with `read(n)`: b"" means the end, fewer than n bytes do not."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        ...


class Window(io.RawIOBase):
    """The bytes from `start` to `end` of a seekable file; several windows may share one file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        super().__init__()
        self._file = file
        self._at = start
        self._end = end

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, target: bytearray | memoryview) -> int:  # type: ignore[override]  # Buffer has no len()
        """Fill `target` from the window; 0 at its end."""
        self._file.seek(self._at)
        data = self._file.read(min(len(target), self._end - self._at))
        target[: len(data)] = data
        self._at += len(data)
        return len(data)
