"""From mount to unmount, in every way it can begin and end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fuseplace import Child, MountFailedError, Place, tree_of

from unionfs.fuse.registry import process_start

pytestmark = pytest.mark.fuse


def _wait_for_end(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 30)[0], f"daemon {pid} does not end"
    finally:
        os.close(fd)


def test_mount_read_write_unmount(place: Place) -> None:
    before = place.sh("cd base; find . -printf '%p %m %s %T@ %i\n' | sort; cat f d/a")
    answer = place.mount(rw="rw")
    assert place.mount_table() == [f"{place.path}/mnt"]
    assert place.mounts() == [
        {"target": f"{place.path}/mnt", "state": "live", "pid": answer["pid"]}
    ]
    assert place.sh("cat mnt/f mnt/d/a; readlink mnt/s; ls -a mnt") == (
        "loweraaaf\n.\n..\nd\nf\np\nq\ns\n"
    )
    place.sh("echo new > mnt/n; echo more >> mnt/f; rm mnt/d/b; mkdir mnt/e; mv mnt/n mnt/e/m")
    assert place.sh("cat mnt/e/m mnt/f; ls mnt/d") == "new\nlowermore\na\n"
    place.umount()
    assert place.mount_table() == []
    assert place.mounts() == []
    assert place.leftovers() == []
    assert process_start(answer["pid"]) is None
    assert tree_of(place.path / "rw") == ["d/", "d/.wh.b", "e/", "e/m", "f"]
    after = place.sh("cd base; find . -printf '%p %m %s %T@ %i\n' | sort; cat f d/a")
    assert after == before


def test_without_rw_nothing_can_change(place: Place) -> None:
    place.mount()
    for script in ("echo x > mnt/f", "rm mnt/f", "mkdir mnt/x", "chmod 600 mnt/f", "mv mnt/f mnt/g",
                   "ln mnt/f mnt/g", "ln -s x mnt/g", "touch mnt/f"):  # fmt: skip
        assert "Read-only file system" in place.fails(script)
    assert place.sh("cat mnt/f") == "lower"


def test_option_ro_with_a_writable_branch(place: Place) -> None:
    place.mount(rw="rw", options=["rw"])
    place.sh("echo mine > mnt/f")
    place.umount()
    place.mount(rw="rw", options=["ro"])
    assert "Read-only" in place.fails("rm mnt/f")
    assert place.sh("cat mnt/f") == "mine\n"


def test_remount_shows_the_same_tree(place: Place) -> None:
    listing = "cd mnt; find . -printf '%p %m %U %G %s %T@\n' | sort; ls -i; stat -c %h f q"
    place.mount(rw="rw")
    place.sh("echo more >> mnt/f; rm mnt/p; mv mnt/d mnt/e; mkdir mnt/d; ln mnt/f mnt/g")
    before = place.sh(listing)
    place.umount()
    place.mount(rw="rw")
    assert place.sh(listing) == before


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_unmount_cleanly(place: Place, how: str) -> None:
    pid = place.mount(rw="rw")["pid"]
    place.sh("echo x > mnt/n")
    place.run("kill", "-s", how[3:], str(pid))
    _wait_for_end(pid)
    assert (place.mount_table(), place.mounts(), place.leftovers()) == ([], [], [])
    assert tree_of(place.path / "rw") == ["n"]


def test_signal_while_in_use_takes_the_mount_away_and_keeps_what_was_written(place: Place) -> None:
    pid = place.mount(rw="rw")["pid"]
    writer = place.start(
        *place.python, "-c",
        "import mmap, os; fd = os.open('mnt/n', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 4096)\n"
        "m = mmap.mmap(fd, 4096); m[:5] = b'dirty'; print(flush=True); input()",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdout is not None
    writer.stdout.readline()
    place.run("kill", str(pid))
    _wait_for_end(pid)
    writer.kill()
    writer.communicate()
    assert (place.mount_table(), place.mounts(), place.leftovers()) == ([], [], [])
    assert (place.path / "rw/n").read_bytes()[:5] == b"dirty"


def test_unmount_from_outside_ends_the_daemon(place: Place) -> None:
    pid = place.mount(rw="rw")["pid"]
    place.run(*(["fusermount3", "-u"] if place.way == "user" else ["umount"]), "mnt")
    _wait_for_end(pid)
    assert (place.mounts(), place.leftovers()) == ([], [])


def test_killed_daemon_is_recognised_cleaned_and_remounted(place: Place) -> None:
    pid = place.mount(rw="rw")["pid"]
    place.sh("echo more >> mnt/f; rm mnt/p; mkdir mnt/n; echo x > mnt/n/x")
    place.kill(pid)
    assert "not connected" in place.fails("cat mnt/f mnt/zzz")
    assert [item["state"] for item in place.mounts()] == ["dead"]
    with pytest.raises(MountFailedError, match="dead union") as caught:
        place.mount(rw="rw")
    assert caught.value.kind == "ConflictError"
    place.umount()
    assert (place.mount_table(), place.mounts(), place.leftovers()) == ([], [], [])
    place.mount(rw="rw")
    assert place.sh("cat mnt/f mnt/n/x; ls mnt") == "lowermore\nx\nd\nf\nn\nq\ns\n"


def test_stale_records_are_listed_and_cleaned(place: Place) -> None:
    pid = place.mount(ephemeral=True)["pid"]
    place.kill(pid)
    place.run(*(["fusermount3", "-u"] if place.way == "user" else ["umount"]), "mnt")
    assert [item["state"] for item in place.mounts()] == ["stale"]
    assert place.clean() == [f"{place.path}/mnt"]
    assert (place.mounts(), place.leftovers()) == ([], [])
    assert tree_of(place.path / ".store") == ["ephemeral/"]


def test_ephemeral_branch_is_thrown_away(place: Place) -> None:
    rw = place.mount(ephemeral=True)["rw"]
    place.sh("echo x > mnt/n; rm mnt/f")
    assert (Path(rw) / "n").read_text() == "x\n"
    place.umount()
    assert not Path(rw).exists()
    answer = place.mount(ephemeral=True)
    place.sh("echo x > mnt/n")
    place.run("kill", str(answer["pid"]))
    _wait_for_end(answer["pid"])
    assert not Path(answer["rw"]).exists()
    place.mount(ephemeral=True)
    assert place.sh("ls mnt") == "d\nf\np\nq\ns\n"
    pid = place.mounts()[0]["pid"]
    place.kill(pid)
    place.umount()
    assert tree_of(place.path / ".store") == ["ephemeral/"]


def test_a_use_that_nobody_can_name_is_waited_for(user: Place) -> None:
    """A descriptor under way in a socket is in no process, as one that is being closed."""
    user.mount(rw="rw")
    holder = user.start(
        *user.python,
        "-c",
        """
