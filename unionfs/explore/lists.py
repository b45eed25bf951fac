"""Lists that draw only the rows on the screen, whatever their number: layers, tree, any other.

Invariant: a row is asked for when it is drawn and not before; what is drawn is segments of plain
text with a style, never markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from unionfs.cli.output import size
from unionfs.errors import show
from unionfs.explore import words
from unionfs.explore.keys import ROW_KEYS, TREE_KEYS
from unionfs.explore.model import Explorer, Kind
from unionfs.explore.rows import Row, Rows
from unionfs.explore.search import shown_name
from unionfs.insight.waste import LayerWaste
from unionfs.insight.where import NamedBranch

__all__ = ["LayerList", "RowList", "TextList", "TreeList", "fit", "fit_end"]

#: From this width on, the tree has room for modes and owners.
_WIDE: Final = 64
_FACTS: Final = 22
_SIZE: Final = 7
_GUIDE: Final = "│ "


def fit(text: str, width: int) -> str:
    """Return a text cut or filled up to a number of cells."""
    if cell_len(text) <= width:
        return set_cell_size(text, max(width, 0))
    return set_cell_size(text, max(width - 1, 0)) + "…" if width > 0 else ""


def fit_end(text: str, width: int) -> str:
    """Return a text of at most so many cells, cut at its beginning: ends tell paths apart."""
    if cell_len(text) <= width:
        return text
    while cell_len(text) >= max(width, 1):
        text = text[max(1, (cell_len(text) - width) // 2) :]
    return f"…{text}" if width > 0 else ""


class RowList(ScrollView, can_focus=True):
    """Rows with a cursor. `drawn` counts the rows that were drawn."""

    BINDINGS: ClassVar[list[BindingType]] = ROW_KEYS
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *("row--cursor", "row--dim", "row--guide", "row--strong", "row--bad", "row--link"),
        *(f"row--{word}" for word in words.KIND_WORDS.values()),
    }
    DEFAULT_CSS = """
    RowList {
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        scrollbar-background: $surface;
        scrollbar-background-hover: $surface;
        scrollbar-background-active: $surface;
        scrollbar-color: $border;
        scrollbar-color-hover: $primary;
        scrollbar-color-active: $primary;
        & > .row--dim { color: $dim; }
        & > .row--guide { color: $guide; }
        & > .row--strong { text-style: bold; }
        & > .row--bad { color: $error; }
        & > .row--link { color: $secondary; }
        & > .row--added { color: $success; }
        & > .row--changed { color: $warning; }
        & > .row--deleted { color: $error; }
        & > .row--hidden { color: $accent; text-style: italic; }
        & > .row--cursor { background: $cursor-blurred; }
        &:focus > .row--cursor { background: $cursor; text-style: bold; }
        &:nocolor > .row--cursor { text-style: underline; }
        &:nocolor:focus > .row--cursor { text-style: reverse; }
    }
    """

    cursor: reactive[int] = reactive(0)
    has_cursor = True

    class Moved(Message):
        """The cursor is on another row, or the row under it is another."""

        def __init__(self, sender: RowList) -> None:
            super().__init__()
            self.list = sender

        @property
        def control(self) -> RowList:
            """The list."""
            return self.list

    class Chosen(Moved):
        """Enter or a click on the row of the cursor."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  # textual's word
        super().__init__(id=id)
        self.drawn = 0
        self._styles: dict[str, Style] = {}

    def count(self) -> int:
        """Return the number of rows."""
        raise NotImplementedError

    def row(self, at: int, width: int) -> list[Segment]:
        """Return a row's text."""
        raise NotImplementedError

    def renew(self, cursor: int = 0) -> None:
        """Show other rows with the cursor on one of them."""
        self.virtual_size = Size(0, self.count())
        self.set_reactive(RowList.cursor, max(0, min(cursor, self.count() - 1)))
        self._follow()
        self.refresh()
        self.post_message(self.Moved(self))

    def style_of(self, name: str) -> Style:
        """Return the style of a component, without a background of its own."""
        found = self._styles.get(name)
        if found is None:
            found = self.get_component_rich_style(f"row--{name}", partial=True)
            self._styles[name] = found
        return found

    def notify_style_update(self) -> None:
        """Forget styles that the theme or the focus changed."""
        self._styles.clear()
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        """Draw a line of the screen."""
        width = self.scrollable_content_region.width
        at = y + self.scroll_offset.y
        if at >= self.count():
            return Strip.blank(width, self.rich_style)
        self.drawn += 1
        row = [Segment(words.clean(text), style) for text, style, _ in self.row(at, width)]
        strip = Strip(row).crop_extend(0, width, None)
        base = self.rich_style
        if self.has_cursor and at == self.cursor:
            # The cursor's colours under those of the text.
            base += self.style_of("cursor")
        return strip.apply_style(base)

    def validate_cursor(self, cursor: int) -> int:
        """Keep the cursor on a row."""
        return max(0, min(cursor, self.count() - 1))

    def watch_cursor(self, before: int, now: int) -> None:
        """Follow the cursor."""
        self.refresh_line(before)
        self.refresh_line(now)
        self._follow()
        self.post_message(self.Moved(self))

    def _follow(self) -> None:
        first, height = self.scroll_offset.y, self.scrollable_content_region.height
        if self.cursor < first:
            self.scroll_to(y=self.cursor, animate=False, force=True)
        elif height and self.cursor >= first + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, force=True)

    def on_resize(self) -> None:
        """Keep the cursor in sight."""
        self._follow()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse is; a second time chooses."""
        offset = event.get_content_offset(self)
        if offset is None or not offset.y + self.scroll_offset.y < self.count():
            return
        at = offset.y + self.scroll_offset.y
        if at == self.cursor:
            self.action_choose()
        self.cursor = at

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self.cursor += rows

    def action_page(self, pages: int) -> None:
        """Move the cursor by screens."""
        self.cursor += pages * max(1, self.scrollable_content_region.height - 1)

    def action_end(self, last: bool) -> None:  # noqa: FBT001  # a word of the key table
        """Go to the first or last row."""
        self.cursor = self.count() - 1 if last else 0

    def action_choose(self) -> None:
        """Tell that the row is wanted."""
        if self.count():
            self.post_message(self.Chosen(self))


class TextList(RowList):
    """Rows that are ready as text, each with the name of a style; keys scroll them."""

    has_cursor = False

    def __init__(
        self,
        rows: Sequence[tuple[str, str]],
        *,
        id: str | None = None,  # noqa: A002  # see RowList
    ) -> None:
        super().__init__(id=id)
        self.rows = rows

    def count(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def row(self, at: int, width: int) -> list[Segment]:
        """Return a row's text."""
        text, style = self.rows[at]
        return [Segment(fit(text, width), self.style_of(style) if style else None)]

    def on_mount(self) -> None:
        """Show what there is."""
        self.renew()

    def action_move(self, rows: int) -> None:
        """Scroll."""
        self.scroll_to(y=self.scroll_offset.y + rows, animate=False)

    def action_page(self, pages: int) -> None:
        """Scroll by screens."""
        self.action_move(pages * max(1, self.scrollable_content_region.height - 1))

    def action_end(self, last: bool) -> None:  # noqa: FBT001  # see RowList
        """Scroll to the beginning or end."""
        self.scroll_to(y=self.count() if last else 0, animate=False)


