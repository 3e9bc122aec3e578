"""A replica of the eventual store: what it keeps, tells, asks for and refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from crdt_nodes import WALL_MS, Node, node_id, talk

from swarmd.base.errors import MalformedMessage, ValueTooLarge
from swarmd.base.limits import CRDT_BATCH_CHANGES_MAX, CRDT_CELL_BYTES_MAX, CRDT_VALUE_BYTES_MAX
from swarmd.base.machine import Persist, Send, SetTimer
from swarmd.sim.crdt_world import SimSigner
from swarmd.state.crdt import machine, replica, wholes
from swarmd.state.crdt.cells import Cell, Change
from swarmd.state.crdt.clock import stamp_at
from swarmd.state.crdt.dots import Context, actor_of
from swarmd.state.crdt.events import Heard, Peers, SyncDue, Write, Written
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.messages import (
    REMOVES_MAX,
    Batches,
    ShardSum,
    Sums,
    Vector,
    Whole,
    WholeAsk,
    decode_batch,
    encode_said,
    make_batch,
    shard_of,
)
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.stored import decode_shard, encode_shard
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import (
    AddTo,
    Assign,
    Count,
    Remove,
    TakeFrom,
    change,
)
from swarmd.state.crdt.writing import PUSH_PEERS_MAX, SKEW_MAX_MS


def sync(a: Node, b: Node) -> None:
    """One round of anti-entropy, begun by `a`."""
    sums = tuple(ShardSum(*shard.name, shard.sum()) for shard in a.machine.shards())
    b.step(Heard(a.id, Sums(a.wall_ms, sums)))
    talk(a, b)


def same_shard(count: int) -> list[str]:
    """Keys of one shard."""
    names = (f"k{number}" for number in itertools.count())
    return list(itertools.islice((name for name in names if shard_of(name) == 0), count))


# ---- writing ------------------------------------------------------------------------------


def test_a_write_is_durable_before_it_is_told_or_acknowledged() -> None:
    node = Node("a", "b")
    effects = node.step(Write(1, "b", "k", Assign(1)))
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Send) < kinds.index(Written)
    assert node.value("k") == 1


def test_writes_of_one_step_are_one_batch_and_large_ones_are_several() -> None:
    node = Node("a", "b")
    keys = same_shard(CRDT_BATCH_CHANGES_MAX + 1)
    node.step(*(Write(n, "b", key, Assign(n)) for n, key in enumerate(keys)))
    first, second = (decode_batch(message.batches[0]) for message in node.take())
    assert len(first.changes) == CRDT_BATCH_CHANGES_MAX
    assert (second.first, len(second.changes)) == (first.last + 1, 1)
    node.step(
        *(Write(9_000 + n, "b", key, Assign("x" * 400_000)) for n, key in enumerate(keys[:2]))
    )
    assert len(node.take()) == 2
    assert set(node.answers.values()) == {None}


def test_a_write_goes_to_a_few_at_once() -> None:
    node = Node("a", *(f"n{number}" for number in range(20)))
    node.write("k", Assign(1))
    assert len({peer for peer, _ in node.sent}) == PUSH_PEERS_MAX


def test_a_refused_write_changes_nothing_and_the_others_of_its_step_stand() -> None:
    node = Node("a", "b")
    node.write("k", Count(1))
    node.take()
    node.step(Write(7, "b", "k", AddTo("x")), Write(8, "b", "k", Count(1)))
    assert node.answers[7] is not None
    assert node.answers[7].code == "wrong_type"
    assert node.answers[8] is None
    [message] = node.take()
    assert len(decode_batch(message.batches[0]).changes) == 1
    assert node.value("k") == 2


def test_what_changes_nothing_is_acknowledged_and_told_to_nobody() -> None:
    node = Node("a", "b")
    assert node.write("k", TakeFrom("x")) is None
    assert node.take() == []


# ---- many batches of one's own as one ---------------------------------------------------------


def test_who_was_away_gets_few_batches_of_their_author_and_is_equal_then() -> None:
    a, b = Node("a"), Node("b")
    keys = same_shard(300)
    for key in keys:
        a.write(key, Assign(key))
    b.step(Heard(a.id, Sums(a.wall_ms, tuple(ShardSum(*s.name, s.sum()) for s in shards_of(a)))))
    [(_, asked)] = b.sent
    a.step(Heard(b.id, asked))
    [answer] = a.take()
    assert isinstance(answer, Batches)
    assert [len(decode_batch(raw).changes) for raw in answer.batches] == [
        CRDT_BATCH_CHANGES_MAX,
        44,
    ]
    b.take()
    b.step(Heard(a.id, answer))
    assert b.ignored == []
    assert [shard.sum() for shard in shards_of(b)] == [shard.sum() for shard in shards_of(a)]
    assert [b.value(key) for key in keys] == keys


def test_who_has_some_of_what_came_as_one_takes_the_rest_and_nothing_twice() -> None:
    """Goal: batches that overlap, in memory and on the disk, are as good as those that do not."""
    a, b, c = Node("a"), Node("b"), Node("c")
    keys = same_shard(60)
    for number, key in enumerate(keys):
        a.write(key, Count(1))
        if number == 19:
            sync(b, a)  # As one, or as they were: it is all the same to it.
    a.sent.clear()
    sync(a, c)
    for key in keys[:10]:
        a.write(key, Count(1))
    sync(c, b)
    sync(b, a)
    sync(c, a)
    for node in (a, b, c):
        assert [node.value(key) for key in keys] == [2] * 10 + [1] * 50
        node.start()
        assert [node.value(key) for key in keys] == [2] * 10 + [1] * 50


def test_nobody_makes_one_of_what_another_has_written() -> None:
    a, b, c = Node("a", "b"), Node("b"), Node("c")
    keys = same_shard(20)
    for key in keys:
        a.write(key, Assign(1))
    talk(a, b)
    sync(b, c)
    [log] = [list(shard.log()) for shard in shards_of(c)]
    assert [batch.last - batch.first + 1 for batch in log] == [1] * 20
    assert c.ignored == []


def test_what_does_not_fit_one_batch_stays_several() -> None:
    a, b = Node("a", log_bytes_max=50_000_000), Node("b", log_bytes_max=50_000_000)
    keys = same_shard(20)
    for key in keys:
        a.write(key, Assign("x" * 60_000))
    sync(b, a)
    [log] = [list(shard.log()) for shard in shards_of(b)]
    assert [batch.last - batch.first + 1 for batch in log] == [4] * 5
    assert all(b.value(key) for key in keys)


def shards_of(node: Node) -> list[ShardState]:
    return node.machine.shards()


# ---- what others bring ----------------------------------------------------------------------


def test_a_batch_is_taken_once_and_passed_on_as_it_came() -> None:
    a, b, c = Node("a", "b"), Node("b", "c"), Node("c")
    a.write("k", Assign(1))
    talk(a, b)
    assert b.value("k") == 1
    sync(c, b)
    assert c.value("k") == 1
    [shard] = c.machine.shards()
    assert [batch.author for batch in shard.log()] == [a.id]
    sync(c, b)
    assert b.ignored == c.ignored == []


def test_a_gap_is_asked_for_and_nothing_is_applied_over_it() -> None:
    a, b = Node("a", "b"), Node("b", "a")
    a.write("k", Assign(1))
    a.take()
    a.write("k", Assign(2))
    [late] = a.take()
    b.step(Heard(a.id, late))
    assert b.value("k") is None
    [ask] = [message for _, message in b.sent]
    assert isinstance(ask, Vector)
    talk(a, b)
    assert b.value("k") == 2


def test_what_nobody_of_that_name_has_signed_is_ignored() -> None:
    a, b = Node("a", "b"), Node("b", "a")
    a.write("k", Assign(1))
    [sound] = a.take()
    batch = decode_batch(sound.batches[0])
    other = Change("k", change({}, "k", Assign(9), actor=batch.actor, stamp=1).cell, ())  # type: ignore[union-attr]
    forged = make_batch(encode_said(batch.shard, batch.actor, 1, (other,)), batch.signature)
    for raw, shard in (
        (forged.raw, batch.shard),
        (sound.batches[0], ("b", 1)),
        (b"\xc1", ("b", 1)),
    ):
        b.step(Heard(a.id, Batches(*shard, (raw,))))
    assert b.ignored == ["bad_signature", "other_shard", "malformed"]
    assert b.value("k") is None


def test_a_key_of_another_shard_is_malformed() -> None:
    key = same_shard(1)[0]
    cell = change({}, key, Assign(1), actor=actor_of(node_id("a"), bytes(8)), stamp=1)
    assert cell is not None
    said = encode_said(("b", 1), actor_of(node_id("a"), bytes(8)), 1, (cell,))
    with pytest.raises(MalformedMessage, match="another shard"):
        make_batch(said, bytes(64))


@pytest.mark.parametrize("kind", [0, Kind.MAP, max(Kind) + 1, 255])
def test_a_cell_of_a_kind_that_nobody_can_read_is_malformed(kind: int) -> None:
    actor, key = actor_of(node_id("a"), bytes(8)), same_shard(1)[0]
    said = encode_said(("b", 0), actor, 1, (Change(key, Cell((), kind, b"", b"", 1), ()),))
    with pytest.raises(MalformedMessage):
        make_batch(said, bytes(64))


# ---- clocks ----------------------------------------------------------------------------------


def test_what_is_from_the_future_waits_until_it_is_not() -> None:
    a, b = Node("a", "b"), Node("b", "a")
    a.wall_ms += SKEW_MAX_MS + 5_000
    a.write("k", Assign(1))
    talk(a, b)
    assert b.value("k") is None
    assert (b.machine.parked, b.ignored) == (1, ["from_the_future"])
    b.step(SyncDue())
    assert b.machine.parked == 1
    b.wall_ms += 5_000
    b.step(SyncDue())
    assert (b.machine.parked, b.value("k")) == (0, 1)


def test_batches_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PARKED_MAX", 10)
    a, b = Node("a", "b"), Node("b", "a")
    a.wall_ms += 2 * SKEW_MAX_MS
    for number in range(100):
        a.write(f"k{number}", Assign(1))
    talk(a, b)
    assert b.machine.parked == 10
    assert "parked_full" in b.ignored


def test_whose_clock_is_far_from_the_others_writes_nothing() -> None:
    node = Node("a", "b", "c", "d")
    for name, ahead_ms in (("b", 61_000), ("c", 61_000), ("d", 0)):
        node.step(Heard(node_id(name), Sums(WALL_MS + ahead_ms, ())))
    error = node.write("k", Assign(1))
    assert error is not None
    assert error.code == "clock_skew"
    assert "61 s behind" in error.message
    assert node.value("k") is None
    node.wall_ms += 60_000
    for name in "bcd":
        node.step(Heard(node_id(name), Sums(node.wall_ms, ())))
    assert node.write("k", Assign(1)) is None


def test_clocks_of_those_that_are_gone_count_no_more() -> None:
    node = Node("a", "b")
    node.step(Heard(node_id("b"), Sums(WALL_MS + 10**6, ())))
    assert node.write("k", Assign(1)) is not None
    node.step(Peers(()))
    assert node.write("k", Assign(1)) is None


def test_a_stamp_is_above_all_that_was_seen() -> None:
    a, b = Node("a", "b"), Node("b", "a")
    a.wall_ms += 30_000
    a.write("k", Assign("from ahead"))
    talk(a, b)
    b.write("k", Assign("later"))
    talk(a, b)
    assert a.value("k") == b.value("k") == "later"
    assert b.machine.clock.latest > stamp_at(WALL_MS + 30_000)


# ---- anti-entropy -----------------------------------------------------------------------------


def test_one_round_brings_both_what_they_lack() -> None:
    a, b = Node("a"), Node("b")
    for number in range(50):
        a.write(f"a{number}", Assign(number))
        b.write(f"b{number}", Assign(number))
    sync(a, b)
    assert all(node.value(f"{n}7") == 7 for node in (a, b) for n in "ab")
    sums = [{shard.name: shard.sum() for shard in node.machine.shards()} for node in (a, b)]
    assert sums[0] == sums[1]


def test_who_has_nothing_new_asks_for_nothing() -> None:
    a, b = Node("a"), Node("b")
    a.write("k", Assign(1))
    sync(a, b)
    sums = tuple(ShardSum(*shard.name, shard.sum()) for shard in a.machine.shards())
    assert b.step(Heard(a.id, Sums(WALL_MS, sums))) == []


def ahead(node: Node, *others: Node) -> list[bool]:
    """Which of the others a node asks for what it lacks, once they have told it their sums."""
    node.take()
    for other in others:
        sums = tuple(ShardSum(*shard.name, shard.sum()) for shard in other.machine.shards())
        node.step(Heard(other.id, Sums(WALL_MS, sums)))
    asked = {peer for peer, message in node.sent if isinstance(message, Vector)}
    return [other.id in asked for other in others]


def test_a_shard_comes_from_one_peer_at_a_time() -> None:
    a, b, c = Node("a"), Node("b"), Node("c", "a", "b")
    for number, key in enumerate(same_shard(10)):
        a.write(key, Assign(number))
    sync(a, b)
    assert ahead(c, a, b) == [True, False]
    c.now += replica._FETCH_S - 0.1
    assert ahead(c, b, a) == [False, True]
    talk(a, c)
    b.write(same_shard(1)[0], Assign("news"))
    assert ahead(c, b) == [True]


def test_who_does_not_answer_is_waited_for_no_longer_than_others_have_it() -> None:
    a, b, c = Node("a"), Node("b"), Node("c", "a", "b")
    a.write("k", Assign(1))
    sync(a, b)
    assert ahead(c, a, b) == [True, False]
    c.now += replica._FETCH_S
    assert ahead(c, b) == [True]
    assert ahead(c, a) == [False]
    c.step(Peers((a.id,)))
    assert ahead(c, a) == [True]


def test_who_has_nothing_to_send_stands_in_nobodys_way() -> None:
    a, b, c = Node("a"), Node("b"), Node("c", "a", "b")
    key, other = same_shard(2)
    c.write(key, Assign(1))
    a.write(other, Assign(2))
    assert ahead(c, b) == [True]
    talk(b, c)  # It lacks what this node wrote, and has nothing of its own.
    assert ahead(c, a) == [True]


def test_much_that_is_missing_comes_in_several_messages() -> None:
    a, b = Node("a"), Node("b")
    for key in same_shard(10):
        a.write(key, Assign("x" * 100_000))
    sync(a, b)
    assert [b.value(key) for key in same_shard(10)] == ["x" * 100_000] * 10


def test_anti_entropy_goes_on_for_ever_and_tells_one_member_at_a_time() -> None:
    node = Node("a", "b", "c")
    node.write("k", Assign(1))
    node.take()
    [timer, told] = node.step(SyncDue())
    assert isinstance(timer, SetTimer)
    assert isinstance(told.message, Sums)
    assert [one.bucket for one in told.message.sums] == ["b"]


# ---- whole states -----------------------------------------------------------------------------


def overwritten(node: Node, count: int) -> list[str]:
    """Keys of one shard, of which the node has dropped the batches that first wrote them."""
    keys = same_shard(count)
    for turn in range(2):
        for key in keys:
            node.write(key, Assign(f"{key} {turn}" + "x" * 2_000))
    node.take()
    return keys


def test_where_batches_are_gone_the_whole_shard_comes_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wholes, "_PART_BYTES", 10_000)
    a, b = Node("a", log_bytes_max=10_000), Node("b")
    b.write("own", Count(3))
    keys = overwritten(a, 30)
    sync(b, a)
    assert [b.value(key) for key in keys] == [a.value(key) for key in keys]
    assert b.value("own") == a.value("own") == 3
    assert {s.name: s.sum() for s in a.machine.shards()} == {
        s.name: s.sum() for s in b.machine.shards()
    }
    again = ShardJournal(b.disk).load()
    assert sorted(len(s.cells) for s in again) == sorted(len(s.cells) for s in b.machine.shards())


def test_a_transfer_of_which_nothing_comes_any_more_is_begun_anew() -> None:
    a, b = Node("a", log_bytes_max=10_000), Node("b")
    keys = overwritten(a, 10)
    shard = a.machine.shards()[0]
    gone = Batches(*shard.name, (), False, True)
    b.step(Heard(a.id, gone))
    assert [type(m) for m in b.take()] == [WholeAsk]
    b.step(Heard(a.id, gone))
    assert b.take() == [], "one at a time"
    for now in (1.0, 20.0):
        b.now = now
        b.step(SyncDue())
    b.step(Heard(a.id, gone))
    talk(a, b)
    assert b.value(keys[0]) == a.value(keys[0])


def test_a_whole_state_without_an_end_is_given_up() -> None:
    shard = ("b", 0)
    arriving = wholes.Arriving(node_id("a"))
    part = Whole(*shard, 1, wholes.PARTS_MAX, (), (), (), (), False)
    with pytest.raises(MalformedMessage, match="parts"):
        arriving.take(part, 0.0)


@pytest.mark.parametrize("what", ["no_proof", "stray_cell", "other_peer", "forged_proof"])
def test_a_whole_state_that_cannot_be_is_refused(what: str) -> None:
    a, b = Node("a", log_bytes_max=10_000), Node("b")
    overwritten(a, 3)
    shard = a.machine.shards()[0]
    b.step(Heard(a.id, Batches(*shard.name, (), False, True)))
    talk_to_a = b.take()
    a.step(Heard(b.id, talk_to_a[0]))
    [first] = a.take()
    seen, newest, peer = first.seen, first.newest, a.id
    assert first.last
    if what == "no_proof":
        newest = ()
    if what == "stray_cell":
        seen = ()
    if what == "other_peer":
        peer = node_id("mallory")
    if what == "forged_proof":
        seen = tuple((actor, number + 1) for actor, number in seen)
    b.step(Heard(peer, Whole(*shard.name, 1, 0, first.cells, seen, (), newest, True)))
    assert b.machine.shards() == [] or not len(b.machine.shards()[0].cells)
    assert b.ignored == {"stray_cell": ["malformed"], "other_peer": []}.get(what, ["unproven"])


# ---- much at once ---------------------------------------------------------------------------


def test_the_largest_value_goes_all_the_way() -> None:
    a, b, c = Node("a", log_bytes_max=1), Node("b", "a"), Node("c", "a")
    key, small = same_shard(2)
    value = bytes(CRDT_VALUE_BYTES_MAX)
    assert a.write(key, Assign(value)) is None
    sync(a, b)
    assert b.value(key) == value
    assert a.write(small, Assign(1)) is None
    sync(a, c)
    assert c.value(key) == value, "it came in the whole shard, for its batch was collected"
    again = decode_shard(encode_shard(c.machine.shards()[0]))
    assert again.cells == c.machine.shards()[0].cells


def test_what_no_cell_holds_is_refused_and_changes_nothing() -> None:
    a = Node("a")
    for operation in (Assign(bytes(CRDT_CELL_BYTES_MAX)), AddTo(bytes(CRDT_CELL_BYTES_MAX))):
        error = a.write("k", operation)
        assert isinstance(error, ValueTooLarge)
    assert a.value("k") is None
    assert a.write("k", Assign(1)) is None


def test_more_is_removed_at_once_than_one_change_may() -> None:
    a, b = Node("a"), Node("b", "a")
    for number in range(REMOVES_MAX + 100):
        a.step(Write(0, "b", "k", AddTo(number)))
    assert a.write("k", Remove()) is None
    assert a.value("k") is None
    sync(a, b)
    assert b.value("k") is None
    assert a.machine.digest() == b.machine.digest()


# ---- disks --------------------------------------------------------------------------------------


def test_a_shard_comes_back_as_it_was() -> None:
    a, b = Node("a", log_bytes_max=3_000), Node("b", "a")
    overwritten(a, 5)
    for node in (a, b):
        node.write(same_shard(1)[0], Assign(node.id[:1]))
    sync(a, b)
    for shard in a.machine.shards():
        again = decode_shard(encode_shard(shard))
        assert again.cells == shard.cells
        assert again.sum() == shard.sum()
        assert [one.raw for one in again.log()] == [one.raw for one in shard.log()]


def test_the_newest_batch_of_each_actor_is_kept_whatever_the_bound() -> None:
    a, b = Node("a"), Node("b", "a", log_bytes_max=1)
    for node in (a, b):
        for number in range(5):
            node.write(same_shard(1)[0], Assign(number))
    sync(a, b)
    shard: ShardState = b.machine.shards()[0]
    assert [batch.last for batch in shard.log()] == [5, 5]


# ---- lives that are over ------------------------------------------------------------------


def lives_in(node: Node, key: str) -> tuple[int, int]:
    """How many lives a node's shard has in its vector, and holds to be over."""
    cells = node.machine.cells("b", key)
    assert cells is not None
    return len(cells.context.vector), len(cells.context.over)


