"""Parts of the direct lane alone: its memory, its workers, and its border to the kernel.

The kernel is played by one end of a socket pair, pyfuse3 by the test.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unionfs.fuse import protocol
from unionfs.fuse.idmap import IdMap
from unionfs.fuse.lane import Lane, reason_against
from unionfs.fuse.lane_lists import Lists
from unionfs.fuse.lane_request import COUNTS
from unionfs.fuse.lane_state import Files, Listings
from unionfs.fuse.lane_work import LaneWork
from unionfs.fuse.meter import Meter
from unionfs.fuse.options import MountOptions
from unionfs.fuse.policy import Policy
from unionfs.fuse.protocol import InitFlag, Op
from unionfs.union import Engine

pytestmark = pytest.mark.timeout(30)

_INIT_OUT = "=IIIIHHIIHHIIII"
_ALL = 0xFFFFFFFF


class Kernel:
    """Both ends of a lane: `device` is the kernel's, `pyfuse3` the other side's."""

    def __init__(self, engine: Engine, options: str = "") -> None:
        self.device, served = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device.settimeout(10)
        self.ended = threading.Event()
        settled = MountOptions.parse([options]).settled(uid=0, writable=True)
        policy = Policy((IdMap(), IdMap()))
        self.lane = Lane(served.detach(), engine, threading.Lock(), settled, policy, Meter())
        self.pyfuse3 = socket.socket(fileno=self.lane.inner)
        self.pyfuse3.settimeout(10)
        self.lane.start(self.ended.set)
        self._unique = 0

    def send(self, opcode: int, nodeid: int = 1, body: bytes = b"") -> int:
        self._unique += 2
        length = protocol.IN_HEADER.size + len(body)
        header = protocol.IN_HEADER.pack(length, opcode, self._unique, nodeid, 0, 0, 1, 0)
        self.device.send(header + body)
        return self._unique

    def answer(self) -> tuple[int, int, bytes]:
        """Return number, errno and payload of the next answer."""
        message = self.device.recv(1 << 20)
        length, code, unique = protocol.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return unique, -code, message[protocol.OUT_HEADER.size :]

    def ask(self, opcode: int, nodeid: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request and return errno and payload of its answer."""
        number = self.send(opcode, nodeid, body)
        unique, code, payload = self.answer()
        assert unique == number
        return code, payload

    def greet(self, flags: int = _ALL) -> int:
        """Do INIT, pyfuse3 agreeing to everything; return the flags the kernel gets."""
        return self.greet_fully(flags)[0]

    def greet_fully(self, flags: int) -> tuple[int, int]:
        """Do INIT; return the flags that the kernel gets and how deep it may stack."""
        number = self.send(Op.INIT, 0, struct.pack("=IIIQ44x", 7, 38, 1 << 17, flags))
        message = self.pyfuse3.recv(1000)
        assert protocol.IN_HEADER.unpack_from(message)[2] == number
        agreed = struct.pack(_INIT_OUT, 7, 38, 1 << 17, 1 << 3, 12, 9, 1 << 20, 1, 256, *[0] * 5)
        head = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(agreed), 0, number)
        self.pyfuse3.send(head + agreed)
        unique, code, payload = self.answer()
        assert (unique, code) == (number, 0)
        lower, upper = (struct.unpack_from("=I", payload, at)[0] for at in (12, 32))
        return lower | upper << 32, struct.unpack_from("=I", payload, 36)[0]

    def close(self) -> None:
        self.pyfuse3.close()
        self.lane.close()
        self.device.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Return an engine over one layer with a few files."""
    layer = tmp_path / "layer"
    layer.mkdir()
    for number in range(10):
        (layer / f"f{number}").write_text(f"content {number}")
    (tmp_path / "rw").mkdir()
    with Engine.start([bytes(layer)], bytes(tmp_path / "rw")) as found:
        yield found


@pytest.fixture
def kernel(engine: Engine) -> Iterator[Kernel]:
    """Return a served engine whose session has begun."""
    found = Kernel(engine)
    yield found
    found.close()


# -- the border to the kernel --------------------------------------------------------


def test_truncation_at_open_is_declined_and_links_are_cached(kernel: Kernel) -> None:
    flags = kernel.greet()
    assert not flags & InitFlag.ATOMIC_O_TRUNC
    assert flags & InitFlag.CACHE_SYMLINKS
    assert flags & InitFlag.PARALLEL_DIROPS
    for opcode in (Op.OPEN, Op.OPENDIR, Op.FLUSH, Op.ACCESS, Op.INTERRUPT):
        assert kernel.ask(opcode, 1, bytes(16)) == (errno.ENOSYS, b"")


def test_only_what_the_kernel_offers_is_agreed_on(kernel: Kernel) -> None:
    offered = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT
    assert kernel.greet(offered) == 0


@pytest.mark.logs_warnings
def test_passthrough_is_agreed_on_where_it_is_offered(engine: Engine) -> None:
    offered = InitFlag.PASSTHROUGH | InitFlag.INIT_EXT
    cutting = InitFlag.ATOMIC_O_TRUNC  # or OPEN would not say so
    for options, flags, agreed, reason in (
        ("ro,passthrough", offered, (offered | cutting, 1), False),
        ("ro", offered, (0, 0), False),
        ("ro,passthrough", InitFlag.INIT_EXT, (0, 0), True),
        ("ro,passthrough", InitFlag.PASSTHROUGH, (0, 0), True),  # no such flag without the other
    ):
        kernel = Kernel(engine, options)
        assert kernel.greet_fully(flags) == agreed
        assert (kernel.lane.no_passthrough is not None) == reason
        kernel.close()


def test_a_file_found_again_keeps_its_backing_file_when_it_is_forgotten_late(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """FORGETs have a queue of their own; with another backing file the kernel would say EIO."""
    given = iter(range(1, 100))
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: next(given))
    (tmp_path / "layer/big").write_bytes(bytes(1 << 20))
    kernel = Kernel(engine, "ro,passthrough")
    kernel.greet_fully(InitFlag.PASSTHROUGH | InitFlag.INIT_EXT)
    for _ in range(2):
        _, entry = kernel.ask(Op.LOOKUP, 1, b"big\0")
    (ino,) = struct.unpack_from("=Q", entry)
    first = kernel.ask(Op.OPEN, ino, bytes(8))
    assert protocol.OPEN_OUT.unpack(first[1])[2] == 1
    kernel.send(Op.FORGET, ino, struct.pack("=Q", 1))
    assert kernel.ask(Op.OPEN, ino, bytes(8)) == first
    kernel.close()


@pytest.mark.parametrize(
    ("flag", "opcode"),
    [(InitFlag.NO_OPEN_SUPPORT, Op.OPEN), (InitFlag.NO_OPENDIR_SUPPORT, Op.OPENDIR)],
)
def test_a_kernel_that_insists_on_handles_gets_some(
    kernel: Kernel, flag: InitFlag, opcode: Op
) -> None:
    kernel.greet(_ALL & ~flag)
    code, payload = kernel.ask(opcode, 1, bytes(16))
    assert code == 0
    assert len(payload) == protocol.OPEN_OUT.size
    assert kernel.ask(opcode + (4 if opcode == Op.OPEN else 2), 1, bytes(24)) == (0, b"")


@pytest.mark.parametrize(("asked", "mode"), [(protocol.OPEN_KILL_SUIDGID, 0o755), (0, 0o4755)])
def test_a_file_that_is_there_when_it_is_created_is_opened(
    kernel: Kernel, engine: Engine, tmp_path: Path, asked: int, mode: int
) -> None:
    """The kernel was told before that there is none; it knows nothing of the file's setuid."""
    kernel.greet()
    (tmp_path / "layer/f3").chmod(0o4755)
    body = struct.pack("=IIII", os.O_WRONLY | os.O_TRUNC, stat.S_IFREG | 0o600, 0, asked)
    code, payload = kernel.ask(Op.CREATE, 1, body + b"f3\0")
    assert code == 0
    attr = engine.lookup(1, b"f3")
    assert (stat.S_IMODE(attr.mode), attr.size) == (mode, 0)
    shown = protocol.ENTRY_OUT.unpack_from(payload)
    assert shown[0] == attr.ino
    assert attr.mode in shown[6:]
    code, payload = kernel.ask(Op.CREATE, 1, body + b"new\0")
    assert code == 0
    assert engine.lookup(1, b"new").mode == stat.S_IFREG | 0o600


