"""What stands in the columns and lines of the explorer, as plain text.

Invariant: nothing that comes from a layer (names, link targets, commands, tags) gets through
unescaped, so no byte of an image reaches the terminal as anything but a visible character.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from unionfs.branch import Status
from unionfs.cli.output import size
from unionfs.errors import show
from unionfs.explore.model import Kind
from unionfs.insight.probe import kind_name
from unionfs.insight.waste import LayerWaste
from unionfs.insight.where import NamedBranch

__all__ = [
    "KIND_WORDS",
    "command",
    "content",
    "counted",
    "details",
    "facts",
    "size_of",
    "status_line",
]

KIND_WORDS: Final = {
    Kind.ADDED: "added",
    Kind.CHANGED: "changed",
    Kind.DELETED: "deleted",
    Kind.HIDDEN: "hidden",
    Kind.SAME: "unchanged",
}
_SHELL: Final = ("/bin/sh -c #(nop) ", "/bin/sh -c ", "|0 ", "RUN /bin/sh -c ")
_ROW: Final = 16
_PLURALS: Final = {"entry": "entries"}


def clean(text: str) -> str:
    """Return a text in which no character acts: the last guard, for texts made elsewhere."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else show(char) for char in text)


def command(named: NamedBranch) -> str:
    """Return what made a layer, without the shell around it; else what it is."""
    text = named.command
    for prefix in _SHELL:
        text = text.removeprefix(prefix)
    if text.strip():
        return show(" ".join(text.split()))
    return named.title if named.layer_id else show(os.path.basename(named.path))


def size_of(status: Status | str) -> str:
    """Return the size column: bytes of a file, numbers of a device."""
    if isinstance(status, str):
        return "?"
    if status.fmt == stat.S_IFREG:
        return size(status.size)
    if status.fmt in (stat.S_IFCHR, stat.S_IFBLK):
        return f"{os.major(status.rdev)}, {os.minor(status.rdev)}"
    return ""


def facts(status: Status | str) -> str:
    """Return mode and owner as `ls -ln` does."""
    if isinstance(status, str):
        return "?"
    return f"{stat.filemode(status.mode)} {status.uid}:{status.gid}"


def status_line(kind: Kind, number: int, status: Status | str) -> str:
    """Return everything about an entry in one line, but its path."""
    if isinstance(status, str):
        about = status
    else:
        about = f"{kind_name(status.fmt)} {stat.S_IMODE(status.mode):04o} {status.uid}:{status.gid}"
        about += f" {size_of(status)}".rstrip()
    return f"{KIND_WORDS[kind]} · layer {number} · {about}"


def counted(number: int, word: str) -> str:
    """Return a number with its word, in the plural where it is one."""
    return f"{number} {word if number == 1 else _PLURALS.get(word, f'{word}s')}"


def details(named: NamedBranch, waste: LayerWaste | None) -> list[tuple[str, str]]:
    """Return labels and values of a layer."""
    found = []
    if named.names:
        found.append(("tags", show(", ".join(named.names))))
    if named.command:
        found.append(("by", command(named)))
    if named.created:
        found.append(("created", show(named.created[:16].replace("T", " "))))
    if waste is not None:
        found.append(("ships", f"{size(waste.size)}, {counted(waste.files, 'file')}"))
        if waste.wasted:
            found.append(("wasted", size(waste.wasted)))
        if waste.markers:
            found.append(("markers", str(waste.markers)))
    if named.layer_id:
        found.append(("id", show(named.layer_id[:12])))
    else:
        found.append(("path", show(named.path)))
    return found


def content(data: bytes) -> list[str]:
    """Return the beginning of a file as lines: its text, or a dump of what is none."""
    if b"\0" not in data:
        return [show(line.expandtabs(8)) for line in data.split(b"\n")]
    lines = []
    for at in range(0, len(data), _ROW):
        row = data[at : at + _ROW]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)  # noqa: PLR2004  # printable ASCII
        lines.append(f"{at:08x}  {row.hex(' '):<{3 * _ROW}} {text}")
    return lines
