"""Records of mounts, the mount table and the process table as the registry reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.errors import UsageError
from unionfs.fuse import registry
from unionfs.fuse.plan import Plan
from unionfs.fuse.registry import MountRecord, decode, encode
from unionfs.fuse.request import MountRequest

RECORD = MountRecord(
    stem="mount-1", target=b"/m\xff\n", image_id="ab", image_name=None, layers=(b"/a", b"/\xe9"),
    rw=None, ephemeral=False, read_only=True, backend="fuse", pid=1, start=2, device="0:9",
    namespace=3, options=("ro",), log=None, created=1.5,
)  # fmt: skip


@given(st.binary(min_size=1), st.lists(st.binary()), st.none() | st.binary())
def test_records_keep_any_file_name(target: bytes, layers: list[bytes], rw: bytes | None) -> None:
    record = attrs.evolve(RECORD, target=target, layers=tuple(layers), rw=rw)
    assert decode(MountRecord, encode(record)) == record


@given(st.binary(min_size=1), st.lists(st.binary()))
def test_plans_keep_any_file_name(target: bytes, layers: list[bytes]) -> None:
    plan = Plan(MountRequest(target, tuple(layers)), "stem", b"/run", None)
    assert decode(Plan, encode(plan)) == plan


def test_records_appear_whole_and_go(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path)
    log = os.path.join(directory, b"mount-1.log")
    Path(os.fsdecode(log)).touch()
    record = attrs.evolve(RECORD, log=log)
    registry.write_record(directory, record)
    assert list(registry.read_records(directory)) == [record]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mount-1.json", "mount-1.log"]
    registry.remove_record(directory, record)
    assert list(tmp_path.iterdir()) == []


def test_a_log_with_content_stays(tmp_path: Path) -> None:
    log = tmp_path / "mount-1.log"
    log.write_text("something happened\n")
    registry.remove_record(os.fsencode(tmp_path), attrs.evolve(RECORD, log=os.fsencode(log)))
    assert log.read_text() == "something happened\n"


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"stem": 1}', "\x00"])
def test_broken_records_are_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "mount-x.json").write_text(text)
    registry.write_record(os.fsencode(tmp_path), RECORD)
    assert list(registry.read_records(os.fsencode(tmp_path))) == [RECORD]


def test_mount_table_escapes_and_optional_fields(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"36 35 98:0 / /a\\040b\\134\\012 rw,noatime master:1 shared:2 - fuse.u\\043 s\\011x"
        b" rw,user_id=1000,group_id=7\n"
        b"37 35 98:1 / /plain rw - ext3 /dev/root rw,errors=continue\n"
    )
    first, second = registry.mount_table(str(table))
    assert first == ("98:0", b"/a b\\\n", "fuse.u#", b"s\tx", 1000)
    assert second == ("98:1", b"/plain", "ext3", b"/dev/root", None)


def test_start_time_survives_hostile_command_names(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to(sys.executable)
    child = subprocess.Popen([program, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        start = registry.process_start(child.pid)
        assert start is not None
        # Within a minute of our own start, in ticks: the right field was read.
        ours = registry.process_start(os.getpid())
        assert ours is not None
        assert 0 <= start - ours < os.sysconf("SC_CLK_TCK") * 3600
        record = attrs.evolve(RECORD, pid=child.pid, start=start)
        assert registry.process_alive(record)
        assert not registry.process_alive(attrs.evolve(record, start=start + 1))
    finally:
        child.kill()
        child.communicate()
    assert not registry.process_alive(record)


def test_zombies_do_not_live() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert registry.process_start(child.pid) is None
    child.wait()


def test_runtime_dir_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = registry.runtime_dir(create=True)
    assert path == os.fsencode(tmp_path / "unionfs")
    assert os.stat(path).st_mode & 0o777 == 0o700
    os.chmod(path, 0o722)  # noqa: S103  # what must be refused
    with pytest.raises(UsageError, match="only you"):
        registry.runtime_dir()


@pytest.mark.usefixtures("as_root")
def test_runtime_dir_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "unionfs").mkdir(0o700)
    os.chown(tmp_path / "unionfs", 1, 1)
    with pytest.raises(UsageError, match="only you"):
        registry.runtime_dir(create=True)


def test_runtime_dir_is_no_symlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(0o700)
    (tmp_path / "unionfs").symlink_to("elsewhere")
    with pytest.raises(UsageError):
        registry.runtime_dir(create=True)


def test_starting_mounts_needs_no_pyfuse3() -> None:
    code = "import sys, unionfs.mounts; print(sorted({'pyfuse3', 'trio'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert result.stdout == "[]\n"
