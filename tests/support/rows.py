"""The conformance cases of layer merging, as data: what each stack of layers must show.

Notation. A layer is a sequence of tar members: `d/` a directory (0755; `d/@700` other mode),
`f` a file whose body is the number of its layer (`f#s`: body `s`), `l>t` a symbolic link,
`h&t` a hard link, `x!` a character device 0:0. Layers are separated by `‖`, base first. In the
tree `f=0` is a file with that body, `d/:700` a directory of that mode, `∅` nothing, `ERR` that the
topmost layer is refused. Changes are those of the topmost layer. `n*252` is 252 times n.

Invariant: `ROWS[i].number == i + 1`, and nothing here asks unionfs what is right.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import attrs

from support.layers import Member, layer_tar

__all__ = ["ROWS", "Node", "Row", "check_error", "read_tree", "show_tree"]

_TIMES = re.compile(r"(.)\*(\d+)")
_ESCAPE = re.compile(r"\\(n|x[0-9a-f]{2})")

#: What a reader sees at a path: type letter (d, f, l, c), then mode, body, target or numbers.
Node = tuple[str, bytes]


def _bytes(text: str) -> bytes:
    text = _TIMES.sub(lambda match: match[1] * int(match[2]), text)
    parts: list[bytes] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[at : match.start()].encode())
        parts.append(b"\n" if match[1] == "n" else bytes.fromhex(match[1][1:]))
        at = match.end()
    return b"".join([*parts, text[at:].encode()])


def _member(token: str, number: int) -> Member:
    raw = _bytes(token)
    if b"&" in raw:
        name, _, target = raw.partition(b"&")
        return Member(name, "hardlink", target=target)
    if b">" in raw:
        name, _, target = raw.partition(b">")
        return Member(name, "symlink", target=target)
    if raw.endswith(b"!"):
        return Member(raw[:-1], "char")
    name, at, mode = raw.partition(b"@")
    if name.endswith(b"/"):
        return Member(name, "dir", mode=int(mode, 8) if at else 0o755)
    name, sharp, body = raw.partition(b"#")
    return Member(name, "file", data=body if sharp else b"%d" % number)


def _node(token: str) -> tuple[bytes, Node]:
    raw = _bytes(token)
    if b"=" in raw:
        name, _, body = raw.partition(b"=")
        return name, ("f", body)
    if b">" in raw:
        name, _, target = raw.partition(b">")
        return name, ("l", target)
    if b"!c" in raw:
        name, _, numbers = raw.partition(b"!c")
        return name, ("c", numbers)
    name, _, mode = raw.partition(b"/:") if b"/:" in raw else (raw.rstrip(b"/"), b"", b"755")
    return name, ("d", mode)


@attrs.frozen
class Row:
    """One case. `changes` are the lines `A /path` of the topmost layer, sorted by path."""

    number: int
    name: str
    layers: tuple[tuple[Member, ...], ...]
    tree: dict[bytes, Node]
    changes: tuple[bytes, ...]
    error: str = ""

    @property
    def id(self) -> str:
        """A name for the test's report."""
        return f"{self.number:02}-{self.name}"

    def tars(self) -> list[bytes]:
        """Return the layers as uncompressed archives, base first."""
        return [layer_tar(layer) for layer in self.layers]


def _row(number: int, name: str, layers: str, tree: str, changes: str) -> Row:
    parsed = tuple(
        tuple(_member(word, at) for word in layer.split() if word != "(empty)")
        for at, layer in enumerate(layers.split("‖"))
    )
    error = tree.removeprefix("ERR ") if tree.startswith("ERR") else ""
    nodes = {} if error or tree == "∅" else dict(_node(token) for token in tree.split(" "))
    lines = [_bytes(line).replace(b" ", b" /", 1) for line in changes.split(", ") if line]
    return Row(number, name, parsed, nodes, tuple(sorted(lines, key=lambda line: line[2:])), error)


def read_tree(root: Path | str | bytes) -> dict[bytes, Node]:
    """Return what a directory (a mounted union, an unpacked image) shows, without its root."""
    found: dict[bytes, Node] = {}
    top = os.fsencode(root)
    for folder, _, _ in os.walk(top):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = _read_node(path)
    return found


