"""What a command inside an image sees, and what is left of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.runner import Runner


def _children_of(marker: str) -> list[str]:
    """Return the command lines of all processes that mention `marker`."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line = (
                (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            state = (directory / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker in line and state not in "ZX":
            found.append(f"{directory.name} {line}")
    return found


def _wait_until_gone(marker: str) -> list[str]:
    for _ in range(300):
        left = _children_of(marker)
        if not left:
            return []
        time.sleep(0.1)
    return left


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


# -- exit statuses ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("sh", "-c", "exit 42"), 42),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("true",), 0),
        (("not-there",), 127),
        (("/bin/not-there",), 127),
        (("/etc/passwd",), 126),
        (("/etc",), 126),
    ],
)
def test_exit_status(inside: Runner, words: tuple[str, ...], status: int) -> None:
    done = inside.run("--", *words, status=status)
    assert (done.stderr == "") == (status < 126 or status > 127)


def test_a_missing_interpreter_is_named_as_the_reason(inside: Runner) -> None:
    script = inside.image / "bin/script"
    script.write_text("#!/bin/no-such-shell\n")
    script.chmod(0o755)
    os.chown(script, inside.image.stat().st_uid, inside.image.stat().st_gid)
    assert "interpreter" in inside.run("--", "script", status=127).stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--user", "nobody-here", "--", "true"), "no user nobody-here"),
        (("--user", "0:nogroup-here", "--", "true"), "no group nogroup-here"),
        (("--workdir", "/etc/passwd", "--", "true"), "Not a directory"),
        (("--layer", "/not/there", "--", "true"), "not a directory"),
        (("--rw", "/not/there/rw", "--", "true"), "cannot make the writable branch"),
    ],
)
def test_failures_of_unionfs_are_125(inside: Runner, words: tuple[str, ...], why: str) -> None:
    done = inside.run(*words, status=125)
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


# -- what it sees ----------------------------------------------------------------


def test_it_is_process_2_as_root_in_the_root_directory(inside: Runner) -> None:
    assert inside.sh("echo $$; id -u; id -g; pwd; echo $HOME") == "2\n0\n0\n/\n/root\n"


def test_no_descriptor_of_the_host(inside: Runner) -> None:
    with Path("/etc/passwd").open("rb") as leaked:
        os.set_inheritable(leaked.fileno(), True)
        done = inside.place.run(
            *inside.argv("--", "ls", "/proc/self/fd"), pass_fds=(leaked.fileno(),)
        )
    # Descriptor 3 is the one that ls reads the directory with.
    assert done.stdout.split() == ["0", "1", "2", "3"]


def test_process_1_cannot_be_looked_into(inside: Runner) -> None:
    names = "exe cwd root fd/0 fd/3 ns/mnt"
    said = inside.sh(f"for f in {names}; do readlink /proc/1/$f || echo no; done 2>/dev/null")
    assert said == "no\n" * 6


def test_only_its_own_processes(inside: Runner) -> None:
    numbers = inside.sh("ls /proc").split()
    assert {"1", "2"} <= {n for n in numbers if n.isdigit()}
    assert len([n for n in numbers if n.isdigit()]) <= 3


def test_nothing_of_the_host_is_mounted_but_what_is_lent(inside: Runner) -> None:
    lines = inside.sh("cat /proc/self/mountinfo").splitlines()
    targets = {line.split()[4] for line in lines}
    outside = {
        t for t in targets if not t.startswith(("/dev/", "/proc/", "/sys/", "/etc/resolv.conf"))
    }
    assert outside == {"/", "/dev", "/proc", "/sys", "/tmp", "/run", "/var/tmp"}
    types = {line.split()[4]: line.split(" - ")[1].split()[0] for line in lines}
    assert types["/"] == {"fuse": "fuse.unionfs", "overlay": "overlay"}[inside.backend]
    root_options = next(line.split()[5] for line in lines if line.split()[4] == "/").split(",")
    assert {"ro", "nodev"} <= set(root_options)
    assert all("ro" in line.split()[5].split(",") for line in lines if line.split()[4] == "/sys")


