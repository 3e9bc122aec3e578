"""What is put into packets: one matter, and as many rumours as fit beside it.

Gossip takes user events along with the rumours.

Whoever gets a packet while it is held suspect or dead is told so in it before all else: it alone
can refute that (Lifeguard's buddy, section IV.C, for every kind of packet).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Send
from swarmd.mesh.events.machine import EventsMachine
from swarmd.mesh.events.messages import UserEvent
from swarmd.mesh.swim.broadcasts import RUMOUR_BUDGET_BYTES
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.members import Record
from swarmd.mesh.swim.messages import (
    PACKET_NEWS_MAX,
    Ack,
    Gossip,
    Nack,
    Ping,
    PingFor,
    Rumour,
)
from swarmd.mesh.swim.suspicion import retransmit_limit
from swarmd.wire.codec import BYTES_HEAD_MAX, Family

# To how many at once a node says what it says itself.
ANNOUNCE_FANOUT: Final = 16


class Post:
    """Makes packets. `packets` is the codec of this build."""

    def __init__(
        self, ledger: Ledger, config: SwimConfig, packets: Family, events: EventsMachine
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._news = events.queue
        self._news_turn = False
        self._config = config
        self._packets = packets

    def decode(self, data: bytes) -> Any:
        """A Ping, PingFor, Ack, Nack or Gossip. Raises MalformedMessage."""
        return self._packets.decode(data)

    def ping(self, peer: NodeId, sequence: int, turn: int = 0) -> Effect:
        view = self._ledger.members.view_digest()
        return self._packet(peer, lambda rumours: Ping(sequence, view, rumours, turn))

    def ping_for(self, helper: NodeId, sequence: int, target: NodeId) -> Effect:
        return self._packet(helper, lambda rumours: PingFor(sequence, target, rumours))

    def ack(
        self, peer: NodeId, sequence: int, peer_view: bytes = b"", coordinate: bytes = b""
    ) -> Effect:
        view, whole = self._ledger.members.view_digest(), self.whole()
        # A peer with another view may hold us dead, or at an address that we left.
        differs = bool(peer_view) and peer_view != view
        return self._packet(
            peer, lambda rumours: Ack(sequence, view, rumours, whole, coordinate), differs
        )

    def whole(self) -> bytes:
        """Sums up all that this node would tell when views are exchanged: members and events."""
        members, events = self._ledger.members.whole_digest(), self._events.sum()
        return bytes(one ^ other for one, other in zip(members, events, strict=True))

    def nack(self, peer: NodeId, sequence: int) -> Effect:
        return Send(peer, self._packets.encode(Nack(sequence)))

    def gossip(
        self,
        peers: Sequence[NodeId],
        first: tuple[Rumour, ...] = (),
        news: tuple[UserEvent, ...] = (),
    ) -> list[Effect]:
        """What waits, to each of `peers` as long as there is any; `first` and `news` to all."""

        return [
            self._gossip(peer, first, news)
            for peer in peers
            if first or news or len(self._ledger.queue) or len(self._news)
        ]

    def _gossip(
        self, peer: NodeId, first: tuple[Rumour, ...], news: tuple[UserEvent, ...]
    ) -> Effect:
        """Where rumours and user events wait, they take turns at being first.

        A swarm that starts, or comes together again, has rumours to tell for many seconds.
        """
        first, limit = self._must_say(peer, first), self._retransmits()
        self._news_turn = not self._news_turn
        events: list[bytes] = []
        if news or self._news_turn:
            room = RUMOUR_BUDGET_BYTES - _size([rumour.raw for rumour in first])
            events = self._news.take(room, limit, PACKET_NEWS_MAX, first=news)
        room = RUMOUR_BUDGET_BYTES - _size(events)
        rumours = self._ledger.queue.take(limit, first=first, room=room)
        if not events:
            events = self._news.take(room - _size(rumours), limit, PACKET_NEWS_MAX)
        return Send(peer, self._packets.encode(Gossip(rumours, events)))

    def announce(self) -> list[Effect]:
        """What this node has just said itself, to as many as all of a small swarm."""
        said, news = self._ledger.announcements(), self._news.fresh()
        if not said and not news:
            return []
        return self.gossip(self._ledger.members.pick_present(ANNOUNCE_FANOUT), said, news)

    def say_goodbye(self) -> list[Effect]:
        """The same as it leaves, also to the dead: it may be that only a partition made them so."""
        said, members = self._ledger.announcements(), self._ledger.members
        peers = members.pick_present(ANNOUNCE_FANOUT)
        return self.gossip([*peers, *members.dead()[: ANNOUNCE_FANOUT - len(peers)]], said)

    def spread(self, now: float) -> list[Effect]:
        """What waits, to some members and those who died so recently that they may answer."""
        config = self._config
        dead_since = now - config.gossip_to_dead_s
        peers = self._ledger.members.pick_hearers(config.gossip_fanout, dead_since)
        if not peers:
            self._news.clear()
        return self.gossip(peers)

    def _packet(
        self,
        peer: NodeId,
        make: Callable[[list[bytes]], Any],
        introduce: bool = False,
        first: tuple[Rumour, ...] = (),
    ) -> Effect:
        first = self._must_say(peer, first, introduce)
        rumours = self._ledger.queue.take(self._retransmits(), first=first)
        return Send(peer, self._packets.encode(make(rumours)))

    def _must_say(
        self, peer: NodeId, first: tuple[Rumour, ...], introduce: bool = False
    ) -> tuple[Rumour, ...]:
        """`first`, after who we are if it may not know, and what it is accused of."""
        record = self._ledger.members.get(peer)
        if record is None or introduce:
            first = (self._ledger.self_record.alive, *first)
        doubt = None if record is None else self.told_of(record)
        return first if doubt is None or doubt in first else (doubt, *first)

    def told_of(self, record: Record) -> Rumour | None:
        """What a member is told of itself in each packet that it gets."""
        return record.evidence

    def _retransmits(self) -> int:
        count = self._ledger.members.present_count
        return max(1, retransmit_limit(self._config.retransmit_mult, count))


def _size(raws: list[bytes]) -> int:
    return sum(len(raw) + BYTES_HEAD_MAX for raw in raws)
