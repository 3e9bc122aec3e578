"""What rumours make of a view: behaviours that the suites of memberlist, serf and foca hold.

docs/membership.md lists their cases one by one.
"""

from __future__ import annotations

import pytest
from swim_bench import ALIVE, DEAD, LEFT, SUSPECT, Bench, node, rumour, told

from swarmd.base.machine import SetTimer
from swarmd.mesh.swim import members
from swarmd.mesh.swim.events import (
    Changed,
    GossipTick,
    Leave,
    NewsTick,
    PacketIn,
    Refused,
    SetMeta,
    SuspicionDue,
)
from swarmd.mesh.swim.messages import (
    PACKETS,
    Gossip,
    MemberState,
    Meta,
    Rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.mesh.swim.suspicion import retransmit_limit

START = 1 << 32
OLDER, SAME, NEWER = 9, 10, 11


@pytest.fixture
def bench() -> Bench:
    return Bench()


def said(name: str, incarnation: int, meta: Meta) -> Rumour:
    """What a member says of itself."""
    body = encode_meta(meta)
    statement = encode_statement(ALIVE, node(name), incarnation, author=node(name), body=body)
    return make_rumour(statement, bytes(64))


# ---- every pair of state and rumour -----------------------------------------------------

# What a member held so at incarnation 10 becomes when it is called so at 9, 10 and 11; None
# where that changes nothing. As memberlist has it: also the dead rise at a higher incarnation.
OUTCOMES = {
    (ALIVE, ALIVE): (None, None, ALIVE),
    (ALIVE, SUSPECT): (None, SUSPECT, SUSPECT),
    (ALIVE, DEAD): (None, DEAD, DEAD),
    (ALIVE, LEFT): (None, LEFT, LEFT),
    (SUSPECT, ALIVE): (None, None, ALIVE),
    (SUSPECT, SUSPECT): (None, None, None),  # The same accuser again.
    (SUSPECT, DEAD): (None, DEAD, DEAD),
    (SUSPECT, LEFT): (None, LEFT, LEFT),
    (DEAD, ALIVE): (None, None, ALIVE),
    (DEAD, SUSPECT): (None, None, None),
    (DEAD, DEAD): (None, None, None),
    (DEAD, LEFT): (None, LEFT, LEFT),
    (LEFT, ALIVE): (None, None, ALIVE),
    (LEFT, SUSPECT): (None, None, None),
    (LEFT, DEAD): (None, None, None),
    (LEFT, LEFT): (None, None, None),
}


@pytest.mark.parametrize("incarnation", [OLDER, SAME, NEWER])
@pytest.mark.parametrize("kind", list(MemberState))
@pytest.mark.parametrize("state", list(MemberState))
def test_each_rumour_about_each_state_ends_as_published(
    bench: Bench, state: MemberState, kind: MemberState, incarnation: int
) -> None:
    bench.know("a", "b", "c")
    bench.after_telling(rumour(ALIVE, "x", SAME))
    if state is not ALIVE:
        bench.after_telling(rumour(state, "x", SAME))
    assert bench.state("x") == (state, SAME)
    changed_at = bench.changed_at("x")
    bench.tell(rumour(kind, "x", incarnation))
    outcome = OUTCOMES[state, kind][incarnation - OLDER]
    if outcome is None:
        assert bench.state("x") == (state, SAME)
        assert (bench.queued, bench.changes) == ([], [])
    else:
        assert bench.state("x") == (outcome, incarnation)
        assert bench.queued == [(kind, incarnation)]
    moved = outcome is not None and outcome is not state
    assert (bench.changed_at("x") != changed_at) == moved
    assert len(bench.changes) == moved


# ---- oneself ----------------------------------------------------------------------------


def test_ones_own_word_coming_back_is_no_news(bench: Bench) -> None:
    [own] = [bench.machine._ledger.self_record.alive]
    assert bench.tell(own) == []
    assert bench.queued == []


def test_another_word_at_ones_own_incarnation_is_outranked(bench: Bench) -> None:
    """As if an earlier life had said something else, and counted its starts wrongly."""
    bench.know("peer")
    bench.tell(rumour(ALIVE, "me", START, "wrong"))
    assert bench.state("me") == (ALIVE, START + 1)
    me = bench.machine.get(node("me"))
    assert me is not None
    assert me.tags == ()
    assert bench.queued == [(ALIVE, START + 1)]


def test_news_of_an_earlier_life_changes_nothing(bench: Bench) -> None:
    for kind in MemberState:
        assert bench.tell(rumour(kind, "me", START - 1)) == []
    assert bench.state("me") == (ALIVE, START)
    assert len(bench.machine.members()) == 1


def test_the_same_doubt_twice_is_answered_once(bench: Bench) -> None:
    bench.know("peer")
    for _ in range(2):
        bench.tell(rumour(SUSPECT, "me", START))
        assert bench.state("me") == (ALIVE, START + 1)
    assert bench.machine.health == 1


def test_the_answer_to_a_doubt_goes_at_once_to_everybody(bench: Bench) -> None:
    names = [f"n{n}" for n in range(10)]
    bench.know(*names)
    bench.handle(NewsTick())
    bench.tell(rumour(SUSPECT, "me", START))
    assert bench.timer(NewsTick).delay_s <= 0.1 * bench.config.gossip_interval_s
    bench.elapse(NewsTick)
    for name in names:
        assert told(bench.sent(name)[0])[0] == (node("me"), ALIVE, START + 1)


def test_a_new_word_about_oneself_goes_at_once_to_everybody(bench: Bench) -> None:
    names = [f"n{n}" for n in range(10)]
    bench.know(*names)
    bench.handle(NewsTick())
    bench.handle(SetMeta(Meta("me", addresses=(("127.0.0.2", 7575),))))
    bench.elapse(NewsTick)
    for name in names:
        assert told(bench.sent(name)[0])[0] == (node("me"), ALIVE, START + 1)


def test_who_is_told_of_its_death_by_one_it_holds_dead_answers(bench: Bench) -> None:
    """Else two that once lost each other would tell each other so for ever."""
    bench.know("x", "y")
    bench.after_telling(rumour(DEAD, "x", 1))
    bench.get("x", Gossip([rumour(DEAD, "me", START, by="x").raw]))
    assert bench.state("me") == (ALIVE, START + 1)
    assert bench.state("x") == (DEAD, 1)


def test_a_goodbye_goes_to_each_once_at_a_time(bench: Bench) -> None:
    bench.know("x")
    bench.handle(Leave())
    assert len(bench.sent("x")) == len(bench.sent()) == 1


def test_who_has_left_is_not_brought_back_by_its_own_old_word(bench: Bench) -> None:
    bench.know("x")
    bench.handle(Leave())
    bench.tell(rumour(ALIVE, "me", START + 1))
    assert bench.state("me") == (LEFT, START)


# ---- others -----------------------------------------------------------------------------


def test_who_left_may_return_elsewhere_and_as_something_else(bench: Bench) -> None:
    before = Meta("x", addresses=(("127.0.0.1", 8000),), tags=(("role", "foo"),))
    after = Meta("x", addresses=(("127.0.0.2", 9000),), tags=(("role", "bar"),))
    bench.after_telling(said("x", 1, before), rumour(LEFT, "x", 1))
    bench.tell(said("x", 3, after))
    member = bench.machine.get(node("x"))
    assert member is not None
    assert (member.state, member.addresses) == (ALIVE, after.addresses)
    assert member.tags == after.tags
    assert [change.joined for change in bench.changes] == [True]


def test_a_live_member_may_move_without_leaving(bench: Bench) -> None:
    bench.after_telling(said("x", 1, Meta("x", addresses=(("127.0.0.1", 8000),))))
    bench.tell(said("x", 2, Meta("x", addresses=(("127.0.0.2", 9000),))))
    assert bench.machine.addresses(node("x")) == (("127.0.0.2", 9000),)
    [change] = bench.changes
    assert not change.joined


def test_an_old_word_does_not_move_a_member_back(bench: Bench) -> None:
    bench.after_telling(said("x", 2, Meta("x", addresses=(("127.0.0.2", 9000),))))
    bench.tell(said("x", 1, Meta("x", addresses=(("127.0.0.1", 8000),))))
    bench.tell(said("x", 2, Meta("x", addresses=(("127.0.0.1", 8000),))))
    assert bench.machine.addresses(node("x")) == (("127.0.0.2", 9000),)


def test_two_of_one_name_or_address_are_two_members(bench: Bench) -> None:
    """A member is its key. Who speaks under another's name takes nothing from it."""
    meta = Meta("same", addresses=(("127.0.0.1", 8000),))
    bench.tell(said("x", 1, meta), said("y", 9, meta))
    assert bench.state("x") == (ALIVE, 1)
    assert bench.state("y") == (ALIVE, 9)
    bench.tell(rumour(DEAD, "y", 9))
    assert bench.state("x") == (ALIVE, 1)


def test_suspects_are_members_but_not_among_the_alive(bench: Bench) -> None:
    bench.know("s", "d", "l", "a")
    bench.tell(rumour(SUSPECT, "s", 1), rumour(DEAD, "d", 1), rumour(LEFT, "l", 1))
    assert len(bench.machine.members()) == 5
    assert bench.machine.alive() == [node("me"), node("a")]
    assert bench.machine._ledger.members.present_count == 3


def test_what_one_who_is_held_dead_says_of_others_is_believed(bench: Bench) -> None:
    """Each word stands under its author's signature, whoever passes it on."""
    bench.know("x")
    bench.after_telling(rumour(DEAD, "x", 1))
    bench.get("x", Gossip([rumour(ALIVE, "y", 1).raw]))
    assert bench.state("y") == (ALIVE, 1)


def test_goodbyes_in_the_wrong_order_are_passed_on_once(bench: Bench) -> None:
    """Else two nodes that heard them in different orders would pass them on for ever."""
    bench.know("x")
    bench.tell(rumour(LEFT, "x", 5))
    assert bench.queued == [(LEFT, 5)]
    bench.clear()
    bench.tell(rumour(LEFT, "x", 3), rumour(LEFT, "x", 5), rumour(LEFT, "x", 7))
    assert bench.queued == []
    assert bench.state("x") == (LEFT, 5)


def test_of_those_who_left_the_longest_gone_are_forgotten_and_no_dead_for_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "DEAD_MAX", 2)
    bench.know("dead", "a", "b", "c")
    for kind, name in ((DEAD, "dead"), (LEFT, "a"), (LEFT, "b"), (LEFT, "c")):
        bench.now += 1
        bench.tell(rumour(kind, name, 1))
    assert bench.machine.get(node("a")) is None
    assert bench.state("dead") == (DEAD, 1)
    assert [bench.state(name)[0] for name in "bc"] == [LEFT, LEFT]
    forgotten = bench.changes[-1]
    assert forgotten.after is None


