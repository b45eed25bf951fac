"""What we write is read by us, skopeo and umoci, and nothing stays behind after a failure."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from unionfs.archive.compression import decompress
from unionfs.archive.entry import Entry, Kind
from unionfs.archive.layerout import LayerOut
from unionfs.archive.limits import Limits
from unionfs.archive.source import SourceLayer, open_source
from unionfs.archive.tarwrite import TarWriter
from unionfs.archive.write_docker import write_docker_archive
from unionfs.archive.write_oci import write_oci, write_oci_archive
from unionfs.errors import (
    ConflictError,
    DigestMismatchError,
    HostileArchiveError,
    InvalidNameError,
    UsageError,
)

REF = ["docker.io/demo/app:v1"]


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _chunks(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), 10_000):
        yield data[at : at + 10_000]


def _tar(layer: SourceLayer) -> bytes:
    with layer.open() as raw:
        reader = decompress(raw, Limits())
        return b"".join(iter(lambda: reader.read(1 << 20), b""))


@attrs.frozen
class Image:
    config: bytes
    layers: list[LayerOut]

    def with_diff_ids(self, diff_ids: list[str]) -> bytes:
        document = json.loads(self.config)
        document["rootfs"]["diff_ids"] = diff_ids
        document.pop("history", None)
        return json.dumps(document).encode()


@pytest.fixture
def image(images: Path) -> Image:
    with open_source(f"{images}/oci") as source:
        found = source.images[0]
        tars = [_tar(layer) for layer in found.layers]
        assert found.config is not None
        layers = [
            LayerOut(str(layer.diff_id), partial(_chunks, tar), len(tar))
            for layer, tar in zip(found.layers, tars, strict=True)
        ]
        return Image(found.config, layers)


def contents(spec: str) -> tuple[bytes | None, list[str | None], list[bytes], tuple[str, ...]]:
    with open_source(spec) as source:
        (found,) = source.images
        tars = [_tar(layer) for layer in found.layers]
        return found.config, [layer.diff_id for layer in found.layers], tars, found.references


def expected(image: Image) -> tuple[bytes, list[str], list[bytes]]:
    tars = [b"".join(layer.open()) for layer in image.layers]
    return image.config, [layer.diff_id for layer in image.layers], tars


def test_oci(image: Image, tmp_path: Path) -> None:
    out = tmp_path / "out"
    digest = write_oci(os.fsencode(out), "v2", image.config, image.layers)
    *rest, references = contents(f"oci:{out}:v2")
    assert tuple(rest) == expected(image)
    assert references == ("v2",)
    inspected = json.loads(_run("skopeo", "inspect", f"oci:{out}:v2"))
    assert inspected["Digest"] == digest
    assert len(inspected["Layers"]) == 3
    assert _run("umoci", "ls", "--layout", out) == "v2\n"
    assert sorted(os.listdir(out)) == ["blobs", "index.json", "oci-layout"]


def _unpack(layout: str, target: Path) -> dict[str, tuple[int, str]]:
    _run("umoci", "unpack", "--image", layout, target)
    found = {}
    for folder, _, names in os.walk(target / "rootfs"):
        for name in names:
            path = Path(folder) / name
            status = path.lstat()
            data = os.readlink(path) if path.is_symlink() else path.read_text("latin-1")
            found[str(path.relative_to(target))] = (status.st_mode, data)
    return found


@pytest.mark.usefixtures("as_root")
def test_umoci_unpacks_the_same_tree(image: Image, images: Path, tmp_path: Path) -> None:
    write_oci(os.fsencode(tmp_path / "ours"), "x", image.config, image.layers)
    write_docker_archive(os.fsencode(tmp_path / "d.tar"), REF, image.config, image.layers)
    write_oci_archive(os.fsencode(tmp_path / "o.tar"), "x", image.config, image.layers)
    _run("skopeo", "copy", f"docker-archive:{tmp_path}/d.tar", f"oci:{tmp_path}/docker:x")
    _run("skopeo", "copy", f"oci-archive:{tmp_path}/o.tar", f"oci:{tmp_path}/archive:x")
    original = _unpack(f"{images}/oci:v1", tmp_path / "u0")
    assert "rootfs/etc/motd2" not in original
    assert len(original) == 3
    for name in ("ours", "docker", "archive"):
        assert _unpack(f"{tmp_path}/{name}:x", tmp_path / f"u-{name}") == original


@pytest.mark.usefixtures("as_root")
def test_any_name_survives_umoci(image: Image, tmp_path: Path) -> None:
    names = [b"new\nline", b"\xff\xfe", "sch\u00f6n".encode(), b"a=b %", b"x" * 255]
    names.append(b"d" * 120 + b"/" + b"e" * 200)
    out = io.BytesIO()
    writer = TarWriter(out)
    for name in names:
        writer.add(Entry(name, Kind.FILE, size=len(name), xattrs={b"user.k=%": b"\0=\n"}), [name])
        writer.add(Entry(b"link-%d" % len(name), Kind.SYMLINK, linkname=name))
    writer.close()
    tar = out.getvalue()
    layer = LayerOut(f"sha256:{hashlib.sha256(tar).hexdigest()}", lambda: [tar])
    config = image.with_diff_ids([layer.diff_id])
    write_oci(os.fsencode(tmp_path / "o"), "x", config, [layer])
    _run("umoci", "unpack", "--image", f"{tmp_path}/o:x", tmp_path / "u")
    root = os.fsencode(tmp_path / "u" / "rootfs")
    for name in names:
        assert Path(os.fsdecode(root + b"/" + name)).read_bytes() == name
        assert os.readlink(root + b"/link-%d" % len(name)) == name


def test_docker_archive(image: Image, tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    image_id = write_docker_archive(
        os.fsencode(path), ["demo/app:v1", "h:5000/x"], image.config, image.layers
    )
    assert image_id == f"sha256:{hashlib.sha256(image.config).hexdigest()}"
    *rest, references = contents(f"docker-archive:{path}")
    assert tuple(rest) == expected(image)
    assert references == ("demo/app:v1", "h:5000/x:latest")
    listed = _run("skopeo", "list-tags", f"docker-archive:{path}")
    assert json.loads(listed)["Tags"] == ["demo/app:v1", "h:5000/x:latest"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_docker_archive_is_a_v1_archive_too(image: Image, tmp_path: Path) -> None:
    stream = io.BytesIO()
    write_docker_archive(stream, ["demo/app:v1"], image.config, image.layers)
    path = tmp_path / "v1.tar"
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as old, tarfile.open(path, "w") as new:
        for member in old:
            if member.name != "manifest.json":
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    with open_source(str(path)) as source:
        (found,) = source.images
        assert found.references == ("demo/app:v1",)
        assert [_tar(layer) for layer in found.layers] == expected(image)[2]
        documents = [json.loads(raw) for raw in found.v1_json]
    assert [d.get("parent") for d in documents] == [None, documents[0]["id"], documents[1]["id"]]
    assert found.platform == "linux/amd64"


def test_oci_archive(image: Image, tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    digest = write_oci_archive(os.fsencode(path), "v2", image.config, image.layers)
    *rest, references = contents(f"oci-archive:{path}:v2")
    assert tuple(rest) == expected(image)
    assert references == ("v2",)
    assert json.loads(_run("skopeo", "inspect", f"oci-archive:{path}:v2"))["Digest"] == digest
    assert os.listdir(tmp_path) == ["out.tar"]


def test_same_bytes_every_time(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_forms() -> list[bytes]:
        docker, archive = io.BytesIO(), io.BytesIO()
        write_docker_archive(docker, REF, image.config, image.layers)
        write_oci_archive(archive, "t", image.config, image.layers)
        layout = tmp_path / "layout"
        shutil.rmtree(layout, ignore_errors=True)
        write_oci(os.fsencode(layout), "t", image.config, image.layers)
        blobs = sorted(os.listdir(layout / "blobs" / "sha256"))
        return [docker.getvalue(), archive.getvalue(), "".join(blobs).encode()]

    first = all_forms()
    assert all_forms() == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    dated = all_forms()
    assert dated[2] == first[2]
    for old, new in zip(first[:2], dated[:2], strict=True):
        with tarfile.open(fileobj=io.BytesIO(old)) as a, tarfile.open(fileobj=io.BytesIO(new)) as b:
            assert {member.mtime for member in a} == {0}
            assert {member.mtime for member in b} == {1_700_000_000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        write_docker_archive(io.BytesIO(), REF, image.config, image.layers)


def test_a_repeated_layer_is_stored_once(image: Image, tmp_path: Path) -> None:
    layers = [image.layers[0], image.layers[1], image.layers[0]]
    config = image.with_diff_ids([layer.diff_id for layer in layers])
    write_docker_archive(os.fsencode(tmp_path / "d.tar"), REF, config, layers)
    write_oci(os.fsencode(tmp_path / "o"), "x", config, layers)
    assert len(os.listdir(tmp_path / "o" / "blobs" / "sha256")) == 4
    with tarfile.open(tmp_path / "d.tar") as tar:
        links = [member for member in tar if member.issym()]
    assert len(links) == 1
    for spec in (f"docker-archive:{tmp_path}/d.tar", f"oci:{tmp_path}/o:x"):
        assert contents(spec)[1] == [layer.diff_id for layer in layers]
        _run("skopeo", "copy", spec, f"dir:{tmp_path}/dir-{spec[:3]}")


def test_an_image_without_layers(image: Image, tmp_path: Path) -> None:
    config = image.with_diff_ids([])
    write_docker_archive(os.fsencode(tmp_path / "d.tar"), REF, config, [])
    write_oci(os.fsencode(tmp_path / "o"), None, config, [])
    for spec in (f"docker-archive:{tmp_path}/d.tar", f"oci:{tmp_path}/o"):
        assert contents(spec)[:2] == (config, [])


def test_adding_to_a_layout(image: Image, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(images / "oci", out)
    index = json.loads((out / "index.json").read_text())
    index["annotations"] = {"kept": "yes"}
    (out / "index.json").write_text(json.dumps(index))
    write_oci(os.fsencode(out), "v2", image.config, image.layers)
    assert _run("umoci", "ls", "--layout", out).split() == ["v1", "v2"]
    changed = image.with_diff_ids([layer.diff_id for layer in image.layers])
    digest = write_oci(os.fsencode(out), "v2", changed, image.layers)
    index = json.loads((out / "index.json").read_text())
    assert index["annotations"] == {"kept": "yes"}
    assert len(index["manifests"]) == 2
    assert index["manifests"][1]["digest"] == digest
    assert contents(f"oci:{out}:v2")[0] == changed
    assert contents(f"oci:{out}:v1")[0] == image.config


def test_two_writers_wait_for_each_other(image: Image, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fd_seen = []

    def spying() -> Iterator[bytes]:
        fd = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fd_seen.append(True)
        finally:
            os.close(fd)
        yield from image.layers[0].open()

    layers = [attrs.evolve(image.layers[0], open=spying), *image.layers[1:]]
    write_oci(os.fsencode(out), "x", image.config, layers)
    assert fd_seen == [True]


def _broken(image: Image) -> list[LayerOut]:
    return [*image.layers[:2], attrs.evolve(image.layers[2], open=lambda: [bytes(512)])]


def test_a_failure_leaves_an_empty_directory_empty(image: Image, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for _ in range(2):
        with pytest.raises(DigestMismatchError):
            write_oci(os.fsencode(tmp_path / "out"), None, image.config, _broken(image))
        assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_writer_left_is_no_obstacle(image: Image, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def killed() -> Iterator[bytes]:
        yield b"x"
        os._exit(9)

    child = os.fork()
    if not child:
        write_oci(
            os.fsencode(out),
            None,
            image.config,
            [attrs.evolve(image.layers[0], open=killed), *image.layers[1:]],
        )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert any(path.name.startswith(".unionfs-") for path in out.iterdir())
    write_oci(os.fsencode(out), "v1", image.config, image.layers)
    assert contents(f"oci:{out}:v1")[0] == image.config
    assert sorted(os.listdir(out)) == ["blobs", "index.json", "oci-layout"]


@pytest.mark.parametrize("tmpfile", [os.O_TMPFILE, os.O_DIRECTORY], ids=["unnamed", "named"])
@pytest.mark.parametrize("force", [False, True])
def test_a_killed_writer_of_a_file(
    image: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmpfile: int,
    *,
    force: bool,
) -> None:
    """Where files need no name nothing stays; O_DIRECTORY fails as an old filesystem does."""
    monkeypatch.setattr(os, "O_TMPFILE", tmpfile)
    out = tmp_path / "out.tar"
    if force:
        out.write_text("old")

    def write(layers: list[LayerOut]) -> None:
        write_docker_archive(os.fsencode(out), REF, image.config, layers, replace=force)

    def killed() -> Iterator[bytes]:
        yield b"x"
        os._exit(9)

    child = os.fork()
    if not child:
        write([attrs.evolve(image.layers[0], open=killed), *image.layers[1:]])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (out.read_text() == "old") if force else not out.exists()
    left = [path.name for path in tmp_path.iterdir() if path != out]
    assert len(left) == (tmpfile == os.O_DIRECTORY)
    write(list(image.layers))
    assert contents(f"docker-archive:{out}")[0] == image.config
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir() if path != out] == left


def test_the_next_archive_sweeps_what_a_killed_writer_left(image: Image, tmp_path: Path) -> None:
    def write(name: str, layers: list[LayerOut]) -> None:
        write_oci_archive(os.fsencode(tmp_path / name), "v1", image.config, layers)

    def killed() -> Iterator[bytes]:
        yield b"x"
        os._exit(9)

    def during() -> Iterator[bytes]:
        """Write another archive beside this one, which must not lose its files by that."""
        write("inner.tar", list(image.layers))
        yield from image.layers[0].open()

    child = os.fork()
    if not child:
        write("killed.tar", [attrs.evolve(image.layers[0], open=killed), *image.layers[1:]])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".unionfs-")]) == 1
    write("outer.tar", [attrs.evolve(image.layers[0], open=during), *image.layers[1:]])
    assert sorted(os.listdir(tmp_path)) == ["inner.tar", "outer.tar"]
    for name in ("inner.tar", "outer.tar"):
        assert contents(f"oci-archive:{tmp_path / name}")[0] == image.config


def _writers(base: Path) -> dict[str, Any]:
    return {
        "oci": partial(write_oci, os.fsencode(base / "out"), "x"),
        "oci-archive": partial(write_oci_archive, os.fsencode(base / "out"), "x"),
        "docker-archive": partial(write_docker_archive, os.fsencode(base / "out"), REF),
    }


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
@pytest.mark.parametrize("size", [None, 1])
def test_a_changed_layer_leaves_nothing(
    form: str, size: int | None, image: Image, tmp_path: Path
) -> None:
    layers = [
        attrs.evolve(layer, size=layer.size if size == 0 else size) for layer in _broken(image)
    ]
    with pytest.raises(DigestMismatchError, match="import the image again"):
        _writers(tmp_path)[form](image.config, layers)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_an_existing_layout_as_it_was(
    image: Image, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(images / "oci", out)

    def snapshot() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = snapshot()
    with pytest.raises(DigestMismatchError):
        write_oci(os.fsencode(out), "v1", image.config, _broken(image))
    assert snapshot() == before


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_an_existing_file_is_kept(form: str, image: Image, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    writer = _writers(tmp_path)[form]
    with pytest.raises(ConflictError, match="--force"):
        writer(image.config, image.layers)
    assert (tmp_path / "out").read_text() == "mine"
    writer(image.config, image.layers, replace=True)
    assert contents(f"{form}:{tmp_path}/out")[0] == image.config


def test_a_directory_of_something_else_is_kept(image: Image, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConflictError, match="no OCI layout"):
        write_oci(os.fsencode(tmp_path), "x", image.config, image.layers)
    assert os.listdir(tmp_path) == ["mine"]


def test_a_broken_index_is_not_touched(image: Image, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(images / "oci", out)
    (out / "index.json").write_text('{"manifests": [1]}')
    with pytest.raises(HostileArchiveError, match="no image index"):
        write_oci(os.fsencode(out), "x", image.config, image.layers)
    assert (out / "index.json").read_text() == '{"manifests": [1]}'


@pytest.mark.parametrize("tag", ["", "a b", "-x", "a//b", "ü"])
def test_bad_tags(tag: str, image: Image, tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        write_oci(os.fsencode(tmp_path / "out"), tag, image.config, image.layers)
    assert os.listdir(tmp_path) == []


def test_bad_reference(image: Image) -> None:
    for ref in ("", ":x", "a@sha256:0"):
        with pytest.raises(InvalidNameError):
            write_docker_archive(io.BytesIO(), [ref], image.config, image.layers)


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_layers_must_be_those_of_the_configuration(form: str, image: Image, tmp_path: Path) -> None:
    writer = _writers(tmp_path)[form]
    with pytest.raises(HostileArchiveError, match="3 diff_ids, but the image has 2 layers"):
        writer(image.config, image.layers[:2])
    with pytest.raises(DigestMismatchError, match="the image configuration lists"):
        writer(image.config, image.layers[::-1])
    assert os.listdir(tmp_path) == []
