"""How many requests a lane has answered, and for whom; known when its mount has ended."""

from __future__ import annotations

import collections
import contextlib
import json
import time
from typing import Final, NamedTuple

from support.fuseplace import Place
from unionfs.fuse.protocol import Op

__all__ = ["Counts", "count_requests", "counted"]

_COUNT: Final = """
import collections as counting_collections, json as counting_json
from unionfs.fuse import lane as counting_lane
def counting(
    self, message, take=counting_lane.Lane._take, asked=counting_collections.Counter()
):
    opcode, pid = (int.from_bytes(message[at : at + 4], "little") for at in (4, 32))
    asked[opcode] += pid != self._scout.pid
    take(self, message)
counting_lane.Lane._take = counting
def reporting(self, close=counting_lane.Lane.close, asked=counting.__defaults__[1]):
    with open({base!r} + "/counts", "w") as file:
        counting_json.dump([list(asked.items()), self._ahead.sent], file)
    close(self)
counting_lane.Lane.close = reporting
"""


class Counts(NamedTuple):
    """Requests of programs (not the lister's) by kind, and files sent in advance."""

    asked: collections.Counter[Op]
    sent: int


def count_requests(place: Place) -> None:
    """Have the mounts of a place counted from now on."""
    place.patch(_COUNT.format(base=str(place.path)))


def counted(place: Place) -> Counts:
    """Return the counts of the mount that ended last; its process may still be about to end."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            asked, sent = json.loads((place.path / "counts").read_text())
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    known = ((Op(code), count) for code, count in asked if code in set(Op))
    return Counts(collections.Counter(dict(known)), sent)
