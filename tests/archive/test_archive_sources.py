"""Every transport, as umoci and skopeo write it and as an attacker would."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tarbytes import END, header, member

from unionfs.archive.compression import decompress
from unionfs.archive.digests import VerifiedReader
from unionfs.archive.entry import Entry, Kind
from unionfs.archive.files import DirectoryFiles
from unionfs.archive.limits import Limits
from unionfs.archive.platforms import parse_platform
from unionfs.archive.source import Source, SourceImage, open_source, split_spec
from unionfs.archive.tarstream import TarStream
from unionfs.archive.tarwrite import TarWriter
from unionfs.errors import (
    DigestMismatchError,
    HostileArchiveError,
    LimitError,
    NotFoundError,
    UnionfsError,
    UnsupportedError,
    UsageError,
)

LIMITS = Limits()
NAMES = [
    [b"etc/", b"etc/link", b"etc/motd", b"etc/motd2"],
    [b"bin/", b"bin/big"],
    [b"etc/.wh.motd2"],
]


def layer_names(image: SourceImage) -> list[list[bytes]]:
    """Read all layers to their end, checking what the source promises."""
    found = []
    for layer in image.layers:
        with layer.open() as raw:
            stream = TarStream(decompress(raw, LIMITS), LIMITS)
            found.append(sorted(entry.name for entry in stream))
        assert layer.diff_id in {None, stream.diff_id}
    return found


FORMS = [
    ("oci", "oci", ("v1",)),
    ("oci:oci", "oci", ("v1",)),
    ("oci:oci:v1", "oci", ("v1",)),
    ("oci-zstd", "oci", ("v1",)),
    ("oci:oci-gzip:v1", "oci", ("v1",)),
    ("docker.tar", "docker-archive", ("docker.io/demo/app:v1",)),
    ("docker-archive:docker.tar", "docker-archive", ("docker.io/demo/app:v1",)),
    ("docker-archive:docker.tar:demo/app:v1", "docker-archive", ("docker.io/demo/app:v1",)),
    ("docker-archive:docker.tar:@0", "docker-archive", ("docker.io/demo/app:v1",)),
    ("docker.tar.gz", "docker-archive", ("docker.io/demo/app:v1",)),
    ("docker-archive:docker.tar.zst", "docker-archive", ("docker.io/demo/app:v1",)),
    ("oci.tar", "oci-archive", ("v1",)),
    ("oci-archive:oci.tar:v1", "oci-archive", ("v1",)),
    ("oci.tar.xz", "oci-archive", ("v1",)),
]


@pytest.mark.parametrize(("spec", "transport", "references"), FORMS)
def test_real_images(
    spec: str,
    transport: str,
    references: tuple[str, ...],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(images)
    with open_source(spec) as source:
        assert source.transport == transport
        (image,) = source.images
        assert image.references == references
        assert image.platform == "linux/amd64"
        if "zstd" in spec:
            assert {layer.media_type.rpartition("+")[2] for layer in image.layers} == {"zstd"}
        assert image.config is not None
        listed = json.loads(image.config)["rootfs"]["diff_ids"]
        assert [layer.diff_id for layer in image.layers] == listed
        assert layer_names(image) == NAMES
        assert layer_names(image) == NAMES  # a second time


@pytest.mark.parametrize("spec", ["-", "docker-archive:-"])
def test_standard_input(spec: str, images: Path) -> None:
    code = (
        "import sys\nfrom unionfs.archive.source import open_source\n"
        f"with open_source({spec!r}) as s:\n"
        " image = s.images[0]\n"
        " print(s.transport, image.references, [len(l.open().read()) > 0 for l in image.layers])"
    )
    with (images / "docker.tar.gz").open("rb") as file:
        piped = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=piped.stdout,
            capture_output=True,
            text=True,
            check=True,
        )
        assert piped.stdout is not None
        piped.stdout.close()
        piped.wait()
    assert done.stdout == "docker-archive ('docker.io/demo/app:v1',) [True, True, True]\n"


def test_root_filesystem_tar_and_directory(images: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    for name in ("etc", "bin"):
        subprocess.run(["cp", "-a", images / name, tmp_path / "r"], check=True)
    os.mkfifo(tmp_path / "r" / "fifo")
    os.setxattr(tmp_path / "r" / "bin", "user.x", b"\0\xff")
    (tmp_path / "r").chmod(0o751)
    subprocess.run(["tar", "-C", tmp_path / "r", "-czf", tmp_path / "r.tgz", "."], check=True)
    expected = [
        *(b"./", b"bin/", b"bin/big", b"etc/", b"etc/link", b"etc/motd", b"etc/motd2", b"fifo"),
    ]
    for spec in ("r", "rootfs:r", "r.tgz", "rootfs:r.tgz"):
        transport, _, path = spec.rpartition(":")
        with open_source(f"{transport}{':' if transport else ''}{tmp_path}/{path}") as source:
            assert source.transport == "rootfs"
            (image,) = source.images
            assert (image.references, image.config, image.platform) == ((), None, None)
            names = [name.removeprefix(b"./") or b"./" for name in layer_names(image)[0]]
            assert names == expected
    with open_source(f"{tmp_path}/r") as source, source.images[0].layers[0].open() as raw:
        entries = {entry.name: entry for entry in TarStream(raw, LIMITS)}
    assert entries[b"./"].mode == 0o751
    assert entries[b"bin/"].xattrs == {b"user.x": b"\0\xff"}
    assert entries[b"bin/big"].mode == 0o4755
    assert entries[b"etc/motd2"].kind is Kind.HARDLINK
    assert entries[b"etc/motd2"].linkname == b"etc/motd"
    assert entries[b"etc/link"].linkname == b"motd"
    assert entries[b"etc/motd"].mtime_ns == (images / "etc" / "motd").stat().st_mtime_ns


def test_an_empty_tar_is_an_empty_root_filesystem(tmp_path: Path) -> None:
    (tmp_path / "e.tar").write_bytes(bytes(10240))
    with open_source(f"{tmp_path}/e.tar") as source:
        assert source.transport == "rootfs"
        assert layer_names(source.images[0]) == [[]]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (b"a:b", (None, b"a:b", None)),
        (b"oci:a", ("oci", b"a", None)),
        (b"oci:a:t", ("oci", b"a", "t")),
        (b"oci:a:", ("oci", b"a", None)),
        (b"docker-archive:x.tar:h:5000/r:t", ("docker-archive", b"x.tar", "h:5000/r:t")),
        (b"rootfs:a:b", ("rootfs", b"a:b", None)),
        (b"rootfs:\xff", ("rootfs", b"\xff", None)),
        (b"-", (None, b"-", None)),
    ],
)
def test_specs(spec: bytes, expected: object) -> None:
    assert split_spec(spec) == expected


def test_a_path_with_a_colon(tmp_path: Path, images: Path) -> None:
    (tmp_path / "a:b").symlink_to(images / "oci")
    with open_source(f"oci:{tmp_path}/a:b") as source:
        assert source.images[0].references == ("v1",)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("dir:x", UsageError, "skopeo copy"),
        ("docker://debian", UsageError, "registry"),
        ("containers-storage:x", UsageError, "podman save"),
        ("oci:", UsageError, "path is missing"),
        ("nowhere", NotFoundError, "no such file"),
        ("oci:docker.tar", UsageError, "oci-archive:"),
        ("docker-archive:oci", UsageError, "directory"),
        ("oci:etc", NotFoundError, "index.json"),
        ("oci:oci:v9", NotFoundError, r"no image .v9.; it has: v1"),
        ("docker-archive:docker.tar:no", NotFoundError, "it has: docker.io/demo/app:v1"),
        ("docker-archive:docker.tar:@1", NotFoundError, "has 1 images"),
        ("docker-archive:docker.tar:@x", UsageError, "image number"),
        ("etc/motd", HostileArchiveError, "no tar archive"),
        ("docker-archive:etc/motd", HostileArchiveError, "truncated"),
    ],
)
def test_wrong_sources(
    spec: str, error: type[UnionfsError], words: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    with pytest.raises(error, match=words), open_source(spec):
        pass


def test_platform_that_is_not_there(images: Path) -> None:
    for spec in ("oci", "docker.tar"):
        with (
            pytest.raises(NotFoundError, match="linux/amd64, not for linux/s390x"),
            open_source(f"{images}/{spec}", platform="linux/s390x"),
        ):
            pass


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d"])
def test_bad_platform(text: str) -> None:
    with pytest.raises(UsageError):
        parse_platform(text)


# --- layouts made by hand ------------------------------------------------------------------

TAR = member(b"f", b"content") + END
DIFF_ID = f"sha256:{hashlib.sha256(TAR).hexdigest()}"
CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]},
}
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


class Layout:
    """An OCI layout whose documents a test changes as it likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content: bytes | dict[str, Any], media_type: str, **more: Any) -> dict[str, Any]:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        name = hashlib.sha256(raw).hexdigest()
        (self.path / "blobs" / "sha256" / name).write_bytes(raw)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(raw), **more}

    def manifest(self, config: dict[str, Any] = CONFIG, **more: Any) -> dict[str, Any]:
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.blob(config, CONFIG_TYPE),
            "layers": [self.blob(TAR, LAYER_TYPE)],
            **more,
        }

    def image(self, config: dict[str, Any] = CONFIG, **more: Any) -> dict[str, Any]:
        return self.blob(self.manifest(config, **more), MANIFEST_TYPE)

    def index(self, *manifests: dict[str, Any], **more: Any) -> Path:
        document = {"schemaVersion": 2, "manifests": list(manifests), **more}
        (self.path / "index.json").write_text(json.dumps(document))
        return self.path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def opened(path: Path, **options: Any) -> tuple[Source, list[list[list[bytes]]]]:
    with open_source(str(path), **options) as source:
        return source, [layer_names(image) for image in source.images]


