"""The table of operations on a mounted union, with real tools on real mounts.

Each row: what is done on the mount, and what the writable branch holds after unmounting.
The lower layer is `support.fuseplace.LAYER`. "semantics" numbers (O1-O30) name the rows.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from support.fuseplace import MountFailedError, Place, place_for, tree_of

pytestmark = pytest.mark.fuse

#: Row -> script run in the mount, contents of the writable branch afterwards.
ROWS = {
    "O1 delete": ("rm f; ! test -e f", [".wh.f"]),
    "O2 delete and create": (
        "setfattr -n user.a -v 1 f; rm f; echo n > f; ! getfattr -n user.a f 2>/dev/null",
        ["f"],
    ),
    "O3 create and delete": ("echo x > n; rm n", []),
    "O5 rm -r": ("rm -r d; ! ls d 2>/dev/null", [".wh.d"]),
    "O6 rm -r and mkdir": ('rm -r d; mkdir d; test -z "$(ls d)"', ["d/", "d/.wh..wh..opq"]),
    "O7 and create in it": (
        'rm -r d; mkdir d; echo n > d/a; test "$(ls d)" = a',
        ["d/", "d/.wh..wh..opq", "d/a"],
    ),
    "O8 empty and rmdir": ("rm d/a d/b; rmdir d", [".wh.d"]),
    "O9 directory becomes file": ("rm -r d; echo file > d; test -f d", ["d"]),
    "file becomes directory": ('rm f; mkdir f; touch f/x; test "$(ls f)" = x',
                               ["f/", "f/.wh..wh..opq", "f/x"]),
    "O10 rename": ('mv f g; test "$(cat g)" = lower; ! test -e f', [".wh.f", "g"]),
    "O11 rename over a lower file": ('mv f d/a; test "$(cat d/a)" = lower',
                                     [".wh.f", "d/", "d/a"]),
    "O13 rename a new directory": ("mkdir n; touch n/x; mv n m; test -e m/x", ["m/", "m/x"]),
    "O16 open for writing, no write": (
        "python3 -c 'import os; os.close(os.open(\"f\", os.O_RDWR))'", [],
    ),
    "O17 truncate": (": > f; test ! -s f", ["f"]),
    "O19 write one of a linked pair": (
        "echo more >> p; cmp p q; test $(stat -c %h p) = 2; test $(stat -c %i p) = $(stat -c %i q)",
        ["p", "q"],
    ),
    "O20 link": ("ln f g; test $(stat -c %i f) = $(stat -c %i g); test $(stat -c %h f) = 2",
                 ["f", "g"]),
    "O25 rmdir of a non-empty directory": ("! rmdir d 2>/dev/null; test -e d/a", []),
    "delete one of a linked pair": ('rm p; test "$(cat q)" = pair', [".wh.p"]),
    "symlink replaced": ('ln -sfn d s; test "$(cat s/a)" = aaa', ["s"]),
    "append": ('echo more >> f; test "$(cat f)" = lowermore', ["f"]),
    "sed -i": ('sed -i s/lower/upper/ f; test "$(cat f)" = upper', ["f"]),
    "fifo and its use": ('mkfifo n; (echo hi > n &); test "$(cat n)" = hi', ["n"]),
    "chmod copies up": ('chmod 640 f; test $(stat -c %a f) = 640; test "$(cat f)" = lower', ["f"]),
    "touch keeps content": (
        "touch -d @1234567890.123456789 f; test $(stat -c %.9Y f) = 1234567890.123456789; cat f",
        ["f"],
    ),
    "chmod of a directory": ("chmod 700 d; test \"$(ls d | tr -d '\\n')\" = ab", ["d/"]),
    "user attribute": (
        "setfattr -n user.k f; getfattr -d f | grep k; setfattr -x user.k f; ! getfattr f|grep k",
        ["f"],
    ),
    "cp -a": ("cp -a d e; diff -r d e; test $(stat -c %Y d) = $(stat -c %Y e)",
              ["e/", "e/a", "e/b"]),
    "tar through the mount": (
        "tar cf ../t .; mkdir x; tar xpf ../t -C x; diff -r d x/d; test $(stat -c %h x/p) = 2",
        ["x/", "x/d/", "x/d/a", "x/d/b", "x/f", "x/p", "x/q", "x/s"],
    ),
    "sparse file keeps its size": ("truncate -s 1G big; test $(stat -c %s big) = 1073741824",
                                   ["big"]),
    "name with odd bytes": ("touch \"$(printf 'a\\nb\\377')\"; rm -f a*; ls", []),
}  # fmt: skip


def test_what_is_new_belongs_to_its_maker_at_once(place: Place) -> None:
    """The answer that makes it says so, and the branch when it is mounted again."""
    place.mount(rw="rw")
    made = "mnt/file mnt/directory mnt/link mnt/fifo"
    place.sh("touch mnt/file; mkdir mnt/directory; ln -s file mnt/link; mkfifo mnt/fifo")
    own = place.sh("echo $(id -u):$(id -g)") * 4
    assert place.sh(f"stat -c %u:%g {made}") == own
    place.umount()
    place.mount(rw="rw")
    assert place.sh(f"stat -c %u:%g {made}") == own


@pytest.mark.parametrize("row", ROWS)
def test_row(place: Place, row: str) -> None:
    script, expected = ROWS[row]
    place.mount(rw="rw")
    place.sh(f"cd mnt; {script}")
    place.umount()
    assert tree_of(place.path / "rw") == expected
    assert tree_of(place.path / "base") == ["d/", "d/a", "d/b", "f", "p", "q", "s"]
    # Another mount of the same branches shows what the first one showed.
    place.mount(rw="rw")
    names = place.sh("ls -A mnt").split("\n")
    hidden = [name[4:] for name in expected if name.startswith(".wh.")]
    assert not set(hidden) & set(names)


def test_o4_create_over_a_whiteout_of_a_middle_layer(place: Place) -> None:
    place.sh("mkdir mid; touch mid/.wh.f")
    place.mount("mid", "base", rw="rw")
    place.fails("cat mnt/f")
    place.sh("echo n > mnt/f")
    place.umount()
    assert tree_of(place.path / "rw") == ["f"]


def test_o12_rename_of_a_lower_directory_works(place: Place) -> None:
    place.mount(rw="rw")
    place.sh('mv -T mnt/d mnt/e; test -z "$(ls mnt/d 2>/dev/null)"; cat mnt/e/a')
    place.sh('mkdir mnt/d; test -z "$(ls mnt/d)"; mv mnt/e mnt/d/; cat mnt/d/e/b')
    place.umount()
    place.mount(rw="rw")
    assert place.sh("cat mnt/d/e/a mnt/d/e/b; ls mnt") == "aaabbbd\nf\np\nq\ns\n"


def test_o12_rename_of_a_big_lower_directory(place: Place) -> None:
    place.sh("mkdir -p base/big/sub; cd base/big; for i in $(seq 60); do echo $i > sub/f$i; done; "
             "head -c 3000000 /dev/urandom > data; ln data link")  # fmt: skip
    facts = "find . -type f | sort | xargs sha256sum; stat -c '%h %i' data link"
    before = place.sh(f"cd base/big; {facts}")
    place.mount(rw="rw")
    assert "Operation not permitted" in place.fails("mv mnt/big mnt/.wh.x")
    assert "too long" in place.fails(f"mv -T mnt/big mnt/{'n' * 252}")
    place.sh("mv -T mnt/big mnt/new; test ! -e mnt/big")
    assert place.sh(f"cd mnt/new; {facts}") == before
    place.umount()
    place.mount(rw="rw")
    assert place.sh(f"cd mnt/new; {facts}; test ! -e ../big") == before


_RENAME = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
flags, old, new = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3].encode()
print(ctypes.get_errno() if libc.renameat2(-100, old, -100, new, flags) else 0)
"""


