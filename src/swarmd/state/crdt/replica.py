"""What a node has of the eventual store: shards, who it is in each, and who shares them. Pure.

Everything here is read and changed by the parts of `machine.ReplicaMachine` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Persist, Send
from swarmd.base.rng import Rng
from swarmd.state.crdt.cells import Change
from swarmd.state.crdt.dots import Actor, actor_of
from swarmd.state.crdt.events import Dropped
from swarmd.state.crdt.holding import Holding
from swarmd.state.crdt.messages import SUMS_MAX, Batch, Shard, ShardSum, Sums, Vector
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.wholes import Arriving

SYNC_S: Final = 1.0
# Where nothing has changed, and nobody came or went, turns become rarer up to this.
SYNC_MAX_S: Final = 5.0
_CALMING: Final = 1.5
# Who was asked for a shard's batches and has sent none for so long is waited for no more.
_FETCH_S: Final = 3.0
_JUST_NOW_S: Final = 0.5
_LIFE_BITS: Final = 64


class Journal(Protocol):
    """Where a state is kept; what was given is durable once the step's Persist is done."""

    def append(self, batch: Batch) -> None:
        """A batch that was applied."""
        ...

    def replace(self, shard: ShardState) -> None:
        """A shard that took over another's whole state."""
        ...

    def drop(self, name: Shard) -> None:
        """A shard that others hold now, and this node no more."""
        ...


class Pace:
    """How long the turns of anti-entropy are: short while something changes."""

    def __init__(self) -> None:
        self._turn_s = SYNC_S

    def quicken(self) -> None:
        self._turn_s = SYNC_S

    def next_s(self) -> float:
        """Until the next turn; each is longer than the one before, up to a bound."""
        turn_s, self._turn_s = self._turn_s, min(SYNC_MAX_S, self._turn_s * _CALMING)
        return turn_s


@dataclass
class Pending:
    """What callers wrote to a shard in this step."""

    first: int
    changes: list[Change] = field(default_factory=list)
    bytes: int = 0


class Replica:
    """Args:
    actor: of this start; never used before.
    shards: what an earlier start left.
    """

    holding_type: ClassVar[type[Holding]] = Holding

    def __init__(
        self,
        me: NodeId,
        actor: Actor,
        journal: Journal,
        rng: Rng,
        shards: Iterable[ShardState],
        shard_type: type[ShardState],
        log_bytes_max: int,
    ) -> None:
        self.me, self.journal = me, journal
        self._actor, self._rng = actor, rng
        self._shard_type, self._log_bytes_max = shard_type, log_bytes_max
        self.shards = {shard.name: shard for shard in shards}
        # Changes that no batch holds yet.
        self.pending: dict[Shard, Pending] = {}
        self.alive: tuple[NodeId, ...] = ()
        # All who may come back, this node among them.
        self.everyone: frozenset[NodeId] = frozenset()
        self.holding = self.holding_type(me)
        self.pace = Pace()
        # Who this node is in shards that it had dropped.
        self._anew: dict[Shard, Actor] = {}
        # From whom a shard's batches come, and until when that is believed.
        self._fetching: dict[Shard, tuple[NodeId, float]] = {}
        # Whole shards on their way here.
        self.arriving: dict[Shard, Arriving] = {}

    def shard(self, name: Shard) -> ShardState:
        """A shard, which is empty if it was not here."""
        if name not in self.shards:
            self.shards[name] = self._shard_type(name, self._log_bytes_max)
        return self.shards[name]

    def is_one_too_many(self, name: Shard) -> bool:
        """What is told of all shards fits one message."""
        return name not in self.shards and len(self.shards) >= SUMS_MAX

    def actor_in(self, name: Shard) -> Actor:
        """Who this node is in a shard."""
        return self._anew.get(name, self._actor)

    def sharing(self, name: Shard) -> Sequence[NodeId]:
        """Who is alive and holds a shard, too."""
        if not copies_of(name[0]):
            return self.alive
        return [one for one in self.holding.of(name) if one in self.alive]

    def sums(self, wall_ms: int, *, some: bool = False, asks: bool = False) -> Sums:
        """What this replica has seen; see `Sums`."""
        sums = tuple(
            ShardSum(*name, shard.sum())
            for name, shard in sorted(self.shards.items())
            if shard.cells.context.vector and (copies_of(name[0]) or not some)
        )
        return Sums(wall_ms, sums, some, asks)

    def ask(self, peer: NodeId, name: Shard, now: float, *, asks: bool = False) -> list[Effect]:
        """Ask for what is missing of a shard, unless it is on its way from another peer."""
        source, until = self._fetching.get(name, (peer, now))
        if source != peer and source in self.alive and now < until:
            return []
        self._fetching[name] = (peer, now + _FETCH_S)
        shard = self.shards.get(name)
        return [Send(peer, Vector(*name, shard.seen() if shard is not None else (), asks))]

    def has_asked(self, peer: NodeId, name: Shard, now: float) -> bool:
        """Whether it has asked this peer for a shard just now."""
        source, until = self._fetching.get(name, (None, now))
        return source == peer and until - now > _FETCH_S - _JUST_NOW_S

    def fetched(self, peer: NodeId, name: Shard) -> None:
        """This peer has nothing more of a shard: others may be asked."""
        if self._fetching.get(name, (None,))[0] == peer:
            del self._fetching[name]

    def drop(self, name: Shard) -> list[Effect]:
        """Hold a shard no more."""
        del self.shards[name]
        self.arriving.pop(name, None)
        self._fetching.pop(name, None)
        self.holding.drop(name)
        self._anew[name] = self.new_actor()
        self.journal.drop(name)
        return [Persist(), Dropped(name)]

    def new_actor(self) -> Actor:
        """Who writes to a shard that was dropped and is held again."""
        return actor_of(self.me, self._rng.getrandbits(_LIFE_BITS).to_bytes(8, "big"))
