"""The part of a simulated node that keeps the log, serves the store and holds offices.

The machine of the log takes steps of everything that has arrived, syncs, and only then
speaks; a sync takes time, and a crash may fall into it. Requests to other nodes are asked
once or until a deadline, as callers of the real link do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from swarmd.base.errors import DiskFault
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event, Persist, SetTimer
from swarmd.base.rng import Rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import Meta
from swarmd.sim.disk import SimDisk
from swarmd.sim.network import Network
from swarmd.sim.swarm_office import Office
from swarmd.sim.swarm_store import RETRY_MIN_S, Answers, Pipe
from swarmd.sim.swarm_watch import Run, Runs, Watch, WatchedState
from swarmd.sim.swim import node_id
from swarmd.sim.world import World
from swarmd.state.raft.machine import Office as RaftOffice
from swarmd.state.raft.machine import (
    Propose,
    Proposed,
    RaftMachine,
    ReadIndex,
    ReadReady,
    SendRaft,
)
from swarmd.state.raft.messages import (
    Batch,
    Entry,
    Forward,
    GetAsk,
    Got,
    Group,
    Redirect,
    Results,
    TakeOffice,
    encode_batch,
)
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import (
    CancelAsked,
    CancelJobAsked,
    Liveness,
    SubmitAsked,
    SubmitJobAsked,
)
from swarmd.tasks.messages import (
    Cancel,
    CancelJob,
    Submit,
    SubmitJob,
)
from swarmd.tasks.worker.machine import (
    WorkerMachine,
)

ATTEMPT_TIMEOUT_S: Final = 2.0
STEP_S: Final = 0.0001
_DISK_RETRY_S: Final = 0.2
_INBOX_MAX: Final = 10_000
_HELD_MAX: Final = 20_000

Answered = Callable[[Any], None]


class Around(Protocol):
    """What a host needs of its world."""

    world: World
    network: Network
    watch: Watch
    runs: Runs
    names: dict[NodeId, str]
    voters: tuple[str, ...]
    tasks_config: TasksConfig
    swim_config: SwimConfig

    def make_raft(self, host: VoterNode, state: WatchedState, rng: Rng) -> RaftMachine: ...

    def make_swim(self, host: VoterNode, meta: Meta, starts: int) -> SwimMachine: ...

    def make_worker(self, host: VoterNode, boot: bytes) -> WorkerMachine: ...

    def make_office(self, host: VoterNode, replica: WatchedState) -> Office: ...

    def make_state(self, host: VoterNode) -> WatchedState: ...

    def stream_broken(self, source: str, target: str) -> bool: ...

    def swim_of(self, name: str) -> SwimMachine | None: ...


class VoterNode(ABC):
    """A process on a host with a disk. `life` outdates everything scheduled for an earlier one."""

    def __init__(self, around: Around, name: str, number: int) -> None:
        self.name = name
        self.node_id = node_id(name)
        self.around = around
        self.world = around.world
        self.disk = SimDisk(around.world, name)
        self.address = (f"10.0.0.{number + 1}", 7575)
        self.up = False
        self.frozen = False
        self.stopping = False
        self.slow_until = 0.0
        self.life = 0
        self.swim: SwimMachine
        self.worker: WorkerMachine
        self.pipe: Pipe
        self.raft: RaftMachine | None = None
        self.replica: WatchedState | None = None
        self.office: Office | None = None
        self.store_office: int | None = None
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._running: dict[int, Run] = {}
        self._rng = around.world.rng_for(f"host:{name}")
        self._clear()

    def _clear(self) -> None:
        self._held.clear()
        self._inbox: deque[Event] = deque()
        self._stepping = self._syncing = False
        self._hint: str | None = None
        self._serial = 0
        self._asks: dict[int, tuple[str, Answered]] = {}
        self._tag = 0
        self._proposed: dict[int, Callable[[Answers | None], None]] = {}
        self._reads: dict[int, Callable[[bool], None]] = {}
        self._time_base = (0, 0.0)
        self._taking = False

    @abstractmethod
    def crash(self, *, power: bool) -> None:
        """End the process without a word; with `power`, unsynced bytes are gone, too."""

    @abstractmethod
    def _receive(self, source: str, message: tuple[Any, ...]) -> None:
        """Take a message from the network."""

    @abstractmethod
    def send_task(self, peer: NodeId, message: Any) -> None:
        """Send a message about work."""

    @abstractmethod
    def liveness(self) -> tuple[tuple[NodeId, Liveness], ...]:
        """Everyone known, as this node sees them."""

    def after(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        """Like `World.after`, for as long as this process lives, and not while it is frozen."""
        self.world.after(delay_s, self._due, self.life, function, args)

    def _due(self, life: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.life != life or not self.up:
            return
        if self.frozen:
            if len(self._held) < _HELD_MAX:
                self._held.append((function, args))
            return
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - a machine that stops is a finding
            self.world.violate(f"{self.name} stopped: {type(error).__name__}: {error}")
            self.crash(power=False)

    def _send(self, target: str, *message: Any) -> None:
        if target == self.name:
            self.after(STEP_S, self._receive, target, message)
        else:
            self.around.network.send(self.name, target, message)

    # ---- asking others --------------------------------------------------------------------

    def request(self, target: str, message: Any, timeout_s: float, done: Answered) -> None:
        """Ask a node once; `done(None)` if it does not answer in time."""
        self._serial += 1
        serial = self._serial
        self._asks[serial] = (target, done)
        self._send(target, "ask", serial, message)
        self.after(timeout_s, self._answered, serial, None)

    def _answered(self, serial: int, answer: Any) -> None:
        target, done = self._asks.pop(serial, ("", None))
        if done is None:
            return
        if isinstance(answer, Redirect):
            if self._hint == target:
                self._hint = None
            if answer.leader:
                self._hint = self.around.names[NodeId(answer.leader)]
            answer = None
        elif answer is None and self._hint == target:
            self._hint = None
        done(answer)

    def coordinator(self) -> str | None:
        """Who leads, as far as is known here."""
        if self.raft is not None:
            return self.raft.office.leader
        if self._hint is None:
            self._hint = self._rng.choice(self.around.voters)
        return self._hint

    def ask_coordinator(self, message: Any, timeout_s: float, done: Answered) -> None:
        """Ask whoever coordinates, once."""
        target = self.coordinator()
        if target is None:
            self.after(RETRY_MIN_S, done, None)
        else:
            self.request(target, message, timeout_s, done)

    def call(self, message: Any, deadline: float, done: Answered) -> None:
        """Ask the coordinator until it answers; `done(None)` at the deadline."""

        def again(delay_s: float) -> None:
            def answered(answer: Any) -> None:
                if answer is not None:
                    done(answer)
                elif self.world.now >= deadline:
                    done(None)
                else:
                    longer_s = min(delay_s * 1.6, 0.25)
                    self.after(delay_s * self._rng.uniform(0.5, 1.0), again, longer_s)

            self.ask_coordinator(message, 3.0, answered)

        again(RETRY_MIN_S)

    def _serve(self, source: str, serial: int, message: Any) -> None:
        def answer(result: Any) -> None:
            if result is not None:
                self._send(source, "answer", serial, result)

        if isinstance(message, Forward):
            self._serve_forward(message, answer)
        elif isinstance(message, GetAsk):
            self._serve_get(message, answer)
        elif self.office is None or not self.office.open:
            answer(self._redirect())
        elif isinstance(message, Submit):
            self.office.ask(lambda tag: SubmitAsked(tag, message.specs), answer)
        elif isinstance(message, Cancel):
            self.office.ask(lambda tag: CancelAsked(tag, message.task_ids), answer)
        elif isinstance(message, SubmitJob):
            self.office.ask(lambda tag: SubmitJobAsked(tag, message.spec), answer)
        elif isinstance(message, CancelJob):
            self.office.ask(lambda tag: CancelJobAsked(tag, message.job_id), answer)

    def _redirect(self) -> Redirect:
        leader = self.raft.office.leader if self.raft is not None else None
        return Redirect(node_id(leader) if leader else b"", 1, "not_coordinator")

    def _serve_forward(self, message: Forward, answer: Answered) -> None:
        if not self.serving:
            answer(self._redirect())
            return

        def done(results: Answers | None) -> None:
            if results is not None:
                answer(Results(tuple(map(tuple, results))))

        self._propose_here(message.groups, done)

    def _serve_get(self, message: GetAsk, answer: Answered) -> None:
        if not self.serving:
            answer(self._redirect())
            return

        def read(ok: bool) -> None:
            if ok and self.replica is not None:
                found = self.replica.get(message.key)
                answer(Got((found,) if found is not None else (), False))

        self._barrier(read)

    # ---- the log --------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        if self.raft is None:
            return False
        office = self.raft.office
        return office.state == "leader" and office.ready

    @property
    def serving(self) -> bool:
        return self.store_office is not None and self.leads

    def submit(self, groups: tuple[Group, ...], done: Callable[[Answers | None], None]) -> None:
        """Propose or forward, once."""
        if self.serving:
            self._propose_here(groups, done)
            return

        def answered(answer: Any) -> None:
            done(answer.groups if isinstance(answer, Results) else None)

        if self.coordinator() == self.name:
            self.after(RETRY_MIN_S, done, None)  # About to take office.
        else:
            self.ask_coordinator(Forward(groups), ATTEMPT_TIMEOUT_S, answered)

    def read(
        self, key: bytes, timeout_s: float, done: Callable[[bool, Entry | None], None]
    ) -> None:
        """A linearizable read; `done(False, None)` if it does not come about in time."""
        deadline = self.world.now + timeout_s

        def answered(answer: Any) -> None:
            if isinstance(answer, Got):
                done(True, answer.entries[0] if answer.entries else None)
            elif self.world.now >= deadline:
                done(False, None)
            else:
                self.after(RETRY_MIN_S, attempt)

        def barred(ok: bool) -> None:
            found = self.replica.get(key) if self.replica is not None else None
            answered(Got((found,) if found is not None else (), False) if ok else None)

        def attempt() -> None:
            if self.serving:
                self._barrier(barred)
            else:
                left_s = max(0.01, deadline - self.world.now)
                self.ask_coordinator(GetAsk(key, False), min(left_s, ATTEMPT_TIMEOUT_S), answered)

        attempt()

    def _propose_here(
        self, groups: tuple[Group, ...], done: Callable[[Answers | None], None]
    ) -> None:
        self._tag += 1
        tag = self._tag
        self._proposed[tag] = done
        self.feed_raft(Propose(encode_batch(Batch(self.store_time_ms(), groups)), tag))
        self.after(ATTEMPT_TIMEOUT_S, self._settle_proposal, tag, None)

    def _settle_proposal(self, tag: int, results: Answers | None) -> None:
        waiting = self._proposed.pop(tag, None)
        if waiting is not None:
            waiting(results)

    def _barrier(self, done: Callable[[bool], None]) -> None:
        self._tag += 1
        tag = self._tag
        self._reads[tag] = done
        self.feed_raft(ReadIndex(tag))
        self.after(ATTEMPT_TIMEOUT_S, self._settle_read, tag, False)

    def _settle_read(self, tag: int, ok: bool) -> None:
        waiting = self._reads.pop(tag, None)
        if waiting is not None:
            waiting(ok)

    def store_time_ms(self) -> int:
        """Store time: it goes on from what was applied, and knows no wall clock."""
        applied_ms = self.replica.time_ms if self.replica is not None else 0
        if not self.leads:
            return applied_ms
        base_ms, since = self._time_base
        return max(applied_ms, base_ms + int((self.world.now - since) * 1_000))

    def feed_raft(self, event: Event) -> None:
        if self.raft is not None and len(self._inbox) < _INBOX_MAX:
            self._inbox.append(event)
            self._step_soon()

    def _step_soon(self) -> None:
        if self._inbox and not self._stepping and not self._syncing:
            self._stepping = True
            self.after(STEP_S, self._step)

    def _step(self) -> None:
        self._stepping = False
        machine, now = self.raft, self.world.now
        if machine is None:
            return
        events = list(self._inbox)
        self._inbox.clear()
        for event in events:
            machine.handle(event, now)
        effects = list(machine.settle(now))
        self._show_watch(machine)
        if any(type(effect) is Persist for effect in effects):
            self._syncing = True
            slow = self.slow_until > now
            sync_s = self._rng.uniform(0.05, 0.3) if slow else self._rng.uniform(0.0003, 0.003)
            self.after(sync_s, self._synced, effects)
        else:
            self._perform_raft(effects)

    def _show_watch(self, machine: RaftMachine) -> None:
        office, watch = machine.office, self.around.watch
        watch.stepped(office.term)
        if office.state == "leader":
            watch.leads(self.name, office.term, machine.term_at, machine.applied_index)

    def _synced(self, effects: list[Effect]) -> None:
        if self.raft is None:
            return
        try:
            self.raft.sync()
        except DiskFault:
            self.after(_DISK_RETRY_S, self._synced, effects)
            return
        self._syncing = False
        self._perform_raft(effects)

    def _perform_raft(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendRaft):
                self.around.network.send(self.name, effect.peer, ("raft", effect.data))
            elif isinstance(effect, SetTimer):
                self.after(effect.delay_s, self.feed_raft, effect.event)
            elif isinstance(effect, Proposed):
                self._settle_proposal(effect.tag, effect.result if effect.ok else None)
            elif isinstance(effect, ReadReady):
                self._settle_read(effect.tag, effect.ok)
            elif isinstance(effect, RaftOffice):
                self._raft_office(effect)
        self._step_soon()

    # ---- offices --------------------------------------------------------------------------

    def _raft_office(self, effect: RaftOffice) -> None:
        self.world.note(self.name, effect.state, effect.term, effect.ready)
        if not self.leads:
            self._set_store_office(None)
        elif self.store_office is None and not self._taking:
            self._taking = True
            applied_ms = self.replica.time_ms if self.replica is not None else 0
            self._time_base = (applied_ms, self.world.now)
            self._take_store_office(effect.term)
        if effect.leader is not None:
            # Stop waiting for those who lead no more.
            for serial, (target, _) in list(self._asks.items()):
                if target != effect.leader:
                    self._answered(serial, None)

    def _take_store_office(self, term: int) -> None:
        """The leader's first operation; its revision is the fence of the office."""

        def still() -> bool:
            return self.leads and self.raft is not None and self.raft.office.term == term

        def done(results: Answers | None) -> None:
            if not still():
                self._taking = False
                if self.leads and self.raft is not None:
                    self._taking = True
                    self._take_store_office(self.raft.office.term)
            elif results is None or not results[0][0].ok:
                self.after(RETRY_MIN_S, self._take_store_office, term)
            else:
                self._taking = False
                base_ms = self.store_time_ms()
                self._time_base = (base_ms, self.world.now)
                self._set_store_office(results[0][0].revision)

        if still():
            self._propose_here((Group(b"", 0, 0, (TakeOffice(self.node_id),)),), done)
        else:
            done(None)

    def _set_store_office(self, fence: int | None) -> None:
        if fence == self.store_office:
            return
        self.store_office = fence
        if self.office is not None:
            self.office.end("this node does not lead the store any more")
        elif fence is not None:
            self._hold_office()

    def _hold_office(self) -> None:
        if self.store_office is None or self.office is not None or self.replica is None:
            return
        self.office = self.around.make_office(self, self.replica)
        self.office.take(lambda: self.world.now)

    def office_ended(self, reason: str) -> None:
        self.world.count("office_ended")
        self.office = None
        self.after(RETRY_MIN_S, self._hold_office)
