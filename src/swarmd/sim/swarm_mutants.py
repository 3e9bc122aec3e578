"""Guards taken away one by one, and what notices each absence.

A guard that nothing misses is either not needed or not tested. Most are missed by a seed of
one of the simulations; the rest protect against what chance does not bring about in a minute
(three voters never see a vote that counts double) and have a test of their own, which holds
with the guard and fails without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from swarmd.mesh.swim.machine import SwimMachine
from swarmd.sim import bus, crdt, crdt_mutants, raft, swarm, swim, swim_events, swim_mutants, tasks
from swarmd.sim.raft_rules import SealRule
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.raft.guards import Guard

SEEDS_TRIED: Final = 40
_RAFT_TESTS: Final = (
    "tests/unit/raft/test_raft_hazards.py::test_without_its_guard_the_hazard_is_there"
)
_LEASE_TESTS: Final = "tests/sim/test_swarm_lease.py::test_mutant_is_noticed"
_SWIM_TESTS: Final = "tests/unit/swim/test_swim_guards.py::test_without_its_guard_a_test_fails"
_TASK_TESTS: Final = "tests/unit/tasks/test_task_guards.py::test_guard"


@dataclass(frozen=True, slots=True)
class BySeed:
    """A seed of a simulation in which the mutant breaks a promise.

    The others up to `SEEDS_TRIED` are tried after it: a change to a machine moves what happens
    in which seed.
    """

    sim: str
    seed: int

    def __str__(self) -> str:
        return f"{self.sim} --first {self.seed}"


@dataclass(frozen=True, slots=True)
class ByTest:
    """A test that holds because the guard's absence breaks what it looks at."""

    node_id: str

    def __str__(self) -> str:
        return self.node_id


How = BySeed | ByTest


def _hazard(guard: Guard) -> ByTest:
    return ByTest(f"{_RAFT_TESTS}[{guard.value}]")


def _task(name: str) -> ByTest:
    return ByTest(f"{_TASK_TESTS}[{name}]")


