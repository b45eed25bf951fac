"""Extraction of one layer's archive into a `LayerTree`, member by member, in archive order.

The rules are those of a sequential applier within the layer: the last member of a name wins, a
directory over a directory changes its attributes, a parent that is missing, or is not a
directory, becomes one. Whiteouts are not written here but gathered (`Markers`), because what
they mean does not depend on their place in the archive; `unionfs.store.normal` decides.

Invariant: names are cleaned as text and walked without following links, also links of the same
layer, so nothing outside the layer is read, written, linked or chmodded, whatever the archive
says; attributes that mean something to a union (`xattrs.is_hidden`) never pass from an archive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from typing import Final

import attrs

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.limits import Limits
from unionfs.archive.tarstream import TarStream
from unionfs.branch import Stack, xattrs
from unionfs.branch.override import MAX_ID
from unionfs.errors import HostileArchiveError, show
from unionfs.store.copying import copy_file, pinned, write_all
from unionfs.store.layertree import DEFAULT_ACL, SPILL, LayerTree
from unionfs.store.names import Role, clean, locate, split

__all__ = ["Extractor", "Markers"]

_TYPES: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
#: Shorter files are recorded literally: a reference costs about as much.
_KEEP_FROM: Final = 512
#: What setxattr(2) answers when the file system cannot hold an attribute of this name or size.
_NO_XATTR: Final = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENOSPC}
)
_MAX_MAJOR: Final = 2**12
_MAX_MINOR: Final = 2**20
_NS: Final = 10**9
#: Times that every file system and time_t take: 1901 to 2446, as ext4.
_MIN_TIME: Final = -(2**31) * _NS
_MAX_TIME: Final = (2**34 - 2**31) * _NS


@attrs.define
class Markers:
    """The whiteouts of a layer: paths that are hidden, directories that are opaque."""

    whiteouts: set[bytes] = attrs.field(factory=set)
    opaque: set[bytes] = attrs.field(factory=set)
    #: mtime of the newest member at or below the parent that a marker implies, ns.
    mtimes: dict[bytes, int] = attrs.field(factory=dict)


@attrs.define
class _Pseudo:
    """A file of AUFS' `.wh..wh.plnk`: its name in `spill/` and the names linked to it."""

    spilled: bytes
    number: int
    first: bytes | None = None


def _clamp(mtime_ns: int) -> int:
    return min(max(mtime_ns, _MIN_TIME), _MAX_TIME)


