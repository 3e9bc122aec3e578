"""One simulated voter: the machine of the log, its disk, and the shell that serves callers.

As `replica.py` and `service.py` do: a step takes everything that arrived, a sync takes time
in which everything but its host goes on, and nothing is said before it returned. Only the
leader that has applied its own `TakeOffice` serves; others redirect. Reads are answered after
a round, by what is there then. Store time goes on from the last stamp by the monotonic clock.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final, Protocol

from swarmd.base.disk import Disk
from swarmd.base.errors import DiskFault
from swarmd.base.machine import Ahead, Effect, Event, Persist, SetTimer
from swarmd.base.rng import Rng
from swarmd.sim.network import Network
from swarmd.sim.raft_host import Host
from swarmd.sim.raft_rules import SealRule
from swarmd.sim.raft_watch import LogScan, LogWatch, WatchedState
from swarmd.sim.world import World
from swarmd.state.raft.machine import (
    START,
    Applied,
    Doubt,
    Office,
    Propose,
    Proposed,
    RaftMachine,
    ReadIndex,
    ReadReady,
    SendRaft,
    Stand,
    Transfer,
    Transferred,
    Wake,
)
from swarmd.state.raft.messages import (
    Batch,
    Entry,
    Forward,
    GetAsk,
    Group,
    OpResult,
    RangeAsk,
    Redirect,
    Results,
    TakeOffice,
    encode_batch,
)

STEP_S: Final = 0.00005
ATTEMPT_TIMEOUT_S: Final = 2.0
_DISK_RETRY_S: Final = 0.1
_RETRY_S: Final = 0.02
_INBOX_MAX: Final = 1_000

Answers = list[list[OpResult]]
Make = Callable[["LogRoom", Disk, Rng], RaftMachine]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a read showed, and the revision of the whole store at that moment."""

    revision: int
    entries: tuple[Entry, ...]


class Around(Protocol):
    """What a voter needs of its world."""

    world: World
    network: Network
    removed: frozenset[str]

    def log_watch(self, number: int) -> LogWatch: ...

    def make_machine(self, room: LogRoom, disk: Disk, rng: Rng) -> RaftMachine: ...

    def make_state(self, log: LogWatch, host: str) -> WatchedState: ...


