"""What becomes of an image's configuration and the words of the command line."""

from __future__ import annotations

from typing import Any

import pytest

from unionfs.errors import UsageError
from unionfs.run.config import DEFAULT_PATH, RunConfig


@pytest.mark.parametrize(
    ("image", "command", "entrypoint", "expected"),
    [
        ({"Cmd": ["a", "b"]}, (), None, (b"a", b"b")),
        ({"Cmd": ["a", "b"]}, (b"c",), None, (b"c",)),
        ({"Entrypoint": ["e", "-x"], "Cmd": ["a"]}, (), None, (b"e", b"-x", b"a")),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, (b"c", b"d"), None, (b"e", b"c", b"d")),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, (), b"other", (b"other",)),
        ({"Entrypoint": ["e"], "Cmd": ["a"]}, (b"c",), b"", (b"c",)),
        ({"Cmd": "echo $HOME"}, (), None, (b"/bin/sh", b"-c", b"echo $HOME")),
        ({"Entrypoint": None, "Cmd": ["a"], "Env": None}, (), None, (b"a",)),
        ({"Cmd": ["caf\udce9"]}, (), None, (b"caf\xe9",)),
    ],
)
def test_words(
    image: dict[str, Any],
    command: tuple[bytes, ...],
    entrypoint: bytes | None,
    expected: tuple[bytes, ...],
) -> None:
    assert RunConfig.build(image, command, entrypoint=entrypoint).argv == expected


@pytest.mark.parametrize(
    "image",
    [
        {},
        {"Cmd": []},
        {"Cmd": [""]},
        {"Cmd": 5},
        {"Cmd": [5]},
        {"Cmd": {"a": "b"}},
        {"Cmd": ["a\0b"]},
        {"Cmd": ["\ud800"]},
        {"Cmd": ["a"], "Env": "A=1"},
        {"Cmd": ["a"], "Env": [["A"]]},
        {"Cmd": ["a"], "User": 0x41},
        {"Cmd": ["a"], "WorkingDir": ["/"]},
        {"Cmd": ["a"], "WorkingDir": "/a\0"},
    ],
)
def test_configurations_that_cannot_be_run(image: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RunConfig.build(image)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HOST", "1")
    image = {"Cmd": ["a"], "Env": ["A=1", "B=x=y", "=odd", "novalue", "A=2"]}
    env = RunConfig.build(image, env=[b"B=new", b"FROM_HOST", b"NOT_THERE", b"E="]).env
    env.pop(b"TERM", None)
    assert env == {
        b"PATH": DEFAULT_PATH,
        b"container": b"unionfs",
        b"A": b"2",
        b"B": b"new",
        b"FROM_HOST": b"1",
        b"E": b"",
    }
    with pytest.raises(UsageError):
        RunConfig.build(image, env=[b"=x"])


def test_directory_and_user() -> None:
    image = {"Cmd": ["a"], "WorkingDir": "srv/app", "User": "www:www"}
    config = RunConfig.build(image)
    assert (config.workdir, config.user) == (b"/srv/app", b"www:www")
    config = RunConfig.build(image, workdir=b"/tmp", user=b"0")
    assert (config.workdir, config.user) == (b"/tmp", b"0")


def test_a_shell_ignores_what_the_image_is_made_for() -> None:
    config = RunConfig.build({"Entrypoint": ["e"], "Cmd": ["a"]}, shell=True)  # noqa: S604  # no line to parse
    assert (config.argv, config.instead) == ((b"/bin/bash",), (b"/bin/sh",))
