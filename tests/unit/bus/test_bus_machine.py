"""The bus's machine alone: one node, and peers played by hand."""

from __future__ import annotations

from typing import Any

import pytest

from swarmd.base.errors import BadName
from swarmd.base.ids import NodeId, node_id_of
from swarmd.base.limits import BUS_DATA_BYTES_MAX, BUS_HELD_BYTES_MAX, BUS_LANE_MESSAGES_MAX, MIB
from swarmd.base.machine import Effect, Event, Send, SetTimer
from swarmd.mesh.bus import events as e
from swarmd.mesh.bus.machine import BusMachine
from swarmd.mesh.bus.messages import Asked, Held, Interest, Post, Posts, Probe, Result, Results
from swarmd.mesh.bus.messages import Standing as Stands
from swarmd.mesh.bus.topics import Filters, check_filter, check_topic

ME, B, C = (node_id_of(bytes([i]) * 32) for i in range(3))
LIFE, LIFE_B = 11, 22


class Bench:
    """Steps one machine; `sent` are messages to peers since last asked."""

    def __init__(self, **options: Any) -> None:
        self.machine = BusMachine(ME, LIFE, **options)
        self.now = 0.0
        self.effects: list[Effect] = []
        self.timers: list[tuple[float, Event]] = []

    def feed(self, *events: Event) -> list[Effect]:
        found: list[Effect] = []
        for event in events:
            found += self.machine.handle(event, self.now)
        found += self.machine.settle(self.now)
        for effect in found:
            if isinstance(effect, SetTimer):
                self.timers.append((self.now + effect.delay_s, effect.event))
        self.effects += found
        return [one for one in found if not isinstance(one, SetTimer)]

    def pass_time(self, seconds: float) -> list[Effect]:
        """Fire the timers of that time in order; what came of it."""
        end = self.now + seconds
        found: list[Effect] = []
        while due := [one for one in self.timers if one[0] <= end]:
            first = min(due, key=lambda one: one[0])
            self.timers.remove(first)
            self.now = first[0]
            found += self.feed(first[1])
        self.now = end
        return found

    def know(self, peer: NodeId, *filters: str, life: int = LIFE_B, version: int = 2) -> None:
        """A peer that takes part and holds all that this node says."""
        self.feed(e.PeerUp(peer))
        mine = self.machine._interests.version
        self.feed(e.Heard(peer, Interest(life, version, LIFE, mine, True, True, filters)))
        self.feed(e.Heard(peer, Interest(life, version, LIFE, mine, False, True, filters)))

    def subscribe(self, number: int, *filters: str, inbox_max: int = 10) -> list[Effect]:
        return self.feed(e.Subscribe(number, f"s{number}", filters, inbox_max))

    def publish(self, token: int, topic: str = "t", lane: int = 0) -> list[Effect]:
        return self.feed(e.Publish(token, lane, topic, "", b"%d" % token, 5.0))

    def hear(
        self, *numbers: int, session: int = 1, life: int = LIFE_B, **more: Any
    ) -> list[Effect]:
        posts = tuple(post(number, **more) for number in numbers)
        return self.feed(e.Heard(B, Posts(life, LIFE, session, posts)))


def post(
    number: int, *, data: bytes = b"", done: int = 0, patience_ms: int = 1_000, lane: int = 0
) -> Post:
    return Post(lane, number, done, "t", "", data or b"%d" % number, patience_ms)


def delivered(effects: list[Effect]) -> list[int]:
    return [int(one.arrival.data) for one in effects if isinstance(one, e.Deliver)]


def sent(effects: list[Effect], kind: type) -> list[Any]:
    return [x.message for x in effects if isinstance(x, Send) and isinstance(x.message, kind)]


def outcomes(effects: list[Effect]) -> list[tuple[int, e.Reach]]:
    return [(one.token, one.reach) for one in effects if isinstance(one, e.Outcome)]


# ---- topics -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "topic", "fits"),
    [
        (["a/b"], "a/b", True),
        (["a/b"], "a/bc", False),
        (["a/*"], "a/b", True),
        (["a/*"], "a", False),
        (["*"], "anything", True),
        (["*"], "@bob", False),
        (["@*"], "@bob", True),
        (["@bob"], "@bob", True),
        (["@bob"], "*", True),
        ([], "*", False),
    ],
)
def test_which_topics_fit(filters: list[str], topic: str, fits: bool) -> None:
    assert Filters(filters).fit(topic) is fits


