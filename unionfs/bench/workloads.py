"""What is done to each mount: ordinary programs and system calls, timed by the worker.

Little is imported: the worker starts often, and may run in a user namespace.

Invariant: a workload checks what it read or did and raises `WrongError` otherwise, so that a
fast wrong answer is an error and no record.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from unionfs.bench.shape import BLOCK, NEEDLE, Shape
from unionfs.errors import UsageError, show

__all__ = [
    "LAYER_WORKLOADS",
    "TREE_WORKLOADS",
    "WORKLOADS",
    "Workload",
    "WrongError",
    "choose",
    "titles",
]

Program = Callable[[str, Shape], int]
_PAGE: Final = 4096
_SEED: Final = 20
#: tar(5): headers and data come in blocks, blocks in records.
_TAR_BLOCK: Final = 512
_TAR_RECORD: Final = 20


class WrongError(Exception):
    """The mount showed or did something else than it should."""


@attrs.frozen
class Workload:
    """A program; it returns how much it did (files or bytes). `again` times a second pass too.

    `writes` says that it changes files, `settle` that what others left dirty must be on the disk
    first. `needs` is a program without which it is left out; `agree`: all subjects must do as much.
    """

    key: str
    title: str
    run: Program
    again: bool = False
    writes: bool = False
    settle: bool = False
    needs: str | None = None
    agree: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the measured passes: the first is cold unless it writes."""
        if self.writes:
            return (self.key,)
        return (f"{self.key}.cold", f"{self.key}.again") if self.again else (f"{self.key}.cold",)


def _expect(found: int, wanted: int, what: str) -> int:
    if found != wanted:
        raise WrongError(f"{found} {what} instead of {wanted}")
    return found


def _program(*argv: str, environment: dict[str, str] | None = None) -> bytes:
    """Run a program and return its output; its standard input is not the worker's."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False, env=environment
    )
    _expect(done.returncode, 0, f"as exit status of {argv[0]}")
    return done.stdout


def _walk_tree(top: str) -> int:
    count = 0
    for directory, _, files in os.walk(top):
        for name in files:
            os.lstat(os.path.join(directory, name))
        count += len(files)
    return count


def _walk(target: str, shape: Shape) -> int:
    return _expect(_walk_tree(f"{target}/walk"), shape.many, "files")


def _tar_size(target: str, tree: str) -> int:
    """`tar` to a pipe: it reads nothing when it sees that its output is /dev/null."""
    total = 0
    argv = ["tar", "-C", target, "-cf", "-", tree]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdout is not None  # noqa: S101  # it was asked for
        while read := child.stdout.read(BLOCK):
            total += len(read)
    _expect(child.returncode, 0, "as exit status of tar")
    return total


def _tar(target: str, shape: Shape) -> int:
    total = _tar_size(target, "tar")
    entries = shape.many + shape.directories + 1
    data = shape.many * -(-shape.small // _TAR_BLOCK)
    blocks = entries + data + 2  # two of zeros at the end
    return _expect(total, -(-blocks // _TAR_RECORD) * _TAR_RECORD * _TAR_BLOCK, "bytes from tar")


def _read_files(top: str, size: int) -> int:
    total = 0
    for name in os.listdir(top):
        with open(os.path.join(top, name), "rb", buffering=0) as file:
            total += _expect(len(file.read(2 * size)), size, f"bytes of {name}")
    return total


def _clients(target: str, shape: Shape) -> int:
    """Several processes, each with its share of the directories."""
    children = []
    for number in range(shape.clients):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                for directory in range(number, shape.directories, shape.clients):
                    found = _read_files(f"{target}/clients/d{directory}", shape.small)
                    _expect(found, shape.files * shape.small, "bytes")
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    for pid in children:
        _expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, "as exit status of a client")
    return shape.many


def _python(target: str, shape: Shape) -> int:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import many; print(len(dir(many)))"
    names = int(_program(sys.executable, "-I", "-S", "-B", "-c", code, f"{target}/modules"))
    if names < shape.modules:
        raise WrongError(f"only {names} names after importing {shape.modules} modules")
    return shape.modules


def _git(target: str, shape: Shape) -> int:
    """`git status` without the refreshed index, which a reader need not write."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_GLOBAL": os.devnull}
    argv = ("git", "-c", "safe.directory=*", "-C", f"{target}/repo", "status", "--porcelain")
    _expect(len(_program(*argv, environment=environment)), 0, "bytes of changes by git status")
    return shape.tracked