class LogRoom:
    """One epoch's log on one voter."""

    def __init__(
        self,
        voter: Voter,
        log: LogWatch,
        names: tuple[str, ...],
        state: WatchedState,
        disk: Disk,
        key: bytes,
        *,
        stand: bool = False,
    ) -> None:
        self.voter = voter
        self.names = names
        self.key = key
        self.log = log
        self.state = state
        self._inbox: deque[Event] = deque()
        self._scheduled = self._syncing = False
        self._applied = -1
        self._scan = LogScan(log, voter.name)
        self._open = True
        self._admitted = False
        self._doubted: set[str] = set()  # Only asked for membership, never walked.
        self.disk_fault = False
        rng = voter.world.rng_for(f"machine:{voter.name}:{voter.life}:{log.number}")
        self.machine = voter.around.make_machine(self, disk, rng)
        self.state.restores = 0  # What its own snapshot held is no install.
        self.feed(Stand() if stand else Wake(START))

    def doubt(self, doubted: Container[str]) -> None:
        """Take note of whom membership holds for suspect or gone."""
        for name in self.names:
            wanted = name in doubted and name != self.voter.name
            if wanted is not (name in self._doubted):
                self._doubted.symmetric_difference_update({name})
                self.voter.world.count("doubt", wanted)
                self.feed(Doubt(name, wanted))

    def admit(self) -> None:
        """Begin to take part; until then nothing is done or said."""
        self._admitted = True
        self._step_soon()

    @property
    def number(self) -> int:
        return self.log.number

    def close(self) -> None:
        """The epoch is over here; nothing more is said."""
        self._open = False
        self._inbox.clear()

    def feed(self, event: Event) -> None:
        if self._open and len(self._inbox) < _INBOX_MAX:
            self._inbox.append(event)
            self._step_soon()

    def _step_soon(self) -> None:
        if self._inbox and self._admitted and not self._scheduled and not self._syncing:
            self._scheduled = True
            self.voter.after(STEP_S, self._step)

    def _step(self) -> None:
        self._scheduled = False
        if not self._open:
            return
        machine, now = self.machine, self.voter.clock.now()
        events = list(self._inbox)
        self._inbox.clear()
        for event in events:
            machine.handle(event, now)
        effects = list(machine.settle(now))
        self._show_watch()
        if any(type(effect) is Persist for effect in effects):
            self._syncing = True
            self._perform([e for e in effects if isinstance(e, Ahead)])
            effects = [e for e in effects if not isinstance(e, Ahead)]
            self.voter.after(self._sync_s(), self._synced, effects)
        else:
            self._perform(effects)
            self._step_soon()

    def _show_watch(self) -> None:
        machine, log = self.machine, self.log
        log.stepped(machine.office.term)
        # A lone voter tells nobody of what is not synced: it may lead the same term once more.
        alone = len(self.names) == 1
        self._scan.look(machine.entry_at, machine.commit_index if alone else machine.last_index)
        if machine.applied_index != self._applied:
            if self.state.restores:
                self.voter.world.count("snapshot_install", self.state.restores)
                self.state.restores = 0
            self._applied = machine.applied_index
            log.stands(self.voter.name, self._applied, self.state.mark)
        if machine.office.state == "leader":
            log.leads(self.voter.name, machine.office.term, machine)

    def _sync_s(self) -> float:
        slow = self.voter.slow_until > self.voter.world.now
        return self.voter.rng.uniform(0.05, 0.3) if slow else self.voter.rng.uniform(0.0003, 0.003)

    def _synced(self, effects: list[Effect]) -> None:
        if not self._open:
            return
        try:
            self.machine.sync()
        except DiskFault:
            self.disk_fault = True
            self.voter.disk_failed()
            self.voter.after(_DISK_RETRY_S, self._synced, effects)
            return
        self._syncing = self.disk_fault = False
        self._perform(effects)
        self._step_soon()

    def _perform(self, effects: list[Effect]) -> None:
        voter = self.voter
        for effect in effects:
            if not self._open:
                return
            match effect:
                case SendRaft(peer, data):
                    voter.network.send(voter.name, peer, ("raft", self.key, data))
                case SetTimer(delay_s, event):
                    voter.after(delay_s, self.feed, event)
                case Proposed():
                    voter.proposed(effect)
                case ReadReady(tag, ok):
                    voter.read_ready(tag, ok)
                case Transferred(_, code):
                    voter.world.count("transfer" if code is None else f"transfer_{code}")
                case Office():
                    voter.office_changed(self, effect)
                case Applied():
                    voter.applied(self)
                case _:
                    pass


