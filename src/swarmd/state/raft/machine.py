"""The voter as a machine: packets, proposals and reads in; sends, answers and timers out.

A step is one or more `handle` calls and then one `settle`, so that everything that arrived
together shares one journal sync, one round of appends and one read round. `settle` asks for
`Persist`: the shell calls `sync` for it and performs the other effects only once that returned
(persist before send). Only a leader's appends go ahead, so that it and its followers write
their disks at the same time (Ongaro's thesis, section 10.2.1): it counts itself, and applies,
up to what is synced, and the term that it appends in is durable since it asked for votes.

A sync that fails leaves the machine as it was: the shell may wait and call `sync` again,
and must not step the machine in between. A leader that met a failure gives up its office at its
next step. Timers are never cancelled; `Wake(START)` is always
welcome and is how a machine is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from swarmd.base.disk import Disk
from swarmd.base.errors import DiskFault, MalformedMessage
from swarmd.base.machine import Ahead, Effect, Event, Persist, SetTimer
from swarmd.base.rng import Rng
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.guards import ALL_GUARDS, Guard
from swarmd.state.raft.hardened import CANDIDATE, FOLLOWER, LEADER, HardenedRaft, ReplicatedState
from swarmd.state.raft.journal import ANYBODY, Entry, Owner
from swarmd.state.raft.wire import VOTERS, Append, Assembler, Part, split
from swarmd.wire.codec import Message

__all__ = [
    "Applied",
    "Deliver",
    "Doubt",
    "Office",
    "Propose",
    "Proposed",
    "RaftMachine",
    "RaftStatus",
    "ReadIndex",
    "ReadReady",
    "ReplicatedState",
    "SendAhead",
    "SendRaft",
    "START",
    "Stand",
    "Transfer",
    "Transferred",
    "Wake",
]

# The token of a wake that is never stale: start, or go on at once.
START: Final = 0

_ROLES: Final = {FOLLOWER: "follower", CANDIDATE: "candidate", LEADER: "leader"}


# ---- events --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deliver(Event):
    """Bytes from another voter; any bytes."""

    peer: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Propose(Event):
    """Append a command; answered by `Proposed` with the same tag."""

    command: bytes
    tag: int


@dataclass(frozen=True, slots=True)
class ReadIndex(Event):
    """Ask when the local state may be read linearizably; answered by `ReadReady`."""

    tag: int


@dataclass(frozen=True, slots=True)
class Transfer(Event):
    """Hand the leader's office to the voter `target`; answered by `Transferred`."""

    target: str
    tag: int


@dataclass(frozen=True, slots=True)
class Stand(Event):
    """This voter led the epoch before: let it ask for office without waiting."""


@dataclass(frozen=True, slots=True)
class Doubt(Event):
    """Membership holds the voter `peer` for suspect or gone; or, not `doubted`, does no more."""

    peer: str
    doubted: bool


@dataclass(frozen=True, slots=True)
class Wake(Event):
    """A timer that this machine set, or `Wake(START)`."""

    token: int


# ---- effects -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendRaft(Effect):
    """Send opaque bytes to another voter; they may be lost, repeated or overtaken."""

    peer: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SendAhead(SendRaft, Ahead):
    """Send what rests on nothing unsynced."""


@dataclass(frozen=True, slots=True)
class Proposed(Effect):
    """The end of a proposal.

    `ok`: applied here, and `result` is what the state returned. Otherwise `code`:
    `not_leader`, `handing_over`, `too_large`, `busy`: it was not appended and never will be;
    `leader_changed`: office was lost before it committed, so the outcome is unknown.
    """

    tag: int
    ok: bool
    result: Any
    code: str | None


@dataclass(frozen=True, slots=True)
class ReadReady(Effect):
    """With `ok`, the local state now holds all that was committed when the read was asked."""

    tag: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Transferred(Effect):
    """The end of a transfer. `code` None: this voter leads no more, and who was to follow was
    told to stand, or leads already. Otherwise it leads on: `timeout`, `busy`, `not_a_voter`;
    or never did: `not_leader`.
    """

    tag: int
    code: str | None


