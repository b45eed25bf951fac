"""What bad input gets: one clear line, a fitting exit status, nothing half-made left behind.

Every row is a real process in a directory of its own; whatever the directory held before,
it must hold afterwards, and no mount and no daemon may have come into being.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from support.commands import Done, Run, child_env
from support.rootless import NOBODY, runtime
from support.workspace import Workspace

_V1 = "a" * 64
_PROGRESS = ("reading ", "archiving ", "writing ")


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("etc/motd")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"x\n"))
    return buffer.getvalue()


def _docker_archive(path: Path, *, layer: bytes, diff_id: str, missing: bool = False) -> None:
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": ["bad/one:latest"], "Layers": [f"{_V1}/layer.tar"]}]
    members = {name: config, "manifest.json": json.dumps(manifest).encode()}
    if not missing:
        members[f"{_V1}/layer.tar"] = layer
    _tar(path, members)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _nothing(_here: Path) -> None:
    pass


def _truncated(here: Path) -> None:
    _docker_archive(here / "good.tar", layer=_layer(), diff_id=_digest(_layer()))
    (here / "bad.tar").write_bytes((here / "good.tar").read_bytes()[:3000])


def _wrong_digest(here: Path) -> None:
    _docker_archive(here / "bad.tar", layer=_layer(), diff_id=_digest(b"something else"))


def _absent_layer(here: Path) -> None:
    _docker_archive(here / "bad.tar", layer=b"", diff_id=_digest(_layer()), missing=True)


def _not_an_archive(here: Path) -> None:
    (here / "bad.tar").write_bytes(b"once upon a time " * 100)


def _hostile(here: Path) -> None:
    _tar(here / "bad.tar", {"etc/.wh.": b""})


def _bomb(here: Path) -> None:
    with tarfile.open(here / "bad.tar", "w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 300 << 20
        archive.addfile(member, _Zeros())  # type: ignore[arg-type]  # it has read()


class _Zeros:
    def read(self, size: int) -> bytes:
        return bytes(size)


def _directories(here: Path) -> None:
    for name in ("top", "base/sub", "rw", "full", "target"):
        (here / name).mkdir(parents=True)
    (here / "full" / "file").write_text("x")
    (here / "file").write_text("x")


def _damaged_json(here: Path) -> None:
    (here / "store" / "graph" / "cccc0003" / "json").write_text('{"id": ')


def _lost_parent(here: Path) -> None:
    shutil.rmtree(here / "store" / "graph" / "aaaa0001")


def _lost_layer(here: Path) -> None:
    shutil.rmtree(here / "store" / "graph" / "bbbb0002" / "layer")


def _linked_layer(here: Path) -> None:
    layer = here / "store" / "graph" / "cccc0003" / "layer"
    shutil.rmtree(layer)
    layer.symlink_to("/etc")


def _cycle(here: Path) -> None:
    path = here / "store" / "graph" / "aaaa0001" / "json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "parent": "cccc0003"}))


def _bad_tags(here: Path) -> None:
    (here / "store" / "repositories").write_text("[1, 2")


def _existing_output(here: Path) -> None:
    (here / "out.tar").write_text("precious")
    (here / "dir").mkdir()
    (here / "dir" / "precious").write_text("x")


@attrs.frozen
class Row:
    """A command line, what has to be there before, and what it must say."""

    name: str
    line: str
    words: tuple[str, ...]
    status: int = 1
    prepare: Callable[[Path], None] = _nothing


ROWS = (
    # Which image?
    Row("unknown image", "mount nothing/here target", ("nothing/here", "unionfs images")),
    Row("unknown id", "inspect ffff", ("ffff",)),
    Row("ambiguous id", "inspect aaaa000", ("fits 2 images", "aaaa0001", "aaaa0004")),
    Row("impossible name", "inspect UPPER/Case", ("lower case",), 2),
    Row("empty name", "inspect ''", ("empty",), 2),
    Row("impossible tag", "tag cccc0003 demo/app:-x", ("tag",), 2),
    Row("id as name", "tag cccc0003 " + "a" * 64, ("image id",), 2),
    Row("taken tag", "tag aaaa0004 demo/app:latest", ("--force", "demo/app:latest")),
    Row("needed base", "rmi aaaa0001", ("bbbb0002",)),
    Row("no such tag to remove", "untag demo/app:none", ("demo/app:none",)),
    # Broken stores
    Row("damaged record", "mount demo/app target", ("cccc0003", "JSON"), prepare=_damaged_json),
    Row("missing parent", "mount demo/app target", ("parent", "aaaa0001"), prepare=_lost_parent),
    Row("missing layer", "mount demo/app target", ("layer", "bbbb0002"), prepare=_lost_layer),
    Row("layer is a link", "mount demo/app target", ("not a directory",), prepare=_linked_layer),
    Row("cycle", "history demo/app", ("back to itself",), prepare=_cycle),
    Row("damaged tags", "images", ("JSON",), prepare=_bad_tags),
    Row("no store", "--root absent inspect x", ("no image store", "import")),
    Row("not a store", "--root full images", ("not an image store",), prepare=_directories),
    Row("store is a file", "--root file images", ("file",), 2, _directories),
    # Archives
    Row("no such file", "import nothing.tar", ("nothing.tar", "no such file")),
    Row("unknown transport", "import docker://alpine", ("registry", "skopeo copy"), 2),
    Row("truncated", "import bad.tar", ("truncated",), prepare=_truncated),
    Row("wrong diff_id", "import bad.tar", ("diff_id", "damaged"), prepare=_wrong_digest),
    Row("layer not in it", "import bad.tar", (f"{_V1}/layer.tar",), prepare=_absent_layer),
    Row("no archive", "import bad.tar", ("bad.tar",), prepare=_not_an_archive),
    Row("hostile name", "import rootfs:bad.tar", ("whiteout",), prepare=_hostile),
    Row("bomb", "import rootfs:bad.tar", ("ratio", "--limit"), prepare=_bomb),
    Row("over a limit", "import --limit path=3 good.tar", ("path", "--limit"), prepare=_truncated),
    Row("unknown limit", "import --limit size=1 x", ("no such limit", "entries"), 2),
    Row("standard input is empty", "import -", ("standard input",)),
    # Mounts
    Row("nothing to mount", "mount target", ("IMAGE TARGET",), 2),
    Row("target missing", "mount demo/app no/where", ("no/where",), 2),
    Row("target a file", "mount demo/app file", ("not a directory",), 2, _directories),
    Row("target not empty", "mount demo/app full", ("not empty", "--force"), 1, _directories),
    Row("target in a layer", "mount --layer base base/sub", ("in the layer",), 2, _directories),
    Row("layer under target", "mount --layer base/sub base --force", ("under",), 2, _directories),
    Row("layer missing", "mount --layer nope target", ("nope",), 1, _directories),
    Row("layer a file", "mount --layer file target", ("file",), 2, _directories),
    Row("one layer twice", "mount --layer top --layer top target", ("top",), 2, _directories),
    Row("rw in a layer", "mount --layer base --rw base/sub target", ("in the",), 2, _directories),
    Row("layer in rw", "mount --layer base/sub --rw base target", ("in the",), 2, _directories),
    Row("rw is the layer", "mount --layer base --rw base target", ("base",), 2, _directories),
    Row("rw under target", "mount demo/app target --rw target/rw", ("under",), 2, _directories),
    Row("target in rw", "mount demo/app target --rw .", ("rw", "target"), 2, _directories),
    Row("rw a file", "mount demo/app target --rw file", ("file",), 2, _directories),
    Row("rw nowhere", "mount demo/app target --rw no/rw", ("no",), 2, _directories),
    Row("rw twice", "mount demo/app target --rw rw --ephemeral", ("exclude",), 2, _directories),
    Row("unknown option", "mount demo/app target -o alow_other", ("allow_other",), 2),
    Row("refused option", "mount demo/app target -o max_read=4096", ("max_read",), 2),
    Row("not mounted", "umount target", ("no union",), 1, _directories),
    Row("not a mount", "changes target", ("no union",), 1, _directories),
    Row("umount of what", "umount", ("--all",), 2),
    Row("changes without image", "changes --rw rw", ("--image",), 2, _directories),
    Row("changes of nothing", "changes --image demo/app --rw nope", ("nope",)),
    Row("commit of nothing", "commit --image demo/app --rw nope", ("nope",)),
    Row(
        "bad change",
        "commit --image demo/app --rw rw -c 'RUN make'",
        ("RUN",),
        2,
        _directories,
    ),
    Row(
        "commit to a taken name",
        "commit --image demo/app --rw rw -t demo/app:old",
        ("demo/app:old", "--force"),
        1,
        _directories,
    ),
    # Exports
    Row("export without transport", "export demo/app out", ("docker-archive:",), 2),
    Row(
        "export over a file",
        "export demo/app docker-archive:out.tar",
        ("out.tar",),
        1,
        _existing_output,
    ),
    Row("export into a directory", "export demo/app oci:dir", ("dir",), 1, _existing_output),
    Row("export nowhere", "export demo/app docker-archive:no/out.tar", ("no",)),
    Row("export of a bad tag", "export demo/app 'oci:new:a b'", ("tag",), 2),
)


def _snapshot(here: Path) -> dict[str, bytes | None]:
    """Return everything in a directory with its content, our locks and empty staging left out."""
    found: dict[str, bytes | None] = {}
    for folder, names, files in os.walk(here):
        for name in [*names, *files]:
            path = Path(folder) / name
            if name not in {".lock", ":tmp:", ".repositories.lock"}:
                regular = path.is_file() and not path.is_symlink()
                found[str(path.relative_to(here))] = path.read_bytes() if regular else None
    return found


def _call(line: str, here: Path, runtime: Path) -> Done:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m unionfs {line}"],
        cwd=here,
        env=child_env(UNIONFS_ROOT=str(here / "store"), XDG_RUNTIME_DIR=str(runtime)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input(row: Row, old_store: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    old_store.rename(here / "store")
    row.prepare(here)
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    before = _snapshot(here)
    done = _call(row.line, here, runtime)
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.startswith(_PROGRESS)]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("unionfs: ")
    assert "internal error" not in lines[0]
    assert "Errno" not in lines[0]
    for word in row.words:
        assert word in lines[0]
    assert done.status == row.status, lines[0]
    assert _snapshot(here) == before
    assert str(here) not in Path("/proc/self/mountinfo").read_text()
    assert not [path for path in runtime.rglob("*") if path.is_file()]


@pytest.fixture
def good(old_store: Path, tmp_path: Path) -> Path:
    """Return a directory with a store in it and a target to mount on."""
    here = tmp_path / "here"
    here.mkdir()
    old_store.rename(here / "store")
    (here / "target").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    return here


@pytest.mark.fuse
def test_one_branch_in_two_mounts(good: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    assert _call("mount demo/app target --rw rw", good, runtime).status == 0
    try:
        done = _call("mount demo/app:old other --rw rw", good, runtime)
        assert done.status == 1
        assert "rw" in done.err
        assert done.err.count("\n") == 1
        assert not (good / "other").exists()
        again = _call("mount demo/app target", good, runtime)
        assert again.status == 1
        assert "mounted" in again.err
    finally:
        assert _call("umount target", good, runtime).status == 0


@pytest.mark.fuse
def test_read_only_mount_has_nothing_to_commit(good: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    assert _call("mount demo/app target", good, runtime).status == 0
    try:
        with pytest.raises(OSError, match="Read-only file system"):
            (good / "target" / "new").write_text("x")
        done = _call("commit target", good, runtime)
        assert done.status == 2
        assert "read-only" in done.err
        assert _call("changes target", good, runtime).out == ""
        busy = _call("rmi --force demo/app", good, runtime)
        assert busy.status == 1
        assert "in use" in busy.err
    finally:
        assert _call("umount target", good, runtime).status == 0


@pytest.mark.fuse
def test_a_throw_away_branch_does_not_spoil_a_new_store(good: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    (good / "layer").mkdir()
    line = "--root new mount --layer layer --ephemeral target"
    assert _call(line, good, runtime).status == 0
    (good / "target" / "file").write_text("x")
    assert _call("umount target", good, runtime).status == 0
    assert not list((good / "new").rglob("file"))
    assert list((good / "layer").iterdir()) == []
    _tar(good / "root.tar", {"etc/motd": b"x"})
    assert _call("--root new import root.tar", good, runtime).status == 0


def _bare(good: Path, tmp_path: Path, command: str) -> Done:
    """Run in a mount namespace of our own, after a command that takes something away."""
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
            f"{command}; cd {good}; exec {sys.executable} -m unionfs mount demo/app target --rw rw",
        ],
        env=child_env(UNIONFS_ROOT=str(good / "store"), XDG_RUNTIME_DIR=str(tmp_path / "run")),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_no_fuse_device(good: Path, tmp_path: Path) -> None:
    done = _bare(good, tmp_path, "mount -t tmpfs none /dev; mknod /dev/null c 1 3")
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "/dev/fuse" in done.err
    assert not (good / "rw").exists()


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("line", "left"),
    [
        # What may stay: the store that was there, the branch that was there.
        ("--root small/store import big.tar", []),
        ("--root small/store commit --image small/app --rw branch", ["json"]),
        ("export big/one docker-archive:small/out.tar", []),
        ("export big/one oci-archive:small/out.tar", []),
        ("export big/one oci:small/out:tag", []),
        ("export big/one rootfs:small/out.tar", []),
    ],
)
def test_full_disk(good: Path, tmp_path: Path, line: str, left: list[str]) -> None:
    content = os.urandom(3 << 20)
    _tar(good / "big.tar", {"big": content})
    run_dir = tmp_path / "run"
    assert _call("import big.tar -t big/one", good, run_dir).status == 0
    (good / "branch").mkdir()
    (good / "branch" / "big").write_bytes(content)
    (good / "small").mkdir()
    small = _old_image() if "commit" in line else "true"
    unionfs = f"{sys.executable} -m unionfs"
    script = (
        f"mount -t tmpfs -o size=2m none small; {small}; {unionfs} {line}; status=$?;"
        " find small -type f ! -name '.*' -printf '%f ' >left; exit $status"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        env=child_env(UNIONFS_ROOT=str(good / "store"), XDG_RUNTIME_DIR=str(run_dir)),
        cwd=good,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    found = (good / "left").read_text().split()
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith(_PROGRESS)]
    assert len(lines) == 1, done.stderr
    assert "No space left on device" in lines[0]
    assert done.returncode == 1
    assert sorted(set(found) - {"repositories"}) == left


def _old_image() -> str:
    """Return shell that makes a store with the smallest image: one of early Docker."""
    entry = "small/store/graph/abcdef01"
    tags = json.dumps({"Repositories": {"small/app": {"latest": "abcdef01"}}})
    return (
        f"mkdir -p {entry}/layer; echo '{json.dumps({'id': 'abcdef01'})}' >{entry}/json;"
        f" echo '{tags}' >small/store/repositories"
    )


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("before", "line", "word"),
    [
        (
            "mount --bind /dev/null $(readlink -f /usr/bin/fusermount3)",
            "mount --layer layer target",
            "needs fusermount3",
        ),
        (
            f"mount -t ramfs none plain; chown {NOBODY} plain",
            "mount --layer layer --rw plain/rw target",
            "extended attributes",
        ),
    ],
    ids=["no fusermount3", "no xattrs"],
)
def test_what_a_plain_user_may_miss(place: Workspace, before: str, line: str, word: str) -> None:
    assert place.sh("mkdir layer target plain").returncode == 0
    words = shlex.join([*runtime().argv, "-m", "unionfs"])
    drop = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    env = " ".join(f"{key}={value}" for key, value in {**place.env, **runtime().env}.items())
    script = f"{before}; exec {drop} env {env} {words} {line}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=place.path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert word in done.stderr
    assert place.sh("find .run -type f; find target plain layer -mindepth 1").stdout == b""


def test_foreign_store(good: Path, tmp_path: Path, process: Run) -> None:
    os.chmod(good / "store", 0o500)
    os.chmod(good / "store" / "graph", 0o500)
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    done = process("--root", good / "store", "tag", "demo/app", "x/y", cwd=tmp_path)
    assert done.status == 1
    assert done.err.count("\n") == 1
