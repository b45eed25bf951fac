"""How entries come and go: built in `graph/:tmp:/`, moved by one rename, removed likewise.

Invariant: at any moment, also after a crash, a name in `graph/` is either a complete entry or
absent. What a crash leaves is in `:tmp:`, under a random name that blocks no id, and is swept
when a store is opened; a staging area in use is recognised by the lock on its directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
from typing import TYPE_CHECKING, Final

from unionfs import _sys
from unionfs.closing import Closing
from unionfs.errors import (
    BusyError,
    ConflictError,
    InvalidNameError,
    MissingParentError,
    NotFoundError,
    StoreError,
    show,
)
from unionfs.store._fs import directory, open_dir, open_forced, remove_tree, write_file
from unionfs.store.entry import JSON_NAME, LAYER_NAME, load_entry, load_image
from unionfs.store.facts import FACTS_NAME
from unionfs.store.ids import validate_id
from unionfs.store.locks import hold_image, store_lock, try_exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.store.entry import Image
    from unionfs.store.facts import Facts
    from unionfs.store.ids import ImageId
    from unionfs.store.image import ImageRecord

__all__ = ["TMP_NAME", "Staging", "discard", "sweep"]

TMP_NAME: Final = b":tmp:"
_BATCH: Final = 64  # leftovers removed per turn, each with a descriptor
_EXISTS: Final = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)

_log = logging.getLogger(__name__)


def _open_tmp(graph_fd: int) -> int:
    """Open `:tmp:`, making it when absent."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(TMP_NAME, 0o700, dir_fd=graph_fd)
    try:
        return open_dir(TMP_NAME, graph_fd)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise StoreError("graph/:tmp: of the store is not a directory; remove it") from error
        raise


@contextlib.contextmanager
def _tmp(graph_fd: int) -> Iterator[int]:
    """Open `:tmp:` for one operation: hundreds of staging areas may be open at a time."""
    fd = _open_tmp(graph_fd)
    try:
        yield fd
    finally:
        os.close(fd)


