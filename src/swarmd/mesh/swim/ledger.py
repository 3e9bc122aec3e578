"""What is believed of each member, and why: the rules by which rumours change a view.

The order of rumours (SWIM, section 4.2, with memberlist's rule that a higher incarnation revives
the dead):

- `alive` overrides what is known only at a higher incarnation; so does a return after `left`.
- `suspect`, `dead` and `left` override `alive` at the same incarnation or a higher one.
- About an unknown member only `alive` counts: accusations create nobody.
- Only a member itself raises its incarnation. When it hears that it is doubted, it answers with
  one above the doubt.

A pair of state and kind that the table below does not hold is stale news, not an error. A rumour
is verified only once it is known that it would change something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar, Final, Protocol

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.events.machine import EventSigner
from swarmd.mesh.swim.broadcasts import BroadcastQueue
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import Changed, Member, Refused, SuspicionDue
from swarmd.mesh.swim.members import PRESENT, MemberTable, Record
from swarmd.mesh.swim.messages import (
    INCARNATION_MAX,
    START_SHIFT,
    MemberState,
    Meta,
    Rumour,
    decode_rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.mesh.swim.suspicion import (
    LocalHealth,
    Suspicion,
    confirmations_wanted,
    suspicion_min_s,
)
from swarmd.wire.version import common_version

ALIVE, SUSPECT, DEAD, LEFT = MemberState
# By how much an incarnation must exceed the known one: an accusation may equal it.
_NEWER: Final = 1
_SAME: Final = 0
TRANSITIONS: Final[Mapping[tuple[MemberState, MemberState], int]] = {
    (ALIVE, ALIVE): _NEWER,
    (ALIVE, SUSPECT): _SAME,
    (ALIVE, DEAD): _SAME,
    (ALIVE, LEFT): _SAME,
    (SUSPECT, ALIVE): _NEWER,
    (SUSPECT, SUSPECT): _SAME,
    (SUSPECT, DEAD): _SAME,
    (SUSPECT, LEFT): _SAME,
    (DEAD, ALIVE): _NEWER,
    (DEAD, LEFT): _SAME,
    (LEFT, ALIVE): _NEWER,
}
# No honest accuser is further ahead than a few hundred restarts of its victim: a larger step
# would only wear out the incarnations.
_STEP_MAX: Final = 256 << START_SHIFT
_UNVERIFIED_MAX: Final = 64
_ANNOUNCEMENTS_MAX: Final = 16
# Sums of floating-point seconds differ by less.
_TIMER_SLACK_S: Final = 1e-6


class Signer(EventSigner, Protocol):
    def sign_rumour(self, statement: bytes) -> bytes:
        """This node's signature, 64 bytes."""
        ...

    def verify_rumour(self, author: NodeId, statement: bytes, signature: bytes) -> bool:
        """False if the signature is wrong, or if `author` is not admitted as far as we know."""
        ...

    def may_be(self, node_id: NodeId) -> tuple[str, ...] | None:
        """The roles that a node was admitted with; None where that is nobody's concern."""
        ...