def _read_node(path: bytes) -> Node:
    st = os.lstat(path)
    if stat.S_ISDIR(st.st_mode):
        return "d", b"%o" % stat.S_IMODE(st.st_mode)
    if stat.S_ISLNK(st.st_mode):
        return "l", os.readlink(path)
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as file:
            return "f", file.read()
    return "c", b"%d:%d" % (os.major(st.st_rdev), os.minor(st.st_rdev))


def show_tree(tree: dict[bytes, Node]) -> list[str]:
    """Return a tree as sorted lines, for a readable comparison."""
    return [f"{path!r}: {kind} {value!r}" for path, (kind, value) in sorted(tree.items())]


def check_error(row: Row, message: str) -> None:
    """Assert that a refusal says why, in the words that the table uses."""
    words = {
        "invalid whiteout": "invalid whiteout",
        "component below whiteout": "below the whiteout",
    }
    assert words[row.error] in message


#: The cases, in the order of their numbers.
ROWS: tuple[Row, ...] = (
    _row(1, "add-file", r"a ‖ b", r"a=0 b=1", r"A b"),
    _row(2, "wh-file", r"d/ d/x d/y ‖ d/ d/.wh.x", r"d/ d/y=0", r"D d/x"),
    _row(3, "wh-dir", r"d/ d/x d/s/ d/s/z k ‖ .wh.d", r"k=0", r"D d"),
    _row(4, "wh-parent-implicit", r"d/@700 d/x d/y ‖ d/.wh.x", r"d/:700 d/y=0", r"D d/x"),
    _row(5, "wh-then-same-file", r"x ‖ .wh.x x", r"x=1", r"C x"),
    _row(6, "same-file-then-wh", r"x ‖ x .wh.x", r"x=1", r"C x"),
    _row(7, "wh-then-same-dir", r"d/ d/old ‖ .wh.d d/ d/new", r"d/ d/new=1", r"A d/new, D d/old"),
    _row(8, "same-dir-then-wh", r"d/ d/old ‖ d/ d/new .wh.d", r"d/ d/new=1", r"A d/new, D d/old"),
    _row(9, "wh-dir-child-implicit", r"d/ d/old ‖ .wh.d d/new", r"d/ d/new=1", r"A d/new, D d/old"),
    _row(10, "wh-dir-then-file", r"d/ d/old ‖ .wh.d d", r"d=1", r"C d"),
    _row(11, "dir-replaced-by-file", r"d/ d/old ‖ d", r"d=1", r"C d"),
    _row(12, "file-replaced-by-dir", r"f ‖ f/ f/x", r"f/ f/x=1", r"C f, A f/x"),
    _row(13, "file-replaced-by-implicit-dir", r"f ‖ f/x", r"f/ f/x=1", r"C f, A f/x"),
    _row(14, "file-dir-sandwich", r"d/ d/x ‖ d ‖ d/ d/y", r"d/ d/y=2", r"C d, A d/y"),
    _row(15, "wh-dir-sandwich", r"d/ d/x ‖ .wh.d ‖ d/ d/y", r"d/ d/y=2", r"A d, A d/y"),
    _row(
        16,
        "link-dir-sandwich",
        r"d/ d/x o/ o/z ‖ d>o ‖ d/ d/y",
        r"d/ d/y=2 o/ o/z=0",
        r"C d, A d/y",
    ),
    _row(17, "wh-symlink-to-dir", r"r/ r/x l>r ‖ .wh.l", r"r/ r/x=0", r"D l"),
    _row(
        18, "symlink-replaced-by-dir", r"r/ r/x l>r ‖ l/ l/y", r"l/ l/y=1 r/ r/x=0", r"C l, A l/y"
    ),
    _row(19, "dir-replaced-by-symlink", r"r/ r/x l/ l/old ‖ l>r", r"l>r r/ r/x=0", r"C l"),
    _row(20, "wh-through-symlink-parent", r"r/ r/x l>r ‖ l/.wh.x", r"l>r r/ r/x=0", r""),
    _row(
        21, "file-through-symlink-parent", r"r/ r/x l>r ‖ l/y", r"l/ l/y=1 r/ r/x=0", r"C l, A l/y"
    ),
    _row(22, "dangling-symlink-target", r"l>nope ‖ k", r"k=1 l>nope", r"A k"),
    _row(23, "wh-nonexistent", r"a ‖ .wh.nope", r"a=0", r""),
    _row(24, "wh-nonexistent-parent", r"a ‖ p/q/.wh.nope", r"a=0", r""),
    _row(25, "wh-in-base-layer", r"a .wh.b ‖ b", r"a=0 b=1", r"A b"),
    _row(26, "wh-readd-next", r"x ‖ .wh.x ‖ x", r"x=2", r"A x"),
    _row(27, "wh-twice", r"x ‖ .wh.x ‖ .wh.x", r"∅", r""),
    _row(28, "opq-basic", r"d/ d/x d/s/ d/s/z ‖ d/ d/.wh..wh..opq", r"d/", r"D d/s, D d/x"),
    _row(29, "opq-first-siblings", r"d/ d/x ‖ d/ d/.wh..wh..opq d/y", r"d/ d/y=1", r"D d/x, A d/y"),
    _row(30, "opq-last-siblings", r"d/ d/x ‖ d/ d/y d/.wh..wh..opq", r"d/ d/y=1", r"D d/x, A d/y"),
    _row(
        31,
        "opq-last-implicit-parents",
        r"a/ a/b/ a/b/c/ a/b/c/bar ‖ a/b/c/foo a/.wh..wh..opq",
        r"a/ a/b/ a/b/c/ a/b/c/foo=1",
        r"D a/b/c/bar, A a/b/c/foo",
    ),
    _row(
        32,
        "opq-nested-recreated",
        r"a/ a/b/ a/b/c/ a/b/c/bar ‖ a/ a/.wh..wh..opq a/b/ a/b/c/ a/b/c/foo",
        r"a/ a/b/ a/b/c/ a/b/c/foo=1",
        r"D a/b/c/bar, A a/b/c/foo",
    ),
    _row(33, "opq-root", r"a d/ d/x ‖ .wh..wh..opq b", r"b=1", r"D a, A b, D d"),
    _row(
        34,
        "opq-plus-explicit",
        r"d/ d/x d/y ‖ d/ d/.wh..wh..opq d/.wh.x d/z",
        r"d/ d/z=1",
        r"D d/x, D d/y, A d/z",
    ),
    _row(
        35,
        "opq-plus-explicit-same-name",
        r"d/ d/x ‖ d/ d/.wh..wh..opq d/x d/.wh.x",
        r"d/ d/x=1",
        r"C d/x",
    ),
    _row(36, "opq-no-lower", r"a ‖ d/ d/.wh..wh..opq d/y", r"a=0 d/ d/y=1", r"A d, A d/y"),
    _row(37, "opq-implicit-dir", r"d/ d/x ‖ d/.wh..wh..opq", r"d/", r"D d/x"),
    _row(38, "opq-lower-is-file", r"d ‖ d/ d/.wh..wh..opq d/y", r"d/ d/y=1", r"C d, A d/y"),
    _row(
        39,
        "opq-mid-then-top",
        r"d/ d/x ‖ d/ d/.wh..wh..opq d/y ‖ d/ d/z",
        r"d/ d/y=1 d/z=2",
        r"A d/z",
    ),
    _row(
        40,
        "opq-and-wh-of-dir",
        r"d/ d/x ‖ .wh.d d/ d/.wh..wh..opq d/y",
        r"d/ d/y=1",
        r"D d/x, A d/y",
    ),
    _row(41, "wh-empty-name", r"a ‖ .wh.", r"ERR invalid whiteout", r""),
    _row(42, "wh-dot", r"d/ d/x ‖ d/.wh..", r"ERR invalid whiteout", r""),
    _row(43, "wh-dotdot", r"d/ d/x ‖ d/.wh...", r"ERR invalid whiteout", r""),
    _row(44, "wh-dotdotdot-name", r"... a ‖ .wh....", r"a=0", r"D ..."),
    _row(45, "wh-of-dotfile", r".baz baz ‖ .wh..baz", r"baz=0", r"D .baz"),
    _row(46, "dot-opq-singular", r"d/ d/.opq d/x ‖ d/ d/.wh..opq", r"d/ d/x=0", r"D d/.opq"),
    _row(47, "meta-wh-wh-foo", r"foo x ‖ .wh..wh.foo", r"foo=0 x=0", r""),
    _row(48, "meta-wh-wh-foo-sub", r"d/ d/foo ‖ d/.wh..wh.foo", r"d/ d/foo=0", r""),
    _row(49, "meta-aufs", r"x ‖ .wh..wh.aufs y", r"x=0 y=1", r"A y"),
    _row(
        50,
        "meta-plnk",
        r"x ‖ .wh..wh.plnk/ .wh..wh.plnk/1.2 y&.wh..wh.plnk/1.2",
        r"x=0 y=1",
        r"A y",
    ),
    _row(51, "meta-orph", r"x ‖ .wh..wh.orph/ y", r"x=0 y=1", r"A y"),
    _row(
        52,
        "wh-is-hardlink-to-aufs",
        r"x z ‖ .wh..wh.aufs .wh.x&.wh..wh.aufs .wh.z&.wh.x",
        r"∅",
        r"D x, D z",
    ),
    _row(53, "wh-is-dir", r"x ‖ .wh.x/", r"∅", r"D x"),
    _row(54, "wh-is-dir-with-child", r"x ‖ .wh.x/ .wh.x/y", r"ERR component below whiteout", r""),
    _row(55, "wh-is-symlink", r"x ‖ .wh.x>q", r"∅", r"D x"),
    _row(56, "wh-nonempty-file", r"x ‖ .wh.x#nonempty", r"∅", r"D x"),
    _row(57, "wh-case-sensitive", r"x ‖ .WH.x", r".WH.x=1 x=0", r"A .WH.x"),
    _row(58, "wh-newline", r"a\nb k ‖ .wh.a\nb", r"k=0", r"D a\nb"),
    _row(59, "wh-nonutf8", r"a\xff\xfe k ‖ .wh.a\xff\xfe", r"k=0", r"D a\xff\xfe"),
    _row(60, "wh-star-glob", r"a* ab ‖ .wh.a*", r"ab=0", r"D a*"),
    _row(61, "wh-name251", r"n*251 k ‖ .wh.n*251", r"k=0", r"D n*251"),
    _row(62, "wh-name252", r"n*252 k ‖ .wh.n*252", r"k=0", r"D n*252"),
    _row(63, "name255", r"n*255 ‖ k", r"k=1 n*255=0", r"A k"),
    _row(64, "hardlink-same-layer", r"a b&a ‖ k", r"a=0 b=0 k=1", r"A k"),
    _row(65, "hardlink-to-lower", r"a ‖ b&a", r"a=0 b=0", r"A b"),
    _row(66, "hardlink-wh-one", r"a b&a ‖ .wh.a", r"b=0", r"D a"),
    _row(67, "hardlink-upper-rewrite-one", r"a b&a ‖ a", r"a=1 b=0", r"C a"),
    _row(68, "dir-mode-changed", r"d/@755 d/x ‖ d/@700", r"d/:700 d/x=0", r"C d"),
    _row(69, "dup-entry-last-wins", r"k ‖ a a>k", r"a>k k=0", r"A a"),
    _row(
        70,
        "abs-and-dot-names",
        r"k ‖ /abs ./rel ./ x//y",
        r"abs=1 k=0 rel=1 x/ x/y=1",
        r"A abs, A rel, A x, A x/y",
    ),
    _row(71, "chardev00-in-layer", r"x y ‖ x!", r"x!c0:0 y=0", r"C x"),
    _row(72, "empty-layer", r"a ‖ (empty)", r"a=0", r""),
    _row(
        73,
        "moby-applywhiteouts",
        r".baz bar/ bar/bax bar/bay/ baz foo/ foo/.abc foo/.bcd/ foo/.bcd/a foo/cde/ foo/cde/def"
        r" foo/cde/efg foo/fgh foobar"
        r" ‖ .bay .wh.baz foo/ foo/.bce foo/.wh..wh..opq foo/cde/ foo/cde/efg"
        r" ‖ .bay .wh..baz .wh.foobar foo/ foo/.abc foo/.wh.cde bar/"
        r" ‖ .abc .wh..wh..opq foobar",
        r".abc=3 foobar=3",
        r"A .abc, D .bay, D bar, D foo, A foobar",
    ),
)
