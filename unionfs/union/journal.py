"""Several changes of the rw branch that must happen together or not at all.

An operation that needs more than one step first leaves its intent in the work area: a
symbolic link whose target spells the steps, so that it is pure metadata and appears at
once (a target beyond what every filesystem takes becomes a synced file). Then the steps
run, then the intent goes. After a crash the steps run again.

Invariant: every step can be repeated: the replay sees from the names alone whether it has
been done, so a branch may even be copied elsewhere between crash and replay. A step that
fails while nothing crashed makes the steps before it undone.

Encoding: fields are parted by `//`, steps by `///`; a field never begins or ends with a
slash, and NUL cannot occur in names.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from unionfs import _sys
from unionfs.branch import Branch, whiteout
from unionfs.errors import StoreError, show
from unionfs.union.options import Stats
from unionfs.union.workarea import JOURNAL, WorkArea, quiet

__all__ = ["Journal", "Op", "Place", "Step"]

#: Longest symbolic link target on XFS is 1024 bytes, elsewhere about a page.
_MAX_TARGET: Final = 1000
_STEP: Final = b"///"
_FIELD: Final = b"//"
_ROOT: Final = b"."


class Op(enum.Enum):
    """What a step does to `target`, from `source`."""

    HIDE = b"hide"  # make the whiteout of target
    UNHIDE = b"unhide"  # remove it
    MOVE = b"move"  # rename source to target
    SWAP = b"swap"  # exchange source and target: only ever alone, as it cannot be repeated
    REMOVE = b"remove"  # unlink target
    LINK = b"link"  # hard link source as target
    CLEAR = b"clear"  # remove the opaque marker inside the directory target


_WITH_SOURCE: Final = (Op.MOVE, Op.SWAP, Op.LINK)


class Place(NamedTuple):
    """A name in a directory of the rw branch, given by an open fd and by its path."""

    fd: int
    path: bytes
    name: bytes


class Step(NamedTuple):
    """One change that can be repeated."""

    op: Op
    target: Place
    source: Place | None = None


def _encode(steps: Iterable[Step]) -> bytes:
    parts = []
    for step in steps:
        fields = [step.op.value, step.target.path or _ROOT, step.target.name]
        if step.source is not None:
            fields += [step.source.path or _ROOT, step.source.name]
        parts.append(_FIELD.join(fields))
    return _STEP.join(parts)


def _is_inside(place: tuple[bytes, bytes]) -> bool:
    """Tell whether a path and a name stay in the branch: it may be somebody else's work."""
    path, name = place
    return b".." not in path.split(b"/") and b"/" not in name and name not in (b"", b".", b"..")


