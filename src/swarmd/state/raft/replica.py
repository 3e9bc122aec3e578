"""One epoch's log on one voter: the machine, its driver, and who waits for what.

Proposals and read rounds are answered through events, one per batch, so that a thousand
operations cost a handful of wake-ups. Reads share rounds: while one is under way, all that
arrive wait together for the next, since a round that began earlier proves nothing to them.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    Busy,
    DiskFault,
    Moved,
    NotCoordinator,
    SwarmError,
    TimedOut,
    TooLarge,
    Unavailable,
)
from swarmd.base.ids import NodeId, short, to_text
from swarmd.base.rng import Rng
from swarmd.identity.epochs import Epoch
from swarmd.mesh.driver import Driver
from swarmd.mesh.link import Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.journal import Owner
from swarmd.state.raft.machine import (
    START,
    Applied,
    Deliver,
    Doubt,
    Office,
    Propose,
    Proposed,
    RaftMachine,
    RaftStatus,
    ReadIndex,
    ReadReady,
    SendAhead,
    SendRaft,
    Stand,
    Transfer,
    Transferred,
    Wake,
)
from swarmd.state.raft.messages import RAFT, Batch, Group, OpResult, Packet, encode_batch
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.storage import PrefixDisk
from swarmd.state.raft.syncer import Syncer
from swarmd.state.raft.views import Follower, VoterLog

DISK_RETRY_S: Final = 1.0
_log = get_logger("raft")


class _Waiting:
    """A proposal or a read round under way."""

    __slots__ = ("done", "error", "results")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: SwarmError | None = None
        self.results: list[list[OpResult]] = []

    def end(self, error: SwarmError | None) -> None:
        self.error = error
        self.done.set()


class Replica:
    """A voter's part in `epoch`.

    Args:
        state: holds what the epoch begins with.
        on_office: called when role, term or leader changed.
        on_applied: called when the state took up more of the log.
            Neither may wait or raise.
        stand_at_once: ask for office without waiting, for this node held it before.

    Raises:
        SwarmError: the log on `disk` is damaged or of other voters.
    """

    def __init__(
        self,
        epoch: Epoch,
        state: StateMachine,
        disk: PrefixDisk,
        *,
        swarm_id: bytes,
        link: Link,
        clock: Clock,
        rng: Rng,
        config: RaftConfig,
        on_office: Callable[[Replica], None],
        on_applied: Callable[[Replica], None],
        stand_at_once: bool = False,
    ) -> None:
        self.epoch = epoch
        self.state = state
        # What the disk says while it refuses; empty while it works.
        self.disk_fault = ""
        self._link = link
        self._clock = clock
        self._on_office = on_office
        self._on_applied = on_applied
        self._ids = {to_text(node_id): node_id for node_id in epoch.node_ids}
        self._names = {node_id: name for name, node_id in self._ids.items()}
        me = self._names[link.node_id]
        self._machine = RaftMachine(
            me,
            tuple(sorted(self._ids)),
            disk,
            state,
            rng,
            config,
            clock.now(),
            owner=Owner(swarm_id, link.node_id),
        )
        self._syncer = Syncer(blocking=disk.blocking)
        self._driver = Driver(
            "raft",
            self._machine,
            {
                SendRaft: self._send,
                SendAhead: self._send,
                Proposed: self._proposed,
                ReadReady: self._read_ready,
                Transferred: self._transferred,
                Office: self._office_changed,
                Applied: self._applied,
            },
            clock=clock,
            persist=self._persist,
        )
        self._tag = 0
        self._pending: dict[int, _Waiting] = {}
        self._round: _Waiting | None = None
        self._round_tag = 0
        self._next_round: _Waiting | None = None
        self._stand_at_once = stand_at_once
        self._moved = trio.Event()
        self._closed = False
        self._doubted: set[NodeId] = set()

    # ---- what can be seen --------------------------------------------------------------

    @property
    def office(self) -> Office:
        return self._machine.office

    @property
    def leader(self) -> NodeId | None:
        name = self._machine.office.leader
        return None if name is None else self._ids.get(name)

    @property
    def leads(self) -> bool:
        """Is this the leader, with an entry of its own term applied?"""
        office = self._machine.office
        able = not self._closed and not self.disk_fault
        return office.state == "leader" and office.ready and able

    @property
    def applied_index(self) -> int:
        """The index of the log's entry that `state` is at."""
        return self._machine.applied_index

    def unapplied(self) -> list[bytes]:
        """Commands in the log behind what is applied; whether they commit is not known."""
        return self._machine.unapplied()

    def applied_after(self, index: int, bytes_max: int) -> list[bytes] | None:
        """What was applied after `index`; None if the log does not hold it (any more)."""
        return self._machine.applied_after(index, bytes_max)

    def status(self) -> RaftStatus:
        return self._machine.status(self._clock.now())

    def log(self) -> VoterLog:
        """How the log is, as told to people."""
        found = self.status()
        return VoterLog(
            role=found.role,
            term=found.term,
            fence=self.state.office[1],
            commit=found.commit_index,
            applied=found.applied_index,
            last=found.last_index,
            snapshot=found.snapshot_index,
            journal_bytes=found.journal_bytes,
            sync_last_s=self._syncer.last_s,
            sync_slowest_s=self._syncer.slowest_s,
            followers={
                self._ids[name]: Follower(found.last_index - held, found.silence_s[name])
                for name, held in found.matched.items()
            },
        )

    # ---- running -----------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled; then everybody who waits is told to ask elsewhere."""
        try:
            self._driver.feed(Stand() if self._stand_at_once else Wake(START))
            await self._driver.run()
        finally:
            self._syncer.close()
            self.close()

    def _check_able(self) -> None:
        if self._closed:
            raise Moved(f"epoch {self.epoch.number} has ended on this node")
        if self.disk_fault:
            raise self.disk_refusal()

    def close(self) -> None:
        self._closed = True
        moved = Moved(f"epoch {self.epoch.number} has ended on this node")
        self._end_waiting(moved)

    def _end_waiting(self, error: SwarmError) -> None:
        for waiting in self._pending.values():
            waiting.end(error)
        self._pending.clear()
        self._end_rounds(error)

    def deliver(self, peer: NodeId, data: bytes) -> None:
        """Take a packet of this epoch."""
        name = self._names.get(peer)
        if name is None:
            DROPPED.labels("raft", "not_a_voter").inc()
            return
        try:
            self._driver.feed(Deliver(name, data))
        except Busy:
            DROPPED.labels("raft", "inbox_full").inc()

    def doubt(self, gone: Container[NodeId]) -> None:
        """Take note of whom membership holds for suspect or gone."""
        doubted = {peer for peer in self._names if peer in gone and peer != self._link.node_id}
        for peer in sorted(doubted ^ self._doubted):
            try:
                self._driver.feed(Doubt(self._names[peer], peer in doubted))
            except Busy:
                DROPPED.labels("raft", "inbox_full").inc()  # Told again with the next change.
            else:
                self._doubted ^= {peer}

    async def propose(self, groups: tuple[Group, ...], stamp_ms: int) -> list[list[OpResult]]:
        """Commit and apply one batch; results per group and operation.

        Raises:
            BadRequest: applying it failed, on every voter alike.
            NotCoordinator, Busy, Moved, Unavailable: ask again, elsewhere or later. The
                outcome is unknown.
            DiskFault: the disk of this lone voter refuses writes; the outcome is unknown.
            TooLarge: the batch exceeds what the log takes.
        Cancellation: the outcome is unknown.
        """
        self._check_able()
        self._tag += 1
        tag, waiting = self._tag, _Waiting()
        self._driver.feed(Propose(encode_batch(Batch(stamp_ms, groups)), tag))
        self._pending[tag] = waiting
        try:
            await waiting.done.wait()
        finally:
            self._pending.pop(tag, None)
        if waiting.error is not None:
            raise waiting.error
        return waiting.results

    async def transfer(self, target: NodeId) -> None:
        """Have `target` stand for this leader's office; on return this node leads no more.

        Raises:
            BadRequest: `target` is no voter of this epoch.
            NotCoordinator, Busy, Moved: ask again, elsewhere or later.
            TimedOut: `target` did not catch up or was not elected in time; this node leads on.
        """
        self._check_able()
        name = self._names.get(target)
        if name is None:
            raise BadRequest(f"{short(target)} is no voter: it cannot coordinate")
        self._tag += 1
        tag, waiting = self._tag, _Waiting()
        self._driver.feed(Transfer(name, tag))
        self._pending[tag] = waiting
        try:
            await waiting.done.wait()
        finally:
            self._pending.pop(tag, None)
        if waiting.error is not None:
            raise waiting.error

    async def barrier(self) -> None:
        """Wait until the state holds everything that was committed before this call.

        Raises:
            NotCoordinator, Busy, Moved: ask again, elsewhere or later.
        """
        self._check_able()
        if self._round is None:
            waiting = self._round = _Waiting()
            self._begin_round()
        else:
            if self._next_round is None:
                self._next_round = _Waiting()
            waiting = self._next_round
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error

    def _begin_round(self) -> None:
        self._tag += 1
        self._round_tag = self._tag
        try:
            self._driver.feed(ReadIndex(self._tag))
        except Busy as error:
            self._end_rounds(error)

    def _end_rounds(self, error: SwarmError) -> None:
        for waiting in (self._round, self._next_round):
            if waiting is not None:
                waiting.end(error)
        self._round = self._next_round = None

    # ---- effects -----------------------------------------------------------------------

    async def _persist(self, ahead: bool) -> None:
        """Sync; while the disk refuses, take no step: nothing unsynced is ever relied on.

        Nor does anybody wait for a disk: whoever has a proposal or a read here is told at once,
        and the office is given up.
        """
        while True:
            try:
                light = self._machine.sync_is_light
                await self._syncer.run(self._machine.sync, light=light, ahead=ahead)
            except DiskFault as error:
                if not self.disk_fault:
                    _log.error("the log is not durable", error=error.message)
                self.disk_fault = error.message
                self._end_waiting(self.disk_refusal())
                self._on_office(self)
                await trio.sleep(DISK_RETRY_S)
            else:
                if self.disk_fault:
                    _log.info("the log is durable again")
                self.disk_fault = ""
                return

    def disk_refusal(self) -> SwarmError:
        """To be told: ask again elsewhere, or, where there is nobody else, what is wrong."""
        if len(self._ids) == 1:
            return DiskFault(f"{self.disk_fault}; it goes on by itself once the disk takes writes")
        return NotCoordinator(f"the disk of the node that led refuses writes: {self.disk_fault}")

    def _send(self, effect: SendRaft) -> None:
        packet = Packet(self.epoch.key, effect.data)
        if not self._link.send_nowait(RAFT, self._ids[effect.peer], packet):
            DROPPED.labels("raft", "not_sent").inc()

    def _proposed(self, effect: Proposed) -> None:
        waiting = self._pending.pop(effect.tag, None)
        if waiting is None:
            return
        if isinstance(effect.result, Exception):
            _log.error("a batch could not be applied", error=repr(effect.result))
            waiting.end(BadRequest("the state machine could not apply these operations"))
        elif effect.ok:
            waiting.results = effect.result
            waiting.done.set()
        else:
            waiting.end(_refusal(effect.code))

    def _transferred(self, effect: Transferred) -> None:
        waiting = self._pending.pop(effect.tag, None)
        if waiting is not None:
            waiting.end(None if effect.code is None else _refusal(effect.code))

    def _read_ready(self, effect: ReadReady) -> None:
        if effect.tag != self._round_tag:
            return  # Of a round that was given up: it proves nothing to those who wait now.
        current, self._round = self._round, self._next_round
        self._next_round = None
        if self._round is not None:
            self._begin_round()
        if current is not None:
            refused = NotCoordinator("this node does not lead the strong store now")
            current.end(None if effect.ok else refused)

    async def office_changed(self) -> None:
        """Wait until `office` changes next."""
        await self._moved.wait()

    def _office_changed(self, effect: Office) -> None:
        self._moved.set()
        self._moved = trio.Event()
        self._on_office(self)

    def _applied(self, effect: Applied) -> None:
        self._on_applied(self)


def _refusal(code: str | None) -> SwarmError:
    if code == "not_leader":
        return NotCoordinator("this node does not lead the strong store now")
    if code == "handing_over":
        return NotCoordinator("this node is handing the strong store over to another")
    if code == "timeout":
        return TimedOut("the other voter did not catch up, or was not elected, in time")
    if code == "too_large":
        return TooLarge("the batch exceeds what one entry of the log takes")
    if code == "busy":
        return Busy("too many proposals or transfers are under way")
    return Unavailable(f"the outcome is unknown: {code}")
