"""The merge cases on the stored form: tree, changes, refusal, as root and as a plain user."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.crash import run_child
from support.layers import image_of, layer_tar
from support.rows import ROWS, Row, check_error, read_tree, show_tree
from support.storetree import stack_tree

from unionfs.branch import Stack, whiteout
from unionfs.errors import HostileArchiveError
from unionfs.store.changes import changes
from unionfs.store.export import export_image
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

VALID = [row for row in ROWS if not row.error]
REFUSED = [row for row in ROWS if row.error]


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for folder, _, files in os.walk(root):
        for name in [".", *files]:
            path = os.path.join(folder, name)
            st = os.lstat(path)
            data = b"" if name == "." else Path(path).read_bytes()
            found[path] = (st.st_mode, 0 if name == "." else st.st_mtime_ns, data)
    return found


def check_row(row: Row, root: Path) -> None:
    with Graph(os.fsencode(root)) as graph:
        image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
        layers = graph.layer_dirs(image_id)
        with Stack.open(layers) as stack:
            assert show_tree(stack_tree(stack)) == show_tree(row.tree)
        lines = [
            b"%s %b" % (item.kind.value.encode(), item.path)
            for item in changes(layers[1:], layers[0])
        ]
        assert lines == list(row.changes)
        check_normal_form(layers)


def check_normal_form(layers: list[bytes]) -> None:
    """No name is whiteout and entry, no whiteout hides nothing or is in an opaque directory."""
    for position, layer in enumerate(layers):
        below = layers[position + 1 :]
        pending = [(b"", False)]
        with Stack.open([layer]) as stack:
            branch = stack.branches[0]
            while pending:
                path, closed = pending.pop()
                fd = branch.open_path(path)
                scan = branch.scan(fd)
                os.close(fd)
                assert not scan.whiteouts & scan.entries.keys()
                assert not (closed or scan.opaque) or not scan.whiteouts
                with Stack.open(below or [layer]) as lower:
                    hides = below and path and lower.find(path) is not None
                    if hides and lower.view(path) is None:
                        assert scan.opaque, "a directory over something else is opaque"
                for name in scan.whiteouts:
                    with Stack.open(below) as lower:
                        assert lower.find(path + b"/" + name if path else name) is not None
                pending += [
                    (path + b"/" + name if path else name, closed or scan.opaque)
                    for name, fmt in scan.entries.items()
                    if fmt == 0o040000
                ]


@pytest.mark.parametrize("row", VALID, ids=lambda row: row.id)
def test_row_as_caller(row: Row, tmp_path: Path) -> None:
    check_row(row, tmp_path / "store")


@pytest.mark.usefixtures("as_root")
def test_rows_as_plain_user(open_tmp: Path) -> None:
    """All rows in one child without rights; it reports the rows that fail."""

    def child() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        failed = []
        for row in VALID:
            try:
                check_row(row, open_tmp / row.id)
            except Exception as error:  # noqa: BLE001  # collected for one report
                failed.append(f"{row.id}: {error!r}")
        assert not failed, "\n".join(failed)

    assert run_child(child) == 0
    assert any(
        "user.containers.override_stat" in os.listxattr(path)
        for path in open_tmp.glob("*/graph/*/layer")
    ), "the plain user's layers should carry overrides"


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.id)
def test_refused_row_leaves_nothing(row: Row, graph: Graph, root: Path) -> None:
    import_image(graph, image_of([b""]), transport="test")  # makes the lock file and `:tmp:`
    before = snapshot(root)
    with pytest.raises(HostileArchiveError) as caught:
        import_image(graph, image_of(row.tars()), transport="test")
    check_error(row, str(caught.value))
    assert snapshot(root) == before


def test_order_of_members_does_not_matter(graph: Graph) -> None:
    """Markers mean the same wherever they stand in the archive."""
    for row in VALID:
        if row.number == 69:  # a name twice: there the order decides
            continue
        tars = row.tars()
        plain = import_image(graph, image_of(tars), transport="test")[0]
        moved = list(row.layers[-1])
        marks = [item for item in moved if whiteout.PREFIX in item.name and item.target == b""]
        others = [item for item in moved if item not in marks]
        for order in (marks + others, others + marks):
            if b"plnk" in b"".join(item.name for item in order):
                continue
            image = image_of([*tars[:-1], layer_tar(order)])
            other = import_image(graph, image, transport="test")[0]
            with (
                Stack.open(graph.layer_dirs(plain)) as first,
                Stack.open(graph.layer_dirs(other)) as second,
            ):
                assert show_tree(stack_tree(first)) == show_tree(stack_tree(second)), row.id


#: Where umoci differs from the table, and why (it is an old release).
UMOCI_DIFFERS = {
    13: "a file as parent is an error for it",
    20: "follows the link of the layer below",
    21: "follows the link of the layer below",
    50: "leaves AUFS' pseudo links visible",
}


@pytest.mark.parametrize(
    "row", [row for row in VALID if row.number not in UMOCI_DIFFERS], ids=lambda row: row.id
)
@pytest.mark.usefixtures("as_root")
def test_umoci_agrees_on_our_export(row: Row, graph: Graph, tmp_path: Path) -> None:
    """What goes out is what came in: umoci unpacks our export to the table's tree."""
    image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
    export_image(graph, image_id, b"oci:%b:x" % os.fsencode(tmp_path / "out"))
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path}/out:x", str(tmp_path / "bundle")],
        check=True,
        capture_output=True,
    )
    assert show_tree(read_tree(tmp_path / "bundle" / "rootfs")) == show_tree(row.tree)


def test_rows_are_complete() -> None:
    assert [row.number for row in ROWS] == list(range(1, 74))
