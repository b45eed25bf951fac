"""The keys of the explorer, what they do, and the table that help and documentation show.

Invariant: every key that does something stands in these lists, so the table is complete.
"""

from __future__ import annotations

from typing import Final

from textual.binding import Binding, BindingType

from unionfs.explore.model import Kind
from unionfs.explore.words import KIND_WORDS

__all__ = ["APP_KEYS", "KIND_KEYS", "ROW_KEYS", "TREE_KEYS", "key_table"]

KIND_KEYS: Final = {
    "a": Kind.ADDED,
    "c": Kind.CHANGED,
    "d": Kind.DELETED,
    "h": Kind.HIDDEN,
    "u": Kind.SAME,
}


def _key(keys: str, action: str, word: str, text: str, display: str | None = None) -> Binding:
    """Return a binding: `word` stands in the last line of the screen if there is one."""
    return Binding(keys, action, word, show=bool(word), key_display=display, tooltip=text)


APP_KEYS: Final[list[BindingType]] = [
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
    _key("s", "add_up", "", "add up the bytes in the directory"),
    *(
        _key(key, f"kind('{key}')", "", f"show or leave out what is {KIND_WORDS[kind]}")
        for key, kind in KIND_KEYS.items()
    ),
    _key("asterisk", "everything", "", "open every directory that has something to show"),
    _key("escape", "clear", "", "take the filter away"),
    _key("left_square_bracket", "layer(1)", "", "look at the layer below"),
    _key("right_square_bracket", "layer(-1)", "", "look at the layer above"),
    _key("r", "read", "", "read everything anew"),
    _key("tab", "app.focus_next", "", "go from the layers to the tree and back"),
    _key("ctrl+z", "suspend_process", "", "stop for a while; the shell's `fg` goes on"),
]
TREE_KEYS: Final[list[BindingType]] = [
    _key("right,l", "open", "", "open the directory, or go into it"),
    _key("left", "shut", "", "close the directory, or go to its parent"),
    _key("space", "choose", "", "as enter"),
]
ROW_KEYS: Final[list[BindingType]] = [
    _key("up,k", "move(-1)", "", "one row up"),
    _key("down,j", "move(1)", "", "one row down"),
    _key("pageup", "page(-1)", "", "one screen up"),
    _key("pagedown", "page(1)", "", "one screen down"),
    _key("home", "end(False)", "", "to the first row"),
    _key("end", "end(True)", "", "to the last row"),
    _key("enter", "choose", "", "open or close the directory, explain the file; look at the layer"),
]
_NAMES: Final = {
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
    """Return the keys and what they do."""
    found = []
    for binding in (*APP_KEYS, *TREE_KEYS, *ROW_KEYS):
        assert isinstance(binding, Binding)  # noqa: S101  # for the type checker
        keys = (_NAMES.get(key, key).replace("ctrl+", "ctrl-") for key in binding.key.split(","))
        found.append((" ".join(keys), binding.tooltip))
    return found
