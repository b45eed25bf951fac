"""Operating system, architecture and variant of an image, and the choice among several.

Invariant: a platform that was asked for is either found exactly or refused by name; the
default is this machine's. Spelling as in Go's GOOS/GOARCH (OCI image-spec, image-index.md).
"""

from __future__ import annotations

import os
from typing import Final

import attrs

from unionfs.errors import UsageError, show

__all__ = ["Platform", "parse_platform"]

_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
    "mips64": ("mips64", ""),
}
_MAX_PARTS: Final = 3


@attrs.frozen
class Platform:
    """`os/architecture[/variant]`; the variant "" stands for "any"."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        parts = [self.os, self.architecture, self.variant]
        return "/".join(part for part in parts if part)

    def accepts(self, other: Platform) -> bool:
        """Tell whether an image for `other` is what was asked for."""
        return (self.os, self.architecture) == (other.os, other.architecture) and (
            not self.variant or self._plain_variant() == other._plain_variant()
        )

    def _plain_variant(self) -> str:
        # containerd, too, takes arm64 for arm64/v8 and arm for arm/v7.
        return self.variant or {"arm64": "v8", "arm": "v7"}.get(self.architecture, "")


def parse_platform(text: str | None) -> Platform:
    """Return the platform that `--platform` names, this machine's for None.

    Raises UsageError for another form than `os/architecture[/variant]`.
    """
    if text is None:
        machine = os.uname().machine
        return Platform("linux", *_MACHINES.get(machine, (machine, "")))
    parts = text.split("/")
    if not 1 < len(parts) <= _MAX_PARTS or not all(parts):
        raise UsageError(f"--platform {show(text)}: write it as linux/amd64 or linux/arm/v7")
    return Platform(*parts)
