"""Shim layers: metadata-only directories that teach kernel overlayfs AUFS's whiteouts.

A layer with markers is mounted as `hide`, the layer, `wh`: `wh` below it says in overlayfs's
own language what the markers say (a character device 0/0 for a hidden name, the opaque
xattr for a closed directory), and `hide` above it removes the marker names from view.
Directories of `hide` supply owner, mode, times and xattrs of what is shown, so they copy
the layer's.

Invariant: the layer is never touched; a shim set that exists under its final name is
complete, because it is built aside and renamed. Layers never change, so neither do shims.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Final

import attrs
import msgspec

from unionfs import _sys
from unionfs.branch.branch import proc_path
from unionfs.errors import UnsupportedError, show
from unionfs.kernel import trees
from unionfs.kernel.survey import Kind, LayerFacts, Marked, Survey, survey

__all__ = ["ShimSet", "facts_of", "lower_directories", "prepare", "prepare_temporary"]

_FACTS: Final = b"facts.json"
_HIDE: Final = b"hide"
_WH: Final = b"wh"
_FORMAT: Final = 1
_STAGING: Final = b".new-"


@attrs.frozen
class ShimSet:
    """A layer's facts and its shim directories; None where it needs no such shim."""

    layer: bytes
    facts: LayerFacts
    hide: bytes | None
    wh: bytes | None


def prepare(layer: bytes, cache: bytes, kind: Kind) -> ShimSet:
    """Return the shims of `layer`, building them in the directory `cache` at first use.

    `cache` is made when absent (its parent must exist). Each kind has its own
    set there. UnsupportedError when the filesystem of `cache` cannot hold them.
    """
    found = _load(layer, cache, kind)
    if found is not None:
        return found
    target = cache + b"/" + kind.value.encode()
    with contextlib.suppress(FileExistsError):
        os.mkdir(cache, 0o700)
    staging = cache + b"/" + _STAGING + secrets.token_hex(8).encode()
    os.mkdir(staging, 0o700)
    try:
        with _explained(layer, staging):
            walk = survey(layer, kind)
            _build(layer, staging, walk, kind)
            _write_facts(staging, walk.facts)
        with contextlib.suppress(OSError):
            # Somebody else may have been first: theirs is as good.
            os.rename(staging, target)
            staging = b""
    finally:
        if staging:
            _remove(staging)
    found = _load(layer, cache, kind)
    if found is None:
        raise UnsupportedError(f"the prepared layers in {show(target)} are damaged; remove them")
    return found


def prepare_temporary(layer: bytes, directory: bytes, kind: Kind) -> ShimSet:
    """Return the shims of a layer without a cache, built in `directory`, made if needed at all.

    Errors as of `prepare`; the caller removes `directory`.
    """
    with _explained(layer, directory):
        walk = survey(layer, kind)
        facts = walk.facts
        if facts.reserved:
            os.mkdir(directory, 0o700)
            _build(layer, directory, walk, kind)
    return _shims_in(layer, directory, facts)


