"""The full-screen browser: layers on the left, the tree they make on the right.

Everything that reads the disk for long (directories, filters, the count of wasted bytes, copies)
runs in threads that are told to stop when nobody waits for them any more; what they find comes
back as a message.

Invariant: the app keeps what is wished for (layer, comparison, kinds, open directories, filter);
the rows on the screen are always made of that by one function, so no order of keys can make them
disagree.
"""

from __future__ import annotations

from typing import ClassVar, Final

from rich.cells import cell_len
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Footer, Static

from unionfs.cli.output import size
from unionfs.errors import NotFoundError, UnionfsError, UsageError, show
from unionfs.explore import words
from unionfs.explore.base import error_words, ticker
from unionfs.explore.keys import APP_KEYS, KIND_KEYS
from unionfs.explore.lists import LayerList, RowList, TreeList, fit_end
from unionfs.explore.messages import Counted, Made
from unionfs.explore.model import ALL_KINDS, Cancelled, Explorer, Kind, Tick
from unionfs.explore.pages import PagesApp
from unionfs.explore.rows import Row, Rows, build
from unionfs.explore.screens import Prompt, Waste, wrapped
from unionfs.explore.search import Matcher, matcher, search
from unionfs.explore.style import CSS, THEME
from unionfs.explore.visit import find, unshow
from unionfs.insight.probe import split_path
from unionfs.insight.waste import PathWaste, Report, report

__all__ = ["ExploreApp"]

_PROGRESS: Final = 1000
#: Width of the labels of a layer's details, and lines that one of them may take.
_LABEL: Final = 8
_LINES: Final = 3