@pytest.mark.parametrize(
    ("flags", "old", "new", "code"),
    [
        (1, "f", "g", 0),
        (1, "f", "p", errno.EEXIST),
        (1, "d", "f", errno.EEXIST),
        (2, "f", "d", 0),
        (2, "f", "p", 0),
        (2, "f", "absent", errno.ENOENT),
        (4, "f", "g", errno.EINVAL),
    ],
)
def test_o14_rename_flags(place: Place, flags: int, old: str, new: str, code: int) -> None:
    place.mount(rw="rw")
    before = {name: place.sh(f"cat mnt/{name} 2>&1 || ls mnt/{name} 2>&1 || true")
              for name in (old, new)}  # fmt: skip
    answer = place.py(_RENAME, str(flags), f"{place.path}/mnt/{old}", f"{place.path}/mnt/{new}")
    assert int(answer) == code
    if flags == 2 and code == 0:
        for name, other in ((old, new), (new, old)):
            shown = place.sh(f"cat mnt/{other} 2>&1 || ls mnt/{other} 2>&1 || true")
            assert shown.replace(f"mnt/{other}", f"mnt/{name}") == before[name]


def test_o15_copy_up_keeps_everything(place: Place) -> None:
    place.sh(
        "mkdir -p base/deep/er; printf x > base/deep/er/file; "
        "truncate -s 8M base/deep/er/file; setfattr -n user.k -v v base/deep/er/file; "
        "setfattr -n user.d -v v base/deep; chmod 2751 base/deep; chmod 640 base/deep/er/file; "
        "touch -d @1000000000.111222333 base/deep/er/file base/deep/er base/deep"
    )
    facts = ("cd mnt; stat -c '%n %a %u %g %s %.9Y' deep deep/er; "
             "stat -c '%a %u %g %s %i' deep/er/file; getfattr -d -R deep")  # fmt: skip
    place.mount(rw="rw")
    before = place.sh(facts)
    place.sh("setfattr -n user.new -v 1 mnt/deep/er/file; setfattr -x user.new mnt/deep/er/file")
    assert place.sh(facts) == before
    place.umount()
    assert tree_of(place.path / "rw") == ["deep/", "deep/er/", "deep/er/file"]
    assert (place.path / "rw/deep/er/file").stat().st_blocks < 2048  # the hole stayed one


