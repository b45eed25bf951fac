"""`unionfs run`: execute a command with an image as its root.

Exit status: the command's, 128 + N if signal N ended it; 125 if unionfs failed, 126 if the
command cannot be executed, 127 if it is not found (as `podman run`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY, IMAGE
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import UnionfsError

if TYPE_CHECKING:
    from unionfs.run import RunConfig

__all__ = ["ImageFirst", "command", "execute", "run_options"]

_FAILED: Final = 125
_BACKENDS: Final = ("auto", "overlay", "fuse")
_F = TypeVar("_F", bound="Callable[..., Any] | click.Command")


class ImageFirst(click.Command):
    """A command whose options may stand on both sides of IMAGE, but not after what follows.

    What comes after the first word beyond IMAGE, or after `--`, belongs to the inner command.
    """

    allow_interspersed_args = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move IMAGE behind the options that follow it, then parse as usual."""
        words, layers = self._words(ctx, args)
        before = args[: len(args) - len(words)]
        if words and not layers and before[-1:] != ["--"]:
            image, after = words[0], words[1:]
            words, _ = self._words(ctx, after)
            between = after[: len(after) - len(words)]
            if between[-1:] == ["--"]:
                del between[-1]
            args = [*before, *between, "--", image, *words]
        return super().parse_args(ctx, args)

    def _words(self, ctx: click.Context, args: list[str]) -> tuple[list[str], bool]:
        """Return what is no option of ours, and whether there are `--layer` options."""
        options, _, _ = self.make_parser(ctx).parse_args(list(args))
        words = options.get("words")  # click has a mark of its own for "none given"
        return list(words) if isinstance(words, list | tuple) else [], "layers" in options


def run_options(function: _F) -> _F:
    """Add the options that `run` and `shell` share."""
    for option in reversed(
        (
            click.option(
                "--layer",
                "layers",
                multiple=True,
                type=DIRECTORY,
                help="A directory instead of IMAGE; again for more, the top-most first.",
            ),
            click.option(
                "--rw", type=DIRECTORY, help="Keep changes in this directory (made if missing)."
            ),
            click.option(
                "--ephemeral", is_flag=True, help="Allow changes and drop them at the end."
            ),
            click.option(
                "--backend",
                type=click.Choice(_BACKENDS),
                default="auto",
                show_default=True,
                help="What makes the union.",
            ),
            click.option(
                "-e",
                "--env",
                multiple=True,
                metavar="NAME[=VALUE]",
                help="Set a variable; without a value, pass yours on.",
            ),
            click.option("-w", "--workdir", metavar="DIR", help="Working directory inside."),
            click.option(
                "-u", "--user", metavar="USER[:GROUP]", help="Names of the image, or numbers."
            ),
            click.option(
                "--net",
                type=click.Choice(("host", "none")),
                default="host",
                show_default=True,
                help="Network: the host's, or only loopback.",
            ),
        )
    ):
        function = option(function)
    return root_option(verbose_option(function))


@contextlib.contextmanager
def _our_failure() -> Iterator[None]:
    """Give failures of unionfs a status that tells them from those of the command."""
    try:
        yield
    except UnionfsError as error:
        error.exit_status = max(error.exit_status, _FAILED)
        raise
    except OSError as error:
        from unionfs.cli.boundary import describe  # noqa: PLC0415  # it imports the group

        wrapped = UnionfsError(describe(error))
        wrapped.exit_status = _FAILED
        raise wrapped from error


def _absolute(path: str) -> bytes:
    return os.path.abspath(os.fsencode(path))


def execute(
    words: tuple[str, ...],
    options: dict[str, Any],
    configure: Callable[[dict[str, Any], tuple[bytes, ...]], RunConfig],
) -> int:
    """Run what `configure` makes of the image's configuration and the inner command's words."""
    layers, rw, ephemeral = options["layers"], options["rw"], options["ephemeral"]
    context = click.get_current_context()
    if not layers and not words:
        raise click.UsageError("give an IMAGE, or directories with --layer", context)
    if rw is not None and ephemeral:
        raise click.UsageError("--rw and --ephemeral exclude each other", context)
    from unionfs.run import RunRequest, prepare, run  # noqa: PLC0415  # help stays fast
    from unionfs.store.images import inspect  # noqa: PLC0415  # see above

    with _our_failure(), contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {}
        if layers:
            below = tuple(_absolute(layer) for layer in layers)
        else:
            with state().graph() as graph:
                image = graph.get_exact(graph.tags.resolve(graph, words[0]))
                stack.callback(os.close, graph.hold(image.id))
                below = tuple(graph.layer_dirs(image.id))
                settings = inspect(graph, image.id)["config"]
            words = words[1:]
        config = configure(settings, tuple(os.fsencode(word) for word in words))
        union = prepare(
            below,
            None if rw is None else _absolute(rw),
            store=state().store_root(),
            ephemeral=ephemeral,
            backend=options["backend"],
            cached=not layers,
        )
        request = RunRequest(
            config=config,
            union=union,
            read_only=rw is None and not ephemeral,
            throw_away=ephemeral,
            private_network=options["net"] == "none",
        )
        return run(request, lambda text: output.note(f"unionfs: note: {text}"))


@click.command("run", cls=ImageFirst)
@click.argument("words", metavar="IMAGE [COMMAND]...", nargs=-1, type=IMAGE)
@click.option("--entrypoint", metavar="PROGRAM", help="Run this instead of the image's own.")
@run_options
def command(*, words: tuple[str, ...], entrypoint: str | None, **options: Any) -> int:
    """Run a command with an image as its root.

    \b
    unionfs run IMAGE                           what the image is made for
    unionfs run IMAGE ls -l /etc                another command, read-only root
    unionfs run IMAGE --ephemeral -- COMMAND    changes are allowed and dropped

    Without --rw or --ephemeral the image is read-only, with empty /tmp, /run and /var/tmp.
    The exit status is the command's; 125, 126 and 127 as of `podman run`.

    This is a convenience and no security sandbox: do not run what you do not trust.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines

    def configure(settings: dict[str, Any], words: tuple[bytes, ...]) -> RunConfig:
        from unionfs.run import RunConfig  # noqa: PLC0415  # help stays fast

        return RunConfig.build(
            settings,
            words,
            env=[os.fsencode(item) for item in options["env"]],
            workdir=None if options["workdir"] is None else os.fsencode(options["workdir"]),
            user=None if options["user"] is None else os.fsencode(options["user"]),
            entrypoint=None if entrypoint is None else os.fsencode(entrypoint),
        )

    return execute(words, options, configure)
