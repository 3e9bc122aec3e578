"""Whole shards on their way, in parts: on the side that gives them, and on the one that takes.

The giver keeps a copy of the shard as it was when it was asked, so that all parts are of one state;
the taker joins nothing before it has every part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId
from swarmd.state.crdt.cells import Cells
from swarmd.state.crdt.dots import Actor, Context
from swarmd.state.crdt.messages import (
    PART_ITEMS_MAX,
    Batch,
    Beyond,
    Held,
    Seen,
    Shard,
    Whole,
    WholeAsk,
    cell_of,
    decode_batch,
    over_of,
    packed_cell,
    packed_over,
    shard_of,
)
from swarmd.state.crdt.shard import ShardState

DEPARTURES_MAX: Final = 8
# A transfer that nobody asks for, or of which nothing comes, is over.
IDLE_S: Final = 10.0
_PART_BYTES: Final = 256 * 1024
# A shard of more than that takes no whole state over: 256 MiB.
PARTS_MAX: Final = 1_024
_ITEM_BYTES_EXTRA: Final = 128
_SEEN_BYTES: Final = 50


Item = Held | tuple[str, bytes] | Beyond | bytes
"""A live cell, one that is packed yet with its key, a removal that came early, a newest batch."""


@dataclass
class _Departure:
    peer: NodeId
    shard: Shard
    cells: Cells
    seen: tuple[Seen, ...]
    over: bytes
    items: list[Item]
    # Where in `items` each part begins that was asked for.
    begins: list[int]
    used_at: float


class Departures:
    """The whole states that this node gives away."""

    def __init__(self) -> None:
        self._running: dict[int, _Departure] = {}
        self._numbers = 0

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
        assert ask.number is not None
        return self._make(ask.number, running, ask.part)

    def _begin(self, peer: NodeId, shard: ShardState, now: float) -> Whole | None:
        for number in [n for n, one in self._running.items() if one.peer == peer]:
            if self._running[number].shard == shard.name:
                del self._running[number]
        if len(self._running) >= DEPARTURES_MAX:
            return None
        self._numbers += 1
        _, lone, several = shard.cells.kept()
        items: list[Item] = [*shard.newest()]
        items += [Beyond(*dot, key) for dot, key in sorted(shard.cells.context.beyond.items())]
        items += [Held(key, *dot, packed_cell(cell)) for key, dot, cell in several]
        items += lone
        running = self._running[self._numbers] = _Departure(
            peer,
            shard.name,
            shard.cells,
            shard.seen(),
            packed_over(shard.cells.context.over),
            items,
            [0],
            now,
        )
        return self._make(self._numbers, running, 0)

    def _make(self, number: int, running: _Departure, part: int) -> Whole:
        begin = end = running.begins[part]
        room = _PART_BYTES if part else _PART_BYTES - _SEEN_BYTES * len(running.seen)
        while end < len(running.items) and end - begin < PART_ITEMS_MAX:
            room -= _size_of(running.items[end])
            if room < 0 and (end > begin or not part):
                break
            end += 1
        last = end == len(running.items)
        if not last and part + 1 == len(running.begins):
            running.begins.append(end)
        chosen = [_told(one, running.cells) for one in running.items[begin:end]]
        return Whole(
            *running.shard,
            number,
            part,
            tuple(one for one in chosen if isinstance(one, Held)),
            () if part else running.seen,
            tuple(one for one in chosen if isinstance(one, Beyond)),
            tuple(one for one in chosen if isinstance(one, bytes)),
            last,
            b"" if part else running.over,
        )


def _told(item: Item, cells: Cells) -> Held | Beyond | bytes:
    """As it travels. Cells go on packing under the same places, whatever was put since."""
    if isinstance(item, bytes | Held | Beyond):
        return item
    key, packed = item
    dot, cell = cells.unpacked(packed)
    return Held(key, *dot, packed_cell(cell))


def _size_of(item: Item) -> int:
    match item:
        case bytes():
            return len(item)
        case Beyond():
            return 4 * len(item.key) + _ITEM_BYTES_EXTRA
        case Held():
            size = 4 * len(item.key) + _ITEM_BYTES_EXTRA
            return size + len(item.cell.value) + len(item.cell.element)
    key, packed = item
    return 4 * len(key) + _ITEM_BYTES_EXTRA + len(packed)


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
        if part.part >= PARTS_MAX:
            raise MalformedMessage(f"a shard in more than {PARTS_MAX} parts")
        if part.part == 0:
            self.cells, self._number = Cells(), part.number
            self.newest = []
            self.cells.context = Context(
                {Actor(actor): number for actor, number in part.seen}, None, over_of(part.over)
            )
        self.newest += [decode_batch(raw) for raw in part.newest]
        for actor, number, key in part.beyond:
            self.cells.context.remove_early((Actor(actor), number), key)
        for key, actor, number, packed in part.cells:
            dot = (Actor(actor), number)
            if shard_of(key) != part.shard or not self.cells.context.has_seen(dot):
                raise MalformedMessage("a cell that is not of this state")
            self.cells.hold(key, dot, cell_of(packed))
        self._next, self._progress_at = part.part + 1, now
        return part.last
