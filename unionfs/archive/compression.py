"""Decompress a stream whose compression is known by its first bytes only.

Invariant: decoding happens in this process (no program is ever started for it, see
CVE-2014-9357 and CVE-2026-41567), memory stays bounded by one chunk and the decoder's
own window, and a stream that ends early or continues with rubbish is an error.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from unionfs.archive.limits import Limits
from unionfs.archive.reader import Reader
from unionfs.errors import HostileArchiveError, LimitError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


__all__ = ["Decompressed", "compression_of", "decompress"]


def _import_isal() -> Any | None:
    """Return isal's module, or None where the extra `fast` is not installed."""
    try:
        return importlib.import_module("isal.igzip_lib")
    except ImportError:
        return None


_igzip: Final = _import_isal()

_CHUNK: Final = 256 * 1024
_MAGIC_BYTES: Final = 10
#: xz -9 needs 65 MiB; more is a hostile dictionary size.
_XZ_MEMORY: Final = 256 * 1024 * 1024
_ZSTD_FRAME: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
_BZIP2_BLOCKS: Final = (b"1AY&SY", b"\x17rE8P\x90")


class _Decoder(Protocol):
    """The interface that bz2, lzma, zstd and isal decoders share."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _ZlibDecoder:
    """zlib's own object in that interface."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


def _gzip() -> _Decoder:
    if _igzip is None:
        return _ZlibDecoder()
    decoder: _Decoder = _igzip.IgzipDecompressor(flag=_igzip.DECOMP_GZIP)
    return decoder


_DECODERS: Final[dict[str, Callable[[], _Decoder]]] = {
    "gzip": _gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
    "zstd": zstd.ZstdDecompressor,
}
_ERRORS: Final[tuple[type[Exception], ...]] = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zstd.ZstdError,
    *(() if _igzip is None else (_igzip.IsalError,)),
)


def compression_of(head: bytes) -> str:
    """Name the compression that a stream starting with `head` (10 bytes or more) has.

    One of `none`, `gzip`, `bzip2`, `xz`, `zstd`. A skippable zstd frame counts as zstd.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS and head[3:4] in b"123456789":
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    if head.startswith(_ZSTD_FRAME):
        return "zstd"
    if head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50:  # noqa: PLR2004  # 0x184D2A5?
        return "zstd"
    return "none"


class Decompressed:
    """The uncompressed bytes of a stream, read forward only.

    `compression` is what `compression_of` found. `bytes_in` and `bytes_out` count what was
    consumed and produced so far, for progress displays.
    """

    def __init__(self, raw: Reader, limits: Limits, what: str, limit: str) -> None:
        self._limit = limit
        self._raw = raw
        self._limits = limits
        self._what = what
        self._input = b""
        self._ended = False
        self._decoder: _Decoder | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self._fill(_MAGIC_BYTES)
        self.compression: str = compression_of(self._input)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" only at the end.

        Raises HostileArchiveError for damaged, truncated or padded-with-rubbish data and
        LimitError for `ratio` and the length of the output.
        """
        if size <= 0:
            return b""
        data = self._plain(size) if self.compression == "none" else self._decoded(size)
        self.bytes_out += len(data)
        if data:
            self._check()
        return data

    def _check(self) -> None:
        limits = self._limits
        limits.check(self._limit, self.bytes_out, self._what)
        if self.compression != "none" and self.bytes_out > limits.ratio_after:
            limits.check("ratio", self.bytes_out // max(1, self.bytes_in), self._what)

    def _fetch(self) -> bytes:
        data = b"" if self._ended else self._raw.read(_CHUNK)
        self.bytes_in += len(data)
        self._ended = not data
        return data

    def _fill(self, count: int) -> None:
        while len(self._input) < count and (data := self._fetch()):
            self._input += data

    def _plain(self, size: int) -> bytes:
        if not self._input:
            self._input = self._fetch()
        data, self._input = self._input[:size], self._input[size:]
        return data

    def _decoded(self, size: int) -> bytes:
        while True:
            if self._decoder is None and not self._next_member():
                return b""
            decoder = self._decoder
            if decoder is None:
                return b""
            if decoder.needs_input:
                data = self._input or self._fetch()
                self._input = b""
                if not data:
                    raise HostileArchiveError(
                        f"{self._what}: the {self.compression} data ends too early after "
                        f"{self.bytes_out} bytes of output; the file is truncated, fetch it again"
                    )
            else:
                data = b""
            try:
                out = decoder.decompress(data, min(size, _CHUNK))
            except MemoryError:
                raise LimitError(
                    f"{self._what}: {self.compression} wants too much memory"
                ) from None
            except _ERRORS as error:
                raise HostileArchiveError(
                    f"{self._what}: damaged {self.compression} data ({error}); fetch it again"
                ) from None
            if decoder.eof:
                self._input = decoder.unused_data + self._input
                self._decoder = None
            if out:
                return out

    def _next_member(self) -> bool:
        """Start the next member or frame; False at the end of the stream."""
        padding = 0
        while True:
            self._fill(_MAGIC_BYTES)
            rest = self._input.lstrip(b"\0")
            padding += len(self._input) - len(rest)
            self._input = rest
            self._limits.check("trailing_bytes", padding, self._what)
            if rest and (len(rest) >= _MAGIC_BYTES or self._ended):
                break
            if self._ended:
                return False
        # A zstd frame can be shorter than the longest magic, hence no length check here.
        if compression_of(self._input) != self.compression:
            raise HostileArchiveError(
                f"{self._what}: something that is not {self.compression} follows the "
                f"{self.compression} data; the file is damaged"
            )
        self._decoder = _DECODERS[self.compression]()
        return True


def decompress(
    raw: Reader, limits: Limits, what: str = "archive", *, limit: str = "layer_bytes"
) -> Decompressed:
    """Return the uncompressed bytes of `raw`, which needs nothing but `read(n)`.

    `what` names the source in messages, `limit` the field of `limits` that bounds the output.
    Several gzip members or zstd frames in a row are one
    stream (gzip(1), RFC 8878), NUL padding after the last is ignored.
    """
    return Decompressed(raw, limits, what, limit)
