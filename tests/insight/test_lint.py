"""`lint`: each rule on its example and on nothing else, seeded faults, archives, repairs."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest
from support.commands import Run
from support.engine_fs import fingerprint
from support.faults import EXPECTED, FAULTS
from support.insight import MakeImage, MakeLayers, empty_markers, parse
from support.layers import Member, image_of, layer_tar
from support.literal import lay_out_all
from support.rows import ROWS, Row

from unionfs.branch import Stack
from unionfs.insight.lint import Finding, lint, lint_layers
from unionfs.insight.rules import RULES, Severity
from unionfs.insight.shipped import archive_branches, read_archive_layer
from unionfs.insight.where import Where, of_directories

#: Rules that need another rule's fault, a link, or only show in archives or directories.
IN_ARCHIVES_ONLY = {
    *("opaque-without-parents", "implied-directory", "parent-is-file", "hardlink-to-lower"),
    *("duplicate-entry", "name-over-255"),
}
ALSO = {
    "mixed-dialects": {"device-zero"},
    "parent-is-link": set(),
    "entry-below-whiteout": {"whiteout-not-regular"},
}
EXAMPLES = [rule for rule in RULES.values() if rule.example]


def lint_archives(text: str) -> list[Finding]:
    return lint_image(image_of(parse(text).tars()))


def lint_image(image: object) -> list[Finding]:
    from unionfs.archive.image import SourceImage

    assert isinstance(image, SourceImage)
    named = archive_branches(image)
    return lint_layers(
        read_archive_layer(branch, layer.open())
        for branch, layer in zip(reversed(named), image.layers, strict=True)
    )


def rules_of(findings: list[Finding]) -> set[str]:
    return {finding.rule.id for finding in findings}


@pytest.mark.parametrize("rule", EXAMPLES, ids=lambda rule: rule.id)
def test_example_breaks_its_rule_and_no_other(rule: object) -> None:
    from unionfs.insight.rules import Rule

    assert isinstance(rule, Rule)
    assert rules_of(lint_archives(rule.example)) == {rule.id} | ALSO.get(rule.id, set())


@pytest.mark.parametrize("name", [rule.id for rule in EXAMPLES if rule.id not in IN_ARCHIVES_ONLY])
@pytest.mark.usefixtures("as_root")
def test_example_as_directories(name: str, layers: MakeLayers) -> None:
    found = rules_of(lint(layers(RULES[name].example)))
    if name == "parent-is-link":  # a directory tree cannot tell a sloppy path from intent
        assert found == set()
        return
    assert found == {name} | ALSO.get(name, set())


def test_overlay_attribute_is_found(tmp_path: Path) -> None:
    where = of_directories(lay_out_all(parse("d/ d/x").layers, tmp_path))
    os.setxattr(tmp_path / "layer1" / "d", "user.overlay.opaque", b"y")
    found = lint(where)
    assert [(item.rule.id, item.path) for item in found] == [("overlay-xattr", b"d")]


@pytest.mark.usefixtures("as_root")
def test_layer_of_overlayfs_is_checked_in_its_own_form(tmp_path: Path) -> None:
    from unionfs.branch import Dialect

    paths = lay_out_all(parse("d/ d/x y ‖ d/ y! .wh.z e!").layers, tmp_path)
    os.setxattr(tmp_path / "layer2" / "d", "user.overlay.opaque", b"y")
    found = lint(of_directories(paths, dialect=Dialect.OVERLAY))
    assert [(item.rule.id, item.path) for item in found] == [
        ("mixed-dialects", b".wh.z"),
        ("opaque-namespace", b"d"),
        ("dangling-whiteout", b"e"),
    ]
    other = lint(of_directories(paths, dialect=Dialect.OVERLAY_USER))
    assert "opaque-namespace" not in rules_of(other)


#: Rows of the merge table on which every implementation agrees, and what is still worth a word.
HARMLESS = {
    23: {"dangling-whiteout"},
    25: {"dangling-whiteout"},
    27: {"dangling-whiteout"},
    36: {"dangling-whiteout"},
    47: {"aufs-metadata"},
    48: {"aufs-metadata"},
    49: {"aufs-metadata"},
    51: {"aufs-metadata"},
    52: {"aufs-metadata"},
    56: {"whiteout-not-empty"},
    61: {"name-over-242"},
    63: {"name-over-251"},
    69: {"duplicate-entry"},
    57: set(),
}
#: Rows on which they differ, by what lint says about them.
DIFFER = {
    4: {"implied-directory"},
    5: {"whiteout-beside-entry"},
    6: {"whiteout-beside-entry"},
    7: {"whiteout-beside-entry"},
    8: {"whiteout-beside-entry"},
    9: {"whiteout-beside-entry"},
    10: {"whiteout-beside-entry"},
    13: {"parent-is-file"},
    14: {"file-between-directories"},
    16: {"file-between-directories"},
    20: {"parent-is-link"},
    21: {"parent-is-link"},
    24: {"whiteout-makes-directory"},
    31: {"opaque-without-parents"},
    33: {"opaque-root"},
    34: {"whiteout-in-opaque"},
    35: {"whiteout-in-opaque", "whiteout-beside-entry"},
    40: {"whiteout-beside-entry"},
    41: {"bare-whiteout"},
    42: {"bare-whiteout"},
    43: {"bare-whiteout"},
    50: {"aufs-metadata"},
    53: {"whiteout-not-regular"},
    54: {"entry-below-whiteout", "whiteout-not-regular"},
    55: {"whiteout-not-regular"},
    62: {"name-over-251"},
    65: {"hardlink-to-lower"},
    71: {"device-zero"},
    73: {"opaque-root"},
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_row_has_its_findings(row: Row) -> None:
    expected = DIFFER.get(row.number, HARMLESS.get(row.number, set()))
    assert rules_of(lint_image(image_of(empty_markers(row).tars()))) == expected


def test_stored_image_is_checked_as_it_came(image: MakeImage, run: Run) -> None:
    image("d/ d/old x ‖ .wh.d d/ d/new .wh.nope")
    done = run("lint", "demo/app:v1", "--json")
    assert done.status == 1
    document = json.loads(done.out)
    assert [(item["rule"], item["path"], item["layer"]) for item in document["findings"]] == [
        ("whiteout-beside-entry", "/.wh.d", 2),
        ("dangling-whiteout", "/.wh.nope", 2),
    ]
    assert document["counts"] == {"error": 1, "warning": 0, "info": 1}
    assert set(document["findings"][0]["shows"]) == {
        *("OCI", "AUFS", "kernel overlayfs", "fuse-overlayfs", "containerd", "umoci")
    }
    assert run("lint", "demo/app:v1", "--stored").status == 0


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ((), 1),
        (("--fail-on", "error"), 0),
        (("--fail-on", "never"), 0),
        (("--ignore", "whiteout-in-opaque"), 0),
        (("--ignore", "whiteout-in-opaque", "--fail-on", "info"), 0),
        (("--ignore", "nonsense"), 2),
        (("--write",), 2),
    ],
)
def test_exit_status(image: MakeImage, run: Run, options: tuple[str, ...], status: int) -> None:
    image("d/ d/x ‖ d/ d/.wh..wh..opq d/.wh.x")
    assert run("lint", "demo/app:v1", *options).status == status


def test_odd_names_stay_on_one_line(layers: MakeLayers, run: Run, tmp_path: Path) -> None:
    layers(r"a\n\xff ‖ a\n\xff .wh.a\n\xff")
    done = run("lint", "--layer", tmp_path / "layer2", "--layer", tmp_path / "layer1")
    (line,) = done.out.splitlines()
    assert line.startswith(
        r"layer 2: /.wh.a\n\xff: error: whiteout and entry of one name in one layer"
    )
    assert line.endswith(" [whiteout-beside-entry]: beside file")


# -- a real image with faults ------------------------------------------------------


def test_seeded_faults_are_found_and_nothing_else() -> None:
    base = layer_tar(
        [
            *(
                Member(name, "dir")
                for name in (b"etc/", b"usr/", b"usr/bin/", b"usr/share/", b"var/")
            ),
            Member(b"usr/share/common-licenses/", "dir"),
            *(
                Member(b"usr/share/common-licenses/" + name.encode(), data=b"text")
                for name in os.listdir("/usr/share/common-licenses")
            ),
            *(
                Member(b"etc/" + name, data=b"text")
                for name in (b"motd", b"issue.net", b"issue", b"debian_version", b"passwd")
            ),
            Member(b"bin", "symlink", target=b"usr/bin"),
            Member(b"tmp/", "dir", mode=0o1777),
        ]
    )
    assert lint_image(image_of([base])) == []
    found = lint_image(image_of([base, layer_tar(FAULTS)]))
    assert {(item.rule.id, item.path) for item in found} == EXPECTED
    assert len(found) == len(EXPECTED)


# -- repairs -----------------------------------------------------------------------


def tree_of(where: Where) -> set[tuple[bytes, int]]:
    with Stack.open([named.path for named in where.branches]) as stack:
        return {(path, view.listing[name].fmt) for path, view, name in stack.walk()}


FAULTY = (
    "d/ d/x d/y e/ e/old f g/ g/o m/ m/x ‖ m"
    " ‖ e/ e/new .wh.e d/ d/.wh..wh..opq d/.wh.x d/z f .wh.f .wh.g>q .wh. .wh.nope#text"
    " p/q/.wh.nope .wh..wh.aufs .wh..wh.plnk/ .wh..wh.plnk/1.2 m/ m/y"
)


def test_fix_shows_first_and_keeps_what_shows(layers: MakeLayers, run: Run, tmp_path: Path) -> None:
    where = layers(FAULTY)
    options = [word for named in where.branches for word in ("--layer", os.fsdecode(named.path))]
    before = tree_of(where)
    listing = sorted(str(path) for path in tmp_path.rglob("*"))
    dry = run("lint", *options, "--fix")
    assert dry.status == 1
    assert "would: layer 3: mark as opaque /e (whiteout-beside-entry)" in dry.out
    assert sorted(str(path) for path in tmp_path.rglob("*")) == listing
    done = run("lint", *options, "--fix", "--write")
    assert "done: layer 3: remove /.wh.f (whiteout-beside-entry)" in done.out
    assert lint(where) == []
    assert tree_of(where) == before


def test_fix_of_a_rw_branch_over_an_image(image: MakeImage, run: Run, tmp_path: Path) -> None:
    image("a b")
    rw = tmp_path / "rw"
    rw.mkdir()
    (rw / ".wh.a").mkdir()
    (rw / ".wh.none").touch()
    assert run("lint", "demo/app:v1", "--rw", rw, "--fix").status == 1
    assert run("lint", "demo/app:v1", "--rw", rw, "--fix", "--write").status == 1
    assert run("lint", "demo/app:v1", "--rw", rw, "--fail-on", "info").status == 0
    assert stat.S_ISREG((rw / ".wh.a").stat().st_mode)
    assert not (rw / ".wh.none").exists()


def test_copy_of_an_image_is_fixed(
    image: MakeImage, run: Run, tmp_path: Path, store_root: Path, layers: MakeLayers
) -> None:
    """Whatever may not be touched: an image, its archive, the branches of somebody else."""
    text = "d/ d/x e/ e/old f ‖ e/ e/new .wh.e d/ d/.wh..wh..opq d/.wh.x d/z f .wh.f .wh.nope"
    image(text)
    before = fingerprint(store_root)
    where = layers(text)
    copy = tmp_path / "copy"
    dry = run("lint", "demo/app:v1", "--fix", "--copy", copy, "--json")
    document = json.loads(dry.out)
    assert (dry.status, document["done"], document["copy"]) == (1, False, [])
    assert "layer 2: mark as opaque /e (whiteout-beside-entry)" in document["actions"]
    assert not copy.exists()
    done = run("lint", "demo/app:v1", "--fix", "--copy", copy, "--write")
    assert done.out.splitlines()[-2:] == [f"copy: {copy}/layer2", f"copy: {copy}/layer1"]
    fixed = of_directories([bytes(copy / "layer2"), bytes(copy / "layer1")])
    assert lint(fixed) == []
    assert tree_of(fixed) == tree_of(where)
    assert fingerprint(store_root) == before
    again = run("lint", "demo/app:v1", "--fix", "--copy", copy, "--write")
    assert again.status == 1
    assert "exists" in again.err
    archive = tmp_path / "root.tar"
    archive.write_bytes(layer_tar(parse("x .wh.x").layers[0]))
    other = tmp_path / "other"
    assert run("lint", archive, "--fix", "--copy", other, "--write").status == 1
    assert os.listdir(other / "layer1") == ["x"]


def test_copy_keeps_everything(run: Run, tmp_path: Path) -> None:
    """Owners, devices, links, times, attributes and names too long for a whiteout's file."""
    members = [
        Member(b"./", "dir", mode=0o711, mtime=9),
        Member(b"d/", "dir", mode=0o750, uid=7, mtime=5),
        Member(b"d/f", data=b"hello", mode=0o4755, uid=12, gid=34, mtime=1.5),
        Member(b"d/g", "hardlink", target=b"d/f"),
        Member(b"d/l", "symlink", target=b"t", uid=3),
        Member(b"d/null", "char", rdev=(1, 3), xattrs=()),
        Member(b"a\n\xff/x", data=b"1", xattrs=(("user.n", b"\0v"),)),
        Member(b".wh." + b"n" * 252),
    ]
    archive = tmp_path / "root.tar"
    archive.write_bytes(layer_tar(members))
    copy = tmp_path / "copy"
    run("lint", archive, "--fix", "--copy", copy, "--write", "--ignore", "dangling-whiteout")
    done = run("compare", "--layer", copy / "layer1", "--engines", "oci,unionfs", "--json")
    assert done.status == 0, done.out
    original = run("compare", archive, "--engines", "oci,unionfs", "--json")
    assert json.loads(done.out)["digest"] == json.loads(original.out)["digest"]
    (long,) = [path for path in (copy / "layer1").iterdir() if path.name.startswith(".wh.")]
    assert long.read_bytes() == b"n" * 252


