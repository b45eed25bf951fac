"""File contents: random access against a plain file, mmap, appends, many clients, crashes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time

import pytest
from support.fuseplace import Place, tree_of

pytestmark = pytest.mark.fuse

#: Does the same random things to a file on the mount and to a plain one, like fsx.
_FSX = r"""
import mmap, os, random, sys
seed, count, mounted, plain = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
rnd = random.Random(seed)
top = 3 << 20
flags = os.O_RDWR
fds = [os.open(mounted, flags), os.open(plain, flags)]
extra = [os.open(mounted, os.O_RDONLY), os.open(plain, os.O_RDONLY)]
log = []
def both(name, function, pair=None):
    results = [function(fd) for fd in (pair or fds)]
    assert results[0] == results[1], (seed, len(log), name, log[-5:])
for step in range(count):
    kind = rnd.choice("wwwrrrttmmofsx")
    size = os.fstat(fds[1]).st_size
    offset = rnd.randrange(top) if rnd.random() < .1 else rnd.randrange(max(size, 1))
    length = rnd.randrange(1, 1 << rnd.randrange(1, 18))
    log.append((kind, offset, length))
    if kind == "w":
        data = rnd.randbytes(length)
        both("write", lambda fd: os.pwrite(fd, data, offset))
    elif kind == "r":
        both("read", lambda fd: os.pread(fd, length, offset), rnd.choice((fds, extra)))
    elif kind == "t":
        to = rnd.choice((offset, 0, size + length)) if rnd.random() < .5 else offset
        both("truncate", lambda fd: os.ftruncate(fd, to))
    elif kind == "m" and size:
        data = rnd.randbytes(max(0, min(length, size - offset)))
        if data:
            def poke(fd):
                with mmap.mmap(fd, size) as area:
                    area[offset:offset + len(data)] = data
                    if rnd_flush:
                        area.flush()
                    return bytes(area[max(0, offset - 9):offset + len(data) + 9])
            rnd_flush = rnd.random() < .5
            both("mmap", poke)
    elif kind == "o":
        for fd in fds: os.close(fd)
        fds[:] = [os.open(mounted, flags), os.open(plain, flags)]
    elif kind == "f":
        os.fsync(fds[0])
    elif kind == "s":
        both("size", lambda fd: os.fstat(fd).st_size)
    elif kind == "x":
        both("seek", lambda fd: os.lseek(fd, 0, os.SEEK_END))
both("all", lambda fd: os.pread(fd, top * 2, 0))
"""


@pytest.mark.parametrize("size", [0, 5, 300_000, 2_500_000])
@pytest.mark.parametrize("options", [[], ["coherent"]])
def test_random_access_equals_a_plain_file(user: Place, size: int, options: list[str]) -> None:
    data = random.Random(size).randbytes(size)  # noqa: S311  # repeatable on purpose
    user.sh("touch base/x plain")
    (user.path / "base/x").write_bytes(data)
    (user.path / "plain").write_bytes(data)
    user.mount(rw="rw", options=options)
    seed = size + len(options)
    user.py(_FSX, str(seed), "1500", "mnt/x", "plain")
    expected = (user.path / "plain").read_bytes()
    user.umount()
    assert (user.path / "rw/x").read_bytes() == expected
    assert (user.path / "base/x").read_bytes() == data


def test_shared_mappings_reach_readers_and_the_branch(place: Place) -> None:
    place.mount(rw="rw")
    code = (
        "import mmap, os\n"
        "fd = os.open('mnt/f', os.O_RDWR); reader = os.open('mnt/f', os.O_RDONLY)\n"
        "with mmap.mmap(fd, 5) as area, mmap.mmap(reader, 5, prot=mmap.PROT_READ) as other:\n"
        "    area[:5] = b'MAPPE'\n"
        "    assert other[:5] == b'MAPPE' == os.pread(reader, 5, 0)\n"
    )
    place.py(code)
    place.umount()
    assert (place.path / "rw/f").read_bytes() == b"MAPPE"


def test_a_mapping_of_a_lower_file_stays_valid_over_copy_up(place: Place) -> None:
    place.mount(rw="rw")
    code = (
        "import mmap, os\n"
        "reader = os.open('mnt/f', os.O_RDONLY)\n"
        "with mmap.mmap(reader, 5, prot=mmap.PROT_READ) as area:\n"
        "    assert area[:5] == b'lower'\n"
        "    fd = os.open('mnt/f', os.O_WRONLY); os.pwrite(fd, b'U', 0)\n"
        "    assert area[:5] == b'Uower'\n"
    )
    place.py(code)


def test_big_file_is_copied_up_whole(place: Place) -> None:
    place.sh("head -c 20000000 /dev/urandom > base/big; printf end >> base/big")
    before = (place.path / "base/big").read_bytes()
    place.mount(rw="rw")
    assert place.sh("sha256sum < mnt/big").split()[0] == hashlib.sha256(before).hexdigest()
    place.sh("printf XX | dd of=mnt/big bs=1 seek=10000000 conv=notrunc status=none")
    after = before[:10_000_000] + b"XX" + before[10_000_002:]
    assert place.sh("sha256sum < mnt/big").split()[0] == hashlib.sha256(after).hexdigest()
    place.sh("truncate -s 1000 mnt/big; chmod 600 mnt/big")
    place.umount()
    assert (place.path / "rw/big").read_bytes() == before[:1000]
    assert (place.path / "base/big").read_bytes() == before


def test_concurrent_first_writers_of_one_big_file(place: Place) -> None:
    place.sh("truncate -s 8M base/big; printf x >> base/big")
    place.mount(rw="rw")
    place.sh(
        "for i in 1 2 3 4 5 6; do (printf $i | dd of=mnt/big bs=1 seek=${i}000000 conv=notrunc "
        "status=none; chmod 60$i mnt/big; cat mnt/f >/dev/null) & done; wait"
    )
    place.umount()
    data = (place.path / "rw/big").read_bytes()
    assert [data[i * 1_000_000 : i * 1_000_000 + 1] for i in range(1, 7)] == [
        b"1", b"2", b"3", b"4", b"5", b"6",
    ]  # fmt: skip
    assert tree_of(place.path / "rw") == ["big"]


_REPLACER = r"""
import os, sys, time
mine, end = sys.argv[1], time.monotonic() + 3
while time.monotonic() < end:
    with open(f"mnt/d/tmp{mine}", "w") as file: file.write("whole")
    os.rename(f"mnt/d/tmp{mine}", "mnt/d/replaced")
