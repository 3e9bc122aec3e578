"""User events: named texts that any member sends to all (as serf's). A part of `SwimMachine`.

- *Once.* What is held already, or is older than what is kept, is told to nobody here (`recent`).
- *To all.* News rides on gossip, in turn with rumours of members, a bounded number of times; what
  gossip misses, push-pull makes good: whoever holds other events than the one it exchanges views
  with asks for that one's.
- *From now on.* A newcomer takes over what the first member that it asks holds, and tells none of
  it: an event is a call to do something, and what was called out before it came was not meant for
  it. Until then what it hears waits. Whoever returns with its memory is told what it missed.
- *In their time.* Lamport times order what depends on each other (`clock`).

Like the rest of membership it believes nothing without the sender's signature, and verifies only
what would be news.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect
from swarmd.mesh.events.clock import LamportClock
from swarmd.mesh.events.events import Answered, EventRefused, Happened, Refusal, Remember, SendEvent
from swarmd.mesh.events.messages import (
    Key,
    Told,
    UserEvent,
    decode_event,
    decode_told,
    encode_said,
    make_event,
)
from swarmd.mesh.events.queue import EventQueue
from swarmd.mesh.events.recent import NO_KEY, Recent
from swarmd.wire.codec import encode_struct

# After this long among members that do not know the swarm's time either, there is none to know.
NEW_HERE_S: Final = 10.0
# Events of this node that may wait to be passed on.
OWN_WAITING_MAX: Final = 64
EARLY_MAX: Final = 64


class EventSigner(Protocol):
    def sign_event(self, said: bytes) -> bytes:
        """This node's signature, 64 bytes."""
        ...

    def verify_event(self, origin: NodeId, said: bytes, signature: bytes) -> bool:
        """False if the signature is wrong, or if `origin` is not admitted as far as we know."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives a restart: the Lamport time, and the events and bounds of `Recent`."""

    time: int
    events: tuple[UserEvent, ...] = ()
    floor: Key = NO_KEY
    told: Key = NO_KEY


