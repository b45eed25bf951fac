"""The commands that read and prune a store, on one that Docker 0.5 could have written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.commands import Run

from unionfs.cli import output

SUMMARY = {"id", "names", "created", "size", "own_size", "layers", "image", "comment"}


def test_images_lists_heads_and_named_entries(run: Run, old_store: Path) -> None:
    done = run("--root", old_store, "images")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("<none>", "aaaa0004", "4kB", "1"),
        ("demo/app:latest", "cccc0003", "6kB", "3"),
        ("demo/app:old", "aaaa0001", "1kB", "1"),
    ]


def test_root_is_accepted_after_the_verb_and_wins(
    run: Run, old_store: Path, tmp_path: Path
) -> None:
    done = run("--root", tmp_path / "elsewhere", "images", "--root", old_store, "-q")
    assert done.out.split() == ["aaaa0004", "cccc0003", "aaaa0001"]


def test_root_from_the_environment(
    run: Run, old_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIONFS_ROOT", str(old_store))
    assert "demo/app:latest" in run("images").out


def test_images_json(run: Run, old_store: Path) -> None:
    found = run("--root", old_store, "images", "-a", "--json").json()
    assert [set(item) for item in found] == [SUMMARY] * 4
    top = next(item for item in found if item["id"] == "cccc0003")
    assert top == {
        "id": "cccc0003",
        "names": ["demo/app:latest"],
        "created": "2013-06-03T00:00:00Z",
        "size": 6000,
        "own_size": 3000,
        "layers": 3,
        "image": True,
        "comment": "",
    }


def test_images_tree(run: Run, old_store: Path) -> None:
    assert run("--root", old_store, "images", "--tree").out == (
        "aaaa0004 4kB\n"
        "aaaa0001 1kB demo/app:old\n"
        "└─ bbbb0002 2kB\n"
        "   └─ cccc0003 3kB demo/app:latest\n"
    )
    nodes = run("--root", old_store, "images", "--tree", "--json").json()
    assert [node["id"] for node in nodes] == ["aaaa0004", "aaaa0001"]
    assert nodes[1]["children"][0]["children"][0]["names"] == ["demo/app:latest"]


def test_images_tree_shows_entries_that_are_their_own_ancestors(run: Run, old_store: Path) -> None:
    path = old_store / "graph" / "aaaa0001" / "json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parent": "cccc0003"}))
    shown = run("--root", old_store, "images", "--tree")
    assert sorted(line.split()[0] for line in shown.out.splitlines()) == [
        *("aaaa0001", "aaaa0004", "bbbb0002", "cccc0003"),
    ]
    nodes = run("--root", old_store, "images", "--tree", "--json").json()
    assert all(node["children"] == [] for node in nodes)
    assert len(nodes) == 4


def test_images_of_an_absent_store(run: Run, tmp_path: Path) -> None:
    done = run("--root", tmp_path / "none", "images")
    assert (done.status, done.out) == (0, "")
    assert "no image store" in done.err
    assert run("--root", tmp_path / "none", "images", "--json").json() == []
    assert not (tmp_path / "none").exists()


def test_damaged_entries_are_counted(run: Run, old_store: Path) -> None:
    (old_store / "graph" / "aaaa0004" / "json").write_text("{")
    done = run("--root", old_store, "images")
    assert done.status == 0
    assert "1 damaged" in done.err


def test_a_table_on_a_terminal_has_a_heading(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    output.table(("NAME", "WHAT"), [("a", "x" * 60), ("long name", "y")])
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "NAME       WHAT"
    assert lines[1].startswith("a          xxx")
    assert lines[1].endswith("...")
    assert lines[2] == "long name  y"


def test_history(run: Run, old_store: Path) -> None:
    done = run("--root", old_store, "history", "demo/app")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("cccc0003", "3kB", "/bin/sh -c step 2"),
        ("bbbb0002", "2kB", "/bin/sh -c step 1"),
        ("aaaa0001", "1kB", "/bin/sh -c step 0"),
    ]
    found = run("--root", old_store, "history", "cccc", "--json").json()
    assert [item["id"] for item in found] == ["cccc0003", "bbbb0002", "aaaa0001"]
    assert found[2]["names"] == ["demo/app:old"]


def test_inspect(run: Run, old_store: Path) -> None:
    text = run("--root", old_store, "inspect", "demo/app").out
    assert "Id:           cccc0003" in text
    assert "6kB in 3 layers" in text
    document = run("--root", old_store, "inspect", "demo/app", "--json").json()
    assert set(document) >= {"id", "tags", "created", "size", "config", "history", "layers"}
    assert [layer["id"] for layer in document["layers"]] == ["aaaa0001", "bbbb0002", "cccc0003"]
    assert document["size"] == 6000


def test_tag_prints_the_full_name_and_asks_before_moving_one(run: Run, old_store: Path) -> None:
    assert run("--root", old_store, "tag", "cccc", "host:5000/a/b").out == "host:5000/a/b:latest\n"
    refused = run("--root", old_store, "tag", "aaaa0004", "host:5000/a/b")
    assert refused.status == 1
    assert "--force" in refused.err
    assert run("--root", old_store, "tag", "--force", "aaaa0004", "host:5000/a/b").status == 0
    tags = json.loads((old_store / "repositories").read_text())["Repositories"]
    assert tags["host:5000/a/b"] == {"latest": "aaaa0004"}


def test_untag_keeps_the_image(run: Run, old_store: Path) -> None:
    assert run("--root", old_store, "untag", "demo/app:latest").out == "demo/app:latest\n"
    assert (old_store / "graph" / "cccc0003").is_dir()
    assert run("--root", old_store, "untag", "demo/app:latest").status == 1


def test_rmi_of_a_last_name_removes_the_image(run: Run, old_store: Path) -> None:
    done = run("--root", old_store, "rmi", "demo/app")
    assert done.out.splitlines() == ["demo/app:latest", "cccc0003"]
    assert not (old_store / "graph" / "cccc0003").exists()


def test_rmi_of_one_name_of_many_takes_the_name_only(run: Run, old_store: Path) -> None:
    run("--root", old_store, "tag", "demo/app", "demo/app:other")
    assert run("--root", old_store, "rmi", "demo/app").out == "demo/app:latest\n"
    assert (old_store / "graph" / "cccc0003").is_dir()


def test_a_refused_rmi_changes_nothing(run: Run, old_store: Path) -> None:
    before = (old_store / "repositories").read_bytes()
    for name in ("demo/app:old", "aaaa0001"):
        done = run("--root", old_store, "rmi", name)
        assert done.status == 1
        assert "bbbb0002" in done.err
        assert (old_store / "graph" / "aaaa0001").is_dir()
    assert json.loads((old_store / "repositories").read_bytes()) == json.loads(before)


def test_rmi_by_force_takes_names_and_bases(run: Run, old_store: Path) -> None:
    assert run("--root", old_store, "rmi", "--force", "aaaa0001").status == 0
    assert not (old_store / "graph" / "aaaa0001").exists()
    assert "demo/app:old" not in (old_store / "repositories").read_text()


def test_gc_shows_first_and_removes_then(run: Run, old_store: Path) -> None:
    assert run("--root", old_store, "gc").out == ""
    found = run("--root", old_store, "gc", "--all", "--dry-run", "--json").json()
    assert [item["id"] for item in found] == ["aaaa0004"]
    assert (old_store / "graph" / "aaaa0004").is_dir()
    assert run("--root", old_store, "gc", "--all").out == "aaaa0004\n"
    assert not (old_store / "graph" / "aaaa0004").exists()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1536, "1.54kB"), (70_400_000, "70.4MB")],
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (45, "45 seconds ago"),
        (90, "90 seconds ago"),
        (3600, "60 minutes ago"),
        (86400 * 3, "3 days ago"),
        (86400 * 365 * 13, "12 years ago"),
    ],
)
def test_ages(seconds: int, text: str) -> None:
    start = 10**18
    assert output.age(start, start + seconds * 10**9) == text


def test_completion_knows_the_names(old_store: Path, process: Run) -> None:
    done = process(
        env={
            "_UNIONFS_COMPLETE": "bash_complete",
            "COMP_WORDS": "unionfs inspect demo",
            "COMP_CWORD": "2",
            "UNIONFS_ROOT": str(old_store),
        }
    )
    assert "demo/app:latest" in done.out
