"""Nodes that stay after all: what they had dropped, and when they answer for it again."""

from __future__ import annotations

from crdt_leaving import A, B, C, ask_again, members, named
from crdt_nodes import Node, key_held_by, talk, turns

from swarmd.base.errors import NotHeld
from swarmd.state.crdt.events import Heard, Leave, Stay
from swarmd.state.crdt.messages import Leaving, Sums
from swarmd.state.crdt.types.values import AddTo


def three_without_a() -> tuple[Node, Node, Node, str]:
    """Three, the first of which has handed over a key that it held with the second."""
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b, c)
    ask_again(a, b, c)
    assert a.dropped == [named(key)]
    return a, b, c, key


def test_who_stays_while_cut_off_answers_for_nothing_that_it_dropped() -> None:
    a, b, _c, key = three_without_a()
    a.see([A], [A, B, C])
    a.step(Stay())
    turns(a)
    assert not a.machine.holding.serves(named(key)), "others have values of it"
    assert isinstance(a.write(key, AddTo(9)), NotHeld)
    # One of those who took it is back; that this one is asked for it needs no change of members.
    a.see([A, B], [A, B, C])
    turns(a, b)
    assert a.machine.holding.serves(named(key))
    assert a.value(key) == [1]


def test_that_others_die_before_they_have_answered_has_nobody_answer_for_them() -> None:
    a, _b, _c, key = three_without_a()
    a.step(Stay())
    a.take()
    a.see([A], [A, B, C])
    turns(a)
    assert not a.machine.holding.serves(named(key))
    # What they are replaced with holds what there is: nothing.
    a.see([A], [A])
    assert a.machine.holding.serves(named(key))


def test_to_be_told_that_one_has_it_is_not_to_have_it() -> None:
    a, b, c, key = three_without_a()
    a.step(Stay())
    a.step(Heard(C, sums_of(c)), Heard(B, sums_of(b)))
    a.take()
    a.see([A], [A, B, C])
    turns(a)
    assert a.value(key) is None
    assert not a.machine.holding.serves(named(key))
    a.see([A, C], [A, B, C])
    turns(a, c)
    assert a.machine.holding.serves(named(key))
    assert a.value(key) == [1]


def test_those_who_took_it_and_have_it_no_more_are_waited_for_no_longer() -> None:
    a, _b, _c, key = three_without_a()
    a.see([A], [A, B, C])
    a.step(Stay())
    nothing = Sums(a.wall_ms, (), some=True)
    a.step(Heard(B, nothing))
    assert not a.machine.holding.serves(named(key)), "the other one may have it"
    a.step(Heard(C, nothing))
    assert a.machine.holding.serves(named(key))


def test_what_was_told_before_it_stays_counts_for_nothing() -> None:
    a, _b, _c, key = three_without_a()
    a.step(Heard(B, Sums(a.wall_ms, (), some=True)), Heard(C, Sums(a.wall_ms, (), some=True)))
    a.see([A], [A, B, C])
    a.step(Stay())
    assert not a.machine.holding.serves(named(key))


def test_who_stays_before_all_have_answered_has_missed_what_they_wrote() -> None:
    a, b, c = members("n00", "n01", "n02")
    key = key_held_by(A, B, among=[A, B, C])
    a.write(key, AddTo(1))
    talk(a, b, c)
    a.step(Leave())
    b.step(Heard(A, Leaving(leaves=True)))
    b.write(key, AddTo(2))
    a.step(Stay())
    assert a.value(key) == [1]
    assert not a.machine.holding.serves(named(key))
    turns(a, b, c)
    assert a.machine.holding.serves(named(key))
    assert a.value(key) == [1, 2]


def sums_of(node: Node) -> Sums:
    return node.machine._replica.sums(node.wall_ms, some=True)