class Voter(Host):
    """A node that votes, or might. Its epoch's log is `room`."""

    def __init__(self, around: Around, name: str) -> None:
        super().__init__(around.world, around.network, name)
        self.around = around
        self.removed = around.removed
        self.room: LogRoom | None = None
        self._tag = 0
        self._waiting: dict[int, Callable[[Any], None]] = {}
        self._office: int | None = None
        self._candidacy: tuple[int, int] = (0, 0)
        self._time_base: tuple[int, float] = (0, 0.0)

    # ---- life ----------------------------------------------------------------------------

    @abstractmethod
    def applied(self, room: LogRoom) -> None:
        """The room took up entries; one may have been its seal."""

    def ended(self) -> None:
        self.end_room()

    def end_room(self) -> None:
        """Whoever waits is told nothing, and asks elsewhere."""
        if self.room is not None:
            self.room.close()
        self.room = None
        self._waiting.clear()
        self._office = None
        self._candidacy = (0, 0)

    # ---- messages ------------------------------------------------------------------------

    def receive(self, source: str, message: tuple[Any, ...]) -> None:
        if message[0] == "ask":
            self._serve(source, message[1], message[2])

    def _serve(self, source: str, serial: int, asked: Any) -> None:
        def answer(result: Any) -> None:
            if result is not None:
                self.network.send(self.name, source, ("answer", serial, result))

        if isinstance(asked, GetAsk | RangeAsk) and asked.stale:
            answer(self._show(asked))
        elif not self.serving:
            answer(self._redirect())
        elif isinstance(asked, Forward):
            self.propose(asked.groups, lambda results: answer(_results(results)))
        else:
            self._barrier(lambda ok: answer(self._show(asked) if ok else None))

    def _redirect(self) -> Redirect:
        leader = self.room.machine.office.leader if self.room is not None else None
        return Redirect((leader or "").encode(), 0, "not_coordinator")

    def _show(self, asked: GetAsk | RangeAsk) -> Shown | None:
        if self.room is None:
            return None
        state = self.room.state
        if isinstance(asked, GetAsk):
            entry = state.get(asked.key)
            return Shown(state.revision, () if entry is None else (entry,))
        return Shown(state.revision, tuple(state.range(asked.prefix, asked.after, asked.limit)))

    # ---- the shell -----------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        if self.room is None:
            return False
        office = self.room.machine.office
        return office.state == "leader" and office.ready and not self.room.disk_fault

    @property
    def serving(self) -> bool:
        return self.leads and self._office is not None and not self.sealed

    @property
    def sealed(self) -> bool:
        if SealRule.READ_TESTS_SEAL in self.removed:
            return False
        return self.room is not None and self.room.state.sealed is not None

    def store_time_ms(self) -> int:
        assert self.room is not None
        base_ms, since = self._time_base
        gone_ms = int((self.clock.now() - since) * 1_000)
        return max(self.room.state.time_ms, base_ms + gone_ms)

    def propose(self, groups: tuple[Group, ...], done: Callable[[Answers | None], None]) -> None:
        """Propose a batch; `done(None)`: refused, or the outcome is unknown."""
        command = encode_batch(Batch(self.store_time_ms(), groups))
        self.propose_raw(command, done)

    def propose_raw(self, command: bytes, done: Callable[[Any], None]) -> None:
        assert self.room is not None
        self.room.feed(Propose(command, self._wait(done)))

    def _barrier(self, done: Callable[[bool], None]) -> None:
        """`done(True)` once the state may be read, unless the epoch was sealed meanwhile."""
        assert self.room is not None
        self.room.feed(ReadIndex(self._wait(lambda ok: done(bool(ok) and not self.sealed))))

    def _wait(self, done: Callable[[Any], None]) -> int:
        self._tag += 1
        self._waiting[self._tag] = done
        self.after(ATTEMPT_TIMEOUT_S, self._settle, self._tag, None)
        return self._tag

    def _settle(self, tag: int, outcome: Any) -> None:
        done = self._waiting.pop(tag, None)
        if done is not None:
            done(outcome)

    def proposed(self, effect: Proposed) -> None:
        if not effect.ok:
            self.world.count(f"refused_{effect.code}")
        failed = not effect.ok or isinstance(effect.result, Exception)
        self._settle(effect.tag, None if failed else effect.result)

    def read_ready(self, tag: int, ok: bool) -> None:
        self._settle(tag, ok)

    def office_changed(self, room: LogRoom, office: Office) -> None:
        self.world.note(self.name, office.state, office.term)
        if not self.leads:
            self._office = None
        elif self._office is None and self._candidacy != (room.number, office.term):
            self._candidacy = (room.number, office.term)
            self._time_base = (room.state.time_ms, self.clock.now())
            self._take_office(room, office.term)

    def disk_failed(self) -> None:
        """Nobody waits for a disk: whoever does is told to ask elsewhere."""
        self._office = None
        for tag in list(self._waiting):
            self._settle(tag, None)

    def hand_over(self, target: str) -> None:
        """Have another voter of the epoch stand for the office."""
        if self.room is not None and target in self.room.names:
            self._tag += 1
            self.room.feed(Transfer(target, self._tag))

    def _take_office(self, room: LogRoom, term: int) -> None:
        def holds() -> bool:
            return room is self.room and self.leads and room.machine.office.term == term

        def taken(results: Answers | None) -> None:
            if not holds():
                return
            if results is None:
                # Unknown outcome: a second entry in the same term only takes another revision.
                self.after(_RETRY_S, again)
            elif results[0][0].ok:
                self._time_base = (self.store_time_ms(), self.clock.now())
                self._office = results[0][0].revision

        def again() -> None:
            if holds():
                self.propose((Group(b"", 0, 0, (TakeOffice(self.name.encode()),)),), taken)

        again()


def _results(results: Answers | None) -> Results | None:
    return None if results is None else Results(tuple(map(tuple, results)))