def test_unknown_requests_and_their_answers_pass_unchanged(kernel: Kernel) -> None:
    kernel.greet()
    body = bytes(range(256)) * 200  # as large as a value of an attribute gets
    number = kernel.send(4711, 99, body)
    message = kernel.pyfuse3.recv(1 << 20)
    assert message[protocol.IN_HEADER.size :] == body
    reply = protocol.OUT_HEADER.pack(len(body) + 16, 0, number) + body
    kernel.pyfuse3.send(reply)
    assert kernel.answer() == (number, 0, body)
    notification = protocol.OUT_HEADER.pack(20, 2, 0) + b"note"
    kernel.pyfuse3.send(notification)
    assert kernel.device.recv(100) == notification


def test_references_follow_what_the_kernel_took(kernel: Kernel, engine: Engine) -> None:
    kernel.greet()
    size = 10 * (protocol.ENTRY_OUT.size + protocol.DIRENT.size + 8) // 2
    offset, seen = 0, []
    while True:
        body = protocol.WRITE_IN.pack(0, offset, size, 0, 0, 0, 0)
        code, payload = kernel.ask(Op.READDIRPLUS, 1, body)
        assert code == 0
        if not payload:
            break
        assert len(payload) <= size
        at = 0
        while at < len(payload):
            nodeid = struct.unpack_from("=Q", payload, at)[0]
            ino, offset, length, _ = protocol.DIRENT.unpack_from(
                payload, at + protocol.ENTRY_OUT.size
            )
            start = at + protocol.ENTRY_OUT.size + protocol.DIRENT.size
            name = payload[start : start + length]
            if name in (b".", b".."):
                assert nodeid == 0
            else:
                assert nodeid == ino
                seen.append((name, ino))
            at = start + length + -length % 8
    assert sorted(name for name, _ in seen) == [b"f%d" % n for n in range(10)]
    pairs = b"".join(COUNTS.pack(ino, 1) for _, ino in seen)
    kernel.send(Op.BATCH_FORGET, 0, struct.pack("=II", len(seen), 0) + pairs)
    for _, ino in seen:
        assert kernel.ask(Op.GETATTR, ino, bytes(16)) == (errno.ESTALE, b"")
    assert engine.names(1)