def test_devices_work(inside: Runner) -> None:
    script = (
        "head -c 5 /dev/zero | stat -c %s /dev/stdin >/dev/null; echo x >/dev/null;"
        "head -c 3 /dev/urandom >/dev/null; (echo x >/dev/full) 2>/dev/null || echo full;"
        "ls /dev/shm; ls /dev/pts; readlink /dev/fd /dev/ptmx; echo s >/dev/shm/s"
    )
    assert inside.sh(script) == "full\nptmx\n/proc/self/fd\npts/ptmx\n"


def test_the_read_only_root_has_writable_scratch(inside: Runner) -> None:
    script = "for d in /tmp /run /var/tmp; do echo x >$d/x; cat $d/x; done; (echo x >/x) 2>&1 || :"
    assert "Read-only file system" in inside.sh(script)
    assert not (inside.image / "tmp/x").exists()


def test_root_of_the_machine_may_not_turn_its_switches(inside: Runner) -> None:
    script = """
        echo 1 >/proc/sys/kernel/panic || echo no
        mknod /dev/shm/d b 7 0 && cat /dev/shm/d || echo no
        mount -t tmpfs x /tmp || echo no
    """
    script = f"exec 2>/dev/null; {script}"
    assert inside.sh(script) == "no\nno\nno\n"


def test_network(inside: Runner) -> None:
    assert inside.sh("ls /sys/class/net", "--net", "none") == "lo\n"
    assert inside.sh("cat /proc/net/route").count("\n") == Path(
        "/proc/net/route"
    ).read_text().count("\n")
    host = os.path.realpath("/etc/resolv.conf")
    if os.path.isfile(host):
        assert inside.sh("cat /etc/resolv.conf") == Path(host).read_text()
        assert (inside.image / "etc/resolv.conf").read_text() == ""


def test_environment(inside: Runner) -> None:
    env = dict(
        line.split("=", 1)
        for line in inside.place.run(
            *inside.argv("-e", "A=b=c", "-e", "PASSED", "-e", "UNSET", "--", "env"),
            env={"PASSED": "on", "SECRET": "host"},
        ).stdout.splitlines()
    )
    assert env.pop("PATH").startswith("/usr/local/sbin:")
    assert env == {"A": "b=c", "PASSED": "on", "HOME": "/root", "container": "unionfs"}


def test_users(inside: Runner) -> None:
    assert inside.sh("id -u; id -g; echo $HOME", "--user", "al") == "1000\n1000\n/home/al\n"
    assert inside.sh("id -u; id -g", "--user", "1234:extra") == "1234\n44\n"
    if inside.place.way == "root":
        assert inside.sh("id -G", "--user", "al") == "1000 44\n"


def test_another_user_may_write_where_the_image_lets_him(inside: Runner) -> None:
    if inside.place.way == "root":
        os.chown(inside.image / "home/al", 1000, 1000)
    script = "echo x >~/x; cat ~/x; ls -n ~ | head -2"
    said = inside.sh(script, "--ephemeral", "--user", "al")
    assert said.startswith("x\n")
    assert " 1000 1000 " in said


def test_working_directory_is_made_where_changes_are_allowed(inside: Runner) -> None:
    assert inside.sh("pwd", "--ephemeral", "--workdir", "/srv/a/b") == "/srv/a/b\n"
    assert "cannot be made" in inside.run("--workdir", "/srv/a", "--", "true", status=125).stderr


def test_standard_input_and_output_are_passed_through(inside: Runner) -> None:
    done = inside.run("--", "sh", "-c", "cat; echo e >&2", stdin="typed\n", status=0)
    assert (done.stdout, done.stderr) == ("typed\n", "e\n")