def test_o18_a_reader_sees_what_is_written_after_copy_up(place: Place) -> None:
    place.mount(rw="rw")
    code = (
        "import os\n"
        "r = os.open('mnt/f', os.O_RDONLY); ino = os.fstat(r).st_ino\n"
        "w = os.open('mnt/f', os.O_WRONLY); os.write(w, b'UPPER')\n"
        "assert os.read(r, 9) == b'UPPER', 'old data'\n"
        "assert os.fstat(w).st_ino == ino == os.stat('mnt/f').st_ino\n"
    )
    place.py(code)


def test_o21_reserved_names_cannot_be_made(place: Place) -> None:
    place.mount(rw="rw")
    for name in (".wh.x", ".wh..wh.y", ".wh.", ".wh..wh..opq"):
        for script in ("touch {}", "mkdir {}", "ln f {}", "mv f {}", "ln -s x {}", "mkfifo {}",
                       "cp f {}"):  # fmt: skip
            complaint = place.fails("cd mnt; " + script.format(name))
            assert "Operation not permitted" in complaint, script
        assert "No such file" in place.fails(f"cat mnt/{name}")
        assert "No such file" in place.fails(f"cat mnt/d/{name}")
    assert place.sh("ls -A mnt") == "d\nf\np\nq\ns\n"
    place.umount()
    assert tree_of(place.path / "rw") == []


def test_o22_o23_long_names(place: Place) -> None:
    long = "n" * 255
    place.sh(f"touch base/{long}")
    place.mount(rw="rw")
    assert place.sh("stat -f -c %l mnt") == "251\n"
    assert "too long" in place.fails(f"touch mnt/{'x' * 252}")
    place.sh(f"touch mnt/{'x' * 251}; rm mnt/{'x' * 251}; cat mnt/{long}; rm mnt/{long}")
    place.fails(f"cat mnt/{long}")
    place.umount()
    place.mount(rw="rw")
    assert long not in place.sh("ls mnt")


def test_o24_listing_while_deleting(place: Place) -> None:
    place.sh("mkdir base/many; cd base/many; seq 10000 | xargs touch")
    place.mount(rw="rw")
    code = (
        "import os\n"
        "gone, seen = set(), []\n"
        "with os.scandir('mnt/many') as listing:\n"
        "    for count, entry in enumerate(listing):\n"
        "        seen.append(entry.name)\n"
        "        if count % 3 == 0:\n"
        "            os.unlink(entry.path); gone.add(entry.name)\n"
        "assert len(seen) == len(set(seen)) == 10000\n"
        "left = set(os.listdir('mnt/many'))\n"
        "assert left == set(seen) - gone, (len(left), len(gone))\n"
    )
    place.py(code)


