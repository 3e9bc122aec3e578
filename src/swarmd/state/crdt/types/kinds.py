"""The kinds of values, and what a type does."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import Dot

Live = Mapping[Dot, Cell]


class Kind(IntEnum):
    """Never renumbered: on disks, and of two kinds that were put at one place at once, the lower
    one counts.
    """

    REGISTER = 1
    """The latest write counts (LWW)."""
    MULTI = 2
    """Writes of which none saw the other stand side by side (MVR)."""
    TALLY = 3
    """A count that only grows (G-counter)."""
    COUNTER = 4
    """A count that goes both ways (PN-counter)."""
    SET = 5
    """An element that is added and removed at once is in (add-wins OR-set)."""
    MAP = 6
    """Fields of any of these; a field that is removed and changed at once is in."""
    TEXT = 7
    """Characters in an order; what several put and delete at once is all put and deleted."""
    LIST = 8
    """Elements in an order, as the characters of a text are."""


class Put(NamedTuple):
    """A cell to be put. `fields`, stamp and expiry are the caller's."""

    element: bytes
    value: bytes


class Edit(NamedTuple):
    """What an operation comes to on this replica: at most one cell, and dots to remove."""

    put: Put | None
    removes: tuple[Dot, ...]

    @property
    def is_nothing(self) -> bool:
        return self.put is None and not self.removes


def later(item: tuple[Dot, Cell]) -> tuple[int, Dot]:
    """The order of writes, the same everywhere."""
    dot, cell = item
    return cell.stamp, dot
