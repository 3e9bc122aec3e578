"""How whole views are exchanged: behaviours that memberlist's, serf's and foca's suites hold.

docs/membership.md lists their cases one by one.
"""

from __future__ import annotations

import msgspec
import pytest
from swim_bench import ALIVE, DEAD, LEFT, SUSPECT, Bench, node, rumour

from swarmd.base.errors import MalformedMessage
from swarmd.mesh.events.events import SendEvent
from swarmd.mesh.events.machine import NEW_HERE_S
from swarmd.mesh.swim import exchange
from swarmd.mesh.swim.broadcasts import RUMOUR_BUDGET_BYTES, BroadcastQueue
from swarmd.mesh.swim.events import (
    Changed,
    Join,
    Refused,
    RetryTick,
    Started,
    SyncIn,
    SyncTick,
    SyncWith,
)
from swarmd.mesh.swim.messages import (
    SWIM,
    SYNC_RUMOURS_MAX,
    Ack,
    MemberState,
    Ping,
    Sync,
    decode_rumour,
)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def tell_view(bench: Bench, *rumours: bytes, answer: bool = False) -> None:
    bench.handle(SyncIn(node("peer"), rumours, answer=answer))


def synced_with(bench: Bench) -> list[bytes]:
    return [effect.peer for effect in bench.effects if isinstance(effect, SyncWith)]


# ---- merging ----------------------------------------------------------------------------


def test_a_view_is_merged_by_the_rules_of_rumours(bench: Bench) -> None:
    """Newer words are taken, a suspicion is, a death is doubt only, and who is new has joined."""
    bench.know("a", "b", "c")
    began_at = {name: bench.changed_at(name) for name in "abc"}
    tell_view(
        bench,
        rumour(ALIVE, "a", 2, "new").raw,
        *(rumour(kind, "b", 1).raw for kind in (ALIVE, SUSPECT)),
        *(rumour(kind, "c", 1).raw for kind in (ALIVE, DEAD)),
        rumour(ALIVE, "d", 2).raw,
    )
    assert [bench.state(name) for name in "abcd"] == [
        (ALIVE, 2), (SUSPECT, 1), (SUSPECT, 1), (ALIVE, 2)
    ]  # fmt: skip
    assert bench.changed_at("a") == began_at["a"]
    assert bench.changed_at("b") == bench.changed_at("c") == bench.now
    assert [change.joined for change in bench.changes].count(True) == 1
    c = next(r for r in bench.machine.queued() if r.subject == node("c"))
    assert c.author == node("me"), "this node doubts in its own name what it only read"


def test_the_same_view_again_is_no_news(bench: Bench) -> None:
    view = [rumour(ALIVE, name, 1).raw for name in "abc"]
    tell_view(bench, *view)
    bench.clear()
    tell_view(bench, *view)
    assert (bench.changes, bench.queued) == ([], [])


def test_what_a_view_says_of_this_node_is_answered(bench: Bench) -> None:
    start = 1 << 32
    tell_view(bench, rumour(ALIVE, "me", start).raw, rumour(DEAD, "me", start + 4).raw)
    assert bench.state("me") == (ALIVE, start + 5)
    assert len(bench.machine.members()) == 1


@pytest.mark.parametrize("kind", [DEAD, LEFT])
def test_an_end_in_a_view_without_the_life_before_it_creates_nobody(
    bench: Bench, kind: MemberState
) -> None:
    tell_view(bench, rumour(kind, "x", 1).raw)
    assert bench.machine.get(node("x")) is None


def test_who_is_read_of_as_gone_comes_back_only_by_a_newer_word(bench: Bench) -> None:
    tell_view(bench, rumour(ALIVE, "x", 4).raw, rumour(DEAD, "x", 4).raw)
    bench.tell(rumour(ALIVE, "x", 4))
    assert bench.state("x") == (DEAD, 4)
    bench.tell(rumour(ALIVE, "x", 5))
    assert bench.state("x") == (ALIVE, 5)
    assert [change.joined for change in bench.changes] == [True]


def test_a_goodbye_that_came_before_its_author_is_made_good_by_a_view(bench: Bench) -> None:
    """Gossip keeps no word about who is unknown; a view has both, in the right order."""
    bench.tell(rumour(LEFT, "x", 1))
    assert bench.machine.get(node("x")) is None
    bench.tell(rumour(ALIVE, "x", 1))
    assert bench.state("x") == (ALIVE, 1)
    tell_view(bench, rumour(ALIVE, "x", 1).raw, rumour(LEFT, "x", 1).raw)
    assert bench.state("x") == (LEFT, 1)


def test_a_bad_rumour_in_a_view_spoils_no_other(bench: Bench) -> None:
    good = rumour(ALIVE, "x", 1).raw
    tell_view(bench, b"", b"\xc1", good[:-1], good, good + b"\0")
    refused = [effect for effect in bench.effects if isinstance(effect, Refused)]
    assert refused == [Refused("malformed")] * 4
    assert [e.joined for e in bench.effects if isinstance(e, Changed)] == [True]