_SWIM: Final[dict[str, How]] = {
    "swim.refutation": BySeed("swim", 0),
    "swim.stale_timer": BySeed("swim", 0),
    "swim.incarnation_order": BySeed("swim", 0),
    "swim.retry_of_the_dead": BySeed("swim", 2),
    "swim.comparing_views": BySeed("swim", 71),
    "swim.start_counter": BySeed("swim", 0),
    "swim.above_the_doubt": BySeed("swim", 0),
    "swim.left_stays_left": BySeed("swim", 0),
    **{name: ByTest(f"{_SWIM_TESTS}[{name}]") for name in swim_mutants.BY_TEST},
}
_RAFT: Final[dict[str, How]] = {
    guard.value: BySeed("raft", raft.MUTANT_SEEDS[guard])
    if guard in raft.MUTANT_SEEDS
    else _hazard(guard)
    for guard in Guard
}
_EPOCHS: Final = "tests/sim/test_raft_epochs.py::"
_EPOCH_UNITS: Final = "tests/unit/store/test_store_epoch.py::"
_SEAL: Final[dict[str, How]] = {
    SealRule.READ_TESTS_SEAL: ByTest(f"{_EPOCHS}test_both_leaders_would_answer_without_the_rule"),
    SealRule.NOTHING_AFTER: BySeed("raft", 0),
    SealRule.FIRST_COUNTS: ByTest(f"{_EPOCHS}test_the_last_seal_would_count_without_the_rule"),
    SealRule.STATE_BEFORE_SIGNATURE: ByTest(
        f"{_EPOCHS}test_signed_states_would_be_gone_without_the_rule"
    ),
    # One honest signature would do in simulation; this is about the others.
    SealRule.MAJORITY_SIGNS: ByTest(
        f"{_EPOCH_UNITS}test_a_ballot_becomes_a_certificate_with_a_majority"
    ),
    SealRule.ORDINARY_UNTIL_CERTIFIED: ByTest(
        f"{_EPOCHS}test_a_change_would_stand_still_without_the_rule"
    ),
    SealRule.CERTIFICATE_FIRST: BySeed("raft", 0),
    SealRule.STATE_PROVES_ITSELF: ByTest(
        f"{_EPOCHS}test_a_wrong_state_would_be_taken_without_the_rule"
    ),
    SealRule.STATE_BEFORE_VOTE: ByTest(f"{_EPOCHS}test_new_voters_would_forget_without_the_rule"),
    SealRule.KEEP_UNTIL_INSTALLED: BySeed("raft", 2),
    # Nobody is evicted in simulation.
    SealRule.MAJORITY_STAYS: ByTest(
        "tests/unit/store/test_store_majority.py::test_nothing_could_be_decided_without_the_rule"
    ),
    SealRule.NEW_DISK_NEW_VOTER: ByTest(
        f"{_EPOCHS}test_a_lost_disk_would_break_promises_without_the_rule"
    ),
    SealRule.COPY_OF_DISK_IS_ANOTHER: ByTest(
        f"{_EPOCHS}test_a_restored_disk_would_vote_without_the_rule"
    ),
}
_TASKS: Final[dict[str, How]] = {
    "assign_repeat": BySeed("all", 4),
    "at_most_once": BySeed("all", 0),
    "attempt_bound": BySeed("all", 0),
    "boot_check": BySeed("all", 0),
    "cancel_finality": BySeed("all", 0),
    "content_check": BySeed("all", 0),
    "fence_check": BySeed("all", 12),
    "idempotent_create": _task("idempotent_create"),
    "lease_confirm": _task("lease_confirm"),
    "lease_lapse": BySeed("all", 4),
    "lease_margin": BySeed("all", 2),
    "office_check": BySeed("all", 2),
    "repeated_assign": BySeed("all", 0),
    "result_repeat": BySeed("all", 4),
    "stale_office": _task("stale_office"),
    "stale_timer": _task("stale_timer"),
    "worker_boot_check": _task("worker_boot_check"),
}
_BUS: Final[dict[str, How]] = {
    **{f"bus.{guard}": BySeed("bus", seed) for guard, seed in bus.BY_SEED.items()},
    "bus.one_session": ByTest(
        "tests/unit/bus/test_bus_machine.py::test_without_its_guard_an_ended_session_is_heard"
    ),
}
_EVENTS: Final[dict[str, How]] = {
    guard: BySeed("events", seed)
    for guard, seed in (
        ("events.known_once", 0),
        ("events.push_pull", 0),
        ("events.memory_over_restarts", 0),
        ("events.lamport_time", 0),
    )
}
_CRDT: Final[dict[str, How]] = {
    guard: BySeed("crdt", {"crdt.actor_after_drop": 20}.get(guard, 0))
    for guard in crdt_mutants.MUTANTS
}
_SWARM: Final[dict[str, How]] = {
    Guard.W2_PERSIST_FIRST.value: BySeed("all", 0),
    Guard.W2_REWRITE_AFTER_FAULT.value: BySeed("all", 5),
    "tasks.lease_disowned": ByTest(f"{_LEASE_TESTS}[tasks.lease_disowned]"),
}

# Per name of a simulation: the guards to take away, and how each is caught.
MUTANTS: Final[Mapping[str, Mapping[str, How]]] = MappingProxyType(
    {
        "swim": _SWIM,
        "raft": {**_RAFT, **_SEAL},
        "tasks": _TASKS,
        "bus": _BUS,
        "events": _EVENTS,
        "crdt": _CRDT,
        "all": {**_SWIM, **_RAFT, **_TASKS, **_SWARM},
    }
)


