"""The same layers through several engines: what each shows, where they differ and why.

`contest.contest` runs the engines and compares what they show; each engine gives a stream of
paths with what stat, readlink, getxattr and read say there. The reference is `reference`, the OCI
specification applied in memory.

Invariant: the layers are only read; whatever is mounted or unpacked is gone when it ends.
"""