def live_on(a: Node, b: Node, key: str, lives: int) -> None:
    """Let `a` add an element in each of so many lives, and both hold all of it."""
    for number in range(lives):
        a.write(key, AddTo(number))
        a.start()
    a.write(key, AddTo(lives))
    sync(a, b)


def test_lives_end_once_everyone_has_seen_all_of_them_and_what_they_wrote_stays() -> None:
    a, b = Node("a", "b", "c"), Node("b", "a", "c")
    c = Node("c", "a", "b")
    live_on(a, b, "k", 3)
    for _ in range(3):
        a.pass_time()
        sync(b, a)
    assert lives_in(a, "k") == (4, 0), "one of three has not told that it has seen them"
    sync(c, a)
    sync(c, a)
    a.pass_time()
    assert lives_in(a, "k") == (1, 3)
    sync(a, b)
    sync(b, c)
    for node in (a, b, c):
        assert lives_in(node, "k") == (1, 3)
        assert node.value("k") == [0, 1, 2, 3]
        assert len(list(node.machine.shards()[0].log())) <= 2, "nor are their batches kept"
    a.start()
    assert lives_in(a, "k") == (1, 3), "after a start, too"
    a.write("k", TakeFrom(1))
    sync(a, b)
    assert b.value("k") == [0, 2, 3]


