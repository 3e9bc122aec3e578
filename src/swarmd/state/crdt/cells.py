"""The state of a shard: cells, each put by one dot. Every type of the store is a set of them.

A change puts at most one cell and removes cells that its writer saw. So one rule joins all types
(delta-state CRDTs over dot stores): a cell stays where both have it, or where one has it and the
other has not seen its dot. What the cells of a key mean is `types`' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta
from sortedcontainers import SortedDict

from swarmd.base.errors import MalformedMessage
from swarmd.state.crdt.dots import Actor, Context, Dot
from swarmd.wire.codec import decode_struct

FIELDS_MAX: Final = 16
_NOTHING: Final[Mapping[Dot, Cell]] = {}
# How msgpack begins a cell of which `fields`, `element` and `expires_ms` are as they mostly are.
_PLAIN: Final = 0x95


@dataclass(frozen=True, slots=True)
class Cell:
    """What one dot has put.

    Args:
        fields: the way through nested maps.
        kind: of the value there; see `types`.
        element: of a set; empty elsewhere.
        value: packed as `kind` wants it.
        stamp: when, by the hybrid logical clock of who wrote it.
        expires_ms: from when on it counts as removed; 0 is never.
    """

    fields: tuple[str, ...]
    kind: int
    element: bytes
    value: bytes
    stamp: int
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """One dot's: a cell or none, and the dots of the key that it removes.

    Without a key it ends lives: `removes` names each one's last dot, behind which nothing comes.
    """

    key: str
    cell: Cell | None
    removes: tuple[Dot, ...]

    @property
    def ends(self) -> tuple[Dot, ...]:
        """The last dots of the lives that are over by this change."""
        return () if self.key else self.removes


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A cell and its dot, whose actor is named by its place in a list."""

    place: Annotated[int, Meta(ge=0)]
    number: Annotated[int, Meta(ge=1)]
    kind: int
    value: bytes
    stamp: Annotated[int, Meta(ge=0)]
    expires_ms: Annotated[int, Meta(ge=0)] = 0
    element: bytes = b""
    fields: tuple[str, ...] = ()

    @property
    def cell(self) -> Cell:
        return Cell(self.fields, self.kind, self.element, self.value, self.stamp, self.expires_ms)


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Packed).decode


class Gap(Exception):
    """A change came before those that its actor made earlier."""


Kept = bytes | dict[Dot, Cell]
"""What stands at a key: one cell, packed as a `Cells` does it, or several."""


