"""Calling `unionfs run` on one directory, with the credentials of a place."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.fuseplace import Place

__all__ = ["Runner"]


class Runner:
    """A place with the tree in it as `image`; calls `unionfs run` there."""

    def __init__(self, place: Place, image: Path, backend: str) -> None:
        self.place = place
        self.backend = backend
        self.image = image

    def argv(self, *words: str, verb: str = "run") -> list[str]:
        """Return the command line of `unionfs VERB --layer IMAGE WORDS...`."""
        options = ["--backend", self.backend, "--layer", str(self.image)]
        return [*self.place.python, "-m", "unionfs", verb, *options, *words]

    def run(
        self, *words: str, stdin: str | None = None, verb: str = "run", status: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; `status` is the exit status it must have."""
        options = {} if stdin is None else {"stdin": None, "input": stdin}
        done = self.place.run(*self.argv(*words, verb=verb), check=False, **options)
        if status is not None:
            assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done

    def out(self, *words: str) -> str:
        """Return what a command that must succeed prints."""
        return self.run(*words, status=0).stdout

    def sh(self, script: str, *options: str) -> str:
        """Return what a shell script run inside prints."""
        return self.out(*options, "--", "sh", "-ec", script)
