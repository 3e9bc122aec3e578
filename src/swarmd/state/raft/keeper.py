"""The shell of `epoch_machine`: its files, its messages, and the replica of the running epoch.

It judges nothing: what the machine asks for is done here, and its end is fed back. Questions
are answered one at a time, so that a peer that asks much feels it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Final, Protocol

import trio

from swarmd.base.clock import Clock
from swarmd.base.disk import DiskReader
from swarmd.base.errors import (
    BadRequest,
    Busy,
    CorruptFile,
    DiskFault,
    NotFound,
    SwarmError,
    from_code,
)
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send
from swarmd.base.rng import Rng
from swarmd.identity.epochs import Chain, Epoch
from swarmd.identity.genesis import Genesis
from swarmd.identity.keys import SigningKey
from swarmd.mesh.driver import Driver, Performer
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft import epoch_machine as em
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.copier import Copier
from swarmd.state.raft.epoch import DropEpochs, KeepSealedState, StartEpoch, StopEpoch
from swarmd.state.raft.frames import FrameReader, FrameWriter
from swarmd.state.raft.replica import Replica
from swarmd.state.raft.snapshot import SideFile
from swarmd.state.raft.statefile import STATE_FORMAT, STATE_KIND, state_digest
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.storage import EpochFiles
from swarmd.state.raft.syncer import Syncer

ASK_TIMEOUT_S: Final = 2.0
PUSH_MEMBERS_MAX: Final = 1_000
_log = get_logger("raft")


class MembersView(Protocol):
    """What the store asks of the membership."""

    def alive(self) -> list[NodeId]: ...

    def members(self) -> list[Any]: ...

    async def changed(self) -> None: ...


class _Question:
    """Someone's question, until the machine answered or refused it."""

    __slots__ = ("answer", "done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Any = None
        self.error: SwarmError | None = None


class _Fetched:
    """The first state of an epoch, as it comes from another node."""

    def __init__(self, number: int, file: SideFile) -> None:
        self.file = file
        self.unwritten: DiskFault | None = None
        self._reader = FrameReader(STATE_KIND, STATE_FORMAT, source=f"the state of epoch {number}")
        self._sound = True

    def add(self, data: bytes) -> None:
        """Check a piece and keep it beside."""
        try:
            self._reader.feed(data)
        except CorruptFile:
            self._sound = False
        if self._sound:
            self.file.append(data)

    def digest(self) -> bytes | None:
        """Of what came, if it is sound and whole."""
        return self._reader.digest if self._sound else None


class Keeper:
    """Owns the chain and the replica of the running epoch.

    Args:
        on_replica: called when `replica` changed; it may neither wait nor raise.
    """

    def __init__(
        self,
        *,
        chain: Chain,
        files: EpochFiles,
        me: m.Voter,
        life: tuple[int, tuple[bytes, ...]],
        genesis: Genesis,
        key: SigningKey,
        link: Link,
        membership: MembersView,
        clock: Clock,
        rng: Rng,
        config: RaftConfig,
        nursery: trio.Nursery,
        on_replica: Callable[[], None],
        on_office: Callable[[Replica], None],
        on_applied: Callable[[Replica], None],
    ) -> None:
        self.chain = chain
        self.replica: Replica | None = None
        self._files = files
        self._genesis = genesis
        self._link = link
        self._membership = membership
        self._clock = clock
        self._rng = rng
        self._config = config
        self._nursery = nursery
        self._on_replica = on_replica
        self._on_office = on_office
        self._on_applied = on_applied
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._admitted = trio.Event()
        self._led = 0  # The epoch in which this node led until it ended.
        self._served: tuple[int, DiskReader] | None = None
        self._fetched: _Fetched | None = None
        self._syncer = Syncer(blocking=files.blocking)
        self._questions: dict[int, _Question] = {}
        self._tag = 0
        self._head = chain.head.number
        self._changed = trio.Event()
        self.copier = Copier(
            files=files, genesis=genesis, link=link, clock=clock, config=config, nursery=nursery
        )
        start, nonces = life
        disk = files.on_disk()
        self._machine = em.EpochMachine(chain, me, key, disk, start=start, nonces=nonces)
        self._driver = Driver("epoch", self._machine, self._performers(nursery), clock=clock)

    def _performers(self, nursery: trio.Nursery) -> dict[type[Effect], Performer]:
        """What does what the machine wants done."""
        return {
            StopEpoch: lambda effect: nursery.start_soon(self._stop, effect.number),
            KeepSealedState: self._writing(self._keep_sealed_state),
            StartEpoch: self._writing(self._start),
            DropEpochs: self._writing(self._drop),
            em.SaveChain: self._writing(self._save_chain),
            em.Admit: lambda _: self._admitted.set(),
            em.RenewStorage: self._writing(self._renew_storage),
            em.NoteStart: self._note_start,
            em.UseCopy: self._writing(self._use_copy),
            em.KeepPiece: self._keep_piece,
            em.KeepState: self._writing(self._keep_state),
            em.Ask: lambda effect: nursery.start_soon(self._ask, effect),
            em.AskAnybody: lambda _: nursery.start_soon(self.ask_somebody),
            Send: self._send,
            em.SendAlive: self._send_alive,
            em.Answer: self._answer,
            em.Refuse: self._refuse,
            em.ReadPiece: self._read_piece,
            em.Changed: lambda _: self._note_change(),
            em.Dropped: lambda effect: DROPPED.labels("epoch", effect.why).inc(),
        }

    # ---- what can be seen ----------------------------------------------------------------

    @property
    def has_seat(self) -> bool:
        return self._machine.has_seat

    @property
    def seat(self) -> m.Voter:
        """This node as a voter, seated or not."""
        return self._machine.me

    def holds_state(self, epoch: Epoch) -> bool:
        """Is the first state of `epoch` durable here?"""
        body = self._files.state(epoch.number)
        return body is not None and state_digest(body) == epoch.digest

    @property
    def is_free(self) -> bool:
        """Has this node no seat, and nothing on its disk that somebody may still need?"""
        return self.replica is None and self._machine.is_free

    @property
    def waits_for(self) -> str | None:
        """What keeps the next epoch from beginning here."""
        return self._machine.waits_for

    @property
    def leaving(self) -> bool:
        """While true, this node takes no seat."""
        return self._machine.leaving

    @leaving.setter
    def leaving(self, leaving: bool) -> None:
        self._machine.leaving = leaving

    async def changed(self) -> None:
        """Wait until the chain grew, more is known of who installed, or old epochs went."""
        await self._changed.wait()

    def _note_change(self) -> None:
        head = self.chain.head.number
        if head != self._head:
            self._head = head
            _log.info("the swarm moved to a new epoch", epoch=head)
            self.copier.epoch_began(head)
        self._changed.set()
        self._changed = trio.Event()

    # ---- what it learns ------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is to be done, until cancelled.

        Raises:
            EpochFork, Diverged, CorruptFile: this node must not go on.
        """
        self._nursery.start_soon(self.copier.run)
        self._nursery.start_soon(self._follow_members)
        self._driver.feed(em.Wake(em.START))
        try:
            await self._driver.run()
        finally:
            self._serve_no_more()
            self._syncer.close()

    async def _follow_members(self) -> None:
        """Tell the replica whom membership doubts, until cancelled."""
        while True:
            self._tell_doubts()
            await self._membership.changed()

    def _tell_doubts(self) -> None:
        if self.replica is not None:
            members = self._membership.members()
            self.replica.doubt({m.node_id for m in members if str(m.state) != "alive"})

    def seal_applied(self, replica: Replica) -> None:
        """The replica has applied the seal of its epoch."""
        seal = _seal_of(replica)
        if seal is not None:
            self._feed(seal)

    def _feed(self, event: Event) -> bool:
        try:
            self._driver.feed(event)
        except Busy:
            DROPPED.labels("epoch", "inbox_full").inc()
            return False
        return True

    def keep_recovered(self, number: int, body: bytes) -> None:
        """Keep the state that a recovery would go on with. Raises DiskFault."""
        self._files.write_state(number, body)

    def recover(self, certificate: bytes) -> None:
        """Take a checked certificate of a recovery, and tell everybody."""
        self.learn((certificate,))

    def learn(self, certificates: Sequence[bytes]) -> None:
        """Take checked certificates, and tell everybody of the newest."""
        for start in range(0, len(certificates), em.CERTIFICATES_MAX):
            some = tuple(certificates[start : start + em.CERTIFICATES_MAX])
            self._driver.feed(em.Heard(self._link.node_id, emsg.Certificates(some)))

    async def ask_chain(self, peer: NodeId) -> None:
        """Learn what `peer` knows; errors are only counted."""
        try:
            answer = await self._link.request(
                emsg.EPOCH, peer, emsg.ChainAsk(self.chain.asks_from), timeout_s=ASK_TIMEOUT_S
            )
        except SwarmError as error:
            DROPPED.labels("epoch", error.code).inc()
        else:
            if isinstance(answer, emsg.Certificates):
                self._feed(em.Heard(peer, answer))

    async def ask_somebody(self) -> None:
        """Ask one member alive whether there is a newer epoch."""
        others = [peer for peer in self._membership.alive() if peer != self._link.node_id]
        if others:
            await self.ask_chain(self._rng.choice(others))

    async def receive_packets(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Hand packets of the running epoch to its replica."""
        async for inbound in inbox:
            packet: m.Packet = inbound.message
            replica = self.replica
            if replica is not None and packet.epoch == replica.epoch.key:
                replica.deliver(inbound.peer, packet.data)
            else:
                self._feed(em.StrayPacket(inbound.peer, packet.epoch))

    def told_to_copy(self, peer: NodeId, number: int) -> None:
        """A voter wants a copy of the running epoch's log kept here."""
        head = self.chain.head
        if number == head.number and peer in head.node_ids and not self.has_seat:
            self.copier.told(peer, number)

    async def receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer other members' questions about epochs."""
        async for inbound in inbox:
            if not inbound.wants_answer:
                self._feed(em.Heard(inbound.peer, inbound.message))
                continue
            question = _Question()
            self._tag += 1
            self._questions[self._tag] = question
            if not self._feed(em.Heard(inbound.peer, inbound.message, self._tag)):
                del self._questions[self._tag]
                await inbound.fail(Busy("too much is going on"))
                continue
            await question.done.wait()
            if question.error is not None:
                await inbound.fail(question.error)
            else:
                await inbound.answer(question.answer)

    # ---- answers -------------------------------------------------------------------------

    def _answer(self, effect: em.Answer) -> None:
        question = self._questions.pop(effect.tag)
        question.answer = effect.message
        question.done.set()

    def _refuse(self, effect: em.Refuse) -> None:
        question = self._questions.pop(effect.tag)
        question.error = from_code(effect.code, effect.message)
        question.done.set()

    def _read_piece(self, effect: em.ReadPiece) -> None:
        try:
            piece = self._piece(effect.number, effect.offset)
        except SwarmError as error:
            self._refuse(em.Refuse(effect.tag, error.code, error.message))
        else:
            self._answer(em.Answer(effect.tag, piece))

    def _piece(self, number: int, offset: int) -> emsg.StatePiece:
        if self._served is None or self._served[0] != number:
            file = self._files.state_reader(number)
            if file is None:
                raise NotFound(f"the state of epoch {number} is not here")
            self._serve_no_more()
            self._served = (number, file)
        file = self._served[1]
        if not 0 <= offset < file.size:
            raise BadRequest(f"a state of {file.size} bytes has no offset {offset}")
        return emsg.StatePiece(file.size, file.read(offset, m.PIECE_BYTES))

    def _serve_no_more(self) -> None:
        if self._served is not None:
            self._served[1].close()
            self._served = None

    async def _ask(self, effect: em.Ask) -> None:
        lane = Lane.BULK if isinstance(effect.message, emsg.StateAsk) else Lane.CONTROL
        answer = None
        try:
            answer = await self._link.request(
                emsg.EPOCH, effect.peer, effect.message, timeout_s=ASK_TIMEOUT_S, lane=lane
            )
        except SwarmError as error:
            DROPPED.labels("epoch", error.code).inc()
        self._driver.feed(em.Answered(effect.tag, answer))

    def _send(self, effect: Send) -> None:
        self._link.send_nowait(emsg.EPOCH, effect.peer, effect.message)

    def _send_alive(self, effect: em.SendAlive) -> None:
        for peer in self._membership.alive()[:PUSH_MEMBERS_MAX]:
            if peer not in effect.told and peer != self._link.node_id:
                self._link.send_nowait(emsg.EPOCH, peer, effect.message)

    # ---- files ---------------------------------------------------------------------------

    def _writing(self, perform: Callable[[Any], Awaitable[Event]]) -> Callable[[Any], None]:
        """`perform`, with its end as the event fed back."""

        async def performed(effect: Any) -> None:
            try:
                self._driver.feed(await perform(effect))
            except DiskFault as error:
                _log.error("the epoch's files are not durable", error=error.message)
                self._driver.feed(em.WriteFailed())

        return lambda effect: self._nursery.start_soon(performed, effect)

    async def _save_chain(self, effect: em.SaveChain) -> Event:
        head = self.chain.head.number
        self._files.save_chain(self.chain)
        self._files.find_states(self.chain)
        return em.ChainSaved(head, self._files.on_disk())

    async def _renew_storage(self, effect: em.RenewStorage) -> Event:
        _log.error("this disk is a copy of an earlier time: it votes no more under its old name")
        me = m.Voter(self._machine.me.public, self._files.renew_storage())
        return em.StorageRenewed(me)

    def _note_start(self, effect: em.NoteStart) -> None:
        told = effect.start
        try:
            rises = self._files.note_start(effect.peer, told.storage, told.start, told.nonces)
        except DiskFault as error:
            self._refuse(em.Refuse(effect.tag, error.code, error.message))
        else:
            self._answer(em.Answer(effect.tag, emsg.StartNoted(rises)))

    async def _keep_sealed_state(self, effect: KeepSealedState) -> Event:
        """Nothing of the state changes after the seal; it is written a slice at a time."""
        assert self.replica is not None
        writer = FrameWriter(STATE_KIND, STATE_FORMAT)
        file = self._files.beside(effect.number)
        file.append(writer.head())
        with closing(self.replica.state.sealed_snapshot()) as frames:
            for body in frames:
                file.append(writer.frame(body))
                if file.wants_sync:
                    await self._syncer.run(file.sync)
                await trio.lowlevel.checkpoint()
        file.append(writer.end())
        await self._syncer.run(file.sync)
        await self._syncer.run(partial(self._files.keep_state, effect.number, file))
        return em.StateKept(effect.number, writer.digest, self._files.on_disk())

    async def _use_copy(self, effect: em.UseCopy) -> Event:
        body = await self.copier.first_state(effect.number)
        if body is None or state_digest(body) != effect.digest:
            return em.StateRefused(effect.number)
        await self._syncer.run(partial(self._files.write_state, effect.number, body))
        return em.StateKept(effect.number, effect.digest, self._files.on_disk())

    def _keep_piece(self, effect: em.KeepPiece) -> None:
        if effect.offset == 0 or self._fetched is None:
            self._fetched = _Fetched(effect.number, self._files.beside(effect.number))
        fetched = self._fetched
        fetched.add(effect.data)
        if fetched.file.wants_sync:
            self._nursery.start_soon(self._write_piece, fetched, fetched.file.take())

    async def _write_piece(self, fetched: _Fetched, data: bytes) -> None:
        try:
            await self._syncer.run(partial(fetched.file.write, data))
        except DiskFault as error:
            _log.error("the epoch's files are not durable", error=error.message)
            fetched.unwritten = error

    async def _keep_state(self, effect: em.KeepState) -> Event:
        fetched, self._fetched = self._fetched, None
        if fetched is None or fetched.digest() != effect.digest:
            return em.StateRefused(effect.number)
        # Behind the pieces that are being written: there is one thread.
        await self._write_piece(fetched, fetched.file.take())
        if fetched.unwritten is not None:
            raise fetched.unwritten
        await self._syncer.run(partial(self._files.keep_state, effect.number, fetched.file))
        return em.StateKept(effect.number, effect.digest, self._files.on_disk())

    async def _drop(self, effect: DropEpochs) -> Event:
        self._serve_no_more()
        for number in effect.numbers:
            await self.copier.close(number)
            self._files.drop(number)
        return em.EpochsDropped(self._files.on_disk())

    # ---- the running epoch ---------------------------------------------------------------

    async def _start(self, effect: StartEpoch) -> Event:
        number = effect.number
        epoch = self.chain.epoch(number)
        assert epoch is not None
        # What is on the disk may be large: it is read in a thread where that takes time.
        if self._files.blocking:
            replica = await trio.to_thread.run_sync(self._open_replica, epoch)
        else:
            replica = self._open_replica(epoch)
        replica.state.drain_changes()
        self.replica = replica
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        self._admitted = trio.Event()
        self._nursery.start_soon(self._run_replica, replica, self._scope, self._ended)
        _log.info("the epoch begins here", epoch=number, voters=len(epoch.voters))
        self._tell_doubts()
        self._on_replica()
        self._note_change()
        return em.EpochStarted(number, _seal_of(replica), self._files.on_disk())

    def _open_replica(self, epoch: Epoch) -> Replica:
        """The voter's part in `epoch`, from what is on the disk."""
        state = StateMachine(self._genesis)
        if epoch.digest is not None:
            restoring = state.restoring()
            for frame in self._files.state_frames(epoch.number):
                restoring.take(frame)
            restoring.finish()
        replica = Replica(
            epoch,
            state,
            self._files.log_disk(epoch),
            swarm_id=self.chain.swarm_id,
            link=self._link,
            clock=self._clock,
            rng=self._rng,
            config=self._config,
            on_office=self._on_office,
            on_applied=self._on_applied,
            stand_at_once=self._led == epoch.number - 1,
        )
        if state.voters != epoch.node_ids:
            raise CorruptFile(f"the state of epoch {epoch.number} is one of other voters")
        return replica

    async def _run_replica(
        self, replica: Replica, scope: trio.CancelScope, ended: trio.Event
    ) -> None:
        try:
            with scope:
                await self._admitted.wait()
                await replica.run()
        finally:
            ended.set()

    async def _stop(self, number: int) -> None:
        self._scope.cancel()
        await self._ended.wait()
        if self.replica is not None and self.replica.office.state == "leader":
            self._led = number
        self.replica = None
        self._on_replica()
        self._driver.feed(em.EpochStopped(number))


def _seal_of(replica: Replica) -> em.SealApplied | None:
    sealed = replica.state.sealed
    if sealed is None:
        return None
    return em.SealApplied(replica.epoch.number, sealed.number, sealed.index, sealed.voters)