def test_hand_made_layout(layout: Layout) -> None:
    source, names = opened(layout.index(layout.image()))
    assert names == [[[b"f"]]]
    assert source.images[0].references == ()


def platform(architecture: str, variant: str = "") -> dict[str, Any]:
    extra = {"variant": variant} if variant else {}
    return {"platform": {"os": "linux", "architecture": architecture, **extra}}


def test_choice_of_platform_in_nested_indexes(layout: Layout) -> None:
    descriptors = []
    for architecture, variant in (("amd64", ""), ("arm64", "v8"), ("arm", "v6"), ("arm", "v7")):
        config = {**CONFIG, "architecture": architecture, "variant": variant}
        descriptors.append({**layout.image(config), **platform(architecture, variant)})
    attestation = {
        **layout.image(),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    inner = layout.blob({"schemaVersion": 2, "manifests": [attestation, *descriptors]}, INDEX_TYPE)
    docker = "application/vnd.docker.distribution.manifest.list.v2+json"
    outer = layout.blob({"schemaVersion": 2, "mediaType": docker, "manifests": [inner]}, docker)
    path = layout.index({**outer, "annotations": {"org.opencontainers.image.ref.name": "t"}})
    for wanted, found in [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm", "linux/arm/v6"),
        ("linux/arm/v7", "linux/arm/v7"),
    ]:
        source, _ = opened(path, platform=wanted)
        assert source.images[0].platform == found
        assert source.images[0].references == ("t",)
    assert opened(path)[0].images[0].platform == str(parse_platform(None))
    with pytest.raises(NotFoundError, match=r"linux/s390x.*linux/amd64, linux/arm/v6"):
        opened(path, platform="linux/s390x")


def test_several_images(layout: Layout) -> None:
    def named(tag: str, **config: Any) -> dict[str, Any]:
        annotations = {"org.opencontainers.image.ref.name": tag}
        return {**layout.image({**CONFIG, **config}), "annotations": annotations}

    path = layout.index(named("a"), named("b", author="x"))
    assert [image.references for image in opened(path)[0].images] == [("a",), ("b",)]
    with open_source(f"oci:{path}:b") as source:
        assert [image.references for image in source.images] == [("b",)]


def _index_text(layout: Layout, text: str) -> Path:
    (layout.path / "index.json").write_text(text)
    return layout.path


def _bad_config(**rootfs: Any) -> dict[str, Any]:
    return {**CONFIG, "rootfs": {**CONFIG["rootfs"], **rootfs}}


def _wrong_blob(layout: Layout) -> Path:
    path = layout.index(layout.image())
    (path / "blobs" / "sha256" / hashlib.sha256(TAR).hexdigest()).write_bytes(TAR[::-1])
    return path


def _linked_blob(layout: Layout) -> Path:
    path = layout.index(layout.image())
    blob = path / "blobs" / "sha256" / hashlib.sha256(json.dumps(CONFIG).encode()).hexdigest()
    blob.rename(path / "elsewhere")
    blob.symlink_to("../../elsewhere")
    return path


def _fifo_index(layout: Layout) -> Path:
    os.mkfifo(layout.path / "index.json")
    return layout.path


def _linked_folder(layout: Layout) -> Path:
    path = layout.index(layout.image())
    (path / "blobs").rename(path / "real")
    (path / "blobs").symlink_to("real")
    return path


def _deep(layout: Layout) -> Path:
    descriptor = layout.image()
    for _ in range(6):
        descriptor = layout.blob({"schemaVersion": 2, "manifests": [descriptor]}, INDEX_TYPE)
    return layout.index(descriptor)


def _without_layer(layout: Layout, **more: Any) -> Path:
    missing = {"mediaType": LAYER_TYPE, "digest": "sha256:" + "0" * 64, "size": 5, **more}
    return layout.index(layout.image(layers=[missing]))


BAD_LAYOUTS: dict[str, tuple[Any, type[UnionfsError], str]] = {
    "manifest-and-index": (
        lambda o: o.index(o.image(manifests=[])),
        HostileArchiveError,
        "at once",
    ),
    "index-and-manifest": (lambda o: o.index(o.image(), layers=[]), HostileArchiveError, "at once"),
    "index-called-manifest": (
        lambda o: o.index(o.blob({"schemaVersion": 2, "manifests": []}, MANIFEST_TYPE)),
        HostileArchiveError,
        "do not fit",
    ),
    "media-type-differs": (
        lambda o: o.index(o.image(mediaType=INDEX_TYPE)),
        HostileArchiveError,
        "mediaType",
    ),
    "schema-1": (
        lambda o: o.index(o.blob({"schemaVersion": 1, "fsLayers": []}, "")),
        UnsupportedError,
        "schema 1",
    ),
    "digest-with-path": (
        lambda o: o.index({**o.image(), "digest": "sha256:../../../etc/passwd"}),
        HostileArchiveError,
        "no sha256 or sha512 digest",
    ),
    "digest-with-newline": (
        lambda o: o.index({**o.image(), "digest": "sha256:" + "0" * 64 + "\n"}),
        HostileArchiveError,
        "no sha256",
    ),
    "digest-of-unknown-kind": (
        lambda o: o.index({**o.image(), "digest": "md5:" + "0" * 32}),
        HostileArchiveError,
        "no sha256",
    ),
    "size-differs": (lambda o: o.index({**o.image(), "size": 7}), HostileArchiveError, "not 7"),
    "size-is-huge": (lambda o: o.index({**o.image(), "size": 1 << 40}), LimitError, "json_bytes"),
    "size-is-text": (lambda o: o.index({**o.image(), "size": "7"}), HostileArchiveError, "int"),
    "content-differs": (_wrong_blob, DigestMismatchError, "damaged"),
    "linked-blob": (_linked_blob, HostileArchiveError, "plain file"),
    "linked-folder": (_linked_folder, HostileArchiveError, "plain file"),
    "fifo-index": (_fifo_index, HostileArchiveError, "no regular file"),
    "too-deep": (_deep, HostileArchiveError, "nested too deeply"),
    "missing-layer": (_without_layer, UnsupportedError, "not in the archive"),
    "foreign-layer": (
        lambda o: _without_layer(o, urls=["https://example.org/x"]),
        UnsupportedError,
        "example.org",
    ),
    "artifact": (
        lambda o: o.index(
            o.blob({**o.manifest(), "config": o.blob(b"{}", "application/x-chart")}, MANIFEST_TYPE)
        ),
        UnsupportedError,
        "artifact",
    ),
    "unknown-layer-type": (
        lambda o: o.index(o.image(layers=[o.blob(TAR, "application/zip")])),
        UnsupportedError,
        "application/zip",
    ),
    "rootfs-type": (
        lambda o: o.index(o.image(_bad_config(type="other"))),
        HostileArchiveError,
        "rootfs.type",
    ),
    "too-few-diff-ids": (
        lambda o: o.index(o.image(_bad_config(diff_ids=[]))),
        HostileArchiveError,
        "0 diff_ids, but the image has 1 layers",
    ),
    "bad-diff-id": (
        lambda o: o.index(o.image(_bad_config(diff_ids=["sha256:../x"]))),
        HostileArchiveError,
        "no sha256",
    ),
    "no-image": (lambda o: o.index(), NotFoundError, "holds no image"),
    "duplicate-key": (
        lambda o: _index_text(o, '{"schemaVersion":2,"manifests":[],"manifests":[]}'),
        HostileArchiveError,
        "twice",
    ),
    "byte-order-mark": (lambda o: _index_text(o, "\ufeff{}"), HostileArchiveError, "byte order"),
    "nesting": (lambda o: _index_text(o, "[" * 10000 + "]" * 10000), LimitError, "json_depth"),
    "nan": (lambda o: _index_text(o, '{"a": NaN}'), HostileArchiveError, "NaN"),
    "too-big-a-number": (lambda o: _index_text(o, '{"a": 1e400}'), HostileArchiveError, "too big"),
    "null": (lambda o: _index_text(o, "null"), HostileArchiveError, "object"),
    "empty": (lambda o: _index_text(o, ""), HostileArchiveError, "no valid JSON"),
    "too-long": (lambda o: _index_text(o, " " * (5 << 20)), LimitError, "json_bytes"),
}


#: Inside an archive links lead nowhere else, and a FIFO is told by its type.
ON_DISK_ONLY = {"linked-blob", "linked-folder", "fifo-index"}


@pytest.mark.parametrize(
    ("form", "case"),
    [
        *(("oci", case) for case in BAD_LAYOUTS),
        *(("oci-archive", case) for case in BAD_LAYOUTS if case not in ON_DISK_ONLY),
    ],
)
def test_bad_layouts(case: str, form: str, layout: Layout, tmp_path: Path) -> None:
    make, error, words = BAD_LAYOUTS[case]
    path = make(layout)
    if form == "oci-archive":
        path = tmp_path / "layout.tar"
        subprocess.run(["tar", "-C", layout.path, "-cf", path, "."], check=True)
    spec = f"{form}:{path}"
    with pytest.raises(error, match=words) as caught:
        opened(Path(spec))
    assert "\n" not in str(caught.value)


def test_utf16_is_refused(layout: Layout) -> None:
    (layout.path / "index.json").write_bytes('{"manifests": []}'.encode("utf-16-le"))
    with pytest.raises(HostileArchiveError, match="UTF-8"):
        opened(layout.path)


# --- docker archives made by hand ----------------------------------------------------------

ID = "a" * 64
CONFIG_RAW = json.dumps(CONFIG).encode()


def archive(path: Path, members: dict[str, Any]) -> Path:
    """Write a tar: bytes are files, JSON is encoded, `("link", target)` is a symbolic link."""
    with path.open("wb") as file:
        writer = TarWriter(file)
        for name, content in members.items():
            if isinstance(content, tuple):
                writer.add(Entry(name.encode(), Kind.SYMLINK, linkname=content[1].encode()))
                continue
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            writer.add(Entry(name.encode(), Kind.FILE, size=len(raw)), [raw])
        writer.close()
    return path


def item(**more: Any) -> dict[str, Any]:
    return {"Config": "c.json", "RepoTags": ["r:t"], "Layers": [f"{ID}/layer.tar"], **more}


GOOD_DOCKER: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "plain": ({"manifest.json": [item()], "c.json": CONFIG, f"{ID}/layer.tar": TAR}, [("r:t",)]),
    "null-tags": (
        {"manifest.json": [item(RepoTags=None)], "c.json": CONFIG, f"{ID}/layer.tar": TAR},
        [()],
    ),
    "duplicate-tags-of-one-image": (
        {"manifest.json": [item(RepoTags=["a:b"] * 2)], "c.json": CONFIG, f"{ID}/layer.tar": TAR},
        [("a:b",)],
    ),
    "two-images": (
        {
            "manifest.json": [item(), item(RepoTags=["r:u", "s:t"])],
            "c.json": CONFIG,
            f"{ID}/layer.tar": TAR,
        },
        [("r:t",), ("r:u", "s:t")],
    ),
    "linked-layer": (
        {
            "b" * 64 + "/layer.tar": TAR,
            f"{ID}/layer.tar": ("link", "../" + "b" * 64 + "/layer.tar"),
            "manifest.json": [item()],
            "c.json": CONFIG,
        },
        [("r:t",)],
    ),
    "compressed-layer": (
        {"manifest.json": [item()], "c.json": CONFIG, f"{ID}/layer.tar": gzip.compress(TAR)},
        [("r:t",)],
    ),
    "dot-slash": (
        {"./manifest.json": [item()], "./c.json": CONFIG, f"./{ID}/layer.tar": TAR},
        [("r:t",)],
    ),
    "combined-layout-trusts-manifest-json": (
        {
            "manifest.json": [
                item(
                    Config=f"blobs/sha256/{hashlib.sha256(CONFIG_RAW).hexdigest()}",
                    Layers=[f"blobs/sha256/{DIFF_ID[7:]}"],
                )
            ],
            f"blobs/sha256/{hashlib.sha256(CONFIG_RAW).hexdigest()}": CONFIG_RAW,
            f"blobs/sha256/{DIFF_ID[7:]}": TAR,
            "index.json": {"schemaVersion": 2, "manifests": []},
            "oci-layout": {"imageLayoutVersion": "1.0.0"},
        },
        [("r:t",)],
    ),
    "v1": (
        {
            f"{ID}/VERSION": b"1.0",
            f"{ID}/json": {"id": ID, "parent": "b" * 64},
            f"{ID}/layer.tar": TAR,
            "b" * 64 + "/json": {"id": "b" * 64, "os": "linux", "architecture": "amd64"},
            "b" * 64 + "/layer.tar": TAR,
            "repositories": {"r": {"t": ID, "base": "b" * 64}},
        },
        [("r:t",), ("r:base",)],
    ),
    "v1-without-repositories": (
        {f"{ID}/json": {"id": ID}, f"{ID}/layer.tar": TAR, "repositories": {}},
        [()],
    ),
}