def test_images_are_never_fixed(image: MakeImage, run: Run) -> None:
    image("a ‖ .wh.none")
    done = run("lint", "demo/app:v1", "--fix")
    assert done.status == 2
    assert "rw branch" in done.err


def test_fix_refuses_a_branch_in_use(layers: MakeLayers, run: Run, tmp_path: Path) -> None:
    import fcntl

    layers("a ‖ .wh.none")
    fd = os.open(tmp_path / "layer2", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        options = ("--layer", tmp_path / "layer2", "--layer", tmp_path / "layer1")
        done = run("lint", *options, "--fix", "--write")
    finally:
        os.close(fd)
    assert done.status == 1
    assert "in use" in done.err
    assert (tmp_path / "layer2" / ".wh.none").exists()


def test_plain_directory_as_where(layers: MakeLayers, run: Run, tmp_path: Path) -> None:
    layers("a .wh.a")
    done = run("lint", f"{tmp_path}/layer1")
    assert "[whiteout-beside-entry]" in done.out
    assert run("lint", f"{tmp_path}/nothing").status in (1, 2)


def test_layers_of_a_store_are_never_fixed_by_path(
    image: MakeImage, run: Run, store_root: Path
) -> None:
    image("a ‖ .wh.a b")
    (layer,) = [path.parent for path in store_root.glob("graph/*/layer/.wh.a")]
    (layer / ".wh.none").touch()
    done = run("lint", "--layer", layer, "--fix", "--write")
    assert done.status == 1
    assert "layer of a store" in done.err
    names = ("--from", "aufs", "--to", "overlay-userxattr", "--in-place")
    assert "layer of a store" in run("convert", layer, *names).err
    assert (layer / ".wh.none").exists()


def test_archive_is_checked_without_import(tmp_path: Path, run: Run, store_root: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(layer_tar(parse("a a>k").layers[0]))
    done = run("lint", archive)
    assert done.status == 1
    assert "[duplicate-entry]" in done.out
    assert not store_root.exists()


# -- texts -------------------------------------------------------------------------


def test_rules_are_complete() -> None:
    for rule in RULES.values():
        assert re.fullmatch(r"[a-z0-9-]+", rule.id)
        assert all(rule.shows.values())
        assert rule.fix
        assert isinstance(rule.severity, Severity)


def test_rules_are_listed(run: Run) -> None:
    out = run("lint", "--rules").out
    for name in RULES:
        assert f"\n{name} (" in "\n" + out
    assert len(run("lint", "--rules", "--json").json()) == len(RULES)
