"""What nodes say to each other about the eventual store: batches, and who holds which.

The unit that is signed is a *batch*: a contiguous run of one actor's changes to one shard. It is
relayed as it came, never merged or cut, so that nobody can alter what another has written; only its
author may sign several anew as one, which says the same. A member may leave a batch out, and what
follows it in that actor's run then stays out, too, until somebody else brings it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId, digest
from swarmd.base.limits import (
    CRDT_BATCH_BYTES_MAX,
    CRDT_BATCH_CHANGES_MAX,
    CRDT_CELL_BYTES_MAX,
    CRDT_KEY_BYTES_MAX,
    CRDT_MESSAGE_BYTES_MAX,
    CRDT_SHARDS,
    NAME_BYTES_MAX,
)
from swarmd.state.crdt.cells import FIELDS_MAX, Cell, Change
from swarmd.state.crdt.clock import STAMP_MAX
from swarmd.state.crdt.dots import ACTOR_BYTES, MARK_BYTES, NUMBER_MAX, Actor, Dot, node_of
from swarmd.state.crdt.types.values import is_sound
from swarmd.wire.codec import Family, Message, decode_struct, encode_struct

SIGNATURE_BYTES: Final = 64
SUM_BYTES: Final = 8
# A change removes at most so many dots: whatever stands at a key is below it, or is taken away in
# several changes.
REMOVES_MAX: Final = 1_024
_ACTORS_MAX: Final = 4_096
_VECTOR_MAX: Final = 10_000
# Lives of a shard that are over. When there are so many, the vector grows as it would without.
OVER_MAX: Final = 10_000
_LIFE_BYTES: Final = MARK_BYTES + 8
SUMS_MAX: Final = 4_096
BATCHES_MAX: Final = 256
PART_ITEMS_MAX: Final = 4_096
assert 64 * CRDT_SHARDS == SUMS_MAX, "what buckets there may be"

Shard = tuple[str, int]
"""A bucket's name and the number of one of its shards."""

