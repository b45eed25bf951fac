"""Export: bit for bit, verified, and nothing but what is in the entry is read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.layers import Member, image_of, layer_tar
from support.rows import read_tree
from support.storefiles import write_entry
from support.storetree import stack_tree

from unionfs.archive.source import open_source
from unionfs.branch import Stack
from unionfs.errors import ConflictError, DigestMismatchError, StoreError, UsageError
from unionfs.store.config import read_config
from unionfs.store.export import export_image, replay_layer
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.ingest import import_image

BASE = [
    Member(b"./", "dir", mode=0o755, mtime=3),
    Member(b"d", "dir", mtime=1.5),
    Member(b"d/big", data=os.urandom(100_000), mode=0o4755, uid=1, gid=2),
    Member(b"d/big", data=b"replaced" * 100),
    Member(b"link", "hardlink", target=b"d/big"),
    Member(b"small", data=b"s"),
    Member(b"gone", data=b"g" * 3000),
    Member(b"sym", "symlink", target=b"d/big"),
    Member(b"n" * 255, data=b"n"),
]
TOP = [
    Member(b".wh.gone"),
    Member(b".wh.never"),
    Member(b"d/.wh..wh..opq"),
    Member(b"x", data=b"x" * 2000),
    Member(b"x", "dir"),
    Member(b".wh..wh.plnk", "dir"),
    Member(b".wh..wh.plnk/1.2", data=b"plnk" * 500),
    Member(b"plinked", "hardlink", target=b".wh..wh.plnk/1.2"),
    Member(b".wh..wh.plnk/3.4", data=b"lost" * 500),
]


def store_image(graph: Graph) -> tuple[ImageId, list[bytes]]:
    tars = [layer_tar(BASE), layer_tar(TOP)]
    return import_image(graph, image_of(tars, comment="<&>"), transport="test")[0], tars


def layer_images(graph: Graph, image_id: ImageId) -> list[bytes]:
    return [image.path for image in reversed(graph.history(image_id)) if not image.metadata_only]


def test_layers_come_out_bit_for_bit(graph: Graph) -> None:
    image_id, tars = store_image(graph)
    images = [image for image in reversed(graph.history(image_id)) if not image.metadata_only]
    assert [b"".join(replay_layer(image)) for image in images] == tars
    assert [image.facts.tar_size for image in images if image.facts] == [len(tar) for tar in tars]


def test_pseudo_links_share_no_name_with_the_record(graph: Graph) -> None:
    image_id, _ = store_image(graph)
    path = layer_images(graph, image_id)[1]
    assert os.stat(path + b"/layer/plinked").st_nlink == 1
    assert len(os.listdir(path + b"/spill")) == 2  # the replaced `x`, the unused 3.4


@pytest.mark.parametrize("transport", ["docker-archive", "oci", "oci-archive"])
def test_round_trip_keeps_the_id(graph: Graph, tmp_path: Path, transport: str) -> None:
    image_id, _ = store_image(graph)
    spec = (
        f"{transport}:{tmp_path}/out:demo/app:v1"
        if transport == "docker-archive"
        else f"{transport}:{tmp_path}/out:v1"
    )
    told = export_image(graph, image_id, spec)
    config = read_config(graph.get_exact(image_id))
    with open_source(spec) as source, Graph(os.fsencode(tmp_path / "other")) as other:
        (image,) = source.images
        assert image.config == config
        again, _ = import_image(other, image, transport=source.transport)
        assert again == image_id
        with (
            Stack.open(graph.layer_dirs(image_id)) as one,
            Stack.open(other.layer_dirs(again)) as two,
        ):
            assert stack_tree(one) == stack_tree(two)
    if transport == "docker-archive":
        assert told == f"sha256:{image_id}"


def test_exports_are_the_same_bytes_every_time(graph: Graph, tmp_path: Path) -> None:
    image_id, _ = store_image(graph)
    for transport in ("docker-archive", "oci-archive", "rootfs"):
        digests = []
        for name in ("one", "two"):
            path = tmp_path / f"{transport}-{name}"
            export_image(graph, image_id, f"{transport}:{path}")
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        assert digests[0] == digests[1], transport


def test_flat_tar_is_the_merged_tree(graph: Graph, tmp_path: Path) -> None:
    image_id, _ = store_image(graph)
    export_image(graph, image_id, f"rootfs:{tmp_path}/flat.tar")
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["tar", "-C", target, "-xf", tmp_path / "flat.tar"], check=True)
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        assert read_tree(target) == stack_tree(stack)
    again, _ = import_rootfs(graph, f"rootfs:{tmp_path}/flat.tar")
    with Stack.open(graph.layer_dirs(again)) as stack:
        assert read_tree(target) == stack_tree(stack)


def import_rootfs(graph: Graph, spec: str) -> tuple[ImageId, list[str]]:
    with open_source(spec) as source:
        return import_image(graph, source.images[0], transport=source.transport)


def test_edited_layer_is_found(graph: Graph, tmp_path: Path) -> None:
    """Same length, other bytes: only the digest can tell; and nothing is left of the export."""
    image_id, _ = store_image(graph)
    file = Path(os.fsdecode(layer_images(graph, image_id)[0])) / "layer/gone"
    file.write_bytes(b"G" * 3000)
    for transport in ("docker-archive", "oci", "oci-archive"):
        with pytest.raises(DigestMismatchError, match="changed after its import"):
            export_image(graph, image_id, f"{transport}:{tmp_path}/out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["missing", "short", "fifo", "link"])
def test_damaged_layer_is_found(graph: Graph, tmp_path: Path, how: str) -> None:
    image_id, _ = store_image(graph)
    file = Path(os.fsdecode(layer_images(graph, image_id)[0])) / "layer/gone"
    secret = tmp_path / "secret"
    secret.write_bytes(b"g" * 3000)
    file.unlink()
    if how == "short":
        file.write_bytes(b"g")
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "link":
        file.symlink_to(secret)
    with pytest.raises(StoreError):
        export_image(graph, image_id, f"docker-archive:{tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_missing_record_is_told(graph: Graph, tmp_path: Path) -> None:
    image_id, _ = store_image(graph)
    os.unlink(layer_images(graph, image_id)[0] + b"/tar-record.zst")
    with pytest.raises(StoreError, match="import it again"):
        export_image(graph, image_id, f"docker-archive:{tmp_path}/out")


def test_unknown_transport_and_existing_file(graph: Graph, tmp_path: Path) -> None:
    image_id, _ = store_image(graph)
    for spec in (f"{tmp_path}/out", "dir:x", "oci:-"):
        with pytest.raises(UsageError):
            export_image(graph, image_id, spec)
    (tmp_path / "there").write_text("mine")
    for transport in ("docker-archive", "oci-archive", "rootfs"):
        with pytest.raises(ConflictError):
            export_image(graph, image_id, f"{transport}:{tmp_path}/there")
        assert (tmp_path / "there").read_text() == "mine"


def test_image_of_early_docker_goes_out(graph: Graph, root: Path, tmp_path: Path) -> None:
    base, top = "ab" * 8, "cd" * 8
    first = write_entry(root, base, created="2013-04-01T00:00:00Z", architecture="x86_64")
    second = write_entry(
        root,
        top,
        parent=base,
        created="2013-04-02T00:00:00Z",
        comment="why",
        container_config={"Cmd": ["/bin/sh", "-c", "rm old"]},
        config={"Cmd": ["sh"]},
    )
    (first / "layer/old").write_text("old")
    (first / "layer/kept").write_text("kept")
    (second / "layer/.wh..wh.aufs").touch()
    os.link(second / "layer/.wh..wh.aufs", second / "layer/.wh.old")
    spec = f"oci:{tmp_path}/out:x"
    export_image(graph, ImageId(top), spec)
    with open_source(spec) as source:
        again, _ = import_image(graph, source.images[0], transport="oci")
    with Stack.open(graph.layer_dirs(again)) as stack:
        assert stack_tree(stack) == {b"kept": ("f", b"kept")}
    config = json.loads(read_config(graph.get_exact(again)) or b"")
    assert config["architecture"] == "amd64"
    assert config["config"]["Cmd"] == ["sh"]
    assert [item["created_by"] for item in config["history"]] == ["", "/bin/sh -c rm old"]


def test_image_without_layers(graph: Graph, tmp_path: Path) -> None:
    image_id, _ = import_image(graph, image_of([]), transport="test")
    export_image(graph, image_id, f"rootfs:{tmp_path}/flat.tar")
    with tarfile.open(tmp_path / "flat.tar") as tar:
        assert [member.name for member in tar] == ["."]
    export_image(graph, image_id, f"oci:{tmp_path}/out:x")
    subprocess.run(
        ["skopeo", "inspect", "--config", f"oci:{tmp_path}/out:x"], check=True, capture_output=True
    )


def test_sparse_member_goes_out_as_it_came(graph: Graph, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    with open(source / "sparse", "wb") as file:
        file.write(b"start" * 200)
        file.seek(8 << 20)
        file.write(b"end" * 1000)
    tar = tmp_path / "sparse.tar"
    subprocess.run(["tar", "-C", source, "--sparse", "-cf", tar, "."], check=True)
    image_id, _ = import_rootfs(graph, f"rootfs:{tar}")
    stored = Path(os.fsdecode(graph.layer_dirs(image_id)[0])) / "sparse"
    assert stored.read_bytes() == (source / "sparse").read_bytes()
    assert stored.stat().st_blocks * 512 < 1 << 20, "the hole is a hole"
    image = graph.history(image_id)[1]
    assert b"".join(replay_layer(image)) == tar.read_bytes()
