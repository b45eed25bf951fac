"""`compare`: what it prints, what it leaves behind, for whom it works, and how it counts."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import CHECKOUT, Run, child_env
from support.insight import MakeImage, MakeLayers, parse
from support.kernelways import require_way
from support.layers import Member, layer_tar
from support.literal import lay_out_all
from support.rootless import NOBODY, run_as_nobody, runtime

from unionfs import _sys
from unionfs.cli import compare as command
from unionfs.insight.engines.contest import ENGINES, contest
from unionfs.insight.engines.layers import of_where
from unionfs.insight.engines.measure import Reference, measure
from unionfs.insight.engines.seen import UNKNOWN_LINKS, Seen, Shown, View, tree_digest
from unionfs.insight.engines.workplace import workplace
from unionfs.insight.where import of_directories
from unionfs.kernel import aufs

FILE = Seen(stat.S_IFREG, 0o644, content=b"x", size=1)
DIRECTORY = Seen(stat.S_IFDIR, 0o755)


def paths(where: str, tmp: Path) -> list[str]:
    """Lay layers out and return the options that name them."""
    layers = lay_out_all(parse(where).layers, tmp)
    return [word for path in layers for word in ("--layer", os.fsdecode(path))]


@pytest.fixture(autouse=True)
def _nothing_left(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Every test leaves the temporary directory empty and no mount behind."""
    if "open_tmp" in request.fixturenames:
        yield  # it has its own
        return
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    assert list(scratch.iterdir()) == []
    assert "unionfs-compare" not in Path("/proc/self/mountinfo").read_text()


# -- what is said ------------------------------------------------------------------


def test_agreement_is_one_digest(run: Run, tmp_path: Path) -> None:
    options = paths("d/ d/x d/y ‖ d/ d/.wh.x e>d ‖ d/ d/.wh..wh..opq d/z", tmp_path)
    done = run("compare", *options)
    assert done.status == 0, done.out + done.err
    assert done.out.startswith("sha256:")
    assert len(done.out.splitlines()) == 1
    assert "agree: oci, unionfs, fuse" in done.err
    again = run("compare", *options, "--engines", "unionfs,fuse")
    assert (again.status, again.out) == (0, done.out)


@pytest.mark.usefixtures("as_root")
def test_disagreement_names_path_engines_and_rule(run: Run, tmp_path: Path) -> None:
    options = paths("etc/ etc/motd ‖ etc/ etc/.wh.motd etc/motd", tmp_path)
    done = run("compare", *options, "--engines", "oci,unionfs,fuse-overlayfs")
    assert done.status == 1
    assert done.out.splitlines() == [
        "/etc/motd",
        "    file 0644 0:0 1 bytes: oci, unionfs",
        "    absent: fuse-overlayfs",
        (
            "    why: whiteout-beside-entry (layer 2: /etc/.wh.motd): fuse-overlayfs: the entry is"
            " hidden"
        ),
    ]
    document = json.loads(run("compare", *options, "--json").out)
    assert not document["agree"]
    assert document["reference"] == "oci"
    assert [item["name"] for item in document["engines"]] == list(ENGINES)
    (item,) = document["differences"]
    assert (item["path"], item["expected"]["size"]) == ("/etc/motd", 1)
    assert [(view["engine"], view["shows"]) for view in item["views"]] == [("fuse-overlayfs", None)]
    assert item["reasons"][0]["rule"] == "whiteout-beside-entry"


