"""Nodes that leave: who takes what they hold of what not all hold, and when they may go."""

from __future__ import annotations

import pytest
from crdt_leaving import NAMES, A, B, C, D, ask_again, members, named
from crdt_nodes import key_held_by, talk, turns

from swarmd.base.errors import NotHeld
from swarmd.base.limits import CRDT_SHARDS
from swarmd.state.crdt.events import Heard, Leave, Stay, SyncDue
from swarmd.state.crdt.messages import HandOver, Leaving, Sums, Taken, Vector, shard_of
from swarmd.state.crdt.moving import HAND_OVERS_MAX, LEAVING_S
from swarmd.state.crdt.placement import holders
from swarmd.state.crdt.types.values import AddTo


def test_who_holds_next_takes_a_shard_while_the_node_that_leaves_is_a_member_still() -> None:
    a, b, c, d = members(*NAMES)
    key = key_held_by(A, B, among=[A, B, C, D])
    next_id = next(iter({*holders(named(key), [B, C, D], 2)} - {B}))
    heir = c if next_id == C else d
    a.write(key, AddTo(1))
    talk(a, b, c, d)
    assert heir.value(key) is None
    ask_again(a, b, c, d)
    assert a.machine.partial_shards() == []
    assert a.dropped == [named(key)]
    assert b.value(key) == heir.value(key) == [1]
    assert heir.machine.holding.serves(named(key))
    assert isinstance(a.write(key, AddTo(2)), NotHeld)
    assert set(a.machine.holding.of(named(key))) == {B, next_id}, "whom it has callers ask"
    # That it is gone at last moves nothing any more.
    for node in (b, c, d):
        node.see([B, C, D])
    turns(b, c, d)
    assert b.dropped == c.dropped == d.dropped == []
    assert b.value(key) == heir.value(key) == [1]


def test_two_that_hold_a_shard_leave_at_once_and_others_have_it() -> None:
    a, b, c, d = members(*NAMES)
    key = key_held_by(A, B, among=[A, B, C, D])
    a.write(key, AddTo(1))
    b.write(key, AddTo(2))
    talk(a, b, c, d)
    for _ in range(6):
        for node in (a, b):
            node.now += 1.0
            node.step(Leave())
        talk(a, b, c, d)
    assert a.machine.partial_shards() == b.machine.partial_shards() == []
    assert c.value(key) == d.value(key) == [1, 2]
    assert c.machine.holding.serves(named(key))
    assert c.write(key, AddTo(3)) is None


def test_of_two_that_leave_and_have_not_heard_of_each_other_neither_gives_its_word() -> None:
    a, b = members("n00", "n01")
    key = key_held_by(A, B, among=[A, B])
    a.write(key, AddTo(1))
    talk(a, b)
    for node in (a, b):
        node.now += 1.0
        node.step(Leave())
    asks = [(node, ask) for node in (a, b) for ask in node.told(HandOver)]
    assert len(asks) == 2
    for node, ask in asks:
        other = b if node is a else a
        other.take()
        other.step(Heard(node.id, ask))
        assert other.ignored[-1] == "not_held"
        assert other.told(Taken) == []
    assert a.dropped == b.dropped == []


def test_who_changes_its_mind_holds_what_it_held_and_has_it_back() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b, c)
    ask_again(a, b, c)
    assert a.dropped == [named(key)]
    c.write(key, AddTo(2))
    talk(a, b, c)
    a.step(Stay())
    assert not a.machine.holding.serves(named(key)), "others may have written meanwhile"
    turns(a, b, c)
    assert a.value(key) == b.value(key) == [1, 2]
    assert a.machine.holding.serves(named(key))
    assert c.machine.partial_shards() == []
    a.take()
    a.step(Stay())
    assert a.take() == [], "it stays already"


def test_what_others_said_before_it_changed_its_mind_has_it_drop_nothing() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b, c)
    a.step(Leave())
    round_number = a.told(HandOver)[0].round
    late = [Heard(one, Taken(*named(key), round_number)) for one in (B, C)]
    a.step(Stay())
    a.step(*late)
    assert a.dropped == []
    a.step(Leave())
    a.step(*late)
    assert a.dropped == [], "that was another round"


def test_who_crashes_while_it_leaves_is_a_holder_again() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b, c)
    a.step(Leave())
    talk(a, b, c)
    assert c.value(key) == [1]
    assert a.dropped == []
    a.start()
    a.see([A, B, C])
    for node in (b, c):
        node.now += LEAVING_S
    turns(a, b, c)
    assert c.machine.partial_shards() == []
    assert a.value(key) == b.value(key) == [1]
    assert a.machine.holding.serves(named(key))


def test_who_leaves_is_believed_for_as_long_as_it_says_so() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    c.step(Heard(A, Leaving(leaves=True)))
    assert c.machine.holding.accepts(named(key))
    c.now += LEAVING_S - 0.1
    c.step(Heard(A, Leaving(leaves=True)))
    c.now += LEAVING_S - 0.1
    c.step(SyncDue())
    assert c.machine.holding.accepts(named(key))
    c.now += 0.1
    c.step(SyncDue())
    assert not c.machine.holding.accepts(named(key))
    # A stranger's word counts for nothing, and in each turn a node that leaves says so to all.
    c.step(Heard(D, Leaving(leaves=True)))
    assert c.machine.holding.of(named(key)) == b.machine.holding.of(named(key))
    a.step(Leave())
    a.take()
    a.step(SyncDue())
    assert a.told(Leaving) == [Leaving(leaves=True)] * 2


