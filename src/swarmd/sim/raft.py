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
from functools import cache
from typing import Final

from swarmd.base.disk import Disk
from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.rng import Rng
from swarmd.identity.genesis import Genesis, make_genesis
from swarmd.identity.keys import SigningKey
from swarmd.sim.disk import PowerLost
from swarmd.sim.history import History
from swarmd.sim.network import Network
from swarmd.sim.raft_callers import KEYS, Caller
from swarmd.sim.raft_faults import FAULTS, Trouble, weather
from swarmd.sim.raft_host import RATE_MAX
from swarmd.sim.raft_voter import LogRoom, Voter
from swarmd.sim.raft_watch import POISON, LogWatch, Watch, WatchedState
from swarmd.sim.world import World
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.guards import Guard, without
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
    "poison",
)
_CALLERS: Final = 6
_POISON_EVERY_S: Final = (2.0, 10.0)
_LAST_KEY: Final = b"the/end"
# Of ten seeds: how many have how many voters.
_VOTERS: Final = (3, 5, 3, 7, 3, 5, 3, 1, 5, 7)

# Guards whose removal the sweep notices, each with a seed that does. The others need an event
# that no seed makes likely, or a disk that stops at one byte; the unit tests make it.
MUTANT_SEEDS: Final[dict[Guard, int]] = {}


@cache
def _genesis() -> Genesis:
    keys = [SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3)]
    return make_genesis(
        "sim",
        nonce=b"n" * 16,
        node_key=keys[0],
        node_name="v0",
        admin_public=keys[1].public,
        recovery_public=keys[2].public,
    )


class RaftWorld:
    """One seed's world. `run` plays it out; `world` holds counts, trace and violations."""

    def __init__(
        self, seed: int, *, removed_guards: Iterable[str] = (), voters: int | None = None
    ) -> None:
        self.world = World(seed)
        self.watch = Watch(self.world, KEYS, time_rate_max=RATE_MAX)
        self.history = History()
        self._rng = self.world.rng_for("chaos")
        self._guards = without(*removed_guards)
        count = voters if voters is not None else _VOTERS[seed % len(_VOTERS)]
        self.names = tuple(f"v{n}" for n in range(count))
        self.network = Network(self.world, weather(self._rng))
        self.voters = {name: Voter(self, name, self.names) for name in self.names}
        self.callers = [Caller(self, f"c{n}") for n in range(_CALLERS)]
        self.trouble = Trouble(self, self._rng)
        for name in self.names:
            self.start(name)

    # ---- what voters, callers and trouble ask ------------------------------------------------

    def make_machine(self, room: LogRoom, disk: Disk, rng: Rng) -> RaftMachine:
        """The production machine, with small limits: many batches, parts, chunks, snapshots."""
        chance = self._rng
        config = RaftConfig(
            batch_bytes_max=chance.choice((300, 1_000, 512 * 1024)),
            part_bytes=chance.choice((200, 500, 256 * 1024)),
            snapshot_chunk_bytes=chance.choice((500, 256 * 1024)),
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
        )

    def make_state(self, log: LogWatch, host: str) -> WatchedState:
        return WatchedState(_genesis(), log, host)

    def targets(self) -> Sequence[str]:
        """Whom a caller may ask."""
        return self.names

    def may_lose(self, name: str) -> bool:
        """May this voter's disk be lost, and a majority of disks still survive?"""
        lost = {v.name for v in self.voters.values() if v.lost is not None} | {name}
        return len(self.names) - len(lost) > len(self.names) // 2

    def start(self, name: str) -> None:
        """Start a voter on whatever its disk holds."""
        voter = self.voters[name]
        voter.begin()
        try:
            voter.boot()
        except DiskFault:
            voter.down()  # A full disk: the next round of repairs tries again.
        except PowerLost:
            self.world.count("crash_in_sync")
            voter.crash(power=True)
        except CorruptFile as error:
            self._refused(voter, error)
        except Exception as error:  # noqa: BLE001 - a start that fails is a finding
            voter.stop_for(error)
        else:
            if voter.flipped is not None:
                self.world.violate(f"{name} started on a damaged {voter.flipped}")

    def _refused(self, voter: Voter, error: CorruptFile) -> None:
        """A voter refuses its disk: right if the disk is damaged, and by the file's name."""
        if voter.flipped is None or voter.flipped not in error.message:
            voter.stop_for(error)
        else:
            self.world.count("damage_named")
            voter.lost = error.message
            voter.down()

    # ---- the run -----------------------------------------------------------------------------

    def run(self, chaos_s: float = CHAOS_S, *, stop_at_violation: bool = False) -> World:
        """Play the seed: trouble, then healing, then the last questions."""
        for caller in self.callers:
            caller.start()
        self.trouble.begin()
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

    def _poison(self) -> None:
        """Now and then a command that no voter can apply."""
        if self.trouble.over:
            return
        self.world.after(self._rng.uniform(*_POISON_EVERY_S), self._poison)
        for voter in self.voters.values():
            if voter.serving and voter.paused_until <= self.world.now:
                self.world.count("poison")
                voter.propose_raw(POISON + self._rng.randbytes(4), lambda _: None)
                return

    def settle(self) -> None:
        """End the trouble and ask the last questions."""
        self.trouble.end()
        for caller in self.callers:
            caller.stop()
        self.world.run_for(SETTLE_S / 2)
        self.trouble.restart_all()
        self.world.run_for(SETTLE_S / 2)
        self._last_questions()
        self._check_histories()

    def _last_questions(self) -> None:
        serving = [v for v in self.voters.values() if v.serving]
        if not serving:
            self.world.violate("there is no leader after healing")
            return
        answers: list[object] = []
        serving[-1].propose((Group(b"", 0, 0, (Put(_LAST_KEY, b"."),)),), answers.append)
        self.world.run_for(SETTLE_S / 2)
        if not answers or answers[0] is None:
            self.world.violate("no write commits after healing")
        for voter in self.voters.values():
            if voter.lost is not None:
                continue
            if not voter.up or voter.room is None:
                self.world.violate(f"{voter.name} is not running at the end")
                continue
            self.watch.ends(voter.name, voter.room.state)
        self._compare_states()
        self.world.note("end", self.watch.revision)

    def _compare_states(self) -> None:
        """All of the state, not only the keys, byte by byte."""
        states = [v.room.state for v in self.voters.values() if v.room is not None]
        if len({state.snapshot()() for state in states}) > 1:
            self.world.violate("the voters end in different states")

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
