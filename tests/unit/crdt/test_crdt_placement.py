"""Shards that not all hold: who holds them, who hands them over, and who may drop them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from crdt_nodes import TWO, Node, key_held_by, node_id, talk, turns
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import NotHeld
from swarmd.base.ids import NodeId
from swarmd.base.limits import CRDT_COPIES_MAX, CRDT_COPIES_MIN, CRDT_SHARDS
from swarmd.state.crdt.events import Heard, SyncDue, Write
from swarmd.state.crdt.holding import Holding, Round
from swarmd.state.crdt.messages import HandOver, Shard, Sums, Taken, shard_of
from swarmd.state.crdt.placement import bucket_on, copies_of, holders
from swarmd.state.crdt.types.values import AddTo

NAMES = [f"n{number:02}" for number in range(12)]
IDS = [node_id(name) for name in NAMES]


# ---- rendezvous ----------------------------------------------------------------------------


def test_a_bucket_says_in_its_name_how_many_hold_it() -> None:
    for copies in range(CRDT_COPIES_MIN, CRDT_COPIES_MAX + 1):
        assert copies_of(bucket_on("b", copies)) == copies
    assert bucket_on("b", 0) == "b"
    for name in ("b", "", "b~", "b~0", "b~8", "b~22", "b~x", "b~\u00b2", "b~2~"):
        assert copies_of(name) == 0, name


def test_nothing_moves_but_to_or_from_who_comes_or_goes() -> None:
    shards = [(TWO, number) for number in range(CRDT_SHARDS)]
    for copies, gone in itertools.product((2, 3, 7), IDS):
        rest = [one for one in IDS if one != gone]
        for shard in shards:
            before, after = holders(shard, IDS, copies), holders(shard, rest, copies)
            assert set(before) - {gone} <= set(after)
            assert len(set(after)) == copies
            if gone not in before:
                assert before == after


@given(st.permutations(IDS), st.integers(0, CRDT_SHARDS - 1))
def test_the_order_in_which_members_are_known_is_no_matter(ids: list[NodeId], number: int) -> None:
    assert holders((TWO, number), ids, 3) == holders((TWO, number), IDS, 3)


def test_shards_are_spread_evenly() -> None:
    held = Counter(
        one for bucket in "abcdefgh" for n in range(CRDT_SHARDS)
        for one in holders((bucket, n), IDS, 3)
    )  # fmt: skip
    usual = 8 * CRDT_SHARDS * 3 / len(IDS)
    assert all(0.6 * usual < held[one] < 1.4 * usual for one in IDS)


def test_where_there_are_fewer_members_all_hold_everything() -> None:
    assert set(holders((TWO, 1), IDS[:2], 3)) == set(IDS[:2])


# ---- what a node holds ---------------------------------------------------------------------


def shard_held_by(*ids: NodeId, among: list[NodeId]) -> Shard:
    """A shard that these hold of all members."""
    return next(
        (TWO, number)
        for number in range(CRDT_SHARDS)
        if set(holders((TWO, number), among, 2)) == set(ids)
    )


def test_who_becomes_a_holder_serves_once_all_were_heard_and_nothing_is_missing() -> None:
    a, b, c = IDS[:3]
    name = shard_held_by(a, b, among=[a, b, c])
    holding = Holding(a)
    assert not holding.serves(name), "it knows nobody yet"
    holding.see((b, c), [a, b, c])
    assert holding.accepts(name)
    holding.heard(b, [name], [name])
    assert not holding.serves(name)
    holding.heard(c, [], [])
    assert not holding.serves(name), "what b has is missing"
    assert holding.missing() == [b]
    holding.has_all_of(name, b)
    assert holding.serves(name)
    assert holding.serves(("everywhere", 1))
    assert holding.missing() == []


def test_who_meets_nobody_after_its_start_goes_on_alone_after_a_while() -> None:
    a, b, c = IDS[:3]
    name = shard_held_by(a, b, among=[a, b, c])
    holding = Holding(a)
    holding.see((), [a, b, c])
    assert not holding.serves(name)
    holding.see((), [a, b, c])
    assert not holding.serves(name)
    holding.go_on_alone()
    assert holding.serves(name)
    other = Holding(a)
    other.see((), [a, b, c])
    other.see((b,), [a, b, c])
    other.go_on_alone()
    assert not other.serves(name), "it has met one who may have something"
    other.heard(b, [], [])
    assert other.serves(name)


def test_who_was_a_holder_goes_on_serving_while_others_come() -> None:
    a, b, c, d = IDS[:4]
    names = [(TWO, n) for n in range(CRDT_SHARDS)]
    name = next(
        n for n in names
        if a in holders(n, [a, b, c], 2) and a in holders(n, [a, b, c, d], 2)
    )  # fmt: skip
    new = next(
        n for n in names
        if a not in holders(n, [a, b, c, d], 2) and a in holders(n, [a, b, c], 2)
    )  # fmt: skip
    holding = Holding(a)
    holding.see((b, c, d), [a, b, c, d])
    for one in (b, c, d):
        holding.heard(one, [], [])
    holding.see((b, c), [a, b, c])
    assert holding.serves(name)
    assert not holding.serves(new)
    # Who is gone is waited for no more.
    holding.heard(b, [], [])
    holding.see((b,), [a, b, c])
    assert holding.serves(new)


def test_a_round_is_over_when_members_change_and_answers_to_it_count_no_more() -> None:
    a, b, c = IDS[:3]
    name = shard_held_by(b, c, among=[a, b, c])
    holding = Holding(a)
    holding.see((b, c), [a, b, c])
    holding.rounds[name] = Round(7)
    assert not holding.taken(name, b, 7)
    assert not holding.taken(name, c, 6), "of another round"
    holding.see((b,), [a, b])
    assert not holding.taken(name, c, 7)
    assert holding.rounds == {}


# ---- machines ------------------------------------------------------------------------------


A, B, C = IDS[:3]


def three() -> tuple[Node, Node, Node]:
    nodes = Node("n00", bucket=TWO), Node("n01", bucket=TWO), Node("n02", bucket=TWO)
    for node in nodes:
        node.everyone = frozenset(IDS)
        node.see([A, B, C])
    turns(*nodes)
    return nodes


def test_a_write_goes_to_the_holders_and_others_refuse_it() -> None:
    a, b, c = three()
    key = key_held_by(A, B, among=[A, B, C])
    refused = c.write(key, AddTo(1))
    assert isinstance(refused, NotHeld)
    assert "nothing changed" in refused.message
    assert a.write(key, AddTo(2)) is None
    assert {peer for peer, _ in a.sent} == {B}
    batches = a.sent[0][1]
    talk(a, b, c)
    assert a.value(key) == b.value(key) == [2]
    c.step(Heard(A, batches))
    assert c.ignored[-1] == "not_held"
    assert c.value(key) is None
    turns(a, b, c)
    assert c.machine.shard((TWO, shard_of(key))) is None


def test_who_holds_a_shard_no_more_drops_it_once_all_have_taken_it() -> None:
    a, b, c = three()
    key = key_held_by(B, C, among=[A, B, C])
    name = (TWO, shard_of(key))
    for node in (a, b):
        node.see([A, B])
    turns(a, b)
    assert a.write(key, AddTo(1)) is None
    a.sent.clear()
    for node in (a, b, c):
        node.see([A, B, C])
    a.now += 1.0
    a.step(SyncDue())
    assert {peer for peer, message in a.sent if isinstance(message, HandOver)} == {B, C}
    talk(a, b)
    assert a.dropped == [], "one of two has it"
    turns(a, b, c)
    assert a.dropped == [name]
    assert b.value(key) == c.value(key) == [1]
    a.start()
    assert a.machine.shard(name) is None
    assert isinstance(a.write(key, AddTo(2)), NotHeld)


def test_who_hands_a_shard_over_itself_takes_it_from_nobody() -> None:
    """Goal: nodes that differ about who holds a shard do not drop it all.

    Method: a takes b and another for the holders, b two others; none of the others is there.
    """
    a, b, c = three()
    key = next(
        key for key in map(str, range(1_000))
        if holders((TWO, shard_of(key)), [A, B, C], 3)[2] == C
        and {A, B}.isdisjoint(holders((TWO, shard_of(key)), IDS, 2))
    )  # fmt: skip
    name = (TWO, shard_of(key))
    a.write(key, AddTo(1))
    talk(a, b, c)
    first, second = (a, b) if holders(name, [A, B], 2)[0] == B else (b, a)
    above = holders(name, IDS, 2)
    first.see([A, B], [A, B, above[0]])
    second.see([A, B], [A, B, *above])
    assert second.id in first.machine.holding.of(name)
    assert not second.machine.holding.accepts(name)
    for node in (first, second):
        node.now += 1.0
        node.step(SyncDue())
    assert second.id in {peer for peer, sent in first.sent if isinstance(sent, HandOver)}
    turns(a, b)
    assert "not_held" in second.ignored
    assert a.dropped == b.dropped == []
    assert a.value(key) == b.value(key) == [1]


def test_an_answer_that_comes_when_it_is_a_holder_again_has_it_drop_nothing() -> None:
    a, b, c = three()
    key = key_held_by(B, C, among=[A, B, C])
    for node in (a, b):
        node.see([A, B])
    turns(a, b)
    a.write(key, AddTo(1))
    for node in (a, b, c):
        node.see([A, B, C])
    a.now += 1.0
    a.step(SyncDue())
    [ask, *_] = a.told(HandOver)
    answers = [Heard(peer, Taken(ask.bucket, ask.shard, ask.round)) for peer in (B, C)]
    a.see([A, B])
    a.step(*answers)
    assert a.dropped == []
    a.see([A, B, C])
    a.now += 1.0
    a.step(SyncDue(), *answers)
    assert a.dropped == [], "they answered an earlier round"


def test_what_a_node_wrote_to_a_shard_that_it_dropped_it_does_not_go_on_with() -> None:
    a, b, c = three()
    key = key_held_by(B, C, among=[A, B, C])
    for node in (a, b):
        node.see([A, B])
    turns(a, b)
    a.write(key, AddTo(1))
    for node in (a, b, c):
        node.see([A, B, C])
    turns(a, b, c)
    assert len(a.dropped) == 1
    a.see([A])
    assert a.write(key, AddTo(2)) is None
    for node in (a, b, c):
        node.see([A, B, C])
    turns(a, b, c)
    assert a.machine.shard((TWO, shard_of(key))) is None
    assert b.value(key) == c.value(key) == [1, 2]
    shard = b.machine.shard((TWO, shard_of(key)))
    assert shard is not None
    assert len(shard.cells.context.vector) == 2, "two lives of a"


def test_a_dropped_shard_does_not_come_back_from_its_file() -> None:
    a, b, c = three()
    key = key_held_by(B, C, among=[A, B, C])
    name = (TWO, shard_of(key))
    for node in (a, b):
        node.see([A, B])
    turns(a, b)
    a.write(key, AddTo(1))
    from swarmd.state.crdt.stored import encode_shard

    for one in a.journal.turn():
        shard = a.machine.shard(one)
        assert shard is not None
        a.journal.keep(one, encode_shard(shard))
    a.journal.forget()
    assert any(one.startswith("shard-") for one in a.disk.names())
    for node in (a, b, c):
        node.see([A, B, C])
    turns(a, b, c)
    assert a.dropped == [name]
    # Before its file is deleted, and after; and when a restart came between.
    a.start()
    assert a.machine.shard(name) is None
    assert name in a.journal.turn()
    a.journal.remove(name)
    a.journal.forget()
    assert not any(one.startswith("shard-") for one in a.disk.names())
    a.start()
    assert a.machine.shard(name) is None


def test_lives_end_once_all_who_have_the_shard_have_seen_them() -> None:
    a, b, c = three()
    key = key_held_by(A, B, among=[A, B, C])
    for element in range(5):
        a.write(key, AddTo(element))
        a.sent.clear()
        a.start()
        a.see([A, B, C])
        turns(a, b, c)
    shard = a.machine.shard((TWO, shard_of(key)))
    assert shard is not None
    assert len(shard.cells.context.vector) == 5
    nodes = [Node(one, bucket=TWO) for one in NAMES[3:]]
    for node in (a, b, c, *nodes):
        node.see([A, B, C])
    for _ in range(3):
        a.now += 100_000.0
        turns(a, b, c)
        for node in (c, *nodes):
            a.step(Heard(node.id, Sums(10**12, ())))
        turns(a, b, c)
    assert len(shard.cells.context.over) >= 4
    assert a.value(key) == b.value(key) == list(range(5))


def test_what_all_hold_alone_makes_the_digest() -> None:
    a, _, c = three()
    key = key_held_by(A, B, among=[A, B, C])
    before = a.machine.digest()
    a.write(key, AddTo(1))
    assert a.machine.digest() == before == c.machine.digest()
    a.step(Write(99, "b", "k", AddTo(1)))
    assert a.machine.digest() != before


@pytest.mark.parametrize(
    "message", [HandOver(TWO, 1, 7, ()), Taken(TWO, 1, 7), HandOver("b", 1, 7, ())]
)
def test_what_makes_no_sense_is_passed_over(message: Any) -> None:
    a, _, _ = three()
    a.step(Heard(B, message))
    assert a.dropped == []
