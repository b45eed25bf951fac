"""The machine's disks: ext4 images, written by `mke2fs -d` without mounting anything.

*system* holds the part of this machine's /usr that the tests need (kept between runs),
*checkout* the working tree with its .venv, *scratch* is empty and becomes /tmp; results are
read from it with debugfs. Each has a file `unionfs-vm-role`, by which it is found inside.

Invariant: nothing of this machine is written by the guest but the scratch disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from support.vm.errors import VmError

__all__ = ["checkout_disk", "closure", "merged", "results", "scratch_disk", "system_disk"]

#: Debian packages whose files the tests run, and what a small system is made of.
_SEEDS: Final = (
    *(
        "python3",
        "libpython3-stdlib",
        "fuse3",
        "libfuse3-3",
        "fuse-overlayfs",
        "attr",
        "acl",
        "umoci",
        "skopeo",
    ),
    *("uidmap", "mount", "util-linux", "coreutils", "findutils", "grep", "sed", "tar", "gzip"),
    *("e2fsprogs", "procps", "bash", "dash", "passwd", "login", "hostname", "libc-bin"),
    *("perl-base", "diffutils", "mawk", "base-files"),
)
_ETC: Final = (
    *("alternatives", "passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf"),
    *("ld.so.conf.d", "subuid", "subgid", "login.defs", "fuse.conf", "mke2fs.conf", "mtab"),
    *("os-release", "debian_version", "security", "localtime", "hosts", "python3.11"),
)
_NOT_NEEDED: Final = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bug|perl5|zoneinfo)\b")
_ROOT_LINK: Final = re.compile(r"/(bin|sbin|lib|lib64)(?=/)")
_CHECKOUT_LEFT_OUT: Final = (
    *(
        ".git",
        ".demo/packages",
        ".vm",
        ".hypothesis",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
    ),
    *("build", "dist", ".venv/bin/ruff"),
    *(f".venv/lib/python3*/site-packages/{name}" for name in ("mypy", "mypyc", "ruff", "pip")),
)
#: Features that every kernel with ext4 of the last ten years knows.
_FEATURES: Final = "none,has_journal,filetype,extent,large_file,sparse_super,dir_index,ext_attr"
_ROLE: Final = "unionfs-vm-role"
_RESULTS: Final = "unionfs-vm-results"
_MEGABYTE: Final = 1 << 20
_SCRATCH: Final = 6 << 30
_FORMAT: Final = 1


def _run(argv: Sequence[str | Path], *, good: tuple[int, ...] = (0,), stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode not in good:
        words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise VmError(f"{argv[0]}: {words[-1]}")
    return done.stdout


def _mke2fs(image: Path, size: int, tree: Path, role: str) -> None:
    (tree / _ROLE).write_text(role)
    # In a user namespace one's own files are root's, which is what the guest shall see.
    own = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    half = image.with_suffix(".half")
    half.unlink(missing_ok=True)
    options = ["-q", "-F", "-t", "ext4", "-O", _FEATURES, "-I", "256", "-m", "0"]
    _run([*own, "mke2fs", *options, "-d", tree, half, f"{size // _MEGABYTE}M"])
    half.rename(image)


def _used(tree: Path) -> int:
    """Return the bytes an ext4 needs for a tree, generously."""
    entries = [path.lstat() for path in tree.rglob("*")]
    blocks = sum(st.st_size + 4096 for st in entries)
    return blocks + len(entries) * 1024 + 96 * _MEGABYTE


def closure(seeds: Iterable[str], table: str) -> list[str]:
    """Return the installed packages that `seeds` need, sorted.

    `table` has a line per installed package: name, what it provides, what it depends on,
    with tabulators between. Of alternatives every installed one counts.
    """
    provided: dict[str, set[str]] = {}
    needs: dict[str, list[str]] = {}
    for line in table.splitlines():
        name, provides, depends = line.split("\t")
        for word in (name, *_names(provides)):
            provided.setdefault(word, set()).add(name)
        needs[name] = _names(depends)
    pending, found = list(seeds), set()
    while pending:
        for name in provided.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending += needs[name]
    return sorted(found)


def _names(relation: str) -> list[str]:
    return [
        word.split()[0].partition(":")[0] for word in re.split("[,|]", relation) if word.strip()
    ]


def merged(path: str) -> str:
    """Return where a file lies on a system whose /bin and /lib are links into /usr."""
    return _ROOT_LINK.sub(r"/usr/\1", path, count=1) if _ROOT_LINK.match(path) else path


def system_disk(cache: Path) -> Path:
    """Return the disk with this machine's programs, made anew when their packages changed."""
    form = "${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n"
    packages = closure(_SEEDS, _run(["dpkg-query", "-W", "-f", form]))
    versions = _run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *packages])
    key = hashlib.sha256(f"{_FORMAT}\n{versions}{_SEEDS}{_ETC}".encode()).hexdigest()[:16]
    image = cache / f"system-{key}.ext4"
    if image.exists():
        return image
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob("system-*"):
        old.unlink()
    listed = _run(["dpkg-query", "-L", *packages]).splitlines()
    paths = {merged(path)[1:] for path in listed if path.startswith("/")}
    paths = {
        path
        for path in paths
        if path.startswith("usr/")
        and not _NOT_NEEDED.match("/" + path)
        and os.path.lexists("/" + path)
    }
    more = [f"etc/{name}" for name in _ETC if os.path.lexists(f"/etc/{name}")]
    # Python's own byte code belongs to no package.
    more += [str(path)[1:] for path in Path("/usr/lib").glob("python3*/**/__pycache__")]
    with tempfile.TemporaryDirectory(prefix="system-", dir=cache) as text:
        tree = Path(text)
        _copy("/", sorted(paths), tree, "--no-recursion")
        _copy("/", more, tree)
        _mke2fs(image, _used(tree), tree, "system")
    return image


