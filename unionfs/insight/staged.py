"""A new directory that appears complete or not at all.

Invariant: whatever ends the block, nothing but the finished directory stays.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

from unionfs import _sys
from unionfs.errors import ConflictError, show
from unionfs.store._fs import remove_tree

__all__ = ["staged_directory"]


@contextlib.contextmanager
def staged_directory(place: bytes) -> Iterator[bytes]:
    """Give the path of a directory to fill; it becomes `place` when the block ends well.

    Raises `ConflictError` if `place` exists, `OSError`.
    """
    place = os.path.abspath(place)
    if os.path.lexists(place):
        raise ConflictError(f"{show(place)} exists; choose a new name")
    parent, name = os.path.split(place)
    staged = b".%b.%b" % (name[:200], secrets.token_hex(4).encode())
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.mkdir(staged, 0o755, dir_fd=fd)
        try:
            yield os.path.join(parent, staged)
            with contextlib.suppress(OSError):
                _sys.syncfs(fd)
            _sys.renameat2(fd, staged, fd, name, _sys.RENAME_NOREPLACE)
        except BaseException:
            remove_tree(staged, fd)
            raise
    finally:
        os.close(fd)
