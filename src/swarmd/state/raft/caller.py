"""Asking the coordinator from anywhere: find it, follow redirects, carry what is large."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import trio

from swarmd.base.errors import NotCoordinator, RemoteError, SwarmError, Unavailable, Unreachable
from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng
from swarmd.mesh.link import Lane, Link
from swarmd.state.raft import messages as m
from swarmd.state.raft.keeper import Keeper
from swarmd.wire.codec import Message

# One try; a coordinator that answers no sooner is asked again, or another one is.
ATTEMPT_TIMEOUT_S: Final = 2.0
LOCATE_TIMEOUT_S: Final = 0.5


class Caller:
    """Asks once per call and raises what went wrong; whoever calls tries again.

    `hint` is the coordinator as last heard of; voters know better by themselves.
    """

    def __init__(self, keeper: Keeper, link: Link, rng: Rng, nursery: trio.Nursery) -> None:
        self.hint: NodeId | None = None
        self._keeper = keeper
        self._link = link
        self._rng = rng
        self._nursery = nursery
        self._locating = trio.Lock()
        self._attempts: dict[trio.CancelScope, NodeId] = {}

    def leader_changed(self, leader: NodeId | None) -> None:
        """Stop waiting for those who lead no more."""
        for scope, peer in list(self._attempts.items()):
            if leader is not None and peer != leader:
                scope.cancel()

    async def locate(self) -> NodeId:
        """The node to ask.

        Raises:
            Unavailable: nobody knows.
            DiskFault: this node is the only voter, and its disk refuses writes.
        """
        replica = self._keeper.replica
        if replica is not None and replica.disk_fault:
            refusal = replica.disk_refusal()
            if not isinstance(refusal, Unavailable):
                raise refusal
        elif replica is not None:
            leader = replica.leader
            if leader is None:
                raise Unavailable("the voters have no leader now")
            if leader == self._link.node_id:
                raise NotCoordinator("this node is about to take office")
            return leader
        if self.hint is not None:
            return self.hint
        async with self._locating:
            if self.hint is None:
                answer, voter = await self.ask_any_voter(m.LeaderAsk())
                if isinstance(answer, m.Redirect) and answer.leader:
                    self.hint = NodeId(answer.leader)
                    if answer.number > self._keeper.chain.head.number:
                        self._nursery.start_soon(self._keeper.ask_chain, voter)
        if self.hint is None:
            raise Unavailable("the voters have no leader now")
        return self.hint

    async def ask_coordinator(self, message: Message) -> Any:
        return await self._ask(await self.locate(), message)

    async def _ask(self, peer: NodeId, message: Message) -> Any:
        """Ask one node; a `Redirect` is followed by asking again."""
        scope = trio.CancelScope()
        self._attempts[scope] = peer
        try:
            with scope:
                answer = await self._send_request(peer, message)
        except SwarmError as error:
            if isinstance(error, Unavailable) and self.hint == peer:
                self.hint = None
            raise
        finally:
            del self._attempts[scope]
        if scope.cancelled_caught:
            raise NotCoordinator("the coordinator has changed")
        if isinstance(answer, m.Redirect):
            await self._redirected(peer, answer)
            raise NotCoordinator("that node does not coordinate the strong store now")
        return answer

    async def _send_request(self, peer: NodeId, message: Message) -> Any:
        if isinstance(message, m.Forward):
            raw = m.encode_forward(message)
            if len(raw) > m.WHOLE_BYTES_MAX:
                message = await self._upload(peer, raw)
        lane = Lane.BULK if isinstance(message, m.PieceAsk) else Lane.CONTROL
        return await self._link.request(
            m.STORE, peer, message, timeout_s=ATTEMPT_TIMEOUT_S, lane=lane
        )

    async def _upload(self, peer: NodeId, raw: bytes) -> m.ForwardUpload:
        upload = self._rng.getrandbits(60)
        for offset in range(0, len(raw), m.PIECE_BYTES):
            piece = m.Upload(upload, offset, len(raw), raw[offset : offset + m.PIECE_BYTES])
            await self._link.request(
                m.STORE, peer, piece, timeout_s=ATTEMPT_TIMEOUT_S, lane=Lane.BULK
            )
        return m.ForwardUpload(upload)

    async def _redirected(self, peer: NodeId, redirect: m.Redirect) -> None:
        if self.hint == peer:
            self.hint = None
        if redirect.leader and redirect.leader != peer:
            self.hint = NodeId(redirect.leader)
        if redirect.number > self._keeper.chain.head.number:
            await self._keeper.ask_chain(peer)

    def other_voter(self, voter: NodeId | None) -> NodeId | None:
        """A voter that is neither this node nor, if there is a choice, `voter`."""
        voters = [v for v in self._keeper.chain.head.node_ids if v != self._link.node_id]
        others = [v for v in voters if v != voter] or voters
        return self._rng.choice(others) if others else None

    async def ask_voter(self, voter: NodeId, message: Message, timeout_s: float) -> Any:
        """Ask a certain voter. One that is none any more, or not there, is Unavailable."""
        try:
            answer = await self._link.request(m.STORE, voter, message, timeout_s=timeout_s)
        except Unreachable:
            await self._keeper.ask_somebody()  # The voters may be others by now.
            raise
        if isinstance(answer, m.Redirect):
            await self._redirected(voter, answer)
            raise NotCoordinator("that node holds no copy of the strong store now")
        return answer

    async def ask_any_voter(self, message: Message) -> tuple[Any, NodeId]:
        voters = [v for v in self._keeper.chain.head.node_ids if v != self._link.node_id]
        self._rng.shuffle(voters)
        best: tuple[Any, NodeId] | None = None
        for voter in voters:
            try:
                answer = await self._link.request(
                    m.STORE, voter, message, timeout_s=LOCATE_TIMEOUT_S
                )
            except SwarmError:
                continue  # The next one may answer; none is an error below.
            best = (answer, voter)
            if not isinstance(answer, m.Redirect) or answer.leader:
                break
            await self._redirected(voter, answer)
        if best is None:
            await self._keeper.ask_somebody()
            raise Unavailable("no voter answers")
        return best

    async def ask_entries(self, message: m.GetAsk | m.RangeAsk, stale: bool) -> m.Got:
        if stale:
            answer, peer = await self.ask_any_voter(message)
        else:
            peer = await self.locate()
            answer = await self._ask(peer, message)
        if not isinstance(answer, m.Got):
            raise RemoteError("not entries of the store")
        if not answer.large:
            return answer
        entries = list(answer.entries)
        for position, size in answer.large:
            if not 0 <= position < len(entries):
                raise RemoteError("a large value of no entry")
            entry = entries[position]
            value = await self.fetch_value(peer, entry.key, entry.mod_revision, size)
            entries[position] = msgspec.structs.replace(entry, value=value)
        return m.Got(tuple(entries), answer.more)

    async def fetch_value(self, peer: NodeId, key: bytes, revision: int, size: int) -> bytes:
        """The value that `key` got at `revision`, piece by piece."""
        pieces: list[bytes] = []
        have = 0
        while have < size:
            piece = await self._ask(peer, m.PieceAsk(key, revision, have))
            if not isinstance(piece, m.Piece) or not piece.data or piece.total != size:
                raise RemoteError("a value that does not continue")
            pieces.append(piece.data)
            have += len(piece.data)
        return b"".join(pieces)