class LayerList(RowList):
    """The branches, top first, with their bytes as soon as they are counted."""

    def __init__(self, branches: Sequence[NamedBranch], *, id: str | None = None) -> None:  # noqa: A002  # see RowList
        super().__init__(id=id)
        self.branches = branches
        self.counted: dict[int, LayerWaste] = {}

    def count(self) -> int:
        """Return the number of branches."""
        return len(self.branches)

    @property
    def current(self) -> NamedBranch:
        """The branch under the cursor."""
        return self.branches[self.cursor]

    def row(self, at: int, width: int) -> list[Segment]:
        """Return number, bytes, wasted bytes and command."""
        named = self.branches[at]
        counted = self.counted.get(named.number)
        number = "rw" if named.is_rw else str(named.number)
        digits = max(2, len(str(len(self.branches))))
        ships = size(counted.size) if counted else "…"
        wasted = size(counted.wasted) if counted and counted.wasted else "·" if counted else "…"
        left = f" {number:>{digits}} {ships:>{_SIZE}}"
        middle = f" {wasted:>{_SIZE}} "
        bad = counted is not None and bool(counted.wasted)
        return [
            Segment(left, self.style_of("strong") if at == self.cursor else None),
            Segment(middle, self.style_of("bad" if bad else "dim")),
            Segment(fit(words.command(named), width - len(left) - len(middle))),
        ]

    def on_mount(self) -> None:
        """Show what there is."""
        self.renew()


