"""`lint`: find in every layer what implementations disagree about.

Layers of the store are read as their archives spelled them, before normal form; directories and
archives as they are.

Invariant: a layer whose markers follow the specification and whose names every union can hold
has no finding above INFO; findings are sorted by layer (base first), path and rule.
"""

from __future__ import annotations

import stat
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Final

import attrs

from unionfs.branch import Dialect, whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.errors import show
from unionfs.insight.model import Effect, Tree
from unionfs.insight.probe import kind_name, split_path
from unionfs.insight.rules import RULES, Rule, Severity
from unionfs.insight.shipped import Item, Shipped, read_branch, read_stored
from unionfs.insight.where import NamedBranch, Where

__all__ = ["Finding", "explanation", "lint", "lint_layers", "worst"]

_AUFS_MAX: Final = 242
_DEFAULT = (0o755, 0, 0)


@attrs.frozen
class Finding:
    """A broken rule: in which branch, at which path (the marker's or entry's), details.

    `leads_to` is the path that a symbolic link at `path` means, where that is the point.
    """

    rule: Rule
    branch: NamedBranch
    path: bytes
    detail: str = ""
    leads_to: bytes | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "rule": self.rule.id,
            "severity": self.rule.severity.name.lower(),
            "title": self.rule.title,
            "layer": self.branch.number,
            "rw": self.branch.is_rw,
            "branch": self.branch.document(),
            "path": b"/" + self.path,
            "detail": self.detail,
            "shows": self.rule.shows,
            "fix": self.rule.fix,
            "fixable": self.rule.fixable,
        }


def lint(where: Where, *, as_stored: bool = False) -> list[Finding]:
    """Check all branches; `as_stored` reads the store's layers in normal form instead.

    Cost: every entry of every layer, once; the bytes of stored layers are read through.
    """
    read = read_branch if as_stored else read_stored
    return lint_layers(read(named) for named in reversed(where.branches))


def lint_layers(layers: Iterable[Shipped]) -> list[Finding]:
    """Check layers, base first."""
    tree = Tree()
    # Paths at which some layer had a directory that a later non-directory replaced.
    replaced: set[bytes] = set()
    found: list[Finding] = []
    for shipped in layers:
        checker = _Checker(shipped, tree, replaced)
        checker.before()
        effects = tree.apply(shipped)
        checker.after(effects)
        found += sorted(
            set(checker.findings), key=lambda item: (item.path, item.rule.id, item.detail)
        )
    return found


def worst(findings: Sequence[Finding]) -> Severity | None:
    """Return the highest severity, None when there are no findings."""
    return max((finding.rule.severity for finding in findings), default=None)


