"""The table of members: what is known of each, bounded, with a digest that tells views apart."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, MutableMapping, Sequence
from typing import Final

from swarmd.base.ids import NodeId, digest
from swarmd.base.limits import MEMBERS_MAX
from swarmd.base.rng import Rng
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState, Meta, Rumour
from swarmd.mesh.swim.suspicion import Suspicion

# Dead and left members are remembered, the most recent of each: the dead so that partitions
# heal, the left so that late news does not bring them back.
DEAD_MAX: Final = 1_024
_VIEW_BYTES: Final = 8
# A pool of this many is looked at as a whole.
_SCAN_MAX: Final = 32
PRESENT: Final = (MemberState.ALIVE, MemberState.SUSPECT)


class Record:
    """What is known of one member. Only `MemberTable.change` alters one, and it alters a copy.

    `alive` is its own newest word, with its meta; `evidence` is the rumour that put it into a
    state other than alive. `may_be`: the roles it was admitted with, whatever its word says;
    None where nobody knows better than itself.
    """

    __slots__ = (
        "alive",
        "changed_at",
        "evidence",
        "excused_incarnation",
        "excused_until",
        "incarnation",
        "may_be",
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
        self.excused_incarnation = -1
        self.take_alive(alive)

    @property
    def node_id(self) -> NodeId:
        return self.alive.subject

    def take_alive(self, alive: Rumour) -> None:
        self.alive = alive
        self.incarnation = alive.incarnation

    @property
    def meta(self) -> Meta:
        meta = self.alive.meta
        assert meta is not None, "decoded with every rumour of this kind"
        return meta

    def copy(self) -> Record:
        new = type(self).__new__(type(self))
        new.alive, new.incarnation, new.may_be = self.alive, self.incarnation, self.may_be
        new.state, new.evidence, new.suspicion = self.state, self.evidence, self.suspicion
        new.changed_at, new.excused_until = self.changed_at, self.excused_until
        new.excused_incarnation = self.excused_incarnation
        return new

    def excuse(self, until: float) -> None:
        """Let nobody here suspect it before `until`: once in each incarnation, and only in it."""
        if self.excused_incarnation != self.incarnation:
            self.excused_incarnation, self.excused_until = self.incarnation, until

    def is_excused(self, now: float) -> bool:
        return self.excused_incarnation == self.incarnation and now < self.excused_until

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
        self._records: MutableMapping[NodeId, Record] = {}
        self._view = 0
        self._whole = 0
        # Sorted, so that members of one view agree on it.
        self._present: list[NodeId] = []
        # The dead and the left, each in the order in which they became so.
        self._gone: dict[MemberState, dict[NodeId, None]] = {
            MemberState.DEAD: {},
            MemberState.LEFT: {},
        }

    def __len__(self) -> int:
        return len(self._records)

    def get(self, node_id: NodeId) -> Record | None:
        return self._records.get(node_id)

    def records(self) -> list[Record]:
        return list(self._records.values())

    @property
    def present_count(self) -> int:
        """Members alive or suspect, this node included."""
        return len(self._present)

    def present(self) -> Sequence[NodeId]:
        """Members alive or suspect, this node included, sorted. Not to be changed."""
        return self._present

    def dead(self) -> list[NodeId]:
        """The dead, the most recent first."""
        return list(reversed(self._gone[MemberState.DEAD]))

    @property
    def dead_count(self) -> int:
        return len(self._gone[MemberState.DEAD])

    def view_digest(self) -> bytes:
        """Equal where the same members are held present at the same incarnations."""
        return self._view.to_bytes(_VIEW_BYTES, "big")

    def whole_digest(self) -> bytes:
        """Equal where the same members are known, in the same states at the same incarnations."""
        return self._whole.to_bytes(_VIEW_BYTES, "big")

    def full(self) -> bool:
        return len(self._records) >= MEMBERS_MAX

    def add(self, record: Record) -> None:
        """Add a new record."""
        assert record.node_id not in self._records
        self._records[record.node_id] = record
        self._index(record.node_id, record.state)
        self._mark(record)

    def change(self, record: Record, apply: Callable[[Record], None]) -> Record:
        """Put a copy of a record of this table in its place, altered by `apply`; returns it.

        So tables may share records: those of thousands of simulated members do.
        """
        before, node_id = record.state, record.node_id
        new = record.copy()
        apply(new)
        self._records[node_id] = new
        if (before, record.incarnation) != (new.state, new.incarnation):
            self._mark(record)
            self._mark(new)
        if new.state is not before and not (before in PRESENT and new.state in PRESENT):
            self._take_out(node_id, before)
            self._index(node_id, new.state)
        return new

    def remove(self, record: Record) -> None:
        """Remove a record of this table; a probe of it that is under way finds nobody."""
        del self._records[record.node_id]
        self._take_out(record.node_id, record.state)
        self._mark(record)

    def forget_surplus(self, state: MemberState) -> Record | None:
        """Remove the member longest in `state` (dead or left) if there are too many of them."""
        held = self._gone[state]
        if len(held) <= DEAD_MAX:
            return None
        oldest = self._records[next(iter(held))]
        self.remove(oldest)
        return oldest

    # ---- choosing ---------------------------------------------------------------------

    def probed_in(self, turn: int) -> Record | None:
        """Whom this node probes in a turn; None if it is alone.

        In each turn all members are shifted against each other by one number that follows from
        the turn: where views agree each is probed by exactly one, and by another in the next turn.
        Drawn at random, one in five would be asked by nobody for one and a half intervals (SWIM,
        section 4.3, bounds the time by a round of all members instead).
        """
        count = len(self._present)
        mine = bisect_left(self._present, self._me)
        if count < 2 or self._present[mine] != self._me:
            return None
        drawn = int.from_bytes(digest(b"turn", turn.to_bytes(8, "big"))[:_VIEW_BYTES], "big")
        return self._records[self._present[(mine + 1 + drawn % (count - 1)) % count]]

    def pick_present(self, count: int) -> list[NodeId]:
        """Up to `count` random other members, alive or suspect."""
        return self._sample(self._present, count, lambda node_id: node_id != self._me)

    def pick_alive(self, count: int, *, but: NodeId | None = None) -> list[NodeId]:
        """Up to `count` random other members that are held alive, but for one."""
        records, alive = self._records, MemberState.ALIVE
        return self._sample(
            self._present,
            count,
            lambda n: n != self._me and n != but and records[n].state is alive,
        )

    def pick_hearers(self, count: int, dead_since: float) -> list[NodeId]:
        """Up to `count` random others that are present, or died later than `dead_since`."""
        dead: list[NodeId] = []
        for node_id in reversed(self._gone[MemberState.DEAD]):
            if self._records[node_id].changed_at <= dead_since:
                break
            dead.append(node_id)
        pool = [*self._present, *dead] if dead else self._present
        return self._sample(pool, count, lambda node_id: node_id != self._me)

    def _sample(
        self, pool: Sequence[NodeId], count: int, wanted: Callable[[NodeId], bool]
    ) -> list[NodeId]:
        """Drawn one by one from a large pool: to look at all of it would cost more than a packet.

        From a large pool in which few are wanted it may return fewer than there are.
        """
        if len(pool) <= _SCAN_MAX + 4 * count:
            fit = [node_id for node_id in pool if wanted(node_id)]
            return fit if len(fit) <= count else self._rng.sample(fit, count)
        chosen: list[NodeId] = []
        for _ in range(8 * count):
            node_id = pool[self._rng.randrange(len(pool))]
            if node_id not in chosen and wanted(node_id):
                chosen.append(node_id)
                if len(chosen) == count:
                    break
        return chosen

    # ---- keeping the indexes --------------------------------------------------------------

    def _index(self, node_id: NodeId, state: MemberState) -> None:
        if state in PRESENT:
            insort(self._present, node_id)
        else:
            self._gone[state][node_id] = None

    def _take_out(self, node_id: NodeId, state: MemberState) -> None:
        if state in PRESENT:
            del self._present[bisect_left(self._present, node_id)]
        else:
            del self._gone[state][node_id]

    def _mark(self, record: Record) -> None:
        """Put a member into the digests, or take it out again: a part of its hash for its state."""
        mark = digest(record.node_id, record.incarnation.to_bytes(8, "big"))
        if record.state in PRESENT:
            self._view ^= int.from_bytes(mark[:_VIEW_BYTES], "big")
        begin = _VIEW_BYTES * (record.state - 1)
        self._whole ^= int.from_bytes(mark[begin : begin + _VIEW_BYTES], "big")