def test_who_was_forgotten_can_be_met_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "DEAD_MAX", 1)
    bench.know("a", "b")
    bench.after_telling(rumour(DEAD, "a", 1), rumour(DEAD, "b", 1))
    assert bench.machine.get(node("a")) is None
    bench.tell(rumour(ALIVE, "a", 2))
    assert bench.state("a") == (ALIVE, 2)
    assert bench.changes[-1].joined


# ---- suspicion --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "confirmations", "lasts_s"),
    [
        (2, 0, 4.0),  # Nobody is left to confirm it.
        (3, 0, 24.0),
        (3, 1, 11.38),
        (3, 2, 4.0),
        (9, 0, 24.0),
        (9, 1, 11.38),
        (9, 2, 4.0),
        (9, 5, 4.0),  # More than are wanted shorten it no more.
    ],
)
def test_a_suspicion_lasts_as_the_number_of_accusers_lets_it(
    bench: Bench, others: int, confirmations: int, lasts_s: float
) -> None:
    names = [f"n{n}" for n in range(others)]
    bench.know(*names)
    began_at = bench.now
    bench.tell(rumour(SUSPECT, "n0", 1, by="n1"))
    due = bench.timer(SuspicionDue)
    for number in range(confirmations):
        bench.now += 0.1
        effects = bench.tell(rumour(SUSPECT, "n0", 1, by=f"by{number}"))
        timers = [e for e in effects if isinstance(e, SetTimer)]
        due = next((t for t in timers if isinstance(t.event, SuspicionDue)), due)
    bench.now = began_at + lasts_s - 0.05
    bench.handle(due.event)
    assert bench.state("n0") == (SUSPECT, 1)
    bench.now = began_at + lasts_s + 0.05
    bench.handle(due.event)
    assert bench.state("n0") == (DEAD, 1)


