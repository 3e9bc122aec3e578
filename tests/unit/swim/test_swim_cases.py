"""Behaviours published by the suites of memberlist, foca and chitchat, as given -> then."""

from __future__ import annotations

import pytest
from swim_bench import ALIVE, DEAD, LEFT, SUSPECT, Bench, node, rumour

from swarmd.base.machine import SetTimer
from swarmd.mesh.swim.broadcasts import BroadcastQueue
from swarmd.mesh.swim.events import SuspicionDue
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.swim.suspicion import (
    LocalHealth,
    Suspicion,
    retransmit_limit,
    suspicion_min_s,
    suspicion_s,
    sync_scale,
)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_1_a_new_member_joins_once_and_is_passed_on(bench: Bench) -> None:
    bench.tell(rumour(ALIVE, "x", 1))
    assert bench.state("x") == (ALIVE, 1)
    assert [change.joined for change in bench.changes] == [True]
    assert bench.queued == [(ALIVE, 1)]


def test_2_only_a_higher_incarnation_clears_a_suspicion(bench: Bench) -> None:
    bench.after_telling(rumour(ALIVE, "x", 1), rumour(SUSPECT, "x", 1))
    bench.tell(rumour(ALIVE, "x", 1))
    assert bench.state("x") == (SUSPECT, 1)
    assert bench.queued == []
    bench.tell(rumour(ALIVE, "x", 2))
    assert bench.state("x") == (ALIVE, 2)
    assert bench.changed_at("x") == bench.now
    assert [change.joined for change in bench.changes] == [False]
    assert bench.queued == [(ALIVE, 2)]


def test_3_alive_again_is_no_event(bench: Bench) -> None:
    bench.after_telling(rumour(ALIVE, "x", 1))
    changed_at = bench.changed_at("x")
    bench.tell(rumour(ALIVE, "x", 2))
    assert bench.changed_at("x") == changed_at
    assert bench.changes == []
    assert bench.queued == [(ALIVE, 2)]


def test_4_other_meta_is_one_update(bench: Bench) -> None:
    bench.after_telling(rumour(ALIVE, "x", 1, "val1"))
    bench.tell(rumour(ALIVE, "x", 2, "val2"))
    assert len(bench.changes) == 1
    change = bench.changes[0]
    assert change.before is not None
    assert change.after is not None
    assert (change.before.tags, change.after.tags) == ((("value", "val1"),), (("value", "val2"),))
    assert not change.joined


@pytest.mark.parametrize("kind", [SUSPECT, DEAD, LEFT])
def test_5_accusations_create_nobody(bench: Bench, kind: MemberState) -> None:
    bench.tell(rumour(kind, "x", 1))
    assert bench.machine.get(node("x")) is None
    assert bench.queued == []


def test_6_a_suspect_that_says_nothing_is_dead(bench: Bench) -> None:
    bench.after_telling(rumour(ALIVE, "x", 1))
    effects = bench.tell(rumour(SUSPECT, "x", 1))
    assert bench.state("x") == (SUSPECT, 1)
    assert bench.queued == [(SUSPECT, 1)]
    [timer] = [e for e in effects if isinstance(e, SetTimer) and isinstance(e.event, SuspicionDue)]
    bench.now += timer.delay_s
    bench.handle(timer.event)
    assert bench.state("x") == (DEAD, 1)
    assert bench.queued == [(DEAD, 1)]


def test_7_the_same_suspicion_again_is_no_news(bench: Bench) -> None:
    bench.after_telling(rumour(ALIVE, "x", 1), rumour(SUSPECT, "x", 1))
    changed_at = bench.changed_at("x")
    bench.tell(rumour(SUSPECT, "x", 1))
    assert bench.changed_at("x") == changed_at
    assert bench.queued == []


@pytest.mark.parametrize("kind", [SUSPECT, DEAD, LEFT])
def test_8_and_9_old_accusations_are_stale(bench: Bench, kind: MemberState) -> None:
    bench.after_telling(rumour(ALIVE, "x", 10))
    bench.tell(rumour(kind, "x", 1))
    assert bench.state("x") == (ALIVE, 10)
    assert bench.queued == []


def test_10_dead_is_one_leave(bench: Bench) -> None:
    bench.after_telling(rumour(ALIVE, "x", 1))
    bench.tell(rumour(DEAD, "x", 1))
    assert bench.state("x") == (DEAD, 1)
    assert [change.failed for change in bench.changes] == [True]
    assert bench.queued == [(DEAD, 1)]


