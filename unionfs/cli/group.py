"""The group of all verbs, which imports a verb's module only to run or explain it.

Invariant: the table below is all that `unionfs --help` needs, so it stays as fast as
click itself; a test holds its lines against the commands' own help.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from unionfs import __version__

if TYPE_CHECKING:
    from unionfs.store.graph import Graph
    from unionfs.store.store import Store

__all__ = ["VERBS", "State", "cli", "root_option", "state", "verbose_option", "verbosity"]

#: Verb -> module in this package and first line of its help, in the order of a working day.
VERBS: Final[dict[str, tuple[str, str]]] = {
    "import": ("import_", "Read an image from an archive or directory into the store."),
    "images": ("images", "List the images of the store."),
    "inspect": ("inspect", "Show everything the store knows about an image."),
    "history": ("history", "Show the layers of an image, top-most first."),
    "tag": ("tag", "Give an image a name."),
    "untag": ("untag", "Take a name away; the image stays."),
    "rmi": ("rmi", "Remove images or names of images."),
    "gc": ("gc", "Remove images that no name leads to."),
    "fsck": ("fsck", "Check the store, and with --verify every layer's content."),
    "mount": ("mount", "Mount an image or directories as one tree."),
    "umount": ("umount", "Unmount what `unionfs mount` mounted."),
    "mounts": ("mounts", "List live and dead mounts."),
    "run": ("run_cmd", "Run a command with an image as its root."),
    "shell": ("shell_cmd", "Start a shell with an image as its root."),
    "explain": ("explain", "Say why a path is visible, hidden or not there."),
    "history-of": ("history_of", "Show what each layer did to a path, base first."),
    "whiteouts": ("whiteouts", "List what deletions hide and what an image wastes."),
    "explore": ("explore", "Browse layers and the tree they make, in the terminal."),
    "lint": ("lint", "Find what implementations disagree about, and repair it."),
    "compare": (
        "compare",
        "Show what other implementations make of the same layers, and why.",
    ),
    "report": ("report", "Make a page for a browser: layers, waste, findings, files."),
    "diff": ("diff", "Show what differs between two images or mounts, and why."),
    "convert": ("convert", "Turn a layer from one whiteout dialect into another."),
    "changes": ("changes", "Show what a rw branch changed, as `docker diff` does."),
    "commit": ("commit", "Make an image of a rw branch."),
    "export": ("export", "Write an image as an archive or OCI layout."),
    "doctor": ("doctor_cmd", "Find out which back ends work here and what others need."),
    "stats": ("stats", "Show what a live mount is asked, and how long it takes."),
    "trace": ("trace", "Print each request of a live mount and who answers it."),
    "control": ("control", "Ask the process of a live mount for something small."),
    "undelete": ("undelete", "Bring back what was deleted."),
    "revert": ("revert", "Take changes back: files become as the layers have them."),
    "reset": ("reset", "Take everything back: a subtree becomes as the layers have it."),
    "bench": ("bench", "Measure the unions of this machine side by side, as ratios."),
    "completion": ("completion", "Print the shell code that completes unionfs commands."),
}
#: What users of other tools type.
_ALIASES: Final = {"verify": "fsck", "unmount": "umount", "delete": "rmi"}


class State:
    """What the options before the verb say. `root` is None for the default store."""

    def __init__(self) -> None:
        self.root: bytes | None = None

    def store_root(self) -> bytes:
        """Return the absolute path of the store."""
        from unionfs.store.paths import default_root  # noqa: PLC0415  # not every verb needs a store

        return self.root if self.root is not None else default_root()

    def graph(self, *, create: bool = False) -> Graph:
        """Open the image graph of the store; `NotFoundError` if there is none."""
        from unionfs.store.graph import Graph  # noqa: PLC0415  # not every verb needs a store

        return Graph(self.store_root(), create=create)

    def store(self, *, create: bool = False) -> Store:
        """Open the store; `NotFoundError` if there is none and `create` is not set."""
        from unionfs.store.store import Store  # noqa: PLC0415  # not every verb needs a store

        return Store.open(self.store_root(), create=create)


class _Group(click.Group):
    """A click group whose commands live in modules that are imported on demand."""

    #: How often `-v` was given; read after the command has failed, when no context is left.
    verbosity = 0

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        name = _ALIASES.get(cmd_name, cmd_name)
        if name not in VERBS:
            return None
        module = importlib.import_module(f"unionfs.cli.{VERBS[name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


def state() -> State:
    """Return the options of the running command line."""
    return click.get_current_context().ensure_object(State)


def _set_root(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(State).root = os.path.abspath(os.fsencode(value))


def _set_verbosity(_ctx: click.Context, _parameter: click.Parameter, value: int) -> None:
    if not value:
        return
    import logging  # noqa: PLC0415  # only those who ask for it pay for it

    cli.verbosity += value
    level = logging.INFO if cli.verbosity == 1 else logging.DEBUG
    logging.basicConfig(format="unionfs: %(levelname)s: %(name)s: %(message)s")
    logging.getLogger("unionfs").setLevel(level)


def verbosity() -> int:
    """Return how often `-v` was given."""
    return cli.verbosity


_F = TypeVar("_F", bound="Callable[..., Any] | click.Command")

_ROOT_HELP: Final = "The store (default: $UNIONFS_ROOT, else a directory of the system or user)."


def root_option(function: _F) -> _F:
    """Accept `--root DIR` also after the verb."""
    return click.option(
        "--root",
        metavar="DIR",
        type=click.Path(file_okay=False),
        callback=_set_root,
        expose_value=False,
        help=_ROOT_HELP,
    )(function)


def verbose_option(function: _F) -> _F:
    """Accept `-v` also after the verb."""
    return click.option(
        "-v",
        "--verbose",
        count=True,
        callback=_set_verbosity,
        expose_value=False,
        help="Say more on standard error; twice for debugging.",
    )(function)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@root_option
@verbose_option
def _cli() -> None:
    """Mount container images without root, change them, and make new images of the changes.

    An IMAGE is a name (`repository:tag`), an id or the beginning of an id. Data goes to
    standard output, words to standard error; every command that reads takes --json.
    """


cli: Final[_Group] = _cli