import os, socket, time
ends = socket.socketpair()
fd = os.open("mnt/f", os.O_RDONLY)
socket.send_fds(ends[0], [b"x"], [fd])
os.close(fd)
print("held", flush=True)
time.sleep(0.7)
""",
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        user.umount()
        assert holder.wait(60) == 0
    assert user.mount_table() == []


@contextlib.contextmanager
def _sleeper_in(place: Place) -> Iterator[subprocess.Popen[str]]:
    """Have a program called sleep in the mount."""
    script = "cd mnt && echo && exec sleep 1000"
    with place.start("sh", "-c", script, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        deadline = time.monotonic() + 10
        while "sleep" not in Path(f"/proc/{sleeper.pid}/comm").read_text():
            assert time.monotonic() < deadline
        yield sleeper
        sleeper.kill()


def test_busy_mount_names_its_users(place: Place) -> None:
    pid = place.mount(rw="rw")["pid"]
    with _sleeper_in(place) as sleeper:
        with pytest.raises(MountFailedError, match=rf"sleep \({sleeper.pid}\)") as caught:
            place.umount()
        assert caught.value.kind == "BusyError"
        assert place.sh("cat mnt/f") == "lower"
        place.umount(lazy=True)
        assert place.mount_table() == []
        assert [item["state"] for item in place.mounts()] == ["detached"]
    _wait_for_end(pid)
    assert (place.mounts(), place.leftovers()) == ([], [])


def test_busy_mount_names_its_users_where_those_of_others_are_hidden(
    user: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """proc(5): with hidepid=1 nobody sees more of others' processes than their numbers."""
    if os.geteuid() != 0:
        pytest.skip("mounts a /proc of its own: needs uid 0")
    script = "mount -t proc -o hidepid=1 proc /proc && echo && exec sleep 1000"
    holder = Child(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        enter = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wdns={user.path}")
        monkeypatch.setattr(user, "prefix", (*enter, *user.prefix))
        assert user.run("cat", "/proc/1/stat", check=False).returncode, "others are hidden"
        user.mount(rw="rw")
        with _sleeper_in(user) as sleeper:
            with pytest.raises(MountFailedError, match=rf"in use by sleep \({sleeper.pid}\)"):
                user.umount()
            assert user.sh("cat mnt/f") == "lower"
        user.umount()
        holder.kill()


def test_foreground_serves_and_reports(place: Place) -> None:
    place.sh("mkdir mnt")
    reading, writing = os.pipe()
    daemon = place.start(
        *place.foreground(rw="rw", ready_fd=writing),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(writing,),
    )  # fmt: skip
    os.close(writing)
    try:
        assert os.read(reading, 10) == b"s"
        assert place.sh("cat mnt/f") == "lower"
        assert [item["state"] for item in place.mounts()] == ["live"]
        daemon.terminate()
        out, err = daemon.communicate(timeout=30)
    finally:
        os.close(reading)
        daemon.kill()
        daemon.communicate()
    assert (out, err, daemon.returncode) == ("ready\nended\n", "", 0)
    assert (place.mount_table(), place.leftovers()) == ([], [])


def test_ready_fd_tells_failure(user: Place) -> None:
    reading, writing = os.pipe()
    try:
        question = user.ask("mount", target="absent", layers=("base",), ready_fd=writing)
        with pytest.raises(MountFailedError, match="does not exist"):
            user.control(question, pass_fds=(writing,))
        os.close(writing)
        writing = -1
        assert os.read(reading, 10) == b"f"
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def test_failure_leaves_nothing_behind(place: Place) -> None:
    place.sh("mkdir mnt other")
    pid = place.mount(rw="rw", target="other")["pid"]
    with pytest.raises(MountFailedError) as caught:
        place.mount(rw="rw")
    assert caught.value.kind == "BusyError"
    with pytest.raises(MountFailedError):
        place.mount("base", "absent", rw="fresh")
    with pytest.raises(MountFailedError):
        place.mount(rw="fresh", hold=["absent"])
    with pytest.raises(MountFailedError):
        place.mount(ephemeral=True, hold=["absent"])
    assert not (place.path / "fresh").exists()
    assert place.mount_table() == [f"{place.path}/other"]
    assert [re.sub(r"\w{16}", "*", name) for name in place.leftovers()] == [
        "mount-*.json", "mount-*.log", "mount-*.sock",
    ]  # fmt: skip
    assert place.sh("ls -A .store/ephemeral 2>/dev/null || true") == ""
    assert [item["pid"] for item in place.mounts()] == [pid]


def test_daemon_keeps_no_descriptor_of_its_starter(place: Place) -> None:
    reading, writing = os.pipe()
    place.sh("mkdir mnt")
    try:
        question = place.ask("mount", target="mnt", layers=("base",), rw="rw")
        pid = place.control(question, pass_fds=(writing,))["pid"]
    finally:
        os.close(writing)
    # End of file at once: the daemon does not hold the other end.
    assert select.select([reading], [], [], 10)[0]
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    assert "Umask:\t0000" in Path(f"/proc/{pid}/status").read_text()
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_descriptors_do_not_pile_up(place: Place) -> None:
    pid = place.mount(rw="rw")["pid"]
    script = (
        "for i in 1 2 3 4 5; do cat mnt/f mnt/d/a >/dev/null; echo $i > mnt/n$i; rm mnt/n$i; "
        "ls -R mnt > /dev/null; echo x >> mnt/d/a; done"
    )
    place.sh(script)
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(10):
        place.sh(script)
    # The kernel sends RELEASE a moment after close(2); one leak a round would be ten.
    deadline = time.monotonic() + 10
    while len(os.listdir(f"/proc/{pid}/fd")) > before + 2:
        assert time.monotonic() < deadline, os.listdir(f"/proc/{pid}/fd")
        time.sleep(0.05)


def test_image_directories_are_locked_while_mounted(place: Place) -> None:
    place.sh("mkdir image")
    place.mount(hold=["image"])
    assert place.run("flock", "-n", "-x", "image", "true", check=False).returncode == 1
    assert place.run("flock", "-n", "-s", "image", "true", check=False).returncode == 0
    place.umount()
    place.run("flock", "-n", "-x", "image", "true")
    locked = place.start("flock", "-x", "image", "sh", "-c", "echo; cat",
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert locked.stdout is not None
    locked.stdout.readline()
    with pytest.raises(MountFailedError, match="is being removed"):
        place.mount(hold=["image"])
    locked.communicate()


def test_two_mounts_share_layers(place: Place) -> None:
    place.mount(rw="rw1", target="m1")
    place.mount(rw="rw2", target="m2")
    place.sh("echo x >> m1/f; rm m1/p")
    assert place.sh("cat m2/f m2/p") == "lowerpair"
    assert len(place.mounts()) == 2


def test_mounting_twice_on_one_target(place: Place) -> None:
    place.mount(rw="rw")
    with pytest.raises(MountFailedError, match="already"):
        place.mount(rw="rw2")
    assert not (place.path / "rw2").exists()


def test_umount_of_what_is_not_a_union(place: Place) -> None:
    place.sh("mkdir mnt")
    with pytest.raises(MountFailedError, match="no union is mounted") as caught:
        place.umount()
    assert caught.value.kind == "NotFoundError"


def test_root_can_unmount_what_users_mounted_and_not_the_reverse(user: Place, root: Place) -> None:
    pid = user.mount()["pid"]
    root.control({**root.ask("umount"), "target": f"{user.path}/mnt"})
    _wait_for_end(pid)
    assert (user.mounts(), user.leftovers()) == ([], [])
    root.mount()
    with pytest.raises(MountFailedError):
        user.control({**user.ask("umount"), "target": f"{root.path}/mnt"})
    assert root.sh("cat mnt/f") == "lower"
    root.run("mount", "-t", "tmpfs", "none", user.path / "mnt")
    try:
        with pytest.raises(MountFailedError, match="is not a union"):
            user.umount()
    finally:
        root.run("umount", user.path / "mnt")


def test_odd_target_names(user: Place) -> None:
    name = "a b\t\\é"
    user.sh(f"mkdir '{name}'")
    user.mount(rw="rw", target=name)
    assert [item["target"] for item in user.mounts()] == [f"{user.path}/{name}"]
    assert user.sh(f"cat '{name}/f'") == "lower"
    user.umount(name)
    assert user.leftovers() == []


def test_usr1_dumps_stacks_and_goes_on(user: Place) -> None:
    answer = user.mount()
    os.kill(answer["pid"], signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while "most recent call first" not in Path(answer["log"]).read_text():
        assert time.monotonic() < deadline
    assert user.sh("cat mnt/f") == "lower"
    user.umount()
    assert user.leftovers() == [Path(answer["log"]).name]


_BREAK = """
import unionfs.union
def broken(self, ino):
    raise KeyError(ino)
unionfs.union.Engine.readlink = broken
"""


def test_a_defect_costs_one_error_and_not_the_mount(user: Place) -> None:
    """A sitecustomize breaks one operation inside the daemon."""
    user.sh("mkdir broken")
    (user.path / "broken/sitecustomize.py").write_text(_BREAK)
    user.env["PYTHONPATH"] = f"{user.path}/broken:{user.env['PYTHONPATH']}"
    answer = user.mount(rw="rw")
    assert "Input/output error" in user.fails("readlink -v mnt/s")
    assert user.sh("cat mnt/f; echo x > mnt/n; cat mnt/n") == "lowerx\n"
    user.umount()
    log = Path(answer["log"]).read_text()
    assert "readlink failed; the caller got EIO" in log
    assert "KeyError" in log
    assert user.leftovers() == [Path(answer["log"]).name]
    os.utime(answer["log"], (0, 0))
    user.clean()
    assert user.leftovers() == []


def test_daemon_that_cannot_start_is_explained(user: Place) -> None:
    user.sh("mkdir broken")
    (user.path / "broken/pyfuse3.py").write_text("raise ImportError('libfuse3.so.3 is missing')")
    user.env["PYTHONPATH"] = f"{user.path}/broken:{user.env['PYTHONPATH']}"
    with pytest.raises(MountFailedError, match=r"status 1 before .*libfuse3\.so\.3 is missing"):
        user.mount(ephemeral=True)
    assert user.leftovers() == []
    assert tree_of(user.path / ".store") == ["ephemeral/"]


def test_link_tables_of_a_store_are_used_and_a_damaged_one_is_not_needed(user: Place) -> None:
    user.sh("mkdir -p good/layer bad/layer; cp -a base/. good/layer; cp -a base/. bad/layer")
    (user.path / "good/hardlinks.json").write_text('[["p", "q"]]')
    (user.path / "bad/hardlinks.json").write_text("{")
    for image in ("good", "bad"):
        user.mount(f"{image}/layer", rw=f"rw-{image}")
        user.sh("rm mnt/p")
        assert user.sh("stat -c %h mnt/q") == "1\n"
        user.sh("echo more >> mnt/q; test ! -e mnt/p; cat mnt/q")
        user.umount()
        assert tree_of(user.path / f"rw-{image}") == [".wh.p", "q"]
    assert len(user.leftovers()) == 1  # the log of the second one says what was wrong
