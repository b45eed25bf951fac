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


def test_holes_are_found(user: Place) -> None:
    user.sh("truncate -s 64M base/holes; printf end >> base/holes")
    user.mount(rw="rw")
    user.py("""
import os
end = 64 << 20
for writer in (False, True):
    fd = os.open("mnt/holes", os.O_RDWR if writer else os.O_RDONLY)
    if writer:
        os.pwrite(fd, b"start", 0)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) < 1 << 20
    data = os.lseek(fd, 1 << 20, os.SEEK_DATA)
    assert end - (1 << 16) < data <= end, data
    assert os.lseek(fd, end, os.SEEK_HOLE) == end + 3
    try:
        os.lseek(fd, end + 3, os.SEEK_DATA)
    except OSError as error:
        assert error.errno == 6, error
    else:
        raise AssertionError
    os.close(fd)
""")
    user.sh("cp --sparse=auto mnt/holes copy; cmp copy mnt/holes")
    assert (user.path / "copy").stat().st_blocks < 1 << 10
    user.umount()


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
