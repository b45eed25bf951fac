"""The whole job on a real image, typed at a shell by a user without rights.

Debian packages in four layers with whiteouts, an opaque directory, hard links, setuid files,
devices and a capability: import, mount, read, change, `changes`, commit, unmount, export;
then skopeo and umoci say what they think of the result.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.image_builder import BuiltImage
from support.workspace import Workspace, workspace

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(600)]

_PING_CAPABILITY = "0x0100000200200000000000000000000000000000"


class Shell:
    """Runs lines and insists on success."""

    def __init__(self, place: Workspace) -> None:
        self.place = place

    def __call__(self, line: str) -> str:
        done = self.place.sh(line)
        assert done.returncode == 0, f"{line}: {done.stderr.decode()}"
        return done.stdout.decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def job(image: BuiltImage) -> Iterator[Shell]:
    """Do the job up to the commit; the tests look at what it left."""
    with workspace() as place:
        place.give(image.archive, "app.tar")
        place.give(image.layout, "original")
        yield Shell(place)


def _diff_ids(shell: Shell, reference: str) -> list[str]:
    config = json.loads(shell(f"skopeo inspect --config {reference}"))
    ids: list[str] = config["rootfs"]["diff_ids"]
    return ids


def _mounts(shell: Shell) -> list[dict[str, Any]]:
    """Return the mounts of this test; others may run as the same user beside it."""
    listed: list[dict[str, Any]] = json.loads(shell("unionfs mounts --json"))
    return [item for item in listed if item["target"].startswith(f"{shell.place.path}/")]


def _config_digest(image: BuiltImage) -> str:
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{image.layout}:latest"],
        capture_output=True,
        check=True,
    )
    return str(json.loads(done.stdout)["config"]["digest"]).removeprefix("sha256:")


def test_the_job(job: Shell, image: BuiltImage) -> None:
    # Import prints the id, which is the digest of the configuration.
    assert job("unionfs import docker-archive:app.tar").splitlines()[-1] == _config_digest(image)
    listed = job("unionfs images").split("\t")
    assert (listed[0], listed[4].strip()) == ("demo/app:latest", "4")

    # Mount prints the mountpoint when it is ready.
    mountpoint = f"{job.place.path}/mnt"
    assert job("unionfs mount demo/app:latest mnt --rw rw") == f"{mountpoint}\n"
    _look_at_the_image(job)

    job("rm -r mnt/usr/share/doc; echo hi > mnt/etc/motd; mv mnt/opt mnt/opt2")
    assert job("cat mnt/etc/motd") == "hi\n"
    expected = [
        "C /etc/motd",
        "D /opt",
        "A /opt2",
        "A /opt2/app",
        "A /opt2/app/caf\\xe9",
        "A /opt2/app/data",
        "A /opt2/app/labelled",
        "A /opt2/app/server",
        "A /opt2/cache",
        "A /opt2/cache/README",
        "A /opt2/tool",
        "D /usr/share/doc",
    ]
    assert job("unionfs changes mnt").splitlines() == expected
    assert job("unionfs changes --image demo/app --rw rw").splitlines() == expected
    assert "A /opt2/app/caf\udce9\0" in job("unionfs changes -0 mnt")
    found = json.loads(job("unionfs changes --json mnt"))
    assert {"kind": "A", "path": "/opt2/app/caf\udce9"} in found

    new = job("unionfs commit mnt -t demo/app:v2 --author me").strip()
    assert len(new) == 64
    live = _mounts(job)
    assert [(item["target"], item["state"], item["image"]) for item in live] == [
        (mountpoint, "live", "demo/app:latest")
    ]
    refused = job.place.sh("unionfs rmi demo/app:latest")
    assert refused.returncode == 1
    assert b"in use" in refused.stderr

    assert job("unionfs umount mnt") == ""
    assert _mounts(job) == []
    assert job("ls -A mnt") == ""
    digest = job("unionfs export demo/app:v2 oci:out:v2").strip()
    _look_at_the_export(job, digest)
    _look_at_the_second_image(job)


def _look_at_the_image(job: Shell) -> None:
    """Check what is special in it, as its users see it."""
    modes = job("stat -c '%A %h %n' mnt/usr/bin/passwd mnt/usr/bin/perl mnt/usr/bin/chage")
    assert modes.splitlines() == [
        "-rwsr-xr-x 1 mnt/usr/bin/passwd",
        "-rwxr-xr-x 2 mnt/usr/bin/perl",
        "-rwxr-sr-x 1 mnt/usr/bin/chage",
    ]
    # The user stands for the image's root; other ids are the image's own.
    root = 65534 if os.geteuid() == 0 else os.geteuid()
    assert job("stat -c %u mnt/usr/bin/passwd mnt/opt/app").split() == [str(root), "1000"]
    assert job("stat -c '%F %t %T' mnt/dev/null mnt/dev/vda mnt/dev/initctl").splitlines() == [
        "character special file 1 3",
        "block special file fe 0",
        "fifo 0 0",
    ]
    capability = job("getfattr -n security.capability -e hex mnt/usr/bin/ping")
    assert f"security.capability={_PING_CAPABILITY}\n" in capability
    assert job("getfattr --only-values -n user.mime_type mnt/opt/app/labelled") == "text/plain"
    links = job("stat -c %i mnt/usr/bin/perl mnt/usr/bin/perl5.36.0").split()
    assert links[0] == links[1]
    # What the user may do to the image's files is what root may.
    job("chown 1000:1000 mnt/opt/app/data; chmod 4755 mnt/opt/app/data")
    assert job("stat -c '%u %a' mnt/opt/app/data") == "1000 4755\n"
    # Whiteouts of upper layers, an opaque directory, a file where a directory was.
    assert job("ls -A mnt/opt/cache") == "README\n"
    assert job("ls -A mnt/usr/share/man") == ""
    assert job("cat mnt/opt/tool") == "a file where a directory was\n"
    for gone in ("usr/bin/sudo", "usr/share/doc/bash", "usr/share/locale/de"):
        assert job.place.sh(f"test -e mnt/{gone}").returncode == 1
    assert int(job("find mnt | wc -l")) > 3000
    assert job("find mnt -name '.wh.*'") == ""
    assert job("mnt/usr/bin/env echo runs") == "runs\n"


def _look_at_the_export(job: Shell, digest: str) -> None:
    """Check it with other tools: accepted, old layers untouched, new one right."""
    job("skopeo copy --insecure-policy --quiet oci:out:v2 docker-archive:v2.tar:demo/app:v2")
    raw = job("skopeo inspect --format '{{.Digest}}' oci:out:v2").strip()
    assert raw == digest
    before, after = _diff_ids(job, "oci:original:latest"), _diff_ids(job, "oci:out:v2")
    assert after[:-1] == before
    job("umoci unpack --rootless --image original:latest before")
    job("umoci unpack --rootless --image out:v2 after")
    compare = "diff -rq --no-dereference before/rootfs after/rootfs | grep -v ' a fifo'"
    assert job(compare).splitlines() == [
        "Files before/rootfs/etc/motd and after/rootfs/etc/motd differ",
        "Only in before/rootfs: opt",
        "Only in after/rootfs: opt2",
        "Only in before/rootfs/usr/share: doc",
    ]
    assert job("cat after/rootfs/etc/motd") == "hi\n"
    moved = "diff -r before/rootfs/opt after/rootfs/opt2"
    assert job(moved) == ""


def _look_at_the_second_image(job: Shell) -> None:
    """Mount what was committed, and import what was exported."""
    job("unionfs mount demo/app:v2 again --ephemeral")
    assert job("cat again/etc/motd; ls again/opt2") == "hi\napp\ncache\ntool\n"
    assert job("stat -c '%A %t' again/opt2/app/server again/dev/null").splitlines() == [
        "-rwsr-xr-x 0",
        "crw-rw-rw- 1",
    ]
    job("echo more > again/etc/motd; unionfs umount again")
    assert job("unionfs fsck --verify") == ""
    first = job("unionfs inspect --json demo/app:v2")
    exported = job("unionfs export demo/app:v2 docker-archive:back.tar").strip()
    other = "unionfs --root $PWD/other"
    assert job(f"{other} import back.tar").strip() == exported.removeprefix("sha256:")
    assert exported.removeprefix("sha256:") in first
    assert "demo/app:v2" in job(f"{other} images")


def test_flat_export_is_what_the_mount_shows(job: Shell) -> None:
    job("unionfs images -q | grep -q . || unionfs import docker-archive:app.tar")
    job("unionfs export demo/app:latest rootfs:flat.tar")
    job("mkdir flat && tar -xf flat.tar -C flat --exclude=dev 2>/dev/null")
    job("unionfs mount demo/app:latest flat-mnt")
    try:
        shown = job("cd flat-mnt && find . -path ./dev -prune -o -printf '%p %y %s %l\\n' | sort")
        there = job("cd flat && find . -path ./dev -prune -o -printf '%p %y %s %l\\n' | sort")
    finally:
        job("unionfs umount flat-mnt")

    def without_directory_sizes(text: str) -> list[list[str]]:
        rows = [line.split(" ") for line in text.splitlines()]
        return [[*row[:2], *(row[3:] if row[1] == "d" else row[2:])] for row in rows]

    assert without_directory_sizes(there) == without_directory_sizes(shown)


def test_killed_daemon_is_recognised_and_cleaned(job: Shell) -> None:
    job("unionfs images -q | grep -q . || unionfs import docker-archive:app.tar")
    job("unionfs mount demo/app:latest dead --rw dead-rw")
    job("echo kept > dead/etc/motd")
    (found,) = _mounts(job)
    job(f"kill -KILL {found['pid']}; while kill -0 {found['pid']} 2>/dev/null; do sleep 0.05; done")
    (found,) = _mounts(job)
    assert found["state"] == "dead"
    assert job("unionfs umount dead") == ""
    assert _mounts(job) == []
    job("unionfs mount demo/app:latest dead --rw dead-rw")
    assert job("cat dead/etc/motd; unionfs changes dead") == "kept\nC /etc/motd\n"
    job("unionfs umount dead")


def test_layers_are_not_changed_by_a_mount(job: Shell) -> None:
    job("unionfs images -q | grep -q . || unionfs import docker-archive:app.tar")
    paths = [item["path"] for item in json.loads(job("unionfs history --json demo/app"))]
    tree = f"find {' '.join(map(shlex.quote, paths))} -printf '%p %m %U %s %T@ %C@\\n' | sort"
    before = job(tree)
    job("unionfs mount demo/app:latest same --ephemeral")
    job("find same -type f | head -200 | xargs cat >/dev/null; rm -r same/usr; mv same/etc same/x")
    job("chmod 700 same/x same/x/*; unionfs umount same")
    assert job(tree) == before


def test_nothing_of_it_is_left(image: BuiltImage) -> None:
    with workspace() as place:
        path = place.path
        place.give(image.archive, "app.tar")
        assert place.sh("unionfs import app.tar && unionfs mount demo/app mnt").returncode == 0
        # A mount of another user: root may see that it is there, not what is in it.
        assert f"{path}/mnt" in Path("/proc/self/mountinfo").read_text()
    assert not path.exists()
    assert str(path) not in Path("/proc/self/mountinfo").read_text()
    assert stat.S_ISDIR(image.layout.stat().st_mode)