def test_o27_mode_of_the_root_directory(place: Place) -> None:
    place.mount(rw="rw")
    assert place.sh("stat -c %a mnt") == "755\n"
    place.sh("chmod 700 mnt")
    place.umount()
    place.mount(rw="rw")
    assert place.sh("stat -c %a mnt") == "700\n"


def test_unlinked_open_files_live_on(place: Place) -> None:
    place.mount(rw="rw")
    code = (
        "import os\n"
        "for name in ('mnt/f', 'mnt/new'):\n"
        "    fd = os.open(name, os.O_RDWR | os.O_CREAT)\n"
        "    os.unlink(name)\n"
        "    assert not os.path.lexists(name)\n"
        "    os.pwrite(fd, b'still here', 0)\n"
        "    os.ftruncate(fd, 5); os.fchmod(fd, 0o600); os.utime(fd, ns=(1, 2))\n"
        "    assert os.pread(fd, 20, 0) == b'still'\n"
        "    st = os.fstat(fd)\n"
        "    assert (st.st_size, st.st_nlink, st.st_mode & 0o777) == (5, 0, 0o600), st\n"
        "    assert st.st_mtime_ns == 2, st\n"
        "    os.close(fd)\n"
    )
    place.py(code)
    place.umount()
    assert tree_of(place.path / "rw") == [".wh.f"]


@pytest.mark.parametrize("change", ["echo y >> mnt/su", ": > mnt/su", "truncate -s 9 mnt/su"])
def test_writes_clear_setuid(root: Place, change: str) -> None:
    root.sh("printf x > base/su; chmod 6777 base/su")
    root.mount(rw="rw", options=["suid"])
    root.sh(f"stat mnt/su; {change}; chmod 6777 mnt/su")
    root.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", change)
    assert root.sh("stat -c %a mnt/su") == "777\n"
    root.sh("chmod 4755 mnt/su; chown 5:6 mnt/su")
    assert root.sh("stat -c '%a %u %g' mnt/su") == "755 5 6\n"


def test_setgid_directories_hand_on_their_group(root: Place) -> None:
    root.sh("mkdir base/g; chgrp 50 base/g; chmod 2775 base/g")
    root.mount(rw="rw")
    root.sh("touch mnt/g/f; mkdir mnt/g/d")
    assert root.sh("stat -c '%g %a' mnt/g/f mnt/g/d") == "50 644\n50 2755\n"


def test_root_makes_real_devices_and_owners(root: Place) -> None:
    root.mount(rw="rw", options=["dev"])
    root.sh("cd mnt; mknod null c 1 3; mknod blk b 7 9; touch o; chown 33:44 o; chown -h 1:2 s")
    root.sh("echo gone > mnt/null")
    facts = "cd mnt; stat -c '%n %F %t:%T %u:%g' null blk o s"
    before = root.sh(facts)
    root.umount()
    root.mount(rw="rw")
    assert (
        root.sh(facts)
        == before
        == (
            "null character special file 1:3 0:0\nblk block special file 7:9 0:0\n"
            "o regular empty file 0:0 33:44\ns symbolic link 0:0 1:2\n"
        )
    )


def test_capabilities_are_kept_by_copy_up_and_cleared_by_writes(root: Place) -> None:
    root.sh("cp /bin/true base/cap")
    os.setxattr(root.path / "base/cap", "security.capability", bytes.fromhex(
        "0100000200200000000000000000000000000000"))  # fmt: skip
    root.mount(rw="rw")
    root.sh("touch mnt/cap")
    get = "getfattr -e hex --only-values -n security.capability mnt/cap"
    assert root.run("sh", "-c", get, check=False).returncode == 0
    root.sh("echo x >> mnt/cap")
    assert root.run("sh", "-c", get, check=False).returncode == 1
    root.sh("setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 mnt/cap")
    assert root.run("sh", "-c", get, check=False).returncode == 0


