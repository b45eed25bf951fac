"""What a member's name in an archive means as a place inside a layer.

A name is cleaned as text, never by asking the file system: a leading `/`, `./` and doubled
slashes vanish, `a/../b` is `b`. A name that climbs above the root (`../x`) is refused; no tool
writes one, and appliers disagree about it (some clamp it to the root, some refuse).

Invariant: `clean` returns components joined by `/`, none of them empty, `.` or `..` and none with
a NUL; walked one by one without following links they cannot leave the layer.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from unionfs.archive.limits import Limits
from unionfs.branch import whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.errors import HostileArchiveError, show

__all__ = ["PSEUDO_LINKS", "Place", "Role", "clean", "locate", "split"]

#: Where AUFS kept the other names of hard-linked files, at the root of a branch.
PSEUDO_LINKS: Final = b"plnk"


class Role(enum.Enum):
    """What a member of an archive is for the layer."""

    ENTRY = "entry"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    PSEUDO_LINK = "pseudo link"
    HOUSEKEEPING = "housekeeping"


class Place(NamedTuple):
    """A member's role and where it applies.

    `path` is the entry itself, the path that a whiteout hides, the directory that is opaque,
    or the name of a pseudo link; it is meaningless for housekeeping.
    """

    role: Role
    path: bytes


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return (parent path, last component); the root is `b""`."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def clean(name: bytes, limits: Limits, what: str = "name") -> bytes:
    """Return the path below the root that `name` means, `b""` for the root itself.

    Raises `HostileArchiveError` for a NUL or a name above the root, `LimitError` for one that
    is too long or too deep. `what` begins the message.
    """
    where = f"{what} {show(name[:200])}"
    if b"\0" in name:
        raise HostileArchiveError(f"{where}: it contains a NUL byte, which no file name can hold")
    limits.check("path", len(name), where)
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise HostileArchiveError(f"{where}: it leads out of the image")
            parts.pop()
            continue
        extra = len(whiteout.PREFIX) if whiteout.is_reserved(part) else 0
        limits.check("component", len(part) - extra, where)
        parts.append(part)
    limits.check("depth", len(parts), where)
    return b"/".join(parts)


def locate(path: bytes) -> Place:
    """Say what the member at the cleaned `path` is (OCI image-spec, layer.md, "Whiteouts").

    Raises `HostileArchiveError` for a marker that hides no possible name (`.wh.`, `.wh..`) and for
    anything below a whiteout.
    """
    if whiteout.PREFIX not in path:
        return Place(Role.ENTRY, path)
    parts = path.split(b"/")
    last = len(parts) - 1
    for index, part in enumerate(parts):
        meaning, target = whiteout.classify(part)
        if meaning is Meaning.ENTRY:
            continue
        if meaning in (Meaning.HOUSEKEEPING, Meaning.LONG_WHITEOUT):
            # The form of long whiteouts is ours, for disk; in an archive it would be an injection.
            if index == 0 and last == 1 and part == whiteout.PREFIX * 2 + PSEUDO_LINKS:
                return Place(Role.PSEUDO_LINK, parts[1])
            return Place(Role.HOUSEKEEPING, path)
        if meaning is Meaning.INVALID:
            raise HostileArchiveError(
                f"{show(path)}: `{show(part)}` is an invalid whiteout, it hides no possible name"
            )
        if index < last:
            raise HostileArchiveError(
                f"{show(path)}: a component below the whiteout `{show(part)}`"
            )
        parent = b"/".join(parts[:-1])
        if meaning is Meaning.OPAQUE:
            return Place(Role.OPAQUE, parent)
        return Place(Role.WHITEOUT, parent + b"/" + target if parent else target)
    return Place(Role.ENTRY, path)
