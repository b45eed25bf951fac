"""Mounting AUFS: the branch list cut to what one mount(2) takes, the rest by remount.

Layers are `=ro+wh`, because AUFS ignores the whiteouts of a plain `=ro` branch. The kernel
cuts the options at one page without a word, and crashes on 85 or more branches in one
call, so the list is cut at branch boundaries well below either limit. How many branches it
takes altogether was decided when it was built (127, 511 or more): it says so itself.

Invariant: `build` is pure and refuses what AUFS cannot express; when a mount fails nothing
is mounted, and the first error is the one that is told.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from unionfs import _sys
from unionfs.errors import UnsupportedError, show

__all__ = [
    "AufsPlan",
    "Features",
    "build",
    "mount",
    "probe_features",
    "short_names",
]

#: Branches and options per mount(2) call: 85 crash the kernel.
_MAX_FIRST: Final = 80
#: Branches per remount: what was seen to work.
_MAX_APPEND: Final = 20
#: mount(2) passes on 4095 bytes.
_PAGE_DATA: Final = 4000
#: What a branch path may consist of: `:` `,` `=` cannot be escaped.
_PLAIN: Final = re.compile(rb"/[A-Za-z0-9_./+@% ~-]*")
_LONGEST: Final = 1024
_SOURCE: Final = b"unionfs"
_FSTYPE: Final = b"aufs"
#: Answers that do not depend on options or places.
_FINAL: Final = (errno.ENODEV, errno.EPERM)


@attrs.frozen
class Features:
    """What this kernel's AUFS takes, found by trying."""

    dirperm1: bool = False
    xino: bytes | None = None


@attrs.frozen
class AufsPlan:
    """Options of the first mount(2), and of the remounts that append further ones of `branches`."""

    first: bytes
    appends: tuple[bytes, ...]
    branches: int


def build(layers: Sequence[bytes], rw: bytes | None, features: Features) -> AufsPlan:
    """Return the options for `layers`, top first, under `rw`; UnsupportedError with the reason.

    Paths must be expressible (`short_names` helps).
    """
    branches = [] if rw is None else [(rw, b"rw")]
    branches += [(path, b"ro+wh") for path in layers]
    if not branches:
        raise UnsupportedError("aufs: a mount needs at least one branch")
    for path, _ in branches:
        if not is_expressible(path):
            raise UnsupportedError(f"aufs: the path {show(path)} cannot be written as an option")
    tail = b""
    if features.dirperm1:
        tail += b",dirperm1"
    if features.xino is not None:
        tail += b",xino=" + features.xino
    words = [path + b"=" + kind for path, kind in branches]
    count = _fit(words, b"br:", b":", len(tail), _MAX_FIRST - tail.count(b","))
    first = b"br:" + b":".join(words[:count]) + tail
    appends = []
    rest = [b"append:" + word for word in words[count:]]
    while rest:
        count = _fit(rest, b"", b",", 0, _MAX_APPEND)
        appends.append(b",".join(rest[:count]))
        rest = rest[count:]
    return AufsPlan(first, tuple(appends), len(branches))


def is_expressible(path: bytes) -> bool:
    """Tell whether a path can stand in the branch list."""
    return len(path) <= _LONGEST and _PLAIN.fullmatch(path) is not None


def _fit(words: Sequence[bytes], head: bytes, separator: bytes, extra: int, limit: int) -> int:
    """Return how many words (one at least) go into one call."""
    size = len(head) + extra
    for count, word in enumerate(words[:limit]):
        size += len(word) + len(separator)
        if size > _PAGE_DATA:
            return max(1, count)
    return min(limit, len(words))


@contextlib.contextmanager
def short_names(paths: Sequence[bytes], directory: bytes) -> Iterator[list[bytes]]:
    """Give paths that AUFS cannot express a short name, for as long as the block runs.

    The names are symbolic links in a directory of their own in `directory`; AUFS resolves them
    at once and lists the real paths.
    """
    awkward = [path for path in paths if not is_expressible(path)]
    if not awkward:
        yield list(paths)
        return
    if not is_expressible(directory + b"/aufs-0123456789abcdef/0"):
        raise UnsupportedError(
            f"aufs: {show(awkward[0])} cannot be written as an option, and the place for a short"
            f" name, {show(directory)}, neither"
        )
    home = directory + b"/aufs-" + secrets.token_hex(8).encode()
    os.mkdir(home, 0o700)
    names = []
    try:
        for position, path in enumerate(paths):
            if is_expressible(path):
                names.append(path)
                continue
            name = b"%b/%d" % (home, position)
            os.symlink(path, name)
            names.append(name)
        yield names
    finally:
        for text in os.listdir(home):
            os.unlink(home + b"/" + text)
        os.rmdir(home)