def test_what_is_a_topic() -> None:
    assert check_topic("*") == "*"
    assert check_filter("orders/*") == "orders/*"
    for text in ("", "@", "a*b", "a b", "a\tb", "é" * 101, "\ud800"):
        with pytest.raises(BadName):
            check_filter(text)
    with pytest.raises(BadName, match="publish to one of them"):
        check_topic("a/*")


# ---- who subscribes where ---------------------------------------------------------------------


def test_a_node_that_takes_no_part_only_answers() -> None:
    bench = Bench()
    assert bench.feed(e.PeerUp(B), e.PeerUp(C)) == []
    ask = Interest(LIFE_B, 3, 0, 0, True, True, ("t",))
    [effect] = bench.feed(e.Heard(B, ask))
    assert effect == Send(B, Interest(LIFE, 1, LIFE_B, 3, False, False, ()))
    assert bench.pass_time(60) == []


def test_who_begins_tells_everybody_until_it_is_answered() -> None:
    bench = Bench()
    bench.feed(e.PeerUp(B), e.PeerUp(C))
    out = bench.subscribe(1, "t")
    hello = Interest(LIFE, 2, 0, 0, True, True, ("t",))
    assert out == [Send(B, hello), Send(C, hello)]
    out = bench.feed(e.Heard(B, Interest(LIFE_B, 1, LIFE, 2, False, False, ())))
    assert out == []
    again = bench.pass_time(0.9)
    assert again == [Send(C, hello), Send(C, hello)]
    out = bench.feed(e.Heard(C, Interest(33, 1, LIFE, 2, False, False, ())))
    assert out == [e.Spread(1)]
    assert bench.pass_time(60) == []


def test_a_silent_peer_is_waited_for_a_second_and_no_longer() -> None:
    bench = Bench()
    bench.feed(e.PeerUp(B))
    bench.subscribe(1, "t")
    assert outcomes(bench.publish(7)) == []
    out = bench.pass_time(1.01)
    assert outcomes(out) == [(7, e.Reach(1))]
    assert [one for one in out if isinstance(one, e.Spread)] == [e.Spread(1)]


def test_changes_go_to_those_who_have_begun_one_at_a_time() -> None:
    bench = Bench()
    bench.know(B)
    bench.know(C, life=33)
    bench.subscribe(1, "t")
    bench.subscribe(2, "u")
    told = [one for one in bench.effects if isinstance(one, Send) and one.message.ask]
    assert [(one.peer, one.message.version) for one in told] == [(B, 2), (C, 2)]
    out = bench.feed(e.Heard(B, Interest(LIFE_B, 2, LIFE, 2, False, True)))
    assert [one.filters for one in sent(out, Interest)] == [("t", "u")]


def test_a_peer_that_dies_is_not_published_to_and_is_asked_again_when_it_is_back() -> None:
    bench = Bench()
    bench.know(B, "t")
    bench.publish(1)
    assert len(sent(bench.publish(2), Posts)) == 1
    bench.feed(e.PeerGone(B))
    assert outcomes(bench.publish(3)) == [(3, e.Reach(0))]
    assert sent(bench.feed(e.PeerUp(B)), Interest)[0].ask


# ---- sending ------------------------------------------------------------------------------------


def begun(**options: Any) -> Bench:
    """A bench that publishes to B, which asks for `t`."""
    bench = Bench(**options)
    bench.know(B, "t")
    bench.publish(1)
    bench.feed(e.Heard(B, Interest(LIFE_B, 2, LIFE, 1, False, True)))
    return bench


def result(*numbers: int, reached: int = 1, session: int = 1) -> e.Heard:
    results = tuple(Result(0, number, reached) for number in numbers)
    return e.Heard(B, Results(LIFE_B, LIFE, session, results))


def test_a_post_is_kept_until_it_is_settled_and_told_once() -> None:
    bench = begun()
    assert outcomes(bench.feed(result(1, reached=3))) == [(1, e.Reach(3))]
    assert bench.feed(result(1, reached=3)) == []
    assert bench.machine.is_empty
    assert bench.pass_time(60) == []


