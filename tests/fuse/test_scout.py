"""Directories listed in advance on real mounts: it saves requests and harms nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.counting import count_requests, counted
from support.fuseplace import Place

from unionfs.fuse import lister
from unionfs.fuse.background import Background
from unionfs.fuse.protocol import Op
from unionfs.fuse.scout import Place as Where
from unionfs.fuse.scout import Scout
from unionfs.fuse.sought import Sought
from unionfs.union import Engine

pytestmark = pytest.mark.fuse

#: Writes down each part of a listing that the lister has got.
_LISTED = """
from unionfs.fuse import lane
take = lane.Lane._take
def noting(self, message):
    opcode, pid = (int.from_bytes(message[at : at + 4], "little") for at in (4, 32))
    take(self, message)
    if opcode == 44 and pid == self._scout.pid:
        with open({base!r} + "/listed", "a") as file:
            file.write(str(pid) + chr(10))
lane.Lane._take = noting
"""
_NAMES = 300


def _lister_is_done(place: Place) -> int:
    """Wait until nothing has been listed for a while; return the lister's pid."""
    said, deadline = "", time.monotonic() + 30
    while True:
        assert time.monotonic() < deadline, "no directory is listed"
        now = (place.path / "listed").read_text() if (place.path / "listed").exists() else ""
        if now and now == said:
            return int(now.split()[0])
        said = now
        time.sleep(0.2)


def _has_ended(pid: int) -> None:
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _looked(place: Place) -> int:
    """Return how many names programs looked for, once the daemon has ended."""
    return counted(place).asked[Op.LOOKUP]


@pytest.fixture
def many(user: Place) -> Place:
    """One directory with many files."""
    user.sh(f"mkdir base/t; for f in $(seq {_NAMES}); do echo $f > base/t/$f; done")
    user.patch(_LISTED.format(base=str(user.path)))
    count_requests(user)
    return user


_FIRST = "for f in 1 2 3 4 5 6 7 8 9 10; do test -f mnt/t/$f; done"
_ALL = f"for f in $(seq {_NAMES}); do test $(stat -c %s mnt/t/$f) = $(stat -c %s base/t/$f); done"


@pytest.mark.parametrize("rw", [None, "rw"])
def test_names_are_known_before_they_are_looked_for(many: Place, rw: str | None) -> None:
    many.mount(rw=rw)
    many.py(f"""
import os, time
for number in range(1, 11):
    os.stat(f"mnt/t/{{number}}")
said, since = "", time.monotonic()
while not said or time.monotonic() - since < .5:  # the mount is in use all the time
    os.statvfs("mnt")
    time.sleep(.0003)
    now = open("listed").read() if os.path.exists("listed") else ""
    if now != said:
        said, since = now, time.monotonic()
    assert time.monotonic() - since < 30
for number in range(1, {_NAMES} + 1):
    assert os.stat(f"mnt/t/{{number}}").st_size == os.stat(f"base/t/{{number}}").st_size
""")
    many.umount()
    assert _looked(many) < _NAMES / 3, f"without it {_NAMES}; a machine under load needs some"


@pytest.mark.parametrize("option", ["noahead", "entry_timeout=0"])
def test_it_is_off_where_nothing_is_done_in_advance_or_kept(many: Place, option: str) -> None:
    many.mount(options=[option])
    many.sh(_FIRST + ";" + _ALL)
    many.umount()
    assert _looked(many) > _NAMES
    assert not (many.path / "listed").exists()


def test_a_killed_lister_is_done_without(many: Place) -> None:
    many.sh("mkdir base/u; for f in $(seq 60); do echo $f > base/u/$f; done")
    many.mount()
    many.sh(_FIRST)
    pid = _lister_is_done(many)
    os.kill(pid, signal.SIGKILL)
    many.sh(_ALL)
    many.sh("for f in $(seq 60); do test $(cat mnt/u/$f) = $f; done")
    many.sh("for f in $(seq 60); do test $(cat mnt/u/$f) = $f; done")
    many.umount()
    assert _looked(many) > 60
    assert not os.path.exists(f"/proc/{pid}"), "it is reaped"


