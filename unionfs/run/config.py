"""What an image and its user say about the command: words, environment, directory, user.

Invariant: whatever the image's configuration holds, a `RunConfig` has words that can be
executed (no NUL bytes, at least one) and an environment of NAME=VALUE pairs; anything
else is a `UsageError` that names the field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from unionfs.errors import UsageError, show

__all__ = ["DEFAULT_PATH", "RunConfig"]

#: What Docker and podman give a command whose image sets no PATH.
DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELLS: Final = (b"/bin/bash", b"/bin/sh")


def _word(value: object, field: str) -> bytes:
    if not isinstance(value, str):
        raise UsageError(f"the image's {field} is not text")
    try:
        word = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise UsageError(f"the image's {field} is not text") from exc
    if b"\0" in word:
        raise UsageError(f"{field} {show(word)} has a NUL byte")
    return word


def _words(value: object, field: str) -> tuple[bytes, ...]:
    """Return a list of words; one string means a shell command, as in the shell form."""
    if value is None or value in ("", []):
        return ()
    if isinstance(value, str):
        return (b"/bin/sh", b"-c", _word(value, field))
    if not isinstance(value, list):
        raise UsageError(f"the image's {field} is neither a list nor text")
    return tuple(_word(item, field) for item in value)


def _environment(value: object) -> dict[bytes, bytes]:
    if value is None:
        return {}
    if not isinstance(value, list):
        raise UsageError("the image's Env is not a list")
    pairs = (_word(item, "Env").partition(b"=") for item in value)
    return {name: text for name, equals, text in pairs if name and equals}


@attrs.frozen
class RunConfig:
    """A command to run: `argv`, `env`, `workdir` (absolute, inside), `user` as in USER.

    `instead` are programs to try in place of `argv[0]` where the image does not have it.
    """

    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    workdir: bytes = b"/"
    user: bytes = b""
    instead: tuple[bytes, ...] = ()

    @classmethod
    def build(
        cls,
        image: Mapping[str, Any],
        command: Sequence[bytes] = (),
        *,
        env: Sequence[bytes] = (),
        workdir: bytes | None = None,
        user: bytes | None = None,
        entrypoint: bytes | None = None,
        shell: bool = False,
    ) -> RunConfig:
        """Combine the `config` object of an image with the options of the command line.

        `env` holds `NAME=VALUE`, or `NAME` to pass the caller's value on. A given command
        replaces Cmd; `entrypoint` replaces Entrypoint and drops Cmd, empty for none (as
        `docker run` does). `shell` runs bash or sh and ignores Entrypoint and Cmd.
        """
        if shell:
            argv: tuple[bytes, ...] = (_SHELLS[0],)
        elif entrypoint is not None:
            argv = ((entrypoint,) if entrypoint else ()) + tuple(command)
        else:
            argv = _words(image.get("Entrypoint"), "Entrypoint")
            argv += tuple(command) or _words(image.get("Cmd"), "Cmd")
        if not argv or not argv[0]:
            raise UsageError("the image names no command; give one after its name")
        variables = {b"PATH": DEFAULT_PATH, b"container": b"unionfs"}
        if os.isatty(0) and b"TERM" in os.environb:
            variables[b"TERM"] = os.environb[b"TERM"]
        variables |= _environment(image.get("Env"))
        variables |= _chosen(env)
        if user is None:
            user = _word(image.get("User") or "", "User")
        if workdir is None:
            workdir = _word(image.get("WorkingDir") or "/", "WorkingDir")
        if not workdir.startswith(b"/"):
            workdir = b"/" + workdir
        for word in (*argv, *variables, *variables.values(), user, workdir):
            if b"\0" in word:
                raise UsageError(f"{show(word)} has a NUL byte")
        return cls(argv, variables, workdir, user, _SHELLS[1:] if shell else ())


def _chosen(env: Sequence[bytes]) -> dict[bytes, bytes]:
    chosen = {}
    for item in env:
        name, equals, value = item.partition(b"=")
        if not name:
            raise UsageError(f"--env {show(item)}: write NAME=VALUE")
        if equals:
            chosen[name] = value
        elif name in os.environb:
            chosen[name] = os.environb[name]
    return chosen