# ---- bounds -----------------------------------------------------------------------------


def test_a_view_of_more_rumours_than_any_is_malformed() -> None:
    raw = SWIM.encode(Sync([b""] * SYNC_RUMOURS_MAX))
    decoded = SWIM.decode(raw)
    assert isinstance(decoded, Sync)
    assert len(decoded.rumours) == SYNC_RUMOURS_MAX
    many = msgspec.msgpack.encode([b""] * (SYNC_RUMOURS_MAX + 1))
    fits = msgspec.msgpack.encode([b""] * SYNC_RUMOURS_MAX)
    rest = msgspec.msgpack.encode(b"")
    assert raw.endswith(fits + rest)
    with pytest.raises(MalformedMessage):
        SWIM.decode(raw[: -len(fits + rest)] + many + rest)


def test_a_view_that_is_cut_short_is_malformed() -> None:
    raw = SWIM.encode(Sync([rumour(ALIVE, name, 1).raw for name in "abc"]))
    for length in range(0, len(raw), 7):
        with pytest.raises(MalformedMessage):
            SWIM.decode(raw[:length])


def test_a_view_that_does_not_fit_begins_elsewhere_each_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"n{n}" for n in range(20)]
    bench.know(*names)
    for name in names[::2]:
        bench.tell(rumour(DEAD, name, 1))
    bytes_max = 8 * (len(rumour(ALIVE, "n10", 1).raw) + 3)
    monkeypatch.setattr(exchange, "SYNC_BYTES_MAX", bytes_max)
    told = set()
    for _ in range(60):
        raws = bench.machine.view()
        assert sum(len(raw) + 3 for raw in raws) <= bytes_max
        said = [decode_rumour(raw) for raw in raws]
        assert said[0].subject == node("me")
        for one in said:
            if one.kind is DEAD:
                assert (one.subject, ALIVE) in [(r.subject, r.kind) for r in said]
        told |= {one.subject for one in said}
    assert told == {node("me"), *map(node, names)}


# ---- when -------------------------------------------------------------------------------


def test_now_and_then_a_view_is_exchanged_with_one_who_is_alive(bench: Bench) -> None:
    """Here there is always news, so that digests tell nothing."""
    bench.know("a", "s", "d", "l")
    bench.tell(rumour(SUSPECT, "s", 1), rumour(DEAD, "d", 1), rumour(LEFT, "l", 1))
    bench.handle(Started())
    assert bench.timer(SyncTick).delay_s <= bench.config.sync_interval_s
    for _ in range(10):
        bench.elapse(SyncTick)
        assert synced_with(bench) == [node("a")]
        assert bench.timer(SyncTick).delay_s == bench.config.sync_interval_s


def test_where_nobody_answers_a_view_is_exchanged_each_second_time(bench: Bench) -> None:
    quiet_with_a_tick(bench)
    bench.handle(SyncTick())
    assert len(synced_with(bench)) == 1
    bench.handle(SyncTick())
    assert synced_with(bench) == []


def quiet_with_a_tick(bench: Bench) -> tuple[bytes, bytes]:
    """Two others, no news, and a tick just now; the digests."""
    bench.know("a", "b")
    bench.machine.events._placed = True
    bench.clear()
    bench.handle(SyncTick())
    assert synced_with(bench) == []
    return bench.machine._ledger.members.view_digest(), bench.machine._post.whole()


def test_now_and_then_an_answer_from_one_who_knows_the_same_is_enough(bench: Bench) -> None:
    view, whole = quiet_with_a_tick(bench)
    bench.get("a", Ack(1, view, [], whole))
    assert synced_with(bench) == []
    bench.get("b", Ack(2, view, [], b"other..."))
    assert synced_with(bench) == [], "once in an interval"
    bench.handle(SyncTick())
    assert synced_with(bench) == [], "it was compared since the last time"


def test_who_knows_nothing_of_events_yet_asks_one_who_else_knows_the_same(bench: Bench) -> None:
    view, whole = quiet_with_a_tick(bench)
    bench.machine.events._placed = False
    bench.get("a", Ack(1, view, [], whole))
    assert synced_with(bench) == [node("a")]


@pytest.mark.parametrize("whole", [b"other...", b""], ids=["knows-else", "of-an-older-build"])
def test_now_and_then_views_are_exchanged_with_one_who_knows_something_else(
    bench: Bench, whole: bytes
) -> None:
    """Who is there is agreed upon, and who died or left is not: gossip did not reach somebody."""
    view, mine = quiet_with_a_tick(bench)
    assert mine != whole
    bench.get("a", Ack(1, view, [], whole))
    assert synced_with(bench) == [node("a")]
    bench.get("b", Ack(2, view, [], whole))
    assert synced_with(bench) == []


def test_the_digest_of_all_that_is_known_tells_of_user_events(bench: Bench) -> None:
    """Else what gossip did not bring would never come, where all agree about the members."""
    _, before = quiet_with_a_tick(bench)
    bench.now += NEW_HERE_S
    bench.handle(SendEvent(1, "deploy", "", 0))
    assert bench.machine._post.whole() != before


