"""The `-o` options of a mount, in the style of mount(8).

Invariant: a `MountOptions` holds only what this program understands; an option that
is unknown, contradicts another or would break the mount is refused by name before
anything is touched.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs

from unionfs import _sys
from unionfs.errors import UsageError, show
from unionfs.fuse.idmap import IdMap

__all__ = ["LONG_TIMEOUT", "MountOptions"]

#: Seconds that names and attributes stay valid in the kernel: nobody else edits the branches.
LONG_TIMEOUT: Final = 1_000_000.0

_LABEL: Final = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}", re.ASCII)
_IGNORED: Final = frozenset(
    ("defaults", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev", "async")
)
_REFUSED: Final = {
    "max_read": "libfuse then fails the mount; reads are limited by read-ahead, see "
    "/sys/class/bdi/*/read_ahead_kb",
    "allow_root": "there is no such limit here; allow_other lets root in as well",
    "lowerdir": "name the layers with --layer TOP --layer BASE",
    "upperdir": "name the writable branch with --rw DIR",
    "workdir": "the work area lives inside the writable branch",
    "plugins": "that belongs to fuse-overlayfs",
    "auto_unmount": "the daemon unmounts when it ends; `unionfs umount` cleans up after a crash",
    "fd": "unionfs opens /dev/fuse itself",
    "rootmode": "unionfs sets it",
    "user_id": "unionfs sets it",
    "group_id": "unionfs sets it",
    "blkdev": "a union has no block device",
    "kernel_cache": "file contents are cached already; `coherent` turns that off",
    "auto_cache": "file contents are cached already; `coherent` turns that off",
}


def _number(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONG_TIMEOUT * 1000:
        raise UsageError(f"option {name}={show(value)}: give seconds, 0 or more")
    return seconds


def _id(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) < 2**32 - 1):
        raise UsageError(f"option {name}={show(value)}: give a numeric id")
    return int(value)


def _label(name: str, value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise UsageError(
            f"option {name}={show(value)}: use letters, digits and any of _ . : / @ + -"
        )
    return value


_FLAGS: Final[dict[str, dict[str, Any]]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "suid": {"nosuid": False},
    "nosuid": {"nosuid": True},
    "dev": {"nodev": False},
    "nodev": {"nodev": True},
    "exec": {"noexec": False},
    "noexec": {"noexec": True},
    "sync": {"sync": True},
    "dirsync": {"dirsync": True},
    "noatime": {"noatime": True},
    "atime": {"noatime": False},
    "allow_other": {"allow_other": True},
    "noallow_other": {"allow_other": False},
    "default_permissions": {"default_permissions": True},
    "coherent": {"coherent": True},
    "volatile": {"volatile": True},
    "nonempty": {"nonempty": True},
    "noacl": {"acl": False},
    "acl": {"acl": True},
    "shwh": {"show_whiteouts": True},
    "noshwh": {"show_whiteouts": False},
    "show_xattrs": {"show_xattrs": True},
    "nolane": {"lane": False},
    "lane": {"lane": True},
    "noahead": {"ahead": False},
    "ahead": {"ahead": True},
    "passthrough": {"passthrough": True},
    "nopassthrough": {"passthrough": False},
    "squash_to_root": {"squash_uid": 0, "squash_gid": 0},
}
_VALUES: Final[dict[str, tuple[tuple[str, ...], Callable[[str, str], Any]]]] = {
    "timeout": (("entry_timeout", "attr_timeout", "negative_timeout"), _number),
    "entry_timeout": (("entry_timeout",), _number),
    "attr_timeout": (("attr_timeout",), _number),
    "negative_timeout": (("negative_timeout",), _number),
    "uidmapping": (("uidmapping",), lambda _, value: (IdMap.parse(value), value)[1]),
    "gidmapping": (("gidmapping",), lambda _, value: (IdMap.parse(value), value)[1]),
    "squash_to_uid": (("squash_uid",), _id),
    "squash_to_gid": (("squash_gid",), _id),
    "fsname": (("fsname",), _label),
    "subtype": (("subtype",), _label),
}
_KNOWN: Final = sorted({*_FLAGS, *_VALUES, *_REFUSED})


@attrs.frozen
class MountOptions:
    """How to mount; timeouts in seconds. The defaults are those of an empty `-o`.

    `read_only` None means: as the writable branch says. `allow_other` None means: on for root,
    whose mounts everybody sees as they see a kernel mount. `default_permissions` None means:
    on for root and with `allow_other`. `nosuid` and `nodev` are on unless root lifts them,
    because an image is somebody else's data.
    """

    read_only: bool | None = None
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False
    sync: bool = False
    dirsync: bool = False
    noatime: bool = False
    allow_other: bool | None = None
    default_permissions: bool | None = None
    coherent: bool = False
    volatile: bool = False
    nonempty: bool = False
    acl: bool = True
    show_whiteouts: bool = False
    show_xattrs: bool = False
    lane: bool = True
    ahead: bool = True
    passthrough: bool = False
    squash_uid: int | None = None
    squash_gid: int | None = None
    uidmapping: str | None = None
    gidmapping: str | None = None
    entry_timeout: float = LONG_TIMEOUT
    attr_timeout: float = LONG_TIMEOUT
    negative_timeout: float = LONG_TIMEOUT
    fsname: str = "unionfs"
    subtype: str = "unionfs"

    @classmethod
    def parse(cls, texts: Iterable[str]) -> MountOptions:
        """Read comma-separated options, several `-o` one after the other; the last one wins.

        UsageError for anything unknown (with a near miss, if there is one) or refused.
        """
        chosen: dict[str, Any] = {}
        timeouts: dict[str, Any] = {}
        for item in (item for text in texts for item in text.split(",")):
            name, equals, value = item.partition("=")
            if not item or name in _IGNORED or name.startswith(("x-", "X-", "comment")):
                continue
            if name in _REFUSED:
                raise UsageError(f"option {name} cannot be used: {_REFUSED[name]}")
            if name in _FLAGS and not equals:
                chosen.update(_FLAGS[name])
            elif name in _VALUES and value:
                fields, convert = _VALUES[name]
                store = timeouts if convert is _number else chosen
                store.update(dict.fromkeys(fields, convert(name, value)))
            elif name in _FLAGS:
                raise UsageError(f"option {name} takes no value")
            elif name in _VALUES:
                raise UsageError(f"option {name} needs a value: {name}=...")
            else:
                near = difflib.get_close_matches(name, _KNOWN, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(f"unknown mount option '{show(name)}'{hint}")
        if chosen.get("coherent"):
            chosen |= {"entry_timeout": 0.0, "attr_timeout": 0.0, "negative_timeout": 0.0}
        options = cls(**{**chosen, **timeouts})
        options._check()  # our own class
        return options

    def _check(self) -> None:
        for kind, squash, mapping in (
            ("uid", self.squash_uid, self.uidmapping),
            ("gid", self.squash_gid, self.gidmapping),
        ):
            if squash is not None and mapping is not None:
                raise UsageError(f"{kind}mapping and squashing every {kind} exclude each other")

    def _check_passthrough(self, *, uid: int, read_only: bool) -> None:
        if uid != 0:
            raise UsageError("option passthrough needs root")
        if not read_only:
            raise UsageError(
                "option passthrough is for read-only mounts (add ro): a file that the kernel reads "
                "itself cannot be copied up under its readers"
            )
        if not self.lane or self.coherent:
            other = "coherent (as views of live mounts are)" if self.coherent else "nolane"
            raise UsageError(f"options passthrough and {other} exclude each other")

    def mount_flags(self) -> int:
        """Return the MS_* flags for mount(2)."""
        return (
            (_sys.MS_RDONLY if self.read_only else 0)
            | (_sys.MS_NOSUID if self.nosuid else 0)
            | (_sys.MS_NODEV if self.nodev else 0)
            | (_MS_NOEXEC if self.noexec else 0)
            | (_MS_SYNCHRONOUS if self.sync else 0)
            | (_MS_DIRSYNC if self.dirsync else 0)
            | (_MS_NOATIME if self.noatime else 0)
        )

    def helper_options(self) -> str:
        """Return the same for fusermount3's `-o`."""
        words = {
            "ro": self.read_only,
            "nosuid": self.nosuid,
            "nodev": self.nodev,
            "noexec": self.noexec,
            "sync": self.sync,
            "dirsync": self.dirsync,
            "noatime": self.noatime,
            "default_permissions": self.default_permissions,
            "allow_other": self.allow_other,
        }
        labels = [f"fsname={self.fsname}", f"subtype={self.subtype}"]
        return ",".join([*labels, *(word for word, wanted in words.items() if wanted)])

    def settled(self, *, uid: int, writable: bool) -> MountOptions:
        """Return the options with the open choices made for the caller `uid`.

        UsageError when this caller or this mount cannot have what is asked for.
        """
        others = uid == 0 if self.allow_other is None else self.allow_other
        permissions = self.default_permissions
        if permissions is None:
            permissions = uid == 0 or others
        read_only = bool(self.read_only) or not writable
        if self.passthrough:
            self._check_passthrough(uid=uid, read_only=read_only)
        return attrs.evolve(
            self,
            read_only=read_only,
            allow_other=others,
            default_permissions=permissions,
        )

    def id_maps(self, *, uid: int, gid: int) -> tuple[IdMap, IdMap]:
        """Return the maps of users and groups for a daemon that runs as `uid` and `gid`."""
        return (
            _map_for("uid", uid, self.squash_uid, self.uidmapping),
            _map_for("gid", gid, self.squash_gid, self.gidmapping),
        )


def _map_for(kind: str, own: int, squash: int | None, mapping: str | None) -> IdMap:
    if squash is not None:
        return IdMap(squash=squash)
    if mapping is not None:
        return IdMap.parse(mapping)
    if own != 0:
        return IdMap.bijective(own)
    with open(f"/proc/self/{kind}_map", encoding="ascii") as table:
        return IdMap.of_namespace(table.read())


_MS_NOEXEC: Final = 0x8
_MS_SYNCHRONOUS: Final = 0x10
_MS_DIRSYNC: Final = 0x80
_MS_NOATIME: Final = 0x400
