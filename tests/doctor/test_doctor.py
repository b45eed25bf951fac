"""The doctor's answers are right, and looking leaves no trace."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fuseplace import Place, place_for

from unionfs.doctor.checks import nearest_directory
from unionfs.doctor.handshake import parse_init
from unionfs.doctor.places import check_place


@pytest.fixture(params=["root", "user"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_for(request.param) as made:
        yield made


def _traces(place: Place) -> dict[str, object]:
    """Return what a careless probe would change: all of them work below the place."""
    processes = [
        line
        for line in subprocess.run(
            ["ps", "-A", "-o", "user:20=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if str(place.path) in line
    ]
    return {
        "mounts": [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(place.path) in line
        ],
        "files": sorted(str(p.relative_to(place.path)) for p in place.path.rglob("*")),
        "temporary": [
            name
            for directory in ("/tmp", "/var/tmp")
            for name in os.listdir(directory)
            if name.startswith((".unionfs-doctor-", "unionfs-probe-"))
        ],
        "processes": processes,
    }


def _doctor(place: Place, *words: str, **env: str) -> tuple[int, Any]:
    done = place.run(
        *place.python, "-m", "unionfs", "doctor", "--json", *words, check=False, env=env
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def _checks(document: Any, area: str) -> dict[str, Any]:
    return {item["name"]: item for item in document["checks"] if item["area"] == area}


def test_it_leaves_nothing_behind(place: Place) -> None:
    before = _traces(place)
    status, document = _doctor(place)
    assert status == 0
    assert document["usable"] is True
    assert _traces(place) == before


def test_what_it_calls_usable_can_be_used(place: Place) -> None:
    _, document = _doctor(place)
    backends = {item["name"]: item for item in document["backends"]}
    assert list(backends) == ["aufs", "overlay", "overlay-userns", "fuse", "fuse-userns"]
    for name, item in backends.items():
        assert item["usable"] or (item["reason"] and item["remedy"]), name
    place.sh("mkdir -p top base mnt; echo x >base/x; touch top/.wh.y base/y")
    if backends["overlay"]["usable"] and place.way == "root":
        words = ["lowerdir=top:base", "mnt"]
        done = place.run("mount", "-t", "overlay", "x", "-o", *words, check=False)
        assert done.returncode == 0
        place.sh("umount mnt")
    assert backends["fuse"]["usable"]
    place.mount("top", "base")
    place.umount()
    for backend in ("overlay", "fuse"):
        if backends[f"{backend}-userns"]["usable"] and place.way == "user":
            missing = ["--layer", "top", "--layer", "base", "--", "/no/such"]
            argv = [*place.python, "-m", "unionfs", "run", "--backend", backend, *missing]
            assert place.run(*argv, check=False).returncode == 127  # got as far as executing


def test_facts(place: Place) -> None:
    _, document = _doctor(place, "--rw", str(place.path / "not/yet"))
    kernel = _checks(document, "kernel")
    for name in ("overlay", "fuse"):
        present = f"\t{name}\n" in Path("/proc/filesystems").read_text()
        assert (kernel[f"file system {name}"]["detail"] == "there") == present
    fuse = _checks(document, "fuse")
    assert fuse["/dev/fuse"]["ok"] is True
    assert fuse["protocol"]["detail"].startswith("7.")
    assert "readdirplus" in fuse["features"]["detail"]
    user = _checks(document, "user namespace")
    assert user["can be made"]["ok"] is True
    assert user["device 0/0 (overlay's whiteout)"]["ok"] is True
    store = _checks(document, "store")
    assert store["user xattrs"]["ok"] is True
    expected = "yes" if place.way == "root" else "Operation not permitted"
    for name in ("trusted xattrs", "device nodes", "foreign owners"):
        assert store[name]["detail"].startswith(expected)
    branch = _checks(document, f"branch {place.path}/not/yet")
    assert branch["writable"]["detail"] == str(place.path)


def test_a_store_that_cannot_be_written_is_said_so(place: Place) -> None:
    if place.way == "root":
        pytest.skip("root may write everywhere")
    _, document = _doctor(place, UNIONFS_ROOT="/usr/share/unionfs")
    writable = _checks(document, "store")["writable"]
    assert writable["ok"] is False
    assert "--root" in writable["remedy"]


def test_words_for_people(place: Place) -> None:
    said = place.run(*place.python, "-m", "unionfs", "doctor").stdout
    if place.way != "root" or "aufs" not in Path("/proc/filesystems").read_text():
        assert "aufs: not usable here, because: " in said
        assert "to enable: " in said
    assert "fuse: usable here" in said


def test_a_file_system_without_xattrs_is_found(tmp_path: Path, as_root: None) -> None:
    del as_root
    mountpoint = tmp_path / "ramfs"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "x", mountpoint], check=True)
    try:
        found = {c.name: c for c in check_place("branch", os.fsencode(mountpoint / "rw"))}
        assert os.listdir(mountpoint) == []
    finally:
        subprocess.run(["umount", mountpoint], check=True)
    assert found["user xattrs"].ok is False
    assert "ext4" in found["user xattrs"].remedy
    assert found["names of 255 bytes"].ok is True


def test_a_file_system_that_cannot_be_written(tmp_path: Path, as_root: None) -> None:
    del as_root
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "x", tmp_path], check=True)
    try:
        found = list(check_place("store", os.fsencode(tmp_path)))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert [(c.name, c.ok) for c in found] == [("writable", False)]
    assert "Read-only" in found[0].detail


def test_no_user_namespaces(place: Place) -> None:
    """In a namespace whose limit of inner user namespaces is 0, the reason and remedy are told."""
    script = """
        echo 0 >/proc/sys/user/max_user_namespaces
        exec "$@"
    """
    argv = [*place.python, "-m", "unionfs", "doctor", "--json"]
    done = place.run("unshare", "-Ur", "sh", "-ec", script, "sh", *argv, check=False)
    document = json.loads(done.stdout)
    user = _checks(document, "user namespace")
    assert user["can be made"]["ok"] is False
    assert "user.max_user_namespaces" in user["can be made"]["detail"]
    assert user["user.max_user_namespaces"]["remedy"] == "sysctl user.max_user_namespaces=10000"
    backends = {item["name"]: item["usable"] for item in document["backends"]}
    assert not backends["fuse-userns"]
    assert not backends["overlay-userns"]


def test_no_device_at_all(place: Place) -> None:
    """Without /dev/fuse and without rights nothing is usable, and the status says so."""
    prefix = ["unshare", "-m" if place.way == "root" else "-Urm"]
    script = 'mount -t tmpfs x /dev; mknod /dev/null c 1 3 2>/dev/null || : >/dev/null; exec "$@"'
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"]
    argv = [*drop, *place.python, "-m", "unionfs", "doctor", "--json"]
    done = place.run(*prefix, "sh", "-ec", script, "sh", *argv, check=False)
    document = json.loads(done.stdout)
    fuse = _checks(document, "fuse")
    assert fuse["/dev/fuse"]["ok"] is False
    assert "modprobe fuse" in fuse["/dev/fuse"]["remedy"]
    backends = {item["name"]: item for item in document["backends"]}
    assert not backends["fuse"]["usable"]
    assert "/dev/fuse" in backends["fuse"]["reason"]
    assert done.returncode == (0 if document["usable"] else 1)


# -- the handshake ---------------------------------------------------------------


def _init(flags: int = 0, more: int | None = None, opcode: int = 26) -> bytes:
    body = struct.pack("=IIII", 7, 31, 131072, flags)
    body += b"" if more is None else struct.pack("=I44x", more)
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, 1, 0, 0, 0, 0, 0) + body


def test_an_old_kernel_s_request() -> None:
    found = parse_init(_init(1 << 13))
    assert found == {"version": "7.31", "max_readahead": 131072, "features": ["readdirplus"]}


def test_flags_of_the_second_word_count_only_when_announced() -> None:
    assert parse_init(_init(1 << 30, 1 << 5))["features"] == ["passthrough"]
    assert parse_init(_init(0, 1 << 5))["features"] == []


@pytest.mark.parametrize("data", [b"", b"x" * 39, _init()[:50], _init(opcode=3)])
def test_other_requests_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="FUSE_INIT"):
        parse_init(data)


def test_the_nearest_directory(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path)
    assert nearest_directory(path) == path
    assert nearest_directory(path + b"/a/b") == path
    (tmp_path / "file").write_text("")
    assert nearest_directory(path + b"/file/b") == path
