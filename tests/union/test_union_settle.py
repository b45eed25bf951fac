"""Copies have their data on disk before their names: filesystems that lose power.

FS_IOC_SHUTDOWN without flushing the log leaves on the device what a crash would: the writes that
had been made, and not those that only memory knew of.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.engine_fs import EngineFs, build
from support.union_case import start

from unionfs import _sys
from unionfs.closing import opened
from unionfs.union import EngineOptions, copyup, settle
from unionfs.union.settle import settler

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
_NO_LOG_FLUSH = struct.pack("I", 2)
_FILES = 60
_SIZE = 512 << 20  # mkfs.xfs wants 300 MiB; the image is sparse
_BODY = "kept " * 5000
_PIECE = 8 << 20
_BIG = 3 * _PIECE + 5
_KEEP_SIZE = 1

_MAKERS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "ext4 without a journal": ["mkfs.ext4", "-q", "-F", "-O", "^has_journal"],
    "ext2": ["mkfs.ext2", "-q", "-F"],
}


class _Disk:
    """A filesystem of its own at `path`."""

    def __init__(self, image: Path, path: Path) -> None:
        self._image = image
        self.path = path

    def mount(self) -> None:
        done = subprocess.run(
            ["mount", "-o", "loop", self._image, self.path],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"this kernel cannot mount it on a loop device: {done.stderr.strip()}")

    def umount(self) -> None:
        """Unmount, and wait until no other mount namespace has it: it would be mounted again."""
        subprocess.run(["umount", self.path], check=True)
        deadline = time.monotonic() + 60
        while subprocess.check_output(["losetup", "--associated", self._image]):
            assert time.monotonic() < deadline, "another mount namespace keeps it mounted"
            time.sleep(0.05)

    def commit_names(self) -> None:
        """Have what changed so far logged, as anybody's fsync(2) does; data may be left out."""
        with opened(os.open(self.path / "other", os.O_WRONLY | os.O_CREAT)) as fd:
            os.write(fd, b"x")
            os.fsync(fd)

    def lose_power(self) -> None:
        with opened(os.open(self.path, os.O_RDONLY)) as fd:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)


MakeDisk = Callable[[str], _Disk]


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    if os.geteuid() != 0:
        pytest.skip("mounts filesystems of its own: needs root")
    with contextlib.ExitStack() as mounted:

        def make(kind: str) -> _Disk:
            command = _MAKERS[kind]
            if shutil.which(command[0]) is None:
                pytest.skip(f"needs {command[0]} (packages e2fsprogs and xfsprogs)")
            image, path = tmp_path / "image", tmp_path / "disk"
            with image.open("wb") as file:
                file.truncate(_SIZE)
            path.mkdir()
            subprocess.run([*command, image], check=True)
            disk = _Disk(image, path)
            disk.mount()
            mounted.callback(disk.umount)
            return disk

        yield make


def _crash(disk: _Disk, layer: Path, *, volatile: bool) -> dict[str, str]:
    """Copy files up, have the names logged, crash; return what is there afterwards."""
    build(layer, {f"f{number}": _BODY for number in range(_FILES)})
    rw = disk.path / "rw"
    rw.mkdir()
    os.sync()
    engine = start([layer], rw, EngineOptions(volatile=volatile))
    fs = EngineFs(engine)
    for number in range(_FILES):
        fs.chmod(f"f{number}", 0o600)
    disk.commit_names()
    disk.lose_power()
    with contextlib.suppress(OSError):  # XFS answers nothing any more
        engine.close()
    disk.umount()
    disk.mount()
    return {path.name: path.read_text() for path in rw.glob("f*")}


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_after_a_crash_a_copy_is_whole(make_disk: MakeDisk, tmp_path: Path, kind: str) -> None:
    disk = make_disk(kind)
    found = _crash(disk, tmp_path / "layer", volatile=False)
    with opened(os.open(disk.path, os.O_RDONLY)) as fd:
        assert settler(fd) is _sys.write_out
    assert found == {f"f{number}": _BODY for number in range(_FILES)}


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_that_crash_takes_what_was_not_written(
    make_disk: MakeDisk, tmp_path: Path, kind: str
) -> None:
    found = _crash(make_disk(kind), tmp_path / "layer", volatile=True)
    assert len(found) == _FILES
    assert all(body != _BODY for body in found.values())


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_big_copy_begins_to_be_written_early_and_is_whole_after_a_crash(
    make_disk: MakeDisk,
    tmp_path: Path,
    kind: str,
    sparse: bool,  # noqa: FBT001  # a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []

    def begin(fd: int, offset: int, size: int) -> None:
        assert size <= _PIECE
        begun.extend(range(offset, offset + size, 1 << 20))
        settle.begin(fd, offset, size)

    monkeypatch.setattr(copyup, "begin", begin)
    disk, layer, rw = make_disk(kind), tmp_path / "layer", tmp_path / "disk/rw"
    content = os.urandom(_BIG)
    if sparse:
        content = content[:_PIECE] + bytes(_PIECE) + content[2 * _PIECE :]
    layer.mkdir()
    (layer / "big").write_bytes(content)
    if sparse:
        with opened(os.open(layer / "big", os.O_WRONLY)) as fd:
            _sys.fallocate(fd, _sys.FALLOC_PUNCH_HOLE | _KEEP_SIZE, _PIECE, _PIECE)
    rw.mkdir()
    os.sync()
    with contextlib.suppress(OSError), start([layer], rw, EngineOptions()) as engine:
        EngineFs(engine).chmod("big", 0o600)
        disk.commit_names()
        disk.lose_power()  # XFS answers nothing any more
    hole = range(_PIECE, 2 * _PIECE if sparse else _PIECE, 1 << 20)
    assert begun == [offset for offset in range(0, _BIG, 1 << 20) if offset not in hole]
    disk.umount()
    disk.mount()
    assert (rw / "big").read_bytes() == content


@pytest.mark.parametrize("kind", ["ext4 without a journal", "ext2"])
def test_without_a_journal_metadata_are_written_too(make_disk: MakeDisk, kind: str) -> None:
    disk = make_disk(kind)
    with opened(os.open(disk.path, os.O_RDONLY)) as fd:
        assert settler(fd) is os.fdatasync


def test_an_unknown_filesystem_gets_everything_written() -> None:
    with opened(os.open("/proc", os.O_RDONLY)) as fd:
        assert settler(fd) is os.fdatasync
