"""Every back end x every row: what layers show, and what operations leave in the branch.

One run over {FUSE, overlayfs, AUFS} as root and, for the first two, as a plain user in a user
namespace. `LAYER_DIFFERENCES` and the rows' own `unlike` list every difference with its
reason; whatever is not there must be the same everywhere.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs
import pytest
from support.engine_fs import build, disk_state, fingerprint
from support.kernelways import in_way, request_for, tree_of
from support.layers import image_of
from support.rows import ROWS, show_tree
from support.unionways import (
    UNION_WAYS,
    backend_of,
    complete,
    mount_way,
    require_union,
    rights_of,
)

from unionfs import _sys
from unionfs.branch import whiteout
from unionfs.errors import UnsupportedError
from unionfs.kernel.mounted import KernelRequest, Layer
from unionfs.store.changes import changes
from unionfs.store.graph import Graph
from unionfs.store.ingest import import_image

VALID: Final = [row for row in ROWS if not row.error]
_DEVICE: Final = "a device 0/0 is stored as a placeholder, which only FUSE can show"
_LONG: Final = "AUFS reaches no name beyond 242 bytes"
#: Rows of layers that a kernel union refuses, with the words of the refusal, and why.
LAYER_DIFFERENCES: Final[dict[str, dict[int, tuple[str, str]]]] = {
    "fuse": {},
    "overlay": {71: ("devices or links", _DEVICE)},
    "aufs": {
        61: ("longer than", _LONG),
        62: ("longer than|beyond AUFS", _LONG),
        63: ("longer than", _LONG),
        71: ("devices or links", _DEVICE),
    },
}


@pytest.fixture(params=UNION_WAYS)
def way(request: pytest.FixtureRequest, open_tmp: Path) -> str:
    require_union(request.param, os.fsencode(open_tmp))
    return str(request.param)


def test_every_row_of_layers(way: str, open_tmp: Path) -> None:
    """Stored images, with and without a rw branch; the layers stay as they were."""
    refused = LAYER_DIFFERENCES[backend_of(way)]

    def check(number: int, home: Path, layers: list[Layer], tree: object, *, rw: bool) -> None:
        home.mkdir()
        request = request_for(home, *layers, rw=rw)
        if number in refused:
            with pytest.raises(UnsupportedError, match=refused[number][0]):
                mount_way(way, request)
            return
        mounted = mount_way(way, request)
        try:
            shown = tree_of(request.target)
        finally:
            mounted.unmount()
        assert show_tree(shown) == tree
        assert not rw or disk_state(home / "rw") == {}

    def action() -> None:
        failed = []
        for row in VALID:
            home = open_tmp / row.id
            home.mkdir()
            with Graph(os.fsencode(home / "store")) as graph:
                image_id, _ = import_image(graph, image_of(row.tars()), transport="test")
                paths = graph.layer_dirs(image_id)
            layers = [Layer(path, os.path.dirname(path) + b"/shims") for path in paths]
            before = [fingerprint(Path(os.fsdecode(path))) for path in paths]
            try:
                for rw in (True, False):
                    place = home / ("rw-mount" if rw else "ro-mount")
                    check(row.number, place, layers, show_tree(row.tree), rw=rw)
                assert [fingerprint(Path(os.fsdecode(path))) for path in paths] == before
            except Exception as error:  # noqa: BLE001  # collected for one report
                failed.append(f"{row.id}: {error!r}")
        assert not failed, "\n".join(failed)

    in_way(rights_of(way), action)


# -- operations ------------------------------------------------------------------------

LONG: Final = "n" * 255
TOO_LONG: Final = "m" * 252
LOWER: Final = {"f": "lower", "d/a": "aaa", "d/b": "bbb", "s": "->f", "p": "pair", "q": "=p"}
OPAQUE: Final = os.fsdecode(whiteout.OPAQUE)
LONG_MARKER, LONG_CONTENT = (text.decode() for text in whiteout.marker_for(LONG.encode()))

_EXDEV: Final = "AUFS form has no redirects: the kernel's unions say EXDEV, mv(1) copies"
_OPEN: Final = "overlayfs copies up when a file is opened for writing, the others at the write"
_MAPPED: Final = "a mapping made before the copy goes on showing the original"
_NUMBER: Final = "in a user namespace overlayfs cannot decode handles: a copy has its own number"
_INDEX: Final = "in a user namespace overlayfs has no index: the written name leaves its group"
_FREED: Final = "overlayfs lets reserved names be made; they lose their first dot at unmount"
_MADE: Final = "overlayfs knows no whiteouts by name and so no limit of 251 bytes"


@attrs.frozen
class Operation:
    """An operation on the mounted union over `LOWER`, and what must be there afterwards.

    `state` is the branch on disk, `changed` the answer of `changes`, `result` what the operation
    returns. `unlike` has other values for a way or back end, each with its reason.
    """

    run: Callable[[Path], object]
    state: Mapping[str, str]
    changed: tuple[str, ...]
    result: object = None
    unlike: Mapping[str, tuple[str, Mapping[str, object]]] = {}
    lower: Mapping[str, str] = {}

    def expected(self, way: str) -> tuple[object, object, object]:
        """Return state, changes and result for a way."""
        _, other = self.unlike.get(way, self.unlike.get(backend_of(way), ("", {})))
        return (
            other.get("state", self.state),
            sorted(other.get("changed", self.changed)),  # type: ignore[call-overload]  # a tuple
            other.get("result", self.result),
        )


def code_of(action: Callable[[], object]) -> str:
    """Return the name of the error with which an action fails; `done` when it does not."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def o2(t: Path) -> None:
    os.setxattr(t / "f", "user.old", b"1")
    (t / "f").unlink()
    (t / "f").write_text("new")
    assert "user.old" not in os.listxattr(t / "f")