class _Checker:
    """The rules on one layer; `tree` is what the layers below show."""

    def __init__(self, shipped: Shipped, tree: Tree, replaced: set[bytes]) -> None:
        self.shipped = shipped
        self.tree = tree
        self.replaced = replaced
        self.findings: list[Finding] = []
        self.is_aufs = shipped.branch.dialect is Dialect.AUFS
        # Directories that the layers below have, too; opaque ones that replace something else;
        # those that hold more than markers; links of the layers below that paths go through.
        self._kept_dirs: set[bytes] = set()
        self._guards: set[bytes] = set()
        self._filled: set[bytes] = set()
        self._links: set[bytes] = set()

    def add(self, rule: str, path: bytes, detail: str = "", leads_to: bytes | None = None) -> None:
        found = Finding(RULES[rule], self.shipped.branch, path, detail, leads_to)
        self.findings.append(found)

    def before(self) -> None:
        """Apply the rules that need the tree below as it was."""
        for path, item in self.shipped.entries.items():
            if item.fmt == stat.S_IFDIR and self.tree.find(path) is not None:
                self._kept_dirs.add(path)
            self._filled.update(list(_ancestors(path, self._filled)))
        for path in self.shipped.opaque:
            node = self.tree.find(path)
            if node is not None and not node.is_dir:
                self._guards.add(path)
        if self.is_aufs:
            self._markers()
            self._dialects()
        else:
            self._overlay()
        self._names()
        self._archive()
        for path in self.shipped.opaque:
            if not path:
                self.add("opaque-root", self.shipped.opaque[path].path)
        self._sandwich()

    def after(self, effects: Sequence[Effect]) -> None:
        """Apply the rules about what the layer did."""
        for effect in effects:
            if effect.kind != "entry" and not effect.lost and not effect.covered:
                self._dangling(effect)
            if effect.kind != "entry":
                self.replaced.difference_update(lost.path for lost in effect.lost)
            elif effect.item.fmt != stat.S_IFDIR and effect.lost[0].item.fmt == stat.S_IFDIR:
                self.replaced.add(effect.lost[0].path)
        self._notes()

    # -- markers -----------------------------------------------------------------

    def _markers(self) -> None:
        shipped = self.shipped
        for item in shipped.invalid:
            self.add("bare-whiteout", item.path)
        for item in shipped.below_marker:
            parts = item.path.split(b"/")
            marker = next(part for part in parts if whiteout.is_reserved(part))
            if whiteout.classify(marker).meaning is not Meaning.HOUSEKEEPING:
                self.add("entry-below-whiteout", item.path)
        for item in shipped.housekeeping:
            if whiteout.classify(item.name).meaning is Meaning.LONG_WHITEOUT:
                self.add("long-whiteout", item.path, "it does not hold the name that it hides")
            elif not shipped.branch.is_rw or not self._is_ours(item):
                self.add("aufs-metadata", item.path)
        for path, item in shipped.whiteouts.items():
            self._whiteout(path, item)
        for item in shipped.opaque.values():
            self._form(item)

    @staticmethod
    def _is_ours(item: Item) -> bool:
        return not item.parent and item.name in (whiteout.WORK_DIR, whiteout.OVERLAY_DIR)

    def _whiteout(self, path: bytes, item: Item) -> None:
        shipped = self.shipped
        is_long = whiteout.classify(item.name).meaning is Meaning.LONG_WHITEOUT
        if is_long and not shipped.branch.is_rw and shipped.branch.entry is None:
            self.add("long-whiteout", item.path, f"of {show(path)}")
        if not is_long:
            self._form(item)
        if path in shipped.entries:
            self.add("whiteout-beside-entry", item.path, f"beside {kind_name(self._type(path))}")
        elif path in self._filled and shipped.is_archive:
            self.add("whiteout-beside-entry", item.path, "beside a directory that members imply")
        cover = shipped.opaque.get(item.parent) or shipped.covered(path)
        if cover is not None:
            self.add("whiteout-in-opaque", item.path, f"under {show(b'/' + cover.path)}")

    def _type(self, path: bytes) -> int:
        return self.shipped.entries[path].fmt

    def _form(self, item: Item) -> None:
        """Check that a marker is an empty regular file; a hard link to one is."""
        if item.fmt != stat.S_IFREG:
            self.add("whiteout-not-regular", item.path, f"it is a {kind_name(item.fmt)}")
        elif item.size:
            self.add("whiteout-not-empty", item.path, f"{item.size} bytes")

    def _dangling(self, effect: Effect) -> None:
        if effect.kind == "opaque":
            # Over a file the marker is of use: it keeps AUFS from merging past it.
            if effect.path in self._guards:
                return
        elif effect.path in self.shipped.entries or self._through_link(effect.path):
            return
        if self._makes_parents(effect):
            self.add("whiteout-makes-directory", effect.item.path)
        else:
            what = "nothing there" if effect.kind == "opaque" else "no such name"
            is_base = self.shipped.branch.number == 1
            detail = "there is no layer below" if is_base else f"the layers below have {what}"
            self.add("dangling-whiteout", effect.item.path, detail)

    def _through_link(self, path: bytes) -> bool:
        return any(at in self._links for at in _ancestors(path, ()))

    def _makes_parents(self, effect: Effect) -> bool:
        """Tell whether the marker's directory is in no layer but for markers."""
        parent = effect.item.parent
        if effect.kind != "whiteout" or not parent or not self.is_aufs:
            return False
        if self.shipped.is_archive:
            return parent not in self.shipped.entries and self.tree.find(parent) is None
        node = self.tree.find(parent)
        return (
            node is not None
            and node.layer == self.shipped.branch.number
            and parent not in self._filled
            and parent not in self._kept_dirs
        )

    # -- names and dialects ------------------------------------------------------

    def _names(self) -> None:
        names: dict[tuple[bytes, str], list[bytes]] = {}
        for path, item in self.shipped.entries.items():
            length = len(item.name)
            if length > whiteout.NAME_MAX:
                self.add("name-over-255", path, f"{length} bytes")
            elif length > whiteout.MAX_NAME:
                self.add("name-over-251", path, f"{length} bytes")
            elif length > _AUFS_MAX:
                self.add("name-over-242", path, f"{length} bytes")
            if path:
                folded = item.name.decode("utf-8", "surrogateescape").casefold()
                names.setdefault((item.parent, folded), []).append(path)
        for same in names.values():
            for path in sorted(same)[1:]:
                self.add("case-collision", path, f"with {show(b'/' + min(same))}")

    def _dialects(self) -> None:
        shipped = self.shipped
        foreign = [item for item in shipped.entries.values() if item.is_zero_device]
        marked = [item for item in shipped.entries.values() if item.overlay]
        for item in foreign:
            self.add("device-zero", item.path)
        for item in marked:
            self.add("overlay-xattr", item.path, ", ".join(sorted(item.overlay)))
        if (foreign or marked) and (shipped.whiteouts or shipped.opaque):
            first = [*foreign, *marked][0]
            self.add("mixed-dialects", first.path, "other markers of this layer are `.wh.` files")

    def _overlay(self) -> None:
        """Check a layer that is said to be in one of overlayfs's forms."""
        shipped = self.shipped
        for item in shipped.housekeeping:
            self.add("mixed-dialects", item.path, "a marker of AUFS in a layer of overlayfs")
        mine = whiteout.opaque_xattr(shipped.branch.dialect)
        for item in shipped.entries.values():
            for attribute in item.overlay:
                if attribute.endswith(".opaque") and attribute != mine:
                    self.add("opaque-namespace", item.path, attribute)

    # -- archives ----------------------------------------------------------------

    def _archive(self) -> None:
        shipped = self.shipped
        for item in shipped.duplicates:
            self.add("duplicate-entry", item.path)
        if not shipped.is_archive:
            self._link_parents()
            return
        here = {item.path for item in shipped.items}
        for item in shipped.entries.values():
            if item.link is not None and item.link not in here:
                self.add("hardlink-to-lower", item.path, f"to {show(b'/' + item.link)}")
        for path in self._implied():
            self._implied_directory(path)
        self._order()

    def _implied(self) -> list[bytes]:
        """Return directories that members imply, but for those above markers alone."""
        found: set[bytes] = set()
        paths = [*self.shipped.entries, *self.shipped.whiteouts]
        for path in paths:
            at = path.rpartition(b"/")[0]
            while at and at not in self.shipped.entries and at not in found:
                found.add(at)
                at = at.rpartition(b"/")[0]
        return sorted(found)

    def _implied_directory(self, path: bytes) -> None:
        node = self.tree.find(path)
        if node is None:
            return
        if node.item.fmt == stat.S_IFLNK:
            self._parent_is_link(path, node.item)
        elif not node.is_dir:
            self.add("parent-is-file", path, f"a {kind_name(node.item.fmt)} in the layers below")
        elif (node.item.mode, node.item.uid, node.item.gid) != _DEFAULT:
            item = node.item
            self.add("implied-directory", path, f"{item.mode:04o} {item.uid}:{item.gid} below")

    def _parent_is_link(self, path: bytes, item: Item) -> None:
        self._links.add(path)
        base = b"" if item.target.startswith(b"/") else path.rpartition(b"/")[0] + b"/"
        leads_to = b"/".join(split_path(base + item.target))
        self.add("parent-is-link", path, "a symbolic link in the layers below", leads_to)

    def _link_parents(self) -> None:
        """Find directories over links that hold nothing but whiteouts: sloppy paths."""
        for path in self.shipped.whiteouts:
            parent = path.rpartition(b"/")[0]
            node = self.tree.find(parent) if parent else None
            if node is None or node.item.fmt != stat.S_IFLNK:
                continue
            if parent not in self._filled:
                self._parent_is_link(parent, node.item)

    def _order(self) -> None:
        """Find opaque markers behind members whose directories the archive does not have."""
        positions = {id(item): at for at, item in enumerate(self.shipped.items)}
        told: set[bytes] = set()
        for path, item in self.shipped.entries.items():
            top = path
            while top:
                directory = top.rpartition(b"/")[0]
                marker = self.shipped.opaque.get(directory)
                if marker is not None and directory not in told:
                    is_early = positions[id(item)] < positions[id(marker)]
                    if is_early and top not in self.shipped.entries:
                        self.add(
                            "opaque-without-parents", marker.path, f"after {show(b'/' + path)}"
                        )
                        told.add(directory)
                top = directory

    def _sandwich(self) -> None:
        for path, item in self.shipped.entries.items():
            if item.fmt != stat.S_IFDIR or path not in self.replaced:
                continue
            node = self.tree.find(path)
            is_guarded = path in self.shipped.opaque or path in self.shipped.whiteouts
            if node is not None and not node.is_dir and not is_guarded:
                self.add("file-between-directories", path, f"over a {kind_name(node.item.fmt)}")

    def _notes(self) -> None:
        """Tell what ingest noted about this layer and no finding says."""
        said = {show(finding.path) for finding in self.findings}
        said |= {show(path) for path in self.shipped.whiteouts}
        said |= {show(path) for path in self.shipped.opaque}
        for note in self.shipped.branch.notes:
            subject = note.partition(":")[0].lstrip("/").removeprefix("./")
            if not any(subject == path for path in said):
                self.add("changed-at-import", b"", note)


def _ancestors(path: bytes, known: Container[bytes]) -> Iterator[bytes]:
    """Yield the directories above a path, nearest first, up to one that is known already."""
    at = path.rpartition(b"/")[0]
    while at and at not in known:
        yield at
        at = at.rpartition(b"/")[0]


def explanation(rule: Rule) -> Iterator[str]:
    """Yield the lines that explain a rule in a terminal."""
    yield f"{rule.id} ({rule.severity.name.lower()}): {rule.title}"
    yield f"  {rule.why}"
    for who, what in rule.shows.items():
        yield f"  {who + ':':<17} {what}"
    yield f"  fix: {rule.fix}"
