"""What `undelete`, `revert` and `reset` have in common: finding the branch, asking, telling.

A live mount does it itself (through its control socket), so that programs see it at once. A
branch that nobody uses is changed directly, under its lock.

Invariant: what would be lost is listed before anything is, and nothing is lost without a yes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from unionfs.cli import output
from unionfs.cli.arguments import DIRECTORY, IMAGE
from unionfs.cli.branches import branch_of
from unionfs.cli.live import client_of
from unionfs.cli.where import inside_mount
from unionfs.errors import (
    BusyError,
    ConflictError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    show,
)

if TYPE_CHECKING:
    from unionfs.branch import Branch
    from unionfs.mounts import LiveMount
    from unionfs.union.undo import Undo

__all__ = ["undo", "undo_options"]

_F = TypeVar("_F", bound="Callable[..., Any]")
_ALIVE: Final = ("live", "detached", "elsewhere", "unattended")


class _Place(NamedTuple):
    """Where to undo: in a live mount, or in a branch over `layers` (None: not known)."""

    mount: LiveMount | None
    rw: bytes
    layers: tuple[bytes, ...] | None
    path: bytes


def undo_options(function: _F) -> _F:
    """Add the options of all three commands."""
    for option in (
        output.json_option,
        click.option("-y", "--yes", is_flag=True, help="Do not ask before something is lost."),
        click.option("-n", "--dry-run", is_flag=True, help="Only list what would be done."),
        click.option("--rw", type=DIRECTORY, help="A rw branch that is not mounted."),
        click.option("--layer", "layers", type=DIRECTORY, multiple=True, help="Below --rw."),
        click.option("--image", type=IMAGE, help="The image below --rw."),
    ):
        function = option(function)
    return function


def undo(
    what: str,
    words: tuple[str, ...],
    *,
    image: str | None,
    layers: tuple[str, ...],
    rw: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Run one of the commands; `what` is the value of an `Undo`."""
    from unionfs.union.undo import Undo  # noqa: PLC0415  # help stays fast

    verb = Undo(what)
    place = _place(verb, words, image, layers, rw)
    planned = _run(place, verb, only_plan=True)
    asks = verb is Undo.RESET or any(item["action"] == "remove" for item in planned["actions"])
    if dry_run or (asks and not yes and planned["actions"]):
        if not (dry_run and as_json):
            _print(planned, to_stderr=not dry_run)
        if not dry_run:
            _confirm(place)
    done = planned
    if not dry_run and (planned["actions"] or planned["hidden"]):
        done = _run(place, verb, stake=None if yes else planned.get("stake"))
    document = {**done, "done": not dry_run}
    document.pop("hidden")
    document.pop("stake", None)  # a mount that runs since an older version tells none
    if as_json:
        output.write_json(document)
    elif not dry_run:
        _print(done)
    if not done["actions"] and not as_json:
        output.note("unionfs: there is nothing to take back")


def _confirm(place: _Place) -> None:
    shown = show(place.path)
    if not sys.stdin.isatty():
        raise ConflictError(
            f"what the rw branch has at {shown} would be lost (see --dry-run); say --yes to that"
        )
    click.confirm(f"Lose what the rw branch has at {shown}?", abort=True, err=True)


def _print(document: dict[str, Any], *, to_stderr: bool = False) -> None:
    say = output.note if to_stderr else output.result
    for item in document["actions"]:
        lost = f"  ({output.size(item['size'])} go)" if item["size"] else ""
        slash = "/" if item["type"] == "directory" and item["path"] != "/" else ""
        say(f"{item['action']} {show(os.fsencode(item['path']))}{slash}{lost}")
    for line in document["notes"]:
        output.note(f"unionfs: {line}")


# -- where ---------------------------------------------------------------------------


def _place(
    verb: Undo, words: tuple[str, ...], image: str | None, layers: tuple[str, ...], rw: str | None
) -> _Place:
    context = click.get_current_context()
    optional = verb.value == "reset"
    if rw is not None or image is not None or layers:
        if len(words) > 1 or not (words or optional):
            raise click.UsageError("with --rw give exactly PATH", context)
        path = os.fsencode(words[0]) if words else b"/"
        if rw is not None and image is None and not layers:
            return _unmounted(verb, os.path.abspath(os.fsencode(rw)), None, path)
        chosen = branch_of(None, image, layers, rw)
        return _unmounted(verb, chosen.rw or b"", chosen.layers, path)
    if not words or len(words) > 2:  # noqa: PLR2004  # WHERE and PATH
        raise click.UsageError("give MOUNT PATH, or --rw DIR PATH", context)
    where = os.path.abspath(os.fsencode(words[0]))
    mount = inside_mount(words[0])
    if mount is not None:
        if len(words) == 1:
            parent, name = os.path.split(where)
            real = os.path.join(os.path.realpath(parent), name)
            inner = os.path.relpath(real, mount.target) if real != mount.target else b"."
            if inner == b"." and not optional:
                raise click.UsageError("give MOUNT PATH", context)
            return _mounted(verb, mount, b"/" if inner == b"." else b"/" + inner)
        if mount.target in (where, os.path.realpath(where)):
            return _mounted(verb, mount, os.fsencode(words[1]))
    if len(words) == 1 and not optional:
        raise NotFoundError(f"no union is mounted on or above {show(where)}")
    path = os.fsencode(words[1]) if len(words) > 1 else b"/"
    return _unmounted(verb, where, None, path)


