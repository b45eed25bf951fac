"""The override codec: exact round trip, and nothing malformed has any effect."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.branch.override import MAX_ID, Override

IDS = st.integers(0, MAX_ID)
PLAIN = [0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK]
DEVICES = st.builds(os.makedev, st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))
OVERRIDES = st.one_of(
    st.builds(Override, IDS, IDS, st.integers(0, 0o7777), st.sampled_from(PLAIN)),
    st.builds(
        Override,
        IDS,
        IDS,
        st.integers(0, 0o7777),
        st.sampled_from([stat.S_IFBLK, stat.S_IFCHR]),
        DEVICES,
    ),
)


@given(OVERRIDES)
def test_round_trip(override: Override) -> None:
    assert Override.parse(override.encode()) == override


@pytest.mark.parametrize(
    ("value", "override"),
    [
        (b"0:0:0755", Override(0, 0, 0o755)),
        (b"33:33:4755:file", Override(33, 33, 0o4755, stat.S_IFREG)),
        (b"0:6:0660:block-8-1", Override(0, 6, 0o660, stat.S_IFBLK, os.makedev(8, 1))),
        (b"0:0:0666:char-0-0", Override(0, 0, 0o666, stat.S_IFCHR, 0)),
        (b"1:2:100644:file", Override(1, 2, 0o644, stat.S_IFREG)),
    ],
)
def test_values_of_other_tools(value: bytes, override: Override) -> None:
    assert Override.parse(value) == override


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0:0",
        b"-1:0:755",
        b"0:0:0999",
        b"4294967295:0:0755",
        b"0:0:0755:",
        b"0:0:0755:door",
        b"0:0:0755:char-1",
        b"0:0:0755:char-4096-0",
        b"0:0:0755:file\n",
        b"0:0:0755:file:more",
        "٣:0:0755:file".encode(),
        b"\xff" * 8,
    ],
)
def test_malformed_values_have_no_effect(value: bytes) -> None:
    assert Override.parse(value) is None