def test_who_settles_nothing_is_asked_with_growing_pauses() -> None:
    bench = begun()
    asked = sent(bench.pass_time(10), Probe)
    assert asked == [Probe(LIFE, LIFE_B, 1, (Asked(0, 1, 1),))] * 7


def test_what_a_node_lacks_is_sent_again_in_order_and_once() -> None:
    bench = begun()
    bench.publish(2)
    bench.publish(3)
    bench.feed(result(1))
    bench.now = 1.0
    stands = e.Heard(B, Stands(LIFE_B, LIFE, 1, (Held(0, 1),)))
    [posts] = sent(bench.feed(stands, stands), Posts)
    assert [one.number for one in posts.posts] == [2, 3]
    assert [one.done for one in posts.posts] == [0, 0], "posts go again as they were"
    assert bench.feed(stands) == []
    bench.now = 2.0
    assert len(sent(bench.feed(stands), Posts)) == 1


def test_a_node_that_lost_its_place_is_not_believed_and_a_new_session_begins() -> None:
    bench = begun()
    bench.publish(2)
    bench.feed(result(1))
    out = bench.feed(e.Heard(B, Stands(LIFE_B, LIFE, 1, (Held(0, 0),))))
    assert outcomes(out) == [(2, e.Reach(0, unknown=(B,)))]
    [posts] = sent(bench.publish(3), Posts)
    assert (posts.session, posts.posts[0].number) == (2, 1)


@pytest.mark.parametrize("how", ["dead", "left", "new life"])
def test_what_a_lost_process_has_not_settled_is_unknown(how: str) -> None:
    bench = begun()
    events = {
        "dead": e.PeerGone(B),
        "left": e.PeerGone(B, for_good=True),
        "new life": e.Heard(B, Interest(99, 1, 0, 0, True, True, ())),
    }
    assert outcomes(bench.feed(events[how])) == [(1, e.Reach(unknown=(B,)))]
    assert bench.machine.is_empty
    assert bench.feed(result(1)) == []


def test_a_former_life_is_not_heard_any_more() -> None:
    bench = begun()
    bench.feed(e.Heard(B, Interest(99, 1, 0, 0, True, True, ("u",))))
    late = Interest(LIFE_B, 9, LIFE, 1, True, True, ("t",))
    assert bench.feed(e.Heard(B, late)) == []
    assert outcomes(bench.publish(2)) == [(2, e.Reach(0))]


def test_who_gives_up_is_told_what_is_known_and_the_post_goes_on() -> None:
    bench = begun()
    assert outcomes(bench.feed(e.GiveUp(1))) == [(1, e.Reach(unknown=(B,)))]
    assert not bench.machine.is_empty or sent(bench.pass_time(1), Probe)
    assert outcomes(bench.feed(result(1))) == []
    assert bench.machine.is_empty


def test_a_node_that_settles_nothing_is_sent_so_much_and_no_more() -> None:
    bench = begun()
    for token in range(2, BUS_LANE_MESSAGES_MAX + 1):
        assert outcomes(bench.publish(token)) == []
    assert outcomes(bench.publish(9_999)) == [(9_999, e.Reach(unknown=(B,)))]


# ---- receiving ----------------------------------------------------------------------


def listening(inbox_max: int = 10, **options: Any) -> Bench:
    """A bench with one subscriber of `t`, to which B publishes."""
    bench = Bench(**options)
    bench.know(B)
    bench.subscribe(1, "t", inbox_max=inbox_max)
    bench.feed(e.Heard(B, Interest(LIFE_B, 2, LIFE, 2, False, True)))
    return bench


def test_posts_are_taken_once_and_in_order_and_repeats_are_answered() -> None:
    bench = listening()
    out = bench.hear(1, 2)
    assert delivered(out) == [1, 2]
    assert sent(out, Results) == [Results(LIFE, LIFE_B, 1, (Result(0, 1, 1), Result(0, 2, 1)))]
    out = bench.hear(2, 4, 3)
    assert delivered(out) == [3]
    assert sent(out, Results)[0].results == (Result(0, 2, 1), Result(0, 3, 1))
    assert sent(out, Stands) == [Stands(LIFE, LIFE_B, 1, (Held(0, 3),))]


