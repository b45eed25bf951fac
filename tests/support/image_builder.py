"""A real image, built from Debian packages, for the demo and the end-to-end tests.

Packages are fetched by `apt-get download`, their file trees go into layer archives
with the owners, modes and hard links that Debian gave them, umoci stacks the layers
into an OCI image and skopeo makes of it what `docker save` writes. No step needs root:
nothing is ever unpacked.

Invariant: a finished image lies in a directory named by the digest of this file (what
is built follows from it and from Debian's packages) and is complete, because the
directory is renamed into place last.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Final

import attrs

__all__ = ["TAG", "BuiltImage", "build"]

#: The name the image has inside the docker-archive.
TAG: Final = "demo/app:latest"
_MTIME: Final = 1_700_000_000
_CREATED: Final = "2023-11-14T22:13:20Z"

_BASE: Final = (
    *("base-files", "base-passwd", "libc6", "libc-bin", "libcrypt1", "libtinfo6", "libacl1"),
    *("libattr1", "libselinux1", "libpcre2-8-0", "libgmp10", "libcap2", "libaudit1", "libcap-ng0"),
    *("coreutils", "bash", "dash", "grep", "sed", "tar", "gzip", "findutils", "hostname"),
    *("perl-base", "passwd", "login", "util-linux", "mount", "libmount1", "libblkid1"),
)
_SOFTWARE: Final = (
    *("git", "sudo", "iputils-ping", "libpython3.11-minimal", "python3.11-minimal"),
    *("zlib1g", "libexpat1"),
)
_APT: Final = (
    *("apt", "dpkg", "libapt-pkg6.0", "libstdc++6", "libgcc-s1", "libgnutls30", "libp11-kit0"),
    *("libidn2-0", "libunistring2", "libtasn1-6", "libnettle8", "libhogweed6", "libffi8", "libmd0"),
    *("libseccomp2", "libsystemd0", "libudev1", "libgcrypt20", "libgpg-error0", "libxxhash0"),
    *("liblzma5", "libbz2-1.0", "liblz4-1", "libzstd1"),
)

#: cap_net_raw=ep in the kernel's revision 2 form (capability.h, struct vfs_cap_data):
#: what the package's installation script gives to ping by setcap.
_CAP_NET_RAW: Final = bytes.fromhex("0100000200200000000000000000000000000000")
#: Directories that became links to their namesakes in /usr (Debian's merged /usr).
_MERGED: Final = ("bin", "sbin", "lib", "lib64")


@attrs.frozen
class BuiltImage:
    """The finished image: `layout` (OCI, tag `latest`), `archive` (as docker save), `layers`.

    `layers` are the uncompressed layer archives, the lowest first. `apt` is one more, to be put on
    top, with apt and dpkg.
    """

    layout: Path
    archive: Path
    layers: tuple[Path, ...]
    apt: Path


def _run(argv: Sequence[str | Path], cwd: Path | None = None) -> None:
    """Run a tool; its words are shown only when it fails."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))} failed:\n{done.stdout}{done.stderr}")


def _download(packages: Iterable[str], directory: Path) -> dict[str, Path]:
    """Return the package file of every name, fetched unless `directory` has it."""
    directory.mkdir(parents=True, exist_ok=True)

    def found() -> dict[str, Path]:
        return {path.name.split("_")[0]: path for path in sorted(directory.glob("*.deb"))}

    missing = [name for name in packages if name not in found()]
    if missing:
        fetch = ["apt-get", "download", "-qq", *missing]
        try:
            _run(fetch, directory)
        except RuntimeError:
            # No package lists yet, or they name versions that are gone from the mirror.
            _run([*([] if os.geteuid() == 0 else ["sudo"]), "apt-get", "update", "-qq"])
            _run(fetch, directory)
    return found()


