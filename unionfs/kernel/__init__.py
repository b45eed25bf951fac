"""Kernel unions (AUFS, overlayfs) over branches in AUFS form, and the choice between them.

`mount_fastest` tries aufs, overlay and leaves fuse to the caller; `keep` stays beside the mount
and finishes it; `settle_if_needed` repairs what a killed keeper left; `probe_all` tells what works.

What differs from the FUSE union, for reasons that lie in the kernel:

overlay, always
    Renaming a directory that lies in a layer is EXDEV (mv(1) copies). Opening a file for
    writing copies it up. What was mapped into memory before a copy-up keeps showing the old
    file. Names reserved for whiteouts can be made; at unmount they lose their first dot.
    Our own bookkeeping xattrs are listed, and a recorded capability is not effective.
    Whatever a plain user's store only records (owners, setuid, devices) is not shown: `auto`
    takes FUSE then, `--backend overlay` tells what is lost, and refuses devices.
overlay, in a user namespace
    No hard-link index: a name that is written leaves its group. Inode numbers change at
    copy-up. Layers of somebody else are refused.
aufs
    Names beyond 242 bytes, pairs of an entry and its whiteout, and whiteouts that are no
    regular file are refused; plain directories in which a file lies between two directories
    of one name show the lower one too (imported layers are in a form where they do not).
    Renaming a directory of a layer is EXDEV, mappings and bookkeeping xattrs as above.
"""
