"""Big files that the kernel reads itself (`-o passthrough`), and who may not have that."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.asking import ask
from support.fuseplace import MountFailedError, Place, place_for

from unionfs.doctor.handshake import read_init
from unionfs.fuse import protocol
from unionfs.fuse.passthrough import Passthrough
from unionfs.union import Engine

_BIG = 3 << 20
#: Less than this is read by requests.
_LEAST = 1 << 17
_RETIRED = 946684800

#: For the daemon: the first file is refused to the kernel's face.
_FIRST_REFUSED = """
import fcntl
def refuse(fd, number, *rest, ioctl=fcntl.ioctl):
    if number == 0x4010E501 and not refused:
        refused.append(1)
        raise OSError(40, "Too many levels of symbolic links")
    return ioctl(fd, number, *rest)
refused = []
fcntl.ioctl = refuse
"""


@pytest.fixture(scope="module", autouse=True)
def _kernel_has_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs uid 0 and /dev/fuse")
    offers = read_init(os.fsencode(tmp_path_factory.mktemp("scratch")))
    if "passthrough" not in offers["features"]:
        pytest.skip("no FUSE passthrough: needs Linux 6.9 with CONFIG_FUSE_PASSTHROUGH")


@contextlib.contextmanager
def filled(way: str) -> Iterator[Place]:
    """Give a place with two layers that hold big and small files."""
    with place_for(way) as found:
        content = random.Random(1).randbytes(_BIG)  # noqa: S311  # the same each time
        for name in ("base", "top"):
            (found.path / name).mkdir(mode=0o755)
        (found.path / "base/big").write_bytes(content)
        (found.path / "base/least").write_bytes(content[:_LEAST])
        (found.path / "base/less").write_bytes(content[: _LEAST - 1])
        (found.path / "top/other").write_bytes(content[::-1])
        os.link(found.path / "top/other", found.path / "top/same")
        yield found


@pytest.fixture
def place() -> Iterator[Place]:
    """Return root's place."""
    with filled("root") as found:
        yield found


def mount(place: Place) -> Path:
    """Mount both layers with passthrough; return the daemon's log."""
    return Path(place.mount("top", "base", rw=None, options=["passthrough"])["log"])


def counts(place: Place) -> dict[str, int]:
    """Return how many requests of each kind there were."""
    return {op: timing["count"] for op, timing in ask(place, "stats")["requests"].items()}


def test_big_files_are_read_and_mapped_without_requests(place: Place) -> None:
    log = mount(place)
    place.sh("cmp mnt/big base/big; cmp mnt/least base/least; cmp mnt/same top/other")
    place.py(
        """
import mmap
with open("mnt/other", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
    assert area[:] == open("top/other", "rb").read()
"""
    )
    found = counts(place)
    assert "read" not in found
    assert found["open"] == 4
    place.sh("cmp mnt/less base/less")
    assert counts(place)["read"] > 0
    place.umount()
    assert not log.exists()


def test_reading_leaves_access_times_alone(place: Place) -> None:
    names = ["base/big", "top/other", "base/less"]
    mount(place)
    for name in names:
        os.utime(place.path / name, (_RETIRED, _RETIRED + 1))
    place.sh("cat mnt/big mnt/other mnt/less > sink")
    assert [os.stat(place.path / name).st_atime for name in names] == [_RETIRED] * len(names)


