"""Changes: the cases D1 to D17, what counts as a change, and the dialects of rw branches."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
from pathlib import Path

import pytest

from unionfs.branch import Dialect
from unionfs.errors import UnsupportedError
from unionfs.store.changes import Change, ChangeKind, changes
from unionfs.store.rw import detect_dialect


def make_tree(top: Path, words: str, body: str = "") -> bytes:
    """Make a directory tree from words: `d/`, `f`, `l>target`; parents are made as needed."""
    top.mkdir(parents=True)
    for word in words.split():
        name, arrow, target = word.partition(">")
        path = Path(
            os.fsdecode(
                os.path.join(
                    os.fsencode(top), name.encode().decode("unicode_escape").encode("latin-1")
                )
            )
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if arrow:
            path.symlink_to(target)
            os.utime(path, (0, 0), follow_symlinks=False)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(body)
            os.utime(path, (0, 0))
    return os.fsencode(top)


def lines(found: list[Change]) -> list[str]:
    return [str(change) for change in found]


#: (case, layers top first, rw, what is right)
CASES = [
    ("D1", ["hello"], ".wh.hello", ["D /hello"]),
    ("D2", ["d/hh"], "d/ d/.wh.hh", ["D /d/hh"]),
    ("D3", [], ".wh..wh.plnk/ .wh..wh.plnk/1.2 .wh..wh.aufs", []),
    ("D4", ["d/x"], "d/ d/.wh..wh..opq d/y", ["D /d/x", "A /d/y"]),
    ("D5", ["f"], "f/ f/x", ["C /f", "A /f/x"]),
    ("D6", ["d/x"], "d", ["C /d"]),
    ("D7", ["l>nope"], "l>nope2", ["C /l"]),
    ("D8", ["l>/etc/hostname"], "l", ["C /l"]),
    ("D9", [".wh.x", "x"], "x", ["A /x"]),
    ("D10", ["d/ d/.wh..wh..opq", "d/x"], "d/ d/x", ["A /d/x"]),
    ("D11", ["d/"], "d/ d/new", ["A /d/new"]),
    ("D12", ["d/"], "d/", []),
    ("D13", [], ".wh.ghost", []),
    ("D15", ["a b"], ".wh.b a2", ["A /a2", "D /b"]),
    ("D16", [r"a\nb c\xff"], r"a\nb .wh.c\xff", ["C /a\\nb", "D /c\\xff"]),
]


@pytest.mark.parametrize(
    ("case", "layers", "rw", "expected"), CASES, ids=[case[0] for case in CASES]
)
def test_case(tmp_path: Path, case: str, layers: list[str], rw: str, expected: list[str]) -> None:
    stack = [make_tree(tmp_path / f"{case}-{at}", words, "old") for at, words in enumerate(layers)]
    branch = make_tree(tmp_path / "rw", rw, "new")
    os.utime(branch + b"/d", (5, 5)) if case == "D12" else None
    assert lines(changes(stack, branch)) == expected


def test_d14_missing_branch_changes_nothing(tmp_path: Path) -> None:
    layer = make_tree(tmp_path / "layer", "a")
    assert changes([layer], os.fsencode(tmp_path / "rw")) == []


def test_d17_a_thousand_layers(tmp_path: Path) -> None:
    base = make_tree(tmp_path / "base", "d/ d/f", "old")
    empty = [make_tree(tmp_path / f"e{at}", "") for at in range(300)]
    rw = make_tree(tmp_path / "rw", "d/ d/f d/g", "new")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        assert lines(changes([*empty, base], rw)) == ["C /d/f", "A /d/g"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_path_is_raw_and_line_is_printable() -> None:
    change = Change(ChangeKind.DELETE, b"/a\n\xff")
    assert change.path == b"/a\n\xff"
    assert str(change) == "D /a\\n\\xff"


def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return the same file in a layer and in a rw branch, equal in all that counts."""
    files = []
    for name in ("layer", "rw"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "f"
        file.write_bytes(b"content")
        os.utime(file, ns=(7, 7))
        files.append(file)
    return files[0], files[1]


def compare(layer: Path, rw: Path) -> list[str]:
    return lines(changes([os.fsencode(layer.parent)], os.fsencode(rw.parent)))


def test_an_untouched_copy_is_no_change(tmp_path: Path) -> None:
    assert compare(*pair(tmp_path)) == []


def test_mode(tmp_path: Path) -> None:
    layer, rw = pair(tmp_path)
    rw.chmod(0o600)
    assert compare(layer, rw) == ["C /f"]


@pytest.mark.usefixtures("as_root")
def test_owner(tmp_path: Path) -> None:
    layer, rw = pair(tmp_path)
    os.chown(rw, 1, 0)
    assert compare(layer, rw) == ["C /f"]


def test_time(tmp_path: Path) -> None:
    layer, rw = pair(tmp_path)
    os.utime(rw, ns=(7, 8))
    assert compare(layer, rw) == ["C /f"]


def test_content_of_equal_size_and_time(tmp_path: Path) -> None:
    layer, rw = pair(tmp_path)
    rw.write_bytes(b"CONTENT")
    os.utime(rw, ns=(7, 7))
    assert compare(layer, rw) == ["C /f"]


def test_xattr(tmp_path: Path) -> None:
    layer, rw = pair(tmp_path)
    os.setxattr(rw, "user.x", b"1")
    os.utime(rw, ns=(7, 7))
    assert compare(layer, rw) == ["C /f"]


@pytest.mark.usefixtures("as_root")
def test_device_number(tmp_path: Path) -> None:
    layer, rw = pair(tmp_path)
    for file, minor in ((layer, 3), (rw, 5)):
        file.unlink()
        os.mknod(file, stat.S_IFCHR | 0o644, os.makedev(1, minor))
        os.utime(file, ns=(7, 7))
    assert compare(layer, rw) == ["C /f"]


def test_the_root_is_never_reported(tmp_path: Path) -> None:
    layer, rw = pair(tmp_path)
    rw.parent.chmod(0o700)
    assert compare(layer, rw) == []


def test_only_the_topmost_deleted_path_is_reported(tmp_path: Path) -> None:
    layer = make_tree(tmp_path / "layer", "d/a/b d/a/c e")
    rw = make_tree(tmp_path / "rw", ".wh.d d/ d/a/ d/a/.wh..wh..opq")
    # `d` is replaced by a directory that has `a` again, with nothing in it.
    assert lines(changes([layer], rw)) == ["D /d/a/b", "D /d/a/c"]


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.usefixtures("as_root")
def test_overlay_branch(tmp_path: Path, user: bool) -> None:  # noqa: FBT001  # a parameter of the case
    prefix = "user" if user else "trusted"
    layer = make_tree(tmp_path / "layer", "gone d/x d/y", "old")
    rw = make_tree(tmp_path / "rw", "d/ d/y new", "new")
    os.mknod(rw + b"/gone", stat.S_IFCHR, 0)
    os.setxattr(rw + b"/d", f"{prefix}.overlay.opaque", b"y")
    expected = ["D /d/x", "C /d/y", "D /gone", "A /new"]
    assert lines(changes([layer], rw)) == expected
    assert detect_dialect(rw) is (Dialect.OVERLAY_USER if user else Dialect.OVERLAY)


@pytest.mark.usefixtures("as_root")
def test_what_the_kernel_wrote_is_read(tmp_path: Path) -> None:
    """The upper directory of a real overlayfs mount, if this kernel lets us."""
    layer = make_tree(tmp_path / "layer", "gone d/x d/y keep", "old")
    for name in ("upper", "work", "mnt"):
        (tmp_path / name).mkdir()
    mnt = tmp_path / "mnt"
    options = f"lowerdir={tmp_path}/layer,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, str(mnt)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no overlayfs here: {mounted.stderr.decode().strip()}")
    try:
        (mnt / "gone").unlink()
        for name in ("d/x", "d/y"):
            (mnt / name).unlink()
        (mnt / "d").rmdir()
        (mnt / "d").mkdir()
        (mnt / "d/y").write_text("new")
        (mnt / "keep").chmod(0o600)
    finally:
        subprocess.run(["umount", str(mnt)], check=True)
    found = changes([layer], os.fsencode(tmp_path / "upper"))
    assert lines(found) == ["D /d/x", "C /d/y", "D /gone", "C /keep"]


@pytest.mark.usefixtures("as_root")
def test_incomplete_overlay_branch_is_refused(tmp_path: Path) -> None:
    rw = make_tree(tmp_path / "rw", "d/")
    os.setxattr(rw + b"/d", "trusted.overlay.redirect", b"/e")
    with pytest.raises(UnsupportedError, match="redirect"):
        changes([], rw)


def test_directory_beside_its_own_whiteout_replaces(tmp_path: Path) -> None:
    """As an archive unpacked without thought leaves it: the entry wins, and is opaque."""
    layer = make_tree(tmp_path / "layer", "d/x d/s/z")
    rw = make_tree(tmp_path / "rw", ".wh.d d/ d/s/ d/new")
    assert lines(changes([layer], rw)) == ["A /d/new", "D /d/s/z", "D /d/x"]
