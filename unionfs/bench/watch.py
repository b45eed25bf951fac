"""What a server process costs, read from outside of it: CPU, memory, system calls, requests.

Invariant: reading these changes nothing in the server. Requests are counted by the kernel's
own trace event, which needs root; everybody can read the process's counts of read and write
calls, of which a FUSE server makes at least one each for a request.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

__all__ = ["OwnRequests", "Requests", "Sample", "requests_reason", "sample", "trace"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_TRACING: Final = Path("/sys/kernel/tracing")
_EVENT: Final = "events/fuse/fuse_request_send"
_INSTANCE: Final = "unionfs-bench-"
_OPCODE: Final = re.compile(r"opcode \d+ \((?:FUSE_)?(\w+)\)")
#: Kilobytes for each core: a quarter of a million requests.
_BUFFER_KB: Final = 16384


@attrs.frozen
class Sample:
    """What a process has used so far.

    `cpu` is seconds, exact to a clock tick; `threads` the nanoseconds of each thread, where the
    kernel tells; `resident` and `peak` bytes; `calls` those that read or wrote.
    """

    cpu: float = 0.0
    threads: Mapping[str, int] = attrs.field(factory=dict)
    resident: int = 0
    peak: int = 0
    calls: int = 0

    def cpu_since(self, before: Sample) -> float:
        """Return the seconds of CPU used between two samples; children must not have ended."""
        if not self.threads or not before.threads.keys() <= self.threads.keys():
            return self.cpu - before.cpu  # a thread has ended and taken its count along
        spent = sum(ns - before.threads.get(thread, 0) for thread, ns in self.threads.items())
        return spent / 1e9


def sample(pid: int | None) -> Sample:
    """Return what a process and its children have used; nothing for None, or when it is gone."""
    if pid is None:
        return Sample()
    own = _sample(pid)
    children = [_sample(child) for child in _children(pid)]
    return Sample(
        own.cpu + sum(child.cpu for child in children),
        {thread: ns for used in (own, *children) for thread, ns in used.threads.items()},
        own.resident + sum(child.resident for child in children),
        own.peak + sum(child.peak for child in children),
        own.calls + sum(child.calls for child in children),
    )


def _children(pid: int) -> list[int]:
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in listed.read_text().split()]
    return found


def _sample(pid: int) -> Sample:
    place = Path(f"/proc/{pid}")
    try:
        # proc_pid_stat(5): the name may hold spaces and parentheses; utime is field 14.
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        status = _pairs(place / "status")
    except OSError:
        return Sample()
    calls = {}
    with contextlib.suppress(OSError):
        calls = _pairs(place / "io")
    return Sample(
        (int(fields[11]) + int(fields[12])) / _TICKS,
        _threads(place),
        status.get("VmRSS", 0) * 1024,
        status.get("VmHWM", 0) * 1024,
        calls.get("syscr", 0) + calls.get("syscw", 0),
    )


def _threads(place: Path) -> dict[str, int]:
    found = {}
    try:
        for thread in os.listdir(place / "task"):
            found[thread] = int((place / "task" / thread / "schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return {}
    return found


def _pairs(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            found[name] = int(number[0])
    return found


def requests_reason() -> str | None:
    """Return why requests cannot be counted by kind here, or None."""
    if os.geteuid() != 0:
        return "counting requests by kind needs root (the kernel's trace events)"
    if not (_TRACING / "events").is_dir():
        return f"no tracefs at {_TRACING} (mount -t tracefs tracefs {_TRACING})"
    if not (_TRACING / _EVENT).is_dir():
        return "this kernel has no trace event for FUSE requests (Linux 6.11 has)"
    return None


class Requests:
    """A trace buffer of our own that sees the requests of one FUSE connection."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def start(self, minor: int) -> None:
        """Begin to count for the mount whose device number has this `minor`."""
        event = self._place / _EVENT
        (event / "filter").write_text(f"connection == {minor}")
        (event / "enable").write_text("1")
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        (self._place / "trace").write_text("")

    def counts(self) -> dict[str, int] | None:
        """Return the requests since `clear` by kind; None when the buffer has overflowed.

        FORGET goes another way in the kernel and is not among them.
        """
        for cpu in self._place.glob("per_cpu/cpu*/stats"):
            if _pairs(cpu).get("overrun", 0):
                return None
        text = (self._place / "trace").read_text()
        return dict(collections.Counter(_OPCODE.findall(text)).most_common())


class OwnRequests:
    """What a server of this project says of itself, for those who may not trace the kernel."""

    def __init__(self, control: bytes) -> None:
        self._control = control
        self._before: dict[str, int] = {}

    def _ask(self) -> dict[str, int]:
        from unionfs.control.client import connected  # noqa: PLC0415  # for plain users only
        from unionfs.control.protocol import Request  # noqa: PLC0415  # for plain users only

        with connected(self._control) as client:
            kinds = client.ask(Request("stats"))["requests"]
        return {kind.upper(): item["count"] for kind, item in kinds.items()}

    def clear(self) -> None:
        """Forget what was counted."""
        self._before = self._ask()

    def counts(self) -> dict[str, int] | None:
        """Return the requests since `clear` by kind, without FORGET as the kernel's trace."""
        now = self._ask()
        found = {kind: count - self._before.get(kind, 0) for kind, count in now.items()}
        found.pop("FORGET", None)
        return {kind: count for kind, count in found.items() if count}


@contextlib.contextmanager
def trace() -> Iterator[Requests]:
    """Make a trace instance of our own; it is gone afterwards. `requests_reason` must be None."""
    instances = _TRACING / "instances"
    for place in instances.glob(f"{_INSTANCE}*"):
        if not os.path.exists(f"/proc/{place.name.removeprefix(_INSTANCE)}"):
            _close(place)  # of a run that was killed
    place = instances / f"{_INSTANCE}{os.getpid()}"
    place.mkdir()
    try:
        (place / "buffer_size_kb").write_text(str(_BUFFER_KB))
        yield Requests(place)
    finally:
        _close(place)


def _close(place: Path) -> None:
    with contextlib.suppress(OSError):
        (place / _EVENT / "enable").write_text("0")
    with contextlib.suppress(OSError):
        place.rmdir()