def test_results_are_kept_until_the_sender_knows_them() -> None:
    bench = listening()
    bench.hear(1, 2)
    assert sent(bench.hear(3, done=2), Results)[0].results == (Result(0, 3, 1),)
    assert sent(bench.hear(1, 2), Results) == []
    probe = Probe(LIFE_B, LIFE, 1, (Asked(0, 3, 5),))
    out = bench.feed(e.Heard(B, probe))
    assert sent(out, Results)[0].results == (Result(0, 3, 1),)
    assert sent(out, Stands)[0].lanes == (Held(0, 3),)


def test_a_full_inbox_holds_up_one_lane_until_there_is_room() -> None:
    bench = listening(inbox_max=1)
    assert delivered(bench.hear(1, 2, 3, patience_ms=60_000)) == [1]
    assert delivered(bench.feed(e.Taken(1, 1, 1))) == [2]
    assert delivered(bench.feed(e.Unsubscribe(1))) == []
    assert bench.machine.is_empty


def test_patience_counts_from_when_a_post_came_and_then_the_slow_are_named() -> None:
    bench = listening(inbox_max=1)
    bench.hear(1)
    bench.hear(2, 3, patience_ms=500)
    assert sent(bench.pass_time(0.49), Results) == []
    slow = tuple(Result(0, number, 0, 1, ("s1",)) for number in (2, 3))
    out = bench.pass_time(0.02)
    assert tuple(one for x in sent(out, Results) for one in x.results) == slow
    assert delivered(bench.feed(e.Taken(1, 1, 1))) == []


def test_a_lane_is_held_up_by_its_own_posts_only() -> None:
    bench = listening(inbox_max=1)
    bench.subscribe(2, "t", "u")
    bench.hear(1, 2)
    other = Post(1, 1, 0, "u", "", b"9", 1_000)
    assert delivered(bench.feed(e.Heard(B, Posts(LIFE_B, LIFE, 1, (other,))))) == [9]


def test_one_node_cannot_make_another_grow() -> None:
    bench = listening(inbox_max=1)
    bench.hear(1)
    big = bytes(BUS_DATA_BYTES_MAX)
    for number in range(2, 2_000):
        bench.hear(number, data=big, patience_ms=60_000)
    source = bench.machine._inflow._sources[B]
    assert source.held_bytes <= BUS_HELD_BYTES_MAX
    assert source.lanes[0].got < 2_000
    bench = listening(inbox_max=10_000)
    for number in range(1, 3_000):
        bench.hear(number)
    lane = bench.machine._inflow._sources[B].lanes[0]
    assert len(lane.results) + len(lane.queue) <= BUS_LANE_MESSAGES_MAX


def test_a_node_that_never_knows_its_results_has_so_many_kept() -> None:
    bench = listening(inbox_max=1_000_000)
    for lane in range(80):
        for number in range(1, 1_001):
            bench.hear(number, lane=lane, data=b"1")
    source = bench.machine._inflow._sources[B]
    kept = sum(len(lane.results) for lane in source.lanes.values())
    assert kept == source.results_kept == 65_536
    assert not source.lanes[0].results, "the oldest go"
    assert len(source.lanes[79].results) == 1_000


def test_an_ended_session_is_not_heard() -> None:
    bench = listening()
    bench.hear(1, 2, session=2)
    assert bench.hear(3, session=1) == []
    assert delivered(bench.hear(1, session=3)) == [1]


def test_without_its_guard_an_ended_session_is_heard() -> None:
    bench = listening(removed_guards=frozenset({"one_session"}))
    bench.hear(1, 2, session=2)
    assert delivered(bench.hear(3, session=1)) == [3]


def test_who_takes_this_for_a_former_process_is_told_better() -> None:
    bench = listening()
    out = bench.feed(e.Heard(B, Posts(LIFE_B, 77, 1, (post(1),))))
    assert delivered(out) == []
    [told] = sent(out, Interest)
    assert (told.life, told.ask, told.filters) == (LIFE, False, ("t",))


def test_a_stranger_to_membership_is_not_heard() -> None:
    bench = listening()
    assert bench.feed(e.Heard(C, Interest(33, 1, 0, 0, True, True, ("t",)))) == []
    bench.feed(e.PeerGone(B))
    assert bench.hear(1) == []


