"""Replicas that edit one document, and what it must come to, reckoned without any order.

Every character and element is put once in a run, so each is known by what it is. The oracle knows
of each change what its author read before and after, and of each cell which units it puts and
deletes; what a merge puts is what the cells put that it took away.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import count as numbers
from typing import Any

from crdt_replicas import Event, Group, Step, actor

from swarmd.base.errors import NotFound
from swarmd.state.crdt.cells import Cell, Cells
from swarmd.state.crdt.dots import Dot
from swarmd.state.crdt.messages import shard_of
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.stored import decode_shard, encode_shard
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.updates import decode_update
from swarmd.state.crdt.types.values import EditList, EditText, Remove, read
from swarmd.wire.codec import unpack

KEY = "k"


@dataclass
class Edited(Event):
    """A change whose merges take away what they hold."""

    def overrides(self, dot: Dot, cell: Cell) -> bool:
        return dot in self.change.removes


class Documents(Group):
    def __init__(self, kind: Kind, count: int) -> None:
        super().__init__(count)
        self.kind = kind
        self.puts: dict[Dot, frozenset[Any]] = {}
        self.deletes: dict[Dot, frozenset[Any]] = {}
        # What an author read after its edit, where it knew all that it had read of.
        self.read_once: list[list[Any]] = []
        # What one edit has put, in its order.
        self.runs: list[list[Any]] = []
        self.removals = 0
        self._units = numbers()
        self._lives = numbers()

    def value(self, number: int) -> list[Any] | None:
        try:
            return list(read(self.replicas[number].cells.at(KEY)))
        except NotFound:
            return None

    def new_unit(self) -> Any:
        n = next(self._units)
        if self.kind is Kind.LIST:
            return (n, float(n), str(n), 2**60 + n)[n % 4]
        # One, two, three and four bytes; one and two UTF-16 units.
        return chr((0x21, 0xA1, 0x4E00, 0x1F300)[n % 4] + n // 4)

    def edit(self, number: int, at: int, delete: int, put: int) -> None:
        """Delete and put so many units at a place of the row, wherever that is in it."""
        before = self.value(number) or []
        at %= len(before) + 1
        delete = min(delete, len(before) - at)
        new = [self.new_unit() for _ in range(put)]
        operation = (
            EditText(at, "".join(new), delete)
            if self.kind is Kind.TEXT
            else EditList(at, tuple(new), delete)
        )
        replica = self.replicas[number]
        knows_all = all(self.events[dot].seen <= replica.seen for dot in replica.seen)
        if not self.write(number, operation, key=KEY):
            assert not delete
            assert not new
            return
        after = [*before[:at], *new, *before[at + delete :]]
        assert self.value(number) == after, "an author reads what it has written"
        dot = (replica.me, replica.cells.context.seen_of(replica.me))
        event = self.events[dot]
        merged = event.change.removes
        self.puts[dot] = frozenset(new).union(*(self.puts[one] for one in merged))
        gone = before[at : at + delete]
        self.deletes[dot] = frozenset(gone).union(*(self.deletes[one] for one in merged))
        self.runs.append(new)
        if knows_all:
            self.read_once.append(after)

    def remove(self, number: int) -> None:
        self.removals += self.write(number, Remove(), key=KEY)

    def write(self, number: int, *args: Any, **more: Any) -> bool:
        if not super().write(number, *args, **more):
            return False
        replica = self.replicas[number]
        event = self.logs[replica.me][-1]
        again = Edited(event.dot, event.change, event.operation, event.fields, event.seen)
        self.events[event.dot] = self.logs[replica.me][-1] = again
        return True

    def restart(self, number: int, copy: tuple[Cells, set[Dot]] | None = None) -> None:
        """From what is on its disk, or an old copy of it. It writes under another name then."""
        replica = self.replicas[number]
        if copy is not None:
            replica.cells, replica.seen = deepcopy(copy[0]), set(copy[1])
        shard = ShardState(("b", shard_of(KEY)))
        shard.cells = replica.cells
        loaded = decode_shard(encode_shard(shard), ShardState).cells
        assert loaded == replica.cells
        replica.cells = loaded
        replica.me = actor(f"n{number}-{next(self._lives)}")
        self.logs[replica.me] = []

    def settle(self) -> None:
        """Everybody gets everything: even ones by changes, odd ones by whole states."""
        for number in range(0, len(self.replicas), 2):
            for log in self.logs.values():
                for event in log:
                    self._take(self.replicas[number], event)
        for number in range(1, len(self.replicas), 2):
            self.join(number, 0)

    # ---- what must be --------------------------------------------------------------------------

    def check(self) -> None:
        """Everybody has seen everything."""
        self.check_ids()
        live = self.replicas[0].cells.at(KEY)
        put: frozenset[Any] = frozenset().union(*(self.puts[dot] for dot in live))
        deleted: frozenset[Any] = frozenset().union(*(self.deletes[dot] for dot in live))
        found = self.value(0) or []
        assert len(found) == len(set(found)), "nothing is there twice"
        assert set(found) == put - deleted
        if not self.removals:
            everything: frozenset[Any] = frozenset().union(*self.puts.values())
            gone: frozenset[Any] = frozenset().union(*self.deletes.values())
            assert set(found) == everything - gone, "no acknowledged edit vanishes"
            for once in self.read_once:
                _is_in_order(found, once)
        for run in self.runs:
            _is_in_order(found, run)

    def check_ids(self) -> None:
        """No id has ever named two units."""
        named: dict[tuple[int, int], Any] = {}
        for event in self.events.values():
            if event.change.cell is None:
                continue
            for block in decode_update(unpack(event.change.cell.value)[1]).blocks:
                if block.content is None:
                    continue
                for clock in range(block.clock, block.end):
                    unit = block.cut(clock, clock + 1)._replace(right=None)
                    assert named.setdefault((block.client, clock), unit) == unit


def _is_in_order(found: list[Any], once: list[Any]) -> None:
    both = set(found) & set(once)
    assert [u for u in found if u in both] == [u for u in once if u in both]


def run_documents(kind: Kind, count: int, steps: list[Step]) -> Documents:
    """Write, deliver, join and restart in the order of the steps."""
    group = Documents(kind, count)
    copies: dict[int, tuple[Cells, set[Dot]]] = {}
    for who, verb, argument, other in steps:
        number, source = who % count, other % count
        place = 7 * argument + 3 * other
        match verb:
            case 0 | 1:
                group.edit(number, place, 0, 1 + argument % 3)
            case 2:
                group.edit(number, place, 1 + argument % 3, argument // 3)
            case 3 if argument == 0 and other == 0:
                group.remove(number)
            case 3:  # As somebody types.
                group.edit(number, len(group.value(number) or []), 0, 1)
            case 4 | 5:
                group.deliver(number, source, argument)
            case 6 | 7 if number != source:
                group.join(number, source)
            case 6:
                copies[number] = (
                    deepcopy(group.replicas[number].cells),
                    set(group.replicas[number].seen),
                )
            case 7:
                group.restart(number, copies.get(number) if argument == 5 else None)
    return group
