"""Layers laid out on disk as an archive spells them, without any normal form.

What several unions mount in practice: one directory per layer, whiteouts and all as they came.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from support.layers import Member

__all__ = ["lay_out", "lay_out_all"]


def lay_out(members: Iterable[Member], root: Path) -> Path:
    """Make `root` of the members, the last of a name winning; implied parents are 0755."""
    root.mkdir(parents=True)
    top = os.fsencode(root)
    for member in members:
        path = os.path.join(top, os.path.normpath(member.name.strip(b"/")))
        _make_parents(top, path)
        if member.kind == "dir":
            if not os.path.isdir(path):
                os.mkdir(path)
            os.chmod(path, 0o755 if member.mode == 0o644 else member.mode)
            continue
        if os.path.lexists(path):
            os.unlink(path)
        if member.kind == "symlink":
            os.symlink(member.target, path)
        elif member.kind == "hardlink":
            _link(os.path.join(top, member.target), path)
        elif member.kind == "char":
            os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(*member.rdev))
        else:
            Path(os.fsdecode(path)).write_bytes(member.data)
    return root


def _make_parents(top: bytes, path: bytes) -> None:
    parent = os.path.dirname(path)
    if parent == top or os.path.isdir(parent):
        return
    _make_parents(top, parent)
    os.mkdir(parent, 0o755)


def _link(source: bytes, path: bytes) -> None:
    """Link inside the layer; a link to a file of a layer below becomes an empty file."""
    if os.path.lexists(source):
        os.link(source, path, follow_symlinks=False)
    else:
        Path(os.fsdecode(path)).write_bytes(b"")


def lay_out_all(layers: Sequence[Iterable[Member]], root: Path) -> list[bytes]:
    """Make one directory per layer (given base first); return their paths, top first."""
    made = [lay_out(members, root / f"layer{number}") for number, members in enumerate(layers, 1)]
    return [os.fsencode(path) for path in reversed(made)]
