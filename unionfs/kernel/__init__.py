"""Kernel unions (AUFS, overlayfs) over branches in AUFS form, and the choice between them."""