"""
_READER = r"""
import os, time
end = time.monotonic() + 3
while time.monotonic() < end:
    with open("mnt/d/replaced") as file: assert file.read() == "whole"
    fd = os.open("mnt/d/replaced", os.O_PATH)
    os.fstat(fd); os.stat(f"/proc/self/fd/{fd}"); os.close(fd)
"""


def test_readers_of_a_file_that_is_replaced_again_and_again(place: Place) -> None:
    place.mount(rw="rw")
    place.sh("printf whole > mnt/d/replaced")
    clients = [
        place.start(*place.python, "-c", code, str(number), stderr=subprocess.PIPE)
        for number in range(2)
        for code in (_REPLACER, _READER)
    ]
    results = [(client.communicate(timeout=100)[1], client.returncode) for client in clients]
    assert results == [("", 0)] * 4


def test_a_file_known_by_path_only_outlives_its_name(place: Place) -> None:
    place.mount(rw="rw")
    code = """
import os
for name in ("mnt/f", "mnt/d/new"):
    open(name, "a").close()
    fd = os.open(name, os.O_PATH)
    os.unlink(name)
    assert os.fstat(fd).st_nlink == 0
    os.stat(f"/proc/self/fd/{fd}")
    os.close(fd)
"""
    place.py(code)


def test_appends_of_many_writers_are_whole(place: Place) -> None:
    place.mount(rw="rw")
    place.sh(
        "for i in 1 2 3 4; do (for j in $(seq 50); do echo line-$i-$j >> mnt/f; done) & done; wait"
    )
    lines = place.sh("tail -c +6 mnt/f").split()
    assert sorted(lines) == sorted(f"line-{i}-{j}" for i in range(1, 5) for j in range(1, 51))


def test_posix_fallocate_and_seek(user: Place) -> None:
    user.mount(rw="rw")
    user.py("""
import os
fd = os.open("mnt/n", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, 200000)
assert os.fstat(fd).st_size == 200000
assert os.lseek(fd, 0, os.SEEK_HOLE) == 200000
assert os.lseek(fd, 100, os.SEEK_DATA) == 100
""")


def test_locks_work_within_the_mount(user: Place) -> None:
    user.mount(rw="rw")
    user.sh("flock -x mnt/f sh -c '! flock -n -x mnt/f true'; flock -n -x mnt/f true")


_CLIENT = r"""
import errno, os, random, sys
number, count = int(sys.argv[1]), int(sys.argv[2])
rnd = random.Random(number)
mine = f"mnt/client{number}"
os.mkdir(mine)
model = {}
for step in range(count):
    name = f"n{rnd.randrange(12)}"
    path = f"{mine}/{name}"
    kind = rnd.choice("cccdrrsl")
    if kind == "c":
        data = rnd.randbytes(rnd.randrange(1, 9000))
        with open(path, "wb") as file: file.write(data)
        model[name] = data
    elif kind == "d" and name in model:
        os.unlink(path); del model[name]
    elif kind == "r" and name in model:
        new = f"n{rnd.randrange(12)}"
        os.rename(path, f"{mine}/{new}"); data = model.pop(name); model[new] = data
    elif kind == "s":
        assert sorted(os.listdir(mine)) == sorted(model), step
    elif kind == "l" and name in model:
        assert open(path, "rb").read() == model[name], step
    shared = f"mnt/d/shared{rnd.randrange(3)}"
    try:
        if rnd.random() < .5:
            with open(shared, "a") as file: file.write("x")
        else:
            os.unlink(shared)
    except FileNotFoundError:
        pass