def test_what_the_kernel_was_given_is_given_back(place: Place) -> None:
    """After a thousand opens the daemon has no descriptor more, and forgotten files work again."""
    mount(place)
    pid = place.mounts()[0]["pid"]
    place.sh("cmp mnt/big base/big")
    before = sorted(os.listdir(f"/proc/{pid}/fd"))
    done = place.py(
        """
import os
for _ in range(500):
    first = os.open("mnt/big", os.O_RDONLY)
    second = os.open("mnt/big", os.O_RDONLY)
    os.close(first)
    third = os.open("mnt/big", os.O_RDONLY)
    os.close(second)
    assert os.pread(third, 4, 1 << 20) == os.pread(third, 8, (1 << 20))[:4]
    os.close(third)
print("done")
"""
    )
    assert done == "done\n"
    deadline = time.monotonic() + 30
    while counts(place)["release"] < counts(place)["open"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == before
    Path("/proc/sys/vm/drop_caches").write_text("2")
    place.sh("cmp mnt/big base/big; cmp mnt/other top/other")
    assert "read" not in counts(place)


def test_readers_at_once_share_a_file(place: Place) -> None:
    mount(place)
    place.sh(
        """
for n in 1 2 3 4 5 6 7 8; do
    (for m in 1 2 3 4 5 6 7 8 9 10; do cmp mnt/big base/big; cmp mnt/same top/other; done) &
    jobs="${jobs-} $!"
done
for job in $jobs; do wait $job; done
"""
    )
    assert "read" not in counts(place)


def test_one_who_is_killed_in_open_harms_nobody(place: Place) -> None:
    """His OPEN has been answered, but no RELEASE will come."""
    place.patch(
        """
import time, unionfs.fuse.passthrough as module
def slow(self, inode, plain=module.Passthrough.open):
    answer = plain(self, inode)
    time.sleep(0.3 if not slow_once else 0)
    slow_once.append(1)
    return answer
slow_once = []
module.Passthrough.open = slow
"""
    )
    mount(place)
    place.sh("stat mnt/big mnt/other")
    victim = place.start("cat", "mnt/big")
    time.sleep(0.15)
    victim.send_signal(signal.SIGKILL)
    victim.wait(30)
    place.sh("cmp mnt/big base/big; cmp mnt/big base/big")
    assert "read" not in counts(place)


def test_who_opens_beside_an_ordinary_reader_is_one_too(place: Place) -> None:
    """The kernel allows no mixing: it would answer EIO."""
    place.patch(_FIRST_REFUSED)
    log = mount(place)
    place.py(
        """
with open("mnt/big", "rb") as first, open("mnt/big", "rb") as second:
    assert first.read() == second.read() == open("base/big", "rb").read()
"""
    )
    seen = counts(place)["read"]
    assert seen > 0
    # Neither has it open any more: now the kernel may have it.
    deadline = time.monotonic() + 30
    while counts(place)["release"] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    Path("/proc/sys/vm/drop_caches").write_text("3")
    place.sh("cmp mnt/big base/big")
    assert counts(place)["read"] == seen
    assert log.read_text().count("no passthrough: a layer lies on a filesystem that is itself") == 1


def test_layers_on_an_overlayfs_are_read_by_requests(place: Place) -> None:
    place.sh(
        """
mkdir lower upper work merged; mv base/big lower
mount -t tmpfs none work; mkdir work/u work/w
mount -t overlay none -o lowerdir=lower,upperdir=work/u,workdir=work/w merged
"""
    )
    log = Path(place.mount("merged", rw=None, options=["passthrough"])["log"])
    place.sh("cmp mnt/big lower/big")
    assert counts(place)["read"] > 0
    assert "itself stacked on another (overlayfs)" in log.read_text()


def test_an_overlayfs_may_lie_on_the_mount(place: Place) -> None:
    mount(place)
    place.sh(
        """
mkdir work merged; mount -t tmpfs none work; mkdir work/u work/w
mount -t overlay none -o lowerdir=mnt,upperdir=work/u,workdir=work/w merged
cmp merged/big base/big
"""
    )
    assert "read" not in counts(place)
    place.sh("umount merged work")


def test_root_of_a_user_namespace_reads_by_requests() -> None:
    with filled("userns") as place:
        log = mount(place)
        place.sh("cmp mnt/big base/big; cmp mnt/other top/other; cmp mnt/less base/less")
        found = counts(place)
        assert found["read"] > 0
        assert found["open"] == 2  # the second was declined for good
        assert "it needs CAP_SYS_ADMIN outside of user namespaces" in log.read_text()


def test_who_cannot_have_it_is_told_why(place: Place) -> None:
    place.sh("mkdir rw")
    for other, rw, words in (
        ("rw", "rw", "option passthrough is for read-only mounts (add ro)"),
        ("nolane", None, "options passthrough and nolane exclude each other"),
        ("coherent", None, "options passthrough and coherent exclude each other"),
    ):
        with pytest.raises(MountFailedError) as caught:
            place.mount("top", "base", rw=rw, options=["passthrough", other])
        assert caught.value.kind == "UsageError"
        assert words in str(caught.value)
    assert (place.mounts(), place.mount_table()) == ([], [])
    with filled("user") as user:
        with pytest.raises(MountFailedError) as caught:
            mount(user)
        assert "option passthrough needs root" in str(caught.value)


# -- the bookkeeping alone ---------------------------------------------------------------


class Kernel:
    """Gives numbers to backing files, and knows which there are."""

    def __init__(self) -> None:
        self.backing: set[int] = set()
        self._next = 1

    def ioctl(self, fd: int, number: int, data: bytes | bytearray) -> int:
        """Do FUSE_DEV_IOC_BACKING_OPEN and FUSE_DEV_IOC_BACKING_CLOSE."""
        del fd
        if number == 0x4010E501:
            assert struct.unpack("=iIQ", data)[1:] == (0, 0)
            os.fstat(struct.unpack("=iIQ", data)[0])
            self.backing.add(self._next)
            self._next += 1
            return self._next - 1
        assert number == 0x4004E502
        self.backing.remove(struct.unpack("=I", data)[0])
        return 0


def test_a_backing_file_lives_from_the_first_open_to_the_last_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    (tmp_path / "big").write_bytes(bytes(_LEAST))
    (tmp_path / "small").write_bytes(bytes(_LEAST - 1))
    with Engine.start([bytes(tmp_path)], None) as engine:
        big, small = engine.lookup(1, b"big").ino, engine.lookup(1, b"small").ino
        passing = Passthrough(-1, engine)
        handle, flags, first = protocol.OPEN_OUT.unpack(passing.open(big))
        assert flags == protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_NOFLUSH
        assert protocol.OPEN_OUT.unpack(passing.open(big)) == (handle, flags, first)
        assert kernel.backing == {first}
        released = protocol.RELEASE_IN.pack(handle, 0, 0, 0)
        passing.release(big, released)
        assert kernel.backing == {first}
        passing.release(big, released)
        assert (kernel.backing, len(passing)) == (set(), 0)

        handle, flags, backing = protocol.OPEN_OUT.unpack(passing.open(small))
        assert (flags, backing, len(passing)) == (protocol.FOPEN_KEEP_CACHE, 0, 0)
        passing.release(small, protocol.RELEASE_IN.pack(handle, 0, 0, 0))

        passing.open(big)  # by somebody who is killed before he learns of it
        assert len(kernel.backing) == 1
        passing.forget(big)
        assert (kernel.backing, len(passing)) == (set(), 0)


def test_without_the_right_it_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    (tmp_path / "big").write_bytes(bytes(_LEAST))
    with Engine.start([bytes(tmp_path)], None) as engine:
        passing = Passthrough(-1, engine)
        passing.on = True
        _, flags, backing = protocol.OPEN_OUT.unpack(passing.open(engine.lookup(1, b"big").ino))
        assert (flags, backing, passing.on) == (protocol.FOPEN_KEEP_CACHE, 0, False)
    assert "CAP_SYS_ADMIN" in caplog.text
    caplog.clear()
