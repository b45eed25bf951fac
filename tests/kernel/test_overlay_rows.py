"""Layers that are no images of a store on kernel overlayfs, and what is kept of their shims."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engine_fs import fingerprint
from support.kernelways import WAYS, in_way, request_for, require_way, tree_of
from support.layers import image_of
from support.rows import ROWS, Row

from unionfs.branch import Stack
from unionfs.kernel.mounted import Layer
from unionfs.kernel.overlay_union import mount_overlay
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

VALID = [row for row in ROWS if not row.error]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    require_way(request.param)
    return str(request.param)


def each_row(place: Path) -> Iterator[tuple[Row, Path]]:
    for row in VALID:
        home = place / row.id
        home.mkdir()
        yield row, home


def stored(row: Row, home: Path) -> list[Layer]:
    with Graph(os.fsencode(home / "store")) as graph:
        image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
        return [
            Layer(path, os.path.dirname(path) + b"/shims") for path in graph.layer_dirs(image_id)
        ]


#: Plain directories are mounted as they are; these rows need the normal form that ingest makes.
LITERAL_ELSEWHERE = {
    62: "a whiteout of 256 bytes has no file name",
    65: "a hard link to another layer cannot be unpacked alone",
    69: "one name twice: tar decides, not the union",
    71: "a device 0/0 is refused",
}


def unpack(row: Row, home: Path) -> list[Layer]:
    paths = []
    for number, tar in enumerate(row.tars()):
        path = home / f"layer{number}"
        path.mkdir()
        # Our own rows and no hostile archive: the program, which knows every kind of entry.
        subprocess.run(
            ["tar", "-C", path, "-xf", "-", "--no-same-owner", "--delay-directory-restore"],
            input=tar,
            check=True,
            capture_output=True,
        )
        paths.append(Layer(os.fsencode(path)))
    return paths[::-1]


def test_plain_directories_look_as_the_branch_package_says(way: str, open_tmp: Path) -> None:
    """Un-normalised layers, pairs of entry and whiteout among them: the same as our own merge."""

    def action() -> None:
        failed = []
        compared = 0
        for row, home in each_row(open_tmp):
            if row.number in LITERAL_ELSEWHERE:
                continue
            try:
                layers = unpack(row, home)
                with Stack.open([layer.path for layer in layers]) as stack:
                    expected = sorted(path for path, _, _ in stack.walk())
                where = home / "mount"
                where.mkdir()
                mounted = mount_overlay(request_for(where, *layers))
                try:
                    shown = sorted(tree_of(mounted.request.target))
                finally:
                    mounted.unmount()
                assert shown == expected
                compared += 1
            except Exception as error:  # noqa: BLE001  # collected for one report
                failed.append(f"{row.id}: {error!r}")
        assert not failed, "\n".join(failed)
        assert compared > len(VALID) - 8

    in_way(way, action)


def test_shims_are_built_once_and_kept_with_the_image(way: str, open_tmp: Path) -> None:
    def action() -> None:
        row = next(row for row in VALID if row.name == "opq-plus-explicit")
        layers = stored(row, open_tmp)
        mount_overlay(request_for(open_tmp, *layers)).unmount()
        cache = Path(os.fsdecode(layers[0].shims or b""))
        made = fingerprint(cache)
        assert any(path.endswith("/wh") for path in map(os.path.normpath, made))
        mount_overlay(request_for(open_tmp, *layers)).unmount()
        assert fingerprint(cache) == made
        with Graph(os.fsencode(open_tmp / "store")) as graph:
            graph.delete(os.fsdecode(layers[0].path.split(b"/")[-2]), force=True)
        assert not cache.exists()

    in_way(way, action)
