"""The `-o` options: what each means, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from unionfs import _sys
from unionfs.errors import UsageError
from unionfs.fuse.idmap import IdMap
from unionfs.fuse.options import LONG_TIMEOUT, MountOptions


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("", {}),
        ("ro", {"read_only": True}),
        ("ro,rw", {"read_only": False}),
        ("suid,dev,noexec", {"nosuid": False, "nodev": False, "noexec": True}),
        ("allow_other", {"allow_other": True}),
        ("allow_other,noallow_other", {"allow_other": False}),
        ("default_permissions", {"default_permissions": True}),
        ("defaults,noauto,_netdev,x-systemd.automount,volatile", {"volatile": True}),
        ("nonempty", {"nonempty": True}),
        ("noacl", {"acl": False}),
        ("squash_to_root", {"squash_uid": 0, "squash_gid": 0}),
        ("squash_to_uid=5,squash_to_gid=6", {"squash_uid": 5, "squash_gid": 6}),
        ("uidmapping=0:1000:1", {"uidmapping": "0:1000:1"}),
        ("entry_timeout=2.5", {"entry_timeout": 2.5}),
        ("fsname=img:1,subtype=u", {"fsname": "img:1", "subtype": "u"}),
        ("timeout=3", {"entry_timeout": 3.0, "attr_timeout": 3.0, "negative_timeout": 3.0}),
        (
            "attr_timeout=9,coherent",
            {"coherent": True, "entry_timeout": 0.0, "attr_timeout": 9.0, "negative_timeout": 0.0},
        ),
    ],
)
def test_meaning(text: str, changed: dict[str, Any]) -> None:
    assert MountOptions.parse([text]) == MountOptions(**changed)


def test_several_o_add_up() -> None:
    options = MountOptions.parse(["ro,coherent", "rw"])
    assert (options.read_only, options.coherent) == (False, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("coherrent", ["unknown mount option 'coherrent'", "did you mean coherent?"]),
        ("squash_to_uuid=3", ["did you mean squash_to_uid?"]),
        ("zzz", ["unknown mount option 'zzz'"]),
        ("max_read=4096", ["max_read cannot be used", "read-ahead"]),
        ("lowerdir=/a:/b", ["--layer"]),
        ("upperdir=/a", ["--rw"]),
        ("ro=1", ["ro takes no value"]),
        ("uidmapping", ["uidmapping needs a value"]),
        ("uidmapping=1:2", ["IMAGE:SHOWN:COUNT"]),
        ("squash_to_uid=root", ["numeric id"]),
        ("squash_to_uid=4294967295", ["numeric id"]),
        ("entry_timeout=-1", ["seconds"]),
        ("entry_timeout=nan", ["seconds"]),
        ("fsname=a b", ["fsname"]),
        ("fsname=a\\040b", ["fsname"]),
        ("squash_to_root,uidmapping=0:0:1", ["exclude each other"]),
        ("evil\n", ["evil\\n"]),
    ],
)
def test_refusals_name_the_option(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        MountOptions.parse([text])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_choices_are_settled_by_caller_and_branch() -> None:
    options = MountOptions()
    root = options.settled(uid=0, writable=True)
    assert (root.read_only, root.default_permissions, root.allow_other) == (False, True, True)
    alone = MountOptions.parse(["noallow_other"]).settled(uid=0, writable=True)
    assert (alone.default_permissions, alone.allow_other) == (True, False)
    user = options.settled(uid=1000, writable=False)
    assert (user.read_only, user.default_permissions, user.allow_other) == (True, False, False)
    shared = MountOptions.parse(["allow_other"]).settled(uid=1000, writable=True)
    assert shared.default_permissions
    assert MountOptions.parse(["ro"]).settled(uid=0, writable=True).read_only


def test_flags_for_both_ways_of_mounting() -> None:
    options = MountOptions.parse(["ro,noexec,allow_other"]).settled(uid=0, writable=False)
    flags = options.mount_flags()
    assert flags & _sys.MS_RDONLY
    assert flags & _sys.MS_NOSUID
    assert flags & _sys.MS_NODEV
    assert options.helper_options().split(",") == [
        "fsname=unionfs", "subtype=unionfs", "ro", "nosuid", "nodev", "noexec",
        "default_permissions", "allow_other",
    ]  # fmt: skip


def test_maps_follow_the_caller() -> None:
    users, groups = MountOptions().id_maps(uid=1000, gid=100)
    assert (users, groups) == (IdMap.bijective(1000), IdMap.bijective(100))
    users, groups = MountOptions.parse(["squash_to_uid=3,gidmapping=0:9:1"]).id_maps(uid=5, gid=5)
    assert (users.shown(0), groups.shown(0)) == (3, 9)


def test_default_timeouts_are_long() -> None:
    options = MountOptions()
    assert options.entry_timeout == options.attr_timeout == options.negative_timeout == LONG_TIMEOUT