@pytest.mark.parametrize("case", GOOD_DOCKER)
def test_docker_archives(case: str, tmp_path: Path) -> None:
    members, references = GOOD_DOCKER[case]
    source, names = opened(archive(tmp_path / "a.tar", members))
    assert source.transport == "docker-archive"
    assert [image.references for image in source.images] == references
    assert {name for image in names for layer in image for name in layer} == {b"f"}
    if case == "v1":
        assert [len(image.layers) for image in source.images] == [2, 1]
        assert [json.loads(raw)["id"] for raw in source.images[0].v1_json] == ["b" * 64, ID]
        assert source.images[1].platform == "linux/amd64"


def test_docker_archive_falls_back_to_its_index(layout: Layout, tmp_path: Path) -> None:
    layout.index(layout.image())
    subprocess.run(["tar", "-C", layout.path, "-cf", tmp_path / "a.tar", "."], check=True)
    with open_source(f"docker-archive:{tmp_path}/a.tar") as source:
        assert layer_names(source.images[0]) == [[b"f"]]


PLAIN = {"manifest.json": [item()], "c.json": CONFIG, f"{ID}/layer.tar": TAR}
V1 = {f"{ID}/json": {"id": ID}, f"{ID}/layer.tar": TAR}
BAD_DOCKER: dict[str, tuple[dict[str, Any], type[UnionfsError], str]] = {
    "null": ({"manifest.json": b"null"}, HostileArchiveError, "array"),
    "empty": ({"manifest.json": []}, NotFoundError, "holds no image"),
    "absolute-config": (
        {**PLAIN, "manifest.json": [item(Config="/etc/passwd")]},
        HostileArchiveError,
        "leads out",
    ),
    "upward-layer": (
        {**PLAIN, "manifest.json": [item(Layers=["../../etc/passwd"])]},
        HostileArchiveError,
        "leads out",
    ),
    "surrogate": (
        {**PLAIN, "manifest.json": b'[{"Config":"\\ud800","Layers":[]}]'},
        HostileArchiveError,
        "no text",
    ),
    "missing-config": ({"manifest.json": [item()]}, NotFoundError, r"has no c\.json"),
    "missing-layer": ({"manifest.json": [item()], "c.json": CONFIG}, NotFoundError, "layer.tar"),
    "layer-count": (
        {**PLAIN, "manifest.json": [item(Layers=[])]},
        HostileArchiveError,
        "1 diff_ids, but the image has 0 layers",
    ),
    "same-tag-twice": (
        {**PLAIN, "manifest.json": [item(), item()]},
        HostileArchiveError,
        "two images are called r:t",
    ),
    "link-out": (
        {**PLAIN, f"{ID}/layer.tar": ("link", "../../../etc/passwd")},
        HostileArchiveError,
        "leads out of the archive",
    ),
    "link-loop": (
        {**PLAIN, f"{ID}/layer.tar": ("link", "layer.tar")},
        HostileArchiveError,
        "loop",
    ),
    "dangling-link": ({**PLAIN, f"{ID}/layer.tar": ("link", "x")}, NotFoundError, "layer.tar"),
    "member-twice": ({**PLAIN, "./c.json": CONFIG}, HostileArchiveError, "twice"),
    "blob-differs": (
        {
            "manifest.json": [item(Config=f"blobs/sha256/{'0' * 64}", Layers=[])],
            f"blobs/sha256/{'0' * 64}": CONFIG,
        },
        DigestMismatchError,
        "damaged",
    ),
    "v1-name-is-no-id": ({"x/json": {"id": "x"}, "repositories": {}}, HostileArchiveError, "id"),
    "v1-id-differs": (
        {**V1, f"{ID}/json": {"id": "b" * 64}, "repositories": {}},
        HostileArchiveError,
        "says",
    ),
    "v1-cycle": (
        {f"{ID}/json": {"id": ID, "parent": ID}, "repositories": {"r": {"t": ID}}},
        HostileArchiveError,
        "own ancestor",
    ),
    "v1-only-cycle": (
        {f"{ID}/json": {"id": ID, "parent": ID}, "repositories": {}},
        HostileArchiveError,
        "each other's parents",
    ),
    "v1-missing-parent": (
        {**V1, f"{ID}/json": {"id": ID, "parent": "../x"}, "repositories": {}},
        HostileArchiveError,
        "parent .* is missing",
    ),
    "v1-tag-of-nothing": (
        {**V1, "repositories": {"../../x": {"t": "c" * 64}}},
        HostileArchiveError,
        "not in the archive",
    ),
    "v1-missing-layer": (
        {f"{ID}/json": {"id": ID}, "repositories": {}},
        NotFoundError,
        "layer.tar",
    ),
}


