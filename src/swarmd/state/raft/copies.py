"""A voter's side of the copies that members without a seat keep: serves them, knows how far.

A question for what follows an index waits a moment until there is something, so that a copy
lags by a round trip only; that it comes at all says that its sender is there, and holds
durably what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import BadRequest, Busy, Forbidden, Moved, NotFound, SwarmError
from swarmd.base.ids import NodeId, short
from swarmd.base.pace import pause_ends
from swarmd.mesh.link import Inbound, Link
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.copier import LIVING_S, encode_slowly
from swarmd.state.raft.keeper import Keeper
from swarmd.state.raft.replica import Replica
from swarmd.wire.codec import Message

# A question waits for news until the last beat within this (`base.pace`), so that it is answered
# when the process is awake anyway; the next one comes a round trip after a beat. A copy is thus
# heard of at least every half second and a round trip: clear of the time within which it lives.
NEWS_WAIT_S: Final = 0.5
# But for so long at least, beat or not: a beat may be a millisecond off, and question and answer
# must not chase each other. Far enough below the above that questions come to follow the beats.
NEWS_LEAST_S: Final = 0.25
SERVED_MAX: Final = 64
FOLLOWERS_MAX: Final = 16
# Who was not told for this long is served no more.
TOLD_TTL_S: Final = 30.0
# A lone voter waits for a living copy that lacks at most so many entries.
LIVING_ENTRIES: Final = 1_000


@dataclass(slots=True)
class _Follower:
    """What is known of a member's copy. `after`: all up to there is durable there."""

    number: int
    told_at: float
    after: int = -1
    heard_at: float = -1e9


