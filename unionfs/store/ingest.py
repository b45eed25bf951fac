"""Turning layers into graph entries: import and commit are this one function.

Everything of an image (each new layer, then the image itself) is built in staging areas and
enters the graph only after all digests were verified, base first.

Invariant: an `Assembly` that fails or is killed leaves nothing in the graph but complete layers
with correct digests (those already renamed in), which block no id and which `gc` collects.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol

import attrs

from unionfs.archive.compression import decompress
from unionfs.archive.image import SourceImage, SourceLayer
from unionfs.archive.limits import DEFAULT, Limits
from unionfs.archive.record import Recorder
from unionfs.archive.tarstream import TarStream
from unionfs.branch import Branch, Stack, Writer
from unionfs.closing import Closing
from unionfs.errors import DigestMismatchError, HostileArchiveError, NotFoundError, StoreError
from unionfs.store import config as configs
from unionfs.store.extract import Extractor
from unionfs.store.facts import Facts
from unionfs.store.graph import Graph, Staging
from unionfs.store.hardlinks import HARDLINKS_NAME, encode_hardlinks
from unionfs.store.ids import ChainId, DiffId, ImageId, chain_id, image_id_of, short_id
from unionfs.store.image import ImageRecord, format_time, now
from unionfs.store.layertar import layer_diff_id
from unionfs.store.layertree import LayerTree, Notes
from unionfs.store.normal import normalise

__all__ = ["RECORD_NAME", "Assembly", "Progress", "Stored", "import_image"]

#: File of a layer's entry from which its archive is re-created.
RECORD_NAME: Final = b"tar-record.zst"
_CHUNK: Final = 256 * 1024
_NS: Final = 10**9
#: Last second of the year 9999, which RFC 3339 can still say.
_MAX_SECOND: Final = 253402300799


class Progress(Protocol):
    """Told how far a layer is: stored bytes read, of how many (None: unknown)."""

    def __call__(self, label: str, done: int, total: int | None, /) -> None:
        """Show it; called about every 256 KiB, in the importing thread."""
        ...


#: Told the id of an image that has just been stored and that nobody can collect yet.
Stored = Callable[[ImageId], None]


def _silent(_label: str, _done: int, _total: int | None, /) -> None:
    pass


@attrs.define
class _Layer:
    """A layer of the image that is being assembled; `staging` is None if it was there before."""

    image_id: ImageId
    diff_id: DiffId
    chain: ChainId
    staging: Staging | None
    newest_ns: int = 0
    facts: Facts | None = None


class _Counting:
    """A reader that reports progress."""

    def __init__(self, stream: BinaryIO, report: Callable[[int], None]) -> None:
        self._stream = stream
        self._report = report
        self._done = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._done += len(data)
        self._report(self._done)
        return data


def _raise_fd_limit() -> None:
    """Allow as many open files as the administrator does: an image may have 500 layers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Assembly(Closing):
    """Collects the layers of one new image; use in a `with` block, end with `finish`.

    Layers are given base first with `add`, on top of those of `base`. Nothing appears in the graph
    before `finish`; leaving the block without it discards everything. `stored` is called with the
    new image's id while the image is still held, which is the time to tag it.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        transport: str,
        limits: Limits = DEFAULT,
        progress: Progress | None = None,
        stored: Stored | None = None,
    ) -> None:
        self._graph = graph
        self._transport = transport
        self._limits = limits
        self._progress = progress or _silent
        self._stored = stored
        self._stack = contextlib.ExitStack()
        self._branches: list[Branch] = []  # top first
        self._layers: list[_Layer] = []
        self._base_diff_ids: list[DiffId] = []
        self._top: ImageId | None = None
        self._base_top: ImageId | None = None
        self._chain: ChainId | None = None
        _raise_fd_limit()

    def close(self) -> None:
        """Let go of everything; staged layers go before what they stand on."""
        self._stack.close()

    @property
    def diff_ids(self) -> list[DiffId]:
        """The digests of all layers, base first, those of `base` included."""
        return [*self._base_diff_ids, *(layer.diff_id for layer in self._layers)]

    @property
    def newest_ns(self) -> int:
        """Time of the newest member of the layers added, ns."""
        return max((layer.newest_ns for layer in self._layers), default=0)

    @property
    def warnings(self) -> list[str]:
        """What ingest changed or left out, over all layers added."""
        return [text for layer in self._layers if layer.facts for text in layer.facts.warnings]

    def base(self, image_id: ImageId) -> None:
        """Build on top of an image that is in the graph.

        Layers stored by early Docker have no diff_id: theirs is computed by archiving them.
        """
        self._hold(image_id)
        for image in reversed(self._graph.history(image_id)):
            if image.metadata_only:
                continue
            if image.facts is not None and image.facts.diff_id is not None:
                diff_id = DiffId(image.facts.diff_id)
            else:
                diff_id = layer_diff_id(image.layer_path)
            self._base_diff_ids.append(diff_id)
            self._chain = chain_id(self._chain, diff_id)
            self._top = self._base_top = image.id
            self._push(image.layer_path)

    def view(self) -> Stack | None:
        """Return what all layers so far show together, None without any; not to be closed."""
        return Stack(self._branches) if self._branches else None

    def _hold(self, image_id: ImageId) -> None:
        self._stack.callback(os.close, self._graph.hold(image_id))

    def _push(self, path: bytes) -> None:
        branch = Branch.open(path)
        self._stack.callback(branch.close)
        self._branches.insert(0, branch)

    def add(self, layer: SourceLayer) -> None:
        """Put a layer on top.

        One that the store has on the same layers is not read again: its content was verified
        when it came in. Raises `HostileArchiveError` and its kinds, or `OSError`.
        """
        if layer.diff_id is not None and self._reuse(DiffId(layer.diff_id), layer):
            return
        staging = self._stack.enter_context(self._graph.stage("import"))
        added = self._ingest(layer, staging)
        self._layers.append(added)
        self._top, self._chain = added.image_id, added.chain

    def _reuse(self, diff_id: DiffId, layer: SourceLayer) -> bool:
        chain = chain_id(self._chain, diff_id)
        image_id = image_id_of(chain)
        try:
            self._hold(image_id)
            image = self._graph.get_exact(image_id)
        except (NotFoundError, StoreError):
            return False  # absent, or damaged and replaced at the end
        self._push(image.layer_path)
        self._layers.append(_Layer(image_id, diff_id, chain, None))
        self._top, self._chain = image_id, chain
        self._progress(f"{short_id(diff_id)} (already here)", layer.size or 0, layer.size)
        return True

    def _ingest(self, layer: SourceLayer, staging: Staging) -> _Layer:
        notes = Notes()
        layer_fd = staging.make_layer()
        branch = Branch(staging.path + b"/layer", layer_fd)
        self._stack.callback(branch.close)
        tree = LayerTree(branch, Writer.probe(branch), staging.fd, notes)
        try:
            parent = self.view()
            extractor = Extractor(tree, parent, self._limits)
            diff_id, tar_size = self._extract(layer, staging, extractor, notes)
            normalise(tree, extractor.markers, parent)
        finally:
            tree.close()
        chain = chain_id(self._chain, diff_id)
        facts = Facts(
            diff_id=diff_id,
            chain_id=chain,
            parent_chain_id=self._chain,
            size=tree.size,
            tar_size=tar_size,
            entries=extractor.entries,
            transport=self._transport,
            imported=now(),
            has_record=True,
            dialect="override" if branch.marked else "native",
            warnings=notes.texts(),
        )
        staging.write_file(HARDLINKS_NAME, encode_hardlinks(tree.hardlinks()))
        staging.put_facts(facts)
        self._branches.insert(0, branch)
        return _Layer(image_id_of(chain), diff_id, chain, staging, extractor.newest_ns, facts)

    def _extract(
        self, layer: SourceLayer, staging: Staging, extractor: Extractor, notes: Notes
    ) -> tuple[DiffId, int]:
        label = short_id(layer.diff_id) if layer.diff_id else "layer"

        def report(done: int) -> None:
            self._progress(label, done, layer.size)

        record_fd = os.open(
            RECORD_NAME,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=staging.fd,
        )
        with open(record_fd, "wb", buffering=_CHUNK) as out, layer.open() as raw:
            recorder = Recorder(out)
            counting = _Counting(raw, report)
            stream = TarStream(
                decompress(counting, self._limits),
                self._limits,
                recorder,
                warn=notes.add,
                what=f"layer {label}" if layer.diff_id else label,
                promised=layer.diff_id is not None,
            )
            extractor.run(stream)
            while counting.read(_CHUNK):
                pass  # the source verifies the stored bytes at their end
            recorder.finish(extractor.locations())
        if layer.diff_id is not None and stream.diff_id != layer.diff_id:
            raise DigestMismatchError(
                f"layer {label}: its content has the diff_id {stream.diff_id}, but the image"
                f" configuration says {layer.diff_id}; the image is damaged, fetch it again"
            )
        return DiffId(stream.diff_id), stream.size

    def finish(self, config: bytes) -> ImageId:
        """Store all layers and the image with this configuration; return the image's id.

        Raises `HostileArchiveError` if the configuration is not one of these layers.
        """
        document = configs.parse_config(config, self._limits)
        if document["rootfs"]["diff_ids"] != self.diff_ids:
            raise HostileArchiveError(
                "image configuration: its `rootfs.diff_ids` are not those of the layers"
            )
        image_id = ImageId(hashlib.sha256(config).hexdigest())
        staging = self._stack.enter_context(self._graph.stage("image"))
        os.close(staging.make_layer())
        staging.write_file(configs.CONFIG_NAME, config)
        staging.put_record(configs.record_of(document, id=image_id, parent=self._top))
        staging.put_facts(
            Facts(
                chain_id=self._chain,
                config_digest=f"sha256:{image_id}",
                metadata_only=True,
                transport=self._transport,
                imported=now(),
            )
        )
        history = configs.history_of_layers(document)[len(self._base_diff_ids) :]
        parent = self._base_top
        for layer, item in zip(self._layers, history, strict=True):
            if layer.staging is not None and layer.facts is not None:
                size = layer.facts.size
                record = configs.record_of(item, id=layer.image_id, parent=parent, size=size)
                layer.staging.put_record(record)
            parent = layer.image_id
        for layer in self._layers:
            if layer.staging is not None:
                layer.staging.commit(layer.image_id, exists_ok=True)
        staging.commit(image_id, exists_ok=True)
        if self._stored is not None:
            self._stored(image_id)
        return image_id


def import_image(
    graph: Graph,
    image: SourceImage,
    *,
    transport: str,
    parent: ImageId | None = None,
    limits: Limits = DEFAULT,
    progress: Progress | None = None,
    stored: Stored | None = None,
) -> tuple[ImageId, list[str]]:
    """Store `image`; return its id and the warnings.

    An image without a configuration gets one that depends on its content only (and on
    `SOURCE_DATE_EPOCH`). `parent` is allowed for those alone: it is put below, and its
    configuration is the starting point. `stored` as of `Assembly`.
    """
    if parent is not None and (image.config is not None or image.v1_json):
        raise HostileArchiveError(
            "this is a complete image with its own layers; --parent is for root filesystems"
        )
    with Assembly(
        graph, transport=transport, limits=limits, progress=progress, stored=stored
    ) as assembly:
        document = configs.new_config()
        if parent is not None:
            assembly.base(parent)
            document = configs.config_of(graph, parent, assembly.diff_ids)
        for layer in image.layers:
            assembly.add(layer)
        if image.config is not None:
            return assembly.finish(image.config), assembly.warnings
        if image.v1_json:
            records = [
                ImageRecord.decode(raw, "`json` of a layer in the archive") for raw in image.v1_json
            ]
            document = configs.from_records(records, assembly.diff_ids)
        else:
            added = assembly.diff_ids[len(document["rootfs"]["diff_ids"]) :]
            entry = {"created_by": f"unionfs import {transport}"}
            document = configs.derive(document, added, _created(assembly.newest_ns), entry)
        return assembly.finish(configs.encode(document)), assembly.warnings


def _created(newest_ns: int) -> str:
    """Return when a root filesystem was made: its newest file, unless the caller says."""
    if os.environ.get("SOURCE_DATE_EPOCH"):
        return now()
    return format_time(min(max(newest_ns // _NS, 0), _MAX_SECOND) * _NS)