@pytest.mark.parametrize("case", BAD_DOCKER)
def test_bad_docker_archives(case: str, tmp_path: Path) -> None:
    members, error, words = BAD_DOCKER[case]
    path = archive(tmp_path / "a.tar", members)
    with pytest.raises(error, match=words) as caught:
        opened(Path(f"docker-archive:{path}"))
    assert "\n" not in str(caught.value)


def test_layer_that_is_longer_than_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header(b"manifest.json", size=5000) + bytes(512))
    with pytest.raises(HostileArchiveError, match="truncated"):
        opened(path)


@pytest.mark.parametrize("spec", ["docker-archive:docker.tar.gz", "docker.tar.gz"])
def test_spooled_archive_is_bounded(
    spec: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    with (
        pytest.raises(LimitError, match="--limit archive_bytes="),
        open_source(spec, limits=Limits(archive_bytes=100_000)),
    ):
        pass


def test_a_pipe_is_bounded(images: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cp", images / "docker.tar", tmp_path / "pipe"], stderr=-3) as writer:
        with (
            pytest.raises(LimitError, match="--limit archive_bytes="),
            open_source(f"docker-archive:{tmp_path}/pipe", limits=Limits(archive_bytes=100_000)),
        ):
            pass
        writer.wait()


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "/etc/passwd", "", ".", "a\0b"])
def test_no_path_leads_out_of_a_directory(path: str, images: Path) -> None:
    with (
        DirectoryFiles(os.fsencode(images)) as files,
        pytest.raises(HostileArchiveError, match="leads out"),
    ):
        files.open(path)


