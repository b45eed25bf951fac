"""A person at a terminal: job control, Ctrl-C, Ctrl-Z, window size, pipelines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import termios
import time
from collections.abc import Iterator

import pytest
from support.runner import Runner

pytestmark = pytest.mark.parametrize("inside", ["root-overlay", "user-fuse"], indirect=True)
_SECONDS = 40
#: Prints `ready` without containing it: the terminal shows the typed line as well.
_READY = "printf 're%s\\n' ady"
_SLEEP = f"{_READY}; exec sleep 1000"


class Terminal:
    """A terminal with an interactive shell of the host on it."""

    def __init__(self, inside: Runner) -> None:
        self.inside = inside
        env = {**inside.place.env, "PS1": "host> ", "TERM": "dumb", "HISTFILE": ""}
        argv = [*inside.place.prefix, "bash", "--norc", "--noprofile", "--noediting", "-i"]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(inside.place.path)
            os.execvpe(argv[0], argv, env)  # noqa: S606  # the shell of the test
        self.seen = ""
        self.expect("host> ")

    def expect(self, text: str) -> str:
        """Wait for a text; return what came before it."""
        end = time.monotonic() + _SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} after {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode(errors="replace").replace("\r", "")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.fd, text.encode())

    def line(self, *words: str, verb: str = "run") -> str:
        """Return the command line of a run, for the shell."""
        return shlex.join(self.inside.argv(*words, verb=verb))

    def status(self) -> int:
        """Return the exit status of the last command."""
        self.type("echo status=$?=\n")
        self.expect("status=$?=\n")
        found = re.search(r"status=(\d+)=", self.expect("host> "))
        assert found
        return int(found[1])

    def close(self) -> None:
        """End the shell."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(inside: Runner) -> Iterator[Terminal]:
    screen = Terminal(inside)
    yield screen
    screen.close()


def test_a_shell_with_job_control(terminal: Terminal) -> None:
    terminal.type(f"{terminal.line('-e', 'PS1=inner$ ', verb='shell')}\n")
    terminal.expect("inner$ '\n")
    assert terminal.expect("inner$ ") == ""  # no complaint about the terminal
    terminal.type("tty; echo $$\n")
    assert "/dev/console\n2\n" in terminal.expect("inner$ ")
    for key, said in (("\x03", "^C"), ("\x1a", "Stopped")):
        terminal.type("sleep 1000\n")
        terminal.expect("sleep 1000\n")
        time.sleep(0.3)  # no text tells when sleep has the terminal
        terminal.type(key)
        assert said in terminal.expect("inner$ ")
    terminal.type("kill -KILL %1; sleep 0.3; exit 7\n")
    terminal.expect("host> ")
    assert terminal.status() == 7


def test_interrupt(terminal: Terminal) -> None:
    terminal.type(f"{terminal.line('--', 'sh', '-c', _SLEEP)}\n")
    terminal.expect("ready\n")
    terminal.type("\x03")
    terminal.expect("host> ")
    assert terminal.status() == 130


def test_stop_and_go_on(terminal: Terminal) -> None:
    # bash, because dash starts programs with vfork and cannot be stopped while it does.
    script = f"trap 'echo on; exit 5' CONT; {_READY}; while :; do sleep 0.1; done"
    terminal.type(f"{terminal.line('--', 'bash', '-c', script)}\n")
    terminal.expect("ready\n")
    terminal.type("\x1a")
    assert "Stopped" in terminal.expect("host> ")
    terminal.type("fg\n")
    terminal.expect("on\n")
    terminal.expect("host> ")
    assert terminal.status() == 5


def test_the_terminal_comes_back_after_a_shell_that_took_it(terminal: Terminal) -> None:
    line = terminal.line("--", "sh", "-i", "-c", "true")
    terminal.type(f"sh -c {shlex.quote(line + '; read x; echo got $x')}\n")
    time.sleep(1.5)
    terminal.type("typed\n")
    terminal.expect("got typed\n")


def test_window_size(terminal: Terminal) -> None:
    script = f"trap 'stty size; exit 0' WINCH; {_READY}; while :; do sleep 0.1; done"
    terminal.type(f"{terminal.line('--', 'sh', '-c', script)}\n")
    terminal.expect("ready\n")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    terminal.expect("33 77\n")


def test_in_a_pipeline(terminal: Terminal) -> None:
    terminal.type(f"echo typed | {terminal.line('--', 'cat')} | cat -n\n")
    terminal.expect("cat -n\n")
    assert terminal.expect("host> ").split() == ["1", "typed"]
    line = f"{terminal.line('--', 'sh', '-c', _SLEEP)} | cat\n"
    terminal.type(line)
    terminal.expect("ready\n")
    terminal.type("\x03")
    terminal.expect("host> ")
    terminal.type(line)
    terminal.expect("ready\n")
    terminal.type("\x1a")
    assert "Stopped" in terminal.expect("host> ")
    terminal.type("kill %1; fg\n")
    terminal.expect("host> ")
