"""The control socket of a mount: what `unionfs stats`, `trace`, `undelete` and others talk to.

It lies beside the mount's record, is the owner's alone (mode 0600, and the peer's credentials
are looked at), and speaks the protocol of `unionfs.control`. It is served by the daemon's
event loop, a task for each client.

Invariant: a client can do no harm but with a valid request: lines and clients are bounded,
writing to one that does not read ends in time, and whatever happens in its task ends only
its connection.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import trio

from unionfs.control.protocol import MAX_REQUEST, VERSION, Request, decode, encode
from unionfs.errors import UnionfsError, UnsupportedError, UsageError, show
from unionfs.fuse.meter import BUCKETS, bucket_bound
from unionfs.fuse.notify import Notifier
from unionfs.fuse.registry import MountRecord
from unionfs.fuse.serving import Serving
from unionfs.fuse.trace import Tracing, Watcher
from unionfs.union.undo import Undo

__all__ = ["Control"]

_log = logging.getLogger(__name__)
_CLIENTS: Final = 16
#: Seconds that a client may take to read an answer.
_PATIENCE: Final = 30.0
_CREDENTIALS: Final = struct.Struct("=iII")
_LEVELS: Final = ("debug", "info", "warning", "error")


def _listen(path: bytes) -> socket.socket:
    """Make the socket; its path may be longer than an address can be (unix(7))."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        place = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            link.bind(b"/proc/self/fd/%d/%b" % (place, os.path.basename(path)))
        finally:
            os.close(place)
        link.listen(_CLIENTS)
    except BaseException:
        link.close()
        raise
    finally:
        os.umask(before)
    return link


