"""Where a rw branch lies and which dialect it speaks while kernel overlayfs has it.

While mounted with overlayfs, the content of a branch RW lies in `upper/` of a hidden
directory of RW itself, so that it stays on its filesystem, beside the work directory that
overlayfs demands, and needs no rights outside RW:

    RW/.wh..wh.overlay/form      symbolic link: PHASE:KIND:BOOT-ID
    RW/.wh..wh.overlay/layers    absolute paths of the layers, top first, each ended by NUL
    RW/.wh..wh.overlay/upper/    the branch
    RW/.wh..wh.overlay/work/     overlayfs's own

Invariant: the hidden directory appears and disappears complete, by rename; whatever phase
a crash leaves, `form` says how the content has to be read.
"""

from __future__ import annotations

import contextlib
import enum
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from unionfs.branch import place, whiteout
from unionfs.branch.place import FORM, UPPER
from unionfs.branch.whiteout import Meaning
from unionfs.errors import StoreError, show
from unionfs.kernel import liveness, trees
from unionfs.kernel.survey import Kind
from unionfs.union.workarea import quiet

__all__ = ["LAYERS", "UPPER", "WORK", "Form", "Phase", "State", "moved_names"]

LAYERS: Final = b"layers"
WORK: Final = b"work"
_STAGING: Final = whiteout.OVERLAY_DIR + b".new"
_DOOMED: Final = whiteout.OVERLAY_DIR + b".old"
_MARKER: Final = b"whiteout"
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Phase(enum.Enum):
    """ENTERING and LEAVING: a mixture that may hold AUFS markers; LIVE: overlayfs's own.

    MOVING: AUFS form, on its way out of the hidden directory.
    """

    ENTERING = "entering"
    LIVE = place.LIVE
    LEAVING = "leaving"
    MOVING = "moving"


@attrs.frozen
class Form:
    """What `form` says."""

    phase: Phase
    kind: Kind
    boot: str

    @classmethod
    def parse(cls, text: bytes) -> Form | None:
        """Decode the link's target; None when it is not ours."""
        parts = text.decode("ascii", "replace").split(":")
        try:
            phase, kind, boot = parts
            return cls(Phase(phase), Kind(kind), boot)
        except ValueError:
            return None

    def encode(self) -> bytes:
        """Return the link's target."""
        return f"{self.phase.value}:{self.kind.value}:{self.boot}".encode()


def moved_names(dirfd: int) -> list[bytes]:
    """Return the names of a branch root that belong to its content: all but housekeeping.

    The opaque marker of a root stays where it is: overlayfs knows no such thing.
    """
    names = []
    with os.scandir(dirfd) as listing:
        for entry in listing:
            name = os.fsencode(entry.name)
            meaning = whiteout.classify(name).meaning
            if meaning in (Meaning.ENTRY, Meaning.WHITEOUT, Meaning.LONG_WHITEOUT):
                names.append(name)
    return sorted(names)


