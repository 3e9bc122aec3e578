"""The shell of the eventual store: callers, peers, the disk.

What is acknowledged is synced here. While the disk refuses, nothing is written or taken over, and
callers are told; what is there can be read.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from heapq import merge
from itertools import dropwhile, takewhile
from typing import Any, Final, Protocol

import trio

from swarmd.base.clock import Clock
from swarmd.base.disk import Disk
from swarmd.base.errors import (
    Busy,
    DiskFault,
    ShuttingDown,
    SwarmError,
    TimedOut,
    WouldLoseData,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import KIB, MIB
from swarmd.base.machine import Event, Send
from swarmd.base.rng import Rng
from swarmd.mesh.driver import Driver
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.mesh.swim.events import Changed, Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import CRDT_DIGEST, CRDT_KEYS, DROPPED
from swarmd.state.crdt.cells import Cells
from swarmd.state.crdt.config import CrdtConfig
from swarmd.state.crdt.dots import Context, Dot, actor_of
from swarmd.state.crdt.events import (
    Dropped,
    Heard,
    Ignored,
    KeyChanged,
    Leave,
    Peers,
    Spoken,
    Stay,
    SyncDue,
    Wanted,
    Write,
    Written,
)
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import CRDT, Batches, Whole
from swarmd.state.crdt.placement import copies_of
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.stored import Image, encode_image, image_of
from swarmd.state.crdt.types.kinds import Live
from swarmd.state.crdt.types.values import Operation, read
from swarmd.state.crdt.watching import Changes, KeyWatch
from swarmd.state.crdt.writing import BatchSigner
from swarmd.state.raft.syncer import Syncer

_ANSWER_S: Final = 10.0
# To verify what a message may hold takes as long again.
_TURN_S: Final = 0.01
_WRITES_MAX: Final = 10_000
# Events that may wait before what peers say is dropped, and about how many bytes of that.
_HEARD_MAX: Final = 1_000
_HEARD_BYTES_MAX: Final = 32 * MIB
# What is larger goes behind what runs the swarm.
_CONTROL_BYTES_MAX: Final = 64 * KIB
_LOOK_AGAIN_S: Final = 30.0
_WATCHES_MAX: Final = 256
_DISK_AGAIN_S: Final = 1.0
# How often a node that leaves asks who has not taken its shards yet, and how many it names then.
_HAND_OVER_S: Final = 0.25
_NAMED_MAX: Final = 3
_FULL_S: Final = 0.1
_LIFE_BITS: Final = 64

_CONFIG: Final = CrdtConfig()

_log = get_logger("crdt")


class MemberChanges(Protocol):
    lagged: bool

    async def receive(self) -> Changed: ...


class Membership(Protocol):
    """What the store asks of membership; see `mesh.swim.service`."""

    def members(self) -> list[Member]: ...
    def subscribe(self) -> AbstractContextManager[MemberChanges]: ...


class Eventual:
    """Made by `open_eventual`."""

    def __init__(
        self,
        machine: ReplicaMachine,
        journal: ShardJournal,
        link: Link,
        syncer: Syncer,
        clock: Clock,
        nursery: trio.Nursery,
        life: bytes,
        replace_after_s: float,
    ) -> None:
        self._clock, self._replace_after_s = clock, replace_after_s
        self._machine, self._journal, self._link, self._syncer = machine, journal, link, syncer
        self._nursery = nursery
        self._tickets = 0
        self._waiting: dict[int, trio.Event] = {}
        self._outcomes: dict[int, SwarmError | None] = {}
        self._watches: list[KeyWatch] = []
        self._changes = Changes(life.hex())
        self._refuses: DiskFault | None = None
        self._keeping = False
        self._wanted = False
        self._closed = False
        CRDT_KEYS.set_function(lambda: sum(len(one.cells) for one in machine.shards()))
        CRDT_DIGEST.set_function(machine.digest)
        self._driver = Driver(
            "crdt",
            machine,
            {
                Send: self._perform_send,
                Written: self._perform_written,
                KeyChanged: self._perform_key_changed,
                Dropped: self._perform_dropped,
                Ignored: lambda effect: DROPPED.labels("crdt", effect.reason).inc(),
            },
            clock=clock,
            persist=self._persist,
            turn_s=_TURN_S,
        )

    # ---- callers ------------------------------------------------------------------------------

    async def write(
        self,
        bucket: str,
        key: str,
        operation: Operation,
        *,
        fields: tuple[str, ...] = (),
        expires_ms: int = 0,
        expects: Dot | tuple[()] | None = None,
    ) -> None:
        """Change a key; returns once that is on this node's disk. Others get it within a second.

        Raises:
            WrongType, Conflict, BadRequest, TooLarge, ClockSkew: nothing changed.
            DiskFault: this node's disk refuses writes; nothing changed.
            Busy: too many callers wait; nothing changed.
            TimedOut, ShuttingDown: whether it changed is unknown.

        Cancelled, it may have changed.
        """
        if self._refuses is not None:
            raise DiskFault(f"{self._refuses.message}: nothing changed; ask another node")
        if self._closed:
            raise ShuttingDown("this node is stopping: nothing changed; ask another one")
        if len(self._waiting) >= _WRITES_MAX:
            raise Busy(f"{_WRITES_MAX} writes wait already: nothing changed; try again shortly")
        self._tickets += 1
        ticket = self._tickets
        done = self._waiting[ticket] = trio.Event()
        try:
            self._driver.feed(Write(ticket, bucket, key, operation, fields, expires_ms, expects))
            with trio.move_on_after(_ANSWER_S) as late:
                await done.wait()
            if late.cancelled_caught:
                raise TimedOut("the disk is slow: whether the key changed is unknown; read it")
            error = self._outcomes.pop(ticket)
        finally:
            del self._waiting[ticket]
            self._outcomes.pop(ticket, None)
        if error is not None:
            raise error

    def cells(self, bucket: str, key: str) -> Live:
        """The live cells of a key; empty where there is none."""
        cells = self._machine.cells(bucket, key)
        return cells.at(key) if cells is not None else {}

    def seen(self, bucket: str, key: str) -> Context:
        """Which changes were seen of the shard that a key is in."""
        cells = self._machine.cells(bucket, key)
        return cells.context if cells is not None else Context()

    def has_seen(self, bucket: str, key: str, dot: Dot) -> bool:
        """Whether what a dot did to a key is known here, whether it still stands or not."""
        cells = self._machine.cells(bucket, key)
        return cells is not None and cells.context.has_seen(dot)

    def serves(self, bucket: str, shard: int) -> bool:
        """Whether this node holds a shard, and has what the others had when it came to."""
        if not self._wanted and copies_of(bucket):
            with suppress(Busy):  # It is asked again.
                self._driver.feed(Wanted())
                self._wanted = True
        return self._machine.holding.serves((bucket, shard))

    def holders(self, bucket: str, shard: int) -> tuple[NodeId, ...]:
        """Who holds a shard of a bucket that not all hold, by rank."""
        return self._machine.holding.of((bucket, shard))

    def get(self, bucket: str, key: str) -> Any:
        """What a key holds here and now. Raises NotFound."""
        return read(self.cells(bucket, key))

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys that begin with a prefix, in order."""
        return list(self.keys_after(bucket, prefix))

    def keys_after(
        self, bucket: str, prefix: str = "", after: str = "", shards: frozenset[int] | None = None
    ) -> Iterator[str]:
        """Keys that begin with a prefix and come after another, in order.

        What is not asked for costs nothing; nothing may be awaited while this goes on.

        Args:
            shards: those in these alone.
        """
        begin = max(prefix, after)
        found = merge(*(cells.keys_from(begin) for cells in self._cells_of(bucket, shards)))
        following = dropwhile(lambda key: key <= after, found) if after else found
        return takewhile(lambda key: key.startswith(prefix), following)

    async def each_key(self, bucket: str, prefix: str = "") -> AsyncIterator[str]:
        """The keys that begin with a prefix, in no order; the loop goes on meanwhile."""
        for cells in self._cells_of(bucket):
            found = takewhile(lambda key: key.startswith(prefix), cells.keys_from(prefix))
            for key in list(found):
                yield key
            await trio.lowlevel.checkpoint()

    async def expiring_keys(self, bucket: str) -> AsyncIterator[str]:
        """Keys that may expire, in no order; the loop goes on meanwhile."""
        for cells in self._cells_of(bucket):
            for key in cells.expiring():
                yield key
            await trio.lowlevel.checkpoint()

    def _cells_of(self, bucket: str, shards: frozenset[int] | None = None) -> list[Cells]:
        return [
            one.cells
            for one in self._machine.shards()
            if one.name[0] == bucket and (shards is None or one.name[1] in shards)
        ]

    @contextmanager
    def watch(self, bucket: str, prefix: str = "", since: str = "") -> Iterator[KeyWatch]:
        """Be told of keys that change, for as long as the block runs.

        Args:
            since: a position that a watch of the same keys had: from there on, and not from now.
                Where this node does not know any more what changed since, `lagged` is set.

        Raises:
            Busy: there are too many watches; one of them leaks.
        """
        if len(self._watches) >= _WATCHES_MAX:
            raise Busy(f"{_WATCHES_MAX} watch keys already")
        watch = KeyWatch(bucket, prefix, self._changes)
        if since:
            try:
                for change in self._changes.after(since):
                    watch.note(*change)
            except LookupError:
                watch.lagged = True
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    # ---- leaving ------------------------------------------------------------------------------

    async def hand_over(self, timeout_s: float, at_most_s: float = math.inf) -> None:
        """Have others hold what this node has of buckets that not all hold.

        From then on, also after an error, it holds nothing of them until `stay` is called, and
        whoever asks it for that is to ask the others.

        Args:
            timeout_s: how long others may neither fetch nor take anything.
            at_most_s: how long all of it may take.

        Raises:
            WouldLoseData: nobody is there to take it, or not all was taken in time. What others
                have taken by then they hand back when this node stays.

        Cancelled, it may have handed over some.
        """
        if self._machine.partial_shards() and not self._machine.alive:
            raise WouldLoseData(
                f"{self._shards_here()}, and no other member is alive to take them: nothing "
                "changed; start other nodes, or let some join, and try again"
            )
        began_s, progress = trio.current_time(), -1
        with trio.CancelScope() as scope:
            while not self._machine.holding.leaves or self._machine.partial_shards():
                if self._machine.handed_on != progress:
                    progress = self._machine.handed_on
                    scope.deadline = min(began_s + at_most_s, trio.current_time() + timeout_s)
                with suppress(Busy):
                    self._driver.feed(Leave())
                await trio.sleep(_HAND_OVER_S)
        if not self._machine.partial_shards():
            return  # Also where the disk refuses, so that no step ends: there is nothing to lose.
        raise WouldLoseData(self._not_taken(trio.current_time() - began_s))

    def stay(self) -> None:
        """The node does not leave after all."""
        if not self._closed:
            self._nursery.start_soon(self._feed, Stay())

    async def _feed(self, event: Event) -> None:
        """Have the machine take an event as soon as there is room."""
        while True:
            try:
                return self._driver.feed(event)
            except Busy:
                await trio.sleep(_FULL_S)

    def _shards_here(self) -> str:
        names = self._machine.partial_shards()
        shards = "1 shard" if len(names) == 1 else f"{len(names)} shards"
        copies = sorted({copies_of(bucket) for bucket, _ in names})
        return f"this node holds {shards} of namespaces with --copies {', '.join(map(str, copies))}"

    def _not_taken(self, waited_s: float) -> str:
        """What could not be handed over, and to whom."""
        holding, alive = self._machine.holding, self._machine.alive
        living: dict[NodeId, None] = {}
        dead: dict[NodeId, None] = {}
        for name in self._machine.partial_shards():
            holders, begun = holding.of(name), holding.rounds.get(name)
            taken = begun.taken if begun is not None else ()
            living.update(dict.fromkeys(o for o in holders if o in alive and o not in taken))
            if not any(one in alive for one in holders):
                dead.update(dict.fromkeys(holders))
        parts = [f"{_named(living)} did not take all of them" if living else ""]
        parts += [f"{_named(dead)}, which are to hold them, are not alive" if dead else ""]
        why = ", and ".join(filter(None, parts)) or "nobody is left to hold them"
        return (
            f"{self._shards_here()}, and within {waited_s:.0f} s {why}; what others took "
            "they hand back: try again once enough nodes are up"
        )

    # ---- effects ------------------------------------------------------------------------------

    def _perform_send(self, effect: Send) -> None:
        large = _bytes_of(effect.message) > _CONTROL_BYTES_MAX
        lane = Lane.BULK if large or isinstance(effect.message, Whole) else Lane.CONTROL
        if not self._link.send_nowait(CRDT, effect.peer, effect.message, lane=lane):
            kind = "pushed" if isinstance(effect.message, Batches) else "not_sent"
            DROPPED.labels("crdt", kind).inc()  # Anti-entropy makes it good.

    def _perform_written(self, effect: Written) -> None:
        waiting = self._waiting.get(effect.ticket)
        if waiting is not None:  # Else whoever asked is gone.
            self._outcomes[effect.ticket] = effect.error
            waiting.set()

    def _perform_key_changed(self, effect: KeyChanged) -> None:
        number = self._changes.add(effect.bucket, effect.key)
        for watch in self._watches:
            watch.note(effect.bucket, effect.key, number)

    def _perform_dropped(self, effect: Dropped) -> None:
        """Who watches keys that others hold now is told to read them all."""
        for watch in self._watches:
            watch.lose(effect.shard[0])

    # ---- the disk -----------------------------------------------------------------------------

    async def _persist(self, ahead: bool) -> None:
        """Return once everything is synced, however long the disk refuses."""
        while True:
            try:
                await self._syncer.run(self._journal.sync, light=True, ahead=ahead)
                break
            except DiskFault as error:
                if self._refuses is None:
                    _log.error("the disk refuses writes of the eventual store", why=error.message)
                self._refuses = error
                await trio.sleep(_DISK_AGAIN_S)
        if self._refuses is not None:
            _log.info("the disk takes writes of the eventual store again")
            self._refuses = None
        if self._journal.is_long and not self._keeping:
            self._keeping = True
            self._nursery.start_soon(self._keep, self._journal.turn())

    async def _keep(self, names: list[tuple[str, int]]) -> None:
        """Write shards whole, so that older logs can go."""
        try:
            for name in names:
                while self._machine.is_written_to(name):  # Until this step's changes are signed.
                    await trio.lowlevel.checkpoint()
                shard = self._machine.shard(name)
                if shard is None:
                    await trio.to_thread.run_sync(self._journal.remove, name)
                else:
                    await trio.to_thread.run_sync(self._keep_one, image_of(shard))
            await trio.to_thread.run_sync(self._journal.forget)
        except DiskFault as error:
            # The logs stay; what is in them is written with the next ones.
            _log.warning("shards of the eventual store not kept", why=error.message)
            self._journal.touch(names)
        finally:
            self._keeping = False

    def _keep_one(self, image: Image) -> None:
        self._journal.keep(image.name, encode_image(image))

    # ---- peers --------------------------------------------------------------------------------

    async def _receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        waiting_bytes = 0
        async for inbound in inbox:
            waiting_bytes = waiting_bytes if self._driver.waiting else 0
            full = self._driver.waiting >= _HEARD_MAX or waiting_bytes > _HEARD_BYTES_MAX
            # While the disk refuses nothing is taken over, and what waits may be large.
            if self._refuses is not None or full:
                DROPPED.labels("crdt", "busy").inc()  # Anti-entropy makes it good.
            else:
                waiting_bytes += _bytes_of(inbound.message)
                self._driver.feed(Heard(inbound.peer, inbound.message))

    async def _watch_members(
        self, membership: Membership, everyone: Callable[[], Iterable[NodeId]]
    ) -> None:
        with membership.subscribe() as changes:
            while True:
                alive, all_ = _alive(membership, self._link.node_id), frozenset(everyone())
                gone = _gone(membership, self._clock.now() - self._replace_after_s)
                with suppress(Busy):
                    self._driver.feed(Peers(alive, all_, all_ - gone))
                with trio.move_on_after(_LOOK_AGAIN_S):
                    await changes.receive()

    def _close(self) -> None:
        self._closed = True
        for ticket, waiting in self._waiting.items():
            unknown = "this node is stopping: whether the key changed is unknown; read it elsewhere"
            self._outcomes.setdefault(ticket, ShuttingDown(unknown))
            waiting.set()


