"""User events, as this node's programs send and hear them; and what of them outlives a restart.

The machine is membership's (`mesh.swim.service` drives it); this is the shell of the part that
cares for events. The file `events` keeps the Lamport time and the events that were told: who
returns is told what it missed and nothing twice. It is written within a second, so a crash may
have an event of that second told again. An event itself is nowhere durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Annotated, Any, Final

import msgspec
import trio

from swarmd.base.clock import Clock
from swarmd.base.disk import Disk, open_body, seal_body
from swarmd.base.errors import Busy, CorruptFile, DiskFault, MalformedMessage, NotReady, Unavailable
from swarmd.base.ids import short
from swarmd.base.limits import EVENTS_KEPT_MAX
from swarmd.base.machine import Effect, Event
from swarmd.mesh.events.events import Answered, EventRefused, Happened, Refusal, Remember, SendEvent
from swarmd.mesh.events.machine import EventsMachine, Kept
from swarmd.mesh.events.messages import Time, UserEvent, check_event, decode_event
from swarmd.mesh.events.recent import NO_KEY
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED, USER_EVENTS
from swarmd.wire.codec import decode_struct

__all__ = ["UserEvent", "UserEvents", "Watch", "check_event", "load_kept"]

WATCHED_MAX: Final = 1_000
_WATCHES_MAX: Final = 256
_SENDING_MAX: Final = 256
_SAVE_EVERY_S: Final = 1.0
_SAVE_AGAIN_S: Final = 10.0
_ANSWER_S: Final = 5.0
_FORMAT: Final = 1
_FILE: Final = "events"

_REFUSALS: Final[Mapping[Refusal, type[Unavailable]]] = {"not_ready": NotReady, "busy": Busy}
_WHY: Final[Mapping[Refusal, str]] = {
    "not_ready": "this node has not heard from another member yet which events there are: nothing "
    "was sent; try again in a few seconds",
    "busy": "as many events of this node as may wait to be passed on: nothing was sent; try again "
    "in a second",
    "exhausted": "the clock of the events has come to its end: no event can be sent in this swarm",
}

_Bound = tuple[Time, Annotated[bytes, msgspec.Meta(max_length=64)]]

_log = get_logger("events")


class _Saved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    time: Time
    events: tuple[bytes, ...]
    floor: _Bound = NO_KEY
    told: _Bound = NO_KEY


class Watch:
    """Events from the moment of watching on, in the order in which they came: an async iterator.

    At most WATCHED_MAX wait. Beyond that events are dropped; `missed` tells where, and how many.
    """

    def __init__(self, events: UserEvents, names: frozenset[str]) -> None:
        self._events = events
        self._names = names
        self._waiting: deque[tuple[int, UserEvent]] = deque()
        self._wake = trio.Event()
        self._dropped = 0
        self.missed = 0
        """How many were dropped before the one that was received last, and after its forerunner."""

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._events._watches.remove(self)

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> UserEvent:
        return await self.receive()

    async def receive(self) -> UserEvent:
        """The next event. Cancelled, it takes none."""
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        self.missed, event = self._waiting.popleft()
        return event

    def _push(self, event: UserEvent) -> None:
        if self._names and event.name not in self._names:
            return
        if len(self._waiting) >= WATCHED_MAX:
            self._dropped += 1
            return
        self._waiting.append((self._dropped, event))
        self._dropped = 0
        self._wake.set()


class UserEvents:
    """Args:
    feed: steps the machine that `machine` is a part of. Raises Busy.
    """

    def __init__(
        self, machine: EventsMachine, feed: Callable[[Event], None], disk: Disk, clock: Clock
    ) -> None:
        self._machine = machine
        self._feed = feed
        self._disk = disk
        self._clock = clock
        self._watches: list[Watch] = []
        self._tickets = 0
        self._sending: dict[int, trio.Event] = {}
        self._answers: dict[int, UserEvent | Refusal] = {}
        self._unsaved = trio.Event()
        self._saved = True
        self.performers: Mapping[type[Effect], Callable[[Any], None]] = {
            Happened: self._perform_happened,
            Answered: self._perform_answered,
            Remember: lambda _: self._unsaved.set(),
            EventRefused: lambda effect: DROPPED.labels("events", effect.reason).inc(),
        }

    def recent(self) -> list[UserEvent]:
        """The latest events that this node knows, oldest first: EVENTS_KEPT_MAX at most.

        A newcomer's begin before it came.
        """
        return self._machine.recent()

    def watch(self, *names: str) -> Watch:
        """Events from now on, this node's own included; those of `names` if any are given.

        Use it in a `with`.

        Raises:
            Busy: there are too many watches; one of them leaks.
        """
        if len(self._watches) >= _WATCHES_MAX:
            raise Busy(f"{_WATCHES_MAX} watches listen to events already")
        watch = Watch(self, frozenset(names))
        self._watches.append(watch)
        return watch

    async def send(self, name: str, payload: str = "") -> UserEvent:
        """Tell all members that something has happened; returns when it is on its way.

        Who gets it when is not known: nearly all within a second, the rest by push-pull, and who
        is away when it is back, unless the event is older by then than what is kept.

        Raises:
            BadRequest, TooLarge: see `check_event`; nothing was sent.
            NotReady: this node does not know the swarm's events yet; nothing was sent.
            Busy: too many of this node's events wait; nothing was sent.

        Cancelled, it may have been sent.
        """
        check_event(name, payload)
        if len(self._sending) >= _SENDING_MAX:
            raise Busy(_WHY["busy"])
        self._tickets += 1
        ticket = self._tickets
        answered = self._sending[ticket] = trio.Event()
        try:
            self._feed(SendEvent(ticket, name, payload, self._clock.wall_ms()))
            with trio.move_on_after(_ANSWER_S):
                await answered.wait()
            outcome = self._answers.pop(ticket, None)
        finally:
            del self._sending[ticket]
            self._answers.pop(ticket, None)
        if isinstance(outcome, UserEvent):
            return outcome
        if outcome is None:
            raise Unavailable("this node is stopping, or very slow: whether it was sent is unknown")
        raise _REFUSALS.get(outcome, Unavailable)(_WHY[outcome])

    async def save(self) -> None:
        """Keep what outlives a restart, first and as it changes, until cancelled; and at the end.

        First, so that this node is none that has just joined when it is started anew.
        """
        self._unsaved.set()
        try:
            while True:
                await self._unsaved.wait()
                kept = self._to_write()
                await trio.to_thread.run_sync(self._write, kept)
                if not self._saved:
                    await trio.sleep(_SAVE_AGAIN_S)
                    self._unsaved.set()
                await trio.sleep(_SAVE_EVERY_S)
        finally:
            if self._unsaved.is_set() or not self._saved:
                self._write(self._to_write())

    def _to_write(self) -> Kept | None:
        self._unsaved = trio.Event()
        self._saved = False
        return self._machine.kept()

    def _write(self, kept: Kept | None) -> None:
        if kept is not None:
            saved = _Saved(kept.time, tuple(one.raw for one in kept.events), kept.floor, kept.told)
            try:
                body = seal_body(_FILE, _FORMAT, msgspec.msgpack.encode(saved))
                self._disk.replace(_FILE, body)
            except DiskFault as error:
                # Should this node be restarted, it may be told an event again.
                _log.warning("events not saved", error=error.message)
                return
        self._saved = True

    # ---- effects ----------------------------------------------------------------------------

    def _perform_happened(self, effect: Happened) -> None:
        event = effect.event
        USER_EVENTS.inc()
        _log.info("event", name=event.name, origin=short(event.origin), time=event.time)
        for watch in self._watches:
            watch._push(event)

    def _perform_answered(self, effect: Answered) -> None:
        waiting = self._sending.get(effect.ticket)
        if waiting is not None:  # Else whoever asked is gone.
            self._answers[effect.ticket] = effect.outcome
            waiting.set()


def load_kept(disk: Disk) -> Kept | None:
    """What an earlier start of this node kept; None if there was none, or it is damaged."""
    try:
        raw = disk.read(_FILE)
        if raw is None:
            return None
        saved: _Saved = decode_struct(_Saved, open_body(_FILE, _FORMAT, raw, source=_FILE))
        events = tuple(decode_event(one) for one in saved.events[-EVENTS_KEPT_MAX:])
    except (CorruptFile, MalformedMessage) as error:
        # This node is then a newcomer: it is told nothing of what it missed.
        _log.warning("known events not read", error=error.message)
        return None
    return Kept(saved.time, events, saved.floor, saved.told)
