"""Membership: SWIM with Lifeguard, as a pure machine.

A member that does not answer is suspect: it stays a member, is told of the doubt with the next
packet it gets, and may refute it; else it is declared dead (Das, Gupta and Motivala, "SWIM",
section 4.2; Lifeguard for how long that takes). News rides on probes and on gossip while there is
any; what gossip misses, push-pull over a stream makes good.

What is decided where:
- `ledger`: the rules of belief, and what this node says itself.
- `probing`: whom to ask whether it is there, and what to make of the answer or of none.
- `exchange`: when to exchange whole views.
- `watching`: what streams tell.
- `retries`: which of the dead to try again.
- `coordinates`: how far members are from each other.
- `names`: what happens when several carry one name.
- `post`: what goes into a packet.
- `mesh.events.machine`: user events, which ride along with the rest.

This file hands events to them, and says when news goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.events.events import SendEvent
from swarmd.mesh.events.machine import EventsMachine, Kept
from swarmd.mesh.swim.config import SwimConfig, settle
from swarmd.mesh.swim.coordinates import Coordinate, Coordinates
from swarmd.mesh.swim.events import (
    Changed,
    CheckDue,
    Departed,
    GossipTick,
    GrowTick,
    HintTick,
    Join,
    JoinAgain,
    Leave,
    LeaveDue,
    Member,
    NewsTick,
    PacketIn,
    ProbeTick,
    ProbeTimeout,
    Refused,
    RelayTimeout,
    RetryTick,
    RoundDue,
    SetMeta,
    Started,
    StreamAnswered,
    StreamClosed,
    SuspicionDue,
    SyncFailed,
    SyncIn,
    SyncTick,
    TrustChanged,
)
from swarmd.mesh.swim.exchange import Exchange
from swarmd.mesh.swim.ledger import Ledger, Signer
from swarmd.mesh.swim.messages import (
    PACKETS,
    Ack,
    Gossip,
    MemberState,
    Meta,
    Nack,
    Ping,
    PingFor,
    Rumour,
)
from swarmd.mesh.swim.names import Names
from swarmd.mesh.swim.post import Post
from swarmd.mesh.swim.probes import Pendings
from swarmd.mesh.swim.probing import Probing
from swarmd.mesh.swim.retries import Retries
from swarmd.mesh.swim.watching import Watching
from swarmd.wire.codec import Family

# News waits for this part of the gossip interval, for other news to travel with.
_NEWS_FRACTION: Final = 0.1
# Who was asked for its view asks for user events in return after this part of the sync interval.
_NEWS_ASKED_FRACTION: Final = 0.1


class SwimMachine:
    """Events in, effects out (see `events`). Feed `Started` first.

    Args:
        me: this node's id.
        config: settings; the profile is applied here.
        signer: signs this node's statements and verifies others'.
        meta: what this node says about itself.
        start_counter: higher at each start of this node, durably: its first incarnation
            outranks every rumour about its earlier lives.
        now: monotonic seconds.
        kept, founder: see `EventsMachine`.
    """

    ledger_type: ClassVar[type[Ledger]] = Ledger
    post_type: ClassVar[type[Post]] = Post
    probing_type: ClassVar[type[Probing]] = Probing
    exchange_type: ClassVar[type[Exchange]] = Exchange
    retries_type: ClassVar[type[Retries]] = Retries
    watching_type: ClassVar[type[Watching]] = Watching
    names_type: ClassVar[type[Names]] = Names
    events_type: ClassVar[type[EventsMachine]] = EventsMachine
    packets: ClassVar[Family] = PACKETS

    def __init__(
        self,
        me: NodeId,
        config: SwimConfig,
        rng: Rng,
        signer: Signer,
        meta: Meta,
        start_counter: int,
        now: float,
        *,
        kept: Kept | None = None,
        founder: bool = False,
    ) -> None:
        self.me = me
        self._config = config = settle(config)
        self._ledger = ledger = self.ledger_type(me, config, rng, signer, meta, start_counter, now)
        self.events = events = self.events_type(me, signer, now, kept, founder=founder)
        self._post = post = self.post_type(ledger, config, self.packets, events)
        self._pendings = pendings = Pendings(rng)
        self._probing = self.probing_type(me, config, rng, ledger, post, pendings)
        self._exchange = self.exchange_type(me, config, rng, ledger, now)
        self._retries = self.retries_type(config, rng, ledger, post, pendings)
        self._watching = self.watching_type(me, config, ledger, post, pendings, self._probing)
        self._names = self.names_type(me, meta.name)
        self._coordinates = Coordinates(me)
        self._gossip_armed = False
        self._news_armed = False
        self._unheard = False  # There is nobody to gossip to, until somebody comes.
        self._departed = False
        self._news_asked_after = now
        probing, exchange, watching = self._probing, self._exchange, self._watching
        self._handlers: Mapping[type[Event], Callable[[Any, float], list[Effect]]] = {
            Started: self._on_started,
            PacketIn: self._on_packet,
            SyncIn: self._on_sync,
            SyncFailed: lambda event, now: exchange.on_failed(event),
            StreamClosed: watching.on_closed,
            StreamAnswered: probing.on_stream_answered,
            Join: lambda event, now: exchange.on_join(event),
            JoinAgain: lambda event, now: exchange.on_join_again(event),
            GrowTick: lambda event, now: exchange.on_grow_tick(),
            Leave: self._on_leave,
            LeaveDue: lambda event, now: self._depart(),
            SetMeta: self._on_set_meta,
            TrustChanged: self._on_trust_changed,
            ProbeTick: probing.on_tick,
            ProbeTimeout: probing.on_timeout,
            RelayTimeout: lambda event, now: probing.on_relay_timeout(event),
            CheckDue: probing.on_check_due,
            RoundDue: probing.on_round_due,
            GossipTick: self._on_gossip_tick,
            NewsTick: self._on_news_tick,
            SyncTick: lambda event, now: exchange.on_tick(now),
            RetryTick: lambda event, now: self._retries.on_tick(),
            SuspicionDue: self._on_suspicion_due,
            HintTick: watching.on_hint_tick,
            SendEvent: self._on_send_event,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        queue, news = self._ledger.queue, self.events.queue
        pushed = queue.pushed + news.pushed
        effects = self._handlers[type(event)](event, now)
        if self._departed:
            return effects
        for effect in [effect for effect in effects if type(effect) is Changed]:
            self._unheard = False
            self._watching.after_change(effect)
            effects += self._probing.after_change(effect)
            effects += self._names.after_change(effect)
            self._forget_place(effect)
        if not len(news) and (self._unheard or not len(queue)):
            return effects
        if queue.pushed + news.pushed > pushed and not self._news_armed:
            self._news_armed = True
            effects.append(SetTimer(_NEWS_FRACTION * self._config.gossip_interval_s, NewsTick()))
        if not self._gossip_armed:
            self._gossip_armed = True
            effects.append(SetTimer(self._config.gossip_interval_s, GossipTick()))
        return effects

    # ---- what others may read between steps --------------------------------------------

    def members(self) -> list[Member]:
        """Everyone known, this node included, in order of arrival."""
        return [record.view() for record in self._ledger.members.records()]

    def get(self, node_id: NodeId) -> Member | None:
        record = self._ledger.members.get(node_id)
        return None if record is None else record.view()

    def alive(self) -> list[NodeId]:
        """Members held alive, this node included, in order of arrival."""
        records = self._ledger.members.records()
        return [r.node_id for r in records if r.state is MemberState.ALIVE]

    def addresses(self, node_id: NodeId) -> tuple[tuple[str, int], ...]:
        """Where a member says it is; empty if it is unknown."""
        record = self._ledger.members.get(node_id)
        return () if record is None else record.meta.addresses

    def version_with(self, node_id: NodeId) -> int | None:
        """The protocol version to speak with a member; None if none is common, or it is unknown."""
        return self._ledger.version_with(node_id)

    def view(self) -> list[bytes]:
        """The rumours to put into a push-pull."""
        return self._exchange.view()

    def watched(self) -> list[NodeId]:
        """The members to keep a connection to, whether there is traffic or not."""
        return self._watching.watched()

    def keeps(self, node_id: NodeId) -> bool:
        """True if a connection with this member is kept, by whichever of the two."""
        return self._watching.keeps(node_id)

    def stream_only(self) -> list[NodeId]:
        """Members that, time after time, answered this node over a stream and by no datagram.

        Something lets TCP pass between the two and stops UDP, perhaps in one direction only.
        """
        return self._probing.stream_only()

    def coordinate(self, node_id: NodeId) -> Coordinate | None:
        """Where a member is in the space of round trips; see `Coordinates.of`."""
        return self._coordinates.of(node_id)

    def estimate_s(self, node_id: NodeId) -> float | None:
        """The round trip from this node to another in seconds; see `Coordinates.estimate_s`."""
        return self._coordinates.estimate_s(node_id)

    def begin_at(self, place: Coordinate) -> None:
        """Be where an earlier start of this node was; before `Started`."""
        self._coordinates.begin_at(place)

    def queued(self) -> list[Rumour]:
        """The rumours that wait to be passed on, oldest first."""
        return self._ledger.queue.rumours()

    @property
    def health(self) -> int:
        """0 is well; see `suspicion.LocalHealth`."""
        return self._ledger.health.score

    # ---- start, leave -------------------------------------------------------------------

    def _on_started(self, event: Started, now: float) -> list[Effect]:
        return [
            self._probing.first_tick(now),
            self._exchange.first_tick(),
            self._retries.first_tick(),
        ]

    def _on_leave(self, event: Leave, now: float) -> list[Effect]:
        if self._ledger.leaving:
            return []
        effects = self._ledger.leave(now)
        goodbyes = self._post.say_goodbye()
        if not goodbyes:
            return effects + self._depart()
        return [*effects, *goodbyes, SetTimer(self._config.leave_timeout_s, LeaveDue())]

    def _depart(self) -> list[Effect]:
        if self._departed:
            return []
        self._departed = True
        return [Departed()]

    def _on_set_meta(self, event: SetMeta, now: float) -> list[Effect]:
        return [] if self._ledger.leaving else self._ledger.set_meta(event.meta)

    def _on_trust_changed(self, event: TrustChanged, now: float) -> list[Effect]:
        ledger, evicted = self._ledger, event.evicted
        self._exchange.forget(evicted)
        self._watching.forget(evicted)
        self._probing.forget(evicted)
        effects = [*ledger.shut_out(evicted, now), *ledger.roles_learnt()]
        effects += self.events.shut_out(evicted)
        return [*effects, *ledger.keys_learnt(now)]

    def _on_suspicion_due(self, event: SuspicionDue, now: float) -> list[Effect]:
        return [] if self._ledger.leaving else self._ledger.suspicion_due(event, now)

    # ---- packets -----------------------------------------------------------------------

    def _on_packet(self, event: PacketIn, now: float) -> list[Effect]:
        try:
            packet = self._post.decode(event.data)
        except MalformedMessage:
            return [Refused("malformed")]
        effects: list[Effect] = []
        peer = event.peer
        self._ledger.heard_at = now
        if not isinstance(packet, Nack):
            for raw in packet.rumours:
                effects += self._ledger.hear(raw, now)
        if isinstance(packet, Ping):
            self._probing.follow(packet)
            told = self._coordinates.told()
            effects.append(self._post.ack(peer, packet.sequence, packet.view, told))
            effects += self._exchange.compare(peer, packet.view, now)
        elif isinstance(packet, Ack):
            effects += self._measure(peer, packet, now)
            effects += self._on_ack(peer, packet, now)
            effects += self._exchange.compare(peer, packet.view, now)
            differs = packet.whole != self._post.whole() or not self.events.placed
            effects += self._exchange.compare_whole(peer, now, differs=differs)
        elif isinstance(packet, PingFor):
            effects += self._probing.on_ping_for(peer, packet)
        elif isinstance(packet, Nack):
            effects += self._probing.on_nack(peer, packet, now)
        elif isinstance(packet, Gossip):
            for raw in packet.news:
                effects += self.events.hear(raw, now)
        return effects

    def _measure(self, peer: NodeId, ack: Ack, now: float) -> list[Effect]:
        rtt_s = self._probing.round_trip_s(peer, ack, now)
        if rtt_s is None or self._coordinates.hear(peer, ack.coordinate, rtt_s):
            return []
        return [Refused("absurd")]

    def _forget_place(self, change: Changed) -> None:
        if change.after is None or change.left or change.moved:
            one = change.after or change.before
            assert one is not None
            self._coordinates.forget(one.node_id)

    def _on_send_event(self, event: SendEvent, now: float) -> list[Effect]:
        return self.events.on_send(event, now, alone=len(self._ledger.members) == 1)

    def _on_sync(self, event: SyncIn, now: float) -> list[Effect]:
        """Take a view; if it came from one that holds other user events, ask for those, too.

        Not all the time: while many are sent everybody's are different.
        """
        effects = self._exchange.on_sync(event, now)
        self._unheard = False  # It may tell of one that died just now, who is told, too.
        heard, ask = self.events.hear_told(event.news, now, answer=event.answer)
        if ask and now >= self._news_asked_after and not self._ledger.leaving:
            self._news_asked_after = now + _NEWS_ASKED_FRACTION * self._config.sync_interval_s
            heard += self._exchange.sync(event.peer, now)
        return effects + heard

    def _on_ack(self, peer: NodeId, ack: Ack, now: float) -> list[Effect]:
        if self._probing.on_ack(peer, ack):
            return []
        pending = self._pendings.get(ack.sequence)
        if pending is None or pending.target != peer:
            return []
        self._pendings.close(ack.sequence)
        if pending.why == "retry":
            return self._exchange.sync(peer, now)
        if pending.why == "hint":
            self._watching.answered(peer)
        elif pending.asker is not None:
            return [self._post.ack(pending.asker, pending.asker_sequence)]
        return []

    # ---- news --------------------------------------------------------------------------

    def _on_news_tick(self, event: NewsTick, now: float) -> list[Effect]:
        """What was just heard goes out at once, with what came within the same moment.

        To as many as all of a small swarm if it is our own word: then nobody depends on chance.
        """
        self._news_armed = False
        if self._departed:
            return []
        return self._post.announce() or self._spread(now)

    def _on_gossip_tick(self, event: GossipTick, now: float) -> list[Effect]:
        self._gossip_armed = False
        return self._spread(now)

    def _spread(self, now: float) -> list[Effect]:
        if self._departed:
            return []
        effects = self._post.spread(now)
        self._unheard = not effects and len(self._ledger.queue) > 0
        if self._ledger.leaving and self.me not in self._ledger.queue:
            effects += self._depart()
        return effects
