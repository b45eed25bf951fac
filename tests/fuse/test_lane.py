"""The direct lane on real mounts: what follows from requests that carry no handles.

The rest of this directory runs with the lane and without it (see `conftest`); here is what
only the lane can get wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.asking import ADAPTERS, ask, mounted
from support.counting import count_requests, counted
from support.fuseplace import LAYER, WAYS, Place, place_for, tree_of
from support.rootless import NOBODY

from unionfs.closing import opened
from unionfs.fuse.protocol import Op

pytestmark = pytest.mark.fuse

_COLD = """
from unionfs.fuse import lane_reads
lane_reads._read_cached = lambda fd, room, offset: 0
"""
#: A copy-up waits in the daemon until the file `go` exists.
_SLOW = """
import os, time
from unionfs.union import copyup
copy = copyup.CopyPlan.copy
def slow(self):
    open({base!r} + "/copying", "w").close()
    while not os.path.exists({base!r} + "/go"):
        time.sleep(.01)
    copy(self)
copyup.CopyPlan.copy = slow
"""


@pytest.fixture(params=WAYS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Return a place in each of the three ways, always with the lane."""
    with place_for(request.param) as found:
        found.sh(LAYER)
        yield found


def _record(place: Place) -> dict[str, object]:
    (path,) = (place.path / ".run/unionfs").glob("*.json")
    record: dict[str, object] = json.loads(path.read_text())
    return record


@pytest.mark.parametrize(
    ("options", "reason"),
    [([], None), (["nolane"], "nolane"), (["coherent"], "coherent")],
)
def test_the_record_says_whether_there_is_one(
    place: Place, options: list[str], reason: str | None
) -> None:
    place.mount(rw="rw", options=options)
    assert place.sh("cat mnt/f; echo x > mnt/n; cat mnt/n") == "lowerx\n"
    record = _record(place)
    assert record["lane"] is (reason is None)
    assert (reason or "None") in str(record["no_lane"])
    told = place.run(*place.python, "-m", "unionfs", "mounts", "-v").stderr
    assert ("without a direct lane" in told) is (reason is not None)
    assert (reason or "") in told
    place.umount()


def test_unlinked_files_live_while_somebody_has_them_open(place: Place) -> None:
    place.mount(rw="rw")
    place.py("""
import os
for name in ("f", "n"):
    path = "mnt/" + name
    if name == "n":
        open(path, "w").write("lower")
    reading, writing = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    os.unlink(path)
    assert os.fstat(reading).st_nlink == 0
    assert os.read(reading, 9) == b"lower"
    os.pwrite(writing, b"MORE", 3)
    os.posix_fadvise(reading, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(reading, 9, 0) == b"lowMORE"
    os.ftruncate(writing, 2)
    assert os.pread(reading, 9, 0) == b"lo"
    open(path, "w").write("other")
    assert os.pread(reading, 9, 0) == b"lo"
    assert open(path).read() == "other"
    os.close(reading); os.close(writing)
os.rename("mnt/n", "mnt/d/a")
fd = os.open("mnt/d/b", os.O_RDONLY)
os.rename("mnt/d/a", "mnt/d/b")
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
assert os.read(fd, 9) == b"bbb"
assert open("mnt/d/b").read() == "other"
""")
    place.umount()
    assert tree_of(place.path / "rw") == ["d/", "d/.wh.a", "d/b", "f"]


def test_truncation_at_open_copies_nothing_and_is_seen_by_others(place: Place) -> None:
    place.sh("truncate -s 1G base/huge; echo content >> base/huge")
    place.mount(rw="rw")
    place.py("""
import os
reading = os.open("mnt/huge", os.O_RDONLY)
assert os.pread(reading, 7, 1 << 30) == b"content"
fd = os.open("mnt/huge", os.O_WRONLY | os.O_TRUNC)
assert os.fstat(reading).st_size == 0 and os.pread(reading, 10, 0) == b""
assert os.write(fd, b"new") == 3
assert os.pread(reading, 10, 0) == b"new"
""")
    place.umount()
    assert (place.path / "rw/huge").read_text() == "new"


def test_a_mapping_writes_after_its_file_was_closed(place: Place) -> None:
    place.sh("head -c 20000 /dev/urandom > base/mapped")
    place.mount(rw="rw")
    place.py("""
import mmap, os
fd = os.open("mnt/mapped", os.O_RDWR)
view = mmap.mmap(fd, 20000)
os.close(fd)
view[10000:10003] = b"abc"
view.flush()
assert open("mnt/mapped", "rb").read()[10000:10003] == b"abc"
view[19990:20000] = b"0123456789"
view.close()
os.unlink("mnt/f")
""")
    place.umount()
    written = (place.path / "rw/mapped").read_bytes()
    assert written[10000:10003] == b"abc"
    assert written[19990:] == b"0123456789"
    assert written[:10000] == (place.path / "base/mapped").read_bytes()[:10000]