def test_refusals_have_their_reason(run: Run, tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(layer_tar([Member(b"a"), Member(b".wh.")]))
    done = run("compare", archive, "--engines", "oci,unionfs")
    assert done.status == 0  # both say the same: no
    assert done.out.startswith("oci refuses: .wh.: an invalid whiteout\nunionfs refuses: ")


@pytest.mark.parametrize(
    "words",
    [("no-such-image",), ("--layer", "/no/such"), ("--layer", "/", "--engines", "x"), ()],
)
@pytest.mark.usefixtures("store_root")
def test_errors_are_no_differences(run: Run, words: tuple[str, ...]) -> None:
    assert run("compare", *words).status == 2


def test_one_engine_alone_is_no_agreement(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = paths("a ‖ .wh.a", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("compare", *options, "--engines", "oci,umoci")
    assert done.status == 2
    assert "left out: umoci: umoci is not installed" in done.err
    assert run("compare", *options, "--engines", "oci").status == 0


def test_engines_of_the_help_are_the_engines(run: Run) -> None:
    assert command._ENGINES == ENGINES
    text = run("compare", "--help").out
    for name in ENGINES:
        assert f"\n  {name} " in text


@pytest.mark.usefixtures("as_root")
def test_image_with_a_rw_branch(image: MakeImage, run: Run, tmp_path: Path) -> None:
    image("etc/ etc/motd etc/hosts ‖ etc/ etc/.wh.hosts")
    rw = tmp_path / "rw"
    (rw / "etc").mkdir(parents=True)
    (rw / "etc" / ".wh.motd").touch()
    (rw / ".wh..wh.unionfs").mkdir()
    (rw / "new").touch()
    done = run("compare", "demo/app:v1", "--rw", rw)
    assert done.status == 0, done.out + done.err


@pytest.mark.usefixtures("as_root")
def test_layers_in_overlayfs_form(run: Run, tmp_path: Path) -> None:
    for name in ("base", "top"):
        (tmp_path / name / "d").mkdir(parents=True)
    (tmp_path / "base" / "d" / "x").touch()
    (tmp_path / "base" / "y").touch()
    os.mknod(tmp_path / "top" / "y", stat.S_IFCHR, 0)
    os.setxattr(tmp_path / "top" / "d", "trusted.overlay.opaque", b"y")
    words = ("--layer", tmp_path / "top", "--layer", tmp_path / "base", "--dialect", "overlay")
    done = run("compare", *words)
    assert done.status == 0, done.out + done.err


# -- what is in layers -------------------------------------------------------------


@pytest.mark.usefixtures("as_root")
def test_everything_that_a_layer_can_hold(run: Run, tmp_path: Path) -> None:
    """Odd names, hard links, devices, owners, setuid, xattrs, times, deep trees: all agree."""
    base = tmp_path / "odd:,\\ name" / "base"
    top = tmp_path / "odd:,\\ name" / "top"
    deep = base / "deep" / "/".join(["n" * 200] * 15)
    deep.mkdir(parents=True)
    (deep / "end").write_text("end")
    top.mkdir()
    for number, name in enumerate((b"a\n\xff", b" -rf", b"\\", b"*", b"n" * 251, b".wh")):
        (base / os.fsdecode(name)).write_bytes(b"%d" % number)
    (base / "link1").write_text("linked")
    (base / "link2").hardlink_to(base / "link1")
    (base / "l").symlink_to("/etc/passwd")
    os.mknod(base / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(base / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(base)
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    (base / "suid").touch()
    os.chown(base / "suid", 12, 34)
    (base / "suid").chmod(0o6751)
    os.setxattr(base / "suid", "user.note", b"\0value")
    os.utime(base / "suid", ns=(1, 1_234_567_890_123_456_789))
    os.utime(base / "l", ns=(1, 999), follow_symlinks=False)
    (base / "closed").mkdir(0o700)
    (top / os.fsdecode(b".wh.a\n\xff")).touch()
    (top / "closed").mkdir(0o711)
    done = run("compare", "--layer", top, "--layer", base, "--json")
    document = json.loads(done.out)
    assert document["differences"] == []
    assert done.status == 0, document
    states = {item["name"]: item["state"] for item in document["engines"]}
    assert {name for name, state in states.items() if state != "ok"} <= {"aufs"}


@pytest.mark.usefixtures("as_root")
def test_many_layers(run: Run, tmp_path: Path) -> None:
    names: list[str] = []
    for number in range(40):
        layer = tmp_path / f"layer{number}"
        (layer / "d").mkdir(parents=True)
        (layer / "d" / f"f{number}").touch()
        if number:
            (layer / "d" / f".wh.f{number - 1}").touch()
        names[:0] = ["--layer", str(layer)]
    done = run("compare", *names)
    assert done.status == 0, done.out + done.err


@pytest.mark.usefixtures("as_root")
def test_too_little_space_leaves_unpackers_out(
    layers: MakeLayers, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = layers("a ‖ .wh.a")

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda _path: Full)
    with workplace() as place:
        sources = of_where(where, place)
        verdict = contest(sources, place, ("oci", "unionfs", "overlay-naive", "umoci"))
    assert verdict.worked == ["oci", "unionfs"]
    for name in ("overlay-naive", "umoci"):
        assert "set TMPDIR to a larger place" in verdict.outcomes[name].status.reason


@pytest.mark.usefixtures("as_root")
def test_hostile_archive_stays_in_its_directory(run: Run, tmp_path: Path) -> None:
    """Links that lead out, with files below them; the engines may refuse or clamp, no more."""
    victim = tmp_path / "victim"
    victim.mkdir()
    archive = tmp_path / "root.tar"
    archive.write_bytes(
        layer_tar(
            [
                Member(b"l", "symlink", target=os.fsencode(victim)),
                Member(b"l/planted", data=b"x"),
                Member(b"up", "symlink", target=b"../../../../.." + os.fsencode(victim)),
                Member(b"up/planted", data=b"x"),
            ]
        )
    )
    run("compare", archive)
    assert list(victim.iterdir()) == []
    for member in (
        Member(b"./", "symlink", target=os.fsencode(victim)),
        Member(b"h", "hardlink", target=b"/../../.." + os.fsencode(victim)),
        Member(b"../" * 30 + os.fsencode(victim).lstrip(b"/") + b"/planted", data=b"x"),
        Member(b".wh..."),
    ):
        archive.write_bytes(layer_tar([member, Member(b"planted", data=b"x")]))
        document = json.loads(run("compare", archive, "--json").out)
        states = {item["name"]: item["state"] for item in document["engines"]}
        assert (states["oci"], states["unionfs"]) == ("refused", "refused"), member.name
        assert victim.is_dir()
        assert list(victim.iterdir()) == []


# -- for whom, and how it ends -----------------------------------------------------


def test_plain_user(open_tmp: Path) -> None:
    """In a user namespace everything but AUFS works; owners are what only FUSE can show."""
    require_way("userns")
    layers = lay_out_all(parse("d/ d/x d/y k ‖ d/ d/.wh.x .wh.k").layers, open_tmp)
    for path in [open_tmp, *open_tmp.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    scratch = open_tmp / "scratch"
    scratch.mkdir()
    os.chown(scratch, NOBODY, NOBODY)
    words = [word for path in layers for word in ("--layer", os.fsdecode(path))]
    env = {
        "HOME": str(open_tmp),
        "TMPDIR": str(scratch),
        "XDG_RUNTIME_DIR": str(scratch),
    }
    argv = [*runtime().argv, "-m", "unionfs", "compare", "--json", *words]
    done = run_as_nobody(argv, env, cwd=open_tmp, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    states = {item["name"]: item for item in document["engines"]}
    assert {name for name, item in states.items() if item["state"] != "ok"} == {"aufs"}
    assert states["fuse"]["not_compared"] == []
    assert "owners" in states["fuse-overlayfs"]["not_compared"]
    assert [path.name for path in scratch.iterdir() if "compare" in path.name] == []


#: Which engine is at work when the signal comes. Programs of these names hang here.
ENDED_IN = {signal.SIGTERM: "fuse-overlayfs", signal.SIGINT: "fuse", signal.SIGHUP: "umoci"}


@pytest.mark.parametrize("number", list(ENDED_IN))
def test_signals_clean_up(number: signal.Signals, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    for folder in range(10):
        (layer / f"d{folder}").mkdir(parents=True)
        for name in range(100):
            (layer / f"d{folder}" / f"f{name}").touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("fuse-overlayfs", "umoci"):
        (programs / program).write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid; exec sleep 300\n")
        (programs / program).chmod(0o755)
    scratch = tmp_path / "scratch"
    engines = ("--engines", f"oci,{ENDED_IN[number]}")
    with subprocess.Popen(
        [sys.executable, "-m", "unionfs", "-v", "compare", "--layer", layer, *engines],
        env=child_env(TMPDIR=str(scratch), PATH=f"{programs}:{os.environ['PATH']}"),
        cwd=CHECKOUT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.strip() == f"unionfs: {ENDED_IN[number]}":
                    break
            wait_for_program(tmp_path / "pid", process, number)
            process.send_signal(number)
            assert process.wait(60) == (130 if number == signal.SIGINT else 128 + number)
        finally:
            process.kill()
    assert list(scratch.iterdir()) == []
    if (tmp_path / "pid").exists():
        pid = int((tmp_path / "pid").read_text())
        for _ in range(500):
            if not Path(f"/proc/{pid}").exists():
                break
            time.sleep(0.01)
        else:
            raise AssertionError("the program lives on")


def wait_for_program(pid: Path, process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Wait until the hanging program runs; our own mount is made while this waits a moment."""
    if ENDED_IN[number] == "fuse":
        time.sleep(0.05)
        return
    for _ in range(6000):
        if pid.exists() and pid.read_text().strip():
            return
        assert process.poll() is None
        time.sleep(0.01)


def test_what_a_killed_run_left_is_removed_by_the_next(run: Run, tmp_path: Path) -> None:
    options = paths("a ‖ .wh.a", tmp_path)
    left = tmp_path / "scratch" / "unionfs-compare-left"
    (left / "umoci" / "rootfs").mkdir(parents=True)
    (left / "umoci" / "rootfs").chmod(0)
    with workplace() as used:
        assert run("compare", *options, "--engines", "oci").status == 0
        assert not left.exists()
        assert os.path.isdir(used)


def test_a_killed_engine_is_left_out(layers: MakeLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    where = layers("a")
    monkeypatch.setattr(
        "unionfs.insight.engines.contest._OTHERS",
        {"umoci": lambda *_: os.kill(os.getpid(), signal.SIGKILL)},
    )
    with workplace() as place:
        verdict = contest(of_where(where, place), place, ("oci", "umoci"))
    assert verdict.outcomes["umoci"].status.state == "left out"
    assert verdict.agree


@pytest.mark.usefixtures("as_root")
def test_aufs_is_asked_for_the_layers_as_spelled(
    layers: MakeLayers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AUFS here: what the kernel would be told, and that what is mounted then is read."""
    where = layers("a ‖ .wh.a b")

    def mount(plan: aufs.AufsPlan, target: bytes) -> None:
        words = plan.first + b"".join(plan.appends)
        places = [words.index(os.path.basename(named.path)) for named in where.branches]
        assert places == sorted(places)
        assert words.index(b"/rw=rw") < places[0]
        _sys.mount(where.branches[0].path, target, b"", _sys.MS_BIND, b"")

    monkeypatch.setattr(aufs, "probe_features", lambda _scratch: aufs.Features())
    monkeypatch.setattr(aufs, "mount", mount)
    with workplace() as place:
        verdict = contest(of_where(where, place), place, ("oci", "aufs"))
    # The mount that stands in for AUFS shows the marker as a file.
    assert {path: item.what for path, item in verdict.outcomes["aufs"].differences.items()} == {
        b".wh.a": ("extra",)
    }


# -- live mounts -------------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.parametrize("backend", ["fuse", "overlay"])
@pytest.mark.usefixtures("as_root")
def test_live_mount_is_one_more_engine(backend: str, run: Run, tmp_path: Path) -> None:
    options = paths("d/ d/x d/y f ‖ d/ d/.wh.y g", tmp_path)
    target = tmp_path / "mnt"
    program = [sys.executable, "-m", "unionfs"]
    more = ("--rw", tmp_path / "rw", "--backend", backend)
    mounting: list[str | Path] = [*program, "mount", *options, target, *more]
    subprocess.run(mounting, env=child_env(), cwd=CHECKOUT, check=True, timeout=60)
    try:
        (target / "d" / "x").unlink()
        (target / "f").write_text("changed")
        (target / "new").mkdir()
        done = run("compare", target, "--json")
        assert done.status == 0, done.out
        engines = {item["name"]: item["state"] for item in json.loads(done.out)["engines"]}
        assert engines["mount"] == engines["unionfs"] == "ok"
    finally:
        subprocess.run([*program, "umount", target], env=child_env(), cwd=CHECKOUT, check=True)


# -- counting ----------------------------------------------------------------------


def against(first: list[Shown], second: list[Shown], view: View | None = None) -> dict[bytes, str]:
    one = measure(first, None, View())
    reference = Reference(one.tree, one.links, View())
    found = measure(second, reference, view or View()).differences
    return {path: f"{', '.join(item.what)}+{item.below}" for path, item in found.items()}


def test_what_is_gone_with_its_directory_is_counted() -> None:
    tree: list[Shown] = [
        (b"", DIRECTORY, None),
        (b"d", DIRECTORY, None),
        (b"d/s", DIRECTORY, None),
        (b"d/s/x", FILE, None),
        (b"d-e", FILE, None),
    ]
    assert against(tree, tree[:1]) == {b"d": "absent+2", b"d-e": "absent+0"}
    assert against(tree[:1], tree) == {b"d": "extra+2", b"d-e": "extra+0"}


def test_hard_links_are_compared_among_what_both_show() -> None:
    pair: list[Shown] = [(b"a", FILE, 1), (b"b", FILE, 1), (b"c", FILE, 1)]
    apart: list[Shown] = [(b"a", FILE, 1), (b"b", FILE, 1), (b"c", FILE, None)]
    assert against(pair, pair[1:]) == {b"a": "absent+0"}
    assert against(pair, apart) == {b"c": "hard links+0"}
    assert against(apart, pair) == {b"c": "hard links+0"}
    unknown: list[Shown] = [(b"a", FILE, None), (b"b", FILE, UNKNOWN_LINKS), (b"c", FILE, None)]
    assert against(unknown, [(b"a", FILE, 9), (b"b", FILE, 9), (b"c", FILE, None)]) == {}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fmt": stat.S_IFLNK}, "type"),
        ({"mode": 0o600}, "mode"),
        ({"uid": 1}, "owner"),
        ({"gid": 1}, "owner"),
        ({"size": 2}, "size"),
        ({"content": b"y"}, "content"),
        ({"xattrs": (("user.x", b""),)}, "xattrs"),
        ({"mtime_ns": 1}, "time"),
        ({"error": "ENOENT"}, "access"),
    ],
)
def test_every_aspect_counts(change: dict[str, object], word: str) -> None:
    other = FILE._replace(**change)  # type: ignore[arg-type]  # names and types are those of Seen
    (said,) = against([(b"f", FILE, None)], [(b"f", other, None)]).values()
    assert said.startswith(word)
    trees = [{b"f": FILE}, {b"f": other}]
    assert len({tree_digest(tree, {}, View()) for tree in trees}) == 2


def test_what_a_plain_user_cannot_make_is_not_compared() -> None:
    device = Seen(stat.S_IFCHR, 0o644, rdev=os.makedev(1, 3))
    view = View(whole=False)
    assert against([(b"x", device, None)], [], view) == {}
    assert against([(b"x", FILE, None)], [(b"x", FILE._replace(uid=7), None)], view) == {}
    times = FILE._replace(mtime_ns=5)
    assert against([(b"x", FILE, None)], [(b"x", times, None)], view) != {}


def test_directory_times_do_not_count() -> None:
    later = DIRECTORY._replace(mtime_ns=5)
    assert against([(b"d", DIRECTORY, None)], [(b"d", later, None)]) == {}


def test_layer_in_a_directory_of_overrides(tmp_path: Path, run: Run) -> None:
    """What a plain user's store keeps in attributes is shown as what it stands for."""
    layer = tmp_path / "layer"
    layer.mkdir()
    os.setxattr(layer, "user.containers.override_stat", b"0:0:0755:dir")
    (layer / "null").touch()
    os.setxattr(layer / "null", "user.containers.override_stat", b"0:0:0666:char-1-3")
    done = run("compare", "--layer", layer, "--engines", "oci,unionfs,umoci")
    assert done.status == 0, done.out + done.err
    where = of_directories([os.fsencode(layer)])
    with workplace() as place:
        verdict = contest(of_where(where, place), place, ("oci",))
    assert verdict.tree[b"null"].rdev == os.makedev(1, 3)
