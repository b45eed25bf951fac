"""An image from umoci through our store to skopeo, umoci and back: file by file the same."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.crash import run_child

from unionfs.archive.source import open_source
from unionfs.branch import Stack
from unionfs.store.export import export_image
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.ingest import import_image

pytestmark = pytest.mark.usefixtures("as_root")

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def run(*command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def fill(rootfs: Path) -> None:
    """Put one of everything into the first layer."""
    (rootfs / "bin").mkdir()
    (rootfs / "bin/su").write_bytes(b"\x7fELF" * 1000)
    (rootfs / "bin/su").chmod(0o4755)
    os.link(rootfs / "bin/su", rootfs / "bin/sudo")
    (rootfs / "bin/ping").write_bytes(b"ping" * 500)
    os.setxattr(rootfs / "bin/ping", "security.capability", CAPABILITY)
    (rootfs / "lib").symlink_to("usr/lib")
    (rootfs / "dangling").symlink_to("/no/such")
    (rootfs / "usr/lib/deep/er").mkdir(parents=True)
    (rootfs / "usr/lib/deep/er/f").write_text("deep")
    (rootfs / "tmp").mkdir(mode=0o777)
    (rootfs / "tmp").chmod(0o1777)
    (rootfs / "home").mkdir()
    (rootfs / "home/user").mkdir()
    os.chown(rootfs / "home/user", 1000, 1000)
    (rootfs / "home/user/f").write_text("mine")
    os.setxattr(rootfs / "home/user/f", "user.note", b"hello\0\xff")
    os.chown(rootfs / "home/user/f", 1000, 1001)
    os.mknod(rootfs / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(rootfs / "pipe", 0o640)
    Path(os.fsdecode(os.fsencode(rootfs) + b"/l\xe4tin1")).write_text("latin")
    (rootfs / "old").mkdir()
    (rootfs / "old/x").write_text("x")
    (rootfs / "empty").touch()


def change(rootfs: Path) -> None:
    """Change something in each way for the second layer."""
    for name in ("old/x", "old"):
        (rootfs / name).unlink() if name == "old/x" else (rootfs / name).rmdir()
    (rootfs / "dangling").unlink()
    (rootfs / "lib").unlink()
    (rootfs / "lib").mkdir()
    (rootfs / "lib/so").write_bytes(b"so" * 2000)
    (rootfs / "home").chmod(0o711)
    (rootfs / "empty").unlink()
    (rootfs / "empty").mkdir()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an OCI layout by umoci, tag v1, two layers."""
    top = tmp_path_factory.mktemp("umoci")
    layout = top / "image"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    for step in (fill, change):
        bundle = top / step.__name__
        run("umoci", "unpack", "--image", f"{layout}:v1", bundle)
        step(bundle / "rootfs")
        run("umoci", "repack", "--image", f"{layout}:v1", bundle)
    run("umoci", "config", "--image", f"{layout}:v1", "--config.cmd", "sh", "--author", "me")
    return layout


