"""One shard at one replica: its cells, and the batches that made them as far as they are kept.

Of each actor the newest batch is kept for as long as it is in the vector: it proves that the actor
went that far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import ClassVar, Final

import msgspec

from swarmd.base.ids import NodeId
from swarmd.base.limits import CRDT_BATCH_BYTES_MAX, CRDT_BATCH_CHANGES_MAX
from swarmd.state.crdt.cells import Cells, Change
from swarmd.state.crdt.dots import Actor, Context, node_of
from swarmd.state.crdt.messages import (
    REMOVES_MAX,
    SUM_BYTES,
    Batch,
    Seen,
    Shard,
    decode_batch,
)

# Of one shard. What is older only a whole state brings.
LOG_BYTES_MAX: Final = 1024 * 1024
# What one message holds beside its first batch.
_SENT_BYTES: Final = 256 * 1024
# To verify one takes 0.15 ms, in which nothing else moves there.
_SENT_MAX: Final = 100
# So many batches of a node's own are worth another signature.
FOLDED_MIN: Final = 8
_FOLDED_BYTES_MAX: Final = CRDT_BATCH_BYTES_MAX // 4

Sign = Callable[[Actor, int, tuple[Change, ...]], Batch]
"""A signed batch of an actor's changes, from a number on."""


class Logged(msgspec.Struct, frozen=True, gc=False):
    """A batch whose changes were applied: what is told of it, and its very bytes.

    A `Batch` takes four times as much memory, and there may be thousands to each shard.
    """

    actor: Actor
    first: int
    last: int
    stamp: int
    raw: bytes

    @property
    def author(self) -> NodeId:
        return node_of(self.actor)


def logged(batch: Batch) -> Logged:
    return Logged(batch.actor, batch.first, batch.last, batch.stamp, batch.raw)


