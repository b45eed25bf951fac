"""What both adapters know about answering: ids, capabilities, changes of attributes.

Invariant: ids of the kernel are translated here and nowhere else, so the pyfuse3 side
and the lane (`unionfs.fuse.lane`) cannot come to different answers. What is remembered of a file
holds until an attribute of it changes or the kernel forgets it: what is undone gets another number
while it is known.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.fuse.idmap import IdMap, map_acl
from unionfs.union import Attr, Caller, Engine, SetAttr

__all__ = ["CAPABILITY", "Policy", "setuid_dropped"]

CAPABILITY: Final = b"security.capability"
_ACL_PREFIX: Final = b"system.posix_acl_"
#: How many files are remembered before starting anew.
_LIMIT: Final = 1 << 16


def setuid_dropped(mode: int) -> int | None:
    """Return the permissions without setuid and setgid; None when there are none to drop."""
    drop = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    return stat.S_IMODE(mode & ~drop) if stat.S_ISREG(mode) and mode & drop else None


class Policy:
    """Translations for one mount; `ids` are the maps of users and groups.

    `kernel_acls`: whether the kernel enforces ACLs, and then knows how they change modes.
    """

    def __init__(self, ids: tuple[IdMap, IdMap], *, kernel_acls: bool = False) -> None:
        self.users, self.groups = ids
        self.kernel_acls = kernel_acls
        #: Files that have no capability, and those with neither setuid nor setgid to drop.
        self._plain: set[int] = set()
        self._mild: set[int] = set()

    def caller(self, uid: int, gid: int) -> Caller:
        """Return who makes a new entry, in image ids."""
        return Caller(self.users.caller(uid), self.groups.caller(gid))

    def forget(self, inode: int) -> None:
        """Drop what is remembered of a file, which is about to change or gone."""
        self._plain.discard(inode)
        self._mild.discard(inode)

    def get_xattr(self, engine: Engine, inode: int, name: bytes) -> bytes:
        """Return an attribute as it is shown.

        The kernel asks for the capability before every write, hence a memory of its own.
        """
        if name == CAPABILITY:
            return self._capability(engine, inode)
        value = engine.getxattr(inode, os.fsdecode(name))
        if name.startswith(_ACL_PREFIX):
            return map_acl(value, self.users, self.groups, show=True)
        return value

    def set_xattr(self, engine: Engine, inode: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an attribute, with `flags` as setxattr(2) has them."""
        if name.startswith(_ACL_PREFIX):
            value = map_acl(value, self.users, self.groups, show=False)
        engine.setxattr(inode, os.fsdecode(name), value, flags)
        self.forget(inode)

    def remove_xattr(self, engine: Engine, inode: int, name: bytes) -> None:
        """Remove an attribute."""
        engine.removexattr(inode, os.fsdecode(name))

    def is_foreign_acl(self, name: bytes) -> bool:
        """Tell whether an attribute is an ACL that has changed a mode behind the kernel's back."""
        return name.startswith(_ACL_PREFIX) and not self.kernel_acls

    def made(self, attr: Attr) -> None:
        """Note that a file is new: it has no capability, and the kernel is about to ask."""
        _remember(self._plain, attr.ino)
        if setuid_dropped(attr.mode) is None:
            _remember(self._mild, attr.ino)

    def drop_setuid(self, engine: Engine, inode: int) -> bool:
        """Take setuid and setgid from a file whose content changes, as the kernel does elsewhere.

        Return whether it had them (`should_drop_suidgid` in fs/attr.c: setgid with execution by
        the group, else it is a mark for mandatory locking).
        """
        if inode in self._mild:
            return False
        mode = setuid_dropped(engine.getattr(inode).mode)
        if mode is not None:
            engine.setattr(inode, SetAttr(mode=mode))
        _remember(self._mild, inode)
        return mode is not None

    def _capability(self, engine: Engine, inode: int) -> bytes:
        if inode in self._plain:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        try:
            return engine.getxattr(inode, CAPABILITY.decode())
        except OSError as exc:
            if exc.errno == errno.ENODATA:
                _remember(self._plain, inode)
            raise


def _remember(files: set[int], inode: int) -> None:
    if len(files) >= _LIMIT:
        files.clear()
    files.add(inode)
