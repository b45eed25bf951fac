"""Random operations against a model of dictionaries, and random processes against each other."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.crash import fork
from support.storefiles import make_id, tmp_names

from unionfs import _sys
from unionfs.errors import BusyError, ConflictError, MissingParentError, NotFoundError
from unionfs.store.facts import Facts
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.image import ImageRecord
from unionfs.store.references import parse_reference

_numbers = st.integers(0, 5)
_tags = st.sampled_from(["a", "b", "c"])
LAYER = Facts(diff_id="sha256:" + "0" * 64)
IMAGE = Facts(metadata_only=True)


def ident(number: int) -> ImageId:
    return ImageId(make_id(number))


class GraphMachine(RuleBasedStateMachine):
    """The model: parents by number, which numbers are images, tags, held numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp()
        self.graph = Graph(os.fsencode(self.root))
        self.parents: dict[int, int | None] = {}
        self.images: set[int] = set()
        self.tags: dict[str, int] = {}
        self.held: dict[int, int] = {}
        # Waiting for the disk decides nothing here and takes most of the time.
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch.object(_sys, "syncfs", return_value=None))
        self.patches.enter_context(mock.patch.object(os, "fsync", return_value=None))

    def teardown(self) -> None:
        self.patches.close()
        for fd in self.held.values():
            os.close(fd)
        self.graph.close()
        shutil.rmtree(self.root)

    def above(self, number: int) -> set[int]:
        """Return `number` and all that stand on it."""
        result = {number}
        for _ in self.parents:
            result |= {child for child, parent in self.parents.items() if parent in result}
        return result

    def chain(self, number: int) -> list[int]:
        result: list[int] = []
        current: int | None = number
        while current is not None:
            result.append(current)
            current = self.parents.get(current)
        return result

    @rule(number=_numbers, parent=st.none() | _numbers, image=st.booleans())
    def register(self, number: int, parent: int | None, image: bool) -> None:  # noqa: FBT001  # drawn
        below = None if parent is None else ident(parent)
        try:
            self.graph.register(
                ImageRecord(id=ident(number), parent=below), facts=IMAGE if image else LAYER
            )
        except MissingParentError:
            assert parent not in self.parents
        except ConflictError:
            assert number in self.parents
        else:
            assert number not in self.parents
            self.parents[number] = parent
            if image:
                self.images.add(number)

    @rule(number=_numbers, force=st.booleans())
    def delete(self, number: int, force: bool) -> None:  # noqa: FBT001  # drawn
        tags = {tag for tag, target in self.tags.items() if target == number}
        children = {child for child, parent in self.parents.items() if parent == number}
        if force and children:
            return  # leaves orphans, which the invariant below excludes
        try:
            removal = self.graph.delete(make_id(number), force=force)
        except NotFoundError:
            assert number not in self.parents
        except BusyError:
            assert self.above(number) & set(self.held)
        except ConflictError:
            assert not force
            assert tags or children
        else:
            assert not self.above(number) & set(self.held)
            assert force or not tags
            assert set(removal.tags) == {f"{tag}:latest" for tag in tags}
            self.forget(number)

    def forget(self, number: int) -> None:
        del self.parents[number]
        self.images.discard(number)
        self.tags = {tag: target for tag, target in self.tags.items() if target != number}

    @rule(tag=_tags, number=_numbers, force=st.booleans())
    def tag(self, tag: str, number: int, force: bool) -> None:  # noqa: FBT001  # drawn
        try:
            self.graph.tags.set(parse_reference(tag), ident(number), force=force)
        except NotFoundError:
            assert number not in self.parents
        except ConflictError:
            assert not force
            assert self.tags[tag] != number
        else:
            assert force or self.tags.get(tag, number) == number
            self.tags[tag] = number

    @rule(tag=_tags)
    def untag(self, tag: str) -> None:
        try:
            self.graph.tags.remove(parse_reference(tag))
        except NotFoundError:
            assert tag not in self.tags
        else:
            del self.tags[tag]

    @rule(number=_numbers)
    def hold(self, number: int) -> None:
        if number in self.held:
            return
        try:
            self.held[number] = self.graph.hold(make_id(number))
        except NotFoundError:
            assert number not in self.parents

    @precondition(lambda self: bool(self.held))
    @rule()
    def release(self) -> None:
        os.close(self.held.popitem()[1])

    @rule(all_images=st.booleans())
    def collect(self, all_images: bool) -> None:  # noqa: FBT001  # drawn
        roots = set(self.tags.values()) | set(self.held)
        if not all_images:
            roots |= self.images
        needed = {number for root in roots for number in self.chain(root)}
        would = self.graph.gc(dry_run=True, all_images=all_images)
        assert self.graph.gc(all_images=all_images) == would
        assert {image.id for image in would} == {ident(n) for n in set(self.parents) - needed}
        for number in set(self.parents) - needed:
            self.forget(number)

    @rule()
    def reopen(self) -> None:
        self.graph.close()
        self.graph = Graph(os.fsencode(self.root), create=False)

    @invariant()
    def agrees(self) -> None:
        graph = self.graph
        assert graph.ids() == sorted(ident(number) for number in self.parents)
        assert graph.in_use() == {ident(number) for number in self.held}
        assert {str(tag): target for tag, target in graph.tags.all().items()} == {
            f"{tag}:latest": ident(number) for tag, number in self.tags.items()
        }
        for number in self.parents:
            assert [image.id for image in graph.history(ident(number))] == [
                ident(n) for n in self.chain(number)
            ]
        parents = {parent for parent in self.parents.values() if parent is not None}
        assert set(graph.by_parent()) == {ident(parent) for parent in parents}
        assert set(graph.heads()) == {ident(n) for n in set(self.parents) - parents}
        assert graph.problems() == []
        assert tmp_names(Path(self.root)) == []


TestGraphModel = GraphMachine.TestCase
TestGraphModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_processes_working_against_each_other(root: Path, graph: Graph) -> None:
    """Only the documented errors occur, held entries survive, and the store stays sound."""
    allowed = (BusyError, ConflictError, MissingParentError, NotFoundError)

    def work(seed: int) -> None:
        choose = random.Random(seed)  # noqa: S311  # a reproducible order of operations
        with Graph(os.fsencode(root)) as own:
            for _ in range(60):
                number = choose.randrange(4)
                parent = ident(number - 1) if number else None
                try:
                    match choose.randrange(5):
                        case 0 | 1:
                            own.register(
                                ImageRecord(id=ident(number), parent=parent),
                                lambda fd: os.mkdir("dir", dir_fd=fd),
                                facts=LAYER,
                                exists_ok=True,
                            )
                        case 2:
                            own.delete(make_id(number))
                        case 3:
                            held = own.hold(make_id(number))
                            images = own.history(make_id(number))
                            assert all(
                                os.path.isdir(image.layer_path + b"/dir") for image in images
                            )
                            os.close(held)
                        case _:
                            own.gc()
                except allowed:
                    continue

    children = [fork(lambda seed=seed: work(seed)) for seed in range(3)]  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert graph.problems() == []
    Graph(os.fsencode(root)).close()
    assert tmp_names(root) == []