def mount(plan: AufsPlan, target: bytes, flags: int = 0) -> None:
    """Mount and append; UnsupportedError with the kernel's first answer."""
    try:
        _first_mount(plan.first, target, flags)
    except OSError as exc:
        raise UnsupportedError(f"aufs: {_explain(exc)}") from exc
    try:
        for data in plan.appends:
            _sys.mount(_SOURCE, target, _FSTYPE, flags | _sys.MS_REMOUNT, data)
    except OSError as exc:
        _sys.umount(target, _sys.MNT_DETACH)
        if exc.errno == errno.ENOSPC:
            raise UnsupportedError(
                f"aufs: {plan.branches} branches, and this kernel's AUFS takes fewer (mostly 127)"
            ) from exc
        raise UnsupportedError(f"aufs: appending branches failed: {exc.strerror}") from exc


def _explain(exc: OSError) -> str:
    reasons = {
        errno.ENODEV: "this kernel has no AUFS",
        errno.EPERM: "mounting AUFS is not permitted here (needs root outside user namespaces)",
        errno.EINVAL: "the kernel refuses the branches (overlayfs, /proc or AUFS as a branch, or"
        " one inside another); see dmesg",
    }
    text = reasons.get(exc.errno or 0, exc.strerror or "failed")
    notes = getattr(exc, "__notes__", [])
    return "; ".join([text, *notes])


def _first_mount(data: bytes, target: bytes, flags: int) -> None:
    try:
        _sys.mount(_SOURCE, target, _FSTYPE, flags, data)
    except OSError as first:
        if first.errno != errno.ENODEV or not _sys.has_capability(_sys.CAP_SYS_MODULE):
            raise
        reason = _load_module()
        if reason is not None:
            first.add_note(reason)
            raise
    else:
        return
    _sys.mount(_SOURCE, target, _FSTYPE, flags, data)


def _load_module() -> str | None:
    """Try to load the module once; return why not."""
    try:
        child = subprocess.run(
            ["modprobe", "aufs"], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as exc:
        return f"modprobe: {exc.strerror}"
    if child.returncode == 0:
        return None
    lines = child.stderr.strip().splitlines()
    return lines[-1] if lines else f"modprobe ended with status {child.returncode}"


def probe_features(*places: bytes) -> Features:
    """Try mounts in the first of `places` that will do, and learn what this kernel takes.

    UnsupportedError with the answer to the plainest mount in the first place when there is none.
    """
    first: UnsupportedError | None = None
    for place in places:
        try:
            return _probe(place)
        except UnsupportedError as exc:
            first = first or exc
            if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno in _FINAL:
                break  # no other place changes that
    raise first or UnsupportedError("aufs: no place to try it")


def _probe(place: bytes) -> Features:
    xino = _xino_path()
    candidates = [Features(dirperm1=True), Features()]
    if xino is not None:
        candidates.insert(0, Features(dirperm1=True, xino=xino))
    try:
        with tempfile.TemporaryDirectory(prefix="aufs-probe-", dir=os.fsdecode(place)) as text:
            home = os.fsencode(text)
            for name in (b"/ro", b"/rw", b"/target"):
                os.mkdir(home + name)
            for features in candidates:
                try:
                    mount(build([home + b"/ro"], home + b"/rw", features), home + b"/target")
                except UnsupportedError as exc:
                    cause = exc.__cause__
                    final = isinstance(cause, OSError) and cause.errno in _FINAL
                    if features == candidates[-1] or final:
                        raise
                    continue
                _sys.umount(home + b"/target", _sys.MNT_DETACH)
                return features
    except OSError as exc:
        raise UnsupportedError(f"aufs: cannot try it in {show(place)}: {exc.strerror}") from exc
    raise AssertionError("unreachable")


def _xino_path() -> bytes | None:
    """Return a new name for AUFS's inode table, in memory, or None: it then takes the rw branch.

    AUFS makes the file, keeps it open and removes the name at once. Without a rw branch its own
    choice would be /tmp, which may lie on a filesystem that it does not accept.
    """
    for directory in (b"/dev/shm", b"/run"):  # a random name, made exclusively
        if os.path.isdir(directory) and os.access(directory, os.W_OK):
            return directory + b"/unionfs-" + secrets.token_hex(8).encode() + b".xino"
    return None
