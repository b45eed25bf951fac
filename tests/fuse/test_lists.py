"""Listings of the direct lane: made in advance for walkers, and never out of date."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fuseplace import Place

from unionfs.fuse import protocol
from unionfs.fuse.background import Background
from unionfs.fuse.lane_lists import Lists
from unionfs.fuse.lane_request import Context, Request
from unionfs.fuse.options import MountOptions
from unionfs.fuse.passthrough import Passthrough
from unionfs.fuse.policy import Policy
from unionfs.fuse.protocol import Op
from unionfs.fuse.readahead import ReadAhead
from unionfs.fuse.route import Route
from unionfs.fuse.scout import Scout
from unionfs.union import Caller, Engine

_ROOM = 4096
_ME = Caller(0, 0)


# -- the guess ---------------------------------------------------------------------------


def _walk(route: Route, tree: dict[int, list[int]], directory: int) -> Iterator[list[int]]:
    route.entered(directory)
    route.met(tree.get(directory, []))
    yield route.ahead(3)
    for child in tree.get(directory, []):
        yield from _walk(route, tree, child)


def test_a_walk_down_a_tree_is_foreseen_from_its_third_directory_on() -> None:
    tree = {1: [2, 5], 2: [3, 4], 5: [6]}
    assert list(_walk(Route(), tree, 1)) == [[], [], [4, 5], [5], [6], []]


def test_a_directory_met_in_parts_keeps_the_order() -> None:
    route = Route()
    for directory in (1, 2, 3):
        route.entered(directory)
        route.met([directory + 1] if directory < 3 else [10, 11])
    route.met([12])
    route.met([])
    assert route.ahead(9) == [10, 11, 12]


def test_going_elsewhere_ends_the_walk() -> None:
    route = Route()
    list(_walk(route, {1: [2, 3, 4, 5]}, 1))
    route.entered(99)
    route.met([100, 101])
    assert route.ahead(3) == []


def test_left_out_directories_do_not() -> None:
    route = Route()
    route.entered(1)
    route.met([2, 3, 4, 5, 6, 7])
    for directory in (2, 5):
        route.entered(directory)
    assert route.ahead(9) == [6, 7]


# -- the lists ---------------------------------------------------------------------------


class _Union:
    """A union on disk with a lister that no kernel asks."""

    def __init__(self, path: Path, *, rw: bool, sends: bool) -> None:
        self.sends = sends
        lower = path / "lower"
        for number in range(6):
            (lower / f"d{number}").mkdir(parents=True)
            for name in range(100):
                (lower / f"d{number}/f{name}").write_text(str(name))
        (path / "rw").mkdir()
        upper = os.fsencode(path / "rw") if rw else None
        self.engine = Engine.start([os.fsencode(lower)], upper)
        lock = threading.Lock()
        options = MountOptions.parse(["noacl"])
        self.thread = Background("test")
        self.ahead = ahead = ReadAhead(-1, self.engine, lock, self.thread, on=False)
        scout = Scout(self.engine, lock, self.thread, None)
        policy = Policy(options.id_maps(uid=0, gid=0))

        def nobody(*_: object) -> None:
            raise AssertionError

        self.context = Context(
            self.engine,
            lock,
            options,
            policy,
            ahead,
            scout,
            self.thread,
            Passthrough(-1, self.engine),
            nobody,
            nobody,
        )
        self.lists = Lists(self.context)
        self.dirs = [self.engine.lookup(1, name).ino for name in self.engine.names(1)]
        self.route = [1, *self.dirs]

    def ask(self, directory: int, offset: int, *, plus: bool = True) -> bytes:
        body = protocol.WRITE_IN.pack(0, offset, _ROOM, 0, 0, 0, 0)
        length = protocol.IN_HEADER.size + len(body)
        opcode = Op.READDIRPLUS if plus else Op.READDIR
        header = protocol.IN_HEADER.pack(length, opcode, 1, directory, 0, 0, 0, 0)
        request = Request(memoryview(header + body))
        return self.lists.entries(request) if plus else self.lists.names(request)

    def list(self, directory: int, *, plus: bool = True) -> dict[bytes, int]:
        """Return names and sizes as READDIRPLUS gives them (READDIR: 0)."""
        found: dict[bytes, int] = {}
        offset = 0
        while answer := self.ask(directory, offset, plus=plus):
            assert len(answer) <= _ROOM
            view, at = memoryview(answer), 0
            while at < len(view):
                size = 0
                if plus:
                    size = protocol.ENTRY_OUT.unpack_from(view, at)[7]
                    at += protocol.ENTRY_OUT.size
                _, offset, length, _ = protocol.DIRENT.unpack_from(view, at)
                at += protocol.DIRENT.size
                name = bytes(view[at : at + length])
                assert name not in found
                found[name] = size
                at += length + -length % 8
        del found[b"."], found[b".."]
        return found

    def start_walk(self) -> None:
        """List the root and two directories; return when the next one has been made."""
        for directory in self.route[:3]:
            self.ahead.sent += self.sends
            self.list(directory)
        deadline = time.monotonic() + 30
        while not self.sends and self.lists.work_ahead():
            assert time.monotonic() < deadline
        while not self.made_in_advance or self.lists._wanted:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    @property
    def made_in_advance(self) -> bool:
        part = self.lists._made.get((self.route[3], 0))
        return part is not None and not part.pending

    def prepare(self, directory: int, offset: int) -> None:
        """Make a part in advance, as the thread does it."""
        self.lists._make((directory, offset, _ROOM))

    def close(self) -> None:
        self.thread.close()
        self.context.work.close()
        self.engine.close()


@pytest.fixture(params=[False, True], ids=["alone", "beside-sending"])
def sends(request: pytest.FixtureRequest) -> bool:
    """Whether files are being sent, so that a thread makes the listings."""
    found: bool = request.param
    return found


@pytest.fixture(params=[False, True], ids=["ro", "rw"])
def union(request: pytest.FixtureRequest, tmp_path: Path, *, sends: bool) -> Iterator[_Union]:
    place = _Union(tmp_path, rw=request.param, sends=sends)
    yield place
    place.close()


FILES = {b"f%d" % number: len(str(number)) for number in range(100)}


@pytest.mark.parametrize("plus", [True, False])
def test_a_listing_in_parts_has_every_name_once(union: _Union, *, plus: bool) -> None:
    expected = FILES if plus else dict.fromkeys(FILES, 0)
    assert union.list(union.dirs[0], plus=plus) == expected


def test_a_walker_gets_what_was_made_in_advance(union: _Union) -> None:
    union.start_walk()
    before = union.lists.foreseen
    assert union.list(union.route[3]) == FILES
    assert union.lists.foreseen > before


def test_one_that_is_not_finished_is_finished_by_whoever_asks(union: _Union) -> None:
    union.start_walk()
    directory = union.route[4]
    with union.context.lock:
        for place in list(union.lists._made):
            union.lists._drop(union.lists._made.pop(place))
    part = union.lists._start((directory, 0, _ROOM))
    assert part is not None
    assert union.lists._goes_on(part, 16), "it takes more than one step"
    before = union.lists.foreseen
    assert union.list(directory) == FILES
    assert union.lists.foreseen == before + 1
    assert not union.lists._goes_on(part, 16), "it belongs to who asked for it"
    for name in FILES:
        ino = union.engine.lookup(directory, name).ino
        union.engine.forget(ino)
        union.engine.forget(ino)
        assert not union.engine.is_known(ino)


def test_every_entry_is_referred_to_once_per_answer(union: _Union) -> None:
    """Also those of listings that nobody came for: nothing is known once all is forgotten."""
    union.start_walk()
    files = []
    for directory in union.route[1:4]:
        union.list(directory)
        files += [union.engine.lookup(directory, name).ino for name in (b"f0", b"f99")]
        for file in files[-2:]:
            union.engine.forget(file)
    assert all(union.engine.is_known(file) for file in files)
    # The first two directories were listed twice, the third once.
    for directory, times in zip(union.route[1:4], (2, 2, 1), strict=True):
        for name in FILES:
            ino = union.engine.lookup(directory, name).ino
            union.engine.forget(ino)
            union.engine.forget(ino, times)
    with union.context.lock:
        for directory in union.route[1:]:
            union.lists.forget(directory)
    assert not any(union.engine.is_known(file) for file in files)


_CHANGES: dict[str, Callable[[Engine, int, bytes], object]] = {
    "create": lambda e, d, _: e.create(d, b"new", 0o644, os.O_RDWR, _ME),
    "unlink": lambda e, d, n: e.unlink(d, n),
    "rename": lambda e, d, n: e.rename(d, n, d, b"new", 0),
    "mkdir": lambda e, d, _: e.mkdir(d, b"new", 0o755, _ME),
    "symlink": lambda e, d, _: e.symlink(d, b"new", b"to", _ME),
    "link": lambda e, d, n: e.link(e.lookup(d, n).ino, d, b"new"),
    "write": lambda e, d, n: e.write(e.open(e.lookup(d, n).ino, os.O_RDWR), 0, b"longer"),
    "truncate": lambda e, d, n: e.open(e.lookup(d, n).ino, os.O_WRONLY | os.O_TRUNC),
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("union", [True], indirect=True, ids=["rw"])
def test_what_was_made_before_a_change_is_made_again(union: _Union, change: str) -> None:
    union.start_walk()
    directory = union.route[3]
    with union.context.lock:
        _CHANGES[change](union.engine, directory, union.engine.names(directory)[0])
        expected = {}
        for name in union.engine.names(directory):
            expected[name] = union.engine.lookup(directory, name).size
    before = union.lists.foreseen
    assert union.list(directory) == expected != FILES
    assert union.lists.foreseen == before or union.list(directory) == expected


@pytest.mark.parametrize("union", [True], indirect=True, ids=["rw"])
def test_what_was_made_before_others_are_told_to_ask_again_is_made_again(union: _Union) -> None:
    engine, name = union.engine, b"f0"
    for directory in union.dirs:
        handle = engine.open(engine.lookup(directory, name).ino, os.O_RDWR)
        engine.write(handle, 0, b"our own")
    # The rw branch's come first.
    union.route = [1, *(engine.lookup(1, inner).ino for inner in engine.names(1))]
    directory = union.route[3]
    ino = engine.lookup(directory, name).ino
    union.start_walk()
    with union.context.lock:
        path = union.engine.getxattr(ino, "user.unionfs.path")
        Path(os.fsdecode(path)).write_text("changed behind the mount's back")
        union.engine.known()
    assert union.list(directory)[name] == len("changed behind the mount's back")


def test_a_listing_that_fails_in_advance_fails_when_it_is_asked_for(union: _Union) -> None:
    union.start_walk()
    with union.context.lock:
        for place in list(union.lists._made):
            union.lists._drop(union.lists._made.pop(place))
    union.prepare(1 << 50, 0)
    assert (1 << 50, 0) not in union.lists._made
    with pytest.raises(OSError, match="Stale"):
        union.ask(1 << 50, 0)


def test_few_listings_wait(union: _Union) -> None:
    union.start_walk()
    for _ in range(3):
        for directory in union.route:
            union.prepare(directory, 0)
            for offset in range(3, 40, 7):
                union.prepare(directory, offset)
    assert len(union.lists._made) <= 8


# -- a mount -----------------------------------------------------------------------------


@pytest.mark.fuse
def test_walks_beside_changes_see_what_is_there(user: Place) -> None:
    """Each walk sees every name that was there all the time, with its size, exactly once."""
    user.sh("""for d in $(seq 20); do mkdir -p base/t/$d; for f in $(seq 60); do
        echo $f > base/t/$d/keep$f; done; done""")
    user.mount(rw="rw", options=["lane"])
    user.py("""
import os, threading
stop, wrong = threading.Event(), []
def change():
    turn = 0
    while not stop.is_set():
        for d in os.listdir("mnt/t"):
            path = f"mnt/t/{d}/new"
            open(path, "w").write("x" * turn)
            if os.stat(path).st_size != turn: wrong.append(path)
            names = os.listdir(f"mnt/t/{d}")
            if "new" not in names: wrong.append(("missing", d))
            os.unlink(path)
            if "new" in os.listdir(f"mnt/t/{d}"): wrong.append(("there", d))
        turn += 1
changer = threading.Thread(target=change)
changer.start()
keep = {f"keep{n}" for n in range(1, 61)}
for _ in range(30):
    for path, dirs, files in os.walk("mnt/t"):
        if path == "mnt/t": continue
        if set(files) - {"new"} != keep or len(files) > 61: wrong.append((path, files))
        for name in keep:
            if os.stat(f"{path}/{name}").st_size != len(name) - 3: wrong.append((path, name))
stop.set()
changer.join()
assert not wrong, wrong[:5]
""")
    user.umount()
