"""The table of members: what is known of each, bounded, with a digest that tells views apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swarmd.base.ids import NodeId, digest
from swarmd.base.limits import MEMBERS_MAX
from swarmd.base.rng import Rng
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState, Meta, Rumour, decode_meta
from swarmd.mesh.swim.suspicion import Suspicion

# Dead and left members are remembered, the most recent of each: the dead so that partitions
# heal, the left so that late news does not bring them back.
DEAD_MAX: Final = 1_024
_VIEW_BYTES: Final = 8
PRESENT: Final = (MemberState.ALIVE, MemberState.SUSPECT)


class Record:
    """What is known of one member.

    `alive` is its own newest word, with its meta; `evidence` is the rumour that put it into a
    state other than alive. `may_be`: the roles it was admitted with, whatever its word says;
    None where nobody knows better than itself.
    """

    __slots__ = (
        "alive",
        "changed_at",
        "evidence",
        "excused_until",
        "incarnation",
        "may_be",
        "meta",
        "state",
        "suspicion",
    )

    def __init__(self, alive: Rumour, now: float, may_be: tuple[str, ...] | None = None) -> None:
        self.may_be = may_be
        self.state = MemberState.ALIVE
        self.changed_at = now
        self.evidence: Rumour | None = None
        self.suspicion: Suspicion | None = None
        self.excused_until = 0.0
        self.take_alive(alive)

    @property
    def node_id(self) -> NodeId:
        return self.alive.subject

    def take_alive(self, alive: Rumour) -> None:
        self.alive = alive
        self.meta: Meta = decode_meta(alive.body)
        self.incarnation = alive.incarnation

    def rumours(self) -> list[Rumour]:
        """What proves this record to others, in the order in which they must hear it."""
        return [self.alive] if self.evidence is None else [self.alive, self.evidence]

    def view(self) -> Member:
        meta = self.meta
        return Member(
            node_id=self.node_id,
            name=meta.name,
            addresses=meta.addresses,
            state=self.state,
            incarnation=self.incarnation,
            roles=self._roles(),
            version=meta.version,
            tags=meta.tags,
            changed_at=self.changed_at,
            protocol=meta.protocol,
        )

    def _roles(self) -> tuple[str, ...]:
        return self.meta.roles if self.may_be is None else self.may_be


class MemberTable:
    """All records, this node's included. Iteration is in the order of arrival, never of hashes."""

    def __init__(self, me: NodeId, rng: Rng) -> None:
        self._me = me
        self._rng = rng
        self._records: dict[NodeId, Record] = {}
        self._present = 0
        self._view = 0
        self._probe_order: list[NodeId] = []

    def __len__(self) -> int:
        return len(self._records)

    def get(self, node_id: NodeId) -> Record | None:
        return self._records.get(node_id)

    def records(self) -> list[Record]:
        return list(self._records.values())

    @property
    def present_count(self) -> int:
        """Members alive or suspect, this node included."""
        return self._present

    def view_digest(self) -> bytes:
        """Equal where the same members are held present at the same incarnations."""
        return self._view.to_bytes(_VIEW_BYTES, "big")

    def full(self) -> bool:
        return len(self._records) >= MEMBERS_MAX

    def add(self, record: Record) -> None:
        """Add a new record; a member to probe takes a random place in the current round."""
        assert record.node_id not in self._records
        self._records[record.node_id] = record
        self._count(record, 1)
        if record.state in PRESENT and record.node_id != self._me:
            place = self._rng.randint(0, len(self._probe_order))
            self._probe_order.insert(place, record.node_id)

    def change(self, record: Record, apply: Callable[[Record], None]) -> None:
        """Run `apply` on a record of this table, keeping count and digest right."""
        self._count(record, -1)
        apply(record)
        self._count(record, 1)

    def remove(self, record: Record) -> None:
        """Remove a record of this table; a probe of it that is under way finds nobody."""
        del self._records[record.node_id]
        self._count(record, -1)

    def forget_surplus(self, state: MemberState) -> Record | None:
        """Remove the member longest in `state` (dead or left) if there are too many of them."""
        held = [record for record in self._records.values() if record.state is state]
        if len(held) <= DEAD_MAX:
            return None
        oldest = min(held, key=lambda record: record.changed_at)
        del self._records[oldest.node_id]
        return oldest

    def next_to_probe(self) -> Record | None:
        """Round-robin over a random order, drawn anew after each round (SWIM, section 4.3)."""
        for _ in range(2):
            while self._probe_order:
                record = self._records.get(self._probe_order.pop())
                if record is not None and record.state in PRESENT:
                    return record
            self._probe_order = [
                node_id
                for node_id, record in self._records.items()
                if record.state in PRESENT and node_id != self._me
            ]
            self._rng.shuffle(self._probe_order)
        return None

    def pick(self, count: int, wanted: Callable[[Record], bool]) -> list[NodeId]:
        """Up to `count` random other members for which `wanted` holds."""
        fit = [
            node_id
            for node_id, record in self._records.items()
            if node_id != self._me and wanted(record)
        ]
        return fit if len(fit) <= count else self._rng.sample(fit, count)

    def _count(self, record: Record, by: int) -> None:
        if record.state in PRESENT:
            self._present += by
            mark = digest(record.node_id, record.incarnation.to_bytes(8, "big"))
            self._view ^= int.from_bytes(mark[:_VIEW_BYTES], "big")