def _mounted(verb: Undo, mount: LiveMount, path: bytes) -> _Place:
    record = mount.record
    if record is None or record.rw is None or record.read_only:
        raise UsageError(f"{show(mount.target)} is mounted read-only; nothing can be changed")
    if record.backend != "fuse":
        layers = f"--image {record.image_name}" if record.image_name else "--layer ..."
        raise UnsupportedError(
            f"{show(mount.target)} is a kernel mount ({record.backend}), whose branch must not"
            f" change under it; unmount it, then"
            f" `unionfs {verb.value} {layers} --rw {show(record.rw)} {show(path)}`, and mount again"
        )
    return _Place(mount, record.rw, record.layers, path)


def _unmounted(verb: Undo, rw: bytes, layers: tuple[bytes, ...] | None, path: bytes) -> _Place:
    from unionfs.mounts import list_mounts  # noqa: PLC0415  # help stays fast

    if not os.path.isdir(rw):
        raise NotFoundError(f"branch {show(rw)} is not a directory")
    real = os.path.realpath(rw)
    for mount in list_mounts():
        record = mount.record
        if record is None or record.rw is None or mount.state.value not in _ALIVE:
            continue
        if os.path.realpath(record.rw) == real and not record.read_only:
            hint = f"`unionfs {verb.value} {show(mount.target)} {show(path)}`"
            if record.backend != "fuse":
                hint = "unmount that first"
            raise BusyError(f"{show(rw)} is in use by the mount {show(mount.target)}: {hint}")
    return _Place(None, rw, layers, path)


# -- doing ---------------------------------------------------------------------------


def _run(
    place: _Place, verb: Undo, *, only_plan: bool = False, stake: str | None = None
) -> dict[str, Any]:
    if place.mount is not None:
        from unionfs.control.protocol import Request  # noqa: PLC0415  # help stays fast

        with client_of(place.mount) as client:
            answer: dict[str, Any] = client.ask(
                Request(verb.value, path=os.fsdecode(place.path), only_plan=only_plan, stake=stake)
            )
            return answer
    return _plan_offline(place, verb) if only_plan else _run_offline(place, verb, stake)


def _plan_offline(place: _Place, verb: Undo) -> dict[str, Any]:
    from unionfs.kernel.leftover import settle_if_needed  # noqa: PLC0415  # help stays fast
    from unionfs.store.rw import check_journal, open_rw  # noqa: PLC0415  # help stays fast
    from unionfs.union.opening import check_paths, open_layer  # noqa: PLC0415  # help stays fast
    from unionfs.union.restoring import plan_restore  # noqa: PLC0415  # help stays fast

    _many_files()
    settle_if_needed(place.rw)
    check_paths(place.layers or (), place.rw)
    with contextlib.ExitStack() as stack:
        branch: Branch | None = open_rw(place.rw)
        if branch is None:
            raise NotFoundError(f"branch {show(place.rw)} is not a directory")
        stack.enter_context(branch)
        check_journal(branch)
        lowers = [stack.enter_context(open_layer(path)) for path in place.layers or ()]
        return plan_restore(branch, lowers, verb, place.path).document(verb)


def _run_offline(place: _Place, verb: Undo, stake: str | None) -> dict[str, Any]:
    from unionfs.fuse.daemon import LEGACY_ROOT_MODE  # noqa: PLC0415  # help stays fast
    from unionfs.union import Engine, EngineOptions  # noqa: PLC0415  # help stays fast

    _many_files()
    options = EngineOptions(root_mode_fallback=LEGACY_ROOT_MODE)
    with _some_layers(place) as layers, Engine.start(layers, place.rw, options=options) as engine:
        done = engine.restore(verb, place.path, blind=place.layers is None, stake=stake)
        done.discard()
        return done.plan.document(verb)


def _many_files() -> None:
    import resource  # noqa: PLC0415  # help stays fast

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _some_layers(place: _Place) -> Iterator[tuple[bytes, ...]]:
    """Give the layers; an engine needs one, so an empty one where none is known."""
    if place.layers is not None:
        yield place.layers
        return
    import tempfile  # noqa: PLC0415  # help stays fast

    with tempfile.TemporaryDirectory(prefix="unionfs-") as empty:
        os.chmod(empty, 0o755)  # noqa: S103  # as a root directory usually is
        yield (os.fsencode(empty),)
