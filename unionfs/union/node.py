"""What the engine remembers about one file or directory somebody refers to.

Invariant: a linked node is found in `parent.children[name]` of its place (and of
every pair in `more`); a node that is in no directory is `gone`. A node lives while
`refs`, `opens` or children hold it.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING, Final

from unionfs.branch import Status

if TYPE_CHECKING:
    from unionfs.branch import Child, DirScan
    from unionfs.union.options import Attr

__all__ = ["UPPER", "DirNode", "Inherit", "Key", "Node"]

#: Position of the rw branch; lower branches count from 1, top first.
UPPER = 0

_STATUS: Final = struct.Struct("=IIIIqIQQqqqq?")
#: One object for each type of file, not one for each file.
_FORMATS: Final = {fmt << 12: fmt << 12 for fmt in range(16)}

#: Identity of a backing file: branch position, device, inode number.
Key = tuple[int, int, int]
#: What new entries take from a directory: a gid or -1, and the default ACL or b"".
Inherit = tuple[int, bytes]


class Node:
    """A file that is not a directory, with all its known names.

    `branch` gives its backing file. `status` holds a lower file's attributes, which never
    change; it is kept packed, in a third of the memory. `fd` is the one backing fd shared by
    all handles, `fd_writable` its mode.
    `anchor` is a directory fd in which a file without a name in the union still is `name`.
    """

    __slots__ = (
        "_status",
        "anchor",
        "branch",
        "fd",
        "fd_writable",
        "fmt",
        "gone",
        "ino",
        "key",
        "more",
        "name",
        "nlink",
        "opens",
        "parent",
        "refs",
    )

    def __init__(self, ino: int, key: Key, fmt: int, parent: DirNode | None, name: bytes) -> None:
        self.ino = ino
        self.key = key
        self.fmt = _FORMATS.get(fmt, fmt)
        self.parent = parent
        self.name = name
        self.branch = key[0]
        self.nlink = 1
        self.refs = 0
        self.opens = 0
        self.fd = -1
        self.fd_writable = False
        self.anchor = -1
        self.gone = False
        self.more: list[tuple[DirNode, bytes]] | None = None
        self._status: bytes | Status | None = None

    @property
    def status(self) -> Status | None:
        """A lower file's attributes."""
        packed = self._status
        return Status(*_STATUS.unpack(packed)) if isinstance(packed, bytes) else packed

    @status.setter
    def status(self, status: Status | None) -> None:
        try:
            self._status = None if status is None else _STATUS.pack(*status)
        except struct.error:  # times after 2262, for instance
            self._status = status

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return self.fmt == stat.S_IFDIR

    @property
    def idle(self) -> bool:
        """Whether nothing refers to the node any more."""
        return not self.refs and not self.opens

    def names(self) -> list[tuple[DirNode, bytes]]:
        """Return every known place of the file in the union."""
        first = [] if self.parent is None or self.gone else [(self.parent, self.name)]
        return first + (self.more or [])


class DirNode(Node):
    """A directory: which branches give it, and its listings once they were needed.

    `lower` are the positions that contribute below the rw branch, top first. `listing` is
    their merged content and immutable; `scan` is the rw branch's part, kept current by the
    engine's own operations. `stamp` tells of which state of the rw branch's directory it is
    where others change that (`unionfs.union.foreign`). `final` holds the attributes of a removed
    directory.
    """

    __slots__ = ("children", "final", "inherit", "listing", "lower", "scan", "stamp")

    def __init__(
        self, ino: int, key: Key, parent: DirNode | None, name: bytes, lower: tuple[int, ...]
    ) -> None:
        super().__init__(ino, key, stat.S_IFDIR, parent, name)
        self.lower = lower
        self.children: dict[bytes, Node] = {}
        self.listing: dict[bytes, Child] | None = None
        self.scan: DirScan | None = None
        self.stamp: tuple[int, int, int] | None = None
        self.inherit: Inherit | None = None
        self.final: Attr | None = None

    @property
    def upper(self) -> bool:
        """Whether the rw branch has this directory."""
        return self.branch == UPPER

    @property
    def merged(self) -> bool:
        """Whether more than one branch contributes."""
        return len(self.lower) + self.upper > 1

    @property
    def idle(self) -> bool:
        """Whether nothing refers to the node any more, the root never."""
        return not self.refs and not self.opens and not self.children and self.parent is not None
