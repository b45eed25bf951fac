"""Finding out about a kernel image and ordering its modules, without booting anything."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from support.vm import kernel
from support.vm.errors import VmError


def bzimage(path: Path, text: bytes) -> Path:
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x600).to_bytes(2, "little")
    head[0x800 : 0x800 + len(text)] = text
    path.write_bytes(head)
    return path


def module(path: Path, info: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"\x7fELF\0license=GPL\0" + info + b"\0name=x\0"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_release_is_read_from_the_image(tmp_path: Path) -> None:
    image = bzimage(tmp_path / "bzImage", b"6.1.192-aufs (me@there) #1 SMP\0")
    assert kernel.release(image) == "6.1.192-aufs"


def test_what_is_no_kernel_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(2000))
    for name, reason in (("vmlinux", "not an x86 bzImage"), ("absent", "No such file")):
        with pytest.raises(VmError, match=reason) as caught:
            kernel.release(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_modules_are_found_directly_and_below(tmp_path: Path) -> None:
    place = tmp_path / "lib" / "modules" / "6.1.0"
    (place / "kernel").mkdir(parents=True)
    for given in (place, place.parent, tmp_path):
        assert kernel.find_modules(given, "6.1.0") == place
    with pytest.raises(VmError, match=r"6\.2\.0"):
        kernel.find_modules(tmp_path, "6.2.0")


def test_dependencies_come_first_and_builtins_are_not_missed(tmp_path: Path) -> None:
    module(tmp_path / "kernel/fs/ext4/ext4.ko", b"depends=jbd2,mbcache\0softdep=pre: crc32c")
    module(tmp_path / "kernel/fs/jbd2/jbd2.ko.gz", b"depends=")
    module(tmp_path / "kernel/drivers/virtio/virtio-pci.ko", b"depends=virtio_ring")
    module(tmp_path / "kernel/drivers/virtio/virtio_ring.ko", b"depends=virtio_pci")
    names = [found.name for found in kernel.order(tmp_path)]
    assert names == ["virtio_ring", "virtio_pci", "jbd2", "ext4"]


def test_a_busybox_must_bring_its_own_libraries() -> None:
    assert not kernel.is_static(Path("/bin/sh").read_bytes())
    assert not kernel.is_static(b"#!/bin/sh\n" + bytes(100))
    header = bytearray(200)
    header[:4] = b"\x7fELF"
    header[32:40] = (64).to_bytes(8, "little")
    header[54:58] = (56).to_bytes(2, "little") + (1).to_bytes(2, "little")
    header[64] = 1
    assert kernel.is_static(bytes(header))
    header[64] = 3
    assert not kernel.is_static(bytes(header))
