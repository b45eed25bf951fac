"""Write an image as `oci:` or `oci-archive:`.

Invariant: a layer leaves this module only if its bytes have the diff_id that the
configuration lists; the same image gives the same bytes every time (times are
$SOURCE_DATE_EPOCH or 0, gzip without a time); on failure nothing new stays behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final

from unionfs.archive.image import OCI_TAR
from unionfs.archive.jsondoc import parse_json
from unionfs.archive.layerout import ArchiveWriter, LayerOut, check, json_bytes, output
from unionfs.archive.limits import DEFAULT
from unionfs.archive.oci import INDEX, MANIFEST, REF_NAME, Configuration
from unionfs.archive.staging import fsync_directory, replacing
from unionfs.errors import (
    ConflictError,
    HostileArchiveError,
    InvalidNameError,
    show,
)

__all__ = ["write_oci", "write_oci_archive"]

_CHUNK: Final = 1024 * 1024
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
#: image-spec annotations.md, "Pre-Defined Annotation Keys", org.opencontainers.image.ref.name.
_REF: Final = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@+/]|--)[A-Za-z0-9]+)*")
_GZIP_LEVEL: Final = 6
_STAGE: Final = b".unionfs-"
_LAYOUT: Final = b"layout"


def _gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # zlib's own gzip header has no name and time 0; isal's output differs between versions.
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
    for chunk in chunks:
        if data := packer.compress(chunk):
            yield data
    yield packer.flush()


class _Layout:
    """An OCI layout being added to; `close` undoes what was not finished."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._blobs = os.path.join(path, b"blobs", b"sha256")
        self._new: list[bytes] = []
        self._made = not os.path.lexists(path)
        self._fresh = False
        if self._made:
            os.mkdir(path)
        elif os.listdir(path) and not os.path.exists(os.path.join(path, b"oci-layout")):
            raise ConflictError(
                f"{show(path)}: is not empty and no OCI layout; give a new or empty directory"
            )
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Two writers would lose each other's entry in index.json.
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._begin()
            os.makedirs(self._blobs, exist_ok=True)
            self._stage = tempfile.mkdtemp(prefix=_STAGE, dir=path)
        except BaseException:
            os.close(self._lock)
            if self._made:
                shutil.rmtree(path, ignore_errors=True)
            raise

    def _begin(self) -> None:
        """Sweep what a killed writer left; mark a new layout, so that ours can be added to."""
        names = os.listdir(self.path)
        for name in names:
            if name.startswith(_STAGE):
                shutil.rmtree(os.path.join(self.path, name), ignore_errors=True)
        self._fresh = not names
        if self._fresh:
            self._file(b"oci-layout", json_bytes({"imageLayoutVersion": "1.0.0"}))

    def blob(self, chunks: Iterable[bytes], media_type: str) -> dict[str, Any]:
        """Add a blob; return its descriptor."""
        digest = hashlib.sha256()
        size = 0
        staged = os.path.join(self._stage, b"blob")
        with open(staged, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        final = os.path.join(self._blobs, digest.hexdigest().encode())
        if not os.path.lexists(final):
            self._new.append(final)
        os.rename(staged, final)
        return {
            "mediaType": media_type,
            "digest": f"sha256:{digest.hexdigest()}",
            "size": size,
        }

    def finish(self, descriptor: dict[str, Any], tag: str | None) -> None:
        """Put the manifest into index.json, in place of an older one with the same tag."""
        fsync_directory(self._blobs)
        index = self._index()
        if tag is not None:
            descriptor = {**descriptor, "annotations": {REF_NAME: tag}}
        index["manifests"] = [
            old
            for old in index["manifests"]
            if tag is None or (old.get("annotations") or {}).get(REF_NAME) != tag
        ]
        if descriptor not in index["manifests"]:
            index["manifests"].append(descriptor)
        self._file(b"index.json", json_bytes(index))
        self._new = []
        self._made = self._fresh = False

    def _file(self, name: bytes, data: bytes) -> None:
        with replacing(os.path.join(self.path, name), replace=True) as file:
            file.write(data)

    def _index(self) -> dict[str, Any]:
        path = os.path.join(self.path, b"index.json")
        try:
            with open(path, "rb") as file:
                raw = file.read(DEFAULT.json_bytes + 1)
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        index = parse_json(raw, show(path), DEFAULT)
        if not isinstance(index, dict) or not isinstance(index.get("manifests"), list):
            raise HostileArchiveError(f"{show(path)}: is no image index")
        if not all(isinstance(old, dict) for old in index["manifests"]):
            raise HostileArchiveError(f"{show(path)}: is no image index")
        return index

    def close(self) -> None:
        for path in self._new:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        shutil.rmtree(self._stage if not self._made else self.path, ignore_errors=True)
        if self._fresh and not self._made:
            shutil.rmtree(os.path.join(self.path, b"blobs"), ignore_errors=True)
            os.unlink(os.path.join(self.path, b"oci-layout"))
        os.close(self._lock)


def write_oci(dest_dir: bytes, tag: str | None, config: bytes, layers: Sequence[LayerOut]) -> str:
    """Add an image to the OCI layout `dest_dir` (made if absent); return the manifest digest.

    An image of the same tag is replaced in index.json; its blobs stay. Raises ConflictError
    for a directory that is something else, InvalidNameError for a bad tag, DigestMismatchError
    when a layer is not what `config` lists.
    """
    if tag is not None and not _REF.fullmatch(tag):
        raise InvalidNameError(f"{show(tag)!r}: is no valid tag for an OCI layout")
    configuration = check(config, layers)
    layout = _Layout(dest_dir)
    try:
        done: dict[str, dict[str, Any]] = {}
        for layer in layers:
            if layer.diff_id not in done:
                done[layer.diff_id] = layout.blob(_gzip(layer.verified()), f"{OCI_TAR}+gzip")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": layout.blob([config], _CONFIG),
            "layers": [done[layer.diff_id] for layer in layers],
        }
        descriptor = layout.blob([json_bytes(manifest)], MANIFEST)
        if configuration.platform is not None:
            descriptor["platform"] = _platform(configuration)
        layout.finish(descriptor, tag)
        return str(descriptor["digest"])
    finally:
        layout.close()


