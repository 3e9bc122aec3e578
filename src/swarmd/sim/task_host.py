"""One daemon of the simulated task queue: the real machines between a network and a ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from swarmd.base.ids import NodeId, node_id_of
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.base.rng import Rng
from swarmd.sim.network import Network
from swarmd.sim.task_watch import AGENTS, SWARM, Ledger, Runs
from swarmd.sim.world import World
from swarmd.state.raft.messages import Put
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.events import (
    Answer,
    Collect,
    Collected,
    Commit,
    Committed,
    Confirm,
    FromWorker,
    ItemsNamed,
    Liveness,
    NameItems,
    Propose,
    Refuse,
    Resign,
    TookOffice,
)
from swarmd.tasks.flow import GUARDS as COORDINATOR_GUARDS
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.messages import (
    HandBack,
    Heartbeat,
    ResultItem,
    Results,
)
from swarmd.tasks.spec import (
    ASSIGNMENT_PREFIX,
    JOB_PREFIX,
    OFFICE_KEY,
    TASK_PREFIX,
    Inline,
    Mode,
    decode_assignment,
    decode_job,
    decode_task,
)
from swarmd.tasks.worker.machine import GUARDS as WORKER_GUARDS
from swarmd.tasks.worker.machine import (
    AttemptEnded,
    Begin,
    Drained,
    FromCoordinator,
    Kill,
    Start,
    WorkerMachine,
)

CONFIG: Final = TasksConfig(
    heartbeat_s=0.5, lease_s=3.0, lease_margin_s=0.6, retry_delay_s=0.1, retry_delay_max_s=1.0
)


class Swarm(Protocol):
    """What a node needs of the world that it is in; see `sim.tasks.TaskWorld`."""

    world: World
    network: Network
    rng: Rng
    ledger: Ledger
    runs: Runs
    nodes: list[Node]
    leader: Node
    manifests: dict[str, tuple[str, ...]]
    removed: frozenset[str]

    def after(
        self, node: Node, delay_s: float, function: Callable[..., None], *args: Any
    ) -> None: ...

    def propose(
        self,
        node: Node,
        ops: list[Any],
        done: Callable[[list[tuple[bool, int]]], None],
        unknown: Callable[[], None] = ...,
    ) -> None: ...

    def confirm(self, node: Node, tag: int) -> None: ...

    def liveness(self, node: Node) -> Liveness: ...


class Node:
    """One daemon: a worker always, a coordinator while it believes to be one."""

    def __init__(self, swarm: Swarm, name: str) -> None:
        self.swarm = swarm
        self.name = name
        self.node_id = node_id_of(name.encode())
        self.up = False
        self.boots = 0
        self.life = 0
        self.office_life = 0
        self.coordinator: CoordinatorMachine | None = None
        self.worker: WorkerMachine
        self.running: dict[int, tuple[str, int, int]] = {}
        self.tags: dict[int, Callable[[Any], None]] = {}
        self._tag = 0

    # ---- life -------------------------------------------------------------------------

    def boot(self) -> None:
        self.up = True
        self.boots += 1
        self.life += 1
        boot = f"{self.name}/{self.boots}".encode()
        removed = self.swarm.removed & WORKER_GUARDS
        self.worker = WorkerMachine(self.node_id, boot, CONFIG, removed_guards=removed)
        self.swarm.network.attach(self.node_id, self._deliver)
        self.feed_worker(Begin())

    def crash(self) -> None:
        self.up = False
        self.life += 1
        self.leave_office()
        for run in self.running.values():
            self.swarm.runs.stop(run)
        self.running.clear()
        self.swarm.network.detach(self.node_id)

    def _deliver(self, source: NodeId, message: Any) -> None:
        if isinstance(message, Heartbeat | Results | HandBack):
            self.feed_coordinator(FromWorker(source, message))
        else:
            self.feed_worker(FromCoordinator(source, message))

    # ---- worker -----------------------------------------------------------------------

    def feed_worker(self, event: Event) -> None:
        if not self.up:
            return
        now = self.swarm.world.now
        for effect in self.worker.handle(event, now):
            self._perform_worker(effect)

    def _perform_worker(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.swarm.network.send(self.node_id, effect.peer, effect.message)
        elif isinstance(effect, SetTimer):
            self.swarm.after(self, effect.delay_s, self.feed_worker, effect.event)
        elif isinstance(effect, Start):
            self._start(effect)
        elif isinstance(effect, Kill):
            run = self.running.pop(effect.fence, None)
            if run is not None:
                self.swarm.runs.stop(run)
        elif isinstance(effect, Drained):
            self.swarm.world.count("drained")
            self.crash()

    def _start(self, effect: Start) -> None:
        item, rng = effect.item, self.swarm.rng
        run = self.swarm.runs.start(item.task_id, item.fence, item.mode)
        self.running[item.fence] = run
        long = item.mode is not Mode.DEFAULT and rng.random() < 0.3
        duration = rng.uniform(2.0, 15.0) if long else rng.uniform(0.005, 0.4)
        bad = rng.random() < (0.5 if item.run.name == "flaky" else 0.08)
        self.swarm.after(self, duration, self._finish, item.task_id, item.fence, run, bad, duration)

    def _finish(
        self, task_id: str, fence: int, run: tuple[str, int, int], bad: bool, ran_s: float
    ) -> None:
        if self.running.get(fence) != run:
            return
        del self.running[fence]
        self.swarm.runs.stop(run)
        if bad:
            item = ResultItem(task_id, fence, False, code="agent_raised", message="as asked")
        else:
            item = ResultItem(task_id, fence, True, Inline(fence.to_bytes(8)), ran_s=ran_s)
        self.feed_worker(AttemptEnded(item))

    # ---- coordinator ------------------------------------------------------------------

    def take_office(self) -> None:
        """Ask the log for an office; the log answers with everything as of then."""
        self.leave_office()
        life = self.office_life
        op = Put(OFFICE_KEY, self.node_id)
        self.swarm.propose(self, [op], lambda results: self._in_office(life, results[0][1]))

    def _in_office(self, life: int, office: int) -> None:
        swarm = self.swarm
        if life != self.office_life or not self.up or swarm.ledger.data[OFFICE_KEY][1] != office:
            return
        ledger = swarm.ledger
        removed = swarm.removed & COORDINATOR_GUARDS
        rng = swarm.world.rng_for("coordinator")
        machine = CoordinatorMachine(self.node_id, SWARM, CONFIG, rng, removed_guards=removed)
        self.coordinator = machine
        swarm.world.count("office")
        members = tuple((n.node_id, swarm.liveness(n)) for n in swarm.nodes)
        self.feed_coordinator(
            TookOffice(
                office,
                1_000_000 + int(swarm.world.now * 1000),
                tuple((decode_task(v), r) for _, v, r in ledger.rows(TASK_PREFIX)),
                tuple((decode_assignment(v), r) for _, v, r in ledger.rows(ASSIGNMENT_PREFIX)),
                tuple((decode_job(v), r) for _, v, r in ledger.rows(JOB_PREFIX)),
                AGENTS,
                members,
            )
        )

    def leave_office(self) -> None:
        self.office_life += 1
        self.coordinator = None
        self.tags.clear()

    def feed_coordinator(self, event: Event) -> None:
        machine = self.coordinator
        if machine is None or not self.up:
            return
        proposals: list[Propose] = []
        for effect in machine.handle(event, self.swarm.world.now):
            self._perform_coordinator(effect, proposals)
        if proposals and self.coordinator is machine:
            self._propose(proposals)

    def _perform_coordinator(self, effect: Effect, proposals: list[Propose]) -> None:
        swarm = self.swarm
        if isinstance(effect, Propose):
            proposals.append(effect)
        elif isinstance(effect, Send):
            swarm.network.send(self.node_id, effect.peer, effect.message)
        elif isinstance(effect, SetTimer):
            self._office_timer(effect.delay_s, effect.event)
        elif isinstance(effect, Answer | Refuse):
            waiting = self.tags.pop(effect.tag, None)
            if waiting is not None:
                waiting(effect.message if isinstance(effect, Answer) else None)
        elif isinstance(effect, Confirm):
            swarm.confirm(self, effect.tag)
        elif isinstance(effect, NameItems):
            names = swarm.manifests[effect.job_id]
            self._office_timer(0.02, ItemsNamed(effect.job_id, names))
        elif isinstance(effect, Collect):
            self._office_timer(0.02, Collected(effect.job_id, Inline(b"\xc0")))
        elif isinstance(effect, Resign):
            swarm.world.count("resign")
            self.leave_office()
            if swarm.leader is self:
                swarm.after(self, 0.05, self.take_office)

    def _office_timer(self, delay_s: float, event: Event) -> None:
        life = self.office_life

        def due() -> None:
            if life == self.office_life:
                self.feed_coordinator(event)

        self.swarm.after(self, delay_s, due)

    def _propose(self, proposals: list[Propose]) -> None:
        life = self.office_life

        def done(results: list[tuple[bool, int]]) -> None:
            if life != self.office_life:
                return
            commits = zip(proposals, results, strict=True)
            rows = tuple(Commit(p.tag, ok, revision) for p, (ok, revision) in commits)
            self.feed_coordinator(Committed(rows))

        def unknown() -> None:
            if life == self.office_life:
                self.swarm.world.count("unknown_outcome")
                self.leave_office()
                if self.swarm.leader is self:
                    self.take_office()

        self.swarm.propose(self, [p.op for p in proposals], done, unknown)

    def ask(self, make: Callable[[int], Event], answered: Callable[[Any], None]) -> None:
        """A caller's request; it is never answered if this node is no coordinator."""
        if self.coordinator is not None:
            self._tag += 1
            self.tags[self._tag] = answered
            self.feed_coordinator(make(self._tag))
