"""Read a merged stack of branches as `support.rows` reads a directory."""

from __future__ import annotations

import os
import stat

from support.rows import Node
from unionfs.branch import Stack

__all__ = ["stack_tree"]


def stack_tree(stack: Stack) -> dict[bytes, Node]:
    """Return what the merged view shows, without its root."""
    found: dict[bytes, Node] = {}
    for path, view, name in stack.walk():
        branch, dirfd = view.top(name)
        st = branch.status(dirfd, name)
        if st.fmt == stat.S_IFDIR:
            found[path] = ("d", b"%o" % stat.S_IMODE(st.mode))
        elif st.fmt == stat.S_IFLNK:
            found[path] = ("l", branch.readlink(dirfd, name))
        elif st.fmt == stat.S_IFREG:
            fd = branch.open_file(dirfd, name, os.O_RDONLY)
            with open(fd, "rb") as file:
                found[path] = ("f", file.read())
        else:
            found[path] = ("c", b"%d:%d" % (os.major(st.rdev), os.minor(st.rdev)))
    return found
