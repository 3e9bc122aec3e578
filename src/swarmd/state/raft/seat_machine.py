"""The coordinator's care for the seats, as a machine: who should vote, and when to say so.

It is shown the members and the running epoch every half second (`Looked`), on every voter, so
that a new coordinator knows how long things have been as they are; it acts only where it is
shown an epoch, which is where this node coordinates it. Whom to seat is
`voters.choose_voters`'s. The chosen are asked whether they are there and under which storage;
then the seal is proposed. What follows, each node does by itself (`epoch_machine`).

Rules:
- One change at a time, and after each a pause. At most one seal a minute, unless somebody
  leaves, is dead or lost its disk, or there are fewer than three voters.
- Who seems alive and does not answer is passed over. Old voters may be away, new ones not, and
  a majority of the new set must answer.
- New voters first get the state and follow the log (`copy_machine`); the seal is proposed only
  while a majority of the new set, heard from within a second, lacks at most 1,000 entries. So
  the next epoch can begin as soon as this one has ended.
- A seal is final, and without a majority of the old voters that signs one state nothing comes
  after it. So it is proposed only while a majority of them, and everyone who keeps up, agrees on
  the state (`agreement`). Who is dead or lags is not waited for.
- Beside a lone voter somebody keeps a copy at all times, so that there are two disks.
- A voter that is alive and takes no part may have lost its disk: then its seat is given to the
  storage that it has now, which is another voter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from swarmd.base.errors import NotCoordinator, Unavailable, WouldLoseData
from swarmd.base.ids import NodeId, short
from swarmd.base.machine import Effect, Event
from swarmd.identity.voter import Voter
from swarmd.state.raft.voters import Candidate, choose_learner, choose_voters, seats_for

# After an attempt, so that a flapping member cannot make epochs follow each other.
PAUSE_S: Final = 2.0
# Between two changes that can wait.
SEAL_EVERY_S: Final = 60.0
# A voter that is alive is expected to answer its leader within this.
MUTE_AFTER_S: Final = 5.0
# Who is heard from within this, and lacks at most so many entries, can begin at once.
FRESH_S: Final = 1.0
FRESH_ENTRIES: Final = 1_000
# Who leaves is told to ask again after this long; what was begun for it goes on.
LEAVE_PATIENCE_S: Final = 1.5
LEAVERS_MAX: Final = 100
_CHOICES_MAX: Final = 4


# ---- events ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a voter or a copy is, as the coordinator knows it: last heard of, entries missing.

    The coordinator itself is among them. `agrees`: whether a voter's state is this one's.
    """

    node_id: NodeId
    silence_s: float
    behind: int
    agrees: bool = True


@dataclass(frozen=True, slots=True)
class Coordinated:
    """The epoch that this node coordinates. `keys`: how many its state has."""

    number: int
    voters: tuple[Voter, ...]
    progress: tuple[Progress, ...]
    keys: int = 0


@dataclass(frozen=True, slots=True)
class Looked(Event):
    """What is to be seen now.

    `epoch` is None where this node does not coordinate; `number` is that of the newest epoch
    known here. The machine reckons itself for how long members are alive or dead.
    """

    members: tuple[Candidate, ...]
    epoch: Coordinated | None
    number: int


@dataclass(frozen=True, slots=True)
class Leaves(Event):
    """`node_id` asks that its seat be given away; `LeaveEnded` with this tag follows."""

    tag: int
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class SeatAnswered(Event):
    """What came of an `AskSeat`: exactly one per tag; None if no answer came in time."""

    tag: int
    voter: Voter | None


@dataclass(frozen=True, slots=True)
class SealEnded(Event):
    """The seal of this tag was applied, or `code` says why not."""

    tag: int
    code: str | None
    message: str = ""


# ---- effects ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskSeat(Effect):
    """Ask `peer`, maybe this node, whether it would vote, and under which storage."""

    tag: int
    peer: NodeId


@dataclass(frozen=True, slots=True)
class Follow(Effect):
    """Have `peer` keep a copy of the log of epoch `number`."""

    peer: NodeId
    number: int


@dataclass(frozen=True, slots=True)
class ProposeSeal(Effect):
    """Propose to end the epoch before `number`; `SealEnded` with this tag follows."""

    tag: int
    number: int
    voters: tuple[Voter, ...]


@dataclass(frozen=True, slots=True)
class LeaveEnded(Effect):
    """The seat was given away or there was none; or `code` says why not."""

    tag: int
    code: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Stays(Effect):
    """A change was called for and did not come about."""

    why: str