def facts(rootfs: Path, *, seconds: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Return all that an applier may get wrong about each file."""
    found: dict[bytes, tuple[Any, ...]] = {}
    groups: dict[int, list[bytes]] = {}
    top = os.fsencode(rootfs)
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            st = os.lstat(path)
            content = b""
            if stat.S_ISREG(st.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            attributes = {
                item: os.getxattr(path, item, follow_symlinks=False)
                for item in os.listxattr(path, follow_symlinks=False)
            }
            relative = os.path.relpath(path, top)
            if not stat.S_ISDIR(st.st_mode):
                groups.setdefault(st.st_ino, []).append(relative)
            found[relative] = (
                st.st_mode,
                st.st_uid,
                st.st_gid,
                st.st_rdev,
                0 if stat.S_ISDIR(st.st_mode) else st.st_size,
                int(st.st_mtime) if seconds else 0,
                content,
                attributes,
            )
    for group in groups.values():
        for path in group:
            found[path] = (*found[path], tuple(sorted(group)))
    return found


def unpack(layout: str, bundle: Path) -> dict[bytes, tuple[Any, ...]]:
    run("umoci", "unpack", "--image", layout, bundle)
    return facts(bundle / "rootfs")


def take(graph: Graph, spec: str) -> ImageId:
    with open_source(spec) as source:
        (image,) = source.images
        image_id, warnings = import_image(graph, image, transport=source.transport)
    assert warnings == []
    return image_id


def test_umoci_unpacks_ours_as_its_own(original: Path, graph: Graph, tmp_path: Path) -> None:
    expected = unpack(f"{original}:v1", tmp_path / "theirs")
    assert expected[b"bin/su"][-1] == (b"bin/su", b"bin/sudo")
    assert expected[b"bin/ping"][7] == {"security.capability": CAPABILITY}
    image_id = take(graph, f"oci:{original}:v1")
    export_image(graph, image_id, f"oci:{tmp_path}/out:v1")
    assert unpack(f"{tmp_path}/out:v1", tmp_path / "ours") == expected
    config = run("skopeo", "inspect", "--raw", "--config", f"oci:{tmp_path}/out:v1")
    assert hashlib.sha256(config.rstrip("\n").encode()).hexdigest() == image_id or (
        hashlib.sha256(config.encode()).hexdigest() == image_id
    )


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_through_skopeo_both_ways(original: Path, graph: Graph, tmp_path: Path, form: str) -> None:
    """Skopeo makes what we import and reads what we export."""
    name = "demo/app:v1" if form == "docker-archive" else "v1"
    run("skopeo", "copy", f"oci:{original}:v1", f"{form}:{tmp_path}/in:{name}")
    image_id = take(graph, f"{form}:{tmp_path}/in")
    export_image(graph, image_id, f"{form}:{tmp_path}/out:{name}")
    run("skopeo", "copy", f"{form}:{tmp_path}/out:{name}", f"oci:{tmp_path}/back:v1")
    expected = unpack(f"{original}:v1", tmp_path / "theirs")
    assert unpack(f"{tmp_path}/back:v1", tmp_path / "ours") == expected


def test_flat_export_is_what_umoci_unpacks(original: Path, graph: Graph, tmp_path: Path) -> None:
    image_id = take(graph, f"oci:{original}:v1")
    export_image(graph, image_id, f"rootfs:{tmp_path}/flat.tar")
    target = tmp_path / "flat"
    target.mkdir()
    run("tar", "-C", target, "--xattrs", "--xattrs-include=*", "-xpf", tmp_path / "flat.tar")
    assert facts(target) == unpack(f"{original}:v1", tmp_path / "theirs")


def stored(graph: Graph, image_id: ImageId) -> dict[bytes, tuple[Any, ...]]:
    """Return what the stored form presents, in the terms of `facts`."""
    found: dict[bytes, tuple[Any, ...]] = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        for path, view, name in stack.walk():
            branch, fd = view.top(name)
            st = branch.status(fd, name)
            content = b""
            if st.fmt == stat.S_IFREG:
                with open(branch.open_file(fd, name, os.O_RDONLY), "rb") as file:
                    content = hashlib.sha256(file.read()).digest()
            elif st.fmt == stat.S_IFLNK:
                content = branch.readlink(fd, name)
            if st.fmt != stat.S_IFDIR:
                groups.setdefault((st.dev, st.ino), []).append(path)
            found[path] = (
                st.mode,
                st.uid,
                st.gid,
                st.rdev,
                0 if st.fmt == stat.S_IFDIR else st.size,
                st.mtime_ns // 10**9,
                content,
                branch.all_xattrs(fd, name),
            )
    for group in groups.values():
        for path in group:
            found[path] = (*found[path], tuple(sorted(group)))
    return found


def test_stored_form_presents_what_umoci_unpacks(
    original: Path, graph: Graph, tmp_path: Path
) -> None:
    expected = unpack(f"{original}:v1", tmp_path / "theirs")
    assert stored(graph, take(graph, f"oci:{original}:v1")) == expected


def test_stored_form_of_a_plain_user_presents_the_same(original: Path, open_tmp: Path) -> None:
    """No rights at all: owners, devices, capabilities and setuid are presented all the same."""
    expected = unpack(f"{original}:v1", open_tmp / "theirs")
    run("cp", "-r", original, open_tmp / "image")
    run("chmod", "-R", "a+rX", open_tmp / "image")

    def child() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with Graph(os.fsencode(open_tmp / "store")) as graph:
            image_id = take(graph, f"oci:{open_tmp}/image:v1")
            found = stored(graph, image_id)
            assert found.keys() == expected.keys()
            for path in expected:
                assert found[path] == expected[path], path
            for image in graph.history(image_id):
                assert image.facts is not None
                assert image.metadata_only or image.facts.dialect == "override"
            export_image(graph, image_id, f"oci:{open_tmp}/out:v1")

    assert run_child(child) == 0
    assert unpack(f"{open_tmp}/out:v1", open_tmp / "ours") == expected
