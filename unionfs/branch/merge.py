"""How branches merge: which branch gives each name, and what lies behind a path.

Invariant: the merged view depends only on the branches' scans, top first, by one
rule: a name belongs to the first branch that has it; a whiteout or an opaque
directory ends the search below its branch; directories merge until something that
is not a directory, a whiteout or an opaque marker lies between (OCI image-spec,
layer.md; kernel overlayfs agrees; AUFS lets directories merge past a file).
An entry and its own whiteout in one branch: the entry wins and hides all below.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

from unionfs.branch.branch import Branch, DirScan, Status
from unionfs.closing import Closing

__all__ = ["Child", "DirView", "Stack", "merge"]

#: Views kept open by a stack, and the fds they may hold together (1024 is a usual limit).
_VIEWS = 256
_FDS = 256


class Child(NamedTuple):
    """A visible name: on-disk type and the positions of the branches that give it.

    A directory has every contributing branch, top first; anything else exactly one.
    """

    fmt: int
    branches: tuple[int, ...]

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return self.fmt == stat.S_IFDIR


def merge(scans: Iterable[tuple[int, DirScan]]) -> dict[bytes, Child]:
    """Merge one directory's scans, given as (branch position, scan) top first."""
    merged: dict[bytes, Child] = {}
    # Names that nothing below may add to: hidden, or taken by a non-directory.
    closed: set[bytes] = set()
    singles: dict[tuple[int, int], Child] = {}
    for position, scan in scans:
        for name, fmt in scan.entries.items():
            if name in closed:
                continue
            known = merged.get(name)
            if known is None:
                child = singles.get((fmt, position))
                if child is None:
                    child = singles[fmt, position] = Child(fmt, (position,))
                merged[name] = child
            elif fmt == stat.S_IFDIR:
                merged[name] = Child(fmt, (*known.branches, position))
            if fmt != stat.S_IFDIR:
                closed.add(name)
        closed |= scan.whiteouts
        if scan.opaque:
            break
    return merged


class DirView:
    """One merged directory: open fds of the contributing branches and the merged listing.

    The fds live as long as the object.
    """

    def __init__(self, branches: Sequence[Branch], fds: Sequence[tuple[int, int]]) -> None:
        self._branches = branches
        self.fds = dict(fds)
        self._listing: dict[bytes, Child] | None = None

    def __del__(self) -> None:
        for fd in self.fds.values():
            os.close(fd)

    @property
    def listing(self) -> dict[bytes, Child]:
        """Visible names, read from the branches at first use."""
        if self._listing is None:
            self._listing = merge(
                (position, self._branches[position].scan(fd)) for position, fd in self.fds.items()
            )
        return self._listing

    def top(self, name: bytes) -> tuple[Branch, int]:
        """Return branch and directory fd of the top-most branch that gives `name`."""
        position = self.listing[name].branches[0]
        return self._branches[position], self.fds[position]

    def status(self, name: bytes) -> Status | None:
        """Return the attributes of a visible name, or None."""
        if name not in self.listing:
            return None
        branch, fd = self.top(name)
        return branch.status(fd, name)

    def own_status(self) -> Status:
        """Return the attributes of the directory itself (the top-most branch's)."""
        position, fd = next(iter(self.fds.items()))
        return self._branches[position].status(fd, b".")

    def enter(self, name: bytes) -> DirView | None:
        """Return the merged subdirectory `name`, or None when there is none."""
        child = self.listing.get(name)
        if child is None or not child.is_dir:
            return None
        fds: list[tuple[int, int]] = []
        try:
            for position in child.branches:
                branch = self._branches[position]
                fds.append((position, branch.open_dir(self.fds[position], name)))
        except OSError:
            for _, fd in fds:
                os.close(fd)
            raise
        return DirView(self._branches, fds)


class Stack(Closing):
    """A read-only merged view of branches, top first, addressed by relative paths.

    It caches listings: use it only while nobody changes the branches.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        if not branches:
            raise ValueError("a stack needs at least one branch")
        self.branches = tuple(branches)
        self._views: OrderedDict[bytes, DirView] = OrderedDict()
        self._open = 0

    @classmethod
    def open(cls, paths: Iterable[bytes]) -> Self:
        """Open directories, top first, as a stack."""
        branches: list[Branch] = []
        try:
            branches.extend(Branch.open(path) for path in paths)
        except OSError:
            for branch in branches:
                branch.close()
            raise
        return cls(branches)

    def close(self) -> None:
        """Release every fd."""
        self._views.clear()
        self._open = 0
        for branch in self.branches:
            branch.close()

    def root(self) -> DirView:
        """Return the merged root directory."""
        fds = [(position, os.dup(branch.fd)) for position, branch in enumerate(self.branches)]
        return DirView(self.branches, fds)

    def view(self, path: bytes) -> DirView | None:
        """Return the merged directory at the relative `path` (`b""` is the root), or None.

        Symbolic links are not followed: a link on the way gives None.
        """
        found = self._views.get(path)
        if found is not None:
            self._views.move_to_end(path)
            return found
        # From the nearest known ancestor down; not recursive, names may have 2000 components.
        below: list[bytes] = []
        while path and path not in self._views:
            path, _, name = path.rpartition(b"/")
            below.append(name)
        found = self._views.get(path)
        if found is None:
            found = self.root()
            self._remember(path, found)
        for name in reversed(below):
            found = found.enter(name)
            if found is None:
                return None
            path = path + b"/" + name if path else name
            self._remember(path, found)
        return found

    def _remember(self, path: bytes, view: DirView) -> None:
        self._views[path] = view
        self._open += len(view.fds)
        while len(self._views) > 1 and (len(self._views) > _VIEWS or self._open > _FDS):
            self._open -= len(self._views.popitem(last=False)[1].fds)

    def find(self, path: bytes) -> tuple[DirView, bytes] | None:
        """Return the parent view and name of a visible entry below the root, or None."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self.view(parent_path)
        if parent is None or name not in parent.listing:
            return None
        return parent, name

    def status(self, path: bytes) -> Status | None:
        """Return the attributes of the entry at `path`, or None when nothing is visible."""
        if not path:
            return self.root().own_status()
        found = self.find(path)
        return None if found is None else found[0].status(found[1])

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, DirView, bytes]]:
        """Yield (path, parent view, name) of everything below `path`, parents first, sorted."""
        # Only names are kept between two steps, so depth costs neither stack nor fds.
        pending = [path]
        while pending:
            at = pending.pop()
            parent_path, _, name = at.rpartition(b"/")
            if at != path:
                parent = self.view(parent_path)
                if parent is None:
                    continue
                yield at, parent, name
                if not parent.listing[name].is_dir:
                    continue
            view = self.view(at)
            if view is not None:
                prefix = at + b"/" if at else b""
                pending += [prefix + inner for inner in sorted(view.listing, reverse=True)]
