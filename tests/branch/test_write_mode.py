"""chmod(2) and chown(2) through a writer, on a file with capabilities."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from unionfs.branch import Branch, Writer

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.mark.usefixtures("as_root")
def test_chmod_keeps_capabilities_and_chown_drops_them(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    os.setxattr(file, "security.capability", CAPABILITY)
    with Branch.open(os.fsencode(tmp_path)) as branch:
        writer = Writer.probe(branch)
        writer.set_mode(branch.fd, b"f", 0o4711)
        assert stat.S_IMODE(file.stat().st_mode) == 0o4711
        assert os.getxattr(file, "security.capability") == CAPABILITY
        writer.set_owner(branch.fd, b"f", 1, 1)
        assert "security.capability" not in os.listxattr(file)
