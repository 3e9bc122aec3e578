"""The state of a shard: cells, each put by one dot. Every type of the store is a set of them.

A change puts at most one cell and removes cells that its writer saw. So one rule joins all types
(delta-state CRDTs over dot stores): a cell stays where both have it, or where one has it and the
other has not seen its dot. What the cells of a key mean is `types`' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from swarmd.state.crdt.dots import Actor, Context, Dot

FIELDS_MAX: Final = 16
_NOTHING: Final[Mapping[Dot, Cell]] = {}


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


class Gap(Exception):
    """A change came before those that its actor made earlier."""


class Cells:
    """A shard's cells by key, and which dots it has seen."""

    __slots__ = ("_keys", "context")

    context_type: ClassVar[type[Context]] = Context

    def __init__(self) -> None:
        self.context = self.context_type()
        self._keys: dict[str, dict[Dot, Cell]] = {}

    def __len__(self) -> int:
        """How many keys have a value."""
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cells):
            return NotImplemented
        return self.context == other.context and self._keys == other._keys

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[str]:
        """The keys, in no order."""
        return iter(self._keys)

    def at(self, key: str) -> Mapping[Dot, Cell]:
        """The live cells of a key; empty where there is none."""
        return self._keys.get(key, _NOTHING)

    def items(self) -> Iterator[tuple[str, Dot, Cell]]:
        for key, cells in self._keys.items():
            for dot, cell in cells.items():
                yield key, dot, cell

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
            Gap: an earlier one of its actor was not seen, or one of a life that it ends. Nothing
                changed.
        """
        missing = dot[1] - self.context.seen_of(dot[0])
        if missing < 1:
            return False
        if missing > 1 or not all(map(self.context.has_seen, change.ends)):
            raise Gap
        if change.key:
            self._change(dot, change)
        for actor, _ in change.ends:
            self.context.end(actor)
        self.context.see(dot)
        return True

    def _change(self, dot: Dot, change: Change) -> None:
        cells = self._keys.get(change.key, {})
        for removed in change.removes:
            if cells.pop(removed, None) is None and not self.context.has_seen(removed):
                self.context.remove_early(removed, change.key)
        if change.cell is not None and not self.context.removed(dot, change.key):
            cells[dot] = change.cell
        self._put(change.key, cells)

    def hold(self, key: str, dot: Dot, cell: Cell) -> None:
        """Put a cell whose dot was seen: a state that is read from a disk or a stream."""
        assert self.context.has_seen(dot)
        self._keys.setdefault(key, {})[dot] = cell

    def join(self, other: Cells) -> set[str]:
        """Take the whole of another replica. Returns the keys whose cells changed."""
        changed = set()
        for key in [*other._keys, *(key for key in self._keys if key not in other._keys)]:
            mine, theirs = self._keys.get(key, {}), other._keys.get(key, {})
            kept = {
                dot: cell
                for dot, cell in mine.items()
                if dot in theirs or not other.context.removed(dot, key)
            }
            for dot, cell in theirs.items():
                if dot not in mine and not self.context.removed(dot, key):
                    kept[dot] = cell
            if kept != mine:
                changed.add(key)
                self._put(key, kept)
        self.context.join(other.context)
        return changed

    def _put(self, key: str, cells: dict[Dot, Cell]) -> None:
        if cells:
            self._keys[key] = cells
        else:
            self._keys.pop(key, None)
