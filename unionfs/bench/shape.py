"""How big the measured trees are, and making them.

Invariant: every workload has a tree of its own, so in a fresh mount each finds names and
pages that nothing has touched yet: that is what "cold" means here.
"""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Final

import attrs

__all__ = ["BLOCK", "FULL", "NEEDLE", "QUICK", "SHAPES", "TINY", "Shape", "make_trees", "needed"]

BLOCK: Final = 1 << 20
#: What `grep` looks for; it is in one file.
NEEDLE: Final = "the-needle-of-this-haystack"
_OVERHEAD: Final = 1 << 27
_SMALL_COST: Final = 8192


@attrs.frozen
class Shape:
    """Counts of files and bytes. A tree of `directories` x `files` is what walks see."""

    name: str
    directories: int
    files: int
    modules: int
    tracked: int
    big: int
    randoms: int
    created: int
    deleted: int
    touched: int
    clients: int = 4
    small: int = 4096
    layers: tuple[int, ...] = (1, 10, 100, 500)
    listed: int = 500
    trees: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    #: Rounds over growing numbers, where most of the time goes into mounting.
    grown: int = 3

    @property
    def many(self) -> int:
        """Files of a tree of small files."""
        return self.directories * self.files


FULL: Final = Shape("full", 100, 200, 400, 5000, 1024 * BLOCK, 2000, 5000, 1000, 500)
QUICK: Final = Shape(
    *("quick", 20, 50, 100, 500, 64 * BLOCK, 300, 500, 100, 50),
    layers=(1, 100),
    listed=100,
    trees=(1_000, 10_000),
    grown=1,
)
TINY: Final = Shape(
    *("tiny", 4, 6, 5, 12, 2 * BLOCK, 8, 10, 6, 4), layers=(1, 3), listed=6, trees=(20,), grown=1
)
SHAPES: Final = {shape.name: shape for shape in (FULL, QUICK, TINY)}


def needed(shape: Shape, *, plain: bool) -> int:
    """Return the bytes of disk space that a run takes at its highest."""
    files = 5 * shape.many + shape.tracked + shape.created * 2 + shape.deleted + 3 * shape.touched
    tree = 3 * shape.big + files * _SMALL_COST
    copies = 3 * shape.big + files * _SMALL_COST  # copied up: full, and sparse by those who fill it
    trees = max(shape.trees) * 512
    return max(tree + copies + (tree if plain else 0), trees) + _OVERHEAD


def make_trees(root: Path, shape: Shape) -> list[Path]:
    """Write two layers below `root`, top first, and `root/archive.tar`; small files in both."""
    base, top = root / "base", root / "top"
    body = os.urandom(shape.small)
    for tree in ("walk", "tar", "clients"):
        _spread(base, top, tree, shape.directories, shape.files, body)
    text = (b"hay " * 15 + b"\n") * (shape.small // 61)
    _spread(base, top, "grep", shape.directories, max(1, shape.files // 2), text)
    with (base / "grep" / "d0" / "f0").open("ab") as file:
        file.write(NEEDLE.encode() + b"\n")
    for tree, count in (
        ("delete", shape.deleted),
        *((tree, shape.touched) for tree in ("append", "rename", "chmod")),
    ):
        _spread(base, top, tree, 1, count, body)
    _modules(base, top, shape.modules)
    _repository(base, shape.tracked, body)
    for name in ("big", "full", "doomed"):
        _fill(base / name, shape.big)
    with (base / "sparse").open("wb") as file:
        file.truncate(shape.big)
    _archive(root / "archive.tar", shape.created)
    return [top, base]


def _spread(base: Path, top: Path, tree: str, directories: int, files: int, body: bytes) -> None:
    for half, layer in enumerate((base, top)):
        for number in range(directories):
            directory = layer / tree / f"d{number}"
            directory.mkdir(parents=True)
            for file in range(half, files, 2):
                (directory / f"f{file}").write_bytes(body)


def _modules(base: Path, top: Path, count: int) -> None:
    lines = "".join(f"def function_{n}(x):\n    return x + {n}\n" for n in range(30))
    for half, layer in enumerate((base, top)):
        package = layer / "modules" / "many"
        package.mkdir(parents=True)
        for number in range(half, count, 2):
            source = package / f"m{number}.py"
            source.write_text(lines)
            py_compile.compile(str(source), doraise=True)
    start = base / "modules" / "many" / "__init__.py"
    start.write_text("".join(f"from many import m{n}\n" for n in range(count)))
    py_compile.compile(str(start), doraise=True)


def _repository(base: Path, count: int, body: bytes) -> None:
    """Make a git repository with `count` files, its index valid wherever it is mounted."""
    repository = base / "repo"
    for number in range(count):
        directory = repository / f"d{number // 100}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(body[:1000] + str(number).encode())
    if shutil.which("git") is None:
        return
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")
    for words in (
        ("init", "-q", "-b", "main"),
        # Inode and change time differ between mounts; size and modification time do not.
        ("config", "core.checkStat", "minimal"),
        ("config", "core.trustctime", "false"),
        ("add", "-A"),
        (*who, "commit", "-q", "-m", "one"),
        ("update-index", "-q", "--refresh"),
    ):
        subprocess.run(["git", "-C", repository, *words], check=True, env=environment)


def _fill(path: Path, size: int) -> None:
    block = os.urandom(BLOCK)
    with path.open("wb") as file:
        for _ in range(size // BLOCK):
            file.write(block)


def _archive(path: Path, count: int) -> None:
    body = os.urandom(1000)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"x{number // 100}/t{number}")
            member.size = len(body)
            tar.addfile(member, BytesIO(body))
