"""The gateway: the API on a unix socket, optionally on a loopback port, and over the mesh.

Hypercorn speaks HTTP on each connection; accepting them is done here. Its writes are shielded
from cancellation, so a client that stops reading could hold the daemon for ever: at the end
every connection that is still open is closed under it.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from swarmd.base.errors import ConfigError, DataFolderRefused, PortTaken
from swarmd.gateway.app import make_app
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.context import Context
from swarmd.gateway.forward import FORWARD, Forwarder, serve_forwarded
from swarmd.gateway.http import Budget
from swarmd.gateway.services import Services
from swarmd.mesh.link import Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED

_BACKLOG: Final = 128
# What is being answered may end; then connections are closed.
_GRACE_S: Final = 2.0
_IDLE_CLOSE_S: Final = 120.0
_PROBE_TIMEOUT_S: Final = 1.0
_SOCKET_MODE: Final = 0o660
# How an answer's head begins; an informational one (RFC 9110, 15.2) is no head.
_FINAL_HEADS: Final = tuple(b"HTTP/1.1 %d" % digit for digit in (2, 3, 4, 5))

log = get_logger("gateway")


class _Connection(TCPServer):
    """One connection, which ends when either side has closed it.

    Left to itself Hypercorn waits for the next request of a client that is gone, and for more
    of a request whose answer has closed the connection. It also writes the head of an answer
    alone, and starts and ends a task with every request to see whether another one comes: here
    the head waits for what follows it at once, and one task watches all the pauses.
    """

    _gone = False
    _head = b""

    async def run(self) -> None:
        self._paused = trio.Event()
        self._paused.set()
        self._paused_at = trio.current_time()
        with trio.CancelScope() as self._scope:
            await super().run()

    async def _read_data(self) -> None:
        await super()._read_data()
        self._gone = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._note_pause(event.idle)
            return
        if isinstance(event, RawData):
            if event.data.startswith(_FINAL_HEADS):
                self._head += event.data
                return
            data, self._head = self._head + event.data, b""
            if data:
                await self._write(data)
            return
        await super().protocol_send(event)
        if isinstance(event, Closed):
            self._scope.cancel()

    async def _write(self, data: bytes) -> None:
        """Write at once: to take the lock, free or not, would cost a turn of the loop."""
        try:
            self.send_lock.acquire_nowait()
        except trio.WouldBlock:
            await self.send_lock.acquire()
        try:
            with trio.CancelScope(shield=True):
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())
        finally:
            self.send_lock.release()

    def _note_pause(self, paused: bool) -> None:
        if paused:
            self._paused_at = trio.current_time()
            self._paused.set()
        elif self._paused.is_set():
            self._paused = trio.Event()

    async def _idle_timeout(self) -> None:
        """Close once a pause was too long, or at the first one when the gateway ends."""
        while True:
            await self._paused.wait()
            before = self._paused_at
            with trio.move_on_at(before + self.config.keep_alive_timeout):
                await self.context.terminated.wait()
            same = self._paused_at == before
            if self._paused.is_set() and (same or self.context.terminated.is_set()):
                break
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()


class Gateway:
    """The running API. `attach` lets peers forward requests, once there is a mesh."""

    def __init__(self, context: Context, nursery: trio.Nursery, path: Path) -> None:
        self._context = context
        self._nursery = nursery
        self._wrapper = ASGIWrapper(self._serve)
        self._worker = WorkerContext(None)
        self._http = _http_config()
        self._streams: set[trio.SocketStream] = set()
        self._drained = trio.Event()
        self._accepting = trio.CancelScope()
        self.path = path
        self.app = make_app(context)
        self.front = Forwarder(self.app, context.services, context.config, context.budget)
        self.tcp_address: tuple[str, int] | None = None
        """Where it listens on the loopback, if it does."""

    def attach(self, link: Link) -> None:
        """Carry out what peers forward over `link`, from now on. Call it once per link."""
        inbox = link.open_inbox(FORWARD)
        context = self._context
        self._nursery.start_soon(
            serve_forwarded, self.app, link, inbox, context.config, context.services.clock
        )

    def end_streams(self) -> None:
        """End open streams with `shutting_down`, so that clients go to another node."""
        self._context.stopping.set()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        await self.front(scope, receive, send)

    async def _connected(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end, which is its own whatever was sent on it."""
        if len(self._streams) >= 2 * self._context.config.requests_max:
            DROPPED.labels("gateway", "too_many_connections").inc()
            await stream.aclose()
            return
        self._streams.add(stream)
        try:
            state = ConnectionState({})
            # Hypercorn types the stream as TLS; it serves plain ones as well.
            plain: Any = stream
            await _Connection(self._wrapper, self._http, self._worker, state, plain)
        except* Exception as group:  # noqa: BLE001 - the server's own; the app's end in the app
            DROPPED.labels("gateway", "broken_connection").inc()
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            log.warning("a connection broke off", error=f"{type(error).__name__}: {error}")
            await trio.aclose_forcefully(stream)
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._drained.set()

    async def _accept(
        self,
        listeners: list[trio.SocketListener],
        connections: trio.Nursery,
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with self._accepting:
            await trio.serve_listeners(
                self._connected, listeners, handler_nursery=connections, task_status=task_status
            )

    async def _close(self, served: trio.CancelScope) -> None:
        """Accept no more, end streams, let answers end, then close what is left."""
        self._accepting.cancel()
        self.end_streams()
        await self._worker.terminated.set()
        self._drained = trio.Event()
        if self._streams:
            with trio.move_on_after(_GRACE_S):
                await self._drained.wait()
        for stream in list(self._streams):
            with contextlib.suppress(OSError):
                stream.socket.shutdown(socket.SHUT_RDWR)
        served.cancel()


def _http_config() -> HypercornConfig:
    config = HypercornConfig()
    config.keep_alive_timeout = _IDLE_CLOSE_S
    # A connection ends by a pause. By a count it would end unannounced, under a request.
    config.keep_alive_max_requests = sys.maxsize
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    return config


@asynccontextmanager
async def open_gateway(config: GatewayConfig, services: Services) -> AsyncIterator[Gateway]:
    """Serve the API for as long as the block runs.

    Args:
        config: the [gateway] section.
        services: rooms may still be None; the app fills them in as it opens them.

    Raises:
        ConfigError: the socket's folder cannot be used, or the group does not exist.
        DataFolderRefused: another daemon answers on the socket.
        PortTaken: `gateway.tcp_port` is in use.
    """
    path = services.config.socket_path
    budget = Budget(config.requests_max, config.bodies_bytes_max, config.body_bytes_max)
    context = Context(services, config, budget)
    sockets = [open_socket(path, config.socket_group)]
    inode = path.stat().st_ino
    try:
        if config.tcp_port:
            sockets.append(open_loopback(config.tcp_port))
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(one)) for one in sockets]
        async with trio.open_nursery() as nursery, trio.open_nursery() as connections:
            gateway = Gateway(context, nursery, path)
            if config.tcp_port:
                gateway.tcp_address = sockets[-1].getsockname()
            await nursery.start(gateway._accept, listeners, connections)
            log.info("api is up", socket=str(path))
            try:
                yield gateway
            finally:
                with trio.CancelScope(shield=True):
                    await gateway._close(connections.cancel_scope)
                nursery.cancel_scope.cancel()
    finally:
        for one in sockets:
            one.close()
        # Not the socket of another daemon that has taken the path since.
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()


# ---- listening ------------------------------------------------------------------------


def open_socket(path: Path, group: str = "") -> socket.socket:
    """A listening unix socket of mode 0660 at `path`; what a dead daemon left is replaced.

    Raises:
        DataFolderRefused: a living daemon answers there.
        ConfigError: the folder or the group is the problem; the message names the setting.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Between bind and chmod nobody may slip in: the umask makes it private from the start.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group:
            os.chown(path, -1, _group_id(group))
        path.chmod(_SOCKET_MODE)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot make the socket {path}: {error.strerror or error}; choose another with "
            "gateway.socket (--socket)"
        ) from error
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket: choose another gateway.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass  # Somebody listens who is too busy to accept.
    raise DataFolderRefused(
        f"another swarmd is running: it answers at {path}; end it with `swarmctl stop`, or give "
        "this one its own gateway.socket, mesh.port and node.data_folder"
    )


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigError(f"gateway.socket_group = {group!r}: there is no such group") from error


def open_loopback(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1. Raises PortTaken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"port {port} on 127.0.0.1 is taken: set another gateway.tcp_port, or 0 for none"
        ) from error
    listener.listen(_BACKLOG)
    return listener
