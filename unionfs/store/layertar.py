"""The archive of one branch: a rw branch at commit, an old layer without a record at export.

The form is OCI's: whiteouts are empty members `.wh.NAME` (also of names whose whiteout is kept
under another name on disk), opaque directories hold the opaque marker, markers come before their
siblings, housekeeping and sockets are left out, hard links stay hard links. Given the layers
below, markers that hide nothing are left out too, so that it does not matter which union wrote
the branch, or whether it is mounted: overlayfs marks every directory that it makes over a
deleted name, AUFS some.

Invariant: the bytes are a function of what the branch presents; an archive during which anything
changed is never finished silently: `ChangedError` tells, and `Signature` finds what reading cannot.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.tarwrite import end_of_archive, member_header, padding
from unionfs.branch import Branch, DirScan, Stack, Status, whiteout
from unionfs.errors import BusyError, show
from unionfs.store.ids import DiffId

__all__ = [
    "ChangedError",
    "Signature",
    "entry_of",
    "file_data",
    "layer_diff_id",
    "layer_tar",
    "walk",
]

KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
_CHUNK: Final = 256 * 1024
#: Longest tick that kernels are built with (HZ=100), ns.
_TICK_NS: Final = 10_000_000
_MARKER_MODE: Final = 0o444
#: Labels of the host's policy say nothing about the image.
_HOST_ONLY: Final = ("security.selinux",)


class ChangedError(BusyError):
    """Something changed in a branch while it was archived."""

    def __init__(self, path: bytes) -> None:
        super().__init__(
            f"/{show(path)} changed while it was read; stop what writes to it, or unmount, and"
            " try again"
        )


class Signature:
    """A digest over names, inode numbers and change times: equal means nothing changed.

    ctime cannot be set by anybody, so a change that ends with the old mtime is seen too. But it
    has the granularity of the kernel's tick: of two changes in one tick the second may not show.
    `is_fresh` tells whether that is possible.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._ctimes: set[int] = set()
        self._oldest = time.time_ns() - _TICK_NS

    def add(self, path: bytes, st: Status) -> None:
        """Take one entry, in the order of the walk."""
        text = f"{len(path)} {st.dev} {st.ino} {st.ctime_ns} {st.mtime_ns} {st.size} {st.nlink} "
        self._hash.update(text.encode() + path)
        if st.ctime_ns >= self._oldest:
            self._ctimes.add(st.ctime_ns)

    def is_fresh(self) -> bool:
        """Tell whether an entry changed so shortly before it was read that more may follow unseen.

        Times in the future (a clock that was set back) do not count.
        """
        now = time.time_ns()
        return any(ctime <= now for ctime in self._ctimes)

    def digest(self) -> bytes:
        """Return the digest of what was added so far."""
        return self._hash.digest()

    @classmethod
    def of(cls, branch: Branch) -> bytes:
        """Return the digest of a whole branch."""
        signature = cls()
        for path, dirfd, _, st in walk(branch):
            signature.add(path, st if st is not None else branch.status(dirfd, b"."))
        return signature.digest()


#: (path, fd of its directory, name, attributes); the attributes are None for a marker, whose
#: `path` is the archive's name for it. A directory is followed by what is in it.
Step = tuple[bytes, int, bytes, Status | None]


def walk(branch: Branch) -> Iterator[Step]:
    """Yield what a branch holds: per directory the markers, then the entries, sorted."""
    stack: list[tuple[int, bytes, Iterator[bytes]]] = []
    entered: bytes | None = b""
    inner = os.dup(branch.fd)
    try:
        while True:
            if entered is not None:
                scan = branch.scan(inner)
                stack.append((inner, entered, iter(sorted(scan.entries))))
                yield from _markers(scan, inner, entered)
                entered = None
            dirfd, prefix, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                if not stack:
                    return
                continue
            path = prefix + name
            try:
                st = branch.status(dirfd, name)
                yield path, dirfd, name, st
                if st.fmt == stat.S_IFDIR:
                    inner = branch.open_dir(dirfd, name)
                    entered = path + b"/"
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ChangedError(path) from error
    finally:
        for dirfd, _, _ in stack:
            os.close(dirfd)


def _markers(scan: DirScan, dirfd: int, prefix: bytes) -> Iterator[Step]:
    if scan.opaque:
        yield prefix + whiteout.OPAQUE, dirfd, whiteout.OPAQUE, None
    for name in sorted(scan.whiteouts):
        yield prefix + whiteout.PREFIX + name, dirfd, name, None


