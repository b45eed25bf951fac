"""Write files so that a failure leaves nothing half-made behind.

Invariant: a file gets its final name only when it is complete and on disk; until then it has
none, or (where the filesystem cannot do that) a temporary one in the same directory, which is
removed when anything goes wrong.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from unionfs.errors import ConflictError, UsageError, show

__all__ = ["fsync_directory", "replacing", "source_date_epoch"]


def source_date_epoch() -> int:
    """Return the time, in seconds, that made files carry: $SOURCE_DATE_EPOCH, else 0.

    Source: reproducible-builds.org, specs/source-date-epoch. Raises UsageError for rubbish.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "") or "0"
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"SOURCE_DATE_EPOCH={show(text)}: must be whole seconds since 1970")
    return int(text)


def fsync_directory(path: bytes) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: bytes, *, replace: bool) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `path` when the block ends without an exception.

    Raises ConflictError if `path` exists and `replace` is false.
    """
    if not replace and os.path.lexists(path):
        raise ConflictError(f"{show(path)}: exists already; remove it or use --force")
    directory, name = os.path.split(path)
    place = os.open(directory or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        staged = b"." + name[:200] + b"." + secrets.token_hex(4).encode()
        fd, has_name = _open_draft(place, staged)
        try:
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(fd, 0o666 & ~umask)
                os.fsync(fd)
                if not has_name:
                    proc = b"/proc/self/fd/%d" % fd
                    os.link(proc, staged, dst_dir_fd=place, follow_symlinks=True)
            os.rename(staged, name, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged, dir_fd=place)
            raise
        os.fsync(place)
    finally:
        os.close(place)


def _open_draft(place: int, name: bytes) -> tuple[int, bool]:
    """Open a file for writing; tell whether it has that name already.

    One without a name is gone with the process, however that ends. Not every filesystem has them.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(b".", flags | os.O_TMPFILE, 0o600, dir_fd=place), False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=place), True
