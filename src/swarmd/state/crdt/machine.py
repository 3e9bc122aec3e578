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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from statistics import median
from typing import ClassVar, Final, Protocol

from swarmd.base.errors import (
    Conflict,
    MalformedMessage,
    NotHeld,
    SwarmError,
    TooLarge,
    Unavailable,
    ValueTooLarge,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import (
    CRDT_BATCH_BYTES_MAX,
    CRDT_BATCH_CHANGES_MAX,
    CRDT_CELL_BYTES_MAX,
    CRDT_VALUE_BYTES_MAX,
)
from swarmd.base.machine import Effect, Event, Persist, Send, SetTimer
from swarmd.base.rng import Rng
from swarmd.state.crdt.cells import Cell, Cells, Change
from swarmd.state.crdt.clock import HybridClock, ms_of
from swarmd.state.crdt.dots import Actor, Dot, actor_of, node_of
from swarmd.state.crdt.events import (
    Dropped,
    Heard,
    Ignored,
    KeyChanged,
    Peers,
    SyncDue,
    Wanted,
    Write,
    Written,
)
from swarmd.state.crdt.holding import Holding, Round
from swarmd.state.crdt.messages import (
    OVER_MAX,
    REMOVES_MAX,
    SUMS_MAX,
    Batch,
    Batches,
    HandOver,
    Shard,
    ShardSum,
    Sums,
    Taken,
    Vector,
    Whole,
    WholeAsk,
    decode_batch,
    encode_said,
    make_batch,
    shard_of,
)
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.shard import LOG_BYTES_MAX, ShardState, logged
from swarmd.state.crdt.types.kinds import Live
from swarmd.state.crdt.types.registers import winner
from swarmd.state.crdt.types.values import change
from swarmd.state.crdt.wholes import Arriving, Departures

SYNC_S: Final = 1.0
# Where nothing has changed, and nobody came or went, turns become rarer up to this.
SYNC_MAX_S: Final = 5.0
_CALMING: Final = 1.5
# A write goes to so many members at once; anti-entropy brings it to the others.
PUSH_PEERS_MAX: Final = 8
# Who comes to hold shards asks so many in a turn what they have.
_ASKED_MAX: Final = 16
# Who has met nobody for so many turns serves what it has.
_ALONE_TURNS: Final = 5
VECTORS_MAX: Final = 64
SKEW_MAX_MS: Final = 60_000
PARKED_MAX: Final = 1_000
PARKED_BYTES_MAX: Final = 16 * 1024 * 1024
# A peer's clock was heard of this long ago at most to count.
_CLOCK_HEARD_S: Final = 300.0
_ARRIVING_MAX: Final = 4
# Who was asked for a shard's batches and has sent none for so long is waited for no more.
_FETCH_S: Final = 3.0
# How often a node looks whether lives of its own can be ended. What they sent has arrived by then,
# and a disk that was taken for lost has been found.
END_LIVES_S: Final = 86_400.0
# It does so where it writes anyway, or where there are so many: each end is a change, too.
_LIVES_MIN: Final = 4
# What a change may take of a batch beside its key, value and removals.
_CHANGE_BYTES_EXTRA: Final = 64
_LIFE_BITS: Final = 64
_ROUND_BITS: Final = 60
_BATCH_BYTES: Final = CRDT_BATCH_BYTES_MAX // 4


class ClockSkew(Unavailable):
    """This node's clock is far from the others'. Nothing changed: set the clock."""

    code = "clock_skew"


class BatchSigner(Protocol):
    def sign_batch(self, said: bytes) -> bytes:
        """This node's signature, 64 bytes."""
        ...

    def verify_batch(self, author: NodeId, said: bytes, signature: bytes) -> bool:
        """False if the signature is wrong, or if `author` was never admitted as far as we know."""
        ...


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


@dataclass
class _Ending:
    """Earlier lives of this node in a shard, by their last dots, and who may not have seen all."""

    lives: tuple[Dot, ...]
    missing: set[NodeId]


@dataclass
class _Pending:
    """What callers wrote to a shard in this step."""

    first: int
    changes: list[Change] = field(default_factory=list)
    bytes: int = 0


class ReplicaMachine:
    """Args:
    actor: of this start; never used before.
    shards: what an earlier start left.
    wall_ms: this node's wall clock.
    """

    shard_type: ClassVar[type[ShardState]] = ShardState

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
        self._me, self._actor = me, actor
        self._signer, self._journal, self._rng, self._wall_ms = signer, journal, rng, wall_ms
        self._log_bytes_max = log_bytes_max
        self._shards = {shard.name: shard for shard in shards}
        self.clock = HybridClock()
        for shard in self._shards.values():
            self.clock.witness(shard.cells.latest)
        self._alive: tuple[NodeId, ...] = ()
        self.holding = Holding(me)
        # Whether anybody has something that not all hold: else nobody is asked for it.
        self._wanted = any(copies_of(bucket) for bucket, _ in self._shards)
        # Who this node is in shards that it had dropped.
        self._anew: dict[Shard, Actor] = {}
        self._everyone: frozenset[NodeId] = frozenset()
        self._ending: dict[Shard, _Ending] = {}
        self.end_lives_s = end_lives_s
        self._end_lives_at: float | None = None
        self._heard_clocks: dict[NodeId, tuple[float, int]] = {}
        self._pending: dict[Shard, _Pending] = {}
        self._answers: list[Written] = []
        self._sync_s = SYNC_S
        self._turns = 0
        # Whom this node has asked for what is missing of a shard since its last turn.
        self._asked: set[tuple[NodeId, Shard]] = set()
        # From whom a shard's batches come, and until when that is believed.
        self._fetching: dict[Shard, tuple[NodeId, float]] = {}
        self._parked: dict[tuple[Actor, Shard, int], Batch] = {}
        self._departures = Departures()
        self._arriving: dict[Shard, Arriving] = {}

    # ---- what others may read between steps ---------------------------------------------

    def cells(self, bucket: str, key: str) -> Cells | None:
        """The shard that a key is in; None if nothing was ever written there."""
        shard = self._shards.get((bucket, shard_of(key)))
        return shard.cells if shard is not None else None

    def shards(self) -> list[ShardState]:
        return list(self._shards.values())

    def shard(self, name: Shard) -> ShardState | None:
        """A shard, if it is here."""
        return self._shards.get(name)

    def is_written_to(self, name: Shard) -> bool:
        """Whether a shard has changes that no batch holds yet."""
        return name in self._pending

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
                return self._on_write(event, now)
            case Heard(peer, message):
                return self._on_heard(peer, message, now)
            case Peers():
                return self._on_peers(event)
            case SyncDue():
                return self._on_sync_due(now)
            case Wanted():
                return self._on_wanted()
        raise AssertionError(event)

    def settle(self, now: float) -> Sequence[Effect]:
        """Sign what the step's callers wrote: a batch for each shard, and one sync for all."""
        if not self._answers and not self._pending:
            return []
        effects: list[Effect] = []
        for name in list(self._pending):
            effects += self._close(name)
        answers, self._answers = self._answers, []
        return [*effects, *answers]

    # ---- writing ------------------------------------------------------------------------

    def _on_write(self, event: Write, now: float) -> list[Effect]:
        try:
            return self._write(event, now)
        except SwarmError as error:
            self._answers.append(Written(event.ticket, error))
            return []

    def _write(self, event: Write, now: float) -> list[Effect]:
        skew_ms = self.skew_ms(now)
        if abs(skew_ms) > SKEW_MAX_MS:
            raise ClockSkew(
                f"this node's clock is {abs(skew_ms) // 1_000} s "
                f"{'behind' if skew_ms > 0 else 'ahead of'} the others': nothing changed; set it"
            )
        name = (event.bucket, shard_of(event.key))
        if not self.holding.serves(name):
            raise NotHeld(f"{event.key} is held by other nodes: nothing changed; ask one of them")
        if self._is_one_too_many(name):
            raise TooLarge("there are as many buckets as may be: nothing changed")
        shard = self._shard(name)
        self._check_expected(event, shard.cells.at(event.key))
        made = change(
            shard.cells.at(event.key),
            event.key,
            event.operation,
            actor=self._actor_in(name),
            stamp=self.clock.tick(self._wall_ms()),
            number=shard.cells.context.seen_of(self._actor_in(name)) + 1,
            fields=event.fields,
            expires_ms=event.expires_ms,
        )
        if made is not None and made.cell is not None:
            _check_size(made.cell)
        self._answers.append(Written(event.ticket))
        if made is None:
            return []
        self._sync_s = SYNC_S
        effects: list[Effect] = []
        for one in _divided(made):
            effects += self._commit(shard, one)
        return [*effects, KeyChanged(event.bucket, event.key)]

    def _commit(self, shard: ShardState, made: Change) -> list[Effect]:
        """Make a change, which is signed with the others of this step."""
        effects: list[Effect] = []
        size = _size_of(made)
        pending = self._pending.get(shard.name)
        if pending is not None and (
            len(pending.changes) >= CRDT_BATCH_CHANGES_MAX or pending.bytes + size > _BATCH_BYTES
        ):
            effects += self._close(shard.name)
            pending = None
        if pending is None:
            first = shard.cells.context.seen_of(self._actor_in(shard.name)) + 1
            pending = self._pending[shard.name] = _Pending(first)
        shard.cells.commit(self._actor_in(shard.name), [made])
        pending.changes.append(made)
        pending.bytes += size
        return effects

    def _check_expected(self, event: Write, live: Live) -> None:
        if event.expects is None:
            return
        found = winner(live)
        if found is None:
            met = event.expects == ()
        else:
            # Whoever removes what has expired names it; for all others it is not there.
            expired = 0 < found[1].expires_ms <= self._wall_ms()
            met = event.expects == found[0] or (expired and event.expects == ())
        if not met:
            raise Conflict(f"{event.key} has another version: nothing changed; read it again")

    def _close(self, name: Shard) -> list[Effect]:
        """Sign what was written to a shard, keep it and tell it."""
        pending = self._pending.pop(name)
        batch = self._sign(name, self._actor_in(name), pending.first, tuple(pending.changes))
        self._shards[name].note(batch)
        self._journal.append(batch)
        message = Batches(*name, (batch.raw,))
        peers = self._sharing(name)
        some = min(PUSH_PEERS_MAX, len(peers))
        return [Persist(), *(Send(p, message) for p in self._rng.sample(peers, some))]

    def _sharing(self, name: Shard) -> Sequence[NodeId]:
        """Who is alive and holds a shard, too."""
        if not copies_of(name[0]):
            return self._alive
        return [one for one in self.holding.of(name) if one in self._alive]

    def _actor_in(self, name: Shard) -> Actor:
        """Who this node is in a shard."""
        return self._anew.get(name, self._actor)

    def _sign(self, name: Shard, actor: Actor, first: int, changes: tuple[Change, ...]) -> Batch:
        """A batch of this node's, of this life or an earlier one."""
        said = encode_said(name, actor, first, changes)
        return make_batch(said, self._signer.sign_batch(said))

    def _is_one_too_many(self, name: Shard) -> bool:
        """What is told of all shards fits one message."""
        return name not in self._shards and len(self._shards) >= SUMS_MAX

    def _shard(self, name: Shard) -> ShardState:
        if name not in self._shards:
            self._shards[name] = self.shard_type(name, self._log_bytes_max)
        return self._shards[name]

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
                return self._on_hand_over(peer, message, now)
            case Taken():
                return self._on_taken(peer, message)
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
            self._wanted = True
        self.holding.heard(peer, [name for name in differing if name in theirs])
        for name, ending in self._ending.items():
            # Who holds nothing of a shard that not all hold has seen nothing else of it, either.
            if (name in theirs and name not in differing) or (
                name not in theirs and copies_of(name[0])
            ):
                ending.missing.discard(peer)
        differing = [name for name in differing if self._concerns(peer, name, name in theirs)]
        if len(differing) > VECTORS_MAX:
            differing = self._rng.sample(differing, VECTORS_MAX)
        asked = [one for name in differing for one in self._ask(peer, name, now, asks=True)]
        return [*asked, Send(peer, self._sums(some=True))] if sums.asks else asked

    def _concerns(self, peer: NodeId, name: Shard, has: bool) -> bool:
        """Whether a shard in which a peer differs is to be asked for, or offered."""
        if name not in self._shards:
            return self.holding.accepts(name)
        return has or not copies_of(name[0]) or peer in self.holding.of(name)

    def _sums(self, *, some: bool = False, asks: bool = False) -> Sums:
        sums = tuple(
            ShardSum(*name, shard.sum())
            for name, shard in sorted(self._shards.items())
            if shard.cells.context.vector and (copies_of(name[0]) or not some)
        )
        return Sums(self._wall_ms(), sums, some, asks)

    def _ask(self, peer: NodeId, name: Shard, now: float, *, asks: bool = False) -> list[Effect]:
        """Ask for what is missing of a shard, unless it is on its way from another peer."""
        source, until = self._fetching.get(name, (peer, now))
        if source != peer and source in self._alive and now < until:
            return []
        self._fetching[name] = (peer, now + _FETCH_S)
        shard = self._shards.get(name)
        return [Send(peer, Vector(*name, shard.seen() if shard is not None else (), asks))]

    def _fetched(self, peer: NodeId, name: Shard) -> None:
        """This peer has nothing more of a shard: others may be asked."""
        if self._fetching.get(name, (None,))[0] == peer:
            del self._fetching[name]

    def _on_vector(self, peer: NodeId, vector: Vector, now: float) -> list[Effect]:
        name = (vector.bucket, vector.shard)
        shard = self._shards.get(name)
        effects: list[Effect] = []
        if shard is not None and name not in self._pending:
            shard.fold(self._me, vector.seen, partial(self._sign, name))
            batches, more, gone = shard.after(vector.seen)
            if batches or gone:
                effects.append(Send(peer, Batches(*name, tuple(batches), more, gone)))
        lacks = shard.lacks(vector.seen) if shard is not None else bool(vector.seen)
        if not lacks:
            self.holding.has_all_of(name, peer)
            self._fetched(peer, name)
        elif vector.asks and self.holding.accepts(name) and not self._is_one_too_many(name):
            effects += self._ask(peer, name, now)
        return effects

    def _on_batches(self, peer: NodeId, message: Batches, now: float) -> list[Effect]:
        name = (message.bucket, message.shard)
        if not self.holding.accepts(name):
            return [Ignored(peer, "not_held")]
        if self._is_one_too_many(name):
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
            self._fetched(peer, name)
        if gone:
            return [*effects, *self._ask_whole(peer, name)]
        if missing and (peer, name) not in self._asked:
            # Once in each turn: what is missing may wait for this node's clock, or be nowhere.
            self._asked.add((peer, name))
            effects += self._ask(peer, name, now)
        elif message.more and Persist() in effects:
            effects += self._ask(peer, name, now)
        return effects

    def _take(self, peer: NodeId, batch: Batch) -> tuple[list[Effect], bool]:
        """Apply a batch if it can be; whether something before it is missing."""
        shard = self._shard(batch.shard)
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
        self._sync_s = SYNC_S
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
        alive, self._everyone = tuple(sorted(event.alive)), event.everyone
        moved = self.holding.see(alive, event.placed or (*alive, self._me))
        if moved:
            for name in [one for one in self._ending if copies_of(one[0])]:
                del self._ending[name]
        if alive == self._alive and not moved:
            return []
        self._alive = alive
        self._sync_s = SYNC_S
        for gone in [peer for peer in self._heard_clocks if peer not in alive]:
            del self._heard_clocks[gone]
        return []

    def _on_sync_due(self, now: float) -> list[Effect]:
        effects: list[Effect] = [SetTimer(self._sync_s * self._rng.uniform(0.75, 1.25), SyncDue())]
        self._sync_s = min(SYNC_MAX_S, self._sync_s * _CALMING)
        self._turns += 1
        if self._turns == _ALONE_TURNS:
            self.holding.go_on_alone()
        self._asked.clear()
        self._departures.expire(now)
        for name in [n for n, one in self._arriving.items() if one.is_stuck(now)]:
            del self._arriving[name]
        for key in sorted(self._parked):
            batch = self._parked[key]
            if not self._is_of_the_future(batch.stamp):
                del self._parked[key]
                if self.holding.accepts(batch.shard):
                    effects += self._take(self._me, batch)[0]
        effects += self._ask_missing()
        if self._alive:
            effects.append(Send(self._rng.choice(self._alive), self._sums()))
            if sharing := self._kin():
                effects.append(Send(self._rng.choice(sharing), self._sums()))
        return [*effects, *self._hand_over(), *self._end_lives(now)]

    def _kin(self) -> list[NodeId]:
        """Who is alive and holds a shard, too, that not all hold."""
        names = [name for name in self._shards if copies_of(name[0])]
        return sorted({one for name in names for one in self._sharing(name)} - {self._me})

    # ---- shards that not all hold -------------------------------------------------------

    def _ask_missing(self) -> list[Effect]:
        """Ask who may have something of the shards that this node has come to hold."""
        missing = self.holding.missing() if self._wanted else []
        if not missing:
            return []
        self._sync_s = SYNC_S
        asked = self._rng.sample(missing, min(_ASKED_MAX, len(missing)))
        return [Send(peer, self._sums(some=True, asks=True)) for peer in asked]

    def _on_wanted(self) -> list[Effect]:
        if self._wanted:
            return []
        self._wanted = True
        return self._ask_missing()

    def _hand_over(self) -> list[Effect]:
        """Have holders take what this node holds no more."""
        effects: list[Effect] = []
        for name, shard in sorted(self._shards.items()):
            if self.holding.accepts(name) or name in self._pending:
                continue
            self._sync_s = SYNC_S
            current = self.holding.rounds.get(name)
            if current is None:
                current = self.holding.rounds[name] = Round(self._rng.getrandbits(_ROUND_BITS) + 1)
            ask = HandOver(*name, current.number, shard.seen())
            effects += [Send(one, ask) for one in self._sharing(name) if one not in current.taken]
            if len(effects) >= VECTORS_MAX:
                break
        return effects

    def _on_hand_over(self, peer: NodeId, ask: HandOver, now: float) -> list[Effect]:
        name = (ask.bucket, ask.shard)
        if not self.holding.accepts(name) or not copies_of(name[0]):
            return [Ignored(peer, "not_held")]
        shard = self._shards.get(name)
        if shard is None and self._is_one_too_many(name):
            return [Ignored(peer, "too_many_shards")]
        if shard is not None and not shard.lacks(ask.seen):
            return [Send(peer, Taken(*name, ask.round))]
        return self._ask(peer, name, now)

    def _on_taken(self, peer: NodeId, taken: Taken) -> list[Effect]:
        name = (taken.bucket, taken.shard)
        if not self.holding.taken(name, peer, taken.round) or name not in self._shards:
            return []
        return self._drop(name)

    def _drop(self, name: Shard) -> list[Effect]:
        """Hold a shard no more."""
        del self._shards[name]
        self._arriving.pop(name, None)
        self._fetching.pop(name, None)
        self._ending.pop(name, None)
        self.holding.drop(name)
        self._anew[name] = self._new_actor()
        self._journal.drop(name)
        return [Persist(), Dropped(name)]

    def _new_actor(self) -> Actor:
        return actor_of(self._me, self._rng.getrandbits(_LIFE_BITS).to_bytes(8, "big"))

    # ---- lives that are over ------------------------------------------------------------

    def _end_lives(self, now: float) -> list[Effect]:
        """Now and then, end earlier lives of this node, where everyone has seen all of them."""
        if self._end_lives_at is not None and now < self._end_lives_at:
            return []
        self._end_lives_at = now + self.end_lives_s
        effects: list[Effect] = []
        for shard in self._shards.values():
            vector, own = shard.cells.context.vector, self._actor_in(shard.name)
            lives = tuple(
                sorted(
                    (actor, number)
                    for actor, number in vector.items()
                    if actor != own and node_of(actor) == self._me
                )
            )
            ending = self._ending.pop(shard.name, None)
            if not self.holding.serves(shard.name):
                continue
            if not lives or (own not in vector and len(lives) < _LIVES_MIN):
                continue
            if ending is None or ending.lives != lives:
                others = set(self._everyone - {self._me})
                self._ending[shard.name] = _Ending(lives, others)
            elif not ending.missing & self._everyone and self._me in self._everyone:
                room = OVER_MAX - len(shard.cells.context.over)
                if room > 0:
                    effects += self._commit(
                        shard, Change("", None, lives[: min(room, REMOVES_MAX)])
                    )
            else:
                self._ending[shard.name] = ending
        return effects

    # ---- whole states -------------------------------------------------------------------

    def _ask_whole(self, peer: NodeId, name: Shard) -> list[Effect]:
        if name in self._arriving or len(self._arriving) >= _ARRIVING_MAX:
            return []
        self._arriving[name] = Arriving(peer)
        return [Send(peer, WholeAsk(*name))]

    def _on_whole_ask(self, peer: NodeId, ask: WholeAsk, now: float) -> list[Effect]:
        shard = self._shards.get((ask.bucket, ask.shard))
        if shard is None or shard.name in self._pending:
            return []
        part = self._departures.part(peer, shard, ask, now)
        return [] if part is None else [Send(peer, part)]

    def _on_whole(self, peer: NodeId, part: Whole, now: float) -> list[Effect]:
        name = (part.bucket, part.shard)
        if not self.holding.accepts(name):
            self._arriving.pop(name, None)
            return [Ignored(peer, "not_held")]
        arriving = self._arriving.get(name)
        if arriving is None or not arriving.expects(peer, part):
            return []
        try:
            done = arriving.take(part, now)
        except MalformedMessage:
            del self._arriving[name]
            return [Ignored(peer, "malformed")]
        if not done:
            return [Send(peer, WholeAsk(*name, part.number, part.part + 1))]
        del self._arriving[name]
        return self._join(peer, name, arriving)

    def _join(self, peer: NodeId, name: Shard, arrived: Arriving) -> list[Effect]:
        """Take over a whole state, if every actor in it has proven to have gone that far."""
        shard = self._shard(name)
        if arrived.cells.context.is_over(self._actor_in(name)):
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
        self._sync_s = SYNC_S
        keys = shard.join(arrived.cells, map(logged, arrived.newest))
        self._journal.replace(shard)
        return [Persist(), *(KeyChanged(name[0], key) for key in sorted(keys))]


def _check_size(cell: Cell) -> None:
    """Raises ValueTooLarge."""
    size = max(len(cell.value), len(cell.element))
    if size > CRDT_CELL_BYTES_MAX:
        raise ValueTooLarge(f"a value of {size} bytes; at most {CRDT_VALUE_BYTES_MAX} fit")


def _divided(made: Change) -> Iterator[Change]:
    """As several changes, the last of them with the cell, where one may not remove so much."""
    rest = made.removes
    while len(rest) > REMOVES_MAX:
        yield Change(made.key, None, rest[:REMOVES_MAX])
        rest = rest[REMOVES_MAX:]
    yield Change(made.key, made.cell, rest)


def _size_of(made: Change) -> int:
    """About how many bytes a change takes in a batch."""
    size = _CHANGE_BYTES_EXTRA + 4 * len(made.key) + 56 * len(made.removes)
    if made.cell is not None:
        size += len(made.cell.value) + len(made.cell.element)
        size += sum(4 * len(name) for name in made.cell.fields)
    return size