def _grep(target: str, _: Shape) -> int:
    found = _program("grep", "-r", "-l", NEEDLE, f"{target}/grep")
    return _expect(found.count(b"\n"), 1, "files found by grep")


def _read_big(target: str, shape: Shape) -> int:
    total = 0
    with open(f"{target}/big", "rb", buffering=0) as file:
        buffer = memoryview(bytearray(BLOCK))
        while count := file.readinto(buffer):
            total += count
    return _expect(total, shape.big, "bytes")


def _random(target: str, shape: Shape) -> int:
    chosen = random.Random(_SEED)  # noqa: S311  # the same places for everybody
    with open(f"{target}/full", "rb", buffering=0) as file:
        for _ in range(shape.randoms):
            place = chosen.randrange(shape.big // _PAGE) * _PAGE
            _expect(len(os.pread(file.fileno(), _PAGE, place)), _PAGE, "bytes")
    return shape.randoms


def _mapped(target: str, shape: Shape) -> int:
    """Touch every page of the file through a mapping."""
    with (
        open(f"{target}/full", "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
    ):
        pages = len(data[::_PAGE])
    return _expect(pages, shape.big // _PAGE, "pages")


def _create(target: str, shape: Shape) -> int:
    os.mkdir(f"{target}/new")
    for number in range(shape.created):
        with open(f"{target}/new/n{number}", "wb", buffering=0) as file:
            file.write(b"x" * 100)
    return _expect(len(os.listdir(f"{target}/new")), shape.created, "new files")


def _untar(target: str, shape: Shape) -> int:
    os.mkdir(f"{target}/extracted")
    archive = os.path.join(os.environ["UNIONFS_BENCH_PLACE"], "archive.tar")
    _program("tar", "--no-same-owner", "-C", f"{target}/extracted", "-xf", archive)
    found = sum(len(files) for _, _, files in os.walk(f"{target}/extracted"))
    return _expect(found, shape.created, "files")


def _delete(target: str, shape: Shape) -> int:
    top = f"{target}/delete/d0"
    names = os.listdir(top)
    for name in names:
        os.unlink(f"{top}/{name}")
    _expect(len(os.listdir(top)), 0, "files left")
    return _expect(len(names), shape.deleted, "files deleted")


def _delete_big(target: str, _: Shape) -> int:
    """Delete one that nothing has read through the mount: dropping pages is another cost."""
    os.unlink(f"{target}/doomed")
    _expect(int(os.path.lexists(f"{target}/doomed")), 0, "big file left")
    return 1


def _rename(target: str, shape: Shape) -> int:
    top = f"{target}/rename/d0"
    for name in os.listdir(top):
        os.rename(f"{top}/{name}", f"{top}/{name}.new")
    names = os.listdir(top)
    _expect(sum(name.endswith(".new") for name in names), len(names), "names are new")
    return _expect(len(names), shape.touched, "files renamed")


def _chmod(target: str, shape: Shape) -> int:
    top = f"{target}/chmod/d0"
    names = os.listdir(top)
    for name in names:
        os.chmod(f"{top}/{name}", 0o640)
    for name in names:
        _expect(os.lstat(f"{top}/{name}").st_mode & 0o777, 0o640, "as mode")
    return _expect(len(names), shape.touched, "files changed")


def _append(target: str, shape: Shape) -> int:
    top = f"{target}/append/d0"
    names = os.listdir(top)
    for name in names:
        _append_to(f"{top}/{name}", shape.small)
    return _expect(len(names), shape.touched, "files appended to")


def _append_to(path: str, size: int) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"x")
    _expect(os.lstat(path).st_size, size + 1, f"bytes in {path}")


def _copy_up(name: str) -> Program:
    def run(target: str, shape: Shape) -> int:
        _append_to(f"{target}/{name}", shape.big)
        return 1

    return run


#: In the order in which each round does them; those that change files come last.
WORKLOADS: Final = (
    Workload("walk", "tree walk with stat", _walk, again=True),
    Workload("tar", "read of all small files (tar)", _tar, again=True, needs="tar"),
    Workload("clients", "4 clients reading small files", _clients),
    Workload("python", "python start with many imports", _python, again=True),
    Workload("git", "git status", _git, again=True, needs="git"),
    Workload("grep", "grep -r", _grep, again=True, needs="grep"),
    Workload("big", "big file, sequential read", _read_big, again=True),
    Workload("random", "random 4 KiB reads", _random),
    Workload("mmap", "big file through mmap", _mapped, again=True),
    Workload("create", "create files", _create, writes=True, settle=True),
    Workload("untar", "extract a tar", _untar, writes=True, needs="tar"),
    Workload("delete", "delete lower files", _delete, writes=True),
    Workload("rename", "rename lower files", _rename, writes=True),
    Workload("chmod", "chmod of lower files", _chmod, writes=True),
    Workload("append", "first append to small lower files", _append, writes=True, settle=True),
    Workload(
        "sparse", "copy-up of the big sparse file", _copy_up("sparse"), writes=True, settle=True
    ),
    Workload("full", "copy-up of the big full file", _copy_up("full"), writes=True, settle=True),
    Workload("delete-big", "delete the big lower file", _delete_big, writes=True, settle=True),
)


def _first(target: str, shape: Shape) -> int:
    count = 0
    for name in os.listdir(f"{target}/d"):
        os.lstat(f"{target}/d/{name}")
        count += 1
    return _expect(count, shape.listed, "files")


def _absent(target: str, shape: Shape) -> int:
    for number in range(shape.listed):
        try:
            os.lstat(f"{target}/d/absent{number}")
        except FileNotFoundError:
            continue
        raise WrongError(f"absent{number} is there")
    return shape.listed


def _open_all(target: str, shape: Shape) -> int:
    for number in range(shape.listed):
        with open(f"{target}/d/f{number}", "rb", buffering=0) as file:
            _expect(len(file.read(10)), 1, "bytes")
    return shape.listed


#: Against the number of layers; the mount has one directory `d` that all layers share.
LAYER_WORKLOADS: Final = (
    Workload("list", "list and stat a directory", _first, again=True),
    Workload("absent", "look up absent names in a known directory", _absent),
    Workload("open", "open and read files of a known directory", _open_all),
)


def _walk_all(target: str, _: Shape) -> int:
    return _walk_tree(target)


#: Against the number of files.
TREE_WORKLOADS: Final = (Workload("tree", "tree walk with stat", _walk_all),)


def titles() -> dict[str, str]:
    """Return the title of every measured pass by its key."""
    found = {}
    for workload in (*WORKLOADS, *LAYER_WORKLOADS, *TREE_WORKLOADS, *IMAGE_WORKLOADS):
        for key in workload.keys:
            suffix = {"cold": ", cold", "again": ", again"}.get(key.rpartition(".")[2], "")
            found[key] = workload.title + suffix
    return found


def _tar_all(target: str, _: Shape) -> int:
    return _tar_size(target, ".")


#: For an image, whatever is in it.
IMAGE_WORKLOADS: Final = (
    Workload("image-walk", "tree walk of the image with stat", _walk_all, again=True, agree=True),
    Workload("image-tar", "read of the whole image (tar)", _tar_all, again=True, needs="tar"),
)


#: What grows, by the names that choose it.
GROWTH: Final = ("layers", "files")


def choose(names: Sequence[str]) -> tuple[list[Workload], frozenset[str]]:
    """Return the workloads and the growth of these names, all for none.

    `UsageError` names the known ones.
    """
    known = [*(workload.key for workload in WORKLOADS), *GROWTH]
    for name in names:
        if name not in known:
            raise UsageError(f"no workload {show(name)}; there are {', '.join(known)}")
    chosen = [workload for workload in WORKLOADS if not names or workload.key in names]
    return chosen, frozenset(names or GROWTH) & frozenset(GROWTH)
