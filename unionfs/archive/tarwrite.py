"""Write tar streams that are the same bytes every time.

Invariant: the stream is a function of the entries and their data alone. Members are ustar;
PAX records stand only where ustar cannot say it: long or non-ASCII names (as the raw
bytes they are, UTF-8 or not), big ids and sizes, times before 1970 or finer than a second,
extended attributes (`SCHILY.xattr.`, OCI image-spec layer.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.tarheader import BLOCK, quote_xattr

__all__ = ["TarWriter", "end_of_archive", "member_header", "padding"]

_TYPES: Final = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHAR: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_NAME_FIELD: Final = 100
_MAX_7: Final = 0o7777777
_MAX_11: Final = 0o77777777777
_NANO: Final = 1_000_000_000
_PAX_NAME: Final = b"././@PaxHeader"


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def _block(
    name: bytes,
    typeflag: bytes,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    linkname: bytes = b"",
    rdev: tuple[int, int] = (0, 0),
) -> bytes:
    block = b"".join(
        (
            name.ljust(_NAME_FIELD, b"\0"),
            _octal(mode, 8),
            _octal(uid, 8),
            _octal(gid, 8),
            _octal(size, 12),
            _octal(mtime, 12),
            b" " * 8,
            typeflag,
            linkname.ljust(_NAME_FIELD, b"\0"),
            b"ustar\x0000",
            bytes(64),
            _octal(rdev[0], 8),
            _octal(rdev[1], 8),
            bytes(BLOCK - 345),
        )
    )
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])


def _pax_record(keyword: bytes, value: bytes) -> bytes:
    rest = len(keyword) + len(value) + 3  # space, equals sign, newline
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def _pax_time(nanoseconds: int) -> bytes:
    sign = "-" if nanoseconds < 0 else ""
    seconds, fraction = divmod(abs(nanoseconds), _NANO)
    text = f"{sign}{seconds}.{fraction:09}".rstrip("0").rstrip(".")
    return text.encode()


def _fits(name: bytes) -> bool:
    return len(name) <= _NAME_FIELD and name.isascii()


def _stand_in(name: bytes) -> bytes:
    """Return what an old tar without PAX sees of a name that does not fit the field."""
    return bytes(byte if byte < 0x80 else ord("?") for byte in name[:_NAME_FIELD])  # noqa: PLR2004  # ASCII


def member_header(entry: Entry) -> bytes:
    """Return the header blocks of a member, extended header included.

    Raises ValueError for what tar cannot express: an empty name, NUL in a name, a negative
    number, a device number above 21 bits.
    """
    name = entry.name
    if entry.kind is Kind.DIRECTORY and not name.endswith(b"/"):
        name += b"/"
    if not entry.name or b"\0" in name + entry.linkname:
        raise ValueError(f"tar cannot hold the name {name!r} -> {entry.linkname!r}")
    if min(entry.uid, entry.gid, entry.size, *entry.rdev) < 0 or max(entry.rdev) > _MAX_7:
        raise ValueError(f"tar cannot hold the numbers of {entry!r}")
    size = entry.size if entry.kind is Kind.FILE else 0
    seconds, fraction = divmod(entry.mtime_ns, _NANO)
    plain_time = fraction == 0 and 0 <= seconds <= _MAX_11
    records: list[tuple[bytes, bytes]] = []
    if not _fits(name):
        records.append((b"path", name))
    if not _fits(entry.linkname):
        records.append((b"linkpath", entry.linkname))
    if size > _MAX_11:
        records.append((b"size", b"%d" % size))
    records += [
        (keyword, b"%d" % number)
        for keyword, number in ((b"uid", entry.uid), (b"gid", entry.gid))
        if number > _MAX_7
    ]
    if not plain_time:
        records.append((b"mtime", _pax_time(entry.mtime_ns)))
    records += [
        (b"SCHILY.xattr." + quote_xattr(key), value) for key, value in sorted(entry.xattrs.items())
    ]
    header = _block(
        name if _fits(name) else _stand_in(name),
        _TYPES[entry.kind],
        mode=entry.mode & 0o7777,
        uid=entry.uid if entry.uid <= _MAX_7 else 0,
        gid=entry.gid if entry.gid <= _MAX_7 else 0,
        size=size if size <= _MAX_11 else 0,
        mtime=seconds if 0 <= seconds <= _MAX_11 else 0,
        linkname=entry.linkname if _fits(entry.linkname) else _stand_in(entry.linkname),
        rdev=entry.rdev,
    )
    if not records:
        return header
    body = b"".join(_pax_record(keyword, value) for keyword, value in records)
    return _block(_PAX_NAME, b"x", size=len(body)) + body + padding(len(body)) + header


def padding(size: int) -> bytes:
    """Return the NULs that fill the last block of `size` bytes of data."""
    return bytes(-size % BLOCK)


def end_of_archive() -> bytes:
    """Return the end-of-archive marker: two zero blocks."""
    return bytes(2 * BLOCK)


class TarWriter:
    """Writes entries to `out`, which needs nothing but `write(bytes)`."""

    def __init__(self, out: _Sink) -> None:
        self._out = out

    def add(self, entry: Entry, payload: Iterable[bytes] | None = None) -> None:
        """Append a member; `payload` yields exactly `entry.size` bytes of a regular file.

        Sparse files are written dense (OCI says SHOULD NOT to sparse members): the caller
        fills the holes. Raises ValueError when the data is shorter or longer than `size`; the
        stream is then broken and must be thrown away.
        """
        self._out.write(member_header(entry))
        if entry.kind is not Kind.FILE:
            return
        written = 0
        for chunk in payload or ():
            written += len(chunk)
            if written > entry.size:
                break
            self._out.write(chunk)
        if written != entry.size:
            raise ValueError(
                f"{entry.name!r}: {entry.size} bytes announced, {written} or more given"
            )
        self._out.write(padding(written))

    def close(self) -> None:
        """Write the end-of-archive marker. `out` stays open."""
        self._out.write(end_of_archive())
