"""The supervisor: makes the processes of a run, stands between them and the caller.

Invariant: when `run()` returns or raises, both children are gone and reaped, the terminal
is the caller's again and a throw-away branch is removed. When this process is killed, the
kernel kills process 1, and everything else follows (see `unionfs.run`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
from collections.abc import Callable
from typing import Final

import attrs

from unionfs import _sys
from unionfs.errors import UnionfsError, UnsupportedError
from unionfs.run import init, messages, namespaces
from unionfs.run.config import RunConfig
from unionfs.run.messages import Kind, Message
from unionfs.run.unions import Report, Union

__all__ = ["RunError", "RunRequest", "run"]

_log = logging.getLogger(__name__)
#: Signals that are passed on to the command.
_PASSED: Final = frozenset(
    (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGWINCH,
    )
)
_OURS: Final = frozenset((signal.SIGCHLD, signal.SIGIO, signal.SIGCONT))
_MAX_REPORT: Final = 1 << 16
#: Seconds that a daemon gets to write out and close before it is told, then forced, to end.
_PATIENCE: Final = 30.0


class RunError(UnionfsError):
    """The command could not be started; `exit_status` is 125, 126 or 127 as of podman."""

    def __init__(self, message: str, exit_status: int = init.FAILED) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@attrs.frozen
class RunRequest:
    """A command to run in a union.

    `read_only` and `throw_away` describe the union's writable branch. `private_network` gives
    the command a network of its own with nothing but the loopback device.
    """

    config: RunConfig
    union: Union
    read_only: bool = True
    throw_away: bool = False
    private_network: bool = False


def run(request: RunRequest, note: Callable[[str], None] = lambda _: None) -> int:
    """Run the command and return its exit status, 128 + N if signal N ended it.

    `note` is told what the command has to do without. Raises `RunError` when it cannot be
    started, `UnsupportedError` when the machine forbids it. This process enters a new user
    namespace on the way and cannot leave it, so it should end soon afterwards.
    """
    _check_kernel()
    _fill_standard_descriptors()
    mask = frozenset(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED | _OURS))
    try:
        return _Run(request, note, mask).run()
    finally:
        request.union.finish()
        # What came too late for the command must not end the caller instead.
        while signal.sigtimedwait(_PASSED | _OURS, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _check_kernel() -> None:
    """Ask for the newest system call that a run needs, before anything is made."""
    try:
        _sys.make_read_only(b"")
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            raise UnsupportedError(
                f"a run needs Linux 5.12 or later, and this is {os.uname().release}"
                " (mount_setattr is missing); `unionfs mount` works with older ones"
            ) from exc


def _fill_standard_descriptors() -> None:
    """Open what is closed: a later file must not become a standard descriptor by accident."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class _Terminal:
    """The caller's terminal, and whether the command is to have it.

    `handed_over` when both ends of it are ours: then the command gets a process group in the
    foreground. Within a pipeline or in the background it stays in the caller's group.
    """

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.handed_over = False
        controlling = False
        with contextlib.suppress(OSError):
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
            controlling = True
        if os.isatty(0):
            with contextlib.suppress(OSError):
                self.name = os.fsencode(os.ttyname(0))
            if controlling and os.isatty(1):
                self.handed_over = self.is_ours()
        self.own_group = self.handed_over or not controlling

    def is_ours(self) -> bool:
        """Tell whether our process group is the one in the foreground."""
        try:
            return os.tcgetpgrp(0) == os.getpgrp()
        except OSError:
            return False

    def give(self, group: int) -> None:
        """Put a process group into the foreground."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, group)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Run:
    def __init__(
        self, request: RunRequest, note: Callable[[str], None], mask: frozenset[int]
    ) -> None:
        self._request = request
        self._note = note
        self._mask = mask
        self._terminal = _Terminal()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._init = 0
        self._statuses: dict[int, int] = {}
        self._failures: list[Message] = []

    def run(self) -> int:
        host_root = _sys.has_capability(_sys.CAP_SYS_ADMIN)
        single = False
        if not host_root:
            mapping = namespaces.enter()
            # Rights over mounts are rights over a mount namespace of this user namespace.
            _sys.unshare(_sys.CLONE_NEWNS)
            single = mapping.single
            if single:
                _log.info("only one user and group inside: %s", mapping.note)
        union = self._request.union
        try:
            union.start(Report(self._writing, self._reading, self._mask))
            _sys.unshare(_sys.CLONE_NEWPID)
            self._make_init(single=single, host_root=host_root)
            union.started()
            status = self._wait()
        finally:
            self._end_all()
            if self._terminal.handed_over:
                self._terminal.give(os.getpgrp())
        self._listen()
        if self._failures:
            # What the daemon says is the cause of what process 1 then met.
            first = min(self._failures, key=lambda said: said.kind is not Kind.DAEMON_FAILED)
            raise RunError(first.text, first.status if first.kind is Kind.SETUP_FAILED else 125)
        for who, pid in (("the mount daemon", union.pid), ("process 1", self._init)):
            if self._statuses.get(pid, 0) < 0:
                raise RunError(f"{who} was killed by signal {-self._statuses[pid]}")
        return status

    def _make_init(self, *, single: bool, host_root: bool) -> None:
        request = self._request
        null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        setup = init.Setup(
            config=request.config,
            mount=request.union.mount,
            report_fd=self._writing,
            null_fd=null_fd,
            signals=frozenset(int(number) for number in (*_PASSED, signal.SIGCHLD)),
            mask=self._mask,
            own_group=self._terminal.own_group,
            network=request.private_network,
            single=single,
            host_root=host_root,
            read_only=request.read_only,
            throw_away=request.throw_away,
            terminal=self._terminal.name,
        )
        fcntl.fcntl(self._reading, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self._reading, fcntl.F_GETFL)
        fcntl.fcntl(self._reading, fcntl.F_SETFL, flags | os.O_ASYNC)
        self._init = os.fork()
        if self._init == 0:
            os.close(self._reading)
            init.run(setup)
        os.close(null_fd)
        # Nobody may look at our descriptors, which are the host's, from inside.
        _sys.set_dumpable(False)
        if self._terminal.own_group:
            with contextlib.suppress(OSError):  # it has done so itself, or is gone
                os.setpgid(self._init, self._init)
        if self._terminal.handed_over:
            self._terminal.give(self._init)

    def _wait(self) -> int:
        """Pass signals on until process 1 has ended; return its exit status."""
        waited = _PASSED | _OURS
        while True:
            self._reap()
            code = self._statuses.get(self._init)
            if code is not None:
                return code
            if self._request.union.pid in self._statuses:
                # Its mount is gone: because process 1 is just ending, or there is no use in it.
                self._kill(self._init, signal.SIGKILL)
            info = signal.sigwaitinfo(waited)
            if info.si_signo == signal.SIGIO:
                self._listen()
            elif info.si_signo == signal.SIGCONT:
                self._continue()
            elif info.si_signo in _PASSED and (info.si_code <= 0 or self._terminal.own_group):
                self._kill(self._init, info.si_signo)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._statuses[pid] = os.waitstatus_to_exitcode(status)

    def _kill(self, pid: int, number: int) -> None:
        if pid and pid not in self._statuses:
            os.kill(pid, number)

    def _listen(self) -> None:
        """Read what the others report."""
        try:
            data = os.read(self._reading, _MAX_REPORT)
        except BlockingIOError:
            return
        for said in messages.decode(data):
            if said.kind is Kind.NOTE:
                self._note(said.text)
            elif said.kind is Kind.STOPPED:
                self._stop()
            else:
                self._failures.append(said)

    def _stop(self) -> None:
        """Stop as the command did, so that the caller's shell gets its terminal back."""
        if not self._terminal.handed_over:
            return
        self._terminal.give(os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continue(self) -> None:
        if self._terminal.handed_over and self._init:
            if self._terminal.is_ours():
                self._terminal.give(self._init)
            with contextlib.suppress(OSError):
                os.killpg(self._init, signal.SIGCONT)

    def _end_all(self) -> None:
        """Leave no child: process 1 at once, then the daemon when it has written out."""
        self._reap()
        self._kill(self._init, signal.SIGKILL)
        while self._init and self._init not in self._statuses:
            self._await_child()
        daemon = self._request.union.pid
        self._request.union.ended()
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            if not daemon or daemon in self._statuses:
                return
            self._kill(daemon, number)
            while daemon not in self._statuses and self._await_child(_PATIENCE):
                pass

    def _await_child(self, seconds: float = 1.0) -> bool:
        came = signal.sigtimedwait((signal.SIGCHLD,), seconds) is not None
        self._reap()
        return came