def _platform(configuration: Configuration) -> dict[str, str]:
    found = {"architecture": configuration.architecture, "os": configuration.os}
    if configuration.variant:
        found["variant"] = configuration.variant
    return found


def _read(path: bytes) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            yield data


def _sweep(directory: bytes) -> None:
    """Remove what killed writers of archives left beside their target."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if not name.startswith(_STAGE) or not os.path.isdir(os.path.join(path, _LAYOUT)):
            continue
        with contextlib.suppress(OSError):  # somebody else's, or in use
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)


def write_oci_archive(
    target: bytes | BinaryIO,
    tag: str | None,
    config: bytes,
    layers: Sequence[LayerOut],
    *,
    replace: bool = False,
) -> str:
    """Write a tar of an OCI layout to a path or a stream; return the manifest digest.

    Errors as `write_oci`, and ConflictError for an existing path without `replace`.
    """
    with output(target, replace=replace) as out, contextlib.ExitStack() as stack:
        beside = os.path.dirname(target) or b"." if isinstance(target, bytes) else None
        if beside is not None:
            _sweep(beside)
        stage = tempfile.mkdtemp(prefix=_STAGE, dir=beside)
        stack.callback(shutil.rmtree, stage, ignore_errors=True)
        held = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, held)
        fcntl.flock(held, fcntl.LOCK_SH)  # before there is a layout in it: see _sweep()
        layout = os.path.join(stage, _LAYOUT)
        digest = write_oci(layout, tag, config, layers)
        writer = ArchiveWriter(out)
        writer.directory(b"blobs")
        writer.directory(b"blobs/sha256")
        for name in sorted(os.listdir(os.path.join(layout, b"blobs/sha256"))):
            path = os.path.join(layout, b"blobs/sha256", name)
            writer.file(b"blobs/sha256/" + name, os.stat(path).st_size, _read(path))
        for name in (b"index.json", b"oci-layout"):
            path = os.path.join(layout, name)
            writer.file(name, os.stat(path).st_size, _read(path))
        writer.close()
    return digest