def test_a_listing_goes_on_while_others_change_the_directory(user: Place) -> None:
    """Names that stay are listed exactly once, whoever lists, deletes and makes beside."""
    user.sh("mkdir base/many; cd base/many; for i in $(seq 3000); do echo > keep-$i; done")
    user.mount(rw="rw")
    user.py("""
import os
first = os.scandir("mnt/many")
seen = [next(first).name for _ in range(500)]
for round in range(5):
    for name in [n for n in os.listdir("mnt/many") if n.startswith("new")]:
        os.unlink("mnt/many/" + name)
    for number in range(200):
        open(f"mnt/many/new-{round}-{number}", "w").close()
    os.unlink(f"mnt/many/keep-{round + 1}")
    seen += [next(first).name for _ in range(300)]
    assert len(os.listdir("mnt/many")) == 3000 - round - 1 + 200
seen += [entry.name for entry in first]
assert len(seen) == len(set(seen))
assert {f"keep-{n}" for n in range(6, 3001)} <= set(seen)
""")
    user.umount()


def test_a_long_copy_up_holds_up_nobody_else(user: Place) -> None:
    user.sh("truncate -s 4M base/big; echo end >> base/big")
    user.patch(_SLOW.format(base=str(user.path)))
    user.mount(rw="rw")
    writers = [
        user.start("sh", "-c", f"printf {word} | dd of=mnt/big seek={seek} bs=1 conv=notrunc",
                   stderr=subprocess.DEVNULL)
        for word, seek in (("one", 0), ("two", 1 << 20))
    ]  # fmt: skip
    other = user.start("chmod", "600", "mnt/big")
    deadline = time.monotonic() + 30
    while not (user.path / "copying").exists():
        assert time.monotonic() < deadline
    assert user.sh("cat mnt/f mnt/d/a; ls mnt/d; echo x > mnt/n; cat mnt/n") == (
        "loweraaaa\nb\nx\n"
    )
    # By offset: seeking to the end would wait in the kernel for the writer.
    read = "import os; print(os.pread(os.open('mnt/big', os.O_RDONLY), 9, 4 << 20))"
    assert user.py(read) == "b'end\\n'\n"
    assert writers[0].poll() is None
    user.sh("touch go")
    assert [program.wait(30) for program in (*writers, other)] == [0, 0, 0]
    user.umount()
    data = (user.path / "rw/big").read_bytes()
    assert (data[:3], data[1 << 20 : (1 << 20) + 3], data[-4:]) == (b"one", b"two", b"end\n")
    assert len(data) == (4 << 20) + 4


def test_a_copy_up_that_fails_is_the_writers_error(user: Place) -> None:
    user.sh("truncate -s 4M base/big")
    user.patch("""
import errno, os
from unionfs.union import copyup
def full(self):
    raise OSError(errno.ENOSPC, "full")
copyup.CopyPlan.copy = full
""")  # fmt: skip
    user.mount(rw="rw")
    assert "No space left" in user.fails("printf x | dd of=mnt/big conv=notrunc status=none")
    assert user.sh("cat mnt/f; stat -c %s mnt/big") == f"lower{4 << 20}\n"
    user.umount()
    assert tree_of(user.path / "rw") == []


def test_reads_that_wait_for_the_disk_are_whole(user: Place) -> None:
    """Every read goes to a worker; so do fsync and a copy-up at the same time."""
    user.sh("head -c 5000001 /dev/urandom > base/big; cp base/big copy")
    user.patch(_COLD)
    user.mount(rw="rw")
    user.sh("cmp mnt/big copy; cat mnt/f; cmp mnt/big copy")
    user.py("""
import os
fd = os.open("mnt/big", os.O_RDWR)
os.pwrite(fd, b"abc", 4999999)
os.fsync(fd)
os.fdatasync(fd)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
assert os.pread(fd, 100, 4999999) == b"abc"
directory = os.open("mnt/d", os.O_RDONLY)
os.fsync(directory)
""")
    user.umount()


def test_many_open_files_cost_few_descriptors(user: Place) -> None:
    user.sh("cd base/d; for i in $(seq 700); do echo $i > n$i; done")
    pid = user.mount(rw="rw")["pid"]
    user.py("""
files = [open(f"mnt/d/n{i + 1}") for i in range(700)]
assert [file.read() for file in files] == [f"{i + 1}\\n" for i in range(700)]
""")
    assert len(os.listdir(f"/proc/{pid}/fd")) < 400
    user.umount()


