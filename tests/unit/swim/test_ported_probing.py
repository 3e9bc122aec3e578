"""Who is asked and which answers count: behaviours that memberlist's and foca's suites hold.

docs/membership.md lists their cases one by one.
"""

from __future__ import annotations

import pytest
from swim_bench import ALIVE, DEAD, LEFT, SUSPECT, Bench, node, rumour, told

from swarmd.base.machine import Send
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.events import (
    HintTick,
    NewsTick,
    ProbeTick,
    ProbeTimeout,
    RelayTimeout,
    RoundDue,
    SetMeta,
    StreamClosed,
    TrustChanged,
)
from swarmd.mesh.swim.messages import (
    Ack,
    Gossip,
    MemberState,
    Meta,
    Nack,
    Ping,
    PingFor,
)
from swarmd.mesh.swim.probes import Pending, Pendings

START = 1 << 32


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- answers ----------------------------------------------------------------------------


def test_a_ping_is_answered_under_its_own_number_to_who_asked(bench: Bench) -> None:
    bench.know("x", "y")
    members = bench.machine._ledger.members
    view = members.view_digest()
    bench.get("x", Ping(41, view, []))
    [effect] = [effect for effect in bench.effects if isinstance(effect, Send)]
    assert effect.peer == node("x")
    [ack] = bench.sent("x")
    assert (ack.sequence, ack.view, ack.rumours) == (41, view, [])
    assert ack.whole == bench.machine._post.whole()


def test_an_answer_carries_the_news_that_waits(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(ALIVE, "y", 3))
    bench.get("x", Ping(41, bench.machine._ledger.members.view_digest(), []))
    assert told(bench.sent("x")[0]) == [(node("y"), ALIVE, 3)]


def test_a_refusal_carries_nothing_but_its_number(bench: Bench) -> None:
    bench.know("x", "asker")
    bench.get("asker", PingFor(77, node("x"), []))
    relayed = bench.timer(RelayTimeout)
    bench.tell(rumour(ALIVE, "y", 3), rumour(SUSPECT, "asker", 1))
    bench.handle(relayed.event)
    assert bench.sent("asker") == [Nack(77)]


@pytest.mark.parametrize("off_by", [-1, 1])
def test_an_answer_under_another_number_does_not_count(bench: Bench, off_by: int) -> None:
    bench.know("x")
    ping = bench.probe()
    assert bench.get("x", Ack(ping.sequence + off_by, ping.view, [])) == []
    bench.turn(1)
    assert bench.state("x") == (SUSPECT, 1)


def test_answers_to_no_question_change_nothing(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(SUSPECT, "me", START))
    assert bench.machine.health == 1
    for packet in (Ack(12, bench.machine._ledger.members.view_digest(), []), Nack(12)):
        assert bench.get("x", packet) == []
    assert bench.machine.health == 1


def test_a_second_answer_counts_no_more_than_the_first(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(SUSPECT, "me", START), rumour(DEAD, "me", START + 9))
    assert bench.machine.health == 2
    ping = bench.probe()
    for _ in range(2):
        bench.get("x", Ack(ping.sequence, bench.machine._ledger.members.view_digest(), []))
    bench.turn(1)
    assert bench.machine.health == 1


def test_a_late_answer_does_not_undo_what_its_absence_meant(bench: Bench) -> None:
    bench.know("x")
    ping = bench.probe()
    bench.turn(1)
    bench.get("x", Ack(ping.sequence, bench.machine._ledger.members.view_digest(), []))
    assert bench.state("x") == (SUSPECT, 1)
    assert bench.machine.health == 1


def test_a_refusal_counts_only_from_a_helper(bench: Bench) -> None:
    bench.know("x", "y", "z")
    ping = bench.probe()
    bench.handle(ProbeTimeout(ping.sequence))
    asked = {name for name in "xyz" if bench.sent(name)}
    [target] = set("xyz") - asked
    for name in (target, "stranger"):
        bench.get(name, Nack(ping.sequence))
    bench.turn(1)
    assert bench.machine.health == 2


def test_an_answer_that_comes_back_twice_is_passed_on_once(bench: Bench) -> None:
    bench.know("x", "asker")
    bench.get("asker", PingFor(77, node("x"), []))
    [ping] = bench.sent("x")
    view = bench.machine._ledger.members.view_digest()
    bench.get("x", Ack(ping.sequence, view, []))
    assert len(bench.sent("asker")) == 1
    bench.get("x", Ack(ping.sequence, view, []))
    assert bench.sent("asker") == []


