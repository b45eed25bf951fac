"""What we know about a graph entry beyond Docker's record: the file `unionfs.json`.

It lies beside `json`, so the layout that Docker 0.1 to 0.6 wrote stays as it was; an entry
without it is one of theirs. It is written once, before the entry appears, and never changed.

Invariant: a file written by a later version of the same `format` can be read (unknown
keys are ignored), one of a later `format` is refused and not misread.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from unionfs.errors import StoreError

__all__ = ["FACTS_NAME", "FORMAT", "MAX_FACTS", "Facts", "decode_facts"]

FACTS_NAME: Final = b"unionfs.json"
FORMAT: Final = 1
#: Largest `unionfs.json` that is read, in bytes.
MAX_FACTS: Final = 4 << 20


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Facts about one entry; every field may be absent.

    `diff_id`, `chain_id`, `parent_chain_id`, `config_digest`: digests (`sha256:...`) or None.
    `size`: bytes of file content in `layer/`. `tar_size`: bytes of its archive.
    `entries`: number of archive members.
    `metadata_only`: an image without a file system of its own (`layer/` is empty); its parent
    is its top layer. `transport`: where it came from (`docker-archive`, `commit`, ...).
    `imported`: RFC 3339 time. `has_record`: the bit-exact record of its archive is stored.
    `dialect`: how `layer/` keeps ownership. `warnings`: what ingest changed or left out.
    """

    format: int = FORMAT
    diff_id: str | None = None
    chain_id: str | None = None
    parent_chain_id: str | None = None
    config_digest: str | None = None
    size: int = 0
    tar_size: int = 0
    entries: int = 0
    metadata_only: bool = False
    transport: str = ""
    imported: str = ""
    has_record: bool = False
    dialect: Literal["native", "override"] = "native"
    warnings: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes of `unionfs.json`; `format` is always among them."""
        document = {"format": self.format, **msgspec.to_builtins(self)}
        return msgspec.json.encode(document) + b"\n"


class _Format(msgspec.Struct):
    format: int = FORMAT


def decode_facts(raw: bytes, what: str = "unionfs.json") -> Facts:
    """Read `unionfs.json`; `StoreError` (beginning with `what`) if damaged or too new."""
    if len(raw) > MAX_FACTS:
        raise StoreError(f"{what} is larger than {MAX_FACTS} bytes")
    try:
        version = msgspec.json.decode(raw, type=_Format).format
        if version > FORMAT:
            raise StoreError(
                f"{what} was written by a newer unionfs (format {version}, known is {FORMAT});"
                " use that version"
            )
        return msgspec.json.decode(raw, type=Facts)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreError(f"{what} is damaged: {error}") from error