def test_ids_of_files_are_translated(root: Place) -> None:
    root.mount(rw="rw", options=["uidmapping=0:1000:1:1:0:1", "allow_other", "noacl"])
    assert root.sh("stat -c %u mnt/f; chown 0 mnt/f; stat -c %u mnt/f") == "1000\n0\n"
    assert "Value too large" in root.fails("chown 7 mnt/f")
    root.umount()
    assert os.stat(root.path / "rw/f").st_uid == 1


def test_nothing_is_asked_for_files_read_before(user: Place) -> None:
    """Not even OPEN and RELEASE; a cache that somebody drops meanwhile may cost one more try."""
    pid = user.mount(rw="rw")["pid"]

    def requests() -> int:
        text = Path(f"/proc/{pid}/io").read_text()
        return int(dict(line.split(": ") for line in text.splitlines())["syscw"])

    work = "for i in 1 2 3 4 5 6 7 8; do cat mnt/f mnt/d/a mnt/d/b; ls mnt/d; done > /dev/null"
    costs = []
    for _ in range(5):
        before = requests()
        user.sh(work)
        costs.append(requests() - before)
    # Writes of the daemon count its answers: without a lane each round takes over 60.
    assert min(costs) <= 3, costs
    user.umount()


def test_many_deleted_open_files_cost_few_descriptors(user: Place) -> None:
    user.sh("cd base/d; for i in $(seq 600); do echo $i > n$i; done")
    pid = user.mount(rw="rw")["pid"]
    used = user.py("""
import os, sys
lower = [os.open(f"mnt/d/n{i + 1}", os.O_RDWR) for i in range(600)]
upper = [os.open(f"mnt/d/u{i + 1}", os.O_RDWR | os.O_CREAT) for i in range(300)]
for i, fd in enumerate(upper): os.write(fd, b"%d" % i)
for name in os.listdir("mnt/d"): os.unlink(f"mnt/d/{name}")
for i, fd in enumerate(lower): assert os.pread(fd, 9, 0) == b"%d\\n" % (i + 1)
for fd in lower[::9]: os.pwrite(fd, b"X", 0)
for i, fd in enumerate(upper):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 9, 0) == b"%d" % i
assert all(os.pread(fd, 1, 0) == b"X" for fd in lower[::9])
print(len(os.listdir(f"/proc/{sys.argv[1]}/fd")))
""", str(pid))  # fmt: skip
    assert int(used) < 400
    user.umount()


def test_roots_mounts_read_far_ahead(root: Place) -> None:
    root.sh("truncate -s 8M base/big")
    device = root.mount()["device"]
    with open(f"/sys/class/bdi/{device}/read_ahead_kb", encoding="ascii") as file:
        assert file.read() == "1024\n"
    root.sh("cat mnt/big | cmp -n 8388608 - /dev/zero")
    root.umount()


def test_a_file_that_is_read_at_once_is_not_kept_open(user: Place) -> None:
    user.sh(
        "for i in $(seq 50); do echo $i > base/small$i; done; head -c 600000 /dev/zero > base/big"
    )
    user.mount(rw="rw", options=["noahead"])
    assert user.sh("cat mnt/small* | sort -n | tail -1") == "50\n"
    assert ask(user, "stats")["open_files"] == 0
    assert user.sh("cmp mnt/big base/big; cat mnt/small7") == "7\n"
    assert ask(user, "stats")["open_files"] == 1
    user.sh("echo more >> mnt/small7")
    assert user.sh("cat mnt/small7") == "7\nmore\n"
    user.umount()


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_of_forgotten_files_is_given_back(root: Place) -> None:
    if os.geteuid():
        pytest.skip("only root can make the kernel forget files (/proc/sys/vm/drop_caches)")
    count = 60_000
    root.py(f"""
import os
for number in range({count}):
    if number % 1000 == 0:
        os.makedirs(f"base/m/d{{number // 1000}}")
    os.mknod(f"base/m/d{{number // 1000}}/f{{number}}")
""")
    pid = root.mount(options=["lane"])["pid"]
    fresh = _resident(pid)
    root.sh(f"test $(find mnt/m -type f -size 0 | wc -l) = {count}")
    walked = _resident(pid)
    deadline = time.monotonic() + 60
    while _resident(pid) - fresh > (walked - fresh) * 0.6:
        assert time.monotonic() < deadline, (fresh, walked, _resident(pid))
        Path("/proc/sys/vm/drop_caches").write_text("2")
        time.sleep(1)
    root.sh(f"test $(find mnt/m -type f -size 0 | wc -l) = {count}")
    root.umount()


