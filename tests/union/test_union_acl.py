"""POSIX ACLs: inherited as a native filesystem does, kept in step with the mode."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.union_case import Union

from unionfs.union import Caller, acl

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF


def encode(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


perms = st.integers(0, 7)


@st.composite
def default_acls(draw: st.DrawFn) -> bytes:
    entries = [(USER_OBJ, draw(perms), NO_ID)]
    named = draw(st.booleans())
    if named:
        entries.append((USER, draw(perms), 1000))
    entries.append((GROUP_OBJ, draw(perms), NO_ID))
    if named:
        entries.append((MASK, draw(perms), NO_ID))
    entries.append((OTHER, draw(perms), NO_ID))
    return encode(*entries)


@given(default=default_acls(), mode=st.integers(0, 0o777))
def test_inheritance_is_the_kernels(
    tmp_path_factory: pytest.TempPathFactory, default: bytes, mode: int
) -> None:
    parent = tmp_path_factory.mktemp("acl")
    os.setxattr(parent, acl.DEFAULT, default)
    os.close(os.open(parent / "file", os.O_CREAT | os.O_WRONLY, mode))
    found = b""
    if acl.ACCESS in os.listxattr(parent / "file"):
        found = os.getxattr(parent / "file", acl.ACCESS)
    real = stat.S_IMODE((parent / "file").stat().st_mode)
    assert acl.inherit(default, mode) == (real, found)


@given(access=default_acls(), mode=st.integers(0, 0o777))
def test_mode_and_acl_follow_each_other_as_in_the_kernel(
    tmp_path_factory: pytest.TempPathFactory, access: bytes, mode: int
) -> None:
    file = tmp_path_factory.mktemp("acl") / "file"
    file.touch()
    os.setxattr(file, acl.ACCESS, access)
    assert stat.S_IMODE(file.stat().st_mode) == acl.mode_of(access, 0)
    file.chmod(mode)
    if acl.ACCESS in os.listxattr(file):
        assert os.getxattr(file, acl.ACCESS) == acl.with_mode(access, mode)


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0x", b"\1\0\0\0", b"\2\0\0\0" + b"\0" * 7])
def test_malformed_values_change_nothing(value: bytes) -> None:
    assert acl.inherit(value, 0o640) == (0o640, b"")
    assert acl.mode_of(value, 0o640) == 0o640
    assert acl.with_mode(value, 0o640) == value


DEFAULT = encode(
    (USER_OBJ, 7, NO_ID),
    (USER, 6, 1000),
    (GROUP_OBJ, 5, NO_ID),
    (MASK, 6, NO_ID),
    (OTHER, 0, NO_ID),
)


def test_new_entries_inherit_in_either_dialect(union: Union, tmp_path: Path) -> None:
    union.fs.mkdir("dir")
    union.fs.setxattr("dir", acl.DEFAULT, DEFAULT)
    union.fs.create("dir/file", b"", 0o666)
    union.fs.mkdir("dir/sub", 0o777)
    union.fs.create("dir/sub/inner", b"", 0o600)
    plain = tmp_path / "plain"
    plain.mkdir()
    os.setxattr(plain, acl.DEFAULT, DEFAULT)
    os.close(os.open(plain / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    (plain / "sub").mkdir(0o777)
    os.close(os.open(plain / "sub/inner", os.O_CREAT | os.O_WRONLY, 0o600))
    for name in ("file", "sub", "sub/inner"):
        where = plain / name
        expected = {item: os.getxattr(where, item) for item in os.listxattr(where)}
        assert union.fs.xattrs(f"dir/{name}") == expected
        if name != "sub":
            assert union.fs.attr(f"dir/{name}").mode == where.stat().st_mode


def test_acl_and_mode_of_one_file(union: Union) -> None:
    access = DEFAULT
    union.fs.setxattr("f", acl.ACCESS, access)
    assert stat.S_IMODE(union.fs.attr("f").mode) == 0o760
    union.fs.chmod("f", 0o640)
    assert union.fs.xattrs("f")[acl.ACCESS] == acl.with_mode(access, 0o640)
    union.reopen()
    assert stat.S_IMODE(union.fs.attr("f").mode) == 0o640


def test_setgid_directories_pass_their_group_on(union: Union) -> None:
    union.fs.chmod("d", 0o2775)
    union.fs.setattr("d", gid=9)
    union.fs.create("d/file", caller=Caller(3, 4))
    union.fs.mkdir("d/sub", 0o755, Caller(3, 4))
    union.fs.symlink("d/link", "file")
    assert (union.fs.attr("d/file").uid, union.fs.attr("d/file").gid) == (3, 9)
    assert union.fs.attr("d/sub").gid == union.fs.attr("d/link").gid == 9
    assert union.fs.attr("d/sub").mode == stat.S_IFDIR | 0o2755
