"""Open an image source by skopeo's transport names, or by looking at what is there.

Invariant: a source is opened once; everything read from it afterwards goes through that
descriptor, so nobody can swap the file between the check and the use. What needs random
access and does not have it (standard input, compressed archives) is copied to an unnamed
temporary file in $TMPDIR first.

Transports::

    docker-archive:PATH[:REFERENCE | :@N]     what `docker save` writes
    oci:DIRECTORY[:TAG]                       an OCI image layout
    oci-archive:PATH[:TAG]                    a tar of an OCI image layout
    rootfs:PATH                               a root filesystem: a tar or a directory
    PATH                                      any of these, decided by content
    -                                         standard input (PATH may be - with a prefix, too)
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, Final

import attrs

from unionfs.archive.compression import decompress
from unionfs.archive.docker import read_docker_archive
from unionfs.archive.files import DirectoryFiles, TarFiles
from unionfs.archive.image import OCI_TAR, Source, SourceImage, SourceLayer
from unionfs.archive.limits import DEFAULT, Limits
from unionfs.archive.oci import read_layout
from unionfs.archive.platforms import Platform, parse_platform
from unionfs.archive.reader import Reader, Window
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tree import ChunkReader, tree_tar
from unionfs.errors import HostileArchiveError, LimitError, NotFoundError, UsageError, show

__all__ = ["TRANSPORTS", "Source", "SourceImage", "SourceLayer", "open_source", "split_spec"]

TRANSPORTS: Final = ("docker-archive", "oci", "oci-archive", "rootfs")
_OTHERS: Final = {
    "dir": "skopeo's own directory format; copy it with `skopeo copy dir:... oci:...` first "
    "(a directory with a root filesystem is rootfs:DIRECTORY)",
    "docker": "a registry; copy the image with `skopeo copy docker://... oci:...` first",
    "docker-daemon": "a daemon; use `docker save` and docker-archive:",
    "containers-storage": "podman's store; use `podman save` and docker-archive:",
}
_PREFIX: Final = re.compile(rb"([a-z][a-z-]*):")
#: Top-level members that archives of images have. Anything else is a root filesystem.
_IMAGE_MEMBER: Final = re.compile(
    rb"blobs|oci-layout|repositories|(?:sha256:)?[0-9a-f]{8,64}|[^/]+\.(?:json|tar|tar\.gz|tgz)"
)
_CHUNK: Final = 1024 * 1024


def split_spec(spec: bytes) -> tuple[str | None, bytes, str | None]:
    """Split `[TRANSPORT:]PATH[:REFERENCE]`; the first and last part are None when absent.

    A path that exists as it stands is never split, else the first colon ends it, as in
    skopeo. Raises UsageError for a transport that is not ours.
    """
    match = _PREFIX.match(spec)
    transport = match[1].decode() if match is not None else ""
    if transport in _OTHERS and not os.path.lexists(spec):
        raise UsageError(f"{show(spec)}: {transport}: is {_OTHERS[transport]}")
    if transport not in TRANSPORTS:
        return None, spec, None
    path = spec[len(transport) + 1 :]
    if not path:
        raise UsageError(f"{show(spec)}: a path is missing after {transport}:")
    if transport == "rootfs" or os.path.lexists(path):
        return transport, path, None
    path, colon, reference = path.partition(b":")
    return transport, path, os.fsdecode(reference) if colon and reference else None


@contextlib.contextmanager
def open_source(
    spec: str | bytes, *, platform: str | None = None, limits: Limits = DEFAULT
) -> Iterator[Source]:
    """Open `spec` (see the module) and give its images; they are valid inside the context.

    `platform` chooses in an image index, None means this machine's. Raises UsageError,
    NotFoundError, UnsupportedError, HostileArchiveError and OSError.
    """
    transport, path, reference = split_spec(os.fsencode(spec))
    opener = _Opener(
        parse_platform(platform), explicit=platform is not None, limits=limits, reference=reference
    )
    with contextlib.ExitStack() as stack:
        if path == b"-":
            file = stack.enter_context(os.fdopen(os.dup(sys.stdin.fileno()), "rb"))
            yield opener.stream(stack, file, transport, "standard input")
            return
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise NotFoundError(
                f"{show(path)}: no such file or directory; a source is "
                f"[{'|'.join(TRANSPORTS)}:]PATH or -"
            ) from None
        if stat.S_ISDIR(status.st_mode):
            yield opener.directory(stack, path, transport)
        else:
            file = stack.enter_context(open(path, "rb"))
            yield opener.stream(stack, file, transport, show(path))


@attrs.frozen
class _Opener:
    platform: Platform
    explicit: bool
    limits: Limits
    reference: str | None

    def directory(self, stack: contextlib.ExitStack, path: bytes, transport: str | None) -> Source:
        if transport in {"docker-archive", "oci-archive"}:
            raise UsageError(f"{show(path)}: is a directory, {transport}: needs a file")
        files = stack.enter_context(DirectoryFiles(path))
        is_layout = files.has("index.json") and files.has("oci-layout")
        if transport == "oci" or (transport is None and is_layout):
            return Source(self._layout(files), "oci")
        layer = SourceLayer(
            None, OCI_TAR, None, lambda: io.BufferedReader(ChunkReader(tree_tar(path)), _CHUNK)
        )
        return Source((SourceImage((), None, (layer,), None),), "rootfs")

    def stream(
        self, stack: contextlib.ExitStack, file: BinaryIO, transport: str | None, what: str
    ) -> Source:
        if transport == "oci":
            raise UsageError(f"{what}: is not a directory; a tar of a layout is oci-archive:")
        # The archive around the layers has limits of its own.
        outer = attrs.evolve(
            self.limits,
            layer_bytes=self.limits.archive_bytes,
            file_bytes=self.limits.archive_bytes,
        )
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            # The copy is as it came, so only its own size counts here.
            file = _spool(stack, file, outer, what)
        size = os.fstat(file.fileno()).st_size
        if not size:
            # tar takes nothing at all for an archive without members; here it is a lost pipe.
            raise HostileArchiveError(f"{what}: is empty, there is no image in it")
        whole = _open_window(file, size)
        compression = decompress(whole, outer, what, limit="archive_bytes").compression
        kind = transport or _sniff(file, size, outer, what)
        if kind == "rootfs":
            layer = SourceLayer(None, OCI_TAR, size, partial(_open_window, file, size))
            return Source((SourceImage((), None, (layer,), None),), kind)
        if compression != "none":
            reader = decompress(_open_window(file, size), outer, what, limit="archive_bytes")
            file = _spool(stack, reader, outer, what)
        files = TarFiles(file, outer, what)
        if kind == "oci-archive":
            return Source(self._layout(files), kind)
        images = read_docker_archive(
            files, self.reference, self.platform, explicit=self.explicit, limits=self.limits
        )
        return Source(images, kind)

    def _layout(self, files: DirectoryFiles | TarFiles) -> tuple[SourceImage, ...]:
        return read_layout(
            files, self.reference, self.platform, explicit=self.explicit, limits=self.limits
        )


def _open_window(file: BinaryIO, size: int) -> BinaryIO:
    return io.BufferedReader(Window(file, 0, size), _CHUNK)


def _spool(stack: contextlib.ExitStack, reader: Reader, limits: Limits, what: str) -> BinaryIO:
    """Copy a stream to an unnamed temporary file."""
    spool: BinaryIO = stack.enter_context(
        tempfile.TemporaryFile(prefix="unionfs-", buffering=0)  # noqa: SIM115  # the stack closes it
    )
    total = 0
    while data := reader.read(_CHUNK):
        total += len(data)
        limits.check("archive_bytes", total, what)
        view = memoryview(data)
        while view:
            view = view[spool.write(view) :]
    return spool


def _sniff(file: BinaryIO, size: int, limits: Limits, what: str) -> str:
    """Tell what an archive is by the names of its members, reading no more than needed."""
    reader = decompress(_open_window(file, size), limits, what, limit="archive_bytes")
    if reader.compression == "none":
        stream = TarStream.seeking(file, size, limits, what=what)
    else:
        stream = TarStream(reader, limits, what=what)
    tops: set[bytes] = set()
    try:
        for entry in stream:
            parts = [part for part in entry.name.split(b"/") if part not in {b"", b"."}]
            if not parts:
                continue
            if not _IMAGE_MEMBER.fullmatch(parts[0]):
                return "rootfs"
            tops.add(parts[0])
    except HostileArchiveError as error:
        if tops or isinstance(error, LimitError):
            raise
        raise HostileArchiveError(f"{what}: is no tar archive ({error})") from None
    if tops & {b"manifest.json", b"repositories"}:
        return "docker-archive"
    return "oci-archive" if b"index.json" in tops else "rootfs"
