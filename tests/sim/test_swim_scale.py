"""Membership at scale: its figures within their budgets, and that nothing is simulated but it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import run_sim
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.machine import Effect, Send
from swarmd.mesh.swim.ledger import Ledger
from swarmd.mesh.swim.members import MemberTable
from swarmd.mesh.swim.messages import Rumour
from swarmd.mesh.swim.names import Names
from swarmd.sim import swim_table
from swarmd.sim.swim_figures import EXPERIMENTS, run
from swarmd.sim.swim_scale import HELD_PACKETS_MAX, ScaleMember, ScaleWorld
from swarmd.sim.swim_shared import Agreed, Overlay, SharedLedger, SharedMachine
from swarmd.sim.swim_table import PLAN, ROWS, Row, broken, gather, lines, serf_simulator_s, value_of


class PlainMachine(SharedMachine):
    """The production machine over the production's own stores."""

    ledger_type = Ledger
    names_type = Names

    def adopt(self, agreed: Agreed) -> None:
        self._ledger.members = table = MemberTable(self.me, self._exchange._rng)
        for record in agreed.table.records():
            table.add(record)
        self._names._holders = dict(agreed.names._holders)
        self._ledger.queue.drop(self.me)
        self._ledger.announcements()


class NeverRefutes(SharedMachine):
    class Silent(SharedLedger):
        def _answer_for_self(self, rumour: Rumour, now: float) -> list[Effect]:
            return []

    ledger_type = Silent


class Traced(ScaleWorld):
    """Notes every packet."""

    def _send(self, member: ScaleMember, effect: Send) -> None:
        self.world.note(member.name, effect.peer, effect.message)
        super()._send(member, effect)


def eventful(machine: type[SharedMachine], *, warm: bool) -> str:
    """The trace of a swarm in which members die, change, return, and are cut off."""
    sim = Traced(5, 40, loss=0.1, machine=machine)
    if warm:
        sim.start_warm(dead=20)
    else:
        sim.start_cold()
    sim.run_for(3.0)
    sim.kill(sim.members[7])
    sim.change_something(sim.members[8], "new")
    sim.stall(sim.members[9])
    sim.run_for(15.0)
    sim.go_on(sim.members[9])
    sim.start(sim.members[7])
    sim.cut(range(5), range(5, 40))
    sim.run_for(20.0)
    sim.heal()
    sim.run_for(20.0)
    assert sim.agreed()
    return sim.world.trace()


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_what_members_share_changes_nothing_that_they_say(warm: bool) -> None:
    """Packet by packet: so what is measured is what production does."""
    assert eventful(SharedMachine, warm=warm) == eventful(PlainMachine, warm=warm)


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 99)),
    st.lists(st.tuples(st.sampled_from(["set", "delete"]), st.integers(0, 12), st.integers(1, 99))),
)
def test_an_overlay_is_a_dict(base: dict[int, int], steps: list[tuple[str, int, int]]) -> None:
    plain, laid, before = dict(base), Overlay(base), dict(base)
    for step, key, value in steps:
        if step == "set":
            plain[key] = laid[key] = value
        else:
            assert laid.pop(key, None) == plain.pop(key, None)
        assert list(laid.items()) == list(plain.items())
        assert len(laid) == len(plain)
        assert (key in laid, laid.get(key)) == (key in plain, plain.get(key))
    assert base == before


def test_the_warm_know_what_those_know_who_met() -> None:
    met, warm = ScaleWorld(1, 20), ScaleWorld(1, 20)
    met.start_cold()
    met.run_for(10.0)
    warm.start_warm()
    for a, b in zip(met.members, warm.members, strict=True):
        assert a.machine is not None
        assert b.machine is not None
        known = [
            {m.node_id: (m.state, m.incarnation, m.addresses) for m in machine.members()}
            for machine in (a.machine, b.machine)
        ]
        assert known[0] == known[1]
        assert a.machine.view_digest() == b.machine.view_digest()
        assert sorted(a.machine._names._holders) == sorted(b.machine._names._holders)
        assert b.machine.queued() == []


def test_who_keeps_a_connection_hears_that_it_was_reset() -> None:
    """The short way to them is that of the machines themselves."""
    sim = ScaleWorld(3, 30)
    sim.start_cold()
    sim.run_for(5.0)
    subject = sim.members[4]
    keepers = {
        one.name
        for one in sim.members
        if one is not subject and one.machine and one.machine.keeps(subject.node_id)
    }
    assert {one.name for one in sim._keepers(subject)} == keepers
    assert len(keepers) >= 4