class Cells:
    """A shard's cells by key, and which dots it has seen.

    `latest` is the highest stamp of any cell that was ever put.
    """

    __slots__ = ("_actors", "_free", "_keys", "_places", "context", "latest")

    context_type: ClassVar[type[Context]] = Context

    def __init__(self) -> None:
        self.context = self.context_type()
        self.latest = 0
        self._keys: dict[str, Kept] = SortedDict()
        # The actors that packed cells name by their places here, and places that nothing names.
        self._actors: list[Actor] = []
        self._places: dict[Actor, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        """How many keys have a value."""
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cells):
            return NotImplemented
        return (
            self.context == other.context
            and len(self) == len(other)
            and all(self.at(key) == other.at(key) for key in self._keys)
        )

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[str]:
        """The keys, in order."""
        return iter(self._keys)

    def keys_from(self, begin: str) -> Iterator[str]:
        """The keys that are not less than `begin`, in order; nothing may change meanwhile."""
        found: Iterator[str] = self._keys.irange(begin)  # type: ignore[attr-defined]
        return found

    def at(self, key: str) -> Mapping[Dot, Cell]:
        """The live cells of a key; empty where there is none."""
        kept = self._keys.get(key)
        if kept is None:
            return _NOTHING
        return dict((self.unpacked(kept),)) if isinstance(kept, bytes) else kept

    def items(self) -> Iterator[tuple[str, Dot, Cell]]:
        """All live cells, in the order of their keys."""
        for key, kept in self._keys.items():
            if isinstance(kept, bytes):
                yield (key, *self.unpacked(kept))
            else:
                for dot, cell in kept.items():
                    yield key, dot, cell

    def expiring(self) -> list[str]:
        """Keys of which a cell may expire."""
        return [
            key
            for key, kept in dict.items(self._keys)
            if (kept[0] != _PLAIN if isinstance(kept, bytes) else _may_expire(kept))
        ]

    def commit(self, actor: Actor, changes: Iterable[Change]) -> list[tuple[Dot, Change]]:
        """Make changes of one's own: each gets the actor's next dot."""
        made = []
        for change in changes:
            dot = (actor, self.context.seen_of(actor) + 1)
            self.apply(dot, change)
            made.append((dot, change))
        return made

    def apply(self, dot: Dot, change: Change) -> bool:
        """Take one change. False if it was seen before.

        Raises:
            Gap: an earlier one of its actor was not seen, or of a life that it ends not just all.
                Nothing changed.
        """
        missing = dot[1] - self.context.seen_of(dot[0])
        if missing < 1:
            return False
        if missing > 1 or not all(map(self.context.has_all_of, change.ends)):
            raise Gap
        if change.key:
            self._change(dot, change)
        for last in change.ends:
            self.context.end(last)
        self.context.see(dot)
        return True

    def _change(self, dot: Dot, change: Change) -> None:
        cells = self._opened(change.key)
        for removed in change.removes:
            if cells.pop(removed, None) is None and not self.context.has_seen(removed):
                self.context.remove_early(removed, change.key)
        if change.cell is not None and not self.context.removed(dot, change.key):
            cells[dot] = change.cell
            self.latest = max(self.latest, change.cell.stamp)
        self._put(change.key, cells)

    def hold(self, key: str, dot: Dot, cell: Cell) -> None:
        """Put a cell whose dot was seen: a state that is read from a disk or a stream."""
        assert self.context.has_seen(dot)
        cells = self._opened(key)
        cells[dot] = cell
        self.latest = max(self.latest, cell.stamp)
        self._put(key, cells)

    def join(self, other: Cells) -> set[str]:
        """Take the whole of another replica. Returns the keys whose cells changed."""
        changed = set()
        places = [self._place(actor) if actor else 0 for actor in other._actors]
        for key, theirs in dict.items(other._keys):
            mine = self._keys.get(key)
            if isinstance(theirs, bytes) and not isinstance(mine, dict):
                one = _unpack(theirs)
                packed = _repacked(one, places[one.place])
                if packed == mine:
                    continue
                if mine is None:
                    if not self.context.removed((other._actors[one.place], one.number), key):
                        self._keys[key] = packed
                        changed.add(key)
                    continue
            if self._join_key(key, other):
                changed.add(key)
        for key in [key for key in self._keys if key not in other._keys]:
            if self._join_key(key, other):
                changed.add(key)
        self.context.join(other.context)
        self.latest = max(self.latest, other.latest)
        return changed

    def _join_key(self, key: str, other: Cells) -> bool:
        mine, theirs = self.at(key), other.at(key)
        kept = {
            dot: cell
            for dot, cell in mine.items()
            if dot in theirs or not other.context.removed(dot, key)
        }
        for dot, cell in theirs.items():
            if dot not in mine and not self.context.removed(dot, key):
                kept[dot] = cell
        if kept == mine:
            return False
        self._put(key, kept)
        return True

    # ---- as it is kept ----------------------------------------------------------------------

    def kept(self) -> tuple[list[Actor], list[tuple[str, bytes]], list[tuple[str, Dot, Cell]]]:
        """What is there now, of which nothing changes later: a copy that costs little.

        Returns:
            The actors, by whose places packed cells name them; keys with one cell, packed; the
            cells of the others. Both in the order of their keys.
        """
        lone: list[tuple[str, bytes]] = []
        several: list[tuple[str, Dot, Cell]] = []
        for key, kept in self._keys.items():
            if isinstance(kept, bytes):
                lone.append((key, kept))
            else:
                several += ((key, dot, cell) for dot, cell in kept.items())
        return list(self._actors), lone, several

    def restore(self, actors: Sequence[Actor], lone: Sequence[tuple[str, bytes]]) -> list[Cell]:
        """Take what `kept` gave, into what is empty; the context is there already.

        Returns:
            Of the cells of each make one, for the caller to judge.

        Raises:
            MalformedMessage: a packed cell is none, or its dot was not seen.
        """
        assert not self._keys
        seen = [self.context.seen_of(actor) for actor in actors]
        used = set()
        makes: dict[tuple[int, int, int], Cell] = {}
        for _, packed in lone:
            one: _Packed = decode_struct(_Packed, packed)
            if one.place >= len(seen) or one.number > seen[one.place]:
                raise MalformedMessage("a packed cell whose change was not seen")
            used.add(one.place)
            if one.stamp > self.latest:
                self.latest = one.stamp
            make = (one.kind, len(one.element) and 1, len(one.fields))
            if make not in makes:
                makes[make] = one.cell
        self._keys.update(lone)
        self._actors = [one if n in used else Actor(b"") for n, one in enumerate(actors)]
        self._places = {one: place for place, one in enumerate(self._actors) if one}
        self._free = [place for place, one in enumerate(self._actors) if not one]
        return list(makes.values())

    def unpacked(self, packed: bytes) -> tuple[Dot, Cell]:
        """A cell as it was put, and its dot."""
        one = _unpack(packed)
        return (self._actors[one.place], one.number), one.cell

    def _opened(self, key: str) -> dict[Dot, Cell]:
        """The cells of a key, to be changed and put back."""
        kept = self._keys.get(key)
        if isinstance(kept, bytes):
            return dict((self.unpacked(kept),))
        return {} if kept is None else kept

    def _put(self, key: str, cells: dict[Dot, Cell]) -> None:
        if len(cells) == 1:
            [(dot, cell)] = cells.items()
            self._keys[key] = self._packed(dot, cell)
        elif cells:
            self._keys[key] = cells
        else:
            self._keys.pop(key, None)

    def _packed(self, dot: Dot, cell: Cell) -> bytes:
        plain = (self._place(dot[0]), dot[1], cell.kind, cell.value, cell.stamp)
        if cell.fields or cell.element or cell.expires_ms:
            return _pack((*plain, cell.expires_ms, cell.element, cell.fields))
        return _pack(plain)

    def _place(self, actor: Actor) -> int:
        place = self._places.get(actor)
        if place is None:
            if self._free:
                place = self._free.pop()
                self._actors[place] = actor
            else:
                place = len(self._actors)
                self._actors.append(actor)
            self._places[actor] = place
        return place


def _repacked(one: _Packed, place: int) -> bytes:
    plain = (place, one.number, one.kind, one.value, one.stamp)
    if one.fields or one.element or one.expires_ms:
        return _pack((*plain, one.expires_ms, one.element, one.fields))
    return _pack(plain)


def _may_expire(cells: Mapping[Dot, Cell]) -> bool:
    return any(cell.expires_ms for cell in cells.values())
