"""The rules of `lint`: what is wrong with a layer, what each implementation shows, how to fix it.

What the implementations show was measured (kernel overlayfs over layers converted as containerd
does, fuse-overlayfs 1.10, umoci 0.4.7) or follows from the source (AUFS, containerd).

Invariant: ids are stable and never used again; docs/lint.rst is generated from this table.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

__all__ = ["RULES", "Rule", "Severity"]


class Severity(enum.IntEnum):
    """How bad: ERROR, implementations lose or invent files; WARNING, some differ; INFO, useless."""

    INFO = 1
    WARNING = 2
    ERROR = 3


@attrs.frozen
class Rule:
    """One rule. `example` is layers as in the tests, base first, that break it.

    `fixable` rules can be repaired without changing what OCI says the layers show.
    """

    id: str
    severity: Severity
    title: str
    why: str
    oci: str
    aufs: str
    overlayfs: str
    fuse_overlayfs: str
    containerd: str
    umoci: str
    fix: str
    example: str
    fixable: bool = False

    @property
    def shows(self) -> dict[str, str]:
        """What each implementation makes of it."""
        return {
            "OCI": self.oci,
            "AUFS": self.aufs,
            "kernel overlayfs": self.overlayfs,
            "fuse-overlayfs": self.fuse_overlayfs,
            "containerd": self.containerd,
            "umoci": self.umoci,
        }


_SAME: Final = "as OCI"
_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

_ALL: Final = (
    Rule(
        "bare-whiteout",
        _E,
        "whiteout of no name",
        "`.wh.`, `.wh..` and `.wh...` would hide nothing, the directory itself or its parent.",
        "invalid, readers should refuse the layer",
        "`.wh.` is listed but cannot be reached; the others hide nothing",
        "refused by the converter",
        "`.wh.` in the root of a layer empties the whole mount",
        "refuses the layer",
        "error; 0.4.7 deleted the parent directory",
        "Remove the file.",
        "a ‖ .wh.",
        fixable=True,
    ),
    Rule(
        "whiteout-beside-entry",
        _E,
        "whiteout and entry of one name in one layer",
        "A layer that deletes and re-creates a name needs only the entry; unions that merge"
        " directories cannot tell which came last.",
        "the entry shows, for a whiteout acts on lower layers only",
        "the entry is hidden, or EIO",
        "a directory merges with the one it should replace, or the layer cannot be converted",
        "the entry is hidden",
        "the entry is lost when the whiteout comes second in the archive",
        _SAME,
        "Remove the whiteout; if the entry is a directory, mark that opaque.",
        "x ‖ x .wh.x",
        fixable=True,
    ),
    Rule(
        "whiteout-in-opaque",
        _W,
        "whiteout inside an opaque directory",
        "An opaque directory hides everything below already; also what lies deeper in it.",
        "no effect",
        _SAME,
        "a device that is listed but cannot be opened shows in place of the name",
        _SAME,
        _SAME,
        _SAME,
        "Remove the whiteout.",
        "d/ d/x d/y ‖ d/ d/.wh..wh..opq d/.wh.x d/z",
        fixable=True,
    ),
    Rule(
        "whiteout-not-regular",
        _W,
        "whiteout that is not a regular file",
        "A marker that is a directory, link or device is still recognised by its name by most.",
        "a whiteout is an empty regular file; readers go by the name",
        "EIO on every access to the hidden name",
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        "Replace it with an empty regular file.",
        "x ‖ .wh.x>q",
        fixable=True,
    ),
    Rule(
        "whiteout-not-empty",
        _I,
        "whiteout with content",
        "The content is shipped and never read.",
        "a whiteout is empty; readers go by the name",
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        "Empty the file.",
        "x ‖ .wh.x#content",
        fixable=True,
    ),
    Rule(
        "entry-below-whiteout",
        _E,
        "entry inside a directory with a whiteout's name",
        "A path with a component `.wh.NAME` cannot exist.",
        "invalid",
        "EIO on the hidden name",
        "the directory shows under its reserved name",
        "the name is hidden, the entry is lost",
        "the directory shows under its reserved name",
        "the directory shows under its reserved name",
        "Remove the directory, or give it another name.",
        "x ‖ .wh.x/ .wh.x/y",
    ),
    Rule(
        "dangling-whiteout",
        _I,
        "marker that hides nothing",
        "No layer below has the name. Harmless, but often a sign that a file was moved or that"
        " layers were reordered.",
        "no effect",
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        "Remove the marker.",
        "a ‖ .wh.nope",
        fixable=True,
    ),
    Rule(
        "whiteout-makes-directory",
        _W,
        "whiteout in a directory that does not exist",
        "The whiteout hides nothing, but its parent directories come into being with it.",
        "silent; nothing should appear",
        "empty directories appear",
        "empty directories appear, in them a device that cannot be opened",
        "empty directories appear",
        "empty directories appear",
        _SAME,
        "Remove the whiteout, and the directories unless they are wanted.",
        "a ‖ p/q/.wh.nope",
        fixable=True,
    ),
    Rule(
        "opaque-root",
        _W,
        "opaque marker in the root of a layer",
        "It hides all layers below; unions that test directories as they look them up never test"
        " the root.",
        "hides everything below",
        "no effect: everything below shows",
        "no effect: everything below shows",
        _SAME,
        _SAME,
        _SAME,
        "Ship an image of this layer alone, or whiteouts of the names in the root.",
        "a d/ d/x ‖ .wh..wh..opq b",
    ),
    Rule(
        "opaque-without-parents",
        _W,
        "opaque marker after entries below it whose directories are not in the archive",
        "Appliers that work in the order of the archive remove what they have just unpacked.",
        "the entries show",
        _SAME,
        _SAME,
        _SAME,
        "the entries of the same layer are lost",
        _SAME,
        "Write directories before what is in them, and the marker right after its directory.",
        "a/ a/b/ a/b/bar ‖ a/b/foo a/.wh..wh..opq",
    ),
    Rule(
        "implied-directory",
        _W,
        "directory that is implied, while the layer below has it with other attributes",
        "The archive has the members but not the directory. Unpackers keep what is there; whoever"
        " stores layers one by one makes a new directory, 0755 of root.",
        "silent",
        "mode and owner are lost (0755, root)",
        "mode and owner are lost (0755, root)",
        "mode and owner are lost (0755, root)",
        "keeps them",
        "keeps them",
        "Put the directory into the layer.",
        "d/@700 d/x ‖ d/y",
    ),
    Rule(
        "parent-is-link",
        _W,
        "path through a symbolic link of a layer below",
        "Typical after directories moved to /usr and became links. An unpacker follows the link, a"
        " union covers it with a directory.",
        "silent",
        "the link is replaced by a directory",
        "the link is replaced by a directory",
        "the link is replaced by a directory",
        "follows the link inside the root",
        "follows the link inside the root",
        "Use the path that the link leads to.",
        "r/ r/x l>r ‖ l/y",
    ),
    Rule(
        "parent-is-file",
        _W,
        "path through a file of a layer below",
        "The directory is only implied and a file is in its place.",
        "silent for implied directories",
        "the directory shows",
        "the directory shows",
        "the directory shows",
        "error",
        "error in 0.4.7; later versions replace the file",
        "Put the directory into the layer.",
        "f ‖ f/x",
    ),
    Rule(
        "file-between-directories",
        _W,
        "directory over a file over a directory",
        "A middle layer replaced a directory by something else, a later one made it a directory"
        " again.",
        "the lowest directory stays hidden",
        "both directories merge past the file: deleted files show again",
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        "Mark the upper directory opaque.",
        "d/ d/x ‖ d ‖ d/ d/y",
        fixable=True,
    ),
    Rule(
        "hardlink-to-lower",
        _W,
        "hard link to a file that is not in the layer",
        "The specification lets such a link fail.",
        "may fail",
        "depends on the unpacker",
        "the layer cannot be unpacked on its own",
        "the layer cannot be unpacked on its own",
        "the link works",
        "the link works",
        "Put the file into the layer.",
        "a ‖ b&a",
    ),
    Rule(
        "duplicate-entry",
        _W,
        "name that occurs twice in an archive",
        "The specification forbids it; readers differ in which one they show.",
        "forbidden; readers take the last",
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        "Write each name once.",
        "k ‖ a a>k",
    ),
    Rule(
        "aufs-metadata",
        _W,
        "housekeeping of a union in a layer",
        "`.wh..wh.aufs`, `.wh..wh.plnk`, `.wh..wh.orph` and other `.wh..wh.` names belong to a"
        " live rw branch.",
        "whiteouts of names that do not exist; pseudo-links are not mentioned",
        "ignored; stale pseudo-links confuse it",
        "`.wh..wh.plnk` shows",
        "ignored",
        "`.wh..wh.plnk` shows",
        "`.wh..wh.plnk` shows",
        "Remove them.",
        "x ‖ .wh..wh.aufs y",
        fixable=True,
    ),
    Rule(
        "long-whiteout",
        _W,
        "whiteout in a form of unionfs's own",
        "The name is too long for `.wh.NAME`, so unionfs keeps it in a file's content. In a rw"
        " branch that is how it should be; in a shipped layer only unionfs understands it.",
        "means nothing",
        "ignored: the name shows",
        "ignored: the name shows",
        "ignored: the name shows",
        "ignored: the name shows",
        "ignored: the name shows",
        "Export with `unionfs export`, which writes `.wh.NAME` into the archive.",
        "k ‖ .wh..wh.long.00000000000000000000000000000000",
    ),
    Rule(
        "name-over-242",
        _I,
        "name longer than 242 bytes",
        "AUFS's limit, 255 minus room for its temporary names.",
        "allowed",
        "listed, but every access is ENAMETOOLONG",
        _SAME,
        _SAME,
        _SAME,
        _SAME,
        "Use a shorter name.",
        "n*243",
    ),
    Rule(
        "name-over-251",
        _W,
        "name longer than 251 bytes",
        "`.wh.` and the name make more than 255 bytes, so no file can be its whiteout.",
        "allowed; a whiteout in the archive is a name over 255 bytes",
        "visible only in listings; cannot be deleted",
        "can be deleted live, not as an OCI layer on disk",
        "mounting or deleting fails with ENAMETOOLONG",
        "the whiteout is applied while unpacking",
        "the whiteout is applied while unpacking",
        "Use a shorter name.",
        "n*252",
    ),
    Rule(
        "name-over-255",
        _E,
        "name longer than 255 bytes",
        "No common file system can hold it.",
        "allowed",
        "cannot be unpacked",
        "cannot be unpacked",
        "cannot be unpacked",
        "cannot be unpacked",
        "cannot be unpacked",
        "Use a shorter name.",
        "n*256",
    ),
    Rule(
        "mixed-dialects",
        _E,
        "markers of both AUFS and overlayfs in one layer",
        "`.wh.` names and overlayfs's devices or attributes: every union honours one kind only.",
        "honours `.wh.`; a device is a file",
        "honours `.wh.`; a device is a file",
        "honours devices; `.wh.` names show",
        "honours both",
        "honours `.wh.` while unpacking",
        "honours `.wh.` while unpacking",
        "Convert the layer: `unionfs convert`.",
        "x y ‖ .wh.x y!",
    ),
    Rule(
        "device-zero",
        _E,
        "character device 0/0",
        "Data by OCI, a whiteout for overlayfs. Mostly a layer in overlayfs's form that was never"
        " converted.",
        "a device",
        "a device",
        "hides the name below",
        "hides the name below",
        "depends on the snapshotter: overlayfs hides the name",
        "a device",
        "If it is a whiteout: `unionfs convert --from overlay --to aufs`.",
        "x y ‖ x!",
    ),
    Rule(
        "overlay-xattr",
        _W,
        "attribute of overlayfs on an entry",
        "`trusted.overlay.*` and `user.overlay.*` are bookkeeping; an opaque one hides files on"
        " one union and not on another.",
        "an attribute like any other",
        "ignored",
        "obeyed: a directory may be opaque",
        "obeyed",
        "dropped or refused while unpacking",
        "escaped or dropped",
        "`unionfs convert`, or remove the attribute.",
        "",
    ),
    Rule(
        "opaque-namespace",
        _W,
        "opaque attribute of overlayfs's other namespace",
        "`trusted.overlay.opaque` counts without, `user.overlay.opaque` with the mount option"
        " `userxattr`; the other one is passed over.",
        "an attribute like any other",
        "ignored",
        "ignored: what the directory should hide shows",
        "obeys both",
        "dropped or refused while unpacking",
        "escaped or dropped",
        "`unionfs convert --from` the dialect in which it was written.",
        "",
    ),
    Rule(
        "case-collision",
        _I,
        "names that differ in case only",
        "On file systems that fold case (macOS, Windows) one of them is lost.",
        "two files",
        "two files",
        "two files",
        "two files",
        "two files, one where the host folds case",
        "two files, one where the host folds case",
        "Rename one of them.",
        "README readme",
    ),
    Rule(
        "changed-at-import",
        _I,
        "something was changed or left out at import",
        "The store brings layers into one normal form; this is what it noted and no other rule"
        " says. The exported archive is unchanged.",
        "see the note",
        "see the note",
        "see the note",
        "see the note",
        "see the note",
        "see the note",
        "None needed.",
        "",
    ),
)

#: Rule id -> rule, the order of the documentation.
RULES: Final[dict[str, Rule]] = {rule.id: rule for rule in _ALL}