def test_a_confirmation_that_comes_too_late_ends_the_suspicion_at_once(bench: Bench) -> None:
    bench.know("x", "y", "z")
    bench.tell(rumour(SUSPECT, "x", 1, by="y"))
    bench.now += 20.0
    for accuser in "zw":
        bench.tell(rumour(SUSPECT, "x", 1, by=accuser))
    assert bench.timer(SuspicionDue).delay_s == 0.0


def test_a_doubt_at_a_higher_incarnation_is_a_confirmation_only_by_another(bench: Bench) -> None:
    bench.know("x", "y", "z")
    bench.after_telling(rumour(SUSPECT, "x", 1, by="y"))
    bench.tell(rumour(SUSPECT, "x", 2, by="y"))
    assert bench.queued == []
    bench.tell(rumour(SUSPECT, "x", 2, by="z"))
    assert bench.queued == [(SUSPECT, 2)]


# ---- what is no packet ------------------------------------------------------------------


def test_what_trails_a_packet_makes_it_malformed(bench: Bench) -> None:
    data = PACKETS.encode(Gossip([rumour(ALIVE, "x", 1).raw]))
    assert bench.handle(PacketIn(node("peer"), data + b"\0")) == [Refused("malformed")]
    assert bench.handle(PacketIn(node("peer"), data[:-1])) == [Refused("malformed")]
    assert bench.machine.get(node("x")) is None
    bench.handle(PacketIn(node("peer"), data))
    assert bench.state("x") == (ALIVE, 1)


