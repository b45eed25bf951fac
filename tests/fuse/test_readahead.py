"""Read-ahead across files on real mounts: it saves requests and is never wrong."""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support.counting import count_requests, counted
from support.fuseplace import Place

from unionfs.fuse.background import Background
from unionfs.fuse.protocol import Op
from unionfs.fuse.readahead import ReadAhead
from unionfs.union import Engine

pytestmark = pytest.mark.fuse

#: What is sent first waits until `go` exists, its bytes read and announced; then says how it went.
_SLOW = """
import os, time
from unionfs.fuse import readahead
store = readahead.ReadAhead._store
def wait(name):
    while not os.path.exists({base!r} + "/" + name):
        time.sleep(.001)
def tell(name, text):
    with open({base!r} + "/" + name + "~", "w") as file:
        file.write(text)
    os.rename({base!r} + "/" + name + "~", {base!r} + "/" + name)
def slow(self, file, size):
    if os.path.exists({base!r} + "/sending"):
        return store(self, file, size)
    tell("sending", str(file))
    wait("go")
    before = self.sent
    going = store(self, file, size)
    tell("sent", "stored" if self.sent > before else "stopped")
    return going
readahead.ReadAhead._store = slow
"""
#: The lane reads a request for the file being sent, and then handles it only when the file is
#: surely under way: the kernel has locked its pages for the request by then.
_LOCKED = """
from unionfs.fuse import lane
take = lane.Lane._take
def late(self, message):
    if message[4] == 15 and int.from_bytes(message[16:24], "little") == self._ahead._sending:
        if not os.path.exists({base!r} + "/go"):
            tell("go", "")
            time.sleep(.3)
    take(self, message)
lane.Lane._take = late
"""


def _appears(place: Place, name: str) -> str:
    deadline = time.monotonic() + 30
    while not (place.path / name).exists():
        assert time.monotonic() < deadline, name
        time.sleep(0.005)
    return (place.path / name).read_text()


@pytest.fixture(params=["ro", "rw"])
def many(request: pytest.FixtureRequest, user: Place) -> Iterator[Place]:
    """Five directories with 100 files each, mounted."""
    user.sh("""for d in 1 2 3 4 5; do mkdir -p base/t/$d
        for f in $(seq 100); do echo $d/$f > base/t/$d/f$f; done; done""")
    count_requests(user)
    rw = "rw" if request.param == "rw" else None
    user.mount(rw=rw, options=["lane"])
    yield user
    user.umount()


def test_files_read_in_order_come_without_being_asked_for(many: Place) -> None:
    same = "tar cf a.tar -C base t; tar cf b.tar -C mnt t; cmp a.tar b.tar"
    many.sh(same)
    many.sh(same)
    many.umount()
    asked, sent = counted(many)
    assert sent > 200
    assert asked[Op.READ] < 300, "without it 500"
    many.mount(options=["lane"])


#: Reads files of each directory in an order in which none comes soon after the one before it, as
#: listed or by name.
_NO_ORDER = """
import os
for d in "12345":
    listed = os.listdir("mnt/t/" + d)
    named = sorted(listed)
    left, chosen = list(listed), listed[50:51]
    for _ in range({count} - 1):
        left.remove(chosen[-1])
        far = lambda name, order: not 0 < order.index(name) - order.index(chosen[-1]) < 10
        chosen += [name for name in left if far(name, listed) and far(name, named)][:1]
    for name in chosen:
        assert open(f"mnt/t/{{d}}/{{name}}").read() == f"{{d}}/{{name[1:]}}\\n"
"""


def test_a_few_files_in_no_order_are_all_there_is_to_send(many: Place) -> None:
    many.py(_NO_ORDER.format(count=7))
    many.umount()
    asked, sent = counted(many)
    assert (asked[Op.READ], sent) == (35, 0)
    many.mount(options=["lane"])


def test_many_files_in_no_order_bring_others(many: Place) -> None:
    many.py(_NO_ORDER.format(count=60))
    many.umount()
    asked, sent = counted(many)
    assert asked[Op.READ] < 250, "without it 300"
    assert sent <= 8 * asked[Op.READ]
    many.mount(options=["lane"])


def test_files_read_in_the_order_of_their_names_come_without_being_asked_for(many: Place) -> None:
    many.py("""
import os
for d in "12345":
    for name in sorted(os.listdir("mnt/t/" + d)):
        assert open(f"mnt/t/{d}/{name}").read() == f"{d}/{name[1:]}\\n"
""")
    many.umount()
    asked, sent = counted(many)
    assert sent > 200
    assert asked[Op.READ] < 300, "without it 500"
    many.mount(options=["lane"])


def test_it_can_be_switched_off(user: Place) -> None:
    user.sh("mkdir base/t; for f in $(seq 100); do echo $f > base/t/f$f; done")
    count_requests(user)
    user.mount(options=["lane", "noahead"])
    user.sh("tar cf - -C mnt t | tar xf -; diff -r t base/t")
    user.umount()
    asked, sent = counted(user)
    assert (asked[Op.READ], sent) == (100, 0)