class ExploreApp(PagesApp):
    """The browser over an open `Explorer`."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "unionfs explore"
    CSS = CSS
    BINDINGS: ClassVar[list[BindingType]] = APP_KEYS

    def __init__(self, explorer: Explorer, *, color: bool = True) -> None:
        super().__init__(ansi_color=None if color else True)
        self.register_theme(THEME)
        self.theme = THEME.name
        self.explorer = explorer
        self.top = explorer.top
        self.aggregated = False
        self.kinds = ALL_KINDS - {Kind.HIDDEN}
        self.opened: set[bytes] = set()
        self.filter: tuple[str, bool] | None = None
        self.report: Report | None = None
        # Kept here because a query would ask the screen on top, which may be another.
        self.layers = LayerList(explorer.where.branches, id="layers")
        self.files = TreeList(explorer, id="tree")
        self._details = Static(id="details")
        self._total = Static(Text("reading the layers…"), id="total")
        self._status = Static(id="status")
        self._waste_wanted = False
        self._told: set[bytes] = set()

    def compose(self) -> ComposeResult:
        """Put the widgets together."""
        with Horizontal(id="header"):
            yield Static(Text(show(self.explorer.where.title)), id="title")
            yield self._total
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield self.layers
                yield self._details
            yield self.files
        yield self._status
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read."""
        self.layers.border_title = Content("Layers")
        self.layers.border_subtitle = Content("size · wasted")
        self.files.focus()
        self.catch_signals()
        self.remake()
        self._count()

    def current_row(self) -> Row | None:
        """Return the row under the cursor of the tree."""
        return self.files.current

    def redraw(self) -> None:
        """Draw the rows of the tree again."""
        self.files.refresh()

    # -- the rows ----------------------------------------------------------------------

    def remake(self, path: bytes | None = None) -> None:
        """Make the rows anew, in a thread; the cursor goes to `path` (None: stays)."""
        fits = None
        if self.filter is not None:
            try:
                fits = matcher(self.filter[0], is_regex=self.filter[1])
            except UsageError as exc:
                self.say(str(exc), "error")
                self.filter = None
        self._make(fits, path)

    @work(thread=True, exclusive=True, group="rows")
    def _make(self, fits: Matcher | None, path: bytes | None) -> None:
        lens = self.explorer.lens(self.top, aggregated=self.aggregated)
        kinds, opened = self.kinds, frozenset(self.opened)
        previous = self.files.rows
        tick = self._telling(ticker()) if fits is not None else ticker()
        try:
            if fits is not None:
                rows = search(self.explorer, lens, kinds, fits, tick)
            else:
                rows = build(self.explorer, lens, kinds, opened, previous, tick)
        except Cancelled:
            return
        self.post_message(Made(rows, path))

    def _telling(self, tick: Tick) -> Tick:
        """Return a tick that also says how many directories were searched."""
        searched = 0

        def telling() -> None:
            nonlocal searched
            searched += 1
            if searched % _PROGRESS == 0:
                text = Content(f"searching… {searched} directories")
                self.later(setattr, self.files, "border_subtitle", text)
            tick()

        return telling

    def on_made(self, message: Made) -> None:
        """Show the rows."""
        files = self.files
        files.change(message.rows, message.path)
        title = self._layer_title()
        if self.filter is None:
            title += (
                " · all changes since the base" if self.aggregated else " · changes of the layer"
            )
        else:
            text, is_regex = self.filter
            shown = f"/{text}/" if is_regex else f"“{text}”" if text else "everything"
            title += " since the base" if self.aggregated else ""
            title += f" · {show(shown)} · {words.counted(len(message.rows) - 1, 'row')}"
        files.border_title = Content(title)
        files.border_subtitle = Content(self._kinds_shown())
        files.set_class(self.filter is not None, "filtered")
        self._tell_problems(message.rows)

    def _tell_problems(self, rows: Rows) -> None:
        """Say which directories could not be read, each once."""
        found = {folder.path: folder.problem for folder in rows.folders() if folder.problem}
        fresh = {path: text for path, text in found.items() if path not in self._told}
        self._told.update(fresh)
        for path, text in fresh.items():
            more = f" (and {len(fresh) - 1} more directories)" if len(fresh) > 1 else ""
            self.say(f"{show(b'/' + path)}: {text}{more}", "warning")
            break

    def _layer_title(self) -> str:
        named = self.explorer.where.by_number(self.top)
        return named.title[:1].upper() + named.title[1:]

    def _kinds_shown(self) -> str:
        return " ".join(
            f"{kind.value.strip()}{words.KIND_WORDS[kind]}"
            for kind in KIND_KEYS.values()
            if kind in self.kinds
        )

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        """Say what is under the cursor, or show another layer."""
        if isinstance(message.list, LayerList):
            named = message.list.current
            self._show_details()
            if named.number != self.top:
                self.top = named.number
                self.remake()
        elif isinstance(message.list, TreeList):
            self._show_status()

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        """Open or close a directory; look at a layer's tree."""
        if isinstance(message.list, LayerList):
            self.files.focus()
            return
        if not isinstance(message.list, TreeList):
            return
        row = message.list.current
        if row is None or not row.path:
            return
        if row.folder.entry(row.name).opens:
            self._toggle(row.path, is_open=not row.is_open)
        else:
            self.action_explain()

    def on_tree_list_toggled(self, message: TreeList.Toggled) -> None:
        """Open or close a directory."""
        self._toggle(message.path, is_open=message.is_open)

    def _toggle(self, path: bytes, *, is_open: bool) -> None:
        if self.filter is not None:
            self.say("a filter shows everything that fits; escape clears it")
            return
        if is_open:
            self.opened.add(path)
        else:
            self.opened.discard(path)
        self.remake()

    def _show_status(self) -> None:
        row = self.current_row()
        if row is None:
            return
        entry = row.folder.entry(row.name)
        status = self.explorer.status(row.folder, row.name)
        line = f"{words.status_line(entry.kind, entry.number, status)} · "
        if row.folder.problem:
            line = f"not all could be read ({row.folder.problem}) · {line}"
        line += fit_end(show(b"/" + row.path), self.size.width - 2 - cell_len(line))
        self._status.update(Text(line, no_wrap=True))

    def on_resize(self) -> None:
        """Cut what is as long as its place anew."""
        self.call_after_refresh(self._show_status)
        self.call_after_refresh(self._show_details)

    def _show_details(self) -> None:
        named = self.layers.current
        width = self.layers.scrollable_content_region.width - 2
        dim = self.layers.style_of("dim")
        text = Text()
        for label, value in words.details(named, self.layers.counted.get(named.number)):
            room = max(width - _LABEL, 1)
            lines = [fit_end(value, room)] if label == "path" else wrapped(value, room)
            for at, line in enumerate(lines[:_LINES]):
                text.append(f"{'' if at else label:<{_LABEL}}", dim)
                text.append(f"{line.strip()}\n")
        self._details.border_title = Content(named.title.capitalize())
        self._details.update(text)

    # -- counting ----------------------------------------------------------------------

    @work(thread=True, exclusive=True, group="count")
    def _count(self) -> None:
        tick = ticker()
        entries = 0

        def seen_one() -> None:
            nonlocal entries
            entries += 1
            if entries % _PROGRESS == 0:
                self.post_message(Counted(entries, None))
            tick()

        try:
            found = report(self.explorer.where, seen_one)
        except Cancelled:
            return
        except (OSError, UnionfsError) as exc:
            self.post_message(Counted(entries, None, error_words(exc)))
            return
        self.post_message(Counted(entries, found))

    def on_counted(self, message: Counted) -> None:
        """Show sizes as far as they are known."""
        found = message.report
        if message.problem:
            self._total.update(Text(f"sizes are not known: {message.problem}"))
        elif found is None:
            self._total.update(Text(f"reading the layers… {message.entries} entries"))
        else:
            self.report = found
            self._total.update(
                Text(f"{size(found.size)} · wasted {size(found.wasted)} · score {found.score:.4f}")
            )
            self.layers.counted = {layer.branch.number: layer for layer in found.layers}
            self.layers.refresh()
            self._show_details()
            if self._waste_wanted and len(self.screen_stack) == 1:
                self.action_waste()

    def action_waste(self) -> None:
        """Show the wasted bytes, as soon as they are known."""
        self._waste_wanted = self.report is None
        if self.report is None:
            self.say("the list opens as soon as the layers are read")
        else:
            self.push_screen(Waste(self.report), self._to_waste)

    def _to_waste(self, item: PathWaste | None) -> None:
        if item is None:
            return
        if min(item.layers) > self.top:  # not yet there in the layer looked at
            self.top = self.explorer.top
            self.layers.cursor = 0
        self._find(item.path)

    # -- keys --------------------------------------------------------------------------

    def action_compare(self) -> None:
        """Compare with the layer below, or with the base."""
        self.aggregated = not self.aggregated
        self.remake()

    def action_kind(self, key: str) -> None:
        """Show a kind of change, or leave it out."""
        self.kinds ^= {KIND_KEYS[key]}
        self.remake()

    def action_layer(self, rows: int) -> None:
        """Look at the next layer."""
        self.layers.cursor += rows

    def action_everything(self) -> None:
        """Show every name of the kinds that are shown."""
        self.filter = ("", False)
        self.remake()

    def action_clear(self) -> None:
        """Take the filter away."""
        if self.filter is not None:
            self.filter = None
            row = self.current_row()
            if row is not None:
                self._open_to(row.path)
            self.remake()

    def action_read(self) -> None:
        """Forget what was read: a branch may have changed."""
        self.explorer.forget()
        self._told.clear()
        self.files.rows = None
        self.report = None
        self.remake()
        self._count()

    def action_filter(self) -> None:
        """Ask for a filter."""
        text, is_regex = self.filter or ("", False)
        self.push_screen(
            Prompt("Filter paths", text, is_regex=is_regex, hint="empty: no filter"),
            self._filtered,
        )

    def _filtered(self, answer: tuple[str, bool] | None) -> None:
        if answer is not None:
            self.filter = answer if answer[0] else None
            self.remake()

    def action_go(self) -> None:
        """Ask for a path."""
        row = self.current_row()
        path = row.path if row is not None else b""
        self.push_screen(
            Prompt("Go to path", show(b"/" + path), hint=r"escapes such as \xff are understood"),
            self._gone,
        )

    def _gone(self, answer: tuple[str, bool] | None) -> None:
        if answer is not None and answer[0]:
            self._find(b"/".join(split_path(unshow(answer[0]))))

    @work(thread=True, exclusive=True, group="find")
    def _find(self, path: bytes) -> None:
        lens = self.explorer.lens(self.top, aggregated=self.aggregated)
        try:
            found = find(self.explorer, lens, path)
        except NotFoundError as exc:
            self.later(self.say, str(exc), "warning")
            return
        self.later(self._show_path, *found)

    def _show_path(self, path: bytes, kinds: frozenset[Kind]) -> None:
        self.filter = None
        self.kinds |= kinds
        self._open_to(path)
        self.files.focus()
        self.remake(path)

    def _open_to(self, path: bytes) -> None:
        while path := path.rpartition(b"/")[0]:
            self.opened.add(path)
