"""Ids: both directions of every map, and what is outside of it."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.errors import UsageError
from unionfs.fuse.idmap import OVERFLOW_ID, IdMap, map_acl

IDS = st.integers(0, 2**32 - 2)


@given(IDS, IDS)
def test_a_plain_users_map_loses_nothing(own: int, value: int) -> None:
    ids = IdMap.bijective(own)
    assert ids.stored(ids.shown(value)) == value
    assert ids.shown(ids.stored(value)) == value
    assert ids.shown(0) == own
    assert ids.shown(own) == 0


def test_identity_keeps_every_id() -> None:
    assert [IdMap().shown(value) for value in (0, 5, 2**32 - 2)] == [0, 5, 2**32 - 2]
    assert IdMap().stored(7) == 7


@pytest.mark.parametrize(
    ("stored", "shown"), [(0, 1000), (1, 110000), (65536, 175535), (65537, OVERFLOW_ID)]
)
def test_mapping_in_fuse_overlayfs_syntax(stored: int, shown: int) -> None:
    assert IdMap.parse("0:1000:1:1:110000:65536").shown(stored) == shown


def test_mapping_back_refuses_what_is_outside() -> None:
    ids = IdMap.parse("0:1000:1:1:110000:65536")
    assert ids.stored(1000) == 0
    assert ids.chown(110005) == 6
    with pytest.raises(OSError, match=os.strerror(errno.EOVERFLOW)) as caught:
        ids.chown(0)
    assert caught.value.errno == errno.EOVERFLOW
    assert ids.caller(0) == OVERFLOW_ID


@pytest.mark.parametrize(
    "text",
    ["", "0:1", "0:1:1:2", "a:1:1", "0:1:0", "0:1:-1", "0:0:4294967296", "0:0:5:3:100:1",
     "0:100:5:10:104:1", "0 :1:1", "\u0660:1:1"],
)  # fmt: skip
def test_malformed_maps_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        IdMap.parse(text)


def test_squash_shows_one_id_and_refuses_others() -> None:
    ids = IdMap(squash=7)
    assert ids.shown(33) == 7
    assert ids.chown(7) is None
    assert ids.caller(1000) == 1000
    with pytest.raises(PermissionError):
        ids.chown(8)


def test_full_namespace_is_identity() -> None:
    assert IdMap.of_namespace("         0          0 4294967295\n") == IdMap()


def test_namespace_with_one_id_shows_the_others_as_root() -> None:
    ids = IdMap.of_namespace("         0      65534          1\n")
    assert (ids.shown(0), ids.shown(33)) == (0, 0)
    with pytest.raises(OSError, match=os.strerror(errno.EOVERFLOW)):
        ids.stored(33)


def test_namespace_with_subordinate_ids_shows_overflow() -> None:
    ids = IdMap.of_namespace("0 1000 1\n1 100000 65536\n")
    assert (ids.shown(33), ids.shown(65536), ids.shown(65537)) == (33, 65536, OVERFLOW_ID)


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_acl_ids_go_both_ways() -> None:
    users, groups = IdMap.bijective(1000), IdMap.bijective(100)
    inside = _acl((1, 7, 2**32 - 1), (2, 7, 0), (2, 5, 1000), (4, 5, 2**32 - 1), (8, 4, 0))
    outside = _acl((1, 7, 2**32 - 1), (2, 7, 1000), (2, 5, 0), (4, 5, 2**32 - 1), (8, 4, 100))
    assert map_acl(inside, users, groups, show=True) == outside
    assert map_acl(outside, users, groups, show=False) == inside


@pytest.mark.parametrize("value", [b"", b"\x02\x00", b"\x02\x00\x00\x00\x01"])
def test_acl_of_unknown_shape_stays_as_it_is(value: bytes) -> None:
    assert map_acl(value, IdMap.bijective(5), IdMap(), show=True) == value
