"""Planning how deletions and changes of a rw branch are taken back.

A plan takes back some kinds of change (`unionfs.union.undo`) at one path and below it, and
nothing else: where a marker hides more than the path, the rest is hidden one by one before the
marker goes.

Invariant: planning reads only, by path and one directory at a time, so it is the same for a
live engine and for a branch that nobody uses.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from unionfs.branch import Branch, Child, DirScan, Stack, Status, whiteout
from unionfs.errors import ConflictError, NotFoundError, UsageError, show
from unionfs.union.hardlinks import scan_links
from unionfs.union.undo import Action, Kind, Plan, Targets, Template, Undo

__all__ = ["plan_restore"]


def plan_restore(rw: Branch, lowers: Sequence[Branch], undo: Undo, path: bytes) -> Plan:
    """Plan `undo` at a path, absolute or relative to the root of the image.

    `lowers` are the layers, top first; without them only what the rw branch alone can tell is
    done. Raises NotFoundError when there is nothing to undelete or revert, ConflictError when
    something of the rw branch is in the way, UsageError and OSError.
    """
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"{show(path)}: give the path without `..`")
    for part in parts:
        if whiteout.is_reserved(part):
            raise UsageError(
                f"{show(path)}: `{show(part)}` is the name of a marker; give the path that it hides"
            )
    if not lowers and undo is Undo.REVERT:
        raise UsageError("reverting needs the layers below the branch: name the image or --layer")
    try:
        found = _Planner(rw, lowers, undo.kinds).plan(_trie([parts]))
        if undo is Undo.REVERT:
            others = _other_names(rw, lowers, found)
            if others:
                found = _Planner(rw, lowers, undo.kinds).plan(_trie([parts, *others]))
                found.notes += [
                    f"{show(b'/' + b'/'.join(other))} is the same file and goes back as well"
                    for other in others
                ]
        else:
            found.notes += _left_alone(rw, found)
    except RecursionError:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path) from None
    if found.empty and undo is not Undo.RESET:
        raise NotFoundError(_why_nothing(rw, lowers, undo, parts))
    return found


def _trie(paths: Sequence[Sequence[bytes]]) -> Targets | None:
    root: Targets = {}
    for parts in paths:
        if not parts:
            return None
        current = root
        for part in parts[:-1]:
            inner = current.setdefault(part, {})
            if inner is None:
                break
            current = inner
        else:
            current[parts[-1]] = None
    return root


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


class _Planner:
    def __init__(self, rw: Branch, lowers: Sequence[Branch], kinds: Kind) -> None:
        self._rw = rw
        self._stack = Stack(lowers) if lowers else None
        self._kinds = kinds
        self._all = kinds == Kind.A | Kind.C | Kind.D
        self._plan = Plan()

    def plan(self, targets: Targets | None) -> Plan:
        self._plan.targets = targets
        self._settle(b"", hidden=False, targets=targets)
        self._plan.actions.sort(key=lambda action: action.path)
        return self._plan

    # -- reading -----------------------------------------------------------------

    def _scan(self, at: bytes) -> DirScan:
        fd = self._rw.open_path(at)
        try:
            return self._rw.scan(fd)
        finally:
            os.close(fd)

    def _statuses(self, at: bytes, names: Sequence[bytes]) -> list[tuple[bytes, Status]]:
        fd = self._rw.open_path(at)
        try:
            return [(name, self._rw.status(fd, name)) for name in names]
        finally:
            os.close(fd)

    def _listing(self, at: bytes) -> dict[bytes, Child]:
        view = self._stack.view(at) if self._stack is not None else None
        return {} if view is None else view.listing

    def _lower_fmt(self, at: bytes, name: bytes) -> int:
        view = self._stack.view(at) if self._stack is not None else None
        status = None if view is None else view.status(name)
        return 0 if status is None else status.fmt

    def _act(self, verb: str, at: bytes, name: bytes, fmt: int, size: int = 0) -> None:
        self._plan.actions.append(Action(verb, b"/" + _join(at, name), fmt, size))

    # -- one directory of the rw branch ----------------------------------------------

    def _settle(self, at: bytes, *, hidden: bool, targets: Targets | None) -> bool:
        """Plan one directory; tell whether the layers' one must show through it afterwards.

        `hidden` says that something above keeps the layers' one from showing now.
        """
        plan, kinds = self._plan, self._kinds
        scan, listing = self._scan(at), self._listing(at)
        closed = hidden or scan.opaque
        wanted: set[bytes] = set()
        if targets is None:
            names = sorted({*scan.entries, *scan.whiteouts, *listing})
            self._attributes(at)
        else:
            names = sorted(targets)
        for name in names:
            inner = None if targets is None else targets[name]
            own, low = scan.entries.get(name), listing.get(name)
            white = name in scan.whiteouts
            covered = closed or white
            needless = False
            if own is None:
                needless = low is None and white and inner is None and Kind.D in kinds
                shows = self._uncover(at, name, low, covered=covered, white=white, inner=inner)
            else:
                shows = self._own(at, name, own, low, covered=covered, inner=inner)
            if shows:
                wanted.add(name)
            if shows or needless:
                plan.shown.setdefault(at, set()).add(name)
                if white:
                    plan.unhidden.append((at, name))
        everything = targets is None and Kind.D in kinds
        if not closed or not (wanted or everything):
            return False
        for name, low in listing.items():
            if name in wanted or name in scan.whiteouts:
                continue
            if name not in scan.entries:
                plan.hidden.append((at, name))
            elif low.is_dir and scan.entries[name] == stat.S_IFDIR:
                plan.closed.append(_join(at, name))
        if scan.opaque:
            plan.opened.append(at)
            if self._stack is None:
                self._act("undelete", *os.path.split(at), stat.S_IFDIR)
        return True

    def _own(
        self,
        at: bytes,
        name: bytes,
        own: int,
        low: Child | None,
        *,
        covered: bool,
        inner: Targets | None,
    ) -> bool:
        """Plan a name that the rw branch has; tell whether the layers' one shows afterwards."""
        both = own == stat.S_IFDIR and (low.is_dir if low is not None else self._stack is None)
        if own == stat.S_IFDIR and (inner is not None or (both and not self._all)):
            return self._settle(_join(at, name), hidden=covered or not both, targets=inner) and both
        if inner is not None:
            if low is None or not low.is_dir:
                return False  # nobody has anything there
            shown = show(b"/" + _join(at, name))
            raise ConflictError(
                f"{shown} is no directory in the rw branch, so nothing can show below it;"
                " revert that first"
            )
        if not self._all and (low is None or Kind.C not in self._kinds):
            return False
        self._plan.removed.append((at, name))
        self._plan.shown.setdefault(at, set()).add(name)
        for _, status in self._statuses(at, [name]):
            self._report(at, name, status, covered=covered)
        return low is not None

    def _uncover(
        self,
        at: bytes,
        name: bytes,
        low: Child | None,
        *,
        covered: bool,
        white: bool,
        inner: Targets | None,
    ) -> bool:
        """Plan a name that the rw branch has not; tell whether something hidden shows then."""
        if low is None:
            if white and self._stack is None and Kind.D in self._kinds:
                if inner is not None:
                    shown = show(b"/" + _join(at, name))
                    raise UsageError(
                        f"{shown} as a whole is deleted: undelete that, or name the layers below"
                        " the branch (an image or --layer)"
                    )
                self._act("undelete", at, name, 0)
            return False
        if not covered or Kind.D not in self._kinds:
            return False
        if inner is None:
            self._act("undelete", at, name, self._lower_fmt(at, name))
            return True
        template = self._template(_join(at, name), inner) if low.is_dir else None
        if template is None:
            return False
        self._plan.built.append((at, name, template))
        return True

    def _template(self, path: bytes, targets: Targets) -> Template | None:
        listing = self._listing(path)
        kept: dict[bytes, Template | None] = {}
        for name, inner in sorted(targets.items()):
            low = listing.get(name)
            if low is None:
                continue
            if inner is None:
                kept[name] = None
                self._act("undelete", path, name, self._lower_fmt(path, name))
            elif low.is_dir:
                below = self._template(_join(path, name), inner)
                if below is not None:
                    kept[name] = below
        if not kept:
            return None
        return Template(path, kept, tuple(sorted(listing.keys() - kept.keys())))

    def _attributes(self, at: bytes) -> None:
        """Plan the attributes of a directory that layers and rw branch both have."""
        view = self._stack.view(at) if self._stack is not None else None
        if view is None or Kind.C not in self._kinds:
            return
        if self._differs(at):
            self._plan.dressed.append(at)
            self._act("revert", *os.path.split(at), stat.S_IFDIR)
        elif self._all:
            self._plan.dressed.append(at)  # its times

    def _differs(self, at: bytes) -> bool:
        """Tell whether a directory of the rw branch shows other attributes; times do not count."""
        if self._stack is None or not at:
            return False  # the root's attributes are never reported (`unionfs.store.changes`)
        parent, name = os.path.split(at)
        view = self._stack.view(parent)
        if view is None:
            return False
        lower, lower_fd = view.top(name)
        fd = self._rw.open_path(at)
        try:
            new, old = self._rw.status(fd, b"."), lower.status(lower_fd, name)
            if (new.mode, new.uid, new.gid) != (old.mode, old.uid, old.gid):
                return True
            return self._rw.all_xattrs(fd, b".") != lower.all_xattrs(lower_fd, name)
        finally:
            os.close(fd)

    # -- what goes -----------------------------------------------------------------

    def _report(self, at: bytes, name: bytes, status: Status, *, covered: bool) -> None:
        """List what goes, and what comes, when an entry of the rw branch is taken away."""
        low = self._listing(at).get(name)
        size = status.size if status.fmt == stat.S_IFREG else 0
        path = _join(at, name)
        if status.fmt != stat.S_IFDIR:
            key = (status.dev, status.ino)
            self._plan.lost[key] += 1
            if status.nlink > 1:
                self._plan.linked.append((path, key, status.nlink))
            self._act("remove" if low is None else "revert", at, name, status.fmt, size)
            return
        merging = low is not None and low.is_dir
        if low is None:
            self._act("remove", at, name, status.fmt)
        elif not merging or self._differs(path):
            self._act("revert", at, name, status.fmt)
        scan = self._scan(path)
        covered = covered or scan.opaque
        listing = self._listing(path) if merging else {}
        gone = listing.keys() if covered else scan.whiteouts & listing.keys()
        for inner in sorted(gone - scan.entries.keys()):
            self._act("undelete", path, inner, self._lower_fmt(path, inner))
        for inner, own in self._statuses(path, sorted(scan.entries)):
            self._report(path, inner, own, covered=covered or inner in scan.whiteouts)


