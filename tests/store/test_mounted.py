"""Entries that only the kernel's tables show to be in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unionfs import mountinfo
from unionfs.mountinfo import KernelUnion
from unionfs.store import mounted
from unionfs.store.mounted import mounted_entries

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(mounted, "_AUFS", os.fsencode(tmp_path / "no-aufs"))
    (tmp_path / "store/graph").mkdir(parents=True)
    return os.fsencode(tmp_path / "store/graph")


def shown(monkeypatch: pytest.MonkeyPatch, *options: bytes, fstype: str = "overlay") -> None:
    unions = [KernelUnion("0:99", fstype, text) for text in options]
    monkeypatch.setattr(mountinfo, "kernel_unions", lambda: iter(unions))


@pytest.mark.parametrize("form", [b"ro,lowerdir=/x:%b:%b", b"ro,lowerdir+=%b,lowerdir+=%b,xino=on"])
def test_layers_in_the_options_of_overlayfs(
    graph: bytes, monkeypatch: pytest.MonkeyPatch, form: bytes
) -> None:
    layers = (graph + b"/%b/layer" % A.encode(), graph + b"/%b/shims/trusted/wh" % B.encode())
    shown(monkeypatch, form % layers)
    assert mounted_entries(graph) == {A, B}


def test_escaped_and_foreign_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    graph = os.fsencode(tmp_path) + b"/a:b,c/graph"
    os.makedirs(graph)
    escaped = graph.replace(b":", b"\\:").replace(b",", b"\\,")
    layer = b"/%b/layer" % A.encode()
    shown(monkeypatch, b"lowerdir=" + escaped + layer, b"lowerdir=/home/x" + graph + layer)
    assert mounted_entries(graph) == {A}
    shown(monkeypatch, b"lowerdir=/home/x" + graph + layer, b"lowerdir=12:13:14")
    assert mounted_entries(graph) == frozenset()


def test_another_name_of_the_store(
    graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("store")
    shown(monkeypatch, b"lowerdir=%b/%b/layer" % (graph, A.encode()))
    assert mounted_entries(os.fsencode(tmp_path / "link/graph")) == {A}


def test_branches_of_aufs(graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown(monkeypatch)
    place = tmp_path / "no-aufs/si_1"
    place.mkdir(parents=True)
    (place / "br0").write_bytes(b"/rw=rw\n")
    (place / "br1").write_bytes(b"%b/%b/layer=ro+wh\n" % (graph, C.encode()))
    (place / "xi_path").write_bytes(b"%b/%b/x" % (graph, B.encode()))
    assert mounted_entries(graph) == {C}
    shown(monkeypatch, b"rw,si=1,br:/rw=rw:%b/%b/layer=ro+wh" % (graph, A.encode()), fstype="aufs")
    assert mounted_entries(graph) == {A, C}
