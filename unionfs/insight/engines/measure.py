"""From what an engine shows, path by path, to how it differs from the reference.

Invariant: memory grows with the first tree only and with differences; every other engine's tree
is compared while it is read.
"""

from __future__ import annotations

import stat
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping

import attrs

from unionfs.insight.engines.seen import (
    Difference,
    Outcome,
    Seen,
    Shown,
    Status,
    View,
    differences,
    is_compared,
    link_groups,
)

__all__ = ["Reference", "measure"]


@attrs.frozen
class Reference:
    """The tree that others are compared with. `links` is as of `link_groups`."""

    tree: dict[bytes, Seen]
    links: dict[bytes, bytes]
    view: View


def measure(shown: Iterable[Shown], reference: Reference | None, view: View) -> Outcome:
    """Read what an engine shows; without a reference, keep it to be one."""
    outcome = Outcome(Status("ok"), view.left_out)
    if reference is None:
        keys: list[tuple[bytes, Hashable]] = []
        for path, seen, key in shown:
            if seen.fmt == stat.S_IFSOCK:
                continue
            outcome.tree[path] = seen
            keys.append((path, key))
        outcome.links = link_groups(keys)
        return outcome
    return _compared(outcome, shown, reference, view.both(reference.view))


def _compared(
    outcome: Outcome, shown: Iterable[Shown], reference: Reference, view: View
) -> Outcome:
    met: set[bytes] = set()
    found: dict[bytes, Difference] = {}
    keys: list[tuple[bytes, Hashable]] = []
    for path, seen, key in shown:
        met.add(path)
        known = reference.tree.get(path)
        if key is not None or path in reference.links:
            keys.append((path, key))
        if known is None:
            if is_compared(seen, view):
                found[path] = Difference(("extra",), seen)
        elif is_compared(known, view):
            what = differences(known, seen, view)
            if what:
                found[path] = Difference(what, seen)
    for path, known in reference.tree.items():
        if path not in met and is_compared(known, view):
            found[path] = Difference(("absent",), None)
    for path in _other_links(reference, link_groups(keys), met):
        found.setdefault(path, Difference(("hard links",), reference.tree[path]))
    outcome.differences = _outermost(found)
    return outcome


def _other_links(
    reference: Reference, links: Mapping[bytes, bytes], met: Container[bytes]
) -> Iterator[bytes]:
    """Yield names that are linked otherwise, of those that both engines show."""
    old = _among(reference.links, met)
    new = _among(links, reference.tree)
    for path in sorted(old.keys() | new.keys()):
        first, other = old.get(path, path), new.get(path, path)
        if first and other and first != other:
            yield path


def _among(links: Mapping[bytes, bytes], names: Container[bytes]) -> dict[bytes, bytes]:
    """Return the groups with only some of their names; unknown ones keep their empty first."""
    kept = {path: first for path, first in links.items() if path in names}
    unknown = {path: first for path, first in kept.items() if not first}
    return link_groups((path, first) for path, first in kept.items() if first) | unknown


def _outermost(found: dict[bytes, Difference]) -> dict[bytes, Difference]:
    """Leave out what is absent or extra with a directory above it; count it there."""
    kept: dict[bytes, Difference] = {}
    counts: dict[bytes, int] = {}
    for path in sorted(found):
        item = found[path]
        parent = path.rpartition(b"/")[0] if path else None
        above = found.get(parent) if parent is not None else None
        if above is not None and above.what == item.what and item.what in (("absent",), ("extra",)):
            top = parent
            while top is not None and top not in kept:
                top = top.rpartition(b"/")[0]
            if top is not None:
                counts[top] = counts.get(top, 0) + 1
                continue
        kept[path] = item
    return {
        path: Difference(item.what, item.seen, counts.get(path, 0)) for path, item in kept.items()
    }
