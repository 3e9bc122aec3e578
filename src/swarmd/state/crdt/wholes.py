"""Whole shards on their way, in parts: on the side that gives them, and on the one that takes.

The giver keeps a copy of the shard as it was when it was asked, so that all parts are of one state;
the taker joins nothing before it has every part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId
from swarmd.state.crdt.cells import Cell, Cells
from swarmd.state.crdt.dots import Actor, Context, Dot
from swarmd.state.crdt.messages import (
    PART_CELLS_MAX,
    Batch,
    Beyond,
    Held,
    Shard,
    Whole,
    WholeAsk,
    cell_of,
    decode_batch,
    packed_cell,
    shard_of,
)
from swarmd.state.crdt.shard import ShardState

DEPARTURES_MAX: Final = 8
# A transfer that nobody asks for, or of which nothing comes, is over.
IDLE_S: Final = 10.0
_PART_BYTES: Final = 256 * 1024
_CELL_BYTES_EXTRA: Final = 128


@dataclass
class _Departure:
    peer: NodeId
    shard: Shard
    first: Whole
    items: list[tuple[str, Dot, Cell]]
    # Where in `items` each part begins that was asked for.
    begins: list[int]
    used_at: float


class Departures:
    """The whole states that this node gives away."""

    def __init__(self) -> None:
        self._running: dict[int, _Departure] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._running)

    def expire(self, now: float) -> None:
        for number in [n for n, one in self._running.items() if now - one.used_at > IDLE_S]:
            del self._running[number]

    def part(self, peer: NodeId, shard: ShardState, ask: WholeAsk, now: float) -> Whole | None:
        """The part that is asked for; a new transfer's first where that one is over."""
        self.expire(now)
        running = self._running.get(ask.number) if ask.number is not None else None
        if (
            running is None
            or running.peer != peer
            or running.shard != shard.name
            or ask.part >= len(running.begins)
        ):
            return self._begin(peer, shard, now)
        running.used_at = now
        return self._make(running, ask.part)

    def _begin(self, peer: NodeId, shard: ShardState, now: float) -> Whole | None:
        for number in [n for n, one in self._running.items() if one.peer == peer]:
            if self._running[number].shard == shard.name:
                del self._running[number]
        if len(self._running) >= DEPARTURES_MAX:
            return None
        self._numbers += 1
        context = shard.cells.context
        beyond = tuple(Beyond(*dot, key) for dot, key in sorted(context.beyond.items()))
        first = Whole(
            *shard.name, self._numbers, 0, (), shard.seen(), beyond, shard.newest(), last=True
        )
        items = sorted(shard.cells.items(), key=lambda item: item[:2])
        running = self._running[self._numbers] = _Departure(
            peer, shard.name, first, items, [0], now
        )
        return self._make(running, 0)

    def _make(self, running: _Departure, part: int) -> Whole:
        begin = end = running.begins[part]
        # The first part has what was seen, and the proofs, which may be large.
        room = _PART_BYTES if part else 0
        while end < len(running.items) and end - begin < PART_CELLS_MAX:
            key, _, cell = running.items[end]
            room -= 4 * len(key) + len(cell.value) + len(cell.element) + _CELL_BYTES_EXTRA
            if room < 0 and (end > begin or not part):
                break
            end += 1
        last = end == len(running.items)
        if not last and part + 1 == len(running.begins):
            running.begins.append(end)
        cells = tuple(
            Held(key, *dot, packed_cell(cell)) for key, dot, cell in running.items[begin:end]
        )
        whole = running.first
        return Whole(
            whole.bucket, whole.shard, whole.number, part, cells,
            () if part else whole.seen, () if part else whole.beyond,
            () if part else whole.newest, last,
        )  # fmt: skip


class Arriving:
    """A whole state of which some parts have come."""

    def __init__(self, peer: NodeId) -> None:
        self.cells = Cells()
        self.newest: list[Batch] = []
        self._peer = peer
        self._number: int | None = None
        self._next = 0
        self._progress_at: float | None = None

    def expects(self, peer: NodeId, part: Whole) -> bool:
        if peer != self._peer:
            return False
        return part.part == 0 or (part.number, part.part) == (self._number, self._next)

    def is_stuck(self, now: float) -> bool:
        """Nothing has come for a while; counted from when this is first asked."""
        if self._progress_at is None:
            self._progress_at = now
        return now - self._progress_at > IDLE_S

    def take(self, part: Whole, now: float) -> bool:
        """Take the next part, or the first of another transfer. True once all is here.

        Raises:
            MalformedMessage: no build of swarmd makes such a part.
        """
        if part.part == 0:
            self.cells, self._number = Cells(), part.number
            self.newest = [decode_batch(raw) for raw in part.newest]
            seen = {Actor(actor): number for actor, number in part.seen}
            beyond = {(Actor(actor), number): key for actor, number, key in part.beyond}
            self.cells.context = Context(seen, beyond)
        for key, actor, number, packed in part.cells:
            dot = (Actor(actor), number)
            if shard_of(key) != part.shard or not self.cells.context.has_seen(dot):
                raise MalformedMessage("a cell that is not of this state")
            self.cells.hold(key, dot, cell_of(packed))
        self._next, self._progress_at = part.part + 1, now
        return part.last
