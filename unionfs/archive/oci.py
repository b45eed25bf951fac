"""Read an OCI image layout: `oci:` directories and `oci-archive:` files.

Invariant: every document is exactly what its descriptor says (digest, size, media type), a
document can only be a manifest or an index and never both (CVE-2021-41190), and the
configuration lists as many diff_ids as the manifest lists layers.
Source: OCI image-spec 1.1, image-layout.md, image-index.md, manifest.md, config.md.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any, BinaryIO, Final

import attrs
import msgspec

from unionfs.archive.digests import VerifiedReader, check_diff_id, split_digest
from unionfs.archive.files import Files
from unionfs.archive.image import SourceImage, SourceLayer
from unionfs.archive.jsondoc import convert, parse_json, read_document
from unionfs.archive.limits import Limits
from unionfs.archive.platforms import Platform
from unionfs.errors import HostileArchiveError, NotFoundError, UnsupportedError, show

__all__ = [
    "INDEX",
    "MANIFEST",
    "REF_NAME",
    "Configuration",
    "Descriptor",
    "parse_configuration",
    "read_layout",
]

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME: Final = "io.containerd.image.name"
_MANIFESTS: Final = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_INDEXES: Final = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_CONFIGS: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYERS: Final = frozenset(
    prefix + suffix
    for prefix in (
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    )
    for suffix in ("", "+gzip", "+zstd", ".gzip", ".zstd")
)
_MAX_INDEX_DEPTH: Final = 4
_ATTESTATION: Final = "vnd.docker.reference.type"


class _Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""

    def known(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A reference to a blob (image-spec descriptor.md)."""

    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None
    urls: list[str] | None = None

    def annotation(self, key: str) -> str:
        """Return an annotation, "" when there is none."""
        return (self.annotations or {}).get(key, "")


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    config: Descriptor
    layers: list[Descriptor]


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    manifests: list[Descriptor]


class _RootFs(msgspec.Struct, frozen=True):
    type: str
    diff_ids: list[str] | None = None


