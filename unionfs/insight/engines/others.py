"""Other people's engines: kernel overlayfs over naive layers, AUFS, fuse-overlayfs, umoci.

What they are given is the layers as they were shipped, not our normal form. All run inside of
`workplace.apart`.

Invariant: nothing that a program mounts or writes is outside of `place`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from unionfs import _sys
from unionfs.archive import entry as members
from unionfs.branch import Dialect, whiteout
from unionfs.branch.whiteout import Meaning
from unionfs.insight.engines.layers import LayerSource
from unionfs.insight.engines.measure import Reference, measure
from unionfs.insight.engines.reading import Ids, read_directory
from unionfs.insight.engines.seen import Outcome, Shown, View
from unionfs.insight.engines.unpack import unpack_all
from unionfs.insight.engines.workplace import (
    LeftOutError,
    RefusedError,
    is_whole,
    need_space,
    program,
    run,
    serving,
)
from unionfs.insight.probe import split_path
from unionfs.kernel import aufs, overlay
from unionfs.kernel.overlay import OverlaySpec
from unionfs.kernel.overlay_union import overlay_kind
from unionfs.kernel.survey import Kind

__all__ = ["run_aufs", "run_fuse_overlayfs", "run_naive", "run_umoci"]

_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
#: What umoci puts before its errors on a terminal.
_MARK: Final = re.compile(r"^[^\w/.]+")
_INDEX: Final = "application/vnd.oci.image.index.v1+json"


def run_naive(sources: list[LayerSource], place: bytes, reference: Reference | None) -> Outcome:
    """Convert the layers one by one as they are unpacked, and let the kernel merge them."""
    kind = overlay_kind()
    dialect = Dialect.OVERLAY if kind is Kind.TRUSTED else Dialect.OVERLAY_USER
    whole = is_whole()
    layers = unpack_all(sources, place, dialect, whole=whole)
    target, empty = os.path.join(place, b"mnt"), os.path.join(place, b"empty")
    os.mkdir(target)
    lowers = layers[::-1]
    if len(lowers) == 1:  # overlayfs wants two; one below cannot hide anything
        os.mkdir(empty, 0o755)
        lowers.append(empty)
    overlay.mount(OverlaySpec(tuple(lowers), kind, flags=_sys.MS_RDONLY), target)
    try:
        return measure(read_directory(target, Ids()), reference, View(whole=whole))
    finally:
        _sys.umount(target, _sys.MNT_DETACH)


def run_aufs(sources: list[LayerSource], place: bytes, reference: Reference | None) -> Outcome:
    """Mount the layers as they are spelled with AUFS, under an empty rw branch."""
    scratch, target, rw = (os.path.join(place, name) for name in (b"scratch", b"mnt", b"rw"))
    for path in (scratch, target, rw):
        os.mkdir(path, 0o755)
    features = aufs.probe_features(scratch)
    layers = unpack_all(sources, place, Dialect.AUFS, whole=is_whole())
    with aufs.short_names([rw, *reversed(layers)], scratch) as names:
        aufs.mount(aufs.build(names[1:], names[0], features), target)
    try:
        # The root shown is that of the empty branch, which says nothing about the layers.
        shown = (item for item in read_directory(target, Ids()) if item[0])
        return measure(_with_root(shown, reference), reference, View(whole=is_whole()))
    finally:
        _sys.umount(target, _sys.MNT_DETACH)


def _with_root(shown: Iterable[Shown], reference: Reference | None) -> Iterator[Shown]:
    if reference is not None and b"" in reference.tree:
        yield b"", reference.tree[b""], None
    yield from shown


def run_fuse_overlayfs(
    sources: list[LayerSource], place: bytes, reference: Reference | None
) -> Outcome:
    """Let fuse-overlayfs mount the layers as they are spelled."""
    fuse_overlayfs = program("fuse-overlayfs")
    target = os.path.join(place, b"mnt")
    os.mkdir(target)
    layers = unpack_all(sources, place, Dialect.AUFS, whole=is_whole())
    names = []
    for number, path in enumerate(reversed(layers)):
        # Its option has no way to quote a colon that every version understands.
        os.symlink(path, os.path.join(place, b"%d" % number))
        names.append(b"%d" % number)
    argv: list[str | bytes] = [fuse_overlayfs, "-f", "-o", b"lowerdir=" + b":".join(names), target]
    log = os.path.join(place, b"log")
    with serving(argv, target, place, log, end=signal.SIGTERM):
        return measure(read_directory(target, Ids()), reference, View(whole=is_whole()))


def run_umoci(sources: list[LayerSource], place: bytes, reference: Reference | None) -> Outcome:
    """Write an OCI layout and let umoci unpack it."""
    umoci = program("umoci")
    for source in sources:
        _harmless(source)
    need_space(place, 2 * sum(source.size for source in sources))
    _write_layout(sources, os.path.join(place, b"layout"))
    whole = is_whole()
    rootless = [] if whole else ["--rootless"]
    argv = [umoci, "raw", "unpack", *rootless, "--image", "layout:latest", "rootfs"]
    status, said = run(argv, place, os.path.join(place, b"log"))
    if status:
        raise RefusedError(_MARK.sub("", said) or f"exit status {status}")
    root = os.path.join(place, b"rootfs")
    return measure(read_directory(root, Ids()), reference, View(whole=whole))


def _harmless(source: LayerSource) -> None:
    """Refuse layers with which old versions delete or write outside of their directory."""
    for entry in source.stream():
        parts = split_path(entry.name)
        if not parts and entry.kind is not members.Kind.DIRECTORY:
            raise LeftOutError(
                f"{source.title} replaces the root, which no unpacker should be given"
            )
        name = parts[-1] if parts else b""
        if whiteout.classify(name).meaning is Meaning.INVALID:
            raise LeftOutError(
                f"{source.title} has a whiteout of no name, with which umoci before 0.4.8"
                " deletes directories around it"
            )


def _write_layout(sources: Sequence[LayerSource], path: bytes) -> None:
    """Write a layout with one image, its layers uncompressed, tagged `latest`."""
    blobs = os.path.join(path, b"blobs", b"sha256")
    os.makedirs(blobs)
    layers = [_blob(blobs, source) for source in sources]
    config = _document(
        blobs,
        _CONFIG,
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
            "history": [{"created_by": source.title} for source in sources],
        },
    )
    manifest = _document(
        blobs,
        _MANIFEST,
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers},
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [manifest]}
    _write(os.path.join(path, b"index.json"), json.dumps(index).encode())
    _write(os.path.join(path, b"oci-layout"), b'{"imageLayoutVersion": "1.0.0"}')


def _blob(blobs: bytes, source: LayerSource) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = 0
    part = os.path.join(blobs, b"part")
    with open(part, "wb") as file:
        for chunk in source.chunks():
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
    os.rename(part, os.path.join(blobs, digest.hexdigest().encode()))
    return {"mediaType": _LAYER, "digest": f"sha256:{digest.hexdigest()}", "size": size}


def _document(blobs: bytes, media_type: str, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    _write(os.path.join(blobs, digest.encode()), data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _write(path: bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
