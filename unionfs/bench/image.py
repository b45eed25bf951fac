"""Measuring an image of the store: its layers in the form that each subject understands.

Invariant: the store is only read; a subject to which the layers cannot be shown truthfully is
left out with the reason, and subjects that show different trees are a failure.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from unionfs.bench.children import BenchError, run
from unionfs.bench.subjects import Ours, Subject
from unionfs.branch import Dialect
from unionfs.branch.override import STAT_XATTR
from unionfs.branch.whiteout import Meaning, classify

__all__ = ["ImageLayers", "survey"]

_DIALECTS: Final = {"overlay": Dialect.OVERLAY, "overlay-userxattr": Dialect.OVERLAY_USER}
_MERGE: Final = Ours("fuse", "unionfs", "")


@attrs.frozen
class ImageLayers:
    """The layers of an image, top first: `size` bytes of data in all.

    `marked` says that there are whiteouts among them, `recorded` that a plain user's store
    keeps owners and modes in extended attributes.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    marked: bool
    recorded: bool

    def reason(self, subject: Subject) -> str | None:
        """Return why this subject cannot show the image as it is, or None."""
        if self.recorded and subject.form in _DIALECTS:
            return "the store of a plain user records owners in a way that overlayfs does not know"
        if self.marked and subject.form == "none":
            return "it does not know .wh. whiteouts, which this image has"
        return None

    def prepare(self, place: Path, subjects: list[Subject]) -> dict[str, tuple[str, ...]]:
        """Return the layers by form, converted or merged below `place` where that is needed."""
        forms = {subject.form for subject in subjects}
        found = dict.fromkeys(forms, self.layers)
        for form in forms & _DIALECTS.keys() if self.marked else ():
            found[form] = tuple(self._converted(place, form))
        if "merged" in forms:
            found["merged"] = (self._merged(place),)
        return found

    def _converted(self, place: Path, form: str) -> Iterator[str]:
        from unionfs.insight.convert import convert  # noqa: PLC0415  # for images with whiteouts

        for number, layer in enumerate(self.layers):
            target = place / f"{form}-{number}"
            convert(os.fsencode(layer), Dialect.AUFS, _DIALECTS[form], os.fsencode(target))
            yield target.name

    def _merged(self, place: Path) -> str:
        """Copy what our own mount shows: nothing else knows every form of a layer."""
        from unionfs.bench.run import mounted_at  # noqa: PLC0415  # that module mounts for us too

        target = place / "merged"
        target.mkdir()
        with mounted_at(_MERGE, place, self.layers) as (_, mountpoint, _):
            run(["cp", "-a", f"{mountpoint}/.", str(target)])
        return target.name


def survey(name: str, layers: list[bytes]) -> ImageLayers:
    """Look through the layers of an image; `BenchError` if they cannot be read."""
    size, marked = 0, False
    for layer in layers:
        for directory, names, files in os.walk(layer, onerror=_refuse):
            for entry in (*names, *files):
                marked = marked or classify(entry).meaning is not Meaning.ENTRY
            for entry in files:
                status = os.lstat(os.path.join(directory, entry))
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    recorded = any(STAT_XATTR in os.listxattr(layer) for layer in layers)
    return ImageLayers(name, tuple(map(os.fsdecode, layers)), size, marked, recorded)


def _refuse(error: OSError) -> None:
    raise BenchError(f"{os.fsdecode(error.filename or b'')}: {error.strerror}")
