"""Many files of layers at once: which are opened, and that nobody can tell afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from unionfs.union import Caller, Engine


def test_files_of_layers_are_opened_and_nothing_else(tmp_path: Path) -> None:
    for name in ("top", "base", "rw"):
        (tmp_path / name / "d").mkdir(parents=True)
    for name, size in (("empty", 0), ("one", 1)):
        (tmp_path / "base" / name).write_bytes(b"x" * size)
    (tmp_path / "top/d/other").write_text("of the other layer")
    (tmp_path / "base/link").symlink_to("one")
    os.mkfifo(tmp_path / "base/fifo")
    layers = [os.fsencode(tmp_path / name) for name in ("top", "base")]
    with Engine.start(layers, os.fsencode(tmp_path / "rw")) as engine:
        names = [b"d", b"empty", b"one", b"link", b"fifo"]
        inos = [engine.lookup(1, name).ino for name in names]
        other = engine.lookup(inos[0], b"other").ino
        _, new, _ = engine.create(1, b"new", 0o644, os.O_RDWR, Caller(0, 0))
        opened = engine.open_layer_files([*inos, new.ino, 1 << 50, other])
        found = {ino: os.read(fd, 200) for ino, fd in opened}
        for _, fd in opened:
            os.close(fd)
    assert found == {inos[1]: b"", inos[2]: b"x", other: b"of the other layer"}


def test_reading_a_layer_leaves_its_access_times_alone(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/f").write_text("content")
    # A time before the last change: even a file system that is mounted relatime would update it.
    os.utime(tmp_path / "base/f", ns=(1_000_000_000, 2_000_000_000))
    with Engine.start([os.fsencode(tmp_path / "base")], None) as engine:
        ((_, fd),) = engine.open_layer_files([engine.lookup(1, b"f").ino])
        assert os.read(fd, 100) == b"content"
        os.close(fd)
    assert os.stat(tmp_path / "base/f").st_atime_ns == 1_000_000_000
