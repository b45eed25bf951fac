"""Everything below a directory of the union.

Invariant: a directory is held while its content is given out, so it is not forgotten and made
anew in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from unionfs.union.node import DirNode, Node
from unionfs.union.tree import Tree

__all__ = ["walk"]


def walk(tree: Tree, node: DirNode) -> Iterator[Node]:
    """Yield every visible node below a directory, parents first.

    A yielded node lives at least until the next step, a directory until its content
    has been yielded.
    """
    pending = [node]
    node.opens += 1
    try:
        while pending:
            current = pending[-1]
            for name in tree.names(current):
                found = tree.find(current, name)
                if found is None:
                    continue
                found.opens += 1
                if isinstance(found, DirNode):
                    pending.insert(0, found)
                try:
                    yield found
                finally:
                    if not found.is_dir:
                        found.opens -= 1
                        tree.release(found)
            pending.pop()
            current.opens -= 1
            tree.release(current)
    finally:
        for left in pending:
            left.opens -= 1
            tree.release(left)
