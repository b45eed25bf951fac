"""What is known about live mounts: one JSON file per mount in the runtime directory.

The daemon writes its file when the mount works and removes it when it ends; whoever
finds one whose process is gone knows that the daemon was killed. Beside it lies the
daemon's log under the same stem.

Invariant: a file appears complete or not at all (written aside, then renamed), and a
process counts as the daemon only with both pid and start time, so a reused pid never
passes for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeVar

import attrs
import msgspec

from unionfs.errors import UnionfsError, UsageError, show

__all__ = [
    "MountEntry",
    "MountRecord",
    "control_path",
    "decode",
    "encode",
    "mount_namespace",
    "mount_table",
    "process_alive",
    "process_parent",
    "process_start",
    "read_records",
    "record_path",
    "remove_record",
    "runtime_dir",
    "write_record",
]

_SUFFIX: Final = b".json"
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_OWNER: Final = re.compile(rb"\buser_id=(\d+)")
_START_FIELD: Final = 22  # proc_pid_stat(5)
_PARENT_FIELD: Final = 4
#: What `unionfs.kernel` mounts, and what it says the source is.
_KERNEL_TYPES: Final = ("aufs", "overlay")
_KERNEL_SOURCE: Final = b"unionfs"
_AFTER_NAME: Final = 3  # first field behind the parenthesised command name
_BYTES: Final = frozenset(
    ("target", "layers", "rw", "log", "hold", "scratch", "runtime", "control")
)
T = TypeVar("T", bound=attrs.AttrsInstance)


@attrs.frozen
class MountRecord:
    """A mount as its daemon describes it.

    `stem` names the record's files. `layers` are top first. `created` is seconds since the
    epoch; `start` the daemon's start time in clock ticks since boot; `device` the mount's
    `MAJOR:MINOR` in mountinfo; `namespace` the inode number of its mount namespace; `lane`
    whether it has a direct lane (see `unionfs.fuse.lane`), `no_lane` why not; `no_passthrough`
    why it has none though it was asked for (see `unionfs.fuse.passthrough`). `wanted` is the
    back end that was asked for, `reasons` tell why it is no faster one, `losses` what it does
    not show as FUSE would; `scratch` is a directory of the mount to remove at its end;
    `control` is its control socket (`unionfs.fuse.control`).
    """

    stem: str
    target: bytes
    image_id: str | None
    image_name: str | None
    layers: tuple[bytes, ...]
    rw: bytes | None
    ephemeral: bool
    read_only: bool
    backend: str
    pid: int
    start: int
    device: str
    namespace: int
    options: tuple[str, ...]
    log: bytes | None
    created: float
    lane: bool = False
    no_lane: str | None = None
    no_passthrough: str | None = None
    wanted: str = "fuse"
    reasons: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    scratch: bytes | None = None
    control: bytes | None = None


class MountEntry(NamedTuple):
    """One line of mountinfo; `owner` is the uid that a FUSE mount belongs to."""

    device: str
    target: bytes
    fstype: str
    source: bytes
    owner: int | None = None

    @property
    def is_kernel_union(self) -> bool:
        """Whether it is an AUFS or overlayfs mount that unionfs made."""
        return self.fstype in _KERNEL_TYPES and self.source == _KERNEL_SOURCE


def encode(value: attrs.AttrsInstance) -> bytes:
    """Return a record or request as JSON; file names as text with surrogate escapes."""

    def plain(_: object, __: object, item: Any) -> Any:
        return os.fsdecode(item) if isinstance(item, bytes) else item

    return json.dumps(attrs.asdict(value, value_serializer=plain), indent=1).encode()


def decode(kind: type[T], text: bytes) -> T:
    """Read what `encode` wrote; ValueError when it is anything else."""
    return msgspec.convert(_with_names(json.loads(text)), kind, builtin_types=(bytes,))


def _with_names(value: Any, *, is_name: bool = False) -> Any:
    """Turn the text of file names back into bytes, wherever they are."""
    if isinstance(value, dict):
        return {key: _with_names(item, is_name=key in _BYTES) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_names(item, is_name=is_name) for item in value]
    return os.fsencode(value) if is_name and isinstance(value, str) else value


def _outer_uid() -> int:
    """Return the caller's uid as the surrounding user namespace sees it."""
    uid = os.geteuid()
    with open("/proc/self/uid_map", encoding="ascii") as table:
        for line in table:
            first, outer, count = (int(field) for field in line.split())
            if first <= uid < first + count:
                return outer + uid - first
    return uid