def test_a_plain_user_stands_for_root(user: Place) -> None:
    user.sh("chmod 600 base/f; chmod 700 base/d")
    user.mount(rw="rw")
    uid = user.sh("id -u").strip()
    assert user.sh("stat -c %u mnt/f mnt/d").split() == [uid, uid]
    user.sh("cd mnt; touch n; chown 0:0 n; chown 33:44 f; chmod 4711 f; chmod 0 d")
    assert user.sh("stat -c '%u:%g %a' mnt/f") == "33:44 4711\n"
    assert user.sh("cat mnt/d/a") == "aaa"
    user.umount()
    user.mount(rw="rw")
    assert user.sh("stat -c '%u:%g %a' mnt/f mnt/d mnt/n").split("\n")[:2] == [
        "33:44 4711", f"{uid}:{uid} 0",
    ]  # fmt: skip
    assert user.sh("stat -c '%u:%g' mnt/n") == "0:0\n"
    # Whoever is root of the image sees what the user is shown as: id 0.
    assert b":" in os.getxattr(user.path / "rw/f", "user.containers.override_stat")


def test_squash_and_maps(place: Place) -> None:
    place.mount(rw="rw", options=["squash_to_uid=12,squash_to_gid=13"])
    assert place.sh("stat -c %u:%g mnt/f mnt/d") in ("12:13\n12:13\n", "65534:65534\n65534:65534\n")
    place.umount()
    if place.way != "userns":
        place.mount(rw="rw", options=["uidmapping=0:500:10,gidmapping=0:600:10"])
        assert place.sh("stat -c %u:%g mnt/f") == "500:600\n"
        if place.way == "root":
            place.sh("chown 503:604 mnt/f")
            assert place.sh("stat -c %u:%g mnt/f") == "503:604\n"
            assert "Value too large" in place.fails("chown 7 mnt/f")
            assert (place.path / "rw/f").stat().st_uid == 3


@pytest.mark.usefixtures("as_root")
def test_user_namespace_root_can_delete_what_others_own() -> None:
    """Only real root can make such a layer; root of a namespace then works on it."""
    with place_for("userns") as place:
        place.sh("mkdir base")
        (place.path / "base/d").mkdir()
        (place.path / "base/d/f").write_text("x")
        os.chown(place.path / "base/d", 33, 33)
        os.chown(place.path / "base/d/f", 33, 34)
        place.mount(rw="rw")
        place.sh("rm mnt/d/f; touch mnt/d/g; rm -r mnt/d")
        place.umount()
        assert tree_of(place.path / "rw") == [".wh.d"]


def test_directory_without_rights_as_root_of_the_image(user: Place) -> None:
    user.sh("chmod 555 base/d")
    user.mount(rw="rw")
    user.sh("touch mnt/d/new; rm mnt/d/a")
    assert user.sh("ls mnt/d; stat -c %a mnt/d") == "b\nnew\n555\n"


def test_posix_acls(place: Place) -> None:
    place.mount(rw="rw")
    uid = place.sh("id -u").strip()
    place.sh(f"setfacl -m u:{uid}:rw,g::r mnt/f; setfacl -d -m u:{uid}:rwx mnt/d")
    assert place.sh("stat -c %A mnt/f")[4:6] == "rw"  # the mask is the group part of the mode
    shown = place.sh("getfacl -n --omit-header mnt/f")
    assert f"user:{uid}:rw-" in shown
    place.sh("touch mnt/d/n")
    assert f"user:{uid}:" in place.sh("getfacl -n --omit-header mnt/d/n")
    place.umount()
    place.mount(rw="rw")
    assert place.sh("getfacl -n --omit-header mnt/f") == shown
    place.sh("setfacl -b mnt/f")
    assert "mask" not in place.sh("getfacl --omit-header mnt/f")


@pytest.mark.parametrize(("options", "seen"), [([], True), (["noallow_other"], False)])
def test_mounts_of_root_are_for_everybody(root: Place, options: list[str], seen: bool) -> None:  # noqa: FBT001  # a parameter
    root.mount(rw="rw", options=options)
    root.sh("umask 077; echo mine > mnt/d/mine")
    other = "setpriv --reuid=65534 --regid=65534 --clear-groups cat mnt/"
    assert (root.run("sh", "-c", other + "f", check=False).stdout == "lower") is seen
    assert "Permission denied" in root.fails(other + "d/mine")