def test_local_subscribers_need_no_wire() -> None:
    bench = Bench()
    bench.subscribe(1, "t")
    bench.subscribe(2, "*", inbox_max=1)
    out = bench.publish(1)
    assert delivered(out) == [1, 1]
    assert outcomes(out) == [(1, e.Reach(2))]
    assert sent(out, Posts) == []
    out = bench.publish(2)
    assert delivered(out) == [2]
    assert outcomes(bench.pass_time(5.1)) == [(2, e.Reach(1, 1, ("s2",)))]


# ---- bounds -------------------------------------------------------------------------------------


def test_a_node_has_a_few_alarms_set_whatever_it_sends() -> None:
    bench = listening(inbox_max=1)
    bench.hear(1)
    for session in range(1, 400):
        patience_ms = 60_000 - 100 * session
        blocked = tuple(post(1, lane=lane, patience_ms=patience_ms) for lane in range(256))
        bench.feed(e.Heard(B, Posts(LIFE_B, LIFE, session + 1, blocked)))
        bench.now += 0.001
        assert len(bench.timers) < 40


def test_each_lane_is_waited_for_as_long_as_its_own_patience() -> None:
    bench = listening(inbox_max=1)
    bench.hear(1)
    for lane, patience_ms in enumerate((4_000, 3_000, 50, 2_000, 1), 1):
        bench.hear(1, lane=lane, patience_ms=patience_ms)
    settled = []
    while bench.timers and bench.now < 10:
        out = bench.pass_time(0.001)
        for message in sent(out, Results):
            settled += [(one.lane, bench.now) for one in message.results]
    assert [lane for lane, _ in settled] == [5, 3, 4, 2, 1]
    assert [at for _, at in settled] == pytest.approx([0.001, 0.05, 2, 3, 4], abs=0.003)


def test_what_nobody_waits_for_any_more_is_kept_up_to_a_bound_and_then_a_session_begins() -> None:
    bench = begun()
    big = bytes(BUS_DATA_BYTES_MAX)
    target = bench.machine._outflow._targets[B]
    for token in range(2, 3_000):
        bench.feed(e.Publish(token, token % 1_000, "t", "", big, 5.0), e.GiveUp(token))
        kept = sum(len(one.data) for lane in target.lanes.values() for one, _ in lane.open.values())
        assert kept <= 65 * MIB
        if target.session > 1:
            break
    assert token > 1_000, "64 MiB are kept"
    assert outcomes(bench.effects)[-1] == (1, e.Reach(unknown=(B,)))
    bench.publish(9_998)
    assert outcomes(bench.feed(result(1, session=2))) == [(9_998, e.Reach(1))]
    assert bench.machine.is_empty


def test_what_is_settled_after_all_makes_room_for_more() -> None:
    bench = begun()
    big = bytes(BUS_DATA_BYTES_MAX)
    for token in range(2, 1_500):
        bench.feed(e.Publish(token, 0, "t", "", big, 5.0), e.GiveUp(token), result(token))
    target = bench.machine._outflow._targets[B]
    assert (target.session, target.orphans_bytes) == (1, 0)


def test_the_node_that_holds_up_most_goes_first_when_many_settle_nothing() -> None:
    bench = Bench()
    peers = [node_id_of(bytes([i]) * 32) for i in range(10, 16)]
    for index, peer in enumerate(peers):
        bench.know(peer, "t", *(["u"] if index == 3 else []), life=100 + index)
    bench.subscribe(1, "x")
    big = bytes(BUS_DATA_BYTES_MAX)
    for token in range(1, 900):
        topic = "u" if token < 50 else "t"
        bench.feed(e.Publish(token, token % 1_000, topic, "", big, 5.0), e.GiveUp(token))
        if any(one.session > 1 for one in bench.machine._outflow._targets.values()):
            break
    sessions = [bench.machine._outflow._targets[peer].session for peer in peers]
    assert sessions == [1, 1, 1, 2, 1, 1]
    assert bench.machine._outflow._orphans_bytes <= 256 * MIB


def test_a_lane_that_stands_still_is_asked_about_while_others_flow() -> None:
    bench = begun()
    bench.publish(2, lane=1)
    asked = []
    for number in range(3, 23):
        bench.publish(number)
        asked += sent(bench.pass_time(0.05), Probe)
        bench.feed(result(number - 2))
    assert asked
    assert all(one.lanes == (Asked(1, 1, 1),) for one in asked)


