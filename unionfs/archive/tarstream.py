"""Read a tar stream forward, member by member, telling exactly what it says.

Invariant: the stream is consumed to its last byte and hashed on the way; memory does not
grow with the number of members; whatever a lenient reader would skip silently (bad checksum,
truncation, malformed extended header, unknown type) is raised. A reader either sees what
the writer's own tar would see or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Self

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.limits import Limits
from unionfs.archive.reader import Reader
from unionfs.archive.record import Recorder
from unionfs.archive.sparse import Sparse, old_gnu, pax_sparse
from unionfs.archive.tape import SeekingTape, Tape
from unionfs.archive.tarfields import Pending, id_of, mode_of, rdev_of
from unionfs.archive.tarheader import (
    BLOCK,
    ZERO_BLOCK,
    Header,
    clamp_ns,
    decimal,
    parse_header,
    parse_pax,
    pax_mtime,
    pax_xattrs,
)
from unionfs.branch.whiteout import PREFIX
from unionfs.errors import HostileArchiveError, show

__all__ = ["TarStream"]

_CHUNK: Final = 256 * 1024
_NANO: Final = 1_000_000_000
#: Above this a ustar size field cannot say it, and PAX may differ from the field honestly.
_USTAR_SIZE: Final = 8**11
_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
#: Members that describe no file: GNU volume label, Solaris ACL.
_SKIPPED: Final = {b"V": "volume label", b"A": "Solaris ACL"}


class TarStream:
    """An iterator of `Entry` over an uncompressed tar stream.

    Between two steps of the iteration `payload` gives the data of the current member; data
    that nobody asked for is passed over. With a `record`, everything is recorded literally
    except the data of members for which `keep` was called. `warn` gets one line for things
    that are odd but harmless. All errors about the archive are HostileArchiveError (or its
    LimitError); `what` names the archive in them. `promised` says that the caller will compare
    `diff_id` with a known one: a missing end-of-archive marker (umoci writes none) then is no
    sign of truncation and not worth a warning.
    """

    def __init__(
        self,
        stream: Reader,
        limits: Limits,
        record: Recorder | None = None,
        *,
        warn: Callable[[str], None] | None = None,
        what: str = "layer",
        promised: bool = False,
    ) -> None:
        self._promised = promised
        self._tape = Tape(stream, record)
        self._limits = limits
        self._record = record
        self._warn = warn or (lambda _message: None)
        self._what = what
        self._entries = 0
        self._bytes = 0
        self._finished = False
        self._current = b""
        self._extents: tuple[tuple[int, int], ...] = ()
        self._padding = 0
        self._begun = True
        self._number: int | None = None
        self._kept = 0
        self._index = 0
        self._left = 0

    @classmethod
    def seeking(cls, file: BinaryIO, size: int, limits: Limits, *, what: str) -> Self:
        """Return a stream over a seekable file of `size` bytes that jumps over unread data.

        It has no `diff_id`.
        """
        stream = cls(file, limits, what=what)
        file.seek(0)
        stream._tape = SeekingTape(file, size)
        return stream

    def __iter__(self) -> Iterator[Entry]:
        return self

    def __next__(self) -> Entry:
        if self._finished:
            raise StopIteration
        try:
            self._pass_over_payload()
            entry = self._next()
        except HostileArchiveError as error:
            if str(error).startswith(self._what):
                raise
            raise type(error)(f"{self._where()}: {error}") from None
        if entry is None:
            self._finished = True
            raise StopIteration
        return entry

    @property
    def diff_id(self) -> str:
        """`sha256:<hex>` of all uncompressed bytes; only after the iteration ended."""
        if not self._finished:
            raise RuntimeError("diff_id is known once the stream was read to its end")
        return self._tape.digest

    @property
    def size(self) -> int:
        """Uncompressed bytes read so far; the length of the stream once the iteration ended."""
        return self._tape.position

    @property
    def data_position(self) -> int:
        """Where in the stream the current member's unread data stands, bytes."""
        return self._tape.position

    def keep(self) -> int:
        """Say that the current member's data will be found again outside the record.

        Returns the payload number for `Recorder.finish`; call it before `payload`. Members
        without this call are recorded literally.
        """
        if self._begun:
            raise RuntimeError("keep() must come before the data is read")
        if self._number is None:
            self._number = self._kept if self._record is None else self._record.payload()
            self._kept += 1
        return self._number

    def payload(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset in the file, data) of the current member, holes left out.

        Raises HostileArchiveError when the archive ends inside it.
        """
        if self._begun:
            return
        self._begun = True
        while self._next_extent():
            offset, length = self._extents[self._index - 1]
            while self._left:
                data = self._tape.take_some(min(self._left, _CHUNK), raw=self._number is None)
                if not data:
                    raise self._truncated()
                at = offset + length - self._left
                self._left -= len(data)
                yield at, data

    def _next_extent(self) -> bool:
        """Step to the next extent: `_left` bytes of it are unread; False after the last."""
        if self._index == len(self._extents):
            return False
        offset, self._left = self._extents[self._index]
        self._index += 1
        if self._number is not None and self._record is not None:
            self._record.reference(self._number, offset, self._left)
        return True

    def _pass_over_payload(self) -> None:
        """Skip what the consumer left unread of the current member, and its padding."""
        raw = self._number is None
        while self._left or self._next_extent():
            if self._tape.skip(self._left, raw=raw) < self._left:
                raise self._truncated()
            self._left = 0
        if len(self._tape.take(self._padding)) < self._padding:
            raise self._truncated()
        self._padding = 0
        self._begun = True
        self._number = None

    def _where(self) -> str:
        member = f" after {show(self._current)}" if self._current else ""
        return f"{self._what}, byte {self._tape.position}{member}"

    def _truncated(self) -> HostileArchiveError:
        return HostileArchiveError(
            f"{self._what}: ends inside {show(self._current)}; it is truncated, fetch it again"
        )

    def _next(self) -> Entry | None:
        """Read headers up to the next member; None at the end of the archive."""
        pending = Pending()
        while True:
            block = self._tape.take(BLOCK)
            if len(block) < BLOCK or block == ZERO_BLOCK:
                if pending:
                    raise HostileArchiveError("ends after an extended header; it is truncated")
                self._end(block)
                return None
            header = parse_header(block)
            if header.size < 0:
                raise HostileArchiveError("a header with a negative size")
            if header.type in b"xXgLK":
                self._extension(header, pending)
            elif header.type in _SKIPPED:
                self._warn(f"{self._where()}: {_SKIPPED[header.type]} skipped")
                self._begin(((0, header.size),), header.size)
                self._pass_over_payload()
                pending = Pending()
            else:
                self._entries += 1
                self._limits.check("entries", self._entries, self._what)
                return self._entry(header, pending)

    def _end(self, block: bytes) -> None:
        """Handle the end-of-archive marker, or its absence, and drain the stream."""
        if len(block) < BLOCK:
            if block.strip(b"\0"):
                raise HostileArchiveError("ends inside a header; it is truncated")
            if self._entries and not self._promised:
                self._warn(f"{self._what}: no end-of-archive marker; perhaps truncated")
            return
        second = self._tape.take(BLOCK)
        if second.strip(b"\0"):
            raise HostileArchiveError("a single zero block between members")
        rubbish = False
        rest = 0
        while data := self._tape.take_some(_CHUNK, raw=True):
            rest += len(data)
            self._limits.check("trailing_bytes", rest, self._what)
            rubbish = rubbish or bool(data.strip(b"\0"))
        if rubbish:
            self._warn(f"{self._what}: data after the end-of-archive marker is ignored")

    def _extension(self, header: Header, pending: Pending) -> None:
        self._limits.check("header_bytes", header.size, self._where())
        data = self._tape.take(header.size)
        padding = -header.size % BLOCK
        if len(data) < header.size or len(self._tape.take(padding)) < padding:
            raise HostileArchiveError("ends inside an extended header; it is truncated")
        if header.type in b"LK":
            if header.type in pending.names:
                raise HostileArchiveError("two long names for one member")
            pending.names[header.type] = data.partition(b"\0")[0]
            return
        records = parse_pax(data)
        if header.type == b"g":
            # Global headers carry comments (git archive); appliers of layers ignore them.
            return
        if pending.pax is not None:
            raise HostileArchiveError("two extended headers for one member")
        pending.pax = records

    def _begin(self, extents: tuple[tuple[int, int], ...], stored: int) -> None:
        self._extents = extents
        self._padding = -stored % BLOCK
        self._begun = False
        self._index = 0
        self._left = 0

    def _entry(self, header: Header, pending: Pending) -> Entry:
        kind = _KINDS.get(header.type)
        if kind is None:
            raise HostileArchiveError(
                f"{show(header.name)} is of the unknown or unsupported type {show(header.type)}"
            )
        records = pending.pax or []
        values = dict(records)
        name = pending.choose(header, values, b"L", b"path")
        linkname = pending.choose(header, values, b"K", b"linkpath")
        self._current = name = values.get(b"GNU.sparse.name") or name
        if header.type == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # V7 tar had no type for directories
        self._check_name(name)
        if kind is Kind.HARDLINK:
            self._check_name(linkname)
        elif kind is Kind.SYMLINK:
            if not linkname:
                raise HostileArchiveError("a symbolic link to nothing")
            self._limits.check("path", len(linkname), show(name))
        size, extents = self._data(header, kind, records, values)
        return Entry(
            name=name,
            kind=kind,
            mode=mode_of(header),
            uid=id_of(header.uid, values, b"uid"),
            gid=id_of(header.gid, values, b"gid"),
            size=size,
            mtime_ns=pax_mtime(values[b"mtime"])
            if values.get(b"mtime")
            else clamp_ns(header.mtime * _NANO),
            linkname=linkname if kind in {Kind.HARDLINK, Kind.SYMLINK} else b"",
            rdev=rdev_of(header) if kind in {Kind.CHAR, Kind.BLOCK} else (0, 0),
            xattrs=self._xattrs(records),
            extents=extents,
        )

    def _check_name(self, name: bytes) -> None:
        if not name:
            raise HostileArchiveError("a member or link with an empty name")
        limits = self._limits
        where = f"{self._what}: {show(name[:80])}"
        limits.check("path", len(name), where)
        parts = [part for part in name.split(b"/") if part]
        limits.check("depth", len(parts), where)
        for part in parts:
            if len(part) > limits.component:
                hidden = part.removeprefix(PREFIX)
                limits.check("component", len(hidden), where)

    def _data(
        self,
        header: Header,
        kind: Kind,
        records: list[tuple[bytes, bytes]],
        values: dict[bytes, bytes],
    ) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        """Set up the payload; return the file's size and its extents if sparse."""
        if kind is not Kind.FILE:
            # Only files have data; other sizes are rubbish that every reader ignores.
            self._begin((), 0)
            return 0, None
        stored = header.size
        if values.get(b"size"):
            stored = decimal(values[b"size"], "size")
            if stored != header.size and stored < _USTAR_SIZE:
                raise HostileArchiveError("two different sizes for one member")
        where = f"{self._what}: {show(self._current)}"
        self._limits.check("file_bytes", stored, where)
        sparse: Sparse | None
        if header.type == b"S":
            sparse = old_gnu(header, stored, self._tape.take, self._limits, where)
        else:
            sparse = pax_sparse(records, stored, self._tape.take, self._limits, where)
        size = stored if sparse is None else sparse.size
        self._limits.check("file_bytes", size, where)
        self._bytes += size
        self._limits.check("layer_bytes", self._bytes, self._what)
        if sparse is None:
            self._begin(((0, stored),) if stored else (), stored)
            return size, None
        self._begin(sparse.extents, stored - sparse.map_bytes)
        return size, sparse.extents

    def _xattrs(self, records: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        if not records:
            return {}
        xattrs = pax_xattrs(records)
        total = sum(len(name) + len(value) for name, value in xattrs.items())
        self._limits.check("xattr_bytes", total, f"{self._what}: {show(self._current)}")
        return xattrs
