"""What a branch in AUFS form holds that a kernel union must be helped with or cannot show.

One walk over the tree answers for both kernel unions: which directories carry markers
(overlayfs needs shims there), and which entries the kernel would show otherwise than our
own union does (ownership kept in overrides, names AUFS cannot reach, ...).

Invariant: a branch without blockers and losses for a back end looks the same through it
as through FUSE, alone and in any stack of such branches in normal form.
"""

from __future__ import annotations

import enum
import os
import stat
from typing import Final

import attrs
import msgspec

from unionfs.branch import Branch, whiteout
from unionfs.branch.override import ENCODED_PREFIX, STAT_XATTR
from unionfs.branch.whiteout import Meaning
from unionfs.errors import show
from unionfs.kernel import trees

__all__ = [
    "Kind",
    "LayerFacts",
    "Marked",
    "Survey",
    "aufs_blockers",
    "overlay_blockers",
    "overlay_losses",
    "survey",
]

#: AUFS_MAX_NAMELEN: longer names are listed but every access is ENAMETOOLONG.
_AUFS_NAME_MAX: Final = 242


class Kind(enum.Enum):
    """Whose overlayfs: root's keeps its marks in trusted.*, a user namespace's in user.*."""

    TRUSTED = "trusted"
    USER = "user"


@attrs.define
class Marked:
    """The markers of one directory: names to hide, names hidden below, opacity."""

    reserved: list[bytes] = attrs.field(factory=list)
    whiteouts: list[bytes] = attrs.field(factory=list)
    opaque: bool = False


class LayerFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counts over one branch; `examples` has the first path of each kind that was met.

    `reserved`: names that must be hidden; `whiteouts`: names and directories closed to what
    lies below. `pairs`: an entry and its own whiteout; `odd`: whiteouts that are no regular
    file; `long`: whiteouts kept by digest; `long_names`: beyond what AUFS reaches.
    `placeholders`, `owners`, `modes`, `attributes`: overrides that the kernel shows
    otherwise; `special`: those of `modes` with setuid or setgid, which are never made real.
    `foreign`: entries that are not the caller's. `devices`: character devices 0/0;
    `overlay_marks`: directories with overlayfs's own xattrs. `owned`: a plain user's branch.
    """

    format: int = 1
    reserved: int = 0
    whiteouts: int = 0
    root_opaque: bool = False
    pairs: int = 0
    odd: int = 0
    long: int = 0
    long_names: int = 0
    placeholders: int = 0
    owners: int = 0
    modes: int = 0
    special: int = 0
    attributes: int = 0
    foreign: int = 0
    devices: int = 0
    overlay_marks: int = 0
    owned: bool = False
    examples: dict[str, str] = {}


@attrs.define
class Survey:
    """Result of a walk: `facts`, and the markers by relative directory path, parents first."""

    counts: dict[str, int] = attrs.field(factory=dict)
    examples: dict[str, str] = attrs.field(factory=dict)
    marked: dict[bytes, Marked] = attrs.field(factory=dict)
    root_opaque: bool = False
    owned: bool = False

    def note(self, what: str, path: bytes) -> None:
        """Count one find."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self.examples.setdefault(what, show(path))

    @property
    def facts(self) -> LayerFacts:
        """What is worth keeping of the walk."""
        return LayerFacts(
            **self.counts,
            root_opaque=self.root_opaque,
            owned=self.owned,
            examples=self.examples,
        )


def survey(path: bytes, kind: Kind) -> Survey:
    """Walk the branch at `path` as the caller; OSError when a part cannot be read."""
    found = Survey()
    with Branch.open(path) as branch:
        found.owned = branch.owner is not None
        for where, fd, entries in trees.walk_directories(branch.fd):
            _directory(branch, kind, found, where, fd, entries)
    return found


def _directory(
    branch: Branch,
    kind: Kind,
    found: Survey,
    where: bytes,
    fd: int,
    entries: list[os.DirEntry[str]],
) -> None:
    if whiteout.is_reserved(where.rpartition(b"/")[2]):
        return  # inside housekeeping: hidden with its directory
    prefix = f"{kind.value}.overlay."
    if any(attribute.startswith(prefix) for attribute in trees.raw_xattrs(fd, b".")):
        found.note("overlay_marks", where)
    names = []
    for entry in entries:
        name = os.fsencode(entry.name)
        if whiteout.is_reserved(name):
            if entry.is_dir(follow_symlinks=False) and not _is_marker(name):
                found.note("reserved", trees.child(where, name))
                found.marked.setdefault(where, Marked()).reserved.append(name)
                continue
            _marker(found, where, name, entry)
        else:
            names.append(name)
            _entry(branch, kind, found, where, fd, name)
    marked = found.marked.get(where)
    if marked is None:
        return
    scan = branch.scan(fd)
    marked.opaque = scan.opaque
    marked.whiteouts = sorted(scan.whiteouts)
    for name in marked.whiteouts:
        found.note("whiteouts", trees.child(where, name))
    if scan.opaque:
        if where:
            found.note("whiteouts", where)
        else:
            found.root_opaque = True
    for name in scan.whiteouts.intersection(names):
        found.note("pairs", trees.child(where, name))


