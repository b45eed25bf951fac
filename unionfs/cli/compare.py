"""`unionfs compare`: what several implementations make of the same layers, and why they differ.

JSON: `agree`, `digest` (null when no engine worked), `reference` (the engine the others are
compared with), `engines` (`name`, `state`, `reason`, `not_compared`, `notes`), `differences`
(`path`, `expected`, `below`, `views`: `engine`, `shows`, `what`; `reasons`: `engine`, `rule`,
`layer`, `path`, `says`), `refusals` (`engine`, `reason`, `reasons`).

Exit status: 0 all agree; 1 they differ; 2 or more: it could not be found out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.signals import orderly_end
from unionfs.cli.upto import upto_option, wanted_layer
from unionfs.cli.where import (
    WHERE,
    Options,
    archived_image,
    inside_mount,
    locate,
    split_words,
    where_options,
)
from unionfs.errors import UnionfsError, show

if TYPE_CHECKING:
    from unionfs.archive.image import SourceImage
    from unionfs.insight.engines.contest import PathViews, Verdict
    from unionfs.insight.engines.layers import LayerSource
    from unionfs.insight.engines.reasons import Reason
    from unionfs.insight.lint import Finding
    from unionfs.mounts import MountRecord

__all__ = ["command"]

#: As in `unionfs.insight.engines.contest`; a test holds them together.
_ENGINES: Final = (
    *("oci", "unionfs", "fuse", "overlay", "overlay-naive", "aufs", "fuse-overlayfs", "umoci"),
)
_TROUBLE: Final = 2
_SHOWN: Final = 50


class _Engines(click.ParamType[tuple[str, ...]]):
    """Names of engines, separated by commas."""

    name = "engines"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = tuple(filter(None, str(value).split(",")))
        for name in names:
            if name not in _ENGINES:
                self.fail(f"no engine {name!r}; there are {', '.join(_ENGINES)}", param, ctx)
        if not names:
            self.fail("name at least one engine", param, ctx)
        return names


@click.command("compare")
@click.argument("words", metavar="[WHERE]", nargs=-1, type=WHERE)
@where_options
@upto_option
@click.option(
    "--engines",
    type=_Engines(),
    metavar="NAME[,NAME...]",
    default=",".join(_ENGINES),
    help="Only these (see below).",
)
@click.option("--all", "everything", is_flag=True, help="Name every path that differs.")
@output.json_option
@root_option
@verbose_option
def command(
    *,
    words: tuple[str, ...],
    layers: tuple[str, ...],
    rw: str | None,
    dialect: str,
    engines: tuple[str, ...],
    everything: bool,
    as_json: bool,
) -> int:
    """Show what other implementations make of the same layers, and why.

    \b
    oci             the OCI specification, applied in memory: the reference
    unionfs         our union, in this process
    fuse            our union, mounted
    overlay         kernel overlayfs as `mount --backend overlay` uses it
    overlay-naive   kernel overlayfs over layers converted one by one
    aufs            AUFS over the layers as they are spelled
    fuse-overlayfs  the same with fuse-overlayfs
    umoci           unpacked by umoci

    WHERE may also be an archive or OCI layout, as for `unionfs import`. Compared are types, modes,
    owners, devices, contents, links, xattrs and the times of files; not the times of directories.
    The layers are only read. What cannot run here is left out, with the reason.
    """  # noqa: D301  # \b is click's mark for text that keeps its lines
    options = Options(layers, rw, dialect)
    word, _ = split_words(words, options, 0, "")
    with _own_status(), orderly_end():
        verdict, findings = _compare(word, options, engines)
    if as_json:
        output.write_json(_document(verdict, findings))
    else:
        _print(verdict, findings, everything=everything)
    answers = len(verdict.worked) + len(verdict.refused)
    if answers == 0 or (answers == 1 and len(engines) > 1):
        output.note("unionfs: there is nothing to compare: too few engines could work here")
        return _TROUBLE
    return int(not verdict.agree)


@contextlib.contextmanager
def _own_status() -> Iterator[None]:
    """Give errors another exit status than differences, as diff(1) does."""
    from unionfs.cli.boundary import describe  # noqa: PLC0415  # it imports the group, as we do

    try:
        yield
    except (UnionfsError, OSError) as error:
        text = describe(error) if isinstance(error, OSError) else str(error)
        status = max(_TROUBLE, getattr(error, "exit_status", _TROUBLE))
        trouble = UnionfsError(text)
        trouble.exit_status = status
        raise trouble from error


def _compare(
    word: str | None, options: Options, engines: Sequence[str]
) -> tuple[Verdict, list[Finding]]:
    from unionfs.insight.engines.layers import of_where  # noqa: PLC0415  # help stays fast
    from unionfs.insight.engines.workplace import workplace  # noqa: PLC0415  # help stays fast
    from unionfs.insight.lint import lint  # noqa: PLC0415  # help stays fast

    with workplace() as place, contextlib.ExitStack() as stack:
        if word is not None and options.rw is None:
            image = archived_image(stack, word)
            if image is not None:
                return _archive(image, place, engines)
        where = locate(word, options)
        sources = of_where(where, place)
        verdict = _contest(sources, place, engines, live=_live(word))
        return verdict, [] if verdict.agree else lint(where)


def _live(word: str | None) -> MountRecord | None:
    """Return the mount that WHERE means, if it is one that answers."""
    mount = None if word is None or wanted_layer() is not None else inside_mount(word)
    if mount is None or mount.record is None or word is None or not os.path.isdir(word):
        return None
    return mount.record if mount.target == os.path.realpath(os.fsencode(word)) else None


def _archive(
    image: SourceImage, place: bytes, engines: Sequence[str]
) -> tuple[Verdict, list[Finding]]:
    """Compare an image in an archive; our engines see it as the store would keep it."""
    from unionfs.insight.engines.layers import imported  # noqa: PLC0415  # help stays fast
    from unionfs.insight.engines.workplace import need_space  # noqa: PLC0415  # help stays fast
    from unionfs.insight.lint import lint_layers  # noqa: PLC0415  # help stays fast
    from unionfs.insight.shipped import archive_branches, read_archive_layer  # noqa: PLC0415  # help stays fast

    need_space(place, sum(layer.size or 0 for layer in image.layers))
    with imported(image, place) as (sources, refusal):
        verdict = _contest(sources, place, engines, refusal=refusal)
    if verdict.agree:
        return verdict, []
    named = archive_branches(image)
    with contextlib.ExitStack() as layers:
        findings = lint_layers(
            read_archive_layer(branch, layers.enter_context(layer.open()))
            for branch, layer in zip(reversed(named), image.layers, strict=True)
        )
    return verdict, findings


def _contest(
    sources: list[LayerSource],
    place: bytes,
    engines: Sequence[str],
    *,
    refusal: str = "",
    live: MountRecord | None = None,
) -> Verdict:
    from unionfs.cli.group import verbosity  # noqa: PLC0415  # a function beside those above
    from unionfs.insight.engines.contest import contest  # noqa: PLC0415  # help stays fast

    def progress(name: str) -> None:
        if verbosity():
            output.note(f"unionfs: {name}")

    return contest(sources, place, engines, refusal=refusal, live=live, progress=progress)


# -- output ------------------------------------------------------------------------


def _reasons(findings: Sequence[Finding], item: PathViews) -> list[Reason]:
    from unionfs.insight.engines.reasons import reasons_for  # noqa: PLC0415  # help stays fast

    return reasons_for(findings, item.path, item.others)


def _refusals(verdict: Verdict, findings: Sequence[Finding]) -> dict[str, list[Reason]]:
    from unionfs.insight.engines.reasons import reasons_for  # noqa: PLC0415  # help stays fast

    if not verdict.worked:
        return {name: [] for name in verdict.refused}
    return {name: reasons_for(findings, None, [name]) for name in verdict.refused}


def _document(verdict: Verdict, findings: Sequence[Finding]) -> dict[str, Any]:
    from unionfs.insight.engines.contest import document_of  # noqa: PLC0415  # help stays fast

    return {
        "agree": verdict.agree,
        "digest": verdict.digest or None,
        "reference": verdict.first or None,
        "engines": [
            {
                "name": name,
                "state": item.status.state,
                "reason": item.status.reason,
                "not_compared": item.left_out,
                "notes": item.notes,
            }
            for name, item in verdict.outcomes.items()
        ],
        "differences": [
            {
                "path": b"/" + item.path,
                "expected": document_of(item.expected),
                "below": item.below,
                "views": [
                    {"engine": name, "shows": document_of(seen), "what": list(what)}
                    for name, (seen, what) in item.others.items()
                ],
                "reasons": [_reason(reason) for reason in _reasons(findings, item)],
            }
            for item in verdict.paths()
        ],
        "refusals": [
            {
                "engine": name,
                "reason": verdict.outcomes[name].status.reason,
                "reasons": [_reason(reason) for reason in reasons],
            }
            for name, reasons in _refusals(verdict, findings).items()
        ],
    }


def _reason(reason: Reason) -> dict[str, Any]:
    finding = reason.finding
    return {
        "engine": reason.engine,
        "rule": finding.rule.id,
        "layer": finding.branch.number,
        "path": b"/" + finding.path,
        "says": reason.says,
    }


def _print(verdict: Verdict, findings: Sequence[Finding], *, everything: bool) -> None:
    paths = verdict.paths()
    for item in paths if everything else paths[:_SHOWN]:
        _print_path(verdict, item, _reasons(findings, item))
    if not everything and len(paths) > _SHOWN:
        output.result(f"and {len(paths) - _SHOWN} more paths (--all)")
    for name, reasons in _refusals(verdict, findings).items():
        output.result(f"{name} refuses: {verdict.outcomes[name].status.reason}")
        _print_reasons(reasons)
    for name, outcome in verdict.outcomes.items():
        for note in outcome.notes:
            output.note(f"{name}: {note}")
        if outcome.status.state == "left out":
            output.note(f"left out: {name}: {outcome.status.reason}")
        elif outcome.left_out:
            output.note(f"{name}: not compared: {', '.join(outcome.left_out)}")
    if verdict.agree and verdict.worked:
        output.note(f"agree: {', '.join(verdict.worked)}")
        output.result(verdict.digest)


def _print_path(verdict: Verdict, item: PathViews, reasons: Sequence[Reason]) -> None:
    from unionfs.insight.engines.seen import describe  # noqa: PLC0415  # help stays fast

    output.result(show(b"/" + item.path))
    same = [name for name in verdict.worked if name not in item.others]
    output.result(f"    {describe(item.expected)}: {', '.join(same)}")
    shown: dict[str, list[str]] = {}
    for name, (seen, what) in item.others.items():
        text = describe(seen)
        if what not in (("absent",), ("extra",)):
            text += f", differs in {', '.join(what)}"
        shown.setdefault(text, []).append(name)
    for text, names in shown.items():
        output.result(f"    {text}: {', '.join(names)}")
    if item.below:
        output.result(f"    and {item.below} below it")
    _print_reasons(reasons)


def _print_reasons(reasons: Sequence[Reason]) -> None:
    told = set()
    for reason in reasons:
        finding = reason.finding
        path = show(b"/" + finding.path)
        says = f": {reason.engine}: {reason.says}" if reason.says else ""
        line = f"    why: {finding.rule.id} ({finding.branch.title}: {path}){says}"
        if line not in told:
            output.result(line)
        told.add(line)
