"""Why a key holds what it holds: of each of its cells, whether it counts, and by which rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from swarmd.base.errors import MalformedMessage
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import Dot
from swarmd.state.crdt.types import documents
from swarmd.state.crdt.types.kinds import Kind, Live, later
from swarmd.state.crdt.types.registers import winner
from swarmd.state.crdt.types.values import kind_at, kind_of
from swarmd.wire.codec import unpack


class Verdict(NamedTuple):
    dot: Dot
    cell: Cell
    counts: bool
    why: str


def verdicts(live: Live) -> list[Verdict]:
    """Of all cells of a key, the latest first."""
    return sorted(_at(live, 0), key=lambda one: later((one.dot, one.cell)), reverse=True)


def _at(live: Live, depth: int) -> Iterator[Verdict]:
    kind = kind_of(live, depth)
    here = {dot: cell for dot, cell in live.items() if kind_at(cell, depth) is kind}
    for dot, cell in live.items():
        if dot not in here and kind is not None:
            why = f"of two kinds that were put here at once the {kind.name.lower()} counts"
            yield Verdict(dot, cell, counts=False, why=why)
    if kind is not Kind.MAP:
        yield from _of_kind(kind, here)
        return
    fields: dict[str, dict[Dot, Cell]] = {}
    for dot, cell in here.items():
        fields.setdefault(cell.fields[depth], {})[dot] = cell
    for cells in fields.values():
        yield from _at(cells, depth + 1)


def _of_kind(kind: Kind | None, live: Live) -> Iterator[Verdict]:
    if kind is Kind.REGISTER:
        yield from _of_register(live)
        return
    added = Counter(cell.element for cell in live.values())
    for dot, cell in live.items():
        if not _is_readable(cell):
            yield Verdict(dot, cell, counts=False, why="no build of swarmd writes such bytes")
            continue
        match kind:
            case Kind.MULTI if len(live) > 1:
                why = "none of these writes had seen another: all stand"
            case Kind.SET if added[cell.element] > 1:
                why = "added by several at once: each alone keeps it in"
            case Kind.SET:
                why = "added, and not removed by anybody who had seen that"
            case Kind.TALLY | Kind.COUNTER:
                why = "what this life of the node has counted: the value is the sum of all"
            case Kind.TEXT | Kind.LIST:
                why = "edits are put together: each is in the document"
            case _:
                why = "no other write stands beside it"
        yield Verdict(dot, cell, counts=True, why=why)


def _of_register(live: Live) -> Iterator[Verdict]:
    best = winner(live)
    if best is None:
        return
    stamps = Counter(cell.stamp for cell in live.values())
    for dot, cell in live.items():
        if dot == best[0]:
            why = "no other write stands beside it"
            if len(live) > 1:
                why = "of writes that had not seen each other, its stamp is the latest"
            if stamps[cell.stamp] > 1:
                why = "of writes with equal stamps, its dot is the greatest"
            if not _is_readable(cell):
                why = "the latest, but no build of swarmd writes such bytes"
        elif cell.stamp == best[1].stamp:
            why = "its stamp equals the latest one's, and its dot is less"
        else:
            why = "its stamp is earlier, and its writer had not seen the latest write"
        yield Verdict(dot, cell, counts=dot == best[0] and _is_readable(cell), why=why)


def _is_readable(cell: Cell) -> bool:
    try:
        if cell.kind in (Kind.TEXT, Kind.LIST):
            documents.summary(cell)
        else:
            unpack(cell.element if cell.kind == Kind.SET else cell.value)
    except MalformedMessage:
        return False
    return True
