"""An oracle: OCI layers applied one after the other to a tree in memory.

Written from the specification (image-spec, layer.md) and independent of unionfs: a layer's
whiteouts and opaque markers act on the layers below only, then its members are applied in archive
order, the last one of a name winning, missing parents (or parents that are no directories)
becoming directories. A directory that only its members imply keeps the attributes it had.

Invariant: `Model.tree` is what a reader of the image must see.
"""

from __future__ import annotations

from collections.abc import Iterable

from support.layers import Member
from support.rows import Node

__all__ = ["Model", "RefusedError"]

_OPAQUE = b".wh..wh..opq"


class RefusedError(Exception):
    """The layer cannot be applied (a hard link to nothing, to a directory, to itself)."""


class Model:
    """The merged tree; `apply` puts a layer on top."""

    def __init__(self) -> None:
        self.tree: dict[bytes, Node] = {}

    def apply(self, members: Iterable[Member]) -> None:
        """Apply a layer. Raises `RefusedError`; the model then is unusable."""
        layer = [(member.name.rstrip(b"/"), member) for member in members]
        below = dict(self.tree)
        own: dict[bytes, Node] = {}
        implied: set[bytes] = set()
        hidden: set[bytes] = set()
        for path, member in layer:
            parent, _, name = path.rpartition(b"/")
            if name == _OPAQUE:
                hidden |= {item for item in below if _inside(item, parent)}
            elif name.startswith(b".wh."):
                target = b"/".join(filter(None, (parent, name[4:])))
                hidden |= {item for item in below if item == target or _inside(item, target)}
            else:
                self._member(path, member, own, below, implied)
        merged = {path: node for path, node in below.items() if path not in hidden}
        for path, node in own.items():
            old = merged.get(path)
            if node[0] != "d" or old is None or old[0] != "d":
                _drop(merged, path)
            lower = below.get(path)
            keeps = path in implied and lower is not None and lower[0] == "d"
            merged[path] = lower if keeps and lower is not None else node
        self.tree = merged

    def _member(
        self,
        path: bytes,
        member: Member,
        own: dict[bytes, Node],
        below: dict[bytes, Node],
        implied: set[bytes],
    ) -> None:
        node: Node
        if member.kind == "hardlink":
            target = member.target
            found = own.get(target) or below.get(target)
            if found is None or found[0] == "d" or target == path:
                raise RefusedError
            if _inside(path, target) and target in own:
                raise RefusedError
            if _inside(target, path) and target in own:
                raise RefusedError
            node = found
        elif member.kind == "dir":
            mode = 0o755 if member.mode == 0o644 else member.mode
            node = ("d", b"%o" % mode)
        elif member.kind == "symlink":
            node = ("l", member.target)
        else:
            node = ("f", member.data)
        parts = path.split(b"/")
        for length in range(1, len(parts)):
            parent = b"/".join(parts[:length])
            if own.get(parent, ("-", b""))[0] != "d":
                _drop(own, parent)
                own[parent] = ("d", b"755")
                implied.add(parent)
        if node[0] == "d" and own.get(path, ("-", b""))[0] == "d":
            own[path] = node
        else:
            _drop(own, path)
            own[path] = node
        implied.discard(path)


def _inside(path: bytes, directory: bytes) -> bool:
    return not directory or path.startswith(directory + b"/")


def _drop(tree: dict[bytes, Node], path: bytes) -> None:
    for item in [item for item in tree if item == path or _inside(item, path)]:
        del tree[item]
