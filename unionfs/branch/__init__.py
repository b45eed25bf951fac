"""What one directory tree in AUFS form means, and how a stack of them merges.

The ground under store and union: both see layers only through this package.
"""

from unionfs.branch.branch import Branch as Branch
from unionfs.branch.branch import DirScan as DirScan
from unionfs.branch.branch import Status as Status
from unionfs.branch.merge import Child as Child
from unionfs.branch.merge import DirView as DirView
from unionfs.branch.merge import Stack as Stack
from unionfs.branch.merge import merge as merge
from unionfs.branch.place import Place as Place
from unionfs.branch.place import place_of as place_of
from unionfs.branch.whiteout import Dialect as Dialect
from unionfs.branch.write import Writer as Writer

__all__ = [
    "Branch",
    "Child",
    "Dialect",
    "DirScan",
    "DirView",
    "Place",
    "Stack",
    "Status",
    "Writer",
    "merge",
    "place_of",
]
