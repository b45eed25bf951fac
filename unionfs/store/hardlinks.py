"""Which names of a layer are hard links of one file: `hardlinks.json` of its entry.

A union copies all names of a file up together and must find them without walking the layer.
The table holds names and no inode numbers, so it survives copying a store elsewhere.

Invariant: the loaded table has an inode number of the layer for every group whose first name
is still there, and lists names relative to the layer, sorted. A wrong table costs correctness of
link counts only, never safety: names are looked up without following links.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from unionfs.branch import Branch
from unionfs.errors import StoreError
from unionfs.store._fs import directory, read_file
from unionfs.store.names import split

__all__ = [
    "HARDLINKS_NAME",
    "HardlinkTable",
    "encode_hardlinks",
    "load_hardlinks",
    "scan_hardlinks",
]

HARDLINKS_NAME: Final = b"hardlinks.json"
_MAX: Final = 256 << 20

#: Inode number in the layer -> all names of that file in the layer.
HardlinkTable = Mapping[int, tuple[bytes, ...]]


def encode_hardlinks(groups: Sequence[Sequence[bytes]]) -> bytes:
    r"""Return `hardlinks.json`: a list of lists of paths.

    Bytes that are not UTF-8 stand as `\udc80` to `\udcff` (PEP 383), which ASCII JSON can say.
    """
    return json.dumps([[os.fsdecode(path) for path in group] for group in groups]).encode()


def load_hardlinks(image_path: bytes, layer: Branch) -> HardlinkTable:
    """Return the table of the entry at `image_path`, whose layer is open as `layer`.

    An entry without the file (early Docker's) is scanned. Raises `StoreError` when it is damaged.
    """
    try:
        with directory(image_path) as fd:
            raw = read_file(HARDLINKS_NAME, fd, _MAX, "`hardlinks.json` of a layer")
    except FileNotFoundError:
        return scan_hardlinks(layer)
    try:
        groups = [tuple(os.fsencode(path) for path in group) for group in json.loads(raw)]
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"`hardlinks.json` of a layer is damaged: {error}") from error
    table: dict[int, tuple[bytes, ...]] = {}
    for group in groups:
        for path in group:
            ino = _inode(layer, path)
            if ino is not None:
                table[ino] = group
                break
    return table


def _inode(layer: Branch, path: bytes) -> int | None:
    parent, name = split(path)
    try:
        dirfd = layer.open_path(parent)
    except OSError:
        return None
    try:
        return os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_ino
    except OSError:
        return None
    finally:
        os.close(dirfd)


def scan_hardlinks(layer: Branch) -> HardlinkTable:
    """Return the table of a directory tree by walking it once."""
    found: dict[int, list[bytes]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        dirfd = layer.open_path(path)
        try:
            prefix = path + b"/" if path else b""
            for name, fmt in layer.scan(dirfd).entries.items():
                if fmt == stat.S_IFDIR:
                    pending.append(prefix + name)
                    continue
                st = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
                if st.st_nlink > 1 and st.st_dev == layer.device:
                    found.setdefault(st.st_ino, []).append(prefix + name)
        finally:
            os.close(dirfd)
    return {ino: tuple(sorted(paths)) for ino, paths in found.items() if len(paths) > 1}
