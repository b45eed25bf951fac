"""Talking to a live mount: the line protocol of its control socket, and the client's side.

The server's side is `unionfs.fuse.control`: it belongs to the daemon's event loop.
"""

from unionfs.control.client import Client as Client
from unionfs.control.client import connect as connect
from unionfs.control.protocol import VERSION as VERSION
from unionfs.control.protocol import Request as Request

__all__ = ["VERSION", "Client", "Request", "connect"]
