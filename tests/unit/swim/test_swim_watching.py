"""Whose connections are kept, which of the dead are asked again, and who is drawn by lot."""

from __future__ import annotations

from collections import Counter

import pytest
from swim_bench import ALIVE, DEAD, LEFT, SUSPECT, Bench, node, rumour, told

from swarmd.base.machine import SetTimer
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import (
    HowClosed,
    Leave,
    RetryTick,
    RoundDue,
    Started,
    StreamClosed,
)
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.members import MemberTable, Record
from swarmd.mesh.swim.messages import MemberState, Meta
from swarmd.mesh.swim.watching import WATCHED

NAMES = [f"n{n}" for n in range(12)]


def swarm() -> dict[str, Bench]:
    benches = {}
    for name in NAMES:
        bench = Bench()
        bench.machine = SwimMachine(
            node(name), SwimConfig(), make_rng(1), bench.signer, Meta(name), 1, now=0.0
        )
        benches[name] = bench.know(*(other for other in NAMES if other != name))
    return benches


# ---- whom to watch ----------------------------------------------------------------------


def test_each_keeps_a_few_connections_and_both_sides_know_which() -> None:
    benches = swarm()
    for name, bench in benches.items():
        watched = bench.machine.watched()
        assert len(watched) == WATCHED
        assert node(name) not in watched
        for other, peer in benches.items():
            if other == name:
                continue
            kept = bench.machine.keeps(node(other))
            assert kept == peer.machine.keeps(node(name))
            assert kept == (node(other) in watched or node(name) in peer.machine.watched())


def test_the_order_of_arrival_changes_nothing_and_a_death_little() -> None:
    one, other = Bench().know(*NAMES), Bench().know(*reversed(NAMES))
    before = one.machine.watched()
    assert before == other.machine.watched()
    one.tell(rumour(SUSPECT, "n0", 1), rumour(SUSPECT, "n1", 1))
    assert one.machine.watched() == before
    gone = next(name for name in NAMES if node(name) == before[1])
    one.tell(rumour(DEAD, gone, 1))
    after = one.machine.watched()
    assert len(after) == WATCHED
    assert set(before) - set(after) == {node(gone)}
    one.tell(rumour(ALIVE, gone, 2))
    assert one.machine.watched() == before


def test_nobody_is_watched_who_is_not_there() -> None:
    bench = Bench()
    assert bench.machine.watched() == []
    bench.know("x", "y")
    assert sorted(bench.machine.watched()) == sorted([node("x"), node("y")])
    bench.tell(rumour(LEFT, "x", 1))
    assert bench.machine.watched() == [node("y")]
    assert not bench.machine.keeps(node("x"))
    assert not bench.machine.keeps(node("stranger"))
    bench.handle(Leave())
    assert bench.machine.watched() == []


@pytest.mark.parametrize(("how", "quiet_s"), [("restarting", 0.0), ("leaving", 0.0)])
def test_who_says_goodbye_to_us_alone_is_not_suspected_while_it_comes_round(
    how: HowClosed, quiet_s: float
) -> None:
    bench = Bench().know("x")
    bench.handle(StreamClosed(node("x"), how, quiet_s))
    bench.handle(StreamClosed(node("x"), "refused"))
    bench.handle(Started())
    bench.turn(0)
    bench.now += bench.config.probe_interval_s
    bench.turn(1)
    assert bench.state("x") == (ALIVE, 1)
    for number in range(2, 5):
        bench.now += bench.config.probe_interval_s
        bench.turn(number)
        for over in bench.timers(RoundDue):
            bench.handle(over.event)
    assert bench.state("x") == (SUSPECT, 1)


def test_a_leaver_tells_the_dead_too_for_they_may_only_have_been_cut_off() -> None:
    bench = Bench().know("x", "y")
    bench.tell(rumour(DEAD, "x", 1), rumour(DEAD, "y", 1))
    bench.clear()
    bench.handle(Leave())
    for name in "xy":
        [goodbye] = bench.sent(name)
        assert (node("me"), LEFT, 1 << 32) in told(goodbye)


# ---- the dead ---------------------------------------------------------------------------


def graveyard(count: int, present: int = 1) -> Bench:
    bench = Bench()
    dead = [f"d{n}" for n in range(count)]
    bench.know(*dead, *(f"p{n}" for n in range(present - 1)))
    for name in dead:
        bench.now += 1.0
        bench.tell(rumour(DEAD, name, 1))
    bench.clear()
    return bench


def asked_within(bench: Bench, seconds: float) -> Counter[bytes]:
    asked: Counter[bytes] = Counter()
    end = bench.now + seconds
    while bench.now < end:
        bench.handle(RetryTick())
        asked.update(e.peer for e in bench.effects if not isinstance(e, SetTimer))  # type: ignore[attr-defined]
        [timer] = [e for e in bench.effects if isinstance(e, SetTimer)]
        bench.now += timer.delay_s
    return asked


@pytest.mark.parametrize("count", [1, 3, 4, 50, 1_000])
def test_all_the_dead_are_tried_in_time_however_many_there_are(count: int) -> None:
    bench = graveyard(count)
    asked = asked_within(bench, 4.5 * bench.config.retry_interval_s)
    assert len(asked) == count
    if count >= 50:
        recent = sum(asked[node(f"d{n}")] for n in range(count - 8, count)) / 8
        assert recent > 2 * sum(asked.values()) / count


def test_a_few_dead_cost_a_few_packets_and_many_share_the_work() -> None:
    few = graveyard(10)
    assert sum(asked_within(few, 40.0).values()) <= 8 * few.config.retry_dead
    alone = sum(asked_within(graveyard(400), 40.0).values())
    shared = sum(asked_within(graveyard(400, present=16), 40.0).values())
    assert shared < alone / 4


# ---- drawing by lot ---------------------------------------------------------------------


def table(count: int) -> MemberTable:
    made = MemberTable(node("me"), make_rng(1))
    made.add(Record(rumour(ALIVE, "me", 1), 0.0))
    for number in range(count):
        made.add(Record(rumour(ALIVE, f"n{number}", 1), 0.0))
    return made


@pytest.mark.parametrize("count", [5, 200])
def test_members_are_drawn_evenly_and_none_twice(count: int) -> None:
    members = table(count)
    drawn: Counter[bytes] = Counter()
    rounds = 40 * count
    for _ in range(rounds):
        chosen = members.pick_alive(3, but=node("n1"))
        assert len(set(chosen)) == len(chosen) == 3
        drawn.update(chosen)
    assert node("me") not in drawn
    assert node("n1") not in drawn
    assert len(drawn) == count - 1
    assert min(drawn.values()) > 0.6 * 3 * rounds / count


def test_hearers_are_the_present_and_those_who_died_just_now() -> None:
    members = table(6)
    for number, died_at in ((0, 1.0), (1, 5.0), (2, 6.0)):
        record = members.get(node(f"n{number}"))
        assert record is not None

        def die(r: Record, at: float = died_at) -> None:
            r.state, r.changed_at = MemberState.DEAD, at

        members.change(record, die)
    assert members.dead() == [node("n2"), node("n1"), node("n0")]
    everybody = set(members.pick_hearers(9, dead_since=4.0))
    assert everybody == {node(name) for name in ("n1", "n2", "n3", "n4", "n5")}
    assert set(members.pick_present(9)) == {node(name) for name in ("n3", "n4", "n5")}
    assert members.present_count == 4