class _Useful:
    """Tells of each marker of a walk, asked in its order, whether it hides anything below.

    The rules are those of the normal form (`unionfs.store.normal`): an opaque marker stays in
    the root and where a name is replaced, a whiteout where the name is visible.
    """

    def __init__(self, below: Stack) -> None:
        self._below = below
        #: Paths of directories, each with its final slash, in which nothing below shows.
        self._closed: list[bytes] = []

    def __call__(self, path: bytes) -> bool:
        """`path` is that of the marker in the archive."""
        directory, slash, marker = path.rpartition(b"/")
        place = directory + slash
        while self._closed and not place.startswith(self._closed[-1]):
            self._closed.pop()
        inside = bool(self._closed)
        if marker == whiteout.OPAQUE:
            self._closed.append(place)
            return not directory or (not inside and self._visible(directory))
        return not inside and self._visible(place + marker.removeprefix(whiteout.PREFIX))

    def _visible(self, path: bytes) -> bool:
        directory, _, name = path.rpartition(b"/")
        view = self._below.view(directory)
        return view is not None and name in view.listing


def entry_of(branch: Branch, dirfd: int, name: bytes, path: bytes, st: Status) -> Entry | None:
    """Return the archive member for an entry, named `path`; None for a socket.

    tar has no type for sockets (OCI image-spec, layer.md); they are not content.
    """
    kind = KINDS.get(st.fmt)
    if kind is None:
        return None
    attributes = branch.all_xattrs(dirfd, name)
    return Entry(
        name=path,
        kind=kind,
        mode=stat.S_IMODE(st.mode) if kind is not Kind.SYMLINK else 0o777,
        uid=st.uid,
        gid=st.gid,
        size=st.size if kind is Kind.FILE else 0,
        mtime_ns=st.mtime_ns,
        linkname=branch.readlink(dirfd, name) if kind is Kind.SYMLINK else b"",
        rdev=(os.major(st.rdev), os.minor(st.rdev)) if kind in _DEVICES else (0, 0),
        xattrs={
            os.fsencode(key): value for key, value in attributes.items() if key not in _HOST_ONLY
        },
    )


_DEVICES: Final = (Kind.CHAR, Kind.BLOCK)


def file_data(branch: Branch, dirfd: int, name: bytes, path: bytes, st: Status) -> Iterator[bytes]:
    """Yield the content of a regular file; `ChangedError` unless it is as `st` says throughout."""
    try:
        fd = branch.open_file(dirfd, name, os.O_RDONLY)
    except FileNotFoundError as error:
        raise ChangedError(path) from error
    try:
        expected = (st.ino, st.size, st.mtime_ns, st.ctime_ns)
        left = st.size
        while left:
            data = os.read(fd, min(left, _CHUNK))
            if not data:
                raise ChangedError(path)
            left -= len(data)
            yield data
        after = os.fstat(fd)
        if (after.st_ino, after.st_size, after.st_mtime_ns, after.st_ctime_ns) != expected:
            raise ChangedError(path)
    finally:
        os.close(fd)


def layer_tar(
    branch: Branch, *, root: bool, signature: Signature | None = None, below: Stack | None = None
) -> Iterator[bytes]:
    """Yield the archive of a branch; with `root` the member `./` carries the root's attributes.

    `signature` takes all that was read, for comparison with `Signature.of` afterwards. Markers
    that hide nothing in the view `below` are left out (None: all are kept).
    """
    useful = None if below is None else _Useful(below)
    first: dict[tuple[int, int], bytes] = {}
    if root:
        member = entry_of(branch, branch.fd, b".", b"./", branch.status(branch.fd, b"."))
        if member is not None:
            yield member_header(member)
    for path, dirfd, name, st in walk(branch):
        if signature is not None:
            signature.add(path, st if st is not None else branch.status(dirfd, b"."))
        if st is None:
            if useful is None or useful(path):
                yield member_header(Entry(name=path, kind=Kind.FILE, mode=_MARKER_MODE))
            continue
        if st.fmt == stat.S_IFSOCK:
            continue  # before hard links: a second name has nothing to link to
        key = (st.dev, st.ino)
        if st.fmt != stat.S_IFDIR and st.nlink > 1 and first.setdefault(key, path) != path:
            link = Entry(
                name=path,
                kind=Kind.HARDLINK,
                mode=stat.S_IMODE(st.mode),
                uid=st.uid,
                gid=st.gid,
                mtime_ns=st.mtime_ns,
                linkname=first[key],
            )
            yield member_header(link)
            continue
        member = entry_of(branch, dirfd, name, path, st)
        if member is None:
            continue
        yield member_header(member)
        if member.kind is Kind.FILE:
            yield from file_data(branch, dirfd, name, path, st)
            yield padding(member.size)
    yield end_of_archive()


def layer_diff_id(path: bytes) -> DiffId:
    """Return the digest of the archive that `layer_tar` makes of a stored layer without a record.

    Early Docker kept `layer/` at mode 0700 for its own protection, which says nothing about `/` of
    the image, so there is no member for the root.
    """
    digest = hashlib.sha256()
    with Branch.open(path) as branch:
        for chunk in layer_tar(branch, root=False):
            digest.update(chunk)
    return DiffId(f"sha256:{digest.hexdigest()}")
