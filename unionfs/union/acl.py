"""POSIX ACLs as far as a union must know them: inheritance, and their link to the mode.

The xattr value is 4 bytes version (2), then entries of tag, permissions (16 bit each) and
id (32 bit), little-endian (linux/posix_acl_xattr.h). Malformed values are left alone.

Invariant: what `inherit` and `mode_of` give is what a native filesystem would have done
(fs/posix_acl.c: posix_acl_create, posix_acl_equiv_mode), because files are made in a work
area, where the kernel cannot inherit for us, and kept in xattrs without root.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["ACCESS", "DEFAULT", "inherit", "mode_of", "with_mode"]

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20
_PERM: Final = 0o777


def _decode(value: bytes) -> list[tuple[int, int, int]] | None:
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY.size:
        return None
    return list(_ENTRY.iter_unpack(value[4:]))


def _encode(entries: list[tuple[int, int, int]]) -> bytes:
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def inherit(default: bytes, mode: int) -> tuple[int, bytes]:
    """Return mode and access ACL (b"" if the mode says it all) of an entry made under `default`."""
    entries = _decode(default)
    if not entries:
        return mode, b""
    tags = {tag for tag, _, _ in entries}
    group_tag = _MASK if _MASK in tags else _GROUP_OBJ
    shifts = {_USER_OBJ: 6, group_tag: 3, _OTHER: 0}
    bits = mode & _PERM
    result = []
    for tag, perm, ident in entries:
        shift = shifts.get(tag)
        if shift is not None:
            perm &= bits >> shift  # noqa: PLW2901  # the entry is rewritten on purpose
            bits = bits & ~(0o7 << shift) | (perm << shift)
        result.append((tag, perm, ident))
    simple = tags <= {_USER_OBJ, _GROUP_OBJ, _OTHER}
    return mode & ~_PERM | bits, b"" if simple else _encode(result)


def mode_of(access: bytes, mode: int) -> int:
    """Return the mode that setting an access ACL gives a file of `mode`."""
    entries = _decode(access)
    if entries is None:
        return mode
    perms = {tag: perm for tag, perm, _ in entries}
    if not {_USER_OBJ, _GROUP_OBJ, _OTHER} <= perms.keys():
        return mode
    group = perms.get(_MASK, perms[_GROUP_OBJ])
    bits = perms[_USER_OBJ] << 6 | group << 3 | perms[_OTHER]
    return mode & ~_PERM | bits


def with_mode(access: bytes, mode: int) -> bytes:
    """Return the access ACL after chmod(2) to `mode`."""
    entries = _decode(access)
    if entries is None:
        return access
    group_tag = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    shifts = {_USER_OBJ: 6, group_tag: 3, _OTHER: 0}
    return _encode(
        [
            (tag, mode >> shifts[tag] & 0o7 if tag in shifts else perm, ident)
            for tag, perm, ident in entries
        ]
    )
