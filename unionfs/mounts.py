"""Live mounts: start, list, find, unmount, and clean up after a killed daemon.

What is mounted is told by three witnesses that can disagree after a crash: the records
in the runtime directory, the kernel's mount table, and the process table.

Invariant: nothing that a record names is removed while its daemon lives, and only a
directory that unionfs itself made for an ephemeral mount is ever removed.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Final

import attrs

from unionfs.errors import BusyError, NotFoundError, UnionfsError, UsageError, show
from unionfs.fuse import device, lister, registry
from unionfs.fuse.options import MountOptions
from unionfs.fuse.registry import MountEntry, MountRecord
from unionfs.fuse.request import MountRequest, canonical, is_dead
from unionfs.fuse.start import EPHEMERAL, run_foreground, start_mount

__all__ = [
    "MOUNTED",
    "LiveMount",
    "MountOptions",
    "MountRecord",
    "MountRequest",
    "State",
    "clean",
    "find",
    "link_names",
    "list_mounts",
    "run_foreground",
    "start_mount",
    "umount",
]

_FSTYPE: Final = "fuse.unionfs"
#: Seconds to wait for a daemon to finish after its mount is gone (it may copy and sync).
_PATIENCE: Final = 60.0
#: Seconds between looks at the mount table.
_PAUSE: Final = 0.02
#: Seconds that a mount may be busy without anybody who has it open.
_GLANCE: Final = 2.0
_MAX_USERS: Final = 8
_LISTER: Final = lister.NAME.encode()
_LOG_SECONDS: Final = 7 * 24 * 3600


class State(enum.Enum):
    """What has become of a mount.

    DETACHED: lazily unmounted, the daemon serves the last users. ELSEWHERE: in another
    mount namespace. DEAD: mounted, but the daemon is gone (ENOTCONN). UNATTENDED: a kernel
    mount that works, but nobody holds its locks or brings its branch into order. STALE: only
    the record is left.
    """

    LIVE = "live"
    DETACHED = "detached"
    ELSEWHERE = "elsewhere"
    DEAD = "dead"
    UNATTENDED = "unattended"
    STALE = "stale"


#: The states in which the mount is there, whether it works or not.
MOUNTED: Final = (State.LIVE, State.DEAD, State.UNATTENDED)


@attrs.frozen
class LiveMount:
    """A mount and its state; `record` is None when only the mount table knows it."""

    target: bytes
    state: State
    record: MountRecord | None


def list_mounts() -> list[LiveMount]:
    """Return the caller's mounts in every state, oldest first, then mounts without a record."""
    table = [
        entry
        for entry in registry.mount_table()
        if entry.fstype.startswith("fuse") or entry.is_kernel_union
    ]
    here = registry.mount_namespace()
    found = []
    known = set()
    directory = registry.runtime_dir()
    records = list(registry.read_records(directory))
    _sweep(directory, records)
    for record in records:
        entry = _entry_of(record, table) if record.namespace == here else None
        if entry is not None:
            known.add((entry.device, entry.target))
        state = _state(record, entry, here)
        found.append(LiveMount(record.target if entry is None else entry.target, state, record))
    for entry in table:
        if _is_ours(entry) and (entry.device, entry.target) not in known:
            state = State.DEAD if is_dead(entry.target) else State.LIVE
            found.append(LiveMount(entry.target, state, None))
    return found


def _sweep(directory: bytes, records: list[MountRecord]) -> None:
    """Remove temporary directories of mounts that ended before anything was recorded of them."""
    named = {record.scratch for record in records if record.scratch is not None}
    with contextlib.suppress(FileNotFoundError):
        if any(entry.startswith(b"overlay-") for entry in os.listdir(directory)):
            from unionfs.kernel import scratch  # noqa: PLC0415  # only for kernel mounts

            scratch.sweep(directory, named)


def _is_ours(entry: MountEntry) -> bool:
    """Tell whether a mount without a record may be the caller's own.

    Those of others are not ours to judge: asking their daemon could hang us.
    """
    if entry.is_kernel_union:
        return os.geteuid() == 0
    return entry.fstype == _FSTYPE and entry.owner in (None, os.geteuid())


def _entry_of(record: MountRecord, table: list[MountEntry]) -> MountEntry | None:
    """Return the record's line in the mount table; the target may have been renamed."""
    kernel = record.backend != "fuse"
    same = [
        entry
        for entry in table
        if entry.device == record.device and entry.is_kernel_union == kernel
    ]
    exact = [entry for entry in same if entry.target == record.target]
    if exact:
        return exact[-1]
    # Device numbers are used again: without the name only a living daemon makes it ours.
    return same[-1] if same and registry.process_alive(record) else None


