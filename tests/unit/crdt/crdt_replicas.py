"""Replicas that a test drives, and what they must come to, reckoned without any context.

The oracle knows of each change only what its writer had seen. A cell is there if nothing that
overrides it was written by somebody who had seen it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import BadRequest
from swarmd.base.ids import NodeId
from swarmd.state.crdt.cells import Cell, Cells, Change, Gap
from swarmd.state.crdt.clock import HybridClock
from swarmd.state.crdt.dots import Actor, Dot, actor_of
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import AddTo, Assign, Count, Operation, Remove, TakeFrom, change
from swarmd.wire.codec import pack

# (replica, verb, argument, other replica)
Step = tuple[int, int, int, int]
# Four bytes are one step: a list of drawn tuples takes a hundred times as long to draw.
STEPS = (st.binary(max_size=160) | st.binary(min_size=80, max_size=160)).map(
    lambda raw: [
        (raw[at] % 5, raw[at + 1] % 8, raw[at + 2] % 6, raw[at + 3] % 5)
        for at in range(0, len(raw) - 3, 4)
    ]
)


def try_runs(tries: settings, holds: Callable[[int, list[Step]], None]) -> None:
    """Have `holds` judge so many runs, each of three to five replicas."""

    @tries
    @given(st.integers(3, 5), STEPS)
    def check(count: int, steps: list[Step]) -> None:
        holds(count, steps)

    check()


def actor(name: str) -> Actor:
    return actor_of(NodeId(name.encode().ljust(32, b".")), b"life0001")


@dataclass
class Event:
    """One change, and what its writer had seen."""

    dot: Dot
    change: Change
    operation: Operation
    fields: tuple[str, ...]
    seen: frozenset[Dot]

    def overrides(self, dot: Dot, cell: Cell) -> bool:
        """Whether it takes the place of a cell that its writer has seen."""
        if isinstance(self.operation, Remove):
            return cell.fields[: len(self.fields)] == self.fields
        if cell.fields != self.fields or cell.kind != self.operation.kind:
            return False
        match self.operation:
            case Count():
                return dot[0] == self.dot[0]
            case AddTo(element) | TakeFrom(element):
                return cell.element == pack(element)
        return True


@dataclass
class Replica:
    me: Actor
    cells: Cells = field(default_factory=Cells)
    clock: HybridClock = field(default_factory=HybridClock)
    seen: set[Dot] = field(default_factory=set)


class Group:
    """Replicas, everything that was ever written, and when."""

    def __init__(self, count: int) -> None:
        self.replicas = [Replica(actor(f"n{number}")) for number in range(count)]
        self.events: dict[Dot, Event] = {}
        self.logs: dict[Actor, list[Event]] = {one.me: [] for one in self.replicas}
        self.now_ms = 1_000

    def write(
        self, number: int, operation: Operation, *, key: str = "k", fields: tuple[str, ...] = ()
    ) -> bool:
        """False if it is refused, or changes nothing."""
        replica = self.replicas[number]
        self.now_ms += 1
        try:
            made = change(
                replica.cells.at(key),
                key,
                operation,
                actor=replica.me,
                stamp=replica.clock.tick(self.now_ms),
                number=replica.cells.context.seen_of(replica.me) + 1,
                fields=fields,
            )
        except BadRequest:
            return False
        if made is None:
            return False
        [(dot, _)] = replica.cells.commit(replica.me, [made])
        event = Event(dot, made, operation, fields, frozenset(replica.seen))
        self.events[dot] = event
        self.logs[replica.me].append(event)
        replica.seen.add(dot)
        return True

    def deliver(self, number: int, source: int, position: int) -> None:
        """One change of another's, whichever: where there is a gap, its whole state instead."""
        log = self.logs[self.replicas[source].me]
        if log:
            event = log[position % len(log)]
            try:
                self._take(self.replicas[number], event)
            except Gap:
                self.join(number, source)

    def catch_up(self, number: int, source: int) -> None:
        """Every change of another actor's, in order."""
        for event in self.logs[self.replicas[source].me]:
            self._take(self.replicas[number], event)

    def _take(self, replica: Replica, event: Event) -> None:
        if replica.cells.apply(event.dot, event.change):
            replica.seen.add(event.dot)
            if event.change.cell is not None:
                replica.clock.witness(event.change.cell.stamp)

    def join(self, number: int, source: int) -> None:
        mine, theirs = self.replicas[number], self.replicas[source]
        before = dict(mine.cells.context.vector)
        mine.cells.join(theirs.cells)
        mine.seen |= theirs.seen
        mine.clock.witness(theirs.clock.latest)
        assert all(mine.cells.context.seen_of(a) >= n for a, n in before.items())

    def settle(self) -> None:
        """Everybody gets everything: even ones by changes, odd ones by whole states."""
        count = len(self.replicas)
        for number in range(0, count, 2):
            for source in range(count):
                self.catch_up(number, source)
        for number in range(1, count, 2):
            self.join(number, 0)

    def expected(self) -> dict[str, dict[Dot, Cell]]:
        """What must be there once everybody has seen everything."""
        live: dict[str, dict[Dot, Cell]] = {}
        for dot, event in self.events.items():
            cell = event.change.cell
            if cell is not None and not any(
                dot in later.seen
                and later.change.key == event.change.key
                and later.overrides(dot, cell)
                for later in self.events.values()
            ):
                live.setdefault(event.change.key, {})[dot] = cell
        return live

    def held(self, number: int = 0) -> dict[str, dict[Dot, Cell]]:
        cells = self.replicas[number].cells
        return {key: dict(cells.at(key)) for key in cells}


def operation_of(kind: Kind, verb: int, argument: int) -> tuple[Operation, tuple[str, ...]]:
    """What a step writes: an operation, and into which field."""
    if verb == 3:
        return Remove(), ()
    match kind:
        case Kind.REGISTER | Kind.MULTI:
            return Assign(argument, kind), ()
        case Kind.TALLY | Kind.COUNTER:
            return Count(argument if kind is Kind.TALLY else argument - 3, kind), ()
        case Kind.SET:
            return (AddTo(argument) if verb < 2 else TakeFrom(argument)), ()
    fields: Any = (("a",), ("b",), ("a", "x"), ("b", "y"))[argument % 4]
    nested: tuple[Operation, ...] = (
        Assign(argument), Count(argument), AddTo(argument), TakeFrom(argument), Remove(),
    )  # fmt: skip
    return nested[(verb + argument) % 5], fields


def run(kind: Kind, count: int, steps: list[Step]) -> Group:
    """Write, deliver and join in the order of the steps."""
    group = Group(count)
    for who, verb, argument, other in steps:
        number, source = who % count, other % count
        if verb <= 3:
            operation, fields = operation_of(kind, verb, argument)
            group.write(number, operation, fields=fields)
        elif verb <= 6:
            group.deliver(number, source, argument)
        elif number != source:
            group.join(number, source)
    return group
