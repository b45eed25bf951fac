"""Big files that the kernel reads itself (`-o passthrough`), and who may not have that."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
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

from unionfs import _sys
from unionfs.closing import opened
from unionfs.doctor.handshake import read_init
from unionfs.fuse import protocol
from unionfs.fuse.passthrough import Passthrough
from unionfs.union import Engine

_BIG = 3 << 20
#: Less than this is read by requests.
_LEAST = 1 << 20
_RETIRED = 946684800

#: For the daemon: the files that the kernel was given and has not given back, in `given`.
_GIVEN = """
import fcntl
def given(fd, number, data, ioctl=fcntl.ioctl, numbers=set()):
    done = ioctl(fd, number, data)
    if number == 0x4010E501:
        numbers.add(done)
    elif number == 0x4004E502:
        numbers.remove(int.from_bytes(data, "little"))
    with open({base!r} + "/given", "w") as file:
        file.write(str(len(numbers)))
    return done
fcntl.ioctl = given
"""
#: For the daemon: the first file is refused to the kernel's face.
_FIRST_REFUSED = """
import fcntl
def refuse(fd, number, *rest, ioctl=fcntl.ioctl):
    if number == 0x4010E501 and not refused:
        refused.append(1)
        raise OSError(23, "Too many open files in system")
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


