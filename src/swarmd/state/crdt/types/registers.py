"""Registers: the latest write counts, or all that did not see each other do.

A write removes what it saw. So several cells stand at once only where writes were concurrent;
the two kinds differ in what is read then (Shapiro et al., "A comprehensive study of convergent and
commutative replicated data types", 2011, 3.2).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from swarmd.base.errors import MalformedMessage
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import Dot
from swarmd.state.crdt.types.kinds import Edit, Live, Put, later
from swarmd.wire.codec import pack, unpack


def assign(live: Live, value: Any) -> Edit:
    """Raises MalformedMessage: msgpack cannot carry the value."""
    return Edit(Put(b"", pack(value)), tuple(live))


def winner(live: Live) -> tuple[Dot, Cell] | None:
    """The latest write; of two at one stamp that of the greater dot. None if there is none."""
    return max(live.items(), key=later, default=None)


def read(live: Live) -> Any:
    """The latest write's value. Raises LookupError: there is none, or no build wrote its bytes."""
    found = winner(live)
    if found is None:
        raise LookupError
    try:
        return unpack(found[1].value)
    except MalformedMessage as error:
        raise LookupError from error


def read_all(live: Live) -> list[Any]:
    """Every value that no other write has seen, in the order of writes."""
    values = []
    for _, cell in sorted(live.items(), key=later):
        with suppress(MalformedMessage):  # A member put bytes there that no build of swarmd writes.
            values.append(unpack(cell.value))
    return values