def test_a_lister_killed_with_work_left_is_done_without(many: Place) -> None:
    count = 30
    many.sh(f"for d in $(seq {count}); do mkdir base/d$d; for f in 1 2 3; do "
            "echo $d > base/d$d/$f; done; done")  # fmt: skip
    look = f"for d in $(seq {count}); do for f in 1 2 3; do test $(cat mnt/d$d/$f) = $d; done; done"
    many.mount()
    many.sh(_FIRST)
    pid = _lister_is_done(many)
    os.kill(pid, signal.SIGSTOP)
    half = f"for d in $(seq {count // 2}); do test -f mnt/d$d/1 -a -f mnt/d$d/2; done"
    many.sh(half)
    os.kill(pid, signal.SIGKILL)
    many.sh(look)
    many.sh(_ALL)
    _has_ended(pid)
    many.umount()


def test_an_interpreter_in_the_mount_holds_up_nobody(many: Place) -> None:
    """Starting it asks the mount; the daemon answers, and nothing keeps the mount from ending."""
    many.sh(f"cp {os.path.realpath(sys.executable)} base/python")
    many.patch(f"""
import types
from unionfs.fuse import scout
scout.sys = types.SimpleNamespace(executable={str(many.path)!r} + "/mnt/python")
""")
    many.mount()
    many.sh(_FIRST)
    many.sh(_ALL)
    many.sh("fusermount3 -u mnt")
    assert _looked(many) >= 10


def test_the_lister_ends_with_a_killed_daemon(many: Place) -> None:
    daemon = many.mount()["pid"]
    many.sh(_FIRST)
    pid = _lister_is_done(many)
    os.kill(daemon, signal.SIGKILL)
    _has_ended(pid)
    assert "endpoint is not connected" in many.fails("ls mnt")
    many.umount()


def test_a_daemon_killed_while_a_directory_is_listed_holds_up_nobody(many: Place) -> None:
    """The lister has a request in the mount then; a thread of the daemon could not be killed."""
    many.patch(
        f"""
from unionfs.fuse import lane_lists
entries = lane_lists.Lists.entries
def never(self, request):
    if request.pid == self._scout.pid:
        open({str(many.path)!r} + "/listed", "a").write(str(request.pid))
        while True:
            time.sleep(1)
    return entries(self, request)
lane_lists.Lists.entries = never
import time
"""
    )
    daemon = many.mount()["pid"]
    many.sh(_FIRST)
    pid = _lister_is_done(many)
    client = many.start("stat", "mnt/t/200")
    time.sleep(0.2)
    os.kill(daemon, signal.SIGKILL)
    assert client.wait(30) == 1
    _has_ended(pid)
    many.umount()


def test_a_mount_that_is_left_alone_can_be_unmounted(many: Place) -> None:
    many.sh("for d in $(seq 40); do mkdir base/d$d; touch base/d$d/a base/d$d/b base/d$d/c; done")
    many.mount()
    many.sh("for d in $(seq 40); do for f in a b c; do test -f mnt/d$d/$f; done; done")
    _lister_is_done(many)
    many.sh("fusermount3 -u mnt")