# -- hard links ----------------------------------------------------------------------


def _linked(rw: Branch, plan: Plan) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
    """Yield (path, all names) of removed files that have names which are not removed."""
    suspects = [(path, key) for path, key, nlink in plan.linked if nlink > plan.lost[key]]
    table = scan_links(rw) if suspects else {}
    for path, (_, ino) in suspects:
        yield path, table.get(ino, ())


def _other_names(rw: Branch, lowers: Sequence[Branch], plan: Plan) -> list[list[bytes]]:
    """Return the other names of reverted files that are the same file in the layers, too."""
    stack = Stack(lowers)
    removed = {_join(at, name) for at, name in plan.removed}
    found: set[bytes] = set()
    for path, names in _linked(rw, plan):
        own = stack.status(path)
        for other in names:
            status = stack.status(other) if other not in removed else None
            if own and status and (own.dev, own.ino) == (status.dev, status.ino):
                found.add(other)
    return [path.split(b"/") for path in sorted(found)]


def _left_alone(rw: Branch, plan: Plan) -> list[str]:
    """Say which names of files that go stay as they are."""
    removed = {_join(at, name) for at, name in plan.removed}

    def goes(path: bytes) -> bool:
        return any(path == item or path.startswith(item + b"/") for item in removed)

    return sorted(
        {
            f"{show(b'/' + other)} was the same file as {show(b'/' + path)} and stays as it is"
            for path, names in _linked(rw, plan)
            for other in names
            if not goes(other)
        }
    )


