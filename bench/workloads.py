"""What is done to each mount: small programs, timed from outside.

Invariant: a workload touches the mount only through system calls that any program
would make, and checks what it read, so that a fast wrong answer is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["WORKLOADS", "Shape", "Workload", "make_layers"]

SMALL = 4096
BLOCK = 1 << 20


class Shape:
    """Size of the measured tree: directories, files in each, bytes of the big file."""

    def __init__(self, *, quick: bool) -> None:
        self.directories = 20 if quick else 100
        self.files = 50 if quick else 200
        self.big = (64 if quick else 1024) * BLOCK
        self.copies = 50 if quick else 500


def make_layers(root: Path, shape: Shape) -> list[Path]:
    """Write two layers, top first: small files in both, the big and the sparse file below."""
    base, top = root / "base", root / "top"
    body = os.urandom(SMALL)
    for layer, half in ((base, 0), (top, 1)):
        for number in range(shape.directories):
            directory = layer / f"d{number}"
            directory.mkdir(parents=True)
            for file in range(half, shape.files, 2):
                (directory / f"f{file}").write_bytes(body)
    with (base / "big").open("wb") as file_object:
        block = os.urandom(BLOCK)
        for _ in range(shape.big // BLOCK):
            file_object.write(block)
    with (base / "sparse").open("wb") as file_object:
        file_object.truncate(shape.big)
        file_object.write(body)
    return [top, base]


def _walk(target: Path, shape: Shape) -> None:
    count = 0
    for directory, _, files in os.walk(target):
        for name in files:
            os.lstat(os.path.join(directory, name))
            count += 1
    if count < shape.directories * shape.files:
        raise RuntimeError(f"{count} files seen")


def _read_small(target: Path, shape: Shape) -> None:
    for number in range(shape.directories):
        directory = target / f"d{number}"
        for name in os.listdir(directory):
            with (directory / name).open("rb", buffering=0) as file:
                if len(file.read(2 * SMALL)) != SMALL:
                    raise RuntimeError(f"short read of {name}")


def _read_big(target: Path, shape: Shape) -> None:
    total = 0
    with (target / "big").open("rb", buffering=0) as file:
        while data := file.read(BLOCK):
            total += len(data)
    if total != shape.big:
        raise RuntimeError(f"{total} bytes read")


def _create(target: Path, shape: Shape) -> None:
    directory = target / "new"
    directory.mkdir()
    for number in range(shape.copies * 10):
        (directory / f"n{number}").write_bytes(b"x" * 100)


def _delete(target: Path, shape: Shape) -> None:
    left = shape.copies
    for number in range(shape.directories):
        for name in os.listdir(target / f"d{number}"):
            if not left:
                return
            os.unlink(target / f"d{number}" / name)
            left -= 1


def _delete_big(target: Path, _: Shape) -> None:
    os.unlink(target / "big")


def _append(target: Path, shape: Shape) -> None:
    left = shape.copies
    for number in range(shape.directories):
        for name in os.listdir(target / f"d{number}"):
            if not left:
                return
            with (target / f"d{number}" / name).open("ab", buffering=0) as file:
                file.write(b"x")
            left -= 1


def _append_sparse(target: Path, _: Shape) -> None:
    with (target / "sparse").open("ab", buffering=0) as file:
        file.write(b"x")


class Workload:
    """A named program; `again` names the second run on the same mount, if it is timed too."""

    def __init__(
        self, name: str, run: Callable[[Path, Shape], None], *, again: str | None = None
    ) -> None:
        self.name = name
        self.run = run
        self.again = again


WORKLOADS = (
    Workload("walk+stat, cold", _walk, again="walk+stat, warm"),
    Workload("read small files, cold", _read_small, again="read small files, warm"),
    Workload("read big file, cold", _read_big, again="read big file, again"),
    Workload("create files", _create),
    Workload("delete lower files", _delete),
    Workload("delete big lower file", _delete_big),
    Workload("append to lower files", _append),
    Workload("append to sparse lower file", _append_sparse),
)