def test_who_leaves_waits_for_no_dead_holder_but_for_one_that_lives() -> None:
    a, b, c, d = members(*NAMES)
    key = key_held_by(A, B, among=[A, B, C, D])
    a.write(key, AddTo(1))
    talk(a, b, c, d)
    for node in (a, c, d):
        node.see([A, C, D], [A, B, C, D])
    ask_again(a, c, d)
    assert a.dropped == [named(key)]
    heir = c if C in holders(named(key), [B, C, D], 2) else d
    assert heir.value(key) == [1]


def test_where_no_holder_lives_a_shard_stays_here() -> None:
    a, b = members("n00", "n01")
    key = key_held_by(A, B, among=[A, B])
    a.write(key, AddTo(1))
    talk(a, b)
    a.see([A], [A, B])
    ask_again(a)
    assert a.machine.partial_shards() == [named(key)]
    assert a.machine.holding.takers(named(key)) == ()
    a.step(Stay())
    a.see([A, B])
    ask_again(a, b)
    assert a.machine.partial_shards() == []
    assert b.value(key) == [1]


def test_a_holder_that_dies_while_others_have_taken_a_shard_is_waited_for_no_more() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b, c)
    ask_again(a, b)  # c is silent.
    assert a.dropped == []
    a.see([A, B], [A, B, C])
    ask_again(a, b, count=1)
    assert a.dropped == [named(key)]


def test_a_shard_of_which_nothing_was_ever_seen_keeps_nobody() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.machine._replica.shard(named(key))
    assert a.machine.partial_shards() == []
    ask_again(a, b, c)
    assert a.dropped == [named(key)]


def test_no_shard_waits_for_ever_behind_those_that_are_not_taken() -> None:
    a, b, c = members("n00", "n01", "n02")
    keys = {shard_of(key): key for key in map(str, range(2_000))}
    for key in keys.values():
        for node in (a, b, c):
            if node.machine.holding.serves(named(key)):
                node.write(key, AddTo(1))
                break
        talk(a, b, c)
    there = set(a.machine.partial_shards())
    assert len(there) * 2 > HAND_OVERS_MAX
    asked: set[int] = set()
    for _ in range(2):
        a.step(Leave())
        told = a.told(HandOver)
        assert len(told) <= HAND_OVERS_MAX + 2
        asked |= {one.shard for one in told}
        a.take()
    assert asked == {number for _, number in there}
    assert len(asked) <= CRDT_SHARDS


def test_who_leaves_and_stays_in_turns_has_others_ask_once_in_a_turn() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b, c)
    turns(a, b, c)
    c.take()
    for number in range(20):
        c.step(Heard(A, Leaving(leaves=number % 2 == 0)))
    assert len(c.told(Sums)) <= 2


def test_what_others_fetch_is_progress_and_to_ask_for_the_same_again_is_none() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b)
    a.step(Leave())
    before = a.machine.handed_on
    asks = Heard(C, Vector(*named(key), (), asks=False))
    a.step(asks)
    fetched = a.machine.handed_on
    assert fetched > before
    a.step(asks, asks, Heard(D, Vector(*named(key), (), asks=False)))
    assert a.machine.handed_on == fetched
    ask_again(a, b, c)
    assert a.dropped == [named(key)]
    assert a.machine.handed_on > fetched


def test_who_says_both_all_the_time_keeps_nobody_from_leaving() -> None:
    a, b, c, d = members(*NAMES)
    key = key_held_by(A, B, among=[A, B, C, D])
    a.write(key, AddTo(1))
    talk(a, b, c, d)
    both = [Heard(D, Leaving(leaves=True)), Heard(D, Leaving(leaves=False))]
    for quarter in range(20):
        for node in (a, b, c, d):
            node.now += 0.25
            if quarter % 4 == 0:
                node.step(SyncDue())
        a.step(Leave(), *both)
        talk(a, b, c, d)
    assert a.dropped == [named(key)]


def test_what_a_member_said_last_counts_at_the_next_turn() -> None:
    c = members("n00", "n01", "n02")[2]
    key = key_held_by(A, B, among=[A, B, C])
    c.step(Heard(A, Leaving(leaves=True)))
    assert c.machine.holding.accepts(named(key)), "what it says first counts at once"
    c.step(Heard(A, Leaving(leaves=False)))
    assert c.machine.holding.accepts(named(key))
    c.step(SyncDue())
    assert not c.machine.holding.accepts(named(key))
    c.step(Heard(A, Leaving(leaves=True)), Heard(A, Leaving(leaves=False)), SyncDue())
    assert not c.machine.holding.accepts(named(key))


@pytest.mark.parametrize("leaves", [True, False])
def test_of_what_all_hold_nothing_changes(leaves: bool) -> None:
    a, b, c = members("n00", "n01", "n02")
    a.step(Leave() if leaves else Stay())
    talk(a, b, c)
    assert a.machine.holding.serves(("b", 1))
    assert b.machine.holding.accepts(("b", 1))