class Control:
    """The server of one mount. `record` returns what the mount says about itself."""

    def __init__(self, serving: Serving, record: Callable[[], MountRecord | None]) -> None:
        self._engine = serving.engine
        self._meter = serving.meter
        self._policy = serving.policy
        self._record = record
        self._link: socket.socket | None = None
        self._notifier: Notifier | None = None
        self._undoing = trio.Lock()
        self._slots = trio.CapacityLimiter(_CLIENTS)
        self._answers: dict[str, Callable[[Request], Any]] = {
            "ping": self._ping,
            "stats": self._stats,
            "log-level": self._log_level,
        }

    @contextlib.contextmanager
    def open(self, path: bytes, device: int) -> Iterator[None]:
        """Have the socket at `path` for the block, and a way to notify the kernel."""
        with contextlib.ExitStack() as stack:
            self._notifier = Notifier(device)
            stack.callback(self._notifier.close)
            self._link = stack.enter_context(_listen(path))
            stack.callback(_remove, path)
            yield

    async def serve(self) -> None:
        """Serve clients until cancelled; afterwards the device is left alone."""
        if self._link is None or self._notifier is None:
            raise RuntimeError("not open")
        listener = trio.socket.from_stdlib_socket(self._link)
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        client, _ = await listener.accept()
                    except OSError as exc:
                        _log.debug("control socket: %s", exc)
                        await trio.sleep(1)
                        continue
                    nursery.start_soon(self._client, trio.SocketStream(client))
        finally:
            self._notifier.close()

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                if not _may_ask(stream.socket):
                    return
                self._slots.acquire_on_behalf_of_nowait(stream)
                try:
                    await self._talk(stream)
                finally:
                    self._slots.release_on_behalf_of(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.WouldBlock):
            pass
        except Exception:  # noqa: BLE001  # this is the boundary: the mount goes on
            _log.exception("a client of the control socket was dropped")

    async def _talk(self, stream: trio.SocketStream) -> None:
        rest = bytearray()
        while True:
            end = rest.find(b"\n")
            if end < 0:
                if len(rest) > MAX_REQUEST:
                    await _send(stream, _error(UsageError("the request is too long")))
                    return
                part = await stream.receive_some(MAX_REQUEST)
                if not part:
                    return
                rest += part
                continue
            line = bytes(rest[:end])
            del rest[: end + 1]
            try:
                request = decode(line)
                if request.do == "trace":
                    await self._trace(stream, request)
                    return
                answer = {"ok": await self._answer(request)}
            except (UnionfsError, OSError) as exc:
                answer = _error(exc)
            await _send(stream, answer)

    async def _answer(self, request: Request) -> Any:
        if request.do in self._answers:
            return self._answers[request.do](request)
        if request.do in {undo.value for undo in Undo}:
            return await self._undo(request)
        if request.do == "invalidate":
            return await self._invalidate(request)
        if request.do == "explain":
            return await trio.to_thread.run_sync(self._explain, request)
        raise UsageError(f"unknown request `{request.do}`")

    # -- requests --------------------------------------------------------------------

    def _ping(self, request: Request) -> Any:
        del request
        record = self._record()
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "target": None if record is None else record.target,
            "lane": record is not None and record.lane,
        }

    def _stats(self, request: Request) -> Any:
        del request
        meter = self._meter
        record = self._record()
        tracing = meter.tracing
        return {
            "target": None if record is None else record.target,
            "backend": "fuse",
            "lane": record is not None and record.lane,
            "since": meter.started,
            "seconds": time.time() - meter.started,
            "buckets": [bucket_bound(index) for index in range(BUCKETS)],
            "requests": meter.requests(),
            **self._engine.counters(),
            "watchers": 0 if tracing is None else len(tracing.watchers),
        }

    def _log_level(self, request: Request) -> Any:
        logger = logging.getLogger("unionfs")
        if request.level is not None:
            if request.level not in _LEVELS:
                raise UsageError(f"the levels of the log are {', '.join(_LEVELS)}")
            logger.setLevel(request.level.upper())
        return {"level": logging.getLevelName(logger.getEffectiveLevel()).lower()}

    def _explain(self, request: Request) -> Any:
        from unionfs.insight.explain import explain  # noqa: PLC0415  # only when asked for
        from unionfs.insight.where import of_mount  # noqa: PLC0415  # only when asked for

        record = self._record()
        if record is None:
            raise UnsupportedError("the mount is not ready yet")
        return explain(of_mount(record), _path(request)).document()

    async def _invalidate(self, request: Request) -> Any:
        entries, inodes = self._engine.known(b"" if request.path is None else _path(request))
        for inode in inodes:
            self._policy.forget(inode)
        await self._tell(entries, inodes)
        return {"names": len(entries), "inodes": len(inodes)}

    async def _undo(self, request: Request) -> Any:
        async with self._undoing:
            undo = Undo(request.do)
            done = self._engine.restore(
                undo, _path(request), only_plan=request.only_plan, stake=request.stake
            )
            if not request.only_plan:
                await self._tell(done.entries, done.inodes)
                await trio.to_thread.run_sync(done.discard)
        return done.plan.document(undo)

    async def _tell(self, entries: list[tuple[int, bytes]], inodes: list[int]) -> None:
        notifier = self._notifier
        if notifier is None:
            raise RuntimeError("not open")

        # The kernel may wait for a request that is answered here: never on this thread.
        await trio.to_thread.run_sync(notifier.forget, entries, inodes, abandon_on_cancel=True)

    async def _trace(self, stream: trio.SocketStream, request: Request) -> None:
        """Send events until the client closes its end."""
        token = trio.lowlevel.current_trio_token()
        more = trio.Event()

        def wake() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(more.set)

        path = None if request.path is None else b"/" + _path(request).strip(b"/")
        watcher = Watcher(request.pid, request.op, path, wake)
        tracing = self._meter.tracing or Tracing(self._engine)
        tracing.watchers = (*tracing.watchers, watcher)
        self._meter.tracing = tracing
        try:
            async with trio.open_nursery() as nursery:

                async def until_closed() -> None:
                    while await stream.receive_some(MAX_REQUEST):
                        pass
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_closed)
                await _send(stream, {"ok": {"tracing": True}})
                while True:
                    await more.wait()
                    more = trio.Event()
                    for line in watcher.take():
                        await _send(stream, line)
        finally:
            tracing.watchers = tuple(item for item in tracing.watchers if item is not watcher)
            if not tracing.watchers and self._meter.tracing is tracing:
                self._meter.tracing = None


def _path(request: Request) -> bytes:
    if request.path is None:
        raise UsageError(f"`{request.do}` needs a path")
    path = os.fsencode(request.path)
    if b"\0" in path:
        raise UsageError("a path has no NUL")
    return path


def _may_ask(link: Any) -> bool:
    """Tell whether the peer is the owner of the mount, or root."""
    raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (os.geteuid(), 0)


def _error(exc: Exception) -> dict[str, Any]:
    kind, message = type(exc).__name__, str(exc)
    if isinstance(exc, OSError):
        kind, names = "OSError", (exc.filename, exc.filename2)
        words = [show(name) for name in names if isinstance(name, str | bytes)]
        message = ": ".join([*words, exc.strerror or message])
    return {"error": {"kind": kind, "message": message}}


def _remove(path: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


async def _send(stream: trio.SocketStream, line: Any) -> None:
    with trio.move_on_after(_PATIENCE) as scope:
        await stream.send_all(encode(line))
    if scope.cancelled_caught:
        raise trio.BrokenResourceError
