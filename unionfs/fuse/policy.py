"""What both adapters know about answering: ids, capabilities, changes of attributes.

Invariant: ids of the kernel are translated here and nowhere else, so the pyfuse3 side
and the lane (`unionfs.fuse.lane`) cannot come to different answers.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.fuse.idmap import IdMap, map_acl
from unionfs.union import Caller, Engine

__all__ = ["ACL_PREFIX", "Policy"]

_CAPABILITY: Final = b"security.capability"
ACL_PREFIX: Final = b"system.posix_acl_"
#: How many "has no capability" answers are remembered before starting anew.
_PLAIN_LIMIT: Final = 1 << 16


class Policy:
    """Translations for one mount; `ids` are the maps of users and groups."""

    def __init__(self, ids: tuple[IdMap, IdMap]) -> None:
        self.users, self.groups = ids
        self._plain: set[int] = set()

    def caller(self, uid: int, gid: int) -> Caller:
        """Return who makes a new entry, in image ids."""
        return Caller(self.users.caller(uid), self.groups.caller(gid))

    def forget(self, inode: int) -> None:
        """Drop what is remembered of a file."""
        self._plain.discard(inode)

    def get_xattr(self, engine: Engine, inode: int, name: bytes) -> bytes:
        """Return an attribute as it is shown.

        The kernel asks for the capability before every write, hence a memory of its own.
        """
        if name == _CAPABILITY:
            return self._capability(engine, inode)
        value = engine.getxattr(inode, os.fsdecode(name))
        if name.startswith(ACL_PREFIX):
            return map_acl(value, self.users, self.groups, show=True)
        return value

    def _capability(self, engine: Engine, inode: int) -> bytes:
        if inode in self._plain:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        try:
            return engine.getxattr(inode, _CAPABILITY.decode())
        except OSError as exc:
            if exc.errno == errno.ENODATA:
                if len(self._plain) >= _PLAIN_LIMIT:
                    self._plain.clear()
                self._plain.add(inode)
            raise
