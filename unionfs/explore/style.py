"""Colours and layout of the explorer.

Invariant: no colour carries a meaning that a character does not carry as well.
"""

from __future__ import annotations

from typing import Final

from textual.theme import Theme

__all__ = ["CSS", "THEME"]

THEME: Final = Theme(
    name="unionfs",
    primary="#5aa9e6",
    secondary="#7fc8d8",
    accent="#b48ead",
    success="#8fc97a",
    warning="#e5b567",
    error="#e06c75",
    foreground="#d5dae3",
    background="#12161d",
    surface="#161b24",
    panel="#1d2430",
    variables={
        "footer-key-foreground": "#5aa9e6",
        "border": "#3a4556",
        "dim": "#7f8a9c",
        "guide": "#333d4d",
        "cursor": "#2a4a68",
        "cursor-blurred": "#263041",
    },
)

CSS: Final = """
Screen { background: $background; }
#header { height: 1; background: $panel; padding: 0 1; }
#title { width: 1fr; text-style: bold; color: $primary; text-wrap: nowrap; }
#total { width: auto; color: $dim; }
#body { height: 1fr; }
#left { width: 36%; min-width: 30; max-width: 60; }
#layers, #details, #tree, .box {
    border: round $border;
    background: $surface;
    border-title-color: $dim;
    border-subtitle-color: $dim;
    border-title-style: bold;
}
#layers { height: 1fr; min-height: 4; }
#details { height: auto; max-height: 45%; padding: 0 1; }
#tree { width: 1fr; }
#tree.filtered { border: round $warning; }
#layers:focus, #tree:focus { border: round $primary; border-title-color: $primary; }
#status { height: 1; padding: 0 1; background: $panel; color: $dim; text-wrap: nowrap; }
ModalScreen { background: $background 60%; align: center middle; }
.box { width: 92%; height: auto; max-height: 88%; border: round $primary; }
.box { border-title-color: $primary; }
.box.line { width: 76; max-width: 96%; height: auto; padding: 0 1; }
.box Input { border: none; height: 1; padding: 0; background: $surface; }
.hint, .heading { color: $dim; }
TextList, _WasteList { background: $surface; height: auto; max-height: 100%; }
Waste .box { height: 88%; }
Waste _WasteList { height: 1fr; }
App:nocolor #layers:focus, App:nocolor #tree:focus { border: heavy $primary; }
"""
