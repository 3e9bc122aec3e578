"""Membership: SWIM with Lifeguard, as a pure machine.

Each interval a member pings one other, in rounds over a random order, so that every member is
asked within two rounds (SWIM, sections 3.1 and 4.3). Without an answer in time it asks k others
to try. Without any answer by the end of the interval the target is suspect: it stays a member,
is told of the doubt with the next packet it gets, and may refute it; else it is declared dead
(section 4.2; Lifeguard for how long that takes). News rides on these packets and on gossip while
there is any; what gossip misses, push-pull over a stream makes good.

Beyond the papers:
- Pings and acks carry a digest of the sender's view. Views that differ although nobody has news
  are exchanged at once, so that a join does not depend on gossip's luck.
- Whoever is sent a packet while held suspect or dead is told so in it.
- Dead members are pinged at a low rate for ever: a partition of any length heals.
- A reset stream is a hint: three quick pings; only a refused connection shortens the suspicion.

The rules of belief are in `ledger`; this file decides whom to ask, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.swim.config import SwimConfig, settle
from swarmd.mesh.swim.events import (
    Departed,
    GossipTick,
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
    SetMeta,
    Started,
    StreamClosed,
    SuspicionDue,
    SyncFailed,
    SyncIn,
    SyncTick,
    SyncWith,
    TrustChanged,
)
from swarmd.mesh.swim.ledger import Ledger, Signer
from swarmd.mesh.swim.members import PRESENT, Record
from swarmd.mesh.swim.messages import (
    PACKETS,
    SYNC_BYTES_MAX,
    SYNC_RUMOURS_MAX,
    Ack,
    Gossip,
    MemberState,
    Meta,
    Nack,
    Ping,
    PingFor,
    Rumour,
)
from swarmd.mesh.swim.probes import Hint, Pending, Pendings, Round
from swarmd.mesh.swim.suspicion import retransmit_limit, sync_scale
from swarmd.wire.codec import Family
from swarmd.wire.version import common_version

_JOIN_AGAIN_S: Final = 1.0
_JOIN_AGAIN_MAX_S: Final = 60.0
_JOINING_MAX: Final = 64
# News waits for this part of the gossip interval, for other news to travel with.
_NEWS_FRACTION: Final = 0.1
# A node that started so recently does not wait for gossip to tell it who is here.
_NEW_HERE_S: Final = 10.0
_HINT_PINGS: Final = 3
_HINT_INTERVAL_S: Final = 0.1
# To how many at once a node says what it says itself.
_ANNOUNCE_FANOUT: Final = 16
_SYNC_BACKOFF_MAX: Final = 32.0


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
    """

    ledger_type: ClassVar[type[Ledger]] = Ledger
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
    ) -> None:
        self.me = me
        self._config = settle(config)
        self._rng = rng
        self._ledger = self.ledger_type(me, self._config, rng, signer, meta, start_counter, now)
        self._pendings = Pendings(rng)
        self._round: Round | None = None
        self._tick = 0
        self._gossip_armed = False
        self._news_armed = False
        self._joining: dict[NodeId, float] = {}
        self._hints: dict[NodeId, Hint] = {}
        self._hint_tokens = 0
        self._departed = False
        self._started_at = now
        self._sync_after = now
        self._sync_backoff = 1.0
        self._handlers: Mapping[type[Event], Callable[[Any, float], list[Effect]]] = {
            Started: self._on_started,
            PacketIn: self._on_packet,
            SyncIn: self._on_sync,
            SyncFailed: self._on_sync_failed,
            StreamClosed: self._on_stream_closed,
            Join: self._on_join,
            JoinAgain: self._on_join_again,
            Leave: self._on_leave,
            LeaveDue: self._on_leave_due,
            SetMeta: self._on_set_meta,
            TrustChanged: self._on_trust_changed,
            ProbeTick: self._on_probe_tick,
            ProbeTimeout: self._on_probe_timeout,
            RelayTimeout: self._on_relay_timeout,
            GossipTick: self._on_gossip_tick,
            NewsTick: self._on_news_tick,
            SyncTick: self._on_sync_tick,
            RetryTick: self._on_retry_tick,
            SuspicionDue: self._on_suspicion_due,
            HintTick: self._on_hint_tick,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        queue = self._ledger.queue
        pushed = queue.pushed
        effects = self._handlers[type(event)](event, now)
        if self._departed or not len(queue):
            return effects
        if queue.pushed > pushed and not self._news_armed:
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
        record = self._ledger.members.get(node_id)
        if record is None:
            return None
        return common_version(self._ledger.self_record.meta.speaks, record.meta.speaks)

    def view(self) -> list[bytes]:
        """The rumours to put into a push-pull: all, or as many as fit, from a random place on."""
        records = self._ledger.members.records()
        start = self._rng.randrange(len(records))
        mine = self._ledger.self_record
        chosen: list[bytes] = []
        room = SYNC_BYTES_MAX
        for record in [mine, *records[start:], *(r for r in records[:start])]:
            if record is mine and chosen:
                continue
            raws = [rumour.raw for rumour in record.rumours()]
            room -= sum(len(raw) + 3 for raw in raws)
            if room < 0 or len(chosen) + len(raws) > SYNC_RUMOURS_MAX:
                break
            chosen += raws
        return chosen

    def queued(self) -> list[Rumour]:
        """The rumours that wait to be passed on, oldest first."""
        return self._ledger.queue.rumours()

    @property
    def health(self) -> int:
        """0 is well; see `suspicion.LocalHealth`."""
        return self._ledger.health.score

    # ---- start, join, leave ------------------------------------------------------------

    def _on_started(self, event: Started, now: float) -> list[Effect]:
        config, rng = self._config, self._rng
        return [
            SetTimer(rng.uniform(0, config.probe_interval_s), ProbeTick(self._tick)),
            SetTimer(rng.uniform(0.5, 1.0) * config.sync_interval_s, SyncTick()),
            SetTimer(rng.uniform(0.5, 1.0) * config.retry_interval_s, RetryTick()),
        ]

    def _on_join(self, event: Join, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for peer in event.peers:
            if peer != self.me and peer not in self._joining and len(self._joining) < _JOINING_MAX:
                self._joining[peer] = _JOIN_AGAIN_S
                effects.append(SyncWith(peer))
        return effects

    def _on_join_again(self, event: JoinAgain, now: float) -> list[Effect]:
        if event.peer not in self._joining or self._ledger.leaving:
            return []
        if self._ledger.members.get(event.peer) is not None:
            del self._joining[event.peer]  # Others told of it: the protocol cares for it now.
            return []
        return [SyncWith(event.peer)]

    def _on_leave(self, event: Leave, now: float) -> list[Effect]:
        if self._ledger.leaving:
            return []
        effects = self._ledger.leave(now)
        goodbyes = self._announce()
        if not goodbyes:
            return effects + self._depart()
        return [*effects, *goodbyes, SetTimer(self._config.leave_timeout_s, LeaveDue())]

    def _on_leave_due(self, event: LeaveDue, now: float) -> list[Effect]:
        return self._depart()

    def _depart(self) -> list[Effect]:
        if self._departed:
            return []
        self._departed = True
        return [Departed()]

    def _on_set_meta(self, event: SetMeta, now: float) -> list[Effect]:
        return [] if self._ledger.leaving else self._ledger.set_meta(event.meta)

    def _on_trust_changed(self, event: TrustChanged, now: float) -> list[Effect]:
        self._sync_backoff = 1.0
        ledger, evicted = self._ledger, event.evicted
        for known in (self._joining, self._hints):
            for peer in evicted & known.keys():
                del known[peer]
        if self._round is not None and self._round.target in evicted:
            self._round = None
        effects = [*ledger.shut_out(evicted), *ledger.roles_learnt()]
        return [*effects, *ledger.keys_learnt(now)]

    # ---- probing -----------------------------------------------------------------------

    def _on_probe_tick(self, event: ProbeTick, now: float) -> list[Effect]:
        if event.number != self._tick or self._ledger.leaving:
            return []
        effects = self._end_round(now)
        self._tick += 1
        interval_s = self._ledger.health.scale(self._config.probe_interval_s)
        effects.append(SetTimer(interval_s, ProbeTick(self._tick)))
        record = self._ledger.members.next_to_probe()
        if record is None:
            return effects
        self._round = Round(record.node_id, record.incarnation, self._pendings.sequence())
        effects.append(self._ping(record.node_id, self._round.sequence))
        timeout = ProbeTimeout(self._round.sequence)
        effects.append(SetTimer(self._config.probe_timeout_s, timeout))
        return effects

    def _end_round(self, now: float) -> list[Effect]:
        ended, self._round = self._round, None
        if ended is None:
            return []
        self._ledger.health.adjust(ended.health_delta())
        return [] if ended.answered else self._silent(ended.target, ended.incarnation, now)

    def _silent(self, target: NodeId, incarnation: int, now: float) -> list[Effect]:
        record = self._ledger.members.get(target)
        if record is None or now < record.excused_until:
            return []
        if record.incarnation > incarnation:
            return []  # It has spoken up or started anew since it was asked.
        return self._ledger.accuse(record, now)

    def _on_probe_timeout(self, event: ProbeTimeout, now: float) -> list[Effect]:
        probe = self._round
        if probe is None or probe.sequence != event.sequence or probe.answered:
            return []
        alive = MemberState.ALIVE
        probe.helpers = self._ledger.members.pick(
            self._config.indirect_probes,
            lambda r: r.state is alive and r.node_id != probe.target,
        )
        return [
            self._packet(helper, lambda rumours: PingFor(probe.sequence, probe.target, rumours))
            for helper in probe.helpers
        ]

    def _on_relay_timeout(self, event: RelayTimeout, now: float) -> list[Effect]:
        pending = self._pendings.get(event.sequence)
        if pending is None or pending.asker is None:
            return []
        return [Send(pending.asker, self.packets.encode(Nack(pending.asker_sequence)))]

    # ---- packets -----------------------------------------------------------------------

    def _on_packet(self, event: PacketIn, now: float) -> list[Effect]:
        try:
            packet = self.packets.decode(event.data)
        except MalformedMessage:
            return [Refused("malformed")]
        effects: list[Effect] = []
        if not isinstance(packet, Nack):
            for raw in packet.rumours:
                effects += self._ledger.hear(raw, now)
        if isinstance(packet, Ping):
            effects.append(self._ack(event.peer, packet.sequence, packet.view))
            effects += self._compare_views(event.peer, packet.view, now)
        elif isinstance(packet, Ack):
            effects += self._on_ack(event.peer, packet, now)
            effects += self._compare_views(event.peer, packet.view, now)
        elif isinstance(packet, PingFor):
            effects += self._on_ping_for(event.peer, packet)
        elif isinstance(packet, Nack):
            self._on_nack(event.peer, packet)
        return effects

    def _on_ack(self, peer: NodeId, ack: Ack, now: float) -> list[Effect]:
        probe = self._round
        if probe is not None and ack.sequence == probe.sequence:
            if peer == probe.target or peer in probe.helpers:
                probe.answered = True
            return []
        pending = self._pendings.get(ack.sequence)
        if pending is None or pending.target != peer:
            return []
        self._pendings.close(ack.sequence)
        if pending.why == "retry":
            return self._sync(peer, now)
        if pending.why == "hint":
            self._hints.pop(peer, None)
        elif pending.asker is not None:
            return [self._ack(pending.asker, pending.asker_sequence)]
        return []

    def _on_nack(self, peer: NodeId, nack: Nack) -> None:
        probe = self._round
        if probe is None or nack.sequence != probe.sequence:
            return
        if peer in probe.helpers and peer not in probe.nacks:
            probe.nacks.append(peer)

    def _on_ping_for(self, peer: NodeId, packet: PingFor) -> list[Effect]:
        target = NodeId(packet.target)
        if target == self.me:
            return [self._ack(peer, packet.sequence)]
        if self._ledger.members.get(target) is None:
            return []
        sequence = self._pendings.open(Pending("relay", target, peer, packet.sequence))
        timer = SetTimer(self._config.probe_timeout_s, RelayTimeout(sequence))
        return [self._ping(target, sequence), timer]

    def _ping(self, peer: NodeId, sequence: int) -> Effect:
        view = self._ledger.members.view_digest()
        return self._packet(peer, lambda rumours: Ping(sequence, view, rumours))

    def _ack(self, peer: NodeId, sequence: int, peer_view: bytes = b"") -> Effect:
        view = self._ledger.members.view_digest()
        # A peer with another view may hold us dead, or at an address that we left.
        differs = bool(peer_view) and peer_view != view
        return self._packet(peer, lambda rumours: Ack(sequence, view, rumours), differs)

    def _packet(
        self,
        peer: NodeId,
        make: Callable[[list[bytes]], Any],
        introduce: bool = False,
        first: tuple[Rumour, ...] = (),
    ) -> Effect:
        record = self._ledger.members.get(peer)
        if record is None or introduce:
            first = (self._ledger.self_record.alive, *first)
        if record is not None and record.evidence is not None:
            # Tell the peer before all else what is said against it: it alone can refute that.
            first = (record.evidence, *first)
        rumours = self._ledger.queue.take(self._retransmits(), first=first)
        return Send(peer, self.packets.encode(make(rumours)))

    def _retransmits(self) -> int:
        count = self._ledger.members.present_count
        return max(1, retransmit_limit(self._config.retransmit_mult, count))

    # ---- gossip ------------------------------------------------------------------------

    def _on_news_tick(self, event: NewsTick, now: float) -> list[Effect]:
        """What was just heard goes out at once, with what came within the same moment.

        To as many as all of a small swarm if it is our own word: then nobody depends on chance.
        """
        self._news_armed = False
        return self._announce() or self._gossip(now)

    def _announce(self) -> list[Effect]:
        said = self._ledger.announcements()
        if not said or self._departed:
            return []
        peers = self._ledger.members.pick(_ANNOUNCE_FANOUT, lambda r: r.state in PRESENT)
        return self._gossip_to(peers, said)

    def _gossip_to(self, peers: list[NodeId], first: tuple[Rumour, ...] = ()) -> list[Effect]:
        queue = self._ledger.queue
        return [self._packet(peer, Gossip, first=first) for peer in peers if first or len(queue)]

    def _on_gossip_tick(self, event: GossipTick, now: float) -> list[Effect]:
        self._gossip_armed = False
        return self._gossip(now)

    def _gossip(self, now: float) -> list[Effect]:
        if self._departed:
            return []
        fresh_s = self._config.gossip_to_dead_s
        peers = self._ledger.members.pick(
            self._config.gossip_fanout,
            lambda r: (
                r.state in PRESENT or (r.state is MemberState.DEAD and now - r.changed_at < fresh_s)
            ),
        )
        effects = self._gossip_to(peers)
        if self._ledger.leaving and self.me not in self._ledger.queue:
            effects += self._depart()
        return effects

    # ---- push-pull ---------------------------------------------------------------------

    def _compare_views(self, peer: NodeId, view: bytes, now: float) -> list[Effect]:
        """Exchange views with a peer that we do not know, or whose view differs without news."""
        record = self._ledger.members.get(peer)
        if record is not None:
            if view == self._ledger.members.view_digest():
                self._sync_backoff = 1.0
                return []
            if len(self._ledger.queue) and now - self._started_at > _NEW_HERE_S:
                return []
            if record.state is not MemberState.ALIVE:
                return []
        if self._ledger.leaving or now < self._sync_after:
            return []
        self._sync_backoff = min(_SYNC_BACKOFF_MAX, self._sync_backoff * 2)
        return self._sync(peer, now)

    def _sync(self, peer: NodeId, now: float) -> list[Effect]:
        # If exchanging does not help (a key we cannot verify yet), do it ever less often.
        self._sync_after = now + self._config.sync_min_interval_s * self._sync_backoff
        return [SyncWith(peer)]

    def _on_sync(self, event: SyncIn, now: float) -> list[Effect]:
        self._joining.pop(event.peer, None)
        before = self._ledger.members.view_digest()
        effects = self._ledger.hear_view(event.rumours, now)
        if self._ledger.members.view_digest() != before:
            self._sync_backoff = 1.0
        return effects

    def _on_sync_failed(self, event: SyncFailed, now: float) -> list[Effect]:
        """Try a peer to join by for ever, ever less often: it may be our only way to the swarm."""
        delay_s = self._joining.get(event.peer)
        if delay_s is None:
            return []
        self._joining[event.peer] = min(_JOIN_AGAIN_MAX_S, delay_s * 1.5)
        return [SetTimer(delay_s * self._rng.uniform(0.75, 1.25), JoinAgain(event.peer))]

    def _on_sync_tick(self, event: SyncTick, now: float) -> list[Effect]:
        if self._ledger.leaving:
            return []
        scale = sync_scale(self._ledger.members.present_count)
        effects: list[Effect] = [SetTimer(self._config.sync_interval_s * scale, SyncTick())]
        alive = MemberState.ALIVE
        for peer in self._ledger.members.pick(1, lambda r: r.state is alive):
            effects += self._sync(peer, now)
        return effects

    # ---- the suspect and the dead --------------------------------------------------------

    def _on_suspicion_due(self, event: SuspicionDue, now: float) -> list[Effect]:
        return [] if self._ledger.leaving else self._ledger.suspicion_due(event, now)

    def _on_retry_tick(self, event: RetryTick, now: float) -> list[Effect]:
        if self._ledger.leaving:
            return []
        interval_s = self._config.retry_interval_s * self._rng.uniform(0.9, 1.1)
        effects: list[Effect] = [SetTimer(interval_s, RetryTick())]
        dead = MemberState.DEAD
        for peer in self._ledger.members.pick(self._config.retry_dead, lambda r: r.state is dead):
            effects.append(self._ping(peer, self._pendings.open(Pending("retry", peer))))
        return effects

    def _on_stream_closed(self, event: StreamClosed, now: float) -> list[Effect]:
        record = self._ledger.members.get(event.peer)
        if record is None or record.state not in PRESENT or self._ledger.leaving:
            return []
        if event.how == "restarting":
            record.excused_until = now + event.quiet_s
            return []
        if now < record.excused_until:
            return []
        if event.how == "refused":
            return self._refused(record, now)
        if event.how == "reset" and event.peer not in self._hints:
            self._hint_tokens += 1
            self._hints[event.peer] = Hint(self._hint_tokens, record.incarnation)
            return self._on_hint_tick(HintTick(event.peer, self._hint_tokens), now)
        return []

    def _refused(self, record: Record, now: float) -> list[Effect]:
        """Its host answers and its process does not: doubt it briefly, and let it object."""
        within_s = self._config.refused_suspicion_s
        effects = self._ledger.accuse(record, now, within_s=within_s)
        effects.append(self._ping(record.node_id, self._pendings.sequence()))
        return effects

    def _on_hint_tick(self, event: HintTick, now: float) -> list[Effect]:
        hint = self._hints.get(event.subject)
        if hint is None or hint.token != event.token:
            return []
        if hint.sent == _HINT_PINGS:
            del self._hints[event.subject]
            return self._silent(event.subject, hint.incarnation, now)
        hint.sent += 1
        sequence = self._pendings.open(Pending("hint", event.subject))
        return [self._ping(event.subject, sequence), SetTimer(_HINT_INTERVAL_S, event)]
