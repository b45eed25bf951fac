"""`unionfs mount --backend`: the whole job over overlayfs, and whatever can go wrong with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support import image_builder
from support.backendplace import Place, backend_place, until
from support.commands import CHECKOUT
from support.engine_fs import build, disk_state
from support.rootless import run_as_nobody, runtime

from unionfs.errors import UnsupportedError, UsageError
from unionfs.fuse.request import BACKENDS, MountRequest, check
from unionfs.kernel import aufs
from unionfs.mounts import MOUNTED, State

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.usefixtures("as_root")]

_SECONDS: Final = 60
LAYERS: Final = ("--layer", "top", "--layer", "base")
#: Bookkeeping that overlayfs lists as well (see `unionfs.kernel`).
_OURS: Final = ("trusted.unionfs.", "user.unionfs.", "user.containers.", "trusted.overlay.")


@pytest.fixture
def place() -> Iterator[Place]:
    with backend_place() as made:
        build(made.path / "base", {"one": "1", "two": "2", "d/a": "aaa", "p": "pair", "q": "=p"})
        build(made.path / "top", {".wh.one": "", "d/.wh.a": "", "d/b": "bbb"})
        yield made


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that programs see, but inode numbers and the times of directories."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(directory, name)
            st = os.lstat(path)
            content: object = None
            if stat.S_ISREG(st.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            plain = not stat.S_ISDIR(st.st_mode)
            attributes = [
                (item, os.getxattr(path, item, follow_symlinks=False))
                for item in sorted(os.listxattr(path, follow_symlinks=False))
                if not item.startswith(_OURS)
            ]
            found[os.path.relpath(path, root)] = (
                st.st_mode,
                (st.st_uid, st.st_gid, st.st_rdev),
                (st.st_nlink, st.st_size, st.st_mtime_ns) if plain else None,
                tuple(attributes),
                content,
            )
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, object]:
    return {
        path: (one.get(path), other.get(path))
        for path in one.keys() | other.keys()
        if one.get(path) != other.get(path)
    }


def no_aufs(place: Place) -> None:
    try:
        aufs.probe_features(os.fsencode(place.path))
    except UnsupportedError:
        return
    pytest.skip("this kernel has AUFS")


# -- the whole job -----------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("needs uid 0")
    image = image_builder.build(CHECKOUT / ".demo")
    with backend_place() as made:
        made.ok("import", f"docker-archive:{image.archive}")
        yield made


@pytest.mark.timeout(600)
def test_the_whole_job_over_overlayfs(demo: Place) -> None:
    mnt = demo.path / "job"
    assert demo.ok("images").startswith("demo/app:latest\t")
    made = demo.ok("mount", "demo/app", "job", "--rw", "job-rw", "--backend", "overlay")
    assert made == f"{mnt}\n"
    (mount,) = demo.mounts()
    assert (mount["backend"], mount["wanted"], mount["state"]) == ("overlay", "overlay", "live")
    assert demo.kernel_types() == ["overlay"]
    assert "in use" in demo.fails("rmi", "demo/app")

    shutil.rmtree(mnt / "usr/share/doc")
    (mnt / "etc/motd").write_text("hi\n")
    subprocess.run(["mv", mnt / "opt", mnt / "opt2"], check=True)
    live = demo.ok("changes", "job")
    assert "D /usr/share/doc\n" in live
    assert "C /etc/motd\n" in live
    assert "A /opt2/app/caf\\xe9\n" in live
    assert demo.ok("changes", "--image", "demo/app", "--rw", "job-rw") == live

    first = demo.ok("commit", "job", "-t", "demo/app:live", "--author", "me").strip()
    assert (mnt / "etc/motd").read_text() == "hi\n"
    demo.ok("umount", "job")
    assert demo.mounts() == []
    assert demo.kernel_types() == []
    assert demo.ok("changes", "--image", "demo/app", "--rw", "job-rw") == live

    # The branch in its resting form gives the very same tree.
    demo.ok("commit", "--image", "demo/app", "--rw", "job-rw", "-t", "demo/app:rest")
    for name in ("live", "rest"):
        demo.ok("export", f"demo/app:{name}", f"rootfs:{name}.tar")
    flat = [(demo.path / name).read_bytes() for name in ("live.tar", "rest.tar")]
    assert flat[0] == flat[1]
    digest = demo.ok("export", first, "oci:out:v2").strip()
    raw = ["skopeo", "inspect", "--format", "{{.Digest}}", f"oci:{demo.path}/out:v2"]
    assert subprocess.run(raw, check=True, capture_output=True, text=True).stdout.strip() == digest
    assert demo.runtime() == []


@pytest.mark.timeout(600)
def test_a_branch_carried_from_fuse_to_overlay_and_back(demo: Place) -> None:
    mnt, rw = demo.path / "carried", demo.path / "carried-rw"

    def mounted(backend: str, change: Callable[[], None]) -> dict[str, Any]:
        demo.ok("mount", "demo/app", "carried", "--rw", rw, "--backend", backend)
        try:
            (item,) = demo.mounts()
            assert item["backend"] == backend
            change()
            return tree_of(mnt)
        finally:
            demo.ok("umount", "carried")

    def nothing() -> None:
        return

    def first() -> None:
        shutil.rmtree(mnt / "usr/share/doc/bash", ignore_errors=True)
        (mnt / "etc/motd").write_text("fuse\n")
        (mnt / "opt/cache/README").unlink()
        (mnt / "opt/cache").rmdir()
        (mnt / "opt/cache").mkdir()
        (mnt / "opt/cache/new").write_text("in an opaque directory")
        (mnt / "usr/bin/perl").chmod(0o711)

    def second() -> None:
        (mnt / "etc/hostname").write_text("overlay\n")
        (mnt / "etc/motd").unlink()
        (mnt / "opt/tool").unlink()
        (mnt / "opt/tool").mkdir()
        os.setxattr(mnt / "opt/app/data", "user.note", b"overlay")
        os.chown(mnt / "opt/app/server", 7, 8)

    after_fuse = mounted("fuse", first)
    form = disk_state(rw)
    seen = mounted("overlay", nothing)
    assert differences(after_fuse, seen) == {}
    assert disk_state(rw) == form
    after_overlay = mounted("overlay", second)
    assert differences(after_overlay, mounted("fuse", nothing)) == {}
    kept = disk_state(rw)
    assert not any(".wh..wh." in name and not name.endswith(".wh..wh..opq") for name in kept)
    assert {"etc/.wh.motd", "opt/tool/.wh..wh..opq", "opt/cache/.wh..wh..opq"} <= kept.keys()
    assert differences(after_overlay, mounted("overlay", nothing)) == {}
    assert disk_state(rw) == kept


def test_shims_are_kept_in_the_store_and_go_with_the_image(demo: Place) -> None:
    demo.ok("mount", "demo/app", "shimmed", "--backend", "overlay")
    (mount,) = demo.mounts()
    homes = [Path(layer).parent for layer in mount["layers"]]
    assert any((home / "shims").is_dir() for home in homes)
    assert mount["read_only"]
    demo.ok("umount", "shimmed")
    assert demo.ok("fsck").startswith("0 problems") or "0 problems" in demo("fsck").err


# -- the choice --------------------------------------------------------------------


def test_what_the_command_line_offers_is_what_there_is(place: Place) -> None:
    assert f"[{'|'.join(BACKENDS)}]" in place.ok("mount", "--help")
    assert "default: fuse" in place.ok("mount", "--help")
    request = MountRequest(b"/", (b"/usr",), backend="zfs")
    with pytest.raises(UsageError, match="unknown back end zfs"):
        check(request)


def test_without_being_asked_it_is_fuse(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt")
    (mount,) = place.mounts()
    assert (mount["backend"], mount["wanted"], mount["reasons"]) == ("fuse", "fuse", [])
    assert f"{place.path}/mnt: fuse, the default\n" in place("mounts", "-v").err


def test_auto_takes_the_fastest_and_says_why(place: Place) -> None:
    no_aufs(place)
    done = place("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "auto", "-v")
    line = f"{place.path}/mnt: overlay, chosen by auto; aufs: this kernel has no AUFS"
    assert (done.status, done.out) == (0, f"{place.path}/mnt\n")
    assert done.err.startswith(line)
    assert line in place("mounts", "-v").err
    assert line not in place("mounts").err
    (mount,) = place.mounts()
    assert (mount["backend"], mount["wanted"], mount["losses"]) == ("overlay", "auto", [])
    assert mount["reasons"][0].startswith("aufs: ")
    assert place.names() == ["d", "p", "q", "two"]
    assert place.names("mnt/d") == ["b"]


def test_auto_takes_fuse_for_what_only_fuse_can_do(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--backend", "auto", "-o", "coherent")
    (mount,) = place.mounts()
    assert mount["backend"] == "fuse"
    assert mount["reasons"] == ["aufs, overlay: option coherent needs fuse"]
    assert place.kernel_types() == ["fuse.unionfs"]
    said = place("mounts", "-v").err
    assert "mnt: fuse, chosen by auto; aufs, overlay: option coherent needs fuse" in said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-o", "coherent"), "overlay: option coherent needs fuse"),
        (("-o", "noacl,squash_to_uid=5"), "option noacl and option squash_uid need fuse"),
        (("-o", "ro", "--rw", "rw"), "a read-only view of a writable branch needs fuse"),
    ],
)
def test_a_named_back_end_refuses_what_it_cannot_do(
    place: Place, options: tuple[str, ...], why: str
) -> None:
    assert why in place.fails("mount", *LAYERS, "mnt", "--backend", "overlay", *options)
    assert nothing_left(place)


def nothing_left(place: Place) -> bool:
    """Assert that a failed mount has left no mount, target, branch, record or log."""
    assert place.kernel_types() == []
    assert not (place.path / "mnt").exists()
    assert not (place.path / "rw").exists()
    assert place.runtime() == []
    with contextlib.suppress(FileNotFoundError):
        assert os.listdir(place.path / "store" / "ephemeral") == []
    return True


def test_aufs_where_there_is_none(place: Place) -> None:
    no_aufs(place)
    for branch in (("--rw", "rw"), ("--ephemeral",), ()):
        said = place.fails("mount", *LAYERS, "mnt", *branch, "--backend", "aufs")
        assert said.startswith("unionfs: aufs: this kernel has no AUFS")
        assert nothing_left(place)


def test_without_rights_a_named_back_end_fails_and_auto_takes_fuse(place: Place) -> None:
    home = place.path / "home"
    home.mkdir()
    (home / "run").mkdir()
    for path in (home, home / "run"):
        os.chown(path, 65534, 65534)
    (home / "run").chmod(0o700)
    env = {"XDG_RUNTIME_DIR": str(home / "run"), "UNIONFS_ROOT": str(home / "store")}
    layers = ("--layer", "../top", "--layer", "../base")

    def unionfs(*words: str) -> subprocess.CompletedProcess[bytes]:
        argv = [*runtime().argv, "-m", "unionfs", *words]
        return run_as_nobody(argv, env={**env, "PATH": os.environ["PATH"]}, cwd=home)

    done = unionfs("mount", *layers, "mnt", "--rw", "rw", "--backend", "overlay")
    assert done.returncode == 1
    assert done.stderr.startswith(b"unionfs: overlay: needs root or a user namespace")
    assert done.stderr.count(b"\n") == 1
    assert sorted(os.listdir(home)) == ["run"]
    assert os.listdir(home / "run" / "unionfs") == []

    if shutil.which("fusermount3") is None:
        pytest.skip("needs fusermount3")
    done = unionfs("mount", *layers, "mnt", "--rw", "rw", "--backend", "auto", "-v")
    assert done.returncode == 0, done.stderr
    assert b"mnt: fuse, chosen by auto; aufs: " in done.stderr
    assert b"; overlay: needs root" in done.stderr
    assert unionfs("umount", "mnt").returncode == 0


def test_a_second_mount_over_a_kernel_union_is_refused(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
    for backend in ("fuse", "overlay"):
        said = place.fails("mount", *LAYERS, "mnt", "--force", "--backend", backend)
        assert "a union is mounted on" in said
        said = place.fails("mount", *LAYERS, "other", "--rw", "rw", "--backend", backend)
        assert "in use" in said
        assert not (place.path / "other").exists()
    assert place.kernel_types() == ["overlay"]


# -- the end -----------------------------------------------------------------------


def test_an_ephemeral_branch_goes_with_its_mount(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--ephemeral", "--backend", "overlay")
    (place.path / "mnt" / "new").write_text("x")
    (mount,) = place.mounts()
    assert mount["ephemeral"]
    assert place.ok("changes", "mnt") == "A /new\n"
    place.ok("umount", "mnt")
    assert not os.path.lexists(mount["rw"])
    assert place.runtime() == []
    assert place.names() == []


def test_a_busy_mount_names_its_users_and_stays(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
    with (place.path / "mnt" / "two").open() as file:
        said = place.fails("umount", "mnt")
        assert f"({os.getpid()})" in said
        assert "--lazy" in said
        assert place.state() == ["live"]
        assert file.read() == "2"
    place.ok("umount", "mnt")
    assert place.mounts() == []


def test_lazy_unmount_converts_when_the_last_user_has_gone(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
    with (place.path / "mnt" / "new").open("w") as file:
        place.ok("umount", "--lazy", "mnt")
        assert place.names() == []
        assert place.kernel_types() == []
        assert place.state() == ["detached"]
        # Nobody takes the branch away from under the last user.
        assert "in use" in place.fails("mount", *LAYERS, "mnt", "--rw", "rw")
        assert place.ok("changes", "--rw", "rw", *LAYERS) == "A /new\n"
        file.write("late")
    until(lambda: place.mounts() == [])
    assert disk_state(place.path / "rw") == {"new": "late"}
    assert place.runtime() == []


def test_lazy_unmount_of_a_read_only_mount_keeps_deleted_files_deleted(place: Place) -> None:
    for unmount in (("umount", "--lazy"), None):
        place.ok("mount", *LAYERS, "mnt", "--backend", "overlay")
        fd = os.open(place.path / "mnt", os.O_RDONLY | os.O_DIRECTORY)
        try:
            if unmount is None:
                subprocess.run(["umount", "--lazy", place.path / "mnt"], check=True)
            else:
                place.ok(*unmount, "mnt")
            assert place.names() == []
            until(lambda: place.state() == ["detached"])
            assert sorted(os.listdir(fd)) == ["d", "p", "q", "two"]
        finally:
            os.close(fd)
        until(lambda: place.mounts() == [])
        assert place.runtime() == []


def test_a_detached_mount_without_a_keeper_is_finished_when_nobody_uses_it(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--backend", "overlay")
    place.kill_keeper()
    fd = os.open(place.path / "mnt", os.O_RDONLY | os.O_DIRECTORY)
    try:
        place.ok("umount", "--lazy", "mnt")
        assert place.state() == ["stale"]
        assert sorted(os.listdir(fd)) == ["d", "p", "q", "two"]
    finally:
        os.close(fd)
    # A test elsewhere may have a copy of the mount in a namespace of its own for a moment.
    until(lambda: place("umount", "mnt").status == 0)
    assert place.mounts() == []
    assert place.runtime() == []


def test_what_was_killed_before_it_was_recorded_is_swept(place: Place) -> None:
    """Any command that looks at mounts does it, but not to what is mounted or being made."""
    place.ok("mount", *LAYERS, "mnt", "--backend", "overlay")
    (kept,) = [name for name in place.runtime() if name.startswith("overlay-")]
    place.kill_keeper()
    runtime_dir = place.path / "run/unionfs"
    for name in place.runtime():
        if name.startswith("mount-"):
            (runtime_dir / name).unlink()
    build(runtime_dir, {"overlay-0123456789abcdef/root/": "", "overlay-0123456789abcde0/root/": ""})
    lock = os.open(runtime_dir / "overlay-0123456789abcde0", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        place.ok("mounts")
        assert place.runtime() == sorted([kept, "overlay-0123456789abcde0"])
        assert place.names() == ["d", "p", "q", "two"]
    finally:
        os.close(lock)
    subprocess.run(["umount", place.path / "mnt"], check=True)
    until(lambda: place.mounts() == [] and place.runtime() == [])


def test_umount_8_is_noticed(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
    (place.path / "mnt" / "two").unlink()
    subprocess.run(["umount", place.path / "mnt"], check=True)
    until(lambda: place.mounts() == [])
    assert disk_state(place.path / "rw") == {".wh.two": ""}
    assert place.runtime() == []


def test_foreground_ends_at_a_signal(place: Place) -> None:
    argv = ["mount", "--foreground", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay"]
    with subprocess.Popen(
        [*place.argv, *argv],
        cwd=place.path,
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{place.path}/mnt\n".encode()
        (mount,) = place.mounts()
        assert (mount["pid"], mount["backend"], mount["log"]) == (child.pid, "overlay", None)
        (place.path / "mnt" / "two").unlink()
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=_SECONDS)
    assert (child.returncode, out, err) == (0, b"", b"")
    assert disk_state(place.path / "rw") == {".wh.two": ""}
    assert place.mounts() == []


def test_foreground_auto_goes_on_to_fuse(place: Place) -> None:
    argv = ["mount", "--foreground", *LAYERS, "mnt", "--backend", "auto", "-o", "coherent"]
    with subprocess.Popen(
        [*place.argv, *argv], cwd=place.path, env=place.env, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{place.path}/mnt\n".encode()
        (mount,) = place.mounts()
        assert (mount["pid"], mount["backend"]) == (child.pid, "fuse")
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=_SECONDS) == 0


# -- a killed keeper ---------------------------------------------------------------


@pytest.mark.parametrize("branch", [("--rw", "rw"), ("--ephemeral",), ()])
def test_the_mount_of_a_killed_keeper_works_and_can_be_unmounted(
    place: Place, branch: tuple[str, ...]
) -> None:
    place.ok("mount", *LAYERS, "mnt", *branch, "--backend", "overlay")
    (before,) = place.mounts()
    place.kill_keeper()
    assert place.state() == [State.UNATTENDED.value]
    assert State.UNATTENDED in MOUNTED
    assert place.names() == ["d", "p", "q", "two"]
    if branch:
        (place.path / "mnt" / "two").unlink()
        assert place.ok("changes", "mnt") == "D /two\n"
    if branch[:1] == ("--rw",):
        assert "mounted with overlayfs" in place.fails("mount", *LAYERS, "other", "--rw", "rw")
    place.ok("umount", "mnt")
    assert place.mounts() == []
    assert place.kernel_types() == []
    assert place.runtime() == []
    if branch[:1] == ("--rw",):
        assert disk_state(place.path / "rw") == {".wh.two": ""}
    elif branch:
        assert not os.path.lexists(before["rw"])


def test_umount_all_takes_the_unattended_too(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
    place.kill_keeper()
    place.ok("umount", "--all")
    assert place.kernel_types() == []
    assert place.mounts() == []
    assert disk_state(place.path / "rw") == {}


def test_what_a_killed_keeper_left_after_umount_8_is_finished(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
    (place.path / "mnt" / "two").unlink()
    place.kill_keeper()
    subprocess.run(["umount", place.path / "mnt"], check=True)
    assert place.state() == ["stale"]
    # Another test's new namespace may have a copy of the mount for a moment.
    until(lambda: place("umount", "mnt").status == 0)
    assert disk_state(place.path / "rw") == {".wh.two": ""}
    assert place.mounts() == []
    assert place.runtime() == []


def test_an_unattended_mount_in_use_is_busy_and_lazily_finished_later(place: Place) -> None:
    place.ok("mount", *LAYERS, "mnt", "--rw", "rw", "--backend", "overlay")
    place.kill_keeper()
    with (place.path / "mnt" / "new").open("w") as file:
        assert f"({os.getpid()})" in place.fails("umount", "mnt")
        assert place.state() == [State.UNATTENDED.value]
        place.ok("umount", "--lazy", "mnt")
        assert place.kernel_types() == []
        assert place.state() == ["stale"]
        assert "unmounted, but still in use" in place.fails("umount", "mnt")
        file.write("late")
    until(lambda: place("umount", "mnt").status == 0)
    assert disk_state(place.path / "rw") == {"new": "late"}
    assert place.runtime() == []


# -- what a killed keeper no longer protects -----------------------------------------


@pytest.fixture
def stored(place: Place) -> Place:
    build(place.path / "image", {"one": "1", "two": "2"})
    place.ok("import", "rootfs:image", "-t", "base")
    build(place.path / "more", {"three": "3", "one": "one"})
    place.ok("import", "rootfs:more", "--parent", "base", "-t", "top")
    return place


@pytest.mark.parametrize("branch", [(), ("--rw", "rw"), ("--ephemeral",)])
def test_an_unattended_mount_protects_its_image(stored: Place, branch: tuple[str, ...]) -> None:
    stored.ok("mount", "top", "mnt", *branch, "--backend", "overlay")
    stored.kill_keeper()
    assert stored.state() == ["unattended"]
    for words in (("rmi", "top"), ("rmi", "--force", "top")):
        assert "in use by a mount" in stored.fails(*words)
    stored.ok("untag", "top")
    assert stored.ok("gc", "--all", "--dry-run") == ""
    assert stored.ok("gc", "--all") == ""
    assert stored.names() == ["one", "three", "two"]
    assert (stored.path / "mnt" / "three").read_text() == "3"
    stored.ok("umount", "mnt")
    until(lambda: len(stored.ok("gc", "--all", "--dry-run").splitlines()) == 2)
    assert len(stored.ok("gc", "--all").splitlines()) == 2


def test_layers_of_a_mount_that_nothing_records_stay(stored: Place) -> None:
    """The record is lost, the image's name too: the kernel's own mount table is left."""
    stored.ok("mount", "top", "mnt", "--backend", "overlay")
    stored.kill_keeper()
    for name in stored.runtime():
        if name.endswith(".json"):
            (stored.path / "run/unionfs" / name).unlink()
    stored.ok("rmi", "top")
    stored.ok("rmi", "base")
    stored.ok("gc", "--all")
    assert (stored.path / "mnt" / "three").read_text() == "3"
    assert stored.names() == ["one", "three", "two"]
    subprocess.run(["umount", stored.path / "mnt"], check=True)
    until(lambda: len(stored.ok("gc", "--all", "--dry-run").splitlines()) == 2)
    assert len(stored.ok("gc", "--all").splitlines()) == 2


def test_a_branch_that_waits_for_its_end_keeps_its_layers(stored: Place) -> None:
    """Bringing a branch into order asks the layers what its marks hide."""
    stored.ok("mount", "top", "mnt", "--rw", "rw", "--backend", "overlay")
    (stored.path / "mnt/one").unlink()
    (stored.path / "mnt/three").unlink()
    (stored.path / "mnt/three").mkdir()
    stored.kill_keeper()
    subprocess.run(["umount", stored.path / "mnt"], check=True)
    assert stored.state() == ["stale"]
    assert "in use by a mount" in stored.fails("rmi", "--force", "top")
    until(lambda: stored("umount", "mnt").status == 0)
    assert disk_state(stored.path / "rw") == {
        ".wh.one": "",
        "three/": "",
        "three/.wh..wh..opq": "",
    }
    stored.ok("rmi", "--force", "top")
