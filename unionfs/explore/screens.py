"""What opens above the browser: help, texts, the list of wasted bytes, questions, progress.

Invariant: a screen returns a value and does nothing itself; texts are never read as markup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.text import Text
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static

from unionfs.cli.output import size
from unionfs.errors import show
from unionfs.explore.lists import RowList, TextList, fit, fit_end
from unionfs.insight.waste import PathWaste, Report

_T = TypeVar("_T")

__all__ = ["Busy", "Choice", "Page", "Prompt", "Waste", "wrapped"]

_COPIES: Final = 7
_LAYERS: Final = 8


def wrapped(line: str, width: int) -> list[str]:
    """Return a line broken, at blanks where there are any, so that no part has more cells.

    Parts after the first are indented below it.
    """
    indent = " " * min(len(line) - len(line.lstrip()) + 2, width // 2)
    found = []
    while cell_len(line) > width:
        taken = len(set_cell_size(line, width).rstrip())
        blank = line.rfind(" ", len(indent) + 1, taken + 1)
        taken = blank if blank > 0 else max(taken, len(indent) + 1)
        found.append(line[:taken].rstrip())
        line = indent + line[taken:].lstrip()
    return [*found, line]


class _Modal(ModalScreen[_T]):
    """A screen that closes once: a key that comes while it closes finds nothing to close."""

    _dismissed = False

    def dismiss(self, result: _T | None = None) -> AwaitComplete:
        """Close with a result."""
        if self._dismissed:
            return AwaitComplete()
        self._dismissed = True
        return super().dismiss(result)


class Page(_Modal[None]):
    """Lines of text in a box. Escape, q or enter close it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,ctrl+c", "dismiss(None)", "Close", key_display="esc"),
    ]

    def __init__(self, title: str, lines: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title = title
        self._lines = lines
        self._list = TextList([])

    def compose(self) -> ComposeResult:
        """Put the widgets together."""
        with Vertical(classes="box") as box:
            box.border_title = Content(self._title)
            yield self._list
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Break the lines once the width is known."""
        self.call_after_refresh(self._fill)

    def on_resize(self) -> None:
        """Break them anew."""
        self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        width = self._list.scrollable_content_region.width - 2
        if width > 0:
            self._list.rows = [
                (f" {part}", style) for text, style in self._lines for part in wrapped(text, width)
            ]
            self._list.renew(self._list.cursor)


class _WasteList(RowList):
    """Paths with bytes nobody sees, the most wasteful first."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report

    def count(self) -> int:
        """Return the number of paths."""
        return len(self.report.paths)

    def row(self, at: int, width: int) -> list[Segment]:
        """Return bytes, copies, layers and path."""
        item = self.report.paths[at]
        layers = ",".join(map(str, item.layers))
        left = f" {size(item.size):>8}"
        middle = f" {item.count:>{_COPIES}}  {fit(layers, _LAYERS)} "
        return [
            Segment(left, self.style_of("bad")),
            Segment(middle, self.style_of("dim")),
            Segment(fit_end(show(b"/" + item.path), width - len(left) - len(middle))),
        ]

    def on_mount(self) -> None:
        """Show what there is."""
        self.renew()


class Waste(_Modal[PathWaste | None]):
    """The list of wasted bytes; returns the one to go to."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,w,ctrl+c", "dismiss(None)", "Close", key_display="esc"),
        Binding("enter", "go", "Go to", show=True),
    ]

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._list = _WasteList(report)

    def compose(self) -> ComposeResult:
        """Put the widgets together."""
        report = self._report
        with Vertical(classes="box") as box:
            box.border_title = Content(
                f"Wasted: {size(report.wasted)} of {size(report.size)}, score {report.score:.4f}"
            )
            box.border_subtitle = Content(f"{len(report.paths)} paths")
            yield Static(
                Text(f" {'BYTES':>8} {'COPIES':>{_COPIES}}  {'LAYERS':<{_LAYERS}} PATH"),
                classes="heading",
            )
            yield self._list
        yield Footer(compact=True, show_command_palette=False)

    def on_row_list_chosen(self) -> None:
        """Go to the path of the row."""
        self.action_go()

    def action_go(self) -> None:
        """Return the row under the cursor."""
        if self._list.count():
            self.dismiss(self._report.paths[self._list.cursor])


class Prompt(_Modal[tuple[str, bool] | None]):
    """One line of input; returns it and whether it is a regular expression."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", key_display="esc"),
    ]

    def __init__(
        self, title: str, value: str = "", *, is_regex: bool | None = None, hint: str = ""
    ) -> None:
        super().__init__()
        self._title = title
        self._value = value
        self._hint = hint
        self._is_regex = is_regex
        self._box = Vertical(classes="box line")
        if is_regex is not None:
            self._bindings.bind("ctrl+r", "regex", "Text or regex")

    def compose(self) -> ComposeResult:
        """Put the widgets together."""
        with self._box:
            # Selected, so that what is typed takes its place.
            yield Input(self._value, select_on_focus=True)
            if self._hint:
                yield Static(Text(self._hint), classes="hint")
        self._say_kind()
        yield Footer(compact=True, show_command_palette=False)

    def _say_kind(self) -> None:
        kind = {None: "", True: " (regular expression)", False: " (text)"}[self._is_regex]
        self._box.border_title = Content(self._title + kind)

    def action_regex(self) -> None:
        """Switch between text and regular expression."""
        self._is_regex = not self._is_regex
        self._say_kind()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return what was typed."""
        self.dismiss((event.value, bool(self._is_regex)))


class Choice(_Modal[str | None]):
    """A question with one key for each answer; returns the word of the answer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n,q,ctrl+c", "dismiss(None)", "No", key_display="esc"),
    ]

    def __init__(self, question: str, answers: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._question = question
        for key, word in answers:
            self._bindings.bind(key, f"dismiss('{word}')", word.capitalize())

    def compose(self) -> ComposeResult:
        """Put the widgets together."""
        with Vertical(classes="box line"):
            yield Static(Text(self._question))
        yield Footer(compact=True, show_command_palette=False)


class Busy(_Modal[None]):
    """Something is going on; escape gives it up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "give_up", "Stop it", key_display="esc"),
    ]

    def __init__(self, title: str, text: Callable[[], str], give_up: Callable[[], None]) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._give_up = give_up
        self._progress = Static(Text(text()))

    def compose(self) -> ComposeResult:
        """Put the widgets together."""
        with Vertical(classes="box line") as box:
            box.border_title = Content(self._title)
            yield self._progress
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Look again every now and then."""
        self.set_interval(0.2, self._look)

    def _look(self) -> None:
        self._progress.update(Text(self._text()))

    def action_give_up(self) -> None:
        """Stop the work; whoever does it closes this."""
        self._give_up()
