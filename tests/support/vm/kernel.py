"""The kernel that is booted, and the modules it needs before anything else runs.

Dependencies are read from the modules themselves (their `.modinfo` strings), so a package
that was only unpacked will do. What a kernel has built in is no module and is not missed.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs

from support.vm.errors import VmError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "WANTED",
    "Kernel",
    "Module",
    "busybox",
    "debian_kernel",
    "find_modules",
    "is_static",
    "order",
    "release",
    "unpack_package",
]

#: Disks, filesystems and what they use without saying so; in the order of loading.
WANTED: Final = (
    *("virtio_pci", "virtio_blk", "virtio_rng", "ahci", "sd_mod"),
    *("crc32c_generic", "crc32c_intel", "ext4", "fuse", "overlay", "aufs"),
)
#: ELF64: where the program headers are said to be, and the type of the one naming a loader.
_PH_AT: Final = struct.Struct("<32xQ14xHH")
_PT_INTERP: Final = 3
_META: Final = "linux-image-cloud-amd64"
_PACKAGE: Final = re.compile(r"^\W*Depends: (linux-image-\d\S*)$", re.MULTILINE)
_MAGIC, _MAGIC_AT, _VERSION_AT = b"HdrS", 0x202, 0x20E
_SECTOR: Final = 0x200
_DEPENDS: Final = re.compile(rb"(?:^|\0)(depends=|softdep=pre: )([^\0]*)\0")
_UNPACK: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".zst": zstd.decompress,
}


@attrs.frozen
class Kernel:
    """A bootable image, its `uname -r`, and its lib/modules/RELEASE (None: nothing to load)."""

    image: Path
    release: str
    modules: Path | None


@attrs.frozen
class Module:
    """A kernel module's bytes, unpacked, and the names of those it depends on."""

    name: str
    content: bytes
    depends: tuple[str, ...]


def release(image: Path) -> str:
    """Return the release of an x86 kernel image (Documentation/arch/x86/boot.rst of the kernel)."""
    try:
        with image.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as exc:
        raise VmError(f"kernel {image}: {exc.strerror}") from exc
    if head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        raise VmError(f"kernel {image}: not an x86 bzImage or vmlinuz; give the bootable image")
    start = int.from_bytes(head[_VERSION_AT : _VERSION_AT + 2], "little") + _SECTOR
    text = head[start : head.index(b"\0", start)].decode("ascii", "replace")
    return text.split(" ")[0]


def find_modules(directory: Path, wanted: str) -> Path:
    """Return lib/modules/RELEASE: `directory` itself, or below it."""
    for place in (directory, *(directory / inner / wanted for inner in ("", "lib/modules"))):
        if place.name == wanted and (place / "kernel").is_dir():
            return place
    raise VmError(f"modules: neither {directory} nor lib/modules in it is {wanted}/ of this kernel")


def order(modules: Path) -> list[Module]:
    """Return the modules of `WANTED` that exist, each after those it depends on."""
    files = {_name(path): path for path in sorted(modules.glob("kernel/**/*.ko*"))}
    return _closure(WANTED, lambda name: _load(files, name))


def _closure(wanted: tuple[str, ...], load: Callable[[str], Module | None]) -> list[Module]:
    done: dict[str, Module | None] = {}

    def visit(name: str) -> None:
        if name in done:
            return
        done[name] = None  # a circle ends here
        module = load(name)
        if module is None:
            return
        for needed in module.depends:
            visit(needed)
        del done[name]  # dictionaries keep the order of insertion
        done[name] = module

    for name in wanted:
        visit(name)
    return [module for module in done.values() if module is not None]


def _name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _load(files: Mapping[str, Path], name: str) -> Module | None:
    path = files.get(name)
    if path is None:
        return None
    content = _UNPACK[path.name.partition(".ko")[2]](path.read_bytes())
    found = b",".join(match[2] for match in _DEPENDS.finditer(content)).decode("ascii", "replace")
    depends = [word.replace("-", "_") for word in re.split(r"[,\s]+", found) if word]
    return Module(name, content, tuple(depends))


def _run(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise VmError(f"{argv[0]} {argv[1]}: {words[-1]}")
    return done.stdout


def unpack_package(package: str, cache: Path) -> Path:
    """Download a Debian package, unless `cache` has it, and return its unpacked tree."""
    tree = cache / package
    if not tree.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _run("apt-get", "download", "-qq", package, cwd=cache)
        archive = max(cache.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        half = cache / f".{package}"
        _run("dpkg-deb", "-x", archive, half)
        half.rename(tree)
    return tree


def is_static(program: bytes) -> bool:
    """Tell whether an ELF64 program needs no loader, and so no libraries."""
    if program[:4] != b"\x7fELF" or len(program) < _PH_AT.size:
        return False
    start, size, count = _PH_AT.unpack_from(program)
    places = range(start, start + size * count, max(1, size))
    return all(int.from_bytes(program[at : at + 4], "little") != _PT_INTERP for at in places)


def busybox(cache: Path) -> Path:
    """Return a busybox that needs no libraries: an installed one, else Debian's, fetched."""
    installed = shutil.which("busybox")
    if installed is not None and is_static(Path(installed).read_bytes()):
        return Path(installed)
    return unpack_package("busybox-static", cache) / "bin" / "busybox"


def debian_kernel(cache: Path) -> Kernel:
    """Fetch the kernel that Debian makes for virtual machines; nothing is installed."""
    found = _PACKAGE.search(_run("apt-cache", "depends", _META))
    if found is None:
        raise VmError(f"apt-cache: no kernel behind {_META}; give KERNEL=path/to/vmlinuz")
    tree = unpack_package(found[1], cache)
    image = next(tree.glob("boot/vmlinuz-*"))
    version = release(image)
    return Kernel(image, version, find_modules(tree, version))