@contextlib.contextmanager
def _explained(layer: bytes, place: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise UnsupportedError(
            f"overlay: cannot prepare {show(layer)}: {exc.strerror} ({show(exc.filename or place)})"
        ) from exc


def _remove(path: bytes) -> None:
    parent, name = os.path.split(path)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        trees.remove_tree(fd, name)
    finally:
        os.close(fd)


def facts_of(cache: bytes, kind: Kind) -> LayerFacts | None:
    """Return the facts of a layer whose shims are in `cache`; None when they are not."""
    try:
        with open(cache + b"/" + kind.value.encode() + b"/" + _FACTS, "rb") as file:
            facts = msgspec.json.decode(file.read(), type=LayerFacts)
    except (OSError, msgspec.MsgspecError):
        return None
    return facts if facts.format == _FORMAT else None


def _load(layer: bytes, cache: bytes, kind: Kind) -> ShimSet | None:
    facts = facts_of(cache, kind)
    if facts is None:
        return None
    found = _shims_in(layer, cache + b"/" + kind.value.encode(), facts)
    if any(shim is not None and not os.path.isdir(shim) for shim in (found.hide, found.wh)):
        return None
    return found


def _shims_in(layer: bytes, directory: bytes, facts: LayerFacts) -> ShimSet:
    hide = directory + b"/" + _HIDE if facts.reserved else None
    wh = directory + b"/" + _WH if facts.whiteouts else None
    return ShimSet(layer, facts, hide, wh)


def _build(layer: bytes, staging: bytes, walk: Survey, kind: Kind) -> None:
    facts = walk.facts
    stage = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    source = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if facts.reserved:
            _build_hide(source, stage, walk)
        if facts.whiteouts:
            _build_wh(stage, walk, kind)
    finally:
        os.close(source)
        os.close(stage)


def _write_facts(staging: bytes, facts: LayerFacts) -> None:
    stage = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = os.open(_FACTS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=stage)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(facts))
        if facts.reserved:
            # After a power cut a lost whiteout would bring a deleted file back.
            _sys.syncfs(stage)
    finally:
        os.close(stage)


def _with_parents(paths: list[bytes]) -> list[bytes]:
    """Return `paths` and everything on the way to them, parents first."""
    wanted = set()
    for path in paths:
        inner = path
        while inner and inner not in wanted:
            wanted.add(inner)
            inner = inner.rpartition(b"/")[0]
    return [b"", *sorted(wanted)]


def _whiteout(dirfd: int, path: bytes) -> None:
    # Allowed to everybody since Linux 5.8, also outside a user namespace.
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dirfd)


def _build_hide(source: int, stage: int, walk: Survey) -> None:
    directories = _with_parents(list(walk.marked))
    os.mkdir(_HIDE, 0o700, dir_fd=stage)
    root = os.open(_HIDE, os.O_RDONLY | os.O_DIRECTORY, dir_fd=stage)
    try:
        for path in directories[1:]:
            os.mkdir(path, 0o700, dir_fd=root)
        for path, marked in walk.marked.items():
            for name in marked.reserved:
                _whiteout(root, trees.child(path, name))
        for path in reversed(directories):
            original = trees.open_inner(source, path)
            try:
                trees.copy_directory_attributes(original, root, path or b".")
            finally:
                os.close(original)
    finally:
        os.close(root)


def _build_wh(stage: int, walk: Survey, kind: Kind) -> None:
    hiding = {path: item for path, item in walk.marked.items() if item.whiteouts or item.opaque}
    os.mkdir(_WH, 0o700, dir_fd=stage)
    root = os.open(_WH, os.O_RDONLY | os.O_DIRECTORY, dir_fd=stage)
    try:
        for path in _with_parents(list(hiding))[1:]:
            os.mkdir(path, 0o755, dir_fd=root)
        for path, marked in hiding.items():
            for name in marked.whiteouts:
                inner = trees.child(path, name)
                if inner not in hiding and not _is_parent(inner, hiding):
                    _whiteout(root, inner)
                else:
                    _opaque(root, inner, kind)
            if marked.opaque and path:
                _opaque(root, path, kind)
    finally:
        os.close(root)


def _is_parent(path: bytes, others: dict[bytes, Marked]) -> bool:
    return any(other.startswith(path + b"/") for other in others)


def _opaque(root: int, path: bytes, kind: Kind) -> None:
    os.setxattr(proc_path(root, path), f"{kind.value}.overlay.opaque", b"y", follow_symlinks=False)


def lower_directories(shims: list[ShimSet]) -> list[bytes]:
    """Return overlayfs's lower directories, top first, for layers given top first.

    What lies below a layer with an opaque root is cut off: overlayfs ignores that marker.
    """
    lowers = []
    for item in shims:
        lowers += [path for path in (item.hide, item.layer, item.wh) if path is not None]
        if item.facts.root_opaque:
            break
    return lowers
