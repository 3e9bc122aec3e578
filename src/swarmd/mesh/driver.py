"""The hinge between machines and the world: one trio loop per machine.

The driver feeds events to a machine, performs its effects, keeps its timers, and counts all
three; nothing else in the house steps a machine. Events that arrive together are one step:
their effects are collected, `Persist` is performed once, before any other but those that are
`Ahead`, and only then is anything sent or answered. So one fsync serves everything that
arrived while the last one ran.
A machine that decides on the events of a step together has a method `settle(now)`, called
once at the step's end; its effects count to the step.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import Busy
from swarmd.base.limits import TIMERS_MAX
from swarmd.base.machine import Ahead, Effect, Event, Machine, Persist, SetTimer
from swarmd.base.pace import BEAT_S, pause_ends
from swarmd.observe.metrics import MACHINE_EFFECTS, MACHINE_EVENTS

_STEP_EVENTS_MAX: Final = 1_024
# What was sent on the log's plane is on its way after this many turns of the loop: the writer
# wakes, takes the stream's lock, then writes.
AHEAD_TURNS: Final = 3
# Two clocks tell of a beat: who is called so little before it, by one of them, is called at it.
# Otherwise what comes every second would come after half of one, now and then.
_HAIR_S: Final = 0.001

Performer = Callable[[Any], None]
# Makes things durable; told whether something was sent ahead of it, which must leave before the
# loop is held up.
Persister = Callable[[bool], Awaitable[None]]


class Driver:
    """Runs one machine.

    Args:
        name: labels the metrics.
        machine: the machine; only this driver may call its `handle`.
        perform: what to do for each effect type; the functions neither wait nor raise.
        persist: awaited before the other effects of a step that holds a `Persist`.
        inbox_max: events that may wait; `feed` refuses beyond it.
        turn_s: others have their turn in the middle of a step that takes longer, and see the
            machine between two of its events then.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        perform: Mapping[type[Effect], Performer],
        *,
        clock: Clock,
        persist: Persister | None = None,
        inbox_max: int = 10_000,
        turn_s: float = math.inf,
    ) -> None:
        self._name = name
        self._machine = machine
        self._settle: Callable[[float], Sequence[Effect]] | None = getattr(machine, "settle", None)
        self._perform = perform
        self._clock = clock
        self._persist = persist
        self._inbox: deque[Event] = deque()
        self._inbox_max = inbox_max
        self._turn_s = turn_s
        self._timers: list[tuple[float, int, Event]] = []
        self._sequence = itertools.count()
        self._wake = trio.Event()
        self._alarm = trio.CancelScope()
        self._rings_for = math.inf
        self._event_counts = MACHINE_EVENTS.of(name)
        self._effect_counts = MACHINE_EFFECTS.of(name)

    def feed(self, event: Event) -> None:
        """Queue an event for the next step; safe from within a performer.

        Raises:
            Busy: the inbox is full; the event was not taken.
        """
        if len(self._inbox) >= self._inbox_max:
            raise Busy(f"{self._name} has {self._inbox_max} events waiting")
        self._inbox.append(event)
        self._wake.set()

    @property
    def waiting(self) -> int:
        """Events that the next step will take."""
        return len(self._inbox)

    async def run(self) -> None:
        """Step the machine until cancelled."""
        while True:
            # One scope serves many waits: to enter one costs more than many a step.
            with trio.CancelScope() as self._alarm:
                self._rings_for = math.inf
                await self._until_it_rings()
            step = self._take()
            if step:
                await self._step(step)

    async def _until_it_rings(self) -> None:
        """Step as events come, until a timer is due: then the scope around this is cancelled."""
        while True:
            if self._inbox:
                await trio.lowlevel.checkpoint()
            else:
                self._set_alarm(self._timers[0][0] if self._timers else math.inf)
                await self._wake.wait()
            if self._wake.is_set():
                self._wake = trio.Event()
            if self._alarm.cancel_called:
                return
            step = self._take()
            if step:
                await self._step(step)

    def _set_alarm(self, due: float) -> None:
        if due != self._rings_for:
            self._rings_for = due
            delay_s = max(0.0, due - self._clock.now())
            self._alarm.deadline = trio.current_time() + delay_s

    def _take(self) -> list[Event]:
        step: list[Event] = []
        now = self._clock.now()
        while self._timers and self._timers[0][0] <= now and len(step) < _STEP_EVENTS_MAX:
            step.append(heapq.heappop(self._timers)[2])
        while self._inbox and len(step) < _STEP_EVENTS_MAX:
            step.append(self._inbox.popleft())
        return step

    async def _step(self, step: list[Event]) -> None:
        effects: list[Effect] = []
        turn_ends = self._clock.now() + self._turn_s
        for event in step:
            now = self._clock.now()
            if now >= turn_ends:
                self._set_alarm(math.inf)  # It may not ring in the middle of a step.
                await trio.lowlevel.checkpoint()
                now = self._clock.now()
                turn_ends = now + self._turn_s
            self._event_counts[type(event)] += 1
            effects.extend(self._machine.handle(event, now))
        if self._settle is not None:
            effects.extend(self._settle(self._clock.now()))
        if any(type(effect) is Persist for effect in effects):
            assert self._persist is not None, f"{self._name} asked for Persist"
            self._set_alarm(math.inf)
            ahead = [effect for effect in effects if isinstance(effect, Ahead)]
            if ahead:
                effects = [effect for effect in effects if not isinstance(effect, Ahead)]
                self._perform_all(ahead)
            await self._persist(bool(ahead))
        self._perform_all(effects)

    def _perform_all(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            self._effect_counts[kind] += 1
            if kind is SetTimer:
                self._set_timer(effect)  # type: ignore[arg-type]
            elif kind is not Persist:
                self._perform[kind](effect)

    def _set_timer(self, effect: SetTimer) -> None:
        if effect.delay_s <= 0:
            # With the next step, in the order of events; an alarm would only cost more.
            self._inbox.append(effect.event)
            self._wake.set()
            return
        assert len(self._timers) < TIMERS_MAX, f"{self._name} leaks timers"
        delay_s = _until_beat(effect.delay_s) if effect.on_beat else effect.delay_s
        due = self._clock.now() + delay_s
        heapq.heappush(self._timers, (due, next(self._sequence), effect.event))


def _until_beat(delay_s: float) -> float:
    """`delay_s`, or as much of it as ends with a beat.

    Only of whole beats: another delay would be cut each time it is set, not just the first.
    """
    beats_s = round(delay_s / BEAT_S) * BEAT_S
    if beats_s < BEAT_S or abs(delay_s - beats_s) > _HAIR_S:
        return delay_s
    return pause_ends(beats_s + _HAIR_S) - trio.current_time()
