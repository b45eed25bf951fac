"""The loopback device of a new network namespace: it exists, but it is down.

Invariant: touches no device but `lo` of the caller's own network namespace.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import Final

__all__ = ["raise_loopback"]

# netdevice(7): struct ifreq is a name of 16 bytes and a union of 24.
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFREQ: Final = struct.Struct("16sh22x")


def raise_loopback() -> None:
    """Set `lo` up; the kernel gives it its addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = _IFREQ.pack(b"lo", 0)
        name, flags = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, request))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))
