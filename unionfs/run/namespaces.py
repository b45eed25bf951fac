"""User namespaces and id maps: how a plain user becomes root of something.

Invariant: `enter()` returns in a process that may mount (CAP_SYS_ADMIN in its own user
namespace) or raises `UnsupportedError` with the kernel's reason and what would help.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shutil
import subprocess
from typing import Final

import attrs

from unionfs import _sys
from unionfs.errors import UnsupportedError

__all__ = ["GATES", "IdRange", "Mapping", "enter", "enter_as", "subordinate_ranges"]

_DONE: Final = "+"
_MAX_TABLE: Final = 1 << 20
#: Switches that forbid user namespaces: file, forbidding value, how root allows them again.
GATES: Final = (
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
)


@attrs.frozen
class IdRange:
    """`count` ids from `start` on that /etc/subuid or /etc/subgid grants."""

    start: int
    count: int


@attrs.frozen
class Mapping:
    """What `enter()` got: `single` when only id 0 exists in the namespace, `note` says why."""

    single: bool
    note: str = ""


def subordinate_ranges(path: str, uid: int) -> list[IdRange]:
    """Return what a file in the form of subuid(5) grants the user; empty if there is none."""
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_TABLE).splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in names and fields[1].isdigit() and fields[2].isdigit():  # noqa: PLR2004  # name:start:count
            ranges.append(IdRange(int(fields[1]), int(fields[2])))
    return [item for item in ranges if item.count]


def _map_arguments(own: int, ranges: list[IdRange]) -> list[str]:
    words = ["0", str(own), "1"]
    first = 1
    for item in ranges:
        words += [str(first), str(item.start), str(item.count)]
        first += item.count
    return words


def explain(exc: OSError) -> str:
    """Return why unshare(CLONE_NEWUSER) failed and what would help."""
    closed = []
    for path, value, remedy in GATES:
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            if file.read().strip() == value:
                closed.append(remedy)
    if closed:
        return f"{exc.strerror}; root can allow it with `{'` and `'.join(closed)}`"
    if exc.errno == errno.ENOSPC:
        return "too many user namespaces; raise sysctl user.max_user_namespaces"
    return (
        f"{exc.strerror}; a container or security module forbids it (in a container: "
        "`--security-opt seccomp=unconfined`, or allow the system call unshare)"
    )


def enter() -> Mapping:
    """Move this process into a new user namespace in which it is root.

    Ids beyond 0 come from /etc/subuid and /etc/subgid through newuidmap and newgidmap; where
    that is not possible the caller's own ids are the only ones and stand for 0. The process
    must have one thread.
    """
    uid, gid = os.geteuid(), os.getegid()
    ranges = subordinate_ranges("/etc/subuid", uid), subordinate_ranges("/etc/subgid", uid)
    # After a change of ids the kernel would not let us write our own maps.
    _sys.set_dumpable(True)
    helper = _Mapper(uid, gid, *ranges) if all(ranges) else None
    try:
        _sys.unshare(_sys.CLONE_NEWUSER)
    except OSError as exc:
        if helper is not None:
            helper.cancel()
        raise UnsupportedError(f"no user namespace: {explain(exc)}") from exc
    if helper is None:
        note = "no range for you in /etc/subuid and /etc/subgid"
    else:
        note = helper.map()
        if not note:
            return Mapping(single=False)
    _map_single(0, uid, 0, gid)
    return Mapping(single=True, note=note)


def enter_as(uid: int, gid: int) -> None:
    """Become `uid` and `gid` where the namespace has only id 0: in another namespace."""
    _sys.set_dumpable(True)
    _sys.unshare(_sys.CLONE_NEWUSER)
    _map_single(uid, 0, gid, 0)


def _map_single(uid: int, outer_uid: int, gid: int, outer_gid: int) -> None:
    texts = (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    )
    for name, text in texts:
        if name != "setgroups" and _is_written(name):
            continue  # by the one of newuidmap and newgidmap that worked
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _is_written(name: str) -> bool:
    with open(f"/proc/self/{name}", "rb") as table:
        return bool(table.read())


class _Mapper:
    """A child that stays outside and calls newuidmap and newgidmap for its parent."""

    def __init__(self, uid: int, gid: int, uids: list[IdRange], gids: list[IdRange]) -> None:
        started, self._go = os.pipe()
        self._said, answer = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid:
            os.close(started)
            os.close(answer)
            return
        os.close(self._go)
        os.close(self._said)
        try:
            if os.read(started, 1):
                os.write(answer, _call_helpers(parent, uid, gid, uids, gids).encode())
        finally:
            os._exit(0)

    def cancel(self) -> None:
        """End the child."""
        os.close(self._go)
        os.close(self._said)
        os.waitpid(self._pid, 0)

    def map(self) -> str:
        """Have the maps written; return why that failed, or nothing."""
        os.write(self._go, b"m")
        with open(self._said, "rb", closefd=False) as pipe:
            said = pipe.read().decode("utf-8", "replace")
        self.cancel()
        return said.removeprefix(_DONE) if said else "the helper process died"


def _call_helpers(pid: int, uid: int, gid: int, uids: list[IdRange], gids: list[IdRange]) -> str:
    """Return `_DONE` when both maps are written, else the reason."""
    for tool, own, ranges in (("newuidmap", uid, uids), ("newgidmap", gid, gids)):
        path = shutil.which(tool)
        if path is None:
            return f"{tool} is not installed (package uidmap)"
        done = subprocess.run(
            [path, str(pid), *_map_arguments(own, ranges)],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            return f"{said[-1] if said else tool + ' failed'}"
    return _DONE
