"""Whom USER names: lookups in the image's own /etc/passwd and /etc/group.

Invariant: the two files are data of a stranger. They are opened without following links
and without waiting (a FIFO), must be regular, are read up to a limit, and are parsed here:
libc's own lookups would load name service modules from the image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

import attrs

from unionfs.errors import UsageError, show

__all__ = ["MAX_TABLE", "User", "find_user"]

#: Bytes of a table that are read; what lies beyond is not found.
MAX_TABLE: Final = 1 << 20
_MAX_ID: Final = 2**32 - 2
_MAX_GROUPS: Final = 1024
_PASSWD_FIELDS: Final = 6
_GROUP_FIELDS: Final = 4


@attrs.frozen
class User:
    """Whom to run as: ids inside, supplementary `groups`, and the home directory."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: bytes = b"/"


def _read(root_fd: int, name: bytes) -> bytes:
    """Return the beginning of `etc/NAME`; nothing if it is not a plain file there."""
    nofollow = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        etc = os.open(b"etc", os.O_PATH | os.O_DIRECTORY | nofollow, dir_fd=root_fd)
    except OSError:
        return b""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | nofollow, dir_fd=etc)
    except OSError:
        return b""
    finally:
        os.close(etc)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        parts, left = [], MAX_TABLE
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _lines(root_fd: int, name: bytes, count: int) -> Iterator[list[bytes]]:
    for line in _read(root_fd, name).split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= count and fields[0]:
            yield fields


def _number(text: bytes) -> int | None:
    if not text.isdigit() or len(text) > len(str(_MAX_ID)):
        return None
    value = int(text)
    return value if value <= _MAX_ID else None


def _find_group(root_fd: int, group: bytes) -> int:
    for fields in _lines(root_fd, b"group", _GROUP_FIELDS):
        gid = _number(fields[2])
        if fields[0] == group and gid is not None:
            return gid
    number = _number(group)
    if number is None:
        raise UsageError(f"the image has no group {show(group)}; give a number")
    return number


def find_user(root_fd: int, text: bytes) -> User:
    """Return whom `USER[:GROUP]` means in the image whose root directory is `root_fd`.

    Names or numbers, as Docker reads them: a number without an entry runs with group 0; the
    groups that list the user count unless GROUP is given. UsageError for an unknown name.
    """
    name, _, group = text.partition(b":")
    name = name or b"0"
    wanted = _number(name)
    chosen: list[bytes] | None = None
    for fields in _lines(root_fd, b"passwd", _PASSWD_FIELDS):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is None or gid is None:
            continue
        if fields[0] == name:
            chosen = fields
            break
        if uid == wanted and chosen is None:
            chosen = fields
    if chosen is None:
        if wanted is None:
            raise UsageError(f"the image has no user {show(name)}; give a number")
        home = b"/root" if wanted == 0 else b"/"
        return User(wanted, _find_group(root_fd, group) if group else 0, home=home)
    user = User(int(chosen[2]), int(chosen[3]), home=chosen[5] or b"/")
    if group:
        return attrs.evolve(user, gid=_find_group(root_fd, group))
    groups: list[int] = []
    for fields in _lines(root_fd, b"group", _GROUP_FIELDS):
        number = _number(fields[2])
        if number is not None and chosen[0] in fields[3].split(b",") and number not in groups:
            groups.append(number)
    return attrs.evolve(user, groups=tuple(groups[:_MAX_GROUPS]))
