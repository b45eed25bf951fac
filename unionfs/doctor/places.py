"""What the file systems of the store and of writable branches can keep.

Invariant: everything is tried in a scratch directory of that file system, which is removed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from unionfs import _sys
from unionfs.branch import whiteout
from unionfs.doctor.checks import Check, nearest_directory, scratch
from unionfs.errors import show

__all__ = ["check_place"]

_LONG_NAME: Final = b"n" * whiteout.NAME_MAX
_DATA: Final = b"unionfs" * 1024


def _fails(action: Callable[[], object]) -> str:
    """Return the reason why an action fails; empty if it does not."""
    try:
        action()
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def check_place(area: str, path: bytes) -> Iterator[Check]:
    """Try what a directory's file system can do; `path` need not exist yet."""
    parent = nearest_directory(path)
    try:
        with scratch(parent) as place:
            yield Check(area, "writable", True, show(parent))
            yield from _try_all(area, place)
    except OSError as exc:
        yield Check(
            area,
            "writable",
            False,
            f"{show(parent)}: {exc.strerror}",
            "choose another directory (--root or $UNIONFS_ROOT for the store)",
        )


def _try_all(area: str, place: bytes) -> Iterator[Check]:
    file = place + b"/file"
    with open(file, "wb") as out:
        out.write(_DATA)
    reason = _fails(lambda: os.setxattr(file, "user.unionfs.doctor", b"x" * 200))
    yield Check(
        area,
        "user xattrs",
        not reason,
        reason,
        "owners and modes of a plain user are kept in them: use ext4, xfs, btrfs, or tmpfs of "
        "Linux 6.6 or later",
    )
    reason = _fails(lambda: os.setxattr(file, "trusted.unionfs.doctor", b"x"))
    yield Check(area, "trusted xattrs", None, reason or "yes")
    reason = _fails(lambda: _make_long_name(place))
    yield Check(
        area,
        f"names of {whiteout.NAME_MAX} bytes",
        not reason,
        reason,
        "this file system cuts names (an encrypting one?): use another",
    )
    reason = _fails(lambda: _clone(file, place + b"/clone"))
    yield Check(area, "reflink", None, reason or "yes: copy-up of big files costs nothing")
    reason = _fails(lambda: os.mknod(place + b"/node", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
    yield Check(area, "device nodes", None, reason or "yes: kept as they are")
    reason = _fails(lambda: os.chown(file, 1, 1))
    yield Check(area, "foreign owners", None, reason or "yes: kept as they are")
    reason = _fails(lambda: _case(place))
    yield Check(
        area, "upper and lower case", not reason, reason, "use a file system that tells them apart"
    )


def _make_long_name(place: bytes) -> None:
    os.close(os.open(place + b"/" + _LONG_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if _LONG_NAME not in os.listdir(place):
        raise OSError(errno.ENAMETOOLONG, "the name was changed")


def _clone(source: bytes, target: bytes) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        _sys.clone_file(old.fileno(), new.fileno())


def _case(place: bytes) -> None:
    for name in (b"/case", b"/CASE"):
        os.close(os.open(place + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
