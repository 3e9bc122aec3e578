"""What stands behind a key of shared memory: its cells, who put them, and which of them count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from swarmd.base.errors import MalformedMessage, NotFound
from swarmd.base.ids import ID_BYTES, NodeId, to_text
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import Actor, node_of
from swarmd.state.crdt.messages import shard_of
from swarmd.state.crdt.service import Eventual
from swarmd.state.crdt.types import documents
from swarmd.state.crdt.types.kinds import Kind, Live
from swarmd.state.crdt.types.values import kind_of, read
from swarmd.state.crdt.types.verdicts import Verdict, verdicts
from swarmd.wire.codec import unpack

# A value that is larger is told by its size.
SHOWN_BYTES_MAX: Final = 4 * 1024
CELLS_MAX: Final = 256
EXPIRED: Final = "it has expired, and is removed shortly"


@dataclass(frozen=True, slots=True)
class InspectedCell:
    """`value`: what it puts, as far as that is known and small; `created_by`: of registers."""

    node: NodeId
    life: str
    number: int
    kind: Kind
    fields: tuple[str, ...]
    element: Any
    value: Any
    value_bytes: int
    created_by: str | None
    stamp: int
    expires_at_ms: int
    counts: bool
    why: str


@dataclass(frozen=True, slots=True)
class Inspected:
    """`value`: None where no cell counts; `cells`: the latest first, `left_out` more.

    `seen`: of the key's shard, how far each life of each node; `early` changes are known to be
    removed that did not come yet.
    """

    kind: Kind
    value: Any
    cells: list[InspectedCell]
    left_out: int
    shard: int
    seen: list[tuple[NodeId, str, int]]
    early: int


def inspect(store: Eventual, bucket: str, name: str, now_ms: int) -> Inspected:
    """Raises NotFound: no cell of the key is here."""
    live = store.cells(bucket, name)
    kind = kind_of(live)
    if kind is None:
        raise NotFound(
            "nothing is held at this key here: it was never written, or what was is removed, of "
            "which no trace is kept"
        )
    found = [_expired(one, now_ms) for one in verdicts(live)]
    context = store.seen(bucket, name)
    return Inspected(
        kind,
        _value(live, kind) if any(one.counts for one in found) else None,
        [_cell(one) for one in found[:CELLS_MAX]],
        max(0, len(found) - CELLS_MAX),
        shard_of(name),
        [
            (node_of(actor), life_of(actor), number)
            for actor, number in sorted(context.vector.items())
        ],
        len(context.beyond),
    )


def life_of(actor: Actor) -> str:
    """Which start of a node it is: the beginning of what was drawn for it."""
    return to_text(actor[ID_BYTES:])[:8]


def _expired(one: Verdict, now_ms: int) -> Verdict:
    """The verdict, or that it would count if it had not expired."""
    if one.counts and 0 < one.cell.expires_ms <= now_ms:
        return one._replace(counts=False, why=EXPIRED)
    return one


def _value(live: Live, kind: Kind) -> Any:
    try:
        value = read(live)
    except NotFound:
        return None
    return _parted(value)[0] if kind is Kind.REGISTER else value


def _cell(one: Verdict) -> InspectedCell:
    dot, cell, counts, why = one
    value, by = _shown(cell)
    return InspectedCell(
        node_of(dot[0]),
        life_of(dot[0]),
        dot[1],
        Kind(cell.kind),
        cell.fields,
        _unpacked(cell.element) if cell.kind == Kind.SET else None,
        value,
        len(cell.value),
        by,
        cell.stamp,
        cell.expires_ms,
        counts,
        why,
    )


def _shown(cell: Cell) -> tuple[Any, str | None]:
    """What a cell puts, and of whom, where that is told."""
    if cell.kind in (Kind.TEXT, Kind.LIST):
        try:
            put, deleted = documents.summary(cell)
        except MalformedMessage:
            return None, None
        return {"puts": put, "deletes": deleted}, None
    value = _unpacked(cell.value)
    if cell.kind != Kind.REGISTER:
        return value, None
    if len(cell.value) <= SHOWN_BYTES_MAX:
        return _parted(value)
    try:
        return None, _parted(unpack(cell.value))[1]
    except MalformedMessage:
        return None, None


def _unpacked(raw: bytes) -> Any:
    if len(raw) > SHOWN_BYTES_MAX:
        return None
    try:
        return unpack(raw)
    except MalformedMessage:
        return None


def _parted(value: Any) -> tuple[Any, str | None]:
    """A value of shared memory, and who it is of; see `service`."""
    match value:
        case [what, str(by)]:
            return what, by
    return value, None
