"""Counters: each actor keeps one cell with its own sum, which only it replaces.

The value is the sum of all. Whoever removes the counter removes the sums that it saw; an actor
that counts at the same time, unseen, brings its whole sum back (as in riak_dt's `emcntr`): what
was counted is never lost.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.errors import BadRequest, MalformedMessage
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import Actor
from swarmd.state.crdt.types.kinds import Edit, Kind, Live, Put
from swarmd.wire.codec import pack, unpack

# An actor's own sum, and so one step: what msgpack and every client's JSON library can carry.
SUM_MAX: Final = 2**53 - 1


def add(live: Live, actor: Actor, by: int, kind: Kind) -> Edit:
    """Raises BadRequest: a step that the kind has not, or a sum that is out of range."""
    if kind is Kind.TALLY and by < 0:
        raise BadRequest("this counter only grows: give a step of 0 or more; nothing changed")
    mine = tuple(dot for dot in live if dot[0] == actor)
    total = sum(_sum_of(live[dot]) for dot in mine) + by
    if not -SUM_MAX <= total <= SUM_MAX:
        raise BadRequest(f"what one node counts stays within {SUM_MAX}: nothing changed")
    return Edit(Put(b"", pack(total)), mine)


def read(live: Live) -> int:
    return sum(map(_sum_of, live.values()))


def _sum_of(cell: Cell) -> int:
    """0 for what no build of swarmd writes."""
    try:
        value = unpack(cell.value)
    except MalformedMessage:
        return 0
    if type(value) is not int or not -SUM_MAX <= value <= SUM_MAX:
        return 0
    return max(0, value) if cell.kind is Kind.TALLY else value
