"""The gateway: the API on a unix socket, on ports if so configured, and over the mesh.

Hypercorn speaks HTTP on each connection; accepting them is done here. Its writes are shielded
from cancellation, so a client that stops reading could hold the daemon for ever: at the end
every connection that is still open is closed under it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from swarmd.base.spared import spared
from swarmd.gateway.access.gate import Gate, Origin, mark
from swarmd.gateway.app import make_app
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.context import Context
from swarmd.gateway.forward import FORWARD, Forwarder, serve_forwarded
from swarmd.gateway.http import Budget
from swarmd.gateway.listeners import TlsFiles, open_loopback, open_remote, open_socket, open_tls
from swarmd.gateway.services import Listening, Services
from swarmd.identity.tls import discard
from swarmd.mesh.addresses import format_address, network_of
from swarmd.mesh.link import Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED

# HTTP/2 is never spoken (see `_Connection`), so its protocol and tables are not loaded.
with spared(
    {
        "h2": {"events": None},
        "h2.events": {},
        "hypercorn.protocol.h2": {"H2Protocol": None},
    }
):
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.config import Config as HypercornConfig
    from hypercorn.events import Closed, Event, RawData, Updated
    from hypercorn.protocol.h11 import H11Protocol
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import ConnectionState

_HANDSHAKE_S: Final = 10.0
# A quarter of all connections at most are one address's.
_ADDRESS_SHARE: Final = 4
# struct ucred of unix(7): pid, uid, gid.
_PEER: Final = struct.Struct("iII")
# What is being answered may end; then connections are closed.
_GRACE_S: Final = 2.0
_IDLE_CLOSE_S: Final = 120.0
_TCP_IDLE_CLOSE_S: Final = 30.0
_UNREAD_MS: Final = 60_000
# How an answer's head begins; an informational one (RFC 9110, 15.2) is no head.
_FINAL_HEADS: Final = tuple(b"HTTP/1.1 %d" % digit for digit in (2, 3, 4, 5))

log = get_logger("gateway")


async def _stay(event: object) -> None:
    """Whatever protocol the client would rather speak."""


assert hasattr(H11Protocol, "_check_protocol"), "another hypercorn: see `_Connection`"


class _Connection(TCPServer):
    """One connection, which ends when either side has closed it.

    Left to itself Hypercorn waits for the next request of a client that is gone, and for more
    of a request whose answer has closed the connection. It also writes the head of an answer
    alone, and starts and ends a task with every request to see whether another one comes: here
    the head waits for what follows it at once, and one task watches all the pauses. It would
    also go over to HTTP/2 when a client says so, which nothing here was made for.
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
        self.protocol.protocol._check_protocol = _stay  # type: ignore[union-attr, method-assign]
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
        self._worker = WorkerContext(None)
        self._http = _http_config(_IDLE_CLOSE_S)
        self._tcp_http = _http_config(_TCP_IDLE_CLOSE_S)
        self._streams: dict[trio.SocketStream, str] = {}
        self._drained = trio.Event()
        self._accepting: list[trio.CancelScope] = []
        self.path = path
        self.app = make_app(context)
        self.front = Forwarder(self.app, context)
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

    async def _connected(self, tls: TlsFiles | None, stream: trio.SocketStream) -> None:
        """Serve one connection to its end, which is its own whatever was sent on it."""
        origin = _origin_of(stream, remote=tls is not None)
        if not self._has_room(origin):
            DROPPED.labels("gateway", "too_many_connections").inc()
            await trio.aclose_forcefully(stream)
            return
        self._streams[stream] = origin.address
        if origin.address:
            # Who takes no answers must not hold a connection for ever.
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            mark(scope, origin)
            await self.front(scope, receive, send)

        # Hypercorn types the stream as TLS; it serves plain ones as well.
        served: Any = stream
        try:
            state = ConnectionState({})
            if tls is not None:
                served = trio.SSLStream(
                    stream, tls.context(), server_side=True, https_compatible=True
                )
            http = self._http if not origin.address else self._tcp_http
            await _Connection(ASGIWrapper(serve), http, self._worker, state, served)
        except* Exception as group:  # noqa: BLE001 - the server's own; the app's end in the app
            DROPPED.labels("gateway", "broken_connection").inc()
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            log.warning("a connection broke off", error=f"{type(error).__name__}: {error}")
            await trio.aclose_forcefully(stream)
        finally:
            if served is not stream:
                await discard(served)
            del self._streams[stream]
            if not self._streams:
                self._drained.set()

    def _has_room(self, origin: Origin) -> bool:
        """Whoever comes over TCP takes no connection from the socket, nor all from each other."""
        most = 2 * self._context.config.requests_max
        addresses = list(self._streams.values())
        if not origin.address:
            return addresses.count("") < most
        if len(addresses) - addresses.count("") >= most:
            return False
        return addresses.count(origin.address) < max(1, most // _ADDRESS_SHARE)

    async def _accept(
        self,
        tls: TlsFiles | None,
        listeners: list[trio.SocketListener],
        connections: trio.Nursery,
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.CancelScope() as scope:
            self._accepting.append(scope)
            await trio.serve_listeners(
                partial(self._connected, tls),
                listeners,
                handler_nursery=connections,
                task_status=task_status,
            )

    async def _close(self, served: trio.CancelScope) -> None:
        """Accept no more, end streams, let answers end, then close what is left."""
        for scope in self._accepting:
            scope.cancel()
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


def _origin_of(stream: trio.SocketStream, *, remote: bool) -> Origin:
    """Who is at the other end, as the kernel tells it.

    Addresses that one host has at will count as one: the loopback's, and an IPv6 network of 64
    bits.
    """
    if stream.socket.family == socket.AF_UNIX:
        raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        return Origin(uid=_PEER.unpack(raw)[1])
    try:
        host = stream.socket.getpeername()[0]
    except OSError:
        return Origin(address="gone", remote=remote)
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return Origin(address="loopback", remote=remote)
    return Origin(address=network_of(host), remote=remote)


def _http_config(idle_close_s: float) -> HypercornConfig:
    config = HypercornConfig()
    config.ssl_handshake_timeout = _HANDSHAKE_S
    config.keep_alive_timeout = idle_close_s
    # A connection ends by a pause. By a count it would end unannounced, under a request.
    config.keep_alive_max_requests = sys.maxsize
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    return config


def _listener(one: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(one))


def _open_tls(config: GatewayConfig, services: Services) -> TlsFiles | None:
    if not config.listen:
        return None
    names = dict.fromkeys(("localhost", socket.gethostname(), services.config.node_name))
    folder = services.config.data_folder
    return open_tls(config.tls_certificate, config.tls_key, folder, list(names), services.sealer)


@asynccontextmanager
async def open_gateway(config: GatewayConfig, services: Services) -> AsyncIterator[Gateway]:
    """Serve the API for as long as the block runs.

    Args:
        config: the [gateway] section.
        services: rooms may still be None; the app fills them in as it opens them.

    Raises:
        ConfigError: the socket's folder cannot be used, or the group does not exist.
        DataFolderRefused: another daemon answers on the socket.
        PortTaken: `gateway.tcp_port` or a port of `gateway.listen` is in use.
    """
    path = services.config.socket_path
    budget = Budget(config.requests_max, config.bodies_bytes_max, config.body_bytes_max)
    context = Context(services, config, budget, Gate(config, services.clock))
    sockets = [open_socket(path, config.socket_group)]
    inode = path.stat().st_ino
    try:
        if config.tcp_port:
            sockets.append(open_loopback(config.tcp_port))
        plain = [_listener(one) for one in sockets]
        tls = _open_tls(config, services)
        for listen in config.listen:
            sockets.append(open_remote(listen))
        remote = [_listener(one) for one in sockets[len(plain) :]]
        async with trio.open_nursery() as nursery, trio.open_nursery() as connections:
            gateway = Gateway(context, nursery, path)
            if config.tcp_port:
                gateway.tcp_address = sockets[1].getsockname()
            await nursery.start(gateway._accept, None, plain, connections)
            if tls is not None:
                addresses = tuple(
                    format_address(one.getsockname()[:2]) for one in sockets[len(plain) :]
                )
                services.listening = Listening(addresses, tls.fingerprint)
                await nursery.start(gateway._accept, tls, remote, connections)
            log.info("api is up", socket=str(path), listen=services.listening.addresses)
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
