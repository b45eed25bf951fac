"""Listing directories: offsets, the two dots, and who holds a reference afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyfuse3
import pytest

from unionfs.fuse.idmap import IdMap
from unionfs.fuse.ops import Operations
from unionfs.fuse.options import MountOptions
from unionfs.union import Attr, DirItem

NAMES = [b"a", b"b", b"c", b"d"]


class Engine:
    """A directory 7 below the root, with four files from 100 on."""

    def __init__(self) -> None:
        self.remembered: list[int] = []

    def opendir(self, ino: int) -> int:
        return ino * 10

    def parent(self, _ino: int) -> int:
        return 1

    def getattr(self, ino: int) -> Attr:
        return Attr(ino, 0o40755 if ino < 100 else 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0)

    def readdir(self, _fh: int, start: int) -> Iterator[DirItem]:
        for index in range(start, len(NAMES)):
            yield DirItem(NAMES[index], self.getattr(100 + index), index + 1)

    def remember(self, ino: int) -> None:
        self.remembered.append(ino)


class Kernel:
    """Takes `room` entries of each reply."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[tuple[bytes, int, int]] = []

    def reply(
        self, _token: object, name: bytes, attr: pyfuse3.EntryAttributes, offset: int
    ) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.taken.append((name, attr.st_ino, offset))
        return True


@pytest.mark.parametrize("room", [1, 2, 3, 5, 100])
async def test_references_are_held_on_what_the_kernel_took(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine()
    options = MountOptions().settled(uid=0, writable=True)
    operations = Operations(engine, options, (IdMap(), IdMap()), lambda: None)  # type: ignore[arg-type]  # a stand-in
    context: Any = None
    handle = await operations.opendir(7, context)
    taken: list[tuple[bytes, int, int]] = []
    while True:
        kernel = Kernel(room)
        monkeypatch.setattr(pyfuse3, "readdir_reply", kernel.reply)
        token: Any = None
        await operations.readdir(handle, taken[-1][2] if taken else 0, token)
        if not kernel.taken:
            break
        taken += kernel.taken
    assert [(name, ino) for name, ino, _ in taken] == [
        (b".", 7),
        (b"..", 1),
        *zip(NAMES, range(100, 104), strict=True),
    ]
    assert len({offset for _, _, offset in taken}) == len(taken)
    assert engine.remembered == [100, 101, 102, 103]