class Copies:
    """Serves the `copy` family on every node; only voters have something to give."""

    def __init__(self, keeper: Keeper, link: Link, clock: Clock, nursery: trio.Nursery) -> None:
        self._keeper = keeper
        self._link = link
        self._clock = clock
        self._nursery = nursery
        self._followers: dict[NodeId, _Follower] = {}
        self._running = 0
        self._freezing = trio.Lock()
        self._base: tuple[int, int, bytes] | None = None
        self._applied = trio.Event()
        self._heard = trio.Event()

    # ---- who follows ---------------------------------------------------------------------

    def tell(self, peer: NodeId, number: int) -> None:
        """Have `peer` keep a copy of the log of `number`, the running epoch."""
        now = self._clock.now()
        follower = self._followers.get(peer)
        if follower is None or follower.number != number:
            follower = self._followers[peer] = _Follower(number, now)
        follower.told_at = now
        self._link.send_nowait(emsg.COPY, peer, emsg.Follow(number))
        self._forget_old(number, now)

    def _forget_old(self, number: int, now: float) -> None:
        for peer, follower in list(self._followers.items()):
            stale = follower.number != number or now - follower.told_at > TOLD_TTL_S
            if stale or len(self._followers) > FOLLOWERS_MAX:
                del self._followers[peer]
        if not self._followers:
            self._base = None

    def lag(self, peer: NodeId, number: int, last: int) -> tuple[float, int] | None:
        """Seconds since `peer` was heard of, and entries up to `last` that it lacks."""
        follower = self._followers.get(peer)
        if follower is None or follower.number != number or follower.after < 0:
            return None
        return self._clock.now() - follower.heard_at, max(0, last - follower.after)

    def holders(self, number: int, index: int) -> int:
        """Living copies of `number` that hold everything up to `index`."""
        return sum(f.after >= index for f in self._living(number, index))

    def _living(self, number: int, index: int) -> list[_Follower]:
        since, least = self._clock.now() - LIVING_S, max(0, index - LIVING_ENTRIES)
        return [
            f
            for f in self._followers.values()
            if f.number == number and f.after >= least and f.heard_at > since
        ]

    async def wait_for_holders(self, number: int, index: int) -> None:
        """Wait until every living copy of `number` holds everything up to `index`.

        One that is not heard of for LIVING_S lives no more, so this ends.
        """
        while True:
            behind = [f for f in self._living(number, index) if f.after < index]
            if not behind:
                return
            left_s = max(f.heard_at for f in behind) + LIVING_S - self._clock.now()
            with trio.move_on_after(max(0.0, left_s)):
                await self._heard.wait()

    def followers(self, number: int) -> list[NodeId]:
        """Members that were told to keep a copy of `number`."""
        return [peer for peer, f in self._followers.items() if f.number == number]

    def applied(self) -> None:
        """The replica took up more of the log."""
        self._applied.set()
        self._applied = trio.Event()

    # ---- serving -------------------------------------------------------------------------

    async def receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer until cancelled."""
        async for inbound in inbox:
            if isinstance(inbound.message, emsg.Follow):
                self._keeper.told_to_copy(inbound.peer, inbound.message.number)
            elif self._running >= SERVED_MAX:
                await inbound.fail(Busy("too many copies are asked for at a time"))
            else:
                self._running += 1
                self._nursery.start_soon(self._serve, inbound)

    async def _serve(self, inbound: Inbound) -> None:
        try:
            await inbound.answer(await self._answer(inbound.peer, inbound.message))
        except SwarmError as error:
            DROPPED.labels("copy", error.code).inc()
            await inbound.fail(error)
        finally:
            self._running -= 1

    async def _answer(self, peer: NodeId, message: Message) -> Message:
        match message:
            case emsg.BaseAsk(number, index, offset):
                replica = self._replica_for(peer, number)
                if index == 0 and offset == 0:
                    await self._freeze(replica)
                return self._base_piece(replica, index, offset)
            case emsg.LogAsk(number, after, offset):
                replica = self._replica_for(peer, number)
                self._note(peer, after)
                return await self._log_piece(replica, after, offset)
        raise BadRequest("not a question about copies")

    def _replica_for(self, peer: NodeId, number: int) -> Replica:
        follower = self._followers.get(peer)
        if follower is None or follower.number != number:
            raise Forbidden(f"{short(peer)} was not asked to keep a copy of epoch {number}")
        replica = self._keeper.replica
        if replica is None or replica.epoch.number != number:
            raise Moved(f"epoch {number} does not run here")
        return replica

    def _note(self, peer: NodeId, after: int) -> None:
        follower = self._followers[peer]
        follower.after, follower.heard_at = after, self._clock.now()
        if all(f.after >= 0 for f in self._followers.values()):
            self._base = None  # Nobody is at it.
        self._heard.set()
        self._heard = trio.Event()

    async def _log_piece(self, replica: Replica, after: int, offset: int) -> emsg.LogPiece:
        if replica.applied_index <= after:
            with trio.move_on_at(news_ends()):
                await self._applied.wait()
        entries = replica.applied_after(after, m.WHOLE_BYTES_MAX)
        if entries is None:
            raise NotFound(f"the log does not hold what follows entry {after}")
        if entries and len(entries[0]) > m.WHOLE_BYTES_MAX:
            whole = entries[0]
            if not 0 <= offset < len(whole):
                raise BadRequest(f"an entry of {len(whole)} bytes has no offset {offset}")
            piece = whole[offset : offset + m.PIECE_BYTES]
            return emsg.LogPiece((piece,), replica.applied_index, len(whole))
        return emsg.LogPiece(tuple(entries), replica.applied_index)

    async def _freeze(self, replica: Replica) -> None:
        """Have a state to hand out; one will do as long as the log holds what follows it."""
        async with self._freezing:
            base, number = self._base, replica.epoch.number
            if base is None or base[0] != number or replica.applied_after(base[1], 0) is None:
                index = replica.applied_index
                body = await encode_slowly(replica.state.snapshot())
                self._base = (number, index, body)

    def _base_piece(self, replica: Replica, index: int, offset: int) -> emsg.BasePiece:
        number = replica.epoch.number
        if self._base is None or self._base[0] != number or index not in (0, self._base[1]):
            raise NotFound("that state is gone: ask for a newer one")
        _, at, body = self._base
        if not 0 <= offset < len(body):
            raise BadRequest(f"a state of {len(body)} bytes has no offset {offset}")
        return emsg.BasePiece(at, len(body), body[offset : offset + m.PIECE_BYTES])


def news_ends() -> float:
    """Until when a question that comes now waits for news, by `trio.current_time`."""
    return max(pause_ends(NEWS_WAIT_S), trio.current_time() + NEWS_LEAST_S)
