"""The full-screen browser: layers on the left, the tree they make on the right.

Everything that reads the disk for long (directories, filters, the count of wasted bytes, copies)
runs in threads that are told to stop when nobody waits for them any more; what they find comes
back as a message.

Invariant: the app keeps what is wished for (layer, comparison, kinds, open directories, filter);
the rows on the screen are always made of that by one function, so no order of keys can make them
disagree.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import ClassVar, Final

from rich.cells import cell_len
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Footer, Static
from textual.worker import Worker, get_current_worker

from unionfs.cli.boundary import describe
from unionfs.cli.output import size
from unionfs.errors import ConflictError, NotFoundError, UnionfsError, UsageError, show
from unionfs.explore import words
from unionfs.explore.extract import Extracted, extract
from unionfs.explore.lists import LayerList, RowList, TreeList, fit_end
from unionfs.explore.model import ALL_KINDS, Cancelled, Explorer, Kind, Tick
from unionfs.explore.rows import Rows, build
from unionfs.explore.screens import Busy, Choice, Page, Prompt, Waste
from unionfs.explore.search import Matcher, matcher, search
from unionfs.explore.style import CSS, THEME
from unionfs.explore.visit import find, first_bytes, unshow, verdict
from unionfs.insight.probe import split_path
from unionfs.insight.waste import Report, report

__all__ = ["ExploreApp"]

_PROGRESS: Final = 1000
_KEYS: Final = {
    "a": Kind.ADDED,
    "c": Kind.CHANGED,
    "d": Kind.DELETED,
    "h": Kind.HIDDEN,
    "u": Kind.SAME,
}


def _key(keys: str, action: str, word: str, text: str, display: str | None = None) -> Binding:
    """Return a binding: `word` stands in the last line of the screen if there is one."""
    return Binding(keys, action, word, show=bool(word), key_display=display, tooltip=text)


class ExploreApp(App[int]):
    """The browser over an open `Explorer`."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "unionfs explore"
    CSS = CSS
    BINDINGS: ClassVar[list[BindingType]] = [
        _key("question_mark,f1", "keys", "Help", "show the keys and marks", display="?"),
        _key(
            "slash",
            "filter",
            "Filter",
            "show only paths with a text or regular expression in them",
            display="/",
        ),
        _key("t", "compare", "Compare", "changes of the layer, or all changes since the base"),
        _key("e", "explain", "Explain", "say why the path is visible or not, as `unionfs explain`"),
        _key("w", "waste", "Wasted", "list the paths whose bytes are shipped and not visible"),
        _key("v", "view", "View", "show the beginning of the file"),
        _key("x", "extract", "Extract", "copy the file or tree to a directory, also a deleted one"),
        _key("g", "go", "Go to", "go to a path, links followed"),
        _key("q,ctrl+c", "quit", "Quit", "leave", display="q"),
        *(
            _key(key, f"kind('{key}')", "", f"show or leave out what is {words.KIND_WORDS[kind]}")
            for key, kind in _KEYS.items()
        ),
        _key("asterisk", "everything", "", "open every directory that has something to show"),
        _key("escape", "clear", "", "take the filter away"),
        _key("left_square_bracket", "layer(1)", "", "look at the layer below"),
        _key("right_square_bracket", "layer(-1)", "", "look at the layer above"),
        _key("r", "read", "", "read everything anew"),
        _key("tab", "app.focus_next", "", "go from the layers to the tree and back"),
        _key("ctrl+z", "suspend_process", "", "stop for a while; the shell's `fg` goes on"),
    ]

    class Made(Message):
        """The rows that were asked for."""

        def __init__(self, rows: Rows, path: bytes | None) -> None:
            super().__init__()
            self.rows = rows
            self.path = path

    class Counted(Message):
        """Entries read so far, and the report when that was all."""

        def __init__(self, entries: int, report: Report | None, problem: str = "") -> None:
            super().__init__()
            self.entries = entries
            self.report = report
            self.problem = problem

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
        self._waste_wanted = False
        self._signalled = 0

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Horizontal(id="header"):
            yield Static(Text(show(self.explorer.where.title)), id="title")
            yield Static(Text("reading the layers…"), id="total")
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield LayerList(self.explorer.where.branches, id="layers")
                yield Static(id="details")
            yield TreeList(self.explorer, id="tree")
        yield Static(id="status")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read."""
        self.query_one("#layers").border_title = Content("Layers")
        self.query_one("#layers").border_subtitle = Content("size · wasted")
        self.query_one("#details").border_title = Content("Layer")
        self.query_one(TreeList).focus()
        self._catch_signals()
        self.remake()
        self._count()

    # -- ending ------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """Leave the terminal as it was when a signal ends the program."""
        import asyncio  # noqa: PLC0415  # textual has it loaded

        if self.is_headless:
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._ended, number)

    def _ended(self, number: int) -> None:
        self.exit(128 + number)

    async def action_quit(self) -> None:
        """Stop all work and leave."""
        self.workers.cancel_all()
        self.exit(0)

    def _fatal_error(self) -> None:
        """Leave without textual's traceback: whoever runs the app sees `failure`."""
        self._close_messages_no_wait()

    @property
    def failure(self) -> Exception | None:
        """The defect that ended the app."""
        return self._exception

    # -- the rows ----------------------------------------------------------------------

    def remake(self, path: bytes | None = None) -> None:
        """Make the rows anew, in a thread; the cursor goes to `path` (None: stays)."""
        fits = None
        if self.filter is not None:
            try:
                fits = matcher(self.filter[0], is_regex=self.filter[1])
            except UsageError as exc:
                self._say(str(exc), "error")
                self.filter = None
        self._make(fits, path)

    @work(thread=True, exclusive=True, group="rows")
    def _make(self, fits: Matcher | None, path: bytes | None) -> None:
        lens = self.explorer.lens(self.top, aggregated=self.aggregated)
        kinds, opened = self.kinds, frozenset(self.opened)
        previous = self.query_one(TreeList).rows
        tick = _ticker()
        try:
            if fits is not None:
                rows = search(self.explorer, lens, kinds, fits, tick)
            else:
                rows = build(self.explorer, lens, kinds, opened, previous, tick)
        except Cancelled:
            return
        self.post_message(self.Made(rows, path))

    def on_explore_app_made(self, message: Made) -> None:
        """Show the rows."""
        tree = self.query_one(TreeList)
        tree.change(message.rows, message.path)
        changes = "all changes since the base" if self.aggregated else "changes of the layer"
        title = f"{self._layer_title()} · {changes}"
        if self.filter is not None:
            text, is_regex = self.filter
            shown = f"/{text}/" if is_regex else f"“{text}”"
            title = f"{self._layer_title()} · {show(shown)} · {len(message.rows) - 1} rows"
        tree.border_title = Content(title)
        tree.border_subtitle = Content(self._kinds_shown())
        tree.set_class(self.filter is not None, "filtered")

    def _layer_title(self) -> str:
        named = self.explorer.where.by_number(self.top)
        return named.title[:1].upper() + named.title[1:]

    def _kinds_shown(self) -> str:
        return " ".join(
            f"{kind.value.strip()}{words.KIND_WORDS[kind]}"
            for kind in _KEYS.values()
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
            self.query_one(TreeList).focus()
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
            self._say("a filter shows everything that fits; escape clears it")
            return
        if is_open:
            self.opened.add(path)
        else:
            self.opened.discard(path)
        self.remake()

    def _show_status(self) -> None:
        row = self.query_one(TreeList).current
        if row is None:
            return
        entry = row.folder.entry(row.name)
        status = self.explorer.status(row.folder, row.name)
        line = f"{words.status_line(entry.kind, entry.number, status)} · "
        if row.folder.problem:
            line = f"not all could be read ({row.folder.problem}) · {line}"
        line += fit_end(show(b"/" + row.path), self.size.width - 2 - cell_len(line))
        self.query_one("#status", Static).update(Text(line, no_wrap=True))

    def on_resize(self) -> None:
        """Cut what is as long as its place anew."""
        self.call_after_refresh(self._show_status)
        self.call_after_refresh(self._show_details)

    def _show_details(self) -> None:
        layers = self.query_one(LayerList)
        named = layers.current
        text = Text()
        for label, value in words.details(named, layers.counted.get(named.number)):
            text.append(f"{label:<8}", layers.style_of("dim"))
            width = layers.scrollable_content_region.width - 10
            text.append(fit_end(value, width) if label == "path" else value)
            text.append("\n")
        self.query_one("#details").border_title = Content(named.title.capitalize())
        self.query_one("#details", Static).update(text)

    def _say(self, text: str, severity: str = "information") -> None:
        self.notify(text, severity=severity, markup=False)  # type: ignore[arg-type]  # a Literal there

    # -- counting ----------------------------------------------------------------------

    @work(thread=True, exclusive=True, group="count")
    def _count(self) -> None:
        tick = _ticker()
        entries = 0

        def seen_one() -> None:
            nonlocal entries
            entries += 1
            if entries % _PROGRESS == 0:
                self.post_message(self.Counted(entries, None))
            tick()

        try:
            found = report(self.explorer.where, seen_one)
        except Cancelled:
            return
        except (OSError, UnionfsError) as exc:
            self.post_message(self.Counted(entries, None, _words(exc)))
            return
        self.post_message(self.Counted(entries, found))

    def on_explore_app_counted(self, message: Counted) -> None:
        """Show sizes as far as they are known."""
        total = self.query_one("#total", Static)
        found = message.report
        if message.problem:
            total.update(Text(f"sizes are not known: {message.problem}"))
        elif found is None:
            total.update(Text(f"reading the layers… {message.entries} entries"))
        else:
            self.report = found
            total.update(
                Text(f"{size(found.size)} · wasted {size(found.wasted)} · score {found.score:.4f}")
            )
            layers = self.query_one(LayerList)
            layers.counted = {layer.branch.number: layer for layer in found.layers}
            layers.refresh()
            self._show_details()
            if self._waste_wanted:
                self.action_waste()

    def action_waste(self) -> None:
        """Show the wasted bytes, as soon as they are known."""
        self._waste_wanted = self.report is None
        if self.report is None:
            self._say("the list opens as soon as the layers are read")
        else:
            self.push_screen(Waste(self.report), self._arrive)

    # -- keys --------------------------------------------------------------------------

    def action_compare(self) -> None:
        """Compare with the layer below, or with the base."""
        self.aggregated = not self.aggregated
        self.remake()

    def action_kind(self, key: str) -> None:
        """Show a kind of change, or leave it out."""
        self.kinds ^= {_KEYS[key]}
        self.remake()

    def action_layer(self, rows: int) -> None:
        """Look at the next layer."""
        self.query_one(LayerList).cursor += rows

    def action_everything(self) -> None:
        """Show every name of the kinds that are shown."""
        self.filter = ("", False)
        self.remake()

    def action_clear(self) -> None:
        """Take the filter away."""
        if self.filter is not None:
            self.filter = None
            row = self.query_one(TreeList).current
            if row is not None:
                self._open_to(row.path)
            self.remake()

    def action_read(self) -> None:
        """Forget what was read: a branch may have changed."""
        self.explorer.forget()
        self.query_one(TreeList).rows = None
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

    def action_keys(self) -> None:
        """Show all keys."""
        lines = [(f"{key:<12}{text}", "") for key, text in key_table()]
        marks = [
            (f"{kind.value.strip() or 'none':<12}{word}", word)
            for kind, word in words.KIND_WORDS.items()
        ]
        self.push_screen(Page("Keys and marks", [*lines, ("", ""), *marks]))

    def action_go(self) -> None:
        """Ask for a path."""
        row = self.query_one(TreeList).current
        path = row.path if row is not None else b""
        self.push_screen(
            Prompt("Go to path", show(b"/" + path), hint=r"escapes such as \xff are understood"),
            self._gone,
        )

    def _gone(self, answer: tuple[str, bool] | None) -> None:
        if answer is not None and answer[0]:
            self._arrive(b"/".join(split_path(unshow(answer[0]))))

    def _arrive(self, path: bytes | None) -> None:
        if path is not None:
            self._find(path)

    @work(thread=True, exclusive=True, group="find")
    def _find(self, path: bytes) -> None:
        lens = self.explorer.lens(self.top, aggregated=self.aggregated)
        try:
            found = find(self.explorer, lens, path)
        except NotFoundError as exc:
            self._later(self._say, str(exc), "warning")
            return
        self._later(self._show_path, *found)

    def _show_path(self, path: bytes, kinds: frozenset[Kind]) -> None:
        self.filter = None
        self.kinds |= kinds
        self._open_to(path)
        self.query_one(TreeList).focus()
        self.remake(path)

    def _open_to(self, path: bytes) -> None:
        while path := path.rpartition(b"/")[0]:
            self.opened.add(path)

    def action_explain(self) -> None:
        """Explain the path under the cursor."""
        row = self.query_one(TreeList).current
        if row is not None:
            self._explain(row.path)

    @work(thread=True, exclusive=True, group="page")
    def _explain(self, path: bytes) -> None:
        try:
            lines = verdict(self.explorer.where, self.top, path)
        except (OSError, UnionfsError) as exc:
            self._later(self._say, _words(exc), "error")
            return
        self._later(self.push_screen, Page(show(b"/" + path), lines))

    def action_view(self) -> None:
        """Show the beginning of a file."""
        row = self.query_one(TreeList).current
        if row is None:
            return
        try:
            data = first_bytes(self.explorer, row.folder, row.name)
        except (OSError, UnionfsError) as exc:
            self._say(_words(exc), "warning")
            return
        lines = [(line, "") for line in words.content(data)]
        self.push_screen(Page(show(b"/" + row.path), lines))

    # -- extracting --------------------------------------------------------------------

    def action_extract(self) -> None:
        """Ask where to copy what is under the cursor."""
        row = self.query_one(TreeList).current
        if row is None:
            return
        number = self.explorer.source(row.folder, row.name)
        path = row.path

        def chosen(answer: tuple[str, bool] | None) -> None:
            if answer is not None and answer[0]:
                directory = os.path.abspath(os.path.expanduser(unshow(answer[0])))
                self._start(number, path, directory, replace=False)

        name = show(b"/" + path)
        self.push_screen(Prompt(f"Extract {name} into the directory", show(os.getcwdb())), chosen)

    def _start(self, number: int, path: bytes, directory: bytes, *, replace: bool) -> None:
        done = Extracted()
        worker: Worker[None] = self._extract(number, path, directory, done, replace=replace)
        self.push_screen(
            Busy(
                f"Extracting {show(b'/' + path)}",
                lambda: f"{done.entries} entries, {size(done.size)}",
                worker.cancel,
            )
        )

    @work(thread=True, group="extract")
    def _extract(
        self, number: int, path: bytes, directory: bytes, done: Extracted, *, replace: bool
    ) -> None:
        branches = self.explorer.branches(number)
        try:
            extract(branches, path, directory, replace=replace, tick=_ticker(), done=done)
        except Cancelled:
            self._later(self._ended_extract, "given up; nothing was left behind", "information")
        except ConflictError as exc:
            self._later(self._ask_to_replace, number, path, directory, f"{exc}. Replace it?")
        except (OSError, UnionfsError) as exc:
            self._later(self._ended_extract, _words(exc), "error")
        else:
            text = f"{done.entries} entries, {size(done.size)} in {show(done.path)}"
            if done.notes:
                self._later(self._ended_extract, f"{text}; {done.notes}", "warning")
            else:
                self._later(self._ended_extract, text, "information")

    def _ended_extract(self, text: str, severity: str) -> None:
        if isinstance(self.screen, Busy):
            self.pop_screen()
        self._say(text, severity)

    def _ask_to_replace(self, number: int, path: bytes, directory: bytes, question: str) -> None:
        if isinstance(self.screen, Busy):
            self.pop_screen()

        def answered(answer: str | None) -> None:
            if answer is not None:
                self._start(number, path, directory, replace=True)

        self.push_screen(Choice(question, [("r", "replace")]), answered)

    # -- threads -----------------------------------------------------------------------

    class Later(Message):
        """A call that a thread leaves to the app."""

        def __init__(self, call: Callable[[], object]) -> None:
            super().__init__()
            self.call = call

    def _later(self, function: Callable[..., object], *arguments: object) -> None:
        self.post_message(self.Later(lambda: function(*arguments)))

    def on_explore_app_later(self, message: Later) -> None:
        """Do what a thread wants done."""
        message.call()


def _ticker() -> Tick:
    """Return what a thread calls to learn that nobody waits for it any more."""
    worker = get_current_worker()

    def tick() -> None:
        if worker.is_cancelled:
            raise Cancelled

    return tick


def _words(error: OSError | UnionfsError) -> str:
    return describe(error) if isinstance(error, OSError) else str(error)


_KEY_NAMES: Final = {
    "question_mark": "?",
    "slash": "/",
    "asterisk": "*",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "escape": "esc",
    "pageup": "page up",
    "pagedown": "page down",
}


def key_table() -> list[tuple[str, str]]:
    """Return the keys and what they do, as help and documentation show them."""
    found = []
    for binding in (*ExploreApp.BINDINGS, *TreeList.BINDINGS, *RowList.BINDINGS):
        assert isinstance(binding, Binding)  # noqa: S101  # for the type checker
        keys = (
            _KEY_NAMES.get(key, key).replace("ctrl+", "ctrl-") for key in binding.key.split(",")
        )
        found.append((" ".join(keys), binding.tooltip))
    return found
