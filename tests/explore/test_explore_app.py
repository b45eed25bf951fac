"""The app as somebody at the keyboard has it, driven in this process."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path

import attrs
import pytest
from support.exploring import Driver, play
from support.looking import Look

from unionfs.explore import app as module
from unionfs.explore.model import Cancelled, Explorer, Kind
from unionfs.insight import waste
from unionfs.insight.explain import explain
from unionfs.insight.where import of_directories
from unionfs.insight.wording import lines

_LAYERS = "etc/a etc/b usr/x/y/z k ‖ etc/a etc/.wh.b etc/n ‖ usr/x/.wh.y w"


def test_it_opens_with_what_the_image_shows(look: Look) -> None:
    async def script(driver: Driver) -> None:
        assert driver.paths() == [b"", b"etc", b"k", b"usr", b"w"]
        text = driver.text
        assert "Layer 3 · changes of the layer" in text
        assert "+ " in next(line for line in driver.lines() if line.rstrip("│ ").endswith(" w"))
        assert "score 0." in text
        for number in (3, 2, 1):
            assert f"layer{number}" in text

    play(look(_LAYERS), script)


def test_moving_opening_and_closing(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("down")
        assert driver.path == b"etc"
        await driver.press("right")
        assert driver.paths() == [b"", b"etc", b"etc/a", b"etc/n", b"k", b"usr", b"w"]
        await driver.press("right")
        assert driver.path == b"etc/a"
        await driver.press("left")
        assert driver.path == b"etc"
        await driver.press("enter")
        assert driver.paths() == [b"", b"etc", b"k", b"usr", b"w"]
        await driver.press("end")
        assert driver.path == b"w"
        await driver.press("down", "j")
        assert driver.path == b"w"
        await driver.press("home", "up", "k")
        assert driver.path == b""

    play(look(_LAYERS), script)


def test_another_layer_keeps_what_is_open(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("down", "right", "left_square_bracket")
        assert driver.layers.current.number == 2
        assert driver.paths() == [b"", b"etc", b"etc/a", b"etc/b", b"etc/n", b"k", b"usr"]
        rows = [line for line in driver.lines() if " etc/" in line or "│   " in line]
        assert any("-" in line and line.rstrip("│ ").endswith(" b") for line in rows)
        await driver.press("tab", "down")
        assert driver.layers.current.number == 1
        assert "Layer 1" in driver.text
        assert driver.path == b"etc"
        await driver.press("enter")
        assert driver.tree.has_focus

    play(look(_LAYERS), script)


def test_kinds_are_left_out_and_shown(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("u")
        assert driver.paths() == [b"", b"usr", b"w"]
        await driver.press("a")
        assert driver.paths() == [b"", b"usr"]
        await driver.press("a", "u", "h", "down", "right")
        assert driver.paths() == [b"", b"etc", b"etc/a", b"etc/b", b"etc/n", b"k", b"usr", b"w"]
        assert "!hidden" in driver.text
        assert "! " in next(line for line in driver.lines() if line.rstrip("│ ").endswith(" b"))

    play(look(_LAYERS), script)


def test_all_changes_since_the_base(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("t", "u", "asterisk")
        assert driver.paths() == [
            *(b"", b"etc", b"etc/a", b"etc/b", b"etc/n", b"usr", b"usr/x", b"usr/x/y"),
            *(b"usr/x/y/z", b"w"),
        ]
        await driver.press("escape")
        assert "all changes since the base" in driver.text

    play(look(_LAYERS), script)


def test_filters(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("slash")
        await driver.type("y/")
        assert driver.paths() == [b"", b"usr", b"usr/x", b"usr/x/y", b"usr/x/y/z"]
        assert "“y/” · 4 rows" in driver.text
        await driver.press("slash", "ctrl+r")
        await driver.type("/.$")
        assert driver.paths() == [
            *(b"", b"etc", b"etc/a", b"etc/n", b"k", b"usr", b"usr/x", b"usr/x/y", b"usr/x/y/z"),
            b"w",
        ]
        await driver.press("end", "up", "escape")
        # What the filter had under the cursor is still in sight.
        assert driver.path == b"usr/x/y/z"
        await driver.press("slash", "ctrl+r")
        await driver.type("(")
        assert driver.said == [
            "not a regular expression: missing ), unterminated subpattern at position 0"
        ]

    play(look(_LAYERS), script)


def test_the_explanation_is_that_of_the_command(look: Look) -> None:
    explorer = look(_LAYERS)

    async def script(driver: Driver) -> None:
        await driver.press("h", "down", "right", "down", "down", "e")
        shown = " ".join(driver.text.replace("│", " ").split())
        for line in lines(explain(explorer.where, b"etc/b")):
            assert " ".join(line.split()) in shown
        assert "unionfs: or copy" in shown
        await driver.press("escape")
        assert driver.path == b"etc/b"

    play(explorer, script, 160, 40)


def test_wasted_bytes_lead_to_their_path(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("w")
        shown = driver.lines()
        assert any("Wasted: 3B" in line for line in shown)
        row = next(line for line in shown if "/usr/x/y/z" in line)
        assert "1B       1  1        /usr/x/y/z" in row
        while "/usr/x/y/z" not in driver.lines()[_cursor_line(driver)]:
            await driver.press("down")
        await driver.press("enter")
        assert driver.path == b"usr/x/y/z"

    play(look(_LAYERS), script)


def test_wasted_bytes_of_a_layer_above_are_found_too(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("left_square_bracket", "left_square_bracket", "w", "enter")
        assert driver.app.top == 3
        assert driver.layers.current.number == 3
        assert driver.path == b"x"
        assert "Layer 3" in driver.text

    play(look("a ‖ x#12345 ‖ .wh.x"), script)


def _cursor_line(driver: Driver) -> int:
    rows = driver.list_on_top()
    return rows.content_region.y + rows.cursor - rows.scroll_offset.y


def test_the_wasted_bytes_are_shown_as_soon_as_they_are_known(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    report = waste.report

    def slow(*arguments: object) -> object:
        gate.wait(30)
        return report(*arguments)  # type: ignore[arg-type]  # those of report

    monkeypatch.setattr(module, "report", slow)

    async def script(driver: Driver) -> None:
        driver.touch("w")
        await driver.until(lambda: driver.said)
        assert driver.said == ["the list opens as soon as the layers are read"]
        assert "…" in driver.text
        gate.set()
        await driver.settle()
        assert "Wasted: 3B" in driver.text

    play(look(_LAYERS), script, wait=False)


def test_going_to_a_path(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("g")
        await driver.type("/usr/x/y/z")
        assert driver.path == b"usr/x/y/z"
        assert not driver.said
        await driver.press("g")
        await driver.type("/usr/xx")
        assert driver.said == ["/usr/xx: never existed; nearest: /usr/x"]

    play(look(_LAYERS), script)


def test_going_to_what_is_hidden_shows_it(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("g")
        await driver.type("/etc/b")
        assert driver.path == b"etc/b"
        assert Kind.HIDDEN in driver.app.kinds

    play(look(_LAYERS), script)


def test_adding_up_a_directory(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("down", "s")
        assert driver.said == ["/etc: 2B in 2 files"]
        assert " 2B " in next(line for line in driver.lines() if " etc/" in line)
        await driver.press("down", "s")
        assert len(driver.said) == 1

    play(look(_LAYERS), script)


def test_viewing_a_file(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("down", "down", "v")
        assert "hello" in driver.text
        await driver.press("q", "home", "v")
        assert len(driver.said) == 1

    play(look("a k#hello"), script)


def test_extracting_asks_before_it_replaces(look: Look, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    async def script(driver: Driver) -> None:
        await driver.press("down", "x")
        assert "Extract /etc into the directory" in driver.text
        await driver.type(str(out))
        assert (out / "etc" / "n").exists()
        assert driver.said == [f"3 entries, 2B in {out}/etc"]
        (out / "etc" / "mine").touch()
        await driver.press("x")
        await driver.type(str(out))
        assert "is there already. Replace it?" in driver.text.replace("\n", " ")
        await driver.press("escape")
        assert (out / "etc" / "mine").exists()
        await driver.press("x")
        await driver.type(str(out))
        await driver.press("r")
        assert sorted(os.listdir(out / "etc")) == ["a", "n"]
        await driver.press("x")
        await driver.type(str(out / "nope"))
        assert driver.said[-1].endswith("nope: No such file or directory")

    play(look(_LAYERS), script, 160, 24)


def test_extracting_what_was_deleted(look: Look, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    async def script(driver: Driver) -> None:
        await driver.press("h", "down", "right", "down", "down", "x")
        await driver.type(str(out))
        assert (out / "b").read_text() == "0"

    play(look(_LAYERS), script)


def test_an_extraction_can_be_stopped(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    began, gate = threading.Event(), threading.Event()
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        began.set()
        gate.wait(30)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)

    async def script(driver: Driver) -> None:
        await driver.press("down", "x")
        driver.fill(str(out))
        driver.touch("enter")
        await driver.until(began.is_set)
        await driver.until(lambda: "Extracting /etc" in driver.text)
        driver.touch("escape")
        await driver.until(lambda: not driver.app.workers._workers)
        gate.set()
        await driver.until(lambda: driver.said)
        assert driver.said == ["given up; nothing was left behind"]
        assert os.listdir(out) == []

    play(look(_LAYERS), script)


def test_help_shows_every_key(look: Look) -> None:
    from unionfs.explore.keys import key_table

    async def script(driver: Driver) -> None:
        await driver.press("question_mark")
        shown = driver.text
        for keys, text in key_table():
            assert any(keys in line and text in line for line in shown.splitlines()), keys
        await driver.press("escape", "h")
        assert Kind.HIDDEN in driver.app.kinds

    play(look(_LAYERS), script, 110, 70)


def test_every_key_of_the_table_does_something(look: Look) -> None:
    """No binding names an action that is not there."""
    from textual.binding import Binding

    from unionfs.explore.keys import APP_KEYS, ROW_KEYS, TREE_KEYS

    async def script(driver: Driver) -> None:
        for keys, holder in (
            (APP_KEYS, driver.app),
            (TREE_KEYS, driver.tree),
            (ROW_KEYS, driver.tree),
        ):
            for binding in keys:
                assert isinstance(binding, Binding)
                action = binding.action.partition("(")[0].removeprefix("app.")
                assert hasattr(holder, f"action_{action}"), action

    play(look(_LAYERS), script)


def test_keys_that_come_too_fast(look: Look) -> None:
    """A second enter or escape while the first one still closes a screen."""

    async def script(driver: Driver) -> None:
        for opening, closing in (("w", "enter"), ("e", "escape"), ("question_mark", "q")):
            await driver.press(opening)
            driver.touch(closing, closing, closing)
            await driver.settle()
            assert len(driver.app.screen_stack) == 1
        await driver.press("slash")
        driver.touch("enter", "enter", "escape")
        await driver.settle()
        assert len(driver.app.screen_stack) == 1

    play(look("a#12 b ‖ .wh.a"), script)


def _lose(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_SOME_KEYS = (
    *("up", "down", "left", "right", "enter", "space", "tab", "escape", "home", "end", "pageup"),
    *("a", "c", "d", "h", "u", "t", "e", "w", "v", "g", "s", "r", "slash", "asterisk", "ctrl+r"),
    *("left_square_bracket", "right_square_bracket", "question_mark", "1", "pagedown"),
)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_keys_in_any_order(look: Look, tmp_path: Path, seed: int) -> None:
    """While a branch loses files besides."""
    chance = random.Random(seed)  # noqa: S311  # the same keys every time
    explorer = look(f"{_LAYERS} ‖ etc/.wh..wh..opq usr/x k/m ‖ .wh.usr")
    victims = sorted(tmp_path.rglob("*"))

    async def script(driver: Driver) -> None:
        for _ in range(60):
            driver.touch(chance.choice(_SOME_KEYS))
            if chance.random() < 0.3:
                await driver.settle()
            assert all(line.isprintable() for line in driver.lines())
            if chance.random() < 0.05:
                _lose(chance.choice(victims))
        await driver.settle()

    play(explorer, script)


def test_reading_anew(look: Look, tmp_path: Path) -> None:
    async def script(driver: Driver) -> None:
        (tmp_path / "layer3" / "fresh").touch()
        assert b"fresh" not in driver.paths()
        await driver.press("r")
        assert b"fresh" in driver.paths()

    play(look(_LAYERS), script)


_HOSTILE = (
    r"[red]x[|red] \x1b[31mred\x1b]0;title\x07 new\nline \xff\xfe"
    " \u202ertl [@click=app.bell]go 日本語 é"
)


def test_names_are_never_markup_and_never_reach_the_terminal_raw(
    look: Look, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    explorer = look(_HOSTILE)

    async def script(driver: Driver) -> None:
        for shown in (
            *(r"[red]x[|red]", r"\x1b[31mred\x1b]0;title\x07", r"new\nline", r"\xff\xfe"),
            *(r"\u202ertl", "[@click=app.bell]go", "日本語", "é"),
        ):
            assert any(shown in line for line in driver.lines()), shown
        for _ in range(len(driver.paths()) - 1):
            await driver.press("down", "e")
            assert all(line.isprintable() for line in driver.lines())
            await driver.press("escape")
        await driver.press("home", "x")
        await driver.type(str(out))
        assert driver.said == [f"9 entries, 8B in {out}/root"]
        await driver.press("w", "escape", "slash")
        await driver.type("[red]")
        assert driver.paths() == [b"", b"[red]x[|red]"]
        assert "“[red]”" in driver.text
        for line in driver.lines():
            assert line.isprintable()

    play(explorer, script, 120, 30)
    assert len(os.listdir(out / "root")) == 8


def test_what_an_image_says_of_itself_does_not_act(look: Look) -> None:
    plain = look("a ‖ .wh.a").where
    layers = tuple(
        attrs.evolve(named, command="\x1b[31mRUN [red]x\x1b]0;own\x07", created="\x1b[2J")
        for named in plain.branches
    )
    where = attrs.evolve(plain, branches=layers, title="[bold]\x1b[0m")

    async def script(driver: Driver) -> None:
        for keys in (["d", "h"], ["end", "e"], ["escape", "w"], ["escape", "g"]):
            await driver.press(*keys)
            assert all(line.isprintable() for line in driver.lines()), keys
        await driver.type("nope")
        assert r"[bold]\x1b[0m" in driver.text
        assert r"\x1b[31mRUN [red]x" in driver.text

    with Explorer(where) as explorer:
        play(explorer, script, 120, 30)
    assert all(line.isprintable() for line in lines(explain(where, b"a")))


def test_a_large_directory_costs_what_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 100_000
    layer = tmp_path / "layer"
    (layer / "many").mkdir(parents=True)
    (layer / "deep" / "er").mkdir(parents=True)
    fd = os.open(layer / "many", os.O_RDONLY)
    for number in range(many):
        os.mknod(b"%06d" % number, dir_fd=fd)
    os.close(fd)

    def not_counted(*_: object) -> None:
        raise Cancelled

    monkeypatch.setattr(module, "report", not_counted)

    async def script(driver: Driver) -> None:
        explorer, rows = driver.app.explorer, driver.tree
        assert explorer.reads == 1
        await driver.press("down", "down", "right")
        assert rows.count() == many + 3
        assert explorer.reads == 2
        drawn = rows.drawn
        await driver.press("end", "pageup", "pageup", "home", "pagedown")
        # Five movements; a screen has 20 rows, drawn a few times each at the most.
        assert rows.drawn - drawn < 5 * 20 * 4
        await driver.press("down", "right", "end")
        assert driver.current.name == b"%06d" % (many - 1)
        # Attributes are asked of rows on the screen only.
        assert len(driver.current.folder.statuses) < 12 * 20
        await driver.press("slash")
        await driver.type("many/0999")
        assert rows.count() == 1 + 1 + 100
        assert explorer.reads == 4  # and /deep, /deep/er

    with Explorer(of_directories([os.fsencode(layer)])) as explorer:
        play(explorer, script)


def test_deep_names_stay_in_sight(look: Look) -> None:
    async def script(driver: Driver) -> None:
        await driver.press("asterisk", "end")
        assert driver.current.depth == 61
        assert any(line.rstrip("│ ").endswith(" bottom") for line in driver.lines())

    play(look("d/" * 60 + "bottom"), script)


def test_500_layers(tmp_path: Path) -> None:
    paths = []
    for number in range(500):
        path = tmp_path / f"layer{number}"
        (path / "d").mkdir(parents=True)
        (path / "d" / f"f{number}").touch()
        paths.append(os.fsencode(path))

    async def script(driver: Driver) -> None:
        assert "500 " in driver.text
        await driver.press("down", "right", "right", "end")
        assert driver.tree.count() == 502
        await driver.press("tab", "end")
        assert driver.layers.current.number == 1
        assert driver.paths() == [b"", b"d", b"d/f0"]
        assert driver.app.explorer.reads == 1000

    with Explorer(of_directories(paths[::-1])) as explorer:
        play(explorer, script)


@pytest.mark.parametrize("size", [(1, 1), (33, 10), (250, 70)])
def test_any_size_of_terminal(look: Look, size: tuple[int, int]) -> None:
    async def script(driver: Driver) -> None:
        for key in ("e", "w", "question_mark", "x", "g", "slash"):
            await driver.press(key, "escape")
        await driver.press("down", "right", "right", "tab", "down", "enter")
        assert driver.path == b"etc/a"

    play(look(_LAYERS), script, *size)


def test_without_rights_it_says_so(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", b"/layer\x1b/secret")

    monkeypatch.setattr(module, "report", refuse)

    async def script(driver: Driver) -> None:
        assert "sizes are not known: /layer\\x1b/secret: Permission denied" in driver.text
        assert driver.paths() == [b"", b"etc", b"k", b"usr", b"w"]

    play(look(_LAYERS), script, 120, 24)


def test_quitting_stops_the_threads(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def endless(_: object, seen_one: object) -> None:
        began.set()
        while True:
            seen_one()  # type: ignore[operator]  # a function
            time.sleep(0.001)

    monkeypatch.setattr(module, "report", endless)

    async def script(driver: Driver) -> None:
        await driver.until(began.is_set)
        driver.touch("q")

    play(look(_LAYERS), script, wait=False)


def test_trouble_with_a_layer_is_said(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = look(_LAYERS)
    real = explorer._scan

    def scan(branch: object, path: bytes) -> object:
        if path == b"etc":
            raise PermissionError(13, "Permission denied", path)
        return real(branch, path)  # type: ignore[arg-type]  # a branch

    monkeypatch.setattr(explorer, "_scan", scan)

    async def script(driver: Driver) -> None:
        await driver.press("down", "right")
        assert driver.paths() == [b"", b"etc", b"k", b"usr", b"w"]
        assert driver.said == ["/etc: layer 2: Permission denied, layer 1: Permission denied"]

    play(explorer, script, 120, 24)
