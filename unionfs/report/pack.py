"""The paths of a report as a few flat columns, small and quick to read for a browser.

Columns, in the order of the paths (parents first): `names`, joined by `/`, the one byte that no
name contains; `kids`, the number of children; `counts`, the number of versions. Then, in the order
of the versions: `kinds`, an index into the table `kind`, and `sizes` in bytes. A row of `kind` is
layer, type, mode, uid, gid, wasted (0 or 1), and its cause: 0 for a version that is not hidden,
else 1 + an index into `cause`. A row of `cause` is layer, kind, marker; the marker is empty
when it is the path itself.

Invariant: `pack` depends on the picture alone, and a path without which the tree would have
a hole is there, without versions.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from typing import Any

from unionfs.insight.probe import kind_name
from unionfs.report.picture import Picture, Version

__all__ = ["columns", "packed"]


class _Table:
    """Different rows, in the order in which they came, and the number of each."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self._known: dict[tuple[Any, ...], int] = {}

    def number(self, *row: Any) -> int:
        found = self._known.get(row)
        if found is None:
            found = self._known[row] = len(self.rows)
            self.rows.append(list(row))
        return found


def columns(picture: Picture) -> dict[str, Any]:
    """Return the paths of a picture as columns."""
    names: list[str] = []
    kids: list[int] = []
    counts: list[int] = []
    kinds: list[int] = []
    sizes: list[int] = []
    kind, cause = _Table(), _Table()
    places: dict[bytes, int] = {}
    for path in _with_parents(picture):
        versions = picture.paths.get(path, ())
        if path:
            kids[places[path.rpartition(b"/")[0]]] += 1
        places[path] = len(names)
        names.append(os.fsdecode(path.rpartition(b"/")[2]))
        kids.append(0)
        counts.append(len(versions))
        for version in versions:
            item = version.item
            row = (kind_name(item.fmt), item.mode, item.uid, item.gid, int(version.wasted))
            kinds.append(kind.number(version.layer, *row, _cause(cause, path, version)))
            sizes.append(item.size)
    return {
        "names": "/".join(names),
        "kids": kids,
        "counts": counts,
        "kinds": kinds,
        "sizes": sizes,
        "kind": kind.rows,
        "cause": cause.rows,
    }


def _cause(table: _Table, path: bytes, version: Version) -> int:
    cause = version.cause
    if cause is None:
        return 0
    marker = "" if cause.marker == path else os.fsdecode(b"/" + cause.marker)
    return 1 + table.number(cause.layer, cause.kind, marker)


def _with_parents(picture: Picture) -> list[bytes]:
    """Return the sorted paths, the root and whatever lies between first."""
    found = {b"", *picture.paths}
    for path in picture.paths:
        at = path.rpartition(b"/")[0]
        while at not in found:
            found.add(at)
            at = at.rpartition(b"/")[0]
    return sorted(found, key=lambda path: path.split(b"/") if path else [])


def packed(document: dict[str, Any]) -> str:
    """Return a document as JSON, compressed (zlib), in base64: letters, digits, `+`, `/`, `=`.

    Names that are not UTF-8 keep their bytes as surrogates, as in all our JSON.
    """
    text = json.dumps(document, separators=(",", ":"), default=os.fsdecode)
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")
