"""Documents: texts and lists that many edit at once, and nobody's edit is lost to another's.

A cell holds one edit, as a Yjs update: what was put where, and which units were deleted. The value
is what the updates of all cells come to. Where there are many, an edit puts one update that holds
them all and takes them away; who edits at the same time adds a cell to it. Of what comes twice by
that each unit counts once. So:
- An edit needs nothing of those before it to be read. What it names and is not there (it comes
  later, or was removed with the key) stands in as deleted.
- Whoever removes the key removes the edits that it saw. Of one at the same time, unseen, what it
  put stays and, if it was the one to merge, the document as its author saw it.

The id of a unit is a client and a clock, and must never name two units: one of them would be lost.
- A client is drawn by a hash of who edits, an actor that no other start of a node has, and of the
  edit's stamp, which is higher than that of each other change of the actor.
- An edit takes another client than the one before, but where that one is its actor's very last
  change in the shard, is live here and has put that client's last unit: then no other unit of it
  can be anywhere, whoever removed or merged what meanwhile, and the clock goes on. So what is typed
  in one go is one block.
- Of a hash 53 bits are left. A client that is in the document already is not taken; that two of
  4,096 which do not see each other are the same happens once in 10^9 documents, and all replicas
  then read the same of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from swarmd.base.errors import BadRequest, MalformedMessage, TooLarge
from swarmd.base.ids import digest
from swarmd.base.limits import KIB
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import Dot
from swarmd.state.crdt.types.kinds import Edit, Kind, Live, Put, later
from swarmd.state.crdt.types.updates import (
    BLOCKS_MAX,
    CLIENT_MAX,
    ROOT,
    Deleted,
    Ranges,
    Units,
    Update,
    decode_update,
    encode_update,
)
from swarmd.wire.codec import pack, unpack

if TYPE_CHECKING:
    from pycrdt import Array, Doc, Text

# A document's, as one update. More is read: it may come together from several that write at once.
BYTES_MAX: Final = 256 * KIB
PIECES_MAX: Final = BLOCKS_MAX // 2
CELLS_MAX: Final = 1_000
_READ_BYTES_MAX: Final = 16 * BYTES_MAX
_ELEMENT_BYTES: Final = 16
# No edit's client: of who only reads.
_READER: Final = 0
# Cells are merged from so many on, if that takes no more bytes for each of them, or from more.
_MERGED_FROM: Final = 8
_MERGED_BYTES: Final = 256
_MERGED_ALWAYS: Final = 256


def read_text(live: Live) -> str:
    """Raises LookupError: the library stopped over it."""
    return str(_ordered(_load(live)[0], Kind.TEXT, _READER)[1])


def read_list(live: Live) -> list[Any]:
    """Raises LookupError: the library stopped over it."""
    row: Any = _ordered(_load(live)[0], Kind.LIST, _READER)[1]
    return [unpack(bytes(element)) for element in row.to_py()]


def edit(
    live: Live,
    dot: Dot,
    stamp: int,
    at: int,
    delete: int,
    insert: str | Sequence[Any],
) -> Edit:
    """Take away `delete` characters or elements from place `at` on, and put others there.

    Args:
        live: the cells of the document, all of one kind.
        dot: of the change that this becomes; its number is 0 where the caller does not know it.
        insert: a text, or the elements of a list.

    Raises:
        BadRequest: there is no such place; what is put cannot be carried.
        TooLarge: the document would be larger than one may be.
    """
    kind = Kind.TEXT if isinstance(insert, str) else Kind.LIST
    units, room = _load(live)
    client = _client(live, units, dot, stamp)
    update = _edited(units, kind, client, at, delete, insert)
    if not update.blocks and not update.deleted:
        return Edit(None, ())
    units.take(update, 2 * BLOCKS_MAX)
    merged = units.merged()
    put, whole = _packed(client, update), _packed(client, merged)
    held = sum(map(_bytes_of, live.values()))
    fits = (
        _weight(len(whole), merged) <= BYTES_MAX
        and len(merged.blocks) + len(merged.deleted) <= PIECES_MAX
    )
    if room >= 0 and fits and _is_worth_it(len(live), held, len(whole)):
        return Edit(Put(b"", whole), tuple(live))
    is_read = (
        _weight(len(put), update) <= room and len(live) < CELLS_MAX and units.count <= BLOCKS_MAX
    )
    if not is_read or (insert and not fits):
        raise TooLarge(
            f"a document takes {BYTES_MAX} bytes in {PIECES_MAX} pieces at most: nothing "
            "changed; take parts of it away, or go on under another key"
        )
    return Edit(Put(b"", put), ())


def _is_worth_it(cells: int, held_bytes: int, whole_bytes: int) -> bool:
    """Whether one cell of so many bytes shall take the place of all."""
    if cells >= _MERGED_ALWAYS or 2 * whole_bytes <= held_bytes:
        return True
    return cells >= _MERGED_FROM and whole_bytes <= _MERGED_BYTES * cells


def summary(cell: Cell) -> tuple[int, int]:
    """How many units a cell puts, and how many it deletes. Raises MalformedMessage."""
    _, update = _decoded(cell)
    put = sum(block.size for block in update.blocks if block.content is not None)
    gone = sum(block.size for block in update.blocks if block.content is None)
    return put, gone + sum(one.end - one.start for one in update.deleted)


def _client(live: Live, units: Units, dot: Dot, stamp: int) -> int:
    """Whose units an edit puts; see above."""
    actor, number = dot
    last = live.get((actor, number - 1))
    with suppress(MalformedMessage):  # Whoever handed over a whole state may have made it up.
        client, update = _decoded(last) if last is not None else (0, Update([], []))
        top = max((b.end for b in update.blocks if b.client == client), default=0)
        if top and top == units.present.top(client):
            return client
    tries = 0
    while True:
        drawn = digest(actor + stamp.to_bytes(8, "big") + tries.to_bytes(2, "big"))
        client = int.from_bytes(drawn[:8], "big") % CLIENT_MAX + 1
        if not units.present.top(client):
            return client
        tries += 1


# ---- what cells hold ----------------------------------------------------------------------------


def _load(live: Live) -> tuple[Units, int]:
    """The units of all cells, and how many bytes more would be read; -1: there are more already.

    What no build of swarmd writes is left out, and what is too much: the later ones.
    """
    units = Units()
    room = _READ_BYTES_MAX
    is_all = len(live) <= CELLS_MAX
    for _, cell in sorted(live.items(), key=later)[:CELLS_MAX]:
        if len(cell.value) > room:
            return units, -1
        try:
            _, update = _decoded(cell)
        except MalformedMessage:
            room -= len(cell.value)
            continue
        weight = _weight(len(cell.value), update)
        if weight > room:
            return units, -1
        room -= weight
        is_all = units.take(update, BLOCKS_MAX) and is_all
    return units, room if is_all else -1


def _weight(raw_bytes: int, update: Update) -> int:
    """In bytes: an element of a list takes more time than its own few would."""
    elements = sum(block.size for block in update.blocks if isinstance(block.content, tuple))
    return raw_bytes + _ELEMENT_BYTES * elements


def _bytes_of(cell: Cell) -> int:
    return len(cell.value)


def _packed(client: int, update: Update) -> bytes:
    """An edit's cell: its client, and its update."""
    return pack([client, encode_update(update)])


