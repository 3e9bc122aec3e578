"""The real voters in a simulated world: seeds, faults, checkers at every step, mutants.

Each seed runs 1, 3, 5 or 7 voters, each a `RaftMachine` that drives the real `StateMachine`,
for 60 virtual seconds and more, with callers that put, compare and set, delete, run
transactions, read keys and ranges, and repeat what was not answered. `raft_faults.py` says
what goes wrong, `raft_watch.py` what is checked at every step and every answer. At the end
of a seed everything heals, and then:

- there is a leader, a write commits, all voters stand in one state, and everything
  acknowledged is there;
- the histories that the callers kept pass the two checkers of `checkers.py`, which know
  nothing of what happened but calls and answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.rng import Rng
from swarmd.identity.epochs import GENERATION_EPOCHS, Epoch, recovery_number
from swarmd.sim.disk import PowerLost
from swarmd.sim.history import History
from swarmd.sim.network import Network
from swarmd.sim.raft_callers import KEYS, PREFIX, Caller
from swarmd.sim.raft_epochs import (
    EpochWatch,
    node_key,
    recovery_key,
    second_epoch,
    the_genesis,
)
from swarmd.sim.raft_faults import FAULTS, Trouble, weather
from swarmd.sim.raft_host import RATE_MAX
from swarmd.sim.raft_node import CRASH_POINTS, Node
from swarmd.sim.raft_rules import SEAL_RULES, ResealedState, SealRule, UnsealedState
from swarmd.sim.raft_voter import LogRoom
from swarmd.sim.raft_watch import POISON, LogWatch, Watch, WatchedState
from swarmd.sim.world import World
from swarmd.state.raft import messages as m
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.guards import Guard, without
from swarmd.state.raft.journal import Owner
from swarmd.state.raft.machine import RaftMachine
from swarmd.state.raft.messages import Group, Put

__all__ = ["FAULTS", "MUTANT_SEEDS", "RaftWorld", "Report", "first_catch", "sweep"]

CHAOS_S: Final = 60.0
SETTLE_S: Final = 8.0
OPERATIONS_MIN: Final = 500
FAULT_KINDS_MIN: Final = 5
# What must have happened, besides faults, in a sweep that proves something.
OTHERS: Final = (
    "acknowledged",
    "unknown_outcome",
    "stale_read",
    "election",
    "restart",
    "snapshot_install",
    "damage_named",
    "restored_disk_seen",
    "poison",
    "doubt",
    "wrong_doubt",
    "seal",
    "epoch",
    "copy_used",
    "transfer",
    *(f"seal crash {point}" for point in CRASH_POINTS),
)
_FILL: Final = tuple(f"f/{number}".encode() for number in range(700))
_MENDS_MAX: Final = 5
_CALLERS: Final = 6
_POISON_EVERY_S: Final = (2.0, 10.0)
# How often membership tells voters whom it doubts, and how often it doubts somebody wrongly.
_DOUBTS_EVERY_S: Final = (0.02, 0.4)
_WRONGLY: Final = 0.05
_LAST_KEY: Final = b"the/end"
# Of ten seeds: how many have how many voters.
_VOTERS: Final = (3, 5, 3, 7, 3, 5, 3, 1, 5, 7)

# Guards whose removal the sweep notices, each with a seed that does. The others need an event
# that no seed makes likely, or a disk that stops at one byte; the unit tests make it.
MUTANT_SEEDS: Final[dict[Guard, int]] = {
    Guard.W2_PERSIST_FIRST: 0,
    Guard.W2_REWRITE_AFTER_FAULT: 8,
    Guard.H3_SKIP_PREFIX: 2,
    Guard.H4_NO_COMMIT_FROM_SNAPSHOT: 3,
    Guard.H8_SPLIT_LARGE: 4,
    Guard.H9_REWRITE_ASIDE: 0,
    Guard.H11_ERRORS_ARE_RESULTS: 0,
}


class RaftWorld:
    """One seed's world. `run` plays it out; `world` holds counts, trace and violations.

    Args:
        voters: how many there are at first; by default the seed's business.
        spares: how many hosts more, which may get a seat later.
    """

    def __init__(
        self,
        seed: int,
        *,
        removed_guards: Iterable[str] = (),
        voters: int | None = None,
        spares: int = 2,
    ) -> None:
        self.world = World(seed)
        self.watch = Watch(self.world, KEYS, time_rate_max=RATE_MAX)
        self._watches = {0: self.watch}  # By generation; `watch` is the newest one's.
        self.history = History()
        self._rng = self.world.rng_for("chaos")
        self.removed = frozenset(removed_guards)
        self._guards = without(*(self.removed - SEAL_RULES))
        count = voters if voters is not None else _VOTERS[seed % len(_VOTERS)]
        self.names = tuple(f"v{n}" for n in range(count + spares))
        self.genesis = the_genesis()
        self.network = Network(self.world, weather(self._rng))
        self.copy_chance = 0.7
        # A third of the seeds have a state that takes several slices of a snapshot.
        self.fill: Sequence[bytes] = _FILL if self._rng.random() < 1 / 3 else ()
        self.point_chance = self._rng.choice((0.0, 0.01, 0.03))
        keys = {name: node_key(number) for number, name in enumerate(self.names)}
        self.ids_of = {name: key.key_id for name, key in keys.items()}
        self.names_of = {node_id: name for name, node_id in self.ids_of.items()}
        self.nodes = {name: Node(self, name, key) for name, key in keys.items()}
        self.epochs = EpochWatch(self.world, self.nodes)
        self.callers = self._make_callers("c")
        self.trouble = Trouble(self, self._rng)
        self._found(count)
        for name in self.names:
            self.start(name)
        self._doubts = self.world.rng_for("doubts")

    def _found(self, count: int) -> None:
        """The swarm as it is when the story begins: epoch 2, with its voters and no keys."""
        seated = [self.nodes[name] for name in self.names[:count]]
        for node in self.nodes.values():
            node.name_disk()
        seats = [m.Voter(node.key.public, node.storage) for node in seated]
        certificate, body, state = second_epoch(seats, self.fill)
        for node in self.nodes.values():
            node.found(certificate, body if node in seated else None)
        self.epochs.founded(seats, certificate)
        self.watch.begins_with(2, state)

    def _make_callers(self, letter: str) -> list[Caller]:
        return [Caller(self, f"{letter}{n}") for n in range(_CALLERS)]

    def recover(self, name: str) -> None:
        """Have this node go on alone, as the next generation; once in a story.

        The callers of before belong to the old generation, and are to be stopped before they
        meet the new one; those of the new one wait to be started.
        """
        node = self.nodes[name]
        number = recovery_number(node.chain.head)
        state = node.recover(recovery_key())
        self.watch = Watch(self.world, KEYS, time_rate_max=RATE_MAX)
        self.watch.begins_with(number, state)
        self._watches[number // GENERATION_EPOCHS] = self.watch
        self.history = History()
        written: dict[int, list[tuple[bytes, bytes | None]]] = {}
        for entry in state.range(PREFIX):
            written.setdefault(entry.mod_revision, []).append((entry.key, entry.value))
        for revision, changes in sorted(written.items()):
            self.history.wrote(self.world.now, self.world.now, revision, changes)
        self.callers = self._make_callers("d")

    # ---- what nodes, callers and trouble ask -------------------------------------------------

    def log_watch(self, number: int) -> LogWatch:
        return self._watches[number // GENERATION_EPOCHS].log(number)

    def make_machine(self, room: LogRoom, disk: Disk, rng: Rng) -> RaftMachine:
        """The production machine, with small limits: many batches, parts, chunks, snapshots."""
        chance = self._rng
        config = RaftConfig(
            batch_bytes_max=chance.choice((300, 1_000, 512 * 1024)),
            part_bytes=chance.choice((200, 500, 256 * 1024)),
            snapshot_chunk_bytes=chance.choice((5_000 if self.fill else 500, 256 * 1024)),
            compact_entries=chance.choice((20, 60, 200)),
            keep_entries=chance.choice((0, 3, 10)),
        )
        return RaftMachine(
            room.voter.name,
            room.names,
            disk,
            room.state,
            rng,
            config,
            room.voter.clock.now(),
            self._guards,
            Owner(self.genesis.swarm_id, self.ids_of[room.voter.name]),
        )

    def make_state(self, log: LogWatch, host: str) -> WatchedState:
        if SealRule.NOTHING_AFTER in self.removed:
            return UnsealedState(self.genesis, log, host)
        if SealRule.FIRST_COUNTS in self.removed:
            return ResealedState(self.genesis, log, host)
        return WatchedState(self.genesis, log, host)

    def targets(self) -> Sequence[str]:
        """Whom a caller may ask."""
        return self.names

    def alive(self, name: str) -> list[str]:
        """Who seems alive to `name`: a membership that is never wrong for long."""
        return [n for n in self.names if self.nodes[n].up and not self.network.is_cut(n, name)]

    def may_lose(self, name: str) -> bool:
        """May this disk be lost, and a majority of every epoch that matters still survive?"""
        return self.epochs.may_lose(name)

    def would_be_seen(self, node: Node, image: dict[str, bytes]) -> bool:
        """Would the voters tell that `image`, put back on this node, is of an earlier time?"""
        return self.epochs.would_be_seen(node, image)

    def change_voters(self) -> None:
        """Whoever serves, or believes so, is asked for other voters."""
        for node in self.nodes.values():
            if node.serving and node.paused_until <= self.world.now:
                node.change_voters(self.epochs.other_voters(node, self._rng))

    def certified(self, host: str, epoch: Epoch) -> None:
        self.epochs.certified(host, epoch)

    def may_propose(self, number: int, seats: tuple[m.Voter, ...]) -> bool:
        return self.epochs.may_propose(number, seats)

    def installed(self, number: int, seat: m.Voter) -> None:
        self.epochs.installed(number, seat)

    def stopped(self, number: int, seat: m.Voter) -> None:
        self.epochs.stopped(number, seat)

    def dropping(self, host: str, head: Epoch) -> None:
        self.epochs.dropping(host, head)

    def started(self, node: Node, epoch: Epoch) -> None:
        self.epochs.started(node, epoch)

    def admitted(self, node: Node) -> None:
        self.epochs.admitted(node)

    def start(self, name: str) -> None:
        """Start a node on whatever its disk holds."""
        node = self.nodes[name]
        if node.up or node.lost is not None:
            return
        node.begin()
        try:
            node.boot()
        except DiskFault:
            node.down()  # A full disk: the next round of repairs tries again.
        except PowerLost as lost:
            node.power_lost(lost)
        except CorruptFile as error:
            node.refuse(error)
        except Exception as error:  # noqa: BLE001 - a start that fails is a finding
            node.stop_for(error)

    # ---- the run -----------------------------------------------------------------------------

    def run(self, chaos_s: float = CHAOS_S, *, stop_at_violation: bool = False) -> World:
        """Play the seed: trouble, then healing, then the last questions."""
        for caller in self.callers:
            caller.start()
        self.trouble.begin()
        self._tell_doubts()
        self._poison()
        while self.world.now < chaos_s or self._wants_more(chaos_s):
            self.world.run_for(1.0)
            if stop_at_violation and self.world.violations:
                return self.world
        self.settle()
        return self.world

    def _wants_more(self, chaos_s: float) -> bool:
        """Where trouble left callers little to do, it takes longer until a seed proves enough."""
        counts = self.world.counts
        done = counts["acknowledged_write"] + counts["acknowledged_read"]
        return done < OPERATIONS_MIN and chaos_s >= CHAOS_S and self.world.now < chaos_s * 4

    def _tell_doubts(self) -> None:
        """Some voters hear from membership whom it doubts: late, and now and then wrongly."""
        rng = self._doubts
        self.world.after(rng.uniform(*_DOUBTS_EVERY_S), self._tell_doubts)
        for node in self.nodes.values():
            if node.room is None or node.paused_until > self.world.now or rng.random() < 1 / 2:
                continue
            doubted = set(self.names).difference(self.alive(node.name))
            if not self.trouble.over and rng.random() < _WRONGLY:
                self.world.count("wrong_doubt")
                doubted.add(rng.choice(self.names))
            node.room.doubt(doubted)

    def _poison(self) -> None:
        """Now and then a command that no voter can apply."""
        if self.trouble.over:
            return
        self.world.after(self._rng.uniform(*_POISON_EVERY_S), self._poison)
        for node in self.nodes.values():
            if node.serving and node.paused_until <= self.world.now:
                self.world.count("poison")
                node.propose_raw(POISON + self._rng.randbytes(4), lambda _: None)
                return

    def settle(self) -> None:
        """End the trouble and ask the last questions."""
        self.trouble.end()
        self.point_chance = 0.0
        for caller in self.callers:
            caller.stop()
        self.world.run_for(SETTLE_S / 2)
        self.trouble.restart_all()
        self.world.run_for(SETTLE_S / 2)
        for _ in range(_MENDS_MAX):
            if not self.epochs.wants_mending():
                break
            self.change_voters()
            self.world.run_for(SETTLE_S / 2)
        self._last_questions()
        self._check_histories()

    def _last_questions(self) -> None:
        serving = [node for node in self.nodes.values() if node.serving]
        if not serving:
            self.world.violate("there is no leader after healing")
            return
        answers: list[object] = []
        serving[-1].propose((Group(b"", 0, 0, (Put(_LAST_KEY, b"."),)),), answers.append)
        self.world.run_for(SETTLE_S / 2)
        if not answers or answers[0] is None:
            self.world.violate("no write commits after healing")
        states = []
        for node in self.epochs.seated():
            if not node.up or node.room is None:
                self.world.violate(f"{node.name} has a seat and does not vote at the end")
                continue
            self.watch.ends(node.name, node.room.state)
            states.append(tuple(node.room.state.snapshot()))
        # All of the state, not only the keys, byte by byte.
        if len(set(states)) > 1:
            self.world.violate("the voters end in different states")
        self.world.note("end", self.watch.revision, self.epochs.newest)

    def _check_histories(self) -> None:
        verdict = self.history.verdict()
        self.world.count("history", len(self.history))
        for problem in verdict.problems[:5]:
            self.world.violate(f"histories: {problem}")
        for key in verdict.undecided:
            self.world.violate(f"histories: key {key!r} could not be decided")


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
    """Run seeds.

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