class Configuration(msgspec.Struct, frozen=True):
    """The part of an image configuration that reading an image needs."""

    rootfs: _RootFs
    architecture: str = ""
    os: str = ""
    variant: str = ""

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The diff_ids, base first."""
        return tuple(self.rootfs.diff_ids or ())

    @property
    def platform(self) -> Platform | None:
        """The platform, None when it is not stated."""
        if not (self.os and self.architecture):
            return None
        return Platform(self.os, self.architecture, self.variant)


def parse_configuration(raw: bytes, layers: int, what: str, limits: Limits) -> Configuration:
    """Decode a configuration and check it against the number of layers."""
    config = convert(parse_json(raw, what, limits), Configuration, what)
    if config.rootfs.type != "layers":
        raise HostileArchiveError(f"{what}: rootfs.type must be `layers`")
    for digest in config.diff_ids:
        check_diff_id(digest, what)
    if len(config.diff_ids) != layers:
        raise HostileArchiveError(
            f"{what}: lists {len(config.diff_ids)} diff_ids, but the image has {layers} layers"
        )
    return config


@attrs.frozen
class _Layout:
    files: Files
    limits: Limits
    wanted: Platform
    explicit: bool

    def blob(self, descriptor: Descriptor) -> BinaryIO:
        """Open a blob; the reader verifies digest and size."""
        algorithm, encoded = split_digest(descriptor.digest, self.files.what)
        what = f"{self.files.what}: blob {descriptor.digest}"
        file, size = self.files.open(f"blobs/{algorithm}/{encoded}")
        if size != descriptor.size:
            file.close()
            raise HostileArchiveError(f"{what}: has {size} bytes, not {descriptor.size}")
        return io.BufferedReader(VerifiedReader(file, descriptor.digest, size, what))

    def document(self, descriptor: Descriptor) -> bytes:
        what = f"{self.files.what}: blob {descriptor.digest}"
        self.limits.check("json_bytes", descriptor.size, what)
        with self.blob(descriptor) as reader:
            return read_document(reader, what, self.limits)

    def parsed(self, descriptor: Descriptor) -> tuple[str, Any]:
        """Read a manifest or an index; return its media type and content."""
        what = f"{self.files.what}: {descriptor.digest}"
        document = parse_json(self.document(descriptor), what, self.limits)
        if not isinstance(document, dict):
            raise HostileArchiveError(f"{what}: is neither a manifest nor an index")
        media_type = document.get("mediaType", descriptor.media_type)
        if descriptor.media_type and media_type != descriptor.media_type:
            raise HostileArchiveError(f"{what}: its mediaType is not that of its descriptor")
        if "manifests" in document and ("layers" in document or "config" in document):
            raise HostileArchiveError(f"{what}: claims to be a manifest and an index at once")
        if "fsLayers" in document or document.get("schemaVersion") == 1:
            raise UnsupportedError(f"{what}: is a schema 1 manifest; convert it with skopeo first")
        expected = INDEX if "manifests" in document else MANIFEST
        media_type = media_type or expected
        if media_type not in (_INDEXES if expected == INDEX else _MANIFESTS):
            raise HostileArchiveError(
                f"{what}: the fields do not fit the media type {media_type!r}"
            )
        return expected, document

    def image(self, descriptor: Descriptor, document: Any, reference: str) -> SourceImage:
        """Build the image of a manifest."""
        what = f"{self.files.what}: {descriptor.digest}"
        manifest = convert(document, _Manifest, what)
        if manifest.config.media_type not in _CONFIGS:
            raise UnsupportedError(
                f"{what}: is an artifact of type {show(manifest.config.media_type[:80])!r}, "
                f"not a container image"
            )
        raw = self.document(manifest.config)
        config = parse_configuration(
            raw, len(manifest.layers), f"{self.files.what}: {manifest.config.digest}", self.limits
        )
        layers = []
        for diff_id, layer in zip(config.diff_ids, manifest.layers, strict=True):
            if layer.media_type not in _LAYERS:
                raise UnsupportedError(
                    f"{what}: layers of type {show(layer.media_type[:80])!r} are not supported"
                )
            self._check_present(layer)
            layers.append(
                SourceLayer(diff_id, layer.media_type, layer.size, partial(self.blob, layer))
            )
        platform = config.platform
        return SourceImage(
            references=(reference,) if reference else (),
            config=raw,
            layers=tuple(layers),
            platform=str(platform) if platform else None,
        )

    def _check_present(self, layer: Descriptor) -> None:
        algorithm, encoded = split_digest(layer.digest, self.files.what)
        if self.files.has(f"blobs/{algorithm}/{encoded}"):
            return
        where = f" (it is to be fetched from {show(layer.urls[0][:200])})" if layer.urls else ""
        raise UnsupportedError(
            f"{self.files.what}: the layer {layer.digest} is not in the archive{where}; "
            f"copy the whole image with skopeo"
        )

    def choose(self, descriptor: Descriptor, reference: str, depth: int = 0) -> SourceImage:
        """Return the image a descriptor leads to, through nested indexes."""
        kind, document = self.parsed(descriptor)
        what = f"{self.files.what}: {descriptor.digest}"
        if kind == MANIFEST:
            image = self.image(descriptor, document, reference)
            if self.explicit and image.platform is not None:
                system, architecture, *variant = image.platform.split("/")
                if not self.wanted.accepts(Platform(system, architecture, *variant)):
                    raise NotFoundError(
                        f"{what}: the image is for {show(image.platform)}, not for {self.wanted}"
                    )
            return image
        if depth >= _MAX_INDEX_DEPTH:
            raise HostileArchiveError(f"{what}: indexes are nested too deeply")
        candidates = convert(document, _Index, what).manifests
        found = best(candidates, self.wanted, what)
        return self.choose(found, reference, depth + 1)


def best(candidates: list[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """Return the descriptor for the wanted platform; one alone without a platform is taken."""
    real = [c for c in candidates if not c.annotation(_ATTESTATION)]
    for candidate in real:
        if candidate.platform is not None and wanted.accepts(candidate.platform.known()):
            return candidate
    if len(real) == 1 and real[0].platform is None:
        return real[0]
    known = sorted({str(c.platform.known()) for c in real if c.platform is not None})
    raise NotFoundError(
        f"{what}: has no image for {wanted}; choose one with --platform: "
        f"{show(', '.join(known)[:300]) or 'none is given'}"
    )


def _reference(descriptor: Descriptor) -> str:
    return descriptor.annotation(_CONTAINERD_NAME) or descriptor.annotation(REF_NAME)


def read_layout(
    files: Files, tag: str | None, wanted: Platform, *, explicit: bool, limits: Limits
) -> tuple[SourceImage, ...]:
    """Return the images of a layout: the one with `tag`, or all.

    For a reference with several platforms the wanted one is taken. `explicit` says that
    somebody asked for the platform, so that an image for another one is refused.
    """
    layout = _Layout(files, limits, wanted, explicit)
    file, _ = files.open("index.json")
    what = f"{files.what}: index.json"
    with file:
        document = parse_json(read_document(file, what, limits), what, limits)
    if isinstance(document, dict) and ("layers" in document or "config" in document):
        raise HostileArchiveError(f"{what}: claims to be a manifest and an index at once")
    index = convert(document, _Index, what)
    groups: dict[str, list[Descriptor]] = {}
    for descriptor in index.manifests:
        if descriptor.annotation(_ATTESTATION):
            continue
        names = {descriptor.annotation(REF_NAME), descriptor.annotation(_CONTAINERD_NAME)}
        if tag is not None and tag not in names:
            continue
        groups.setdefault(_reference(descriptor), []).append(descriptor)
    if tag is not None and not groups:
        known = sorted({_reference(d) for d in index.manifests} - {""})
        raise NotFoundError(
            f"{files.what}: has no image {show(tag)!r}; it has: {show(', '.join(known)[:300])}"
        )
    images = []
    for reference, group in groups.items():
        chosen = group
        if len(group) > 1 and (reference or all(d.platform is not None for d in group)):
            chosen = [best(group, wanted, what)]
        images += [layout.choose(d, reference) for d in chosen]
    if not images:
        raise NotFoundError(f"{files.what}: holds no image")
    return tuple(images)
