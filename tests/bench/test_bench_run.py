"""Whole runs, of the smallest size: what they leave behind, and what they never leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import CHECKOUT, Run, child_env
from support.insight import image_maker
from support.rootless import popen_as_nobody, run_as_nobody, runtime

from unionfs.bench import run as runs
from unionfs.bench import watch
from unionfs.bench.children import deferred
from unionfs.bench.image import ImageLayers
from unionfs.bench.result import read
from unionfs.bench.shape import TINY
from unionfs.bench.subjects import SUBJECTS
from unionfs.bench.workloads import LAYER_WORKLOADS, WORKLOADS
from unionfs.fuse.registry import mount_table

pytestmark = pytest.mark.fuse

KEYS = {key for workload in WORKLOADS for key in workload.keys}
WORDS = ("bench", "--size", "tiny", "--dir")


def left_behind(place: Path) -> list[str]:
    """Return what is under a directory, mounts first."""
    inside = os.fsencode(place) + b"/"
    mounts = [os.fsdecode(e.target) for e in mount_table() if e.target.startswith(inside)]
    return mounts + [entry.name for entry in place.iterdir()]


def processes_with(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in line:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.fixture
def work() -> Iterator[Path]:
    """Return a directory for the trees, that everybody may use and that is no tmpfs."""
    with tempfile.TemporaryDirectory(prefix="unionfs-test-", dir="/var/tmp") as name:
        os.chmod(name, 0o1777)  # noqa: S103  # what it is for
        yield Path(name)


def test_a_run_with_a_plain_user(open_tmp: Path, work: Path) -> None:
    out = open_tmp / "out"
    backends = "plain,overlayfs,overlayfs-userns,fuse"
    argv = [*runtime().argv, "-m", "unionfs", *WORDS, str(work), "-o", str(out)]
    done = run_as_nobody(
        [*argv, "--backends", backends, "--goals"],
        env={"HOME": str(open_tmp), "MPLCONFIGDIR": str(open_tmp)},
        timeout=110,
    )
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert done.stdout.decode() == f"{out}/result.json\n"
    assert "left out: overlayfs: mounting overlayfs outside a namespace needs root" in said
    assert "Goals of the FUSE back end" in said
    result = read(out)
    measured = {subject.key for subject in result.measured()}
    assert {"plain", "fuse"} <= measured  # and overlayfs where namespaces are allowed
    expected = "overlayfs-userns" if "overlayfs-userns" in measured else "plain"
    assert result.baseline == expected
    assert result.failures == []
    assert set(result.seconds) == KEYS
    for by in result.seconds.values():
        assert set(by) == measured
        assert all(len(values) == 1 and values[0] for values in by.values())
    assert result.requests["create"]["fuse"]["CREATE"] == TINY.created
    assert result.requests["delete-big"]["fuse"]["UNLINK"] == 1
    assert any("requests by kind needs root" in note for note in result.notes)
    calls = result.server_calls["tar.cold"]["fuse"][0]
    assert calls is not None
    assert calls >= TINY.directories
    peak = result.server_peak["fuse"][0]
    assert peak is not None
    assert peak > 1 << 20
    assert set(result.layers) == {str(count) for count in TINY.layers}
    passes = {key for workload in LAYER_WORKLOADS for key in workload.keys}
    for by_key in result.layers.values():
        assert set(by_key) == passes | {"mount", "base", "memory"}
    assert set(result.trees) == {str(count) for count in TINY.trees}
    table = (out / "table.txt").read_text()
    assert "Time, as a ratio to" in table
    assert "read of all small files (tar), cold" in table
    assert left_behind(work) == []
    pictures = {path.name for path in out.glob("*.svg")}
    assert pictures >= {"times.svg", "layers.svg"} or "plots need matplotlib" in said


@pytest.mark.usefixtures("as_root")
def test_root_measures_the_kernels_union_and_counts_requests(tmp_path: Path, bench: Run) -> None:
    names = "overlayfs,fuse,overlay,plain"
    work = tmp_path / "work"
    work.mkdir()
    only = "walk,tar,create,delete-big"
    done = bench(
        *("--size", "tiny", "--dir", work, "-o", tmp_path / "out", "--backends", names),
        *("--only", only, "--rounds", 2, "--json"),
    )
    document: dict[str, Any] = done.json()
    assert document["baseline"] == "overlayfs"
    assert document["rounds"] == 2
    assert document["failures"] == []
    assert document["layers"] == document["trees"] == {}
    assert set(document["seconds"]) == {
        *("walk.cold", "walk.again", "tar.cold", "tar.again", "create", "delete-big"),
    }
    for by in document["seconds"].values():
        assert set(by) == {"plain", "overlayfs", "fuse", "overlay"}
        assert all(len(values) == 2 and all(values) for values in by.values())
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == document
    reason = watch.requests_reason()
    if reason is None:
        counts = document["requests"]
        assert set(counts["create"]) == {"fuse"}
        assert counts["create"]["fuse"]["CREATE"] == TINY.created
        assert counts["delete-big"]["fuse"]["UNLINK"] == 1
        assert counts["walk.cold"]["fuse"]["READDIRPLUS"] >= TINY.directories
    else:
        assert any(reason in note for note in document["notes"])
    assert left_behind(work) == []


@pytest.mark.usefixtures("as_root")
def test_an_image_looks_the_same_everywhere(
    tmp_path: Path, work: Path, bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With whiteouts, an opaque directory and a link, the walks must agree to the file."""
    monkeypatch.setenv("UNIONFS_ROOT", str(tmp_path / "store"))
    image = image_maker(tmp_path / "store")
    image("a b c/ c/d c/e o/ o/x l>a ‖ .wh.b c/.wh.d o/ o/.wh..wh..opq o/y", "demo/app:v1")
    names = "plain,overlayfs,overlayfs-userns,fuse-overlayfs,unionfs-fuse,fuse,overlay"
    done = bench(
        *("--image", "demo/app:v1", "--dir", work, "-o", tmp_path / "out", "--rounds", 1),
        *("--backends", names),
    )
    assert done.status == 0, done.err
    result = read(tmp_path / "out")
    assert result.failures == []
    assert result.shape == "image demo/app:v1"
    assert set(result.seconds) == {
        f"image-{w}.{p}" for w in ("walk", "tar") for p in ("cold", "again")
    }
    measured = {subject.key for subject in result.measured()}
    assert {"plain", "overlayfs", "fuse", "overlay"} <= measured
    for by in result.seconds.values():
        assert set(by) == measured
    assert "unionfs-fuse" not in measured
    assert left_behind(work) == []


