"""Results: their file, their tables, goals and verdicts; on numbers that are known."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
from support.benchresults import make_result
from support.commands import CHECKOUT, Run

from unionfs.bench import plots
from unionfs.bench.goals import GOALS, check
from unionfs.bench.result import About, Failure, Result, ratios, read, write
from unionfs.bench.tables import Table, goals_table, number, tables
from unionfs.bench.verdicts import verdicts
from unionfs.bench.workloads import WORKLOADS, titles
from unionfs.errors import UnsupportedError, UsageError

LINE: dict[str, list[float | None]] = {
    "overlayfs": [1.0, 2.0, 1.0],
    "fuse": [2.0, 2.0, 3.0],
    "fuse-overlayfs": [4.0, 4.0, 4.0],
}


def full_result() -> Result:
    """Return a result that has something of everything."""
    result = make_result({"walk.cold": LINE, "create": LINE}, root=True)
    result.subjects.append(About("aufs", "AUFS", "", "", "this kernel has none"))
    for rounds in (result.server_cpu, result.server_calls):
        rounds["walk.cold"] = {"fuse": [0.5, 0.5, 0.5], "fuse-overlayfs": [1.0, 1.0, 1.0]}
    result.server_peak = {"fuse": [3 << 20, 4 << 20, 2 << 20]}
    result.requests = {"walk.cold": {"fuse": {"LOOKUP": 1200, "READ": 3}, "fuse-overlayfs": {}}}
    for count, factor in (("1", 1.0), ("10", 1.5)):
        result.layers[count] = {
            key: {"overlayfs": [1.0], "fuse": [2.0 * factor]}
            for key in ("mount", "list.cold", "list.again", "absent.cold", "open.cold")
        }
        result.layers[count]["base"] = {"fuse": [float(32 << 20)]}
        result.trees[count] = {
            "mount": {"overlayfs": [1.0], "fuse": [1.0], "fuse-overlayfs": [1.0]},
            "tree.cold": {"overlayfs": [1.0], "fuse": [2.0], "fuse-overlayfs": [3.0]},
            "memory": {"fuse": [1000.0], "fuse-overlayfs": [500.0]},
        }
    result.failures = [Failure("fuse", "tar.cold", "it did\nnot")]
    return result


def cells(found: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(found.heading[1:], row[1:], strict=True)) for row in found.rows}


def test_a_result_file_keeps_everything(tmp_path: Path) -> None:
    result = full_result()
    write(result, tmp_path / "result.json")
    assert read(tmp_path / "result.json") == read(tmp_path) == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no json", '{"version": 1}'])
def test_what_is_no_result_is_refused(tmp_path: Path, bench: Run, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"other\.json is no result of `unionfs bench`"):
        read(path)
    for verb in (("show", path), ("goals", path), ("compare", path, path)):
        done = bench(*verb)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith("unionfs: ")


def test_another_version_of_the_form_is_refused(tmp_path: Path) -> None:
    result = full_result()
    result.version = 99
    write(result, tmp_path / "result.json")
    with pytest.raises(UsageError, match="has version 99"):
        read(tmp_path)


def test_ratios_are_of_medians_with_the_ends_of_the_rounds() -> None:
    assert ratios(LINE, "fuse", "overlayfs") == (2.0, 1.0, 3.0)
    failed: dict[str, list[float | None]] = {"a": [None, 6.0], "b": [1.0, 2.0]}
    assert ratios(failed, "a", "b") == (3.0, 3.0, 3.0)
    assert ratios({"a": [None], "b": [1.0]}, "a", "b") is None
    assert ratios({"a": [1.0]}, "a", "b") is None


def test_tables_say_what_was_measured() -> None:
    found = {table.title: table for table in tables(full_result())}
    times = cells(found["Time, as a ratio to overlayfs"])
    assert times["tree walk with stat, cold"] == {
        "overlayfs": "1.00 (1.00-1.00)",
        "fuse": "2.00 (1.00-3.00)",
        "fuse-overlayfs": "4.00 (2.00-4.00)",
    }
    cpu = "CPU time of the server process, as a ratio to the time that overlayfs takes in all"
    assert cells(found[cpu])["tree walk with stat, cold"]["fuse"] == "0.50"
    asked = cells(found["FUSE requests by kind (all but FORGET)"])["tree walk with stat, cold"]
    assert asked == {"fuse": "1,203 (LOOKUP 1,200, READ 3)", "fuse-overlayfs": "0"}
    peak = cells(found["Peak memory of the server in a round, MiB"])
    assert peak == {"fuse": {"MiB": "4"}}
    mount = "mount: ratio to overlayfs with as many layers, then growth since 1"
    assert cells(found[mount])["10 layers"] == {"overlayfs": "1.00, x1.00", "fuse": "3.00, x1.50"}
    memory = cells(found["Memory of the server for each file seen, bytes"])
    assert memory["10 files"] == {"fuse": "100", "fuse-overlayfs": "50.0"}


def test_no_table_has_bare_seconds() -> None:
    """A time that is nobody's ratio appears nowhere: all of them scaled change nothing."""
    slow = full_result()
    for rounds in (slow.seconds, slow.server_cpu, *slow.layers.values(), *slow.trees.values()):
        for key, by in rounds.items():
            if key not in ("base", "memory"):
                rounds[key] = {s: [v and v * 7 for v in values] for s, values in by.items()}
    assert list(tables(slow)) == list(tables(full_result()))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.00"), (0.123, "0.12"), (1, "1.00"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_goals_speak_of_workloads_that_exist() -> None:
    keys = {key for workload in WORKLOADS for key in workload.keys}
    for goal in GOALS:
        assert goal.key in keys
        subject = {"fuse": "sequential read", "fuse-passthrough": "root with passthrough"}
        words = goal.title.replace(subject[goal.subject], subject["fuse"])
        assert words == titles()[goal.key]


