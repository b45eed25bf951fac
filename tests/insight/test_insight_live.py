"""The debugging commands on a live mount, on a real image, and without rights."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import image_builder
from support.commands import CHECKOUT
from support.faults import EXPECTED, FAULTS
from support.layers import layer_tar
from support.workspace import Workspace, workspace

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def place() -> Iterator[Workspace]:
    """Give a plain user's directory: a real image imported, mounted, some things deleted."""
    image = image_builder.build(CHECKOUT / ".demo")
    with workspace() as made:
        made.give(image.archive, "app.tar")
        for line in (
            "unionfs import docker-archive:app.tar",
            "unionfs mount demo/app:latest mnt --rw rw",
            "rm -r mnt/usr/share/doc && echo changed > mnt/etc/debian_version && mkdir mnt/new",
        ):
            done = made.sh(line)
            assert done.returncode == 0, done.stderr
        yield made


def answer(place: Workspace, *words: str, status: int = 0) -> Any:
    done = place.sh(shlex.join(["unionfs", *words, "--json"]))
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", [("mnt", "/usr/share/doc"), ("mnt/usr/share/doc",)])
def test_explain_reads_the_branches_of_a_mount(place: Workspace, words: tuple[str, ...]) -> None:
    found = answer(place, "explain", *words)
    assert found["path"] == "/usr/share/doc"
    assert found["verdict"] == "hidden"
    assert found["cause"]["marker"] == "/usr/share/.wh.doc"
    assert found["branches"][0]["rw"]
    assert found["branches"][1]["names"] == ["demo/app:latest"]


def test_explain_agrees_with_the_mount(place: Workspace) -> None:
    top = Path(place.path) / "mnt"
    done = place.sh("find mnt -mindepth 1 -maxdepth 3 | sort | head -300")
    paths = [line[len(b"mnt") :] for line in done.stdout.splitlines()]
    assert len(paths) > 100
    from unionfs.insight.explain import explain
    from unionfs.insight.explanation import Verdict
    from unionfs.insight.where import of_directories

    mounts = json.loads(place.sh("unionfs mounts --json").stdout)
    (record,) = [item for item in mounts if item["target"] == str(top)]
    where = of_directories([os.fsencode(p) for p in record["layers"]], os.fsencode(record["rw"]))
    for path in paths:
        assert explain(where, path).verdict is Verdict.VISIBLE, path


def test_diff_of_a_mount_is_its_changes(place: Workspace) -> None:
    found = {(item["kind"], item["path"]) for item in answer(place, "diff", "mnt", "--semantic")}
    plain = {(item["kind"], item["path"]) for item in answer(place, "changes", "mnt")}
    assert found == plain
    assert ("D", "/usr/share/doc") in found
    assert ("C", "/etc/debian_version") in found
    assert ("A", "/new") in found


def test_history_and_whiteouts_of_a_mount(place: Workspace) -> None:
    events = answer(place, "history-of", "mnt", "/etc/debian_version")
    assert [event["event"] for event in events] == ["added", "changed"]
    assert events[1]["rw"]
    report = answer(place, "whiteouts", "mnt")
    hidden = {item["path"]: item for item in report["markers"] if item["rw"]}
    assert hidden["/usr/share/doc"]["count"] > 1
    assert report["image"]["wastedBytes"] > 100_000


def test_the_real_image_has_its_one_fault_and_no_other(place: Workspace) -> None:
    """Thousands of files of Debian's packages, and one name that a layer deletes and re-creates."""
    for where in ("demo/app:latest", "mnt"):
        found = answer(place, "lint", where, "--fail-on", "never")["findings"]
        assert [(item["rule"], item["layer"], item["path"]) for item in found] == [
            ("whiteout-beside-entry", 4, "/opt/.wh.tool")
        ]


def test_seeded_faults_in_a_debian_are_found_and_nothing_else(place: Workspace) -> None:
    """A layer full of faults over the real image; the fault of the image stays found."""
    tar = place.path / "faults.tar"
    (place.path / ".run" / "faults.tar").write_bytes(layer_tar(FAULTS))
    place.give(place.path / ".run" / "faults.tar", tar.name)
    done = place.sh("unionfs import rootfs:faults.tar --parent demo/app -t demo/faulty:latest")
    assert done.returncode == 0, done.stderr
    found = answer(place, "lint", "demo/faulty", "--fail-on", "never")["findings"]
    assert {(item["rule"], os.fsencode(item["path"])[1:], item["layer"]) for item in found} == {
        *((rule, path, 5) for rule, path in EXPECTED),
        ("whiteout-beside-entry", b"opt/.wh.tool", 4),
    }
    assert len(found) == len(EXPECTED) + 1


def test_engines_agree_on_a_debian(place: Workspace) -> None:
    """The live mount, our union and the specification, on every file of a changed image."""
    document = answer(place, "compare", "mnt", "--engines", "oci,unionfs")
    assert document["agree"]
    assert [(item["name"], item["state"]) for item in document["engines"]] == [
        *(("oci", "ok"), ("mount", "ok"), ("unionfs", "ok"))
    ]
    assert not list((place.path / ".tmp").iterdir())


def test_archive_and_stored_image_have_the_same_findings(place: Workspace) -> None:
    stored = answer(place, "lint", "demo/app:latest", "--fail-on", "never")["findings"]
    archive = answer(place, "lint", "docker-archive:app.tar", "--fail-on", "never")["findings"]
    key = [(item["rule"], item["layer"], item["path"]) for item in archive]
    assert [
        (item["rule"], item["layer"], item["path"])
        for item in stored
        if item["rule"] != "changed-at-import"
    ] == key


def test_a_mounted_branch_is_not_fixed(place: Workspace) -> None:
    place.sh("touch rw/.wh.never-there")
    done = place.sh("unionfs lint --layer rw --layer mnt/new --fix --write")
    assert done.returncode == 1
    assert b"mounted on" in done.stderr
    assert (Path(place.path) / "rw" / ".wh.never-there").exists()


def test_a_dead_mount_is_still_explained(place: Workspace) -> None:
    """Last: it kills the daemon."""
    mounts = json.loads(place.sh("unionfs mounts --json").stdout)
    (pid,) = [item["pid"] for item in mounts if item["target"] == str(place.path / "mnt")]
    place.sh(f"kill -9 {pid}; sleep 0.2")
    assert answer(place, "explain", "mnt", "/usr/share/doc")["verdict"] == "hidden"
    assert place.sh("unionfs umount mnt").returncode == 0