def _violations(sim: str, seed: int, mutant: str) -> list[str]:
    seeds, removed = range(seed, seed + 1), frozenset({mutant} if mutant else ())
    if sim == "swim":
        machine = swim_mutants.MUTANTS[mutant] if mutant else SwimMachine
        return [text for _, text in swim.sweep(seeds, machine).violations]
    if sim == "raft":
        report = raft.sweep(seeds, removed_guards=removed, stop_at_violation=bool(mutant))
        return [text for _, text in report.violations]
    if sim == "events":
        made = swim_events.MUTANTS[mutant] if mutant else None
        run = swim_events.run_seed(seed, made, stop_at_violation=bool(mutant))
        return run.world.violations
    if sim == "crdt":
        made_of = crdt_mutants.MUTANTS[mutant] if mutant else ReplicaMachine
        return crdt.run_seed(seed, made_of, stop_at_violation=bool(mutant)).world.violations
    if sim == "bus":
        guards = frozenset(one.removeprefix("bus.") for one in removed)
        return bus.run_seed(seed, guards).world.violations
    if sim == "tasks":
        return [text for _, text in tasks.sweep(seeds, removed_guards=removed).violations]
    return [text for _, text in swarm.sweep(seeds, removed_guards=removed).violations]


def catch(mutant: str, how: BySeed) -> tuple[int, str] | None:
    """The first seed in which the mutant is noticed, and by what; None if it survives.

    A seed that is not clean with all guards proves nothing and does not count.
    """
    others: Iterable[int] = (seed for seed in range(SEEDS_TRIED) if seed != how.seed)
    for seed in (how.seed, *others):
        found = _violations(how.sim, seed, mutant)
        if found and not _violations(how.sim, seed, ""):
            return seed, found[0]
    return None


Run = Callable[[int], tuple[list[str], Mapping[str, int]]]


def _swim_seed(seed: int) -> tuple[list[str], Mapping[str, int]]:
    report = swim.sweep(range(seed, seed + 1))
    return [text for _, text in report.violations], report.counts


def _raft_seed(seed: int) -> tuple[list[str], Mapping[str, int]]:
    report = raft.sweep(range(seed, seed + 1))
    counts = report.counts + type(report.counts)({"acknowledged": report.operations})
    return [text for _, text in report.violations], counts


def _task_seed(seed: int) -> tuple[list[str], Mapping[str, int]]:
    report = tasks.sweep(range(seed, seed + 1))
    return [text for _, text in report.violations], report.counts


def _bus_seed(seed: int) -> tuple[list[str], Mapping[str, int]]:
    world = bus.run_seed(seed).world
    return world.violations, world.counts


def _events_seed(seed: int) -> tuple[list[str], Mapping[str, int]]:
    world = swim_events.run_seed(seed).world
    return world.violations, world.counts


def _crdt_seed(seed: int) -> tuple[list[str], Mapping[str, int]]:
    world = crdt.run_seed(seed).world
    return world.violations, world.counts


def _swarm_seed(seed: int) -> tuple[list[str], Mapping[str, int]]:
    report = swarm.sweep(range(seed, seed + 1))
    return [text for _, text in report.violations], report.counts


@dataclass(frozen=True, slots=True)
class Simulation:
    """How to run one seed, and which counts must not be zero over all of them."""

    run: Run
    faults: tuple[str, ...]
    others: tuple[str, ...]


_SWIM_OTHERS: Final = ("restart", "suspicion", "refutation", "death", "sync", "stream_probe")
SIMULATIONS: Final[Mapping[str, Simulation]] = MappingProxyType(
    {
        "swim": Simulation(
            _swim_seed,
            tuple(name for name in swim.EXPECTED if name not in _SWIM_OTHERS),
            _SWIM_OTHERS,
        ),
        "raft": Simulation(_raft_seed, raft.FAULTS, raft.OTHERS),
        "tasks": Simulation(
            _task_seed,
            (
                "loss", "duplicate", "delay", "partition", "one_way_cut", "crash",
                "total_restart", "quick_restart", "drain", "false_suspicion", "lost_answer",
                "late_commit", "unknown_outcome",
            ),
            ("acknowledged", "coordinator_change", "restart", "attempt"),
        ),
        "bus": Simulation(_bus_seed, bus.FAULTS, bus.OTHERS),
        "crdt": Simulation(_crdt_seed, crdt.FAULTS, crdt.OTHERS),
        "events": Simulation(_events_seed, swim_events.FAULTS, swim_events.OTHERS),
        "all": Simulation(
            _swarm_seed,
            swarm.FAULTS,
            ("acknowledged", "election", "suspicion", "restart", "office", "attempt"),
        ),
    }
)  # fmt: skip