@pytest.mark.usefixtures("as_root")
def test_passthrough_is_measured_where_nothing_is_written(tmp_path: Path, bench: Run) -> None:
    subject = next(subject for subject in SUBJECTS if subject.key == "fuse-passthrough")
    if (reason := subject.missing()) is not None:
        pytest.skip(reason)
    done = bench(
        *("--size", "tiny", "--dir", tmp_path, "-o", tmp_path / "out", "--rounds", 1, "--json"),
        *("--backends", "fuse,fuse-passthrough", "--only", "big,create"),
    )
    document: dict[str, Any] = done.json()
    assert document["failures"] == []
    assert set(document["seconds"]["big.cold"]) == {"fuse", "fuse-passthrough"}
    assert set(document["seconds"]["create"]) == {"fuse"}
    counts = document["requests"]["big.cold"]
    assert counts["fuse"]["READ"] > 0
    assert "READ" not in counts["fuse-passthrough"]
    assert counts["fuse-passthrough"]["OPEN"] == 1


@pytest.mark.usefixtures("as_root")
def test_a_subject_that_shows_another_tree_is_a_failure(
    tmp_path: Path, work: Path, bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIONFS_ROOT", str(tmp_path / "store"))
    image_maker(tmp_path / "store")("a b ‖ .wh.b", "demo/app:v1")
    # As if overlayfs knew markers: it shows `.wh.b` and `b`.
    monkeypatch.setattr(ImageLayers, "_converted", lambda self, *_: self.layers)
    done = bench(
        *("--image", "demo/app:v1", "--dir", work, "-o", tmp_path / "out", "--rounds", 2),
        *("--backends", "overlayfs,fuse"),
    )
    assert done.status == 0
    failed = [f for f in read(tmp_path / "out").failures if f.workload == "image-walk.cold"]
    assert len(failed) == 2
    assert all("which another subject showed" in f.message for f in failed)


def test_a_plain_users_image_is_not_given_to_overlayfs() -> None:
    image = ImageLayers("x", ("/layer",), 10, marked=True, recorded=True)
    reasons = {subject.key: image.reason(subject) for subject in SUBJECTS}
    assert {key for key, reason in reasons.items() if reason is None} == {
        *("plain", "fuse-overlayfs", "fuse", "fuse-nolane", "fuse-passthrough"),
        *("overlay", "aufs"),
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(open_tmp: Path, work: Path, number: signal.Signals) -> None:
    out = open_tmp / "out"
    argv = [*runtime().argv, "-m", "unionfs", *WORDS, str(work), "-o", str(out)]
    with popen_as_nobody(
        [*argv, "--backends", "fuse,overlayfs-userns", "--only", "walk,big", "--rounds", "99"],
        env={"HOME": str(open_tmp)},
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith(b"round 2"):
                break
        deadline = time.monotonic() + 30
        while not left_behind(work) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(number)
        said = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + number, said
    assert left_behind(work) == []
    assert not out.exists()
    assert processes_with(str(work)) == []


def test_signals_wait_for_what_must_not_be_interrupted() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # the steps before it are the test
        with deferred():
            signal.raise_signal(signal.SIGINT)
            steps.append("done")
        steps.append("too late")
    assert steps == ["done"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_place_that_is_too_small_is_refused(
    tmp_path: Path, bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "needed", lambda *_, **__: 1 << 60)
    done = bench("--size", "tiny", "--dir", tmp_path, "-o", tmp_path / "out", "--backends", "plain")
    assert (done.status, done.out) == (1, "")
    assert "MiB free, this needs 1099511627776; use --dir DIR for another place" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a,b", "a:b", "a=b", "a\\b"])
def test_a_place_that_mount_options_cannot_name_is_refused(
    tmp_path: Path, bench: Run, name: str
) -> None:
    (tmp_path / name).mkdir()
    done = bench(
        *("--size", "tiny", "--dir", tmp_path / name, "-o", tmp_path / "out"),
        *("--backends", "plain"),
    )
    assert done.status == 1
    assert "mount options cannot hold any of" in done.err
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("as_root")
@pytest.mark.skipif(watch.requests_reason() is not None, reason="needs the kernel's trace event")
def test_what_a_killed_run_left_in_the_kernel_goes() -> None:
    instances = Path("/sys/kernel/tracing/instances")
    with subprocess.Popen(["true"]) as child:
        child.wait()
    left = instances / f"unionfs-bench-{child.pid}"
    left.mkdir()
    with watch.trace():
        assert not left.exists()
        assert (instances / f"unionfs-bench-{os.getpid()}").exists()
    assert not list(instances.glob(f"unionfs-bench-{os.getpid()}"))


def test_mistakes_are_named_before_anything_is_made(tmp_path: Path, bench: Run) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    small = ("--size", "tiny", "--dir", tmp_path)
    for words, status, message in (
        (("--backends", "zfs"), 2, "no subject zfs; there are plain, overlayfs"),
        (("--only", "sing"), 2, "no workload sing; there are walk"),
        (("-o", tmp_path / "full"), 1, "exists; choose a new name with -o"),
        (("--backends", "plain", "--baseline", "fuse", "-o", tmp_path / "new"), 2, "baseline fuse"),
    ):
        done = bench(*small, *words)
        assert done.status == status
        assert message in done.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["full"]


def test_subjects_that_cannot_run_say_why(
    tmp_path: Path, bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = bench(
        *("--size", "tiny", "--dir", tmp_path, "-o", tmp_path / "out"),
        *("--backends", "fuse-overlayfs,unionfs-fuse"),
    )
    assert done.status == 1
    assert "none of the subjects can run here" in done.err


def test_a_subject_that_fails_does_not_end_the_run(
    tmp_path: Path, work: Path, bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is not what its name says: the others are measured all the same."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "unionfs-fuse").write_text("#!/bin/sh\necho what a pity >&2\nexit 3\n")
    (programs / "unionfs-fuse").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(type(SUBJECTS[4]), "version", lambda _: "0")
    done = bench(
        *("--size", "tiny", "--dir", work, "-o", tmp_path / "out", "--only", "walk"),
        *("--backends", "plain,unionfs-fuse"),
    )
    assert done.status == 0
    assert "failed: unionfs-fuse: mount: unionfs-fuse did not mount: what a pity" in done.err
    result = read(tmp_path / "out")
    assert set(result.seconds["walk.cold"]) == {"plain"}
    assert left_behind(work) == []


def test_the_checkout_has_the_same_benchmark(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--backends", "zfs"],
        cwd=CHECKOUT,
        env=child_env(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "no subject zfs" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(open_tmp: Path, work: Path) -> None:
    argv = [*runtime().argv, "-m", "unionfs", *WORDS, str(work), "--no-scale", "--only", "walk"]
    kept = work / "unionfs-bench-of-somebody"
    kept.mkdir()
    if os.geteuid() != 0:
        kept.rmdir()
    with popen_as_nobody(
        [*argv, "-o", str(open_tmp / "one"), "--backends", "fuse", "--rounds", "99"],
        env={"HOME": str(open_tmp)},
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith(b"round 2"):
                break
        deadline = time.monotonic() + 30
        while not [m for m in left_behind(work) if "/" in m] and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.communicate(timeout=60)
    assert [m for m in left_behind(work) if "/" in m]
    done = run_as_nobody(
        [*argv, "-o", str(open_tmp / "two"), "--backends", "plain"],
        env={"HOME": str(open_tmp)},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert left_behind(work) == [kept.name] * (os.geteuid() == 0)


def test_a_run_that_goes_on_is_not_swept(tmp_path: Path) -> None:
    plan = runs.Plan(TINY, 1, [SUBJECTS[0]], tmp_path)
    with runs.workplace(plan, runs.begin(plan)) as place:
        (place / "file").touch()
        assert runs.sweep(tmp_path) == []
        assert (place / "file").exists()
    assert list(tmp_path.iterdir()) == []
