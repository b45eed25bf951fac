"""getfattr(1) on real mounts: where a path comes from; whiteouts that show; views."""

from __future__ import annotations

import shutil

import pytest
from support.fuseplace import Place

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(shutil.which("getfattr") is None, reason="needs getfattr (package attr)"),
]

#: Above the standard layer: a deletion, an opaque directory, a changed file.
_TOP = """
mkdir -p top/d top/o base/o; printf hidden > base/o/x; printf top > top/f
: > top/d/.wh.a; : > top/o/.wh..wh..opq; mkfifo base/pipe
"""


def value(place: Place, path: str, name: str, prefix: str = "user.unionfs.") -> list[str]:
    """Return a virtual attribute, split at its NULs."""
    text = place.run("getfattr", "-h", "--only-values", "-n", prefix + name, path).stdout
    return text.split("\0") if text else []


def at(place: Place, *names: str) -> list[str]:
    return [f"{place.path}/{name}" for name in names]


def test_getfattr_answers(place: Place) -> None:
    place.sh(_TOP)
    place.mount("top", "base", rw="rw")
    place.sh("printf changed > mnt/p; rm mnt/d/b")
    assert value(place, "mnt/f", "layer") == ["2"]
    assert value(place, "mnt/f", "branch") == at(place, "top")
    assert value(place, "mnt/f", "path") == at(place, "top/f")
    assert value(place, "mnt/f", "hides") == at(place, "base/f")
    assert value(place, "mnt/p", "layer") == ["rw"]
    assert value(place, "mnt/p", "allpaths") == at(place, "rw/p", "base/p")
    assert value(place, "mnt/d", "whiteouts") == at(place, "rw/d/.wh.b", "top/d/.wh.a")
    assert value(place, "mnt/d", "hides") == at(place, "base/d/a", "base/d/b")
    assert value(place, "mnt/o", "hides") == at(place, "base/o", "base/o/x")
    for path in ("s", "pipe"):
        assert value(place, f"mnt/{path}", "path", "system.unionfs.") == at(place, f"base/{path}")
        assert "No such attribute" in place.fails(f"getfattr -h -n user.unionfs.path mnt/{path}")
    assert "No such attribute" in place.fails("getfattr -n system.unionfs.path mnt/f")
    assert "No such attribute" in place.fails("getfattr -n user.unionfs.nothing mnt/f")


def test_they_are_hidden_and_cannot_be_set(place: Place) -> None:
    place.mount(rw="rw")
    assert place.sh("getfattr -d -m - mnt/f mnt/d mnt") == ""
    for name in ("user.unionfs.path", "user.unionfs.mine"):
        assert "not permitted" in place.fails(f"setfattr -n {name} -v forged mnt/f")
        assert "not permitted" in place.fails(f"setfattr -x {name} mnt/f")
    place.sh("cp -a mnt/f copy; cp -a mnt/d mnt/e; test ! -e rw/f")
    assert "unionfs.path" not in place.sh("getfattr -d -m - copy rw/e rw/e/a")


def test_shown_on_request_they_still_are_not_stored(place: Place) -> None:
    place.mount(rw="rw", options=["show_xattrs"])
    names = ("allpaths", "branch", "hides", "layer", "path", "whiteouts")
    listed = place.sh("getfattr -m - mnt/f").split()
    assert [item for item in listed if "unionfs" in item] == [f"user.unionfs.{n}" for n in names]
    assert "system.unionfs.path" in place.sh("getfattr -h -m - mnt/s")
    assert f'user.unionfs.path="{place.path}/base/f"' in place.sh("getfattr -d mnt/f")
    place.sh("printf more >> mnt/f")
    assert "unionfs.path" not in place.sh("getfattr -d -m - rw/f")


def test_a_value_that_does_not_fit_is_cut_at_a_path(user: Place) -> None:
    user.sh("mkdir -p top/many base/many; : > top/many/.wh..wh..opq; cd base/many; "
            "for i in $(seq 500); do : > $(printf 'x%0200d' $i); done")  # fmt: skip
    user.mount("top", "base")
    hidden = value(user, "mnt/many", "hides")
    assert hidden[-1] == f"... {501 - len(hidden) + 1} more"
    assert all(item.startswith(f"{user.path}/base/many") for item in hidden[:-1])


def test_odd_names(user: Place) -> None:
    user.sh(r"mkdir top; touch 'base/d/x=\"y' top/f; cd base/d; touch $(printf 'n\377')")
    user.mount("top", "base", rw="rw")
    user.sh(r"rm mnt/d/n*")
    found = value(user, "mnt/d", "hides")
    assert found == at(user, "base/d/n\udcff")


@pytest.mark.parametrize("options", [["shwh"], ["shwh", "show_xattrs"]])
def test_whiteouts_show_and_hide(place: Place, options: list[str]) -> None:
    place.sh(_TOP)
    place.mount("top", "base", options=options)
    assert place.sh("ls -A mnt/d mnt/o").split() == [
        "mnt/d:", ".wh.a", "b", "mnt/o:", ".wh..wh..opq",
    ]  # fmt: skip
    assert place.sh("stat -c %s mnt/d/.wh.a mnt/o/.wh..wh..opq; cat mnt/d/.wh.a") == "0\n0\n"
    assert value(place, "mnt/d/.wh.a", "hides") == at(place, "base/d/a")
    assert "No such file" in place.fails("cat mnt/d/a")
    assert "Read-only" in place.fails("rm mnt/d/.wh.a")


def test_a_view_of_a_live_branch_follows_it(place: Place) -> None:
    place.sh(_TOP)
    place.mount("top", "base", rw="rw")
    place.mount("top", "base", rw="rw", target="view", options=["ro", "shwh", "coherent"])
    with place.start("sh", "-c", "cat mnt/f; exec sleep 60", stdout=-1) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.read(3) == "top"
            place.sh("rm mnt/f; printf anew > mnt/d/n; rm mnt/d/b; mkdir mnt/new; mv mnt/d mnt/new")
            assert "f" not in place.sh("ls view").split()
            assert place.sh("cat view/new/d/n") == "anew"
            assert place.sh("ls -A view").split() == [".wh.d", ".wh.f", "new", "o", "p", "pipe",
                                                      "q", "s"]  # fmt: skip
            place.sh("mv mnt/new/d mnt/d; printf 2 > mnt/d/n")
            assert place.sh("cat view/d/n") == "2"
            assert "Read-only" in place.fails("touch view/x")
        finally:
            reader.kill()
    place.umount("view")
    place.umount()
    assert sorted(item.name for item in (place.path / "rw" / "d").iterdir()) == [
        ".wh..wh..opq",
        "n",
    ]


def test_writable_mounts_show_no_whiteouts(user: Place) -> None:
    from support.fuseplace import MountFailedError

    for words in ({"rw": "rw"}, {"ephemeral": True}):
        with pytest.raises(MountFailedError, match="read-only mounts only") as caught:
            user.mount(options=["shwh"], **words)
        assert caught.value.kind == "UsageError"
    assert not (user.path / "rw").exists()
