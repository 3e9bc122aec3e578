"""A simulated node of the strong store: a voter whose epochs come and go.

The machine of the chain of epochs is the production one, and so are its files and the log of
each epoch; this is the shell around them, as `keeper.py` and `seats.py` are. What it writes
takes time, and at every step of a change of voters the process may end: each such point has a
name and is counted when it happens there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import DiskFault
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.identity.epochs import RECOVERY_DOMAIN, Chain, Epoch, recovery_number, recovery_of
from swarmd.identity.genesis import Genesis
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope
from swarmd.identity.voter import STORAGE_BYTES
from swarmd.sim.disk import PowerLost, SimDisk
from swarmd.sim.raft_copies import COPY_POINTS, Copier, Copies
from swarmd.sim.raft_rules import HastyMachine, SealRule
from swarmd.sim.raft_voter import Around as VoterAround
from swarmd.sim.raft_voter import LogRoom, Voter
from swarmd.state.raft import epoch_machine as em
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m
from swarmd.state.raft.epoch import DropEpochs, KeepSealedState, StartEpoch, StopEpoch
from swarmd.state.raft.machine import Deliver
from swarmd.state.raft.recovery import copy_with
from swarmd.state.raft.statefile import encode_state, restore_state, state_digest
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.storage import EpochFiles
from swarmd.wire.codec import encode_struct
from swarmd.wire.envelope import encode_envelope

ASK_TIMEOUT_S: Final = 2.0
ENLIST_TIMEOUT_S: Final = 1.0
_DISK_S: Final = (0.0003, 0.003)
STORAGE_FILE: Final = "raft.storage"

# Where a change of voters can be cut short, and what happens there.
_POINTS: Final[dict[type[Effect], str]] = {
    KeepSealedState: "keep",
    em.SaveChain: "chain",
    em.UseCopy: "use",
    em.NoteStart: "note",
    em.RenewStorage: "renew",
    StopEpoch: "stop",
    em.KeepState: "install",
    StartEpoch: "start",
    DropEpochs: "drop",
}
CRASH_POINTS: Final = (
    "enlist",
    "seal.proposed",
    "seal.applied",
    "signed",
    "certified",
    *(f"{step}.{side}" for step in _POINTS.values() for side in ("before", "after")),
    "fetch",
    "piece",
    "installed",
    *COPY_POINTS,
)


# Points that few seeds come to, so that they are cut short there more often.
_RARE: Final = frozenset({"renew.before", "renew.after", "seal.proposed", "certified"})
_RARE_FACTOR: Final = 10


class Around(VoterAround, Protocol):
    """What a node needs of its world besides."""

    genesis: Genesis
    names_of: dict[NodeId, str]
    ids_of: dict[str, NodeId]
    point_chance: float
    copy_chance: float

    def start(self, name: str) -> None: ...

    def alive(self, name: str) -> Iterable[str]:
        """Who seems alive to `name`."""
        ...

    def certified(self, host: str, epoch: Epoch) -> None: ...

    def may_propose(self, number: int, seats: tuple[m.Voter, ...]) -> bool: ...

    def installed(self, number: int, seat: m.Voter) -> None: ...

    def stopped(self, number: int, seat: m.Voter) -> None: ...

    def dropping(self, host: str, head: Epoch) -> None: ...

    def started(self, node: Node, epoch: Epoch) -> None: ...

    def admitted(self, node: Node) -> None: ...


class Node(Voter):
    """A process with a disk that may hold a seat, or another one later."""

    def __init__(self, around: Around, name: str, key: SigningKey) -> None:
        super().__init__(around, name)
        self.near = around
        self.key = key
        self.node_id = key.key_id
        self.machine: em.EpochMachine
        self.chain: Chain
        self.head = 0
        self._disks = 0
        # Names of this disk that copies of it from an earlier time may bear.
        self.copied: set[bytes] = set()
        self._crash_at: str | None = None
        # Never begun anew: an answer to one life of the process does not reach the next.
        self._serial = 0
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[bytes] = []
        self._asks: dict[int, Callable[[Any], None]] = {}
        self._questions: dict[int, tuple[str, int]] = {}
        self._question = 0
        self._feeding: list[Event] = []
        self._changing = False
        self._told_seal = False
        self._led = 0
        self._unwritten: dict[int, bytes] = {}

    # ---- life ----------------------------------------------------------------------------

    def name_disk(self) -> None:
        """Name an empty disk; `EpochFiles` would draw the name from the machine's own entropy."""
        if self.disk.read(STORAGE_FILE) is None:
            if not self._disks or SealRule.NEW_DISK_NEW_VOTER not in self.removed:
                self._disks += 1
            made = f"{self.name}/{self._disks}".encode().ljust(STORAGE_BYTES, b".")
            self.disk.replace(STORAGE_FILE, seal_body("storage", 1, made))

    def found(self, certificate: bytes, body: bytes | None) -> None:
        """Put what the second epoch begins with onto the disk: its certificate and its state."""
        chain, files = Chain(self.near.genesis), EpochFiles(self.disk)
        chain.extend(certificate)
        files.save_chain(chain)
        if body is not None:
            files.write_state(2, body)

    def boot(self) -> None:
        self._clear()
        self.name_disk()
        self.chain = Chain(self.near.genesis)
        self.files = EpochFiles(self.disk)
        self.files.load_chain(self.chain)
        self.files.find_states(self.chain)
        storage = self.files.storage(self.chain.swarm_id, founding=False)
        me = m.Voter(self.key.public, storage)
        hasty = SealRule.KEEP_UNTIL_INSTALLED in self.removed
        made = HastyMachine if hasty else em.EpochMachine
        start, nonces = self.files.count_start(self.rng.randbytes(16))
        disk = self.files.on_disk()
        self.machine = made(self.chain, me, self.key, disk, start=start, nonces=nonces)
        self.head = self.chain.head.number
        self.copies, self.copier = Copies(self), Copier(self, self.near.genesis)
        self.after(0.0, self.feed, em.Wake(em.START))

    def ended(self) -> None:
        super().ended()
        self._clear()

    @property
    def seated(self) -> bool:
        """Has its disk, as it is now, a seat in the newest epoch that it knows?"""
        return self.up and self.machine.has_seat

    def point(self, name: str) -> None:
        """A named place at which the process may end, with or without the power."""
        chosen = self._crash_at == name
        chance = self.near.point_chance * (_RARE_FACTOR if name in _RARE else 1)
        if chosen or self.rng.random() < chance:
            self._crash_at = None
            self.world.count(f"seal crash {name}")
            raise Cut(name)

    def crash_at(self, name: str | None) -> None:
        """End at this point when it next comes there; for stories."""
        assert name is None or name in CRASH_POINTS, name
        self._crash_at = name

    def power_lost(self, lost: PowerLost) -> None:
        if isinstance(lost, Cut):
            self.crash(power=self.rng.random() < 0.5)
        else:
            super().power_lost(lost)
        self.world.after(self.rng.uniform(0.05, 1.0), self.near.start, self.name)

    # ---- messages ------------------------------------------------------------------------

    def receive(self, source: str, message: tuple[Any, ...]) -> None:
        match message:
            case ("raft", key, data):
                if self.room is not None and self.room.key == key:
                    self.room.feed(Deliver(source, data))
                else:
                    self.feed(em.StrayPacket(self._id_of(source), key))
            case ("epoch", 0, emsg.Follow(number)):
                head = self.chain.head
                seated = self._id_of(source) in head.node_ids
                if number == head.number and seated and not self.machine.has_seat:
                    self.copier.told(self._id_of(source), number)
            case ("epoch", serial, emsg.BaseAsk() | emsg.LogAsk() as body):
                self.copies.answer(body, partial(self._tell_peer, source, serial))
            case ("epoch", 0, body):
                self.feed(em.Heard(self._id_of(source), body))
            case ("epoch", serial, body):
                self._question += 1
                self._questions[self._question] = (source, serial)
                self.feed(em.Heard(self._id_of(source), body, self._question))
            case ("told", serial, body):
                done = self._asks.pop(serial, None)
                if done is not None:
                    done(body)
            case _:
                super().receive(source, message)

    def _id_of(self, name: str) -> NodeId:
        return self.near.ids_of[name]

    def _send(self, peer: NodeId, body: Any, serial: int = 0) -> None:
        name = self.near.names_of.get(peer)
        if name is not None:
            self.network.send(self.name, name, ("epoch", serial, body))

    def ask_peer(self, peer: NodeId, body: Any, timeout_s: float, done: Any) -> None:
        """Ask once; `done(None)` if no answer comes in time."""
        self._serial += 1
        serial = self._serial
        self._asks[serial] = done
        self._send(peer, body, serial)
        self.after(timeout_s, self._unanswered, serial)

    def _unanswered(self, serial: int) -> None:
        done = self._asks.pop(serial, None)
        if done is not None:
            done(None)

    # ---- the machine of the chain ----------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Step the machine; what it asks for that takes no time happens at once."""
        self._feeding.append(event)
        if len(self._feeding) > 1:
            return  # The step under way goes on with it.
        while self._feeding:
            effects = self.machine.handle(self._feeding[0], self.clock.now())
            self._note_head()
            for effect in effects:
                self._perform(effect)
            self._feeding.pop(0)

    def _note_head(self) -> None:
        head = self.chain.head
        if head.number != self.head:
            self.head = head.number
            self.near.certified(self.name, head)
            self.copier.epoch_began(head.number)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SetTimer(delay_s, event):
                self.after(delay_s, self.feed, event)
            case Send(peer, body):
                self._send(peer, body)
                if isinstance(body, emsg.Signed):
                    self.point("signed")
            case em.SendAlive(body, told):
                for name in self.near.alive(self.name):
                    if name != self.name and self._id_of(name) not in told:
                        self._send(self._id_of(name), body)
                self.point("certified")
            case em.Ask(tag, peer, body):
                self.ask_peer(
                    peer, body, ASK_TIMEOUT_S, lambda got: self.feed(em.Answered(tag, got))
                )
                if isinstance(body, emsg.StateAsk):
                    self.point("fetch")
            case em.AskAnybody():
                self._ask_anybody()
            case em.Answer(tag, body):
                self._tell(tag, body)
            case em.Refuse(tag):
                self._tell(tag, None)
            case em.ReadPiece(tag, number, offset):
                self._tell(tag, self._piece(number, offset))
            case em.KeepPiece(_, offset, data):
                if offset == 0:
                    self._pieces.clear()
                self._pieces.append(data)
                self.point("piece")
            case em.NoteStart():
                self.after(self.rng.uniform(*_DISK_S), self._note_start, effect)
            case em.Admit():
                assert self.room is not None
                self.near.admitted(self)
                self.room.admit()
            case em.Changed():
                pass
            case em.Dropped(why):
                self.world.count(f"dropped {why}")
            case _:
                # As long as its end is not fed back the machine begins nothing else.
                self.after(self.rng.uniform(*_DISK_S), self._write, effect)

    def _ask_anybody(self) -> None:
        others = [name for name in self.near.alive(self.name) if name != self.name]
        if not others:
            return
        peer = self._id_of(self.rng.choice(others))

        def heard(answer: Any) -> None:
            if isinstance(answer, emsg.Certificates):
                self.feed(em.Heard(peer, answer))

        self.ask_peer(peer, emsg.ChainAsk(self.chain.asks_from), ASK_TIMEOUT_S, heard)

    def _tell_peer(self, peer: str, serial: int, body: Any) -> None:
        self.network.send(self.name, peer, ("told", serial, body))

    def _tell(self, question: int, body: Any) -> None:
        source, serial = self._questions.pop(question)
        self.network.send(self.name, source, ("told", serial, body))
        if isinstance(body, emsg.Installed) and body.installed:
            self.point("installed")
        if isinstance(body, emsg.Enlisted):
            self.point("enlist")

    def _redirect(self) -> m.Redirect:
        """To whoever leads; a node without a seat points to any of the voters that it knows."""
        if self.room is not None:
            return super()._redirect()
        name = self.near.names_of.get(self.rng.choice(self.chain.head.node_ids), "")
        return m.Redirect(name.encode() if name != self.name else b"", 0, "not_a_voter")

    @property
    def storage(self) -> bytes:
        """The name of this disk as a voter; empty while it has none."""
        raw = self.disk.read(STORAGE_FILE)
        return b"" if raw is None else open_body("storage", 1, raw, source=STORAGE_FILE)

    def _piece(self, number: int, offset: int) -> emsg.StatePiece | None:
        body = self._state(number)
        if body is None or not 0 <= offset < len(body):
            return None
        # Small pieces, so that a state takes several.
        return emsg.StatePiece(len(body), body[offset : offset + max(200, len(body) // 3)])

    def _note_start(self, effect: em.NoteStart) -> None:
        """Note another voter's life durably, then answer whether it is a new one."""
        told = effect.start
        self.point("note.before")
        try:
            rises = self.files.note_start(effect.peer, told.storage, told.start, told.nonces)
        except DiskFault:
            self._tell(effect.tag, None)
            return
        self.point("note.after")
        if not rises:
            self.world.count("restored_disk_seen")
        believes = SealRule.COPY_OF_DISK_IS_ANOTHER in self.removed
        self._tell(effect.tag, emsg.StartNoted(rises or believes))

    def knows_later(self, node: Node, image: Mapping[str, bytes]) -> bool:
        """Has this node noted a life of that disk which a copy of it cannot know of?"""
        copy = SimDisk(self.world, "copy")
        copy.put_back(dict(image))
        lives, _ = EpochFiles(copy).count_start(b"")  # What the copy would call its next life.
        seen = self.files._load_seen().get((node.node_id, node.storage))
        return seen is not None and seen.start >= lives

    # ---- what it writes --------------------------------------------------------------------

    def _write(self, effect: Effect) -> None:
        name = _POINTS[type(effect)]
        self.point(f"{name}.before")
        try:
            event = self._written(effect)
        except DiskFault:
            event = em.WriteFailed()
        self.point(f"{name}.after")
        self.feed(event)

    def _written(self, effect: Effect) -> Event:
        match effect:
            case em.SaveChain():
                head = self.chain.head.number
                if SealRule.CERTIFICATE_FIRST not in self.removed:
                    self.files.save_chain(self.chain)
                self.files.find_states(self.chain)
                return em.ChainSaved(head, self.files.on_disk())
            case KeepSealedState(number):
                assert self.room is not None
                body = encode_state(self.room.state.sealed_snapshot())
                self._keep(number, body, SealRule.STATE_BEFORE_SIGNATURE)
                return em.StateKept(number, state_digest(body), self._on_disk())
            case em.UseCopy(number, digest):
                return self._use_copy(number, digest)
            case em.RenewStorage():
                self.disk.remove(STORAGE_FILE)
                self.name_disk()
                return em.StorageRenewed(m.Voter(self.key.public, self.storage))
            case em.KeepState(number, digest):
                return self._keep_state(number, digest)
            case StartEpoch(number):
                return self._start_epoch(number)
            case StopEpoch(number):
                self.near.stopped(number, self.machine.me)
                if self.room is not None and self.room.machine.office.state == "leader":
                    self._led = number
                self.end_room()
                return em.EpochStopped(number)
        assert isinstance(effect, DropEpochs), effect
        self.near.dropping(self.name, self.chain.head)
        for number in effect.numbers:
            self.copier.close(number)
            self.files.drop(number)
        return em.EpochsDropped(self._on_disk())

    def _keep(self, number: int, body: bytes, rule: SealRule) -> None:
        """Make the first state of an epoch durable, unless that rule is left out."""
        if rule in self.removed:
            self._unwritten[number] = body
            return
        self.files.write_state(number, body)
        self.near.installed(number, self.machine.me)

    def _on_disk(self) -> em.OnDisk:
        found = self.files.on_disk()
        states = tuple(sorted({*found.states, *self._unwritten}))
        return em.OnDisk(states, found.epochs, found.copies)

    def _state(self, number: int) -> bytes | None:
        return self._unwritten.get(number) or self.files.state(number)

    def _keep_state(self, number: int, digest: bytes) -> Event:
        body = b"".join(self._pieces)
        self._pieces.clear()
        trusting = SealRule.STATE_PROVES_ITSELF in self.removed
        if state_digest(body) != digest and not trusting:
            return em.StateRefused(number)
        self._keep(number, body, SealRule.STATE_BEFORE_VOTE)
        return em.StateKept(number, digest, self._on_disk())

    def _use_copy(self, number: int, digest: bytes) -> Event:
        body = self.copier.first_state(number)
        if body is None:
            return em.StateRefused(number)
        if state_digest(body) != digest:
            # Nobody would believe it, but it must not be: what was copied was applied.
            self.world.violate(f"{self.name} copied a log that makes up another state")
            return em.StateRefused(number)
        self.world.count("copy_used")
        self._keep(number, body, SealRule.STATE_BEFORE_VOTE)
        return em.StateKept(number, digest, self._on_disk())

    def _start_epoch(self, number: int) -> Event:
        epoch = self.chain.epoch(number)
        assert epoch is not None
        log = self.around.log_watch(number)
        state = self.around.make_state(log, self.name)
        body = self._state(number)
        assert body is not None, f"the state of epoch {number} is missing"
        restore_state(state, body)
        self._told_seal = False
        names = tuple(sorted(self.near.names_of[node_id] for node_id in epoch.node_ids))
        disk, stand = self.files.log_disk(epoch), self._led == number - 1
        self.room = LogRoom(self, log, names, state, disk, epoch.key, stand=stand)
        self.near.started(self, epoch)
        return em.EpochStarted(number, self._seal(), self._on_disk())

    def _seal(self) -> em.SealApplied | None:
        if self.room is None or self.room.state.sealed is None:
            return None
        sealed = self.room.state.sealed
        return em.SealApplied(self.room.number, sealed.number, sealed.index, sealed.voters)

    def applied(self, room: LogRoom) -> None:
        """The room took up entries; one may have been its seal."""
        seal = self._seal()
        if seal is not None and not self._told_seal:
            self._told_seal = True
            self.point("seal.applied")
            self.feed(seal)
            if SealRule.ORDINARY_UNTIL_CERTIFIED in self.removed:
                room.close()

    # ---- as the last one -------------------------------------------------------------------

    def recover(self, key: SigningKey) -> StateMachine:
        """Go on alone with what is here, as `recovery.py` does; the state to go on with."""
        head, room, genesis = self.chain.head, self.room, self.near.genesis
        assert room is not None
        state = copy_with(genesis, room.state, room.machine.unapplied())
        state.begin_generation()
        number = recovery_number(head)
        body = encode_state(state.first_snapshot(number, (self.machine.me,)))
        self.files.write_state(number, body)
        self.near.installed(number, self.machine.me)
        statement = encode_struct(recovery_of(head, state_digest(body), self.machine.me))
        signed = encode_envelope(sign_envelope(RECOVERY_DOMAIN, genesis.swarm_id, statement, key))
        heard = em.Heard(self.node_id, emsg.Certificates((signed,)))
        self.after(0.0, self.feed, heard)
        return state

    # ---- as coordinator --------------------------------------------------------------------

    def change_voters(self, chosen: tuple[NodeId, ...]) -> None:
        """Ask the chosen under which storage they would vote, then propose the seal."""
        room = self.room
        if room is None or not self.serving or self._changing:
            return  # Who serves has a majority that holds the state of its epoch.
        self._changing = True
        self.world.count("change_asked")
        copying = self.rng.random() < self.near.copy_chance
        for peer in chosen:
            if copying and peer not in self.chain.head.node_ids:
                self._send(peer, emsg.Follow(room.number))
        # As the seats do: the new ones copy the log first. It may go wrong, then they fetch.
        self.after(self.rng.uniform(0.2, 1.0) if copying else 0.0, self._enlist, room, chosen)

    def _enlist(self, room: LogRoom, chosen: tuple[NodeId, ...]) -> None:
        enlisted: dict[NodeId, m.Voter] = {}
        waiting = set(chosen)

        def answered(peer: NodeId, answer: Any) -> None:
            waiting.discard(peer)
            if isinstance(answer, emsg.Enlisted) and answer.voter.node_id == peer:
                enlisted[peer] = answer.voter
            if not waiting:
                self._enlisted(room, chosen, enlisted)

        for peer in chosen:
            self.ask_peer(
                peer, emsg.Enlist(), ENLIST_TIMEOUT_S, lambda got, peer=peer: answered(peer, got)
            )

    def _enlisted(
        self, room: LogRoom, chosen: tuple[NodeId, ...], enlisted: dict[NodeId, m.Voter]
    ) -> None:
        """Old voters may be away, new ones not; and a majority must be there."""
        self._changing = False
        if room is not self.room or not self.serving:
            return
        epoch = self.chain.epoch(room.number)
        assert epoch is not None
        silent = [peer for peer in chosen if peer not in enlisted]
        new = [peer for peer in silent if epoch.seat_of(peer) is None]
        if new or len(silent) > (len(chosen) - 1) // 2:
            return
        seated = {voter.node_id: voter for voter in epoch.voters}
        seats = tuple({**seated, **enlisted}[peer] for peer in chosen)
        if not self.near.may_propose(room.number + 1, seats):
            return
        self.world.count("seal_proposed")
        op = m.Seal(room.number + 1, seats)
        self.propose((m.Group(b"", 0, 0, (op,)),), lambda _: None)
        self.point("seal.proposed")


class Cut(PowerLost):
    """The process ends at a named point."""
