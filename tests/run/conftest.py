"""A small root file system made of this machine's programs, run as root and as nobody."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fuseplace import place_for
from support.runner import Runner

_PROGRAMS = (
    *("sh", "bash", "ls", "cat", "id", "env", "pwd", "sleep", "stty", "tty", "touch", "rm"),
    *("mkdir", "readlink", "head", "stat", "true", "mount", "umount", "ps", "mknod", "chown"),
)
_USERS = "root:x:0:0::/root:/bin/sh\nal:x:1000:1000::/home/al:/bin/sh\n"
_GROUP = "root:x:0:\nal:x:1000:\nextra:x:44:root,al\n"


def _libraries(program: str) -> list[str]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return re.findall(r"(/\S+) \(0x", said)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """Return a directory tree in which a shell and some tools work."""
    root = Path(tempfile.mkdtemp(prefix="unionfs-rootfs-", dir="/var/tmp"))
    root.chmod(0o755)
    for name in ("bin", "etc", "dev", "proc", "sys", "root", "home/al", "run", "usr", "var/tmp"):
        (root / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(0o1777)
    for name in _PROGRAMS:
        program = shutil.which(name)
        assert program is not None, f"{name} is not installed"
        shutil.copy(program, root / "bin" / name)
        (root / "bin" / name).chmod(0o755)
        for library in _libraries(program):
            target = root / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(library, target)
    (root / "etc/passwd").write_text(_USERS)
    (root / "etc/group").write_text(_GROUP)
    (root / "etc/resolv.conf").write_text("")
    yield root
    shutil.rmtree(root)


@pytest.fixture(params=["root-overlay", "root-fuse", "user-overlay", "user-fuse"])
def inside(request: pytest.FixtureRequest, template: Path) -> Iterator[Runner]:
    """Run as root of the machine and as a plain user, over both back ends."""
    way, backend = request.param.split("-")
    with place_for(way) as place:
        image = place.path / "image"
        subprocess.run(["cp", "-a", template, image], check=True)
        if place.way == "user":
            owner = f"--reference={place.path}"
            subprocess.run(["chown", "-R", owner, image], check=False, capture_output=True)
        yield Runner(place, image, backend)
