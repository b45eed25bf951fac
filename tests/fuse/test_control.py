"""The control socket of a mount: who may ask, what is answered, and that nobody can harm it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.asking import ADAPTERS, ask, mounted, socket_of, unionfs
from support.fuseplace import Place

from unionfs.control.client import connect
from unionfs.control.protocol import MAX_REQUEST

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(120)]


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_socket_is_the_owners_alone(place: Place) -> None:
    pid = mounted(place, "nolane")
    path = socket_of(place)
    info = os.stat(path)
    assert stat.S_ISSOCK(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o600
    answer = ask(place, "ping")
    assert answer["version"] == 1
    assert answer["target"] == str(place.path / "mnt")
    assert answer["pid"] == pid or place.way == "userns"
    found = json.loads(unionfs(place, "mounts", "--json").stdout)
    assert path in [record["control"] for record in found]
    place.umount()
    assert place.leftovers() == []


def test_a_foreground_mount_has_one_too(root: Place) -> None:
    root.sh("mkdir mnt")
    with root.start(*root.foreground(rw="rw"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert ask(root, "ping")["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert root.leftovers() == []


def test_others_are_not_answered(user: Place) -> None:
    """A stranger cannot connect; one who got a connection is hung up on."""
    mounted(user, "nolane")
    path = socket_of(user)
    for opened in (path, os.path.dirname(path), str(user.path / ".run")):
        subprocess.run(["chmod", "777", opened], check=True)
    code = (
        "import socket, sys\n"
        "link = socket.socket(socket.AF_UNIX)\n"
        "link.settimeout(20)\n"
        "link.connect(sys.argv[1])\n"
        "try:\n"
        '    link.send(b\'{"do":"ping"}\\n\')\n'
        "    print(len(link.recv(100)))\n"
        "except OSError:\n"
        "    print(0)\n"
    )
    drop = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    done = subprocess.run(
        [*drop, *user.python, "-c", code, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0\n"
    assert ask(user, "ping")["version"] == 1


def test_after_a_kill_the_socket_is_cleaned_up(user: Place) -> None:
    user.kill(mounted(user, "nolane"))
    assert socket_of(user)
    done = unionfs(user, "stats", "mnt", status=1)
    assert "does not answer" in done.stderr
    user.umount()
    assert user.leftovers() == []


@pytest.fixture
def links() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for link in made:
        link.close()


def _open(root: Place, links: list[socket.socket]) -> socket.socket:
    link = connect(os.fsencode(socket_of(root)))
    link.settimeout(30)
    links.append(link)
    return link


def _lines(link: socket.socket) -> Iterator[bytes]:
    with link.makefile("rb") as file:
        yield from file


def test_nonsense_is_answered_or_hung_up_on(root: Place, links: list[socket.socket]) -> None:
    mounted(root, "nolane")
    link = _open(root, links)
    bad = (
        b"\n", b"nonsense\n", b"[]\n", b'{"do":1}\n', b'{"do":"stats","v":99}\n', b"\xff\xfe\n",
        b'{"do":"no-such"}\n', b'{"do":"undelete"}\n', b'{"do":"undelete","path":"a\\u0000b"}\n',
        b'{"do":"log-level","level":"loud"}\n', b'{"do":"revert","path":"/../x"}\n',
        b"[" * 5000 + b"\n",
    )  # fmt: skip
    link.sendall(b"".join(bad))
    link.sendall(b'{"do":"ping"}\n')
    answers = []
    for line in _lines(link):
        answers.append(json.loads(line))
        if "ok" in answers[-1]:
            break
    assert len(answers) == len(bad) + 1
    assert all(set(answer["error"]) == {"kind", "message"} for answer in answers[:-1])
    endless = _open(root, links)
    try:
        for _ in range(20):
            endless.sendall(b"x" * MAX_REQUEST)
    except OSError:
        pass
    halves = _open(root, links)
    halves.sendall(b'{"do":"ping"')
    halves.close()
    assert ask(root, "ping")["version"] == 1
    root.umount()  # though clients are still connected
    assert root.leftovers() == []


def test_more_clients_than_it_takes(root: Place, links: list[socket.socket]) -> None:
    mounted(root, "nolane")
    for _ in range(40):
        _open(root, links)
    for link in links:
        link.close()
    for _ in range(20):  # until it has seen that they are gone
        if "version" in ask(root, "ping"):
            break
    assert ask(root, "ping")["version"] == 1
    assert root.sh("cat mnt/f") == "lower"


def test_a_trace_that_nobody_reads(root: Place, links: list[socket.socket], adapter: str) -> None:
    mounted(root, adapter)
    link = _open(root, links)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.sendall(b'{"do":"trace"}\n')
    root.sh("for i in $(seq 8000); do echo $i; done | (cd mnt && xargs stat) >/dev/null 2>&1 || :")
    assert root.sh("cat mnt/f") == "lower"
    assert ask(root, "stats")["watchers"] == 1
    dropped = told = 0
    for line in _lines(link):
        event = json.loads(line)
        dropped += event.get("dropped", 0)
        told += event.get("op") == "lookup"
        if dropped and told + dropped >= 8000:
            break
    assert dropped > 0
    assert told > 0
    link.shutdown(socket.SHUT_RDWR)
    for _ in range(20):
        if not ask(root, "stats")["watchers"]:
            break
    assert not ask(root, "stats")["watchers"]


# -- requests ------------------------------------------------------------------------


def test_explain_and_the_log(root: Place) -> None:
    mounted(root, "nolane")
    root.sh("rm mnt/f")
    found = ask(root, "explain", path="/f")
    assert found["verdict"] == "hidden"
    assert ask(root, "log-level") == {"level": "warning"}
    assert json.loads(unionfs(root, "control", "mnt", "log-level", "debug", "--json").stdout) == {
        "level": "debug"
    }
    assert unionfs(root, "control", "mnt", "log-level").stdout == "debug\n"


def test_invalidate_makes_the_kernel_ask_again(root: Place, adapter: str) -> None:
    mounted(root, adapter)
    root.sh("ls -lR mnt >/dev/null; stat mnt/f mnt/d/a >/dev/null; stat mnt/no || :")

    def lookups() -> int:
        stats = ask(root, "stats")
        return int(stats["requests"].get("lookup", {"count": 0})["count"])

    before = lookups()
    root.sh("stat mnt/f mnt/d/a >/dev/null")
    assert lookups() == before
    answer = ask(root, "invalidate", path="/d")
    assert answer["names"] >= 2
    root.sh("stat mnt/d/a >/dev/null")
    assert lookups() > before
    between = lookups()
    root.sh("stat mnt/f >/dev/null")
    assert lookups() == between
    ask(root, "invalidate")
    root.sh("stat mnt/f >/dev/null")
    assert lookups() > between
    # Somebody edits a branch behind the union's back, and says so.
    (root.path / "base" / "d" / "behind").write_text("x")
    (root.path / "base" / "no").write_text("x")
    ask(root, "invalidate", path="/no")
    ask(root, "invalidate", path="/d")
    assert "behind" in root.sh("ls mnt/d")
    assert root.sh("cat mnt/no") == "x"


def test_what_is_mounted_inside_stays(root: Place, adapter: str) -> None:
    """The kernel takes a mount away with the name that it is on, so those names are let be."""
    root.sh("mkdir base/d/inner")
    mounted(root, adapter)
    root.sh("rm -r mnt/d/a; mount -t tmpfs none mnt/d/inner; touch mnt/d/inner/x; stat mnt/d/b")
    ask(root, "invalidate")
    ask(root, "invalidate", path="/d/inner")
    ask(root, "undelete", path="/d")
    ask(root, "reset", path="/")
    assert (
        root.sh("cat mnt/d/a; ls mnt/d mnt/d/inner")
        == "aaamnt/d:\na\nb\ninner\n\nmnt/d/inner:\nx\n"
    )
    root.sh("umount mnt/d/inner")


def test_only_fuse_mounts_can_be_asked(root: Place) -> None:
    root.sh("mkdir -p plain mnt")
    assert "no union is mounted" in unionfs(root, "stats", "plain", status=1).stderr
    mounted(root, "nolane")
    assert "is in the mount" in unionfs(root, "stats", "mnt/d", status=2).stderr


# -- undoing -------------------------------------------------------------------------


_HOLDER = r"""
import os, sys
os.chdir("mnt/d")
file = open("a", "r+b", buffering=0)
new = open("../fresh", "w+b", buffering=0)
file.write(b"XYZ")
new.write(b"new")
print("ready", flush=True)
sys.stdin.readline()
assert os.pread(file.fileno(), 10, 0) == b"XYZ"
assert os.pread(new.fileno(), 10, 0) == b"new"
assert os.pwrite(file.fileno(), b"!", 3) == 1
assert os.fstat(file.fileno()).st_size == 4, os.fstat(file.fileno())
assert os.fstat(new.fileno()).st_size == 3
assert open("a", "rb").read() == b"aaa"
assert sorted(os.listdir(".")) == ["a", "b"]
assert not os.path.exists("../fresh")
print("fine", flush=True)
"""


def test_undoing_is_seen_at_once_and_disturbs_nobody(place: Place, adapter: str) -> None:
    """What the kernel has cached is forgotten; open files and working directories go on."""
    mounted(place, adapter)
    place.sh(
        "rm mnt/f; mkdir mnt/new; echo x > mnt/new/y; echo CHANGED > mnt/p;"
        " ls -lR mnt >/dev/null; cat mnt/f 2>/dev/null || :; cat mnt/q mnt/new/y mnt/p >/dev/null"
    )
    unionfs(place, "undelete", "mnt", "/f")
    assert place.sh("cat mnt/f; ls mnt") == "lowerd\nf\nnew\np\nq\ns\n"
    assert "/p is the same file" in ask(place, "revert", path="/q")["notes"][0]
    assert place.sh("cat mnt/p mnt/q; stat -c %h mnt/p") == "pairpair2\n"
    holder = place.start(
        *place.python, "-c", _HOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        ask(place, "reset", path="/")
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "fine\n"
    assert holder.returncode == 0
    assert place.sh("ls mnt") == "d\nf\np\nq\ns\n"
    assert "No such file" in place.fails("cat mnt/new/y")
    place.umount()
    assert place.sh("ls -A rw") == ""
    assert place.leftovers() == []


def test_what_a_reset_brings_back_is_seen_though_it_was_missed_before(
    root: Place, adapter: str
) -> None:
    """Also in a directory that leaves the rw branch as a whole, and below."""
    root.sh("mkdir -p base/d/e/g; echo ccc > base/d/e/c; echo ddd > base/d/e/g/d")
    mounted(root, adapter)
    gone = "for f in d/b d/e/c d/e/g/d; do rm mnt/$f; ! cat mnt/$f 2>/dev/null; done"
    for path in ("/d", "/"):
        root.sh(f"{gone}; rmdir mnt/d/e/g; ! ls mnt/d/e/g 2>/dev/null")
        ask(root, "reset", path=path)
        assert root.sh("cat mnt/d/b mnt/d/e/c mnt/d/e/g/d; ls mnt/d/e") == "bbbccc\nddd\nc\ng\n"
    root.umount()


def test_undoing_while_others_work(root: Place, adapter: str) -> None:
    """Requests in the same directories at the same time: nothing hangs, nothing is stale."""
    mounted(root, adapter)
    script = "i=0; while [ $i -lt 50 ]; do echo $i > mnt/d/a; rm -f mnt/d/b mnt/d/a; ls mnt/d"
    busy = [
        root.start("sh", "-c", f"{script}; i=$((i+1)); done", stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    for _ in range(8):
        ask(root, "undelete", path="/d/b")
        ask(root, "reset", path="/d")
        ask(root, "invalidate")
    for process in busy:
        assert process.wait(60) == 0
    ask(root, "reset", path="/")
    assert root.sh("cat mnt/d/a mnt/d/b; ls mnt/d") == "aaabbba\nb\n"
    root.umount()
    assert root.sh("ls -A rw") == ""


def test_a_kernel_that_waits_for_us_is_not_waited_for(root: Place) -> None:
    """A name whose directory is locked by a request that is not answered yet."""
    root.sh("mkdir mnt; head -c 60000000 /dev/zero > base/d/big")
    mounted(root, "nolane")
    mover = root.start("mv", "mnt/d/big", "mnt/d/moved")
    for _ in range(10):
        ask(root, "invalidate", path="/d/a")
        assert ask(root, "ping")["version"] == 1
    assert mover.wait(60) == 0
    assert root.sh("ls mnt/d") == "a\nb\nmoved\n"


def test_killed_while_undoing(root: Place) -> None:
    """SIGKILL at some moment of a big reset: the next mount shows all of it or nothing."""
    root.sh("for i in $(seq 300); do echo $i > base/d/n$i; done")
    pid = mounted(root, "nolane")
    root.sh("for i in $(seq 300); do echo changed > mnt/d/n$i; echo x > mnt/d/new$i; done")
    old = root.sh("cat mnt/d/* | sort | uniq -c | sort | md5sum")
    killer = threading.Timer(0.05, lambda: os.kill(pid, signal.SIGKILL))
    killer.start()
    root.run(*root.python, "-m", "unionfs", "reset", "mnt", "-y", check=False)
    killer.join()
    root.umount()
    mounted(root, "nolane")
    seen = root.sh("cat mnt/d/* | sort | uniq -c | sort | md5sum")
    new = root.sh("cat base/d/* | sort | uniq -c | sort | md5sum")
    assert seen in (old, new)


def test_credentials_are_three_numbers() -> None:
    """SO_PEERCRED as this machine lays it out (unix(7)): pid, uid, gid."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        raw = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert struct.unpack("=iII", raw) == (os.getpid(), os.geteuid(), os.getegid())


