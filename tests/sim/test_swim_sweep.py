"""The membership machines under seeded faults."""

from __future__ import annotations

import pytest
from hash_seeds import printed_whatever_the_hash_seed

from swarmd.base.machine import Event
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import Join, PacketIn, StreamAnswered, SyncIn
from swarmd.mesh.swim.messages import (
    MemberState,
    Meta,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.sim.network import LinkFaults
from swarmd.sim.swim import EXPECTED, SimNode, SimSigner, SwimWorld, node_id, run_seed, sweep
from swarmd.sim.swim_mutants import BY_SEED, first_catch

# Seeds that found a bug once: 156 and 173 a member that moved while cut off and was never
# found again, because nobody told the others where it was now; 76 one of the checker, which
# expected a goodbye of one that nobody had found yet to be heard.
ONCE_FAILED = (0, 17, 18, 76, 156, 173)


def names(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


def joined(
    count: int,
    seed: int = 1,
    *,
    faults: LinkFaults | None = None,
    config: SwimConfig | None = None,
) -> SwimWorld:
    """A swarm that has settled."""
    sim = SwimWorld(seed, names(count), config=config)
    sim.start_all()
    sim.run_for(5.0)
    assert not sim.disagreements()
    if faults is not None:
        sim.network.faults = faults
    return sim


def test_a_sweep_is_clean_and_saw_every_fault() -> None:
    report = sweep(range(30))
    assert report.violations == []
    assert [fault for fault in EXPECTED if not report.counts[fault]] == []


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_seeds_that_failed_once(seed: int) -> None:
    assert run_seed(seed).world.violations == []


@pytest.mark.parametrize("name", BY_SEED)
def test_each_mutant_is_caught(name: str) -> None:
    assert first_catch(name, range(80)) is not None


def test_one_seed_is_one_trace_whatever_the_hash_seed() -> None:
    script = "from swarmd.sim.swim import run_seed; print(run_seed(7).world.trace())"
    assert len(printed_whatever_the_hash_seed(script)) == 32


@pytest.mark.parametrize("count", [2, 5, 10])
def test_a_healthy_swarm_suspects_nobody(count: int) -> None:
    sim = joined(count)
    sim.run_for(120.0)
    assert sim.world.counts["suspicion"] == 0
    assert not sim.disagreements()


@pytest.mark.parametrize("seed", range(5))
def test_a_lossy_network_loses_nobody(seed: int) -> None:
    """Half of all packets lost, ten nodes, 30 s."""
    sim = joined(10, seed, faults=LinkFaults(loss=0.5))
    sim.run_for(30.0)
    assert sim.world.counts["death"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_joining_at_once_takes_less_than_a_second(seed: int) -> None:
    sim = SwimWorld(seed, names(10))
    sim.start_all()
    sim.run_for(1.0)
    assert not sim.disagreements()


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_process_is_known_dead_to_ten_nodes_within_a_second(seed: int) -> None:
    sim = joined(10, seed)
    sim.crash("n4", hint=True)
    sim.run_for(1.0)
    assert {sim.view(node.name)["n4"] for node in sim.running()} == {"dead"}


def test_an_unplugged_host_is_known_dead_two_and_a_half_seconds_after_the_least() -> None:
    """To all ten, in all but one of a hundred seeds; that one is not far off."""
    config = SwimConfig()
    shortest_s = config.suspicion_mult * config.probe_interval_s
    late = 0
    for seed in range(100):
        sim = joined(10, seed)
        sim.run_for(seed % 17 / 10)
        sim.crash("n4")
        sim.run_for(shortest_s + 2.5)
        late += {sim.view(node.name)["n4"] for node in sim.running()} != {"dead"}
        sim.run_for(1.0)
        assert {sim.view(node.name)["n4"] for node in sim.running()} == {"dead"}
        assert all(node.machine.health == 0 for node in sim.running() if node.machine)
    assert late <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_that_start_at_once_know_each_other_in_one_and_a_half_seconds(seed: int) -> None:
    sim = SwimWorld(seed, names(100))
    sim.start_all()
    sim.run_for(1.5)
    assert not sim.disagreements()


def test_where_datagrams_do_not_pass_streams_answer_and_nobody_is_suspected() -> None:
    sim = joined(4)
    sim.block_datagrams("n1", "n2")
    sim.run_for(120.0)
    assert sim.world.counts["suspicion"] == 0
    assert sim.world.counts["stream_probe"] > 20
    for name, peer in (("n1", "n2"), ("n2", "n1")):
        machine = sim.nodes[name].machine
        assert machine is not None
        assert machine.stream_only() == [node_id(peer)]
    sim.heal()
    sim.run_for(60.0)
    assert all(not node.machine.stream_only() for node in sim.running() if node.machine)


@pytest.mark.parametrize("one_way", [False, True])
def test_a_cut_between_two_that_others_reach_suspects_nobody(one_way: bool) -> None:
    """Not even when their stream breaks, as it does after a while."""
    sim = joined(10)
    sim.network.cut(["n7"], ["n8"], one_way=one_way)
    sim.run_for(12.0)
    sim.hint("n7", "n8", "reset")
    sim.hint("n8", "n7", "reset")
    sim.run_for(60.0)
    assert sim.world.counts["suspicion"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_who_was_cut_off_and_is_back_suspects_nobody_any_more(seed: int) -> None:
    """Not even for what it asked while it was cut off and asked seldom, being unwell."""
    sim = joined(10, seed)
    sim.cut(["n3"])
    sim.run_for(15.0 + seed / 10)
    sim.heal()
    # As the mesh does once a session is there again.
    sim.feed(sim.nodes["n3"], Join(tuple(node_id(name) for name in names(10) if name != "n3")))
    sim.run_for(1.0)
    before = sim.world.counts["suspicion"]
    sim.run_for(20.0)
    assert sim.world.counts["suspicion"] == before


class LateReader(SwimWorld):
    """What n2 is told it reads ever later, up to half a minute: a process that hardly runs."""

    def feed(self, node: SimNode, event: Event) -> None:
        late = isinstance(event, (PacketIn, StreamAnswered, SyncIn))
        backlog_s = min(30.0, max(0.0, self.world.now - 5.0))
        if node.name == "n2" and late:
            self.world.after(backlog_s, super().feed, node, event)
        else:
            super().feed(node, event)


def test_who_hardly_runs_holds_nobody_dead_who_is_well() -> None:
    sim = LateReader(1, names(10))
    sim.start_all()
    sim.run_for(240.0)
    slow = sim.nodes["n2"].machine
    assert slow is not None
    assert slow.health > 0
    assert sim.world.counts["suspicion"] > 20
    assert sim.world.counts["death"] == 0


@pytest.mark.parametrize("cut", [1, 3])
def test_a_partition_heals_in_a_minute_though_a_thousand_others_are_dead(cut: int) -> None:
    """They died after the partition began: the recent are not those who come back."""
    sim = joined(6)
    some = names(6)[:cut]
    sim.cut(some)
    sim.run_for(60.0)
    stale = []
    for number in range(1_000):
        gone = node_id(f"gone{number}")
        body = encode_meta(Meta(f"gone{number}"))
        for kind in (MemberState.ALIVE, MemberState.DEAD):
            # A node that was there for a moment, and is long gone.
            author = gone if kind is MemberState.ALIVE else node_id("n0")
            said = encode_statement(
                kind, gone, 1, author=author, body=body if kind is MemberState.ALIVE else b""
            )
            stale.append(make_rumour(said, SimSigner(author).sign_rumour(said)).raw)
    for node in sim.running():
        sim.feed(node, SyncIn(node_id("n0"), tuple(stale), answer=True))
        assert len(sim.view(node.name)) == 1_006
    sim.heal()
    sim.run_for(60.0)
    for node in sim.running():
        view = sim.view(node.name)
        assert [view[name] for name in names(6)] == ["alive"] * 6


@pytest.mark.parametrize("cut_s", [40.0, 600.0])
@pytest.mark.parametrize("seed", range(5))
def test_views_agree_again_within_a_minute_after_a_partition(seed: int, cut_s: float) -> None:
    sim = joined(5, seed, faults=LinkFaults(loss=0.05))
    sim.cut(["n0", "n1"])
    sim.run_for(cut_s)
    assert sim.view("n0") == {
        "n0": "alive", "n1": "alive", "n2": "dead", "n3": "dead", "n4": "dead"
    }  # fmt: skip
    assert sim.view("n4")["n0"] == "dead"
    sim.heal()
    sim.run_for(60.0)
    assert not sim.disagreements()


def test_a_paused_member_comes_back_and_everyone_is_told() -> None:
    sim = joined(5)
    sim.pause("n2")
    sim.run_for(60.0)
    assert sim.view("n0")["n2"] == "dead"
    sim.resume("n2")
    sim.run_for(30.0)
    assert not sim.disagreements()


def test_a_rolling_restart_that_says_so_suspects_nobody() -> None:
    sim = joined(5)
    for name in names(5):
        for node in sim.running():
            if node.name != name:
                sim.hint(node.name, name, "restarting", 10.0)
        sim.crash(name)
        sim.run_for(4.0)
        sim.start(name, *(other for other in names(5) if other != name))
        sim.run_for(2.0)
    assert sim.world.counts["suspicion"] == 0
    sim.run_for(10.0)
    assert not sim.disagreements()


def test_those_who_left_stay_left() -> None:
    sim = joined(5)
    sim.leave("n3")
    sim.run_for(300.0)
    assert {sim.view(node.name)["n3"] for node in sim.running()} == {"left"}
    sim.start("n3", "n0")
    sim.run_for(5.0)
    assert not sim.disagreements()


def test_a_late_joiner_learns_of_the_dead_and_the_left() -> None:
    sim = SwimWorld(1, names(5))
    for name in names(4):
        sim.start(name, "n0")
    sim.run_for(5.0)
    sim.crash("n1")
    sim.leave("n2")
    sim.run_for(30.0)
    sim.start("n4", "n0")
    sim.run_for(5.0)
    assert sim.view("n4") == sim.view("n0")
    assert sim.world.counts["death"] == 2, "the joiner declared nobody dead itself"


def test_an_idle_member_sends_little() -> None:
    sim = joined(5)
    sim.run_for(30.0)
    before = sim.network.sent
    sim.run_for(100.0)
    assert (sim.network.sent - before) / 5 / 100.0 <= 2.2


def test_a_hundred_see_each_other_within_five_seconds() -> None:
    sim = SwimWorld(1, names(100))
    sim.start_all()
    sim.run_for(5.0)
    machine = sim.nodes["n99"].machine
    assert machine is not None
    assert len(machine.alive()) == 100
    assert not sim.disagreements()
    assert machine.get(node_id("n42")).state is MemberState.ALIVE  # type: ignore[union-attr]
