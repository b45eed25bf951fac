"""Having a new file's data on disk before its name.

After a crash a copy must not be found under its name without its data: it would hide the
original. fdatasync(2) sees to that on any filesystem, at the price of a journal commit and a
flush of the device's cache for each file. Where a filesystem logs the place and size of data
when their writing ends, and names in the order in which they changed, writing the data is
enough (sync_file_range(2)): the rename is logged later, and what commits it flushes the
device's cache first. That is so on ext4 with a journal (Documentation/filesystems/ext4, in all
of its data modes) and on XFS. Btrfs may take the place of data into a later transaction than
the name; others are not known.

The data of a big file begin to be written while it is still being copied (`begin`), so that the
device is not idle first and waited for then.

Invariant: what is not known to keep that order gets fdatasync(2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from unionfs import _sys

__all__ = ["begin", "settler"]

#: f_type of statfs(2). That of ext4 is also that of ext2, which has no journal.
_EXT: Final = 0xEF53
_XFS: Final = 0x58465342


def settler(fd: int) -> Callable[[int], None]:
    """Return what has a file's data on disk before its later name, for the filesystem of `fd`."""
    magic = _sys.filesystem_type(fd)
    if magic == _XFS or (magic == _EXT and _has_journal(fd)):
        return _sys.write_out
    return os.fdatasync


def begin(fd: int, offset: int, size: int) -> None:
    """Have a range begin to be written where that can be asked for; OSError if that fails."""
    try:
        _sys.begin_write_out(fd, offset, size)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOSYS, errno.ESPIPE):
            raise


def _has_journal(fd: int) -> bool:
    device = os.fstat(fd).st_dev
    block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    name = os.path.basename(os.path.realpath(block))
    try:
        with open(f"/sys/fs/ext4/{name}/journal_task", "rb") as file:
            return file.read().strip().isdigit()
    except OSError:  # nothing can be told, as in a container without /sys
        return False