def test_a_bad_rumour_in_a_packet_spoils_no_other(bench: Bench) -> None:
    good, bad = rumour(ALIVE, "x", 1).raw, b"\xc1junk"
    effects = bench.get("peer", Gossip([bad, good, good[:-1]]))
    assert [e for e in effects if isinstance(e, Refused)] == [Refused("malformed")] * 2
    assert [e.joined for e in effects if isinstance(e, Changed)] == [True]


# ---- gossip -----------------------------------------------------------------------------


def test_news_goes_to_a_few_different_members_at_a_time(bench: Bench) -> None:
    bench.know(*[f"n{n}" for n in range(10)])
    bench.tell(rumour(ALIVE, "x", 1))
    bench.handle(GossipTick())
    fanout = bench.config.gossip_fanout
    heard = [f"n{n}" for n in range(10) if bench.sent(f"n{n}")] + ["x"] * bool(bench.sent("x"))
    assert len(heard) == len(bench.sent()) == fanout
    assert all((node("x"), ALIVE, 1) in told(packet) for packet in bench.sent())


def test_gossip_goes_on_as_long_as_there_is_news_and_then_rests(bench: Bench) -> None:
    bench.know("a", "b")
    bench.tell(rumour(ALIVE, "x", 1))
    limit = retransmit_limit(bench.config.retransmit_mult, 4)
    times = 0
    bench.handle(GossipTick())
    while bench.timers(GossipTick):
        assert bench.timer(GossipTick).delay_s == bench.config.gossip_interval_s
        times += sum((node("x"), ALIVE, 1) in told(packet) for packet in bench.sent())
        assert times <= limit
        bench.elapse(GossipTick)
    times += sum((node("x"), ALIVE, 1) in told(packet) for packet in bench.sent())
    assert times == limit
    assert bench.queued == []
    assert bench.handle(GossipTick()) == []