@pytest.mark.parametrize(("size", "words"), [(5, "instead of the promised 5"), (3, "more than")])
def test_size_is_verified(size: int, words: str) -> None:
    with pytest.raises(DigestMismatchError, match=words):
        VerifiedReader(io.BytesIO(b"four"), None, size, "blob").readall()
    assert VerifiedReader(io.BytesIO(b"four"), None, 4, "blob").readall() == b"four"


def test_a_source_stays_readable_after_its_name_is_gone(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.tar"
    path.write_bytes((images / "docker.tar").read_bytes())
    with open_source(str(path)) as source:
        path.unlink()
        assert layer_names(source.images[0]) == NAMES


def test_two_layers_may_be_read_at_once(images: Path) -> None:
    with open_source(f"{images}/docker.tar") as source:
        first, second = (layer.open() for layer in source.images[0].layers[:2])
        parts = [b"", b""]
        while chunks := [reader.read(700) for reader in (first, second)]:
            if not any(chunks):
                break
            parts = [old + new for old, new in zip(parts, chunks, strict=True)]
        digests = [f"sha256:{hashlib.sha256(part).hexdigest()}" for part in parts]
        assert digests == [layer.diff_id for layer in source.images[0].layers[:2]]
    assert io.BytesIO(parts[0]).read()
