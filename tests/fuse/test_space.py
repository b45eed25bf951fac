"""Holes, allocation and copies within the mount, asked for by the usual tools."""

from __future__ import annotations

import os

import pytest
from support.asking import ask
from support.fuseplace import Place

pytestmark = pytest.mark.fuse

_HELPER = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE = 1, 2
def allocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
"""


def _count(place: Place, kind: str) -> int:
    """Return how many requests of a kind the mount has had."""
    return int(ask(place, "stats")["requests"].get(kind, {}).get("count", 0))


def test_holes_are_found_where_nothing_can_be_written(user: Place) -> None:
    user.sh("truncate -s 64M base/holes; printf end >> base/holes")
    user.mount()
    user.py("""
import errno, os
end = 64 << 20
fd = os.open("mnt/holes", os.O_RDONLY)
data = os.lseek(fd, 1 << 20, os.SEEK_DATA)
assert end - (1 << 16) < data <= end, data
assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
assert os.lseek(fd, end, os.SEEK_HOLE) == end + 3
for offset in (end + 3, -1):
    for how in (os.SEEK_DATA, os.SEEK_HOLE):
        try:
            os.lseek(fd, offset, how)
        except OSError as error:
            assert error.errno == errno.ENXIO, error
        else:
            raise AssertionError
""")
    user.sh("cp --sparse=auto mnt/holes copy; cmp copy mnt/holes")
    assert (user.path / "copy").stat().st_blocks < 1 << 10
    user.umount()


def test_what_a_mapping_has_not_written_out_yet_is_no_hole(user: Place) -> None:
    user.sh("truncate -s 1M base/sparse")
    user.mount(rw="rw")
    user.py("""
import mmap, os, subprocess
for name in ("sparse", "new"):
    fd = os.open("mnt/" + name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1 << 20)
    area = mmap.mmap(fd, 1 << 20)
    area[500000:500005] = b"DIRTY"
    subprocess.run(["cp", "mnt/" + name, "copy"], check=True)
    assert open("copy", "rb").read()[500000:500005] == b"DIRTY", name
""")
    user.umount()


#: Copying and allocating wait in the daemon until the file `go` exists.
_SLOW = """
import os, time
from unionfs import _sys
def slow(call):
    def waiting(*arguments):
        result = call(*arguments)
        open({base!r} + "/working", "w").close()
        while not os.path.exists({base!r} + "/go"):
            time.sleep(.01)
        return result
    return waiting
_sys.fallocate = slow(_sys.fallocate)
"""
_HALF = (
    _SLOW
    + """
