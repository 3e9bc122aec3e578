"""The replication of the eventual store: who holds a shard writes without asking anybody.

Every member holds every shard, but of buckets that live on a few nodes; see `placement`.

- A write is applied, signed, made durable and acknowledged here; then it goes to some members at
  once.
- Whoever was not reached, or missed something, gets it by anti-entropy: once a second, and less
  often the longer nothing changes, each member tells another what it has seen of each shard, as
  sums; where these differ, vectors; then batches. Those of a shard come from one member at a time,
  for others would send the same.
- Where the batches are kept no more, the whole shard is taken over as it is, in parts, and joined.
- Nothing is applied over a gap, and nothing that is not signed by its author.
- Of shards that not all hold, writes go to the holders; others hold nothing of them, and write by
  asking one. Who comes to hold one or hands one over goes by `holding`. What a node wrote to a
  shard that it dropped it never goes on with: it is another actor there from then on.
- Of a node's earlier lives no more is kept than that they are over, once every member has seen all
  that they wrote: that node ends them by a change of its present one. Who has not seen it all, as
  from an old copy of a disk, takes the whole shard over.

What comes from a clock that is far ahead waits until this node's own clock has come near; this
node writes nothing while the others' clocks say that its own is wrong.

A member cannot write for others, or leave out a change of theirs without all later ones of that
life. Who hands over a whole state could leave out or invent cells in it, or ends of lives; see
`docs/security.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from statistics import median
from typing import ClassVar, Final

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Persist, Send, SetTimer
from swarmd.base.rng import Rng
from swarmd.state.crdt.cells import Cells
from swarmd.state.crdt.clock import HybridClock, ms_of
from swarmd.state.crdt.dots import Actor, node_of
from swarmd.state.crdt.events import (
    Heard,
    Ignored,
    KeyChanged,
    Leave,
    Peers,
    Stay,
    SyncDue,
    Wanted,
    Write,
)
from swarmd.state.crdt.holding import Holding
from swarmd.state.crdt.lives import END_LIVES_S, Lives
from swarmd.state.crdt.messages import (
    OVER_MAX,
    Batch,
    Batches,
    HandOver,
    Leaving,
    Shard,
    Sums,
    Taken,
    Vector,
    Whole,
    WholeAsk,
    decode_batch,
    shard_of,
)
from swarmd.state.crdt.moving import Moving
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.replica import Journal, Replica
from swarmd.state.crdt.shard import LOG_BYTES_MAX, ShardState, logged
from swarmd.state.crdt.wholes import Arriving, Departures
from swarmd.state.crdt.writing import SKEW_MAX_MS, BatchSigner, Writing

# Who has met nobody for so many turns serves what it has.
_ALONE_TURNS: Final = 5
VECTORS_MAX: Final = 64
PARKED_MAX: Final = 1_000
PARKED_BYTES_MAX: Final = 16 * 1024 * 1024
# A peer's clock was heard of this long ago at most to count.
_CLOCK_HEARD_S: Final = 300.0
_ARRIVING_MAX: Final = 4


class ReplicaMachine:
    """Args:
    actor: of this start; never used before.
    shards: what an earlier start left.
    wall_ms: this node's wall clock.
    """

    shard_type: ClassVar[type[ShardState]] = ShardState
    replica_type: ClassVar[type[Replica]] = Replica
    lives_type: ClassVar[type[Lives]] = Lives
    moving_type: ClassVar[type[Moving]] = Moving

    def __init__(
        self,
        me: NodeId,
        actor: Actor,
        signer: BatchSigner,
        journal: Journal,
        rng: Rng,
        wall_ms: Callable[[], int],
        shards: Iterable[ShardState] = (),
        *,
        log_bytes_max: int = LOG_BYTES_MAX,
        end_lives_s: float = END_LIVES_S,
    ) -> None:
        self._me = me
        self._signer, self._journal, self._rng, self._wall_ms = signer, journal, rng, wall_ms
        self._replica = replica = self.replica_type(
            me, actor, journal, rng, shards, self.shard_type, log_bytes_max
        )
        self._shards = replica.shards
        self.clock = HybridClock()
        for shard in self._shards.values():
            self.clock.witness(shard.cells.latest)
        self._writing = Writing(replica, signer, self.clock, rng, wall_ms)
        self.lives = self.lives_type(replica, self._writing, end_lives_s)
        self._moving = self.moving_type(replica, self.lives, rng, wall_ms)
        self._heard_clocks: dict[NodeId, tuple[float, int]] = {}
        self._turns = 0
        # Whom this node has asked for what is missing of a shard since its last turn.
        self._asked: set[tuple[NodeId, Shard]] = set()
        self._parked: dict[tuple[Actor, Shard, int], Batch] = {}
        self._departures = Departures()

    # ---- what others may read between steps ---------------------------------------------

    @property
    def holding(self) -> Holding:
        """Which shards that not all hold are this node's."""
        return self._replica.holding

    def cells(self, bucket: str, key: str) -> Cells | None:
        """The shard that a key is in; None if nothing was ever written there."""
        shard = self._shards.get((bucket, shard_of(key)))
        return shard.cells if shard is not None else None

    def shards(self) -> list[ShardState]:
        return list(self._shards.values())

    def shard(self, name: Shard) -> ShardState | None:
        """A shard, if it is here."""
        return self._shards.get(name)

    @property
    def alive(self) -> tuple[NodeId, ...]:
        """Who is alive, this node not among them."""
        return self._replica.alive

    def partial_shards(self) -> list[Shard]:
        """Which shards are here of those that not all hold, also such that others hold now."""
        return self._moving.partial()

    @property
    def handed_on(self) -> int:
        """Grows with what others fetch and take of shards that are theirs to hold."""
        return self._moving.progress

    def is_written_to(self, name: Shard) -> bool:
        """Whether a shard has changes that no batch holds yet."""
        return name in self._replica.pending

    def digest(self) -> int:
        """The same on replicas that have seen the same of what all hold; 48 bits."""
        state = blake2b(digest_size=6)
        for (bucket, number), shard in sorted(self._shards.items()):
            if shard.cells.context.vector and not copies_of(bucket):
                state.update(bucket.encode() + bytes((0, number)) + shard.sum())
        return int.from_bytes(state.digest(), "big")

    @property
    def parked(self) -> int:
        """Batches that wait until this node's clock has come near to theirs."""
        return len(self._parked)

    def skew_ms(self, now: float) -> int:
        """How far the others' clocks are ahead of this node's, by their median."""
        offsets = [ms for at, ms in self._heard_clocks.values() if now - at <= _CLOCK_HEARD_S]
        return round(median(offsets)) if offsets else 0

    # ---- steps --------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        match event:
            case Write():
                return self._writing.take(event, self.skew_ms(now))
            case Heard(peer, message):
                return self._on_heard(peer, message, now)
            case Peers():
                return self._on_peers(event)
            case SyncDue():
                return self._on_sync_due(now)
            case Wanted():
                return self._moving.want()
            case Leave():
                return self._moving.leave()
            case Stay():
                return self._moving.stay()
        raise AssertionError(event)

    def settle(self, now: float) -> Sequence[Effect]:
        """Sign what the step's callers wrote: a batch for each shard, and one sync for all."""
        return self._writing.settle()

    # ---- hearing ------------------------------------------------------------------------

    def _on_heard(self, peer: NodeId, message: object, now: float) -> list[Effect]:
        match message:
            case Sums():
                return self._on_sums(peer, message, now)
            case Vector():
                return self._on_vector(peer, message, now)
            case Batches():
                return self._on_batches(peer, message, now)
            case WholeAsk():
                return self._on_whole_ask(peer, message, now)
            case Whole():
                return self._on_whole(peer, message, now)
            case HandOver():
                return self._moving.on_hand_over(peer, message, now)
            case Taken():
                return self._moving.on_taken(peer, message)
            case Leaving():
                return self._moving.on_leaving(peer, message, now)
        raise AssertionError(message)

    def _on_sums(self, peer: NodeId, sums: Sums, now: float) -> list[Effect]:
        """Ask for, and offer, what differs."""
        self._heard_clocks[peer] = (now, sums.wall_ms - self._wall_ms())
        theirs = {(one.bucket, one.shard): one.sum for one in sums.sums}
        differing = [
            name
            for name in {**theirs, **self._shards}
            if (name not in self._shards or self._shards[name].sum() != theirs.get(name))
            and (copies_of(name[0]) or not sums.some)
        ]
        if any(copies_of(name[0]) for name in theirs):
            self._moving.wanted = True
        self.holding.heard(peer, theirs, [name for name in differing if name in theirs])
        self.lives.heard(peer, theirs, differing)
        differing = [name for name in differing if self._concerns(peer, name, name in theirs)]
        if len(differing) > VECTORS_MAX:
            differing = self._rng.sample(differing, VECTORS_MAX)
        asked = [one for name in differing for one in self._replica.ask(peer, name, now, asks=True)]
        return [*asked, Send(peer, self._sums(some=True))] if sums.asks else asked

    def _concerns(self, peer: NodeId, name: Shard, has: bool) -> bool:
        """Whether a shard in which a peer differs is to be asked for, or offered."""
        if name not in self._shards:
            return self.holding.accepts(name)
        return has or not copies_of(name[0]) or peer in self.holding.of(name)

    def _sums(self, *, some: bool = False) -> Sums:
        return self._replica.sums(self._wall_ms(), some=some)

    def _on_vector(self, peer: NodeId, vector: Vector, now: float) -> list[Effect]:
        name = (vector.bucket, vector.shard)
        shard = self._shards.get(name)
        effects: list[Effect] = []
        if shard is not None and name not in self._replica.pending:
            shard.fold(self._me, vector.seen, partial(self._writing.sign, name))
            batches, more, gone = shard.after(vector.seen)
            if batches or gone:
                self._moving.note_fetch(peer, name, vector.seen)
                effects.append(Send(peer, Batches(*name, tuple(batches), more, gone)))
        lacks = shard.lacks(vector.seen) if shard is not None else bool(vector.seen)
        if not lacks:
            self.holding.has_all_of(name, peer, has=bool(vector.seen))
            self._replica.fetched(peer, name)
        elif vector.asks and self.holding.accepts(name) and not self._replica.is_one_too_many(name):
            effects += self._replica.ask(peer, name, now)
        return effects

    def _on_batches(self, peer: NodeId, message: Batches, now: float) -> list[Effect]:
        name = (message.bucket, message.shard)
        if not self.holding.accepts(name):
            return [Ignored(peer, "not_held")]
        if self._replica.is_one_too_many(name):
            return [Ignored(peer, "too_many_shards")]
        effects: list[Effect] = []
        missing = False
        gone = message.gone
        for raw in message.batches:
            try:
                batch = decode_batch(raw)
            except MalformedMessage:
                return [*effects, Ignored(peer, "malformed")]
            if batch.shard != name:
                return [*effects, Ignored(peer, "other_shard")]
            taken, gap = self._take(peer, batch)
            effects += taken
            missing = missing or gap
            gone = gone or (gap and self._shards[name].misses_end(batch))
        if gone or not message.more:
            self._replica.fetched(peer, name)
        if gone:
            return [*effects, *self._ask_whole(peer, name)]
        if missing and (peer, name) not in self._asked:
            # Once in each turn: what is missing may wait for this node's clock, or be nowhere.
            self._asked.add((peer, name))
            effects += self._replica.ask(peer, name, now)
        elif message.more and Persist() in effects:
            effects += self._replica.ask(peer, name, now)
        return effects

    def _take(self, peer: NodeId, batch: Batch) -> tuple[list[Effect], bool]:
        """Apply a batch if it can be; whether something before it is missing."""
        shard = self._replica.shard(batch.shard)
        if shard.knows(batch):
            return [], False
        if shard.missing(batch):
            return [], True
        if not self._signer.verify_batch(batch.author, batch.said, batch.signature):
            return [Ignored(peer, "bad_signature")], False
        if any(node_of(actor) != batch.author for actor, _ in batch.ends):
            return [Ignored(peer, "ends_others")], False
        if len(shard.cells.context.over) + len(batch.ends) > OVER_MAX:
            return [Ignored(peer, "too_many_lives")], False
        if self._is_of_the_future(batch.stamp):
            return self._park(peer, batch), False
        self.clock.witness(batch.stamp)
        self._replica.pace.quicken()
        keys = shard.take(batch)
        self._journal.append(batch)
        return [Persist(), *(KeyChanged(batch.shard[0], key) for key in sorted(keys))], False

    def _is_of_the_future(self, stamp: int) -> bool:
        return ms_of(stamp) > self._wall_ms() + SKEW_MAX_MS

    def _park(self, peer: NodeId, batch: Batch) -> list[Effect]:
        size = sum(len(one.raw) for one in self._parked.values()) + len(batch.raw)
        if len(self._parked) >= PARKED_MAX or size > PARKED_BYTES_MAX:
            return [Ignored(peer, "parked_full")]  # It comes again by anti-entropy.
        self._parked[batch.actor, batch.shard, batch.first] = batch
        return [Ignored(peer, "from_the_future")]

    # ---- anti-entropy -------------------------------------------------------------------

    def _on_peers(self, event: Peers) -> list[Effect]:
        replica, alive = self._replica, tuple(sorted(event.alive))
        replica.everyone = event.everyone
        moved = self.holding.see(alive, event.placed or (*alive, self._me))
        if moved:
            self.lives.forget_partial()
        if alive == replica.alive and not moved:
            return []
        replica.alive = alive
        replica.pace.quicken()
        for gone in [peer for peer in self._heard_clocks if peer not in alive]:
            del self._heard_clocks[gone]
        return []

    def _on_sync_due(self, now: float) -> list[Effect]:
        turn_s = self._replica.pace.next_s() * self._rng.uniform(0.75, 1.25)
        effects: list[Effect] = [SetTimer(turn_s, SyncDue())]
        self._turns += 1
        if self._turns == _ALONE_TURNS:
            self.holding.go_on_alone()
        self._asked.clear()
        self._departures.expire(now)
        for name in [n for n, one in self._replica.arriving.items() if one.is_stuck(now)]:
            del self._replica.arriving[name]
        for key in sorted(self._parked):
            batch = self._parked[key]
            if not self._is_of_the_future(batch.stamp):
                del self._parked[key]
                if self.holding.accepts(batch.shard):
                    effects += self._take(self._me, batch)[0]
        if self._replica.alive:
            effects.append(Send(self._rng.choice(self._replica.alive), self._sums()))
            if sharing := self._moving.kin():
                effects.append(Send(self._rng.choice(sharing), self._sums()))
        return [*effects, *self._moving.turn(now), *self.lives.end(now)]

    # ---- whole states -------------------------------------------------------------------

    def _ask_whole(self, peer: NodeId, name: Shard) -> list[Effect]:
        if name in self._replica.arriving or len(self._replica.arriving) >= _ARRIVING_MAX:
            return []
        self._replica.arriving[name] = Arriving(peer)
        return [Send(peer, WholeAsk(*name))]

    def _on_whole_ask(self, peer: NodeId, ask: WholeAsk, now: float) -> list[Effect]:
        shard = self._shards.get((ask.bucket, ask.shard))
        if shard is None or shard.name in self._replica.pending:
            return []
        self._moving.note_fetch(peer, shard.name, ask)
        part = self._departures.part(peer, shard, ask, now)
        return [] if part is None else [Send(peer, part)]

    def _on_whole(self, peer: NodeId, part: Whole, now: float) -> list[Effect]:
        name = (part.bucket, part.shard)
        if not self.holding.accepts(name):
            self._replica.arriving.pop(name, None)
            return [Ignored(peer, "not_held")]
        arriving = self._replica.arriving.get(name)
        if arriving is None or not arriving.expects(peer, part):
            return []
        try:
            done = arriving.take(part, now)
        except MalformedMessage:
            del self._replica.arriving[name]
            return [Ignored(peer, "malformed")]
        if not done:
            return [Send(peer, WholeAsk(*name, part.number, part.part + 1))]
        del self._replica.arriving[name]
        return self._join(peer, name, arriving)

    def _join(self, peer: NodeId, name: Shard, arrived: Arriving) -> list[Effect]:
        """Take over a whole state, if every actor in it has proven to have gone that far."""
        shard = self._replica.shard(name)
        if arrived.cells.context.is_over(self._replica.actor_in(name)):
            return [Ignored(peer, "ends_others")]
        if arrived.cells.context.goes_past(shard.cells.context):
            return [Ignored(peer, "past_its_end")]  # It takes this node's, and then may be asked.
        newest = {batch.actor: batch for batch in arrived.newest}
        for actor, number in arrived.cells.context.vector.items():
            batch = newest.get(actor)
            if batch is None or batch.last != number or batch.shard != name:
                return [Ignored(peer, "unproven")]
            if number > shard.cells.context.seen_of(actor) and not self._signer.verify_batch(
                batch.author, batch.said, batch.signature
            ):
                return [Ignored(peer, "bad_signature")]
        stamp = arrived.cells.latest
        if self._is_of_the_future(stamp):
            return [Ignored(peer, "from_the_future")]
        self.clock.witness(stamp)
        self._replica.pace.quicken()
        keys = shard.join(arrived.cells, map(logged, arrived.newest))
        self._journal.replace(shard)
        return [Persist(), *(KeyChanged(name[0], key) for key in sorted(keys))]
