"""The real voters in a simulated world: seeds, faults, checkers at every step, mutants.

Each seed runs 3 or 5 `RaftMachine`s for 60 virtual seconds and more, under loss, repeats,
delays, overtaking, partitions (both ways and one way), crashes that lose or tear what was
not synced, pauses, full disks and slow syncs, with clients that write and read. A sync takes
time in which everything but its host goes on, so a crash may fall into it.

What is checked, and when:
- one leader per term, and a new leader holds every entry known to be committed: each step;
- every voter applies the same commands at the same indexes, snapshots included: each apply
  and each restore, by a running hash;
- an acknowledged write is applied, at the index acknowledged, and later than every write
  that was acknowledged before it began: each acknowledgement;
- a linearizable read sees everything acknowledged or read before it began: each read;
- after healing there is a leader, a write commits, all voters agree, and everything
  acknowledged is there: the end.

The histories have one total order, that of the log, so these checks decide linearizability
exactly and no search is needed.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from swarmd.base.errors import CorruptFile, DiskFault, MalformedMessage
from swarmd.base.machine import Ahead, Effect, Event, Persist, SetTimer
from swarmd.sim.disk import SimDisk
from swarmd.sim.network import LinkFaults, Network
from swarmd.sim.world import World
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.guards import Guard, without
from swarmd.state.raft.machine import (
    START,
    Deliver,
    Office,
    Propose,
    Proposed,
    RaftMachine,
    ReadIndex,
    ReadReady,
    SendRaft,
    Wake,
)
from swarmd.wire.codec import decode_struct, encode_struct

CHAOS_S: Final = 60.0
SETTLE_S: Final = 8.0
OPERATIONS_MIN: Final = 500
FAULT_KINDS_MIN: Final = 5
_CLIENTS: Final = 4
_KEYS: Final = 4
_CLIENT_TIMEOUT_S: Final = 1.0
_INBOX_MAX: Final = 1_000
_POISON: Final = b"poison"

FAULTS: Final = (
    "loss",
    "duplicate",
    "delay",
    "partition",
    "one_way_cut",
    "crash",
    "lost_write",
    "torn_write",
    "disk_full",
    "slow_sync",
    "pause",
)

# Guards whose removal the sweep notices, each with a seed that does. The others need an event
# that no seed makes likely, or a disk that stops at one byte; the unit tests make it.
MUTANT_SEEDS: Final[dict[Guard, int]] = {
    Guard.W2_PERSIST_FIRST: 0,
    Guard.H3_SKIP_PREFIX: 2,
    Guard.H4_NO_COMMIT_FROM_SNAPSHOT: 0,
    Guard.H8_SPLIT_LARGE: 0,
    Guard.H10_VERIFY_SNAPSHOT: 0,
    Guard.H11_ERRORS_ARE_RESULTS: 0,
    Guard.H14_NO_OLD_SNAPSHOT: 31,
    Guard.R1_READ_ROUND: 2,
    Guard.R2_READ_OWN_TERM: 2,
}


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """The state as snapshots hold it."""

    index: int
    chain: bytes
    values: dict[int, int]


class SimState:
    """A register per key, and a running hash over every command with its index."""

    def __init__(self, watch: _Watch, host: str) -> None:
        self._watch = watch
        self._host = host
        self.index = 0
        self.chain = b""
        self.values: dict[int, int] = {}
        self.live = False

    def apply(self, command: bytes, index: int, term: int) -> int:
        self.index = index
        self.chain = hashlib.blake2b(
            self.chain + index.to_bytes(8, "big") + command, digest_size=8
        ).digest()
        self._watch.applied(self._host, index, term, command, self.chain)
        if command.startswith(_POISON):
            raise ValueError("a command that no voter can apply")
        self.values[command[0] % _KEYS] = index
        return index

    def snapshot(self) -> Callable[[], bytes]:
        kept = _Kept(self.index, self.chain, dict(self.values))
        return lambda: encode_struct(kept)

    def restore(self, raw: bytes) -> None:
        try:
            kept: _Kept = decode_struct(_Kept, raw)
        except MalformedMessage as error:
            raise CorruptFile("not a simulated state") from error
        self.index, self.chain, self.values = kept.index, kept.chain, dict(kept.values)
        self._watch.restored(self._host, kept.index, kept.chain, live=self.live)


class _Watch:
    """What is known to have been promised; every contradiction is a violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.log: dict[int, tuple[int, bytes, bytes]] = {}  # index -> term, command, chain
        self.leaders: dict[int, str] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.floor = 0  # The highest index that a client knows of.
        self._committed_by: dict[int, int] = {}  # index -> a term by which it was committed
        self._fresh: list[int] = []

    def applied(self, host: str, index: int, term: int, command: bytes, chain: bytes) -> None:
        self._world.note(host, index, chain)
        known = self.log.setdefault(index, (term, command, chain))
        if known != (term, command, chain):
            self._world.violate(f"{host} applied another entry or history at {index}")
        if index not in self._committed_by:
            self._fresh.append(index)

    def stepped(self, term: int) -> None:
        """What was first applied in the step that ends was committed in `term` or before."""
        for index in self._fresh:
            self._committed_by[index] = term
        self._fresh.clear()

    def restored(self, host: str, index: int, chain: bytes, *, live: bool) -> None:
        if live:
            self._world.count("snapshot_install")
        if index and (index not in self.log or self.log[index][2] != chain):
            self._world.violate(f"{host} restored a state that never was at {index}")

    def leads(self, host: str, term: int, machine: RaftMachine) -> None:
        """A voter leads `term`: it must hold what was committed in the terms before.

        It may learn late that it won, when later terms have committed more: that is not its
        duty to hold (Raft, section 5.4.3, speaks of earlier terms).
        """
        known = self.leaders.get(term)
        if known == host:
            return
        if known is not None:
            self._world.violate(f"{known} and {host} both lead term {term}")
            return
        self.leaders[term] = host
        self._world.count("election")
        for index in sorted(self._committed_by)[-200:]:
            if self._committed_by[index] >= term:
                continue
            held = machine.term_at(index)
            covered = held is None and index <= machine.applied_index
            if held != self.log[index][0] and not covered:
                self._world.violate(f"{host} leads term {term} without committed entry {index}")
                return

    def written(self, command: bytes, index: int, floor: int) -> None:
        self._world.count("acknowledged_write")
        entry = self.log.get(index)
        if entry is None or entry[1] != command:
            self._world.violate(f"a write was acknowledged at {index} but not applied there")
        if index <= floor:
            self._world.violate(f"a write got index {index}, not above {floor} known before it")
        self.acknowledged[index] = command
        self.floor = max(self.floor, index)

    def read(self, host: str, index: int, floor: int) -> None:
        self._world.count("acknowledged_read")
        if index < floor:
            self._world.violate(f"{host} answered a read at {index}, but {floor} was known before")
        self.floor = max(self.floor, index)


