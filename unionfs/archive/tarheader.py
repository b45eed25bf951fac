"""Decode the blocks of tar headers: ustar, GNU and PAX, strictly.

Invariant: a field either has one meaning that POSIX pax(1), GNU tar and Go's archive/tar
agree on, or it is an error: two programs that read one archive differently are how
files are smuggled past a check (CVE-2025-62518). Hence also no use of the lenient number
parser of the standard library, which takes `1_0`, `-7` and `0o7` for octal fields.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from typing import Final

import attrs

from unionfs.errors import HostileArchiveError, show

__all__ = [
    "BLOCK",
    "ZERO_BLOCK",
    "Header",
    "clamp_ns",
    "decimal",
    "parse_header",
    "parse_number",
    "parse_pax",
    "pax_mtime",
    "pax_xattrs",
    "quote_xattr",
]

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)
_NOT_OCTAL: Final = re.compile(rb"[^0-7]")
_DECIMAL: Final = re.compile(rb"[0-9]{1,30}\Z")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,400})(?:\.([0-9]*))?\Z")
_LENGTH: Final = re.compile(rb"([1-9][0-9]{0,9}) ")
_SCHILY: Final = b"SCHILY.xattr."
_LIBARCHIVE: Final = b"LIBARCHIVE.xattr."
#: XATTR_NAME_MAX, linux/limits.h.
_XATTR_NAME: Final = 255
_TEXT_KEYS: Final = (b"path", b"linkpath", b"GNU.sparse.name")
_NANO: Final = 1_000_000_000
_MAX_NS: Final = 2**63 - 1


@attrs.frozen
class Header:
    """One header block, nothing resolved: `size` is the bytes stored, `type` the typeflag."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    type: bytes
    linkname: bytes
    block: bytes

    @property
    def rdev(self) -> tuple[int, int]:
        """(major, minor); only devices have meaningful fields."""
        return parse_number(self.block[329:337], "devmajor"), parse_number(
            self.block[337:345], "devminor"
        )


def parse_number(field: bytes, what: str) -> int:
    """Return an octal or base-256 field. Raises HostileArchiveError for anything else."""
    first = field[0]
    if first & 0x80:  # base-256, two's complement (GNU tar, star)
        value = int.from_bytes(bytes((first & 0x7F,)) + field[1:], "big")
        return value - (1 << (8 * len(field) - 1)) if first & 0x40 else value
    digits = field.strip(b" \0")
    if _NOT_OCTAL.search(digits):
        raise HostileArchiveError(f"the {what} field of a header is no number: {show(field)}")
    return int(digits or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def parse_header(block: bytes) -> Header:
    """Decode one block. Raises HostileArchiveError for a bad checksum or field."""
    stored = parse_number(block[148:156], "checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if stored != unsigned:
        # Some old tars summed signed characters (POSIX pax, "ustar Interchange Format").
        field = block[:148] + block[156:]
        signed = unsigned - 256 * sum(byte >= 0x80 for byte in field)  # noqa: PLR2004  # sign bit
        if stored != signed:
            raise HostileArchiveError("the checksum of a header is wrong")
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0":
        # star keeps times where POSIX has the end of the prefix; "tar\0" gives it away.
        prefix = _text(block[345:476] if block[508:512] == b"tar\0" else block[345:500])
        if prefix:
            name = prefix + b"/" + name
    return Header(
        name=name,
        mode=parse_number(block[100:108], "mode"),
        uid=parse_number(block[108:116], "uid"),
        gid=parse_number(block[116:124], "gid"),
        size=parse_number(block[124:136], "size"),
        mtime=parse_number(block[136:148], "mtime"),
        type=block[156:157],
        linkname=_text(block[157:257]),
        block=block,
    )


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    r"""Decode an extended header into (keyword, value) pairs, in order, values binary safe.

    Raises HostileArchiveError for any record that does not follow "%d %s=%s\n" and for a
    NUL in a keyword or a name.
    """
    records = []
    at = 0
    while at < len(data):
        match = _LENGTH.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            raise HostileArchiveError("an extended header has a malformed record")
        keyword, equals, value = data[match.end() : end - 1].partition(b"=")
        if not keyword or not equals or b"\0" in keyword:
            raise HostileArchiveError("an extended header has a record without a keyword")
        if keyword in _TEXT_KEYS and b"\0" in value:
            raise HostileArchiveError(f"a name in an extended header contains NUL: {show(value)}")
        records.append((keyword, value))
        at = end
    return records


def decimal(value: bytes, what: str) -> int:
    """Return a PAX number. Raises HostileArchiveError for anything but decimal digits."""
    if not _DECIMAL.match(value):
        raise HostileArchiveError(f"{what} in an extended header is no number: {show(value[:80])}")
    return int(value)


def clamp_ns(nanoseconds: int) -> int:
    """Return a time that fits signed 64 bits, as containerd and the kernel clamp it."""
    return max(-_MAX_NS, min(_MAX_NS, nanoseconds))


def pax_mtime(value: bytes) -> int:
    """Return nanoseconds since the epoch of a PAX time; digits below 1 ns are cut off.

    Times too far away are clamped to what 64 bits hold (the years 1677 to 2262). Raises
    HostileArchiveError for NaN, infinity, exponents and other rubbish.
    """
    match = _TIME.match(value)
    if match is None:
        raise HostileArchiveError(f"mtime in an extended header is no time: {show(value[:80])}")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * _NANO + int((fraction or b"")[:9].ljust(9, b"0"))
    return clamp_ns(-nanoseconds if sign else nanoseconds)


def quote_xattr(name: bytes) -> bytes:
    """Return an attribute name as GNU tar spells it in a keyword: `=` and `%` escaped."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def pax_xattrs(records: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the extended attributes; `SCHILY.xattr.` wins over bsdtar's `LIBARCHIVE.xattr.`."""
    found: dict[bytes, bytes] = {}
    schily: dict[bytes, bytes] = {}
    for keyword, value in records:
        if keyword.startswith(_SCHILY):
            name = keyword[len(_SCHILY) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            schily[_xattr_name(name)] = value
        elif keyword.startswith(_LIBARCHIVE):
            name = urllib.parse.unquote_to_bytes(keyword[len(_LIBARCHIVE) :])
            try:
                # libarchive writes no padding characters.
                data = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error:
                raise HostileArchiveError(
                    f"the value of the extended attribute {show(name)} is no base64"
                ) from None
            found[_xattr_name(name)] = data
    found.update(schily)
    return found


def _xattr_name(name: bytes) -> bytes:
    if not name or len(name) > _XATTR_NAME or b"\0" in name:
        raise HostileArchiveError(f"bad name of an extended attribute: {show(name[:80])}")
    return name