def _state(record: MountRecord, entry: MountEntry | None, here: int) -> State:
    alive = registry.process_alive(record)
    if record.namespace != here:
        return State.ELSEWHERE if alive else State.STALE
    if alive:
        return State.LIVE if entry is not None else State.DETACHED
    if entry is None:
        return State.STALE
    return State.DEAD if record.backend == "fuse" else State.UNATTENDED


def find(target: bytes) -> LiveMount | None:
    """Return the topmost mount on `target` (or the one that `target` lies in); None if none."""
    path = canonical(target)
    mounts = list_mounts()
    while True:
        for mount in reversed(mounts):
            if mount.target == path and mount.state in MOUNTED:
                return mount
        if path in (b"/", b""):
            break
        path = os.path.dirname(path)
    path = canonical(target)
    return next((mount for mount in reversed(mounts) if mount.target == path), None)


def link_names(rw: bytes) -> bool:
    """Make a branch that a kernel union has, or had, complete for whoever reads it now.

    A file with several names is copied up once, and the union links further names only when they
    are used. False when names are missing and the mount is out of reach. A branch that is not
    mounted is brought into its form on disk.
    """
    from unionfs.kernel.leftover import has_signs  # noqa: PLC0415  # only for kernel mounts

    if not has_signs(rw):
        return True
    from unionfs.kernel import convert, leftover, session  # noqa: PLC0415  # see above

    path = canonical(rw)
    try:
        leftover.settle_if_needed(path)
    except BusyError:
        pass  # mounted
    except OSError:
        return True  # somebody else's: it is read as it is
    else:
        return True
    for mount in list_mounts():
        record = mount.record
        if record is None or record.rw != path or record.backend == "fuse":
            continue
        if mount.state in (State.LIVE, State.UNATTENDED):
            session.link_names(attrs.evolve(record, target=mount.target))
    return not convert.pending_names(path)


def umount(target: bytes, *, lazy: bool = False) -> None:
    """Unmount the union on `target` and wait until its daemon has finished.

    Cleans up dead, unattended and stale ones. `lazy` takes the name away at once and lets
    programs that still use it finish. BusyError names the users; NotFoundError when there is
    no such mount.
    """
    path = canonical(target)
    mount = find(path)
    if mount is None or mount.target != path:
        _unmount_strange(path, lazy=lazy)
        return
    if mount.state is State.ELSEWHERE:
        raise UsageError(
            f"{show(path)} is mounted in another mount namespace; "
            f"unmount it there or stop process {_pid(mount)}"
        )
    if mount.state is State.DEAD:
        device.unmount(path, lazy=True)
    elif mount.state is not State.STALE:
        _unmount_live(mount, path, lazy=lazy)
    if mount.record is None:
        return
    if not lazy and not _wait(mount.record):
        raise BusyError(
            f"{show(path)} is unmounted, but its daemon (process {mount.record.pid}) goes on: "
            "another mount namespace or an open file holds the mount"
        )
    if not registry.process_alive(mount.record):
        # Namespaces that others make have copies of a mount for a while, so wait as a keeper
        # would; what was unmounted before now has had its time.
        _finish(mount.record, 0.0 if lazy or mount.state is State.STALE else _PATIENCE, lazy=lazy)


def _finish(record: MountRecord, patience: float, *, lazy: bool) -> None:
    """Do what a keeper that is gone has not done, as soon as nobody uses the mount any more.

    If somebody goes on, the next use of the branch or `clean()` does it; an error but for `lazy`.
    """
    end = time.monotonic() + patience
    while True:
        try:
            _forget(record)
        except BusyError as exc:
            if lazy:
                return
            if time.monotonic() >= end:
                raise BusyError(
                    f"{show(record.target)} is unmounted, but still in use by an open file or in"
                    " another mount namespace; unmount it again when that has ended"
                ) from exc
            time.sleep(_PAUSE)
        else:
            return


def _unmount_strange(path: bytes, *, lazy: bool) -> None:
    """Unmount a union of another user, if the caller may; refuse what is none."""
    mounted = [entry for entry in registry.mount_table() if entry.target == path]
    if not mounted:
        raise NotFoundError(f"no union is mounted on {show(path)}")
    if mounted[-1].fstype != _FSTYPE and not mounted[-1].is_kernel_union:
        raise UsageError(f"what is mounted on {show(path)} is not a union")
    device.unmount(path, lazy=lazy)


def _pid(mount: LiveMount) -> int:
    return 0 if mount.record is None else mount.record.pid


def _unmount_live(mount: LiveMount, path: bytes, *, lazy: bool) -> None:
    record = mount.record
    if record is not None and record.backend != "fuse":
        from unionfs.kernel import session  # noqa: PLC0415  # only for kernel mounts

        if lazy and mount.state is State.LIVE and _told_to_detach(record, path):
            return
        try:
            session.before_unmount(record)
        except BusyError as exc:
            raise _naming_users(exc, path, _pid(mount)) from exc
    end = time.monotonic() + _GLANCE
    while True:
        try:
            device.unmount(path, lazy=lazy)
        except BusyError as exc:
            named = _naming_users(exc, path, _pid(mount))
            if named is not exc:
                raise named from exc
            # Nobody has it open: somebody has only looked at it, or is about to be gone.
            if time.monotonic() >= end:
                raise
            time.sleep(_PAUSE)
        else:
            return


