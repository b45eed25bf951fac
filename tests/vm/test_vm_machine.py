"""The command line of qemu, the first filesystem, the console's events, the plan."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.vm import disks, guest, qemu
from support.vm.__main__ import initrd, plan
from support.vm.cpio import Cpio
from support.vm.errors import VmError
from support.vm.kernel import Module


def machine(*, kvm: bool) -> qemu.Machine:
    return qemu.Machine(
        Path("/k"),
        Path("/i"),
        (
            qemu.Disk(Path("/a,b"), Path("/a,b"), read_only=True),
            qemu.Disk(Path("/v"), Path("/s"), read_only=False),
        ),
        kvm,
    )


def test_the_command_line() -> None:
    argv = qemu.command(machine(kvm=False))
    assert argv[argv.index("-kernel") + 1] == "/k"
    assert "kvm" not in argv
    assert argv[argv.index("-smp") + 1] == "2"
    drives = [argv[at + 1] for at, word in enumerate(argv) if word == "-drive"]
    assert len(drives) == 4
    assert "file.filename=/a,,b" in drives[0]
    assert [("readonly=on" in d or "snapshot=on" in d) for d in drives] == [True] * 2 + [False] * 2
    assert "kvm" in qemu.command(machine(kvm=True))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = Cpio()
    archive.file("a/b/c", b"content", 0o755)
    archive.file("a/d", b"")
    done = subprocess.run(
        ["cpio", "-idm", "--quiet"], cwd=tmp_path, input=archive.finish(), check=True
    )
    assert done.returncode == 0
    assert (tmp_path / "a/b/c").read_bytes() == b"content"
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/d").read_bytes() == b""


def test_the_archive_is_aligned_and_ends(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(b"program")
    wanted = plan(["kernel"], ["--quick"], kvm=True)
    made = initrd(wanted, [Module("ext4", b"module!", ())], tmp_path / "busybox")
    assert len(made) % 4 == 0
    assert made.startswith(b"070701")
    assert b"TRAILER!!!\0" in made[-20:]
    assert b"00-ext4.ko\n" in made
    starts = [at for at in range(0, len(made), 4) if made[at : at + 6] == b"070701"]
    assert len(starts) == 10


def test_the_plan_bounds_every_job() -> None:
    fast, slow = (plan(["kernel"], ["--quick"], kvm=kvm) for kvm in (True, False))
    assert [job["name"] for job in fast["jobs"]] == ["kernel", "bench-aufs", "bench"]
    assert all(
        b["seconds"] > a["seconds"] > 0 for a, b in zip(fast["jobs"], slow["jobs"], strict=True)
    )
    assert [job["name"] for job in plan(["run"], ["none"], kvm=True)["jobs"]] == ["run"]
    assert [p["environment"]["UNIONFS_TEST_PATIENCE"] for p in (fast, slow)] == ["1", "8"]


def test_the_plan_of_a_run_without_wishes() -> None:
    """AUFS first, nothing twice, and under emulation only what it has the time for."""
    fast, slow = (plan([], ["--quick"], kvm=kvm) for kvm in (True, False))
    names = [job["name"] for job in fast["jobs"]]
    assert names[:3] == ["aufs", "bench-aufs", "kernel"]
    assert [job["needs"] for job in fast["jobs"][:3]] == ["aufs", "aufs", None]
    assert {"fuse", "union", "run", "doctor", "bench"} <= set(names)
    slower = [job["name"] for job in slow["jobs"]]
    assert "run-test_run_image" in slower
    assert not {"fuse", "union"} & set(slower)
    for job in [*fast["jobs"], *slow["jobs"]]:
        for word in job["argv"]:
            if word.startswith("tests/"):
                assert (Path(__file__).parents[2] / word).exists()


def test_the_guest_leaves_out_what_the_kernel_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guest, "_RESULTS", tmp_path)
    monkeypatch.setattr(guest, "_filesystems", lambda: ["nodev", "overlay", "ext4"])
    job = {"name": "a", "argv": ["sh", "-c", "echo 3 passed"], "seconds": 60, "needs": "aufs"}
    late = time.monotonic() + 60
    assert guest._run(job, "/", late) == 0  # a script: nothing of it is public
    assert not (tmp_path / "a.txt").exists()
    assert guest._run({**job, "needs": "overlay"}, "/", late) == 0  # see above
    assert guest._run({**job, "needs": None}, "/", 0) == 1  # see above
    events = [qemu.event_of(line) for line in capsys.readouterr().out.splitlines()]
    told = [event for event in events if event is not None]
    assert [event["event"] for event in told] == ["skip", "start", "end"]
    assert told[0]["reason"] == "this kernel has no aufs"
    assert (told[2]["status"], told[2]["said"]) == (0, "3 passed")


def test_events_among_other_lines() -> None:
    assert qemu.event_of('[ 1.0] x @unionfs-vm {"event": "done", "failed": 0}') == {
        "event": "done",
        "failed": 0,
    }
    for line in ("", "login:", "@unionfs-vm {half", '@unionfs-vm ["event"]', "@unionfs-vm {}"):
        assert qemu.event_of(line) is None


def script(tmp_path: Path, text: str, seconds: float = 60) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    qemu.run([sys.executable, "-c", text], tmp_path / "log", seconds, told.append)
    return told


START = """print('@unionfs-vm {"event": "start", "job": "kernel"}', flush=True)\n"""


def test_a_run_that_is_done(tmp_path: Path) -> None:
    text = START + """print('@unionfs-vm {"event": "done", "failed": 0}')"""
    assert [event["event"] for event in script(tmp_path, text)] == ["start", "done"]
    assert "start" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("print('Kernel panic - not syncing')", "stopped early, saying: Kernel panic"),
        ("""print('@unionfs-vm {"event": "trouble", "text": "no ext4"}')""", "machine: no ext4"),
        ("print('KVM internal error. Suberror: 1', flush=True); input()", "KVM does not work"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(VmError, match=reason):
        script(tmp_path, text)


def test_the_watchdog_says_what_it_waited_for(tmp_path: Path) -> None:
    with pytest.raises(VmError, match=r"not done after 2 s \(kernel\)"):
        script(tmp_path, START + "import time; time.sleep(600)", 2)


def test_a_machine_that_stands_still_under_kvm(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(qemu.KvmError, match="nothing started within 1 s"):
        qemu.run(argv, tmp_path / "log", 60, print, boot_seconds=1)


def test_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="qemu-system-x86"):
        qemu.run(["/absent/qemu"], tmp_path / "log", 1, print)


def test_packages_that_others_need() -> None:
    table = "a\t\tb (>= 1), c:any | d\nb\tvirtual (= 1)\t\nd\t\tvirtual\nother\t\t\n"
    assert disks.closure(["a"], table) == ["a", "b", "d"]


def test_files_of_merged_directories() -> None:
    assert disks.merged("/bin/mount") == "/usr/bin/mount"
    assert disks.merged("/lib64/ld.so") == "/usr/lib64/ld.so"
    assert disks.merged("/usr/bin/env") == "/usr/bin/env"
    assert disks.merged("/library/x") == "/library/x"