def ended(**more: Any) -> tuple[Node, Node]:
    """Two nodes, of which one has had four lives in which both wrote, and ended three."""
    a, b = Node("a", "b", **more), Node("b", "a", **more)
    live_on(a, b, "k", 3)
    b.write("k", AddTo("b"))
    sync(a, b)
    a.pass_time()
    sync(b, a)
    a.pass_time()
    assert lives_in(a, "k") == (2, 3)
    sync(a, b)
    return a, b


def test_a_newcomer_takes_the_whole_and_then_holds_the_same() -> None:
    a, b = ended()
    c = Node("c", "a", "b")
    sync(c, b)
    assert c.value("k") == a.value("k") == b.value("k")
    assert lives_in(c, "k") == (2, 3)


def test_what_lives_removed_that_are_over_stays_removed_on_an_old_copy() -> None:
    a, b = Node("a", "b"), Node("b", "a")
    b.write("k", AddTo("gone"))
    sync(a, b)
    image = b.disk.copy()
    a.write("k", TakeFrom("gone"))
    live_on(a, b, "k", 1)
    a.pass_time()
    sync(b, a)
    a.pass_time()
    sync(a, b)
    assert lives_in(b, "k")[1] == 1
    b.start(image)
    assert b.value("k") == ["gone"]
    for _ in range(2):
        sync(a, b)
    assert a.value("k") == b.value("k") == [0, 1]
    assert a.machine.shards()[0].cells == b.machine.shards()[0].cells


