"""Talking to a mount of a place with the credentials of the place."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

from support.fuseplace import Place

__all__ = ["ADAPTERS", "ask", "mounted", "socket_of", "unionfs"]

#: Mount options that choose who answers.
ADAPTERS: Final = ("nolane", "lane")

_ASK: Final = r"""
import json, os, sys
from unionfs.control.client import connected
from unionfs.control.protocol import Request
from unionfs.errors import UnionfsError
with connected(os.fsencode(sys.argv[1])) as client:
    answers = []
    for question in sys.argv[2:]:
        try:
            answers.append(client.ask(Request(**json.loads(question))))
        except UnionfsError as exc:
            answers.append({"kind": type(exc).__name__, "message": str(exc)})
print(json.dumps(answers))
"""


def mounted(place: Place, adapter: str, *layers: str, **words: Any) -> int:
    """Mount with one of the adapters on `mnt`; return the daemon's pid."""
    words.setdefault("rw", "rw")
    pid: int = place.mount(*layers, options=[adapter], **words)["pid"]
    return pid


def socket_of(place: Place) -> str:
    """Return the path of the only control socket of a place."""
    (name,) = [name for name in place.leftovers() if name.endswith(".sock")]
    return str(place.path / ".run" / "unionfs" / name)


def ask(place: Place, do: str, **words: Any) -> Any:
    """Put one question to the only mount of a place; errors come as `kind` and `message`."""
    question = json.dumps({"do": do, **words})
    (answer,) = json.loads(place.py(_ASK, socket_of(place), question))
    return answer


def unionfs(place: Place, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command line in a place."""
    done = place.run(*place.python, "-m", "unionfs", *words, check=False)
    assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done
