"""What speaks against a mount before anything is touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from unionfs.errors import ConflictError, NotFoundError, UnionfsError, UsageError
from unionfs.fuse.options import MountOptions
from unionfs.fuse.request import MountRequest, check


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("layer/inner", "base", "mnt/inner", "rw/inner", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("layer")
    (tmp_path / "mnt/inner").rmdir()
    return tmp_path


def _request(place: Path, target: str = "mnt", *layers: str, rw: str | None = None) -> MountRequest:
    chosen = layers or ("layer", "base")
    return MountRequest(
        target=os.fsencode(place / target),
        layers=tuple(os.fsencode(place / layer) for layer in chosen),
        rw=None if rw is None else os.fsencode(place / rw),
    )


def test_a_good_request_gets_canonical_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    settled = check(MountRequest(b"mnt/../mnt", (b"link", b"base"), rw=b"other/../new"))
    root = os.fsencode(place.resolve())
    assert settled.target == root + b"/mnt"
    assert settled.layers == (root + b"/layer", root + b"/base")
    assert settled.rw == root + b"/new"
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("target", "layers", "rw", "error", "words"),
    [
        ("absent", ("layer",), None, UsageError, "does not exist"),
        ("file", ("layer",), None, UsageError, "not a directory"),
        ("mnt", ("layer", "absent"), None, NotFoundError, "absent"),
        ("mnt", ("file",), None, NotFoundError, "file"),
        ("other/../rw", ("layer",), None, ConflictError, "--force"),
        ("layer/inner", ("base", "layer"), None, UsageError, "lies in the layer"),
        ("link/inner", ("base", "layer"), None, UsageError, "lies in the layer"),
        ("mnt", ("layer",), "layer/inner", UsageError, "lies in the layer"),
        ("mnt", ("layer",), "layer/fresh", UsageError, "lies in the layer"),
        ("mnt", ("layer",), "link/fresh", UsageError, "lies in the layer"),
        ("mnt", ("layer",), "layer", UsageError, "lies in the layer"),
        ("mnt", ("rw/inner",), "rw", UsageError, "lies in the writable branch"),
        ("mnt", ("layer",), "mnt/fresh", UsageError, "under the target"),
        ("mnt", ("layer",), "mnt", UsageError, "under the target"),
        ("rw/inner", ("layer",), "rw", UsageError, "lies in the writable branch"),
        ("mnt", ("layer",), "file", UsageError, "not a directory"),
        ("mnt", ("layer",), "absent/rw", UsageError, "does not exist"),
    ],
)
def test_refusals(
    place: Path,
    target: str,
    layers: tuple[str, ...],
    rw: str | None,
    error: type[UnionfsError],
    words: str,
) -> None:
    before = sorted(place.rglob("*"))
    with pytest.raises(error, match=words) as caught:
        check(_request(place, target, *layers, rw=rw))
    assert "\n" not in str(caught.value)
    assert sorted(place.rglob("*")) == before


def test_layers_are_needed(place: Path) -> None:
    with pytest.raises(UsageError, match="at least one layer"):
        check(MountRequest(os.fsencode(place / "mnt"), ()))


def test_rw_and_ephemeral_exclude_each_other(place: Path) -> None:
    request = MountRequest(
        os.fsencode(place / "mnt"), (os.fsencode(place / "layer"),), rw=b"rw", ephemeral=True
    )
    with pytest.raises(UsageError, match="exclude"):
        check(request)


def test_consent_for_a_target_with_content(place: Path) -> None:
    base = _request(place, "rw")
    assert check(MountRequest(base.target, base.layers, force=True)).target == base.target
    options = MountOptions.parse(["nonempty"])
    assert check(MountRequest(base.target, base.layers, options=options)).target == base.target


def test_a_layer_under_the_target_would_disappear(place: Path) -> None:
    request = _request(place, "rw", "rw/inner")
    with pytest.raises(UsageError, match="would disappear"):
        check(MountRequest(request.target, request.layers, force=True))


@pytest.mark.usefixtures("as_root")
def test_bind_mounts_do_not_hide_how_directories_lie(place: Path) -> None:
    subprocess.run(["mount", "--bind", place / "layer", place / "other"], check=True)
    try:
        with pytest.raises(UsageError, match="lies in the layer"):
            check(_request(place, "mnt", "layer", rw="other/inner"))
    finally:
        subprocess.run(["umount", place / "other"], check=True)
