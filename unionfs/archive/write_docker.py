"""Write an image as `docker-archive:`, what `docker save` writes.

Invariant: the same image gives the same bytes every time (times are $SOURCE_DATE_EPOCH or 0).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from unionfs.archive.jsondoc import parse_json
from unionfs.archive.layerout import ArchiveWriter, LayerOut, check, json_bytes, output
from unionfs.archive.limits import DEFAULT
from unionfs.errors import DigestMismatchError, InvalidNameError, show

__all__ = ["write_docker_archive"]


def _tagged(ref: str) -> tuple[str, str]:
    repository, colon, tag = ref.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = ref, "latest"
    if not repository or "@" in ref:
        raise InvalidNameError(f"{show(ref)!r}: a docker-archive needs names like repository:tag")
    return repository, tag


def _chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the hex of the chain_ids, base first (image-spec config.md, "Layer ChainID")."""
    found: list[str] = []
    for diff_id in diff_ids:
        text = f"sha256:{found[-1]} {diff_id}" if found else diff_id
        chain = hashlib.sha256(text.encode()).hexdigest() if found else diff_id[len("sha256:") :]
        found.append(chain)
    return found


def write_docker_archive(
    target: bytes | BinaryIO,
    refs: Sequence[str],
    config: bytes,
    layers: Sequence[LayerOut],
    *,
    replace: bool = False,
) -> str:
    """Write what `docker save` writes (v1.1: manifest.json beside the v1 layout).

    Returns the image id, `sha256:<hex>` of the configuration. The ids of the v1 layout are the
    chain_ids. Errors as `write_oci_archive`; a layer that is not `layer.size` long is a
    DigestMismatchError.
    """
    configuration = check(config, layers)
    names = [_tagged(ref) for ref in refs]
    fields = parse_json(config, "image configuration", DEFAULT)
    image_id = hashlib.sha256(config).hexdigest()
    chain = _chain_ids(configuration.diff_ids)
    with output(target, replace=replace) as out:
        writer = ArchiveWriter(out)
        paths: dict[str, str] = {}
        parent = ""
        for v1_id, layer in zip(chain, layers, strict=True):
            folder = v1_id.encode()
            writer.directory(folder)
            writer.data(folder + b"/VERSION", b"1.0")
            writer.data(folder + b"/json", _v1_json(v1_id, parent, fields, top=v1_id == chain[-1]))
            if layer.diff_id in paths:
                # As docker does: a repeated layer is a link to its first copy.
                writer.link(folder + b"/layer.tar", b"../" + paths[layer.diff_id].encode())
            else:
                paths[layer.diff_id] = f"{v1_id}/layer.tar"
                _layer(writer, folder + b"/layer.tar", layer)
            parent = v1_id
        item = {
            "Config": f"{image_id}.json",
            "RepoTags": [":".join(name) for name in names] or None,
            "Layers": [paths[layer.diff_id] for layer in layers],
        }
        writer.data(f"{image_id}.json".encode(), config)
        writer.data(b"manifest.json", json_bytes([item]))
        if names and chain:
            repositories: dict[str, dict[str, str]] = {}
            for repository, tag in names:
                repositories.setdefault(repository, {})[tag] = chain[-1]
            writer.data(b"repositories", json_bytes(repositories))
        writer.close()
    return f"sha256:{image_id}"


def _layer(writer: ArchiveWriter, name: bytes, layer: LayerOut) -> None:
    size = layer.size
    if size is None:
        size = sum(len(chunk) for chunk in layer.open())
    try:
        writer.file(name, size, layer.verified())
    except ValueError as error:
        raise DigestMismatchError(
            f"layer {layer.diff_id}: is not {size} bytes long any more ({error}); "
            f"import the image again"
        ) from None


def _v1_json(v1_id: str, parent: str, fields: dict[str, Any], *, top: bool) -> bytes:
    document: dict[str, Any] = {"id": v1_id}
    if parent:
        document["parent"] = parent
    document["created"] = fields.get("created") or "1970-01-01T00:00:00Z"
    keys = ("author", "architecture", "os", "variant", "config") if top else ("architecture", "os")
    document.update({key: fields[key] for key in keys if fields.get(key)})
    return json_bytes(document)