def _naming_users(busy: BusyError, path: bytes, daemon: int) -> BusyError:
    """Return an error that says who uses a mount, or the same when nobody is found."""
    users = list(_users(path, daemon))
    if not users:
        return busy
    shown = ", ".join(users[:_MAX_USERS]) + (", ..." if len(users) > _MAX_USERS else "")
    return BusyError(f"{show(path)} is in use by {shown}; stop them or unmount with --lazy")


def _told_to_detach(record: MountRecord, path: bytes) -> bool:
    """Let the keeper of a kernel mount detach it, for it must know that users may remain.

    True when the mount is gone from its place.
    """
    try:
        fd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return False
    try:
        if not registry.process_alive(record):
            return False
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        end = time.monotonic() + _PATIENCE
        ended = False
        while not ended and time.monotonic() < end:
            ended = bool(select.select([fd], [], [], _PAUSE)[0])
            if not any(
                entry.device == record.device and entry.target == path
                for entry in registry.mount_table()
            ):
                return True
        return False
    finally:
        os.close(fd)


def _wait(record: MountRecord) -> bool:
    """Wait for the daemon to end; False when it has not after `_PATIENCE`."""
    try:
        fd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        if not registry.process_alive(record):
            return True
        return bool(select.select([fd], [], [], _PATIENCE)[0])
    finally:
        os.close(fd)


def _users(target: bytes, daemon: int) -> Iterator[str]:
    """Yield `name (pid)` of each process seen to use something at or under `target`."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == daemon:
            continue
        base = f"/proc/{entry}"
        with contextlib.suppress(OSError):
            if _uses(base, target):
                with open(f"{base}/comm", "rb") as comm:
                    name = comm.read().strip()
                if name == _LISTER and registry.process_parent(int(entry)) == daemon:
                    continue  # lists directories for the daemon, and ends with it
                yield f"{show(name)} ({entry})"


def _uses(base: str, target: bytes) -> bool:
    links = [f"{base}/cwd", f"{base}/root"]
    for directory in ("fd", "map_files"):
        with contextlib.suppress(OSError):
            links += [f"{base}/{directory}/{name}" for name in os.listdir(f"{base}/{directory}")]
    under = target.rstrip(b"/") + b"/"
    for link in links:
        with contextlib.suppress(OSError):
            place = os.fsencode(os.readlink(link))
            if place == target or place.startswith(under):
                return True
    return False


def clean(target: bytes | None = None) -> list[LiveMount]:
    """Remove what killed daemons left, of all mounts or the one on `target`; return those.

    Dead mounts are unmounted, throw-away branches and records removed. Unattended mounts work
    and stay.
    """
    path = None if target is None else canonical(target)
    cleaned = []
    for mount in list_mounts():
        if path is not None and mount.target != path:
            continue
        if mount.state is State.DEAD:
            with contextlib.suppress(NotFoundError):
                device.unmount(mount.target, lazy=True)
        elif mount.state is not State.STALE:
            continue
        try:
            if mount.record is not None:
                _forget(mount.record)
        except BusyError:
            continue  # detached and still in use
        cleaned.append(mount)
    if path is None:
        _drop_old_logs()
    return cleaned


def _drop_old_logs() -> None:
    """Remove logs that a daemon wrote something to and nobody has wanted for a week."""
    directory = registry.runtime_dir()
    stems = {record.stem.encode() for record in registry.read_records(directory)}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as listing:
        for entry in listing:
            stem, suffix = os.path.splitext(entry.name)
            if suffix != b".log" or stem in stems:
                continue
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > _LOG_SECONDS:
                os.unlink(entry.path)


def _forget(record: MountRecord) -> None:
    """Finish what a daemon that is gone has left, and remove its record."""
    directory = registry.runtime_dir()
    if record.backend != "fuse" and os.path.exists(registry.record_path(directory, record.stem)):
        from unionfs.kernel import session  # noqa: PLC0415  # only for kernel mounts

        session.tidy(record)
    if record.ephemeral and record.rw is not None:
        place, name = os.path.split(record.rw)
        if os.path.basename(place) == EPHEMERAL and name == record.stem.encode():
            try:
                shutil.rmtree(record.rw)
            except FileNotFoundError:
                pass
            except OSError as exc:
                raise UnionfsError(
                    f"cannot remove the throw-away branch {show(record.rw)}: {exc.strerror}"
                ) from exc
    registry.remove_record(directory, record)
