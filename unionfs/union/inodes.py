"""Inode numbers and the table of live nodes.

Invariant: at any time one number means one live node and one backing object one
node. (A layer's file with one link and a name has no entry by backing file: nothing else leads
to it.) Numbers follow from the backing file alone, so they survive forget and remount:
the original's st_ino, plus the index of its device above bit 48 when the branches are
on several devices. A copied-up file keeps its original's number in an xattr.
A number that is taken by something else gives way to a synthetic one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable
from typing import Final

from unionfs.branch import Status, Writer
from unionfs.branch.branch import proc_path
from unionfs.union.node import Key, Node

__all__ = ["ROOT_INO", "Inodes", "keep_number", "read_number"]

ROOT_INO: Final = 1
_DEVICE_SHIFT: Final = 48
_SYNTHETIC: Final = 1 << 62
_MAX: Final = 1 << 63


class Inodes:
    """Live nodes by number and, where another name may lead to it, by backing file."""

    def __init__(self, devices: Iterable[int]) -> None:
        self._devices: dict[int, int] = {}
        self._same: dict[int, int] = {}
        for device in devices:
            self._devices.setdefault(device, len(self._devices))
        self._synthetic = itertools.count(_SYNTHETIC)
        self.by_ino: dict[int, Node] = {}
        self.by_key: dict[Key, Node] = {}

    def key(self, position: int, status: Status) -> Key:
        """Return the identity of a backing file; the device number is one object for all."""
        return position, self._same.setdefault(status.dev, status.dev), status.ino

    def number(self, dev: int, st_ino: int, recorded: int | None = None) -> int:
        """Return a free number for a backing file, its own one if possible."""
        if recorded is not None and ROOT_INO < recorded < _MAX:
            wanted = recorded
        else:
            index = self._devices.setdefault(dev, len(self._devices))
            # The same object, of which a key may have another reference.
            wanted = st_ino | (index << _DEVICE_SHIFT) if index else st_ino
        while wanted in self.by_ino or wanted == ROOT_INO:
            wanted = next(self._synthetic)
        return wanted

    @staticmethod
    def is_synthetic(ino: int) -> bool:
        """Tell whether a number does not follow from the backing file."""
        return ino >= _SYNTHETIC

    def add(self, node: Node) -> None:
        """Enter a node that has a free number."""
        self.by_ino[node.ino] = node
        if node.key is not None:
            self.by_key[node.key] = node

    def rekey(self, node: Node, key: Key) -> None:
        """Follow a node to another backing file."""
        self.forget_key(node)
        node.key = key
        self.by_key[key] = node

    def forget_key(self, node: Node) -> None:
        """Let the backing file's identity be used by others: it does not exist any more."""
        if node.key is not None and self.by_key.get(node.key) is node:
            del self.by_key[node.key]

    def compact(self) -> None:
        """Make the tables as small as what is left in them: a dict that loses keys stays large."""
        self.by_ino = dict(self.by_ino)
        self.by_key = dict(self.by_key)

    def drop(self, node: Node) -> None:
        """Remove a node that nothing refers to."""
        del self.by_ino[node.ino]
        self.forget_key(node)


def keep_number(attribute: str, dirfd: int, name: bytes, ino: int) -> None:
    """Keep a number on its file; one that cannot hold it may change by the next mount."""
    with contextlib.suppress(OSError):
        os.setxattr(proc_path(dirfd, name), attribute, b"%d" % ino, follow_symlinks=False)


def read_number(
    writer: Writer, attribute: str, dirfd: int, name: bytes, status: Status
) -> int | None:
    """Return the number that a file of the rw branch keeps, or None."""
    can_hold = status.placeholder or status.fmt in (stat.S_IFREG, stat.S_IFDIR)
    if not (writer.native or can_hold):
        return None
    try:
        value = os.getxattr(proc_path(dirfd, name), attribute, follow_symlinks=False)
    except OSError:
        return None
    return int(value) if value.isdigit() else None