def test_a_removal_of_what_was_lost_with_a_disk_is_forgotten_with_its_life() -> None:
    context = Context({actor_of(node_id("a"), bytes(8)): 3})
    lost = (actor_of(node_id("a"), bytes(8)), 4)
    context.remove_early(lost, "k")
    context.end((lost[0], 3))
    assert context == Context(over=context.over)


@pytest.mark.parametrize("late", [True, False])
def test_a_lost_disk_that_is_found_when_its_life_is_over_agrees_with_the_others(late: bool) -> None:
    a, b = Node("a", "b"), Node("b", "a")
    b.write("k", AddTo("b"))
    sync(a, b)
    a.write("k", AddTo(1))
    sync(a, b)
    a.write("k", TakeFrom("b"))
    a.write("k", AddTo(2))
    a.sent.clear()
    found = a.disk.copy()
    a.start({})
    sync(b, a)
    a.write("k", AddTo(3))
    sync(a, b)
    a.pass_time()
    sync(b, a)
    a.pass_time()
    sync(a, b)
    assert lives_in(b, "k")[1] == 1
    a.start(found)
    assert a.value("k") == [1, 2]
    if late:  # Written before it knows, it stays.
        a.write("k", AddTo(4))
    for _ in range(3):
        sync(a, b)
        sync(b, a)
    assert a.value("k") == b.value("k") == [1, 3, *([4] if late else []), "b"]
    assert shards_of(a)[0].cells == shards_of(b)[0].cells
    a.start()
    assert a.value("k") == b.value("k"), "on its disk, too"


