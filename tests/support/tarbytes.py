"""Tar headers made by hand, as wrong as a test wants them.

Invariant: every field is written exactly as given; only the checksum is computed, and
that too can be spoiled.
"""

from __future__ import annotations

__all__ = ["END", "base256", "header", "member", "pax", "pax_records"]

END = bytes(1024)


def base256(value: int, width: int) -> bytes:
    """Return a number in GNU tar's binary form."""
    raw = value.to_bytes(width, "big", signed=True)
    return bytes((raw[0] | 0x80,)) + raw[1:]


def header(
    name: bytes = b"f",
    typeflag: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    linkname: bytes = b"",
    magic: bytes = b"ustar\x0000",
    rdev: bytes = b"0000000\x000000000\0",
    prefix: bytes = b"",
    checksum: bytes | None = None,
    tail: bytes | None = None,
) -> bytes:
    """Return one header block; `tail` replaces everything from byte 345 on."""
    if isinstance(size, int):
        size = b"%011o\0" % size
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            mode,
            uid,
            gid,
            size,
            mtime,
            b" " * 8,
            typeflag,
            linkname.ljust(100, b"\0"),
            magic,
            bytes(64),
            rdev,
            (prefix.ljust(155, b"\0") + bytes(12)) if tail is None else tail.ljust(167, b"\0"),
        )
    )
    assert len(block) == 512, len(block)
    return block[:148] + (checksum or b"%06o\0 " % sum(block)) + block[156:]


def padded(data: bytes) -> bytes:
    """Return data filled up to whole blocks."""
    return data + bytes(-len(data) % 512)


def member(name: bytes = b"f", data: bytes = b"") -> bytes:
    """Return a plain file."""
    return header(name, size=len(data)) + padded(data)


def pax_records(*pairs: tuple[bytes, bytes]) -> bytes:
    """Return well-formed records."""
    out = b""
    for key, value in pairs:
        rest = len(key) + len(value) + 3
        length = rest + len(str(rest))
        length = rest + len(str(length))
        out += b"%d %s=%s\n" % (length, key, value)
    return out


def pax(*pairs: tuple[bytes, bytes], body: bytes | None = None, typeflag: bytes = b"x") -> bytes:
    """Return an extended header with records, or with a body as it stands."""
    data = pax_records(*pairs) if body is None else body
    return header(b"PaxHeader", typeflag, size=len(data)) + padded(data)
