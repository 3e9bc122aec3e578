"""A shard as it lies on a disk: what was seen, the live cells, and the batches that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from swarmd.base.errors import CorruptFile, MalformedMessage
from swarmd.base.limits import CRDT_SHARDS
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import ACTOR_BYTES, Actor, Dot
from swarmd.state.crdt.messages import (
    Beyond,
    Held,
    Seen,
    Shard,
    cell_of,
    over_of,
    packed_cell,
    packed_over,
)
from swarmd.state.crdt.shard import LOG_BYTES_MAX, Logged, ShardState
from swarmd.state.crdt.types.values import is_sound
from swarmd.wire.codec import decode_struct, encode_struct

_Actor = Annotated[bytes, Meta(min_length=ACTOR_BYTES, max_length=ACTOR_BYTES)]


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`lone`: keys with one cell, packed, whose actors are named by their places in `actors`.

    `cells`: those of keys with several. `log`: for each actor the batches that are kept: first and
    last number, stamp, bytes. `latest`: the highest stamp that any cell ever had.
    """

    bucket: str
    shard: Annotated[int, Meta(ge=0, lt=CRDT_SHARDS)]
    seen: tuple[Seen, ...]
    beyond: tuple[Beyond, ...]
    latest: Annotated[int, Meta(ge=0)]
    actors: tuple[bytes, ...]
    lone: tuple[tuple[str, bytes], ...]
    cells: tuple[Held, ...]
    log: tuple[tuple[_Actor, tuple[tuple[int, int, int, bytes], ...]], ...]
    over: bytes


class _Name(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    bucket: str
    shard: Annotated[int, Meta(ge=0, lt=CRDT_SHARDS)]


@dataclass(frozen=True, slots=True)
class Image:
    """A shard as it was at one moment, of which a thread may make what is stored."""

    name: Shard
    seen: tuple[Seen, ...]
    beyond: tuple[tuple[Dot, str], ...]
    latest: int
    actors: list[Actor]
    lone: list[tuple[str, bytes]]
    cells: list[tuple[str, Dot, Cell]]
    log: tuple[Logged, ...]
    over: bytes


def encode_name(name: Shard) -> bytes:
    return encode_struct(_Name(*name))


def decode_name(raw: bytes) -> Shard:
    """Raises MalformedMessage."""
    found: _Name = decode_struct(_Name, raw)
    return found.bucket, found.shard


def image_of(shard: ShardState) -> Image:
    """What is stored of a shard; takes a microsecond or less for each key."""
    context = shard.cells.context
    return Image(
        shard.name,
        shard.seen(),
        tuple(context.beyond.items()),
        shard.cells.latest,
        *shard.cells.kept(),
        tuple(shard.log()),
        packed_over(context.over),
    )


def encode_image(image: Image) -> bytes:
    """What brings it back is `decode_shard`."""
    log: dict[Actor, list[tuple[int, int, int, bytes]]] = {}
    for one in image.log:
        log.setdefault(one.actor, []).append((one.first, one.last, one.stamp, one.raw))
    return encode_struct(
        _Stored(
            *image.name,
            image.seen,
            tuple(Beyond(*dot, key) for dot, key in image.beyond),
            image.latest,
            tuple(image.actors),
            tuple(image.lone),
            tuple(Held(key, *dot, packed_cell(cell)) for key, dot, cell in image.cells),
            tuple((actor, tuple(batches)) for actor, batches in log.items()),
            image.over,
        )
    )


def encode_shard(shard: ShardState) -> bytes:
    """All of a shard as it is now; what brings it back is `decode_shard`."""
    return encode_image(image_of(shard))


def decode_shard(
    raw: bytes, log_bytes_max: int = LOG_BYTES_MAX, kind: type[ShardState] = ShardState
) -> ShardState:
    """The shard in `raw`, whose checksum its reader has looked at.

    Raises:
        CorruptFile: this version cannot read it.
    """
    try:
        stored: _Stored = decode_struct(_Stored, raw)
        shard = kind((stored.bucket, stored.shard), log_bytes_max)
        shard.cells.context = shard.cells.context_type(
            {Actor(actor): number for actor, number in stored.seen},
            {(Actor(actor), number): key for actor, number, key in stored.beyond},
            over_of(stored.over),
        )
        makes = shard.cells.restore([Actor(one) for one in stored.actors], stored.lone)
        if not all(map(is_sound, makes)):
            raise MalformedMessage("a cell that no build makes")
        for key, actor, number, cell in stored.cells:
            dot = (Actor(actor), number)
            if not shard.cells.context.has_seen(dot):
                raise MalformedMessage("a cell whose change was not seen")
            shard.cells.hold(key, dot, cell_of(cell))
        shard.cells.latest = max(shard.cells.latest, stored.latest)
        for actor, batches in stored.log:
            for batch in batches:
                shard.keep(Logged(Actor(actor), *batch))
    except MalformedMessage as error:
        raise CorruptFile(f"a shard of the eventual store is unreadable: {error}") from error
    return shard
