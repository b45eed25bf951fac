"""The difference of two merged trees, with the layer that causes each change.

Invariant: changes are sorted by path and name each path once; a deleted directory stands for all
in it. Directories that both sides take from the same branches are equal and are not read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from unionfs.branch import Branch, DirView, Stack
from unionfs.errors import show
from unionfs.insight.aspects import Place, differences
from unionfs.insight.probe import Barring, join, kind_name, probe
from unionfs.insight.where import NamedBranch, Where

__all__ = ["Difference", "compare"]


@attrs.frozen
class Difference:
    """A changed path.

    `kind` is A, C or D. `branch` is the one of the second tree (for D without a marker: of the
    first) that causes it; `cause` says how. `what` differs in a changed one. Sizes are bytes of
    the file before and after; for a deleted directory, of all files in it.
    """

    kind: str
    path: bytes
    fmt: int
    branch: NamedBranch
    cause: str
    what: tuple[str, ...] = ()
    old_size: int = 0
    new_size: int = 0

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "kind": self.kind,
            "path": b"/" + self.path,
            "type": kind_name(self.fmt),
            "what": list(self.what),
            "old_size": self.old_size,
            "new_size": self.new_size,
            "cause": self.cause,
            "branch": self.branch.document(),
        }


def compare(first: Where, second: Where, *, semantic: bool = False) -> list[Difference]:
    """Return what changes from `first` to `second`; `semantic` ignores times."""
    with first.stack() as old, second.stack() as new:
        return sorted(
            _Comparison(first, second, old, new, semantic=semantic).run(),
            key=lambda item: item.path,
        )


class _Comparison:
    """One run over both trees."""

    def __init__(
        self, first: Where, second: Where, old: Stack, new: Stack, *, semantic: bool
    ) -> None:
        self._first = first
        self._second = second
        self._old = old
        self._new = new
        self._times = not semantic

    def run(self) -> Iterator[Difference]:
        """Compare both roots and all below."""
        pending = [b""]
        while pending:
            path = pending.pop()
            old, new = self._old.view(path), self._new.view(path)
            if old is not None and new is not None:
                if not self._same(old, new):
                    yield from self._directory(path, old, new, pending)
            elif new is not None:
                yield from self._all_added(path)

    def _same(self, old: DirView, new: DirView) -> bool:
        """Tell whether both merge the same directories of the same branches."""
        return _identity(old, self._old.branches) == _identity(new, self._new.branches)

    def _directory(
        self, path: bytes, old: DirView, new: DirView, pending: list[bytes]
    ) -> Iterator[Difference]:
        for name in sorted(old.listing.keys() - new.listing.keys()):
            yield self._deleted(join(path, name), old, name)
        for name in sorted(new.listing):
            inner = join(path, name)
            branch, fd = new.top(name)
            if name not in old.listing:
                yield self._added(inner, Place(branch, fd, name), new.listing[name].branches[0])
            else:
                before = Place(*old.top(name), name)
                found = self._changed(inner, before, Place(branch, fd, name), new, name)
                if found is not None:
                    yield found
            if new.listing[name].is_dir:
                pending.append(inner)

    def _all_added(self, path: bytes) -> Iterator[Difference]:
        for inner, view, name in self._new.walk(path):
            branch, fd = view.top(name)
            yield self._added(inner, Place(branch, fd, name), view.listing[name].branches[0])

    def _added(self, path: bytes, place: Place, position: int) -> Difference:
        status = place.status()
        return Difference(
            "A",
            path,
            status.fmt,
            self._second.branches[position],
            "entry",
            new_size=status.size if status.fmt == stat.S_IFREG else 0,
        )

    def _changed(
        self, path: bytes, before: Place, after: Place, new: DirView, name: bytes
    ) -> Difference | None:
        old_status, new_status = before.status(), after.status()
        if (old_status.dev, old_status.ino) == (new_status.dev, new_status.ino):
            return None
        what = differences(before, after, times=self._times)
        if not what:
            return None
        return Difference(
            "C",
            path,
            new_status.fmt,
            self._second.branches[new.listing[name].branches[0]],
            "entry",
            what,
            old_status.size if old_status.fmt == stat.S_IFREG else 0,
            new_status.size if new_status.fmt == stat.S_IFREG else 0,
        )

    def _deleted(self, path: bytes, old: DirView, name: bytes) -> Difference:
        status = old.status(name)
        fmt = status.fmt if status is not None else 0
        size = status.size if status is not None and fmt == stat.S_IFREG else 0
        if fmt == stat.S_IFDIR:
            size = sum(
                found.size
                for _, view, inner in self._old.walk(path)
                if (found := view.status(inner)) is not None and found.fmt == stat.S_IFREG
            )
        for named, branch in zip(self._second.branches, self._new.branches, strict=True):
            for barrier in probe(branch, path.split(b"/")).barriers:
                if barrier.kind in (Barring.WHITEOUT, Barring.OPAQUE, Barring.NOT_DIRECTORY):
                    cause = barrier.kind.value
                    at = barrier.marker or barrier.at
                    return Difference(
                        "D", path, fmt, named, f"{cause} {show(b'/' + at)}", old_size=size
                    )
        position = old.listing[name].branches[0]
        return Difference(
            "D",
            path,
            fmt,
            self._first.branches[position],
            "the layer is not part of the second",
            old_size=size,
        )


def _identity(view: DirView, branches: Sequence[Branch]) -> list[tuple[int, int, str]]:
    found = []
    for position, fd in view.fds.items():
        st = os.stat(b".", dir_fd=fd)
        found.append((st.st_dev, st.st_ino, branches[position].dialect.value))
    return found