class _Layer:
    """A layer archive in the making: every path once, parents before children."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(  # noqa: SIM115  # closed by close()
            path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
        self._seen: set[str] = set()

    def close(self) -> None:
        self._tar.close()

    def package(self, path: Path, overrides: dict[str, dict[str, str]]) -> None:
        """Add the file tree of a Debian package, in merged-/usr form."""
        tree = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(tree), encoding="utf-8") as source:
            for member in source:
                member.name = _merged(member.name)
                if member.islnk():
                    member.linkname = _merged(member.linkname)
                member.pax_headers = overrides.get(member.name, {})
                self._add(member, source.extractfile(member) if member.isreg() else None)

    def _add(self, member: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        if member.name in self._seen or member.name in _MERGED:
            return
        self._seen.add(member.name)
        self._tar.addfile(member, content)

    def _member(self, name: str, kind: bytes, mode: int, owner: int = 0) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.mtime = kind, mode, _MTIME
        member.uid = member.gid = owner
        return member

    def directory(self, name: str, mode: int = 0o755, owner: int = 0) -> None:
        self._add(self._member(name, tarfile.DIRTYPE, mode, owner))

    def file(
        self,
        name: str,
        content: bytes = b"",
        mode: int = 0o644,
        owner: int = 0,
        xattrs: dict[str, str] | None = None,
    ) -> None:
        member = self._member(name, tarfile.REGTYPE, mode, owner)
        member.size = len(content)
        member.pax_headers = {f"SCHILY.xattr.{key}": text for key, text in (xattrs or {}).items()}
        self._add(member, io.BytesIO(content))

    def link(self, name: str, target: str, *, hard: bool = False) -> None:
        member = self._member(name, tarfile.LNKTYPE if hard else tarfile.SYMTYPE, 0o777)
        member.linkname = target
        if name in _MERGED:
            self._tar.addfile(member)
        else:
            self._add(member)

    def node(self, name: str, kind: bytes, mode: int, device: tuple[int, int] = (0, 0)) -> None:
        member = self._member(name, kind, mode)
        member.devmajor, member.devminor = device
        self._add(member)

    def whiteout(self, path: str) -> None:
        head, _, tail = path.rpartition("/")
        self.file(f"{head}/.wh.{tail}" if head else f".wh.{tail}")

    def opaque(self, directory: str) -> None:
        self.file(f"{directory}/.wh..wh..opq")


def _merged(name: str) -> str:
    """Return a member name of a package as merged /usr has it, without `./`."""
    name = name.removeprefix("./").rstrip("/") or "."
    return f"usr/{name}" if name.split("/")[0] in _MERGED and "/" in name else name


def _base(path: Path, packages: dict[str, Path]) -> None:
    layer = _Layer(path)
    for name in _MERGED:
        layer.link(name, f"usr/{name}")
    for name in _BASE:
        layer.package(packages[name], {})
    for name, mode in (("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("root", 0o700)):
        layer.directory(name, mode)
    layer.directory("tmp", 0o1777)
    layer.node("dev/null", tarfile.CHRTYPE, 0o666, (1, 3))
    layer.node("dev/zero", tarfile.CHRTYPE, 0o666, (1, 5))
    layer.node("dev/vda", tarfile.BLKTYPE, 0o660, (254, 0))
    layer.node("dev/initctl", tarfile.FIFOTYPE, 0o600)
    layer.directory("opt")
    layer.file("etc/hostname", b"demo\n")
    layer.file("etc/motd", b"A small Debian.\n")
    layer.close()


def _software(path: Path, packages: dict[str, Path]) -> None:
    layer = _Layer(path)
    capability = {"SCHILY.xattr.security.capability": _CAP_NET_RAW.decode("ascii")}
    for name in _SOFTWARE:
        layer.package(packages[name], {"usr/bin/ping": capability})
    layer.link("usr/bin/python3", "python3.11")
    layer.directory("opt/tool")
    layer.file("opt/tool/run", b'#!/bin/sh\nexec git "$@"\n', 0o755)
    layer.link("opt/tool/run-again", "opt/tool/run", hard=True)
    layer.link("opt/tool/start", "run")
    layer.directory("opt/cache")
    for number in range(20):
        layer.file(f"opt/cache/{number:02}.tmp", b"x" * number)
    layer.close()


def _slimmed(path: Path) -> None:
    layer = _Layer(path)
    for name in ("git/contrib", "perl-base", "util-linux", "bash"):
        layer.whiteout(f"usr/share/doc/{name}")
    for language in ("de", "fr", "ja", "pt_BR"):
        layer.whiteout(f"usr/share/locale/{language}")
    layer.directory("opt/cache", 0o750)
    layer.opaque("opt/cache")
    layer.file("opt/cache/README", b"emptied when the image was slimmed\n")
    layer.directory("usr/share/man")
    layer.opaque("usr/share/man")
    layer.file("etc/motd", b"A small Debian, slimmed.\n")
    layer.close()


def _application(path: Path) -> None:
    layer = _Layer(path)
    layer.directory("opt/app", owner=1000)
    layer.file("opt/app/server", b"#!/bin/sh\necho serving\n", 0o4755)
    layer.file("opt/app/data", b"data\n" * 100_000, 0o600, 1000)
    layer.file("opt/app/labelled", b"", xattrs={"user.mime_type": "text/plain"})
    layer.file("opt/app/" + b"caf\xe9".decode("utf-8", "surrogateescape"), b"Latin-1 name\n")
    layer.directory("var/lib/app", 0o2775, 1000)
    layer.whiteout("usr/bin/sudo")
    layer.whiteout("opt/tool")
    layer.file("opt/tool", b"a file where a directory was\n")
    layer.file("etc/app.conf", b"listen = 8080\n", 0o640)
    layer.close()


def _apt(path: Path, packages: dict[str, Path]) -> None:
    layer = _Layer(path)
    for name in _APT:
        layer.package(packages[name], {})
    layer.file("var/lib/dpkg/status")
    layer.close()


def _pack(directory: Path, layers: list[tuple[Path, str]]) -> None:
    """Make the OCI layout and the docker-archive out of the layer archives."""
    layout = directory / "oci"
    image = f"{layout}:latest"
    _run(["umoci", "init", "--layout", layout])
    _run(["umoci", "new", "--image", image])
    for archive, command in layers:
        history = ["--history.created_by", command, "--history.created", _CREATED]
        _run(["umoci", "raw", "add-layer", "--image", image, *history, archive])
    settings = ["--config.cmd", "/opt/app/server", "--config.env", "PATH=/usr/bin"]
    settings += ["--author", "unionfs demo", "--created", _CREATED, "--no-history"]
    _run(["umoci", "config", "--image", image, *settings])
    _run(["umoci", "gc", "--layout", layout])
    saved = directory / "saved.tar"
    target = f"docker-archive:{saved}:{TAG}"
    _run(["skopeo", "copy", "--insecure-policy", "--quiet", f"oci:{image}", target])
    _as_docker_names_it(saved, directory / "app.tar")
    saved.unlink()


def _as_docker_names_it(source: Path, target: Path) -> None:
    """Copy skopeo's archive with the names docker writes: those without `docker.io/`."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = old.extractfile(member)
            if content is not None and member.name in ("manifest.json", "repositories"):
                text = content.read().replace(b"docker.io/", b"")
                member.size, content = len(text), io.BytesIO(text)
            new.addfile(member, content)


