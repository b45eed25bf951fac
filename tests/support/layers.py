"""Layers for tests: archives from a few words, images made of them, trees read back.

The archives are written by `tarfile` of the standard library, so that our reader and our
writer are not tested against each other only.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from unionfs.archive.image import OCI_TAR, SourceImage, SourceLayer

__all__ = ["Member", "diff_id", "image_of", "layer_of", "layer_tar"]

_TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


@attrs.frozen
class Member:
    """A member of an archive; `kind` is file, dir, symlink, hardlink, char, block or fifo."""

    name: bytes
    kind: str = "file"
    data: bytes = b""
    target: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 0
    rdev: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()


def layer_tar(members: Iterable[Member]) -> bytes:
    """Return an uncompressed PAX archive."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name.decode("utf-8", "surrogateescape"))
            info.type = _TYPES[member.kind]
            info.mode = 0o755 if member.kind == "dir" and member.mode == 0o644 else member.mode
            info.uid, info.gid, info.mtime = member.uid, member.gid, member.mtime
            info.size = len(member.data)
            info.linkname = member.target.decode("utf-8", "surrogateescape")
            info.devmajor, info.devminor = member.rdev
            info.pax_headers = {
                f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
                for name, value in member.xattrs
            }
            tar.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


def diff_id(tar: bytes) -> str:
    """Return the digest of an uncompressed archive."""
    return f"sha256:{hashlib.sha256(tar).hexdigest()}"


def layer_of(tar: bytes, *, promise: bool = True, compress: bool = False) -> SourceLayer:
    """Return a layer of a source; with `promise` it says its diff_id."""
    stored = gzip.compress(tar, mtime=0) if compress else tar
    return SourceLayer(
        diff_id(tar) if promise else None,
        OCI_TAR,
        len(stored),
        functools.partial(io.BytesIO, stored),
    )


def image_of(tars: Sequence[bytes], references: Sequence[str] = (), **fields: Any) -> SourceImage:
    """Return an image with these layers, base first, and `fields` in its configuration."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2020-01-02T03:04:05Z",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id(tar) for tar in tars]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(tars))],
        **fields,
    }
    return SourceImage(
        tuple(references),
        json.dumps(config).encode(),
        tuple(layer_of(tar) for tar in tars),
        "linux/amd64",
    )