def test_goals_met_missed_and_not_measured() -> None:
    times = {"overlayfs": [1.0, 1.0], "fuse": [1.5, 1.5], "fuse-overlayfs": [2.5, 4.0]}
    found = {(o.title, o.against): o for o in check(make_result({"walk.cold": times}))}
    title = "tree walk with stat, cold"
    assert found[title, "overlayfs"].met is True
    assert found[title, "overlayfs"].clear
    assert found[title, "fuse-overlayfs"].met is True  # 1.5 / 3.25
    assert not found[title, "fuse-overlayfs"].clear
    assert found["grep -r, cold", "overlayfs"].met is None
    times["fuse"] = [1.7, 1.7]
    found = {(o.title, o.against): o for o in check(make_result({"walk.cold": times}))}
    assert found[title, "overlayfs"].met is False


def test_goals_take_the_plain_users_overlayfs_and_a_busy_machine_into_account() -> None:
    times = {"overlayfs-userns": [1.0], "fuse": [1.0], "fuse-overlayfs": [4.0]}
    for load, limit, met in ((0.0, 0.15, False), (3.0, 0.35, True)):
        result = make_result({"tar.cold": times}, baseline="overlayfs-userns", load=load)
        tar = [o for o in check(result) if o.title == "read of all small files (tar), cold"]
        assert [(o.against, o.limit, o.met) for o in tar] == [
            ("overlayfs-userns", 1.5, True),
            ("fuse-overlayfs", limit, met),
        ]


def test_goals_of_growth() -> None:
    result = full_result()
    found = {o.title: o for o in check(result)}
    assert found["look up absent names, 10 layers"].value == 1.5
    assert found["look up absent names, 10 layers"].met is False
    assert found["memory for each of 10 known files"].value == 2.0
    rows = goals_table(result).rows
    assert len(rows) == sum(1 + (goal.peer is not None) for goal in GOALS) + 4
    assert {row[-1].partition(",")[0] for row in rows} == {"met", "NOT MET", "not measured"}


def drawn(seed: int, factor: float, machine: float, rounds: int = 6) -> Result:
    """Return a result where `fuse` takes `factor` and everything `machine` times as long."""
    chance = random.Random(seed)  # noqa: S311  # drawn numbers, no secrets
    seconds: dict[str, dict[str, list[float]]] = {"walk.cold": {}, "grep.cold": {}}
    for _ in range(rounds):
        busy = machine * chance.uniform(1, 3)  # hits all subjects of a round alike
        for workload, by in seconds.items():
            for subject, slower in (("overlayfs", 1.0), ("fuse", factor), ("plain", 0.5)):
                own = slower if workload == "walk.cold" else 1.0
                by.setdefault(subject, []).append(busy * own * chance.lognormvariate(0, 0.03))
    return make_result(seconds)


def test_verdicts_find_the_one_difference_on_another_machine() -> None:
    found = {
        (v.workload, v.subject): v.comparison
        for v in verdicts(drawn(1, 2.0, 1.0), drawn(2, 3.0, 5.0))
        if v.relative
    }
    assert found["walk.cold", "fuse"].verdict == "slower"
    assert found["walk.cold", "fuse"].ratio == pytest.approx(1.5, rel=0.1)
    del found["walk.cold", "fuse"]
    assert {c.verdict for c in found.values()} == {"no difference shown"}


