"""`unionfs bench`: measure this machine's unions side by side, and judge the results.

JSON: the result file itself (see docs/benchmark.rst). Exit status 0, also when goals are missed;
`bench compare --fail-on slower` and `bench goals --fail` end with 1 for those who ask.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY, IMAGE
from unionfs.cli.group import root_option, state, verbose_option
from unionfs.errors import ConflictError, UnsupportedError, show

if TYPE_CHECKING:
    from unionfs.bench.result import Result
    from unionfs.bench.run import Plan

__all__ = ["command"]

_ROUNDS: Final = {"full": 5, "quick": 3, "tiny": 1}
_RESULT: Final = click.Path(exists=True)


@click.group("bench", invoke_without_command=True)
@click.option(
    "--backends",
    metavar="NAME[,...]",
    multiple=True,
    help="Only these subjects (default: all; a wrong name lists them).",
)
@click.option(
    "--only", metavar="WORK[,...]", multiple=True, help="Only these workloads (default: all)."
)
@click.option("--image", metavar="IMAGE", type=IMAGE, help="Measure an image of the store instead.")
@click.option("--quick", is_flag=True, help="Small trees and few rounds, for a first look.")
@click.option(
    "--size",
    type=click.Choice(("full", "quick", "tiny")),
    default="full",
    hidden=True,
    help="Size.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds (default: 5, quick 3).")
@click.option("--no-scale", is_flag=True, help="Leave out growing numbers of layers and files.")
@click.option("--baseline", metavar="NAME", help="What others are divided by (default: overlayfs).")
@click.option(
    "--dir",
    "directory",
    type=DIRECTORY,
    help="Where the trees are made (default: $TMPDIR, /var/tmp).",
)
@click.option("-o", "--output", "place", type=DIRECTORY, help="A new directory for the results.")
@click.option("--goals", is_flag=True, help="Show the goals too, and which are met.")
@output.json_option
@root_option
@verbose_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    backends: tuple[str, ...],
    only: tuple[str, ...],
    image: str | None,
    quick: bool,
    size: str,
    rounds: int | None,
    no_scale: bool,
    baseline: str | None,
    directory: str | None,
    place: str | None,
    goals: bool,
    as_json: bool,
) -> None:
    """Measure the unions of this machine side by side, as ratios.

    One run visits all in turn, round by round, so that what else happens hits all alike. Prints
    the path of the result (or with --json the result); the tables go to standard error and into
    the results' directory. What cannot be measured here is named with the reason.
    """
    if ctx.invoked_subcommand is not None:
        return
    from unionfs.bench.run import Plan  # noqa: PLC0415  # help stays fast
    from unionfs.bench.shape import SHAPES  # noqa: PLC0415  # help stays fast
    from unionfs.bench.subjects import choose  # noqa: PLC0415  # help stays fast
    from unionfs.bench.workloads import choose as choose_workloads  # noqa: PLC0415  # help stays fast

    workloads, growth = choose_workloads(_names(only))
    shape = SHAPES["quick" if quick else size]
    plan = Plan(
        shape=shape,
        rounds=rounds or _ROUNDS[shape.name],
        subjects=choose(_names(backends)),
        directory=Path(directory or os.environ.get("TMPDIR") or "/var/tmp"),  # noqa: S108  # big, and on a disk
        workloads=workloads,
        growth=frozenset() if no_scale else growth,
        baseline=baseline,
    )
    if image is not None:
        if only:
            raise click.UsageError("an image has workloads of its own, --only has no use", ctx)
        plan = _of_image(plan, image)
    target = Path(place or time.strftime("unionfs-bench-%Y%m%d-%H%M%S"))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConflictError(f"{show(str(target))} exists; choose a new name with -o")
    with _new_directory(target):
        result = _measure(plan)
        _save(result, target, goals=goals)
    if as_json:
        output.write_json(_document(result))
    else:
        output.result(str(target / "result.json"))


def _of_image(plan: Plan, name: str) -> Plan:
    import attrs  # noqa: PLC0415  # help stays fast

    from unionfs.bench.image import survey  # noqa: PLC0415  # help stays fast
    from unionfs.bench.workloads import IMAGE_WORKLOADS  # noqa: PLC0415  # help stays fast

    with state().graph() as graph:
        image = graph.get_exact(graph.tags.resolve(graph, name))
        layers = graph.layer_dirs(image.id)
    found = survey(name, layers)
    return attrs.evolve(plan, workloads=IMAGE_WORKLOADS, growth=frozenset(), image=found)


@contextlib.contextmanager
def _new_directory(target: Path) -> Iterator[None]:
    """Make it before the long work, so that a place that cannot be written costs no time."""
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise


def _names(options: tuple[str, ...]) -> list[str]:
    return [name for option in options for name in option.split(",") if name]


def _measure(plan: Plan) -> Result:
    from unionfs.bench.run import begin, measure, workplace  # noqa: PLC0415  # help stays fast
    from unionfs.bench.scale import measure_layers, measure_trees  # noqa: PLC0415  # help stays fast
    from unionfs.cli.progress import steps  # noqa: PLC0415  # help stays fast
    from unionfs.cli.signals import orderly_end  # noqa: PLC0415  # help stays fast

    with orderly_end():
        result = begin(plan)
        for about in result.subjects:
            if about.left_out is not None:
                output.note(f"left out: {about.title}: {about.left_out}")
        with workplace(plan, result) as place, steps() as report:
            measure(plan, result, place, report)
            if "layers" in plan.growth:
                measure_layers(plan, result, place, report)
            if "files" in plan.growth:
                measure_trees(plan, result, place, report)
    return result


def _save(result: Result, target: Path, *, goals: bool) -> None:
    from unionfs.bench.plots import plot  # noqa: PLC0415  # help stays fast
    from unionfs.bench.result import write  # noqa: PLC0415  # help stays fast
    from unionfs.cli.bench_text import draw  # noqa: PLC0415  # help stays fast

    write(result, target / "result.json")
    with (target / "table.txt").open("w", encoding="utf-8") as file:
        draw(result, file=file, goals=True)
    draw(result, goals=goals, errors=True)
    try:
        plot(result, target)
    except UnsupportedError as error:
        output.note(str(error))


def _document(result: Result) -> object:
    import msgspec  # noqa: PLC0415  # help stays fast

    return msgspec.to_builtins(result)


@command.command("show")
@click.argument("path", metavar="RESULT", type=_RESULT)
@click.option("--goals", is_flag=True, help="Show the goals too, and which are met.")
@click.option("--brief", "short", is_flag=True, help="Only the times, without their spread.")
@output.json_option
@root_option
@verbose_option
def show_command(*, path: str, goals: bool, short: bool, as_json: bool) -> None:
    """Show the tables of a result file or directory."""
    from unionfs.bench.result import read  # noqa: PLC0415  # help stays fast
    from unionfs.bench.tables import brief  # noqa: PLC0415  # help stays fast
    from unionfs.cli.bench_text import draw, draw_table  # noqa: PLC0415  # help stays fast

    result = read(Path(path))
    if as_json:
        output.write_json(_document(result))
    elif short:
        draw_table(brief(result))
    else:
        draw(result, goals=goals)


@command.command("plot")
@click.argument("path", metavar="RESULT", type=_RESULT)
@click.argument("directory", type=DIRECTORY)
@root_option
@verbose_option
def plot_command(*, path: str, directory: str) -> None:
    """Write the plots of a result into a directory, as SVG and PNG."""
    from unionfs.bench.plots import plot  # noqa: PLC0415  # help stays fast
    from unionfs.bench.result import read  # noqa: PLC0415  # help stays fast

    result = read(Path(path))
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    for made in plot(result, place):
        output.result(str(made))


@command.command("goals")
@click.argument("path", metavar="RESULT", type=_RESULT)
@click.option("--fail", is_flag=True, help="Exit with 1 when a goal is missed.")
@output.json_option
@root_option
@verbose_option
def goals_command(*, path: str, fail: bool, as_json: bool) -> int:
    """Show which goals of the FUSE back end a result meets."""
    from unionfs.bench.goals import check  # noqa: PLC0415  # help stays fast
    from unionfs.bench.result import read  # noqa: PLC0415  # help stays fast
    from unionfs.bench.tables import goals_table  # noqa: PLC0415  # help stays fast
    from unionfs.cli.bench_text import draw_table  # noqa: PLC0415  # help stays fast

    result = read(Path(path))
    outcomes = check(result)
    if as_json:
        output.write_json(
            [
                {
                    "work": outcome.title,
                    "against": outcome.against,
                    "limit": outcome.limit,
                    "ratio": outcome.value,
                    "low": outcome.low,
                    "high": outcome.high,
                    "met": outcome.met,
                    "clear": outcome.clear,
                }
                for outcome in outcomes
            ]
        )
    else:
        draw_table(goals_table(result))
    return 1 if fail and any(outcome.met is False for outcome in outcomes) else 0


@command.command("compare")
@click.argument("first", type=_RESULT)
@click.argument("second", type=_RESULT)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 0.9999),
    default=0.99,
    show_default=True,
    help="How sure a row must be to count as different.",
)
@click.option("--all", "everything", is_flag=True, help="Show rows without a difference too.")
@click.option(
    "--fail-on", type=click.Choice(("never", "slower")), default="never", help="Exit with 1 then."
)
@output.json_option
@root_option
@verbose_option
def compare_command(
    *, first: str, second: str, confidence: float, everything: bool, fail_on: str, as_json: bool
) -> int:
    """Say what became faster or slower from one result to another, if the noise allows it."""
    from unionfs.bench.result import read  # noqa: PLC0415  # help stays fast
    from unionfs.bench.verdicts import verdicts  # noqa: PLC0415  # help stays fast
    from unionfs.cli.bench_text import draw_verdicts  # noqa: PLC0415  # help stays fast

    before, after = read(Path(first)), read(Path(second))
    if before.shape != after.shape:
        raise ConflictError(
            f"the first result is of size {before.shape}, the second {after.shape}: not comparable"
        )
    found = list(verdicts(before, after, confidence))
    if as_json:
        output.write_json(
            [
                {
                    "work": verdict.workload,
                    "subject": verdict.subject,
                    "relative": verdict.relative,
                    "ratio": verdict.comparison.ratio,
                    "low": verdict.comparison.low,
                    "high": verdict.comparison.high,
                    "verdict": verdict.comparison.verdict,
                }
                for verdict in found
            ]
        )
    else:
        draw_verdicts(found, confidence, everything=everything)
    slower = any(v.relative and v.comparison.verdict == "slower" for v in found)
    return 1 if fail_on == "slower" and slower else 0