def test_acls_are_enforced_for_others(root: Place) -> None:
    root.sh("chmod 600 base/f")
    root.mount(rw="rw", options=["allow_other"])
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", "mnt/f")
    assert root.run(*nobody, check=False).returncode == 1
    root.sh("setfacl -m u:65534:r mnt/f")
    assert root.run(*nobody).stdout == "lower"


def test_statfs_shows_the_writable_branch(place: Place) -> None:
    place.mount(rw="rw")
    shown, real = os.statvfs(place.path / "rw"), place.sh("stat -f -c '%S %b %s' mnt").split()
    assert real == [str(shown.f_frsize), str(shown.f_blocks), str(shown.f_bsize)]


def test_layers_under_a_changing_mount_stay_as_they_are(place: Place) -> None:
    facts = (
        "find base -printf '%p %m %U %G %s %T@ %C@ %n %i\n' | sort; find base -type f | xargs cat"
    )
    before = place.sh(facts)
    place.mount(rw="rw")
    place.sh("cd mnt; echo x >> f; chmod 0 d; rm -r d; mv p z; ln s t; setfattr -n user.k -v 1 q")
    place.umount()
    assert place.sh(facts) == before


def test_writable_branch_needs_attributes_for_a_plain_user(user: Place, root: Place) -> None:
    """Ramfs keeps no user attributes."""
    rw = user.path / "rw"
    user.sh("mkdir rw")
    root.run("mount", "-t", "ramfs", "ramfs", str(rw))
    try:
        root.run("chown", "65534:65534", str(rw))
        with pytest.raises(MountFailedError, match="attributes"):
            user.mount(rw="rw")
        assert user.leftovers() == []
        assert list(Path(rw).iterdir()) == []
    finally:
        root.run("umount", str(rw))


def test_attribute_flags_and_kinds(root: Place) -> None:
    root.mount(rw="rw")
    code = (
        "import errno, os\n"
        "def code(flags, name='user.k'):\n"
        "    try: os.setxattr('mnt/f', name, b'v', flags)\n"
        "    except OSError as exc: return exc.errno\n"
        "    return 0\n"
        "assert code(os.XATTR_REPLACE) == errno.ENODATA\n"
        "assert code(os.XATTR_CREATE) == 0\n"
        "assert code(os.XATTR_CREATE) == errno.EEXIST\n"
        "assert code(os.XATTR_REPLACE) == 0\n"
        "assert code(0, 'trusted.mine') == 0\n"
        "assert code(0, 'trusted.overlay.opaque') == errno.EPERM\n"
        "assert code(0, 'user.containers.override_stat') == errno.EPERM\n"
        "assert sorted(os.listxattr('mnt/f')) == ['trusted.mine', 'user.k']\n"
        "big = os.urandom(3000); os.setxattr('mnt/f', 'user.big', big)\n"
        "assert os.getxattr('mnt/f', 'user.big') == big\n"
    )
    root.py(code)


def test_full_disk(user: Place, root: Place) -> None:
    user.sh("mkdir rw; head -c 3000000 /dev/urandom > base/big; sha256sum base/big > sum")
    root.run("mount", "-t", "tmpfs", "-o", "size=1m,uid=65534,gid=65534", "none", user.path / "rw")
    try:
        user.mount(rw="rw")
        assert "No space left" in user.fails("cat mnt/f >> mnt/big")
        user.sh("sed s/base/mnt/ sum | sha256sum -c --quiet")
        assert "No space left" in user.fails("head -c 2000000 /dev/zero > mnt/n")
        user.sh("rm mnt/n; rm mnt/f; echo small > mnt/n; : > mnt/big")
        user.umount()
        assert tree_of(user.path / "rw") == [".wh.f", "big", "n"]
    finally:
        user.close()
        root.run("umount", "-l", user.path / "rw")


def test_a_refused_change_of_an_attribute_copies_nothing_up(place: Place) -> None:
    place.mount(rw="rw")
    place.py("""
import errno, os
def code(change, *args):
    try: change("mnt/f", *args)
    except OSError as exc: return exc.errno
assert code(os.removexattr, "user.absent") == errno.ENODATA
assert code(os.setxattr, "user.unionfs.path", b"forged") == errno.EPERM
""")
    place.umount()
    assert tree_of(place.path / "rw") == []
