"""The four ways in which tar stores a sparse file.

Invariant: the extents returned are sorted, do not overlap, lie inside the file and add up
to the bytes stored in the archive; anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import attrs

from unionfs.archive.limits import Limits
from unionfs.archive.tarheader import BLOCK, Header, decimal, parse_number
from unionfs.errors import HostileArchiveError

__all__ = ["Sparse", "old_gnu", "pax_sparse"]

Extents = tuple[tuple[int, int], ...]
_OLD_ENTRIES: Final = 4
_EXTENSION_ENTRIES: Final = 21
_LINE: Final = re.compile(rb"([0-9]{1,20})\n")


@attrs.frozen
class Sparse:
    """A sparse map: the real size, the data extents, and how many stored bytes the map took."""

    size: int
    extents: Extents
    map_bytes: int = 0


def _checked(pairs: list[tuple[int, int]], size: int, stored: int) -> Extents:
    extents = tuple((offset, length) for offset, length in pairs if length)
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise HostileArchiveError("the extents of a sparse file overlap or are out of order")
        end = offset + length
    if end > size:
        raise HostileArchiveError("the extents of a sparse file reach beyond its end")
    if sum(length for _, length in extents) != stored:
        raise HostileArchiveError("the extents of a sparse file do not add up to its data")
    return extents


def _old_entries(area: bytes, count: int) -> tuple[list[tuple[int, int]], bool]:
    pairs: list[tuple[int, int]] = []
    for index in range(count):
        field = area[24 * index : 24 * index + 24]
        if field[12] == 0:
            return pairs, True
        pairs.append(
            (parse_number(field[:12], "sparse offset"), parse_number(field[12:], "sparse length"))
        )
    return pairs, False


def old_gnu(
    header: Header, stored: int, take: Callable[[int], bytes], limits: Limits, where: str
) -> Sparse:
    """Decode typeflag `S`; `take` reads the extension blocks that follow the header."""
    pairs, done = _old_entries(header.block[386:482], _OLD_ENTRIES)
    size = parse_number(header.block[483:495], "real size")
    more = header.block[482] != 0
    read = 0
    while more:
        read += BLOCK
        limits.check("header_bytes", read, where)
        block = take(BLOCK)
        if len(block) < BLOCK:
            raise HostileArchiveError("the archive ends inside a sparse map; it is truncated")
        if not done:
            found, done = _old_entries(block, _EXTENSION_ENTRIES)
            pairs += found
        more = block[504] != 0
    return Sparse(size, _checked(pairs, size, stored))


def pax_sparse(
    records: list[tuple[bytes, bytes]],
    stored: int,
    take: Callable[[int], bytes],
    limits: Limits,
    where: str,
) -> Sparse | None:
    """Decode GNU.sparse.* records, formats 0.0, 0.1 and 1.0; None when there are none.

    Format 1.0 keeps its map in the first blocks of the data, read with `take`.
    """
    values = dict(records)
    version = values.get(b"GNU.sparse.major"), values.get(b"GNU.sparse.minor")
    if version == (b"1", b"0"):
        size = decimal(values.get(b"GNU.sparse.realsize", b""), "GNU.sparse.realsize")
        pairs, used = _map_in_data(stored, take, limits, where)
        return Sparse(size, _checked(pairs, size, stored - used), used)
    if version not in {(None, None), (b"0", b"0"), (b"0", b"1")}:
        raise HostileArchiveError("unknown version of a sparse map")
    if b"GNU.sparse.size" not in values:
        if version != (None, None) or b"GNU.sparse.map" in values:
            raise HostileArchiveError("a sparse map without a size")
        return None
    size = decimal(values[b"GNU.sparse.size"], "GNU.sparse.size")
    if b"GNU.sparse.map" in values:
        text = values[b"GNU.sparse.map"]
        numbers = [decimal(number, "GNU.sparse.map") for number in text.split(b",")] if text else []
    else:
        numbers = [
            decimal(value, "GNU.sparse.offset")
            for keyword, value in records
            if keyword in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}
        ]
    if len(numbers) % 2:
        raise HostileArchiveError("a sparse map with an odd number of values")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    return Sparse(size, _checked(pairs, size, stored))


def _map_in_data(
    stored: int, take: Callable[[int], bytes], limits: Limits, where: str
) -> tuple[list[tuple[int, int]], int]:
    numbers: list[int] = []
    wanted = 1
    used = 0
    rest = b""
    while len(numbers) < wanted:
        match = _LINE.match(rest)
        if match is None:
            if len(rest) >= BLOCK or used + BLOCK > stored:
                raise HostileArchiveError("a malformed sparse map")
            limits.check("header_bytes", used + BLOCK, where)
            block = take(BLOCK)
            used += len(block)
            if len(block) < BLOCK:
                raise HostileArchiveError("the archive ends inside a sparse map; it is truncated")
            rest += block
            continue
        numbers.append(int(match[1]))
        rest = rest[match.end() :]
        if len(numbers) == 1:
            wanted = 1 + 2 * numbers[0]
            limits.check("header_bytes", wanted, where)
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), used