copy = os.copy_file_range
def half_first(source, target, count, start, offset):
    half = slow(copy)(source, target, count // 2, start, offset)
    return half + copy(source, target, count - half, start + half, offset + half)
os.copy_file_range = half_first
"""
)


def test_what_was_listed_during_a_copy_is_not_believed_after_it(user: Place) -> None:
    """A walker is sent listings made in advance: of a file that was half as long then."""
    user.sh("for i in $(seq 9); do mkdir base/d$i; touch base/d$i/x; done")
    user.sh("head -c 1000000 /dev/urandom > base/source")
    user.patch(_HALF.format(base=str(user.path)))
    user.mount(rw="rw")
    user.py("""
import os, sitecustomize, threading, time
order = [entry.name for entry in os.scandir("mnt") if entry.is_dir()]
source = os.open("mnt/source", os.O_RDONLY)
path = f"mnt/{order[6]}/target"
target = os.open(path, os.O_RDWR | os.O_CREAT)
for name in order[:2]:
    os.listdir("mnt/" + name)
done = []
def copy():
    done.append(sitecustomize.copy(source, target, 1000000, 0, 0))
thread = threading.Thread(target=copy)
thread.start()
deadline = time.monotonic() + 30
while not os.path.exists("working"):
    assert time.monotonic() < deadline
os.listdir("mnt/" + order[2])
time.sleep(.3)  # for the listings that follow
open("go", "w").close()
thread.join()
os.listdir("mnt/" + order[6])
assert done == [1000000], done
assert os.stat(path).st_size == 1000000, os.stat(path)
assert open(path, "rb").read() == open("base/source", "rb").read()
""")
    user.umount()


def test_allocating_holds_up_nobody_else(user: Place) -> None:
    user.patch(_SLOW.format(base=str(user.path)))
    user.mount(rw="rw")
    user.sh("echo new > mnt/new")
    with user.start("fallocate", "-l", "100000", "mnt/new") as child:
        user.py("""
import os, time
deadline = time.monotonic() + 30
while not os.path.exists("working"):
    assert time.monotonic() < deadline
assert open("mnt/f").read() == "lower"
open("mnt/other", "w").close()
open("go", "w").close()
""")
        assert child.wait(30) == 0
    user.umount()
    assert (user.path / "rw/new").stat().st_size == 100000


def test_a_refused_allocation_copies_nothing_up(user: Place) -> None:
    user.mount(rw="rw")
    assert "No space left" in user.fails("fallocate -l 20000T mnt/f")
    assert "not supported" in user.fails("fallocate --collapse-range -o 0 -l 4096 mnt/f")
    user.umount()
    assert user.sh("ls -A rw") == ""


def test_ranges_are_cut_out_of_a_copy_and_allocated(user: Place) -> None:
    user.sh("head -c 300000 /dev/urandom > base/data; cp base/data before")
    user.mount(rw="rw")
    user.py(
        _HELPER
        + """
fd = os.open("mnt/data", os.O_RDWR)
before = os.pread(fd, 300000, 0)
allocate(fd, KEEP_SIZE | PUNCH_HOLE, 4096, 8192)
assert os.pread(fd, 300000, 0) == before[:4096] + bytes(8192) + before[12288:]
allocate(fd, 0, 300000, 100000)
assert os.fstat(fd).st_size == 400000
assert os.pread(fd, 200000, 299000) == before[299000:] + bytes(100000)
new = os.open("mnt/new", os.O_RDWR | os.O_CREAT)
allocate(new, KEEP_SIZE, 0, 1 << 20)
st = os.fstat(new)
assert st.st_size == 0 and st.st_blocks * 512 >= 1 << 20
os.posix_fallocate(new, 0, 2 << 20)
assert os.fstat(new).st_size == 2 << 20
try:
    allocate(new, PUNCH_HOLE, 0, 1)
except OSError as error:
    assert error.errno == 95, error
else:
    raise AssertionError
"""
    )
    assert user.sh("cmp base/data before") == ""
    user.umount()
    assert (user.path / "rw/data").stat().st_size == 400000


def test_copies_within_the_mount_take_one_request(user: Place) -> None:
    user.sh("head -c 3000000 /dev/urandom > base/data; cp base/data base/other")
    user.mount(rw="rw")
    user.py("""
import os
source = os.open("mnt/data", os.O_RDONLY)
def copy(name, offset):
    target = os.open(name, os.O_RDWR | os.O_CREAT)
    done = 0
    while done < 3000000 - 10:
        count = os.copy_file_range(source, target, 3000000 - 10 - done, 10 + done, offset + done)
        assert count > 0
        done += count
    return os.pread(target, 4000000, 0)
data = os.pread(source, 3000000, 0)
assert copy("mnt/new", 0) == data[10:]
assert copy("mnt/other", 1000) == data[:1000] + data[10:]
assert copy("mnt/other", 5) == data[:5] + data[10:] + data[-995:]
""")
    assert 3 <= _count(user, "copy_file_range") <= 8
    assert user.sh("cmp mnt/other base/other | wc -l; cmp base/data mnt/data") == "1\n"
    user.umount()
    assert sorted(path.name for path in (user.path / "rw").iterdir()) == ["new", "other"]


def test_nothing_of_that_leaves_descriptors(user: Place) -> None:
    pid = user.mount(rw="rw")["pid"]
    user.sh("cp mnt/f mnt/warm; cp --sparse=always mnt/f mnt/warm")
    before = len(os.listdir(f"/proc/{pid}/fd"))
    user.py("""
import os
fd = os.open("mnt/new", os.O_RDWR | os.O_CREAT)
for _ in range(300):
    os.copy_file_range(os.open("mnt/f", os.O_RDONLY), fd, 5, 0, 0)
""")
    assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 2
    user.umount()
