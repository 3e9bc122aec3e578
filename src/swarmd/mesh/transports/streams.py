"""Streams between nodes: frames over mutual TLS 1.3 (RFC 8446).

A connection is made on demand, one per peer and plane (the ALPN of RFC 7301):

    TCP -> TLS, both certificates admitted -> signed hellos -> carrier -> frames

The carrier is a WebSocket, or for all planes but the mesh's nothing but lengths; see `carriers`.

The rules:
- Nobody is trusted before the hello: unproven connections are few, in all and from one
  address, and short-lived (`strangers.py`). Those of members are not counted.
- When both sides open at once, the connection that the smaller id opened stays. Both sides
  decide alike: once the smaller has sent its hello it refuses the other's as `duplicate`, and
  the larger drops its own attempt for the smaller's at any time. A side whose own attempt has
  not come to the hello takes what is offered.
- An open connection gives way to a new hello of its peer, which would not open one if it had
  one, unless that hello is older (by boot and number) than what the peer has since accepted.
- A member just admitted may be unknown to the other side for a moment: a failed proof is
  retried with growing pauses, and at once when this node learns of new members.
- Who says a protocol version below the log's lowest is refused as `outdated`; who is connected when
  that rises is turned out, as one who was evicted.
- A clean close gives its reason. Anything else is a reset and is reported as a hint.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from swarmd.base.errors import Busy, Outdated, RemoteError, Unreachable, Untrusted
from swarmd.base.ids import NodeId, node_id_of, short
from swarmd.base.rng import Rng
from swarmd.identity.keys import Exchange, SigningKey
from swarmd.identity.tls import (
    BULK_ALPN,
    BUS_ALPN,
    JOIN_ALPN,
    MESH_ALPN,
    PIPE_ALPN,
    RAFT_ALPN,
    ContextCache,
    discard,
)
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.link import PIPES_PER_PEER_MAX
from swarmd.mesh.transports.carriers import (
    CONNECTION_ERRORS,
    REASONS,
    Carrier,
    Ended,
    TlsStream,
    host_of,
    local_host_of,
    open_carrier,
    plane_of,
    public_of,
)
from swarmd.mesh.transports.dial import dial_tcp, set_options
from swarmd.mesh.transports.frames import FrameOpener, FrameSealer
from swarmd.mesh.transports.hello import (
    Hello,
    Refused,
    Session,
    make_session,
    read_hello,
    receive_part,
    refusal,
    send_part,
    sign_hello,
)
from swarmd.mesh.transports.memory import direct_pipe, direct_ports
from swarmd.mesh.transports.mux import How, MuxLink, PipeEnd, Port
from swarmd.mesh.transports.ports import StreamPort
from swarmd.mesh.transports.roster import Roster, admitted, may_use
from swarmd.mesh.transports.strangers import JoinDoor, JoinServer, Places
from swarmd.mesh.transports.tls_pipes import TlsPipePort
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import BYTES, DROPPED
from swarmd.wire.version import PROTOCOL_VERSION

PLANES: Final = (MESH_ALPN, RAFT_ALPN, BUS_ALPN, BULK_ALPN, PIPE_ALPN)
ALPNS: Final = (*PLANES, JOIN_ALPN)
_RETRY_FIRST_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0
_RECONNECT_EVERY_S: Final = 2.0
# A connection that is only kept is tried again after this, doubled with each failure.
_KEEP_FIRST_S: Final = 0.1
_YIELD_WAIT_S: Final = 1.0
_GOODBYE_S: Final = 1.0

_log = get_logger("mesh")


class Streams(MuxLink):
    """`mesh.link.Link` between hosts. Made by `open_streams`."""

    def __init__(
        self,
        key: SigningKey,
        roster: Roster,
        addresses: AddressBook,
        config: MeshConfig,
        rng: Rng,
        nursery: trio.Nursery,
        listen_port: int,
        join: JoinServer | None,
    ) -> None:
        super().__init__(key.key_id)
        self._key, self._roster, self._addresses = key, roster, addresses
        self._config, self._rng, self._nursery = config, rng, nursery
        self._listen_port = listen_port
        self._contexts = ContextCache(key, roster)
        self._boot = os.urandom(8)
        self._numbers = itertools.count(1)
        self._ports: dict[tuple[NodeId, str], StreamPort] = {}
        self._pipes: set[TlsPipePort] = set()
        self._carriers: dict[StreamPort, Carrier] = {}
        self._failures: dict[NodeId, tuple[int, float]] = {}
        self._reconnected: dict[NodeId, float] = {}
        self._loop, _ = direct_ports(self, self)
        self._unproven = Places(config.unproven_connections_max, config.unproven_per_address_max)
        self._join = None if join is None else JoinDoor(join, self._unproven)
        self._leaving = False
        # Of which peers the connection is kept though it has nothing to say.
        self.keeps: Callable[[NodeId], bool] = lambda peer: False

    def connected(self) -> list[NodeId]:
        """See `mesh.link.Link`."""
        return sorted({peer for (peer, _), port in self._ports.items() if port.is_open})

    def drop(self, peer: NodeId, reason: str) -> None:
        """Break every connection with a peer, as one that is known to be gone."""
        for port in [one for one in self._all_ports() if one.peer == peer]:
            port.break_off("reset", reason)

    def drop_from(self, hosts: Collection[str]) -> set[NodeId]:
        """Break connections that start at addresses this host no longer has; with whom."""
        dead = [port for port in self._all_ports() if port.local_host in hosts]
        for port in dead:
            port.break_off("reset", "this host has another address now")
        return {port.peer for port in dead}

    def retry_now(self, peer: NodeId) -> None:
        """Forget that a peer could not be reached: there is news of it."""
        self._failures.pop(peer, None)

    def keep(self, peer: NodeId) -> None:
        """Open a connection in the background if there is none; ever less often where it fails."""
        failures, paused_until = self._failures.get(peer, (0, 0.0))
        patience_s = _KEEP_FIRST_S * 2**failures if failures else 0.0
        if not self._leaving and trio.current_time() >= paused_until + patience_s:
            with suppress(Unreachable):
                self._port(peer, MESH_ALPN)

    def reconnect(self, peer: NodeId) -> None:
        """Try one connection now; if it is refused, `closed` tells. Every 2 s at most."""
        now = trio.current_time()
        if now - self._reconnected.get(peer, float("-inf")) < _RECONNECT_EVERY_S:
            return
        self._reconnected[peer] = now
        self.retry_now(peer)
        try:
            self._port(peer, MESH_ALPN)
        except Unreachable:
            return  # Not a member, or nowhere: nothing to learn.

    async def goodbye(self, how: How, quiet_s: int = 0) -> None:
        """Write out what is queued and close every connection with a reason, within 1 s.

        Args:
            quiet_s: for how long this node will be away, if it is `restarting`.
        """
        self._leaving = True
        with trio.move_on_after(_GOODBYE_S):
            async with trio.open_nursery() as nursery:
                for port in list(self._ports.values()):
                    nursery.start_soon(self._close_cleanly, port, how, quiet_s)

    def open_no_more(self) -> None:
        """From now on no peer is reached that is not reached already."""
        self._leaving = True

    # ---- reaching a peer ---------------------------------------------------------------

    def _port(self, peer: NodeId, alpn: str) -> Port:
        if peer == self.node_id:
            return self._loop
        port = self._ports.get((peer, alpn))
        if port is not None and not port.broken:
            return port
        self._check_reachable(peer, alpn)
        port = self._ports[peer, alpn] = StreamPort(peer, alpn)
        self._nursery.start_soon(self._open, port)
        return port

    def _check_reachable(self, peer: NodeId, alpn: str) -> None:
        if self._leaving:
            raise Unreachable("this node is shutting down")
        admission = admitted(self._roster, peer)
        if admission is None:
            raise Unreachable(f"{short(peer)} is not a member as far as this node knows")
        if not may_use(alpn, admission):
            raise Unreachable(f"{short(peer)} is no voter")
        if not self._addresses.lookup(peer):
            raise Unreachable(f"no address of {short(peer)} is known")

    async def _connect_pipe(self, peer: NodeId) -> PipeEnd:
        """See `MuxLink`: one attempt, for who asks tries again or goes elsewhere."""
        if peer == self.node_id:
            return direct_pipe(self, self)[0]
        self._check_reachable(peer, PIPE_ALPN)
        port = TlsPipePort(peer, self._pipes, asks=True)
        await port.dial(self._attempt)
        return port

    def _all_ports(self) -> list[StreamPort]:
        return [*self._ports.values(), *self._pipes]

    def _port_nowait(self, peer: NodeId, alpn: str) -> Port:
        if self._pause(peer) > 0 and (peer, alpn) not in self._ports:
            raise Unreachable(f"{short(peer)} could not be reached a moment ago")
        return self._port(peer, alpn)

    def _pause(self, peer: NodeId) -> float:
        failed = self._failures.get(peer)
        return 0.0 if failed is None else max(0.0, failed[1] - trio.current_time())

    async def _open(self, port: StreamPort) -> None:
        made: tuple[TlsStream, Session] | None = None
        with trio.CancelScope() as scope:
            port.stop_dialing = scope.cancel
            await trio.sleep(self._pause(port.peer))
            made = await self._establish(port)
        if made is None:
            return
        if port.stage != "hello":  # The peer's own connection came in the last moment.
            await discard(made[0])
            return
        await self._run(port, *made, client=True)

    async def _establish(self, port: StreamPort) -> tuple[TlsStream, Session] | None:
        """Attempt until the connect timeout; None, and the port broken, if nothing came of it."""
        deadline = trio.current_time() + self._config.connect_timeout_s
        pause_s = _RETRY_FIRST_S
        how: How = "silent"
        reason = f"no connection within {self._config.connect_timeout_s:g} s"
        while trio.current_time() < deadline:
            version = self._roster.version
            try:
                with trio.fail_at(deadline):
                    return await self._attempt(port)
            except trio.TooSlowError:
                break
            except Refused as error:
                if error.message == "duplicate":  # Its own connection is on the way here.
                    port.dials("waiting")
                    await trio.sleep(_YIELD_WAIT_S)
                    continue
                if error.message == "outdated" and port.peer not in self._failures:
                    _log.warning("this swarmd is too old: upgrade it", refused_by=short(port.peer))
                how, reason = "leaving", f"it refused: {error.message}"
                break
            except RemoteError as error:
                how, reason = "untrusted", error.message
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                how, reason = "untrusted", "it ended the handshake; does it know this node?"
            except OSError as error:
                how = "refused" if isinstance(error, ConnectionRefusedError) else "silent"
                reason = str(error)
                break
            port.dials("waiting")
            with trio.move_on_after(pause_s * self._rng.uniform(0.75, 1.25)):
                await self._roster.changed(version)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)
        self._give_up(port, how, reason)
        return None

    def _give_up(self, port: StreamPort, how: How, reason: str) -> None:
        if port.is_connected:  # The peer's own connection came in the last moment.
            return
        failures = min(self._failures.get(port.peer, (0, 0.0))[0], 8) + 1
        pause_s = min(_RETRY_FIRST_S * 2**failures, _RETRY_MAX_S) * self._rng.uniform(0.5, 1.0)
        self._failures[port.peer] = (failures, trio.current_time() + pause_s)
        if self._ports.get((port.peer, port.alpn)) is port:
            del self._ports[port.peer, port.alpn]
        port.stop_dialing = lambda: None
        port.break_off(how, reason)
        if how == "refused":
            self.report_closed(port.peer, how)

    async def _attempt(self, port: StreamPort) -> tuple[TlsStream, Session]:
        port.dials("dialing")
        known = self._addresses.lookup(port.peer)
        tcp, address = await dial_tcp(known, sources=self._config.bind)
        stream = trio.SSLStream(tcp, self._contexts.client((port.alpn,)))
        try:
            await stream.do_handshake()
            public = public_of(stream)
            if node_id_of(public) != port.peer:
                self._addresses.refute(port.peer, address)
                raise Untrusted(f"{address[0]}:{address[1]} is another node")
            exchange = Exchange()
            hello = self._hello(port.peer, port.alpn, exchange)
            port.dials("hello")
            await send_part(stream, sign_hello(hello, self._roster.swarm_id, self._key))
            answer = self._read_hello(await receive_part(stream), public, port.alpn)
            if answer.answering != exchange.public:
                raise Untrusted("the answer is to another hello")
            if answer.version < self._roster.min_version:
                raise Outdated(f"it speaks protocol version {answer.version}, which is too low")
            port.boot, port.number, port.version = answer.boot, answer.number, answer.version
            self._addresses.learn(port.peer, [address], proven=True)
            return stream, make_session(exchange, answer.exchange, port.alpn, opener=True)
        except BaseException:
            await discard(stream)
            raise

    # ---- being reached ----------------------------------------------------------------

    async def accept(self, tcp: trio.SocketStream) -> None:
        """Serve one incoming connection for as long as it lasts."""
        host = host_of(tcp)
        refusal = self._unproven.take(host)
        if refusal:
            DROPPED.labels("stream", f"unproven_{refusal}").inc()
            await trio.aclose_forcefully(tcp)
            return
        stream = trio.SSLStream(tcp, self._contexts.server(ALPNS), server_side=True)
        proven: tuple[StreamPort, Session] | None = None
        try:
            try:
                with trio.move_on_after(self._config.handshake_timeout_s) as scope:
                    set_options(tcp)
                    proven = await self._prove(stream)
                if scope.cancelled_caught:
                    DROPPED.labels("stream", "unproven_timeout").inc()
            finally:
                self._unproven.give_back(host)
            if proven is not None and isinstance(proven[0], TlsPipePort):
                await proven[0].serve(self, stream, proven[1], self._config.handshake_timeout_s)
            elif proven is not None:
                await self._run(proven[0], stream, proven[1], client=False)
            elif plane_of(stream) == JOIN_ALPN:
                if self._join is None or self._leaving:
                    DROPPED.labels("stream", "no_joins").inc()
                else:
                    await self._join.serve(stream, host)
        except RemoteError as error:
            DROPPED.labels("stream", "untrusted").inc()
            _log.debug("stream_refused", reason=error.message)
        except CONNECTION_ERRORS:
            DROPPED.labels("stream", "handshake").inc()
        finally:
            await discard(stream)

    async def _prove(self, stream: TlsStream) -> tuple[StreamPort, Session] | None:
        """The port of a peer whose hello was accepted; None if there is nothing to serve.

        Raises RemoteError for a peer that is not who it should be.
        """
        await stream.do_handshake()
        alpn = plane_of(stream)
        if alpn == JOIN_ALPN:
            return None
        if alpn not in PLANES:
            raise Untrusted("no plane was agreed on")
        public = public_of(stream)
        peer = node_id_of(public)
        self._check_may_use(peer, alpn)
        hello = self._read_hello(await receive_part(stream), public, alpn)
        self._check_may_use(peer, alpn)  # It may have been evicted while it took its time.
        code = self._judge(peer, alpn, hello)
        if code is not None:
            await send_part(stream, refusal(code))
            return None
        port = self._adopt(peer, alpn, hello)
        try:
            exchange = Exchange()
            session = make_session(exchange, hello.exchange, alpn, opener=False)
            answer = self._hello(peer, alpn, exchange, answering=hello.exchange)
            await send_part(stream, sign_hello(answer, self._roster.swarm_id, self._key))
        except BaseException:
            port.break_off("reset", "the connection broke while it was made")
            raise
        if not self._addresses.lookup(peer):  # Else it said itself where it listens.
            self._addresses.learn(peer, [(host_of(stream.transport_stream), hello.port)])
        return port, session

    def _check_may_use(self, peer: NodeId, alpn: str) -> None:
        admission = admitted(self._roster, peer)
        if admission is None or not may_use(alpn, admission):
            raise Untrusted(f"{short(peer)} may not use {alpn}")

    def _judge(self, peer: NodeId, alpn: str, hello: Hello) -> str | None:
        """The code to refuse a hello with, or None."""
        if hello.version < self._roster.min_version:
            DROPPED.labels("stream", "outdated").inc()
            return "outdated"
        if self._leaving:
            return "leaving"
        if alpn == PIPE_ALPN:
            asked = sum(one.peer == peer and not one.asks for one in self._pipes)
            return Busy.code if asked >= PIPES_PER_PEER_MAX else None
        port = self._ports.get((peer, alpn))
        if port is None or port.broken:
            return None
        if port.is_connected:
            stale = hello.boot == port.boot and hello.number <= port.number
            return "duplicate" if stale else None
        return "duplicate" if port.stage == "hello" and self.node_id < peer else None

    def _adopt(self, peer: NodeId, alpn: str, hello: Hello) -> StreamPort:
        port = self._ports.get((peer, alpn))
        if alpn == PIPE_ALPN:
            port = TlsPipePort(peer, self._pipes, asks=False)
        elif port is None or port.is_connected or port.broken:
            if port is not None:
                port.break_off("reset", "the peer has opened a new connection")
            port = self._ports[peer, alpn] = StreamPort(peer, alpn)
        else:
            port.stop_dialing()
        port.stage = "accepted"
        port.boot, port.number, port.version = hello.boot, hello.number, hello.version
        return port

    # ---- a connection's life ----------------------------------------------------------

    async def _run(
        self, port: StreamPort, stream: TlsStream, session: Session, *, client: bool
    ) -> None:
        ended = Ended("reset")
        try:
            async with trio.open_nursery() as nursery:
                port.stop_running = nursery.cancel_scope.cancel
                if port.broken:  # Since its hello: evicted, for one.
                    raise trio.ClosedResourceError("the connection is over")
                port.local_host = local_host_of(stream.transport_stream)
                carrier = await self._carrier(port.alpn, nursery, stream, client=client)
                self._failures.pop(port.peer, None)
                self._carriers[port] = carrier
                port.opened(trio.current_time())
                nursery.start_soon(_write, port, carrier, session.sealer)
                nursery.start_soon(self._watch_idle, port)
                try:
                    ended = await self._read(port, carrier, session.opener)
                finally:
                    carrier.over()
                if port.closing is not None:
                    with trio.move_on_after(_GOODBYE_S):
                        await port.closed_cleanly.wait()
                nursery.cancel_scope.cancel()
        except* CONNECTION_ERRORS as group:
            _log.debug("stream_broke", peer=short(port.peer), error=str(group.exceptions[0]))
        finally:
            self._carriers.pop(port, None)
            key = (port.peer, port.alpn)
            replaced = self._ports.get(key) is not port
            if not replaced:
                del self._ports[key]
            if not port.broken:  # Else this side ended it, which is no news.
                port.break_off(ended.how, REASONS[ended.how])
                if not replaced and port.closing is None and not self._leaving:
                    self.report_closed(port.peer, ended.how, ended.quiet_s)
            await discard(stream)

    async def _carrier(
        self, alpn: str, nursery: trio.Nursery, stream: TlsStream, *, client: bool
    ) -> Carrier:
        try:
            with trio.fail_after(self._config.handshake_timeout_s):
                return await open_carrier(alpn, nursery, stream, client=client)
        except trio.TooSlowError as error:
            raise trio.BrokenResourceError("no WebSocket upgrade came") from error

    async def _read(self, port: StreamPort, carrier: Carrier, opener: FrameOpener) -> Ended:
        received = BYTES.labels("stream", "received")
        while True:
            try:
                raw = await carrier.receive()
                items = opener.open(raw)
            except Ended as ended:
                return ended if port.closing is None else Ended(port.closing)
            except RemoteError:
                DROPPED.labels("stream", "bad_frame").inc()
                return Ended("untrusted")
            received.inc(len(raw))
            port.last_traffic = trio.current_time()
            for item in items:
                if port.turned_out:
                    break
                if not self.deliver_nowait(port, item):
                    await self.deliver(port, item)

    async def _watch_idle(self, port: StreamPort) -> None:
        while True:
            idle_s = trio.current_time() - port.last_traffic
            in_use = port.queued or port.calls or len(port.asked)
            if idle_s >= self._config.idle_close_s and not in_use:
                if port.alpn != MESH_ALPN or not self.keeps(port.peer):
                    await self._close_cleanly(port, "idle")
                    return
                idle_s = 0.0  # Look again as late as if there had been traffic.
            await trio.sleep(max(self._config.idle_close_s - idle_s, 1.0))

    async def _close_cleanly(self, port: StreamPort, how: How, quiet_s: int = 0) -> None:
        carrier = self._carriers.get(port)
        if carrier is None:
            return
        with trio.move_on_after(_GOODBYE_S / 2):
            while port.queued:  # noqa: ASYNC110 - the writer owns the lanes' events
                await trio.sleep(0.005)
        if self._carriers.get(port) is not carrier:
            return  # It ended meanwhile, and says how.
        port.closing = how
        with trio.move_on_after(_GOODBYE_S / 2):
            await carrier.close(how, quiet_s)
        port.closed_cleanly.set()
        port.break_off(how, REASONS[how])

    async def watch_roster(self) -> None:
        """Break connections of members as they are evicted, are outdated, or lose their role."""
        while True:
            version = self._roster.version
            for port in self._all_ports():
                admission = admitted(self._roster, port.peer)
                outdated = port.version is not None and port.version < self._roster.min_version
                if admission is None or outdated:
                    why = "it is no longer a member" if admission is None else "it is outdated"
                    if not port.turned_out:
                        port.turned_out = True
                        self._nursery.start_soon(port.turn_out, why)
                elif not may_use(port.alpn, admission):
                    port.break_off("untrusted", "it is no voter any more")
            await self._roster.changed(version)

    # ---- proofs -----------------------------------------------------------------------

    def _hello(
        self, peer: NodeId, alpn: str, exchange: Exchange, *, answering: bytes = b""
    ) -> Hello:
        return Hello(
            PROTOCOL_VERSION,
            peer,
            alpn,
            exchange.public,
            self._boot,
            next(self._numbers),
            self._listen_port,
            answering,
        )

    def _read_hello(self, raw: bytes, public: bytes, alpn: str) -> Hello:
        return read_hello(
            raw, self._roster.swarm_id, peer_public=public, me=self.node_id, alpn=alpn
        )


@asynccontextmanager
async def open_streams(
    key: SigningKey,
    roster: Roster,
    addresses: AddressBook,
    listeners: Sequence[trio.SocketListener],
    *,
    config: MeshConfig,
    rng: Rng,
    join: JoinServer | None = None,
) -> AsyncIterator[Streams]:
    """Listen on `listeners`, which this closes, and reach peers, for as long as the block runs.

    Cancelled, connections break without a goodbye; call `goodbye` before, to say one.
    """
    async with trio.open_nursery() as nursery:
        port = listeners[0].socket.getsockname()[1]
        streams = Streams(key, roster, addresses, config, rng, nursery, port, join)
        for listener in listeners:
            nursery.start_soon(trio.serve_listeners, streams.accept, [listener])
        nursery.start_soon(streams.watch_roster)
        try:
            yield streams
        finally:
            streams.open_no_more()
            nursery.cancel_scope.cancel()


async def _write(port: StreamPort, carrier: Carrier, sealer: FrameSealer) -> None:
    sent = BYTES.labels("stream", "sent")
    while True:
        await port.wait_filled()
        frame = sealer.seal(port.take())
        try:
            await carrier.send(frame)
        except Ended:
            # The reader sees it too, and says how it ended - unless it was this side's kernel
            # that refused; nothing is read then, and the port must not stay open for that.
            await trio.sleep(_GOODBYE_S)
            port.stop_running()
            return
        sent.inc(len(frame))
        port.last_traffic = trio.current_time()