def _is_marker(name: bytes) -> bool:
    return whiteout.classify(name).meaning in (Meaning.WHITEOUT, Meaning.OPAQUE)


def _marker(found: Survey, where: bytes, name: bytes, entry: os.DirEntry[str]) -> None:
    path = trees.child(where, name)
    found.note("reserved", path)
    found.marked.setdefault(where, Marked()).reserved.append(name)
    if _is_marker(name) and not entry.is_file(follow_symlinks=False):
        found.note("odd", path)
    if whiteout.classify(name).meaning is Meaning.LONG_WHITEOUT:
        found.note("long", path)


def _entry(branch: Branch, kind: Kind, found: Survey, where: bytes, fd: int, name: bytes) -> None:
    path = trees.child(where, name)
    if len(name) > _AUFS_NAME_MAX:
        found.note("long_names", path)
    raw = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if stat.S_ISCHR(raw.st_mode) and raw.st_rdev == 0:
        found.note("devices", path)
    if kind is Kind.USER and (raw.st_uid, raw.st_gid) != (os.geteuid(), os.getegid()):
        found.note("foreign", path)
    if not branch.marked or not (stat.S_ISREG(raw.st_mode) or stat.S_ISDIR(raw.st_mode)):
        return
    attributes = trees.raw_xattrs(fd, name)
    if any(item.startswith(ENCODED_PREFIX) and item != STAT_XATTR for item in attributes):
        found.note("attributes", path)
    override = branch.override(fd, name) if STAT_XATTR in attributes else None
    if override is None:
        return
    if branch.status(fd, name).placeholder:
        found.note("placeholders", path)
        return
    expected = (0, 0) if kind is Kind.USER else (raw.st_uid, raw.st_gid)
    if (override.uid, override.gid) != expected:
        found.note("owners", path)
    if override.mode != stat.S_IMODE(raw.st_mode):
        found.note("modes", path)
        if override.mode & (stat.S_ISUID | stat.S_ISGID):
            found.note("special", path)


def _describe(facts: LayerFacts, table: dict[str, str]) -> list[str]:
    lines = []
    for what, text in table.items():
        count = int(getattr(facts, what))
        if count:
            example = facts.examples.get(what, "")
            lines.append(f"{text} ({count}, e.g. {example or '/'})")
    return lines


def overlay_blockers(facts: LayerFacts, kind: Kind) -> list[str]:
    """Return why overlayfs would show a wrong tree; empty when it would not."""
    lines = _describe(
        facts,
        {
            "placeholders": "files that stand for devices or links which a plain user cannot make",
            "foreign": "entries owned by somebody else than the caller",
            "devices": "character devices 0/0, which overlayfs takes for deletions",
            "overlay_marks": "directories with overlayfs's own attributes",
        },
    )
    if facts.owned and kind is Kind.TRUSTED:
        lines.append("ownership kept in attributes by a plain user")
    return lines


def overlay_losses(facts: LayerFacts, *, writable: bool = False) -> list[str]:
    """Return what overlayfs would show with another owner, mode or without an attribute.

    In the rw branch (`writable`) recorded modes are made real while it is mounted, as far as
    that is safe.
    """
    return _describe(
        facts,
        {
            "owners": "entries whose recorded owner only FUSE can show",
            "special" if writable else "modes": "entries whose recorded mode only FUSE can show",
            "attributes": "entries with recorded attributes that only FUSE can show",
        },
    )


def aufs_blockers(facts: LayerFacts) -> list[str]:
    """Return why AUFS would show a wrong tree; empty when it would not."""
    lines = _describe(
        facts,
        {
            "placeholders": "files that stand for devices or links which a plain user cannot make",
            "owners": "entries whose recorded owner only FUSE can show",
            "modes": "entries whose recorded mode only FUSE can show",
            "attributes": "entries with recorded attributes that only FUSE can show",
            "pairs": "names with an entry and a whiteout in one layer",
            "odd": "whiteouts that are not regular files",
            "long": "whiteouts of names beyond AUFS's limit",
            "long_names": f"names longer than the {_AUFS_NAME_MAX} bytes that AUFS can reach",
        },
    )
    if facts.owned:
        lines.append("ownership kept in attributes by a plain user")
    return lines