@dataclass(slots=True)
class _Leaver:
    since: float
    tags: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Change:
    """A change of voters under way."""

    epoch: Coordinated
    members: tuple[Candidate, ...]
    leaving: NodeId | None
    chosen: tuple[NodeId, ...] = ()
    asked: dict[NodeId, None] = field(default_factory=dict)
    choices: int = 0
    sealing: int = 0

    @property
    def current(self) -> tuple[NodeId, ...]:
        return tuple(sorted(v.node_id for v in self.epoch.voters))

    def seat_of(self, node_id: NodeId) -> Voter:
        return next(v for v in self.epoch.voters if v.node_id == node_id)


class SeatMachine:
    """See the module. `replace_dead_s`: the grace time of a dead voter."""

    def __init__(self, replace_dead_s: float) -> None:
        self._replace_dead_s = replace_dead_s
        self._since: dict[NodeId, tuple[bool, float]] = {}
        self._newest: tuple[int, float] = (0, 0.0)
        self._members: tuple[Candidate, ...] = ()
        self._epoch: Coordinated | None = None
        self._size: tuple[int, float] = (0, 0.0)
        self._paused_until = 0.0
        self._leavers: dict[NodeId, _Leaver] = {}
        self._waiting = False  # Until the next look, for copies to be made.
        self._change: _Change | None = None
        self._asked: dict[int, NodeId] = {}
        self._enlisted: dict[NodeId, Voter] = {}
        self._tag = 0
        self._now = 0.0
        self._out: list[Effect] = []

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        self._now = now
        match event:
            case Looked(members, epoch, number):
                self._waiting = False
                self._measure(members, number)
                self._look(epoch)
            case Leaves(tag, node_id):
                self._leaves(tag, node_id)
            case SeatAnswered(tag, voter):
                self._seat_answered(tag, voter)
            case SealEnded(tag, code, message):
                if self._change is not None and self._change.sealing == tag:
                    self._end(code, message)
        self._begin(looked=isinstance(event, Looked))
        out, self._out = self._out, []
        return out

    def _next_tag(self) -> int:
        self._tag += 1
        return self._tag

    # ---- what is to be seen ------------------------------------------------------------

    def _measure(self, members: tuple[Candidate, ...], number: int) -> None:
        """Note for how long all has been as it is."""
        now, before = self._now, self._since
        self._since = {}
        for member in members:
            alive, at = before.get(member.node_id, (member.alive, now))
            self._since[member.node_id] = (member.alive, at if alive == member.alive else now)
        self._members = tuple(replace(c, held_s=now - self._since[c.node_id][1]) for c in members)
        seats = seats_for(len(members))
        if self._size[0] != seats:
            self._size = (seats, now)
        if self._newest[0] != number:
            self._newest = (number, now)

    def _look(self, epoch: Coordinated | None) -> None:
        self._epoch = epoch
        change = self._change
        if change is not None and (epoch is None or epoch.number != change.epoch.number):
            self._end(NotCoordinator.code, "this node does not lead the strong store now")
        if epoch is None:
            for leaver in list(self._leavers):
                self._let_go(leaver, NotCoordinator.code, "another node leads the strong store")
        if change is None:
            self._lose_patience()
        if epoch is not None:
            voters = [v.node_id for v in epoch.voters]
            learner = choose_learner(self._members, voters)
            if learner is not None:
                self._out.append(Follow(learner, epoch.number))

    def _lose_patience(self) -> None:
        why = "the state is still being copied or compared: ask again"
        for leaver, waiting in list(self._leavers.items()):
            if self._now - waiting.since >= LEAVE_PATIENCE_S:
                self._let_go(leaver, Unavailable.code, why)

    def _leaves(self, tag: int, node_id: NodeId) -> None:
        if node_id not in self._leavers and len(self._leavers) >= LEAVERS_MAX:
            self._out.append(LeaveEnded(tag, Unavailable.code, "too many nodes leave at a time"))
            return
        self._leavers.setdefault(node_id, _Leaver(self._now)).tags.append(tag)

    def _let_go(self, leaver: NodeId, code: str | None, message: str = "") -> None:
        waiting = self._leavers.pop(leaver, None)
        for tag in waiting.tags if waiting is not None else ():
            self._out.append(LeaveEnded(tag, code, message))

    # ---- a change ----------------------------------------------------------------------

    def _begin(self, *, looked: bool) -> None:
        """Begin the change that is called for: for leavers at once, else once per look."""
        while self._change is None and self._epoch is not None and not self._waiting:
            leaving = next(iter(self._leavers), None)
            if leaving is None and (not looked or self._now < self._paused_until):
                return
            change = _Change(self._epoch, self._members, leaving)
            if leaving is not None and leaving not in change.current:
                self._let_go(leaving, None)
                continue
            self._change = change
            self._enlisted.clear()
            self._choose(change)
            if leaving is None:
                return

    def _choose(self, change: _Change) -> None:
        """Choose, and ask those who were not asked yet; where all were, go on."""
        held_s = 0.0 if change.leaving is not None else self._now - self._size[1]
        for _ in range(_CHOICES_MAX - change.choices):
            change.choices += 1
            change.chosen = choose_voters(
                change.members,
                change.current,
                leaving=change.leaving,
                size_held_s=held_s,
                replace_dead_s=self._replace_dead_s,
            )
            if not self._is_due(change):
                return self._nothing_to_change(change)
            unasked = [v for v in change.chosen if v not in change.asked]
            if unasked:
                return self._ask(change, unasked)
            if self._decide(change):
                return None
        named = ", ".join(short(v) for v in change.chosen if v not in self._enlisted)
        return self._end(Unavailable.code, f"voters do not answer: {named}")

    def _ask(self, change: _Change, peers: Sequence[NodeId]) -> None:
        for peer in peers:
            change.asked[peer] = None
            tag = self._next_tag()
            self._asked[tag] = peer
            self._out.append(AskSeat(tag, peer))

    def _seat_answered(self, tag: int, voter: Voter | None) -> None:
        peer = self._asked.pop(tag, None)
        change = self._change
        if peer is None or change is None:
            return
        if voter is not None and voter.node_id == peer:
            self._enlisted[peer] = voter
        if not self._asked and not self._decide(change):
            self._choose(change)

    def _decide(self, change: _Change) -> bool:
        """All chosen have answered or stayed silent; False if others must be chosen."""
        enlisted = {v: self._enlisted[v] for v in change.chosen if v in self._enlisted}
        current = change.current
        if change.chosen == current and set(enlisted.values()) <= set(change.epoch.voters):
            self._nothing_to_change(change)
            return True
        silent = [v for v in change.chosen if v not in enlisted]
        if set(silent) <= set(current) and len(silent) <= (len(change.chosen) - 1) // 2:
            seats = tuple(enlisted.get(v) or change.seat_of(v) for v in change.chosen)
            self._prepare(change, seats)
            return True
        change.members = tuple(
            replace(c, alive=c.alive and c.node_id not in silent) for c in change.members
        )
        return False

    def _prepare(self, change: _Change, seats: tuple[Voter, ...]) -> None:
        """Have new voters copy the state; propose the seal once enough have."""
        number = change.epoch.number
        self._out += [Follow(v.node_id, number) for v in seats if v not in change.epoch.voters]
        fresh = {
            p.node_id
            for p in change.epoch.progress
            if p.silence_s <= FRESH_S and p.behind <= FRESH_ENTRIES
        }
        copied = sum(v.node_id in fresh for v in seats) > len(seats) // 2
        if not copied or not _do_agree(change, fresh):
            self._change = None
            self._waiting = True
            return
        change.sealing = self._next_tag()
        self._out.append(ProposeSeal(change.sealing, change.epoch.number + 1, seats))

    def _is_due(self, change: _Change) -> bool:
        """Is there anything to change, and can it not wait?"""
        if change.chosen == change.current:
            return self._some_are_mute(change)
        if change.leaving is not None or len(change.current) < 3:
            return True
        alive = {c.node_id for c in change.members if c.alive and c.capable}
        if any(v not in alive for v in change.current if v not in change.chosen):
            return True  # Dead, gone, evicted, or not allowed to vote any more.
        return self._now - self._newest[1] >= SEAL_EVERY_S

    def _some_are_mute(self, change: _Change) -> bool:
        """Does a voter that is alive take no part?"""
        mute = {p.node_id for p in change.epoch.progress if p.silence_s > MUTE_AFTER_S}
        return any(c.alive and c.node_id in mute for c in change.members)

    def _nothing_to_change(self, change: _Change) -> None:
        leaving = change.leaving
        if leaving is None:
            self._change = None
            return
        self._end(
            WouldLoseData.code,
            f"node {short(leaving)} cannot leave: no living members can hold the swarm's "
            f"{change.epoch.keys} keys without it; start or join other nodes first",
        )

    def _end(self, code: str | None, message: str = "") -> None:
        """The change under way came about, or did not."""
        change, self._change = self._change, None
        assert change is not None
        self._asked.clear()
        if change.leaving is not None:
            self._let_go(change.leaving, code, message)
        if code is not None:
            self._out.append(Stays(message))
        if code is None:
            self._epoch = None  # Sealed: until the next look there is none.
        if change.leaving is None or code is None:
            self._paused_until = self._now + PAUSE_S


def _do_agree(change: _Change, fresh: set[NodeId]) -> bool:
    """Do a majority of the old voters, and all that keep up, agree on the state?"""
    agreeing = {p.node_id for p in change.epoch.progress if p.agrees}
    current = change.current
    majority = sum(v in agreeing for v in current) > len(current) // 2
    return majority and all(v in agreeing for v in current if v in fresh)
