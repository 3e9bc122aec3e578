"""A shard as it lies on a disk: what was seen, the live cells, and the batches that are kept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from swarmd.base.errors import CorruptFile, MalformedMessage
from swarmd.base.limits import CRDT_SHARDS
from swarmd.state.crdt.dots import Actor
from swarmd.state.crdt.messages import (
    Beyond,
    Held,
    Seen,
    cell_of,
    decode_batch,
    over_of,
    packed_cell,
    packed_over,
)
from swarmd.state.crdt.shard import LOG_BYTES_MAX, ShardState
from swarmd.wire.codec import decode_struct, encode_struct


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    bucket: str
    shard: Annotated[int, Meta(ge=0, lt=CRDT_SHARDS)]
    seen: tuple[Seen, ...]
    beyond: tuple[Beyond, ...]
    cells: tuple[Held, ...]
    log: tuple[bytes, ...]
    over: bytes = b""


def encode_shard(shard: ShardState) -> bytes:
    """All of a shard; what brings it back is `decode_shard`."""
    beyond = tuple(Beyond(*dot, key) for dot, key in shard.cells.context.beyond.items())
    cells = tuple(Held(key, *dot, packed_cell(cell)) for key, dot, cell in shard.cells.items())
    log = tuple(batch.raw for batch in shard.log())
    over = packed_over(shard.cells.context.over)
    return encode_struct(_Stored(*shard.name, shard.seen(), beyond, cells, log, over))


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
        for key, actor, number, cell in stored.cells:
            dot = (Actor(actor), number)
            if not shard.cells.context.has_seen(dot):
                raise MalformedMessage("a cell whose change was not seen")
            shard.cells.hold(key, dot, cell_of(cell))
        for one in stored.log:
            shard.note(decode_batch(one))
    except MalformedMessage as error:
        raise CorruptFile(f"a shard of the eventual store is unreadable: {error}") from error
    return shard