def _exists(place: Place) -> bool:
    try:
        os.stat(place.name, dir_fd=place.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


class Journal:
    """Runs steps for one rw branch."""

    def __init__(self, branch: Branch, work: WorkArea, stats: Stats) -> None:
        self._branch = branch
        self._work = work
        self._stats = stats

    def work_place(self, name: bytes) -> Place:
        """Return the place `name` in the work area."""
        return Place(self._work.fd, whiteout.WORK_DIR, name)

    def run(self, steps: list[Step]) -> None:
        """Make all steps happen; on an error of any, none has.

        One step alone is atomic already and needs no intent.
        """
        if len(steps) > 1:
            self._stats.journaled += 1
            self._write(_encode(steps))
        done: list[Callable[[], None]] = []
        try:
            for step in steps:
                undo = self._execute(step)
                if undo is not None:
                    done.append(undo)
        except OSError:
            for undo in reversed(done):
                undo()
            if len(steps) > 1:
                os.unlink(JOURNAL, dir_fd=self._work.fd)
            raise
        if len(steps) > 1:
            os.unlink(JOURNAL, dir_fd=self._work.fd)

    def replay(self) -> bool:
        """Finish what a crash interrupted; tell whether there was anything."""
        intent = self._read()
        if intent is None:
            return False
        for op, places in self._decode(intent):
            self._replay_step(op, places)
        os.unlink(JOURNAL, dir_fd=self._work.fd)
        return True

    # -- the intent --------------------------------------------------------------

    def _write(self, intent: bytes) -> None:
        if len(intent) <= _MAX_TARGET:
            try:
                os.symlink(intent, JOURNAL, dir_fd=self._work.fd)
            except OSError as exc:  # which would show all of the intent to whoever is told
                raise OSError(exc.errno, exc.strerror, JOURNAL) from None
            return
        name = self._work.new_name()
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._work.fd)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(intent)
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(name, JOURNAL, src_dir_fd=self._work.fd, dst_dir_fd=self._work.fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._work.fd)
            raise

    def _read(self) -> bytes | None:
        try:
            return os.readlink(JOURNAL, dir_fd=self._work.fd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
        with open(os.open(JOURNAL, os.O_RDONLY, dir_fd=self._work.fd), "rb") as file:
            return file.read()

    def _decode(self, intent: bytes) -> list[tuple[Op, list[tuple[bytes, bytes]]]]:
        """Return each step's operation and its (directory path, name) pairs, target first."""
        steps = []
        for text in intent.split(_STEP):
            word, *fields = text.split(_FIELD)
            try:
                op = Op(word)
                places = list(zip(fields[::2], fields[1::2], strict=True))
                wanted = 2 if op in _WITH_SOURCE else 1
            except ValueError:
                wanted = 0
            if not wanted or len(places) != wanted or not all(map(_is_inside, places)):
                raise StoreError(
                    f"{show(self._branch.path)}: unreadable journal step {show(text)};"
                    " another version of unionfs wrote it: mount with that one first"
                )
            steps.append((op, places))
        return steps

    def _replay_step(self, op: Op, places: list[tuple[bytes, bytes]]) -> None:
        with contextlib.ExitStack() as fds:
            opened = [self._open(fds, *place) for place in places]
            step = Step(op, *opened)
            if not self._is_done(step):
                self._execute(step)

    @staticmethod
    def _is_done(step: Step) -> bool:
        """Tell whether a step of an interrupted run has happened.

        What has moved is not at its source; a name in the work area is used once, so there
        the target tells, because the source's name may have been taken by the next step.
        """
        if step.op is Op.REMOVE:
            return not _exists(step.target)
        if step.op is not Op.MOVE or step.source is None:
            return False
        into_work = step.target.path == whiteout.WORK_DIR
        return not _exists(step.source) or (into_work and _exists(step.target))

    def _open(self, fds: contextlib.ExitStack, path: bytes, name: bytes) -> Place:
        fd = self._branch.open_path(path)
        fds.callback(os.close, fd)
        return Place(fd, path, name)

    # -- the steps ---------------------------------------------------------------

    def _execute(self, step: Step) -> Callable[[], None] | None:
        """Do one step; return what takes it back, or None when nothing can follow or need to."""
        target, source = step.target, step.source
        if step.op is Op.HIDE:
            self._work.hide(target.fd, target.name)
            return lambda: self._work.unhide(target.fd, target.name)
        if step.op is Op.UNHIDE:
            self._work.unhide(target.fd, target.name)
            return lambda: self._work.hide(target.fd, target.name)
        if step.op is Op.CLEAR:
            self._clear(target)
            return None
        if step.op is Op.REMOVE:
            os.unlink(target.name, dir_fd=target.fd)
            return None
        if source is None:
            raise ValueError("step without source")
        if step.op is Op.LINK:
            with contextlib.suppress(FileExistsError):
                os.link(
                    source.name,
                    target.name,
                    src_dir_fd=source.fd,
                    dst_dir_fd=target.fd,
                    follow_symlinks=False,
                )
            return lambda: os.unlink(target.name, dir_fd=target.fd)
        flags = _sys.RENAME_EXCHANGE if step.op is Op.SWAP else 0
        _sys.renameat2(source.fd, source.name, target.fd, target.name, flags)
        return lambda: _sys.renameat2(target.fd, target.name, source.fd, source.name, flags)

    @staticmethod
    def _clear(target: Place) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(target.name, flags, dir_fd=target.fd)
        try:
            with quiet(fd):
                WorkArea.clear_opaque(fd)
        finally:
            os.close(fd)