def _named(nodes: Iterable[NodeId]) -> str:
    """Some nodes in words, and how many more there are."""
    names = [short(one) for one in nodes]
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _bytes_of(message: Spoken) -> int:
    """How many bytes a message has, about, where they may be many."""
    match message:
        case Batches():
            return sum(map(len, message.batches))
        case Whole():
            values = sum(len(one.cell.value) + len(one.cell.element) for one in message.cells)
            return values + sum(map(len, message.newest)) + 200 * len(message.cells)
    return 0


def _alive(membership: Membership, me: NodeId) -> tuple[NodeId, ...]:
    states = (MemberState.ALIVE, MemberState.SUSPECT)
    found = (one.node_id for one in membership.members() if one.state in states)
    return tuple(sorted(node_id for node_id in found if node_id != me))


def _gone(membership: Membership, since: float) -> frozenset[NodeId]:
    """Members that have left, or are dead since then or longer."""
    return frozenset(
        one.node_id
        for one in membership.members()
        if one.state is MemberState.LEFT
        or (one.state is MemberState.DEAD and one.changed_at <= since)
    )


async def _load(journal: ShardJournal) -> list[ShardState]:
    """By turns: a thread that decodes would have the loop wait for the interpreter all the time."""
    loading, answer = journal.loading(), None
    while True:
        try:
            wanted = loading.send(answer)
        except StopIteration as end:
            shards: list[ShardState] = end.value
            return shards
        answer = await trio.to_thread.run_sync(wanted)


