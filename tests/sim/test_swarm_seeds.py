"""The whole swarm under seeded faults, and what notices a guard that is taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_sim
from hash_seeds import printed_whatever_the_hash_seed

from swarmd.base.ids import NodeId
from swarmd.sim.swarm import FAULTS, GUARDS, REQUIRED, SwarmWorld, sweep
from swarmd.sim.swarm_mutants import MUTANTS, SIMULATIONS, BySeed, ByTest, catch
from swarmd.sim.swarm_watch import Runs, Watch
from swarmd.sim.world import World
from swarmd.state.raft.guards import Guard
from swarmd.tasks.spec import Mode

ROOT = Path(__file__).resolve().parents[2]
# In stage 1; the long sweep starts after them.
FEW = range(4)
MANY = range(4, 124)
# Seeds that found a bug once: a lease was renewed for a worker while one of its attempts was being
# given up, and the worker began that attempt while another one was granted.
ONCE_FAILED = (1241, 2093)
# One of each room; all of them are taken away in the long sweep.
FEW_MUTANTS = ("swim.stale_timer", "W2-persist-first", "repeated_assign")


def test_a_few_seeds_are_clean_and_saw_every_fault() -> None:
    report = sweep(FEW)
    assert report.violations == []
    assert report.missing == []
    assert report.seeds == len(FEW)


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_seeds_that_failed_once(seed: int) -> None:
    assert SwarmWorld(seed).run().violations == []


@pytest.mark.parametrize("name", FEW_MUTANTS)
def test_a_few_mutants_are_caught(name: str) -> None:
    how = MUTANTS["all"][name]
    assert isinstance(how, BySeed)
    assert catch(name, how) is not None


def test_one_seed_is_one_trace_whatever_the_hash_seed() -> None:
    script = "from swarmd.sim.swarm import SwarmWorld; print(SwarmWorld(4).run().trace())"
    trace = printed_whatever_the_hash_seed(script)
    assert len(trace) == 32
    assert SwarmWorld(5).run().trace() != trace


def test_the_table_names_every_guard_and_nothing_else() -> None:
    assert set(MUTANTS["all"]) == GUARDS
    assert set(MUTANTS) == set(SIMULATIONS)
    assert {*FAULTS} <= REQUIRED
    assert {*SIMULATIONS["all"].faults, *SIMULATIONS["all"].others} == REQUIRED


def test_the_tests_that_the_table_names_exist() -> None:
    for how in MUTANTS["all"].values():
        if isinstance(how, ByTest):
            path, _, rest = how.node_id.partition("::")
            assert f"def {rest.partition('[')[0]}(" in (ROOT / path).read_text()


# ---- the watch itself sees what it is for --------------------------------------------------


def test_the_watch_sees_attempts_that_overlap() -> None:
    world = World(1)
    runs = Runs(world)
    runs.start(("task", 1, "n0"), Mode.EXCLUSIVE)
    runs.start(("task", 2, "n1"), Mode.EXCLUSIVE)
    assert "at once" in world.violations[0]


def test_a_frozen_attempt_overlaps_only_when_it_goes_on() -> None:
    world = World(1)
    runs = Runs(world)
    runs.start(("task", 1, "n0"), Mode.EXCLUSIVE)
    runs.freeze(("task", 1, "n0"))
    runs.start(("task", 2, "n1"), Mode.EXCLUSIVE)
    assert world.violations == []
    runs.thaw(("task", 1, "n0"))
    assert len(world.violations) == 1


def test_the_watch_sees_a_fence_started_twice_and_a_second_start() -> None:
    world = World(1)
    runs = Runs(world)
    for host in ("n0", "n1"):
        runs.start(("task", 1, host), Mode.AT_MOST_ONCE)
        runs.stop(("task", 1, host))
    assert len(world.violations) == 2


def test_the_watch_sees_two_leaders_and_a_leader_that_lacks_what_was_committed() -> None:
    world = World(1)
    watch = Watch(world, {})
    watch.sessions[b"s"] = NodeId(b"n")
    command = b"\x92\x00\x90"  # A batch of no groups.
    watch.applied("n0", 1, 1, command, (0, 0, 0), [], [])
    watch.stepped(1)
    watch.leads("n0", 2, lambda index: 1, 1)
    assert world.violations == []
    watch.leads("n1", 2, lambda index: 1, 1)
    assert "both lead" in world.violations[0]
    watch.leads("n1", 3, lambda index: None, 0)
    assert "without committed entry 1" in world.violations[1]
    watch.applied("n1", 1, 2, command, (0, 0, 0), [], [])
    assert "applied another entry" in world.violations[2]


# ---- the script ----------------------------------------------------------------------------


def test_the_script_prints_counts_and_says_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sim.main(["all", "--seeds", "2", "--first", "0"]) in (0, 1)
    out = capsys.readouterr().out
    for word in (*FAULTS, "operations acknowledged", "elections", "suspicion", "restart"):
        assert word in out
    assert "0 violations" in out


def test_the_script_fails_when_a_fault_never_fired(capsys: pytest.CaptureFixture[str]) -> None:
    """One seed of membership does not see every kind of fault."""
    assert run_sim.main(["swim", "--seeds", "1", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["missing"]
    assert not result["violations"]


def test_the_script_fails_when_a_mutant_survives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hazard = ByTest("tests/unit/raft/test_raft_hazards.py::no_such_test")
    monkeypatch.setattr(run_sim, "MUTANTS", {"raft": {Guard.H1_ONE_VOTE_EACH.value: hazard}})
    assert run_sim.main(["raft", "--mutants"]) == 1
    assert "SURVIVES" in capsys.readouterr().out


# ---- stage 2 -------------------------------------------------------------------------------


@pytest.mark.long
def test_many_seeds_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["all", "--seeds", str(len(MANY)), "--first", str(MANY.start)]
    assert run_sim.main(arguments) == 0, capsys.readouterr().out


@pytest.mark.long
def test_every_mutant_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sim.main(["all", "--mutants"]) == 0, capsys.readouterr().out
