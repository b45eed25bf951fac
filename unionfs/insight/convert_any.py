"""`convert` between archives and directories: what OUTPUT is called decides what it becomes.

Invariant: as for `convert` and `convert_tar`, the result appears verified or not at all.
"""

from __future__ import annotations

import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from unionfs.archive.compression import decompress
from unionfs.archive.entry import Kind
from unionfs.archive.staging import replacing
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tree import ChunkReader
from unionfs.branch import Dialect
from unionfs.errors import ConflictError, UnionfsError, UnsupportedError, UsageError, show
from unionfs.insight.convert import Converted, check_trees, convert
from unionfs.insight.convert_tar import Opener, converted_chunks, verify_archives
from unionfs.insight.engines.layers import LIMITS
from unionfs.insight.engines.reading import Ids, read_directory
from unionfs.insight.engines.reference import digest_of, seen_of
from unionfs.insight.engines.seen import View, differences
from unionfs.insight.engines.unpack import unpack
from unionfs.insight.engines.workplace import RefusedError, is_whole
from unionfs.insight.probe import join, split_path
from unionfs.insight.shipped import Item, Shipped, read_branch, shipped_of
from unionfs.insight.staged import staged_directory
from unionfs.insight.where import NamedBranch
from unionfs.store.layertar import layer_tar

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["convert_any", "is_archive_name"]

_CHUNK: Final = 256 * 1024
_GZIP: Final = (b".tar.gz", b".tgz")
_ZSTD: Final = (b".tar.zst", b".tzst")
_SUFFIXES: Final = (b".tar", *_GZIP, *_ZSTD)


def is_archive_name(path: bytes) -> bool:
    """Tell whether a name is that of an archive."""
    return path.endswith(_SUFFIXES)


def convert_any(source: bytes, origin: Dialect, target: Dialect, output: bytes | None) -> Converted:
    """Convert a layer directory or archive into a directory or archive (by the name of `output`).

    `output` None converts a directory in place. Raises what `convert` and `converted_chunks` do.
    """
    if os.path.isdir(source):
        if output is None or not is_archive_name(output):
            return convert(source, origin, target, output)
        _check_names(source, origin)
        # The archive of a branch is in AUFS form whatever the branch is.
        return _to_archive(lambda: _of_directory(source, origin), Dialect.AUFS, target, output)
    if output is None:
        raise UsageError("--in-place is for directories; give OUTPUT")

    def opener() -> TarStream:
        return TarStream(ChunkReader(_unpacked(source)), LIMITS, what=show(source))

    if is_archive_name(output):
        return _to_archive(opener, origin, target, output)
    return _to_directory(opener, origin, target, os.path.abspath(output))


def _unpacked(path: bytes) -> Iterator[bytes]:
    with open(path, "rb") as file:
        reader = decompress(file, LIMITS, show(path))
        while data := reader.read(_CHUNK):
            yield data


def _check_names(source: bytes, origin: Dialect) -> None:
    odd = read_branch(NamedBranch(1, source, dialect=origin)).housekeeping
    if origin is not Dialect.AUFS and odd:
        raise ConflictError(f"{show(odd[0].path)}: a file of that name is a marker in AUFS form")


def _of_directory(path: bytes, dialect: Dialect) -> TarStream:
    def chunks() -> Iterator[bytes]:
        with NamedBranch(1, path, dialect=dialect).open() as branch:
            yield from layer_tar(branch, root=True)

    return TarStream(ChunkReader(chunks()), LIMITS, what=show(path))


# -- archives ----------------------------------------------------------------------


def _to_archive(opener: Opener, origin: Dialect, target: Dialect, output: bytes) -> Converted:
    counts = [0, 0, 0]
    with replacing(output, replace=False) as file:
        for data in _compressed(converted_chunks(opener, origin, target, counts), output):
            file.write(data)
        file.flush()
        made = b"/proc/self/fd/%d" % file.fileno()

        def again() -> TarStream:
            return TarStream(ChunkReader(_unpacked(made)), LIMITS, what=show(output))

        verify_archives(opener, origin, again, target)
    return Converted(os.path.abspath(output), *counts)


def _compressed(chunks: Iterable[bytes], name: bytes) -> Iterator[bytes]:
    if name.endswith(_GZIP):
        packer = zlib.compressobj(wbits=31)
        for chunk in chunks:
            yield packer.compress(chunk)
        yield packer.flush()
    elif name.endswith(_ZSTD):
        compressor = zstd.ZstdCompressor()
        for chunk in chunks:
            yield compressor.compress(chunk)
        yield compressor.flush()
    else:
        yield from chunks


# -- directories -------------------------------------------------------------------


def _to_directory(opener: Opener, origin: Dialect, target: Dialect, output: bytes) -> Converted:
    whole = is_whole()
    if not whole:
        _check_owners(opener())
    counts = [0, 0, 0]
    with staged_directory(output) as path:
        chunks = converted_chunks(opener, origin, target, counts)
        stream = TarStream(ChunkReader(chunks), LIMITS, what="the converted layer")
        try:
            unpack(stream, path, Dialect.AUFS, whole=whole, strict=True)
        except RefusedError as error:
            raise UnsupportedError(
                f"{error}; as root it may work, or convert into an archive"
            ) from error
        implied = _verify_directory(opener, origin, path, target, whole=whole)
    return Converted(output, counts[0], counts[1], counts[2], implied)


def _check_owners(stream: TarStream) -> None:
    for entry in stream:
        if (entry.uid, entry.gid) != (0, 0):
            raise UnsupportedError(
                f"{show(entry.name)} belongs to {entry.uid}:{entry.gid}, which only root can make"
                " so in a directory; convert into an archive (OUTPUT.tar)"
            )
        if entry.kind in (Kind.CHAR, Kind.BLOCK) and entry.rdev != (0, 0):
            raise UnsupportedError(
                f"{show(entry.name)} is a device, which only root can make; convert into an archive"
                " (OUTPUT.tar)"
            )


def _verify_directory(
    opener: Opener, origin: Dialect, path: bytes, target: Dialect, *, whole: bool
) -> int:
    """Compare the directory with the archive; return how many directories only the disk needs."""
    left = shipped_of(NamedBranch(2, b"", dialect=origin), opener())
    implied = _implied(left)
    for name in implied:
        left.entries[name] = Item(name, stat.S_IFDIR, mode=0o755)
    check_trees(left, read_branch(NamedBranch(2, path, dialect=target)))
    expected = {}
    stream = opener()
    links = {}
    for entry in stream:
        name = b"/".join(split_path(entry.name))
        content = digest_of(stream, entry)
        if name not in left.entries:
            continue
        if entry.linkname and left.entries[name].link is not None:
            links[name] = b"/".join(split_path(entry.linkname))
        else:
            expected[name] = seen_of(entry, content)
    found = {name: seen for name, seen, _ in read_directory(path, Ids())}
    for name, seen in expected.items():
        what = ("absent",) if name not in found else differences(seen, found[name], View(whole))
        if what:
            raise UnionfsError(f"the copy of {show(b'/' + name)} differs in {what[0]}")
    for name in links:
        if name not in found:
            raise UnionfsError(f"the copy lacks {show(b'/' + name)}")
    return len(implied)


def _implied(shipped: Shipped) -> set[bytes]:
    """Return directories that members lie in and the archive does not have."""
    found: set[bytes] = set()
    for path in [*shipped.entries, *shipped.whiteouts, *(join(at, b".") for at in shipped.opaque)]:
        at = path.rpartition(b"/")[0]
        while at and at not in found:
            found.add(at)
            at = at.rpartition(b"/")[0]
    return found - shipped.entries.keys()
