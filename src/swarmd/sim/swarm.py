"""The whole swarm in a simulated world: real machines of every room, and everything goes wrong.

Each seed runs three or five nodes for a minute of trouble and some of calm. Every node has the
real membership, the real consensus over the real replicated state, and the real coordinator,
job and worker machines, wired as their shells wire them (see `swarm_host`). Callers submit
tasks and jobs through changing nodes, repeat themselves under the same keys, cancel, and write
and read values, while packets are lost, repeated and late, links are cut both ways and one
way, processes are killed, power fails and takes unsynced bytes with it, disks are slow or
full, hosts freeze, and nodes are stopped in order. What is checked meanwhile is in
`swarm_watch`; at the end everything acknowledged is there and has ended, all replicas and all
views agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from swarmd.base.ids import NodeId
from swarmd.base.rng import Rng
from swarmd.identity.genesis import Genesis, make_genesis
from swarmd.identity.keys import SigningKey
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import MemberState, Meta
from swarmd.sim.network import LinkFaults, Network
from swarmd.sim.swarm_callers import Callers
from swarmd.sim.swarm_host import Host
from swarmd.sim.swarm_office import Office
from swarmd.sim.swarm_voter import VoterNode
from swarmd.sim.swarm_watch import Runs, Watch, WatchedState
from swarmd.sim.swim import SimSigner, node_id
from swarmd.sim.swim_mutants import MUTANTS as SWIM_MUTANTS
from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.guards import ALL_GUARDS, without
from swarmd.state.raft.machine import RaftMachine
from swarmd.tasks.board import Worker
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.flow import GUARDS as COORDINATOR_GUARDS
from swarmd.tasks.machine import CoordinatorMachine
from swarmd.tasks.messages import Heartbeat
from swarmd.tasks.spec import AgentRun, Mode
from swarmd.tasks.worker.machine import GUARDS as WORKER_GUARDS
from swarmd.tasks.worker.machine import WorkerMachine

TROUBLE_S: Final = 60.0
CALM_S: Final = 90.0
OPERATIONS_MIN: Final = 500
FAULT_KINDS_MIN: Final = 5
FAULTS: Final = (
    "loss",
    "duplicate",
    "delay",
    "partition",
    "one_way_cut",
    "crash",
    "total_restart",
    "lost_write",
    "torn_write",
    "slow_sync",
    "disk_full",
    "freeze",
    "orderly_stop",
)
# What must have happened at least once in a sweep for it to prove anything.
REQUIRED: Final = frozenset(
    {*FAULTS, "acknowledged", "election", "suspicion", "restart", "office", "attempt"}
)


class _RenewsAnyway(CoordinatorMachine):
    def _holds_disowned(self, worker: Worker, beat: Heartbeat) -> bool:
        return False


# Coordinators without a guard that has no name of its own in their room.
OFFICE_MUTANTS: Final[Mapping[str, type[CoordinatorMachine]]] = MappingProxyType(
    {"tasks.lease_disowned": _RenewsAnyway}
)
# Guards that can be taken away here, by name: those of consensus, of the task queue, of membership.
GUARDS: Final = (
    ALL_GUARDS
    | COORDINATOR_GUARDS
    | WORKER_GUARDS
    | frozenset(SWIM_MUTANTS)
    | frozenset(OFFICE_MUTANTS)
)

_BLOB: Final = BlobRef(b"b" * 32, 1)
AGENTS: Final = (
    AgentRun("quick", "1", _BLOB, "m:f", concurrency=3, retries=6),
    AgentRun("alone", "1", _BLOB, "m:f", concurrency=2, retries=6, mode=Mode.EXCLUSIVE),
    AgentRun("once", "1", _BLOB, "m:f", concurrency=2, retries=0, mode=Mode.AT_MOST_ONCE),
    AgentRun("flaky", "1", _BLOB, "m:f", concurrency=2, retries=1),
    AgentRun("merge", "1", _BLOB, "m:f", concurrency=1, retries=9),
)
_TASKS: Final = TasksConfig(
    heartbeat_s=0.5, lease_s=3.0, lease_margin_s=0.6, retry_delay_s=0.1, retry_delay_max_s=1.0
)


@dataclass
class Report:
    """What a sweep found: (seed, text) of each violation, and how often everything happened."""

    violations: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seeds: int = 0

    @property
    def missing(self) -> list[str]:
        """What never happened although a sweep without it proves too little."""
        return sorted(name for name in REQUIRED if not self.counts[name])


@cache
def _genesis() -> Genesis:
    node, admin, recovery = (SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
    return make_genesis(
        "simulated",
        nonce=bytes(16),
        node_key=node,
        node_name="n0",
        admin_public=admin.public,
        recovery_public=recovery.public,
    )


class SwarmWorld:
    """One seed's world; `run` plays it out, `world` holds counts, trace and violations."""

    def __init__(self, seed: int, *, removed_guards: frozenset[str] = frozenset()) -> None:
        assert removed_guards <= GUARDS, removed_guards - GUARDS
        self.removed = removed_guards
        self.world = World(seed)
        self._rng = self.world.rng_for("trouble")
        self.network = Network(self.world, self._weather())
        count, voters = (5, 3 if seed % 10 == 4 else 5) if seed % 5 == 4 else (3, 3)
        hosts = [f"n{number}" for number in range(count)]
        self.voters = tuple(hosts[:voters])
        self.names: dict[NodeId, str] = {node_id(name): name for name in hosts}
        self.watch = Watch(self.world, {run.name: run.retries or 0 for run in AGENTS})
        self.runs = Runs(self.world)
        self.tasks_config = _TASKS
        self.swim_config = SwimConfig(profile="local")
        self._raft_config = self._small_limits()
        self._swim_type = SwimMachine
        for name in sorted(removed_guards & frozenset(SWIM_MUTANTS)):
            self._swim_type = SWIM_MUTANTS[name]
        self._office_type = CoordinatorMachine
        for name in sorted(removed_guards & frozenset(OFFICE_MUTANTS)):
            self._office_type = OFFICE_MUTANTS[name]
        self.hosts = {name: Host(self, name, number) for number, name in enumerate(hosts)}
        self.callers = Callers(self.world, self.watch, list(self.hosts.values()), self.swarm_id)
        self._calm = False
        self._cuts = 0

    @property
    def swarm_id(self) -> bytes:
        return _genesis().swarm_id

    def _weather(self) -> LinkFaults:
        rng = self._rng
        return LinkFaults(
            loss=rng.choice((0.005, 0.02, 0.05)),
            duplicate=rng.choice((0.01, 0.03)),
            slow=rng.choice((0.005, 0.02)),
            slow_max_s=rng.choice((0.3, 1.5)),
        )

    def _small_limits(self) -> RaftConfig:
        """So small that snapshots, parts and chunks are many."""
        rng = self._rng
        return RaftConfig(
            heartbeat_s=0.1,
            election_min_s=0.4,
            election_max_s=0.8,
            part_bytes=rng.choice((2_048, 256 * 1024)),
            snapshot_chunk_bytes=rng.choice((8_192, 256 * 1024)),
            compact_entries=rng.choice((60, 150, 400)),
            keep_entries=rng.choice((0, 10, 50)),
        )

    # ---- what hosts are made of -----------------------------------------------------------

    def make_state(self, host: VoterNode) -> WatchedState:
        return WatchedState(_genesis(), self.watch, host.name)

    def make_raft(self, host: VoterNode, state: WatchedState, rng: Rng) -> RaftMachine:
        guards = without(*sorted(self.removed & ALL_GUARDS))
        return RaftMachine(
            host.name, self.voters, host.disk, state, rng, self._raft_config, self.world.now, guards
        )

    def make_swim(self, host: VoterNode, meta: Meta, starts: int) -> SwimMachine:
        rng = self.world.rng_for(f"swim:{host.name}")
        signer = SimSigner(host.node_id)
        return self._swim_type(
            host.node_id, self.swim_config, rng, signer, meta, starts, self.world.now
        )

    def make_worker(self, host: VoterNode, boot: bytes) -> WorkerMachine:
        removed = self.removed & WORKER_GUARDS
        return WorkerMachine(host.node_id, boot, _TASKS, removed_guards=removed)

    def make_office(self, host: VoterNode, replica: WatchedState) -> Office:
        rng = self.world.rng_for(f"office:{host.name}")
        removed = self.removed & COORDINATOR_GUARDS
        machine = self._office_type(
            host.node_id, self.swarm_id, _TASKS, rng, removed_guards=removed
        )
        return Office(host, machine, replica, _TASKS, AGENTS, self.callers.manifests)

    def stream_broken(self, source: str, target: str) -> bool:
        return self.network.is_cut(source, target) or self.network.is_cut(target, source)

    def swim_of(self, name: str) -> SwimMachine | None:
        host = self.hosts[name]
        return host.swim if host.up and not host.frozen else None

    # ---- trouble --------------------------------------------------------------------------

    def _trouble(self) -> None:
        """One fault, and the next after a while."""
        if self._calm:
            return
        rng = self._rng
        self.world.after(rng.uniform(0.3, 2.7), self._trouble)
        faults: tuple[tuple[Callable[[], None], int], ...] = (
            (self._part, 22),
            (self.network.heal, 6),
            (self._crash_some, 22),
            (self._restart_quickly, 8),
            (self._crash_all, 2),
            (self._fill_disk, 6),
            (self._slow_disk, 7),
            (self._freeze, 10),
            (self._stop_one, 6),
        )
        rng.choices([f for f, _ in faults], [weight for _, weight in faults])[0]()

    def _victim(self) -> Host:
        """Anybody, with a preference for whoever leads: it holds what can be lost."""
        rng = self._rng
        leaders = [host for host in self.hosts.values() if host.up and host.leads]
        if leaders and rng.random() < 0.5:
            return rng.choice(leaders)
        return rng.choice(list(self.hosts.values()))

    def _part(self) -> None:
        rng = self._rng
        self.network.heal()
        names = list(self.hosts)
        side = [self._victim().name]
        if rng.random() < 0.3:
            side = sorted(rng.sample(names, rng.randrange(1, len(names))))
        rest = [name for name in names if name not in side]
        one_way = rng.random() < 0.3
        if one_way and rng.random() < 0.5:
            side, rest = rest, side
        self.network.cut(side, rest, one_way=one_way)
        self._cuts += 1
        self.world.after(rng.choice((0.5, 2.0, 5.0, 9.0)), self._heal, self._cuts)

    def _heal(self, cut: int) -> None:
        """Mend this cut, unless it was mended or replaced before."""
        if cut == self._cuts:
            self.network.heal()

    def _crash(self, host: Host) -> None:
        """A process killed, whose host resets its streams, or a host without power."""
        if not host.up:
            return
        power = self._rng.random() < 0.7
        self.world.count("crash")
        host.crash(power=power)
        if not power:
            for other in self.hosts.values():
                if other.up and not self.stream_broken(other.name, host.name):
                    other.stream_closed(host.name, "reset")
                    other.stream_closed(host.name, "refused")

    def _crash_some(self) -> None:
        rng = self._rng
        self._crash(self._victim())
        if rng.random() < 0.2:
            self._crash(self._victim())
        self.world.after(rng.choice((0.1, 0.6, 2.0, 6.0)), self._restart_all)

    def _restart_quickly(self) -> None:
        """A daemon dies and is back before anybody has noticed."""
        host = self._victim()
        self._crash(host)
        self.world.after(0.03, self._restart, host)

    def _crash_all(self) -> None:
        self.world.count("total_restart")
        for host in self.hosts.values():
            self._crash(host)
        self.world.after(self._rng.uniform(0.05, 1.0), self._restart_all)

    def _restart_all(self) -> None:
        for host in self.hosts.values():
            self._restart(host)

    def _restart(self, host: Host) -> None:
        if not host.up:
            self.world.count("restart")
            try:
                host.boot()
            except Exception as error:  # noqa: BLE001 - a start that fails is a finding
                self.world.violate(f"{host.name} cannot start: {type(error).__name__}: {error}")

    def _fill_disk(self) -> None:
        disk = self._victim().disk
        disk.full = True
        self.world.count("disk_full")
        self.world.after(self._rng.uniform(0.2, 2.0), setattr, disk, "full", False)

    def _slow_disk(self) -> None:
        self._victim().slow_until = self.world.now + self._rng.uniform(0.3, 2.0)
        self.world.count("slow_sync")

    def _freeze(self) -> None:
        host = self._victim()
        if host.up and not host.frozen:
            self.world.count("freeze")
            host.freeze()
            self.world.after(self._rng.choice((0.2, 1.0, 2.5, 7.0)), host.thaw)

    def _stop_one(self) -> None:
        """Work is handed back and a goodbye said; the node returns a little later."""
        host = self._victim()
        if host.up and not host.frozen and not host.stopping:
            self.world.count("orderly_stop")
            host.stop()
            self.world.after(self._rng.uniform(4.0, 6.0), self._restart_all)

    # ---- a seed ---------------------------------------------------------------------------

    def run(self) -> World:
        """A minute of trouble, then calm; every promise must hold at the end."""
        self.network.faults, weather = LinkFaults(), self.network.faults
        for host in self.hosts.values():
            host.boot()
        self.world.run_for(2.0)
        self.network.faults = weather
        self.callers.plan(TROUBLE_S - 1.0)
        self.world.after(1.0, self._trouble)
        self.world.run_for(TROUBLE_S)
        self._make_calm()
        self._last_restart()
        for _ in range(int(CALM_S)):
            self.world.run_for(1.0)
            if not self._open_ends():
                break
        for text in self._open_ends()[:20]:
            self.world.violate(f"after {CALM_S:.0f} s of calm {text}")
        self.callers.check_end()
        self.world.note("end", self.watch.revision, self.watch.last)
        return self.world

    def _make_calm(self) -> None:
        self._calm = True
        self.network.heal()
        self.network.faults = LinkFaults()
        for host in self.hosts.values():
            host.disk.full = False
            host.slow_until = 0.0
            host.thaw()
        self.world.run_for(6.0)  # Until what was stopping has stopped.
        self.network.heal()
        self._restart_all()

    def _last_restart(self) -> None:
        """A worker that dies and returns at once, with nothing after it to cover that up."""
        workers = [host for host in self.hosts.values() if not host.leads]
        victim = self._rng.choice(workers)
        self.callers.rush()
        self.world.run_for(0.3)
        self.world.count("late_restart")
        victim.crash(power=False)
        self.world.run_for(0.03)
        self._restart_all()

    def _open_ends(self) -> list[str]:
        """What has not come about yet, and must."""
        found = self.callers.open_ends()
        found += [f"{name} is down" for name, host in self.hosts.items() if not host.up]
        if not found:
            found = self._disagreements()
        return found

    def _disagreements(self) -> list[str]:
        """Where a node's view of another is not the truth, and where replicas differ."""
        wrong: list[str] = []
        for watcher in self.hosts.values():
            for host in self.hosts.values():
                seen, own = watcher.swim.get(host.node_id), host.swim.get(host.node_id)
                true = seen is not None and own is not None and seen.state is MemberState.ALIVE
                if not true or seen.incarnation != own.incarnation:  # type: ignore[union-attr]
                    wrong.append(f"{watcher.name} holds {host.name} {seen}")
            replica = watcher.replica
            if replica is not None and replica.revision != self.watch.revision:
                wrong.append(f"{watcher.name} is at revision {replica.revision}")
        return wrong


