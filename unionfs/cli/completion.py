"""`unionfs completion`: the code a shell needs to complete our commands."""

from __future__ import annotations

import click

from unionfs.cli import output

__all__ = ["command"]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(*, shell: str) -> None:
    """Print the shell code that completes unionfs commands.

    For bash: `unionfs completion bash > ~/.local/share/bash-completion/completions/unionfs`.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415  # only needed here

    from unionfs.cli.group import cli  # noqa: PLC0415  # the group imports this module

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    output.result(found(cli, {}, "unionfs", "_UNIONFS_COMPLETE").source())
