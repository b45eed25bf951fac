"""Why a path is visible, hidden or gone: reading branches to explain, not to serve.

Everything here reads the branches themselves, never through a mount, and changes nothing
but in `fix` and `convert`, which say so.
"""
