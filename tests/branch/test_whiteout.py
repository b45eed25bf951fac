"""Marker names: every name has exactly one meaning, and hiding is reversible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.branch import whiteout
from unionfs.branch.whiteout import Dialect, Meaning

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@pytest.mark.parametrize(
    ("name", "meaning", "target"),
    [
        (b"a", Meaning.ENTRY, b""),
        (b".wh", Meaning.ENTRY, b""),
        (b".whx", Meaning.ENTRY, b""),
        (b".WH.x", Meaning.ENTRY, b""),
        (b".wh.x", Meaning.WHITEOUT, b"x"),
        (b".wh..bashrc", Meaning.WHITEOUT, b".bashrc"),
        (b".wh.hello", Meaning.WHITEOUT, b"hello"),
        (b".wh..wh", Meaning.WHITEOUT, b".wh"),
        (b".wh....", Meaning.WHITEOUT, b"..."),
        (b".wh..opq", Meaning.WHITEOUT, b".opq"),
        (b".wh.a\nb", Meaning.WHITEOUT, b"a\nb"),
        (b".wh.a\xff", Meaning.WHITEOUT, b"a\xff"),
        (b".wh..wh..opq", Meaning.OPAQUE, b""),
        (b".wh..wh.aufs", Meaning.HOUSEKEEPING, b""),
        (b".wh..wh.plnk", Meaning.HOUSEKEEPING, b""),
        (b".wh..wh.foo", Meaning.HOUSEKEEPING, b""),
        (whiteout.WORK_DIR, Meaning.HOUSEKEEPING, b""),
        (b".wh.", Meaning.INVALID, b""),
        (b".wh..", Meaning.INVALID, b""),
        (b".wh...", Meaning.INVALID, b""),
    ],
)
def test_classify(name: bytes, meaning: Meaning, target: bytes) -> None:
    assert whiteout.classify(name) == (meaning, target)


@given(NAMES.filter(lambda name: not whiteout.is_reserved(name)))
def test_every_name_can_be_hidden(name: bytes) -> None:
    file, content = whiteout.marker_for(name)
    marker = whiteout.classify(file)
    assert len(file) <= whiteout.NAME_MAX
    assert whiteout.is_reserved(file)
    if len(name) <= whiteout.MAX_NAME:
        assert (marker.meaning, marker.target, content) == (Meaning.WHITEOUT, name, b"")
    else:
        assert (marker.meaning, content) == (Meaning.LONG_WHITEOUT, name)


def test_opaque_xattr_depends_on_who_mounts() -> None:
    assert whiteout.opaque_xattr(Dialect.AUFS) is None
    assert whiteout.opaque_xattr(Dialect.OVERLAY) == "trusted.overlay.opaque"
    assert whiteout.opaque_xattr(Dialect.OVERLAY_USER) == "user.overlay.opaque"