def _decoded(cell: Cell) -> tuple[int, Update]:
    """Raises MalformedMessage: no build of swarmd writes this."""
    wanted: type = str if cell.kind == Kind.TEXT else tuple
    match unpack(cell.value):
        case [int(client), bytes(raw)] if 0 < client <= CLIENT_MAX:
            update = decode_update(raw)
            if all(one.content is None or type(one.content) is wanted for one in update.blocks):
                return client, update
    raise MalformedMessage("a cell that is no edit")


# ---- the library --------------------------------------------------------------------------------


def _ordered(units: Units, kind: Kind, client: int) -> tuple[Doc[Any], Text | Array[Any], Ranges]:
    """The units as a document of the library, for edits of `client`; which of them are deleted.

    Raises LookupError: the library stopped over them.
    """
    from pycrdt import Array, Doc, Text  # 12 MB and 0.2 s, which few daemons need.

    doc: Doc[Any] = Doc(client_id=client)
    row: Text | Array[Any] = doc.get(ROOT, type=Text if kind is Kind.TEXT else Array)
    ready = units.ready()
    deleted = Ranges()
    for block in ready.blocks:
        if block.content is None:
            deleted.add(block.client, block.clock, block.end)
    try:
        doc.apply_update(encode_update(ready))
    except BaseException as error:
        if type(error).__name__ != "PanicException" and not isinstance(error, ValueError):
            raise
        raise LookupError("the library stopped") from None
    return doc, row, deleted


def _edited(
    units: Units, kind: Kind, client: int, at: int, delete: int, insert: str | Sequence[Any]
) -> Update:
    """What an edit comes to. Raises BadRequest."""
    try:
        doc, row, known = _ordered(units, kind, client)
    except LookupError as error:
        raise BadRequest("the document is damaged: nothing changed; remove it") from error
    text = str(row) if kind is Kind.TEXT else None
    length = len(row if text is None else text)
    if not 0 <= at <= length or not 0 <= delete <= length - at:
        raise BadRequest(
            f"the document has a length of {length}: there is nothing at {at} to {at + delete}; "
            "nothing changed"
        )
    before = doc.get_state()
    with doc.transaction():
        if text is None:
            _splice(row, at, at + delete, [pack(element) for element in insert])
        else:
            assert isinstance(insert, str)
            # The library counts bytes.
            place, end = (len(text[:one].encode()) for one in (at, at + delete))
            _splice(row, place, end, _checked(insert))
    made = decode_update(doc.get_update(before))
    deleted = [
        Deleted(of, a, b)
        for of, start, end in made.deleted
        for a, b in known.without(of, start, end)
    ]
    return Update(made.blocks, deleted)


def _splice(row: Any, start: int, end: int, put: str | list[bytes]) -> None:
    if end > start:
        del row[start:end]
    if put:
        row[start:start] = put


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("a text is valid Unicode: nothing changed") from error
    return text
