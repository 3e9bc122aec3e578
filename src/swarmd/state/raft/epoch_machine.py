"""One node's part in the chain of epochs, as a machine: does what `epoch.decide` says, in order.

Everything that it learns is an event: certificates, signatures, answers, pieces of a state,
that the replica applied its seal, that a file is durable. What takes time (a file to write, an
epoch to start or stop) is an effect, one at a time, whose end comes back as an event; nothing
is decided in between. So a shell and a simulator need no judgement of their own.

Rules:
- The newest certificate is durable before anything is done because of it.
- After a restart the signature on a seal is made afresh, from the state as it is then.
- Certificates spread three ways: whoever assembles one sends it to every member alive, a packet
  of an ended epoch is answered with its successor's, and every few seconds each node asks
  another whether there is a newer epoch.
- A voter takes part in an epoch only after a majority of its voters noted, durably, that this
  life of its disk does. Another life of the same number means that the disk is a copy of an
  earlier time, which has forgotten votes: it takes another name and has no seat under the old.
  The rest of the voters get a short grace: the one who knows may be the last to answer.
- A question is asked again after a while, never at once; so is a write that failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from swarmd.base.errors import (
    BadRequest,
    Diverged,
    Forbidden,
    NotFound,
    RemoteError,
    ShuttingDown,
    SwarmError,
)
from swarmd.base.ids import NodeId, short
from swarmd.base.limits import CHECKED_FILE_BYTES_MAX
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.identity.epochs import Chain, EpochFork, statement_of
from swarmd.identity.keys import SigningKey
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.epoch import (
    AskInstalled,
    Ballot,
    Facts,
    FetchState,
    SignSeal,
    StopEpoch,
    decide,
)
from swarmd.state.raft.epoch_events import (
    Admit,
    Answer,
    Answered,
    Ask,
    AskAnybody,
    ChainSaved,
    Changed,
    Dropped,
    EpochsDropped,
    EpochStarted,
    EpochStopped,
    GraceOver,
    Heard,
    KeepPiece,
    KeepState,
    NoteStart,
    OnDisk,
    ReadPiece,
    Refuse,
    RenewStorage,
    SaveChain,
    SealApplied,
    SendAlive,
    StateKept,
    StateRefused,
    StorageRenewed,
    StrayPacket,
    UseCopy,
    Wake,
    WriteFailed,
)

__all__ = [
    "START",
    "EpochMachine",
    "OnDisk",
    "Wake",
    "GraceOver",
    "Heard",
    "Answered",
    "StrayPacket",
    "SealApplied",
    "ChainSaved",
    "StateKept",
    "StateRefused",
    "EpochStarted",
    "EpochStopped",
    "EpochsDropped",
    "StorageRenewed",
    "WriteFailed",
    "SaveChain",
    "Admit",
    "RenewStorage",
    "NoteStart",
    "UseCopy",
    "KeepPiece",
    "KeepState",
    "Ask",
    "AskAnybody",
    "SendAlive",
    "Answer",
    "Refuse",
    "ReadPiece",
    "Changed",
    "Dropped",
]

# The token of a wake that is never stale.
START: Final = 0
TICK_BUSY_S: Final = 0.2
TICK_IDLE_S: Final = 5.0
# So long a majority that noted this life waits for the other voters to object. It is lost at each
# start while a voter is away; a voter that lives has answered long before.
ADMIT_GRACE_S: Final = 0.25
CERTIFICATES_MAX: Final = 100
_TOLD_AGAIN_S: Final = 0.5
_TOLD_PEERS_MAX: Final = 256
_TOLD_EPOCHS: Final = 3


@dataclass(slots=True)
class _Fetch:
    """The first state of an epoch on its way from one source after the other."""

    number: int
    digest: bytes
    sources: tuple[NodeId, ...]
    source: int = -1  # The copy of the log that may be here.
    offset: int = 0
    tag: int = 0


class EpochMachine:
    """See the module.

    Args:
        chain: what is durable of it; the machine extends it.
        me: this node's seat, if it has one.
        disk: what is durable besides.
        start: the number of this life of the disk, raised durably before; `nonces`
            tell it and those before it apart, the newest last.

    While `leaving`, this node takes no seat: the one it gave up would be offered to it again.
    """

    def __init__(
        self,
        chain: Chain,
        me: m.Voter,
        key: SigningKey,
        disk: OnDisk,
        *,
        start: int = 1,
        nonces: tuple[bytes, ...] = (),
    ) -> None:
        self.chain = chain
        self.me = me
        self.waits_for: str | None = None
        self.leaving = False
        self._key = key
        self._disk = disk
        self._saved = chain.head.number
        self._running: int | None = None
        self._seal: SealApplied | None = None
        self._ballot: Ballot | None = None
        self._installed: dict[NodeId, None] = {}
        self._life = (start, nonces)
        self._noted: dict[NodeId, None] = {}  # Voters of the newest epoch who noted this life.
        self._noting: dict[int, NodeId] = {}  # tag -> who was asked to
        self._note_again = True
        self._grace = 0  # The token of the timer; 0: there is none yet.
        self._grace_over = False
        self._admitted = False
        self._restored = False
        self._fetch: _Fetch | None = None
        self._asked: dict[int, NodeId] = {}  # tag -> who was asked whether it installed
        self._doing: Effect | None = None
        self._paused = False
        self._ask_again = True
        self._busy = False
        self._tag = 0
        self._now = 0.0
        self._told: dict[NodeId, float] = {}
        self._due: float | None = None
        self._anybody_after = 0.0
        self._token = START
        self._out: list[Effect] = []

    # ---- what can be seen --------------------------------------------------------------

    @property
    def has_seat(self) -> bool:
        return self.chain.head.seat_of(self.me.node_id) == self.me

    @property
    def is_free(self) -> bool:
        """Has this node no seat, and nothing on its disk that somebody may still need?"""
        return not self.has_seat and self._running is None and not self._old_epochs()

    def _old_epochs(self) -> list[int]:
        below = self.chain.head.number + (0 if self.has_seat else 1)
        return [n for n in self._disk.epochs if n < below]

    def _leftovers(self) -> tuple[int, ...]:
        copies = [n for n in self._disk.copies if n < self.chain.head.number]
        return tuple(sorted({*self._old_epochs(), *copies}))

    # ---- steps -------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take one event.

        Raises:
            EpochFork: the swarm's history has split; the node must stop.
            Diverged: voters sealed an epoch with different states; the node must stop.
        """
        self._now = now
        match event:
            case Heard():
                self._heard(event)
            case Answered(tag, message):
                self._answered(tag, message)
            case StrayPacket(peer, key):
                self._stray(peer, key)
            case SealApplied():
                self._sealed(event)
            case Wake(token):
                self._woke(token)
            case GraceOver(token):
                self._grace_over = self._grace_over or token == self._grace
            case _:
                self._performed(event)
        self._advance()
        self._arm()
        out, self._out = self._out, []
        return out

    def _woke(self, token: int) -> None:
        if token not in (START, self._token):
            return
        if token != START:
            self._due = None
        # Who is busy asks, too: what it waits for may be of an epoch that has ended.
        if not self._busy or self._now >= self._anybody_after:
            self._anybody_after = self._now + TICK_IDLE_S
            self._out.append(AskAnybody())
        self._paused = False
        self._ask_again = self._note_again = True

    def _arm(self) -> None:
        due = self._now + (TICK_BUSY_S if self._busy else TICK_IDLE_S)
        if self._due is None or due < self._due:
            self._due = due
            self._token += 1
            self._out.append(SetTimer(due - self._now, Wake(self._token)))

    def _sealed(self, seal: SealApplied) -> None:
        if seal.epoch == self._running:
            self._seal = seal

    def _performed(self, event: Event) -> None:
        """What was under way has ended."""
        self._doing = None
        match event:
            case ChainSaved(number, disk):
                self._saved, self._disk = max(self._saved, number), disk
            case StateKept(number, digest, disk):
                self._disk = disk
                self._state_kept(number, digest)
            case StateRefused():
                if self._fetch is not None and self._fetch.source >= 0:
                    self._out.append(Dropped("wrong_digest"))
                self._try_next_source()
            case EpochStarted(number, seal, disk):
                self._running, self._seal, self._admitted = number, seal, False
                self._grace, self._grace_over = 0, False
                self._disk = OnDisk(disk.states, tuple(sorted({*disk.epochs, number})), disk.copies)
            case EpochStopped():
                self._running = self._seal = self._ballot = None
                self._out.append(Changed())
            case EpochsDropped(disk):
                self._disk = disk
                self._out.append(Changed())
            case StorageRenewed(me):
                self.me, self._restored = me, False
                self._out.append(Changed())
            case WriteFailed():
                # What was fetched may be lost with it: it is fetched anew after the pause.
                self._fetch = None
                self._paused = True

    def _state_kept(self, number: int, digest: bytes) -> None:
        self._fetch = None
        self._out.append(Changed())
        seal = self._seal
        if seal is None or seal.number != number:
            return
        epoch = self.chain.epoch(seal.epoch)
        assert epoch is not None
        statement = statement_of(epoch, number, seal.index, digest, seal.voters)
        self._ballot = Ballot(self.chain.swarm_id, epoch, statement, self._key)
        self._ask_again = True

    # ---- what to do next ---------------------------------------------------------------

    def _advance(self) -> None:
        if self._doing is not None or self._paused:
            self._busy = True
            return None
        self.waits_for = None
        head = self.chain.head.number
        if self._saved < head:
            return self._begin(SaveChain(head))
        if self._restored:
            running = self._running
            return self._begin(RenewStorage() if running is None else StopEpoch(running))
        steps = decide(self._facts())
        self._busy = bool(steps)
        if self._running == head and not self._admitted:
            self._admit(head)
        if not steps:
            return None
        match steps[0]:
            case SignSeal(to):
                self._sign(to)
            case FetchState(number, sources):
                self._fetch_state(number, sources)
            case AskInstalled(number, of):
                self._ask_installed(number, of)
            case step:
                self._begin(step)
        return None

    def _begin(self, effect: Effect) -> None:
        self._busy = True
        self._doing = effect
        self._out.append(effect)

    def _facts(self) -> Facts:
        chain, head = self.chain, self.chain.head
        states = frozenset(self._disk.states)
        sealed = self._seal.number if self._seal is not None else None
        if self._ballot is None and sealed is not None:
            states -= {sealed}  # After a restart the signature is made afresh.
        return Facts(
            head=head,
            before=chain.before_head,
            me=self.me,
            running=self._running,
            sealed=sealed,
            states=states,
            leftovers=self._leftovers(),
            installed=frozenset(self._installed),
        )

    def _sign(self, to: tuple[NodeId, ...]) -> None:
        ballot = self._ballot
        assert ballot is not None
        certificate = ballot.certificate()
        if certificate is not None:
            self._learn((certificate,), push=True)
            return self._advance()
        self.waits_for = "signatures of the voters of the ended epoch"
        if self._ask_again:
            self._ask_again = False
            self._send_each(to, emsg.Signed(ballot.own))
        return None

    def _ask_installed(self, number: int, of: tuple[NodeId, ...]) -> None:
        if self._asked or not self._ask_again:
            return
        self._ask_again = False
        for peer in of:
            self._asked[self._ask(peer, emsg.InstalledAsk(number))] = peer

    def _admit(self, number: int) -> None:
        """Take part once all voters noted this life, or a majority did and the grace is over."""
        head = self.chain.head
        noted = 1 + sum(v in self._noted for v in head.node_ids if v != self.me.node_id)
        enough = noted >= head.majority
        if noted == len(head.voters) or (enough and self._grace_over):
            self._admitted = True
            self._out.append(Admit(number))
            return
        if enough and not self._grace:
            self._tag += 1
            self._grace = self._tag
            self._out.append(SetTimer(ADMIT_GRACE_S, GraceOver(self._grace)))
        self._busy = True
        self.waits_for = "a majority of the voters to tell that this disk is no old copy"
        if self._noting or not self._note_again:
            return
        self._note_again = False
        ask = emsg.StartAsk(self.me.storage, *self._life)
        for peer in self.chain.head.node_ids:
            if peer != self.me.node_id and peer not in self._noted:
                self._noting[self._ask(peer, ask)] = peer

    def _ask(self, peer: NodeId, message: Any) -> int:
        self._tag += 1
        self._out.append(Ask(self._tag, peer, message))
        return self._tag

    def _send_each(self, to: Sequence[NodeId], message: Any) -> None:
        self._out += [Send(peer, message) for peer in to if peer != self.me.node_id]

    # ---- fetching the first state ------------------------------------------------------

    def _fetch_state(self, number: int, sources: tuple[NodeId, ...]) -> None:
        self.waits_for = f"the state that epoch {number} begins with"
        if self._fetch is not None or not sources:
            return
        epoch = self.chain.epoch(number)
        assert epoch is not None
        assert epoch.digest is not None
        self._fetch = _Fetch(number, epoch.digest, sources)
        self._begin(UseCopy(number, epoch.digest))

    def _try_next_source(self) -> None:
        fetch = self._fetch
        if fetch is None:
            return
        fetch.source += 1
        fetch.offset = 0
        if fetch.source < len(fetch.sources):
            fetch.tag = self._ask(fetch.sources[fetch.source], emsg.StateAsk(fetch.number, 0))
        else:
            self._fetch = None
            self._paused = True

    def _take_piece(self, fetch: _Fetch, piece: Any) -> None:
        sound = isinstance(piece, emsg.StatePiece) and piece.data
        if not sound or piece.total > CHECKED_FILE_BYTES_MAX:
            return self._try_next_source()
        self._out.append(KeepPiece(fetch.number, fetch.offset, piece.data))
        fetch.offset += len(piece.data)
        if fetch.offset >= piece.total:
            return self._begin(KeepState(fetch.number, fetch.digest))
        source = fetch.sources[fetch.source]
        fetch.tag = self._ask(source, emsg.StateAsk(fetch.number, fetch.offset))
        return None

    # ---- answers -----------------------------------------------------------------------

    def _answered(self, tag: int, message: Any) -> None:
        peer, noting = self._asked.pop(tag, None), self._noting.pop(tag, None)
        if peer is not None:
            self._take_installed(peer, message)
        elif noting is not None:
            self._take_noted(noting, message)
        elif self._fetch is not None and self._fetch.tag == tag:
            self._take_piece(self._fetch, message)

    def _take_noted(self, peer: NodeId, answer: Any) -> None:
        if not isinstance(answer, emsg.StartNoted):
            return  # Away: it is asked again.
        if answer.rises:
            self._noted[peer] = None
        else:
            self._restored = True

    def _take_installed(self, peer: NodeId, answer: Any) -> None:
        if not isinstance(answer, emsg.Installed):
            return  # Away: it is asked again.
        number = self.chain.head.number
        if answer.number == number and answer.installed:
            if peer not in self._installed:
                self._installed[peer] = None
                self._out.append(Changed())
        elif answer.number < number:
            self._tell(peer, answer.number)

    # ---- certificates ------------------------------------------------------------------

    def _learn(self, certificates: tuple[bytes, ...], *, push: bool = False) -> None:
        """Take certificates; those before one that is not acceptable are taken. Raises."""
        grown = False
        try:
            for certificate in certificates[:CERTIFICATES_MAX]:
                grown = self.chain.extend(certificate) or grown
        finally:
            if grown:
                self._installed.clear()
                self._asked.clear()
                self._noted.clear()
                self._noting.clear()
                self._told.clear()
                self._fetch = None
                self._paused = False
                self._ask_again = self._note_again = True
                self._spread(certificates, push)
                self._out.append(Changed())

    def _spread(self, certificates: tuple[bytes, ...], push: bool) -> None:
        head = self.chain.head
        before = self.chain.before_head
        to = tuple(dict.fromkeys((*head.node_ids, *(before.node_ids if before else ()))))
        message = emsg.Certificates(certificates)
        self._send_each(to, message)
        if push:
            self._out.append(SendAlive(message, to))

    def _tell(self, peer: NodeId, number: int) -> None:
        """Send `peer`, who is at epoch `number`, what follows; not too often."""
        if self._now - self._told.get(peer, -_TOLD_AGAIN_S) < _TOLD_AGAIN_S:
            return
        if len(self._told) >= _TOLD_PEERS_MAX:
            self._told.clear()
        self._told[peer] = self._now
        following = self.chain.certificates_from(number, CERTIFICATES_MAX)
        if following:
            self._out.append(Send(peer, emsg.Certificates(following)))

    def _stray(self, peer: NodeId, key: bytes) -> None:
        number = self.chain.number_of(key)
        if number is None:
            # Of an epoch not heard of yet; its certificate is on the way, or is asked for.
            self._out.append(Dropped("unknown_epoch"))
        elif number < self.chain.head.number:
            self._tell(peer, number)

    # ---- what others ask ---------------------------------------------------------------

    def _heard(self, event: Heard) -> None:
        try:
            effect = self._reply(event.peer, event.message, event.tag)
        except (EpochFork, Diverged):
            raise
        except SwarmError as error:
            self._out.append(Dropped(error.code))
            effect = Refuse(event.tag, error.code, error.message)
        if event.tag:
            self._out.append(effect)

    def _reply(self, peer: NodeId, message: Any, tag: int) -> Effect:
        match message:
            case emsg.Certificates(certificates):
                # From oneself: a recovery, which everybody is to hear of.
                self._learn(certificates, push=peer == self.me.node_id)
            case emsg.Signed(envelope):
                self._take_signature(peer, envelope)
            case emsg.ChainAsk(number):
                known = self.chain.certificates_from(number, CERTIFICATES_MAX)
                return Answer(tag, emsg.Certificates(known))
            case emsg.InstalledAsk(number):
                head = self.chain.head.number
                holds = number in self._disk.states and self.has_seat and number == head
                return Answer(tag, emsg.Installed(head, holds))
            case emsg.Enlist():
                if self.leaving:
                    raise ShuttingDown("this node is about to leave the swarm")
                return Answer(tag, emsg.Enlisted(self.me, self.chain.head.number))
            case emsg.StateAsk(number, offset):
                return self._piece(peer, tag, number, offset)
            case emsg.StartAsk():
                return NoteStart(tag, peer, message)
            case emsg.StatePiece() | emsg.Installed() | emsg.Enlisted() | emsg.StartNoted():
                raise RemoteError("an answer to no question")
            case _:
                raise BadRequest("not a question about epochs")
        return Refuse(tag, BadRequest.code, "that is no question")

    def _take_signature(self, peer: NodeId, envelope: bytes) -> None:
        if self._ballot is not None:
            self._ballot.add(envelope)
        elif self._running is None or self._running == self.chain.head.number:
            # Its epoch ended some time ago, unless this voter lags behind it.
            self._tell(peer, max(1, self.chain.head.number - _TOLD_EPOCHS))

    def _piece(self, peer: NodeId, tag: int, number: int, offset: int) -> Effect:
        epoch = self.chain.epoch(number)
        if epoch is None or number not in self._disk.states:
            raise NotFound(f"the state of epoch {number} is not here")
        if peer not in epoch.node_ids:
            raise Forbidden(f"{short(peer)} is no voter of epoch {number}")
        return ReadPiece(tag, number, offset)