def o3(t: Path) -> None:
    (t / "n").write_text("n")
    (t / "n").unlink()


def o6(t: Path) -> None:
    shutil.rmtree(t / "d")
    (t / "d").mkdir(0o755)


def o7(t: Path) -> None:
    o6(t)
    (t / "d/a").write_text("new")


def o8(t: Path) -> None:
    (t / "d/a").unlink()
    (t / "d/b").unlink()
    (t / "d").rmdir()


def o9(t: Path) -> None:
    shutil.rmtree(t / "d")
    (t / "d").write_text("file")


def o13(t: Path) -> None:
    (t / "n").mkdir()
    (t / "n").rename(t / "m")


def o13_over(t: Path) -> None:
    shutil.rmtree(t / "d")
    (t / "n").mkdir(0o755)
    (t / "n").rename(t / "d")


def o14(t: Path) -> tuple[str, ...]:
    fd = os.open(t, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return tuple(
            code_of(lambda flags=flags, new=new: _sys.renameat2(fd, b"f", fd, new, flags))  # type: ignore[misc]  # mypy cannot see the defaults
            for flags, new in ((_sys.RENAME_NOREPLACE, b"p"), (4, b"g"), (2, b"s"))
        )
    finally:
        os.close(fd)


def o15(t: Path) -> tuple[object, ...]:
    (t / "d/a").chmod(0o600)
    st = (t / "d/a").stat()
    return (stat.S_IMODE(st.st_mode), st.st_mtime_ns, os.getxattr(t / "d/a", "user.note"))


def o16(t: Path) -> None:
    os.close(os.open(t / "f", os.O_RDWR))


def o17(t: Path) -> int:
    os.close(os.open(t / "f", os.O_WRONLY | os.O_TRUNC))
    return (t / "f").stat().st_size


def o18(t: Path) -> tuple[str, bool]:
    with (t / "f").open() as before:
        number = os.fstat(before.fileno()).st_ino
        with (t / "f").open("r+") as file:
            file.write("LOWER")
        return before.read(), (t / "f").stat().st_ino == number


def o18_mapped(t: Path) -> bytes:
    with (t / "f").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[:] == b"lower"
        with (t / "f").open("r+") as other:
            other.write("LOWER")
        return view[:]


def o19(t: Path) -> tuple[str, int]:
    with (t / "p").open("r+") as file:
        file.write("PAIR")
    return (t / "q").read_text(), (t / "p").stat().st_nlink


def o20(t: Path) -> tuple[int, bool]:
    os.link(t / "f", t / "g")
    return (t / "f").stat().st_nlink, (t / "f").samefile(t / "g")


def o21(t: Path) -> tuple[tuple[str, ...], int]:
    name = t / ".wh.x"
    actions: list[Callable[[], object]] = [
        lambda: name.touch(exist_ok=False),
        name.mkdir,
        lambda: name.symlink_to("f"),
        lambda: os.mkfifo(name),
        lambda: os.link(t / "f", name),
    ]
    told = {code_of(action) for action in actions}
    return tuple(sorted(told)), os.listdir(t).count(".wh.x")


def o24(t: Path) -> int:
    seen = []
    with os.scandir(t / "many") as listing:
        for entry in listing:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert os.listdir(t / "many") == []
    return len(seen) if len(seen) == len(set(seen)) else -1


MANY: Final = {f"many/n{number:03}": "" for number in range(500)}
OPAQUE_D: Final = {"d/": "", f"d/{OPAQUE}": ""}
OPERATIONS: Final[dict[str, Operation]] = {
    "O1": Operation(lambda t: (t / "f").unlink(), {".wh.f": ""}, ("D /f",)),
    "O2": Operation(o2, {"f": "new"}, ("C /f",)),
    "O3": Operation(o3, {}, ()),
    "O5": Operation(lambda t: shutil.rmtree(t / "d"), {".wh.d": ""}, ("D /d",)),
    "O6": Operation(o6, OPAQUE_D, ("D /d/a", "D /d/b")),
    "O7": Operation(o7, {**OPAQUE_D, "d/a": "new"}, ("C /d/a", "D /d/b")),
    "O8": Operation(o8, {".wh.d": ""}, ("D /d",)),
    "O9": Operation(o9, {"d": "file"}, ("C /d",)),
    "O10": Operation(
        lambda t: (t / "f").rename(t / "g") and None, {"g": "lower", ".wh.f": ""}, ("A /g", "D /f")
    ),
    "O11": Operation(
        lambda t: (t / "f").rename(t / "d/a") and None,
        {".wh.f": "", "d/": "", "d/a": "lower"},
        ("C /d/a", "D /f"),
    ),
    "O12": Operation(
        lambda t: code_of(lambda: (t / "d").rename(t / "e")),
        {".wh.d": "", "e/": "", "e/a": "aaa", "e/b": "bbb"},
        ("A /e", "A /e/a", "A /e/b", "D /d"),
        "done",
        dict.fromkeys(
            ("overlay", "aufs"), (_EXDEV, {"state": {}, "changed": (), "result": "EXDEV"})
        ),
    ),
    "O13": Operation(o13, {"m/": ""}, ("A /m",)),
    "O13 over a deleted one": Operation(o13_over, OPAQUE_D, ("D /d/a", "D /d/b")),
    "O14": Operation(
        o14, {"f": "->f", "s": "lower"}, ("C /f", "C /s"), ("EEXIST", "EINVAL", "done")
    ),
    "O15": Operation(
        o15, {"d/": "", "d/a": "aaa"}, ("C /d/a",), (0o600, 1_000_000_000 * 10**9, b"kept")
    ),
    "O16": Operation(
        o16, {}, (), unlike={"overlay": (_OPEN, {"state": {"f": "lower"}})}
    ),
    "O17": Operation(o17, {"f": ""}, ("C /f",), 0),
    "O18": Operation(
        o18,
        {"f": "LOWER"},
        ("C /f",),
        ("LOWER", True),
    ),
    "O18 mapped": Operation(
        o18_mapped,
        {"f": "LOWER"},
        ("C /f",),
        b"LOWER",
        {"overlay": (_MAPPED, {"result": b"lower"}), "aufs": (_MAPPED, {"result": b"lower"})},
    ),
    "O19": Operation(
        o19,
        {"p": "PAIR", "q": "PAIR"},
        ("C /p", "C /q"),
        ("PAIR", 2),
        {
            "overlay-userns": (
                _INDEX,
                {"state": {"p": "PAIR"}, "changed": ("C /p",), "result": ("pair", 1)},
            )
        },
    ),
    "O20": Operation(
        o20,
        {"f": "lower", "g": "lower"},
        ("A /g",),
        (2, True),
        {"overlay-userns": (_NUMBER, {"result": (2, False)})},
    ),
    "O21": Operation(
        o21,
        {},
        (),
        (("EPERM",), 0),
        {
            "overlay": (
                _FREED,
                {
                    "state": {"wh.x": ""},
                    "changed": ("A /wh.x",),
                    "result": (("EEXIST", "done"), 1),
                },
            )
        },
    ),
    "O22": Operation(
        lambda t: code_of((t / TOO_LONG).touch),
        {},
        (),
        "ENAMETOOLONG",
        {
            "overlay": (
                _MADE,
                {"state": {TOO_LONG: ""}, "changed": (f"A /{TOO_LONG}",), "result": "done"},
            )
        },
    ),
    "O23": Operation(
        lambda t: (t / LONG).unlink(),
        {LONG_MARKER: LONG_CONTENT},
        (f"D /{LONG}",),
        lower={LONG: "long"},
    ),
    "O24": Operation(
        o24,
        {"many/": "", **{name.replace("/", "/.wh."): "" for name in MANY}},
        tuple(f"D /{name}" for name in MANY),
        len(MANY),
        lower=MANY,
    ),
    "O25": Operation(lambda t: code_of((t / "d").rmdir), {}, (), "ENOTEMPTY"),
    "O27": Operation(lambda t: t.chmod(0o711), {}, ()),
}  # fmt: skip
#: Names that AUFS cannot reach: it refuses the layer.
AUFS_REFUSES: Final = {"O23": _LONG}


def changed_in(base: Path, request: KernelRequest) -> list[str]:
    return sorted(str(item) for item in changes([os.fsencode(base)], request.rw or b""))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation(way: str, name: str, open_tmp: Path) -> None:
    row = OPERATIONS[name]

    def action() -> None:
        base = open_tmp / "base"
        build(base, {**LOWER, **row.lower})
        os.setxattr(base / "d/a", "user.note", b"kept")
        before = fingerprint(base)
        request = request_for(open_tmp, base)
        if backend_of(way) == "aufs" and name in AUFS_REFUSES:
            with pytest.raises(UnsupportedError, match="longer than"):
                mount_way(way, request)
            return
        state, changed, result = row.expected(way)
        mounted = mount_way(way, request)
        try:
            assert row.run(open_tmp / "target") == result
            complete(way, request)
            live = changed_in(base, request)
            seen = tree_of(request.target)
            mode = stat.S_IMODE((open_tmp / "target").stat().st_mode)
        finally:
            mounted.unmount()
        rest = changed_in(base, request)
        assert rest == changed
        assert live == changed or name == "O21"
        assert disk_state(open_tmp / "rw") == state
        assert fingerprint(base) == before
        if name in ("O20", "O19") and len(disk_state(open_tmp / "rw")) > 1:
            one, two = ("f", "g") if name == "O20" else ("p", "q")
            assert (open_tmp / "rw" / one).samefile(open_tmp / "rw" / two)
        # Whoever mounts the branch next sees the same.
        again = mount_way("fuse", request)
        try:
            assert stat.S_IMODE((open_tmp / "target").stat().st_mode) == mode
            if name != "O21":
                assert sorted(tree_of(request.target)) == sorted(seen)
        finally:
            again.unmount()

    in_way(rights_of(way), action)


def test_create_over_a_whiteout_of_a_middle_layer(way: str, open_tmp: Path) -> None:
    """O4."""

    def action() -> None:
        build(open_tmp / "base", LOWER)
        build(open_tmp / "middle", {".wh.f": ""})
        mounted = mount_way(way, request_for(open_tmp, open_tmp / "middle", open_tmp / "base"))
        assert not (open_tmp / "target" / "f").exists()
        (open_tmp / "target" / "f").write_text("new")
        mounted.unmount()
        assert disk_state(open_tmp / "rw") == {"f": "new"}
        layers = [os.fsencode(open_tmp / name) for name in ("middle", "base")]
        assert [str(item) for item in changes(layers, os.fsencode(open_tmp / "rw"))] == ["A /f"]

    in_way(rights_of(way), action)


def test_two_mounts_share_their_layers(way: str, open_tmp: Path) -> None:
    """O28."""

    def action() -> None:
        build(open_tmp / "base", LOWER)
        before = fingerprint(open_tmp / "base")
        mounts = []
        for name in ("one", "two"):
            (open_tmp / name).mkdir()
            mounts.append(mount_way(way, request_for(open_tmp / name, open_tmp / "base")))
        (open_tmp / "one/target/f").write_text("changed")
        (open_tmp / "one/target/p").unlink()
        assert (open_tmp / "two/target/f").read_text() == "lower"
        assert (open_tmp / "two/target/p").read_text() == "pair"
        for mounted in mounts:
            mounted.unmount()
        assert fingerprint(open_tmp / "base") == before
        assert disk_state(open_tmp / "two/rw") == {}

    in_way(rights_of(way), action)


def test_every_difference_has_a_reason() -> None:
    for row in OPERATIONS.values():
        for way, (reason, other) in row.unlike.items():
            assert way in UNION_WAYS
            assert re.search(r"\w{4}", reason)
            assert other.keys() <= {"state", "changed", "result"}
    assert all(text for found in LAYER_DIFFERENCES.values() for _, text in found.values())
