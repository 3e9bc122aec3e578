"""Which of the shards that not all hold are this node's to hold, take and hand over. Pure.

Each node goes by the members that it knows, so two may differ for a while about who holds what.
Rules:
- Who becomes a holder serves a shard once every living member has told what it has of it, and
  nothing of that is missing here. Where it had dropped it, one of those who took it must be among
  these: that they died gives nothing back, as long as they are members.
- Who leaves holds nothing from then on, and nobody who has heard of it takes it for a holder: for
  them shards are on the other members, so that whoever comes next takes them while they are here.
  Who leaves says so again all the time. Who has not heard it for a while, or hears that it stays,
  goes by all members again: to hear of it is a change of members like any other. As these end
  rounds, a member's word changes once in a turn, and what else it says counts at the next: else who
  says both all the time would have no round end well.
- Who is a holder no more keeps a shard until all holders have taken it; who leaves, until all that
  live have, which must be one at least. It begins a round, asks each of them, and each says in
  that round that it holds the shard and has seen all that it was told of: as a holder, which
  begins no round itself while it is one. Who becomes a holder again ends its round, and nothing
  that comes of it counts.
- Who hands over takes nothing any more, so what it asks about is all that it has.

So of all who have a shard there is always one that drops it for nobody. Whoever drops it had the
word of another in a round of its own; who gave it was a holder then, so it could begin a round, and
drop the shard, only later, on a word that was given later still. The last word was given by one
that has the shard. Nothing of this asks that any two know the same members, or of the same that
leave: of two who ask each other, neither answers. To take a member's word later is to have
heard of it later.
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
        # Whether this node leaves; which others do, and until when that is believed.
        self.leaves = False
        self._leaving: dict[NodeId, float] = {}
        # Whose word has changed in this turn, and what these said since, which counts at the next.
        self._changed: set[NodeId] = set()
        self._said: dict[NodeId, float | None] = {}
        # The members that shards are on: those that do not leave.
        self._placed: tuple[NodeId, ...] = (me,)
        self._alive: tuple[NodeId, ...] = ()
        # What shards were on when it had last heard from all, and from whom it has not since.
        self._settled: tuple[NodeId, ...] = ()
        # Itself at first: it knows nobody yet.
        self._unheard: dict[NodeId, None] = {me: None}
        # Shards of which something is missing here, and who has it.
        self._taking: dict[Shard, dict[NodeId, None]] = {}
        # What was dropped, and who took it: until one of these has been caught up with. None are
        # left then, and it is forgotten once all have been heard from.
        self._dropped: dict[Shard, set[NodeId]] = {}
        self._known: dict[tuple[Shard, tuple[NodeId, ...]], tuple[NodeId, ...]] = {}
        self.rounds: dict[Shard, Round] = {}

    # ---- who holds what -----------------------------------------------------------------

    def of(self, name: Shard) -> tuple[NodeId, ...]:
        """Who holds a shard that not all hold, the first to be asked first."""
        return self._among(name, self._placed)

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
        if not self.accepts(name) or name in self._taking or self._dropped.get(name):
            return False
        if not self._unheard:
            return True
        return name not in self._dropped and self._me in self._among(name, self._settled)

    # ---- members --------------------------------------------------------------------------

    def see(self, alive: tuple[NodeId, ...], members: Iterable[NodeId]) -> bool:
        """Go by other members; whether shards may be others' now."""
        self._alive = alive
        self._members = tuple(sorted({self._me, *members}))
        for gone in [one for one in self._leaving if one not in self._members]:
            del self._leaving[gone]
        for gone in [one for one in self._said if one not in self._members]:
            del self._said[gone]
        self._changed.intersection_update(self._members)
        return self._place()

    def leave(self, *, leaves: bool) -> bool:
        """This node leaves, or stays after all; whether shards may be others' now."""
        self.leaves = leaves
        if leaves:  # Others write to its shards from now on, so it has not what they have.
            self._settled = tuple(one for one in self._settled if one != self._me)
        return self._place()

    def note_leaving(self, peer: NodeId, until: float | None) -> bool:
        """Another member leaves, which is believed for so long, or stays (None); as `leave`."""
        if peer not in self._members:
            return False
        self._said.pop(peer, None)
        if (until is not None) != (peer in self._leaving):
            if peer in self._changed:
                self._said[peer] = until
                return False
            self._changed.add(peer)
        self._believe(peer, until)
        return self._place()

    def _believe(self, peer: NodeId, until: float | None) -> None:
        self._leaving.pop(peer, None)
        if until is not None:
            self._leaving[peer] = until

    def turn(self, now: float) -> bool:
        """Take what others said last, and forget who has not said for long that it leaves.

        As `leave`.
        """
        said, self._said = self._said, {}
        self._changed = set(said)
        for peer, until in said.items():
            self._believe(peer, until)
        late = [peer for peer, until in self._leaving.items() if now >= until]
        for peer in late:
            del self._leaving[peer]
        return bool(late or said) and self._place()

    def _place(self) -> bool:
        """See anew what shards are on; whether that is something else."""
        before, is_first = self._placed, self._me in self._unheard
        leaving = {*self._leaving, self._me} if self.leaves else self._leaving
        self._placed = tuple(one for one in self._members if one not in leaving)
        if self._placed != before or is_first:
            self._known.clear()
            self._unheard = dict.fromkeys(self._alive or ((self._me,) if is_first else ()))
            self.rounds.clear()
        for peer in [one for one in self._unheard if one not in self._alive and one != self._me]:
            del self._unheard[peer]
        for name in list(self._taking):
            for peer in [one for one in self._taking[name] if one not in self._alive]:
                self._await_no_more(name, peer)
            if not self.accepts(name):
                self._taking.pop(name, None)
        for took in self._dropped.values():
            took.intersection_update(self._members)
        self._settle()
        return self._placed != before

    def go_on_alone(self) -> None:
        """Nobody has turned up since the start: serve what there is."""
        if not self._alive:
            self._unheard.pop(self._me, None)
            self._settle()

    def _settle(self) -> None:
        if not self._unheard:
            self._settled = self._placed
            for name in [name for name, took in self._dropped.items() if not took]:
                del self._dropped[name]

    def missing(self) -> list[NodeId]:
        """Whom to ask what they have."""
        having = [peer for taking in self._taking.values() for peer in taking]
        for name, took in self._dropped.items():
            if took and self.accepts(name):
                having += [one for one in self._alive if one in took]
        return [one for one in dict.fromkeys((*self._unheard, *having)) if one != self._me]

    def heard(self, peer: NodeId, told: Collection[Shard], differing: Collection[Shard]) -> None:
        """A member has told what it has, and what of that is not the same here."""
        for name in [*self._taking, *(one for one, took in self._dropped.items() if peer in took)]:
            if name not in differing:
                self.has_all_of(name, peer, has=name in told)
        if peer not in self._unheard:
            self._settle()
            return
        for name in differing:
            if copies_of(name[0]) and self.accepts(name) and not self.serves(name):
                self._taking.setdefault(name, {})[peer] = None
        del self._unheard[peer]
        self._settle()

    def has_all_of(self, name: Shard, peer: NodeId, *, has: bool = True) -> None:
        """Nothing that a member has of a shard, if it has any of it, is missing here."""
        self._await_no_more(name, peer)
        took = self._dropped.get(name, set())
        # Before this node is a holder again the other may come to have more.
        if peer in took and self.accepts(name):
            took.discard(peer)
            if has:
                took.clear()

    def _await_no_more(self, name: Shard, peer: NodeId) -> None:
        if name in self._taking:
            self._taking[name].pop(peer, None)
            if not self._taking[name]:
                del self._taking[name]

    def drop(self, name: Shard) -> None:
        """A shard is here no more."""
        ended = self.rounds.pop(name, None)
        self._taking.pop(name, None)
        self._dropped.pop(name, None)
        if len(self._dropped) >= _KNOWN_MAX:
            del self._dropped[next(iter(self._dropped))]
        self._dropped[name] = ended.taken if ended is not None else set()

    # ---- handing over -----------------------------------------------------------------------

    def takers(self, name: Shard) -> tuple[NodeId, ...]:
        """On whose word this node drops a shard that it holds no more.

        Who leaves does not wait for the dead: they have it again from the others.
        """
        found = self.of(name)
        return tuple(one for one in found if one in self._alive) if self.leaves else found

    def taken(self, name: Shard, peer: NodeId, number: int) -> bool:
        """A holder has taken a shard in a round; whether it may be dropped."""
        current = self.rounds.get(name)
        if current is None or current.number != number or self.accepts(name):
            return False
        current.taken.add(peer)
        return self.may_drop(name)

    def may_drop(self, name: Shard) -> bool:
        """Whether all whose word it takes have taken a shard in the present round."""
        current, takers = self.rounds.get(name), self.takers(name)
        if current is None or self.accepts(name):
            return False
        return bool(takers) and current.taken.issuperset(takers)
