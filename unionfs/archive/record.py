r"""The record from which a layer's tar stream is re-created bit for bit.

Invariant: raw bytes plus referenced payloads, in the order of the record, are exactly the
bytes that the diff_id was computed over. Nothing in the record is trusted for reading:
paths are handed to the caller's `open_payload`, which decides how to open them.

Format (all integers little endian)::

    file   = magic, zstd(frames), zstd(table), footer
    magic  = b"unionfs-tar-record-1\n"
    frames = { b"R" length:u32 bytes | b"P" number:u32 offset:u64 length:u64 }, b"E" total:u64
    table  = count:u32, { length:u32 path-bytes }        paths of the payloads 0, 1, ...
    footer = start-of-table:u64, magic[::-1]

`R` is data that stands here: headers, padding, the end-of-archive marker and whatever
follows, and payloads that nobody keeps. `P` stands for `length` bytes from `offset` of the
file that holds payload `number`; a sparse member has one `P` per extent. Paths come
last because where a payload ends up (a later member may replace the file) is only known
when the whole layer was read.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final

from unionfs.archive.reader import Reader, Window
from unionfs.errors import StoreError, show

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Recorder", "payload_paths", "replay"]

_MAGIC: Final = b"unionfs-tar-record-1\n"
_END: Final = _MAGIC[::-1]
_RAW: Final = struct.Struct("<cI")
_PAYLOAD: Final = struct.Struct("<cIQQ")
_TOTAL: Final = struct.Struct("<cQ")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_CHUNK: Final = 256 * 1024
#: Raw bytes are gathered to frames of this size, so that padding and headers share one.
_GATHER: Final = 64 * 1024
_LEVEL: Final = 9
#: Longest path the table may hold; PATH_MAX of Linux.
_PATH_MAX: Final = 4096


class Recorder:
    """Writes a record to `out` while a `TarStream` reads.

    The stream calls `raw`, `payload` and `reference`; its consumer only calls `finish` once
    the whole stream was read. Without `finish` the record is incomplete and is refused.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._zstd = zstd.ZstdCompressor(level=_LEVEL)
        self._pending = bytearray()
        self._total = 0
        self._count = 0
        self._used: set[int] = set()
        self._written = 0
        self._write(_MAGIC)

    def raw(self, data: bytes) -> None:
        """Record bytes literally."""
        self._total += len(data)
        self._pending += data
        if len(self._pending) >= _GATHER:
            self._flush_raw()

    def payload(self) -> int:
        """Return the number under which the next kept payload is referenced."""
        self._count += 1
        return self._count - 1

    def reference(self, number: int, offset: int, length: int) -> None:
        """Record `length` bytes that stand at `offset` of the file of payload `number`."""
        if length == 0:
            return
        self._flush_raw()
        self._total += length
        self._used.add(number)
        self._write(self._zstd.compress(_PAYLOAD.pack(b"P", number, offset, length)))

    def finish(self, locations: Mapping[int, bytes]) -> None:
        """End the record; `locations` maps payload numbers to paths in the image directory.

        Raises KeyError when a payload with data has no location: the caller lost a file.
        """
        missing = sorted(number for number in self._used if number not in locations)
        if missing:
            raise KeyError(f"no location for the payloads {missing[:10]}")
        self._flush_raw()
        self._write(self._zstd.compress(_TOTAL.pack(b"E", self._total)))
        self._write(self._zstd.flush())
        start = self._written
        table = bytearray(_U32.pack(self._count))
        for number in range(self._count):
            path = locations.get(number, b"")
            table += _U32.pack(len(path))
            table += path
        self._write(zstd.compress(bytes(table), level=_LEVEL))
        self._write(_U64.pack(start))
        self._write(_END)

    def _flush_raw(self) -> None:
        if self._pending:
            data = _RAW.pack(b"R", len(self._pending)) + bytes(self._pending)
            self._write(self._zstd.compress(data))
            self._pending.clear()

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._written += len(data)


