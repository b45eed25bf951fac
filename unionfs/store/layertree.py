"""A layer's directory tree while it is being written, and what is known about each name.

Invariant: every name below the layer's root is in exactly one of `files` and `dirs`, and every
operation names one component relative to a directory fd that was reached without following a
link. So what an archive says can neither read nor change anything outside, and the payload
of every recorded file stays findable: content that a later member replaces moves to `spill/`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from unionfs.branch import Branch, Writer
from unionfs.errors import show
from unionfs.store.names import split

__all__ = ["DEFAULT_ACL", "LAYER_PREFIX", "SPILL", "LayerTree", "Notes"]

LAYER_PREFIX: Final = b"layer/"
#: Directory beside `layer/` for file contents that only the bit-exact record needs.
SPILL: Final = b"spill"
DEFAULT_ACL: Final = "system.posix_acl_default"
_OPEN_DIRS: Final = 64
_MAX_NOTES: Final = 100
_DEFAULT_DIR: Final = stat.S_IFDIR | 0o755


class Notes:
    """Warnings of one ingest, for people; bounded, because an archive can provoke millions."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._left_out = 0

    def add(self, text: str) -> None:
        """Remember one line."""
        if len(self._texts) < _MAX_NOTES:
            self._texts.append(text)
        else:
            self._left_out += 1

    def texts(self) -> tuple[str, ...]:
        """Return the lines; the last one counts those left out."""
        if not self._left_out:
            return tuple(self._texts)
        return (*self._texts, f"and {self._left_out} more warnings")