def test_11_the_dead_do_not_rise_at_the_same_incarnation(bench: Bench) -> None:
    bench.after_telling(rumour(ALIVE, "x", 10), rumour(DEAD, "x", 10))
    bench.tell(rumour(ALIVE, "x", 10))
    assert bench.state("x") == (DEAD, 10)
    bench.tell(rumour(ALIVE, "x", 11))
    assert bench.state("x") == (ALIVE, 11)
    assert [change.joined for change in bench.changes] == [True]


def test_12_confirmations_shorten_a_suspicion() -> None:
    suspicion = Suspicion(node("a"), 0.0, wanted=3, min_s=0.5, max_s=2.0)
    due = [suspicion.due_at()]
    assert not suspicion.confirm(node("a"))
    for accuser in "bcd":
        assert suspicion.confirm(node(accuser))
        assert not suspicion.confirm(node(accuser))
        due.append(suspicion.due_at())
    assert not suspicion.confirm(node("e"))
    assert due == pytest.approx([2.0, 1.25, 0.81, 0.5], abs=0.005)


@pytest.mark.parametrize(
    ("confirmed", "elapsed", "remaining"), [(0, 0, 30), (1, 2, 14), (2, 3, 4.81), (3, 4, -2)]
)
def test_13_remaining_suspicion(confirmed: int, elapsed: float, remaining: float) -> None:
    assert suspicion_s(confirmed, 3, 2, 30) - elapsed == pytest.approx(remaining, abs=0.01)


def test_14_where_nobody_can_confirm_it_is_as_short_as_can_be() -> None:
    suspicion = Suspicion(node("a"), 0.0, wanted=0, min_s=0.5, max_s=2.0)
    assert suspicion.due_at() == 0.5
    assert not suspicion.confirm(node("b"))


def test_15_local_health_stays_in_its_bounds() -> None:
    health = LocalHealth(8)
    scores = []
    for delta in (0, -1, -10, +1, -1, +10, -1):
        health.adjust(delta)
        scores.append(health.score)
        assert health.scale(2.0) == (health.score + 1) * 2.0
    assert scores == [0, 0, 0, 1, 0, 7, 6]


def test_16_a_newer_rumour_takes_the_place_of_the_older() -> None:
    queue = BroadcastQueue()
    for name in ("test", "foo", "bar", "test"):
        queue.push(rumour(SUSPECT, name, 1))
    assert len(queue) == 3
    assert [r.subject for r in queue.rumours()] == [node("foo"), node("bar"), node("test")]


def test_17_how_costs_grow_with_members() -> None:
    assert [retransmit_limit(3, n) for n in (0, 1, 99)] == [0, 3, 6]
    timeouts = [suspicion_min_s(1, n, 1.0) for n in (10, 50, 100, 1000)]
    assert timeouts == pytest.approx([1.0, 1.698, 2.0, 3.0], abs=0.001)
    assert [sync_scale(n) for n in (1, 32, 33, 64, 65, 128)] == [1, 1, 2, 2, 3, 3]


def test_more_than_silence_against_it_ends_the_stretch_of_a_suspicion() -> None:
    def stretched() -> Suspicion:
        one = Suspicion(node("a"), 0.0, wanted=2, min_s=4.0, max_s=24.0)
        assert one.stretch(late=False)
        assert one.due_at() == 48.0
        return one

    late, early, unstretched = (
        stretched(),
        stretched(),
        Suspicion(node("a"), 0.0, wanted=2, min_s=4.0, max_s=24.0),
    )
    late.shorten(30.5)
    assert late.due_at() == 30.5, "it still gets its time to object"
    early.shorten(10.5)
    assert early.due_at() == 10.5
    unstretched.shorten(10.5)
    assert not unstretched.stretch(late=False)
    assert not early.stretch(late=False)


def test_one_who_confirms_is_not_enough_for_a_node_that_was_late() -> None:
    """Two that hardly run would hold the others dead together."""

    def confirmed_by(*others: str, late: bool) -> tuple[bool, float]:
        one = Suspicion(node("a"), 0.0, wanted=2, min_s=4.0, max_s=24.0)
        for other in others:
            one.confirm(node(other))
        return one.stretch(late=late), one.due_at()

    assert confirmed_by("b", late=False) == (False, pytest.approx(11.4, abs=0.1))
    assert confirmed_by("b", late=True) == (True, pytest.approx(22.8, abs=0.1))
    assert confirmed_by("b", "c", late=True) == (False, 4.0)
    one = Suspicion(node("a"), 0.0, wanted=2, min_s=4.0, max_s=24.0)
    assert one.stretch(late=True)
    for other, due_at in (("b", 22.8), ("c", 4.0)):
        one.confirm(node(other))
        assert one.due_at() == pytest.approx(due_at, abs=0.1)
