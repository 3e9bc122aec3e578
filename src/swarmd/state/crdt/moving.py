"""How shards that not all hold come to who holds them now, and go from who does no more. Pure.

`holding` says what a node may do; here it asks, hands over and drops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Send
from swarmd.base.rng import Rng
from swarmd.state.crdt.events import Ignored
from swarmd.state.crdt.holding import Round
from swarmd.state.crdt.lives import Lives
from swarmd.state.crdt.messages import HandOver, Shard, Taken
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.replica import Replica

# Who comes to hold shards asks so many in a turn what they have.
_ASKED_MAX: Final = 16
HAND_OVERS_MAX: Final = 64
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
        shard = replica.shards.get(name)
        if shard is None and replica.is_one_too_many(name):
            return [Ignored(peer, "too_many_shards")]
        if shard is not None and not shard.lacks(ask.seen):
            return [Send(peer, Taken(*name, ask.round))]
        return replica.ask(peer, name, now)

    # ---- who holds them no more ---------------------------------------------------------

    def hand_over(self) -> list[Effect]:
        """Have holders take what this node holds no more."""
        replica, holding = self._replica, self._replica.holding
        effects: list[Effect] = []
        for name, shard in sorted(replica.shards.items()):
            if holding.accepts(name) or name in replica.pending:
                continue
            replica.pace.quicken()
            current = holding.rounds.get(name)
            if current is None:
                current = holding.rounds[name] = Round(self._rng.getrandbits(_ROUND_BITS) + 1)
            ask = HandOver(*name, current.number, shard.seen())
            effects += [Send(one, ask) for one in replica.sharing(name) if one not in current.taken]
            if len(effects) >= HAND_OVERS_MAX:
                break
        return effects

    def on_taken(self, peer: NodeId, taken: Taken) -> list[Effect]:
        name = (taken.bucket, taken.shard)
        if not self._replica.holding.taken(name, peer, taken.round):
            return []
        return self.drop(name) if name in self._replica.shards else []

    def drop(self, name: Shard) -> list[Effect]:
        """Hold a shard no more."""
        self._lives.forget(name)
        return self._replica.drop(name)
