"""A rw branch from AUFS form into overlayfs's and back, safe against a crash at any point.

Invariants: a branch is only touched under its lock and never while an overlay mount
still writes it (`BusyError`). Every step leaves a state from which `settle` finds the way
back to AUFS form: a new mark is made before the old one goes, and names move one by one
between the branch root and the hidden directory (`unionfs.kernel.form`).

Two things overlayfs allows and the AUFS form cannot keep: names that are reserved for
markers get a visible name, and the mode that a program set on a file with a recorded mode
is recorded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from unionfs import _sys
from unionfs.branch import Branch, Dialect, Place, Stack, place_of, whiteout
from unionfs.branch.branch import proc_path
from unionfs.branch.merge import DirView
from unionfs.branch.override import STAT_XATTR, Override
from unionfs.branch.whiteout import Meaning
from unionfs.errors import BusyError, ConflictError, show
from unionfs.kernel import links, liveness, trees
from unionfs.kernel.form import Phase, State, moved_names
from unionfs.kernel.liveness import Use
from unionfs.kernel.survey import Kind
from unionfs.union.workarea import quiet

__all__ = ["detect_dialect", "enter", "hides_layers", "locate", "pending_names", "settle"]

_LOGGER = logging.getLogger(__name__)
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID
_DIR_FLOOR: Final = 0o700
_FILE_FLOOR: Final = 0o600


def locate(rw: bytes) -> Place:
    """Return where to read the branch `rw` and its dialect (`unionfs.branch.place_of`)."""
    return place_of(rw)


def detect_dialect(rw: bytes) -> Dialect:
    """Return the dialect that the content of `rw` speaks (read it at `place_of(rw).path`)."""
    return place_of(rw).dialect


@contextlib.contextmanager
def _opened(rw: bytes) -> Iterator[int]:
    fd = os.open(rw, _FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _lower_view(layers: Sequence[bytes], *, cut: bool) -> Iterator[Stack | None]:
    """Open the layers; None if they are gone or the branch's root hides them all."""
    if cut or not layers:
        yield None
        return
    try:
        stack = Stack.open(layers)
    except OSError:
        yield None
        return
    with stack:
        yield stack


def hides_layers(rw: bytes) -> bool:
    """Tell whether the root of the branch is opaque, so that no layer shows through."""
    with _opened(rw) as fd:
        return _is_cut(fd)


def _is_cut(rw_fd: int) -> bool:
    return os.fsdecode(whiteout.OPAQUE) in os.listdir(rw_fd)


def pending_names(rw: bytes) -> list[bytes]:
    """Return names of copied-up files that a live overlay mount has not linked yet, as paths.

    The branch itself shows the old file under them; using a name through the mount links it.
    """
    with _opened(rw) as rw_fd:
        state = State.find(rw_fd, rw)
        if state is None:
            return []
        with (
            contextlib.closing(state),
            state.upper() as upper,
            _lower_view(state.layers(), cut=_is_cut(rw_fd)) as lower,
        ):
            return [] if lower is None else links.pending_names(state.fd, upper, lower)


# -- into overlay form -------------------------------------------------------------


def enter(rw: bytes, layers: Sequence[bytes], kind: Kind) -> tuple[bytes, bytes]:
    """Bring the branch `rw` into overlay form; return its upper and work directories.

    `layers` are those it will be mounted over, top first. The caller holds the branch's lock,
    has settled it, and our own engine has opened it before (`unionfs.kernel.mounted`).
    """
    with _opened(rw) as rw_fd:
        names = moved_names(rw_fd)
        root_times = os.stat(b".", dir_fd=rw_fd)
        state = State.create(rw_fd, rw, kind, layers)
        with contextlib.closing(state), state.upper() as upper:
            for name in names:
                os.rename(name, name, src_dir_fd=rw_fd, dst_dir_fd=upper)
            with _lower_view(layers, cut=_is_cut(rw_fd)) as lower:
                _enter_tree(upper, lower, kind)
            trees.copy_directory_attributes(rw_fd, upper, b".")
            if kind is Kind.USER:
                _expose_tree(upper)
            times = (root_times.st_atime_ns, root_times.st_mtime_ns)
            os.utime(b".", ns=times, dir_fd=upper)
            state.set_phase(Phase.LIVE)
            return state.upper_path(), state.work_path()


def _enter_tree(upper: int, lower: Stack | None, kind: Kind) -> None:
    pending: list[tuple[bytes, bool]] = [(b"", lower is not None)]
    while pending:
        path, merged = pending.pop()
        fd = trees.open_inner(upper, path)
        try:
            view = lower.view(path) if lower is not None and merged else None
            inner = _enter_directory(fd, view, kind)
        finally:
            os.close(fd)
        pending += [(trees.child(path, name), below) for name, below in inner]


