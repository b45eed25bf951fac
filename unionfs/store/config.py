"""Image configurations: the JSON document whose digest is an image's id.

What was imported is kept byte for byte (`config.json` of the entry) and never re-encoded; new
documents are made from the parent's, keeping every key we do not know (OCI image-spec, config.md).

Invariant: a new document is a function of its inputs and of `SOURCE_DATE_EPOCH`, so the same
import or commit gives the same image id everywhere.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Final

from unionfs.archive.jsondoc import parse_json
from unionfs.archive.limits import DEFAULT, Limits
from unionfs.errors import HostileArchiveError, StoreError, UsageError, show
from unionfs.store._fs import directory, read_file
from unionfs.store._json import dump_compact
from unionfs.store.entry import Image
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.image import ZERO_TIME, ImageRecord, parse_time

__all__ = [
    "CONFIG_NAME",
    "apply_changes",
    "config_of",
    "derive",
    "encode",
    "from_records",
    "history_of_layers",
    "new_config",
    "parse_config",
    "read_config",
    "record_of",
]

#: File of an image's entry with the document as it was imported.
CONFIG_NAME: Final = b"config.json"
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}
_PAIR: Final = 2


def parse_config(raw: bytes, limits: Limits = DEFAULT) -> dict[str, Any]:
    """Return the document; `HostileArchiveError` if it is none or is for something else.

    OCI image-spec: a `rootfs.type` other than `layers` MUST be an error.
    """
    document = parse_json(raw, "image configuration", limits)
    if not isinstance(document, dict):
        raise HostileArchiveError("image configuration: it is not a JSON object")
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise HostileArchiveError("image configuration: `rootfs.type` is not `layers`")
    diff_ids = rootfs.get("diff_ids")
    if diff_ids is None:
        diff_ids = rootfs["diff_ids"] = []
    if not isinstance(diff_ids, list) or not all(isinstance(item, str) for item in diff_ids):
        raise HostileArchiveError("image configuration: `rootfs.diff_ids` is not a list of digests")
    return document


def encode(document: dict[str, Any]) -> bytes:
    """Return the bytes of a new document."""
    return dump_compact(document)


def read_config(image: Image) -> bytes | None:
    """Return the stored document of an image, None if the entry has none (early Docker's)."""
    with directory(image.path) as fd:
        try:
            return read_file(
                CONFIG_NAME, fd, DEFAULT.json_bytes, f"`config.json` of image {image.id}"
            )
        except FileNotFoundError:
            return None


def new_config(architecture: str | None = None) -> dict[str, Any]:
    """Return the document of an image without layers."""
    machine = os.uname().machine
    return {
        "architecture": architecture or _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }


def derive(
    parent: dict[str, Any], diff_ids: Sequence[str], created: str, entry: dict[str, Any]
) -> dict[str, Any]:
    """Return the document of an image with layers `diff_ids` on top of `parent`'s.

    `entry` is the history entry of the topmost of them (`created` is added).
    """
    document = copy.deepcopy(parent)
    document["created"] = created
    document["rootfs"]["diff_ids"] = [*document["rootfs"]["diff_ids"], *diff_ids]
    history = document.get("history")
    if isinstance(history, list):
        filled = [item for item in history if not _is_empty(item)]
        if len(filled) == len(parent["rootfs"]["diff_ids"]):
            document["history"] = [*history, *({"created": created, **entry} for _ in diff_ids)]
        else:
            del document["history"]  # it was wrong already; the specification lets it be absent
    return document


def _is_empty(item: object) -> bool:
    return isinstance(item, dict) and item.get("empty_layer") is True


def history_of_layers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the history entry of every layer, base first.

    Where there is none, or it has no time, the image's own time stands.
    """
    default = {key: document[key] for key in ("created",) if key in document}
    count = len(document["rootfs"]["diff_ids"])
    history = document.get("history")
    filled = [item for item in history if not _is_empty(item)] if isinstance(history, list) else []
    if len(filled) != count or not all(isinstance(item, dict) for item in filled):
        return [dict(default) for _ in range(count)]
    return [default | item for item in filled]


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _time(document: dict[str, Any]) -> str:
    text = _text(document, "created")
    try:
        parse_time(text)
    except StoreError:
        return ZERO_TIME
    return text


def record_of(document: dict[str, Any], **fields: Any) -> ImageRecord:
    """Return Docker's record for an image (or a history entry) described by `document`."""
    container_config = document.get("container_config")
    config = document.get("config")
    values: dict[str, Any] = {
        "comment": _text(document, "comment"),
        "created": _time(document),
        "container": _text(document, "container"),
        "container_config": container_config if isinstance(container_config, dict) else {},
        "docker_version": _text(document, "docker_version"),
        "author": _text(document, "author"),
        "config": config if isinstance(config, dict) else None,
        "architecture": _text(document, "architecture"),
        "os": _text(document, "os"),
    }
    return ImageRecord(**(values | fields))


def from_records(records: Sequence[ImageRecord], diff_ids: Iterable[str]) -> dict[str, Any]:
    """Return a document for an image of Docker's v1 format; `records` are base first."""
    top = records[-1]
    document = new_config(top.architecture or None)
    if document["architecture"] == "x86_64":
        document["architecture"] = "amd64"  # Docker 0.4 wrote the kernel's name
    document["created"] = top.created
    if top.author:
        document["author"] = top.author
    if top.os:
        document["os"] = top.os
    document["config"] = top.config if top.config is not None else top.container_config
    document["rootfs"]["diff_ids"] = list(diff_ids)
    for record in records:
        item = {"created": record.created, "created_by": _command(record)}
        if record.author:
            item["author"] = record.author
        if record.comment:
            item["comment"] = record.comment
        document["history"].append(item)
    return document


def config_of(graph: Graph, image_id: ImageId, diff_ids: Sequence[str]) -> dict[str, Any]:
    """Return the document of an image, made from its records if it is early Docker's.

    `diff_ids` are those of its layers, base first; they are used in that case only.
    """
    raw = read_config(graph.get_exact(image_id))
    if raw is not None:
        return parse_config(raw)
    records = [image.record for image in graph.history(image_id) if not image.metadata_only]
    return from_records(records[::-1], diff_ids)


def _command(record: ImageRecord) -> str:
    command = record.container_config.get("Cmd")
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        return " ".join(command)
    return ""


# -- changes asked for by people ---------------------------------------------------


def apply_changes(document: dict[str, Any], changes: Iterable[str]) -> None:
    """Change the runtime configuration in `document` by texts like `CMD=["sh"]` or `ENV=A=b`.

    Keys are those of Dockerfiles: CMD, ENTRYPOINT, ENV, WORKDIR, USER, LABEL, EXPOSE, VOLUME,
    STOPSIGNAL; a blank may stand for the first `=`. Raises `UsageError` for anything else.
    """
    config = document.get("config")
    if not isinstance(config, dict):
        config = document["config"] = {}
    for change in changes:
        key, value = _split_change(change)
        handler = _CHANGES.get(key)
        if handler is None:
            raise UsageError(
                f"--change {show(change)}: {show(key)} is not known; known are "
                + ", ".join(sorted(_CHANGES))
            )
        handler(config, value, change)


def _split_change(change: str) -> tuple[str, str]:
    at = min((change.find(char) for char in "= " if char in change), default=-1)
    if at < 0:
        raise UsageError(f"--change {show(change)}: write KEY=VALUE, for example CMD=/bin/sh")
    return change[:at].strip().upper(), change[at + 1 :].strip()


def _words(value: str, change: str) -> list[str]:
    """Return a command: a JSON list of texts, or a line for the shell (as Dockerfiles)."""
    if value.startswith("["):
        try:
            words = json.loads(value)
        except ValueError as error:
            raise UsageError(f"--change {show(change)}: that is no JSON list: {error}") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"--change {show(change)}: a list of texts is needed")
        return words
    return ["/bin/sh", "-c", value] if value else []