def test_the_lister_does_not_count_as_a_user_of_the_mount(many: Place) -> None:
    """The lane lets it wait with the directory open, where it is for a moment each time."""
    many.patch(f"""
import time
from unionfs.fuse import lane
answer = lane.Lane._take
def late(self, message):
    opcode, pid = (int.from_bytes(message[at : at + 4], "little") for at in (4, 32))
    if opcode == 44 and pid == self._scout.pid:
        open({str(many.path)!r} + "/listed", "a").write(str(pid) + chr(10))
        return
    answer(self, message)
lane.Lane._take = late
""")
    daemon = many.mount()["pid"]
    many.sh(_FIRST)
    pid = _lister_is_done(many)
    child = many.start("sh", "-c", "cd mnt/t && echo in && exec sleep 60", stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == "in\n"
    with pytest.raises(Exception, match=rf"in use by sleep \({child.pid}\);"):
        many.umount()
    child.kill()
    child.communicate()
    many.umount(lazy=True)
    os.kill(daemon, signal.SIGKILL)  # or it would wait for the lister, and that for its answer
    _has_ended(pid)


# -- the parts -----------------------------------------------------------------------------


def test_it_goes_on_only_while_programs_use_the_mount(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    engine = Engine.start([os.fsencode(tmp_path)], None)
    first = engine.lookup(1, b"d").ino
    thread = Background("test")
    scout = Scout(engine, threading.Lock(), thread, Where(os.fsencode(tmp_path), "0:0"))
    scout.pid = 7
    scout.seen = time.perf_counter() - 1
    assert not scout.refuses(first, 0, 8), "another process"
    assert scout.refuses(first, 0, 7)
    assert scout.refuses(first, 9, 7)
    scout.seen = time.perf_counter() + 1
    assert not scout.refuses(first, 0, 7)
    thread.close()  # what is named now stays in the queue
    for _ in range(9):
        scout.looked(first, 8)
        scout.looked(first, 7)
    assert list(scout._queue) == [b"d"]
    scout.seen = 0
    assert scout.refuses(first, 0, 7)
    assert not scout._queue
    for _ in range(9):
        scout.looked(first, 7)
    assert not scout._queue, "its own"
    for _ in range(9):
        scout.looked(first, 8)
    assert list(scout._queue) == [b"d"], "named anew"
    scout.stop()
    scout.wait()
    engine.close()


def test_an_error_in_it_is_nobodys_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    (tmp_path / "d").mkdir()
    with Engine.start([os.fsencode(tmp_path)], None) as engine:
        thread = Background("test")
        scout = Scout(engine, threading.Lock(), thread, Where(os.fsencode(tmp_path), "0:0"))
        monkeypatch.setattr(Sought, "worth", fail)
        for _ in range(3):
            scout.looked(1, 5)
        thread.close()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["listing directories in advance has failed and stays off"]
    caplog.clear()


def _device(path: Path) -> str:
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _listed(target: Path, device: str, *paths: bytes, ends: bool = False) -> list[str]:
    """Run the lister itself; return what it opens to list."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = """
import os, runpy, sys
def hook(event, words):
    if event == "os.scandir":
        print(os.readlink(f"/proc/self/fd/{words[0]}"), flush=True)
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    with ours, theirs:
        words = [sys.executable, "-I", "-S", "-c", code, lister.__file__]
        child = subprocess.Popen(
            [*words, str(theirs.fileno()), str(target), device],
            pass_fds=(theirs.fileno(),),
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        if ends:
            assert ours.recv(16) == b""
        for path in paths:
            ours.send(b"/" + path)
            assert ours.recv(16) == b"."
        ours.shutdown(socket.SHUT_RDWR)
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    return out.splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Return a filesystem of its own: the program must not lie on the same."""
    if os.geteuid():
        pytest.skip("needs root to mount a tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    (tmp_path / "a/b").mkdir(parents=True)
    yield tmp_path
    subprocess.run(["umount", "-R", tmp_path], check=True)


def test_the_lister_lists_what_it_is_told(tree: Path) -> None:
    found = _listed(tree, _device(tree), b"", b"a", b"a/b", b"absent")
    assert found == [str(tree), f"{tree}/a", f"{tree}/a/b"]


def test_the_lister_follows_no_link(tree: Path) -> None:
    (tree / "link").symlink_to("a")
    os.mkfifo(tree / "pipe")
    assert _listed(tree, _device(tree), b"link", b"link/b", b"pipe", b"../x") == []


def test_the_lister_stays_on_the_mount(tree: Path) -> None:
    assert _listed(tree, "0:1", b"", b"a") == [], "another mount covers it"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tree / "a"], check=True)
    (tree / "a/b").mkdir()
    assert _listed(tree, _device(tree), b"a", b"a/b", b"") == [str(tree)]


def test_a_lister_that_would_run_from_the_mount_ends(tmp_path: Path) -> None:
    place = Path(os.path.realpath(sys.executable))
    assert _listed(tmp_path, _device(place), ends=True) == []