@asynccontextmanager
async def open_eventual(
    link: Link,
    membership: Membership,
    disk: Disk,
    signer: BatchSigner,
    clock: Clock,
    rng: Rng,
    everyone: Callable[[], Iterable[NodeId]],
    config: CrdtConfig = _CONFIG,
) -> AsyncIterator[Eventual]:
    """Hold a replica of the eventual store for as long as the block runs.

    Args:
        everyone: all nodes that may come back, in reach or not, this one among them.

    Raises:
        DiskFault: the disk cannot be read or written. Damaged files are moved aside, and named in
            the log.
    """
    journal = ShardJournal(disk)
    shards = await _load(journal)
    life = rng.getrandbits(_LIFE_BITS).to_bytes(8, "big")
    actor = actor_of(link.node_id, life)
    machine = ReplicaMachine(link.node_id, actor, signer, journal, rng, clock.wall_ms, shards)
    syncer = Syncer(blocking=disk.blocking)
    try:
        async with link.open_inbox(CRDT) as inbox, trio.open_nursery() as nursery:
            store = Eventual(
                machine, journal, link, syncer, clock, nursery, life, config.replace_after_s
            )
            store._driver.feed(SyncDue())
            nursery.start_soon(store._driver.run)
            nursery.start_soon(partial(store._receive, inbox))
            nursery.start_soon(store._watch_members, membership, everyone)
            try:
                yield store
            finally:
                store._close()
                nursery.cancel_scope.cancel()
    finally:
        syncer.close()