class LayerTree:
    """The tree below `branch`, which lies in the staging directory open as `stage_fd`.

    `files`: path of every non-directory -> number of its recorded payload, or -1.
    `dirs`: path of every directory (root: `b""`) -> its final mtime in ns. `implied`: directories
    that no member of the archive described. `spilled`: payload number -> path in the image
    directory. `size`: bytes of all regular files. `default_acls`: directory -> its default ACL, set
    at the end because what is made in such a directory would inherit it. `copies`: file that was
    copied from the layers below -> its path there.
    """

    def __init__(self, branch: Branch, writer: Writer, stage_fd: int, notes: Notes) -> None:
        self.branch = branch
        self.writer = writer
        self.notes = notes
        self.files: dict[bytes, int] = {}
        self.dirs: dict[bytes, int] = {b"": 0}
        self.implied: set[bytes] = {b""}
        self.spilled: dict[int, bytes] = {}
        self.size = 0
        self.default_acls: dict[bytes, bytes] = {}
        self.copies: dict[bytes, bytes] = {}
        self._links: dict[bytes, set[bytes]] = {}
        self._stage_fd = stage_fd
        self._spill_fd = -1
        self._fds: OrderedDict[bytes, int] = OrderedDict()

    def close(self) -> None:
        """Release the cached fds; the branch stays open."""
        self._forget_fds()
        if self._spill_fd >= 0:
            os.close(self._spill_fd)
            self._spill_fd = -1

    def _forget_fds(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def dir_fd(self, path: bytes) -> int:
        """Return an O_PATH fd of a directory of the tree.

        It is ours, and only good until the next call: keep a duplicate to work on two at a time.
        """
        if not path:
            return self.branch.fd
        found = self._fds.get(path)
        if found is not None:
            self._fds.move_to_end(path)
            return found
        below: list[bytes] = []
        while path and path not in self._fds:
            path, name = split(path)
            below.append(name)
        fd = self._fds[path] if path else self.branch.fd
        for name in reversed(below):
            fd = self.branch.open_dir(fd, name)
            path = path + b"/" + name if path else name
            self._fds[path] = fd
            if len(self._fds) > _OPEN_DIRS:
                os.close(self._fds.popitem(last=False)[1])
        return fd

    @contextlib.contextmanager
    def pinned(self, path: bytes) -> Iterator[int]:
        """Give a directory fd that stays good for the block."""
        fd = os.dup(self.dir_fd(path))
        try:
            yield fd
        finally:
            os.close(fd)

    # -- making room -------------------------------------------------------------

    def ensure_dir(self, path: bytes, mtime_ns: int) -> None:
        """Make sure `path` is a directory; what is missing is implied (0755, root)."""
        missing: list[bytes] = []
        at = path
        while at not in self.dirs:
            missing.append(at)
            at = split(at)[0]
        for at in reversed(missing):
            if at in self.files:
                self.notes.add(
                    f"{show(at)} is replaced by a directory, because {show(path)} needs one"
                )
                self.remove(at)
            parent, name = split(at)
            self.writer.create(self.dir_fd(parent), name, _DEFAULT_DIR, 0, 0)
            self.dirs[at] = mtime_ns
            self.implied.add(at)
        if path in self.implied:
            self.dirs[path] = max(self.dirs[path], mtime_ns)

    def make_room(self, path: bytes, mtime_ns: int) -> None:
        """Remove what is at `path` and make sure that its parent is a directory."""
        self.ensure_dir(split(path)[0], mtime_ns)
        if path in self.files or path in self.dirs:
            self.remove(path)

    def remove(self, path: bytes) -> None:
        """Remove an entry, a directory with all it holds; recorded contents move to `spill/`."""
        if path in self.files:
            self._unlink(path)
            return
        order = [path]
        for at in order:  # grows while it is walked: parents before children
            for raw in os.listdir(self._proc(at)):
                inner = at + b"/" + os.fsencode(raw)
                if inner in self.dirs:
                    order.append(inner)
                else:
                    self._unlink(inner)
        for at in reversed(order):
            parent, name = split(at)
            fd = self._fds.pop(at, None)
            if fd is not None:
                os.close(fd)
            os.rmdir(name, dir_fd=self.dir_fd(parent))
            del self.dirs[at]
            self.default_acls.pop(at, None)
            self.implied.discard(at)

    def _proc(self, path: bytes) -> bytes:
        """Return a name for calls that take no O_PATH fd; it leads to this very directory."""
        return b"/proc/self/fd/%d" % self.dir_fd(path)

    def _unlink(self, path: bytes) -> None:
        number = self.files.pop(path)
        self.copies.pop(path, None)
        group = self._links.pop(path, None)
        if group is not None:
            group.discard(path)
        parent, name = split(path)
        if not group:
            st = self.branch.status(self.dir_fd(parent), name)
            self.size -= st.size if st.fmt == stat.S_IFREG else 0
        if number < 0 or group:
            os.unlink(name, dir_fd=self.dir_fd(parent))
            return
        spilled = b"%d" % number
        target_fd = self.spill_fd()
        os.rename(name, spilled, src_dir_fd=self.dir_fd(parent), dst_dir_fd=target_fd)
        self.spilled[number] = SPILL + b"/" + spilled

    def spill_fd(self) -> int:
        """Return an fd of `spill/`, making it at first use."""
        if self._spill_fd < 0:
            os.mkdir(SPILL, 0o700, dir_fd=self._stage_fd)
            self._spill_fd = self.branch.open_dir(self._stage_fd, SPILL)
        return self._spill_fd

    # -- bookkeeping -------------------------------------------------------------

    def add_file(self, path: bytes, number: int = -1, size: int = 0) -> None:
        """Note that a non-directory of `size` bytes is at `path`, with payload `number`."""
        self.files[path] = number
        self.size += size

    def add_link(self, path: bytes, other: bytes) -> None:
        """Note that `path` now is another name of the file at `other`."""
        self.files[path] = self.files[other]
        group = self._links.setdefault(other, {other})
        group.add(path)
        self._links[path] = group

    def same_file(self, path: bytes) -> set[bytes]:
        """Return all names of the file at `path`, itself included."""
        return self._links.get(path, {path})

    def hardlinks(self) -> list[list[bytes]]:
        """Return the groups of names that share a file, sorted."""
        groups = {id(group): group for group in self._links.values() if len(group) > 1}
        return sorted(sorted(group) for group in groups.values())

    def locations(self) -> dict[int, bytes]:
        """Return where the payload of each number is, relative to the image directory."""
        found = dict(self.spilled)
        found.update(
            (number, LAYER_PREFIX + path) for path, number in self.files.items() if number >= 0
        )
        return found

    def finish_dirs(self) -> None:
        """Set the default ACLs and times of all directories; the last thing done to a tree."""
        for path, value in self.default_acls.items():
            fd = self.dir_fd(path)
            if self.writer.set_xattrs(fd, b".", {DEFAULT_ACL: value}):
                self.notes.add(f"{show(path)}: its default ACL cannot be kept here")
        for path, mtime_ns in self.dirs.items():
            os.utime(self._proc(path), ns=(mtime_ns, mtime_ns))

    def paths(self) -> Iterable[bytes]:
        """Return the path of every entry below the root."""
        yield from (path for path in self.dirs if path)
        yield from self.files