@dataclass(slots=True)
class _Host:
    """One voter's machine room; `boot` outdates everything scheduled for an earlier life."""

    name: str
    disk: SimDisk
    boot: int = 0
    machine: RaftMachine | None = None
    state: SimState | None = None
    inbox: deque[Event] = field(default_factory=deque)
    scheduled: bool = False
    syncing: bool = False
    paused_until: float = 0.0
    slow_until: float = 0.0
    tags: dict[int, tuple[bytes, int]] = field(default_factory=dict)


class RaftWorld:
    """One seed's world. `run` plays it out; `world` holds counts, trace and violations."""

    def __init__(
        self, seed: int, *, removed_guards: Iterable[str] = (), voters: int | None = None
    ) -> None:
        self.world = World(seed)
        self.watch = _Watch(self.world)
        self._rng = self.world.rng_for("chaos")
        self._clients_rng = self.world.rng_for("clients")
        self._guards = without(*removed_guards)
        count = voters if voters is not None else (3, 5)[seed % 2]
        self.names = tuple(f"v{n}" for n in range(count))
        self.network = Network(self.world, self._weather())
        self.hosts = {n: _Host(n, SimDisk(self.world, n)) for n in self.names}
        self._tag = 0
        self._chaos = True
        for name in self.names:
            self.start(name)

    def _weather(self) -> LinkFaults:
        rng = self._rng
        return LinkFaults(
            loss=rng.choice((0.0, 0.02, 0.05)),
            duplicate=rng.choice((0.01, 0.03)),
            delay_min_s=0.0003,
            delay_max_s=rng.choice((0.002, 0.01)),
            slow=rng.choice((0.02, 0.05)),
        )

    def _config(self) -> RaftConfig:
        """Small limits, so that batches, parts, chunks and snapshots are many."""
        rng = self._rng
        return RaftConfig(
            batch_bytes_max=rng.choice((100, 400, 512 * 1024)),
            part_bytes=rng.choice((60, 200, 256 * 1024)),
            snapshot_chunk_bytes=rng.choice((50, 256 * 1024)),
            compact_entries=rng.choice((20, 60, 200)),
            keep_entries=rng.choice((0, 3, 10)),
        )

    # ---- hosts -------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a voter on whatever its disk holds."""
        host = self.hosts[name]
        host.boot += 1
        host.inbox.clear()
        host.scheduled = host.syncing = False
        host.state = SimState(self.watch, name)
        rng = self.world.rng_for(f"machine:{name}:{host.boot}")
        try:
            host.machine = RaftMachine(
                name,
                self.names,
                host.disk,
                host.state,
                rng,
                self._config(),
                self.world.now,
                self._guards,
            )
        except DiskFault:
            host.machine = None  # A full disk: the next round of repairs tries again.
            return
        except Exception as error:  # noqa: BLE001 - a start that fails is a finding
            self._stopped(host, error)
            return
        host.state.live = True
        self.network.attach(name, lambda source, data: self._feed(host, Deliver(source, data)))
        self._feed(host, Wake(START))

    def crash(self, name: str) -> None:
        """Power loss: what was not synced is gone or torn."""
        host = self.hosts[name]
        if host.machine is None:
            return
        self.world.count("crash")
        self.network.detach(name)
        host.boot += 1
        host.machine = None
        host.tags.clear()
        host.disk.crash()

    def _stopped(self, host: _Host, error: Exception) -> None:
        self.world.violate(f"{host.name} stopped: {type(error).__name__}: {error}")
        self.network.detach(host.name)
        host.boot += 1
        host.machine = None

    def _feed(self, host: _Host, event: Event) -> None:
        if host.machine is None or len(host.inbox) >= _INBOX_MAX:
            return
        host.inbox.append(event)
        self._schedule(host)

    def _schedule(self, host: _Host) -> None:
        if host.scheduled or host.syncing or not host.inbox:
            return
        host.scheduled = True
        delay = max(0.00005, host.paused_until - self.world.now)
        self.world.after(delay, self._step, host, host.boot)

    def _step(self, host: _Host, boot: int) -> None:
        machine = host.machine
        if boot != host.boot or machine is None:
            return
        host.scheduled = False
        if host.paused_until > self.world.now:
            self._schedule(host)
            return
        events = list(host.inbox)
        host.inbox.clear()
        try:
            for event in events:
                machine.handle(event, self.world.now)
            effects = list(machine.settle(self.world.now))
        except Exception as error:  # noqa: BLE001 - a machine that stops is a finding
            self._stopped(host, error)
            return
        if any(type(effect) is Persist for effect in effects):
            host.syncing = True
            self._perform(host, [e for e in effects if isinstance(e, Ahead)])
            effects = [e for e in effects if not isinstance(e, Ahead)]
            self.world.after(self._sync_s(host), self._synced, host, boot, effects)
        else:
            self._perform(host, effects)

    def _sync_s(self, host: _Host) -> float:
        if host.slow_until > self.world.now:
            return self._rng.uniform(0.05, 0.3)
        return self._rng.uniform(0.0003, 0.003)

    def _synced(self, host: _Host, boot: int, effects: list[Effect]) -> None:
        if boot != host.boot or host.machine is None:
            return
        try:
            host.machine.sync()
        except DiskFault:
            self.world.after(0.1, self._synced, host, boot, effects)
            return
        host.syncing = False
        self._perform(host, effects)

    def _perform(self, host: _Host, effects: list[Effect]) -> None:
        assert host.machine is not None
        self.watch.stepped(host.machine.office.term)
        for effect in effects:
            match effect:
                case SendRaft(peer, data):
                    self.network.send(host.name, peer, data)
                case SetTimer(delay_s, event):
                    self.world.after(delay_s, self._timer, host, host.boot, event)
                case Proposed():
                    self._proposed(host, effect)
                case ReadReady(tag, ok):
                    self._read_ready(host, tag, ok)
                case Office(state, term):
                    self.world.note(host.name, state, term)
                    if state == "leader":
                        self.watch.leads(host.name, term, host.machine)
                case _:
                    pass
        self._schedule(host)

    def _timer(self, host: _Host, boot: int, event: Event) -> None:
        if boot == host.boot:
            self._feed(host, event)

    # ---- clients -----------------------------------------------------------------------

    def _client(self, number: int) -> None:
        """One operation, then the next after a while, answered or not."""
        if not self._chaos:
            return
        rng = self._clients_rng
        self.world.after(rng.uniform(0.02, 0.18), self._client, number)
        leaders = [h for h in self._alive() if _leads(h)]
        hosts = leaders or self._alive()
        if not hosts:
            return
        host = rng.choice(hosts)
        self._tag += 1
        if rng.random() < 0.4:
            host.tags[self._tag] = (b"", self.watch.floor)
            self._feed(host, ReadIndex(self._tag))
        else:
            self.propose(host.name, self._command(number))
        self.world.after(_CLIENT_TIMEOUT_S, self._give_up, host, self._tag)

    def _give_up(self, host: _Host, tag: int) -> None:
        host.tags.pop(tag, None)

    def _command(self, number: int) -> bytes:
        rng = self._clients_rng
        if rng.random() < 0.01:
            return _POISON + self._tag.to_bytes(4, "big")
        body = bytes([number]) + self._tag.to_bytes(4, "big")
        return body + b"." * rng.choice((0, 20, 150))

    def propose(self, name: str, command: bytes) -> None:
        """Propose as a client of `name` would; the answer is checked when it comes."""
        host = self.hosts[name]
        self._tag += 1
        host.tags[self._tag] = (command, self.watch.floor)
        self._feed(host, Propose(command, self._tag))

    def _proposed(self, host: _Host, answer: Proposed) -> None:
        command, floor = host.tags.pop(answer.tag, (b"", 0))
        if not answer.ok:
            self.world.count(f"refused_{answer.code}")
        elif isinstance(answer.result, ValueError):
            self.world.count("acknowledged_poison")
        elif command:
            self.watch.written(command, answer.result, floor)

    def _read_ready(self, host: _Host, tag: int, ok: bool) -> None:
        found = host.tags.pop(tag, None)
        if found is None or not ok or host.state is None:
            return
        self.watch.read(host.name, host.state.index, found[1])

    def _alive(self) -> list[_Host]:
        return [h for h in self.hosts.values() if h.machine is not None]

    # ---- faults ------------------------------------------------------------------------

    def _trouble(self) -> None:
        """One fault, and the next after a while."""
        if not self._chaos:
            return
        rng = self._rng
        self.world.after(rng.uniform(0.2, 1.5), self._trouble)
        faults = (
            (self._part, 30),
            (self.network.heal, 25),
            (self._crash_some, 25),
            (self._crash_all, 2),
            (self._fill_disk, 6),
            (self._slow_disk, 6),
            (self._pause, 10),
        )
        rng.choices([f for f, _ in faults], [weight for _, weight in faults])[0]()

    def _victim(self) -> _Host:
        """Any voter, with a preference for leaders: they hold what can be lost."""
        leaders = [h for h in self._alive() if _leads(h)]
        if leaders and self._rng.random() < 0.5:
            return self._rng.choice(leaders)
        return self.hosts[self._rng.choice(self.names)]

    def _part(self) -> None:
        rng = self._rng
        self.network.heal()
        if len(self.names) == 1:
            return
        side = [self._victim().name] if rng.random() < 0.5 else []
        if not side:
            side = sorted(rng.sample(self.names, rng.randrange(1, len(self.names))))
        rest = [n for n in self.names if n not in side]
        one_way = rng.random() < 0.3
        if one_way and rng.random() < 0.5:
            side, rest = rest, side
        self.network.cut(side, rest, one_way=one_way)

    def _crash_some(self) -> None:
        self.crash(self._victim().name)
        if self._rng.random() < 0.2:
            self.crash(self._rng.choice(self.names))
        self.world.after(self._rng.uniform(0.05, 1.0), self._restart_all)

    def _crash_all(self) -> None:
        for name in self.names:
            self.crash(name)
        self.world.after(self._rng.uniform(0.05, 0.5), self._restart_all)

    def _restart_all(self) -> None:
        for host in self.hosts.values():
            if host.machine is None:
                self.world.count("restart")
                self.start(host.name)

    def _fill_disk(self) -> None:
        disk = self._victim().disk
        disk.full = True
        self.world.count("disk_full")
        self.world.after(self._rng.uniform(0.2, 2.0), setattr, disk, "full", False)

    def _slow_disk(self) -> None:
        self._victim().slow_until = self.world.now + self._rng.uniform(0.3, 2.0)
        self.world.count("slow_sync")

    def _pause(self) -> None:
        self._victim().paused_until = self.world.now + self._rng.uniform(0.1, 2.0)
        self.world.count("pause")

    # ---- the run -----------------------------------------------------------------------

    def run(self, chaos_s: float = CHAOS_S, *, stop_at_violation: bool = False) -> World:
        """Play the seed: trouble, then healing, then the last questions."""
        for number in range(_CLIENTS):
            self._client(number)
        self.world.after(1.0, self._trouble)
        while self.world.now < chaos_s:
            self.world.run_for(min(1.0, chaos_s - self.world.now))
            if stop_at_violation and self.world.violations:
                return self.world
        self._chaos = False
        self.network.heal()
        self.network.faults = LinkFaults()
        for host in self.hosts.values():
            host.disk.full = False
            host.slow_until = host.paused_until = 0.0
        self.world.run_for(2.0)  # Until the last repairs that were under way are done.
        self._restart_all()
        self.world.run_for(SETTLE_S / 2)
        self._last_questions()
        return self.world

    def _last_questions(self) -> None:
        leaders = [h for h in self._alive() if _leads(h) and h.machine and h.machine.office.ready]
        if not leaders:
            self.world.violate("there is no leader after healing")
            return
        command = b"\xffthe end"
        self.propose(leaders[-1].name, command)
        self.world.run_for(SETTLE_S / 2)
        if command not in self.watch.acknowledged.values():
            self.world.violate("no write commits after healing")
        last = max(self.watch.log, default=0)
        for host in self.hosts.values():
            if host.machine is None or host.state is None:
                self.world.violate(f"{host.name} is not running at the end")
            elif host.state.index != last:
                self.world.violate(f"{host.name} ends at {host.state.index}, others at {last}")
        for index, known in self.watch.acknowledged.items():
            if self.watch.log.get(index, (0, b"", b""))[1] != known:
                self.world.violate(f"the write acknowledged at {index} is lost")
        self.world.note("end", last, self.watch.log[last][2] if last else b"")