def _enter_directory(fd: int, view: DirView | None, kind: Kind) -> list[tuple[bytes, bool]]:
    """Convert the markers of one directory; return its subdirectories and whether they merge."""
    with Branch(b"", os.dup(fd)) as branch, quiet(fd):
        scan = branch.scan(fd)
        if scan.opaque:
            _set_opaque(fd, b".", kind)
            view = None
        alone = set()
        for name in scan.whiteouts:
            fmt = scan.entries.get(name)
            if fmt == stat.S_IFDIR:
                _set_opaque(fd, name, kind)
                alone.add(name)
            elif fmt is None and view is not None and name in view.listing:
                os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=fd)
        for text in os.listdir(fd):
            name = os.fsencode(text)
            if whiteout.is_reserved(name):
                trees.remove_tree(fd, name)
        return [
            (name, view is not None and name in view.listing and name not in alone)
            for name, fmt in scan.entries.items()
            if fmt == stat.S_IFDIR
        ]


def _expose_tree(upper: int) -> None:
    """Make recorded modes real, children first: a directory may close itself."""
    with Branch(b"", os.dup(upper)) as branch:
        if not branch.marked:
            return
        directories = [path for path, _, _ in trees.walk_directories(upper)]
        for path in reversed(directories):
            fd = trees.open_inner(upper, path)
            try:
                for text in os.listdir(fd):
                    _expose(branch, fd, os.fsencode(text))
            finally:
                os.close(fd)
        _expose(branch, upper, b".")


def _set_opaque(fd: int, name: bytes, kind: Kind) -> None:
    os.setxattr(proc_path(fd, name), f"{kind.value}.overlay.opaque", b"y", follow_symlinks=False)


# -- back into AUFS form -----------------------------------------------------------


def settle(rw: bytes) -> bool:
    """Bring the branch `rw` back into AUFS form if it is not; return whether it was not.

    The caller holds the branch's lock. BusyError while an overlay mount writes it, or when
    that cannot be told.
    """
    with _opened(rw) as rw_fd:
        State.sweep(rw_fd)
        state = State.find(rw_fd, rw)
        if state is None:
            return False
        with contextlib.closing(state):
            if os.path.isdir(state.upper_path()):
                _leave(state)
            state.remove()
    return True


def _leave(state: State) -> None:
    with state.upper() as upper:
        if state.form.phase is Phase.LIVE:
            _refuse_live(state, upper)
        if state.form.phase is not Phase.MOVING:
            _leave_overlay(state, upper)
        with quiet(state.rw_fd):
            for name in moved_names(upper):
                _move_back(state, upper, name)


def _leave_overlay(state: State, upper: int) -> None:
    plain_user = state.form.kind is Kind.USER
    if plain_user:
        _record_tree(upper)
    with _lower_view(state.layers(), cut=_is_cut(state.rw_fd)) as lower:
        was_mounted = state.form.phase is not Phase.ENTERING
        if state.form.phase is Phase.LIVE:
            if lower is not None:
                links.flush_index(state.fd, upper, lower)
            _free_reserved(state, upper)
            state.set_phase(Phase.LEAVING)
        _leave_tree(state, upper, lower)
    if was_mounted:
        trees.copy_directory_attributes(upper, state.rw_fd, b".")
    state.set_phase(Phase.MOVING)


def _refuse_live(state: State, upper: int) -> None:
    use = liveness.upper_use(upper)
    if use is Use.BUSY:
        raise BusyError(
            f"{show(state.rw)} is mounted with overlayfs (maybe in another mount namespace);"
            " unmount it first"
        )
    if use is Use.UNKNOWN and state.form.boot == liveness.boot_id():
        raise BusyError(
            f"{show(state.rw)} was mounted with overlayfs and nobody here may ask whether it still"
            " is; run this as root or where user namespaces are allowed, or restart the machine"
        )


def _move_back(state: State, upper: int, name: bytes) -> None:
    try:
        _sys.renameat2(upper, name, state.rw_fd, name, _sys.RENAME_NOREPLACE)
    except FileExistsError as exc:
        if whiteout.classify(name).meaning is Meaning.ENTRY:
            raise ConflictError(
                f"{show(state.rw)}: {show(name)} was made behind the back of the overlay mount;"
                " move it away"
            ) from exc
        os.unlink(name, dir_fd=upper)


def _free_reserved(state: State, upper: int) -> None:
    """Give names that would be markers in AUFS form a visible name; children first."""
    directories = [path for path, _, _ in trees.walk_directories(upper)]
    for path in reversed(directories):
        fd = trees.open_inner(upper, path)
        try:
            _free_names(state, fd, path)
        finally:
            os.close(fd)


