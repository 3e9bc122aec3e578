"""The strong store as the rooms above use it: propose and read from any node.

Rules:
- Only the coordinator proposes: the leader that has applied its own `TakeOffice`, whose
  revision is the fence of the office. Every other node forwards to it.
- Nothing waits longer than its timeout; then it raises `NoQuorum`.
- Store time is `storetime.py`'s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.disk import Disk
from swarmd.base.errors import (
    LeaseExpired,
    RemoteError,
    SwarmError,
    TimedOut,
    Unavailable,
)
from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng, derive
from swarmd.identity.keys import SigningKey
from swarmd.mesh.link import Link
from swarmd.mesh.trust import Trust
from swarmd.observe.log import get_logger
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.answers import Answers
from swarmd.state.raft.caller import ATTEMPT_TIMEOUT_S, Caller
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.copies import Copies
from swarmd.state.raft.feed import Feed
from swarmd.state.raft.handing import Handing
from swarmd.state.raft.heads import Heads
from swarmd.state.raft.keeper import Keeper, MembersView
from swarmd.state.raft.leaseclock import run_lease_clock
from swarmd.state.raft.messages import Entry, Operation, OpResult
from swarmd.state.raft.pipe import RETRY_MAX_S, RETRY_MIN_S, Pipe, no_quorum
from swarmd.state.raft.reads import Reads
from swarmd.state.raft.recovery import Recovery
from swarmd.state.raft.replica import Replica
from swarmd.state.raft.seats import Seats
from swarmd.state.raft.statemachine import Change, StateMachine
from swarmd.state.raft.storage import open_epochs
from swarmd.state.raft.storetime import StoreTime
from swarmd.state.raft.views import Office, Overstepping, StoreStatus
from swarmd.state.raft.watching import Watches

__all__ = ["Change", "Entry", "Office", "Store", "StoreStatus", "open_store"]

DEFAULT_TIMEOUT_S: Final = 5.0
CHANGES_WAITING_MAX: Final = 1_000
OFFICES_WAITING_MAX: Final = 100
_MAY_COME: Final = "it may still come about: see `swarmctl status`"
_log = get_logger("raft")


class Store:
    """See the module. Made by `open_store`."""

    def __init__(
        self,
        *,
        link: Link,
        membership: MembersView,
        trust: Trust,
        disk: Disk,
        key: SigningKey,
        config: RaftConfig,
        clock: Clock,
        rng: Rng,
        epochs: Sequence[bytes],
        nursery: trio.Nursery,
    ) -> None:
        self._link = link
        self._membership = membership
        self._trust = trust
        self._rng = derive(rng, "store")
        self._nursery = nursery
        self._office: Office | None = None
        # The epoch and term in which this node last set out to take office.
        self._candidacy: tuple[int, int] = (0, 0)
        self._office_changed = trio.Event()
        self._offices: Feed[Office | None] = Feed(OFFICES_WAITING_MAX)
        self._feed: Feed[list[Change]] = Feed(CHANGES_WAITING_MAX)
        self._emitted_revision = 0
        self._time = StoreTime(clock)
        chain, files, me = open_epochs(disk, trust, key, epochs)
        self._keeper = Keeper(
            chain=chain,
            files=files,
            me=me,
            life=files.count_start(derive(rng, "life").randbytes(16)),
            genesis=trust.genesis,
            key=key,
            link=link,
            membership=membership,
            clock=clock,
            rng=derive(rng, "keeper"),
            config=config,
            nursery=nursery,
            on_replica=self._replica_changed,
            on_office=self._on_office,
            on_applied=self._on_applied,
        )
        trust.epochs = chain
        self._heads = Heads(trust, key, link)
        # For the day when a majority of the voters is lost for ever.
        self.recovery = Recovery(self._keeper, trust.genesis, self.read_index, trust)
        self._caller = Caller(self._keeper, link, derive(rng, "caller"), nursery)
        self._reads = Reads(
            self._keeper, self._caller, self.serving, self.store_time_ms, derive(rng, "reads")
        )
        self._watches = Watches(self._keeper, self._caller, self._reads, derive(rng, "watches"))
        self.handing = Handing(link.node_id, membership, self._caller, self.serving)
        self._pipe = Pipe(self._submit, clock=clock, rng=derive(rng, "pipe"), nursery=nursery)
        self._copies = Copies(self._keeper, link, clock, nursery)
        self._answers = Answers(self, self._watches, nursery)
        self._seats = Seats(
            keeper=self._keeper,
            copies=self._copies,
            link=link,
            membership=membership,
            trust=trust,
            clock=clock,
            config=config,
            serving=self.serving,
            propose=self._propose_alone,
            nursery=nursery,
        )

    # ---- writing -------------------------------------------------------------------------

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[OpResult]:
        """Apply each operation once, in order, from any node; one result per operation.

        Not atomic: operations of other callers may come between, and beyond 256 operations
        or 1 MiB a prefix may be applied alone. A `Txn` is atomic. An operation refused by
        its condition or its bounds is a result with a code, not an exception.

        Args:
            timeout_s: longest wait.

        Raises:
            BadRequest, TooLarge: an operation is not allowed; nothing was applied.
            NoQuorum: no majority within `timeout_s`. The outcome is unknown until the call
                returns, and what was not applied by then may still be within seconds.
            SessionExpired: the outcome is unknown; it will not be applied from now on.
            Forbidden: not what this node may write (`rights.py`). Nothing was applied, unless it
                lost a right or a seat just now: then the outcome is unknown.
            Busy: too many calls wait.

        Cancellation: the outcome is unknown.
        """
        return await self._pipe.propose(ops, timeout_s=timeout_s)

    async def _submit(self, groups: tuple[m.Group, ...]) -> Sequence[Sequence[OpResult]]:
        """One try; raises what went wrong."""
        replica = self.serving()
        if replica is not None:
            return await self.propose_here(replica, groups)
        answer = await self._caller.ask_coordinator(m.Forward(groups))
        lengths = [len(group.ops) for group in groups]
        if not isinstance(answer, m.Results) or list(map(len, answer.groups)) != lengths:
            raise RemoteError("not the results of these operations")
        return answer.groups

    async def propose_here(
        self, replica: Replica, groups: tuple[m.Group, ...]
    ) -> list[list[OpResult]]:
        """Commit here; a lone voter also waits for the living copies of its log."""
        results = await self._commit(replica, groups)
        if len(replica.epoch.voters) == 1:
            number = replica.epoch.number
            await self._copies.wait_for_holders(number, replica.applied_index)
        return results

    async def _commit(self, replica: Replica, groups: tuple[m.Group, ...]) -> list[list[OpResult]]:
        with trio.move_on_after(ATTEMPT_TIMEOUT_S):
            return await replica.propose(groups, self.store_time_ms())
        raise TimedOut("the voters did not answer in time")

    async def _propose_alone(self, replica: Replica, op: Operation) -> OpResult:
        results = await self._commit(replica, (m.Group(b"", 0, 0, (op,)),))
        return results[0][0]

    # ---- reading -------------------------------------------------------------------------

    async def read_index(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """A revision at or above everything acknowledged before this call.

        On a voter, `local` has reached it on return. Raises NoQuorum.
        """
        return await self._reads.read_index(timeout_s)

    async def read_time_ms(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Store time at the coordinator, in milliseconds, from any node. Raises NoQuorum."""
        return await self._reads.read_time_ms(timeout_s)

    async def get(
        self, key: bytes, *, stale: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Entry | None:
        """The entry of `key`, or None; linearizable unless `stale`. Raises NoQuorum."""
        return await self._reads.get(key, stale, timeout_s)

    async def range(
        self,
        prefix: bytes,
        after: bytes = b"",
        limit: int = 1_000,
        *,
        stale: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> list[Entry]:
        """Up to `limit` entries under `prefix` with keys above `after`, by key.

        Linearizable unless `stale`; a range that takes several answers is linearizable page
        by page. Raises NoQuorum.
        """
        return await self._reads.range(prefix, after, limit, stale, timeout_s)

    async def leases(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[m.LeaseInfo]:
        """Every lease that lives, the oldest first; linearizable. Raises NoQuorum."""
        return list((await self._reads.leases(0, timeout_s)).leases)

    async def lease(
        self, lease: int, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> tuple[m.LeaseInfo, tuple[bytes, ...]]:
        """One lease and the first of its keys, sorted; linearizable.

        Raises:
            LeaseExpired: it has ended or never was.
            NoQuorum: no majority within `timeout_s`.
        """
        got = await self._reads.leases(lease, timeout_s)
        if not got.leases:
            raise LeaseExpired(f"lease {lease} has ended or never was: grant another one")
        return got.leases[0], got.keys

    def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]:
        """Changes of keys under `prefix`, from a revision on, for ever. See `Watches.watch`."""
        return self._watches.watch(prefix, from_revision)

    async def barrier(self, replica: Replica) -> None:
        """Wait until `replica` may be read linearizably. Raises Unavailable."""
        await self._reads.barrier(replica)

    # ---- who coordinates -----------------------------------------------------------------

    def serving(self) -> Replica | None:
        """The replica, if this node is the coordinator of an epoch that goes on."""
        replica = self._keeper.replica
        if self._office is None or replica is None or not replica.leads:
            return None
        return replica if replica.state.sealed is None else None

    def coordinator(self) -> NodeId | None:
        """The coordinator as last heard of; None if unknown."""
        replica = self._keeper.replica
        if replica is None or replica.disk_fault:
            return self._caller.hint
        return replica.leader

    @property
    def office(self) -> Office | None:
        """This node's office, None if it is not the coordinator."""
        return self._office

    async def office_changed(self) -> None:
        """Wait until `office` changes next."""
        await self._office_changed.wait()

    def subscribe_office(self) -> trio.MemoryReceiveChannel[Office | None]:
        """Offices from now on, the present one first. The channel ends when 100 wait."""
        return self._offices.subscribe(self._office)

    def _set_office(self, office: Office | None) -> None:
        if office == self._office:
            return
        self._office = office
        self._office_changed.set()
        self._office_changed = trio.Event()
        self._offices.emit(office)

    def _on_office(self, replica: Replica) -> None:
        if replica is not self._keeper.replica:
            return
        office = replica.office
        if not replica.leads:
            self._set_office(None)
        elif self._office is None and self._candidacy != (replica.epoch.number, office.term):
            self._candidacy = (replica.epoch.number, office.term)
            self._nursery.start_soon(self._take_office, replica, office.term)
        self._caller.leader_changed(replica.leader)
        self._watches.wake()

    async def _take_office(self, replica: Replica, term: int) -> None:
        self._time.begin(replica.state.time_ms)
        while replica.leads and replica.office.term == term and self._office is None:
            try:
                result = await self._propose_alone(replica, m.TakeOffice(self._link.node_id))
            except Unavailable:
                # Unknown outcome: a second entry in the same term only takes another revision.
                await trio.sleep(RETRY_MIN_S)
                continue
            if result.ok and replica.leads and replica.office.term == term:
                self._time.begin(self.store_time_ms())
                self._set_office(Office(result.revision, replica.epoch.number))
            return

    def store_time_ms(self) -> int:
        """Store time as known here without asking: exact on the coordinator only, 0 where
        there is no copy of the state. See `read_time_ms`.
        """
        replica = self._keeper.replica
        applied_ms = replica.state.time_ms if replica is not None else 0
        if replica is None or not replica.leads:
            return applied_ms
        return max(applied_ms, self._time.now_ms())

    # ---- what happens in the replica -----------------------------------------------------

    def _replica_changed(self) -> None:
        self._set_office(None)
        replica = self._keeper.replica
        if replica is not None and replica.state.revision != self._emitted_revision:
            self._feed.close()
            self._emitted_revision = replica.state.revision
        self._heads.state_moved(self._keeper.replica)
        self._reads.state_moved()
        self._watches.wake()

    def _on_applied(self, replica: Replica) -> None:
        if replica is not self._keeper.replica:
            return
        changes = replica.state.drain_changes()
        self._emitted_revision = replica.state.revision
        if changes is None:
            self._feed.close()
        elif changes:
            self._feed.emit(changes)
        self._heads.state_moved(self._keeper.replica)
        self._reads.state_moved()
        self._watches.state_moved()
        self._copies.applied()
        if replica.state.sealed is not None:
            self._set_office(None)
            self._keeper.seal_applied(replica)

    def changes(self) -> trio.MemoryReceiveChannel[list[Change]]:
        """Changes applied here from now on, in order of revisions; voters only.

        The channel ends when 1,000 lists wait, when changes were missed, or when this node
        gave up its seat: subscribe again, then read the whole state.

        Raises:
            Unavailable: this node is no voter now.
        """
        if self._keeper.replica is None:
            raise Unavailable("this node holds no copy of the strong store")
        return self._feed.subscribe()

    # ---- what can be seen ----------------------------------------------------------------

    @property
    def local(self) -> StateMachine | None:
        """This voter's copy of the state, to be read only; None on others."""
        replica = self._keeper.replica
        return replica.state if replica is not None else None

    @property
    def is_voter(self) -> bool:
        return self._keeper.has_seat

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """The voters of the newest epoch known, sorted."""
        return self._keeper.chain.head.node_ids

    def status(self) -> StoreStatus:
        """Cheap; asks nobody."""
        keeper, replica = self._keeper, self._keeper.replica
        head = keeper.chain.head
        alive = set(self._membership.alive())
        living = sum(v in alive for v in head.node_ids)
        raft = replica.status() if replica is not None else None
        state, detail = self._health(living)
        return StoreStatus(
            epoch=head.number,
            voters=head.node_ids,
            role=raft.role if raft is not None else "none",
            term=raft.term if raft is not None else 0,
            commit=raft.commit_index if raft is not None else 0,
            applied=raft.applied_index if raft is not None else 0,
            revision=replica.state.revision if replica is not None else -1,
            leader=self.coordinator(),
            may_lose=living - head.majority,
            state=state,
            detail=detail,
            log=replica.log() if replica is not None else None,
            copies=self._disks(),
        )

    def _disks(self) -> int:
        """On how many disks what is acknowledged now is, at least; as far as is known here."""
        keeper, replica = self._keeper, self._keeper.replica
        head = keeper.chain.head
        if len(head.voters) > 1:
            return head.majority
        if replica is not None and replica.epoch.number == head.number:
            return 1 + self._copies.holders(head.number, replica.applied_index)
        return 2 if keeper.copier.follows(head.number) else 1

    def _health(self, living: int) -> tuple[str, str]:
        keeper, replica = self._keeper, self._keeper.replica
        head = keeper.chain.head
        if replica is not None and replica.disk_fault:
            return "disk_fault", f"the disk refuses writes: {replica.disk_fault}"
        if keeper.waits_for is not None:
            return "epoch_waiting", keeper.waits_for
        if living < head.majority:
            return "no_quorum", f"{living} of {len(head.voters)} voters are alive"
        if replica is not None and replica.leader is None:
            return "no_quorum", "the voters have no leader now"
        if self._heads.overdue:
            return "uncertified", "the authority log waits for signatures of a majority of voters"
        return "ok", ""

    def take_overstepping(self) -> list[Overstepping]:
        """Members whose forwards this coordinator refused, since the last call; bounded."""
        return self._answers.take_overstepping()

    # ---- leaving -------------------------------------------------------------------------

    async def transfer(
        self, target: NodeId | None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> NodeId:
        """Hand the coordinator's office to `target`, or to the best one; who holds it then.

        Raises:
            BadRequest: `target` is no voter, or there is no other one.
            NoQuorum: it did not come about within `timeout_s`; it may still.
        """
        asked: set[NodeId] = set()
        attempt = partial(self.handing.try_transfer, target, asked)
        return await self._reads.until(attempt, timeout_s, _MAY_COME)

    async def hand_over_seat(self, timeout_s: float = 10.0) -> None:
        """Give this node's seat away; on return a majority of the others holds everything.

        From then on, also after an error, it takes no other seat until `stay` is called. If it
        coordinates, the office goes first: who has it then makes the change and keeps it in the
        next epoch, so that nobody waits for an election.

        Raises:
            WouldLoseData: nobody alive can take over; the seats are as they were.
            NoQuorum: it did not come about within `timeout_s`; it may still.
        """
        keeper = self._keeper
        keeper.leaving = True

        async def attempt() -> None:
            if keeper.is_free:
                return
            if keeper.has_seat:
                if self.serving() is not None:
                    await self._seats.hand_over(self._link.node_id)
                else:
                    await self._caller.ask_coordinator(m.HandOver())
            with trio.move_on_after(1.0):
                while not keeper.is_free:
                    await keeper.changed()
                return
            raise TimedOut("the next epoch has not begun yet")

        trouble: SwarmError | None = None
        delay_s = RETRY_MIN_S
        with trio.move_on_after(timeout_s):
            await self.handing.give_up()  # Where it stays here, this node makes the change.
            while True:
                try:
                    return await attempt()
                except (Unavailable, RemoteError) as error:
                    trouble = error
                # At first soon: a successor may be about to take office.
                await trio.sleep(delay_s)
                delay_s = min(delay_s * 1.6, RETRY_MAX_S)
        raise no_quorum(timeout_s, trouble)

    def stay(self) -> None:
        """The node does not leave after all."""
        self._keeper.leaving = False

    async def hand_over_for(self, peer: NodeId) -> None:
        """On the coordinator: `peer` leaves. See `Seats.hand_over`."""
        await self._seats.hand_over(peer)

    def learn_epochs(self, certificates: Sequence[bytes]) -> None:
        """Take verified certificates of epochs that came from elsewhere than from a member."""
        self._keeper.learn(certificates)

    @property
    def epoch_number(self) -> int:
        return self._keeper.chain.head.number

    # ---- running -------------------------------------------------------------------------

    def start(self) -> None:
        """Open the inboxes and start every loop."""
        nursery, keeper, link = self._nursery, self._keeper, self._link
        nursery.start_soon(keeper.receive_packets, link.open_inbox(m.RAFT, size=1_000))
        nursery.start_soon(keeper.receive, link.open_inbox(emsg.EPOCH, size=200))
        nursery.start_soon(self._heads.receive, link.open_inbox(emsg.HEADS, size=200))
        nursery.start_soon(self._heads.run)
        nursery.start_soon(self._answers.run, link.open_inbox(m.STORE, size=1_000))
        nursery.start_soon(self._copies.receive, link.open_inbox(emsg.COPY, size=200))
        nursery.start_soon(keeper.run)
        nursery.start_soon(self._pipe.run)
        nursery.start_soon(self._seats.run)
        nursery.start_soon(run_lease_clock, self)

    def stop(self) -> None:
        self._feed.close()
        self._offices.close()


@asynccontextmanager
async def open_store(
    link: Link,
    membership: MembersView,
    trust: Trust,
    disk: Disk,
    key: SigningKey,
    config: RaftConfig,
    clock: Clock,
    rng: Rng,
    epochs: Sequence[bytes] = (),
) -> AsyncIterator[Store]:
    """Take part in the strong store for as long as the block runs.

    Args:
        disk: the store's own files, named `raft.*`.
        epochs: certificates that a joining node was given; what is on disk comes first.

    Raises:
        CorruptFile, Diverged, EpochFork: this node must not go on; also from within the block.
        BadSignature, Untrusted: `epochs` do not follow from the genesis.
    """
    async with trio.open_nursery() as nursery:
        store = Store(
            link=link,
            membership=membership,
            trust=trust,
            disk=disk,
            key=key,
            config=config,
            clock=clock,
            rng=rng,
            epochs=epochs,
            nursery=nursery,
        )
        store.start()
        try:
            yield store
        finally:
            store.stop()
            nursery.cancel_scope.cancel()