def test_a_death_that_must_not_be_is_counted() -> None:
    sim = ScaleWorld(1, 10, loss=0.5, machine=NeverRefutes)
    sim.start_warm()
    sim.stall(sim.members[3])
    sim.run_for(60.0)
    assert sim.false_deaths > 0
    assert "declared n3 dead, which is well" in sim.world.violations[0]


def test_a_socket_holds_so_much_for_a_process_that_stands_still() -> None:
    sim = ScaleWorld(1, 10)
    sim.start_warm()
    sim.stall(sim.members[3])
    for number in range(90):
        sim.change_something(sim.members[0], str(number))
        sim.run_for(1.0)
    assert sim.members[3].packets_held == HELD_PACKETS_MAX
    sim.go_on(sim.members[3])
    sim.run_for(10.0)
    assert sim.agreed()


# ---- figures ----------------------------------------------------------------------------


def figures(count: int, runs: Mapping[str, int]) -> dict[str, dict[int, list[float]]]:
    """What some runs of each experiment give; none may violate anything."""
    results = []
    for experiment, times in runs.items():
        for seed in range(times):
            made, violations = run(experiment, count, seed)
            assert violations == [], (experiment, seed)
            results.append((count, made))
    return {name: dict(by_count) for name, by_count in gather(results).items()}  # type: ignore[arg-type]


def test_ten_members_have_a_figure_in_each_row_and_keep_the_budgets() -> None:
    samples = figures(10, {name: min(1, swim_table.runs_of(name, 10)) for name in PLAN})
    assert broken(samples) == []
    shown = lines(samples, [10])
    for row in ROWS:
        if isinstance(row, Row):
            value = value_of(row, samples, 10)
            assert value is not None, row.label
            assert math.isfinite(value), row.label
    assert max(map(len, lines(samples, [10, 100, 1_000, 10_000]))) <= 80
    assert len(shown) > len(ROWS)
    assert any("serf's simulator" in line and "1.6" in line for line in shown)


def test_a_hundred_members_keep_the_budgets() -> None:
    once = ("change_0", "change_0.5", "kill", "death", "join", "load", "deaf", "flapping")
    samples = figures(100, {**dict.fromkeys(once, 1), "bootstrap": 3})
    assert broken(samples) == []
    assert max(samples["silent_death_s"][100]) <= swim_table.shortest_suspicion_s(100) + 2.5


@pytest.mark.long
def test_a_thousand_members_keep_the_budgets() -> None:
    """What costs minutes of processor time is in `scripts/sim swim --table --nodes 1000`."""
    samples = figures(1_000, dict.fromkeys(("change_0", "kill"), 1))
    assert broken(samples) == []


def test_a_budget_that_is_exceeded_is_named() -> None:
    assert broken(gather([(10, {"aware_0_s": 3.0, "idle_bytes": 400.0})])) == []
    [said] = broken(gather([(100, {"aware_0_s": 0.3}), (100, {"aware_0_s": math.inf})]))
    assert said == "aware_0_s of 100 is inf, over 3"
    slow = [(10, {"silent_death_s": 6.0})] * 98 + [(10, {"silent_death_s": 7.0})]
    assert len(broken(gather(slow))) == 1
    assert broken(gather([*slow, slow[0], slow[0]])) == []


def test_what_serf_s_simulator_shows() -> None:
    """Read off its graph: 30 members are its default."""
    assert serf_simulator_s(30, 0.0) == pytest.approx(1.8)
    assert serf_simulator_s(10_000, 0.0) == pytest.approx(2.6)
    assert serf_simulator_s(10_000, 0.5) == pytest.approx(5.0)


def test_every_experiment_has_its_place_in_the_plan() -> None:
    assert set(PLAN) == set(EXPERIMENTS)
    assert swim_table.runs_of("starved", 1_000) == 0
    assert swim_table.runs_of("starved_minutes", 10) == 0
    assert swim_table.runs_of("starved_minutes", 1_000) == 1


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["swim", "--table", "--nodes", "10", "--only", "kill", "--runs", "2", "--jobs", "1"]
    assert run_sim.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "killed, connections reset" in shown
    assert "within all budgets" in shown