_CHANGES = {
    "write": "os.pwrite(os.open(path, os.O_RDWR), b'NEW', 0); new = b'NEW' + old[3:]",
    "overwrite": "os.pwrite(os.open(path, os.O_WRONLY), b'N' * 9000, 0); new = b'N' * 9000",
    "append": "os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'NEW'); new = old + b'NEW'",
    "truncate": "os.truncate(path, 100); new = old[:100]",
    "cut and grow": "os.truncate(path, 10); os.truncate(path, 9000); new = old[:10] + bytes(8990)",
    "empty": "os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)); new = b''",
    "cut and append": """
os.truncate(path, 100)
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
open("go", "w").close()
while not os.path.exists("sent"): time.sleep(.001)
os.write(fd, b"NEW")
new = old[:100] + b"NEW" """,
    "direct": """
page = mmap.mmap(-1, 4096)
page[:] = b"D" * 4096
os.pwritev(os.open(path, os.O_WRONLY | os.O_DIRECT), [page], 0)
new = b"D" * 4096 + old[4096:]""",
    "mapping": """
view = mmap.mmap(os.open(path, os.O_RDWR), 9000)
view[5000:5003] = b"NEW"
new = old[:5000] + b"NEW" + old[5003:]""",
    "replace": """
open(path + "~", "w").write("other"); os.rename(path + "~", path); new = b"other" """,
    "copied": """
os.copy_file_range(os.open("mnt/f", os.O_RDONLY), os.open(path, os.O_RDWR), 5)
new = b"lower" + old[5:]""",
}
#: A truncation waits for what is under way, which waits for `go`: its answer sets the size.
_CUTS = ("truncate", "cut and grow", "empty", "cut and append")
_CHANGE = """
import mmap, os, sys, threading, time
names = os.listdir("mnt/t")
for name in names[:2]:
    open("mnt/t/" + name, "rb").read()
deadline = time.monotonic() + 30
while not os.path.exists("sending"):
    assert time.monotonic() < deadline
ino = int(open("sending").read())
(path,) = [f"mnt/t/{{n}}" for n in names if os.stat(f"mnt/t/{{n}}").st_ino == ino]
old = open(path.replace("mnt", "base"), "rb").read()
timer = threading.Timer({delay}, lambda: open("go", "w").close())
timer.daemon = True
timer.start()
{change}
open("go", "w").close()
while not os.path.exists("sent"):
    assert time.monotonic() < deadline
for _ in range(2):
    fd = os.open(path, os.O_RDONLY)
    assert os.fstat(fd).st_size == len(new), os.fstat(fd).st_size
    got = os.read(fd, 100000)
    assert got == new, (len(got), got[:10], new[:10])
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
"""


def _ready(user: Place) -> None:
    user.sh("""mkdir base/t; for f in $(seq 20); do head -c 9000 /dev/urandom > base/t/f$f; done""")


@pytest.mark.parametrize("change", _CHANGES)
def test_what_was_read_for_sending_is_not_sent_after_a_change(user: Place, change: str) -> None:
    _ready(user)
    user.patch(_SLOW.format(base=str(user.path)))
    user.mount(rw="rw", options=["lane"])
    delay = 0.3 if change in _CUTS else 20
    user.py(_CHANGE.format(change=_CHANGES[change], delay=delay))
    assert _appears(user, "sent") in ("stopped", "stored")
    if change != "replace":
        assert _appears(user, "sent") == "stopped"
    user.umount()


def test_a_page_changed_through_a_mapping_survives_what_was_under_way(user: Place) -> None:
    """The kernel waits inside the sending for pages that a read has locked."""
    _ready(user)
    user.patch((_SLOW + _LOCKED).format(base=str(user.path)))
    user.mount(rw="rw", options=["lane"])
    user.py(_CHANGE.format(change=_CHANGES["mapping"], delay=20))
    assert _appears(user, "sent") == "stopped"
    user.umount()
    changed = [path for path in (user.path / "rw/t").iterdir() if not path.name.startswith(".")]
    (path,) = changed
    old = Path(str(path).replace("rw", "base")).read_bytes()
    assert path.read_bytes() == old[:5000] + b"NEW" + old[5003:]


