"""Whiteout names and dialects; the only module that spells the marker names.

On disk a branch speaks one of three dialects. AUFS form, which is also the OCI
layer form, is ours: `.wh.NAME` hides NAME in the branches below, `.wh..wh..opq`
hides everything below in its directory, every other name that starts with
`.wh..wh.` is housekeeping and means nothing. Kernel overlayfs uses a character
device 0/0 in place of the entry and an xattr on the directory.

Invariant: for every possible name `classify` gives exactly one meaning, and the
name of a whiteout never collides with the name of an entry, because entries whose
name starts with the prefix cannot exist (OCI image-spec, layer.md, "Whiteouts").
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final, NamedTuple

__all__ = [
    "AUFS_BASE",
    "AUFS_LINKS",
    "AUFS_ORPHANS",
    "MAX_NAME",
    "NAME_MAX",
    "OPAQUE",
    "OVERLAY_DIR",
    "PREFIX",
    "WORK_DIR",
    "Dialect",
    "Marker",
    "Meaning",
    "classify",
    "is_reserved",
    "marker_for",
    "opaque_xattr",
]

PREFIX: Final = b".wh."
_HOUSEKEEPING: Final = b".wh..wh."
OPAQUE: Final = b".wh..wh..opq"
_LONG: Final = b".wh..wh.long."
#: Our work area at the root of a rw branch: a name that AUFS and every applier skip.
WORK_DIR: Final = b".wh..wh.unionfs"
#: Where a rw branch lies while kernel overlayfs writes it (`unionfs.kernel.convert`).
OVERLAY_DIR: Final = b".wh..wh.overlay"
#: AUFS's own in the root of its rw branch: what whiteouts are links of, pseudo-links, orphans.
AUFS_BASE: Final = b".wh..wh.aufs"
AUFS_LINKS: Final = b".wh..wh.plnk"
AUFS_ORPHANS: Final = b".wh..wh.orph"
#: Longest file name of every filesystem that matters, bytes (NAME_MAX, limits.h).
NAME_MAX: Final = 255
#: Longest name whose whiteout still is a file name.
MAX_NAME: Final = NAME_MAX - len(PREFIX)

_DIGEST_LENGTH: Final = 32


class Dialect(enum.Enum):
    """How a directory tree on disk says "deleted"."""

    AUFS = "aufs"
    OVERLAY = "overlay"
    OVERLAY_USER = "overlay-userxattr"


class Meaning(enum.Enum):
    """What a name in a directory of an AUFS-form branch is."""

    ENTRY = "entry"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    LONG_WHITEOUT = "long whiteout"
    HOUSEKEEPING = "housekeeping"
    INVALID = "invalid"


class Marker(NamedTuple):
    """The meaning of one name; `target` is the hidden name of a plain whiteout."""

    meaning: Meaning
    target: bytes = b""


_ENTRY = Marker(Meaning.ENTRY)
_OPAQUE = Marker(Meaning.OPAQUE)
_HOUSE = Marker(Meaning.HOUSEKEEPING)
_LONG_MARKER = Marker(Meaning.LONG_WHITEOUT)
_INVALID = Marker(Meaning.INVALID)
# ".wh." + these would hide nothing, the directory itself, or its parent.
_NOT_NAMES = frozenset((b"", b".", b".."))


def classify(name: bytes) -> Marker:
    """Say what the single path component `name` means in an AUFS-form branch.

    A long whiteout keeps the hidden name in its content: the caller reads it.
    Invalid are `.wh.`, `.wh..` and `.wh...`, which OCI tells readers to refuse.
    """
    if not name.startswith(PREFIX):
        return _ENTRY
    if name == OPAQUE:
        return _OPAQUE
    if name.startswith(_LONG) and len(name) == len(_LONG) + _DIGEST_LENGTH:
        return _LONG_MARKER
    if name.startswith(_HOUSEKEEPING):
        return _HOUSE
    target = name[len(PREFIX) :]
    return _INVALID if target in _NOT_NAMES else Marker(Meaning.WHITEOUT, target)


def is_reserved(name: bytes) -> bool:
    """Tell whether the union must never show or create `name` (EPERM, as AUFS)."""
    return name.startswith(PREFIX)


def marker_for(name: bytes) -> tuple[bytes, bytes]:
    """Return file name and content of the whiteout that hides `name`.

    Names up to `MAX_NAME` bytes give `.wh.NAME`, empty. Longer ones give a file named by
    digest that holds the name: AUFS passes over it as housekeeping, and we read it.
    """
    if len(name) <= MAX_NAME:
        return PREFIX + name, b""
    digest = hashlib.sha256(name).hexdigest()[:_DIGEST_LENGTH]
    return _LONG + digest.encode(), name


def opaque_xattr(dialect: Dialect) -> str | None:
    """Return the xattr whose value `y` makes a directory opaque in an overlay dialect."""
    if dialect is Dialect.OVERLAY:
        return "trusted.overlay.opaque"
    if dialect is Dialect.OVERLAY_USER:
        return "user.overlay.opaque"
    return None