def test_who_does_not_know_yet_who_everyone_is_ends_nothing_on_the_word_of_nobody() -> None:
    a, b = Node("a", "b"), Node("b", "a")
    live_on(a, b, "k", 4)
    a.start(is_told=False)
    a.pass_time()
    a.step(Peers((b.id,), frozenset((a.id, b.id))))
    a.pass_time()
    a.pass_time()
    assert lives_in(a, "k")[1] == 0, "b has not said that it has seen them"
    sync(b, a)
    a.pass_time()
    sync(b, a)
    a.pass_time()
    assert lives_in(a, "k")[1] > 0


def test_nobody_ends_the_lives_of_others() -> None:
    a, b = Node("a", "b"), Node("b", "a")
    a.write("k", AddTo(1))
    sync(a, b)
    shard = ("b", shard_of("k"))
    mine = actor_of(a.id, bytes(8))
    said = encode_said(shard, actor_of(b.id, bytes(8)), 1, (Change("", None, ((mine, 1),)),))
    batch = make_batch(said, SimSigner(b.id).sign_batch(said))
    a.step(Heard(b.id, Batches(*shard, (batch.raw,))))
    assert a.ignored == ["ends_others"]
    assert lives_in(a, "k") == (1, 0)


def test_a_whole_state_that_ends_the_life_of_who_takes_it_is_refused() -> None:
    a, b = Node("a", "b", log_bytes_max=1), Node("b", "a", log_bytes_max=1)
    for number in range(3):
        b.write("k", AddTo(number))
    a.write("k", AddTo(9))
    sync(b, a)
    assert a.value("k") == [0, 1, 2, 9]
    for number in range(3, 6):
        b.write("k", AddTo(number))
    b.sent.clear()
    cells = b.machine.cells("b", "k")
    assert cells is not None
    cells.context.end((actor_of(a.id, bytes(8)), 1))
    sync(b, a)
    assert "ends_others" in a.ignored
    assert a.value("k") == [0, 1, 2, 9]


def test_a_change_without_a_key_puts_nothing() -> None:
    shard, me = ("b", 0), actor_of(node_id("a"), bytes(8))
    cell = Cell((), Kind.SET, b"\x01", b"", 1)
    with pytest.raises(MalformedMessage, match="without a key"):
        make_batch(encode_said(shard, me, 1, (Change("", cell, ()),)), bytes(64))


def test_turns_become_rarer_while_nothing_changes() -> None:
    node = Node("a", "b")

    def next_s() -> float:
        return next(e.delay_s for e in node.step(SyncDue()) if isinstance(e, SetTimer))

    delays = [next_s() for _ in range(10)]
    assert delays[0] < 1.3
    assert delays[-1] > 3.7
    for event in (Peers((node_id("b"), node_id("c"))), Write(1, "b", "k", Assign(1))):
        node.step(event)
        assert next_s() < 1.3