def test_a_long_path_of_the_runtime_directory(root: Place) -> None:
    deep = root.path / ("r" * 100)
    deep.mkdir()
    root.env["XDG_RUNTIME_DIR"] = str(deep)
    mounted(root, "nolane")
    assert "process" in unionfs(root, "control", "mnt", "ping").stdout
    root.umount()
    assert list(Path(deep, "unionfs").iterdir()) == []


def test_a_full_disk_is_named_and_nothing_else(root: Place) -> None:
    """The intent of a long operation is not what a person is told; nothing is half done."""
    root.sh(
        "mkdir base/many rw; for n in 1 2 3 4 5 6 7 8 9; do echo $n > base/many/$n; done;"
        " mount -t tmpfs -o size=400k,nr_inodes=100 none rw"
    )
    try:
        mounted(root, "nolane")
        root.sh("rm -r mnt/many; mkdir mnt/many; echo keep > mnt/many/keep")
        root.sh(
            "dd if=/dev/zero of=rw/fill bs=1k 2>&1 || :; i=0;"
            " while mkdir rw/i$i; do i=$((i+1)); done 2>/dev/null; :"
        )
        error = unionfs(root, "undelete", "mnt", "/many/7", status=1).stderr
        assert error == "unionfs: journal: No space left on device\n"
        root.sh("rm -r rw/fill rw/i*")
        unionfs(root, "undelete", "mnt", "/many/7")
        assert root.sh("ls mnt/many") == "7\nkeep\n"
    finally:
        root.sh("umount mnt; umount -l rw", check=False)
