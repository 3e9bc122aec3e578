"""User events in the simulated world: the members of `sim.swim`, which send some meanwhile.

What is checked:
- No host is told an event twice, in all of its lives together.
- Whoever sends an event gives it a higher time than everything that was told there before.
- Nothing honest is refused, but for its age.
- Within the settling time after the last fault all running members hold the same events, and have
  been told each that any of them was told, unless they joined later or it is older than is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from swarmd.base.machine import Effect
from swarmd.mesh.events.clock import LamportClock
from swarmd.mesh.events.events import Answered, EventRefused, Happened, Remember, SendEvent
from swarmd.mesh.events.machine import EventsMachine, Kept
from swarmd.mesh.events.messages import Key, UserEvent
from swarmd.mesh.events.recent import Recent
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.sim.network import LinkFaults
from swarmd.sim.swim import (
    CHAOS_FAULTS,
    CHAOS_S,
    NAMES,
    Report,
    SimNode,
    SwimWorld,
    disturb,
    make_peace,
)

# What must have happened at least once in a sweep for it to prove anything.
FAULTS: Final = (
    "loss",
    "duplicate",
    "delay",
    "partition",
    "one_way_cut",
    "crash",
    "pause",
    "leave",
)
OTHERS: Final = (
    "restart", "sync", "sent", "told", "told_after_restart", "newcomer", "old",
)  # fmt: skip
_SENDING_S: Final = 0.5
# Whoever lacks an event finds it within two turns of comparing what it knows with another.
EVENTS_SETTLE_S: Final = 100.0


@dataclass(slots=True)
class _Sent:
    event: UserEvent
    at: float


class EventsWorld(SwimWorld):
    """Members that send events; what they keep is durable at once."""

    def __init__(
        self,
        seed: int,
        names: Iterable[str],
        *,
        faults: LinkFaults | None = None,
        machine: type[SwimMachine] = SwimMachine,
    ) -> None:
        super().__init__(seed, names, faults=faults, machine=machine)
        self._sent: dict[Key, _Sent] = {}
        self._told: Counter[tuple[str, Key]] = Counter()
        self._latest: dict[str, int] = {}
        self._placed_at: dict[str, float] = {}
        self._tickets = 0

    def send(self, name: str) -> None:
        """Let a member send an event."""
        self._tickets += 1
        number = self._tickets
        self.feed(self.nodes[name], SendEvent(number, f"event-{number % 3}", "x" * number, 0))

    def told_to(self, name: str) -> list[UserEvent]:
        """What a host was told, in order of the events."""
        return [one.event for key, one in sorted(self._sent.items()) if self._told[name, key]]

    def start(self, name: str, *seeds: str, moved: bool = False) -> None:
        super().start(name, *seeds, moved=moved)
        node = self.nodes[name]
        assert node.machine is not None
        node.kept = node.machine.events.kept()
        if node.kept is not None:  # The founder knows all there is.
            self._placed_at.setdefault(name, self.world.now)

    # ---- performing -------------------------------------------------------------------------

    def _perform(self, node: SimNode, effect: Effect) -> None:
        super()._perform(node, effect)
        if isinstance(effect, Remember):
            assert node.machine is not None
            node.kept = node.machine.events.kept()
            self._placed_at.setdefault(node.name, self.world.now)
        elif isinstance(effect, Happened):
            self._happened(node, effect.event)
        elif isinstance(effect, Answered):
            self._answered(node, effect)
        elif isinstance(effect, EventRefused):
            self.world.count(effect.reason)
            if effect.reason not in ("old", "early"):
                self.world.violate(f"{node.name} refused an honest event: {effect.reason}")

    def _happened(self, node: SimNode, event: UserEvent) -> None:
        self.world.count("told")
        self.world.note(node.name, "told", event.key)
        self._told[node.name, event.key] += 1
        if self._told[node.name, event.key] > 1:
            self.world.violate(f"{node.name} is told {event.name} of {event.time} twice")
        sent = self._sent.get(event.key)
        if sent is not None and node.boot > 1 and sent.at < self.world.now - 1.0:
            self.world.count("told_after_restart")
        # What it sends itself is told first and checked after that.
        if event.origin != node.node_id:
            self._latest[node.name] = max(self._latest.get(node.name, 0), event.time)

    def _answered(self, node: SimNode, effect: Answered) -> None:
        if not isinstance(effect.outcome, UserEvent):
            self.world.count("not_sent")
            return
        event = effect.outcome
        self.world.count("sent")
        self._sent[event.key] = _Sent(event, self.world.now)
        if event.time <= self._latest.get(node.name, 0):
            self.world.violate(f"{node.name} sent at {event.time}, which is not after what it knew")
        self._latest[node.name] = event.time

    # ---- checking -----------------------------------------------------------------------------

    def shortcomings(self) -> list[str]:
        """What a running member was not told, and should have been by now."""
        wrong: list[str] = []
        running = self.running()
        held = {node.name: _held(node) for node in running}
        wrong += [
            f"{name} holds other events than {running[0].name}"
            for name, events in held.items()
            if events != held[running[0].name]
        ]
        kept = set(held[running[0].name])
        for key, sent in self._sent.items():
            told = [node.name for node in running if self._told[node.name, key]]
            if not told or key not in kept:
                continue  # Whoever sent it is gone, and it with them; or it is too old.
            wrong += [
                f"{node.name} was not told of {sent.event.time}, as {told[0]} was"
                for node in running
                if node.name not in told and self._placed_at[node.name] < sent.at
            ]
        return wrong


def _held(node: SimNode) -> list[Key]:
    assert node.machine is not None
    return [event.key for event in node.machine.events.recent()]


# ---- sweeps -----------------------------------------------------------------------------


class _FewKept(Recent):
    kept_max: ClassVar[int] = 12


class _FewEvents(EventsMachine):
    recent_type = _FewKept


class FewKept(SwimMachine):
    """Keeps a dozen events, so that some get too old."""

    events_type = _FewEvents


def run_seed(
    seed: int, machine: type[SwimMachine] | None = None, *, stop_at_violation: bool = False
) -> EventsWorld:
    """A minute of faults and a minute of peace; every other seed with few events kept."""
    made = machine or (FewKept if seed % 2 else SwimMachine)
    sim = EventsWorld(seed, NAMES, faults=CHAOS_FAULTS, machine=made)
    *first, last = sim.nodes
    for name in first:
        sim.start(name, first[0])
    sim.run_for(5.0)
    end = sim.world.now + CHAOS_S
    while sim.world.now < end:
        until = sim.world.now + sim.rng.uniform(1.0, 8.0)
        while sim.world.now < until:
            sim.run_for(sim.rng.uniform(0.0, _SENDING_S))
            if awake := [node for node in sim.running() if not node.paused]:
                sim.send(sim.rng.choice(awake).name)
        if sim.nodes[last].boot == 0 and sim.world.now > end - CHAOS_S / 2:
            sim.world.count("newcomer")
            sim.heal()  # Who crashed before anybody knew it would be looked for by nobody.
            sim.start(last, *first)
            sim.run_for(3.0)
        disturb(sim)
        if stop_at_violation and sim.world.violations:
            return sim
    make_peace(sim)
    sim.run_for(EVENTS_SETTLE_S)
    for text in sim.shortcomings():
        sim.world.violate(f"after {EVENTS_SETTLE_S:.0f} s of peace {text}")
    return sim


def sweep(seeds: range, machine: type[SwimMachine] | None = None) -> Report:
    """Run each seed and gather what it violated and counted."""
    report = Report()
    for seed in seeds:
        world = run_seed(seed, machine).world
        report.seeds += 1
        report.violations += [(seed, text) for text in world.violations]
        report.counts.update(world.counts)
    return report


# ---- guards, each taken away on trial -----------------------------------------------------


class _NoMemory(EventsMachine):
    def is_known(self, event: UserEvent) -> bool:
        return False


class _NoPushPull(EventsMachine):
    def told(self, asked: bytes | None = None) -> bytes:
        return super().told(None)


class _ForgetfulEvents(EventsMachine):
    def kept(self) -> Kept | None:
        kept = super().kept()
        return None if kept is None else Kept(kept.time)


class _OwnTime(LamportClock):
    def witness(self, time: int, now: float) -> bool:
        return True


class _NoLamport(EventsMachine):
    clock_type = _OwnTime


def _with(events: type[EventsMachine]) -> type[SwimMachine]:
    return type("Mutant", (SwimMachine,), {"events_type": events})


MUTANTS: Final[Mapping[str, type[SwimMachine]]] = {
    "events.known_once": _with(_NoMemory),
    "events.push_pull": _with(_NoPushPull),
    "events.memory_over_restarts": _with(_ForgetfulEvents),
    "events.lamport_time": _with(_NoLamport),
}


def first_catch(mutant: str, seeds: range) -> tuple[int, str] | None:
    """The first of `seeds` in which the mutant breaks a promise, and which; None if it survives."""
    for seed in seeds:
        world = run_seed(seed, MUTANTS[mutant], stop_at_violation=True).world
        violations = world.violations
        if violations:
            return seed, violations[0]
    return None