def _command_change(name: str) -> Any:
    def change_command(config: dict[str, Any], value: str, change: str) -> None:
        config[name] = _words(value, change) or None

    return change_command


def _text_change(name: str) -> Any:
    def change_text(config: dict[str, Any], value: str, _change: str) -> None:
        config[name] = value

    return change_text


def _pairs(value: str, change: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise UsageError(f"--change {show(change)}: {error}") from None
    if words and "=" not in words[0] and len(words) >= _PAIR:
        words = [words[0] + "=" + " ".join(words[1:])]
    pairs = [tuple(word.split("=", 1)) for word in words]
    if not pairs or any(len(pair) != _PAIR or not pair[0] for pair in pairs):
        raise UsageError(f"--change {show(change)}: write NAME=VALUE")
    return [(pair[0], pair[1]) for pair in pairs]


def _env(config: dict[str, Any], value: str, change: str) -> None:
    present = config.get("Env")
    env = [item for item in present if isinstance(item, str)] if isinstance(present, list) else []
    for name, text in _pairs(value, change):
        line = f"{name}={text}"
        places = [at for at, item in enumerate(env) if item.split("=", 1)[0] == name]
        if places:
            env[places[0]] = line
        else:
            env.append(line)
    config["Env"] = env


def _label(config: dict[str, Any], value: str, change: str) -> None:
    labels = config.get("Labels")
    config["Labels"] = (labels if isinstance(labels, dict) else {}) | dict(_pairs(value, change))


def _set_change(name: str, suffix: str = "") -> Any:
    def change_set(config: dict[str, Any], value: str, change: str) -> None:
        items = _words(value, change) if value.startswith("[") else value.split()
        present = config.get(name)
        known = present if isinstance(present, dict) else {}
        config[name] = known | {
            item if "/" in item or not suffix else item + suffix: {} for item in items
        }

    return change_set


_CHANGES: Final = {
    "CMD": _command_change("Cmd"),
    "ENTRYPOINT": _command_change("Entrypoint"),
    "ENV": _env,
    "EXPOSE": _set_change("ExposedPorts", "/tcp"),
    "LABEL": _label,
    "STOPSIGNAL": _text_change("StopSignal"),
    "USER": _text_change("User"),
    "VOLUME": _set_change("Volumes"),
    "WORKDIR": _text_change("WorkingDir"),
}
