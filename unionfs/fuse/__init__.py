"""The union as a FUSE file system: device, options, request handlers, session.

Only `ops` and `session` import pyfuse3 and trio; `device`, `idmap` and `options` are
cheap, so that the commands that start and stop mounts stay fast.
"""
