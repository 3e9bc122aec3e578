"""Guards of the eventual store, each taken away on trial: a sweep must catch that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Persist, Send
from swarmd.sim.crdt import run_seed
from swarmd.state.crdt.cells import Cells, Change
from swarmd.state.crdt.dots import Actor, Context, Dot, actor_of
from swarmd.state.crdt.holding import Holding
from swarmd.state.crdt.lives import Lives
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import Batch, HandOver, Shard, Sums, Taken
from swarmd.state.crdt.moving import Moving
from swarmd.state.crdt.replica import Replica
from swarmd.state.crdt.shard import Logged, ShardState


class _NothingEarly(Context):
    def remove_early(self, dot: Dot, key: str) -> None:
        pass


class _NeverPast(Context):
    """Joins what it has seen past a life's end as if that counted."""

    def goes_past(self, other: Context) -> bool:
        return False


class _Union(Cells):
    """Takes whatever another holds."""

    def join(self, other: Cells) -> set[str]:
        for key, dot, cell in other.items():
            self._put(key, {**self.at(key), dot: cell})
        self.context.join(other.context)
        return set(other)


class _Hasty(Lives):
    """Ends lives of which others may not have seen everything."""

    def end(self, now: float) -> list[Effect]:
        self._replica.everyone = frozenset({self._replica.me})
        return super().end(now)


class _Careless(ShardState):
    """Takes a life to be over of which it has not seen everything."""

    def misses_end(self, batch: Batch) -> bool:
        return False


class _CarelessCells(Cells):
    def apply(self, dot: Dot, change: Change) -> bool:
        for actor, number in change.ends:
            self.context.vector[actor] = number
        return super().apply(dot, change)


class _NeverGone(ShardState):
    """Passes over what it does not keep any more, and sends what comes after it."""

    def _beyond(self, theirs: dict[Actor, int]) -> Iterator[Logged | None]:
        return (batch for batch in super()._beyond(theirs) if batch is not None)


class _Unsynced(ReplicaMachine):
    def settle(self, now: float) -> Sequence[Effect]:
        return [e for e in super().settle(now) if not isinstance(e, Persist)]


class _PushAlone(ReplicaMachine):
    def _on_sums(self, peer: NodeId, sums: Sums, now: float) -> list[Effect]:
        return []


class _OneLife(ReplicaMachine):
    def __init__(self, me: NodeId, actor: Actor, *rest: Any, **more: Any) -> None:
        super().__init__(me, actor_of(me, bytes(8)), *rest, **more)


class _DropsAtOnce(Moving):
    """Drops what it holds no more before anybody has taken it."""

    def hand_over(self) -> list[Effect]:
        replica = self._replica
        gone = [name for name in sorted(replica.shards) if not replica.holding.accepts(name)]
        return [effect for name in gone for effect in self.drop(name)]


class _SaysTaken(Moving):
    """Says that it has taken a shard whether it has all of it or not."""

    def on_hand_over(self, peer: NodeId, ask: HandOver, now: float) -> list[Effect]:
        effects = super().on_hand_over(peer, ask, now)
        return [*effects, Send(peer, Taken(ask.bucket, ask.shard, ask.round))]


class _LeaversTake(Moving):
    """Says while it leaves that it has taken what it has all of."""

    def on_hand_over(self, peer: NodeId, ask: HandOver, now: float) -> list[Effect]:
        shard = self._replica.shards.get((ask.bucket, ask.shard))
        if self._replica.holding.leaves and shard is not None and not shard.lacks(ask.seen):
            return [Send(peer, Taken(ask.bucket, ask.shard, ask.round))]
        return super().on_hand_over(peer, ask, now)


class _OneIsEnough(Holding):
    """Drops a shard when one of its holders has taken it."""

    def may_drop(self, name: Shard) -> bool:
        current = self.rounds.get(name)
        taken = current.taken if current is not None else set()
        return not self.accepts(name) and not taken.isdisjoint(self.takers(name))


class _AsksTheFirst(Holding):
    """Has only the first of those who come to hold its shards take them."""

    def takers(self, name: Shard) -> tuple[NodeId, ...]:
        found = super().takers(name)
        return found[:1] if self.leaves else found


class _KeepsRounds(Holding):
    """Goes on with the rounds it had begun when it had other members, or left before."""

    def _place(self) -> bool:
        rounds = dict(self.rounds)
        moved = super()._place()
        self.rounds.update(rounds)
        return moved


class _TrustsLeavers(Holding):
    """Takes who leaves for a holder, whatever it says."""

    def note_leaving(self, peer: NodeId, until: float | None) -> bool:
        return False


class _GoesOn(Replica):
    """Numbers its changes to a shard that it had dropped as if nothing had been there."""

    def new_actor(self) -> Actor:
        return self._actor


def _with_shard(
    shard: type[ShardState] = ShardState, cells: type[Cells] = Cells
) -> type[ReplicaMachine]:
    return _with(shard_type=type("Mutant", (shard,), {"cells_type": cells}))


def _with_holding(holding: type[Holding]) -> type[ReplicaMachine]:
    return _with(replica_type=type("Mutant", (Replica,), {"holding_type": holding}))


def _with(**parts: type) -> type[ReplicaMachine]:
    return type("Mutant", (ReplicaMachine,), parts)


MUTANTS: Final[Mapping[str, type[ReplicaMachine]]] = {
    "crdt.early_removals": _with_shard(
        cells=type("Mutant", (Cells,), {"context_type": _NothingEarly})
    ),
    "crdt.join_by_context": _with_shard(cells=_Union),
    "crdt.whole_where_gone": _with_shard(_NeverGone),
    "crdt.ends_all_saw": _with(lives_type=_Hasty),
    "crdt.ends_after_all": _with_shard(_Careless, cells=_CarelessCells),
    "crdt.ends_bind": _with_shard(cells=type("Mutant", (Cells,), {"context_type": _NeverPast})),
    "crdt.sync_first": _Unsynced,
    "crdt.anti_entropy": _PushAlone,
    "crdt.actor_per_life": _OneLife,
    "crdt.drop_when_taken": _with(moving_type=_DropsAtOnce),
    "crdt.taken_means_all": _with(moving_type=_SaysTaken),
    "crdt.leavers_take_nothing": _with(moving_type=_LeaversTake),
    "crdt.drop_when_all_took": _with_holding(_OneIsEnough),
    "crdt.leavers_ask_all": _with_holding(_AsksTheFirst),
    "crdt.rounds_end": _with_holding(_KeepsRounds),
    "crdt.leavers_hold_nothing": _with_holding(_TrustsLeavers),
    "crdt.actor_after_drop": _with(replica_type=_GoesOn),
}


def first_catch(mutant: str, seeds: range) -> tuple[int, str] | None:
    """The first of `seeds` in which the mutant breaks a promise, and which; None if it survives."""
    for seed in seeds:
        try:
            world = run_seed(seed, MUTANTS[mutant], stop_at_violation=True).world
        except AssertionError as error:
            return seed, f"it stops: {error}"
        if world.violations:
            return seed, world.violations[0]
    return None
