"""Read what `docker save` writes, from its first version to the combined layout of Docker 25.

Invariant: `manifest.json` is trusted first, `index.json` second (it loses entries for images
saved by digest), `repositories` with the v1 layout last; ids are checked before they
become paths (CVE-2014-9358), and paths never lead out of the archive.
Source: moby image/spec v1.md, v1.1.md, v1.2.md ("Combined Image JSON + Filesystem Changeset").
"""

from __future__ import annotations

import io
import re
from functools import partial
from typing import BinaryIO, Final

import attrs
import msgspec

from unionfs.archive.digests import VerifiedReader
from unionfs.archive.files import TarFiles
from unionfs.archive.image import DOCKER_TAR, SourceImage, SourceLayer
from unionfs.archive.jsondoc import convert, parse_json, read_document
from unionfs.archive.limits import Limits
from unionfs.archive.oci import parse_configuration, read_layout
from unionfs.archive.platforms import Platform
from unionfs.errors import HostileArchiveError, NotFoundError, UsageError, show

__all__ = ["read_docker_archive"]

_ID: Final = re.compile(r"[0-9a-f]{8,64}")
_BLOB: Final = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_MAX_CHAIN: Final = 1000


class _Item(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


class _V1(msgspec.Struct, frozen=True):
    id: str = ""
    parent: str = ""
    architecture: str = ""
    os: str = ""


def _canonical(reference: str) -> str:
    """Return a reference as Docker compares it: default host, `library/` and tag made alike."""
    name = reference.removeprefix("docker.io/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


@attrs.frozen
class _Archive:
    files: TarFiles
    limits: Limits

    def document(self, path: str) -> bytes:
        file, size = self.files.open(path)
        what = f"{self.files.what}: {show(path[:200])}"
        self.limits.check("json_bytes", size, what)
        with file:
            raw = read_document(file, what, self.limits)
        blob = _BLOB.fullmatch(path)
        if blob is not None:
            with io.BufferedReader(
                VerifiedReader(io.BytesIO(raw), f"sha256:{blob[1]}", None, what)
            ) as reader:
                reader.read()
        return raw

    def open(self, path: str) -> BinaryIO:
        """Open a layer; blobs of the combined layout are verified by their name."""
        file, size = self.files.open(path)
        blob = _BLOB.fullmatch(path)
        digest = f"sha256:{blob[1]}" if blob is not None else None
        what = f"{self.files.what}: {show(path[:200])}"
        return io.BufferedReader(VerifiedReader(file, digest, size, what))

    def layer(self, path: str, diff_id: str | None) -> SourceLayer:
        file, size = self.files.open(path)
        file.close()
        return SourceLayer(diff_id, DOCKER_TAR, size, partial(self.open, path))

    def by_manifest(self) -> list[SourceImage]:
        what = f"{self.files.what}: manifest.json"
        items = convert(
            parse_json(self.document("manifest.json"), what, self.limits), list[_Item], what
        )
        images = []
        seen: set[str] = set()
        for item in items:
            paths = item.layers or []
            raw = self.document(item.config)
            config = parse_configuration(
                raw, len(paths), f"{self.files.what}: {show(item.config[:200])}", self.limits
            )
            references = tuple(dict.fromkeys(item.repo_tags or ()))
            twice = seen.intersection(references)
            if twice:
                raise HostileArchiveError(f"{what}: two images are called {show(min(twice)[:200])}")
            seen.update(references)
            pairs = zip(paths, config.diff_ids, strict=True)
            images.append(
                SourceImage(
                    references=references,
                    config=raw,
                    layers=tuple(self.layer(path, diff_id) for path, diff_id in pairs),
                    platform=str(config.platform) if config.platform else None,
                )
            )
        return images

    def by_repositories(self) -> list[SourceImage]:
        """Read the v1 layout: `<id>/{VERSION,json,layer.tar}` and perhaps `repositories`."""
        nodes: dict[str, tuple[bytes, _V1]] = {}
        for name in self.files.top_level():
            image_id = name.decode("ascii", "replace")
            if not self.files.has(f"{image_id}/json"):
                continue
            nodes[image_id] = self._v1(image_id)
        tags: dict[str, list[str]] = {}
        if self.files.has("repositories"):
            what = f"{self.files.what}: repositories"
            names = convert(
                parse_json(self.document("repositories"), what, self.limits),
                dict[str, dict[str, str]],
                what,
            )
            for repository, versions in names.items():
                for tag, image_id in versions.items():
                    if image_id not in nodes:
                        raise HostileArchiveError(
                            f"{what}: {show(repository[:200])}:{show(tag[:128])} is "
                            f"{show(image_id[:80])!r}, which is not in the archive"
                        )
                    tags.setdefault(image_id, []).append(f"{repository}:{tag}")
        parents = {v1.parent for _, v1 in nodes.values()}
        heads = [image_id for image_id in nodes if image_id in tags or image_id not in parents]
        if nodes and not heads:
            raise HostileArchiveError(f"{self.files.what}: the images are each other's parents")
        return [self._v1_image(nodes, head, tuple(tags.get(head, ()))) for head in heads]

    def _v1(self, image_id: str) -> tuple[bytes, _V1]:
        what = f"{self.files.what}: {show(image_id)}/json"
        if not _ID.fullmatch(image_id):
            raise HostileArchiveError(f"{what}: the directory is not named by an image id")
        raw = self.document(f"{image_id}/json")
        v1 = convert(parse_json(raw, what, self.limits), _V1, what)
        if v1.id != image_id:
            raise HostileArchiveError(f"{what}: says the id is {show(v1.id[:80])!r}")
        return raw, v1

    def _v1_image(
        self, nodes: dict[str, tuple[bytes, _V1]], head: str, references: tuple[str, ...]
    ) -> SourceImage:
        chain: list[str] = []
        current = head
        while current:
            if current in chain:
                raise HostileArchiveError(f"{self.files.what}: {current} is its own ancestor")
            if current not in nodes:
                raise HostileArchiveError(
                    f"{self.files.what}: the parent {show(current[:80])!r} is missing"
                )
            if len(chain) == _MAX_CHAIN:
                raise HostileArchiveError(f"{self.files.what}: more than {_MAX_CHAIN} layers")
            chain.append(current)
            current = nodes[current][1].parent
        top = nodes[head][1]
        base_first = chain[::-1]
        known = top.os and top.architecture
        return SourceImage(
            references=references,
            config=None,
            layers=tuple(self.layer(f"{image_id}/layer.tar", None) for image_id in base_first),
            platform=f"{top.os}/{top.architecture}" if known else None,
            v1_json=tuple(nodes[image_id][0] for image_id in base_first),
        )


def _select(images: list[SourceImage], ref: str, what: str) -> SourceImage:
    if ref.startswith("@"):
        number = ref[1:]
        if not (number.isascii() and number.isdigit()):
            raise UsageError(f"{what}: {show(ref)!r} is no image number; write @0, @1, ...")
        if int(number) >= len(images):
            raise NotFoundError(f"{what}: has {len(images)} images, there is no {show(ref)}")
        return images[int(number)]
    wanted = _canonical(ref)
    for image in images:
        for reference in image.references:
            if _canonical(reference) == wanted or reference == ref:
                # Only the name that was asked for: the others were not.
                return attrs.evolve(image, references=(reference,))
    known = [reference for image in images for reference in image.references]
    raise NotFoundError(
        f"{what}: has no image {show(ref)!r}; it has: {show(', '.join(known)[:300])}"
    )


def read_docker_archive(
    files: TarFiles, ref: str | None, wanted: Platform, *, explicit: bool, limits: Limits
) -> tuple[SourceImage, ...]:
    """Return the images of a docker-archive: the one called `ref` (or `@N`), or all."""
    archive = _Archive(files, limits)
    if files.has("manifest.json"):
        images = archive.by_manifest()
    elif files.has("index.json"):
        return read_layout(files, ref, wanted, explicit=explicit, limits=limits)
    else:
        images = archive.by_repositories()
    if not images:
        raise NotFoundError(f"{files.what}: holds no image")
    if ref is not None:
        images = [_select(images, ref, files.what)]
    if explicit:
        for image in images:
            parts = (image.platform or str(wanted)).split("/")
            if not wanted.accepts(Platform(*parts[:3])):
                raise NotFoundError(
                    f"{files.what}: the image is for {show(str(image.platform))}, not for {wanted}"
                )
    return tuple(images)