class Extractor:
    """Applies the members of a `TarStream` to `tree`.

    `parent` is the merged view of the layers below (None for a base): hard links may name its
    files. `run` raises `HostileArchiveError` or `OSError`; the tree then is incomplete.
    """

    def __init__(self, tree: LayerTree, parent: Stack | None, limits: Limits) -> None:
        self.tree = tree
        self.markers = Markers()
        self.entries = 0
        self.newest_ns = 0
        self._parent = parent
        self._limits = limits
        self._writer = tree.writer
        self._notes = tree.notes
        self._pseudo: dict[bytes, _Pseudo] = {}
        self._copied: dict[bytes, bytes] = {}

    def run(self, stream: TarStream) -> None:
        """Extract the whole stream."""
        for entry in stream:
            self.entries += 1
            self._apply(entry, stream)
        self._settle_pseudo()

    def locations(self) -> Mapping[int, bytes]:
        """Return the place of every kept payload, for `Recorder.finish`."""
        return self.tree.locations()

    # -- one member --------------------------------------------------------------

    def _apply(self, entry: Entry, stream: TarStream) -> None:
        path = clean(entry.name, self._limits)
        role, target = locate(path)
        mtime_ns = _clamp(entry.mtime_ns)
        self.newest_ns = max(self.newest_ns, mtime_ns)
        if role is Role.ENTRY:
            self._check(entry)
            if not path:
                self._root(entry)
            elif entry.kind is Kind.DIRECTORY:
                self._directory(path, entry)
            elif entry.kind is Kind.HARDLINK:
                self._hardlink(path, entry)
            else:
                self._file(path, entry, stream)
        elif role is Role.WHITEOUT:
            if entry.kind is not Kind.HARDLINK and (entry.kind is not Kind.FILE or entry.size):
                self._notes.add(f"{show(path)}: a whiteout should be an empty file")
            self.markers.whiteouts.add(target)
            self.markers.mtimes[target] = mtime_ns
        elif role is Role.OPAQUE:
            self.markers.opaque.add(target)
            self.markers.mtimes[target] = mtime_ns
        elif role is Role.PSEUDO_LINK and entry.kind is not Kind.HARDLINK:
            self._check(entry)
            self._pseudo_link(target, entry, stream)
        else:
            self._notes.add(f"{show(path)}: a union's housekeeping file was left out")

    def _check(self, entry: Entry) -> None:
        if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
            raise HostileArchiveError(
                f"{show(entry.name)}: owner {entry.uid}:{entry.gid} is not a possible user id"
            )
        if entry.kind in {Kind.CHAR, Kind.BLOCK}:
            major, minor = entry.rdev
            if not (0 <= major < _MAX_MAJOR and 0 <= minor < _MAX_MINOR):
                raise HostileArchiveError(
                    f"{show(entry.name)}: device number {major}:{minor} is not possible on Linux"
                )
        if _clamp(entry.mtime_ns) != entry.mtime_ns:
            self._notes.add(f"{show(entry.name)}: its time is outside of what can be stored")

    def _root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise HostileArchiveError(
                f"{show(entry.name)}: the root of the image must be a directory"
            )
        self._dress_directory(b"", entry)

    def _directory(self, path: bytes, entry: Entry) -> None:
        tree = self.tree
        mtime_ns = _clamp(entry.mtime_ns)
        if path not in tree.dirs:
            tree.make_room(path, mtime_ns)
            parent, name = split(path)
            mode = stat.S_IFDIR | stat.S_IMODE(entry.mode)
            self._writer.create(tree.dir_fd(parent), name, mode, entry.uid, entry.gid)
            tree.dirs[path] = mtime_ns
            if entry.xattrs:
                self._set_xattrs(tree.dir_fd(parent), name, entry, path)
            return
        self._dress_directory(path, entry)

    def _dress_directory(self, path: bytes, entry: Entry) -> None:
        """Give an existing directory of this layer the attributes of a member."""
        tree = self.tree
        fd = tree.dir_fd(path)
        for attribute in tree.branch.list_xattrs(fd, b"."):
            with contextlib.suppress(OSError):
                self._writer.remove_xattr(fd, b".", attribute)
        self._writer.set_owner(fd, b".", entry.uid, entry.gid)
        tree.default_acls.pop(path, None)
        self._set_xattrs(fd, b".", entry, path)
        self._writer.set_mode(fd, b".", stat.S_IMODE(entry.mode))
        tree.dirs[path] = _clamp(entry.mtime_ns)
        tree.implied.discard(path)

    def _file(self, path: bytes, entry: Entry, stream: TarStream) -> None:
        self.tree.make_room(path, _clamp(entry.mtime_ns))
        parent, name = split(path)
        number = self._create(self.tree.dir_fd(parent), name, entry, stream)
        self.tree.add_file(path, number, entry.size)

    def _create(self, dirfd: int, name: bytes, entry: Entry, stream: TarStream) -> int:
        """Make a non-directory; return the number of its recorded payload, or -1."""
        mode = _TYPES[entry.kind] | stat.S_IMODE(entry.mode)
        number = -1
        if entry.kind is Kind.FILE:
            if entry.size >= _KEEP_FROM:
                number = stream.keep()
            fd = self._writer.create_file(dirfd, name, mode, entry.uid, entry.gid)
            try:
                self._fill(fd, entry, stream)
            finally:
                os.close(fd)
        else:
            self._writer.create(
                dirfd,
                name,
                mode,
                entry.uid,
                entry.gid,
                rdev=os.makedev(*entry.rdev),
                target=entry.linkname,
            )
        # The data came first: write(2) drops capabilities, and setuid for all but root.
        if entry.xattrs:
            self._set_xattrs(dirfd, name, entry)
        if entry.size and entry.mode & (stat.S_ISUID | stat.S_ISGID):
            self._writer.set_mode(dirfd, name, stat.S_IMODE(mode))
        mtime_ns = _clamp(entry.mtime_ns)
        self._writer.set_times(dirfd, name, mtime_ns, mtime_ns)
        return number

    def _fill(self, fd: int, entry: Entry, stream: TarStream) -> None:
        end = 0
        for offset, chunk in stream.payload():
            write_all(fd, offset, chunk)
            end = offset + len(chunk)
        if end < entry.size:
            os.ftruncate(fd, entry.size)

    def _set_xattrs(
        self, dirfd: int, name: bytes, entry: Entry, directory: bytes | None = None
    ) -> None:
        for raw, value in entry.xattrs.items():
            attribute = os.fsdecode(raw)
            where = f"{show(entry.name)}: attribute {show(raw)}"
            if xattrs.is_hidden(attribute):
                self._notes.add(f"{where} was left out: it is the bookkeeping of a union")
                continue
            if attribute == DEFAULT_ACL and directory is not None:
                self.tree.default_acls[directory] = value
                continue
            try:
                self._writer.set_xattr(dirfd, name, attribute, value)
            except OSError as error:
                if error.errno not in _NO_XATTR:
                    raise
                self._notes.add(f"{where} cannot be kept here ({error.strerror})")

    # -- hard links --------------------------------------------------------------

    def _hardlink(self, path: bytes, entry: Entry) -> None:
        where = f"{show(path)}: a hard link to {show(entry.linkname)}"
        target = clean(entry.linkname, self._limits, f"{show(path)}: hard link to")
        role, key = locate(target)
        tree = self.tree
        mtime_ns = _clamp(entry.mtime_ns)
        if target == path:
            raise HostileArchiveError(f"{where}: that is itself")
        if role is Role.PSEUDO_LINK and key in self._pseudo:
            self._link_pseudo(path, self._pseudo[key], mtime_ns)
            return
        if role is not Role.ENTRY:
            raise HostileArchiveError(f"{where}, which is no file of the image but a marker")
        if target in tree.dirs:
            raise HostileArchiveError(f"{where}, which is a directory")
        copy = self._copied.get(target)
        if target not in tree.files and copy is not None and tree.copies.get(copy) == target:
            if copy == path:
                return
            target = copy
        if target not in tree.files:
            self._link_lower(path, target, mtime_ns, where)
            return
        tree.make_room(path, mtime_ns)
        if target not in tree.files:
            raise HostileArchiveError(f"{where}, which it replaces")
        self._link(path, target)

    def _link(self, path: bytes, target: bytes) -> None:
        tree = self.tree
        (from_dir, from_name), (to_dir, to_name) = split(target), split(path)
        with tree.pinned(from_dir) as from_fd:
            os.link(
                from_name,
                to_name,
                src_dir_fd=from_fd,
                dst_dir_fd=tree.dir_fd(to_dir),
                follow_symlinks=False,
            )
        tree.add_link(path, target)

    def _link_lower(self, path: bytes, target: bytes, mtime_ns: int, where: str) -> None:
        """Copy a file of the layers below: a link cannot cross layers (N10)."""
        found = None if self._parent is None else self._parent.find(target)
        if found is None:
            raise HostileArchiveError(
                f"{where}, which is neither an earlier member of this layer nor a file below it"
            )
        view, name = found
        if view.listing[name].is_dir:
            raise HostileArchiveError(f"{where}, which is a directory of a layer below")
        branch, dirfd = view.top(name)
        with pinned(dirfd) as source_fd:
            self.tree.make_room(path, mtime_ns)
            to_dir, to_name = split(path)
            st = branch.status(source_fd, name)
            to_fd = self.tree.dir_fd(to_dir)
            copy_file(branch, source_fd, name, st, self._writer, to_fd, to_name)
        self.tree.add_file(path, size=st.size if st.fmt == stat.S_IFREG else 0)
        self._copied[target] = path
        self.tree.copies[path] = target
        self._notes.add(f"{where} of a layer below was made a copy")

    # -- AUFS pseudo links -------------------------------------------------------

    def _pseudo_link(self, name: bytes, entry: Entry, stream: TarStream) -> None:
        """Keep a file of `.wh..wh.plnk` beside the layer until something links to it."""
        if entry.kind is Kind.DIRECTORY or name in self._pseudo:
            self._notes.add(f"{show(entry.name)}: a union's housekeeping file was left out")
            return
        spilled = b"plnk-%d" % len(self._pseudo)
        number = self._create(self.tree.spill_fd(), spilled, entry, stream)
        self._pseudo[name] = _Pseudo(spilled, number)

    def _link_pseudo(self, path: bytes, pseudo: _Pseudo, mtime_ns: int) -> None:
        tree = self.tree
        tree.make_room(path, mtime_ns)
        if pseudo.first in tree.files:
            self._link(path, pseudo.first)
            return
        parent, name = split(path)
        parent_fd = tree.dir_fd(parent)
        os.link(
            pseudo.spilled,
            name,
            src_dir_fd=tree.spill_fd(),
            dst_dir_fd=parent_fd,
            follow_symlinks=False,
        )
        st = tree.branch.status(parent_fd, name)
        tree.add_file(path, size=st.size if st.fmt == stat.S_IFREG else 0)
        pseudo.first = path

    def _settle_pseudo(self) -> None:
        """Drop the names in `spill/` that a file of the layer shares; keep recorded data."""
        tree = self.tree
        for pseudo in self._pseudo.values():
            st = os.stat(pseudo.spilled, dir_fd=tree.spill_fd(), follow_symlinks=False)
            if pseudo.number >= 0 and (st.st_nlink == 1 or pseudo.first not in tree.files):
                tree.spilled[pseudo.number] = SPILL + b"/" + pseudo.spilled
                continue
            os.unlink(pseudo.spilled, dir_fd=tree.spill_fd())
            if pseudo.number >= 0 and pseudo.first in tree.files:
                for path in tree.same_file(pseudo.first):
                    tree.files[path] = pseudo.number
