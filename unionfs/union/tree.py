"""The union as a tree of nodes: finding names, listing directories, reading attributes.

A directory is listed once per branch: its lower branches give an immutable merged
listing, the rw branch a scan that our own operations keep current. Finding a name in a
listed directory is a few dict probes, whatever the number of layers, and one stat.

Invariant: `scan` and `listing` of a directory say the same as the disk does after every
operation, so dropping them loses nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence

from unionfs.branch import Branch, Child, DirScan, Status, Writer, merge, whiteout, xattrs
from unionfs.union.dirfds import Anchors, DirFds
from unionfs.union.inodes import ROOT_INO, Inodes, keep_number, read_number
from unionfs.union.node import UPPER, DirNode, Key, Node
from unionfs.union.options import Attr, EngineOptions, Stats

__all__ = ["Tree", "error"]

_LEGACY_ROOT = 0o700
#: Makes a named tuple in half of the time that its class takes.
_new = tuple.__new__


def error(code: int, name: bytes = b"") -> OSError:
    """Return the OSError of an errno."""
    return OSError(code, os.strerror(code), name) if name else OSError(code, os.strerror(code))


class Tree:
    """Live nodes of the union and what they know of the branches.

    `branches[0]` is the rw branch; without one it is a filler that no node refers to.
    """

    #: Whether a known child is right without a look at the branches.
    trusts_children = True

    def __init__(
        self,
        lowers: Sequence[Branch],
        upper: Branch | None,
        writer: Writer | None,
        options: EngineOptions,
    ) -> None:
        self.branches: list[Branch] = [upper if upper is not None else lowers[0], *lowers]
        self.upper = upper
        self.writer = writer
        #: The attribute that keeps an original's number on a copy.
        self.ino_xattr = (
            xattrs.INO_NATIVE if writer is not None and writer.native else xattrs.INO_OVERRIDE
        )
        self.options = options
        self.stats = Stats()
        #: How many entries each branch has given, by position.
        self.loads = [0] * (len(lowers) + 1)
        self.fds = DirFds(options.dir_fds)
        self.anchors = Anchors()
        order = [branch.device for branch in reversed(self.branches)]
        self.inodes = Inodes(order)
        self.work_fd = -1
        self.count_links: Callable[[Node], int] | None = None
        position = UPPER if upper is not None else UPPER + 1
        st = os.stat(b".", dir_fd=self.branches[position].fd)
        lower = tuple(range(UPPER + 1, len(self.branches)))
        self.root = DirNode(ROOT_INO, (position, st.st_dev, st.st_ino), None, b".", lower)
        self.inodes.add(self.root)

    def close(self) -> None:
        """Release every fd of nodes and directories."""
        for node in self.inodes.by_ino.values():
            self._close_node(node)
        self.fds.close()

    # -- nodes -------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        """Return a live node; ESTALE when the caller's number is not one."""
        node = self.inodes.by_ino.get(ino)
        if node is None:
            raise error(errno.ESTALE)
        return node

    def dir(self, ino: int) -> DirNode:
        """Return a live directory; ENOTDIR for anything else."""
        node = self.node(ino)
        if not isinstance(node, DirNode):
            raise error(errno.ENOTDIR)
        return node

    def release(self, node: Node) -> None:
        """Drop a node, and then its parents, as far as nothing refers to them."""
        current: Node | None = node
        while current is not None and current.idle and self._is_live(current):
            parent = current.parent
            for directory, name in current.names():
                if directory.children.get(name) is current:
                    del directory.children[name]
            self._close_node(current)
            if isinstance(current, DirNode):
                for position in (UPPER, *current.lower):
                    self.fds.drop(current, position)
            self.inodes.drop(current)
            for directory, _ in current.more or ():
                if directory is not parent:
                    self.release(directory)
            current = parent

    def _is_live(self, node: Node) -> bool:
        return self.inodes.by_ino.get(node.ino) is node

    def _close_node(self, node: Node) -> None:
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1
        self.release_anchor(node)

    def release_anchor(self, node: Node) -> None:
        """Let a file go that was held without a name."""
        if node.anchor >= 0:
            if node.anchor != self.work_fd:
                self.anchors.release(node.anchor)
            else:
                os.unlink(node.name, dir_fd=self.work_fd)
            node.anchor = -1

    # -- places ------------------------------------------------------------------

    def fd(self, node: DirNode, position: int) -> int:
        """Return an O_PATH fd of a directory in one branch, valid for the current operation."""
        fd = self.fds.get((node, position))
        if fd >= 0:
            return fd
        missing: list[DirNode] = []
        current = node
        while fd < 0:
            parent = current.parent
            if parent is None:
                fd = self.branches[position].fd
                break
            if current.gone:
                raise error(errno.ENOENT, current.name)
            missing.append(current)
            current = parent
            fd = self.fds.get((current, position))
        branch = self.branches[position]
        for inner in reversed(missing):
            fd = branch.open_dir(fd, inner.name)
            self.fds.put((inner, position), fd)
        return fd

    def place(self, node: Node) -> tuple[Branch, int, bytes]:
        """Return branch, directory fd and name of the file that backs a node."""
        branch = self.branches[node.branch]
        if node.anchor >= 0:
            return branch, node.anchor, node.name
        if isinstance(node, DirNode):
            return branch, self.fd(node, node.branch), b"."
        if node.gone or node.parent is None:
            raise error(errno.ESTALE)
        return branch, self.fd(node.parent, node.branch), node.name

    def path(self, node: DirNode) -> bytes:
        """Return the directory's path relative to the root, which is empty itself."""
        names: list[bytes] = []
        current = node
        while current.parent is not None:
            names.append(current.name)
            current = current.parent
        return b"/".join(reversed(names))

    # -- directories -------------------------------------------------------------

    def scan(self, node: DirNode) -> DirScan:
        """Return the rw branch's part of a directory."""
        scan = node.scan
        if scan is None:
            if node.upper and not node.gone:
                self.stats.scans += 1
                scan = self.branches[UPPER].scan(self.fd(node, UPPER))
                if scan.opaque:
                    self.cut(node)
            else:
                scan = DirScan()
            node.scan = scan
        return scan

    def cut(self, node: DirNode) -> None:
        """Forget a directory's lower branches: the rw branch alone gives it from now on."""
        for position in node.lower:
            self.fds.drop(node, position)
        node.lower = ()
        node.listing = {}

    def lower_fmt(self, node: DirNode, name: bytes) -> int | None:
        """Return the type of what the lower branches have at a name, hidden or not."""
        child = self.below(node, self.scan(node)).get(name)
        return None if child is None else child.fmt

    def below(self, node: DirNode, scan: DirScan) -> dict[bytes, Child]:
        """Return what the lower branches give of a directory whose `scan` is that."""
        del scan  # an opaque one has cut them off already
        if node.listing is None:
            self._list_lower(node)
        return node.listing or {}

    def _list_lower(self, node: DirNode) -> None:
        scans = []
        for position in node.lower:
            scan = self.branches[position].scan(self.fd(node, position))
            self.stats.scans += 1
            scans.append((position, scan))
            if scan.opaque:
                break
        node.listing = merge(scans)

    def names(self, node: DirNode) -> list[bytes]:
        """Return every visible name of a directory."""
        scan = self.scan(node)
        listing = self.below(node, scan)
        if not scan.entries and not scan.whiteouts:
            return list(listing)
        entries, hidden = scan.entries, scan.whiteouts
        below = [name for name in listing if name not in entries and name not in hidden]
        return [*entries, *below]

    def is_empty(self, node: DirNode) -> bool:
        """Tell whether a directory has no visible name."""
        return not self.names(node)

    def has(self, node: DirNode, name: bytes) -> bool:
        """Tell whether a name is visible, without looking at the entry."""
        if name in node.children:
            return True
        scan = self.scan(node)
        if name in scan.entries:
            return True
        return name not in scan.whiteouts and self.lower_fmt(node, name) is not None

    def find(self, node: DirNode, name: bytes) -> Node | None:
        """Return the node of a visible name, made if need be, or None."""
        found = self.look(node, name)
        return None if found is None else found[0]

    def look(self, node: DirNode, name: bytes) -> tuple[Node, Status | None] | None:
        """Do as `find`; return the backing file's status as well if it had to be read."""
        found = node.children.get(name)
        if found is not None:
            return found, None
        if node.gone or (whiteout.is_reserved(name) and not self.options.show_markers):
            return None
        scan = self.scan(node)
        hidden = name in scan.whiteouts
        if name in scan.entries:
            # A whiteout beside the entry: it hides what is below (see branch.merge).
            lower = self.lower_dirs(node, name) if not hidden else ()
            return self.meet(self.fd(node, UPPER), node, name, UPPER, lower)
        if hidden:
            return None
        child = self.below(node, scan).get(name)
        if child is None:
            return None
        position = child.branches[0]
        return self.meet(self.fd(node, position), node, name, position, child.branches)

    def need(self, node: DirNode, name: bytes) -> Node:
        """Return the node of a visible name; ENOENT without one, ENAMETOOLONG for a long name.

        A layer may have names that are too long to be made in the union.
        """
        return self._need(node, name)[0]

    def need_attr(self, node: DirNode, name: bytes) -> tuple[Node, Attr]:
        """Do as `need`; return the attributes as well."""
        found, status = self._need(node, name)
        return found, self.attr(found, status)

    def _need(self, node: DirNode, name: bytes) -> tuple[Node, Status | None]:
        found = self.look(node, name) if len(name) <= whiteout.NAME_MAX else None
        if found is None:
            code = errno.ENOENT if len(name) <= whiteout.MAX_NAME else errno.ENAMETOOLONG
            raise error(code, name)
        return found

    def lower_dirs(self, node: DirNode, name: bytes) -> tuple[int, ...]:
        """Return the branches that have a directory below the rw branch's of that name."""
        child = self.below(node, self.scan(node)).get(name)
        return child.branches if child is not None and child.is_dir else ()

    def meet(
        self, fd: int, parent: DirNode, name: bytes, position: int, lower: tuple[int, ...]
    ) -> tuple[Node, Status]:
        """Make (or meet again) the node of an entry of one branch; return its status as well.

        `fd` is the directory's in that branch.
        """
        status = self.branches[position].status(fd, name)
        self.loads[position] += 1
        known = self.inodes.by_key.get(self.inodes.key(position, status))
        if known is not None and not known.is_dir:
            self.attach(known, parent, name)
            return known, status
        recorded = None
        if position == UPPER and self.writer is not None:
            recorded = read_number(self.writer, self.ino_xattr, fd, name, status)
        node = self.enter(parent, name, position, status, lower, recorded)
        if position != UPPER and node.nlink > 1 and self.count_links is not None:
            node.nlink = self.count_links(node)
        return node, status

    def enter(
        self,
        parent: DirNode,
        name: bytes,
        position: int,
        status: Status,
        lower: tuple[int, ...] = (),
        recorded: int | None = None,
    ) -> Node:
        """Make the node of an entry whose attributes are known."""
        ino = self.inodes.number(status.dev, status.ino, recorded)
        fmt = status.fmt
        node: Node
        if fmt == stat.S_IFDIR:
            node = inner = DirNode(ino, self.inodes.key(position, status), parent, name, lower)
            if position != UPPER:
                inner.status = status
        else:
            node = Node(ino, position, fmt, parent, name)
            # Without trust in children a directory may be made anew over files that are in use.
            if position == UPPER or status.nlink > 1 or not self.trusts_children:
                node.nlink = status.nlink
                node.links = status.nlink if position != UPPER else 1
                node.key = self.inodes.key(position, status)
        if (
            position == UPPER
            and self.writer is not None
            and self.inodes.is_synthetic(ino)
            and ino != recorded
        ):
            keep_number(self.ino_xattr, self.fd(parent, UPPER), name, ino)
        self.inodes.add(node)
        parent.children[name] = node
        return node

    def attach(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Give a node one more name, or its first one back."""
        parent.children[name] = node
        if node.gone or node.parent is None:
            self.release_anchor(node)
            node.gone = False
            node.nlink = node.nlink or 1
            node.parent, node.name = parent, name
        else:
            if node.more is None:
                node.more = []
            node.more.append((parent, name))

    def detach(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Take one name from a node; without another known one it is `gone`.

        A layer's file that is in use stays where it is, under the same number if the name should
        come back.
        """
        if parent.children.get(name) is node:
            del parent.children[name]
        if node.parent is parent and node.name == name and not node.gone:
            if node.more:
                node.parent, node.name = node.more.pop()
            else:
                self.anchor(node, parent)
                node.gone = True
        elif node.more:
            node.more.remove((parent, name))

    def anchor(self, node: Node, parent: DirNode) -> None:
        """Have a layer's file that is in use found without its name in the union."""
        if node.branch == UPPER or node.is_dir or node.idle or node.anchor >= 0:
            return
        with contextlib.suppress(OSError):  # then it is stale for those who know it
            node.anchor = self.anchors.hold(self.fd(parent, node.branch))
            self.identify(node)

    def identify(self, node: Node) -> Key:
        """Return the identity of a node's backing file, by which it can be met from now on."""
        key = node.key
        if key is None:
            key = node.key = self.inodes.key(node.branch, self.status(node))
            self.inodes.by_key[key] = node
        return key

    # -- attributes --------------------------------------------------------------

    def attr(self, node: Node, status: Status | None = None) -> Attr:
        """Return a node's attributes: one stat, or none for a directory of a layer.

        `status` is that of the backing file, if it has just been read.
        """
        if isinstance(node, DirNode) and node.final is not None:
            return node.final
        return self.present(node, self.status(node) if status is None else status)

    def status(self, node: Node) -> Status:
        """Return the attributes of a node's backing file."""
        if isinstance(node, DirNode) and node.status is not None:
            return node.status
        branch, fd, name = self.place(node)
        return branch.status(fd, name)

    def present(self, node: Node, status: Status) -> Attr:
        """Return what stat(2) shows for a node with this status of its backing file.

        A directory that several branches give has 1 link: "unknown" to find(1) and others.
        """
        mode, uid, gid, rdev, size, nlink, _, _, atime_ns, mtime_ns, ctime_ns, blocks, _ = status
        if not isinstance(node, DirNode):
            nlink = node.nlink
        elif node.merged or node.parent is None:
            nlink = 1
            if node.parent is None and node.branch != UPPER:
                mode = self.root_mode(mode)
        times = atime_ns, mtime_ns, ctime_ns
        return _new(Attr, (node.ino, mode, nlink, uid, gid, rdev, size, blocks, *times))

    def root_mode(self, mode: int) -> int:
        """Return a layer root's mode, with the fallback for old stores."""
        fallback = self.options.root_mode_fallback
        if fallback is not None and stat.S_IMODE(mode) == _LEGACY_ROOT:
            return stat.S_IFMT(mode) | fallback
        return mode