# -- nothing to do ---------------------------------------------------------------------


def _why_nothing(rw: Branch, lowers: Sequence[Branch], undo: Undo, parts: list[bytes]) -> str:
    """Say why there is nothing to undelete or revert at a path, and what would help."""
    path = b"/".join(parts)
    shown = show(b"/" + path)
    stack = Stack(lowers) if lowers else None
    low = None if stack is None else stack.status(path)
    with_rw = Stack([rw, *lowers]).status(path)
    try:
        fd = rw.open_path(b"/".join(parts[:-1]))
    except OSError:
        own = None
    else:
        try:
            own = rw.status(fd, parts[-1] if parts else b".")
        except OSError:
            own = None
        finally:
            os.close(fd)
    if low is None and with_rw is None:
        return (
            f"{shown}: neither the layers nor the rw branch have anything there"
            if stack
            else (f"{shown}: the rw branch has nothing there, not even a whiteout")
        )
    if undo is Undo.UNDELETE:
        if low is None:
            return f"{shown} is new in the rw branch; nothing was deleted there"
        if own is not None and own.fmt != stat.S_IFDIR:
            return f"{shown} is not deleted but replaced; `unionfs revert` takes that back"
        return f"{shown}: nothing there is deleted"
    if with_rw is None:
        return f"{shown} is deleted; `unionfs undelete` brings it back"
    if low is None:
        return f"{shown} is new, the layers have nothing to go back to; `unionfs reset` removes it"
    return f"{shown}: nothing there is changed"
