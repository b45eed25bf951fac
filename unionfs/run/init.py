"""Process 1 of a run: builds the root, starts the command, reaps, passes signals on.

Invariant: from the moment the root is the image's, this process imports nothing (what it
would find lies in the image) and cannot be looked into (not dumpable), and the command
starts with its three standard descriptors and no other. `run()` never returns.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import sys
from collections.abc import Callable
from typing import Final, NoReturn

import attrs

from unionfs import _sys
from unionfs.errors import UnionfsError, show
from unionfs.run import messages, namespaces, rootfs
from unionfs.run.config import DEFAULT_PATH, RunConfig
from unionfs.run.messages import Kind
from unionfs.run.network import raise_loopback
from unionfs.run.users import User, find_user

__all__ = ["CANNOT_RUN", "FAILED", "NOT_FOUND", "Setup", "run"]

#: Exit statuses as of podman-run(1) and env(1).
FAILED: Final = 125
CANNOT_RUN: Final = 126
NOT_FOUND: Final = 127
_SIGNAL_BASE: Final = 128
#: Signals of kill(2) and sigqueue(3), not of the terminal (siginfo's si_code, sigaction(2)).
_SI_USER_MAX: Final = 0
#: What the command may still do as root, if it is: Docker's default set (capabilities(7)).
_KEPT: Final = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
_MAX_CAPABILITY: Final = 63
#: Where the union is mounted before it becomes the root: a directory that every system has.
_PLACES: Final = (b"/tmp", b"/mnt", b"/usr")  # in a mount namespace of our own
_UMASK: Final = 0o022
_NULL_FD: Final = 3
_REPORT_FD: Final = 4


@attrs.define
class Setup:
    """What process 1 needs to know.

    `mount` puts the union on a directory of this mount namespace. `signals` are blocked and
    belong to us, `mask` is what the command starts with. `own_group` makes a process group
    for the command. `single` tells that id 0 is the only one of the user namespace.
    """

    config: RunConfig
    mount: Callable[[bytes], None]
    report_fd: int
    null_fd: int
    signals: frozenset[int]
    mask: frozenset[int]
    own_group: bool
    network: bool
    single: bool
    host_root: bool
    read_only: bool
    throw_away: bool
    terminal: bytes | None


class _Failed(Exception):  # noqa: N818  # carries an exit status, is no error of its own
    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def run(setup: Setup) -> NoReturn:
    """Be process 1."""
    status = FAILED
    try:
        status = _run(setup)
    except _Failed as exc:
        status = exc.status
        messages.send(setup.report_fd, Kind.SETUP_FAILED, str(exc), status)
    except UnionfsError as exc:
        messages.send(setup.report_fd, Kind.SETUP_FAILED, str(exc), FAILED)
    except OSError as exc:
        name = f"{show(exc.filename)}: " if isinstance(exc.filename, bytes | str) else ""
        text = f"cannot start the command: {name}{exc.strerror}"
        messages.send(setup.report_fd, Kind.SETUP_FAILED, text, FAILED)
    except BaseException as exc:  # noqa: BLE001  # must not return into the supervisor's code
        messages.send(setup.report_fd, Kind.SETUP_FAILED, f"internal error: {exc!r}", FAILED)
    finally:
        os._exit(status)


def _run(setup: Setup) -> int:
    _sys.die_with_parent(signal.SIGKILL)
    if _is_abandoned(setup.report_fd):
        return FAILED
    if setup.own_group:
        os.setpgid(0, 0)
    _sys.unshare(_sys.CLONE_NEWNS | _sys.CLONE_NEWIPC | (_sys.CLONE_NEWNET if setup.network else 0))
    if setup.network:
        raise_loopback()
    _sys.mount(b"none", b"/", b"", _sys.MS_REC | _sys.MS_PRIVATE, b"")
    place = next((path for path in _PLACES if os.path.isdir(path)), b"/")
    setup.mount(place)
    _forget_host()
    rootfs.build(
        place,
        rootfs.Plan(
            read_only=setup.read_only,
            throw_away=setup.throw_away,
            own_network=setup.network,
            host_root=setup.host_root,
            terminal=setup.terminal,
            note=lambda text: messages.send(setup.report_fd, Kind.NOTE, text),
        ),
    )
    _close_host(setup)
    _sys.set_dumpable(False)
    for capability in range(_MAX_CAPABILITY + 1):
        if capability not in _KEPT:
            try:
                _sys.drop_bounding(capability)
            except OSError:
                break  # past the last one this kernel knows
    command = _start(setup)
    for number in range(3):
        os.dup2(
            setup.null_fd, number
        )  # a reader must see the end when the command closes its output
    return _supervise(command, setup)


def _close_host(setup: Setup) -> None:
    """Close all but the standard descriptors, the pipe to the supervisor and a /dev/null."""
    null = fcntl.fcntl(setup.null_fd, fcntl.F_DUPFD_CLOEXEC, 10)
    report = fcntl.fcntl(setup.report_fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.dup2(null, _NULL_FD, inheritable=False)
    os.dup2(report, _REPORT_FD, inheritable=False)
    _sys.close_from(_REPORT_FD + 1)
    setup.null_fd, setup.report_fd = _NULL_FD, _REPORT_FD


def _is_abandoned(report_fd: int) -> bool:
    """Tell whether the supervisor died before it could take us along."""
    poll = select.poll()
    poll.register(report_fd, 0)
    return bool(poll.poll(0))


def _forget_host() -> None:
    """Make every later import fail instead of finding the image's files."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.meta_path.clear()