_CONTENT_CHANGES = {
    "append": "echo more >> mnt/F",
    "truncation at open": ": > mnt/F",
    "truncation": "truncate -s 3 mnt/F",
    "allocation": "fallocate -l 5000 mnt/F",
    "copy": 'py \'import os; os.copy_file_range(os.open("mnt/b", 0), os.open("mnt/F", 1), 2)\'',
    "big write": "head -c 3000000 /dev/zero >> mnt/F",
    "change of group": "chgrp $(id -g) mnt/F",
    "change of no owner": "py 'import os; os.chown(\"mnt/F\", -1, -1)'",
}


@pytest.mark.parametrize("change", _CONTENT_CHANGES)
@pytest.mark.parametrize("mode", ["4755", "6775", "2755", "2644"])
def test_setuid_goes_with_a_change(user: Place, change: str, mode: str) -> None:
    """The kernel leaves that to the lane (HANDLE_KILLPRIV_V2); setgid alone is another mark."""
    expected = mode if mode == "2644" else "0" + mode[1:]
    script = _CONTENT_CHANGES[change].replace("py ", " ".join(user.python) + " -c ")
    user.sh(f"echo lower > base/F; echo other > base/b; chmod {mode} base/F")
    for turn in ("a file of a layer", "a file of the rw branch"):
        user.mount(rw="rw", options=["lane"])
        user.sh(f"chmod {mode} mnt/F; test $(stat -c %04a mnt/F) = {mode}")
        user.sh(script)
        assert user.sh("stat -c %04a mnt/F").strip() == expected, turn
        user.umount()
        user.mount(rw="rw", options=["lane"])
        assert user.sh("stat -c %04a mnt/F").strip() == expected, turn
        user.umount()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_was_learnt_of_a_file_does_not_outlive_a_reset(root: Place, adapter: str) -> None:
    """That it has no capability, and neither setuid nor setgid to drop."""
    root.sh("printf lower > base/F; chmod 4757 base/F")
    value = b"\1\0\0\2" + bytes(16)
    os.setxattr(root.path / "base/F", "security.capability", value)
    mounted(root, adapter)
    nobody = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sh -c"
    with opened(os.open(root.path / "mnt/F", os.O_RDONLY)):  # or the kernel forgets it
        for _ in range(2):
            assert os.getxattr(root.path / "mnt/F", "security.capability") == value
            root.sh(f"{nobody} 'echo more >> mnt/F; echo more >> mnt/F'")
            assert root.sh("stat -c %04a mnt/F") == "0757\n"
            with pytest.raises(OSError, match="No data available"):
                os.getxattr(root.path / "mnt/F", "security.capability")
            ask(root, "reset", path="/F")
            assert root.sh("cat mnt/F; stat -c %04a mnt/F") == "lower4757\n"


_WRITES_TWICE = """
import os
fd = os.open("mnt/F", os.O_WRONLY)
for _ in range(2):
    os.write(fd, b"more")
    print("written", flush=True)
    input()
"""


def test_what_was_learnt_of_a_file_is_not_believed_after_invalidate(root: Place) -> None:
    """Without a lane the kernel takes setuid away, by the mode that it has last been told."""
    root.sh("printf lower > base/F; chmod 666 base/F")
    mounted(root, "lane")
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    words = [*nobody, *root.python, "-c", _WRITES_TWICE]
    with root.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        (root.path / "rw/F").chmod(0o4777)  # behind the mount's back
        ask(root, "invalidate", path="/F")
        print(file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "written\n"
        print(file=writer.stdin, flush=True)
    assert root.sh("stat -c %04a mnt/F") == "0777\n"


def test_the_capability_is_asked_for_once_not_before_each_write(user: Place) -> None:
    count_requests(user)
    user.mount(rw="rw", options=["lane"])
    user.py("""
import os
for name in ("a", "new"):
    fd = os.open("mnt/" + name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for _ in range(100):
        os.write(fd, b"line")
    os.close(fd)
""")
    assert user.sh("tail -c 8 mnt/a; tail -c 8 mnt/new") == "lineline" * 2
    user.umount()
    asked = counted(user).asked[Op.GETXATTR]
    if asked >= 200 and _kernel() < (5, 12):
        pytest.skip("this kernel asks each time; Linux 5.12 has HANDLE_KILLPRIV_V2")
    assert asked < 10


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)
