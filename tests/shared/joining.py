"""Joining in tests: a member that serves joiners over real sockets, and the log it asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from certifying import certified, let_count, seal

from swarmd.base.clock import BootClock
from swarmd.base.errors import SwarmError
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import Approve, encode_record, fresh_nonce, issue_token, sign_entry
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.tls import JOIN_ALPN, MESH_ALPN, join_context, peer_of, server_context
from swarmd.identity.tokens import Token, moment_of
from swarmd.mesh.addresses import Address
from swarmd.mesh.approval.porch import Porch
from swarmd.mesh.approval.table import WaitingTable
from swarmd.mesh.join import serve_join
from swarmd.mesh.join_frames import Frames
from swarmd.mesh.trust import Trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World

HOUR_MS = 3_600_000
NODE = SigningKey.from_seed(b"n" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)
Serve = Callable[[trio.SSLStream[trio.abc.Stream]], Awaitable[None]]


class Swarm:
    """One member that serves joiners, and the log it asks."""

    def __init__(self, *, uses: int = 2, ttl_ms: int = HOUR_MS) -> None:
        self.genesis, self.key, self.admin, _ = init_swarm("lab", "alpha")
        self.log = AuthorityState(self.genesis)
        self.now_ms = 1_000
        self.trust = self.new_trust()
        self.token = self.add_token(uses, ttl_ms)
        self.table = WaitingTable()
        self.clock = BootClock()
        self.takes_requests = True

    def new_trust(self) -> Trust:
        return certified(SimDisk(World(1), "trust"), self.log, self.key)

    @property
    def chain(self) -> Chain:
        assert self.trust.epochs is not None
        return self.trust.epochs

    def seal(self) -> bytes:
        """Go on in another epoch, whose voters certify what counts, too."""
        certificate = seal(self.chain, [self.key], [self.key])
        self.count(())
        return certificate

    def count(self, records: Sequence[bytes], *, from_peer: bool = False) -> None:
        let_count(self.trust, records, self.key, from_peer=from_peer)

    def add_token(self, uses: int = 2, ttl_ms: int = HOUR_MS) -> Token:
        token, entry = issue_token(
            self.log.swarm_id,
            moment_of(self.log.head, self.chain.head),
            self.admin,
            uses=uses,
            expires_ms=self.now_ms + ttl_ms,
        )
        self.append(entry)
        return token

    def append(self, entry: bytes) -> list[bytes]:
        records = [encode_record(self.log.apply(entry, self.now_ms))]
        self.count(records)
        return records

    async def admit(self, entry: bytes) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        return self.append(entry)

    async def serve(self, stream: trio.SSLStream[trio.abc.Stream]) -> None:
        assert peer_of(stream, self.trust.admissions_by_id()) is None
        await serve_join(
            stream,
            self.trust,
            self.key.public,
            admit=self.admit,
            seeds=lambda: [("127.0.0.1", 7575)],
            porch=Porch(
                self.trust,
                self.key.public,
                self.table,
                self.clock,
                takes_requests=self.takes_requests,
            ),
            host="127.0.0.1",
        )

    def approve(self, request: bytes, admin: SigningKey | None = None) -> list[bytes]:
        """What an admin's `swarmctl node approve` brings about."""
        entry = Approve(request, ("voter", "worker"), fresh_nonce())
        return self.append(sign_entry(entry, self.log.swarm_id, admin or self.admin))

    @asynccontextmanager
    async def listening(
        self, serve: Serve | None = None, *, key: SigningKey | None = None
    ) -> AsyncIterator[Address]:
        """The address of a server with this swarm's TLS, on 127.0.0.1."""
        admissions = self.trust.admissions()
        context = server_context(key or self.key, admissions, [MESH_ALPN, JOIN_ALPN])

        async def handle(raw: trio.SocketStream) -> None:
            stream = trio.SSLStream[trio.abc.Stream](raw, context, server_side=True)
            try:
                await stream.do_handshake()
                await (serve or self.serve)(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, SwarmError):
                pass  # A test's joiner that left early.
            finally:
                await trio.aclose_forcefully(stream)

        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
            yield listener.socket.getsockname()[:2]
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def calling(address: Address) -> AsyncIterator[Frames]:
    """A joiner's stream, to misbehave on."""
    raw = await trio.open_tcp_stream(*address)
    stream = trio.SSLStream[trio.abc.Stream](raw, join_context())
    try:
        await stream.do_handshake()
        yield Frames(stream)
    finally:
        await trio.aclose_forcefully(stream)
