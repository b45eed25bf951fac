"""A forward-only reader of tar bytes that counts, hashes and records what it reads.

Invariant: every byte of the stream passes `take` or `skip` exactly once and in order, so
`digest` is the digest of the whole stream and the recorder has seen each byte either
as raw data or as a part of a referenced payload.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO, Final

from unionfs.archive.reader import Reader
from unionfs.archive.record import Recorder

__all__ = ["SeekingTape", "Tape"]

_CHUNK: Final = 256 * 1024


class Tape:
    """Reads a stream in big chunks and hands it out in small ones."""

    def __init__(self, stream: Reader, record: Recorder | None) -> None:
        self._stream = stream
        self._record = record
        self._hash = hashlib.sha256()
        self._buffer = b""
        self._at = 0
        self.position = 0

    def take(self, size: int) -> bytes:
        """Return exactly `size` bytes, fewer only at the end of the stream; recorded raw."""
        data = self._gather(size)
        if self._record is not None and data:
            self._record.raw(data)
        return data

    def take_some(self, size: int, *, raw: bool) -> bytes:
        """Return 1 to `size` bytes, b"" at the end; recorded raw if `raw`."""
        if self._at == len(self._buffer) and not self._refill():
            return b""
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        self.position += len(data)
        if raw and self._record is not None:
            self._record.raw(data)
        return data

    def skip(self, size: int, *, raw: bool) -> int:
        """Pass over `size` bytes; return how many there were."""
        left = size
        while left and (data := self.take_some(left, raw=raw)):
            left -= len(data)
        return size - left

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of everything read from the stream so far (not only handed out)."""
        return f"sha256:{self._hash.hexdigest()}"

    def _refill(self) -> bool:
        data = self._stream.read(_CHUNK)
        self._hash.update(data)
        self._buffer, self._at = data, 0
        return bool(data)

    def _gather(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._buffer):
            parts = [self._buffer[self._at :]]
            left = size - len(parts[0])
            while left and self._refill():
                parts.append(self._buffer[:left])
                self._at = len(parts[-1])
                left -= self._at
            data = b"".join(parts)
            if left:
                self._at = len(self._buffer)
        else:
            data = self._buffer[self._at : end]
            self._at = end
        self.position += len(data)
        return data


class SeekingTape(Tape):
    """A tape over a seekable file that jumps over payloads instead of reading them.

    `digest` has no meaning here; meant for indexing an archive of archives.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, None)
        self._file = file
        self._size = size

    def skip(self, size: int, *, raw: bool) -> int:
        """Pass over `size` bytes by seeking; return how many there were."""
        buffered = len(self._buffer) - self._at
        if size <= buffered:
            return super().skip(size, raw=raw)
        count = min(size, self._size - self.position)
        self.position += count
        self._file.seek(self.position)
        self._buffer, self._at = b"", 0
        return count

    def _refill(self) -> bool:
        self._buffer, self._at = self._file.read(16 * 1024), 0
        return bool(self._buffer)
