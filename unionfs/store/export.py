"""Images leave the store: as archives that Docker, skopeo, umoci and podman read, or flat.

A layer that was imported or committed is re-created from its record, bit for bit, and checked
against its diff_id on the way out; a layer that early Docker stored is archived anew. The
configuration goes out as it came in, so the image keeps its id.

Invariant: nothing leaves under a digest that it does not have, and a payload is read from inside
its entry only, without following links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

import attrs

from unionfs.archive.entry import Entry, Kind
from unionfs.archive.layerout import LayerOut
from unionfs.archive.record import replay
from unionfs.archive.source import split_spec
from unionfs.archive.staging import replacing
from unionfs.archive.tarwrite import TarWriter
from unionfs.archive.write_docker import write_docker_archive
from unionfs.archive.write_oci import write_oci, write_oci_archive
from unionfs.branch import Branch, Stack
from unionfs.errors import StoreError, UsageError, show
from unionfs.store import config as configs
from unionfs.store._fs import directory
from unionfs.store.entry import Image
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId, short_id
from unionfs.store.ingest import RECORD_NAME, Progress
from unionfs.store.layertar import entry_of, file_data, layer_diff_id, layer_tar

__all__ = ["EXPORT_TRANSPORTS", "export_image", "flat_tar", "layers_out", "replay_layer"]

EXPORT_TRANSPORTS: Final = ("docker-archive", "oci", "oci-archive", "rootfs")
_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What open(2) says where a regular file was: nothing, a link, a socket, a file as directory.
_NOT_THERE: Final = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR)
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _open_below(root_fd: int, path: bytes) -> BinaryIO:
    """Open the regular file at a relative path, component by component."""
    parts = path.split(b"/")
    fd = os.dup(root_fd)
    try:
        if not all(parts) or b".." in parts:
            raise StoreError("the tar record of a layer is damaged (a bad path)")
        for part in parts[:-1]:
            inner = os.open(part, _DIR_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = inner
        file = os.open(parts[-1], _FILE_FLAGS, dir_fd=fd)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise StoreError(
            f"{show(path)} of a layer is not the file that was imported; a layer must not be"
            " edited, import the image again"
        ) from error
    finally:
        os.close(fd)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StoreError(f"{show(path)} of a layer is not the file that was imported")
    return open(file, "rb", buffering=0)


def replay_layer(image: Image) -> Iterator[bytes]:
    """Yield the archive of a stored layer: bit for bit if it has a record, else made anew.

    Raises `StoreError` when the record or a file is missing or damaged. Compare the digest: an
    edited file of unchanged length is found by that only.
    """
    if image.facts is None or not image.facts.has_record:
        with Branch.open(image.layer_path) as branch:
            yield from layer_tar(branch, root=False)
        return
    with directory(image.path) as fd:
        try:
            record_file = _open_below(fd, RECORD_NAME)
        except StoreError as error:
            raise StoreError(
                f"image {image.id}: its tar record is missing; import it again"
            ) from error
        with record_file as record:
            yield from replay(record, lambda path: _open_below(fd, path))


def layers_out(graph: Graph, image_id: ImageId) -> list[LayerOut]:
    """Return the layers of an image for a writer, base first."""
    found = []
    for image in reversed(graph.history(image_id)):
        if image.metadata_only:
            continue
        facts = image.facts
        if facts is not None and facts.diff_id is not None:
            diff_id, size = facts.diff_id, facts.tar_size or None
        else:
            diff_id, size = layer_diff_id(image.layer_path), None
        found.append(LayerOut(diff_id, lambda image=image: replay_layer(image), size))  # type: ignore[misc]  # binds the loop's value
    return found


def flat_tar(graph: Graph, image_id: ImageId, out: BinaryIO) -> None:
    """Write the merged file system of an image as one tar without whiteouts."""
    with Stack.open(graph.layer_dirs(image_id)) as stack:
        writer = TarWriter(out)
        root = stack.root()
        position, root_fd = next(iter(root.fds.items()))
        member = entry_of(stack.branches[position], root_fd, b".", b"./", root.own_status())
        if member is not None:
            writer.add(member)
        first: dict[tuple[int, int], bytes] = {}
        for path, view, name in stack.walk():
            branch, dirfd = view.top(name)
            st = branch.status(dirfd, name)
            member = entry_of(branch, dirfd, name, path, st)
            if member is None:
                continue
            key = (st.dev, st.ino)
            if (
                member.kind is not Kind.DIRECTORY
                and st.nlink > 1
                and first.setdefault(key, path) != path
            ):
                writer.add(
                    Entry(
                        name=path,
                        kind=Kind.HARDLINK,
                        mode=member.mode,
                        uid=member.uid,
                        gid=member.gid,
                        mtime_ns=member.mtime_ns,
                        linkname=first[key],
                    )
                )
            elif member.kind is Kind.FILE:
                writer.add(member, file_data(branch, dirfd, name, path, st))
            else:
                writer.add(member)
        writer.close()


def _watched(layer: LayerOut, progress: Progress) -> LayerOut:
    """Return a layer that reports how much of it has been written."""

    def chunks() -> Iterator[bytes]:
        done = 0
        for chunk in layer.open():
            yield chunk
            done += len(chunk)
            progress(short_id(layer.diff_id), done, layer.size)

    return attrs.evolve(layer, open=chunks)


def export_image(
    graph: Graph,
    image_id: ImageId,
    spec: str | bytes,
    *,
    references: Sequence[str] = (),
    replace: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write an image to `TRANSPORT:PATH[:REFERENCE]`; return what identifies the result.

    That is the manifest digest for `oci:` and `oci-archive:`, the image id for
    `docker-archive:`, the path for `rootfs:`. `references` name the image in a docker-archive
    when the spec does not. PATH `-` is standard output. Existing files need `replace`.
    """
    transport, path, reference = split_spec(os.fsencode(spec))
    if transport not in EXPORT_TRANSPORTS:
        raise UsageError(
            f"{show(spec)}: say how to write it: "
            + ", ".join(f"{name}:PATH" for name in EXPORT_TRANSPORTS)
        )
    held = graph.hold(image_id)
    try:
        target: bytes | BinaryIO = sys.stdout.buffer if path == b"-" else path
        if transport == "rootfs":
            with contextlib.ExitStack() as stack:
                if isinstance(target, bytes):
                    target = stack.enter_context(replacing(target, replace=replace))
                flat_tar(graph, image_id, target)
            return os.fsdecode(path)
        layers = layers_out(graph, image_id)
        config = _config(graph, image_id, layers)
        if progress is not None:
            layers = [_watched(layer, progress) for layer in layers]
        if transport == "oci":
            if path == b"-":
                raise UsageError("oci: is a directory and cannot be standard output")
            return write_oci(path, reference, config, layers)
        if transport == "oci-archive":
            return write_oci_archive(target, reference, config, layers, replace=replace)
        names = [reference] if reference is not None else references
        return write_docker_archive(target, names, config, layers, replace=replace)
    finally:
        os.close(held)


def _config(graph: Graph, image_id: ImageId, layers: Sequence[LayerOut]) -> bytes:
    raw = configs.read_config(graph.get_exact(image_id))
    if raw is not None:
        return raw
    return configs.encode(configs.config_of(graph, image_id, [layer.diff_id for layer in layers]))
