"""Where errors become one line on standard error and an exit status.

Invariant: nobody sees a traceback who has not asked for one (`UNIONFS_TRACEBACK=1` or
`-v`); a defect of unionfs leaves its details in a file named in the message.

Exit status: 0 done; 1 failed; 2 the request makes no sense; 70 a defect of unionfs;
128 + N ended by signal N (130: Ctrl-C).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from unionfs.cli.defects import keep_traceback
from unionfs.cli.group import cli
from unionfs.cli.signals import Terminated
from unionfs.errors import UnionfsError, show

__all__ = ["INTERNAL_ERROR", "describe", "main", "run"]

INTERNAL_ERROR: Final = 70
_INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141


def _say(message: str) -> None:
    # Messages are one line whatever is quoted in them.
    line = " ".join(message.split("\n"))
    with contextlib.suppress(OSError):
        print(f"unionfs: {line}", file=sys.stderr, flush=True)  # noqa: T201  # the one place for errors


def describe(error: OSError) -> str:
    """Return an operating system error as a message: file name first, as Unix tools do."""
    reason = error.strerror or str(error) or type(error).__name__
    names = [
        show(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes | os.PathLike) and name
    ]
    if error.errno == errno.ENOSPC:
        reason += "; nothing half-made was kept, free some space and try again"
    return f"{' -> '.join(names)}: {reason}" if names else reason


def _usage(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    if error.ctx is None:
        return message
    return f"{message} (see `{error.ctx.command_path} --help`)"


def _internal(error: BaseException) -> None:
    if os.environ.get("UNIONFS_TRACEBACK", "") not in ("", "0") or cli.verbosity:
        traceback.print_exception(error)
        where = "details are above"
    else:
        try:
            where = f"details are in {show(keep_traceback(error))}"
        except OSError:
            where = "run it again with -v for details"
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    _say(f"internal error ({text}); this is a defect of unionfs, please report it; {where}")


def _silence_stdout() -> None:
    """Keep the interpreter from complaining about unwritten output at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status."""
    cli.verbosity = 0
    try:
        result = cli.main(args=arguments, prog_name="unionfs", standalone_mode=False)
        sys.stdout.flush()
    except NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)  # noqa: T201  # help, not an error line
        return error.exit_code
    except click.UsageError as error:
        _say(_usage(error))
        return error.exit_code
    except click.ClickException as error:
        _say(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except Terminated as ended:
        return 128 + ended.number
    except UnionfsError as error:
        _say(str(error))
        return error.exit_status
    except BrokenPipeError:
        _silence_stdout()
        return _BROKEN_PIPE
    except OSError as error:
        _say(describe(error))
        return 1
    except MemoryError:
        _say("out of memory")
        return 1
    except Exception as error:  # noqa: BLE001  # the boundary: everything else is a defect
        _internal(error)
        return INTERNAL_ERROR
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that the locale cannot spell must not end the command.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # TextIO in typeshed, a TextIOWrapper in life
    sys.exit(run())