def test_posts_to_ones_own_node_are_asked_for_like_any() -> None:
    bench = Bench()
    bench.subscribe(1, "t", inbox_max=1)
    big = bytes(BUS_DATA_BYTES_MAX)
    for token in range(400):
        bench.feed(e.Publish(token, 0, "t", "", big, 60.0))
    taken = 0
    for _ in range(450):
        if sum(isinstance(one, e.Deliver) for one in bench.effects) > taken:
            taken += 1
            bench.feed(e.Taken(1, 1, len(big)))
        bench.pass_time(0.1)
    assert sent(bench.effects, Probe) == [], "there is no wire"
    assert outcomes(bench.effects) == [(token, e.Reach(1)) for token in range(400)]


def test_a_probe_is_answered_with_each_result_once_and_so_much_at_a_time() -> None:
    bench = listening(inbox_max=100_000)
    for begin in range(1, 1_001, 250):
        bench.hear(*range(begin, begin + 250))
    probe = Probe(LIFE_B, LIFE, 1, (Asked(0, 1, 1_000),) * 1_024)
    told = [one for x in sent(bench.feed(e.Heard(B, probe)), Results) for one in x.results]
    assert [one.number for one in told] == [*range(1, 1_001)]
    out: list[Effect] = []
    for _ in range(100):
        out += bench.machine.handle(e.Heard(B, probe), bench.now)
    told = [one for x in sent(bench.feed(), Results) for one in x.results]
    assert len(told) == 1_000


def test_results_that_name_many_are_not_all_repeated_at_once() -> None:
    bench = Bench()
    bench.know(B)
    for number in range(1, 9):
        bench.feed(e.Subscribe(number, f"{number}" * 120, ("t",), 1))
    bench.hear(1)
    for lane in range(1, 4):
        for begin in range(1, 1_001, 250):
            bench.hear(*range(begin, begin + 250), lane=lane, patience_ms=0)
    lanes = tuple(Asked(lane, 1, 1_000) for lane in range(1, 4))
    out = bench.feed(e.Heard(B, Probe(LIFE_B, LIFE, 1, lanes)))
    told = [one for x in sent(out, Results) for one in x.results]
    assert 200 < len(told) < 1_000
    rest = Probe(LIFE_B, LIFE, 1, (Asked(1, told[-1].number + 1, 1_000),))
    [first, *_] = sent(bench.feed(e.Heard(B, rest)), Results)
    assert first.results[0].number == told[-1].number + 1


@pytest.mark.parametrize(
    "message",
    [
        Interest(LIFE_B, 2, LIFE, 0, False, True),
        Interest(LIFE_B, 2, LIFE, 0, True, True),
        Interest(LIFE_B, 2, 7, 2, True, True),
        Posts(LIFE_B, 77, 1, ()),
    ],
    ids=["answers", "asks", "asks another", "another life"],
)
def test_who_says_that_it_holds_nothing_is_not_told_all_each_time(message: Any) -> None:
    bench = listening()
    out: list[Effect] = []
    current = Interest(LIFE_B, 2, LIFE, 2, False, True)
    for _ in range(500):
        out += bench.feed(e.Heard(B, message), e.Heard(B, current))
        out += bench.pass_time(0.002)
    assert sum(one.filters is not None for one in sent(out, Interest)) <= 5


def test_who_never_says_that_it_holds_anything_is_told_with_pauses() -> None:
    bench = Bench()
    bench.feed(e.PeerUp(B))
    bench.subscribe(1, "t")
    out: list[Effect] = []
    for _ in range(500):
        out += bench.feed(e.Heard(B, Interest(LIFE_B, 2, LIFE, 0, False, True, ())))
        out += bench.pass_time(0.002)
    assert 1 <= len(sent(out, Interest)) <= 3
    assert len(bench.timers) <= 3


def test_who_lost_what_it_held_asks_and_is_told_all() -> None:
    bench = listening()
    out = bench.feed(e.Heard(B, Interest(LIFE_B, 2, LIFE, 0, True, True)))
    assert [one.filters for one in sent(out, Interest)] == [("t",)]
