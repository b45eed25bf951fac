"""What commands say about themselves, and that they agree with each other."""

from __future__ import annotations

import importlib

import click
import pytest
from click.testing import CliRunner

from unionfs import __version__
from unionfs.cli.group import VERBS, cli

READING = {"images", "inspect", "history", "gc", "fsck", "mount", "mounts", "changes"}


def _command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", VERBS)
def test_the_overview_says_what_the_command_says(name: str) -> None:
    module = importlib.import_module(f"unionfs.cli.{VERBS[name][0]}")
    assert _command(name) is module.command
    assert _command(name).name == name
    assert (_command(name).help or "").splitlines()[0] == VERBS[name][1]


@pytest.mark.parametrize("name", VERBS)
def test_every_option_and_command_is_explained(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert f" {name} " in result.output.splitlines()[0]
    for parameter in _command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts} has no help"


@pytest.mark.parametrize("name", sorted(set(VERBS) - {"completion"}))
def test_root_and_verbose_are_accepted_after_every_verb(name: str) -> None:
    options = {option for parameter in _command(name).params for option in parameter.opts}
    assert {"--root", "-v"} <= options


@pytest.mark.parametrize("name", sorted(READING))
def test_every_reading_command_has_json(name: str) -> None:
    assert "--json" in {o for parameter in _command(name).params for o in parameter.opts}


@pytest.mark.parametrize(
    ("alias", "name"),
    [("verify", "fsck"), ("unmount", "umount"), ("delete", "rmi")],
)
def test_aliases_of_other_tools(alias: str, name: str) -> None:
    assert _command(alias) is _command(name)


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"], prog_name="unionfs")
    assert result.output == f"unionfs {__version__}\n"


def test_overview_lists_every_verb() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for name, (_, summary) in VERBS.items():
        assert f"  {name} " in output
        assert summary in output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_code_for_every_shell(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert "_UNIONFS_COMPLETE" in result.output