class EventsMachine:
    """Args:
    kept: what an earlier start left.
    founder: this node made the swarm: there was nothing before it.
    """

    clock_type: ClassVar[type[LamportClock]] = LamportClock
    recent_type: ClassVar[type[Recent]] = Recent

    def __init__(
        self,
        me: NodeId,
        signer: EventSigner,
        now: float,
        kept: Kept | None = None,
        *,
        founder: bool = False,
    ) -> None:
        self._me = me
        self._signer = signer
        self._clock = self.clock_type(kept.time if kept is not None else 0)
        self._placed = founder or kept is not None
        self._started_at = now
        self._recent = self.recent_type()
        if kept is not None:
            self._recent.floor = kept.floor
            self._recent.told = max(kept.told, kept.floor)
        self._among_new_since: float | None = None
        self._early: list[bytes] = []
        self.queue = EventQueue()
        for event in kept.events if kept is not None else ():
            if event.key not in self._recent and not self._recent.is_old(event.key):
                self._recent.add(event)

    # ---- what others may read between steps -------------------------------------------------

    def recent(self) -> list[UserEvent]:
        """The events that this node holds, oldest first."""
        return self._recent.events()

    def kept(self) -> Kept | None:
        """What to keep over a restart; None while there is nothing to go by."""
        if not self._placed:
            return None
        recent = self._recent
        return Kept(self._clock.time, tuple(recent.events()), recent.floor, recent.told)

    @property
    def placed(self) -> bool:
        """False until this node knows what was before it came: it needs a member to tell it."""
        return self._placed

    def sum(self) -> bytes:
        """The same where the same events are held; 8 bytes."""
        return self._recent.sum()

    def told(self, asked: bytes | None = None) -> bytes:
        """What goes along with a view: asked for (None), or in answer to what came with `asked`."""
        mine = self._recent.sum()
        events: list[bytes] = []
        if asked:
            try:
                if decode_told(asked).sum != mine:
                    events = [event.raw for event in self._recent.events()]
            except MalformedMessage:
                pass  # It is refused when it is heard.
        return encode_struct(Told(self._clock.time, self._placed, mine, events))

    # ---- sending ----------------------------------------------------------------------------

    def on_send(self, event: SendEvent, now: float, *, alone: bool = False) -> list[Effect]:
        """`alone`: no other member is known, who could tell what there was before."""
        effects: list[Effect] = []
        if not self._placed:
            if not alone or now - self._started_at < NEW_HERE_S:
                return [_refused(event, "not_ready")]
            effects = self._place(self._clock.time, now)
        if self.queue.count_by(self._me) >= OWN_WAITING_MAX:
            return [*effects, _refused(event, "busy")]
        time = self._clock.tick()
        if time is None:
            return [*effects, _refused(event, "exhausted")]
        said = encode_said(time, self._me, event.name, event.payload, event.wall_ms)
        sent = make_event(said, self._signer.sign_event(said))
        self._recent.add(sent)
        self.queue.push(sent, own=True)
        return [*effects, Remember(), Happened(sent), Answered(event.ticket, sent)]

    # ---- hearing ----------------------------------------------------------------------------

    def hear(self, raw: bytes, now: float) -> list[Effect]:
        """Take an event that came with gossip."""
        if self._placed:
            return self._take(raw, now)
        if raw in self._early:
            return []
        if len(self._early) >= EARLY_MAX:
            return [EventRefused("early")]  # It comes again with push-pull.
        self._early.append(raw)
        return []

    def hear_told(self, raw: bytes, now: float, *, answer: bool) -> tuple[list[Effect], bool]:
        """Take what came along with a view.

        Returns:
            What follows, and whether to ask that member for its events.
        """
        if not raw:
            return [], False  # An older build tells nothing.
        try:
            told = decode_told(raw)
        except MalformedMessage:
            return [EventRefused("malformed")], False
        effects: list[Effect] = []
        before = self._clock.time
        self._clock.witness(told.time, now)
        if self._clock.time != before and self._placed:
            effects.append(Remember())
        if not answer:
            return effects, told.sum != self._recent.sum() or not self._placed
        if not self._placed:
            if not told.placed and not self._all_are_new(now):
                return effects, False
            for one in told.events:
                effects += self._take(one, now, tell=False)
            return effects + self._place(told.time, now), False
        for one in told.events:
            effects += self._take(one, now)
        return effects, False

    def shut_out(self, evicted: frozenset[NodeId]) -> list[Effect]:
        """Forget what evicted members sent; the signer verifies nothing of theirs any more."""
        self.queue.drop_by(evicted)
        return [Remember()] if self._recent.drop_by(evicted) else []

    # ---- the rules --------------------------------------------------------------------------

    def _take(self, raw: bytes, now: float, *, tell: bool = True) -> list[Effect]:
        try:
            event = decode_event(raw)
        except MalformedMessage:
            return [EventRefused("malformed")]
        if self.is_known(event):
            return []
        if self._recent.is_old(event.key):
            return [EventRefused("old")]
        if not self._signer.verify_event(event.origin, event.said, event.signature):
            return [EventRefused("bad_signature")]
        if not self._clock.witness(event.time, now):
            return [EventRefused("too_far")]
        self._recent.add(event)
        if not tell or self._recent.is_told(event.key):
            return [Remember()]
        self.queue.push(event)
        return [Remember(), Happened(event)]

    def is_known(self, event: UserEvent) -> bool:
        return event.key in self._recent

    def _place(self, time: int, now: float) -> list[Effect]:
        """From now on what is heard is told."""
        self._clock.witness(time, now)
        self._placed = True
        early, self._early = self._early, []
        effects: list[Effect] = [Remember()]
        for raw in early:
            effects += self._take(raw, now)
        return effects

    def _all_are_new(self, now: float) -> bool:
        """For long enough nobody was found who knows; counted from the first who did not."""
        if self._among_new_since is None:
            self._among_new_since = now
        return now - self._among_new_since >= NEW_HERE_S


def _refused(event: SendEvent, why: Refusal) -> Effect:
    return Answered(event.ticket, why)
