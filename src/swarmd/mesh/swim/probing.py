"""Whom this node probes, and what it makes of the answer, or of none.

Each interval a member pings one other (SWIM, section 3.1). Without an answer in time it asks k
others to try, and tries a stream itself: datagrams may be what is blocked. Without any answer by
the end of the interval, or once all helpers have refused, the target is suspect.

Beyond the papers:
- Members share the number of the turn, and with it who probes whom (`MemberTable.probed_in`).
- Who hears that another is suspected probes it at once, out of turn: a dead member is confirmed
  dead within an interval, and a live one is told of the doubt by many. In a large swarm only some
  do, drawn by lot. A check that nobody at all answers proves nothing and confirms nothing.
- Who does not answer after its stream broke is not suspected for that alone: it may be only this
  node that it does not hear, so others are asked first.
- A helper refuses at 80 % of the time that the asker has left, so that its Nack is counted
  (Lifeguard, section IV.A).
- A node that is unwell asks seldom, and may have been cut off when it asked, and be back since.
  Where nothing at all came back it asks once more before it accuses anybody.
- A timer that comes late shows that this process stood still, and that answers may wait behind
  it: they get their time before anything is concluded, HOLDS_MAX times in succession.
- A turn may begin up to a beat too soon (`SetTimer.on_beat`), first of all, and after one that came
  late. It is late by when it was to come at the latest, and ends no probe that has time left; but
  turns are tied to beats, so that each second one comes a millisecond or so too soon: that much of
  its time a probe does without.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import (
    Changed,
    CheckDue,
    ProbeTick,
    ProbeTimeout,
    RelayTimeout,
    RoundDue,
    StreamAnswered,
    StreamProbe,
)
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.members import PRESENT, Record
from swarmd.mesh.swim.messages import (
    TURN_FOLLOWED_MAX,
    Ack,
    MemberState,
    Nack,
    Ping,
    PingFor,
    StreamPing,
)
from swarmd.mesh.swim.post import Post
from swarmd.mesh.swim.probes import Pending, Pendings, Round
from swarmd.mesh.swim.suspicion import HOLDS_MAX

# Probes out of turn at the same time.
CHECKS_MAX: Final = 8
# How many members, by lot, check one suspicion; a few times what a suspicion wants.
_CHECKERS: Final = 10.0
# They begin within this part of the interval.
_CHECK_WITHIN: Final = 0.2
# A turn that comes so much too soon ends the probe before it.
_HAIR_S: Final = 0.02
_REFUSE_AFTER: Final = 0.8
# So often in succession, it was no loss.
_STREAM_ONLY_TIMES: Final = 3
_STREAM_ONLY_MAX: Final = 1_024


class Probing:
    """The probes of one node. `turn` is the number of the last one in turn."""

    def __init__(
        self,
        me: NodeId,
        config: SwimConfig,
        rng: Rng,
        ledger: Ledger,
        post: Post,
        pendings: Pendings,
    ) -> None:
        self._me = me
        self._config = config
        self._rng = rng
        self._ledger = ledger
        self._post = post
        self._pendings = pendings
        self._rounds: dict[int, Round] = {}
        self._in_turn: int | None = None
        self._streams_only: dict[NodeId, int] = {}
        self._tick = 0
        self._tick_due = 0.0
        self._tick_holds = 0
        self.turn = 0

    # ---- in turn ----------------------------------------------------------------------

    def first_tick(self, now: float) -> Effect:
        delay_s = self._rng.uniform(0, self._config.probe_interval_s)
        self._tick_due = now + delay_s
        return SetTimer(delay_s, ProbeTick(self._tick))

    def on_tick(self, event: ProbeTick, now: float) -> list[Effect]:
        if event.number != self._tick or self._ledger.leaving:
            return []
        if self._stood_still(self._tick_due, now) and self._tick_holds < HOLDS_MAX:
            self._tick_holds += 1
            self._tick_due = now + self._config.probe_timeout_s
            return [SetTimer(self._config.probe_timeout_s, event)]
        effects = [] if self._in_turn is None else self._turn_over(self._in_turn, now)
        self._tick += 1
        self._tick_holds = 0
        self.turn += 1
        interval_s = self._ledger.health.scale(self._config.probe_interval_s)
        self._tick_due = now + interval_s
        effects.append(SetTimer(interval_s, ProbeTick(self._tick), on_beat=True))
        record = self._ledger.members.probed_in(self.turn)
        if record is None:
            return effects
        self._in_turn, asking = self._ask(record, now, now + interval_s)
        self._rounds[self._in_turn].slow = self._ledger.health.score > 0
        return effects + asking

    def follow(self, ping: Ping) -> None:
        """Be at most one turn behind who is furthest."""
        if self.turn < ping.turn - 1 and ping.turn <= TURN_FOLLOWED_MAX:
            self.turn = ping.turn - 1

    def _ask(
        self, record: Record, now: float, due_at: float, *, check: bool = False
    ) -> tuple[int, list[Effect]]:
        sequence, target = self._pendings.sequence(), record.node_id
        self._rounds[sequence] = Round(target, record.incarnation, sequence, now, due_at, check)
        turn = 0 if check else self.turn
        timeout = SetTimer(self.timeout_s(), ProbeTimeout(sequence))
        return sequence, [self._post.ping(target, sequence, turn), timeout]

    def timeout_s(self) -> float:
        """How long a direct answer may take."""
        return self._config.probe_timeout_s

    def on_timeout(self, event: ProbeTimeout, now: float) -> list[Effect]:
        """No answer in time: let others try, and try a stream."""
        probe = self._rounds.get(event.sequence)
        if probe is None or probe.answered or probe.asked or self._ledger.has_left(probe.target):
            return []
        probe.asked = True
        members, target = self._ledger.members, probe.target
        probe.helpers = members.pick_alive(self._config.indirect_probes, but=target)
        effects: list[Effect] = [
            self._post.ping_for(helper, probe.sequence, target) for helper in probe.helpers
        ]
        if self._speaks_stream_ping(target):
            probe.stream = "waiting"
            effects.append(StreamProbe(target, probe.sequence, self._refuse_after_s()))
        return effects

    def _speaks_stream_ping(self, target: NodeId) -> bool:
        version = self._ledger.version_with(target)
        return version is not None and version >= StreamPing.since

    # ---- out of turn ------------------------------------------------------------------

    def after_change(self, change: Changed) -> list[Effect]:
        """Somebody is suspect from now on: check it soon, unless the lot falls on others."""
        after = change.after
        if after is None or after.state is not MemberState.SUSPECT or after.node_id == self._me:
            return []
        if change.before is not None and change.before.state is MemberState.SUSPECT:
            return []
        record = self._ledger.members.get(after.node_id)
        if record is None or record.suspicion is None:
            return []
        if not record.suspicion.would_confirm(self._me):
            return []
        if self._rng.random() * self._ledger.members.present_count > _CHECKERS:
            return []
        delay_s = self._rng.uniform(0, _CHECK_WITHIN) * self._config.probe_interval_s
        return [SetTimer(delay_s, CheckDue(after.node_id, after.incarnation))]

    def on_check_due(self, event: CheckDue, now: float) -> list[Effect]:
        record = self._ledger.members.get(event.subject)
        if record is None or record.suspicion is None or self._ledger.leaving:
            return []
        wanted = record.suspicion.would_confirm(self._me)
        if record.incarnation != event.incarnation or not wanted or self._checks() >= CHECKS_MAX:
            return []
        interval_s = self._config.probe_interval_s
        sequence, asking = self._ask(record, now, now + interval_s, check=True)
        return [*asking, SetTimer(interval_s, RoundDue(sequence))]

    def _checks(self) -> int:
        return sum(probe.check for probe in self._rounds.values())

    def ask_around(self, target: NodeId, incarnation: int, now: float) -> list[Effect]:
        """A member does not answer us when asked out of turn: let others try before we doubt it."""
        record = self._ledger.members.get(target)
        if record is None or record.state not in PRESENT or record.incarnation != incarnation:
            return []
        if self._checks() >= CHECKS_MAX:
            return []  # Its turn comes anyway.
        interval_s = self._config.probe_interval_s
        sequence, asking = self._ask(record, now, now + interval_s, check=True)
        others = self.on_timeout(ProbeTimeout(sequence), now)
        return [*asking, *others, SetTimer(interval_s, RoundDue(sequence))]

    def on_round_due(self, event: RoundDue, now: float) -> list[Effect]:
        probe = self._rounds.get(event.sequence)
        late = probe is not None and self._stood_still(probe.due_at, now)
        if probe is not None and late and probe.holds < HOLDS_MAX:
            probe.holds += 1
            probe.due_at = now + self._config.probe_timeout_s
            return [SetTimer(self._config.probe_timeout_s, event)]
        return self._conclude(event.sequence, now)

    # ---- ends -------------------------------------------------------------------------

    def _turn_over(self, sequence: int, now: float) -> list[Effect]:
        """The next turn begins; a probe that it came too soon for keeps the time it was given."""
        probe = self._rounds.get(sequence)
        if probe is None or probe.answered or now >= probe.due_at - _HAIR_S:
            return self._conclude(sequence, now)
        self._in_turn = None
        return [SetTimer(probe.due_at - now, RoundDue(sequence))]

    def _conclude(self, sequence: int, now: float) -> list[Effect]:
        """A turn is over; a stale one begins again before anybody is accused."""
        probe = self._rounds.get(sequence)
        if probe is None or not probe.is_stale() or self._ledger.has_left(probe.target):
            return self._end(sequence, now)
        if self._in_turn == sequence:
            self._in_turn = None
        interval_s = self._config.probe_interval_s
        probe.begin_again(now + interval_s)
        return [
            self._post.ping(probe.target, sequence),
            SetTimer(self.timeout_s(), ProbeTimeout(sequence)),
            SetTimer(interval_s, RoundDue(sequence)),
        ]

    def _end(self, sequence: int, now: float) -> list[Effect]:
        probe = self._rounds.pop(sequence, None)
        if self._in_turn == sequence:
            self._in_turn = None
        if probe is None:
            return []
        if self._ledger.has_left(probe.target):
            return []  # It said goodbye meanwhile: its silence says nothing about it or us.
        if not probe.check:
            self._ledger.health.adjust(probe.health_delta())
        if probe.answered or (probe.check and probe.nobody_hears_us()):
            return []
        return self.silent(probe.target, probe.incarnation, now)

    def silent(
        self, target: NodeId, incarnation: int, now: float, *, within_s: float | None = None
    ) -> list[Effect]:
        """Suspect a member that did not answer when it was asked at `incarnation`.

        Args:
            within_s: see `Ledger.accuse`.
        """
        record = self._ledger.members.get(target)
        if record is None or record.is_excused(now):
            return []
        if record.incarnation > incarnation:
            return []  # It has spoken up or started anew since it was asked.
        return self._ledger.accuse(record, now, within_s=within_s)

    def forget(self, evicted: frozenset[NodeId]) -> None:
        """Ask those no more."""
        for sequence, probe in list(self._rounds.items()):
            if probe.target in evicted:
                del self._rounds[sequence]
                if self._in_turn == sequence:
                    self._in_turn = None

    def _stood_still(self, due: float, now: float) -> bool:
        late = now - due > self._config.probe_timeout_s
        if late:
            self._ledger.late_at = now
        return late

    # ---- answers ----------------------------------------------------------------------

    def on_ack(self, peer: NodeId, ack: Ack) -> bool:
        """Take the answer to a probe of this node's own; False if it is to something else."""
        probe = self._rounds.get(ack.sequence)
        if probe is None:
            return False
        if peer == probe.target:
            self._streams_only.pop(peer, None)
        if peer == probe.target or peer in probe.helpers:
            probe.answered = True
        return True

    def round_trip_s(self, peer: NodeId, ack: Ack, now: float) -> float | None:
        """How long a target took that answered itself and in time; None for all other answers.

        To be asked before `on_ack`. Others' answers take another way, and late ones waited.
        """
        probe = self._rounds.get(ack.sequence)
        if probe is None or peer != probe.target or probe.answered or probe.asked:
            return None
        took_s = now - probe.sent_at
        return took_s if took_s <= self._config.probe_timeout_s else None

    def on_stream_answered(self, event: StreamAnswered, now: float) -> list[Effect]:
        """A stream was tried instead of datagrams."""
        probe = self._rounds.get(event.sequence)
        if probe is None or probe.target != event.peer:
            return []
        if event.answered and not probe.answered:
            self._count_stream_only(event.peer)
        probe.answered = probe.answered or event.answered
        probe.stream = "none" if event.answered else "silent"
        return self._end(event.sequence, now) if self._is_lost(probe) else []

    def _count_stream_only(self, peer: NodeId) -> None:
        times = self._streams_only.pop(peer, 0) + 1
        self._streams_only[peer] = times
        if len(self._streams_only) > _STREAM_ONLY_MAX:
            del self._streams_only[next(iter(self._streams_only))]

    def stream_only(self) -> list[NodeId]:
        """See `SwimMachine.stream_only`."""
        present = [(n, t) for n, t in self._streams_only.items() if self._ledger.is_present(n)]
        return sorted(node_id for node_id, times in present if times >= _STREAM_ONLY_TIMES)

    def on_nack(self, peer: NodeId, nack: Nack, now: float) -> list[Effect]:
        probe = self._rounds.get(nack.sequence)
        if probe is None or peer not in probe.helpers or peer in probe.nacks:
            return []
        probe.nacks.append(peer)
        return self._end(nack.sequence, now) if self._is_lost(probe) else []

    def _is_lost(self, probe: Round) -> bool:
        return probe.hopeless() and not probe.answered

    # ---- for others -------------------------------------------------------------------

    def on_ping_for(self, peer: NodeId, packet: PingFor) -> list[Effect]:
        target = NodeId(packet.target)
        if target == self._me:
            return [self._post.ack(peer, packet.sequence)]
        if self._ledger.members.get(target) is None:
            return []
        sequence = self._pendings.open(Pending("relay", target, peer, packet.sequence))
        timer = SetTimer(self._refuse_after_s(), RelayTimeout(sequence))
        return [self._post.ping(target, sequence), timer]

    def on_relay_timeout(self, event: RelayTimeout) -> list[Effect]:
        pending = self._pendings.get(event.sequence)
        if pending is None or pending.asker is None:
            return []
        return [self._post.nack(pending.asker, pending.asker_sequence)]

    def _refuse_after_s(self) -> float:
        """Most of what an asker with our settings waits for its helpers."""
        config = self._config
        left_s = config.probe_interval_s - config.probe_timeout_s
        return _REFUSE_AFTER * min(config.probe_timeout_s, left_s)
