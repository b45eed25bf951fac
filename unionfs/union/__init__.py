"""The union engine: layers and a rw branch as one filesystem, without FUSE.

Data flows from `unionfs.branch` through here to whoever serves it.
"""

from unionfs.union.copyup import CopyPlan as CopyPlan
from unionfs.union.engine import Engine as Engine
from unionfs.union.options import Attr as Attr
from unionfs.union.options import Caller as Caller
from unionfs.union.options import DirItem as DirItem
from unionfs.union.options import EngineOptions as EngineOptions
from unionfs.union.options import HardlinkTable as HardlinkTable
from unionfs.union.options import SetAttr as SetAttr
from unionfs.union.rename import MAX_BYTES as MAX_BYTES
from unionfs.union.rename import MAX_ENTRIES as MAX_ENTRIES

__all__ = [
    "MAX_BYTES",
    "MAX_ENTRIES",
    "Attr",
    "Caller",
    "CopyPlan",
    "DirItem",
    "Engine",
    "EngineOptions",
    "HardlinkTable",
    "SetAttr",
]
