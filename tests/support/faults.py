"""One layer that breaks most rules of `lint` over a Debian, and what must be found in it."""

from __future__ import annotations

from typing import Final

from support.layers import Member

__all__ = ["EXPECTED", "FAULTS"]

FAULTS: Final = (
    Member(b"usr/", "dir"),
    Member(b"usr/share/", "dir"),
    Member(b"usr/share/common-licenses/", "dir"),
    Member(b"usr/share/common-licenses/.wh..wh..opq"),
    Member(b"usr/share/common-licenses/.wh.GPL-3"),
    Member(b"etc/", "dir"),
    Member(b"etc/.wh.motd"),
    Member(b"etc/motd", data=b"new"),
    Member(b"etc/.wh.issue.net", "symlink", target=b"x"),
    Member(b"etc/.wh.no-such-file"),
    Member(b"etc/Hostname"),
    Member(b"etc/hostname"),
    Member(b"etc/.wh.issue", data=b"text"),
    Member(b"etc/null", "char"),
    Member(b".wh..wh.plnk/", "dir"),
    Member(b"bin/hello"),
    Member(b"tmp/x"),
    Member(b"var/no/.wh.such"),
    Member(b"opt/", "dir"),
    Member(b"opt/" + b"n" * 252),
    Member(b"srv/", "dir"),
    Member(b"srv/l", "hardlink", target=b"etc/debian_version"),
)
#: (rule, path) of every finding.
EXPECTED: Final = {
    ("whiteout-in-opaque", b"usr/share/common-licenses/.wh.GPL-3"),
    ("whiteout-beside-entry", b"etc/.wh.motd"),
    ("whiteout-not-regular", b"etc/.wh.issue.net"),
    ("dangling-whiteout", b"etc/.wh.no-such-file"),
    ("case-collision", b"etc/hostname"),
    ("whiteout-not-empty", b"etc/.wh.issue"),
    ("device-zero", b"etc/null"),
    ("mixed-dialects", b"etc/null"),
    ("aufs-metadata", b".wh..wh.plnk"),
    ("parent-is-link", b"bin"),
    ("implied-directory", b"tmp"),
    ("whiteout-makes-directory", b"var/no/.wh.such"),
    ("name-over-251", b"opt/" + b"n" * 252),
    ("hardlink-to-lower", b"srv/l"),
}
