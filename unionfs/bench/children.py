"""Starting and ending the programs that a measurement consists of.

Invariant: a signal for the benchmark reaches only the benchmark (children have sessions of
their own), and what must be undone is never interrupted half-way (`deferred`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from unionfs.errors import UnionfsError, show

__all__ = ["BenchError", "Worker", "deferred", "run", "start", "stop"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds for a mount command or one workload, before it counts as hung.
_PATIENCE: Final = 900.0
_LONGEST: Final = 300
_PACKAGES: Final = str(Path(__file__).resolve().parents[2])


class BenchError(UnionfsError):
    """A subject did not do what it should; the measurement goes on without it."""


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold back signals that ask to end, until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, remember)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def _environment(place: Path | None) -> dict[str, str]:
    paths = [_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {} if place is None else {"UNIONFS_BENCH_PLACE": str(place)}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LC_ALL": "C.UTF-8", **more}


def run(argv: Sequence[str], cwd: Path | None = None) -> str:
    """Run a program to its end and return its output; `BenchError` with its last words."""
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=_environment(None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{argv[0]}: {error}") from None
    output = done.stdout.decode(errors="backslashreplace")
    if done.returncode:
        words = " ".join(output.split())[-_LONGEST:]
        command = " ".join(argv)[:_LONGEST]
        raise BenchError(f"{show(command)}: exit status {done.returncode}: {show(words)}")
    return output


def start(argv: Sequence[str], cwd: Path, errors: Path) -> subprocess.Popen[bytes]:
    """Start a program that serves in the foreground; what it says goes to the file `errors`."""
    with errors.open("wb") as words:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=_environment(None),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a program that was started here, and everything in its session's group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)


class Worker:
    """The process that touches the mount; see `unionfs.bench.worker` for what is said."""

    def __init__(
        self,
        shape: str,
        target: Path,
        place: Path,
        *,
        enter: Sequence[str] = (),
        inside: Sequence[str] = (),
    ) -> None:
        module = (sys.executable, "-m", "unionfs.bench.worker", shape, str(target))
        self._errors = (place / "worker.err").open("w+b")
        self._child = subprocess.Popen(
            [*enter, *module, *inside],
            cwd=place,
            env=_environment(place),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._buffer = b""
        try:
            self.mount_seconds = float(self._line()["ready"])
        except BaseException:
            self.close()
            raise

    def _line(self) -> dict[str, Any]:
        assert self._child.stdout is not None  # noqa: S101  # it was asked for
        deadline = time.monotonic() + _PATIENCE
        pipe = self._child.stdout.fileno()
        while b"\n" not in self._buffer:
            ready = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise BenchError(f"no answer within {_PATIENCE:.0f} s")
            data = os.read(pipe, 1 << 16)
            if not data:
                raise BenchError(f"the worker ended: {show(self._last_words())}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        self._errors.seek(0)
        return " ".join(self._errors.read().decode(errors="backslashreplace").split())[-_LONGEST:]

    def do(self, key: str) -> tuple[float, int]:
        """Do one pass of a workload; seconds and how much was done, or `BenchError`."""
        assert self._child.stdin is not None  # noqa: S101  # it was asked for
        try:
            self._child.stdin.write(json.dumps([key]).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"the worker ended: {show(self._last_words())}") from None
        answer = self._line()
        if "error" in answer:
            raise BenchError(str(answer["error"]))
        return float(answer["seconds"]), int(answer["count"])

    def close(self) -> None:
        """End it and what it started; a mount in its namespace ends with it."""
        stop(self._child)
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
