"""The records of all nodes as people read them: the newest first, or as they come."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from swarmd.audit.records import (
    ChainId,
    Record,
    Stream,
    decode_batch,
    decode_record,
    decode_seal,
)
from swarmd.audit.shelf import Shelf
from swarmd.base.errors import SwarmError

# Segments that one look goes through; it answers with what it found, and where to go on.
_LOOK_SEGMENTS_MAX: Final = 48


class Position(NamedTuple):
    """Where a record stands among all, by time. A larger one is newer."""

    wall_ms: int
    chain: ChainId
    number: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and whose it is. `store_ms` is the time of the strong store, 0 if unknown."""

    chain: ChainId
    record: Record
    store_ms: int

    @property
    def position(self) -> Position:
        return Position(self.record.wall_ms, self.chain, self.record.number)


@dataclass(frozen=True, slots=True)
class Query:
    """Which records are wanted; what is empty does not matter. `kind` is how they begin."""

    kind: str = ""
    actor: str = ""
    node: bytes = b""
    stream: Stream | None = None
    since_ms: int = 0

    def takes_chain(self, chain: ChainId) -> bool:
        if self.stream is not None and chain.stream != self.stream:
            return False
        return not self.node or chain.node == self.node

    def takes(self, entry: Entry) -> bool:
        record = entry.record
        return (
            record.wall_ms >= self.since_ms
            and record.kind.startswith(self.kind)
            and (not self.actor or self.actor in record.actor)
            and self.takes_chain(entry.chain)
        )


def entries_of(chain: ChainId, raw: bytes) -> Iterator[Entry]:
    """The records of a batch, in order; what is unreadable is left out, and found by checking."""
    try:
        batch = decode_batch(raw)
        store_ms = decode_seal(batch.seal)[1].store_ms
    except SwarmError:
        return
    for one in batch.records:
        try:
            yield Entry(chain, decode_record(one), store_ms)
        except SwarmError:
            continue


@dataclass(slots=True)
class _Source:
    """One life, read backwards."""

    chain: ChainId
    below: int
    """Segments that begin below this number are still to be read."""
    bound_ms: int
    """What is still to be read is not newer."""
    entries: list[Entry] = field(default_factory=list)


async def newest(
    shelf: Shelf, query: Query, before: Position | None, limit: int
) -> tuple[list[Entry], Position | None]:
    """Up to `limit` records below `before`, the newest first, and where to go on, if anywhere."""
    found: list[Entry] = []
    heap = [
        (-source.bound_ms, index, source)
        for index, source in enumerate(await shelf.run(_sources_file, shelf, query, before))
    ]
    heapq.heapify(heap)
    segments_left, reached = _LOOK_SEGMENTS_MAX, before
    while heap:
        _, index, source = heap[0]
        if not source.entries:
            if source.bound_ms < query.since_ms or source.below <= 0:
                heapq.heappop(heap)
                continue
            if segments_left == 0:
                return found, reached
            segments_left -= 1
            await shelf.run(_load_file, shelf, source, before)
        else:
            entry = source.entries.pop()
            if entry.record.wall_ms < query.since_ms:
                heapq.heappop(heap)
                continue
            reached = entry.position
            if query.takes(entry):
                found.append(entry)
                if len(found) >= limit:
                    return found, reached
        newest_ms = source.entries[-1].record.wall_ms if source.entries else source.bound_ms
        heapq.heapreplace(heap, (-newest_ms, index, source))
    return found, None


def _sources_file(shelf: Shelf, query: Query, before: Position | None) -> list[_Source]:
    found = []
    for life in sorted(shelf.folder.lives.values(), key=lambda one: one.chain, reverse=True):
        if not query.takes_chain(life.chain) or not life.segments or life.unreadable:
            continue
        below, bound_ms = life.last + 1, life.wall_ms
        if before is not None and bound_ms > before.wall_ms:
            below, bound_ms = _skip_file(shelf, life.chain, before.wall_ms), before.wall_ms
        found.append(_Source(life.chain, below, bound_ms))
    return found


def _skip_file(shelf: Shelf, chain: ChainId, wall_ms: int) -> int:
    """A number below which all segments begin that hold records of before `wall_ms`."""
    life = shelf.folder.lives[chain]
    low, high = 0, len(life.segments) - 1
    while low < high:  # The first segment whose first batch ends later.
        middle = (low + high) // 2
        seal = shelf.folder.first_seal_file(chain, life.segments[middle])
        if seal is not None and seal.wall_ms <= wall_ms:
            low = middle + 1
        else:
            high = middle
    return life.segments[low].first + 1


def _load_file(shelf: Shelf, source: _Source, before: Position | None) -> None:
    """Read the next older segment. Entries are sorted, the newest last."""
    chain = source.chain
    life = shelf.folder.lives.get(chain)
    older = [one for one in life.segments if one.first < source.below] if life is not None else []
    if not older:
        source.below = 0
        return
    entries = [
        entry
        for raw in shelf.folder.read_back_file(chain, source.below)
        for entry in entries_of(chain, raw)
        if before is None or entry.position < before
    ]
    entries.sort(key=lambda one: one.position)
    source.entries = entries
    source.below = older[-1].first
    if entries:
        source.bound_ms = min(source.bound_ms, entries[0].record.wall_ms)
