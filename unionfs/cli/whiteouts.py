"""`unionfs whiteouts`: every marker with what it hides, wasted bytes, and gates for CI.

JSON: a superset of dive's: `layer` (base first: `index`, `id`, `digestId`, `sizeBytes`, `command`;
ours: `wastedBytes`, `files`, `markers` and the layer's labels), `image` (`sizeBytes`,
`inefficientBytes`, `efficiencyScore`, `fileReference`; ours: `wastedBytes`), and ours: `wasted` (by
path), `markers` (`layer`, `kind`, `path`, `marker`, `count`, `sizeBytes`, `dangling`, `reason`,
`hides`), `gates` (`name`, `limit`, `value`, `passed`).

Exit status 1 when a gate is not passed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from unionfs.cli import output
from unionfs.cli.group import root_option, verbose_option
from unionfs.cli.upto import upto_option
from unionfs.cli.where import WHERE, Options, locate, split_words, where_options
from unionfs.errors import show

if TYPE_CHECKING:
    from unionfs.insight.waste import MarkerReport, Report

__all__ = ["command"]

_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LIMIT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(i?)B?|(%))", re.IGNORECASE)
_SHOWN: Final = 10


class _Limit(click.ParamType[tuple[float, bool]]):
    """A number of bytes (`500kB`, `10MiB`) or a share of the image (`5%`)."""

    name = "size or percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, bool]:
        match = _LIMIT.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is neither bytes (500kB, 10MiB) nor a share (5%)", param, ctx)
        if match[4]:
            return float(match[1]), True
        unit = (match[2] or "").upper()
        factor = 1024 ** "KMGT".index(unit) * 1024 if match[3] and unit else _UNITS[unit]
        return float(match[1]) * factor, False


@click.command("whiteouts")
@click.argument("words", metavar="[WHERE]", nargs=-1, type=WHERE)
@where_options
@upto_option
@click.option(
    "--max-wasted",
    type=_Limit(),
    metavar="SIZE|PERCENT",
    help="Fail if more is shipped and not visible (10MB, 5%).",
)
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    metavar="SCORE",
    help="Fail if the efficiency is lower (0 to 1).",
)
@click.option("--all", "everything", is_flag=True, help="Name everything that is hidden.")
@output.json_option
@root_option
@verbose_option
def command(
    *,
    words: tuple[str, ...],
    layers: tuple[str, ...],
    rw: str | None,
    dialect: str,
    max_wasted: tuple[float, bool] | None,
    min_score: float | None,
    everything: bool,
    as_json: bool,
) -> int:
    """List what deletions hide and what an image wastes.

    Every whiteout and opaque marker with what it hides, then bytes that are shipped and not
    visible, per layer and per path. The score is that of dive.
    """
    options = Options(layers, rw, dialect)
    word, _ = split_words(words, options, 0, "")
    where = locate(word, options)
    from unionfs.insight.waste import report  # noqa: PLC0415  # help stays fast

    found = report(where)
    gates = _gates(found, max_wasted, min_score)
    if as_json:
        output.write_json({**found.document(), "gates": gates})
    else:
        _print(found, everything=everything)
    is_share = max_wasted is not None and max_wasted[1]
    for gate in gates:
        if not gate["passed"]:
            limit, value = (
                _amount(gate["name"], gate[key], is_share=is_share) for key in ("limit", "value")
            )
            output.note(f"unionfs: --{gate['name']} {limit} is not met: it is {value}")
    return 0 if all(gate["passed"] for gate in gates) else 1


def _gates(
    found: Report, max_wasted: tuple[float, bool] | None, min_score: float | None
) -> list[dict[str, Any]]:
    gates: list[dict[str, Any]] = []
    if max_wasted is not None:
        limit, is_share = max_wasted
        value: float = found.wasted
        if is_share:
            value = 100 * found.wasted / found.size if found.size else 0.0
        gates.append({"name": "max-wasted", "limit": limit, "value": value})
        gates[-1]["passed"] = value <= limit
    if min_score is not None:
        gates.append({"name": "min-score", "limit": min_score, "value": found.score})
        gates[-1]["passed"] = found.score >= min_score
    return gates


def _amount(gate: str, value: float, *, is_share: bool) -> str:
    if gate == "min-score":
        return f"{value:.4g}"
    return f"{value:.4g}%" if is_share else output.size(round(value))


def _print(found: Report, *, everything: bool) -> None:
    for marker in found.markers:
        output.result(_marker(marker))
        shown = marker.hides if everything else marker.hides[:_SHOWN]
        for item in shown:
            name = show(b"/" + item.path)
            output.result(f"    {name}  {output.size(item.size)} of layer {item.layer}")
        if len(shown) < len(marker.hides):
            output.result(f"    and {len(marker.hides) - len(shown)} more (--all)")
    output.result("layers, base first:")
    for layer in found.layers:
        output.result(
            f"  {layer.branch.title:<10} {output.size(layer.size):>8} shipped"
            f" {output.size(layer.wasted):>8} wasted  {layer.markers} markers"
        )
    if found.paths:
        output.result("wasted paths:")
    for path in found.paths if everything else found.paths[:_SHOWN]:
        places = ", ".join(map(str, path.layers))
        output.result(f"  {output.size(path.size):>8}  {show(b'/' + path.path)}  (layer {places})")
    if not everything and len(found.paths) > _SHOWN:
        output.result(f"  and {len(found.paths) - _SHOWN} more (--all)")
    output.result(
        f"wasted {output.size(found.wasted)} of {output.size(found.size)}, score {found.score:.4f}"
    )


def _marker(marker: MarkerReport) -> str:
    where = f"{marker.branch.title}: {show(b'/' + marker.marker)}"
    if not marker.hides:
        return f"{where} hides nothing: {marker.reason}"
    count = len(marker.hides)
    names = "1 entry" if count == 1 else f"{count} entries"
    return f"{where} hides {names}, {output.size(marker.bytes_hidden)}"