def _damaged(why: str) -> StoreError:
    return StoreError(f"the tar record of a layer is damaged ({why}); import the image again")


def _exactly(file: Reader, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _damaged("it ends too early")
    return data


def _open_parts(record: BinaryIO) -> tuple[int, int]:
    """Check magic and footer; return where the table starts and ends."""
    record.seek(0, io.SEEK_END)
    size = record.tell()
    end = size - _U64.size - len(_END)
    if end < len(_MAGIC):
        raise _damaged("it is too short")
    record.seek(0)
    if _exactly(record, len(_MAGIC)) != _MAGIC:
        raise _damaged("it does not start as a record")
    record.seek(end)
    (start,) = _U64.unpack(_exactly(record, _U64.size))
    if record.read() != _END or not len(_MAGIC) <= start <= end:
        raise _damaged("it was not finished")
    return start, end


def payload_paths(record: BinaryIO) -> list[bytes]:
    """Return the path of every payload, by number, relative to the image directory.

    A payload without data (an empty file) may have an empty path. Raises StoreError when the
    record is damaged.
    """
    start, end = _open_parts(record)
    paths = []
    try:
        with zstd.ZstdFile(io.BufferedReader(Window(record, start, end))) as table:
            (count,) = _U32.unpack(_exactly(table, _U32.size))
            for _ in range(count):
                (length,) = _U32.unpack(_exactly(table, _U32.size))
                if length > _PATH_MAX:
                    raise _damaged("a path is too long")
                paths.append(_exactly(table, length))
    except (zstd.ZstdError, EOFError) as error:
        raise _damaged(str(error)) from None
    return paths


def replay(record: BinaryIO, open_payload: Callable[[bytes], BinaryIO]) -> Iterator[bytes]:
    """Yield the recorded tar stream, chunk by chunk.

    `record` must be seekable. `open_payload` gets a path given to `Recorder.finish` and
    returns the file, which is closed here. Raises StoreError when the record is damaged
    or a payload is shorter than recorded; whoever needs certainty compares the digest of
    what comes out with the diff_id.
    """
    start, _ = _open_parts(record)
    paths = payload_paths(record)
    total = 0
    try:
        frames = zstd.ZstdFile(io.BufferedReader(Window(record, len(_MAGIC), start), _CHUNK))
        with frames:
            while (tag := _exactly(frames, 1)) != b"E":
                if tag == b"R":
                    (left,) = _U32.unpack(_exactly(frames, _U32.size))
                    chunks = _raw_chunks(frames, left)
                elif tag == b"P":
                    number, offset, length = struct.unpack("<IQQ", _exactly(frames, 20))
                    if number >= len(paths):
                        raise _damaged("a payload has no path")
                    chunks = _payload_chunks(open_payload, paths[number], offset, length)
                else:
                    raise _damaged("unknown frame")
                for chunk in chunks:
                    total += len(chunk)
                    yield chunk
            if _U64.unpack(_exactly(frames, _U64.size)) != (total,):
                raise _damaged("its length is wrong")
    except (zstd.ZstdError, EOFError) as error:
        raise _damaged(str(error)) from None


def _raw_chunks(frames: Reader, left: int) -> Iterator[bytes]:
    while left:
        data = _exactly(frames, min(left, _CHUNK))
        left -= len(data)
        yield data


def _payload_chunks(
    open_payload: Callable[[bytes], BinaryIO], path: bytes, offset: int, length: int
) -> Iterator[bytes]:
    with open_payload(path) as file:
        if offset:
            file.seek(offset)
        left = length
        while left:
            data = file.read(min(left, _CHUNK))
            if not data:
                raise StoreError(
                    f"{show(path)}: the file is shorter than when it was imported; "
                    f"a layer must not be edited, import the image again"
                )
            left -= len(data)
            yield data
