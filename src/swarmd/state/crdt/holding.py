"""Which of the shards that not all hold are this node's to hold, take and hand over. Pure.

Each node goes by the members that it knows, so two may differ for a while about who holds what.
Rules:
- Who becomes a holder serves a shard once every living member has told what it has of it, and
  nothing of that is missing here.
- Who is a holder no more keeps a shard until all holders have taken it. It begins a round, asks
  each of them, and each says in that round that it holds the shard and has seen all that it was
  told of: as a holder, which begins no round itself while it is one. Who becomes a holder again
  ends its round, and nothing that comes of it counts. So of all who have a shard there is always
  one that drops it for nobody: of two who ask each other neither answers.
- Who hands over takes nothing any more, so what it asks about is all that it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.state.crdt.messages import SUMS_MAX, Shard
from swarmd.state.crdt.placement import copies_of, holders

_KNOWN_MAX: Final = 2 * SUMS_MAX


@dataclass
class Round:
    """A shard on its way out, and which holders have taken it."""

    number: int
    taken: set[NodeId] = field(default_factory=set)


class Holding:
    """What a node makes of the members it knows."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._members: tuple[NodeId, ...] = (me,)
        self._alive: tuple[NodeId, ...] = ()
        # The members of when it had last heard from all, and from whom it has not since.
        self._settled: tuple[NodeId, ...] = ()
        # Itself at first: it knows nobody yet.
        self._unheard: dict[NodeId, None] = {me: None}
        # Shards of which something is missing here, and who has it.
        self._taking: dict[Shard, dict[NodeId, None]] = {}
        # What was dropped since it had last heard from all.
        self._dropped: set[Shard] = set()
        self._known: dict[tuple[Shard, tuple[NodeId, ...]], tuple[NodeId, ...]] = {}
        self.rounds: dict[Shard, Round] = {}

    # ---- who holds what -----------------------------------------------------------------

    def of(self, name: Shard) -> tuple[NodeId, ...]:
        """Who holds a shard that not all hold, the first to be asked first."""
        return self._among(name, self._members)

    def _among(self, name: Shard, members: tuple[NodeId, ...]) -> tuple[NodeId, ...]:
        found = self._known.get((name, members))
        if found is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            found = self._known[name, members] = holders(name, members, copies_of(name[0]))
        return found

    def accepts(self, name: Shard) -> bool:
        """Whether this node is a holder, of any shard."""
        return not copies_of(name[0]) or self._me in self.of(name)

    def serves(self, name: Shard) -> bool:
        """Whether it is, and has what the others had when it became one."""
        if not copies_of(name[0]):
            return True
        if not self.accepts(name) or name in self._taking or name in self._dropped:
            return False
        return not self._unheard or self._me in self._among(name, self._settled)

    # ---- members --------------------------------------------------------------------------

    def see(self, alive: tuple[NodeId, ...], members: Iterable[NodeId]) -> bool:
        """Go by other members; whether shards may be others' now."""
        before = self._members
        self._alive = alive
        self._members = tuple(sorted({self._me, *members}))
        is_first = self._me in self._unheard
        if self._members != before or is_first:
            self._known.clear()
            self._unheard = dict.fromkeys(alive or ((self._me,) if is_first else ()))
            self.rounds.clear()
        for peer in [one for one in self._unheard if one not in alive and one != self._me]:
            del self._unheard[peer]
        for name in list(self._taking):
            for peer in [one for one in self._taking[name] if one not in alive]:
                self.has_all_of(name, peer)
            if not self.accepts(name):
                self._taking.pop(name, None)
        self._settle()
        return self._members != before

    def go_on_alone(self) -> None:
        """Nobody has turned up since the start: serve what there is."""
        if not self._alive:
            self._unheard.pop(self._me, None)
            self._settle()

    def _settle(self) -> None:
        if not self._unheard:
            self._settled = self._members
            self._dropped.clear()

    def missing(self) -> list[NodeId]:
        """Whom to ask what they have."""
        having = (peer for taking in self._taking.values() for peer in taking)
        return [one for one in dict.fromkeys((*self._unheard, *having)) if one != self._me]

    def heard(self, peer: NodeId, differing: Collection[Shard]) -> None:
        """A member has told what it has, and what of that is not the same here."""
        for name in [one for one in self._taking if one not in differing]:
            self.has_all_of(name, peer)
        if peer not in self._unheard:
            return
        for name in differing:
            if copies_of(name[0]) and self.accepts(name) and not self.serves(name):
                self._taking.setdefault(name, {})[peer] = None
        del self._unheard[peer]
        self._settle()

    def has_all_of(self, name: Shard, peer: NodeId) -> None:
        """Nothing that a member has of a shard is missing here."""
        if name in self._taking:
            self._taking[name].pop(peer, None)
            if not self._taking[name]:
                del self._taking[name]

    def drop(self, name: Shard) -> None:
        """A shard is here no more."""
        self.rounds.pop(name, None)
        self._taking.pop(name, None)
        self._dropped.add(name)

    # ---- handing over -----------------------------------------------------------------------

    def taken(self, name: Shard, peer: NodeId, number: int) -> bool:
        """A holder has taken a shard in a round; whether all have."""
        current = self.rounds.get(name)
        if current is None or current.number != number or self.accepts(name):
            return False
        current.taken.add(peer)
        return current.taken >= set(self.of(name))
