"""What the engine keeps of a file."""

from __future__ import annotations

import stat

import pytest

from unionfs.branch import Status
from unionfs.union.node import DirNode

_PLAIN = Status(0o100644, 0, 2**32 - 2, 0, 5, 1, 2**40, 77, -1, 2, 3, 8, placeholder=False)


@pytest.mark.parametrize(
    "status",
    [
        _PLAIN,
        _PLAIN._replace(placeholder=True, mode=stat.S_IFCHR | 0o600, rdev=2**32 - 1),
        _PLAIN._replace(mtime_ns=15 * 10**18),  # the year 2445, which ext4 knows
        _PLAIN._replace(rdev=2**60, nlink=2**40),
        _PLAIN._replace(size=2**63 - 1, blocks=2**54, ino=2**64 - 1),
    ],
)
def test_attributes_are_kept_as_they_were(status: Status) -> None:
    node = DirNode(1, (1, status.dev, status.ino), None, b"name", (1,))
    assert node.status is None
    node.status = status
    assert node.status == status
    assert isinstance(node.status, Status)
    node.status = None
    assert node.status is None
