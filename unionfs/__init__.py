"""unionfs: mount container images, layer on layer, without root.

The packages form a chain in which data flows one way: `archive` reads what
other tools write, `store` keeps images as layers on disk, `union` merges
layers under a writable branch, and `fuse` serves the result; `cli` is the only
place that talks to people. `branch` is the ground under all of them: what one
directory tree in AUFS form means. Nothing here imports pyfuse3 or trio except
`fuse`, so store commands start fast.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