def _image(directory: Path) -> BuiltImage:
    layers = tuple(sorted((directory / "layers").iterdir()))
    return BuiltImage(directory / "oci", directory / "app.tar", layers, directory / "apt.tar")


def build(cache: Path) -> BuiltImage:
    """Return the image, from `cache` when it has been built there before."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    final = cache / f"image-{key}"
    if final.is_dir():
        return _image(final)
    cache.mkdir(parents=True, exist_ok=True)
    packages = _download((*_BASE, *_SOFTWARE, *_APT), cache / "packages")
    staging = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
    try:
        (staging / "layers").mkdir()
        names = [staging / "layers" / f"{n}.tar" for n in range(4)]
        _base(names[0], packages)
        _software(names[1], packages)
        _slimmed(names[2])
        _application(names[3])
        _apt(staging / "apt.tar", packages)
        commands = ("apt-get install base", "apt-get install git sudo", "slim", "COPY app /opt/app")
        _pack(staging, list(zip(names, commands, strict=True)))
        # umoci keeps index.json to itself; tests of other users read the image, too.
        _run(["chmod", "-R", "a+rX", staging])
        try:
            staging.rename(final)
        except OSError:
            # Somebody else was faster; what they made is the same.
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _image(final)


if __name__ == "__main__":
    started = time.monotonic()
    print(build(Path(sys.argv[1])).archive)  # noqa: T201  # run by hand
    print(f"{time.monotonic() - started:.1f} s", file=sys.stderr)  # noqa: T201  # run by hand
