"""`unionfs lint`: what implementations disagree about in layers, and its repair.

JSON: `findings` (`rule`, `severity`, `title`, `layer`, `rw`, `branch`, `path`, `detail`, `shows`,
`fix`, `fixable`), `counts` (by severity), and with `--fix` `actions` (texts) and `done`,
with `--copy` `copy` (the layers' directories, top first).

Exit status: 0 nothing at or above --fail-on; 1 something.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.signals import orderly_end
from unionfs.cli.where import (
    WHERE,
    Options,
    archived_image,
    locate,
    split_words,
    where_options,
)
from unionfs.errors import UsageError, show

if TYPE_CHECKING:
    from unionfs.insight.lint import Finding
    from unionfs.insight.where import Where

__all__ = ["command"]

_LEVELS: Final = ("error", "warning", "info")


@click.command("lint")
@click.argument("words", metavar="[WHERE]", nargs=-1, type=WHERE)
@where_options
@click.option(
    "--fail-on",
    type=click.Choice((*_LEVELS, "never")),
    default="warning",
    show_default=True,
    help="The lowest severity that makes the exit status 1.",
)
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave out a rule; repeatable.")
@click.option("--stored", is_flag=True, help="Check the store's normal form, not the archives.")
@click.option("--explain", "explained", is_flag=True, help="Explain every rule that was broken.")
@click.option("--rules", "list_rules", is_flag=True, help="Explain all rules and stop.")
@click.option("--fix", is_flag=True, help="Show how to repair a rw branch or plain directories.")
@click.option("--write", is_flag=True, help="With --fix: do it.")
@click.option(
    "--copy",
    metavar="DIR",
    type=click.Path(),
    help="With --fix: repair a copy of all layers, DIR/layer1 the base, of whatever WHERE is.",
)
@output.json_option
@root_option
@verbose_option
def command(
    *,
    words: tuple[str, ...],
    layers: tuple[str, ...],
    rw: str | None,
    dialect: str,
    fail_on: str,
    ignore: tuple[str, ...],
    stored: bool,
    explained: bool,
    list_rules: bool,
    fix: bool,
    write: bool,
    copy: str | None,
    as_json: bool,
) -> int:
    """Find what implementations disagree about, and repair it.

    WHERE may also be an archive or OCI layout, as for `unionfs import`. Layers of the store are
    checked as their archives came in.
    """
    from unionfs.insight.lint import worst  # noqa: PLC0415  # help stays fast
    from unionfs.insight.rules import RULES  # noqa: PLC0415  # help stays fast

    for rule in ignore:
        if rule not in RULES:
            raise UsageError(f"--ignore {show(rule)}: no such rule; --rules lists them")
    if (write or copy is not None) and not fix:
        raise UsageError("--write and --copy are for --fix")
    if list_rules:
        _explain(list(RULES), as_json=as_json)
        return 0
    options = Options(layers, rw, dialect)
    word, _ = split_words(words, options, 0, "")
    found, where = _findings(word, options, stored=stored)
    found = [item for item in found if item.rule.id not in ignore]
    document: dict[str, Any] = {}
    if fix:
        document = (
            _fix(where, found, write=write)
            if copy is None
            else _fix_copy(word, options, copy, ignore, write=write)
        )
    if as_json:
        counts = {level: sum(_level(item) == level for item in found) for level in _LEVELS}
        output.write_json(
            {"findings": [item.document() for item in found], "counts": counts, **document}
        )
    else:
        for item in found:
            output.result(_line(item))
        for action in document.get("actions", ()):
            output.result(f"{'done' if write else 'would'}: {action}")
        for path in document.get("copy", ()):
            output.result(f"copy: {show(path)}")
        if explained:
            _explain(list(dict.fromkeys(item.rule.id for item in found)), as_json=False)
    worst_found = worst(found)
    if fail_on == "never" or worst_found is None:
        return 0
    return int(_LEVELS.index(worst_found.name.lower()) <= _LEVELS.index(fail_on))


def _fix(where: Where | None, found: Sequence[Finding], *, write: bool) -> dict[str, Any]:
    """Repair the branches themselves."""
    from unionfs.insight.fix import apply, plan  # noqa: PLC0415  # help stays fast

    if where is None or all(named.entry is not None for named in where.branches):
        raise UsageError(
            "--fix is for a rw branch (--rw) or plain directories (--layer); of other layers"
            " --copy DIR makes a copy to repair"
        )
    actions = plan(where, found)
    if write:
        apply(actions)
    return {"actions": [str(action) for action in actions], "done": write}


def _fix_copy(
    word: str | None, options: Options, copy: str, ignore: Sequence[str], *, write: bool
) -> dict[str, Any]:
    """Copy the layers as they were shipped, and repair that; without `write` somewhere else."""
    from unionfs.insight.copies import copied  # noqa: PLC0415  # help stays fast
    from unionfs.insight.engines.layers import of_archive, of_where  # noqa: PLC0415  # help stays fast
    from unionfs.insight.engines.workplace import workplace  # noqa: PLC0415  # help stays fast
    from unionfs.insight.fix import apply, plan  # noqa: PLC0415  # help stays fast
    from unionfs.insight.lint import lint  # noqa: PLC0415  # help stays fast
    from unionfs.insight.where import of_directories  # noqa: PLC0415  # help stays fast

    with orderly_end(), contextlib.ExitStack() as stack:
        place = stack.enter_context(workplace())
        image = None if word is None or options.rw else archived_image(stack, word)
        sources = (
            of_where(locate(word, options), place) if image is None else of_archive(image, None)
        )
        target = os.fsencode(copy) if write else os.path.join(place, b"copy")
        with copied(sources, target) as paths:
            where = of_directories(paths)
            found = [item for item in lint(where) if item.rule.id not in ignore]
            actions = plan(where, found)
            if write:
                apply(actions)
    made = [os.path.join(os.path.abspath(target), os.path.basename(path)) for path in paths]
    return {
        "actions": [str(action) for action in actions],
        "done": write,
        "copy": made if write else [],
    }


def _level(item: Finding) -> str:
    return item.rule.severity.name.lower()


def _findings(word: str | None, options: Options, *, stored: bool) -> tuple[list[Finding], Any]:
    """Return the findings, and the branches if they are some that lie on this machine."""
    from unionfs.insight.lint import lint  # noqa: PLC0415  # help stays fast

    if word is not None and options.rw is None:
        found = _archive_findings(word)
        if found is not None:
            return found, None
    where = locate(word, options)
    return lint(where, as_stored=stored), where


def _archive_findings(word: str) -> list[Finding] | None:
    """Check an image in an archive or layout; None if the word means none."""
    from unionfs.insight.lint import lint_layers  # noqa: PLC0415  # help stays fast
    from unionfs.insight.shipped import archive_branches, read_archive_layer  # noqa: PLC0415  # help stays fast

    with contextlib.ExitStack() as stack:
        image = archived_image(stack, word)
        if image is None:
            return None
        named = archive_branches(image)
        return lint_layers(
            read_archive_layer(branch, stack.enter_context(layer.open()))
            for branch, layer in zip(reversed(named), image.layers, strict=True)
        )


def _line(item: Finding) -> str:
    path = show(b"/" + item.path)
    detail = f": {item.detail}" if item.detail else ""
    return (
        f"{item.branch.title}: {path}: {_level(item)}: {item.rule.title} [{item.rule.id}]{detail}"
    )


def _explain(rules: list[str], *, as_json: bool) -> None:
    from unionfs.insight.lint import explanation  # noqa: PLC0415  # help stays fast
    from unionfs.insight.rules import RULES  # noqa: PLC0415  # help stays fast

    if as_json:
        output.write_json(
            [
                {
                    "rule": name,
                    "severity": RULES[name].severity.name.lower(),
                    "title": RULES[name].title,
                    "why": RULES[name].why,
                    "shows": RULES[name].shows,
                    "fix": RULES[name].fix,
                    "fixable": RULES[name].fixable,
                }
                for name in rules
            ]
        )
        return
    for name in rules:
        for line in explanation(RULES[name]):
            output.result(line)