def test_a_stale_number_is_an_error_and_garbage_costs_one_answer(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.greet()
    assert kernel.ask(Op.READ, 12345, protocol.WRITE_IN.pack(0, 0, 10, 0, 0, 0, 0))[0]
    assert not caplog.records
    assert kernel.ask(Op.GETATTR, 1, bytes(16))[0] == 0


@pytest.mark.logs_warnings
def test_a_request_of_another_form_costs_one_eio(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.greet()
    assert kernel.ask(Op.SETATTR, 1, b"short") == (errno.EIO, b"")
    assert "setattr failed; the caller got EIO" in caplog.text
    assert kernel.ask(Op.GETATTR, 1, bytes(16))[0] == 0


def test_what_fails_in_advance_costs_only_that(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Lists) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(Lists, "work_ahead", fail)
    kernel.greet()
    for _ in range(3):
        assert kernel.ask(Op.GETATTR)[0] == 0
    kernel.lane.settle()  # until the lane has nothing else to do
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["making listings in advance has failed and stays off"]
    caplog.clear()


def test_the_session_hears_of_the_end(kernel: Kernel) -> None:
    kernel.greet()
    kernel.lane.settle()
    assert not kernel.ended.is_set()
    kernel.pyfuse3.close()
    kernel.lane.close()
    assert kernel.ended.is_set()
    kernel.lane.close = lambda: None  # type: ignore[method-assign]  # done


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (MountOptions(lane=False), "nolane"),
        (MountOptions(lane=True, coherent=True), "coherent"),
        (MountOptions(lane=True), None),
    ],
)
def test_reasons_against_a_lane(options: MountOptions, word: str | None) -> None:
    reason = reason_against(options)
    assert (reason is None) == (word is None)
    assert word is None or word in str(reason)


def test_names_alone_can_be_listed(kernel: Kernel) -> None:
    kernel.greet()
    code, payload = kernel.ask(Op.READDIR, 1, protocol.WRITE_IN.pack(0, 0, 4096, 0, 0, 0, 0))
    assert code == 0
    at, names = 0, []
    while at < len(payload):
        _, _, length, kind = protocol.DIRENT.unpack_from(payload, at)
        at += protocol.DIRENT.size
        names.append((payload[at : at + length], kind))
        at += length + -length % 8
    assert sorted(names) == [(b".", 4), (b"..", 4), *((b"f%d" % n, 8) for n in range(10))]


def test_renames_that_copy_hold_up_renames_alone(
    kernel: Kernel, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "layer" / "d").mkdir()
    (tmp_path / "layer" / "d" / "inner").write_text("inner")
    go, rename = threading.Event(), LaneWork._rename

    def slow(*arguments: Any) -> None:
        assert go.wait(10)
        rename(*arguments)

    monkeypatch.setattr(LaneWork, "_rename", slow)
    kernel.greet()
    long = kernel.send(Op.RENAME2, 1, struct.pack("=QII", 1, 0, 0) + b"d\0e\0")
    short = kernel.send(Op.RENAME, 1, struct.pack("=Q", 1) + b"f1\0z\0")
    assert kernel.ask(Op.GETATTR, 1, bytes(16))[0] == 0
    kernel.device.settimeout(0.1)
    with pytest.raises(TimeoutError):
        kernel.answer()
    kernel.device.settimeout(10)
    go.set()
    assert [kernel.answer()[:2] for _ in range(2)] == [(long, 0), (short, 0)]
    code, payload = kernel.ask(Op.LOOKUP, 1, b"e\0")
    assert code == 0
    assert engine.names(struct.unpack_from("=Q", payload)[0]) == [b"inner"]
    absent = struct.pack("=Q", 1) + b"absent\0x\0"
    assert kernel.ask(Op.RENAME, 1, absent) == (errno.ENOENT, b"")