def test_readers_in_order_and_writers_at_the_same_time(user: Place) -> None:
    """Every writer finds at once, and everybody at the end, what was written last."""
    user.sh(
        """mkdir base/t; for f in $(seq 300); do head -c 6000 /dev/urandom > base/t/f$f; done"""
    )
    user.mount(rw="rw", options=["lane"])
    user.py("""
import mmap, os, random, threading
names = os.listdir("mnt/t")
model = {name: bytearray(open("base/t/" + name, "rb").read()) for name in names}
wrong = []
def read(seed):
    for name in names:
        with open("mnt/t/" + name, "rb") as file:
            file.read()
def write(seed, mine):
    chance = random.Random(seed)
    for name in mine:
        data = model[name]
        for _ in range(chance.randint(0, 2)):
            fd = os.open("mnt/t/" + name, os.O_RDWR)
            what, at = chance.randint(0, 4), chance.randint(0, 5000)
            if what == 0:
                os.pwrite(fd, b"written", at); data.extend(bytes(max(0, at + 7 - len(data))))
                data[at:at + 7] = b"written"
            elif what == 1 and len(data) > at + 7:
                with mmap.mmap(fd, len(data)) as view:
                    view[at:at + 7] = b"mapping"
                data[at:at + 7] = b"mapping"
            elif what == 2:
                os.ftruncate(fd, at); del data[at:]; data.extend(bytes(at - len(data)))
            elif what == 3:
                os.pwrite(fd, b"appended", len(data)); data += b"appended"
            else:
                os.ftruncate(fd, 0); os.pwrite(fd, b"n" * at, 0); data[:] = b"n" * at
            os.close(fd)
            if open("mnt/t/" + name, "rb").read() != data:
                wrong.append((name, what, at))
threads = [threading.Thread(target=read, args=(n,)) for n in range(2)]
threads += [threading.Thread(target=write, args=(n, names[n::2])) for n in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
assert not wrong, wrong
for name in names:
    fd = os.open("mnt/t/" + name, os.O_RDONLY)
    assert os.read(fd, 100000) == model[name], name
    os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 100000, 0) == model[name], name
    os.close(fd)
""")
    user.umount()


def test_unlinked_and_replaced_files_are_not_sent_in_others_place(user: Place) -> None:
    user.sh("mkdir base/t; for f in $(seq 200); do echo old $f > base/t/f$f; done")
    user.mount(rw="rw", options=["lane"])
    user.py("""
import os
names = os.listdir("mnt/t")
for number, name in enumerate(names):
    if number % 3 == 0:
        os.unlink("mnt/t/" + name)
        open("mnt/t/" + name, "w").write("new " + name)
    elif number % 3 == 1:
        os.rename("mnt/t/" + name, "mnt/t/" + names[number - 1])
        open("mnt/t/" + name, "w").write("third")
    data = open("mnt/t/" + name).read()
    assert data == ("new " + name, "third", f"old {name[1:]}\\n")[number % 3], (name, data)
""")
    user.umount()


#: The end of the mount's service says when it begins to wait for the sender.
_CLOSING = """
from unionfs.fuse import background
close = background.Background.close
def closing(self):
    tell("closing", "")
    close(self)
background.Background.close = closing
"""


def test_requests_are_answered_until_the_last_file_is_sent(user: Place) -> None:
    """The sender may be waiting for the lock of a page that a READ has: nobody ends before."""
    _ready(user)
    user.patch((_SLOW + _CLOSING).format(base=str(user.path)))
    pid = user.mount(rw="rw", options=["lane"])["pid"]
    reader = """
import os, time
names = os.listdir("mnt/t")
for name in names[:2]:
    open("mnt/t/" + name, "rb").read()
deadline = time.monotonic() + 30
while not os.path.exists("sending"):
    assert time.monotonic() < deadline
last = open("mnt/t/" + names[-1], "rb")
open("ready", "w").close()
while not os.path.exists("closing"):
    assert time.monotonic() < deadline
assert last.read() == open("base/t/" + names[-1], "rb").read()
open("go", "w").close()
"""
    with user.start(*user.python, "-c", reader) as child:
        _appears(user, "ready")
        daemon = os.pidfd_open(pid)
        try:
            user.run("kill", str(pid))
            assert select.select([daemon], [], [], 30)[0], "the daemon waits for ever"
        finally:
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
            os.close(daemon)
        assert child.wait(30) == 0


def test_a_file_that_was_changed_and_forgotten_meanwhile_is_not_sent(tmp_path: Path) -> None:
    """It may be known again under its number, with its new contents."""
    (tmp_path / "base").mkdir()
    (tmp_path / "rw").mkdir()
    for number in range(6):
        (tmp_path / f"base/f{number}").write_text("old")
    received = os.memfd_create("device")
    with Engine.start([os.fsencode(tmp_path / "base")], os.fsencode(tmp_path / "rw")) as engine:
        files = [engine.lookup(1, name).ino for name in engine.names(1)]
        thread = Background("test")
        ahead = ReadAhead(received, engine, threading.Lock(), thread, on=True)
        opening = engine.open_layer_files
        done = threading.Event()

        def changed_meanwhile(inos: Iterable[int]) -> list[tuple[int, int]]:
            opened = opening(inos)
            ahead.hold(files[3])
            ahead.forget(files[3])
            done.set()
            return opened

        engine.open_layer_files = changed_meanwhile  # type: ignore[method-assign]  # a race made sure
        ahead.listed(1, files, anew=True)
        ahead.asked(1, files[0])
        ahead.asked(1, files[1])
        assert done.wait(30)
        deadline = time.monotonic() + 30
        while thread.busy and time.monotonic() < deadline:
            time.sleep(0.001)
        thread.close()
        ahead.close()
    data = os.pread(received, 10000, 0)
    os.close(received)
    size = 16 + 24 + len("old")
    sent = [struct.unpack_from("=Q", data, at + 16)[0] for at in range(0, len(data), size)]
    assert sent == [files[2], *files[4:]]
