"""The page: one document with everything in it, which can neither load nor send anything.

Invariant: what comes from an image reaches the document as base64 of a compressed block and,
escaped, as its title, and nowhere else; the policy in its head lets only our own script and
style run, by their digests, and forbids the script to make markup out of text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib import resources
from typing import Final

from unionfs import __version__
from unionfs.errors import show
from unionfs.report.pack import columns, packed
from unionfs.report.picture import Picture

__all__ = ["SCRIPTS", "render"]

#: One script in the page, in this order.
SCRIPTS: Final = (
    "format.js",
    "data.js",
    "summary.js",
    "treemap.js",
    "tree.js",
    "findings.js",
    "main.js",
)
_PLACE: Final = re.compile(r"\{\{(\w+)\}\}")


def _read(name: str) -> str:
    return (resources.files("unionfs.report") / "page" / name).read_text("utf-8")


def _digest(text: str) -> str:
    found = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{found}'"


def render(picture: Picture) -> bytes:
    """Return the page of a picture, UTF-8. The same picture gives the same page."""
    style = _read("style.css")
    script = '"use strict";(() => {\n' + "".join(_read(name) for name in SCRIPTS) + "})();\n"
    policy = (
        "default-src 'none'",
        f"script-src {_digest(script)}",
        f"style-src {_digest(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    parts = {
        "policy": "; ".join(policy),
        "title": html.escape(show(picture.title)),
        "version": __version__,
        "style": style,
        "script": script,
        "data": packed({**picture.summary(), "tree": columns(picture)}),
    }
    text = _PLACE.sub(lambda match: parts[match[1]], _read("page.html"))
    return text.encode()