class ShardState:
    """Args:
    log_bytes_max: of the batches that are kept, beside the newest of each actor.
    """

    cells_type: ClassVar[type[Cells]] = Cells

    def __init__(self, name: Shard, log_bytes_max: int = LOG_BYTES_MAX) -> None:
        self.name = name
        self.cells = self.cells_type()
        self._log: dict[Actor, list[Logged]] = {}
        self._log_bytes = 0
        self._log_bytes_max = log_bytes_max
        self._sum: bytes | None = None

    # ---- what was seen ------------------------------------------------------------------------

    def sum(self) -> bytes:
        """The same where the same changes were seen; 8 bytes."""
        if self._sum is None:
            state = blake2b(digest_size=SUM_BYTES)
            for actor, number in sorted(self.cells.context.vector.items()):
                state.update(actor + number.to_bytes(8, "big"))
            self._sum = state.digest()
        return self._sum

    def seen(self) -> tuple[Seen, ...]:
        return tuple(Seen(a, n) for a, n in sorted(self.cells.context.vector.items()))

    def lacks(self, seen: tuple[Seen, ...]) -> bool:
        """Whether another has seen something that this replica has not."""
        context = self.cells.context
        return any(number > context.seen_of(Actor(actor)) for actor, number in seen)

    def log(self) -> Iterator[Logged]:
        """The batches that are kept, those of each actor in order."""
        for _, log in sorted(self._log.items()):
            yield from log

    def newest(self) -> tuple[bytes, ...]:
        """The newest batch of each actor."""
        return tuple(log[-1].raw for _, log in sorted(self._log.items()))

    # ---- batches --------------------------------------------------------------------------------

    def missing(self, batch: Batch) -> bool:
        """Whether changes that its actor made before are missing here, or of a life it ends."""
        return batch.first > self.cells.context.seen_of(batch.actor) + 1 or self.misses_end(batch)

    def misses_end(self, batch: Batch) -> bool:
        """Whether a life is over by it of which not everything was seen here, or too much."""
        return not all(map(self.cells.context.has_all_of, batch.ends))

    def knows(self, batch: Batch) -> bool:
        return batch.last <= self.cells.context.seen_of(batch.actor)

    def take(self, batch: Batch) -> set[str]:
        """Apply a verified batch of which nothing before is missing. The keys that it concerns."""
        news = [change for dot, change in batch.dots() if self.cells.apply(dot, change)]
        self.note(batch)
        return {change.key for change in news if change.key}

    def note(self, batch: Batch) -> None:
        """Keep a batch whose changes were applied."""
        self.keep(logged(batch))
        if batch.ends:
            self._drop_over()

    def keep(self, batch: Logged) -> None:
        """The same of one that ends no life."""
        self._sum = None
        self._log.setdefault(batch.actor, []).append(batch)
        self._log_bytes += len(batch.raw)
        if self._log_bytes > self._log_bytes_max:
            self._collect()

    def fold(self, node: NodeId, seen: tuple[Seen, ...], sign: Sign) -> None:
        """Make few batches of the many of a node that another lacks.

        Only the node itself can, which signs them: to verify one takes as long as ten changes.
        """
        theirs = {Actor(actor): number for actor, number in seen}
        for actor in [one for one in sorted(self._log) if node_of(one) == node]:
            log, had = self._log[actor], theirs.get(actor, 0)
            begin = next((n for n, batch in enumerate(log) if batch.last > had), len(log))
            if len(log) - begin < FOLDED_MIN:
                continue
            folded = [_one_of(run, sign) for run in _runs(log[begin:])]
            self._forget(actor)
            self._log[actor] = log[:begin] + folded
            self._log_bytes += sum(len(batch.raw) for batch in self._log[actor])

    def after(self, seen: tuple[Seen, ...]) -> tuple[list[bytes], bool, bool]:
        """What another lacks that has seen this much.

        Returns:
            Batches to send, each actor's in order; whether there are more of them; whether some
            are kept no more.
        """
        theirs = {Actor(actor): number for actor, number in seen}
        chosen: list[bytes] = []
        room = _SENT_BYTES
        gone = False
        for batch in self._beyond(theirs):
            if batch is None:
                gone = True
                continue
            if chosen and (room < len(batch.raw) or len(chosen) >= _SENT_MAX):
                return chosen, True, gone
            room -= len(batch.raw)
            chosen.append(batch.raw)
        return chosen, False, gone

    def _beyond(self, theirs: dict[Actor, int]) -> Iterator[Logged | None]:
        """Batches that another lacks; None for an actor whose next one is kept no more."""
        for actor, log in sorted(self._log.items()):
            had = theirs.get(actor, 0)
            if had >= log[-1].last:
                continue
            if log[0].first > had + 1:
                yield None
                continue
            yield from (batch for batch in log if batch.last > had)

    def _collect(self) -> None:
        """Drop old batches until the rest is half of what may be kept."""
        for log in sorted(self._log.values(), key=_oldest_stamp):
            while len(log) > 1 and self._log_bytes > self._log_bytes_max // 2:
                self._log_bytes -= len(log.pop(0).raw)

    # ---- whole states ---------------------------------------------------------------------------

    def join(self, other: Cells, newest: Iterable[Logged]) -> set[str]:
        """Take over what another replica holds; the keys that changed, or may have."""
        if self.cells.context.goes_past(other.context):
            later = self._later_than(other.context)
            if later is not None:
                return self._begin_anew(other, newest, later)
        ahead = [b for b in newest if b.last > self.cells.context.seen_of(b.actor)]
        changed = self.cells.join(other)
        self._sum = None
        self._drop_over()
        for batch in ahead:
            self._forget(batch.actor)
            self.keep(batch)
        return changed

    def _later_than(self, context: Context) -> list[Batch] | None:
        """All that was seen here and not there, of lives that are not over there; None: it is gone.

        Also None where it ends lives itself, or is not signed yet.
        """
        found: list[Batch] = []
        for actor, number in self.cells.context.vector.items():
            had = context.seen_of(actor)
            if number <= had:
                continue
            log = self._log.get(actor, [])
            if not log or log[0].first > had + 1 or log[-1].last < number:
                return None
            found += [decode_batch(one.raw) for one in log if one.last > had]
        return None if any(batch.ends for batch in found) else found

    def _begin_anew(
        self, other: Cells, newest: Iterable[Logged], later: Iterable[Batch]
    ) -> set[str]:
        """Hold what another holds, and what came later.

        What was seen here past a life's end cannot be taken back change by change.
        """
        before = set(self.cells)
        self.cells, self._log, self._log_bytes, self._sum = other, {}, 0, None
        for one in newest:
            self.keep(one)
        for batch in later:
            self.take(batch)
        return before | set(self.cells)

    def _drop_over(self) -> None:
        """Nobody asks for what lives wrote that are over: who lacks some takes the whole shard."""
        for actor in [one for one in self._log if self.cells.context.is_over(one)]:
            self._forget(actor)

    def _forget(self, actor: Actor) -> None:
        self._log_bytes -= sum(len(old.raw) for old in self._log.pop(actor, []))


def _runs(batches: list[Logged]) -> Iterator[list[Batch]]:
    """Batches that fit one, each of them with the next."""
    run: list[Batch] = []
    changes = size = removes = 0
    for one in batches:
        batch = decode_batch(one.raw)
        changes += len(batch.changes)
        size += len(batch.raw)
        removes += sum(len(change.removes) for change in batch.changes)
        fits = (
            changes <= CRDT_BATCH_CHANGES_MAX
            and size <= _FOLDED_BYTES_MAX
            and removes <= REMOVES_MAX
        )
        if run and not (
            fits and batch.first == run[-1].last + 1 and not batch.ends and not run[-1].ends
        ):
            yield run
            run, changes, size = [], len(batch.changes), len(batch.raw)
            removes = sum(len(change.removes) for change in batch.changes)
        run.append(batch)
    yield run


def _one_of(run: list[Batch], sign: Sign) -> Logged:
    if len(run) == 1:
        return logged(run[0])
    return logged(sign(run[0].actor, run[0].first, tuple(c for one in run for c in one.changes)))


def _oldest_stamp(log: list[Logged]) -> tuple[int, Actor]:
    return log[0].stamp, log[0].actor
