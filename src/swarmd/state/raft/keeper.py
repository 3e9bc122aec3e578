"""Keeps one node's part in the chain of epochs: does what `epoch.decide` says, again and again.

Certificates spread three ways: whoever assembles one sends it to every member alive, a packet
of an ended epoch is answered with its successor's, and every few seconds each node asks
another whether there is a newer epoch. The newest certificate is durable before anything is
done because of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from swarmd.base.clock import Clock
from swarmd.base.errors import (
    BadRequest,
    DiskFault,
    Diverged,
    Forbidden,
    NotFound,
    RemoteError,
    ShuttingDown,
    SwarmError,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import CHECKED_FILE_BYTES_MAX
from swarmd.base.rng import Rng
from swarmd.identity.genesis import Genesis
from swarmd.identity.keys import SigningKey
from swarmd.mesh.link import Inbound, Lane, Link
from swarmd.observe.log import get_logger
from swarmd.observe.metrics import DROPPED
from swarmd.state.raft import messages as m
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.epoch import (
    AskInstalled,
    Ballot,
    Chain,
    DropEpochs,
    EpochFork,
    Facts,
    FetchState,
    KeepSealedState,
    SignSeal,
    StartEpoch,
    Step,
    StopEpoch,
    decide,
    statement_of,
)
from swarmd.state.raft.replica import Replica
from swarmd.state.raft.statemachine import StateMachine, state_digest
from swarmd.state.raft.storage import EpochFiles

TICK_BUSY_S: Final = 0.2
TICK_IDLE_S: Final = 5.0
ASK_TIMEOUT_S: Final = 2.0
PUSH_MEMBERS_MAX: Final = 1_000
CERTIFICATES_MAX: Final = 100
_TOLD_AGAIN_S: Final = 0.5
_TOLD_PEERS_MAX: Final = 256
_TOLD_EPOCHS: Final = 3
_log = get_logger("raft")


class MembersView(Protocol):
    """What the store asks of the membership."""

    def alive(self) -> list[NodeId]: ...

    def members(self) -> list[Any]: ...


class Keeper:
    """Owns the chain and the replica of the running epoch.

    Args:
        on_replica: called when `replica` changed; it may neither wait nor raise.

    While `leaving`, this node takes no seat: the one it gave up would be offered to it again.
    """

    def __init__(
        self,
        *,
        chain: Chain,
        files: EpochFiles,
        me: m.Voter,
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
        self.me = me
        self.replica: Replica | None = None
        self.waits_for: str | None = None
        self.leaving = False
        self._files = files
        self._genesis = genesis
        self._key = key
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
        self._ballot: Ballot | None = None
        self._saved = chain.head.number
        self._installed: set[NodeId] = set()
        self._asking = False
        self._served: tuple[int, bytes] | None = None
        self._told: dict[NodeId, float] = {}
        self._wake = trio.Event()
        self._changed = trio.Event()

    # ---- what others ask -----------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Does a majority of the newest epoch's voters hold its first state, as known here?"""
        head = self.chain.head
        return head.number == 1 or len(self._holders()) >= head.majority

    @property
    def has_seat(self) -> bool:
        return self.chain.head.seat_of(self.me.node_id) == self.me

    @property
    def is_free(self) -> bool:
        """Has this node no seat, and nothing on its disk that somebody may still need?"""
        if self.has_seat or self.replica is not None:
            return False
        return not self._files.leftovers(self.chain.head.number + 1)

    def poke(self) -> None:
        """Look again now."""
        self._wake.set()

    async def changed(self) -> None:
        """Wait until the chain grew, more is known of who installed, or old epochs went."""
        await self._changed.wait()

    def _holders(self) -> set[NodeId]:
        holders = set(self._installed)
        if self.has_seat and self.chain.head.number in self._files.states():
            holders.add(self.me.node_id)
        return holders.intersection(self.chain.head.node_ids)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self.poke()

    # ---- the loop ------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is to be done, until cancelled."""
        self._nursery.start_soon(self.ask_somebody)
        while True:
            self._wake = trio.Event()
            try:
                busy = await self._advance()
            except DiskFault as error:
                _log.error("the epoch's files are not durable", error=error.message)
                busy = True
            with trio.move_on_after(TICK_BUSY_S if busy else TICK_IDLE_S):
                await self._wake.wait()
                continue
            if not busy:
                self._nursery.start_soon(self.ask_somebody)

    async def _advance(self) -> bool:
        """Perform steps until none is left or one has to be waited for; True if so."""
        for _ in range(10):
            if self._saved != self.chain.head.number:
                self._files.save_chain(self.chain)
                self._saved = self.chain.head.number
            steps = decide(self._facts())
            self.waits_for = None
            if not steps:
                return False
            waiting = False
            for step in steps:
                waiting = not await self._do(step) or waiting
            if waiting:
                return True
        return True

    def _facts(self) -> Facts:
        chain, replica, files = self.chain, self.replica, self._files
        head = chain.head
        sealed = replica.state.sealed if replica is not None else None
        states = files.states()
        if self._ballot is None and sealed is not None:
            states -= {sealed.number}  # After a restart the signature is made afresh.
        return Facts(
            head=head,
            before=chain.epoch(head.number - 1),
            me=self.me,
            running=replica.epoch.number if replica is not None else None,
            sealed=sealed.number if sealed is not None else None,
            states=states,
            leftovers=files.leftovers(head.number + (0 if self.has_seat else 1)),
            installed=frozenset(self._installed),
        )

    async def _do(self, step: Step) -> bool:
        """Perform a step; False if its end has to be waited for."""
        match step:
            case StopEpoch():
                await self._stop()
            case KeepSealedState():
                self._keep_sealed_state()
            case SignSeal(to):
                return self._sign(to)
            case FetchState(number, sources):
                return await self._fetch(number, sources)
            case StartEpoch(number):
                self._start(number)
            case AskInstalled(number, of):
                if not self._asking:
                    self._asking = True
                    self._nursery.start_soon(self._ask_installed, number, of)
                return False
            case DropEpochs(numbers):
                self._drop(numbers)
        return True

    # ---- steps ---------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()
        self.replica = None
        self._ballot = None
        self._on_replica()

    def _start(self, number: int) -> None:
        epoch = self.chain.epoch(number)
        assert epoch is not None
        state = StateMachine(self._genesis)
        if epoch.digest is not None:
            body = self._files.state(number)
            assert body is not None, f"the state of epoch {number} is missing"
            state.restore(body)
        replica = Replica(
            epoch,
            state,
            self._files.log_disk(epoch),
            link=self._link,
            clock=self._clock,
            rng=self._rng,
            config=self._config,
            on_office=self._on_office,
            on_applied=self._on_applied,
        )
        state.drain_changes()
        self.replica = replica
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._run_replica, replica, self._scope, self._ended)
        _log.info("the epoch begins here", epoch=number, voters=len(epoch.voters))
        self._on_replica()

    async def _run_replica(
        self, replica: Replica, scope: trio.CancelScope, ended: trio.Event
    ) -> None:
        try:
            with scope:
                await replica.run()
        finally:
            ended.set()

    def _keep_sealed_state(self) -> None:
        assert self.replica is not None
        sealed = self.replica.state.sealed
        assert sealed is not None
        body = self.replica.state.sealed_body()
        self._files.keep_state(sealed.number, body)
        statement = statement_of(
            self.replica.epoch, sealed.number, sealed.index, state_digest(body), sealed.voters
        )
        self._ballot = Ballot(self.chain.swarm_id, self.replica.epoch, statement, self._key)

    def _sign(self, to: tuple[NodeId, ...]) -> bool:
        ballot = self._ballot
        assert ballot is not None
        certificate = ballot.certificate()
        if certificate is not None:
            self.learn((certificate,), push=True)
            return True
        self.waits_for = "signatures of the voters of the ended epoch"
        own = m.Signed(ballot.own)
        for peer in to:
            if peer != self.me.node_id:
                self._link.send_nowait(m.EPOCH, peer, own)
        return False

    async def _fetch(self, number: int, sources: tuple[NodeId, ...]) -> bool:
        self.waits_for = f"the state that epoch {number} begins with"
        epoch = self.chain.epoch(number)
        assert epoch is not None
        for source in sources:
            try:
                body = await self._download(number, source)
            except SwarmError as error:
                _log.info("no state from there", peer=short(source), why=error.message)
                continue
            if state_digest(body) != epoch.digest:
                DROPPED.labels("epoch", "wrong_digest").inc()
                continue
            self._files.keep_state(number, body)
            self._note_change()
            return True
        return False

    async def _download(self, number: int, source: NodeId) -> bytes:
        pieces: list[bytes] = []
        offset, total = 0, 1
        while offset < total:
            ask = m.StateAsk(number, offset)
            piece = await self._link.request(
                m.EPOCH, source, ask, timeout_s=ASK_TIMEOUT_S, lane=Lane.BULK
            )
            if not isinstance(piece, m.StatePiece) or not piece.data:
                raise RemoteError("a state that does not continue")
            total = piece.total
            if total > CHECKED_FILE_BYTES_MAX:
                raise RemoteError(f"a state of {total} bytes is too large")
            pieces.append(piece.data)
            offset += len(piece.data)
        return b"".join(pieces)

    async def _ask_installed(self, number: int, of: tuple[NodeId, ...]) -> None:
        before = len(self._installed)
        async with trio.open_nursery() as nursery:
            for peer in of:
                nursery.start_soon(self._ask_one_installed, number, peer)
        self._asking = False
        if len(self._installed) > before:
            self._note_change()

    async def _ask_one_installed(self, number: int, peer: NodeId) -> None:
        try:
            answer = await self._link.request(
                m.EPOCH, peer, m.InstalledAsk(number), timeout_s=ASK_TIMEOUT_S
            )
        except SwarmError:
            return  # Away, or behind: asked again at the next turn.
        if isinstance(answer, m.Installed) and answer.number == number and answer.installed:
            if number == self.chain.head.number:
                self._installed.add(peer)
        elif isinstance(answer, m.Installed) and answer.number < number:
            self._tell(peer, answer.number)

    def _drop(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            self._files.drop(number)
        self._served = None
        self._note_change()

    # ---- certificates --------------------------------------------------------------------

    def learn(self, certificates: tuple[bytes, ...], *, push: bool = False) -> bool:
        """Take certificates from anywhere; True if any was new.

        Raises:
            EpochFork: the swarm's history has split; the node must stop.
            SwarmError: one was not acceptable; those before it were taken.
        """
        grown = False
        try:
            for certificate in certificates[:CERTIFICATES_MAX]:
                grown = self.chain.extend(certificate) or grown
        finally:
            if grown:
                self._files.find_states(self.chain)
                self._installed.clear()
                self._told.clear()
                _log.info("the swarm moved to a new epoch", epoch=self.chain.head.number)
                self._spread(certificates, push)
                self._note_change()
        return grown

    def _spread(self, certificates: tuple[bytes, ...], push: bool) -> None:
        head = self.chain.head
        before = self.chain.epoch(head.number - 1)
        to = dict.fromkeys((*head.node_ids, *(before.node_ids if before else ())))
        if push:
            to.update(dict.fromkeys(self._membership.alive()[:PUSH_MEMBERS_MAX]))
        message = m.Certificates(certificates)
        for peer in to:
            if peer != self.me.node_id:
                self._link.send_nowait(m.EPOCH, peer, message)

    async def ask_chain(self, peer: NodeId) -> None:
        """Learn what `peer` knows. Raises EpochFork; other errors are only counted."""
        try:
            answer = await self._link.request(
                m.EPOCH, peer, m.ChainAsk(self.chain.head.number), timeout_s=ASK_TIMEOUT_S
            )
            if isinstance(answer, m.Certificates):
                self.learn(answer.certificates)
        except EpochFork:
            raise
        except SwarmError as error:
            DROPPED.labels("epoch", error.code).inc()

    async def ask_somebody(self) -> None:
        """Ask one member alive whether there is a newer epoch."""
        others = [peer for peer in self._membership.alive() if peer != self.me.node_id]
        if others:
            await self.ask_chain(self._rng.choice(others))

    def _tell(self, peer: NodeId, number: int) -> None:
        """Send `peer`, who is at epoch `number`, what follows; not too often."""
        now = self._clock.now()
        if now - self._told.get(peer, -_TOLD_AGAIN_S) < _TOLD_AGAIN_S:
            return
        if len(self._told) >= _TOLD_PEERS_MAX:
            self._told.clear()
        self._told[peer] = now
        following = self.chain.certificates_from(number, CERTIFICATES_MAX)
        if following:
            self._link.send_nowait(m.EPOCH, peer, m.Certificates(following))

    # ---- receiving -----------------------------------------------------------------------

    async def receive_packets(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Hand packets of the running epoch to its replica."""
        async for inbound in inbox:
            packet: m.Packet = inbound.message
            replica = self.replica
            if replica is not None and packet.epoch == replica.epoch.key:
                replica.deliver(inbound.peer, packet.data)
                continue
            number = self.chain.number_of(packet.epoch)
            if number is not None and number < self.chain.head.number:
                self._tell(inbound.peer, number)
            elif number is None:
                # Of an epoch not heard of yet; its certificate is on the way, or is asked for.
                DROPPED.labels("raft", "unknown_epoch").inc()

    async def receive(self, inbox: trio.MemoryReceiveChannel[Inbound]) -> None:
        """Answer other members' questions about epochs."""
        async for inbound in inbox:
            try:
                await self._answer(inbound)
            except (EpochFork, Diverged):
                raise
            except SwarmError as error:
                DROPPED.labels("epoch", error.code).inc()
                await inbound.fail(error)

    async def _answer(self, inbound: Inbound) -> None:
        match inbound.message:
            case m.Certificates(certificates):
                self.learn(certificates)
            case m.Signed(envelope):
                self._take_signature(inbound.peer, envelope)
            case m.ChainAsk(number):
                known = self.chain.certificates_from(number, CERTIFICATES_MAX)
                await inbound.answer(m.Certificates(known))
            case m.InstalledAsk(number):
                head = self.chain.head.number
                holds = number in self._files.states() and self.has_seat and number == head
                await inbound.answer(m.Installed(head, holds))
            case m.Enlist():
                if self.leaving:
                    raise ShuttingDown("this node is about to leave the swarm")
                await inbound.answer(m.Enlisted(self.me, self.chain.head.number))
            case m.StateAsk(number, offset):
                await inbound.answer(self._piece(inbound.peer, number, offset))
            case _:
                raise BadRequest("not a question about epochs")

    def _take_signature(self, peer: NodeId, envelope: bytes) -> None:
        replica = self.replica
        if self._ballot is not None:
            if self._ballot.add(envelope):
                self.poke()
        elif replica is None or replica.epoch.number == self.chain.head.number:
            # Its epoch ended some time ago, unless this voter lags behind it.
            self._tell(peer, max(1, self.chain.head.number - _TOLD_EPOCHS))

    def _piece(self, peer: NodeId, number: int, offset: int) -> m.StatePiece:
        epoch = self.chain.epoch(number)
        if epoch is None or number not in self._files.states():
            raise NotFound(f"the state of epoch {number} is not here")
        if peer not in epoch.node_ids:
            raise Forbidden(f"{short(peer)} is no voter of epoch {number}")
        if self._served is None or self._served[0] != number:
            body = self._files.state(number)
            if body is None:
                raise NotFound(f"the state of epoch {number} is not here")
            self._served = (number, body)
        body = self._served[1]
        if not 0 <= offset < len(body):
            raise BadRequest(f"a state of {len(body)} bytes has no offset {offset}")
        return m.StatePiece(len(body), body[offset : offset + m.PIECE_BYTES])