def test_the_digest_of_all_that_is_known_tells_the_dead_from_the_left(bench: Bench) -> None:
    bench.know("a")
    members = bench.machine._ledger.members
    seen = [members.whole_digest()]
    for kind in (SUSPECT, DEAD, LEFT):
        bench.tell(rumour(kind, "a", 1))
        seen.append(members.whole_digest())
    assert len(set(seen)) == 4
    bench.tell(rumour(ALIVE, "a", 2))
    again = members.whole_digest()
    bench.tell(rumour(SUSPECT, "a", 2))
    bench.tell(rumour(ALIVE, "a", 3))
    assert members.whole_digest() not in (*seen, again)


def test_while_there_is_news_nothing_is_compared(bench: Bench) -> None:
    quiet_with_a_tick(bench)
    bench.tell(rumour(ALIVE, "a", 2, "new"))
    bench.get("a", Ack(1, bench.machine._ledger.members.view_digest(), [], b"other..."))
    assert synced_with(bench) == []
    bench.handle(SyncTick())
    assert len(synced_with(bench)) == 1, "not for ever"


def test_who_is_alone_waits_and_asks_nobody(bench: Bench) -> None:
    bench.handle(Started())
    bench.elapse(SyncTick)
    assert synced_with(bench) == []
    bench.know("a")
    bench.handle(SyncTick())
    assert synced_with(bench) == [node("a")]


def test_equal_views_are_not_exchanged(bench: Bench) -> None:
    bench.know("x")
    view = bench.machine._ledger.members.view_digest()
    for packet in (Ping(1, view, []), Ack(2, view, [])):
        bench.get("x", packet)
        assert synced_with(bench) == []


def test_who_joins_by_itself_joins_nobody(bench: Bench) -> None:
    assert bench.handle(Join((node("me"),))) == []


def test_one_of_several_to_join_by_is_enough(bench: Bench) -> None:
    bench.handle(Join((node("x"), node("y"))))
    assert synced_with(bench) == [node("x"), node("y")]
    bench.handle(SyncIn(node("y"), (rumour(ALIVE, "y", 1).raw,), answer=True))
    assert bench.machine.alive() == [node("me"), node("y")]


def test_a_member_known_dead_can_be_joined_by(bench: Bench) -> None:
    """It may be there again, and know nobody; its own newer word brings it back."""
    bench.know("x")
    bench.after_telling(rumour(DEAD, "x", 1))
    bench.handle(Join((node("x"),)))
    assert synced_with(bench) == [node("x")]
    bench.handle(SyncIn(node("x"), (rumour(ALIVE, "x", 2).raw,), answer=True))
    assert bench.state("x") == (ALIVE, 2)


def test_of_many_dead_some_are_tried_at_a_time_and_none_of_the_left(bench: Bench) -> None:
    names = [f"n{n}" for n in range(10)]
    bench.know("gone", *names)
    bench.after_telling(rumour(LEFT, "gone", 1), *(rumour(DEAD, name, 1) for name in names))
    bench.handle(RetryTick())
    asked = [name for name in names if bench.sent(name)]
    assert len(asked) == len(bench.sent()) == bench.config.retry_dead
    assert bench.sent("gone") == []


# ---- what goes into a packet ------------------------------------------------------------


def test_a_packet_that_is_full_takes_nothing_and_counts_nothing() -> None:
    queue = BroadcastQueue()
    queue.push(rumour(ALIVE, "x", 1))
    large = rumour(ALIVE, "y", 1, "v" * 60)
    first = (large,) * (RUMOUR_BUDGET_BYTES // (len(large.raw) + 3))
    room = RUMOUR_BUDGET_BYTES - len(first) * (len(large.raw) + 3)
    assert room < len(queue.rumours()[0].raw) + 3
    assert queue.take(1, first=first) == [large.raw] * len(first)
    assert len(queue) == 1, "what did not fit was not sent"
    assert queue.take(1) == [rumour(ALIVE, "x", 1).raw]
    assert len(queue) == 0


def test_a_smaller_rumour_goes_where_a_larger_one_does_not_fit() -> None:
    queue = BroadcastQueue()
    large, small = rumour(ALIVE, "y", 1, "v" * 43), rumour(LEFT, "x", 1)
    first = (rumour(ALIVE, "z", 1, "v" * 43),) * (RUMOUR_BUDGET_BYTES // (len(large.raw) + 3))
    room = RUMOUR_BUDGET_BYTES - len(first) * (len(large.raw) + 3)
    assert len(small.raw) + 3 <= room < len(large.raw) + 3
    queue.push(large)
    queue.push(small)
    assert queue.take(5, first=first)[len(first) :] == [small.raw]
    assert queue.take(5) == [large.raw, small.raw]


def test_a_rumour_is_taken_once_in_a_packet() -> None:
    queue = BroadcastQueue()
    queue.push(rumour(ALIVE, "x", 1))
    waiting = queue.rumours()[0]
    assert queue.take(5, first=(waiting,)) == [waiting.raw]
    assert queue.take(5) == [waiting.raw]
