"""What the engine remembers about one file or directory somebody refers to.

There may be millions of these, nearly all of them single-linked files of layers that nobody has
open: such a node is a few words, and what others have besides is kept apart.

Invariant: a linked node is found in `parent.children[name]` of its place (and of
every pair in `more`); a node that is in no directory is `gone`. A node lives while
`refs`, `opens` or children hold it.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar, overload

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


class _Besides:
    """What most nodes do without; the values here are theirs."""

    __slots__ = ("anchor", "fd", "fd_writable", "gone", "key", "links", "more", "opens")

    def __init__(self) -> None:
        self.key: Key | None = None
        self.links = 1
        self.opens = 0
        self.fd = -1
        self.fd_writable = False
        self.anchor = -1
        self.gone = False
        self.more: list[tuple[DirNode, bytes]] | None = None


_USUAL: Final = _Besides()
_T = TypeVar("_T")


class _Rare(Generic[_T]):
    """An attribute of `Node` that takes no memory while it has its usual value."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, node: None, owner: type) -> Self: ...
    @overload
    def __get__(self, node: Node, owner: type) -> _T: ...
    def __get__(self, node: Node | None, owner: type) -> _T | Self:
        if node is None:
            return self
        value: _T = getattr(node.besides, self._name)
        return value

    def __set__(self, node: Node, value: _T) -> None:
        if node.besides is _USUAL:
            if value == getattr(_USUAL, self._name):
                return
            node.besides = _Besides()
        setattr(node.besides, self._name, value)


class Node:
    """A file that is not a directory, with all its known names.

    `branch` gives its backing file. `key` is that file's identity where another name may lead to
    it: always in the rw branch, in a layer if it has several `links` or its name is gone. `fd` is
    the one backing fd shared by all handles, `fd_writable` its mode.
    `anchor` is a directory fd in which a file without a name in the union still is `name`.
    """

    __slots__ = ("besides", "branch", "fmt", "ino", "name", "nlink", "parent", "refs")

    key = _Rare["Key | None"]()
    links = _Rare[int]()
    opens = _Rare[int]()
    fd = _Rare[int]()
    fd_writable = _Rare[bool]()
    anchor = _Rare[int]()
    gone = _Rare[bool]()
    more = _Rare["list[tuple[DirNode, bytes]] | None"]()

    def __init__(
        self, ino: int, branch: int, fmt: int, parent: DirNode | None, name: bytes
    ) -> None:
        self.ino = ino
        self.branch = branch
        self.fmt = _FORMATS.get(fmt, fmt)
        self.parent = parent
        self.name = name
        self.nlink = 1
        self.refs = 0
        self.besides = _USUAL

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

    `status` holds the attributes of one that the rw branch does not have, which never change; it
    is kept packed, in a third of the memory.
    `lower` are the positions that contribute below the rw branch, top first. `listing` is
    their merged content and immutable; `scan` is the rw branch's part, kept current by the
    engine's own operations. `stamp` tells of which state of the rw branch's directory it is
    where others change that (`unionfs.union.foreign`). `final` holds the attributes of a removed
    directory.
    """

    __slots__ = ("_status", "children", "final", "inherit", "listing", "lower", "scan", "stamp")

    def __init__(
        self, ino: int, key: Key, parent: DirNode | None, name: bytes, lower: tuple[int, ...]
    ) -> None:
        super().__init__(ino, key[0], stat.S_IFDIR, parent, name)
        self.key = key
        self._status: bytes | Status | None = None
        self.lower = lower
        self.children: dict[bytes, Node] = {}
        self.listing: dict[bytes, Child] | None = None
        self.scan: DirScan | None = None
        self.stamp: tuple[int, int, int] | None = None
        self.inherit: Inherit | None = None
        self.final: Attr | None = None

    @property
    def status(self) -> Status | None:
        """A lower directory's attributes."""
        packed = self._status
        return Status(*_STATUS.unpack(packed)) if isinstance(packed, bytes) else packed

    @status.setter
    def status(self, status: Status | None) -> None:
        try:
            self._status = None if status is None else _STATUS.pack(*status)
        except struct.error:  # times after 2262, for instance
            self._status = status

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