class Ledger:
    """This node's view, its own statements, and what of both waits to be told."""

    table_type: ClassVar[type[MemberTable]] = MemberTable
    suspicion_type: ClassVar[type[Suspicion]] = Suspicion
    record_type: ClassVar[type[Record]] = Record
    health_type: ClassVar[type[LocalHealth]] = LocalHealth

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
        self.health = self.health_type()
        self.queue = BroadcastQueue()
        self.members = self.table_type(me, rng)
        self.leaving = False
        self.heard_at = -math.inf
        # When a timer of this node last came late: it did not run for a while.
        self.late_at = -math.inf
        self._announcements: list[Rumour] = []
        self._config = config
        self._signer = signer
        self._meta = meta
        self._unverified: dict[NodeId, Rumour] = {}
        first = self._say(ALIVE, me, start_counter << START_SHIFT)
        self.members.add(self._record(first, now))
        self._publish(first)

    @property
    def self_record(self) -> Record:
        record = self.members.get(self.me)
        assert record is not None
        return record

    # ---- hearing ----------------------------------------------------------------------

    def hear(self, raw: bytes, now: float) -> list[Effect]:
        """Take a rumour that came with a packet."""
        try:
            rumour = self._decode(raw)
        except MalformedMessage:
            return [Refused("malformed")]
        return self.judge(rumour, now)

    def hear_view(self, rumours: Iterable[bytes], now: float) -> list[Effect]:
        """Take a peer's whole view.

        It may be old: whom it calls dead and we hold alive, we merely doubt, so that a live
        member can answer. Whom it calls dead or left and we do not know, we remember so.
        """
        effects: list[Effect] = []
        decoded: list[Rumour] = []
        gone: dict[NodeId, Rumour] = {}
        for raw in rumours:
            try:
                rumour = self._decode(raw)
            except MalformedMessage:
                effects.append(Refused("malformed"))
                continue
            decoded.append(rumour)
            if rumour.kind in (DEAD, LEFT):
                gone[rumour.subject] = rumour
        for rumour in decoded:
            ending = gone.get(rumour.subject)
            if rumour.kind is ALIVE and ending and self._adopt_gone(rumour, ending, now):
                continue
            if rumour.kind is DEAD and self._would_change(rumour) and rumour.subject != self.me:
                effects += self._doubt_hearsay(rumour, now)
            else:
                effects += self.judge(rumour, now)
        return effects

    def judge(self, rumour: Rumour, now: float) -> list[Effect]:
        """Verify a rumour if it matters, and let it change the view."""
        if not self._would_change(rumour):
            return []
        if self._too_far(rumour):
            return [Refused("absurd")]
        if not self._verified(rumour):
            return [Refused("bad_signature")]
        if rumour.subject == self.me:
            return self._answer_for_self(rumour, now)
        record = self.members.get(rumour.subject)
        if record is None:
            return self._meet(rumour, now)
        if rumour.kind is ALIVE:
            return self._revive(record, rumour, now)
        if rumour.kind is SUSPECT:
            return self._suspect(record, rumour, now)
        return self._end(record, rumour, now)

    def shut_out(self, evicted: frozenset[NodeId], now: float) -> list[Effect]:
        """Forget members that were evicted: what they said counts no more.

        The signer no longer verifies their rumours, so that none brings them back. What this
        node holds because one of them said it, it says in its own name from now on: nobody could
        answer an accusation that nobody else takes for true.
        """
        effects: list[Effect] = []
        self.queue.drop_by(evicted)
        for known in self.members.records():
            held = known.evidence
            if held is not None and held.author in evicted and held.author != known.node_id:
                mine = self._say(held.kind, known.node_id, held.incarnation)
                self.members.change(known, partial(_prove, evidence=mine))
                self._publish(mine)
            doubt = known.suspicion
            if doubt is not None and doubt.shut_out(evicted, instead=self.me):
                effects.append(self._suspicion_timer(known, now))
        for node_id in sorted(evicted):
            self._unverified.pop(node_id, None)
            record = self.members.get(node_id)
            if record is not None and node_id != self.me:
                self.members.remove(record)
                self.queue.drop(node_id)
                effects.append(Changed(record.view(), None))
        return effects

    def roles_learnt(self) -> list[Effect]:
        """See everybody in the roles that they have now."""
        effects: list[Effect] = []
        for record in self.members.records():
            may_be = self._signer.may_be(record.node_id)
            if may_be != record.may_be:
                changed = self.members.change(record, partial(_allow, may_be=may_be))
                effects += _update(record.view(), changed)
        return effects

    def keys_learnt(self, now: float) -> list[Effect]:
        """Judge again what could not be verified."""
        waiting, self._unverified = self._unverified, {}
        return [effect for rumour in waiting.values() for effect in self.judge(rumour, now)]

    def is_present(self, node_id: NodeId) -> bool:
        """Alive or suspect."""
        record = self.members.get(node_id)
        return record is not None and record.state in PRESENT

    def has_left(self, node_id: NodeId) -> bool:
        record = self.members.get(node_id)
        return record is not None and record.state is LEFT

    def version_with(self, node_id: NodeId) -> int | None:
        """The protocol version to speak with a member; None if none is common, or it is unknown."""
        record = self.members.get(node_id)
        if record is None:
            return None
        return common_version(self.self_record.meta.speaks, record.meta.speaks)

    # ---- saying -----------------------------------------------------------------------

    def accuse(self, record: Record, now: float, *, within_s: float | None = None) -> list[Effect]:
        """Say that a member is suspect, because it does not answer us.

        Args:
            within_s: how long the suspicion may last from now on, where there is more than silence.
        """
        if record.state not in PRESENT:
            return []
        rumour = self._say(SUSPECT, record.node_id, record.incarnation)
        effects = self._suspect(record, rumour, now)
        record = self.members.get(record.node_id) or record
        if within_s is not None and record.suspicion is not None:
            record.suspicion.shorten(now - record.suspicion.started_at + within_s)
            effects.append(self._suspicion_timer(record, now))
        return effects

    def suspicion_due(self, event: SuspicionDue, now: float) -> list[Effect]:
        """Declare a suspect dead if its time is over."""
        record = self.members.get(event.subject)
        if record is None or record.suspicion is None or not self.is_due(record.suspicion, now):
            return []
        grace_s = self._config.probe_timeout_s
        late = now - record.suspicion.due_at() > grace_s
        if late:
            self.late_at = now
        if late and record.suspicion.hold(now + grace_s):
            # This process stood still, and what the suspect has answered meanwhile may be waiting
            # behind the timer.
            return [self._suspicion_timer(record, now)]
        unwell = self.heard_at > record.suspicion.started_at and self.health.score > 0
        was_late = self.late_at >= record.suspicion.started_at
        if unwell and record.suspicion.stretch(late=was_late):
            # This node is unwell and hears others nevertheless, so what it hears may be old: a
            # process that hardly runs reads what a suspect answered long after it came. Who is cut
            # off hears nobody, and is right to conclude something.
            return [self._suspicion_timer(record, now)]
        return self._end(record, self._say(DEAD, record.node_id, record.incarnation), now)

    def is_due(self, suspicion: Suspicion, now: float) -> bool:
        """False for a timer of an earlier suspicion, refuted since, or of one that has changed."""
        return now >= suspicion.due_at() - _TIMER_SLACK_S

    def announcements(self) -> tuple[Rumour, ...]:
        """What this node itself has said since it was last asked this, and still holds."""
        said, self._announcements = self._announcements, []
        return tuple(rumour for rumour in said if self._is_held(rumour))

    def _is_held(self, rumour: Rumour) -> bool:
        record = self.members.get(rumour.subject)
        return record is not None and rumour is record.rumours()[-1]

    def set_meta(self, meta: Meta) -> list[Effect]:
        self._meta = meta
        return self._say_alive(self.self_record.incarnation + 1)

    def leave(self, now: float) -> list[Effect]:
        """Say that this node leaves; from now on it answers no doubts."""
        self.leaving = True
        before = self.self_record.view()
        rumour = self._say(LEFT, self.me, self.self_record.incarnation)
        self.members.change(self.self_record, lambda r: _turn(r, LEFT, rumour, now))
        self._publish(rumour)
        return [Changed(before, self.self_record.view())]

    def _decode(self, raw: bytes) -> Rumour:
        return decode_rumour(raw)

    # ---- the rules --------------------------------------------------------------------

    def _would_change(self, rumour: Rumour) -> bool:
        record = self.members.get(rumour.subject)
        if record is None:
            return rumour.kind is ALIVE
        if rumour.subject == self.me:
            return not self.leaving and self._is_false_about_self(rumour)
        if not self.outranks(record, rumour):
            return False
        if rumour.kind is SUSPECT and record.suspicion is not None:
            return record.suspicion.would_confirm(rumour.author)
        return True

    def outranks(self, record: Record, rumour: Rumour) -> bool:
        step = TRANSITIONS.get((record.state, rumour.kind))
        return step is not None and rumour.incarnation >= record.incarnation + step

    def _is_false_about_self(self, rumour: Rumour) -> bool:
        mine = self.self_record.alive
        if rumour.kind is not ALIVE:
            return rumour.incarnation >= mine.incarnation
        if rumour.incarnation == mine.incarnation:
            return rumour.statement != mine.statement
        return rumour.incarnation > mine.incarnation

    def _too_far(self, rumour: Rumour) -> bool:
        record = self.members.get(rumour.subject)
        return (
            rumour.author != rumour.subject
            and record is not None
            and rumour.incarnation > record.incarnation + _STEP_MAX
        )

    def _verified(self, rumour: Rumour) -> bool:
        if self._signer.verify_rumour(rumour.author, rumour.statement, rumour.signature):
            return True
        if rumour.kind is ALIVE and self.members.get(rumour.subject) is None:
            # Perhaps it was admitted only now, and the news of it is still on its way to us.
            self._unverified.pop(rumour.subject, None)
            self._unverified[rumour.subject] = rumour
            if len(self._unverified) > _UNVERIFIED_MAX:
                del self._unverified[next(iter(self._unverified))]
        return False

    def _answer_for_self(self, rumour: Rumour, now: float) -> list[Effect]:
        """Refute: only we may raise our incarnation, and above whatever is said about us."""
        if rumour.kind in (SUSPECT, DEAD):
            self.health.adjust(1)
        if rumour.incarnation >= INCARNATION_MAX:
            return [Refused("absurd")]
        return self._say_alive(rumour.incarnation + 1)

    def _say_alive(self, incarnation: int) -> list[Effect]:
        record = self.self_record
        before = record.view()
        rumour = self._say(ALIVE, self.me, incarnation)
        record = self.members.change(record, lambda r: r.take_alive(rumour))
        self._publish(rumour)
        return _update(before, record)

    def _record(self, alive: Rumour, now: float) -> Record:
        return self.record_type(alive, now, self._signer.may_be(alive.subject))

    def _meet(self, rumour: Rumour, now: float) -> list[Effect]:
        if self.members.full():
            return [Refused("full")]
        record = self._record(rumour, now)
        self.members.add(record)
        self._publish(rumour)
        return [Changed(None, record.view())]

    def _adopt_gone(self, alive: Rumour, ending: Rumour, now: float) -> bool:
        known = self.members.get(alive.subject) is not None
        if known or self.members.full() or ending.incarnation < alive.incarnation:
            return False
        if not (self._verified(alive) and self._verified(ending)):
            return False
        record = self._record(alive, now)
        _turn(record, ending.kind, ending, now)
        self.members.add(record)
        self.members.forget_surplus(ending.kind)
        return True

    def _doubt_hearsay(self, rumour: Rumour, now: float) -> list[Effect]:
        if not self._verified(rumour):
            return [Refused("bad_signature")]
        record = self.members.get(rumour.subject)
        if record is None:
            return []
        if record.suspicion is not None and record.suspicion.stretch_no_more():
            return [self._suspicion_timer(record, now)]
        return self.accuse(record, now) if record.state is ALIVE else []

    def _revive(self, record: Record, rumour: Rumour, now: float) -> list[Effect]:
        before = record.view()

        def apply(r: Record) -> None:
            if r.state is not ALIVE:
                r.changed_at = now
            r.state, r.evidence, r.suspicion = ALIVE, None, None
            r.take_alive(rumour)

        record = self.members.change(record, apply)
        self._publish(rumour)
        return _update(before, record)

    def _suspect(self, record: Record, rumour: Rumour, now: float) -> list[Effect]:
        if record.suspicion is not None:
            if not record.suspicion.confirm(rumour.author):
                return []
            self._publish(rumour)
            return [self._suspicion_timer(record, now)]
        before = record.view()
        suspicion = self.new_suspicion(rumour.author, now)

        def apply(r: Record) -> None:
            _turn(r, SUSPECT, rumour, now)
            r.suspicion = suspicion

        record = self.members.change(record, apply)
        self._publish(rumour)
        return [Changed(before, record.view()), self._suspicion_timer(record, now)]

    def new_suspicion(self, accuser: NodeId, now: float) -> Suspicion:
        """A doubt that begins now: how long it lasts, and whom it takes to shorten it."""
        config, count = self._config, self.members.present_count
        min_s = suspicion_min_s(config.suspicion_mult, count, config.probe_interval_s)
        return self.suspicion_type(
            accuser,
            now,
            wanted=confirmations_wanted(config.suspicion_mult, count),
            min_s=min_s,
            max_s=min_s * config.suspicion_max_mult,
        )

    def _end(self, record: Record, rumour: Rumour, now: float) -> list[Effect]:
        """Dead or left."""
        before = record.view()
        record = self.members.change(record, lambda r: _turn(r, rumour.kind, rumour, now))
        self._publish(rumour)
        effects: list[Effect] = [Changed(before, record.view())]
        forgotten = self.members.forget_surplus(rumour.kind)
        if forgotten is not None:
            effects.append(Changed(forgotten.view(), None))
        return effects

    def _suspicion_timer(self, record: Record, now: float) -> Effect:
        assert record.suspicion is not None
        event = SuspicionDue(record.node_id)
        return SetTimer(max(0.0, record.suspicion.due_at() - now), event)

    def _publish(self, rumour: Rumour) -> None:
        self.queue.push(rumour)
        if rumour.author == self.me:
            self._announcements = [*self._announcements[1 - _ANNOUNCEMENTS_MAX :], rumour]

    def _say(self, kind: MemberState, subject: NodeId, incarnation: int) -> Rumour:
        body = encode_meta(self._meta) if kind is ALIVE else b""
        statement = encode_statement(kind, subject, incarnation, author=self.me, body=body)
        return make_rumour(statement, self._signer.sign_rumour(statement))


def _prove(record: Record, evidence: Rumour) -> None:
    record.evidence = evidence


def _allow(record: Record, may_be: tuple[str, ...] | None) -> None:
    record.may_be = may_be


def _turn(record: Record, state: MemberState, evidence: Rumour, now: float) -> None:
    record.state = state
    record.evidence = evidence
    record.suspicion = None
    record.changed_at = now
    record.incarnation = max(record.incarnation, evidence.incarnation)


def _update(before: Member, record: Record) -> list[Effect]:
    """`Changed` if anything but the incarnation is different."""
    after = record.view()
    if before == replace(after, incarnation=before.incarnation, changed_at=before.changed_at):
        return []
    return [Changed(before, after)]