def test_a_change_that_fails_has_its_errno(kernel: Kernel) -> None:
    kernel.greet()
    name = b"user.a\0"
    assert kernel.ask(Op.REMOVEXATTR, 1, name) == (errno.ENODATA, b"")
    value = struct.pack("=II", 3, os.XATTR_REPLACE) + name + b"abc"
    assert kernel.ask(Op.SETXATTR, 1, value) == (errno.ENODATA, b"")
    value = struct.pack("=II", 3, 0) + name + b"a\0c"
    assert kernel.ask(Op.SETXATTR, 1, value) == (0, b"")
    assert kernel.ask(Op.GETXATTR, 1, struct.pack("=II", 9, 0) + name) == (0, b"a\0c")
    assert kernel.ask(Op.LINK, 1, struct.pack("=Q", 1) + b"x\0") == (errno.EPERM, b"")


# -- memory ----------------------------------------------------------------------------


def _listed(listings: Listings, after: int = 0) -> list[tuple[int, bytes]]:
    return list(listings.entries(1, after))


def test_a_cookie_never_means_another_name() -> None:
    class Directory:
        def __init__(self) -> None:
            self.current = [b"a", b"b", b"c", b"d"]

        def names(self, ino: int) -> list[bytes]:
            assert ino == 1
            return list(self.current)

    directory = Directory()
    listings = Listings(directory)  # type: ignore[arg-type]  # as much of an engine as needed
    assert _listed(listings) == [(1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")]
    directory.current = [b"new", b"d", b"b"]
    assert _listed(listings, 2) == [(3, b"c"), (4, b"d")]  # no new look in the middle
    assert _listed(listings) == [(2, b"b"), (4, b"d"), (5, b"new")]
    assert _listed(listings, 1) == [(2, b"b"), (4, b"d"), (5, b"new")]
    directory.current = []
    assert _listed(listings) == []
    directory.current = [b"a"]
    assert _listed(listings, 5) == []
    assert _listed(listings) == [(6, b"a")]
    listings.forget(1)
    assert len(listings) == 0


def test_open_files_are_bounded_and_closed(engine: Engine) -> None:
    files = Files(engine, capacity=3)
    before = len(os.listdir("/proc/self/fd"))
    inodes = [engine.lookup(1, b"f%d" % number).ino for number in range(10)]
    for number, ino in [*enumerate(inodes)] * 2:
        assert engine.read(files.handle(ino), 0, 100) == b"content %d" % number
    assert len(files) == 3
    assert len(os.listdir("/proc/self/fd")) <= before + 3 + 2  # two directories
    handle = engine.open(inodes[9], 0)
    files.adopt(inodes[9], handle)
    assert files.handle(inodes[9]) == handle
    for ino in inodes:
        files.forget(ino)
    assert len(files) == 0


# -- workers -----------------------------------------------------------------------------


def test_what_waits_for_a_copy_up_is_done_in_order_and_fails_with_it() -> None:
    class Plan:
        def __init__(self, failure: OSError | None) -> None:
            self.failure = failure
            self.abandoned = False

        def copy(self) -> None:
            started.set()
            assert go.wait(10)
            if self.failure is not None:
                raise self.failure

        def abandon(self) -> None:
            self.abandoned = True

    class Slow:
        plan: Plan
        plans = 0

        def plan_copy_up(self, ino: int) -> Plan:
            assert ino == 7
            self.plans += 1
            return self.plan

        def finish_copy_up(self, plan: Plan) -> None:
            assert plan is self.plan
            assert not plan.abandoned

    def step(number: int) -> Callable[[], bytes]:
        return lambda: b"%d" % number

    for failure, codes in ((None, [0] * 3), (OSError(errno.ENOSPC, "full"), [errno.ENOSPC] * 3)):
        started, go = threading.Event(), threading.Event()
        answers: list[tuple[int, int, bytes]] = []
        slow = Slow()
        slow.plan = Plan(failure)

        def reply(*answer: Any, answers: list[Any] = answers) -> None:
            answers.append(answer)

        work = LaneWork(slow, threading.Lock(), reply)  # type: ignore[arg-type]  # as much as needed
        for number in range(3):
            work.lift(number, 7, step(number))
            assert started.wait(10)
            assert work.is_lifting(7)
            assert not work.idle
        go.set()
        work.close()
        assert work.idle
        assert not work.is_lifting(7)
        assert [code for _, code, _ in answers] == codes
        assert [number for number, _, _ in answers] == [0, 1, 2]
        assert slow.plans == 1
        assert slow.plan.abandoned == (failure is not None)
