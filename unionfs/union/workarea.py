"""The hidden directory of a rw branch in which new things are made before they appear.

Invariant: nothing in it is ever visible or needed after a crash except the journal's
intent, so everything else is swept when the branch is opened. Names are unique because
only the one engine that holds the branch's lock uses them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator

from unionfs import _sys
from unionfs.branch import Branch, whiteout

__all__ = ["JOURNAL", "WorkArea", "quiet", "remove_tree"]

_BASE = b"whiteout"
JOURNAL = b"journal"


def remove_tree(dirfd: int, name: bytes) -> None:
    """Remove an entry with everything below it, without following links."""
    try:
        os.unlink(name, dir_fd=dirfd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dirfd)
        try:
            for inner in os.listdir(fd):
                remove_tree(fd, os.fsencode(inner))
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dirfd)


class WorkArea:
    """The work directory of an open rw branch; `fd` stays open until `close`."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._counter = itertools.count()
        # A crashed engine's names may still be there while its journal is replayed.
        self._session = os.urandom(4).hex().encode()
        self._base_ready = False
        #: Modes of fallocate(2) that are known to work here.
        self._modes: set[int] = set()
        with contextlib.suppress(FileExistsError), quiet(branch.fd):
            os.mkdir(whiteout.WORK_DIR, 0o700, dir_fd=branch.fd)
        self.fd = branch.open_dir(branch.fd, whiteout.WORK_DIR)
        self.device = os.fstat(self.fd).st_dev

    def new_name(self) -> bytes:
        """Return a name that is free in the work area."""
        return b"%b.%d" % (self._session, next(self._counter))

    def sweep(self) -> None:
        """Remove every leftover but an intent."""
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
        try:
            for name in os.listdir(fd):
                if os.fsencode(name) != JOURNAL:
                    remove_tree(self.fd, os.fsencode(name))
        finally:
            os.close(fd)
        self._base_ready = False

    def close(self) -> None:
        """Sweep and remove the work area; the root directory's times stay as they are."""
        try:
            self.sweep()
        finally:
            os.close(self.fd)
        with quiet(self._branch.fd), contextlib.suppress(OSError):
            os.rmdir(whiteout.WORK_DIR, dir_fd=self._branch.fd)

    def check_allocation(self, mode: int, length: int) -> None:
        """Refuse what fallocate(2) with `mode` does not do here, or more than there is room for."""
        if mode not in self._modes:
            name = self.new_name()
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                os.unlink(name, dir_fd=self.fd)
                _sys.fallocate(fd, mode, 0, 1)
            finally:
                os.close(fd)
            self._modes.add(mode)
        free = os.fstatvfs(self.fd)
        if not mode & _sys.FALLOC_PUNCH_HOLE and length > free.f_bavail * free.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # -- markers -----------------------------------------------------------------

    def make_marker(self, dirfd: int, name: bytes, content: bytes = b"") -> None:
        """Make a whiteout or opaque marker appear at once; it may exist already.

        Markers are hard links of one empty file, as AUFS makes them: no inode each.
        """
        if content:
            temp = self.new_name()
            try:
                self._make_file(temp, content)
                os.rename(temp, name, src_dir_fd=self.fd, dst_dir_fd=dirfd)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temp, dir_fd=self.fd)
                raise
            return
        if not self._base_ready:
            self._new_base()
        try:
            self._link_base(dirfd, name)
        except OSError as exc:
            if exc.errno != errno.EMLINK:
                raise
            self._new_base()
            self._link_base(dirfd, name)

    def _link_base(self, dirfd: int, name: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.link(_BASE, name, src_dir_fd=self.fd, dst_dir_fd=dirfd)

    def _new_base(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_BASE, dir_fd=self.fd)
        self._make_file(_BASE, b"")
        self._base_ready = True

    def _make_file(self, name: bytes, content: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            os.write(fd, content)
            os.fchmod(fd, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        finally:
            os.close(fd)

    def hide(self, dirfd: int, name: bytes) -> None:
        """Make the whiteout of `name`."""
        marker, content = whiteout.marker_for(name)
        self.make_marker(dirfd, marker, content)

    @staticmethod
    def unhide(dirfd: int, name: bytes) -> None:
        """Remove the whiteout of `name`, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(whiteout.marker_for(name)[0], dir_fd=dirfd)

    def make_opaque(self, dirfd: int) -> None:
        """Make the directory hide everything below it."""
        self.make_marker(dirfd, whiteout.OPAQUE)

    @staticmethod
    def clear_opaque(dirfd: int) -> None:
        """Remove the opaque marker, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(whiteout.OPAQUE, dir_fd=dirfd)


@contextlib.contextmanager
def quiet(dirfd: int) -> Iterator[None]:
    """Restore a directory's times after changing entries that are none of its visible ones."""
    st = os.stat(b".", dir_fd=dirfd)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.utime(b".", ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=dirfd)