def test_output_ends_when_the_command_closes_it(inside: Runner) -> None:
    with inside.place.start(
        *inside.argv("--", "sh", "-c", "echo ready; exec >&- 2>&-; sleep 1000"),
        stdout=subprocess.PIPE,
    ) as process:
        _ready(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143


# -- the writable branch ---------------------------------------------------------


def test_changes_go_to_the_branch(inside: Runner) -> None:
    inside.sh("echo new >/new; rm /etc/group; mkdir /d", "--rw", "rw")
    rw = inside.place.path / "rw"
    assert (rw / "new").read_text() == "new\n"
    assert (rw / "etc/.wh.group").exists()
    assert sorted(p.name for p in rw.iterdir()) == ["d", "etc", "new"]
    assert (inside.image / "etc/group").exists()
    assert inside.sh("cat /new; ls /etc", "--rw", "rw") == "new\npasswd\nresolv.conf\n"


def test_a_throw_away_branch_is_thrown_away(inside: Runner) -> None:
    assert inside.sh("echo x >/x; rm -r /home; ls /", "--ephemeral").split().count("x") == 1
    assert os.listdir(inside.place.path / ".store/ephemeral") == []
    assert not (inside.image / "x").exists()


def test_leftovers_of_a_killed_run_are_swept(inside: Runner) -> None:
    inside.sh("true", "--ephemeral")
    base = inside.place.path / ".store/ephemeral"
    stale = base / "run-0000000000000000"
    inside.place.sh(f"mkdir -p {stale}/rw/d; echo x >{stale}/rw/d/f; mkdir {base}/other")
    assert inside.sh("echo ok", "--ephemeral") == "ok\n"
    assert os.listdir(base) == ["other"]


# -- signals and ends ------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(inside: Runner, number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.1; done"
    with inside.place.start(
        *inside.argv("--", "sh", "-c", script), stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        _ready(process)
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == "got\n"
        assert process.wait(30) == 9


def test_an_unhandled_signal_ends_it_as_128_and_the_number(inside: Runner) -> None:
    with inside.place.start(
        *inside.argv("--", "sh", "-c", "echo ready; exec sleep 1000"), stdout=subprocess.PIPE
    ) as process:
        _ready(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


def test_background_processes_end_with_the_command(inside: Runner) -> None:
    marker = f"10{os.getpid()}"
    inside.sh(f"sleep {marker} & sleep {marker} & true")
    assert _wait_until_gone(f"sleep {marker}") == []


def test_orphans_are_reaped_while_the_command_runs(inside: Runner) -> None:
    said = inside.sh("(true & true) ; (true & true); sleep 0.5; ps -A -o stat=,comm=")
    assert "Z" not in "".join(line.split()[0] for line in said.splitlines())


def test_killing_the_supervisor_leaves_nothing(inside: Runner) -> None:
    marker = str(inside.image)
    with inside.place.start(
        *inside.argv(
            "--ephemeral", "--", "sh", "-c", "echo ready; echo x >/x; sleep 1000 & sleep 1000"
        ),
        stdout=subprocess.PIPE,
    ) as process:
        _ready(process)
        assert len(_children_of(marker)) >= 3
        process.kill()
        process.wait(30)
        assert _wait_until_gone(marker) == []
    assert os.listdir(inside.place.path / ".store/ephemeral") == []
    assert str(inside.place.path) not in Path("/proc/self/mountinfo").read_text()
    assert inside.place.leftovers() == []


def test_killing_the_daemon_ends_the_run(inside: Runner) -> None:
    with inside.place.start(
        *inside.argv("--ephemeral", "--", "sh", "-c", "echo ready; sleep 1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        _ready(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        daemon = min(int(child) for child in children)
        os.kill(daemon, signal.SIGKILL)
        assert process.wait(30) == 125
        assert process.stderr is not None
        assert "daemon" in process.stderr.read()
    assert _wait_until_gone(str(inside.image)) == []
    assert os.listdir(inside.place.path / ".store/ephemeral") == []


def test_a_branch_in_use_is_refused(inside: Runner) -> None:
    with inside.place.start(
        *inside.argv("--rw", "rw", "--", "sh", "-c", "echo ready; sleep 1000"),
        stdout=subprocess.PIPE,
    ) as process:
        _ready(process)
        assert "use" in inside.run("--rw", "rw", "--", "true", status=125).stderr
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    inside.sh("true", "--rw", "rw")