def sweep(
    seeds: Iterable[int],
    *,
    removed_guards: frozenset[str] = frozenset(),
    stop_at_violation: bool = False,
    seen: Callable[[Report], Any] | None = None,
) -> Report:
    """Run every seed and gather what it violated and counted.

    Args:
        removed_guards: names of guards to do without, to see that it is noticed.
        stop_at_violation: return after the first seed that found something.
        seen: called with the report so far after each seed.
    """
    report = Report()
    for seed in seeds:
        world = SwarmWorld(seed, removed_guards=removed_guards).run()
        report.seeds += 1
        report.counts.update(world.counts)
        report.violations += [(seed, text) for text in world.violations]
        if not world.violations:
            report.violations += [(seed, text) for text in _too_little(world.counts)]
        if seen is not None:
            seen(report)
        if report.violations and stop_at_violation:
            break
    return report


def _too_little(counts: Counter[str]) -> list[str]:
    """Why a clean seed proves too little, if it does."""
    kinds = sum(counts[fault] > 0 for fault in FAULTS)
    complaints = []
    if counts["operation"] < OPERATIONS_MIN:
        complaints.append(f"proves too little: {counts['operation']} operations")
    if kinds < FAULT_KINDS_MIN:
        complaints.append(f"proves too little: {kinds} kinds of fault")
    return complaints
