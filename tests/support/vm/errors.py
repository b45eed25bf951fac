"""What goes wrong with the harness itself, in one line."""

from __future__ import annotations

__all__ = ["VmError"]


class VmError(Exception):
    """A message for whoever runs `make test-vm`: what, where, what to do."""
