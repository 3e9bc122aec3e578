"""User events: what is told, to whom, once, and what a member cannot do to the others by them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from swarmd.base.errors import BadRequest, MalformedMessage, TooLarge
from swarmd.base.limits import EVENTS_KEPT_BYTES_MAX, EVENTS_KEPT_MAX
from swarmd.mesh.events.clock import FAR, FAR_EVERY_S, NEAR, LamportClock
from swarmd.mesh.events.events import Answered, EventRefused, Happened, Remember, SendEvent
from swarmd.mesh.events.machine import EARLY_MAX, NEW_HERE_S, OWN_WAITING_MAX, EventsMachine, Kept
from swarmd.mesh.events.messages import (
    EVENT_BYTES_MAX,
    SIGNATURE_BYTES,
    TIME_MAX,
    TOLD_BYTES_MAX,
    Said,
    SignedEvent,
    UserEvent,
    check_event,
    decode_event,
    decode_told,
    encode_said,
    make_event,
)
from swarmd.mesh.events.queue import EventQueue
from swarmd.mesh.events.recent import Recent
from swarmd.sim.swim import SimSigner, node_id

MONTH_S = 30 * 24 * 3_600


def event(
    time: int = 1, name: str = "deploy", payload: str = "", by: str = "peer", wall_ms: int = 0
) -> UserEvent:
    said = encode_said(time, node_id(by), name, payload, wall_ms)
    return make_event(said, SimSigner(node_id(by)).sign_event(said))


class Member:
    """A machine, what it was told, and what it refused. It made the swarm unless `new`."""

    def __init__(self, name: str = "me", *, new: bool = False, kept: Any = None) -> None:
        self.name = name
        me = node_id(name)
        self.machine = EventsMachine(me, SimSigner(me), 0.0, kept, founder=not new)
        self.now = 1.0
        self.told: list[UserEvent] = []
        self.refused: list[str] = []
        self.remembered = 0
        self.answers: list[Any] = []
        self.tickets = 0

    def note(self, effects: list[Any]) -> None:
        self.told += [e.event for e in effects if isinstance(e, Happened)]
        self.refused += [e.reason for e in effects if isinstance(e, EventRefused)]
        self.remembered += sum(isinstance(e, Remember) for e in effects)
        self.answers += [e.outcome for e in effects if isinstance(e, Answered)]

    def hear(self, *events: UserEvent) -> list[UserEvent]:
        """What the events make it tell."""
        before = len(self.told)
        for one in events:
            self.note(self.machine.hear(one.raw, self.now))
        return self.told[before:]

    def send(self, name: str = "deploy", payload: str = "", *, alone: bool = False) -> Any:
        self.tickets += 1
        sending = SendEvent(self.tickets, name, payload, 7)
        self.note(self.machine.on_send(sending, self.now, alone=alone))
        return self.answers[-1]

    def ask(self, other: Member) -> bool:
        """A push-pull with another; True if the other wants one in return."""
        asked = self.machine.told()
        answer = other.machine.told(asked)
        effects, wants = other.machine.hear_told(asked, other.now, answer=False)
        other.note(effects)
        effects, _ = self.machine.hear_told(answer, self.now, answer=True)
        self.note(effects)
        return wants


# ---- names, sizes, bytes ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "ä", "a\n", ".a"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="is not a user event name"):
        check_event(name, "")


def test_a_name_has_at_most_128_bytes() -> None:
    check_event("x" * 128, "")
    with pytest.raises(BadRequest, match="128"):
        check_event("x" * 129, "")


def test_a_payload_has_at_most_512_bytes_and_not_characters() -> None:
    check_event("a", "ä" * 256)
    with pytest.raises(TooLarge, match=r"513 bytes.*at most 512.*nothing was sent"):
        check_event("a", "ä" * 256 + "x")
    with pytest.raises(BadRequest, match="Unicode"):
        check_event("a", "\ud800")


def test_the_largest_event_is_within_its_bound() -> None:
    largest = event(TIME_MAX, "x" * 128, "y" * 512, wall_ms=2**62)
    assert len(largest.raw) <= EVENT_BYTES_MAX - 40, "there is room for what is added later"
    assert decode_event(largest.raw) == largest


def test_what_no_honest_sender_makes_is_malformed() -> None:
    def forged(**changes: Any) -> bytes:
        fields = {"time": 1, "origin": node_id("peer"), "name": "a", "payload": "", "wall_ms": 0}
        said = msgspec.msgpack.encode(Said(**(fields | changes)))
        return msgspec.msgpack.encode(SignedEvent(said, bytes(SIGNATURE_BYTES)))

    decode_event(forged())
    for changes in (
        {"time": 0}, {"time": TIME_MAX + 1}, {"time": -1}, {"origin": b"x"}, {"name": ""},
        {"name": "a b"}, {"name": "x" * 129}, {"payload": "x" * 513}, {"payload": "ä" * 300},
        {"wall_ms": -1},
    ):  # fmt: skip
        with pytest.raises(MalformedMessage):
            decode_event(forged(**changes))
    with pytest.raises(MalformedMessage):
        decode_event(bytes(EVENT_BYTES_MAX + 1))


def test_what_a_later_version_adds_under_its_signature_is_passed_on() -> None:
    """Field for field as `Said`, and one more."""
    said = msgspec.msgpack.encode([1, node_id("peer"), "deploy", "v2", 0, {"new": True}])
    newer = make_event(said, SimSigner(node_id("peer")).sign_event(said))
    member = Member()
    assert [one.payload for one in member.hear(newer)] == ["v2"]
    assert member.machine.queue.take(2_000, 4, 64) == [newer.raw]


# ---- once -------------------------------------------------------------------------------


def test_an_event_is_told_once_however_often_and_by_whom_it_comes() -> None:
    a, b = Member("a"), Member("b")
    first = a.send()
    assert a.told == [first]
    assert b.hear(first, first) == [first]
    assert a.hear(first) == []
    b.ask(a), a.ask(b)
    assert (a.told, b.told, a.refused, b.refused) == ([first], [first], [], [])


def test_events_of_one_time_are_told_apart_by_all_that_was_signed() -> None:
    one_time = [
        event(5, "a"), event(5, "b"), event(5, "a", "x"), event(5, "a", by="other"),
        event(5, "a", wall_ms=1),
    ]  # fmt: skip
    assert Member().hear(*one_time, *one_time) == one_time


def test_what_is_older_than_is_kept_is_refused_and_never_told_again() -> None:
    member = Member()
    events = [event(time, str(time)) for time in range(1, EVENTS_KEPT_MAX + 11)]
    assert member.hear(*events) == events
    assert member.machine.recent() == events[10:]
    assert member.hear(*events[:10], event(3, "late")) == []
    assert member.refused == ["old"] * 11


def test_what_is_kept_is_bounded_in_bytes_too() -> None:
    member = Member()
    events = [event(time, "a", "x" * 512) for time in range(1, 401)]
    member.hear(*events)
    kept = member.machine.recent()
    assert 200 < len(kept) < 400
    assert kept == events[-len(kept) :]
    assert sum(len(one.raw) for one in kept) <= EVENTS_KEPT_BYTES_MAX
    assert len(Member("b").machine.told(member.machine.told())) <= TOLD_BYTES_MAX
    assert len(member.machine.told(Member("b").machine.told())) <= TOLD_BYTES_MAX


def test_the_same_events_in_another_order_leave_the_same_ones_kept() -> None:
    events = [event(1 + n // 3, f"e{n}", "x" * (n * 37 % 500)) for n in range(700)]
    some, others = Recent(), Recent()
    for recent, order in ((some, events), (others, [*events[350:], *reversed(events[:350])])):
        for one in order:
            if not recent.is_old(one.key):
                recent.add(one)
    assert some.events() == others.events()
    assert some.sum() == others.sum() != Recent().sum()


# ---- whose ------------------------------------------------------------------------------


def test_a_wrong_signature_is_refused_and_what_it_covers_is_all_of_the_event() -> None:
    member, sound = Member(), event(1, "deploy", "v1")
    for number in range(len(sound.said)):
        said = bytearray(sound.said)
        said[number] ^= 1
        raw = msgspec.msgpack.encode(SignedEvent(bytes(said), sound.signature))
        member.note(member.machine.hear(raw, 1.0))
    assert member.told == []
    assert set(member.refused) == {"malformed", "bad_signature"}
    assert member.machine.recent() == []
    assert member.machine.kept().time == 0, "its clock did not move either"  # type: ignore[union-attr]
    assert member.hear(sound) == [sound]


def test_what_evicted_members_sent_is_told_to_nobody_any_more() -> None:
    member = Member()
    bad, good = event(1, by="bad"), event(2, by="good")
    member.hear(bad, good)
    member.note(member.machine.shut_out(frozenset({node_id("bad")})))
    assert member.machine.recent() == [good]
    assert member.machine.queue.take(2_000, 4, 64) == [good.raw]
    newcomer = Member("new", new=True)
    newcomer.ask(member)
    assert newcomer.machine.recent() == [good]


def test_after_a_flooder_was_evicted_members_hold_the_same_events_again() -> None:
    flooded, spared = Member("flooded"), Member("spared")
    old = [event(time, by="good") for time in range(1, 9)]
    flood = [event(100 + number, by="bad") for number in range(EVENTS_KEPT_MAX)]
    for member in (flooded, spared):
        member.hear(*old)
    flooded.hear(*flood)
    assert not set(old) & set(flooded.machine.recent()), "it has no room for them"
    for member in (flooded, spared):
        member.note(member.machine.shut_out(frozenset({node_id("bad")})))
    flooded.ask(spared)
    assert flooded.machine.sum() == spared.machine.sum()
    assert flooded.machine.recent() == old
    assert flooded.told == [*old, *flood], "nothing is told again"
    again = Member("flooded", kept=flooded.machine.kept())
    assert again.machine.recent() == old
    again.note(again.machine.shut_out(frozenset({node_id("good")})))
    again.hear(*old)
    assert again.told == []


# ---- to all -----------------------------------------------------------------------------


def test_push_pull_gives_what_the_other_lacks_and_nothing_where_nothing_is_lacking() -> None:
    a, b = Member("a"), Member("b")
    sent = [a.send(str(number)) for number in range(3)]
    assert a.ask(b), "b sees by the sums that it lacks something"
    assert b.told == []
    b.ask(a)
    assert b.told == sent
    assert not b.ask(a)
    for one in (a.machine.told(), a.machine.told(b.machine.told())):
        assert decode_told(one).events == []
        assert len(one) < 32, "an idle swarm exchanges a few bytes"


def test_what_an_older_build_tells_is_nothing() -> None:
    a = Member("a")
    a.send()
    assert a.machine.hear_told(b"", 1.0, answer=True) == ([], False)
    assert decode_told(a.machine.told(b"")).events == []


def test_what_is_not_from_here_is_malformed_and_harms_nothing() -> None:
    a = Member("a")
    a.send()
    for raw in (b"\xff", b"\x90", msgspec.msgpack.encode([2**63, True, b"", []]), b"\x94\xc0"):
        a.note(a.machine.hear_told(raw, 1.0, answer=True)[0])
        assert decode_told(a.machine.told(raw)).events == []
    assert a.refused == ["malformed"] * 4


def test_an_event_is_passed_on_a_bounded_number_of_times_and_fewest_first() -> None:
    queue = EventQueue()
    old, new = event(1, "old"), event(2, "new")
    queue.push(old)
    assert queue.take(1_000, 3, 64) == [old.raw]
    queue.push(new)
    assert queue.take(len(new.raw) + 3, 3, 64) == [new.raw]
    assert [queue.take(1_000, 3, 64) for _ in range(3)] == [
        [old.raw, new.raw], [old.raw, new.raw], [],
    ]  # fmt: skip
    assert len(queue) == 0


def test_more_waits_than_may_and_the_most_told_goes_first() -> None:
    queue = EventQueue()
    for number in range(EVENTS_KEPT_MAX):
        queue.push(event(number + 1, str(number)))
    [told] = queue.take(200, 9, 1)
    queue.push(event(9_999, "last"))
    assert len(queue) == EVENTS_KEPT_MAX
    assert told not in queue.take(10**6, 9, 10**6)


def test_a_node_sends_no_more_at_once_than_it_can_pass_on() -> None:
    a = Member("a")
    for _ in range(OWN_WAITING_MAX):
        assert isinstance(a.send(), UserEvent)
    assert a.send() == "busy"
    assert len(a.machine.recent()) == OWN_WAITING_MAX
    while a.machine.queue.take(1_000, 1, 64):
        pass
    assert isinstance(a.send(), UserEvent)


def test_where_there_is_nobody_to_tell_nothing_waits() -> None:
    a = Member("a")
    a.send()
    a.machine.queue.clear()
    assert a.machine.queue.fresh() == ()
    assert a.machine.queue.take(1_000, 4, 64) == []
    b = Member("b")
    b.ask(a)
    assert len(b.told) == 1, "who comes back asks"


# ---- from now on ------------------------------------------------------------------------


def test_a_newcomer_is_told_nothing_of_before_and_all_from_then_on() -> None:
    a, new = Member("a"), Member("new", new=True)
    before = [a.send("before", str(number)) for number in range(3)]
    early = event(9, "early", by="other")
    assert new.hear(before[2], early) == [], "what it hears first waits"
    new.ask(a)
    assert new.told == [early]
    after = a.send("after")
    assert new.hear(after, *before) == [after]
    assert (new.machine.recent(), new.refused) == ([*before, after, early], [])
    assert new.machine.queue.take(2_000, 4, 64) == [early.raw, after.raw], "the old are no news"
    assert new.send("mine").time > after.time


def test_a_newcomer_that_knows_nothing_yet_sends_nothing() -> None:
    new, other = Member("new", new=True), Member("other", new=True)
    assert new.send() == "not_ready"
    new.ask(other)
    assert new.send() == "not_ready", "the other knows no more"
    assert new.machine.kept() is None
    new.now = NEW_HERE_S
    assert new.send() == "not_ready", "there are others: one may know"
    assert isinstance(new.send(alone=True), UserEvent), "there is nobody who knows"


def test_newcomers_among_themselves_begin_after_a_while() -> None:
    some, other = Member("some", new=True), Member("other", new=True)
    waiting = event(4, by="third")
    assert some.hear(waiting) == []
    some.now = 100.0
    some.ask(other)
    assert some.told == [], "it may have been cut off until now: the next one may know"
    some.now += NEW_HERE_S
    some.ask(other)
    assert some.told == [waiting]


def test_what_comes_too_early_waits_in_bounds() -> None:
    new = Member("new", new=True)
    new.hear(*(event(time) for time in range(1, EARLY_MAX + 10)))
    assert new.refused == ["early"] * 9


def test_who_returns_is_told_what_it_missed_and_nothing_twice() -> None:
    a, b = Member("a"), Member("b")
    heard = a.send("heard")
    b.hear(heard)
    returned = Member("b", kept=b.machine.kept(), new=True)
    missed = a.send("missed")
    assert returned.hear(heard) == []
    returned.ask(a)
    assert returned.told == [missed]
    assert returned.send().time > missed.time


def test_who_returns_is_not_told_again_what_it_keeps_no_more() -> None:
    b = Member("b")
    first, *_ = [b.hear(event(time, payload=str(time)))[0] for time in range(1, 700)]
    returned = Member("b", kept=b.machine.kept(), new=True)
    assert returned.hear(first) == []
    assert returned.refused == ["old"]


def test_what_is_below_all_that_is_kept_is_not_told() -> None:
    a = Member("a")
    for time in range(100, 100 + EVENTS_KEPT_MAX):
        a.hear(event(time, payload=str(time)))
    assert a.hear(event(1)) == []
    assert len(a.machine.queue) == EVENTS_KEPT_MAX


# ---- in their time ----------------------------------------------------------------------


def test_what_is_sent_after_something_was_heard_has_a_later_time() -> None:
    member = Member()
    assert [member.send().time, member.send().time] == [1, 2]
    member.hear(event(70), event(10))
    assert member.send().time == 71


def test_an_event_from_far_ahead_is_refused_until_the_clock_has_come_up_to_it() -> None:
    member = Member()
    member.hear(event(FAR + 100, "first"))
    assert member.refused == ["too_far"]
    assert member.machine.recent() == []
    assert [one.name for one in member.hear(event(FAR + 100, "first"))] == ["first"]
    absurd = event(TIME_MAX, "absurd")
    assert member.hear(absurd) == []
    assert member.refused == ["too_far", "too_far"]


def test_no_member_pushes_the_clock_to_its_end() -> None:
    """A month of trying four times a minute."""
    clock = LamportClock()
    now = 0.0
    while now < MONTH_S:
        clock.witness(TIME_MAX, now)
        now += FAR_EVERY_S / 4
    assert clock.time <= FAR * (MONTH_S / FAR_EVERY_S + 1) < TIME_MAX / 10_000
    assert clock.tick() is not None


def test_a_clock_follows_what_is_near_at_once_and_what_is_far_seldom() -> None:
    clock = LamportClock(10)
    assert clock.witness(10 + NEAR, 0.0)
    assert clock.witness(10 + 2 * NEAR, 0.0)
    assert clock.witness(10 + 4 * NEAR, 0.0), "who was away for long catches up by one step"
    assert not clock.witness(10 + 8 * NEAR, FAR_EVERY_S - 1)
    assert clock.time == 10 + 4 * NEAR
    assert clock.witness(10 + 8 * NEAR, FAR_EVERY_S)
    assert clock.witness(3, FAR_EVERY_S)
    assert clock.time == 10 + 8 * NEAR


def test_at_the_end_of_all_times_nothing_is_sent() -> None:
    member = Member(kept=Kept(TIME_MAX))
    assert member.send() == "exhausted"
    assert member.told == []
