"""Questions about one path: where it is, what is in it, why it is as it is.

Invariant: nothing here needs the path's directory to be open, and nothing is read but what the
answer takes.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from unionfs.branch import Stack
from unionfs.errors import NotFoundError, show
from unionfs.explore.model import Explorer, Folder, Kind, Lens, Tick, up_to
from unionfs.insight.explain import explain
from unionfs.insight.probe import join, split_path
from unionfs.insight.where import Where
from unionfs.insight.wording import lines

__all__ = ["add_up", "find", "first_bytes", "unshow", "verdict"]

#: As many links on the way as Linux follows.
_LINKS: Final = 40
_VIEWED: Final = 64 * 1024
_SHOWN: Final = 1000
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([nrt\\]))")
_CONTROLS: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}


def unshow(text: str) -> bytes:
    r"""Return the name that `show` shows so; a backslash that begins no escape is one."""
    parts = []
    at = 0
    for match in _ESCAPE.finditer(text):
        parts.append(os.fsencode(text[at : match.start()]))
        byte, code, long_code, control = match.groups()
        if byte is not None:
            parts.append(bytes.fromhex(byte))
        elif control is not None:
            parts.append(_CONTROLS[control])
        else:
            number = int(code or long_code, 16)
            parts.append(chr(min(number, 0x10FFFF)).encode("utf-8", "surrogatepass"))
        at = match.end()
    return b"".join([*parts, os.fsencode(text[at:])])


def find(explorer: Explorer, lens: Lens, path: bytes) -> tuple[bytes, frozenset[Kind]]:
    """Return where a path is in the tree, links on the way followed, and the kinds on the way.

    `NotFoundError` says what is nearest when no layer has it.
    """
    where = up_to(explorer.where, lens.top)
    for _ in range(_LINKS):
        kinds = _kinds(explorer, lens, path)
        if kinds is not None:
            return path, kinds
        try:
            found = explain(where, path)
        except OSError as exc:
            raise NotFoundError(f"{show(b'/' + path)}: {exc.strerror}") from exc
        if found.see is None:
            raise NotFoundError(f"{show(found.path)}: {found.words}")
        path = b"/".join(split_path(found.see))
    raise NotFoundError(f"{show(b'/' + path)}: too many links")


def _kinds(explorer: Explorer, lens: Lens, path: bytes) -> frozenset[Kind] | None:
    """Return the kinds of a path's components; None when it is not there."""
    folder: Folder | None = explorer.root(lens)
    kinds = set()
    for name in split_path(path):
        if folder is None or not folder.has(name):
            return None
        kinds.add(folder.kind(name))
        folder = explorer.inner(folder, name)
    return frozenset(kinds)


def first_bytes(explorer: Explorer, folder: Folder, name: bytes) -> bytes:
    """Return the beginning of a regular file. Raises `OSError`."""
    branch = explorer.branch(folder.entry(name).number)
    directory = branch.open_path(folder.path)
    try:
        if branch.status(directory, name or b".").placeholder:
            raise NotFoundError(f"{show(b'/' + join(folder.path, name))} is not a regular file")
        fd = branch.open_file(directory, name or b".", os.O_RDONLY)
        try:
            return os.read(fd, _VIEWED)
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def add_up(explorer: Explorer, folder: Folder, name: bytes, tick: Tick) -> tuple[int, int]:
    """Return number and bytes of the files in what is shown of a directory; it keeps the bytes.

    The names of one file count as many, its bytes once.
    """
    stack = Stack(explorer.branches(explorer.source(folder, name)))
    seen: set[tuple[int, int]] = set()
    files = size = 0
    for _, view, inner in stack.walk(join(folder.path, name) if name else b""):
        tick()
        branch, fd = view.top(inner)
        status = branch.status(fd, inner)
        if status.fmt == stat.S_IFDIR:
            continue
        files += 1
        if status.fmt == stat.S_IFREG and (status.dev, status.ino) not in seen:
            size += status.size
            if status.nlink > 1:
                seen.add((status.dev, status.ino))
    folder.sums[name] = size
    return files, size


def verdict(where: Where, top: int, path: bytes) -> list[tuple[str, str]]:
    """Return what `unionfs explain` says of a path, as (line, style).

    Where `top` is not the topmost layer, the verdict of all layers comes after it.
    """
    looked_at = up_to(where, top)
    found = explain(looked_at, path)
    words = list(lines(found))
    told = [(words[0], "strong")] + [(line, _style(line)) for line in words[1:_SHOWN]]
    if len(words) > _SHOWN:
        told.append((f"  and {len(words) - _SHOWN} more lines of `unionfs explain`", "dim"))
    if found.advice:
        told += [("", ""), *((f"unionfs: {line}", "link") for line in found.advice)]
    whole = found if looked_at == where else explain(where, path)
    if whole.words != found.words:
        told += [("", ""), (f"With all layers: {whole.words}", "strong")]
    return told


def _style(line: str) -> str:
    """Return how a line of facts looks: what is not there steps back."""
    return "dim" if line.endswith(" absent") else ""
