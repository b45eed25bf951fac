"""O_PATH directory fds: a bounded cache, and those that files without a name are held by.

Invariant: the cache never has more than `capacity` fds; the least recently used goes first,
so fds just handed out stay valid while one operation uses a few of them. However many
deleted files are in use, they cost one fd for each directory they were in.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from typing import Final

from unionfs.union.node import DirNode

__all__ = ["Anchors", "DirFds"]

_SMALLEST: Final = 16
_LARGEST: Final = 4096


class DirFds:
    """Fds by directory and branch position."""

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            capacity = _LARGEST if soft == resource.RLIM_INFINITY else soft // 4
        self.capacity = max(_SMALLEST, min(capacity, _LARGEST))
        self._fds: OrderedDict[tuple[DirNode, int], int] = OrderedDict()

    def get(self, key: tuple[DirNode, int]) -> int:
        """Return the cached fd or -1."""
        fd = self._fds.get(key, -1)
        if fd >= 0:
            self._fds.move_to_end(key)
        return fd

    def put(self, key: tuple[DirNode, int], fd: int) -> None:
        """Take over an fd."""
        self._fds[key] = fd
        if len(self._fds) > self.capacity:
            os.close(self._fds.popitem(last=False)[1])

    def drop(self, node: DirNode, position: int) -> None:
        """Close the fd of one directory, if cached."""
        fd = self._fds.pop((node, position), -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close everything."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __len__(self) -> int:
        return len(self._fds)


class Anchors:
    """Duplicates of directory fds, each shared by all who ask for the same directory."""

    def __init__(self) -> None:
        self._by_directory: dict[tuple[int, int], int] = {}
        self._users: dict[int, tuple[tuple[int, int], int]] = {}

    def hold(self, fd: int) -> int:
        """Return an fd of the same directory that stays open until `release`."""
        st = os.fstat(fd)
        directory = st.st_dev, st.st_ino
        own = self._by_directory.get(directory)
        if own is None:
            own = self._by_directory[directory] = os.dup(fd)
        _, users = self._users.get(own, (directory, 0))
        self._users[own] = directory, users + 1
        return own

    def release(self, own: int) -> None:
        """Take back one `hold`."""
        directory, users = self._users.pop(own)
        if users > 1:
            self._users[own] = directory, users - 1
        else:
            del self._by_directory[directory]
            os.close(own)
