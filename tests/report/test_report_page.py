"""The page in a real browser: it shows what is there, asks for nothing and runs nothing foreign."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import attrs
import pytest
from support.chromium import Browser, MakePage, Tab
from support.insight import MakeImage, MakeLayers

from unionfs.errors import show
from unionfs.insight.shipped import Item
from unionfs.insight.where import of_directories
from unionfs.report.page import render
from unionfs.report.picture import Version, collect

STORY = (
    "usr/ usr/bin/ usr/bin/tool#12345678 usr/doc/ usr/doc/manual#1234567890 etc/ etc/conf#1234"
    " ‖ etc/ etc/conf#123456 usr/ usr/doc/ usr/doc/.wh..wh..opq"
    " ‖ etc/ etc/.wh.conf etc/new#12"
)


def clean(tab: Tab) -> None:
    """Assert that nothing was asked for, complained about or forbidden."""
    assert tab.requests() == set()
    assert tab.complaints() == []


def rows(tab: Tab) -> list[str]:
    found: list[str] = tab.js("[...document.querySelectorAll('.filename')].map(e => e.textContent)")
    return found


def test_everything_is_there(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    tab = chromium.tab(page(layers(STORY)))
    assert tab.js("document.documentElement.dataset.ready") == "true"
    values = tab.js("[...document.querySelectorAll('.tile .value')].map(e => e.textContent)")
    assert [value.replace("\u202f", " ") for value in values[:3]] == ["30 B", "10 B", "20 B"]
    cells = tab.js(
        "[...document.querySelectorAll('#layer-table tbody tr')].map(row =>"
        " [...row.cells].map(cell => cell.textContent.replaceAll('\\u202f', ' ')"
        ".replaceAll('\\u2212', '-').replaceAll('\\u2013', '')))"
    )
    assert [(row[0], row[2], row[3], *row[5:]) for row in cells] == [
        ("3", "2 B", "", "+1", "", "-1"),
        ("2", "6 B", "6 B", "", "~1", "-1"),
        ("1", "22 B", "14 B", "+7", "", ""),
    ]
    clean(tab)


def test_tree_opens_by_key_and_tells_where_from(
    layers: MakeLayers, page: MakePage, chromium: Browser
) -> None:
    tab = chromium.tab(page(layers(STORY)))
    assert rows(tab) == ["/", "etc/", "usr/"]
    tab.js("document.getElementById('tree').focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowDown"):
        tab.key(key)
    assert rows(tab) == ["/", "etc/", "conf", "new", "usr/"]
    detail = tab.js("document.getElementById('detail').innerText").replace("\u202f", " ")
    assert detail.startswith("/etc/conf\n")
    assert "hidden by 3 layer 3" in detail
    assert "file 0644 0:0, 6 B" in detail
    assert "hidden by the whiteout /etc/.wh.conf of layer 3" in detail
    assert "replaced by layer 2" in detail
    assert tab.js("document.querySelectorAll('.file.gone').length") == 1
    selected = tab.js("document.getElementById('tree').getAttribute('aria-activedescendant')")
    assert tab.js(f"document.getElementById('{selected}').ariaSelected") == "true"
    tab.key("ArrowLeft")
    tab.key("ArrowLeft")
    assert rows(tab) == ["/", "etc/", "usr/"]
    clean(tab)


def test_tree_opens_by_mouse(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    tab = chromium.tab(page(layers(STORY)))
    tab.click(".file:nth-child(3) .twisty")
    assert rows(tab) == ["/", "etc/", "usr/", "bin/", "doc/"]
    clean(tab)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("MANUAL", []),
        ("manu", ["/", "usr/", "doc/", "manual"]),
        ("/usr/b", ["/", "usr/", "bin/", "tool"]),
    ],
)
def test_search(
    layers: MakeLayers, page: MakePage, chromium: Browser, typed: str, expected: list[str]
) -> None:
    tab = chromium.tab(page(layers(STORY)))
    tab.js("document.getElementById('search').focus()")
    tab.type(typed)
    tab.key("Enter")
    if expected:
        assert rows(tab) == expected
    assert tab.js("document.querySelectorAll('.file:not(.passed)').length") == (
        1 + (typed == "/usr/b") if expected else 0
    )
    clean(tab)


def test_filters(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    tab = chromium.tab(page(layers(STORY)))
    tab.click("#states label:nth-of-type(3)")
    assert rows(tab) == ["/", "etc/", "conf", "usr/", "doc/", "manual"]
    tab.click("#states label:nth-of-type(1)")
    tab.click("#layer-table tbody tr:first-child td.added button")
    assert rows(tab) == ["/", "etc/", "conf", "new"]
    clean(tab)


def test_areas_of_the_map_are_bytes(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    big = {"a/one": 60_000, "a/two": 20_000, "b": 40_000}
    where = layers("a/ a/one ‖ b ‖ .wh.b")
    for name, size in big.items():
        layer = Path(os.fsdecode(where.branches[2 if name.startswith("a") else 1].path))
        (layer / name).write_bytes(bytes(size))
    tab = chromium.tab(page(where))
    areas = tab.js(
        "[...document.querySelectorAll('#treemap > .cell')].map(cell => {"
        " const box = cell.getBoundingClientRect();"
        " return [cell.dataset.label, Number(cell.dataset.bytes), box.width * box.height]; })"
    )
    whole = tab.js(
        "(() => { const e = document.getElementById('treemap');"
        " return e.clientWidth * e.clientHeight; })()"
    )
    assert [(label, size) for label, size, _ in areas] == [("layer 1", 80_000), ("layer 2", 40_000)]
    for _, size, area in areas:
        assert area == pytest.approx(whole * size / 120_000, rel=0.001)
    # The hidden file is hatched, and alone.
    hatched = "[...document.querySelectorAll('.cell.hatched')].map(e => e.dataset.label)"
    assert tab.js(hatched) == ["b"]
    tab.click("#treemap > .cell:first-child > .cell-text")
    inner = tab.js(
        "[...document.querySelectorAll('#treemap > .cell > .cell')].map(cell => {"
        " const box = cell.getBoundingClientRect();"
        " return [cell.dataset.label, box.width * box.height]; })"
    )
    assert [label for label, _ in inner] == ["one", "two"]
    assert inner[0][1] / inner[1][1] == pytest.approx(3, rel=0.001)
    tab.key("Escape")
    assert tab.js("document.querySelectorAll('#treemap > .cell').length") == 2
    clean(tab)


HOSTILE = (
    b"</script><script>window.owned=1</script>",
    b"<img src=x onerror=window.owned=1>",
    b"--><!--<svg onload=alert(1)>",
    b"${window.owned=1}`'\"\\",
    b"{{script}}",
    b"new\nline\r\ttab",
    b"\xff\xfe not utf-8 \xed\xb2\x80",
    "rtl \u202e\u2066cod.exe\u2069".encode(),
    "\u05e9\u05dc\u05d5\u05dd \u2028\u2029 \ufeff\U000e0001".encode(),
    b"__proto__",
    b"constructor",
    b" ",
    b"n" * 250,
)


def test_hostile_names_are_text(tmp_path: Path, page: MakePage, chromium: Browser) -> None:
    layer = os.fsencode(tmp_path / "layer<script>window.owned=1")
    os.mkdir(layer)
    for name in HOSTILE:
        safe = name.replace(b"/", b"")
        with open(os.path.join(layer, safe), "wb") as file:
            file.write(safe)
    where = of_directories([layer])
    where = where.__class__("<b>title</b></title><script>window.owned=1</script>", where.branches)
    tab = chromium.tab(page(where))
    expected = [show(name) for name in sorted(os.listdir(layer))]
    assert rows(tab) == ["/", *expected]
    assert tab.js("window.owned") is None
    assert tab.js("document.querySelectorAll('#rows img, #rows script, #rows svg').length") == 0
    assert tab.js("document.querySelectorAll('script').length") == 2
    assert tab.js("document.getElementById('title').textContent") == where.title
    # What the commands print can be searched for as it stands.
    tab.js("document.getElementById('search').focus()")
    tab.type(show(HOSTILE[6]))
    tab.key("Enter")
    assert rows(tab) == ["/", show(HOSTILE[6])]
    clean(tab)


def test_hostile_words_of_an_image_are_text(
    image: MakeImage, tmp_path: Path, page: MakePage, chromium: Browser
) -> None:
    from support.layers import Member, image_of, layer_tar

    from unionfs.insight.where import of_image
    from unionfs.store.store import Store

    image("a")
    command = "<script>window.owned=1</script>\u202e\n\udc80"
    source = image_of(
        [layer_tar([Member(b"x")])],
        history=[{"created_by": command.replace("\udc80", "")}],
        created="<b>2020</b>",
    )
    with Store.open(os.fsencode(tmp_path / "store")) as store:
        made = store.import_image(source, transport="test")
        where = of_image(store.graph, made.id)
    tab = chromium.tab(page(where))
    text = tab.js("document.querySelector('.origin .clip').textContent")
    assert text == "<script>window.owned=1</script>\\u202e\\n"
    assert tab.js("window.owned") is None
    clean(tab)


def test_foreign_code_cannot_run(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    """The policy works: what an attacker would try is refused by the browser itself."""
    made = page(layers(STORY))
    text = made.read_text()
    slipped = (
        "<script>window.owned=1</script><img src=https://example.invalid/x.png"
        " onerror=window.owned=1><style>body{color:red}</style>"
    )
    made.write_text(text.replace("<main", slipped + "<main", 1))
    tab = chromium.tab(made)
    tab.js("fetch('https://example.invalid/').catch(() => 0)")
    tab.js("(() => { try { document.body.innerHTML = '<p>owned'; } catch {} })()")
    refused = {entry.split(" ")[0] for entry in tab.js("window.forbidden")}
    assert refused == {
        "script-src-elem",
        "style-src-elem",
        "img-src",
        "script-src-attr",
        "connect-src",
        "require-trusted-types-for",
    }
    assert tab.js("window.owned") is None
    assert rows(tab) == ["/", "etc/", "usr/"]
    answers = [event for event in chromium.events if event["method"] == "Network.responseReceived"]
    assert "example.invalid" not in json.dumps(answers)


def test_findings_and_waste_lead_into_the_tree(
    layers: MakeLayers, page: MakePage, chromium: Browser
) -> None:
    tab = chromium.tab(
        page(layers(STORY + " ‖ .wh.nope usr/ usr/bin/ usr/bin/.wh.tool usr/bin/tool#1"))
    )
    assert "whiteout and entry of one name in one layer" in tab.js(
        "document.getElementById('findings').innerText"
    )
    tab.js("document.querySelector('.rule').open = true")
    assert "fuse-overlayfs" in tab.js("document.querySelector('.rule .shows').innerText")
    tab.click(".rule .places .path")
    assert tab.js("document.querySelector('#detail h3').textContent") == "/usr/bin/tool"
    tab.click("#waste-body .path")
    assert tab.js("document.querySelector('#detail h3').textContent") == "/etc/conf"
    clean(tab)


def test_search_shows_what_is_in_a_directory(
    layers: MakeLayers, page: MakePage, chromium: Browser
) -> None:
    tab = chromium.tab(page(layers(STORY)))
    tab.js("document.getElementById('search').focus()")
    tab.type("doc")
    tab.key("Enter")
    assert rows(tab) == ["/", "usr/", "doc/"]
    tab.key("ArrowRight")
    assert rows(tab) == ["/", "usr/", "doc/", "manual"]
    assert tab.js("document.getElementById('count').textContent").startswith("1 path of")
    clean(tab)


def test_map_by_key(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    tab = chromium.tab(page(layers("a/ a/b#1234567 a/c#123 ‖ d#12345")))
    focused = "document.activeElement.dataset.label"
    tab.js("document.querySelector('#treemap > .cell').focus()")
    assert tab.js(focused) == "layer 1"
    tab.key("ArrowRight")
    assert tab.js(focused) == "layer 2"
    tab.key("ArrowLeft")
    tab.key("Enter")
    assert tab.js(focused) == "a/"
    assert tab.js("document.getElementById('crumbs').textContent") == "All layers\u203alayer 1"
    tab.key("Enter")
    assert tab.js(focused) == "b"
    tab.key("Escape")
    tab.key("Escape")
    assert tab.js(focused) == "layer 1"
    assert tab.js("document.getElementById('map-words').textContent").startswith("layer 1 · ")
    clean(tab)


def test_a_hundred_thousand_paths(tmp_path: Path, chromium: Browser) -> None:
    """The document stays small and the rows in it few, whatever is open."""
    paths: dict[bytes, tuple[Version, ...]] = {b"": (Version(1, Item(b"", stat.S_IFDIR)),)}
    for number in range(100):
        top = b"d%02d" % number
        paths[top] = (Version(1, Item(top, stat.S_IFDIR)),)
        for inner in range(1000):
            path = b"%b/file-%03d.txt" % (top, inner)
            paths[path] = (Version(1, Item(path, stat.S_IFREG, inner)),)
    empty = collect(of_directories([os.fsencode(tmp_path)]))
    made = tmp_path / "page.html"
    made.write_bytes(render(attrs.evolve(empty, paths=paths)))
    assert made.stat().st_size < 1_000_000
    tab = chromium.tab(made)
    tab.js("document.getElementById('search').focus()")
    tab.type("file-")
    tab.key("Enter")
    assert tab.js("document.getElementById('count').textContent").startswith("100\u202f000 paths")
    tab.key("End")
    assert rows(tab)[-1] == "file-999.txt"
    assert tab.js("document.querySelector('#detail h3').textContent") == "/d99/file-999.txt"
    assert len(rows(tab)) < 60
    assert tab.js("document.querySelectorAll('*').length") < 2000
    clean(tab)


def test_five_hundred_layers(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    tab = chromium.tab(page(layers(" ‖ ".join(f"f#{number}" for number in range(500)))))
    assert tab.js("document.querySelectorAll('#treemap > .cell').length") == 500
    assert tab.js("document.querySelector('#layer-table tr:last-child .badge').textContent") == "1"
    tab.js("document.getElementById('tree').focus()")
    tab.key("End")
    assert tab.js("document.querySelectorAll('#detail .versions > li').length") == 500
    clean(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_person(
    layers: MakeLayers, page: MakePage, chromium: Browser, scheme: str
) -> None:
    tab = chromium.tab(page(layers(STORY)), scheme=scheme)
    colour = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert (tab.js(colour) > 128) == (scheme == "light")
    tab.click("#theme")
    assert tab.js(colour) > 128
    tab.click("#theme")
    assert tab.js(colour) < 128
    assert tab.screenshot().startswith(b"\x89PNG")
    clean(tab)


def test_it_prints(layers: MakeLayers, page: MakePage, chromium: Browser) -> None:
    tab = chromium.tab(page(layers(STORY + " ‖ .wh.nope")))
    assert tab.pdf().startswith(b"%PDF")
    assert tab.js("document.querySelectorAll('details[open]').length") == 0
    clean(tab)


def test_without_layers_that_hold_bytes(
    layers: MakeLayers, page: MakePage, chromium: Browser
) -> None:
    tab = chromium.tab(page(layers("(empty) ‖ (empty)")))
    assert "Nothing" in tab.js("document.getElementById('waste').innerText")
    assert "None" in tab.js("document.getElementById('findings').innerText")
    assert rows(tab) == ["/"]
    clean(tab)