def test_compare_on_the_command_line(tmp_path: Path, bench: Run) -> None:
    paths = []
    for name, result in (("a", drawn(1, 2.0, 1.0)), ("b", drawn(2, 3.0, 1.0))):
        write(result, tmp_path / f"{name}.json")
        paths.append(tmp_path / f"{name}.json")
    done = bench("compare", *paths)
    assert done.status == 0
    (line,) = (line for line in done.out.splitlines() if "slower" in line)
    assert "tree walk with stat, cold" in line
    assert "fuse" in line
    assert re.search(r"1 of 6 rows differ; chance alone would make about 0\.1 differ", done.out)
    assert bench("compare", *paths, "--fail-on", "slower").status == 1
    assert bench("compare", *reversed(paths), "--fail-on", "slower").status == 0
    assert "faster" in bench("compare", *reversed(paths)).out
    rows = bench("compare", *paths, "--json").json()
    assert {row["verdict"] for row in rows} == {"slower", "no difference shown"}
    assert_documented("bench compare", rows)


def test_too_few_rounds_show_nothing_and_say_so(tmp_path: Path, bench: Run) -> None:
    for name, factor in (("a", 1.0), ("b", 9.0)):
        write(drawn(1, factor, 1.0, rounds=3), tmp_path / name)
    done = bench("compare", tmp_path / "a", tmp_path / "b", "--fail-on", "slower")
    assert done.status == 0
    assert "slower" not in done.out
    assert "6 rows have too few rounds for 99%: measure both with --rounds 5" in done.out
    assert "too few rounds" in bench("compare", tmp_path / "a", tmp_path / "b", "--all").out


def test_sizes_that_differ_are_not_compared(tmp_path: Path, bench: Run) -> None:
    other = full_result()
    other.shape = "full"
    write(full_result(), tmp_path / "a")
    write(other, tmp_path / "b")
    done = bench("compare", tmp_path / "a", tmp_path / "b")
    assert done.status == 1
    assert "size quick, the second full: not comparable" in done.err


def assert_documented(verb: str, document: list[dict[str, object]]) -> None:
    pages = (CHECKOUT / "docs" / "json.rst").read_text()
    part = re.search(rf"^``{verb}``.*\n((?:    .*\n|\n)+)", pages, re.MULTILINE)
    assert part
    known = set(re.findall(r"``([\w-]+)``", part[1]))
    for item in document:
        assert set(item) <= known


def test_show_and_goals_on_the_command_line(tmp_path: Path, bench: Run) -> None:
    write(full_result(), tmp_path / "result.json")
    shown = bench("show", tmp_path, "--goals")
    assert shown.status == 0
    assert "tree walk with stat, cold   1.00 (1.00-1.00)   2.00 (1.00-3.00)" in shown.out
    assert "  AUFS: this kernel has none" in shown.out
    assert "failed: fuse: tar.cold: it did\\nnot" in shown.out
    assert "3 rounds, size quick, as root" in shown.out
    assert "Goals" in shown.out
    assert "Goals" not in bench("show", tmp_path).out
    short = bench("show", tmp_path, "--brief").out
    assert re.search(r"^ ?tree walk with stat, cold +2\.00 +4\.00 *$", short, re.MULTILINE)
    assert_documented("bench", [bench("show", tmp_path, "--json").json()])
    assert_documented("bench goals", bench("goals", tmp_path, "--json").json())
    assert bench("goals", tmp_path).status == 0
    assert bench("goals", tmp_path, "--fail").status == 1


def test_plots_are_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    made = plots.plot(full_result(), tmp_path)
    assert sorted(path.name for path in made) == sorted(
        f"{name}.{suffix}"
        for name in ("times", "requests", "layers", "files")
        for suffix in ("png", "svg")
    )
    for path in made:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") or b"<?xml" in start
    times = (tmp_path / "times.svg").read_text()
    for words in ("tree walk with stat, cold", "fuse-overlayfs", "ratio to overlayfs"):
        assert words in times


def test_nothing_to_plot_makes_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert plots.plot(make_result({"walk.cold": {"overlayfs": [1.0]}}), tmp_path) == []


def test_without_matplotlib_it_says_how_to_get_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'unionfs\[plots\]'"):
        plots.plot(full_result(), tmp_path)
