"""What people are told when the machine does not let them mount, and what helps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.fuseplace import MountFailedError, Place

pytestmark = pytest.mark.fuse


class Altered(Place):
    """A plain user's place on a machine that is different: in a mount namespace of root's."""

    def __init__(self, place: Place, script: str) -> None:
        change = f'mount --make-rprivate /; {script}; exec "$@"'
        prefix = ("unshare", "-m", "sh", "-euc", change, "sh", *place.prefix)
        super().__init__(place.way, place.path, prefix)


@pytest.fixture
def scratch(user: Place) -> Path:
    """Return a directory of root's for the files that replace those of the machine."""
    if os.geteuid():
        pytest.skip("needs uid 0 to alter a copy of the machine")
    user.sh("mkdir mnt")
    path = user.path / "scratch"
    path.mkdir()
    return path


def _refused(place: Place, script: str, **words: object) -> MountFailedError:
    with pytest.raises(MountFailedError) as caught:
        Altered(place, script).mount(**words)  # type: ignore[arg-type]  # options of the request
    assert "\n" not in str(caught.value)
    assert place.leftovers() == []
    return caught.value


def test_no_device(user: Place, scratch: Path) -> None:
    (scratch / "null").touch()
    script = f"mount -t tmpfs none {scratch}; mknod {scratch}/null c 1 3; chmod 666 {scratch}/null;"
    script += f"mkdir {scratch}/fd; mount --bind {scratch} /dev"
    error = _refused(user, script)
    assert (error.kind, "no /dev/fuse" in str(error)) == ("UnsupportedError", True)
    assert "modprobe fuse" in str(error)


def test_device_for_root_only(user: Place, scratch: Path) -> None:
    script = f"mknod -m 600 {scratch}/fuse c 10 229; mount --bind {scratch}/fuse /dev/fuse"
    error = _refused(user, script)
    assert (error.kind, "chmod 666 /dev/fuse" in str(error)) == ("UnsupportedError", True)


def test_no_helper(user: Place, scratch: Path) -> None:
    (scratch / "nothing").touch()
    helper = os.path.realpath("/usr/bin/fusermount3")
    script = f"chmod 644 {scratch}/nothing; mount --bind {scratch}/nothing {helper}"
    error = _refused(user, script)
    assert error.kind == "UnsupportedError"
    assert "install the package fuse3" in str(error)
    assert "unshare" in str(error)


def test_helper_without_its_rights(user: Place, scratch: Path) -> None:
    helper = os.path.realpath("/usr/bin/fusermount3")
    script = (
        f"cp {helper} {scratch}/helper; chmod 755 {scratch}/helper; "
        f"mount --bind {scratch}/helper {helper}"
    )
    error = _refused(user, script)
    assert (error.kind, "not set-uid" in str(error)) == ("UnsupportedError", True)


def test_allow_other_is_not_allowed(user: Place) -> None:
    if "\nuser_allow_other" in "\n" + Path("/etc/fuse.conf").read_text():
        pytest.skip("this machine allows it")
    with pytest.raises(MountFailedError, match=r"/etc/fuse\.conf") as caught:
        user.mount(rw="rw", options=["allow_other"])
    assert caught.value.kind == "UnsupportedError"
    assert not (user.path / "rw").exists()


def test_allow_other_where_the_machine_allows_it(user: Place, scratch: Path) -> None:
    (scratch / "fuse.conf").write_text("user_allow_other\n")
    (scratch / "fuse.conf").chmod(0o644)
    place = Altered(user, f"mount --bind {scratch}/fuse.conf /etc/fuse.conf")
    question = place.foreground(rw="rw", options=["allow_other"])
    script = (
        '"$@" & while ! grep -q " $PWD/mnt " /proc/self/mountinfo; do sleep 0.1; done; '
        "stat -c %u mnt/f; cat mnt/f; kill $!; wait"
    )
    assert "lower" in place.run("sh", "-euc", script, "sh", *question).stdout


def test_options_that_need_root(user: Place) -> None:
    with pytest.raises(MountFailedError, match="suid and dev need root") as caught:
        user.mount(options=["suid"])
    assert caught.value.kind == "UsageError"


def test_target_of_somebody_else(user: Place) -> None:
    if os.geteuid():
        pytest.skip("needs uid 0 to make a directory of somebody else")
    (user.path / "mnt").mkdir(0o755)
    with pytest.raises(MountFailedError, match="of your own") as caught:
        user.mount(rw="rw")
    assert caught.value.kind == "UsageError"
    assert user.mount_table() == []
    assert not (user.path / "rw").exists()
