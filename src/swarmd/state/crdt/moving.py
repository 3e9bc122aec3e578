"""How shards that not all hold come to who holds them now, and go from who does no more. Pure.

`holding` says what a node may do; here it asks, hands over and drops. A node that leaves tells all
others, in each turn, and hands over as fast as its shell has it do so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Send
from swarmd.base.rng import Rng
from swarmd.state.crdt.events import Ignored
from swarmd.state.crdt.holding import Round
from swarmd.state.crdt.lives import Lives
from swarmd.state.crdt.messages import HandOver, Leaving, Shard, Taken
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.replica import Replica

# Who comes to hold shards asks so many in a turn what they have.
_ASKED_MAX: Final = 16
HAND_OVERS_MAX: Final = 64
# Who has not said for so long that it leaves is taken to stay: some turns, of which few are lost.
LEAVING_S: Final = 10.0
_ROUND_BITS: Final = 60


class Moving:
    """Args:
    wall_ms: this node's wall clock.
    """

    def __init__(
        self, replica: Replica, lives: Lives, rng: Rng, wall_ms: Callable[[], int]
    ) -> None:
        self._replica, self._lives, self._rng, self._wall_ms = replica, lives, rng, wall_ms
        # Whether anybody has something that not all hold: else nobody is asked for it.
        self.wanted = any(copies_of(bucket) for bucket, _ in replica.shards)
        # The last shard that was asked about, where there were too many for one turn.
        self._asked_up_to: Shard | None = None
        # Grows with all that others fetch, take and have taken of what they are to hold.
        self.progress = 0
        # What each of them fetched last, of each shard: to ask for the same again is no progress.
        self._fetched: dict[tuple[NodeId, Shard], object] = {}
        # Once in a turn others are asked at once: who leaves and stays in turns has nobody flooded.
        self._may_ask_at_once = True

    def partial(self) -> list[Shard]:
        """The shards of which anything was seen here that not all hold."""
        shards = self._replica.shards.values()
        return sorted(
            one.name for one in shards if copies_of(one.name[0]) and one.cells.context.vector
        )

    # ---- who leaves ---------------------------------------------------------------------

    def leave(self) -> list[Effect]:
        """Have others hold what is here; where it leaves already, ask them again."""
        told: list[Effect] = []
        if not self._replica.holding.leaves:
            told = [*self._turn_to(self._replica.holding.leave(leaves=True)), *self._tell()]
        return [*told, *self.hand_over()]

    def stay(self) -> list[Effect]:
        """Hold again what is this node's to hold."""
        if not self._replica.holding.leaves:
            return []
        return [*self._turn_to(self._replica.holding.leave(leaves=False)), *self._tell()]

    def on_leaving(self, peer: NodeId, message: Leaving, now: float) -> list[Effect]:
        until = now + LEAVING_S if message.leaves else None
        return self._turn_to(self._replica.holding.note_leaving(peer, until))

    def turn(self, now: float) -> list[Effect]:
        """Ask for what is missing, hand over what is others', and say whether this node leaves."""
        effects = [*self._turn_to(self._replica.holding.turn(now)), *self.ask_missing()]
        if self._replica.holding.leaves:
            self._replica.pace.quicken()
            effects += self._tell()
        self._may_ask_at_once = True
        return [*effects, *self.hand_over()]

    def _tell(self) -> list[Effect]:
        leaving = Leaving(self._replica.holding.leaves)
        return [Send(peer, leaving) for peer in self._replica.alive]

    def _turn_to(self, moved: bool) -> list[Effect]:
        """Go by who holds what now, if that is something else."""
        if not moved:
            return []
        self._fetched.clear()
        self._replica.pace.quicken()
        self._lives.forget_partial()
        may_ask, self._may_ask_at_once = self._may_ask_at_once, False
        return self.ask_missing() if may_ask else []

    # ---- who comes to hold shards -------------------------------------------------------

    def want(self) -> list[Effect]:
        """Somebody asks for what not all hold."""
        if self.wanted:
            return []
        self.wanted = True
        return self.ask_missing()

    def ask_missing(self) -> list[Effect]:
        """Ask who may have something of the shards that this node has come to hold."""
        missing = self._replica.holding.missing() if self.wanted else []
        if not missing:
            return []
        self._replica.pace.quicken()
        asked = self._rng.sample(missing, min(_ASKED_MAX, len(missing)))
        sums = self._replica.sums(self._wall_ms(), some=True, asks=True)
        return [Send(peer, sums) for peer in asked]

    def kin(self) -> list[NodeId]:
        """Who is alive and holds a shard, too, that not all hold."""
        replica = self._replica
        names = [name for name in replica.shards if copies_of(name[0])]
        return sorted({one for name in names for one in replica.sharing(name)} - {replica.me})

    def on_hand_over(self, peer: NodeId, ask: HandOver, now: float) -> list[Effect]:
        replica, name = self._replica, (ask.bucket, ask.shard)
        if not replica.holding.accepts(name) or not copies_of(name[0]):
            return [Ignored(peer, "not_held")]
        self.wanted = True
        shard = replica.shards.get(name)
        if shard is None and replica.is_one_too_many(name):
            return [Ignored(peer, "too_many_shards")]
        if not (shard.lacks(ask.seen) if shard is not None else ask.seen):
            replica.holding.has_all_of(name, peer, has=bool(ask.seen))
            return [Send(peer, Taken(*name, ask.round))]
        return [] if replica.has_asked(peer, name, now) else replica.ask(peer, name, now)

    # ---- who holds them no more ---------------------------------------------------------

    def hand_over(self) -> list[Effect]:
        """Have holders take what this node holds no more."""
        effects: list[Effect] = []
        for name in self._to_hand_over():
            self._replica.pace.quicken()
            effects += self._hand_over(name)
            if len(effects) >= HAND_OVERS_MAX:
                self._asked_up_to = name
                return effects
        self._asked_up_to = None
        return effects

    def _to_hand_over(self) -> list[Shard]:
        """What is here and others hold, from where the last turn had to end."""
        replica = self._replica
        names = [
            name
            for name in sorted(replica.shards)
            if not replica.holding.accepts(name) and name not in replica.pending
        ]
        begin = bisect_right(names, self._asked_up_to) if self._asked_up_to is not None else 0
        return [*names[begin:], *names[:begin]]

    def _hand_over(self, name: Shard) -> list[Effect]:
        replica, rounds = self._replica, self._replica.holding.rounds
        if replica.holding.may_drop(name):  # Who had not taken it yet lives no more.
            return self.drop(name)
        if name not in rounds:
            rounds[name] = Round(self._rng.getrandbits(_ROUND_BITS) + 1)
        ask = HandOver(*name, rounds[name].number, replica.shards[name].seen())
        lacking = [one for one in replica.sharing(name) if one not in rounds[name].taken]
        return [Send(one, ask) for one in lacking]

    def note_fetch(self, peer: NodeId, name: Shard, at: object) -> None:
        """Another asks for what is here of a shard, from there on."""
        if self._replica.holding.accepts(name) or peer not in self._replica.holding.of(name):
            return
        if self._fetched.get((peer, name)) != at:
            self._fetched[peer, name] = at
            self.progress += 1

    def on_taken(self, peer: NodeId, taken: Taken) -> list[Effect]:
        name = (taken.bucket, taken.shard)
        self.note_fetch(peer, name, "all")
        if not self._replica.holding.taken(name, peer, taken.round):
            return []
        return self.drop(name) if name in self._replica.shards else []

    def drop(self, name: Shard) -> list[Effect]:
        """Hold a shard no more."""
        self.progress += 1
        self._lives.forget(name)
        return self._replica.drop(name)
