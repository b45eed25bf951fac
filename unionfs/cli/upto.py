"""The option `--upto LAYER`: look at, or mount, an older state.

The option is kept in the context of the command, so verbs need no parameter for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from unionfs.insight.where import Where

__all__ = ["cut", "upto_option", "wanted_layer"]

_F = TypeVar("_F", bound="Callable[..., Any] | click.Command")
_KEY: Final = "unionfs.upto"


def _keep(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    ctx.meta[_KEY] = value


def upto_option(function: _F) -> _F:
    """Accept `--upto LAYER`."""
    return click.option(
        "--upto",
        metavar="LAYER",
        callback=_keep,
        expose_value=False,
        help="Leave out all above a layer: its number, its id, or a tag that ends with it.",
    )(function)


def wanted_layer() -> str | None:
    """Return what `--upto` says."""
    word: str | None = click.get_current_context().meta.get(_KEY)
    return word


def cut(where: Where) -> Where:
    """Return the branches that `--upto` leaves; all of them without the option."""
    word = wanted_layer()
    if word is None:
        return where
    from unionfs.insight.upto import upto  # noqa: PLC0415  # help stays fast

    return upto(where, word)
