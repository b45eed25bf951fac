"""The normal form: one way to store a layer on which every union agrees.

What is stored depends on the set of members and on the layers below, not on the order of the
archive. Unions differ (AUFS and fuse-overlayfs hide an entry that has its own whiteout, AUFS
merges directories past a file, overlayfs trips over whiteouts in opaque directories), so none
of these cases is left on disk. The numbers N1 to N12 name the rules:

N1   a whiteout beside a non-directory of the same name goes.
N2   a whiteout beside a directory becomes an opaque marker in it.
N2b  a directory over a non-directory below gets an opaque marker.
N3   whiteouts anywhere inside an opaque directory go.
N3b  a whiteout that hides nothing below goes.
N4   an opaque marker in the root stays.
N5   a directory that only its members imply takes the attributes of the one below; one that
     only whiteouts imply is made only where they hide something.
N6   a whiteout is an empty regular file of mode 0444, whatever it was in the archive.
N7, N11, N12 (housekeeping, duplicates, impossible whiteouts) and N10 (hard links to files below)
are dealt with while extracting; N8 (names too long for a whiteout) and N9 (device 0:0) by the
branch package.

Invariant: in the result no name is both entry and whiteout, and each whiteout hides something.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from unionfs.branch import Stack, whiteout
from unionfs.errors import show
from unionfs.store.extract import Markers
from unionfs.store.layertree import DEFAULT_ACL, LayerTree
from unionfs.store.names import split

__all__ = ["normalise"]

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MARKER_MODE: Final = 0o444


class _Below:
    """What the layers below show at a path."""

    def __init__(self, stack: Stack | None) -> None:
        self.stack = stack

    def type(self, path: bytes) -> int:
        """Return the S_IF* type of the listing, 0 when there is nothing."""
        if self.stack is None:
            return 0
        if not path:
            return stat.S_IFDIR
        found = self.stack.find(path)
        if found is None:
            return 0
        view, name = found
        return view.listing[name].fmt or stat.S_IFCHR

    def is_dir(self, path: bytes) -> bool:
        return self.type(path) == stat.S_IFDIR


def normalise(tree: LayerTree, markers: Markers, parent: Stack | None) -> None:
    """Write the whiteouts of `markers` into the extracted `tree` in normal form.

    `parent` is the merged view of the layers below, None for a base layer. Also gives implied
    directories their attributes and all directories their times: nothing is written afterwards.
    """
    below = _Below(parent)
    opaque, hidden = _pairs(tree, markers, below)
    opaque |= {
        path for path in tree.dirs if path and below.type(path) not in (0, stat.S_IFDIR)
    }  # N2b
    closed = _Closed(tree, opaque, hidden)
    for path in sorted(markers.opaque):
        if path in tree.dirs:
            opaque.add(path)
        elif path not in tree.files and path not in hidden and not closed(path):
            if below.is_dir(path):
                tree.ensure_dir(path, markers.mtimes[path])
                opaque.add(path)
            else:
                tree.notes.add(f"{show(path)}: marked opaque, but there is no such directory")
    for path in sorted(hidden):
        if closed(path):
            continue  # N3
        if not below.type(path):
            tree.notes.add(f"{show(path)}: a whiteout that hides nothing was left out")
            continue  # N3b
        directory, name = split(path)
        tree.ensure_dir(directory, markers.mtimes[path])
        marker, content = whiteout.marker_for(name)
        _write_marker(tree.dir_fd(directory), marker, content)
    for path in sorted(opaque):
        _write_marker(tree.dir_fd(path), whiteout.OPAQUE, b"")
    if parent is not None:
        for path in sorted(tree.implied):
            if below.is_dir(path):
                _inherit(tree, parent, path)
    tree.finish_dirs()


def _pairs(tree: LayerTree, markers: Markers, below: _Below) -> tuple[set[bytes], set[bytes]]:
    """Return (directories that become opaque, paths still hidden) by N1 and N2."""
    opaque: set[bytes] = set()
    hidden: set[bytes] = set()
    for path in markers.whiteouts:
        if path in tree.dirs:
            if below.type(path):
                opaque.add(path)
        elif path not in tree.files:
            hidden.add(path)
    return opaque, hidden


class _Closed:
    """Tells whether something of this layer already hides all that is below at a path.

    That is: an ancestor which is opaque, hidden, or not a directory. The sets are read live.
    """

    def __init__(self, tree: LayerTree, opaque: set[bytes], hidden: set[bytes]) -> None:
        self._tree = tree
        self._opaque = opaque
        self._hidden = hidden

    def __call__(self, path: bytes) -> bool:
        while path:
            path = split(path)[0]
            if path in self._opaque or path in self._hidden or path in self._tree.files:
                return True
        return False


def _write_marker(dirfd: int, name: bytes, content: bytes) -> None:
    fd = os.open(name, _CREATE, _MARKER_MODE, dir_fd=dirfd)
    try:
        os.fchmod(fd, _MARKER_MODE)
        if content:
            os.write(fd, content)
    finally:
        os.close(fd)


def _inherit(tree: LayerTree, parent: Stack, path: bytes) -> None:
    """Give an implied directory the attributes of the directory below (N5)."""
    view = parent.view(path)
    if view is None:
        return
    position, source_fd = next(iter(view.fds.items()))
    source = parent.branches[position]
    st = source.status(source_fd, b".")
    fd = tree.dir_fd(path)
    attributes = source.all_xattrs(source_fd, b".")
    acl = attributes.pop(DEFAULT_ACL, None)
    if acl is not None:
        tree.default_acls[path] = acl
    tree.writer.set_owner(fd, b".", st.uid, st.gid)
    tree.writer.set_xattrs(fd, b".", attributes)
    tree.writer.set_mode(fd, b".", stat.S_IMODE(st.mode))
    tree.dirs[path] = st.mtime_ns