def _leads(host: _Host) -> bool:
    return host.machine is not None and host.machine.office.state == "leader"


@dataclass(slots=True)
class Report:
    """What a sweep found: (seed, text) of each violation, and how often everything happened."""

    violations: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seeds: int = 0

    @property
    def operations(self) -> int:
        return self.counts["acknowledged_write"] + self.counts["acknowledged_read"]


def sweep(
    seeds: Iterable[int],
    *,
    removed_guards: Iterable[str] = (),
    chaos_s: float = CHAOS_S,
    stop_at_violation: bool = False,
) -> Report:
    """Run seeds, even ones with three voters and odd ones with five.

    Args:
        removed_guards: names of guards to do without; to see that it is noticed.
        chaos_s: virtual seconds of trouble per seed; a seed that counts has 60 or more.
        stop_at_violation: return as soon as something was found.
    """
    report = Report()
    removed = tuple(removed_guards)
    for seed in seeds:
        sim = RaftWorld(seed, removed_guards=removed)
        world = sim.run(chaos_s, stop_at_violation=stop_at_violation)
        report.seeds += 1
        report.counts.update(world.counts)
        report.violations += [(seed, text) for text in world.violations]
        if chaos_s >= CHAOS_S and not world.violations:
            report.violations += [(seed, text) for text in _too_little(world.counts)]
        if report.violations and stop_at_violation:
            break
    return report


def first_catch(guard: str, seeds: Iterable[int]) -> tuple[int, str] | None:
    """The first violation, with its seed, that the removal of one guard leads to."""
    report = sweep(seeds, removed_guards=[guard], stop_at_violation=True)
    return report.violations[0] if report.violations else None


def _too_little(counts: Counter[str]) -> list[str]:
    """Why a clean seed proves too little, if it does."""
    operations = counts["acknowledged_write"] + counts["acknowledged_read"]
    kinds = sum(counts[fault] > 0 for fault in FAULTS)
    complaints = []
    if operations < OPERATIONS_MIN:
        complaints.append(f"proves too little: {operations} operations of {OPERATIONS_MIN}")
    if kinds < FAULT_KINDS_MIN:
        complaints.append(f"proves too little: {kinds} kinds of fault of {FAULT_KINDS_MIN}")
    return complaints
