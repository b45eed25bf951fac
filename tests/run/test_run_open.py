"""Opening inside a root while the machine around it is busy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from unionfs import _sys

_RENAMES = """
import os, sys
while True:
    os.rename("x", "y")
    os.rename("y", "x")
"""


def test_renames_elsewhere_are_no_obstacle_to_going_up(tmp_path: Path) -> None:
    """The kernel refuses `..` with EAGAIN when anything at all was renamed meanwhile."""
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    root = os.open(tmp_path / "root", os.O_PATH)
    busy = subprocess.Popen([sys.executable, "-c", _RENAMES], cwd=tmp_path)
    try:
        for _ in range(10000):
            fd = _sys.open_in_root(root, b"a/b/../../../a/b/../b", os.O_PATH)
            inside = os.readlink(f"/proc/self/fd/{fd}")
            os.close(fd)
            assert inside == str(tmp_path / "root/a/b")
        assert busy.poll() is None
    finally:
        busy.kill()
        busy.wait()
        os.close(root)
