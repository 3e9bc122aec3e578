"""When a node's earlier lives in a shard are over: once every member has seen all of them. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect
from swarmd.state.crdt.cells import Change
from swarmd.state.crdt.dots import Dot, node_of
from swarmd.state.crdt.messages import OVER_MAX, REMOVES_MAX, Shard
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.replica import Replica
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.writing import Writing

# How often a node looks whether lives of its own can be ended. What they sent has arrived by then,
# and a disk that was taken for lost has been found.
END_LIVES_S: Final = 86_400.0
# It does so where it writes anyway, or where there are so many: each end is a change, too.
_LIVES_MIN: Final = 4


@dataclass
class _Ending:
    """Earlier lives of this node in a shard, by their last dots, and who may not have seen all."""

    lives: tuple[Dot, ...]
    missing: set[NodeId]


class Lives:
    """The earlier lives of one node."""

    def __init__(self, replica: Replica, writing: Writing, end_lives_s: float) -> None:
        self._replica, self._writing = replica, writing
        self.end_lives_s = end_lives_s
        self._due_at: float | None = None
        self._ending: dict[Shard, _Ending] = {}

    def heard(self, peer: NodeId, has: Collection[Shard], differing: Collection[Shard]) -> None:
        """A member has told what it has, and what of that is not the same here."""
        for name, ending in self._ending.items():
            # Who holds nothing of a shard that not all hold has seen nothing else of it, either.
            if (name in has and name not in differing) or (name not in has and copies_of(name[0])):
                ending.missing.discard(peer)

    def forget(self, name: Shard) -> None:
        self._ending.pop(name, None)

    def forget_partial(self) -> None:
        """Others hold shards now than when members told what they have."""
        for name in [one for one in self._ending if copies_of(one[0])]:
            del self._ending[name]

    def end(self, now: float) -> list[Effect]:
        """Now and then, end earlier lives of this node, where everyone has seen all of them."""
        if self._replica.me not in self._replica.everyone:
            return []  # It does not know yet who everyone is.
        if self._due_at is not None and now < self._due_at:
            return []
        self._due_at = now + self.end_lives_s
        effects: list[Effect] = []
        for shard in self._replica.shards.values():
            effects += self._end_in(shard)
        return effects

    def _end_in(self, shard: ShardState) -> list[Effect]:
        replica, vector = self._replica, shard.cells.context.vector
        own = replica.actor_in(shard.name)
        lives = tuple(
            sorted(
                (actor, number)
                for actor, number in vector.items()
                if actor != own and node_of(actor) == replica.me
            )
        )
        ending = self._ending.pop(shard.name, None)
        if not replica.holding.serves(shard.name):
            return []
        if not lives or (own not in vector and len(lives) < _LIVES_MIN):
            return []
        if ending is None or ending.lives != lives:
            self._ending[shard.name] = _Ending(lives, set(replica.everyone - {replica.me}))
        elif not ending.missing & replica.everyone:
            room = OVER_MAX - len(shard.cells.context.over)
            if room > 0:
                over = Change("", None, lives[: min(room, REMOVES_MAX)])
                return self._writing.commit(shard, over)
        else:
            self._ending[shard.name] = ending
        return []
