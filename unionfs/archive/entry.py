"""One member of a layer archive, as the rest of the program sees it.

Invariant: an `Entry` is what the archive says, not what is safe: `name` and
`linkname` are raw bytes in the archive's own spelling (absolute, `..`, doubled
slashes and all). Whoever extracts decides what they mean.
"""

from __future__ import annotations

import enum

import attrs

__all__ = ["Entry", "Kind"]


class Kind(enum.Enum):
    """File types a tar member can have (OCI image-spec, layer.md, "File Types")."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"


@attrs.frozen
class Entry:
    """A tar member.

    `size` is the length in bytes of the file a reader sees (holes included); times are
    nanoseconds since the epoch; `rdev` is (major, minor) and only set for devices. `xattrs`
    comes from PAX `SCHILY.xattr.*` records. `extents` is None for a plain file, else the
    (offset, length) pairs of a sparse file's data, in order.
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = attrs.field(factory=dict)
    extents: tuple[tuple[int, int], ...] | None = None
