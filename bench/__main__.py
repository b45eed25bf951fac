"""`python -m bench ARGUMENTS` in a checkout is `unionfs bench ARGUMENTS`."""

from __future__ import annotations

import sys

from unionfs.cli.boundary import run

if __name__ == "__main__":
    sys.exit(run(["bench", *sys.argv[1:]]))