def test_an_answer_after_the_refusal_is_passed_on_all_the_same(bench: Bench) -> None:
    """The asker may still wait: its own interval is not over."""
    bench.know("x", "asker")
    bench.get("asker", PingFor(77, node("x"), []))
    [ping] = bench.sent("x")
    bench.elapse(RelayTimeout)
    assert bench.sent("asker") == [Nack(77)]
    bench.get("x", Ack(ping.sequence, bench.machine._ledger.members.view_digest(), []))
    assert [packet.sequence for packet in bench.sent("asker")] == [77]


def test_numbers_of_questions_only_rise_and_begin_anywhere() -> None:
    pendings = Pendings(make_rng(1))
    numbers = [pendings.sequence(), pendings.open(Pending("retry", node("x"))), pendings.sequence()]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert Pendings(make_rng(2)).sequence() not in numbers


# ---- whom to ask ------------------------------------------------------------------------


def test_helpers_are_others_and_alive(bench: Bench) -> None:
    bench.know("a", "b", "suspect", "dead", "left")
    bench.tell(rumour(SUSPECT, "suspect", 1), rumour(DEAD, "dead", 1), rumour(LEFT, "left", 1))
    ping = bench.probe()
    [target] = [e.peer for e in bench.effects if isinstance(e, Send)]
    bench.handle(ProbeTimeout(ping.sequence))
    helpers = [effect.peer for effect in bench.effects if isinstance(effect, Send)]
    assert sorted(helpers) == sorted({node("a"), node("b")} - {target})
    assert {packet.target for packet in bench.sent()} == {target}


def test_helpers_are_asked_once_however_often_the_time_is_over(bench: Bench) -> None:
    bench.know("x", "y", "z")
    ping = bench.probe()
    bench.handle(ProbeTimeout(ping.sequence))
    assert len(bench.sent()) == 2
    assert bench.handle(ProbeTimeout(ping.sequence)) == []


def test_suspects_are_probed_in_turn_and_the_gone_are_not(bench: Bench) -> None:
    bench.know("suspect", "dead", "left")
    bench.tell(rumour(SUSPECT, "suspect", 1), rumour(DEAD, "dead", 1), rumour(LEFT, "left", 1))
    bench.probe()
    assert [e.peer for e in bench.effects if isinstance(e, Send)] == [node("suspect")]


def test_nobody_is_asked_about_who_was_evicted_meanwhile(bench: Bench) -> None:
    bench.know("x", "y", "z")
    ping = bench.probe()
    [target] = [e.peer for e in bench.effects if isinstance(e, Send)]
    bench.handle(TrustChanged(frozenset({target})))
    bench.handle(ProbeTimeout(ping.sequence))
    assert bench.sent() == []
    bench.turn(1)
    assert [change.after for change in bench.changes] == [None]


def test_who_says_goodbye_during_its_probe_is_let_go(bench: Bench) -> None:
    """Nobody is asked about it, and its silence is no sign of ill health."""
    bench.know("x")
    ping = bench.probe()
    bench.know("a", "b")
    bench.tell(rumour(LEFT, "x", 1))
    assert bench.handle(ProbeTimeout(ping.sequence)) == []
    bench.turn(1)
    assert bench.machine.health == 0
    assert bench.state("x") == (LEFT, 1)


@pytest.mark.parametrize("kind", [DEAD, LEFT])
def test_who_loses_all_others_during_a_probe_goes_on_when_one_is_there(
    bench: Bench, kind: MemberState
) -> None:
    bench.know("x")
    bench.probe()
    bench.tell(rumour(kind, "x", 1))
    bench.turn(1)
    assert bench.sent() == []
    assert bench.state("x") == (kind, 1)
    bench.know("y")
    bench.turn(2)
    assert [type(packet) for packet in bench.sent("y")] == [Ping]


