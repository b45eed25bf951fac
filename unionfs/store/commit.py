"""A rw branch becomes a layer: archived, ingested like any other, with a new configuration.

Invariant: a commit either stores the branch as it was at one moment or fails. While the branch
is mounted, operations in flight show in its journal and in the change times of what was read;
then the archive is made again, and after some tries the commit gives up.
"""

from __future__ import annotations

import io
import stat
import time
from collections.abc import Sequence
from typing import BinaryIO, Final

from unionfs.archive.image import OCI_TAR, SourceLayer
from unionfs.archive.limits import DEFAULT, Limits
from unionfs.archive.tree import ChunkReader
from unionfs.branch import Branch, Dialect, Stack
from unionfs.errors import BusyError, NotFoundError, show
from unionfs.store import config as configs
from unionfs.store.graph import Graph
from unionfs.store.ids import ImageId
from unionfs.store.image import now
from unionfs.store.ingest import Assembly, Progress, Stored
from unionfs.store.layertar import ChangedError, Signature, layer_tar
from unionfs.store.rw import check_journal, check_names, open_rw

__all__ = ["commit"]

_TRIES: Final = 4
_CHUNK: Final = 256 * 1024
#: Two ticks of the slowest kernel clock, seconds.
_SETTLE: Final = 0.025


def commit(
    graph: Graph,
    parent: ImageId,
    rw: bytes,
    *,
    author: str = "",
    comment: str = "",
    changes: Sequence[str] = (),
    dialect: Dialect | None = None,
    limits: Limits = DEFAULT,
    progress: Progress | None = None,
    stored: Stored | None = None,
) -> tuple[ImageId, list[str]]:
    """Store `parent` with the rw branch on top as a new image; return its id and warnings.

    `changes` are texts as of `config.apply_changes`, `stored` as of `Assembly`. An empty branch
    gives a new image with an empty layer. Raises `NotFoundError` without such a directory,
    `BusyError` when the branch does not hold still, `ConflictError` for names it cannot have.
    """
    branch = open_rw(rw, dialect)
    if branch is None:
        raise NotFoundError(f"{show(rw)}: there is no such directory to commit")
    with branch:
        for left in reversed(range(_TRIES)):
            try:
                with Assembly(
                    graph, transport="commit", limits=limits, progress=progress, stored=stored
                ) as assembly:
                    return _attempt(assembly, graph, parent, branch, author, comment, changes)
            except BusyError:
                if not left:
                    raise
                time.sleep(0.1 * 2 ** (_TRIES - left))
    raise AssertionError("unreachable")


def _attempt(
    assembly: Assembly,
    graph: Graph,
    parent: ImageId,
    branch: Branch,
    author: str,
    comment: str,
    changes: Sequence[str],
) -> tuple[ImageId, list[str]]:
    assembly.base(parent)
    document = configs.config_of(graph, parent, assembly.diff_ids)
    configs.apply_changes(document, changes)
    root = _root_differs(branch, graph.layer_dirs(parent))
    below = assembly.view()

    # What was written before now must not look as if it were written during the commit.
    time.sleep(_SETTLE)
    signature = Signature()

    def open_tar() -> BinaryIO:
        chunks = layer_tar(branch, root=root, signature=signature, below=below)
        return io.BufferedReader(ChunkReader(chunks), _CHUNK)

    check_journal(branch)
    check_names(branch)
    added = len(assembly.diff_ids)
    assembly.add(SourceLayer(None, OCI_TAR, None, open_tar))
    if signature.is_fresh() or Signature.of(branch) != signature.digest():
        raise ChangedError(b".")
    check_journal(branch)
    entry = {"created_by": "unionfs commit"}
    entry |= {"author": author} if author else {}
    entry |= {"comment": comment} if comment else {}
    document = configs.derive(document, assembly.diff_ids[added:], now(), entry)
    if author:
        document["author"] = author
    return assembly.finish(configs.encode(document)), assembly.warnings


def _root_differs(branch: Branch, layers: Sequence[bytes]) -> bool:
    """Tell whether `/` has other attributes than in the image below."""
    with Stack.open(layers) as stack:
        below = stack.root()
        position, fd = next(iter(below.fds.items()))
        old = below.own_status()
        new = branch.status(branch.fd, b".")
        return (stat.S_IMODE(new.mode), new.uid, new.gid) != (
            stat.S_IMODE(old.mode),
            old.uid,
            old.gid,
        ) or branch.all_xattrs(branch.fd, b".") != stack.branches[position].all_xattrs(fd, b".")
