"""The command line: the only package that talks to people.

One module per verb, imported when its verb is used; `group` finds them, `boundary`
turns errors into one line and an exit status, `output` and `progress` do all printing.

Invariant: a command that makes something prints its id or path, alone, as the last
line on standard output; words go to standard error. `unionfs --help` and the store
commands import neither pyfuse3 nor trio.
"""

from unionfs.cli.boundary import main as main

__all__ = ["main"]
