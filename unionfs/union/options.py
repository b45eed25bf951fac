"""Values that cross the engine's border: attributes, requests and settings.

Invariant: ids in these values are image ids (0 is the image's root), times are ns
since the epoch, `mode` includes the file type where it describes an existing entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import attrs

__all__ = [
    "Attr",
    "Caller",
    "Created",
    "DirItem",
    "EngineOptions",
    "HardlinkTable",
    "SetAttr",
    "Stats",
]

#: st_ino of a file with several names -> its relative paths within the same layer.
HardlinkTable = Mapping[int, tuple[bytes, ...]]


class Attr(NamedTuple):
    """What stat(2) shows; `ino` is also the handle for every other call."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class SetAttr(NamedTuple):
    """A change of attributes; None leaves one as it is. `mode` counts only 07777."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Caller(NamedTuple):
    """Who makes a new entry; the umask is already applied to the mode."""

    uid: int
    gid: int


class Created(NamedTuple):
    """What `create` has opened: its handle and attributes, and whether the file is `new`."""

    fh: int
    attr: Attr
    new: bool


class DirItem(NamedTuple):
    """One directory entry; `next_offset` is where a listing resumes after it."""

    name: bytes
    attr: Attr
    next_offset: int


@attrs.frozen
class EngineOptions:
    """Settings of one engine.

    `volatile` skips every fsync. `native` forces the ownership dialect of the rw branch
    (None: found by trying). `root_mode_fallback` replaces a root directory mode of 0700,
    which old stores gave their layer directories for their own protection.
    `link_tables` gives, by layer path, a loader of the layer's hard-link table.
    `dir_fds` bounds the cached directory fds (None: from RLIMIT_NOFILE).
    `labels` are the words for a layer, by its path, in the attribute `layer` of
    `unionfs.union.provenance`; `show_xattrs` lists those attributes. `show_markers` shows
    whiteouts and opaque markers as entries, `follow` looks for changes that somebody else makes
    in the rw branch; either makes the union read-only.
    """

    volatile: bool = False
    read_only: bool = False
    native: bool | None = None
    root_mode_fallback: int | None = None
    link_tables: Mapping[bytes, Callable[[], HardlinkTable]] = attrs.field(factory=dict)
    dir_fds: int | None = None
    labels: Mapping[bytes, bytes] = attrs.field(factory=dict)
    show_xattrs: bool = False
    show_markers: bool = False
    follow: bool = False


@attrs.define
class Stats:
    """Counters since the engine was opened. `fetched` are lookups of names not known yet."""

    lookups: int = 0
    fetched: int = 0
    scans: int = 0
    copy_ups: int = 0
    copy_up_bytes: int = 0
    journaled: int = 0
