"""What one engine shows at one path, and in what two of them differ.

Compared are: type, mode, owner, device number, size and content, link target, xattrs, the time of
modification, and which names are one file. Not compared: the times of directories (a union shows
those of the top-most layer, an unpacker those of its own work), access and change times, inode
numbers, link counts (they count names that are hidden), sockets (no layer can ship one), and the
bookkeeping xattrs of unions and hosts.

Invariant: `differences(a, b, view) == ()` in both directions or in none.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import attrs
import msgspec

from unionfs.branch.xattrs import is_hidden
from unionfs.insight.probe import kind_name

__all__ = [
    "UNKNOWN_LINKS",
    "Difference",
    "Outcome",
    "Seen",
    "Shown",
    "Status",
    "View",
    "describe",
    "differences",
    "kept_xattrs",
    "link_groups",
    "tree_digest",
]

#: Attributes of the host's policies or of an unpacker, which say nothing about the image.
_HOST: Final = ("security.selinux", "security.ima", "security.evm", "security.SMACK64")
_UNPACKER: Final = "user.rootlesscontainers"
#: The key of a name of which nobody can say with what it is linked.
UNKNOWN_LINKS: Final = "?"
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)


class Seen(NamedTuple):
    """An entry: `mode` without type, `content` a digest (files) or the target (links).

    `content` is empty where the caller may not read. `error` is the name of the errno with which
    a listed name cannot be looked at; everything else is zero then.
    """

    fmt: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    mtime_ns: int = 0
    content: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    error: str = ""


#: Path relative to the root (empty: the root), the entry, and the same key for all names of one
#: file (None: it has one name).
Shown = tuple[bytes, Seen, Hashable]


@attrs.frozen
class View:
    """What cannot be compared for an engine, because the caller's rights do not allow it.

    `whole` says that owners, devices and all attributes are real; otherwise (in a user
    namespace) they are left out, and of the attributes only user.* count.
    """

    whole: bool = True
    times: bool = True
    modes: bool = True

    def both(self, other: View) -> View:
        """Return what can be compared between two engines."""
        return View(
            self.whole and other.whole, self.times and other.times, self.modes and other.modes
        )

    @property
    def left_out(self) -> list[str]:
        """The aspects that are not compared, in words."""
        found = [] if self.whole else ["owners", "devices", "xattrs but user.*"]
        found += [] if self.modes else ["modes"]
        return found + ([] if self.times else ["times"])


class Difference(msgspec.Struct, frozen=True):
    """What an engine shows otherwise than the reference at a path.

    `seen` None: it shows nothing there. `what` says in which aspects. `below` counts paths
    under it that are absent, or extra, with it.
    """

    what: tuple[str, ...]
    seen: Seen | None
    below: int = 0


class Status(msgspec.Struct, frozen=True):
    """How an engine fared: `state` is ok, refused (these layers) or left out (here)."""

    state: str
    reason: str = ""


class Outcome(msgspec.Struct):
    """What one engine made of the layers. `tree` and `links` are there when it was the first."""

    status: Status
    left_out: list[str] = []
    differences: dict[bytes, Difference] = {}
    tree: dict[bytes, Seen] = {}
    links: dict[bytes, bytes] = {}
    notes: list[str] = []


def kept_xattrs(found: Mapping[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    """Return the attributes that belong to the image, sorted."""
    return tuple(
        (name, value)
        for name, value in sorted(found.items())
        if not is_hidden(name) and name not in _HOST and name != _UNPACKER
    )


def describe(seen: Seen | None) -> str:
    """Return an entry in a few words."""
    if seen is None:
        return "absent"
    if seen.error:
        return f"listed, but {seen.error}"
    text = f"{kind_name(seen.fmt)} {seen.mode:04o} {seen.uid}:{seen.gid}"
    if seen.fmt == stat.S_IFREG:
        text += f" {seen.size} bytes"
    elif seen.fmt in _DEVICES:
        text += f" {os.major(seen.rdev)}:{os.minor(seen.rdev)}"
    return text


def is_compared(seen: Seen, view: View) -> bool:
    """Tell whether an entry counts at all: sockets never, devices where they can be made."""
    if seen.fmt == stat.S_IFSOCK:
        return False
    return view.whole or seen.fmt not in _DEVICES or seen.rdev == 0


def differences(old: Seen, new: Seen, view: View) -> tuple[str, ...]:
    """Return in what two entries of one path differ, in words."""
    return tuple(_differences(old, new, view))


def _differences(old: Seen, new: Seen, view: View) -> Iterator[str]:
    if old.error or new.error:
        if old.error != new.error:
            yield f"access ({old.error or 'works'}, {new.error or 'works'})"
        return
    if old.fmt != new.fmt:
        yield f"type ({kind_name(old.fmt)}, {kind_name(new.fmt)})"
        return
    if view.modes and old.fmt != stat.S_IFLNK and old.mode != new.mode:
        yield f"mode ({old.mode:04o}, {new.mode:04o})"
    if view.whole and (old.uid, old.gid) != (new.uid, new.gid):
        yield f"owner ({old.uid}:{old.gid}, {new.uid}:{new.gid})"
    if old.fmt in _DEVICES and old.rdev != new.rdev:
        yield "device number"
    if old.fmt == stat.S_IFREG and old.size != new.size:
        yield f"size ({old.size}, {new.size})"
    elif old.content != new.content and old.content and new.content:
        yield "target" if old.fmt == stat.S_IFLNK else "content"
    if _attributes(old, view) != _attributes(new, view):
        yield "xattrs"
    if view.times and old.fmt != stat.S_IFDIR and old.mtime_ns != new.mtime_ns:
        yield "time"


def _attributes(seen: Seen, view: View) -> tuple[tuple[str, bytes], ...]:
    if view.whole:
        return seen.xattrs
    return tuple(item for item in seen.xattrs if item[0].startswith("user."))


def link_groups(keys: Iterable[tuple[bytes, Hashable]]) -> dict[bytes, bytes]:
    """Return for every name of a file with several visible names the first of them."""
    groups: dict[Hashable, list[bytes]] = {}
    found: dict[bytes, bytes] = {}
    for path, key in keys:
        if key == UNKNOWN_LINKS:
            found[path] = b""
        elif key is not None:
            groups.setdefault(key, []).append(path)
    for paths in groups.values():
        if len(paths) > 1:
            first = min(paths)
            found.update(dict.fromkeys(paths, first))
    return found


def tree_digest(tree: Mapping[bytes, Seen], links: Mapping[bytes, bytes], view: View) -> str:
    """Return one digest of everything that is compared under `view`."""
    digest = hashlib.sha256()
    for path, seen in sorted(tree.items()):
        if not is_compared(seen, view):
            continue
        owner = (seen.uid, seen.gid) if view.whole else ()
        mode = seen.mode if view.modes and seen.fmt != stat.S_IFLNK else 0
        time = seen.mtime_ns if view.times and seen.fmt != stat.S_IFDIR else 0
        fixed = (seen.fmt, mode, owner, seen.rdev, seen.size, time, seen.error)
        parts = [path, repr(fixed).encode(), seen.content, links.get(path, b"")]
        for name, value in _attributes(seen, view):
            parts += [name.encode("utf-8", "surrogateescape"), value]
        for part in parts:
            digest.update(b"%d:" % len(part) + part)
        digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"