def runtime_dir(*, create: bool = False) -> bytes:
    """Return the directory for records and logs of the caller's mounts.

    `$XDG_RUNTIME_DIR/unionfs`, for root /run/unionfs, else /tmp/unionfs-UID. UsageError
    when somebody else owns it or may write there: they could feed us records.
    """
    candidates = []
    chosen = os.environb.get(b"XDG_RUNTIME_DIR", b"")
    if chosen.startswith(b"/") and _owned(chosen):
        candidates.append(os.path.join(chosen, b"unionfs"))
    elif os.geteuid() == 0 and _owned(b"/run") and os.access(b"/run", os.W_OK):
        candidates.append(b"/run/unionfs")
    candidates.append(b"/tmp/unionfs-%d" % _outer_uid())  # owner and mode are checked
    path = candidates[0]
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return path
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid() or st.st_mode & 0o022:
        raise UsageError(
            f"{show(path)} must be a directory that only you can write to; "
            "remove it or set XDG_RUNTIME_DIR"
        )
    return path


def _owned(path: bytes) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def record_path(directory: bytes, stem: str) -> bytes:
    """Return the file that holds the record `stem`."""
    return os.path.join(directory, stem.encode() + _SUFFIX)


def control_path(directory: bytes, stem: str) -> bytes:
    """Return where the control socket of the mount `stem` is."""
    return os.path.join(directory, stem.encode() + b".sock")


def write_record(directory: bytes, record: MountRecord) -> None:
    """Make the record visible."""
    path = record_path(directory, record.stem)
    draft = path + b".new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(encode(record) + b"\n")
    os.rename(draft, path)


def remove_record(directory: bytes, record: MountRecord) -> None:
    """Forget a mount; its log goes too unless something was written to it."""
    for path in (record_path(directory, record.stem), control_path(directory, record.stem)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    if record.log is not None and os.path.dirname(record.log) == directory:
        with contextlib.suppress(OSError):
            if os.stat(record.log).st_size == 0:
                os.unlink(record.log)


def read_records(directory: bytes) -> Iterator[MountRecord]:
    """Yield every readable record, oldest first; files of another form are passed over."""
    found = []
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(_SUFFIX):
            continue
        try:
            with open(os.path.join(directory, name), "rb") as file:
                found.append(decode(MountRecord, file.read()))
        except (OSError, ValueError, TypeError):
            continue
    yield from sorted(found, key=lambda record: (record.created, record.stem))


def mount_table(path: str = "/proc/self/mountinfo") -> list[MountEntry]:
    """Return this process's mounts in the order they were made (proc_pid_mountinfo(5))."""
    entries = []
    with open(path, "rb") as table:
        for line in table:
            fields = line.rstrip(b"\n").split(b" ")
            try:
                dash = fields.index(b"-", 6)
                device, target = fields[2], fields[4]
                fstype, source, options = fields[dash + 1 : dash + 4]
            except (ValueError, IndexError):
                raise UnionfsError(f"{path} has a line of unknown form") from None
            kind = _unescape(fstype).decode()
            owner = _OWNER.search(options)
            entries.append(
                MountEntry(
                    device.decode(),
                    _unescape(target),
                    kind,
                    _unescape(source),
                    int(owner[1]) if owner else None,
                )
            )
    return entries


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)


def mount_namespace() -> int:
    """Return the number of the caller's mount namespace."""
    return os.stat("/proc/self/ns/mnt").st_ino


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is none."""
    fields = _process_fields(pid)
    return None if fields is None else int(fields[_START_FIELD - _AFTER_NAME])


def process_parent(pid: int) -> int | None:
    """Return the parent of a process; None if there is no such process."""
    fields = _process_fields(pid)
    return None if fields is None else int(fields[_PARENT_FIELD - _AFTER_NAME])


def _process_fields(pid: int) -> list[bytes] | None:
    """Return what proc_pid_stat(5) says after the name of a process that has not ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold blanks and parentheses: count from its end.
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else fields


def process_alive(record: MountRecord) -> bool:
    """Tell whether the daemon of `record` still runs."""
    return process_start(record.pid) == record.start