def _start(setup: Setup) -> int:
    """Start the command and return its process id."""
    # The command's failure to start comes over this pipe; nothing comes when it is executed.
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(setup, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    if said:
        os.waitpid(pid, 0)
        status, _, text = said.partition(b" ")
        raise _Failed(text.decode("utf-8", "replace"), int(status))
    return pid


def _become(setup: Setup, report_fd: int) -> NoReturn:
    """Turn into the command."""
    try:
        _execute(setup, report_fd)
    except _Failed as exc:
        text = f"{exc.status} {exc}"
    except UnionfsError as exc:
        text = f"{FAILED} {exc}"
    except OSError as exc:
        text = f"{FAILED} cannot start the command: {exc.strerror}"
    except BaseException as exc:  # noqa: BLE001  # must not return into process 1's code
        text = f"{FAILED} internal error: {exc!r}"
    try:
        os.write(report_fd, text.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(FAILED)


def _execute(setup: Setup, report_fd: int) -> None:
    config = setup.config
    with_root = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    user = find_user(with_root, config.user)
    os.umask(_UMASK)
    _change_directory(with_root, config.workdir)
    os.close(with_root)
    _become_user(user, single=setup.single)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores these two
    signal.pthread_sigmask(signal.SIG_SETMASK, setup.mask)
    os.dup2(report_fd, 3, inheritable=False)
    _sys.close_from(4)
    environment = {b"HOME": user.home} | config.env
    try:
        _try_programs(config, environment)
    except _Failed as exc:
        # `report_fd` is closed; the pipe lives on as descriptor 3.
        os.write(3, f"{exc.status} {exc}".encode("utf-8", "backslashreplace"))
        os._exit(exc.status)


def _change_directory(root_fd: int, path: bytes) -> None:
    """Go to WORKDIR; links are the image's, and those of /proc that leave it are not taken."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        fd = _sys.open_in_root(root_fd, path, flags)
    except FileNotFoundError:
        try:
            _make_directories(root_fd, path)
            fd = _sys.open_in_root(root_fd, path, flags)
        except OSError as exc:
            raise _Failed(
                f"the working directory {show(path)} does not exist and cannot be made: "
                f"{exc.strerror}"
            ) from exc
    except OSError as exc:
        raise _Failed(f"cannot use the working directory {show(path)}: {exc.strerror}") from exc
    os.fchdir(fd)
    os.close(fd)
    if not os.getcwdb().startswith(b"/"):
        raise _Failed(f"the working directory {show(path)} lies outside the image")


def _make_directories(root_fd: int, path: bytes) -> None:
    """Make the missing directories of a path, as Docker does for WORKDIR."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".", b"..")]
    for count in range(1, len(parts) + 1):
        parent = _sys.open_in_root(
            root_fd, b"/" + b"/".join(parts[: count - 1]), os.O_PATH | os.O_DIRECTORY
        )
        try:
            os.mkdir(parts[count - 1], 0o755, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)


def _become_user(user: User, *, single: bool) -> None:
    if single:
        # Supplementary groups cannot be given up here; they are nobody's in this namespace.
        if (user.uid, user.gid) != (0, 0):
            namespaces.enter_as(user.uid, user.gid)
        return
    try:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        raise _Failed(
            f"user {user.uid}:{user.gid} does not exist in this user namespace; "
            "have more ids granted in /etc/subuid and /etc/subgid, or use --user"
        ) from exc


def _try_programs(config: RunConfig, environment: dict[bytes, bytes]) -> None:
    """Execute the command; returns by `_Failed` only."""
    failure = _Failed("no command", NOT_FOUND)
    for program in (config.argv[0], *config.instead):
        for path in _candidates(program, environment.get(b"PATH", DEFAULT_PATH)):
            try:
                os.execve(path, [program, *config.argv[1:]], environment)  # noqa: S606  # that is the job
            except OSError as exc:
                failure = _judge(failure, path, exc)
        if failure.status == CANNOT_RUN:
            raise failure
    if not str(failure).startswith("cannot"):
        failure = _Failed(f"{show(config.argv[0])}: not found in the image", NOT_FOUND)
    raise failure


def _candidates(program: bytes, path: bytes) -> list[bytes]:
    if b"/" in program:
        return [program]
    return [(directory or b".") + b"/" + program for directory in path.split(b":")]


def _judge(before: _Failed, path: bytes, exc: OSError) -> _Failed:
    """Return the failure to report: that of the best candidate so far."""
    if before.status == CANNOT_RUN:
        return before
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        try:
            present = stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            return before
        if present:
            return _Failed(
                f"cannot run {show(path)}: the image lacks its interpreter or loader", NOT_FOUND
            )
        return before
    return _Failed(f"cannot run {show(path)}: {exc.strerror}", CANNOT_RUN)


def _supervise(command: int, setup: Setup) -> int:
    """Reap until the command ends; return the exit status it leads to."""
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return FAILED
            if pid == 0:
                break
            if pid != command:
                continue
            if os.WIFSTOPPED(status):
                messages.send(setup.report_fd, Kind.STOPPED)
                continue
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else _SIGNAL_BASE - code
        info = signal.sigwaitinfo(setup.signals)
        # What the terminal sends has reached the command already: same process group.
        if info.si_signo != signal.SIGCHLD and info.si_code <= _SI_USER_MAX:
            os.kill(command, info.si_signo)
