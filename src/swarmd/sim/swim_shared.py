"""Membership machines that share what they agree on, so that ten thousand fit into one process.

Each is the production machine. Only where it keeps things is different: a decoded rumour is one
object for all who heard it; and members that start out agreed share one table of members, and one
of names, of which each keeps what it has changed since. What is decided is not touched: a run on
these machines is the same, packet by packet, as one on plain ones (`test_swim_scale.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, Final, TypeVar, cast

from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng
from swarmd.mesh.swim.events import Changed
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import MemberTable, Record
from swarmd.mesh.swim.messages import MemberState, Rumour, decode_rumour
from swarmd.mesh.swim.names import Names

Key = TypeVar("Key")
Value = TypeVar("Value")

# Decoded rumours kept for others who hear them; in a burst of news far fewer are about.
_RUMOURS_MAX: Final = 200_000
_rumours: dict[bytes, Rumour] = {}


def decode_once(raw: bytes) -> Rumour:
    """As `decode_rumour`, but the same object for the same bytes."""
    rumour = _rumours.get(raw)
    if rumour is None:
        rumour = decode_rumour(raw)
        if len(_rumours) >= _RUMOURS_MAX:
            _rumours.clear()
        _rumours[rumour.raw] = rumour
    return rumour


class Overlay(MutableMapping[Key, Value]):
    """A dict with a beginning that is shared and never altered: changes are kept apart.

    Order is a dict's: a new value keeps its place, what is removed and added again goes to the
    end. No value is None.
    """

    __slots__ = ("_added", "_base", "_hidden", "_own")

    def __init__(self, base: dict[Key, Value]) -> None:
        self._base = base
        # Every value that is not the base's; the keys of `_added` are not taken from the base.
        self._own: dict[Key, Value] = {}
        self._added: dict[Key, None] = {}
        self._hidden: set[Key] = set()

    def get(self, key: Key, default: Any = None) -> Any:
        value = self._own.get(key)
        if value is not None:
            return value
        if key in self._hidden:
            return default
        return self._base.get(key, default)

    def __getitem__(self, key: Key) -> Value:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return cast(Value, value)

    def __setitem__(self, key: Key, value: Value) -> None:
        if key not in self._base or key in self._hidden:
            self._added[key] = None
        self._own[key] = value

    def __delitem__(self, key: Key) -> None:
        self[key]
        self._own.pop(key, None)
        self._added.pop(key, None)
        if key in self._base:
            self._hidden.add(key)

    def __contains__(self, key: object) -> bool:
        return self.get(cast(Key, key)) is not None

    def __iter__(self) -> Iterator[Key]:
        hidden = self._hidden
        yield from (key for key in self._base if key not in hidden) if hidden else self._base
        yield from self._added

    def __len__(self) -> int:
        return len(self._base) - len(self._hidden) + len(self._added)


class SharedTable(MemberTable):
    """A table whose records, and whose list of who is present, may be those of another one."""

    def __init__(self, me: NodeId, rng: Rng) -> None:
        super().__init__(me, rng)
        self._borrowed = False

    def adopt(self, agreed: MemberTable) -> None:
        """Hold what `agreed` holds. It must not change any more."""
        self._records = Overlay(cast(dict[NodeId, Record], agreed._records))
        self._present, self._borrowed = agreed._present, True
        self._view, self._whole = agreed._view, agreed._whole
        self._gone = {state: dict(held) for state, held in agreed._gone.items()}

    def _index(self, node_id: NodeId, state: MemberState) -> None:
        self._own_present()
        super()._index(node_id, state)

    def _take_out(self, node_id: NodeId, state: MemberState) -> None:
        self._own_present()
        super()._take_out(node_id, state)

    def _own_present(self) -> None:
        if self._borrowed:
            self._present, self._borrowed = list(self._present), False


class SharedLedger(Ledger):
    table_type = SharedTable

    def _decode(self, raw: bytes) -> Rumour:
        return decode_once(raw)


class SharedNames(Names):
    def adopt(self, agreed: Names) -> None:
        """Hold what `agreed` holds. It must not change any more."""
        self._holders = Overlay(cast(dict[str, tuple[NodeId, ...]], agreed._holders))


class SharedMachine(SwimMachine):
    """The production machine over stores that may be shared."""

    ledger_type = SharedLedger
    names_type = SharedNames

    def adopt(self, agreed: Agreed) -> None:
        """Know what all know, and have nothing to tell: long after everybody started."""
        assert isinstance(self._ledger.members, SharedTable)
        assert isinstance(self._names, SharedNames)
        self._ledger.members.adopt(agreed.table)
        self._names.adopt(agreed.names)
        self._ledger.queue.drop(self.me)
        self._ledger.announcements()

    def own_record(self) -> Record:
        return self._ledger.self_record

    def view_digest(self) -> bytes:
        """Equal where the same members are held present at the same incarnations."""
        return self._ledger.members.view_digest()

    def present_count(self) -> int:
        return self._ledger.members.present_count

    def choice(self) -> list[NodeId]:
        """Whose connections this member keeps, by its view; the warm have not chosen yet."""
        return [node_id for _, node_id in self._watching._highest(self.me)]


class Agreed:
    """What members that agree hold: filled as each would fill its own."""

    def __init__(self, records: Sequence[Record], rng: Rng) -> None:
        first = records[0]
        self.table = MemberTable(first.node_id, rng)
        self.names = Names(first.node_id, first.meta.name)
        for record in records:
            self.table.add(record)
            if record is not first:
                from_nowhere = Changed(None, record.view())
                self.names.after_change(from_nowhere)
