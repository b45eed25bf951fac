"""Repairs of what `lint` finds, in a rw branch or in plain directories.

Invariant: what OCI says the layers show is the same before and after, layers of a store and
branches that a live mount uses are never touched, and nothing is done that `plan` did not say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from unionfs.branch import Branch, whiteout
from unionfs.errors import UnsupportedError, show
from unionfs.insight.exclusive import exclusive
from unionfs.insight.explain import explain
from unionfs.insight.explanation import Verdict
from unionfs.insight.lint import Finding
from unionfs.insight.where import NamedBranch, Where

__all__ = ["Action", "apply", "plan"]

_MARKER_MODE: Final = 0o444
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REMOVED: Final = frozenset(
    (
        *("bare-whiteout", "whiteout-in-opaque", "dangling-whiteout", "whiteout-makes-directory"),
        *("aufs-metadata", "whiteout-beside-entry"),
    )
)
_EMPTIED: Final = frozenset(("whiteout-not-regular", "whiteout-not-empty"))


@attrs.frozen
class Action:
    """One step: `verb` is remove, empty (make it an empty file) or opaque (mark a directory)."""

    branch: NamedBranch
    verb: str
    path: bytes
    rule: str

    def __str__(self) -> str:
        words = {"remove": "remove", "empty": "make an empty file of", "opaque": "mark as opaque"}
        return f"{self.branch.title}: {words[self.verb]} {show(b'/' + self.path)} ({self.rule})"


def plan(where: Where, findings: Sequence[Finding]) -> list[Action]:
    """Return the steps that repair the fixable findings of `where`, in order."""
    actions: dict[tuple[int, bytes], Action] = {}
    opaque: dict[tuple[int, bytes], Action] = {}
    for finding in findings:
        rule, branch, path = finding.rule.id, finding.branch, finding.path
        if not finding.rule.fixable or branch.entry is not None:
            continue
        key = (branch.number, path)
        if rule in _REMOVED:
            actions[key] = Action(branch, "remove", path, rule)
        elif rule in _EMPTIED:
            actions.setdefault(key, Action(branch, "empty", path, rule))
        elif rule == "file-between-directories":
            opaque[key] = Action(branch, "opaque", path, rule)
        if rule == "whiteout-beside-entry":
            directory = _beside(branch, path)
            if directory is not None and _shows_below(where, branch, directory):
                opaque[branch.number, directory] = Action(branch, "opaque", directory, rule)
    # Opaque first: a crash between the two then hides no more and no less than before.
    return [*opaque.values(), *actions.values()]


def _beside(named: NamedBranch, marker: bytes) -> bytes | None:
    """Return the directory that a whiteout beside it names, None when it is no directory."""
    parent, _, name = marker.rpartition(b"/")
    target = whiteout.classify(name).target
    path = parent + b"/" + target if parent else target
    with named.open() as branch:
        try:
            os.close(branch.open_path(path))
        except OSError:
            return None
    return path


def _shows_below(where: Where, named: NamedBranch, path: bytes) -> bool:
    """Tell whether the branches below show something at a path, so that it must be hidden."""
    below = tuple(other for other in where.branches if other.number < named.number)
    return bool(below) and explain(Where(where.title, below), path).verdict is Verdict.VISIBLE


def apply(actions: Sequence[Action]) -> None:
    """Do the steps. Raises `BusyError` if a mount uses a branch, `UnsupportedError`, `OSError`."""
    if any(action.branch.entry is not None for action in actions):
        raise UnsupportedError("layers of the store are never edited; fix a copy of them")
    touched = {action.branch.number: action.branch for action in actions}
    with contextlib.ExitStack() as stack:
        branches = {}
        for number, named in touched.items():
            branch = stack.enter_context(named.open())
            stack.enter_context(exclusive(named.path))
            branches[number] = branch
        for action in actions:
            _perform(branches[action.branch.number], action)


def _perform(branch: Branch, action: Action) -> None:
    if action.verb == "opaque":
        with _parent(branch, action.path) as fd, contextlib.suppress(FileExistsError):
            _make_marker(fd, whiteout.OPAQUE)
        return
    parent, _, name = action.path.rpartition(b"/")
    with _parent(branch, parent) as fd:
        _remove(fd, name)
        if action.verb == "empty":
            _make_marker(fd, name)


@contextlib.contextmanager
def _parent(branch: Branch, path: bytes) -> Iterator[int]:
    """Give a directory's fd for the block and restore its times afterwards."""
    fd = branch.open_path(path)
    try:
        st = os.stat(b".", dir_fd=fd)
        yield fd
        os.utime(b".", ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=fd)
    finally:
        os.close(fd)


def _make_marker(fd: int, name: bytes) -> None:
    marker = os.open(name, _CREATE, _MARKER_MODE, dir_fd=fd)
    try:
        os.fchmod(marker, _MARKER_MODE)
    finally:
        os.close(marker)


def _remove(fd: int, name: bytes) -> None:
    """Remove a marker, or a directory of a union's housekeeping with what is in it."""
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not stat.S_ISDIR(st.st_mode):
        os.unlink(name, dir_fd=fd)
        return
    if whiteout.classify(name).meaning is whiteout.Meaning.HOUSEKEEPING:
        inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        try:
            for entry in os.listdir(b"/proc/self/fd/%d" % inner):
                child = os.fsencode(entry)
                kind = os.stat(child, dir_fd=inner, follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
                os.unlink(child, dir_fd=inner)
        finally:
            os.close(inner)
    os.rmdir(name, dir_fd=fd)
