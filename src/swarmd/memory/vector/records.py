"""What vector memory writes into the eventual store, and which of it counts. Pure.

One bucket holds all of it. Under `COLLECTION` stands what a collection is: a multi-value register,
so that creations that did not see each other stand side by side. The earliest of them counts, and
with it all that say the same. Each has drawn a name of its own, `made`.

Under `COLLECTION/ID` stands an entry: a register. It names the creation that its author saw. An
entry counts where that creation does; so what belongs to a collection that was deleted is gone at
once, however long it takes to remove, and does not come back with another of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId, digest, to_text
from swarmd.base.limits import (
    NAME_BYTES_MAX,
    VECTOR_DIMENSION_MAX,
    VECTOR_MODEL_BYTES_MAX,
    VECTOR_PAYLOAD_FIELDS_MAX,
)
from swarmd.memory.vector.rules import ELEMENT_BYTES, Spec
from swarmd.memory.vector.shapes import Metric, Scalar
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.clock import ms_of
from swarmd.state.crdt.dots import ACTOR_BYTES, NUMBER_MAX, Actor, Dot, node_of
from swarmd.state.crdt.types.kinds import Kind, Live, later
from swarmd.wire.codec import decode_struct

BUCKET: Final = "vectors"
MADE_BYTES: Final = 8
_VERSION_BYTES: Final = 10
_VECTOR_BYTES_MAX: Final = VECTOR_DIMENSION_MAX * ELEMENT_BYTES

_Made = Annotated[bytes, Meta(min_length=MADE_BYTES, max_length=MADE_BYTES)]
_Author = Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]


class CollectionRecord(msgspec.Struct, frozen=True, array_like=True):
    """`model`: what makes vectors of texts for it; empty: its callers do, by themselves."""

    made: _Made
    dimension: Annotated[int, Meta(ge=1, le=VECTOR_DIMENSION_MAX)]
    metric: Metric
    model: Annotated[str, Meta(max_length=VECTOR_MODEL_BYTES_MAX)]
    created_by: _Author


class EntryRecord(msgspec.Struct, frozen=True, array_like=True):
    """`made` and `creation`: the creation that it belongs to, and the dot that has put that."""

    made: _Made
    creation: tuple[
        Annotated[bytes, Meta(min_length=ACTOR_BYTES, max_length=ACTOR_BYTES)],
        Annotated[int, Meta(ge=1, le=NUMBER_MAX)],
    ]
    vector: Annotated[bytes, Meta(max_length=_VECTOR_BYTES_MAX)]
    payload: Annotated[dict[str, Scalar], Meta(max_length=VECTOR_PAYLOAD_FIELDS_MAX)]
    created_by: _Author


@dataclass(frozen=True, slots=True)
class Collection:
    """What counts under a collection's name. `all_made`: of all creations that say the same."""

    name: str
    spec: Spec
    model: str
    made: bytes
    creation: Dot
    all_made: frozenset[bytes]
    created_by: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that counts. `version`: another one after each write."""

    id: str
    record: EntryRecord
    version: str
    created_at_ms: int
    node: NodeId


def decode_collection(raw: bytes) -> CollectionRecord:
    """Raises MalformedMessage: no build of swarmd writes that."""
    record: CollectionRecord = decode_struct(CollectionRecord, raw)
    return record


def decode_entry(raw: bytes) -> EntryRecord:
    """Raises MalformedMessage: no build of swarmd writes that."""
    record: EntryRecord = decode_struct(EntryRecord, raw)
    return record


def values_of(record: CollectionRecord | EntryRecord) -> list[object]:
    """As the store packs it."""
    return list(msgspec.structs.astuple(record))


def key_of(collection: str, entry_id: str) -> str:
    return f"{collection}/{entry_id}"


def collection_of(name: str, live: Live) -> Collection | None:
    """The collection that cells come to; None: there is none."""
    found: list[tuple[Dot, Cell, CollectionRecord]] = []
    for dot, cell in sorted(_cells(live, Kind.MULTI), key=later):
        try:
            found.append((dot, cell, decode_collection(cell.value)))
        except MalformedMessage:
            continue
    if not found:
        return None
    dot, cell, first = found[0]
    same = (first.dimension, first.metric, first.model)
    return Collection(
        name,
        Spec(first.dimension, first.metric),
        first.model,
        first.made,
        dot,
        frozenset(r.made for _, _, r in found if (r.dimension, r.metric, r.model) == same),
        first.created_by,
        ms_of(cell.stamp),
    )


def entry_of(collection: Collection, entry_id: str, live: Live) -> Entry | None:
    """The latest write of an entry that counts; None: there is none."""
    for dot, cell in sorted(_cells(live, Kind.REGISTER), key=later, reverse=True):
        try:
            record = decode_entry(cell.value)
        except MalformedMessage:
            continue
        size = collection.spec.dimension * ELEMENT_BYTES
        if record.made in collection.all_made and len(record.vector) == size:
            return Entry(entry_id, record, version_of(dot), ms_of(cell.stamp), node_of(dot[0]))
    return None


def is_stray(collection: Live, entry: Live, has_seen: Callable[[Dot], bool]) -> bool:
    """Whether an entry belongs to nothing any more, whatever else may still arrive.

    A creation that has not arrived yet may be to come; one that was seen and is not there any more
    was deleted. What belongs to one that merely does not count stays: it may count again.

    Args:
        collection: the cells of the entry's collection.
        has_seen: whether it is known what the dot did to the collection.
    """
    standing = set()
    for _, cell in _cells(collection, Kind.MULTI):
        with suppress(MalformedMessage):
            standing.add(decode_collection(cell.value).made)
    for cell in entry.values():
        try:
            record = decode_entry(cell.value)
        except MalformedMessage:
            return False
        creation = (Actor(record.creation[0]), record.creation[1])
        if record.made in standing or not has_seen(creation):
            return False
    return bool(entry)


def version_of(dot: Dot) -> str:
    return f"{_actor_text(dot[0])}-{dot[1]}"


@lru_cache(maxsize=4_096)
def _actor_text(actor: Actor) -> str:
    return to_text(digest(actor)[:_VERSION_BYTES])


def _cells(live: Live, kind: Kind) -> Iterator[tuple[Dot, Cell]]:
    return ((d, cell) for d, cell in live.items() if cell.kind == kind and not cell.fields)