_Actor = Annotated[bytes, Meta(min_length=ACTOR_BYTES, max_length=ACTOR_BYTES)]
_Number = Annotated[int, Meta(ge=1, le=NUMBER_MAX)]
_Index = Annotated[int, Meta(ge=0, lt=_ACTORS_MAX)]
_Stamp = Annotated[int, Meta(ge=0, le=STAMP_MAX)]
_Key = Annotated[str, Meta(min_length=1, max_length=CRDT_KEY_BYTES_MAX)]
_Field = Annotated[str, Meta(max_length=CRDT_KEY_BYTES_MAX)]
_Bucket = Annotated[str, Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_ShardNumber = Annotated[int, Meta(ge=0, lt=CRDT_SHARDS)]
_Value = Annotated[bytes, Meta(max_length=CRDT_CELL_BYTES_MAX)]
_Raw = Annotated[bytes, Meta(max_length=CRDT_BATCH_BYTES_MAX)]
_Over = Annotated[bytes, Meta(max_length=OVER_MAX * _LIFE_BYTES)]
_Sum = Annotated[bytes, Meta(min_length=SUM_BYTES, max_length=SUM_BYTES)]
_Ms = Annotated[int, Meta(ge=0, le=2**62)]


class _Cell(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    fields: Annotated[tuple[_Field, ...], Meta(max_length=FIELDS_MAX)]
    kind: Annotated[int, Meta(ge=1, le=255)]
    element: _Value
    value: _Value
    stamp: _Stamp
    expires_ms: _Ms = 0


class _Change(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`removes`: pairs of the place of an actor in the batch's list, and a number.

    Without a key it ends the lives of these actors.
    """

    key: Annotated[str, Meta(max_length=CRDT_KEY_BYTES_MAX)]
    cell: _Cell | None
    removes: Annotated[tuple[tuple[_Index, _Number], ...], Meta(max_length=REMOVES_MAX)] = ()


class _Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    bucket: _Bucket
    shard: _ShardNumber
    actor: _Actor
    first: _Number
    actors: Annotated[tuple[_Actor, ...], Meta(max_length=_ACTORS_MAX)]
    changes: Annotated[tuple[_Change, ...], Meta(min_length=1, max_length=CRDT_BATCH_CHANGES_MAX)]


class _Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    said: _Raw
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


@dataclass(frozen=True, slots=True)
class Batch:
    """A run of changes with the numbers from `first` on, and the very bytes it came in.

    Not yet verified; `said` is what `signature` is for.
    """

    shard: Shard
    actor: Actor
    first: int
    changes: tuple[Change, ...]
    said: bytes
    signature: bytes
    raw: bytes

    @property
    def last(self) -> int:
        return self.first + len(self.changes) - 1

    @property
    def author(self) -> NodeId:
        return node_of(self.actor)

    @property
    def stamp(self) -> int:
        """The latest of its cells; 0 where it only removes."""
        return max((c.cell.stamp for c in self.changes if c.cell is not None), default=0)

    @property
    def ends(self) -> tuple[Dot, ...]:
        """The last dots of the lives that are over by it."""
        return tuple(dot for change in self.changes for dot in change.ends)

    def dots(self) -> list[tuple[Dot, Change]]:
        return [((self.actor, self.first + n), change) for n, change in enumerate(self.changes)]


def encode_said(shard: Shard, actor: Actor, first: int, changes: tuple[Change, ...]) -> bytes:
    """The bytes that the actor's node signs."""
    places: dict[Actor, int] = {}
    for change in changes:
        for of, _ in change.removes:
            places.setdefault(of, len(places))
    said = [
        _Change(
            change.key,
            None if change.cell is None else packed_cell(change.cell),
            tuple((places[of], number) for of, number in change.removes),
        )
        for change in changes
    ]
    return encode_struct(_Said(*shard, actor, first, tuple(places), tuple(said)))


def make_batch(said: bytes, signature: bytes) -> Batch:
    return decode_batch(encode_struct(_Signed(said, signature)))


def decode_batch(raw: bytes) -> Batch:
    """The batch in `raw`; its signature is not looked at.

    Raises:
        MalformedMessage: not a batch, or one that no build of swarmd makes.
    """
    if len(raw) > CRDT_BATCH_BYTES_MAX:
        raise MalformedMessage(f"a batch of {len(raw)} bytes is too large")
    signed: _Signed = decode_struct(_Signed, raw)
    said: _Said = decode_struct(_Said, signed.said)
    if said.first + len(said.changes) - 1 > NUMBER_MAX:
        raise MalformedMessage("a batch beyond the last number")
    shard = (said.bucket, said.shard)
    actors = [Actor(one) for one in said.actors]
    return Batch(
        shard,
        Actor(said.actor),
        said.first,
        tuple(_change(one, actors, shard) for one in said.changes),
        signed.said,
        signed.signature,
        raw,
    )


def packed_over(over: Mapping[bytes, int]) -> bytes:
    """Lives that are over, as they travel and lie on a disk: mark and last number of each."""
    return b"".join(mark + number.to_bytes(8, "big") for mark, number in sorted(over.items()))


def over_of(packed: bytes) -> dict[bytes, int]:
    """Raises MalformedMessage: not whole lives."""
    if len(packed) % _LIFE_BYTES:
        raise MalformedMessage("a part of a life")
    lives = (packed[at : at + _LIFE_BYTES] for at in range(0, len(packed), _LIFE_BYTES))
    return {one[:MARK_BYTES]: int.from_bytes(one[MARK_BYTES:], "big") for one in lives}


def shard_of(key: str) -> int:
    """Which shard of its bucket a key is in."""
    return digest(key.encode())[0] % CRDT_SHARDS


def packed_cell(cell: Cell) -> _Cell:
    """A cell as it travels."""
    return _Cell(cell.fields, cell.kind, cell.element, cell.value, cell.stamp, cell.expires_ms)


def cell_of(packed: _Cell) -> Cell:
    """Raises MalformedMessage: a cell that no build of swarmd makes."""
    cell = Cell(
        packed.fields, packed.kind, packed.element, packed.value, packed.stamp, packed.expires_ms
    )
    if not is_sound(cell):
        raise MalformedMessage(f"a cell of kind {cell.kind} that no build makes")
    return cell


def _change(packed: _Change, actors: list[Actor], shard: Shard) -> Change:
    if packed.key and shard_of(packed.key) != shard[1]:
        raise MalformedMessage("a change to a key of another shard")
    if not packed.key and packed.cell is not None:
        raise MalformedMessage("a change without a key that puts something")
    try:
        removes = tuple((actors[place], number) for place, number in packed.removes)
    except IndexError:
        raise MalformedMessage("a removal by an actor that is not listed") from None
    return Change(packed.key, None if packed.cell is None else cell_of(packed.cell), removes)


# ---- between nodes ---------------------------------------------------------------------------


class Seen(NamedTuple):
    """How far a replica has seen one actor's changes."""

    actor: _Actor
    number: _Number


class ShardSum(NamedTuple):
    """What a replica has seen of a shard, summed up: equal sums, equal state."""

    bucket: _Bucket
    shard: _ShardNumber
    sum: _Sum


class Sums(Message, frozen=True, tag=1):
    """Of all shards of which the sender has seen anything; `wall_ms` is its clock.

    `some`: of those alone that not all hold. `asks`: and tell me yours of these.
    """

    wall_ms: _Ms
    sums: Annotated[tuple[ShardSum, ...], Meta(max_length=SUMS_MAX)]
    some: bool = False
    asks: bool = False


class Vector(Message, frozen=True, tag=2):
    """What the sender has seen of a shard: send me what I lack.

    `asks`: and say what you lack yourself, if it is anything.
    """

    bucket: _Bucket
    shard: _ShardNumber
    seen: Annotated[tuple[Seen, ...], Meta(max_length=_VECTOR_MAX)]
    asks: bool


class Batches(Message, frozen=True, tag=3):
    """Signed batches of one shard, those of each actor in order.

    `more`: there are others; ask again. `gone`: of some that are lacking only the outcome is kept;
    ask for the whole.
    """

    bucket: _Bucket
    shard: _ShardNumber
    batches: Annotated[tuple[_Raw, ...], Meta(max_length=BATCHES_MAX)]
    more: bool = False
    gone: bool = False


class WholeAsk(Message, frozen=True, tag=4):
    """Send me the whole shard: from its beginning, or part `part` of transfer `number`."""

    bucket: _Bucket
    shard: _ShardNumber
    number: _Number | None = None
    part: Annotated[int, Meta(ge=0, le=2**32)] = 0


class Held(NamedTuple):
    """A live cell."""

    key: _Key
    actor: _Actor
    number: _Number
    cell: _Cell


class Beyond(NamedTuple):
    actor: _Actor
    number: _Number
    key: _Key


class Whole(Message, frozen=True, tag=5):
    """A part of a shard as it was when the transfer began.

    The first part has what was seen, and which lives are over. `newest` are batches, of each actor
    one, which prove that it went that far; they come first, then what was removed early, then
    cells. `last` is set on the last part.
    """

    bucket: _Bucket
    shard: _ShardNumber
    number: _Number
    part: Annotated[int, Meta(ge=0, le=2**32)]
    cells: Annotated[tuple[Held, ...], Meta(max_length=PART_ITEMS_MAX)]
    seen: Annotated[tuple[Seen, ...], Meta(max_length=_VECTOR_MAX)]
    beyond: Annotated[tuple[Beyond, ...], Meta(max_length=PART_ITEMS_MAX)]
    newest: Annotated[tuple[_Raw, ...], Meta(max_length=PART_ITEMS_MAX)]
    last: bool
    over: _Over = b""


class HandOver(Message, frozen=True, tag=6):
    """The sender is no holder of a shard any more, and drops it once all holders have `seen`.

    See `holding`, also for whose word it takes.
    """

    bucket: _Bucket
    shard: _ShardNumber
    round: _Number
    seen: Annotated[tuple[Seen, ...], Meta(max_length=_VECTOR_MAX)]


class Taken(Message, frozen=True, tag=7):
    """The sender holds the shard, and all that was handed over in this round."""

    bucket: _Bucket
    shard: _ShardNumber
    round: _Number


class Leaving(Message, frozen=True, tag=8):
    """The sender leaves, and holds no shard any more that not all hold; or it stays after all.

    It is said again and again, and forgotten where it is not.
    """

    leaves: bool


CRDT = Family(
    "crdt",
    Sums,
    Vector,
    Batches,
    WholeAsk,
    Whole,
    HandOver,
    Taken,
    Leaving,
    message_bytes_max=CRDT_MESSAGE_BYTES_MAX,
    format_number=2,  # 2: with buckets that not all hold.
)