@dataclass(frozen=True, slots=True)
class Office(Effect):
    """Role, term or leader changed. `ready`: this leader has applied an entry of its term."""

    state: str
    term: int
    leader: str | None
    ready: bool


@dataclass(frozen=True, slots=True)
class Applied(Effect):
    """The state has taken up everything to `index`, by entries or a snapshot."""

    index: int


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """A voter as seen by itself. A leader's knowledge is `matched` and `silence_s` per peer, and
    which peers agree on the state (`Agreement`).
    """

    role: str
    term: int
    leader: str | None
    ready: bool
    commit_index: int
    applied_index: int
    last_index: int
    snapshot_index: int
    journal_bytes: int
    matched: dict[str, int]
    silence_s: dict[str, float]
    agreeing: tuple[str, ...]


class RaftMachine:
    """One voter of one fixed set of voters; see `HardenedRaft` for arguments and errors."""

    def __init__(
        self,
        me: str,
        voters: tuple[str, ...],
        disk: Disk,
        state: ReplicatedState,
        rng: Rng,
        config: RaftConfig,
        now: float,
        guards: frozenset[str] = ALL_GUARDS,
        owner: Owner = ANYBODY,
    ) -> None:
        self._core = HardenedRaft(me, voters, disk, state, rng, config, now, guards, owner)
        self._guards = guards
        self._part_bytes = config.part_bytes
        self._assemblers = {peer: Assembler() for peer in self._core.peers}
        self._applied = self._core.applied_index
        self._office = Office("follower", self._core.term, None, False)
        self._armed_for: float | None = None
        self._armed_token = START
        self._going_on = False
        self.malformed_count = 0

    # ---- what can be seen --------------------------------------------------------------

    @property
    def voters(self) -> tuple[str, ...]:
        return self._core.voters

    @property
    def office(self) -> Office:
        """As of the last step."""
        return self._office

    @property
    def applied_index(self) -> int:
        return self._core.applied_index

    @property
    def commit_index(self) -> int:
        return self._core.commit_index

    def applied_after(self, index: int, bytes_max: int) -> list[bytes] | None:
        """What was applied after `index`; see `HardenedRaft`."""
        return self._core.applied_after(index, bytes_max)

    def unapplied(self) -> list[bytes]:
        """Commands in the log behind what is applied; whether they commit is not known."""
        return self._core.unapplied()

    def term_at(self, index: int) -> int | None:
        """Term of the log's entry at `index`; None if it is not in the log, or no more."""
        return self._core.journal.term_at(index)

    def entry_at(self, index: int) -> Entry | None:
        """The log's entry at `index`; None if it is not in the log, or no more."""
        return self._core.journal.entry(index)

    @property
    def sync_is_light(self) -> bool:
        """Is the sync that is due one of few records? A snapshot or a whole log takes longer."""
        snapshots = self._core.snapshots
        return self._core.journal.is_light and not snapshots.taking and not snapshots.dirty

    @property
    def last_index(self) -> int:
        return self._core.journal.last_index

    @property
    def refused_snapshots(self) -> int:
        """Snapshots from peers that were damaged, too large or of other voters."""
        return self._core.receiver.refused_snapshots

    def status(self, now: float) -> RaftStatus:
        core, office = self._core, self._current_office()
        sender = core.sender
        leads = core.is_leader
        return RaftStatus(
            office.state,
            office.term,
            office.leader,
            office.ready,
            core.commit_index,
            core.applied_index,
            core.journal.last_index,
            core.snapshots.index,
            core.journal.file_bytes,
            dict(sender.match) if leads else {},
            {peer: now - at for peer, at in sender.heard_at.items()} if leads else {},
            tuple(filter(core.agreement.agrees, core.peers)) if leads else (),
        )

    # ---- steps -------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Take one event. Its effects come out of the `settle` that ends the step.

        Raises:
            Diverged: voters hold different committed entries; this node must stop.
        """
        self._core.set_now(now)
        match event:
            case Deliver(peer, data):
                self._deliver(peer, data)
            case Propose(command, tag):
                self._core.proposals.propose(command, tag)
            case ReadIndex(tag):
                self._core.reads.ask(tag)
            case Transfer(target, tag):
                self._core.transfers.ask(target, tag)
            case Stand():
                self._core.elections.stand_at_once()
            case Doubt(peer, doubted):
                self._core.elections.doubt(peer, doubted)
            case Wake(token):
                if token == START:
                    self._going_on = False
                elif token == self._armed_token:
                    self._armed_for = None
        return ()

    def settle(self, now: float) -> Sequence[Effect]:
        """End a step: decide on all that arrived, and say what is to be done, in order."""
        core = self._core
        core.tick(now)
        effects: list[Effect] = []
        if core.dirty:
            effects.append(Persist())
        for peer, message in core.take_messages():
            ahead = type(message) is Append and core.may_append_ahead
            send = SendAhead if ahead else SendRaft
            effects += [send(peer, data) for data in self._encode(message)]
        if core.applied_index != self._applied:
            self._applied = core.applied_index
            effects.append(Applied(self._applied))
        office = self._current_office()
        if office != self._office:
            self._office = office
            effects.append(office)
        if answers := core.proposals.answers:
            effects += [Proposed(a.tag, a.code is None, a.result, a.code) for a in answers]
            answers.clear()
        if core.reads.done:
            effects += [ReadReady(tag, ok) for tag, ok in core.reads.done]
            core.reads.done.clear()
        if core.transfers.done:
            effects += [Transferred(tag, code) for tag, code in core.transfers.done]
            core.transfers.done.clear()
        self._arm(effects, now)
        return effects

    def sync(self) -> None:
        """Make what was written durable; performed for `Persist`. May run in a thread.

        Raises:
            DiskFault: not durable. Call again, later; do not step the machine before it
                returns.
        """
        # The snapshot goes first: the journal may already have been reset to stand on it.
        try:
            self._core.snapshots.sync()
            self._core.journal.sync()
        except DiskFault:
            self._core.disk_failed = True
            raise

    def _current_office(self) -> Office:
        core = self._core
        return Office(_ROLES[core.role], core.term, core.leader, core.ready)

    def _deliver(self, peer: str, data: bytes) -> None:
        assembler = self._assemblers.get(peer)
        if assembler is None:
            self.malformed_count += 1  # Not a voter.
            return
        try:
            message: Message = VOTERS.decode(data)
            if isinstance(message, Part):
                whole = assembler.take(message)
                if whole is None:
                    return
                message = VOTERS.decode(whole)
                if isinstance(message, Part):
                    raise MalformedMessage("a part within a part")
        except MalformedMessage:
            self.malformed_count += 1
            return
        self._core.deliver(peer, message)

    def _encode(self, message: Message) -> list[bytes]:
        raw = VOTERS.encode(message)
        if len(raw) <= self._part_bytes:
            return [raw]
        if Guard.H8_SPLIT_LARGE not in self._guards:
            return []  # What a stream would do with a message above its bound.
        return split(raw, self._part_bytes)

    def _arm(self, effects: list[Effect], now: float) -> None:
        """Have `settle` called again when something is due."""
        if self._core.wants_tick() and not self._going_on:
            self._going_on = True
            effects.append(SetTimer(0.0, Wake(START)))
        due = self._core.next_wake()
        if self._armed_for is None or due < self._armed_for:
            self._armed_for = due
            self._armed_token += 1
            # Others wait for all but this; a leader without followers only looks around.
            alone = self._core.is_leader and not self._core.peers
            on_beat = alone and due == self._core.sender.heartbeat_at
            wake = Wake(self._armed_token)
            effects.append(SetTimer(max(0.0, due - now), wake, on_beat=on_beat))