class State:
    """The hidden directory of a branch in (or on the way to or from) overlay form."""

    def __init__(self, rw_fd: int, rw: bytes, fd: int, form: Form) -> None:
        self.rw_fd = rw_fd
        self.rw = rw
        self.fd = fd
        self.form = form
        self._base = False

    @classmethod
    def find(cls, rw_fd: int, rw: bytes) -> State | None:
        """Return the state of a branch, None for one in plain AUFS form."""
        try:
            fd = os.open(whiteout.OVERLAY_DIR, _FLAGS, dir_fd=rw_fd)
        except FileNotFoundError:
            return None
        try:
            form = Form.parse(os.readlink(FORM, dir_fd=fd))
        except OSError:
            form = None
        if form is None:
            os.close(fd)
            raise StoreError(
                f"{show(rw)}: the record of its overlay form is damaged"
                f" ({show(whiteout.OVERLAY_DIR)}/form)"
            )
        return cls(rw_fd, rw, fd, form)

    @classmethod
    def create(cls, rw_fd: int, rw: bytes, kind: Kind, layers: Sequence[bytes]) -> State:
        """Begin the way into overlay form: everything is still in place."""
        with quiet(rw_fd):
            trees.remove_tree(rw_fd, _STAGING)
            os.mkdir(_STAGING, 0o700, dir_fd=rw_fd)
            fd = os.open(_STAGING, _FLAGS, dir_fd=rw_fd)
            try:
                form = Form(Phase.ENTERING, kind, liveness.boot_id())
                for name in (UPPER, WORK):
                    os.mkdir(name, 0o700, dir_fd=fd)
                os.symlink(form.encode(), FORM, dir_fd=fd)
                file = os.open(LAYERS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
                with open(file, "wb") as out:
                    out.write(b"".join(path + b"\0" for path in layers))
                os.rename(_STAGING, whiteout.OVERLAY_DIR, src_dir_fd=rw_fd, dst_dir_fd=rw_fd)
            except BaseException:
                os.close(fd)
                raise
        return cls(rw_fd, rw, fd, form)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self.fd)

    def set_phase(self, phase: Phase) -> None:
        """Change the phase in one step."""
        form = attrs.evolve(self.form, phase=phase)
        trees.remove_tree(self.fd, FORM + b".new")
        os.symlink(form.encode(), FORM + b".new", dir_fd=self.fd)
        os.rename(FORM + b".new", FORM, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.form = form

    def layers(self) -> list[bytes]:
        """Return the layers that the branch was mounted over."""
        with open(os.open(LAYERS, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.fd), "rb") as file:
            return file.read().split(b"\0")[:-1]

    def upper_path(self) -> bytes:
        """Return the absolute path of the content."""
        return self.rw + b"/" + whiteout.OVERLAY_DIR + b"/" + UPPER

    def work_path(self) -> bytes:
        """Return the absolute path of overlayfs's work directory."""
        return self.rw + b"/" + whiteout.OVERLAY_DIR + b"/" + WORK

    @contextlib.contextmanager
    def upper(self) -> Iterator[int]:
        """Open the content."""
        try:
            fd = os.open(UPPER, _FLAGS, dir_fd=self.fd)
        except PermissionError:
            # A program took its own rights on the root away; without them nothing can be done.
            mode = os.stat(UPPER, dir_fd=self.fd, follow_symlinks=False).st_mode
            os.chmod(UPPER, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=self.fd)
            fd = os.open(UPPER, _FLAGS, dir_fd=self.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def marker(self, dirfd: int, name: bytes, content: bytes = b"") -> None:
        """Make a whiteout or opaque marker appear whole; it may exist already.

        Empty ones are hard links of one file, as AUFS makes them.
        """
        if content:
            trees.remove_tree(self.fd, _MARKER + b".long")
            self._make(_MARKER + b".long", content)
            os.rename(_MARKER + b".long", name, src_dir_fd=self.fd, dst_dir_fd=dirfd)
            return
        for _ in range(2):
            if not self._base:
                trees.remove_tree(self.fd, _MARKER)
                self._make(_MARKER, b"")
                self._base = True
            try:
                os.link(_MARKER, name, src_dir_fd=self.fd, dst_dir_fd=dirfd)
            except FileExistsError:
                return
            except OSError:
                self._base = False  # EMLINK: begin a new one
            else:
                return
        self._make_at(dirfd, name)

    def _make(self, name: bytes, content: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.fd)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)

    @staticmethod
    def _make_at(dirfd: int, name: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444, dir_fd=dirfd))

    def remove(self) -> None:
        """End the overlay form: all content has left `upper`."""
        with quiet(self.rw_fd):
            trees.remove_tree(self.fd, WORK)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(UPPER, dir_fd=self.fd)  # refuses to lose anything
            trees.remove_tree(self.rw_fd, _DOOMED)
            os.rename(whiteout.OVERLAY_DIR, _DOOMED, src_dir_fd=self.rw_fd, dst_dir_fd=self.rw_fd)
            trees.remove_tree(self.rw_fd, _DOOMED)

    @staticmethod
    def sweep(rw_fd: int) -> None:
        """Remove what a crash before the beginning or after the end left."""
        present = set(os.listdir(rw_fd))
        for name in (_STAGING, _DOOMED):
            if os.fsdecode(name) in present:
                with quiet(rw_fd):
                    trees.remove_tree(rw_fd, name)