def _copy(start: str | Path, names: Sequence[str], tree: Path, *options: str) -> None:
    """Copy files with their modes; one that changes meanwhile is no error."""
    with tempfile.TemporaryFile() as archive:
        read = ["tar", "-C", str(start), *options, "--null", "-T", "-", "-cf", "-"]
        done = subprocess.run(
            read,
            input="".join(f"{name}\0" for name in names).encode(),
            stdout=archive,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise VmError(f"tar: {done.stderr.decode(errors='replace').splitlines()[0]}")
        archive.seek(0)
        subprocess.run(
            ["tar", "-C", tree, "--no-same-owner", "-p", "-xf", "-"], stdin=archive, check=True
        )


def checkout_disk(checkout: Path, place: Path) -> Path:
    """Return a disk with the working tree as it is now, without histories and caches."""
    image = place / "checkout.ext4"
    with tempfile.TemporaryDirectory(prefix="checkout-", dir=place) as text:
        tree = Path(text)
        left_out = [f"--exclude=./{name}" for name in _CHECKOUT_LEFT_OUT]
        _copy(checkout, ["."], tree, *left_out)
        _mke2fs(image, _used(tree), tree, "checkout")
    return image


def scratch_disk(image: Path) -> Path:
    """Return an empty disk; it takes room only for what is written."""
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=image.parent) as text:
        _mke2fs(image, _SCRATCH, Path(text), "scratch")
    return image


def results(images: Iterable[Path], place: Path) -> Mapping[str, Path]:
    """Take the result files off the scratch disk that was used, into `place`; by relative path."""
    shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="results-", dir=place.parent) as text:
        found = Path(text, _RESULTS)
        for image in images:
            _run(["debugfs", "-R", f"rdump /{_RESULTS} {text}", image])
        if found.is_dir():
            found.rename(place)
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {path.relative_to(place).as_posix(): path for path in files}
