"""What a command line left behind, for the tests that run one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = ["CHECKOUT", "Done", "Run", "child_env"]

CHECKOUT: Final = Path(__file__).resolve().parents[2]


def child_env(**more: str) -> dict[str, str]:
    """Return an environment in which a child finds this checkout wherever it starts.

    It buffers its output as for everybody, whatever the environment of the tests says.
    """
    inherited = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": str(CHECKOUT), **more}


@attrs.frozen
class Done:
    """What a command left: exit status, standard output and error as text."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Done]