class Staging(Closing):
    """A directory in which an entry is built; made by `Graph.stage`, used in a `with` block.

    `path` and `fd` are the directory. Fill it (`make_layer`, `write_file`, `put_record`,
    `put_facts`), then `commit`. When the block ends without a commit everything is removed.
    An entry that was committed, or found to exist, stays held (it cannot be deleted or
    collected) until the block ends; an import keeps the blocks of all its layers open
    until the image on top is committed and tagged.
    """

    path: bytes
    fd: int

    def __init__(self, graph_fd: int, graph_path: bytes, prefix: str) -> None:
        if not all(char.isascii() and (char.isalnum() or char in "-_") for char in prefix):
            raise InvalidNameError(f"`{show(prefix)}` cannot begin the name of a staging area")
        self._graph_fd = graph_fd
        self._graph_path = graph_path
        self._name = f"{prefix}-{secrets.token_hex(8)}".encode()
        self._committed = False
        self._held: int | None = None
        self.path = graph_path + b"/" + TMP_NAME + b"/" + self._name
        # The shared lock keeps sweepers away until the directory carries its own lock.
        with store_lock(graph_fd, exclusive=False), _tmp(graph_fd) as tmp_fd:
            os.mkdir(self._name, 0o700, dir_fd=tmp_fd)
            self.fd = open_dir(self._name, tmp_fd)
            fcntl.flock(self.fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Let go of the entry; remove the staging area if nothing was committed from it."""
        if self.fd < 0:
            return
        try:
            if not self._committed:
                self._remove()
        except OSError as error:
            # What was going on matters more than this; the next sweep tries again.
            _log.warning("%s could not be removed: %s", show(self.path), error)
        finally:
            os.close(self.fd)
            if self._held is not None:
                os.close(self._held)
            self.fd = -1

    def _remove(self) -> None:
        with _tmp(self._graph_fd) as tmp_fd:
            remove_tree(self._name, tmp_fd)

    def make_layer(self, mode: int = 0o755) -> int:
        """Make the empty `layer/` with exactly this mode; return a descriptor the caller closes."""
        os.mkdir(LAYER_NAME, 0o700, dir_fd=self.fd)
        layer_fd = open_dir(LAYER_NAME, self.fd)
        try:
            os.fchmod(layer_fd, mode)
        except OSError:
            os.close(layer_fd)
            raise
        return layer_fd

    def write_file(self, name: bytes, data: bytes) -> None:
        """Make a file (mode 0600) beside `layer/`."""
        write_file(name, data, self.fd)

    def put_record(self, record: ImageRecord) -> None:
        """Write `json`: the bytes the record was read from, or its canonical form."""
        self.write_file(JSON_NAME, record.stored_bytes)

    def put_facts(self, facts: Facts) -> None:
        """Write `unionfs.json`."""
        self.write_file(FACTS_NAME, facts.encode())

    def commit(self, image_id: ImageId, *, exists_ok: bool = False) -> bool:
        """Put the staged entry into the graph as `image_id`, durably; True if it is new.

        An entry of that id decides as rename(2) does: with `exists_ok` (ids that are made of
        the content) False is returned and the staged copy dropped, else `ConflictError`. A
        damaged entry of that id is replaced. Raises `StoreError` if what is staged is incomplete,
        `MissingParentError` if its parent is not in the graph (any more).
        """
        validate_id(image_id)
        staged = load_entry(self.fd, self.path, image_id)
        # One call for all files of the layer; fsync(2) of each of thousands would take minutes.
        _sys.syncfs(self.fd)
        name = image_id.encode()
        with store_lock(self._graph_fd, exclusive=True), _tmp(self._graph_fd) as tmp_fd:
            self._check_parent(staged)
            for last_try in (False, True):
                try:
                    os.rename(self._name, name, src_dir_fd=tmp_fd, dst_dir_fd=self._graph_fd)
                    break
                except OSError as error:
                    if error.errno not in _EXISTS or last_try:
                        raise
                if self._keep_existing(image_id):
                    if exists_ok:
                        break
                    raise ConflictError(f"image {image_id} already exists")
            self._committed = self._held is None
            # From maker's to user's lock; nobody interferes while we have the store's.
            if self._committed:
                fcntl.flock(self.fd, fcntl.LOCK_SH)
        if not self._committed:
            self._remove()  # now: the block may be kept open for long
            return False
        self.path = self._graph_path + b"/" + name
        os.fsync(self._graph_fd)
        return True

    def _check_parent(self, staged: Image) -> None:
        if staged.parent is None:
            return
        try:
            load_image(self._graph_fd, self._graph_path, staged.parent)
        except NotFoundError as error:
            raise MissingParentError(
                f"image {staged.id} needs the parent {staged.parent}, which is not in the store"
            ) from error

    def _keep_existing(self, image_id: ImageId) -> bool:
        """Hold the existing entry; if it is damaged, move it aside and return False."""
        try:
            load_image(self._graph_fd, self._graph_path, image_id)
        except StoreError as error:
            _log.info("replacing the damaged entry %s: %s", image_id, error)
            _, fd = discard(self._graph_fd, image_id.encode())
            os.close(fd)  # the next sweep removes it
            return False
        with directory(image_id.encode(), self._graph_fd) as fd:
            self._held = hold_image(fd)
        return True


def discard(graph_fd: int, name: bytes) -> tuple[bytes, int]:
    """Take an entry out of the graph; `BusyError` if somebody holds it.

    The caller has the exclusive store lock. Returns its name in `:tmp:` and a descriptor whose
    lock keeps sweepers away; pass both to `remove_tree` after releasing the store lock, or leave
    the rest to the next sweep.
    """
    try:
        fd = open_forced(name, graph_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        fd = os.open(b"/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # a stray file has no lock
    else:
        if not try_exclusive(fd):
            os.close(fd)
            raise BusyError(f"image {show(name)} is in use by a mount or an import")
    trash = b"trash-" + secrets.token_hex(8).encode()
    try:
        with _tmp(graph_fd) as tmp_fd:
            os.rename(name, trash, src_dir_fd=graph_fd, dst_dir_fd=tmp_fd)
    except OSError:
        os.close(fd)
        raise
    return trash, fd


def sweep(graph_fd: int) -> int:
    """Remove what crashed processes left in `:tmp:`; return how many leftovers that were.

    Staging areas and removals of living processes hold a lock and are not touched. What cannot
    be removed is logged and stays.
    """
    removed = 0
    stuck: set[bytes] = set()
    try:
        with directory(TMP_NAME, graph_fd) as tmp_fd:
            if not os.listdir(tmp_fd):
                return 0  # the usual case needs no lock
    except FileNotFoundError:
        return 0
    while True:
        taken: list[tuple[bytes, int | None]] = []
        with store_lock(graph_fd, exclusive=True):
            tmp_fd = _open_tmp(graph_fd)
            for name in sorted(os.listdir(tmp_fd)):
                raw = os.fsencode(name)
                if len(taken) >= _BATCH:
                    break
                if raw in stuck:
                    continue
                try:
                    fd = open_forced(raw, tmp_fd)
                except OSError:
                    taken.append((raw, None))  # a file, or gone
                    continue
                if try_exclusive(fd):
                    taken.append((raw, fd))
                else:
                    os.close(fd)
        try:
            for raw, _ in taken:
                try:
                    remove_tree(raw, tmp_fd)
                    removed += 1
                except OSError as error:
                    stuck.add(raw)
                    _log.warning("leftover :tmp:/%s cannot be removed: %s", show(raw), error)
        finally:
            for _, lock_fd in taken:
                if lock_fd is not None:
                    os.close(lock_fd)
            os.close(tmp_fd)
        if len(taken) < _BATCH:
            return removed
