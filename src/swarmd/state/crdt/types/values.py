"""The value of a key, and what an operation on it changes.

Where replicas put two kinds at one place before they saw each other, the lower kind counts there
and the cells of the other stay, unread, until somebody removes the key or field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from swarmd.base.errors import BadRequest, NotFound, WrongType
from swarmd.state.crdt.cells import FIELDS_MAX, Cell, Change
from swarmd.state.crdt.dots import Actor, Dot
from swarmd.state.crdt.types import counters, documents, registers, sets
from swarmd.state.crdt.types.kinds import Edit, Kind, Live

_READERS: Final[Mapping[Kind, Callable[[Live], Any]]] = {
    Kind.REGISTER: registers.read,
    Kind.MULTI: registers.read_all,
    Kind.TALLY: counters.read,
    Kind.COUNTER: counters.read,
    Kind.SET: sets.read,
    Kind.TEXT: documents.read_text,
    Kind.LIST: documents.read_list,
}
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Assign:
    """Write a register."""

    value: Any
    kind: Kind = Kind.REGISTER


@dataclass(frozen=True, slots=True)
class Count:
    """Change a counter by a step."""

    by: int
    kind: Kind = Kind.COUNTER


@dataclass(frozen=True, slots=True)
class AddTo:
    """Put an element into a set."""

    element: Any
    kind: Kind = Kind.SET


@dataclass(frozen=True, slots=True)
class TakeFrom:
    """Take an element out of a set."""

    element: Any
    kind: Kind = Kind.SET


@dataclass(frozen=True, slots=True)
class EditText:
    """Delete `delete` characters from place `at` on, and put others there."""

    at: int
    insert: str = ""
    delete: int = 0
    kind: Kind = Kind.TEXT


@dataclass(frozen=True, slots=True)
class EditList:
    """Delete `delete` elements from place `at` on, and put others there."""

    at: int
    insert: tuple[Any, ...] = ()
    delete: int = 0
    kind: Kind = Kind.LIST


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the key, or the field, with all that is in it, whatever it is."""


Operation = Assign | Count | AddTo | TakeFrom | EditText | EditList | Remove


def kind_of(live: Live, depth: int = 0) -> Kind | None:
    """What a key is, or a field whose cells these are; None if it is not there."""
    return min((kind_at(cell, depth) for cell in live.values()), default=None)


def read(live: Live, depth: int = 0) -> Any:
    """The value of a key, or of a field whose cells these are.

    Raises:
        NotFound: it has none.
    """
    value = _read(live, depth)
    if value is _ABSENT:
        raise NotFound("there is no such key")
    return value


def change(
    live: Live,
    key: str,
    operation: Operation,
    *,
    actor: Actor,
    stamp: int,
    number: int = 0,
    fields: tuple[str, ...] = (),
    expires_ms: int = 0,
) -> Change | None:
    """What an operation changes here; None if it changes nothing.

    Args:
        live: the cells of `key`.
        fields: the way to a field of a map, and of maps in it.
        stamp: of the hybrid clock, above all that it has seen.
        number: of the dot that the change will have; 0 where the caller does not know it.

    Raises:
        WrongType: the key or a field on the way holds another type.
        BadRequest: the value cannot be carried, or the step not be taken.
    """
    if len(fields) > FIELDS_MAX:
        raise BadRequest(f"maps nest to a depth of {FIELDS_MAX}: nothing changed")
    here = _within(live, key, fields)
    if isinstance(operation, Remove):
        edit = Edit(None, tuple(here))
    else:
        is_kind = kind_of(here, len(fields))
        if is_kind not in (None, operation.kind):
            raise _wrong(key, fields, is_kind, operation.kind)
        same = {d: c for d, c in here.items() if kind_at(c, len(fields)) is operation.kind}
        edit = _edit(same, operation, (actor, number), stamp)
    if edit.is_nothing:
        return None
    if edit.put is None or isinstance(operation, Remove):
        return Change(key, None, edit.removes)
    cell = Cell(fields, operation.kind, edit.put.element, edit.put.value, stamp, expires_ms)
    return Change(key, cell, edit.removes)


def is_sound(cell: Cell) -> bool:
    """False for a cell that no build of swarmd writes, whatever its value is."""
    return (
        cell.kind in _READERS
        and len(cell.fields) <= FIELDS_MAX
        and (cell.kind == Kind.SET or not cell.element)
    )


def _edit(live: Live, operation: Operation, dot: Dot, stamp: int) -> Edit:
    match operation:
        case Assign(value):
            return registers.assign(live, value)
        case Count(by, kind):
            return counters.add(live, dot[0], by, kind)
        case AddTo(element):
            return sets.add(live, element)
        case TakeFrom(element):
            return sets.discard(live, element)
        case EditText(at, insert, delete) | EditList(at, insert, delete):
            return documents.edit(live, dot, stamp, at, delete, insert)
    raise AssertionError(operation)


def kind_at(cell: Cell, depth: int) -> Kind:
    """What a cell is at a depth: of a map, or of the value there."""
    return Kind.MAP if len(cell.fields) > depth else Kind(cell.kind)


def _read(live: Live, depth: int) -> Any:
    kind = kind_of(live, depth)
    if kind is None:
        return _ABSENT
    chosen = {dot: cell for dot, cell in live.items() if kind_at(cell, depth) is kind}
    if kind is not Kind.MAP:
        try:
            return _READERS[kind](chosen)
        except LookupError:
            return _ABSENT
    fields: dict[str, dict[Any, Cell]] = {}
    for dot, cell in chosen.items():
        fields.setdefault(cell.fields[depth], {})[dot] = cell
    found = ((name, _read(cells, depth + 1)) for name, cells in sorted(fields.items()))
    return {name: value for name, value in found if value is not _ABSENT}


def _within(live: Live, key: str, fields: tuple[str, ...]) -> dict[Any, Cell]:
    """The cells of a field. Raises WrongType if something on the way is no map."""
    here = dict(live)
    for depth, name in enumerate(fields):
        kind = kind_of(here, depth)
        if kind not in (None, Kind.MAP):
            raise _wrong(key, fields[:depth], kind, Kind.MAP)
        here = {
            dot: cell
            for dot, cell in here.items()
            if len(cell.fields) > depth and cell.fields[depth] == name
        }
    return here


def _wrong(key: str, fields: tuple[str, ...], is_kind: Kind | None, wanted: Kind) -> WrongType:
    where = " / ".join((key, *fields))
    assert is_kind is not None
    return WrongType(
        f"{where} is a {is_kind.name.lower()} and no {wanted.name.lower()}: nothing changed; "
        "take another key, or remove it first"
    )