def test_a_turn_ends_though_its_helpers_were_never_asked(bench: Bench) -> None:
    """The timer between was lost or late: no answer is no answer, and the next turn begins."""
    bench.know("x")
    first = bench.probe()
    bench.turn(1)
    assert bench.state("x") == (SUSPECT, 1)
    [second] = bench.sent("x")
    assert second.sequence > first.sequence
    assert len(bench.timers(ProbeTimeout)) == len(bench.timers(ProbeTick)) == 1


def test_a_new_word_about_oneself_does_not_upset_a_probe(bench: Bench) -> None:
    bench.know("x")
    ping = bench.probe()
    bench.handle(SetMeta(Meta("me", tags=(("a", "b"),))))
    bench.get("x", Ack(ping.sequence, bench.machine._ledger.members.view_digest(), []))
    bench.turn(1)
    assert bench.state("x") == (ALIVE, 1)
    assert len(bench.timers(ProbeTick)) == 1


# ---- health -----------------------------------------------------------------------------


def test_an_unwell_node_probes_more_slowly_until_probes_are_answered(bench: Bench) -> None:
    bench.know("x")
    interval_s = bench.config.probe_interval_s
    bench.tell(rumour(SUSPECT, "me", START), rumour(SUSPECT, "me", START + 5))
    ping = bench.probe()
    intervals = [bench.timer(ProbeTick).delay_s]
    for turn in (1, 2, 3):
        bench.get("x", Ack(ping.sequence, bench.machine._ledger.members.view_digest(), []))
        bench.turn(turn)
        intervals.append(bench.timer(ProbeTick).delay_s)
        [ping] = bench.sent("x")
    assert intervals == [3 * interval_s, 2 * interval_s, interval_s, interval_s]


def test_health_has_a_worst_and_waits_for_an_answer_are_never_longer(bench: Bench) -> None:
    """Nor is a turn that begins again, before which another one begins."""
    bench.know("x")
    bench.probe()
    for turn in range(1, 12):
        bench.turn(turn)
        waits = [timer.delay_s for timer in bench.timers(ProbeTimeout)]
        assert set(waits) == {bench.config.probe_timeout_s}
        assert len(waits) == (1 if turn == 1 else 2)
        [tick] = bench.timers(ProbeTick)
        for over in bench.timers(RoundDue):
            assert over.delay_s == bench.config.probe_interval_s
            bench.handle(over.event)
    assert bench.machine.health == 7
    assert tick.delay_s == 8 * bench.config.probe_interval_s


# ---- the accused is told ----------------------------------------------------------------


def test_a_probe_tells_the_suspect_what_is_said_of_it(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(SUSPECT, "x", 1))
    bench.clear()
    assert told(bench.probe()) == [(node("x"), SUSPECT, 1)]


def test_who_is_asked_to_help_is_told_what_is_said_of_it(bench: Bench) -> None:
    bench.know("x", "asker")
    bench.tell(rumour(SUSPECT, "x", 1), rumour(SUSPECT, "asker", 1))
    bench.clear()
    bench.get("asker", PingFor(77, node("x"), []))
    assert told(bench.sent("x")[0]) == [(node("x"), SUSPECT, 1)]


def test_who_is_declared_dead_hears_of_it_with_the_news(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(DEAD, "x", 1))
    bench.handle(NewsTick())
    [gossip] = bench.sent("x")
    assert isinstance(gossip, Gossip)
    assert told(gossip) == [(node("x"), DEAD, 1)]


def test_a_word_of_a_suspect_that_knows_nothing_of_it_clears_nothing(bench: Bench) -> None:
    bench.know("x")
    bench.tell(rumour(SUSPECT, "x", 1))
    view = bench.machine._ledger.members.view_digest()
    bench.get("x", Ping(5, view, [rumour(ALIVE, "x", 1).raw]))
    assert bench.state("x") == (SUSPECT, 1)
    assert told(bench.sent("x")[0])[0] == (node("x"), SUSPECT, 1)
    bench.get("x", Ping(6, view, [rumour(ALIVE, "x", 2).raw]))
    assert bench.state("x") == (ALIVE, 2)


def test_quick_pings_after_a_reset_say_nothing_about_ones_own_health(bench: Bench) -> None:
    bench.know("x")
    bench.handle(StreamClosed(node("x"), "reset"))
    for _ in range(3):
        bench.elapse(HintTick)
    bench.elapse(RoundDue)
    assert bench.state("x") == (SUSPECT, 1)
    assert bench.machine.health == 0
