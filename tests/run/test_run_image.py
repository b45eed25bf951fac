"""A real image in a store: its configuration is honoured and real programs work in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import image_builder
from support.commands import CHECKOUT
from support.workspace import Workspace, workspace


@pytest.fixture(scope="module")
def home() -> Iterator[Workspace]:
    """Return a plain user's workspace with the image imported."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/fuse that everybody may open (make test sets it)")
    image = image_builder.build(CHECKOUT / ".demo")
    with workspace() as made:
        archive = made.give(image.archive, "app.tar")
        done = made.sh(f"unionfs import docker-archive:{archive}")
        assert done.returncode == 0, done.stderr
        yield made


def _ok(home: Workspace, line: str) -> str:
    done = home.sh(line)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("backend", ["fuse", "auto"])
def test_the_image_s_own_command(home: Workspace, backend: str) -> None:
    assert _ok(home, f"unionfs run --backend {backend} {image_builder.TAG}") == "serving\n"


def test_options_on_both_sides_of_the_image(home: Workspace) -> None:
    name = image_builder.TAG
    script = "echo $A $0 $1; pwd"
    for line in (
        f"unionfs run -e A=1 {name} -w /etc -- sh -c '{script}' -e x",
        f"unionfs run -e A=1 -w /etc {name} sh -c '{script}' -e x",
        f"unionfs run {name} -e A=1 --workdir=/etc sh -c '{script}' -e x",
        f"unionfs run -e A=1 -w /etc -- {name} sh -c '{script}' -e x",
    ):
        assert _ok(home, line) == "1 -e x\n/etc\n", line


def test_entrypoint(home: Workspace) -> None:
    said = _ok(home, f"unionfs run --entrypoint /bin/echo {image_builder.TAG} a b")
    assert said == "a b\n"


def test_the_image_s_environment(home: Workspace) -> None:
    said = _ok(home, f"unionfs run {image_builder.TAG} env").splitlines()
    assert "PATH=/usr/bin" in said


@pytest.fixture(scope="module")
def full(home: Workspace) -> str:
    """Return the image with apt on top, as Debian packages have it."""
    home.give(image_builder.build(CHECKOUT / ".demo").apt, "apt.tar")
    _ok(home, f"unionfs import --parent {image_builder.TAG} -t demo/full apt.tar")
    return "demo/full"


@pytest.mark.parametrize("backend", ["fuse", "auto"])
def test_real_programs(home: Workspace, full: str, backend: str) -> None:
    """As a plain user: an interpreter, a package manager, and one that writes."""
    run = f"unionfs run --backend {backend}"
    script = "import os, re; print(os.getpid(), os.getuid())"
    assert _ok(home, f"{run} {image_builder.TAG} python3 -c '{script}'") == "2 0\n"
    assert _ok(home, f"{run} {full} apt-get --version").startswith("apt ")
    assert _ok(home, f"{run} {full} dpkg --print-architecture").strip().isalnum()
    line = f"{run} --ephemeral {image_builder.TAG} -- sh -c 'git init -q /src && ls -a /src'"
    assert _ok(home, line).split() == [".", "..", ".git"]


def test_what_upper_layers_deleted_is_not_there(home: Workspace) -> None:
    name = image_builder.TAG
    assert home.sh(f"unionfs run {name} sudo true").returncode == 127
    said = _ok(home, f"unionfs run {name} sh -c 'cat /etc/motd; ls /opt/cache'")
    assert said == "A small Debian, slimmed.\nREADME\n"


def test_changes_can_be_committed(home: Workspace) -> None:
    name = image_builder.TAG
    _ok(
        home,
        f"unionfs run {name} --rw rw sh -c"
        " 'echo hi >/etc/motd; rm -r /usr/share/doc; mkdir /opt/d'",
    )
    changes = _ok(home, f"unionfs changes --image {name} --rw rw").splitlines()
    assert {"C /etc/motd", "D /usr/share/doc", "A /opt/d"} <= set(changes)
    assert not [line for line in changes if line.split()[1].startswith(("/proc", "/dev", "/sys"))]
    _ok(home, f"unionfs commit --image {name} --rw rw -t demo/app:v2")
    assert _ok(home, "unionfs run demo/app:v2 cat /etc/motd") == "hi\n"


def test_the_image_is_held_while_it_runs(home: Workspace) -> None:
    name = image_builder.TAG
    script = f"""
        unionfs run {name} -- sh -c 'echo up; sleep 1000' >out & pid=$!
        for i in $(seq 300); do grep -q up out && break; sleep 0.1; done
        unionfs rmi --force {name}; echo rmi $?
        kill $pid; wait $pid; echo run $?
    """
    said = home.sh(script)
    assert said.stdout.decode().split()[-4:] == ["rmi", "1", "run", "143"], said
    assert _ok(home, f"unionfs run {name}") == "serving\n"


def test_unknown_images_and_bad_use(home: Workspace) -> None:
    for line, status in (
        ("unionfs run no/such true", 125),
        ("unionfs run", 2),
        ("unionfs run --rw a --ephemeral x true", 2),
        (f"unionfs run --no-such-option {image_builder.TAG}", 2),
        ("unionfs shell a b", 2),
    ):
        done = home.sh(line)
        assert done.returncode == status, line
        assert done.stderr.decode().count("\n") == 1


def test_a_store_of_early_docker(home: Workspace) -> None:
    """Its record's Config names the command; nothing else is known of the image."""
    root = home.path / "old"
    layer = root / "graph/abcd1234/layer"
    shutil.rmtree(root, ignore_errors=True)
    layer.mkdir(parents=True)
    (root / "graph").chmod(0o700)
    record = {"id": "abcd1234", "config": {"Cmd": ["/bin/hello", "there"], "Env": ["X=1"]}}
    (root / "graph/abcd1234/json").write_text(json.dumps(record))
    (layer / "bin").mkdir()
    (layer / "bin/hello").symlink_to("/nowhere")
    home.give(root, "old-store")
    done = home.sh("unionfs --root old-store run abcd1234")
    assert done.returncode == 127
    assert b"/bin/hello" in done.stderr
    assert Path(home.path / "old-store/graph/abcd1234/layer").is_dir()
