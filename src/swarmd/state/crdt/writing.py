"""What callers write to a replica: changes to shards that it serves, signed in batches. Pure.

What is written in one step is signed, made durable and told together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from swarmd.base.errors import (
    ClockSkew,
    Conflict,
    NotHeld,
    SwarmError,
    TooLarge,
    ValueTooLarge,
)
from swarmd.base.ids import NodeId
from swarmd.base.limits import (
    CRDT_BATCH_BYTES_MAX,
    CRDT_BATCH_CHANGES_MAX,
    CRDT_CELL_BYTES_MAX,
    CRDT_VALUE_BYTES_MAX,
)
from swarmd.base.machine import Effect, Persist, Send
from swarmd.base.rng import Rng
from swarmd.state.crdt.cells import Cell, Change
from swarmd.state.crdt.clock import HybridClock
from swarmd.state.crdt.dots import Actor
from swarmd.state.crdt.events import KeyChanged, Write, Written
from swarmd.state.crdt.messages import (
    REMOVES_MAX,
    Batch,
    Batches,
    Shard,
    encode_said,
    make_batch,
    shard_of,
)
from swarmd.state.crdt.replica import Pending, Replica
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.types.kinds import Live
from swarmd.state.crdt.types.registers import winner
from swarmd.state.crdt.types.values import change

# A write goes to so many members at once; anti-entropy brings it to the others.
PUSH_PEERS_MAX: Final = 8
SKEW_MAX_MS: Final = 60_000
# What a change may take of a batch beside its key, value and removals.
_CHANGE_BYTES_EXTRA: Final = 64
_BATCH_BYTES: Final = CRDT_BATCH_BYTES_MAX // 4


class BatchSigner(Protocol):
    def sign_batch(self, said: bytes) -> bytes:
        """This node's signature, 64 bytes."""
        ...

    def verify_batch(self, author: NodeId, said: bytes, signature: bytes) -> bool:
        """False if the signature is wrong, or if `author` was never admitted as far as we know."""
        ...


class Writing:
    """Args:
    wall_ms: this node's wall clock.
    """

    def __init__(
        self,
        replica: Replica,
        signer: BatchSigner,
        clock: HybridClock,
        rng: Rng,
        wall_ms: Callable[[], int],
    ) -> None:
        self._replica, self._signer, self._clock = replica, signer, clock
        self._rng, self._wall_ms = rng, wall_ms
        self._answers: list[Written] = []

    def take(self, event: Write, skew_ms: int) -> list[Effect]:
        """Make a caller's change; it is answered when the step is settled.

        Args:
            skew_ms: how far the others' clocks are ahead of this node's.
        """
        try:
            return self._write(event, skew_ms)
        except SwarmError as error:
            self._answers.append(Written(event.ticket, error))
            return []

    def settle(self) -> list[Effect]:
        """Sign what the step's callers wrote: a batch for each shard, and one sync for all."""
        effects: list[Effect] = []
        for name in list(self._replica.pending):
            effects += self._close(name)
        answers, self._answers = self._answers, []
        return [*effects, *answers]

    def _write(self, event: Write, skew_ms: int) -> list[Effect]:
        if abs(skew_ms) > SKEW_MAX_MS:
            raise ClockSkew(
                f"this node's clock is {abs(skew_ms) // 1_000} s "
                f"{'behind' if skew_ms > 0 else 'ahead of'} the others': nothing changed; set it"
            )
        replica, name = self._replica, (event.bucket, shard_of(event.key))
        if not replica.holding.serves(name):
            raise NotHeld(f"{event.key} is held by other nodes: nothing changed; ask one of them")
        if replica.is_one_too_many(name):
            raise TooLarge("there are as many buckets as may be: nothing changed")
        shard = replica.shard(name)
        self._check_expected(event, shard.cells.at(event.key))
        made = change(
            shard.cells.at(event.key),
            event.key,
            event.operation,
            actor=replica.actor_in(name),
            stamp=self._clock.tick(self._wall_ms()),
            number=shard.cells.context.seen_of(replica.actor_in(name)) + 1,
            fields=event.fields,
            expires_ms=event.expires_ms,
        )
        if made is not None and made.cell is not None:
            _check_size(made.cell)
        self._answers.append(Written(event.ticket))
        if made is None:
            return []
        replica.pace.quicken()
        effects: list[Effect] = []
        for one in _divided(made):
            effects += self.commit(shard, one)
        return [*effects, KeyChanged(event.bucket, event.key)]

    def commit(self, shard: ShardState, made: Change) -> list[Effect]:
        """Make a change, which is signed with the others of this step."""
        effects: list[Effect] = []
        replica, size = self._replica, _size_of(made)
        pending = replica.pending.get(shard.name)
        if pending is not None and (
            len(pending.changes) >= CRDT_BATCH_CHANGES_MAX or pending.bytes + size > _BATCH_BYTES
        ):
            effects += self._close(shard.name)
            pending = None
        actor = replica.actor_in(shard.name)
        if pending is None:
            first = shard.cells.context.seen_of(actor) + 1
            pending = replica.pending[shard.name] = Pending(first)
        shard.cells.commit(actor, [made])
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
        replica = self._replica
        pending = replica.pending.pop(name)
        batch = self.sign(name, replica.actor_in(name), pending.first, tuple(pending.changes))
        replica.shards[name].note(batch)
        replica.journal.append(batch)
        message = Batches(*name, (batch.raw,))
        peers: Sequence[NodeId] = replica.sharing(name)
        some = min(PUSH_PEERS_MAX, len(peers))
        return [Persist(), *(Send(p, message) for p in self._rng.sample(peers, some))]

    def sign(self, name: Shard, actor: Actor, first: int, changes: tuple[Change, ...]) -> Batch:
        """A batch of this node's, of this life or an earlier one."""
        said = encode_said(name, actor, first, changes)
        return make_batch(said, self._signer.sign_batch(said))


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