for name, data in model.items():
    assert open(f"{mine}/{name}", "rb").read() == data
"""


def test_many_clients_at_once(place: Place) -> None:
    place.mount(rw="rw")
    clients = [
        place.start(*place.python, "-c", _CLIENT, str(number), "150", stderr=subprocess.PIPE)
        for number in range(8)
    ]
    results = [(client.communicate(timeout=100)[1], client.returncode) for client in clients]
    assert results == [("", 0)] * 8
    before = place.sh("cd mnt; find . -type f | sort | xargs sha256sum")
    place.umount()
    place.mount(rw="rw")
    assert place.sh("cd mnt; find . -type f | sort | xargs sha256sum") == before


_RESTLESS = r"""
i=0; while :; do i=$((i+1)); mv -T d e; mv -T e d; rm -f f; echo $i > f; mv f g; mv g f
rm -r t; mkdir t; ln f t/l; mv d/a d/b; echo a > d/a; rm p; ln q p; done
"""


def test_o26_killed_in_the_middle_of_changes(place: Place) -> None:
    place.sh("mkdir base/t; echo t > base/t/t")
    before = place.sh("find base -type f | sort | xargs sha256sum; find base -printf '%p %C@\n'")
    for round_number in range(6):
        pid = place.mount(rw="rw")["pid"]
        busy = place.start("sh", "-c", f"cd mnt; {_RESTLESS}", stderr=subprocess.DEVNULL)
        time.sleep(0.05 + 0.07 * round_number)
        place.kill(pid)
        busy.kill()
        busy.communicate()
        place.umount()
        # What a remount shows is whole: every name can be read, nothing is there twice.
        place.mount(rw="rw")
        listing = place.sh("cd mnt; find . | sort")
        assert len(set(listing.split("\n"))) == len(listing.split("\n"))
        place.sh("cd mnt; find . -type f -exec cat {} + > /dev/null; ls -lR > /dev/null")
        names = set(place.sh("ls mnt").split())
        assert len(names & {"d", "e"}) == 1, names
        assert len(names & {"f", "g"}) <= 1, names
        place.sh("cd mnt; test ! -e e || mv -T e d; test ! -e g || mv g f; mkdir -p t; "
                 "test -e d/a || echo a > d/a; test -e p || ln q p")  # fmt: skip
        place.umount()
        pairs = {
            os.path.join(os.path.dirname(name), os.path.basename(name)[4:])
            for name in tree_of(place.path / "rw")
            if os.path.basename(name).startswith(".wh.") and not name.endswith(".opq")
        }
        assert not pairs & {name.rstrip("/") for name in tree_of(place.path / "rw")}
        assert not any("unionfs" in name for name in tree_of(place.path / "rw"))
    after = place.sh("find base -type f | sort | xargs sha256sum; find base -printf '%p %C@\n'")
    assert after == before


def test_nothing_is_asked_twice_that_cannot_have_changed(user: Place) -> None:
    """Once known, names (absent ones too), attributes and contents come from the kernel.

    Other tests have it forget all that it knows (drop_caches), hence several tries.
    """
    pid = user.mount(rw="rw")["pid"]
    work = (
        "cd mnt; for i in 1 2 3; do cat f d/a > /dev/null; ls -l d > /dev/null; "
        "stat f d/b > /dev/null; test ! -e nothing; test ! -e d/none; done"
    )

    def switches() -> int:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            counts = dict(line.split(": ") for line in file.read().splitlines())
        return int(counts["syscr"])

    def asked() -> int:
        user.sh(work)
        before = -1
        while before != switches():  # what is done in advance goes on for a moment
            before = switches()
            time.sleep(0.3)
        user.sh("stat mnt/f mnt/d/b; test ! -e mnt/nothing; test ! -e mnt/d/none")
        return switches() - before

    assert min(asked() for _ in range(5)) == 0


def test_coherent_shows_what_others_do_to_the_branches(user: Place) -> None:
    user.mount(rw="rw", options=["coherent"])
    user.sh("cat mnt/f; echo mine > mnt/f")
    (user.path / "rw/f").write_text("behind the back\n")
    assert user.sh("cat mnt/f") == "behind the back\n"
