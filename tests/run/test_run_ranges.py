"""More than one user inside, where /etc/subuid and /etc/subgid grant a plain user ranges."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.runner import Runner

from unionfs.run.namespaces import IdRange, subordinate_ranges

_SETUP = """
mount --bind "$1" /etc/subuid; mount --bind "$2" /etc/subgid; shift 2; exec "$@"
"""


def test_the_tables_of_ranges(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text(
        "root:1:2\n65534:100:10\nnobody:200:5\n\n#x\nnobody:300\nnobody:a:b\nnobody:400:0\n"
    )
    assert subordinate_ranges(str(table), 65534) == [IdRange(100, 10), IdRange(200, 5)]
    assert subordinate_ranges(str(table), 0) == [IdRange(1, 2)]
    assert subordinate_ranges(str(table), 4242) == []
    assert subordinate_ranges(str(tmp_path / "missing"), 0) == []


@pytest.mark.parametrize("inside", ["user-fuse", "user-overlay"], indirect=True)
def test_ranges_are_used(inside: Runner, as_root: None) -> None:
    del as_root
    if shutil.which("newuidmap") is None:
        pytest.skip("needs newuidmap (package uidmap)")
    tables = []
    for name in ("subuid", "subgid"):
        path = inside.place.path / name
        path.write_text("nobody:200000:65536\n")
        path.chmod(0o644)
        tables.append(str(path))
    script = (
        "wc() { n=0; while read -r l; do n=$((n+1)); done; echo $n; }; wc </proc/self/uid_map;"
        "id -u; id -G; echo x >/x; chown 5:6 /x; ls -n /x"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [*inside.place.prefix, *inside.argv(*words)]
        return subprocess.run(
            ["unshare", "-m", "sh", "-ec", _SETUP, "sh", *tables, *argv],
            capture_output=True,
            text=True,
            check=False,
            cwd=inside.place.path,
            env=inside.place.env,
            timeout=60,
        )

    done = run("--ephemeral", "--", "sh", "-ec", script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["2", "0"]
    assert lines[3].split()[2:4] == ["5", "6"]
    assert os.listdir(inside.place.path / ".store/ephemeral") == []
    done = run("--user", "al", "--", "id", "-G")
    assert (done.stdout, done.returncode) == ("1000 44\n", 0), done.stderr
    done = run("--user", "100000", "--", "true")
    assert done.returncode == 125
    assert "does not exist in this user namespace" in done.stderr