def _free_names(state: State, fd: int, path: bytes) -> None:
    taken = set(map(os.fsencode, os.listdir(fd)))
    for name in sorted(filter(whiteout.is_reserved, taken)):
        free = name[1:]
        while free in taken:
            free += b"~"
        with quiet(fd):
            _sys.renameat2(fd, name, fd, free, _sys.RENAME_NOREPLACE)
        taken.add(free)
        _LOGGER.warning(
            "%s: the name of %s is reserved for whiteouts; it is now %s",
            show(state.rw),
            show(trees.child(path, name)),
            show(free),
        )


def _leave_tree(state: State, upper: int, lower: Stack | None) -> None:
    _strip(upper, b".", None)
    pending: list[tuple[bytes, bool]] = [(b"", True)]
    while pending:
        path, merged = pending.pop()
        fd = trees.open_inner(upper, path)
        try:
            view = lower.view(path) if lower is not None and merged else None
            inner = _leave_directory(state, fd, view, known=lower is not None)
        finally:
            os.close(fd)
        pending += [(trees.child(path, name), below) for name, below in inner]


def _leave_directory(
    state: State, fd: int, view: DirView | None, *, known: bool
) -> list[tuple[bytes, bool]]:
    """Convert one directory; return its subdirectories and whether they merge with the lower.

    A mark that hides nothing is dropped, as our own union makes none; when the layers are
    gone every mark is kept.
    """
    attribute = f"{state.form.kind.value}.overlay.opaque"
    inner = []
    with quiet(fd):
        for text in sorted(os.listdir(fd)):
            name = os.fsencode(text)
            if whiteout.is_reserved(name):
                continue
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            hides = not known or (view is not None and name in view.listing)
            if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
                if hides:
                    state.marker(fd, *whiteout.marker_for(name))
                os.unlink(name, dir_fd=fd)
                continue
            merged = view
            if stat.S_ISDIR(st.st_mode):
                if attribute in trees.raw_xattrs(fd, name):
                    merged = None
                    if hides:
                        _mark_opaque(state, fd, name)
                elif _has_marker(fd, name):
                    merged = None
                inner.append((name, merged is not None))
            _strip(fd, name, merged)
    return inner


def _mark_opaque(state: State, fd: int, name: bytes) -> None:
    inner = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=fd)
    try:
        with quiet(inner):
            state.marker(inner, whiteout.OPAQUE)
    finally:
        os.close(inner)


def _has_marker(fd: int, name: bytes) -> bool:
    inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    try:
        os.stat(whiteout.OPAQUE, dir_fd=inner, follow_symlinks=False)
    except FileNotFoundError:
        return False
    else:
        return True
    finally:
        os.close(inner)


def _strip(fd: int, name: bytes, view: DirView | None) -> None:
    """Remove overlayfs's bookkeeping; a copy keeps its original's inode number in our own."""
    stored = trees.raw_xattrs(fd, name)
    own = [attribute for attribute in stored if attribute.startswith(trees.OVERLAY_PREFIXES)]
    if own and view is not None and name in view.listing:
        links.keep_number(fd, name, stored, *view.top(name))
    for attribute in own:
        os.removexattr(proc_path(fd, name), attribute, follow_symlinks=False)


# -- modes of a plain user's branch --------------------------------------------------


def _floor(st: os.stat_result) -> int:
    return _DIR_FLOOR if stat.S_ISDIR(st.st_mode) else _FILE_FLOOR


def _expose(branch: Branch, fd: int, name: bytes) -> None:
    """Make a recorded mode real as far as that is safe (no setuid, no setgid)."""
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
        return
    override = branch.override(fd, name)
    if override is None:
        return
    wanted = override.mode & ~_SPECIAL
    if stat.S_IMODE(st.st_mode) != wanted:
        os.chmod(proc_path(fd, name), wanted)


def _record_tree(upper: int) -> None:
    """Record modes that were changed or that a plain user's branch does not keep real.

    Parents first: afterwards every directory can be entered.
    """
    with Branch(b"", os.dup(upper)) as branch:
        _record(branch, upper, b".")
        for _, fd, entries in trees.walk_directories(upper):
            for entry in entries:
                _record(branch, fd, os.fsencode(entry.name))


def _record(branch: Branch, fd: int, name: bytes) -> None:
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if not (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
        return
    real, floor = stat.S_IMODE(st.st_mode), _floor(st)
    path = proc_path(fd, name)
    if real | floor != real:
        # The xattr of a file that its owner may not read or write cannot be read or set.
        os.chmod(path, (real & 0o777) | floor)
    override = branch.override(fd, name)
    if override is not None:
        if real not in (override.mode & ~_SPECIAL, (override.mode & 0o777) | floor):
            override = attrs.evolve(override, mode=real)
    elif real & _SPECIAL or real | floor != real:
        override = Override(0, 0, real, stat.S_IFMT(st.st_mode))
    if override is None:
        return
    os.setxattr(path, STAT_XATTR, override.encode(), follow_symlinks=False)
    os.chmod(path, (override.mode & 0o777) | floor)