def _given(place: Place, count: int) -> None:
    """Wait until the kernel has so many backing files; RELEASE and FORGET are not waited for."""
    deadline = time.monotonic() + 30
    while (place.path / "given").read_text() != str(count):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_the_kernel_was_given_is_given_back(place: Place) -> None:
    """After a thousand opens the daemon has no descriptor more, and forgotten files work again."""
    place.patch(_GIVEN.format(base=str(place.path)))
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
    _given(place, 0)
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
    """The kernel waits for the answer to his OPEN all the same, and sends RELEASE for it."""
    place.patch(_GIVEN.format(base=str(place.path)))
    place.patch(
        """
import time, unionfs.fuse.passthrough as module
def slow(self, inode, flags, plain=module.Passthrough.open):
    answer = plain(self, inode, flags)
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
    _given(place, 0)


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
    ask(place, "invalidate", path="/big")
    place.sh("cmp mnt/big base/big")
    assert counts(place)["read"] == seen
    assert log.read_text().count("Too many open files in system") == 1


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
    assert "itself stacked on others" in log.read_text()
    reason = f"{place.path}/merged lies on an overlayfs"
    cli = [*place.python, "-m", "unionfs", "mounts"]
    (said,) = json.loads(place.run(*cli, "--json").stdout)
    assert said["no_passthrough"] == reason
    assert f"without passthrough: {reason}" in place.run(*cli, "-v").stderr


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


def test_nobody_writes_to_a_layer_through_a_mount_that_was_made_writable(place: Place) -> None:
    """mount(8) can take away the ro of a mount without asking its server."""
    mount(place)
    place.sh("mount -i -o remount,rw mnt")
    before = (place.path / "base/big").read_bytes()
    for write in ("dd of=mnt/big conv=notrunc", "tee -a mnt/big", "tee mnt/big", "tee mnt/less"):
        assert "Read-only file system" in place.fails(f"echo corrupted | {write}")
    assert "Read-only file system" in place.fails("truncate -s 5 mnt/big")
    for name in ("big", "less"):
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(place.path / "mnt" / name, os.O_RDONLY | os.O_TRUNC)
    place.sh("cmp mnt/big base/big")
    assert (place.path / "base/big").read_bytes() == before


def test_the_file_that_the_kernel_is_given_cannot_be_written(place: Place) -> None:
    with (
        opened(os.open(place.path / "base/big", os.O_RDWR)) as fd,
        opened(_sys.open_unchangeable(fd)) as own,
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(f"/proc/self/fd/{own}", os.O_RDWR)
        assert os.pread(own, 9, 0) == os.pread(fd, 9, 0)


def test_mounts_below_a_layer_are_what_they_are_without(place: Place) -> None:
    """Nothing but files is taken hold of: layers stay busy, and show what is mounted there."""
    place.sh("mkdir base/under disk; mount -t tmpfs none disk; mkdir disk/layer; cp base/big disk")
    place.mount("disk", "base", rw=None, options=["passthrough"])
    place.sh("cmp mnt/big base/big; mount -t tmpfs none base/under; echo late > base/under/late")
    assert place.sh("ls mnt/under") == "late\n"
    assert "busy" in place.fails("umount disk")
    place.umount()
    place.sh("umount disk base/under")


def test_a_filesystem_without_direct_io_is_read_by_requests(place: Place) -> None:
    place.sh("mkdir ram; mount -t ramfs none ram; cp base/big ram")
    log = Path(place.mount("ram", "top", rw=None, options=["passthrough"])["log"])
    place.sh("cmp mnt/other top/other; dd if=mnt/other of=got iflag=direct bs=64k")
    assert "read" not in counts(place), "the other layer's filesystem has it"
    place.sh("cmp mnt/big base/big; dd if=mnt/big of=got iflag=direct bs=64k; cmp got base/big")
    assert counts(place)["read"] > 0
    place.sh("cmp mnt/same top/other")
    assert "has no O_DIRECT" in log.read_text()
    place.umount()
    place.sh("umount ram")


def test_a_layer_whose_mount_cannot_be_copied_keeps_its_access_times(place: Place) -> None:
    place.sh("mkdir ub; mount -t tmpfs none ub; mount --make-unbindable ub; cp base/big ub")
    os.utime(place.path / "ub/big", (_RETIRED, _RETIRED + 1))
    log = Path(place.mount("ub", rw=None, options=["passthrough"])["log"])
    place.sh("cmp mnt/big base/big")
    assert os.stat(place.path / "ub/big").st_atime == _RETIRED
    assert counts(place)["read"] > 0
    assert "cannot be copied" in log.read_text()
    place.umount()
    place.sh("umount ub")


def test_a_file_that_grows_under_its_readers_can_still_be_opened(place: Place) -> None:
    """Nobody is to change layers; but that is no reason for an EIO."""
    mount(place)
    place.py(
        """
with open("mnt/less", "rb") as first:
    with open("base/less", "ab") as file:
        file.write(bytes(200000))
    with open("mnt/less", "rb") as second:
        assert first.read(5) == second.read(5)
"""
    )


def test_who_cannot_have_it_is_told_why(place: Place) -> None:
    place.sh("mkdir rw")
    for other, rw, words in (
        ("rw", "rw", "option passthrough is for read-only mounts (add ro)"),
        ("nolane", None, "options passthrough and nolane exclude each other"),
        (
            "coherent",
            None,
            "passthrough and coherent (as views of live mounts are) exclude each other",
        ),
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
    with filled("userns") as userns:
        with pytest.raises(MountFailedError) as caught:
            mount(userns)
        words = "option passthrough needs CAP_SYS_ADMIN outside of user namespaces"
        assert words in str(caught.value)
        assert userns.mount_table() == []


# -- the bookkeeping alone ---------------------------------------------------------------


class Kernel:
    """Gives numbers to backing files, and knows which there are; `refusal` is an errno."""

    def __init__(self) -> None:
        self.backing: set[int] = set()
        self.refusal = 0
        self._next = 1

    def ioctl(self, fd: int, number: int, data: bytes | bytearray) -> int:
        """Do FUSE_DEV_IOC_BACKING_OPEN and FUSE_DEV_IOC_BACKING_CLOSE."""
        del fd
        if number == 0x4010E501:
            if self.refusal:
                raise OSError(self.refusal, os.strerror(self.refusal))
            assert struct.unpack("=iIQ", data)[1:] == (0, 0)
            os.fstat(struct.unpack("=iIQ", data)[0])
            self.backing.add(self._next)
            self._next += 1
            return self._next - 1
        assert number == 0x4004E502
        self.backing.remove(struct.unpack("=I", data)[0])
        return 0


def opening(passing: Passthrough, inode: int) -> tuple[int, ...]:
    """Return the fields of the answer to OPEN."""
    answer = passing.open(inode, os.O_RDONLY | os.O_NONBLOCK)
    assert answer is not None
    return protocol.OPEN_OUT.unpack(answer)


@pytest.mark.parametrize(("refusal", "tries"), [(errno.ELOOP, 1), (errno.EMFILE, 3)])
@pytest.mark.logs_warnings
def test_what_cannot_work_is_tried_once_for_a_filesystem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int, tries: int
) -> None:
    kernel, tried = Kernel(), []

    def ioctl(fd: int, number: int, data: bytes | bytearray) -> int:
        tried.append(number)
        return kernel.ioctl(fd, number, data)

    kernel.refusal = refusal
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    for number in range(3):
        (tmp_path / f"big{number}").write_bytes(bytes(_LEAST))
    with Engine.start([bytes(tmp_path)], None) as engine:
        passing = Passthrough(-1, engine)
        passing.agree()
        for name in engine.names(1):
            assert opening(passing, engine.lookup(1, name).ino)[2] == 0
    assert len(tried) == tries


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
        passing.agree()
        _, flags, first = opening(passing, big)
        assert flags == protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_NOFLUSH
        assert opening(passing, big) == (0, flags, first)
        assert kernel.backing == {first}
        for writing in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC):
            with pytest.raises(OSError, match="Read-only"):
                passing.open(big, writing)
        passing.release(big)
        assert kernel.backing == {first}
        passing.release(big)
        assert (kernel.backing, len(passing)) == (set(), 0)

        _, flags, backing = opening(passing, small)
        assert (flags, backing, len(passing)) == (protocol.FOPEN_KEEP_CACHE, 0, 1)
        passing.release(small)
        assert len(passing) == 0

        passing.open(big, os.O_RDONLY)
        assert len(kernel.backing) == 1
        passing.forget(big)
        assert (kernel.backing, len(passing)) == (set(), 0)


def test_without_the_right_it_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel()
    kernel.refusal = errno.EPERM
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    (tmp_path / "big").write_bytes(bytes(_LEAST))
    with Engine.start([bytes(tmp_path)], None) as engine:
        passing = Passthrough(-1, engine)
        passing.agree()
        big = engine.lookup(1, b"big").ino
        assert opening(passing, big) == (0, protocol.FOPEN_KEEP_CACHE, 0)
        assert passing.open(big, os.O_RDONLY) is None
        with pytest.raises(OSError, match="Read-only"):
            passing.open(big, os.O_TRUNC)
    assert "Operation not permitted" in caplog.text
    caplog.clear()
