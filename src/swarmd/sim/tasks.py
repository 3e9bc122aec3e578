"""Coordinators and workers of the task queue in a world where everything goes wrong.

The machines are the real ones. The log beneath them is a ledger that applies transactions one
by one with the store's rules; what can happen to a proposal between a coordinator and the real
log happens here too: it is applied and the answer is lost, it is lost, or it is applied long
after its proposer gave up. A coordinator that was replaced is told so late, and goes on
proposing, as forwarding lets a real one do.

The ledger and the nodes check the promises at every step: final records never change, fences
rise, only the current fence commits, attempts are bounded, attempts that must not overlap do
not, `at_most_once` starts once, one key makes one task, what was acknowledged is there and
ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import msgspec

from swarmd.base.ids import NodeId, job_id_of, task_id_of
from swarmd.sim.network import LinkFaults, Network
from swarmd.sim.task_host import Node
from swarmd.sim.task_watch import BLOB, SWARM, Ledger, Runs
from swarmd.sim.world import World
from swarmd.tasks.events import (
    CancelAsked,
    CancelJobAsked,
    Confirmed,
    Liveness,
    MemberChanged,
    SubmitAsked,
    SubmitJobAsked,
)
from swarmd.tasks.flow import GUARDS as COORDINATOR_GUARDS
from swarmd.tasks.messages import (
    Cancelled,
    Submitted,
    SubmittedJob,
)
from swarmd.tasks.spec import (
    JOB_PREFIX,
    OFFICE_KEY,
    TASK_PREFIX,
    Inline,
    JobSpec,
    JobState,
    StageKind,
    StageSpec,
    State,
    TaskSpec,
    decode_job,
    decode_task,
)
from swarmd.tasks.worker.machine import GUARDS as WORKER_GUARDS
from swarmd.tasks.worker.machine import (
    Drain,
)

GUARDS: Final = COORDINATOR_GUARDS | WORKER_GUARDS
_TESTS: Final = "tests/unit/tasks/test_task_guards.py::test_guard"
# What catches the absence of each guard: "sweep" for those that seeds show, else a test.
MUTANTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "assign_repeat": "sweep",
        "at_most_once": f"{_TESTS}[at_most_once]",
        "attempt_bound": "sweep",
        "boot_check": "sweep",
        "cancel_finality": "sweep",
        "content_check": "sweep",
        "fence_check": "sweep",
        "idempotent_create": f"{_TESTS}[idempotent_create]",
        "lease_confirm": f"{_TESTS}[lease_confirm]",
        "lease_lapse": f"{_TESTS}[lease_lapse]",
        "lease_margin": "sweep",
        "office_check": "sweep",
        "repeated_assign": "sweep",
        "result_repeat": "sweep",
        "stale_office": f"{_TESTS}[stale_office]",
        "stale_timer": f"{_TESTS}[stale_timer]",
        "worker_boot_check": f"{_TESTS}[worker_boot_check]",
    }
)
FAULTED_S: Final = 60.0
SETTLE_S: Final = 120.0


@dataclass
class Report:
    """What a sweep saw. `counts` has faults by kind and what the system did."""

    violations: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seeds: int = 0


class TaskWorld:
    """Five nodes, callers, and a seed's worth of trouble."""

    def __init__(
        self, seed: int, *, removed_guards: frozenset[str] = frozenset(), node_count: int = 5
    ) -> None:
        assert removed_guards <= GUARDS, removed_guards - GUARDS
        self.removed = removed_guards
        self.world = World(seed)
        self.rng = self.world.rng_for("tasks")
        faults = LinkFaults(loss=0.03, duplicate=0.05, slow=0.03, slow_max_s=1.5)
        self.network = Network(self.world, faults)
        self.ledger = Ledger(self.world)
        self.runs = Runs(self.world)
        self.nodes = [Node(self, f"n{i}") for i in range(node_count)]
        self.leader = self.nodes[0]
        self.manifests: dict[str, tuple[str, ...]] = {}
        self.acknowledged: dict[str, None] = {}
        self.jobs: dict[str, None] = {}
        self.cancelled: dict[str, None] = {}
        self.calm = False
        self._doubted: dict[NodeId, float] = {}
        self._serial = 0

    # ---- the world around the nodes ---------------------------------------------------

    def after(self, node: Node, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        """Like `World.after`, for as long as this run of the node lasts."""
        life = node.life

        def due() -> None:
            if node.up and node.life == life:
                function(*args)

        self.world.after(delay_s, due)

    def connected(self, node: Node) -> bool:
        """Whether the node reaches a majority."""
        reached = sum(n.up and not self.network.is_cut(node.node_id, n.node_id) for n in self.nodes)
        return reached > len(self.nodes) // 2

    def propose(
        self,
        node: Node,
        ops: list[Any],
        done: Callable[[list[tuple[bool, int]]], None],
        unknown: Callable[[], None] = lambda: None,
    ) -> None:
        rng, chance = self.rng, 0.0 if self.calm else self.rng.random()
        life = node.life

        def apply(answer: bool) -> None:
            results = [self.ledger.apply(op) for op in ops]
            if answer and node.life == life:
                self.after(node, rng.uniform(0.0005, 0.003), done, results)

        reachable = self.connected(node)
        if reachable and (self.calm or chance < 0.985):
            slow = 0.3 if chance > 0.95 else 0.004
            self.world.after(rng.uniform(0.001, slow), apply, True)
            return
        self.after(node, rng.uniform(0.5, 2.0), unknown)
        if reachable or rng.random() < 0.3:
            self.world.count("late_commit" if chance > 0.99 else "lost_answer")
            self.world.after(rng.uniform(0.01, 4.0), apply, False)

    def confirm(self, node: Node, tag: int) -> None:
        """A round to the voters; what they say is true when they are asked."""
        life = node.office_life

        def look() -> None:
            machine = node.coordinator
            if node.office_life != life or machine is None:
                return
            held = self.ledger.data[OFFICE_KEY][1] == machine.office and self.connected(node)
            self.after(node, 0.001, node.feed_coordinator, Confirmed(tag, held))

        self.after(node, self.rng.uniform(0.001, 0.01), look)

    def liveness(self, node: Node) -> Liveness:
        """As the coordinator's peers see it: late, and sometimes wrong."""
        since = self._doubted.get(node.node_id)
        if since is None:
            return Liveness.ALIVE
        return Liveness.SUSPECT if self.world.now < since + 1.0 else Liveness.DEAD

    def doubt(self, node: Node, delay_s: float) -> None:
        """The swarm suspects the node after a while, then counts it as dead."""
        self.world.after(delay_s, self._suspect, node, node.life)

    def _suspect(self, node: Node, life: int) -> None:
        reached = node.up and not self.network.is_cut(self.leader.node_id, node.node_id)
        if reached and node.life != life:
            return
        self._doubted[node.node_id] = self.world.now
        self._tell(node, Liveness.SUSPECT)
        self.world.after(1.0, self._bury, node)

    def _bury(self, node: Node) -> None:
        if node.node_id in self._doubted:
            self._tell(node, Liveness.DEAD)

    def trust(self, node: Node) -> None:
        self._doubted.pop(node.node_id, None)
        self._tell(node, Liveness.ALIVE)

    def _tell(self, subject: Node, liveness: Liveness) -> None:
        for node in self.nodes:
            self.after(node, 0.01, node.feed_coordinator, MemberChanged(subject.node_id, liveness))

    # ---- faults -----------------------------------------------------------------------

    def crash_one(self) -> None:
        ups = [n for n in self.nodes if n.up]
        if len(ups) <= 3:
            return
        node = self.rng.choice(ups)
        self.world.count("crash")
        node.crash()
        self.doubt(node, self.rng.uniform(0.3, 1.5))
        self.world.after(self.rng.uniform(0.2, 8.0), self.restart, node)
        if node is self.leader:
            self.world.after(self.rng.uniform(0.3, 1.5), self.elect)

    def restart_quickly(self) -> None:
        """A daemon dies and is back before anybody has noticed."""
        node = self.rng.choice([n for n in self.nodes if n is not self.leader])
        if node.up:
            self.world.count("quick_restart")
            node.crash()
            self.world.after(0.03, self.restart, node)

    def restart(self, node: Node) -> None:
        if not node.up:
            self.world.count("restart")
            node.boot()
            self.world.after(0.3, self.trust, node)

    def stop_one(self) -> None:
        """An orderly stop: drain, then leave; back a little later."""
        ups = [n for n in self.nodes if n.up]
        if len(ups) <= 3:
            return
        node = self.rng.choice(ups)
        self.world.count("drain")
        node.feed_worker(Drain(1.0))
        self.world.after(3.0, self._stopped, node, node.life)

    def _stopped(self, node: Node, life: int) -> None:
        if node.up and node.life == life:
            node.crash()
        self.doubt(node, 0.1)
        if node is self.leader:
            self.elect()
        self.world.after(self.rng.uniform(0.5, 3.0), self.restart, node)

    def cut_one(self) -> None:
        node = self.rng.choice(self.nodes)
        others = [n.node_id for n in self.nodes if n is not node]
        self.network.cut([node.node_id], others, one_way=self.rng.random() < 0.25)
        self.doubt(node, self.rng.uniform(0.5, 1.5))
        if node is self.leader and self.rng.random() < 0.8:
            self.world.after(self.rng.uniform(0.5, 2.0), self.elect)
        longest_s = 14.0 if self.rng.random() < 0.4 else 5.0
        self.world.after(self.rng.uniform(0.5, longest_s), self.heal)

    def heal(self) -> None:
        self.network.heal()
        for node in self.nodes:
            if node.up:
                self.world.after(self.rng.uniform(0.1, 1.0), self._seen_again, node)

    def _seen_again(self, node: Node) -> None:
        if node.up:
            self.trust(node)

    def suspect_falsely(self) -> None:
        node = self.rng.choice(self.nodes)
        if node.up:
            self.world.count("false_suspicion")
            self._doubted[node.node_id] = self.world.now
            self._tell(node, Liveness.SUSPECT)
            self.world.after(self.rng.uniform(0.2, 0.9), self._seen_again, node)

    def restart_all(self) -> None:
        self.world.count("total_restart")
        for node in self.nodes:
            if node.up:
                node.crash()
                self.doubt(node, 0.5)
            self.world.after(self.rng.uniform(0.5, 2.0), self.restart, node)
        self.world.after(2.5, self.elect)

    def elect(self) -> None:
        """Another node leads the log; the old one is told late."""
        fit = [n for n in self.nodes if n.up and self.connected(n) and n is not self.leader]
        old = self.leader
        if not fit:
            self.world.after(0.5, self.elect)
            return
        self.leader = self.rng.choice(fit)
        self.world.count("coordinator_change")
        self.leader.take_office()
        self.after(old, self.rng.uniform(0.0, 4.0), self._deposed, old)

    def _deposed(self, node: Node) -> None:
        """The old leader learns of it, unless nobody can tell it."""
        if node is self.leader:
            return
        if self.network.is_cut(self.leader.node_id, node.node_id):
            self.after(node, 0.5, self._deposed, node)
        else:
            node.leave_office()

    # ---- callers ----------------------------------------------------------------------

    def submit(self, spec: TaskSpec, *, tries: int = 60) -> None:
        """Ask until it is acknowledged, whoever is in office."""
        task_id = task_id_of(SWARM, spec.key)

        def answered(message: Any) -> None:
            if not isinstance(message, Submitted):
                return
            item = message.items[0]
            if item.code in ("", "idempotency_conflict") and not item.code:
                self._acknowledge(task_id, spec)

        def again(left: int) -> None:
            if task_id in self.acknowledged or left == 0:
                return
            node = self.rng.choice([self.leader, self.leader, *self.nodes])
            if node.up:
                node.ask(lambda tag: SubmitAsked(tag, (spec,)), answered)
            self.world.after(self.rng.uniform(0.3, 1.5), again, left - 1)

        again(tries)

    def _acknowledge(self, task_id: str, spec: TaskSpec) -> None:
        record = self.ledger.task(task_id)
        if record is None:
            self.world.violate(f"{spec.key}: acknowledged but not in the store")
            return
        if record.digest != spec.content_digest():
            self.world.violate(f"{spec.key}: acknowledged for another content")
        if task_id not in self.acknowledged:
            self.world.count("acknowledged")
        self.acknowledged[task_id] = None

    def cancel(self, task_id: str) -> None:
        def answered(message: Any) -> None:
            if isinstance(message, Cancelled) and message.items[0].state == State.CANCELLED:
                self.world.count("cancel_acknowledged")
                self.cancelled[task_id] = None

        self.leader.ask(lambda tag: CancelAsked(tag, (task_id,)), answered)

    def submit_job(self, spec: JobSpec, *, tries: int = 60) -> None:
        def answered(message: Any) -> None:
            if isinstance(message, SubmittedJob):
                self.jobs[message.job_id] = None

        def again(left: int) -> None:
            known = any(decode_job(v).spec == spec for _, v, _ in self.ledger.rows(JOB_PREFIX))
            if left and not (known and self.jobs):
                self.leader.ask(lambda tag: SubmitJobAsked(tag, spec), answered)
                self.world.after(0.7, again, left - 1)

        again(tries)

    def cancel_job(self, job_id: str) -> None:
        self.leader.ask(lambda tag: CancelJobAsked(tag, job_id), lambda message: None)

    # ---- a seed -----------------------------------------------------------------------

    def run(self) -> None:
        """A minute of trouble, then calm; every promise must hold at the end."""
        for node in self.nodes:
            node.boot()
        self.leader.take_office()
        self._plan_work()
        self._plan_faults()
        self.world.run_for(FAULTED_S)
        self._settle()
        self._check_end()

    def _plan_work(self) -> None:
        rng = self.rng
        for number in range(420):
            agent = rng.choice(("quick", "quick", "quick", "flaky", "alone", "once"))
            spec = TaskSpec(agent, Inline(str(number).encode()), f"k{number}")
            at = rng.uniform(0.1, FAULTED_S - 1.0)
            self.world.after(at, self.submit, spec)
            if rng.random() < 0.15:
                self.world.after(at + rng.uniform(0.0, 3.0), self.submit, spec)
            if rng.random() < 0.08:
                task_id = task_id_of(SWARM, spec.key)
                self.world.after(at + rng.uniform(0.0, 2.0), self.cancel, task_id)
            if rng.random() < 0.05:
                other = msgspec.structs.replace(spec, payload=Inline(b"other"))
                self.world.after(at + rng.uniform(0.0, 2.0), self._submit_rival, other)
            self.world.count("operation")
        self._plan_jobs()

    def _submit_rival(self, spec: TaskSpec) -> None:
        """The same key for something else: refused, if the first is there."""
        first = self.ledger.task(task_id_of(SWARM, spec.key))

        def answered(message: Any) -> None:
            item = message.items[0] if isinstance(message, Submitted) else None
            if item is not None and item.code == "idempotency_conflict":
                self.world.count("conflict_refused")
            elif item is not None and not item.code and first is not None:
                self.world.violate(f"{spec.key}: another content was acknowledged")

        if first is not None:
            self.leader.ask(lambda tag: SubmitAsked(tag, (spec,)), answered)

    def _plan_jobs(self) -> None:
        stages = (
            StageSpec("one", "quick", StageKind.MAP),
            StageSpec("two", "quick", StageKind.MAP),
            StageSpec("all", "merge", StageKind.REDUCE),
        )
        for number in range(3):
            chain = stages[:2] if number == 1 else stages
            spec = JobSpec(f"job{number}", f"j{number}", chain, BLOB, 40)
            job_id = job_id_of(SWARM, spec.key)
            self.manifests[job_id] = tuple(f"item{i}" for i in range(40))
            self.world.after(5.0 + 15.0 * number, self.submit_job, spec)
            self.world.count("operation", 81)
            if number == 2:
                self.world.after(36.0 + self.rng.uniform(0.0, 3.0), self.cancel_job, job_id)

    def _plan_faults(self) -> None:
        rng = self.rng
        kinds: list[tuple[float, Callable[[], None]]] = [
            (7.0, self.crash_one),
            (8.0, self.cut_one),
            (9.0, self.elect),
            (6.0, self.suspect_falsely),
            (15.0, self.stop_one),
            (8.0, self.restart_quickly),
        ]
        for mean_s, fault in kinds:
            at = rng.uniform(1.0, mean_s)
            while at < FAULTED_S - 4.0:
                self.world.after(at, fault)
                at += rng.expovariate(1 / mean_s)
        self.world.after(rng.uniform(20.0, 50.0), self.restart_all)
        # Late ones, which nothing after them covers up.
        self.world.after(FAULTED_S - 3.0, self.elect)
        self.world.after(FAULTED_S - 0.5, self.restart_quickly)

    def _settle(self) -> None:
        """No more trouble: everybody is up, and the log works."""
        self.calm = True
        self.network.faults = LinkFaults()
        self.network.heal()
        for node in self.nodes:
            if not node.up:
                self.restart(node)
            self.trust(node)
        self.world.run_for(5.0)
        for node in self.nodes:
            self.restart(node)
            self.trust(node)
        if self.leader.coordinator is None:
            self.leader.take_office()
        for _ in range(int(SETTLE_S)):
            self.world.run_for(1.0)
            if self._all_final():
                return

    def _all_final(self) -> bool:
        tasks = (decode_task(v) for _, v, _ in self.ledger.rows(TASK_PREFIX))
        jobs = (decode_job(v) for _, v, _ in self.ledger.rows(JOB_PREFIX))
        return all(t.final for t in tasks) and all(j.final for j in jobs)

    def _check_end(self) -> None:
        for task_id in self.acknowledged:
            record = self.ledger.task(task_id)
            if record is None:
                self.world.violate(f"{task_id}: acknowledged and lost")
        for _, value, _ in self.ledger.rows(TASK_PREFIX):
            record = decode_task(value)
            if not record.final:
                self.world.violate(f"{record.spec.key!r}: still {record.state} long after the end")
        for _, value, _ in self.ledger.rows(JOB_PREFIX):
            job = decode_job(value)
            if not job.final:
                self.world.violate(f"job {job.spec.key}: still {job.state} long after the end")
            self.world.count(f"job_{job.state}")
            if job.state is JobState.SUCCEEDED and job.stage_done[2:] not in ((1,), ()):
                self.world.violate(f"job {job.spec.key}: succeeded without its reduce")
        for task_id in self.cancelled:
            record = self.ledger.task(task_id)
            if record is None or record.state is not State.CANCELLED:
                self.world.violate(f"{task_id}: cancelled, then {record and record.state}")


def sweep(seeds: Iterable[int], *, removed_guards: frozenset[str] = frozenset()) -> Report:
    """Run every seed; each is over a minute of virtual time and 600 operations."""
    report = Report()
    for seed in seeds:
        world = TaskWorld(seed, removed_guards=removed_guards)
        try:
            world.run()
        except AssertionError as error:
            world.world.violate(f"a machine's own assertion failed: {error!r}")
        report.seeds += 1
        report.counts.update(world.world.counts)
        report.violations.extend((seed, text) for text in world.world.violations)
    return report