class TreeList(RowList):
    """The open part of the tree."""

    BINDINGS: ClassVar[list[BindingType]] = TREE_KEYS

    class Toggled(RowList.Moved):
        """A directory shall be opened or closed."""

        def __init__(self, sender: RowList, path: bytes, *, is_open: bool) -> None:
            super().__init__(sender)
            self.path = path
            self.is_open = is_open

    def __init__(self, explorer: Explorer, *, id: str | None = None) -> None:  # noqa: A002  # see RowList
        super().__init__(id=id)
        self.explorer = explorer
        self.rows: Rows | None = None

    def count(self) -> int:
        """Return the number of rows."""
        return len(self.rows) if self.rows is not None else 0

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if self.rows is not None else None

    def change(self, rows: Rows, path: bytes | None) -> None:
        """Show other rows, with the cursor on a path (None: where it is) or what is left of it."""
        if path is None:
            path = self.current.path if self.current is not None else b""
        self.rows = rows
        self.renew(rows.nearest(path))

    def row(self, at: int, width: int) -> list[Segment]:
        """Return attributes where they have room, size, mark, and the name at its depth."""
        assert self.rows is not None  # noqa: S101  # there are no rows to draw without it
        row = self.rows[at]
        entry = row.folder.entry(row.name)
        status = self.explorer.status(row.folder, row.name)
        dim = self.style_of("dim")
        kind = self.style_of(words.KIND_WORDS[entry.kind]) if entry.kind is not Kind.SAME else None
        segments = [Segment(f" {entry.kind.value} ", kind)]
        if width >= _WIDE:
            segments.append(Segment(fit(words.facts(status), _FACTS), dim))
        bytes_in = row.folder.sums.get(row.name)
        weight = words.size_of(status) if bytes_in is None else size(bytes_in)
        segments.append(Segment(f"{weight:>{_SIZE}}  ", dim))
        segments.append(Segment(_guides(row.depth - 1, width), self.style_of("guide")))
        icon = ("▾ " if row.is_open else "▸ ") if entry.opens else "  "
        segments.append(Segment(icon, kind or dim))
        name = shown_name(row.name) + ("/" if entry.is_dir else "")
        strong = self.style_of("strong") if entry.is_dir else Style.null()
        segments.append(Segment(name, strong + kind if kind else strong))
        if not isinstance(status, str) and _is_link(status.mode):
            target = show(self.explorer.target(row.folder, row.name))
            segments.append(Segment(f" → {target}", self.style_of("link")))
        return _cut(segments, width)

    def action_open(self) -> None:
        """Open the directory, or go to its first entry."""
        row = self.current
        if row is None or not row.folder.entry(row.name).opens:
            return
        if row.is_open:
            self.cursor += 1
        else:
            self.post_message(self.Toggled(self, row.path, is_open=True))

    def action_shut(self) -> None:
        """Close the directory, or go to its parent."""
        row = self.current
        if row is None or self.rows is None or not row.path:
            return
        if row.is_open:
            self.post_message(self.Toggled(self, row.path, is_open=False))
        else:
            self.cursor = self.rows.nearest(row.path.rpartition(b"/")[0])


def _guides(depth: int, width: int) -> str:
    """Return the lines before a name: of deep ones the last, so that the name stays in sight."""
    most = max(width // 6, 1)
    return _GUIDE * max(depth, 0) if depth <= most else f"…{_GUIDE[1:]}{_GUIDE * (most - 1)}"


def _is_link(mode: int) -> bool:
    return mode & 0o170000 == 0o120000  # noqa: PLR2004  # S_IFLNK


def _cut(segments: list[Segment], width: int) -> list[Segment]:
    """Return segments that fill no more than `width` cells, with a mark where they were cut."""
    left = width
    kept = []
    for segment in segments:
        length = cell_len(segment.text)
        if length > left:
            kept.append(Segment(fit(segment.text, left), segment.style))
            return kept
        kept.append(segment)
        left -= length
    return kept
