"""A layer directory from one whiteout dialect into another, as a verified copy.

Entries are copied as they lie on disk (owners, modes, times, xattrs, hard links, stand-ins); only
markers are spelled anew. Where the AUFS form says something that overlayfs trips over, the copy
says the same in a way it understands: an entry beside its own whiteout becomes an opaque
directory or stands alone, whiteouts inside opaque directories go.

Invariant: the result appears complete or not at all (staged beside its place, verified, then
renamed), and over any layers below it shows what the original shows by the letter of OCI.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from typing import Final

import attrs

from unionfs import _sys
from unionfs.branch import Branch, Dialect, DirScan, whiteout
from unionfs.branch.branch import proc_path
from unionfs.errors import ConflictError, NotFoundError, UnionfsError, UnsupportedError, show
from unionfs.insight.aspects import Place, differences
from unionfs.insight.exclusive import exclusive
from unionfs.insight.model import Tree
from unionfs.insight.probe import join
from unionfs.insight.shipped import Item, Shipped, read_branch
from unionfs.insight.where import NamedBranch
from unionfs.store._fs import remove_tree

__all__ = ["ELSEWHERE", "OVERLAY_PREFIXES", "Converted", "check_trees", "convert", "verify"]

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MARKER_MODE: Final = 0o444
OVERLAY_PREFIXES: Final = ("trusted.overlay.", "user.overlay.")
#: Attributes with which overlayfs keeps data elsewhere: such a layer is not complete in itself.
ELSEWHERE: Final = ("redirect", "metacopy")
_PROBE: Final = b"\x01probe"


@attrs.frozen
class Converted:
    """What was done: where the result lies, and how many entries and markers it has.

    `implied` directories were missing in an archive and had to be made, with mode 0755 of root.
    """

    path: bytes
    entries: int
    whiteouts: int
    opaque: int
    implied: int = 0


def convert(
    source: bytes, origin: Dialect, target: Dialect, output: bytes | None = None
) -> Converted:
    """Convert the layer at `source` into a new directory `output`, or in place when that is None.

    Raises `NotFoundError`, `ConflictError` (`output` exists, or an entry cannot exist in the
    target dialect), `UnsupportedError` (not without more rights, or a tree that overlayfs
    spread over several places), `UnionfsError` when the verification fails, `OSError`.
    """
    source = os.path.abspath(source)
    if not os.path.isdir(source):
        raise NotFoundError(f"{show(source)} is not a directory")
    place = source if output is None else os.path.abspath(output)
    if output is not None and os.path.lexists(place):
        raise ConflictError(f"{show(place)} exists; choose a new name")
    if (place + b"/").startswith(source + b"/") and output is not None:
        raise ConflictError(f"{show(place)} lies inside the layer")
    parent, name = os.path.split(place)
    staged = b".%b.%b" % (name, secrets.token_hex(4).encode())
    stack = contextlib.ExitStack()
    parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if output is None:
            stack.enter_context(exclusive(source))
        os.mkdir(staged, 0o700, dir_fd=parent_fd)
        try:
            result = _Copy(source, origin, target, os.path.join(parent, staged)).run()
            verify(source, origin, os.path.join(parent, staged), target)
            with contextlib.suppress(OSError):
                _sys.syncfs(parent_fd)
            if output is None:
                _sys.renameat2(parent_fd, staged, parent_fd, name, _sys.RENAME_EXCHANGE)
            else:
                _sys.renameat2(parent_fd, staged, parent_fd, name, _sys.RENAME_NOREPLACE)
                staged = b""
        finally:
            if staged:  # in place: now the original
                remove_tree(staged, parent_fd)
    finally:
        os.close(parent_fd)
        stack.close()
    return attrs.evolve(result, path=place)


class _Copy:
    """Copies one tree."""

    def __init__(self, source: bytes, origin: Dialect, target: Dialect, place: bytes) -> None:
        self._source = source
        self._origin = origin
        self._target = target
        self._place = place
        self._links: dict[tuple[int, int], bytes] = {}
        self._counts = [0, 0, 0]

    def run(self) -> Converted:
        with Branch.open(self._source, self._origin) as source, Branch.open(self._place) as target:
            # Directories are finished last, deepest first: writing in them changes their times.
            done: list[bytes] = []
            pending = [(b"", False)]
            while pending:
                path, covered = pending.pop()
                done.append(path)
                pending += self._directory(source, target, path, covered=covered)
            for path in reversed(done):
                old, new = source.open_path(path), target.open_path(path)
                try:
                    self._attributes(old, b".", new, b".")
                finally:
                    os.close(old)
                    os.close(new)
        return Converted(self._place, *self._counts)

    def _directory(
        self, source: Branch, target: Branch, path: bytes, *, covered: bool
    ) -> list[tuple[bytes, bool]]:
        old, new = source.open_path(path), target.open_path(path)
        try:
            self._refuse_reserved(old, path)
            scan = source.scan(old)
            inner = self._entries(target, path, old, new, scan)
            self._markers(new, scan, covered=covered)
        finally:
            os.close(old)
            os.close(new)
        hidden = covered or scan.opaque
        return [(child, hidden or child.rpartition(b"/")[2] in scan.whiteouts) for child in inner]

    def _entries(
        self, target: Branch, path: bytes, old: int, new: int, scan: DirScan
    ) -> list[bytes]:
        inner = []
        for name in sorted(scan.entries):
            child = join(path, name)
            st = os.stat(name, dir_fd=old, follow_symlinks=False)
            self._check(old, name, child, st)
            self._counts[0] += 1
            if stat.S_ISDIR(st.st_mode):
                os.mkdir(name, 0o700, dir_fd=new)
                if name in scan.whiteouts:
                    fd = target.open_dir(new, name)
                    try:
                        self._mark_opaque(fd)
                    finally:
                        os.close(fd)
                inner.append(child)
                continue
            self._file(target, old, new, name, child, st)
        return inner

    def _refuse_reserved(self, old: int, path: bytes) -> None:
        """Refuse files that overlayfs let somebody make and that no other dialect can hold."""
        if self._origin is Dialect.AUFS:
            return
        for raw in os.listdir(b"/proc/self/fd/%d" % old):
            if whiteout.is_reserved(os.fsencode(raw)):
                shown = show(os.path.join(self._source, path, os.fsencode(raw)))
                raise ConflictError(f"{shown}: a file of that name is a marker in AUFS form")

    def _check(self, old: int, name: bytes, child: bytes, st: os.stat_result) -> None:
        """Refuse what the target dialect would take for something else."""
        shown = show(os.path.join(self._source, child))
        if self._target is not Dialect.AUFS and stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
            raise ConflictError(f"{shown} is a device 0/0, which overlayfs takes for a whiteout")
        for attribute in _xattrs(old, name):
            if attribute.startswith(OVERLAY_PREFIXES) and attribute.endswith(ELSEWHERE):
                raise UnsupportedError(
                    f"{shown} was written by overlayfs with {attribute}; its data is not all here"
                )

    def _file(
        self, target: Branch, old: int, new: int, name: bytes, child: bytes, st: os.stat_result
    ) -> None:
        first = self._links.get((st.st_dev, st.st_ino)) if st.st_nlink > 1 else None
        if first is not None:
            parent, _, other = first.rpartition(b"/")
            fd = target.open_path(parent)
            try:
                os.link(other, name, src_dir_fd=fd, dst_dir_fd=new, follow_symlinks=False)
            finally:
                os.close(fd)
            return
        self._links[st.st_dev, st.st_ino] = child
        if stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(name, dir_fd=old), name, dir_fd=new)
        elif stat.S_ISREG(st.st_mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with (
                open(os.open(name, flags, dir_fd=old), "rb") as reader,
                open(os.open(name, _CREATE, 0o600, dir_fd=new), "wb") as writer,
            ):
                shutil.copyfileobj(reader, writer, 1 << 20)
        else:
            os.mknod(name, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=new)
        self._attributes(old, name, new, name)

    @staticmethod
    def _attributes(old: int, old_name: bytes, new: int, new_name: bytes) -> None:
        """Copy owner, xattrs, mode and times; not what overlayfs keeps for itself."""
        st = os.stat(old_name, dir_fd=old, follow_symlinks=False)
        now = os.stat(new_name, dir_fd=new, follow_symlinks=False)
        if (now.st_uid, now.st_gid) != (st.st_uid, st.st_gid):
            os.chown(new_name, st.st_uid, st.st_gid, dir_fd=new, follow_symlinks=False)
        for attribute in _xattrs(old, old_name):
            if not attribute.startswith(OVERLAY_PREFIXES):
                value = os.getxattr(proc_path(old, old_name), attribute, follow_symlinks=False)
                os.setxattr(proc_path(new, new_name), attribute, value, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(proc_path(new, new_name), stat.S_IMODE(st.st_mode))
        times = (st.st_atime_ns, st.st_mtime_ns)
        os.utime(new_name, ns=times, dir_fd=new, follow_symlinks=False)

    # -- markers -----------------------------------------------------------------

    def _markers(self, new: int, scan: DirScan, *, covered: bool) -> None:
        if scan.opaque:
            self._mark_opaque(new)
        if covered or scan.opaque:
            return
        for name in sorted(scan.whiteouts - scan.entries.keys()):
            self._counts[1] += 1
            if self._target is Dialect.AUFS:
                marker, content = whiteout.marker_for(name)
                self._marker_file(new, marker, content)
                continue
            try:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=new)
            except PermissionError as error:
                raise UnsupportedError(
                    "the device files that are overlayfs's whiteouts cannot be made here; try as"
                    " root or in a user namespace"
                ) from error

    def _mark_opaque(self, fd: int) -> None:
        self._counts[2] += 1
        attribute = whiteout.opaque_xattr(self._target)
        if attribute is None:
            with contextlib.suppress(FileExistsError):
                self._marker_file(fd, whiteout.OPAQUE, b"")
            return
        try:
            os.setxattr(proc_path(fd, b"."), attribute, b"y")
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
            raise UnsupportedError(
                f"{attribute} cannot be set here ({error.strerror}); overlay-userxattr may work"
            ) from error

    @staticmethod
    def _marker_file(fd: int, name: bytes, content: bytes) -> None:
        file = os.open(name, _CREATE, _MARKER_MODE, dir_fd=fd)
        try:
            os.fchmod(file, _MARKER_MODE)
            os.write(file, content)
        finally:
            os.close(file)


def _xattrs(fd: int, name: bytes) -> list[str]:
    try:
        return os.listxattr(proc_path(fd, name), follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


# -- proof -------------------------------------------------------------------------


def verify(first: bytes, one: Dialect, second: bytes, two: Dialect) -> None:
    """Check that two layers show the same over anything below; `UnionfsError` if they do not.

    Over a layer that has a file at every hidden path and one more in every directory, both must
    give the same merged tree; and every entry must be equal in attributes and content.
    """
    left, right = read_branch(_named(first, one)), read_branch(_named(second, two))
    check_trees(left, right)
    with Branch.open(first, one) as old, Branch.open(second, two) as new:
        for path in left.entries:
            parent, _, name = path.rpartition(b"/")
            old_fd, new_fd = old.open_path(parent), new.open_path(parent)
            try:
                found = differences(
                    Place(old, old_fd, name or b"."), Place(new, new_fd, name or b".")
                )
            finally:
                os.close(old_fd)
                os.close(new_fd)
            if found:
                raise UnionfsError(f"the copy of {show(b'/' + path)} differs in {found[0]}")


def check_trees(left: Shipped, right: Shipped) -> None:
    """Check that two layers give the same merged tree over a layer that has something everywhere.

    Raises `UnionfsError` with the first path that differs.
    """
    below = _probe_layer(left, right)
    trees = []
    for shipped in (left, right):
        tree = Tree()
        tree.apply(below)
        tree.apply(shipped)
        trees.append({path: (node.item.fmt, node.layer) for path, node in tree.walk()})
    if trees[0] != trees[1]:
        path = min(path for path in trees[0] | trees[1] if trees[0].get(path) != trees[1].get(path))
        raise UnionfsError(f"the converted layer would show {show(b'/' + path)} otherwise")


def _named(path: bytes, dialect: Dialect) -> NamedBranch:
    return NamedBranch(2, path, dialect=dialect)


def _probe_layer(left: Shipped, right: Shipped) -> Shipped:
    """Return a layer below in which something lies at every place that a marker may hide."""
    paths: set[bytes] = set()
    for shipped in (left, right):
        paths |= shipped.whiteouts.keys()
        paths |= {join(path, _PROBE) for path in shipped.opaque}
        for path, item in shipped.entries.items():
            if item.fmt == stat.S_IFDIR:
                paths.add(join(path, _PROBE))
    dirs = {path.rpartition(b"/")[0] for path in paths}
    items = [Item(path, stat.S_IFREG) for path in sorted(paths) if path not in dirs]
    return Shipped(NamedBranch(1, b""), items)
