"""Datagram sessions: who gets in, what a packet can do, and what it cannot."""

from __future__ import annotations

import random
import socket
from collections import deque

import pytest
import trio
import trio.testing
from datagrams import Node, pair, picture, talking
from hypothesis import given
from hypothesis import strategies as st
from small_swarm import KEYS, FixedRoster

from swarmd.base.ids import digest
from swarmd.base.limits import DATAGRAM_BYTES_MAX
from swarmd.identity.keys import TAG_BYTES, SigningKey, keyed_tag
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.transports.sessions import (
    HELLO_BYTES,
    PAYLOAD_BYTES_MAX,
    WINDOW,
    ReplayWindow,
    Sessions,
)
from swarmd.mesh.transports.udp import Datagrams
from swarmd.observe.metrics import DROPPED, REGISTRY
from swarmd.wire.version import PROTOCOL_VERSION

STRANGER = SigningKey.from_seed(b"z" * 32)


def dropped(reason: str) -> float:
    labels = {"where": "udp", "reason": reason}
    return REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0


def dropped_in_all() -> float:
    return sum(
        sample.value
        for metric in DROPPED.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["where"] == "udp"
    )


def test_a_packet_waits_for_its_session_and_arrives() -> None:
    net, a, b, _ = pair()
    for number in range(3):
        assert a.send(b, b"%d" % number)
    assert b.got() == []
    net.settle()
    assert b.got() == [(a.id, b"0"), (a.id, b"1"), (a.id, b"2")]


def test_both_meet_and_learn_where_the_other_is() -> None:
    _, a, b, _ = talking()
    assert list(a.sessions.met) == [(b.id, b.address)]
    assert list(b.sessions.met) == [(a.id, a.address)]
    assert a.book.peer_at(b.address) == b.id


def test_a_bare_address_tells_who_is_there() -> None:
    net, a, b, _ = pair()
    a.sessions.hello(b.address, net.now)
    net.settle()
    assert list(a.sessions.met) == [(b.id, b.address)]
    assert list(b.sessions.met) == [(a.id, a.address)]


def test_the_largest_packet_fits() -> None:
    net, a, b, _ = talking()
    a.send(b, bytes(PAYLOAD_BYTES_MAX))
    assert len(a.sessions.outgoing[0][1]) == DATAGRAM_BYTES_MAX
    net.settle()
    assert b.got() == [(a.id, bytes(PAYLOAD_BYTES_MAX))]
    with pytest.raises(AssertionError):
        a.send(b, bytes(PAYLOAD_BYTES_MAX + 1))


def test_no_reply_is_larger_than_its_request() -> None:
    net, _, b, _ = talking()
    hello = next(p for _, _, p in net.captured if p[:1] == b"\x01")
    reply = next(p for _, _, p in net.captured if p[:1] == b"\x02")
    assert len(hello) == HELLO_BYTES
    assert len(reply) <= len(hello)
    assert len(b.sessions.outgoing) == 0


def test_a_short_hello_gets_no_reply() -> None:
    _, a, b, _ = pair()
    packet = a.sessions._signed(b"\x02", "udp-hello", b"x" * 40)
    b.sessions.receive(packet, a.address, 0.0)
    forged = a.sessions._signed(b"\x01", "udp-hello", b"x" * 40)
    assert len(forged) == HELLO_BYTES
    before = dropped("malformed")
    b.sessions.receive(forged, a.address, 0.0)
    assert not b.sessions.outgoing
    assert dropped("malformed") == before + 1


def test_replayed_packets_change_nothing() -> None:
    net, a, b, _ = talking()
    for number in range(20):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
    net.settle()
    a.got(), b.got()
    captured = list(net.captured)
    before = picture(a), picture(b)
    elsewhere = ("10.6.6.6", 6)
    for round_number in range(40):
        net.now += 0.1
        for source, target, packet in captured:
            net.carry(source if round_number % 2 else elsewhere, target, packet)
        for node in (a, b):
            node.sessions.outgoing.clear()
    assert (picture(a), picture(b)) == before
    a.send(b, b"still")
    net.settle()
    assert b.got() == [(a.id, b"still")]


def test_replayed_hellos_keep_a_bounded_number_of_pending_sessions() -> None:
    net, _, b, _ = talking()
    source, _, hello = next(c for c in net.captured if c[2][:1] == b"\x01")
    for _ in range(100):
        net.now += 0.1
        net.carry(source, b.address, hello)
    b.sessions.outgoing.clear()
    assert len(b.sessions._by_id) <= 6


def test_a_repeated_hello_does_not_push_out_the_session_that_is_being_made() -> None:
    """Somebody repeats an old hello while the member that once sent it says a new one."""
    net, a, b, _ = talking()
    _, _, old = next(c for c in net.captured if c[2][:1] == b"\x01")
    a.sessions.hello(b.address, net.now)
    (_, hello), *_ = a.sessions.outgoing
    a.sessions.outgoing.clear()
    net.carry(a.address, b.address, hello)
    for _ in range(50):
        net.carry(("10.6.6.6", 6), b.address, old)
    (_, reply) = b.sessions.outgoing.popleft()
    b.sessions.outgoing.clear()
    net.carry(b.address, a.address, reply)
    a.send(b, b"over the new session")
    net.settle()
    assert b.got() == [(a.id, b"over the new session")]


def test_altered_packets_change_nothing_and_are_counted() -> None:
    net, a, b, _ = talking()
    before = picture(a), picture(b)
    count = dropped_in_all()
    rng = random.Random(1)
    tried = 0
    for source, target, packet in list(net.captured):
        for _ in range(30):
            at = rng.randrange(len(packet))
            altered = packet[:at] + bytes([packet[at] ^ 1 << rng.randrange(8)]) + packet[at + 1 :]
            net.now += 0.01
            net.carry(source, target, altered)
            tried += 1
    for node in (a, b):
        node.sessions.outgoing.clear()
    assert (picture(a), picture(b)) == before
    assert dropped_in_all() == count + tried


def test_truncated_packets_change_nothing() -> None:
    net, a, b, _ = talking()
    before = picture(a), picture(b)
    for source, target, packet in list(net.captured):
        for length in range(0, len(packet), 7):
            net.now += 0.01
            net.carry(source, target, packet[:length])
    assert (picture(a), picture(b)) == before


def test_another_swarm_is_not_heard() -> None:
    net, a, _, _ = talking()
    other = FixedRoster(*KEYS[:3], swarm_id=b"o" * 32)
    c = Node(net, KEYS[2], ("10.0.0.3", 3), other)
    before = dropped("other_swarm")
    a.sessions.hello(c.address, net.now)
    c.sessions.hello(a.address, net.now)
    net.settle()
    assert not c.sessions.met
    assert dropped("other_swarm") == before + 2


def test_a_stranger_gets_no_reply() -> None:
    net, a, _, _ = talking()
    believes = FixedRoster(*KEYS[:3], STRANGER)
    z = Node(net, STRANGER, ("10.0.0.9", 9), believes)
    before = dropped("untrusted")
    z.send(a, b"let me in")
    net.settle()
    assert a.got() == []
    assert not any(target == z.address for _, target, _ in net.captured)
    assert dropped("untrusted") == before + 1


def test_a_member_who_signs_for_another_is_refused() -> None:
    """The key id on an envelope is a claim; the signature must be by that member's key."""
    _, a, b, roster = pair()
    thief = Sessions(KEYS[2], roster, AddressBook())
    thief.send(b.key.key_id, (b.address,), b"x", 0.0)
    _, packet = thief.outgoing[0]
    forged = packet.replace(bytes(KEYS[2].key_id), bytes(a.id))
    body = forged[:1] + forged[17:]
    forged = forged[:1] + keyed_tag(thief._mac_key, body) + forged[17:]
    before = dropped("bad_signature")
    b.sessions.receive(forged, ("10.0.0.1", 1), 0.0)
    assert not b.sessions.outgoing
    assert dropped("bad_signature") == before + 1


def test_a_hello_for_somebody_else_is_refused() -> None:
    net, a, b, roster = pair()
    c = Node(net, KEYS[2], ("10.0.0.3", 3), roster)
    a.sessions.send(c.key.key_id, (b.address,), b"for c", net.now)
    before = dropped("bad_signature")
    net.settle()
    assert dropped("bad_signature") == before + 1
    assert not b.sessions.met
    assert not a.sessions.met


def test_ones_own_hello_is_refused() -> None:
    net, a, _, _ = pair()
    a.sessions.hello(a.address, net.now)
    before = dropped("bad_signature")
    net.settle()
    assert dropped("bad_signature") == before + 1


def test_a_restarted_member_is_asked_for_a_new_session_once_a_second() -> None:
    net, a, b, roster = talking()
    fresh = Node(net, KEYS[1], b.address, roster)
    fresh.book.learn(a.key.key_id, [a.address])
    for _ in range(10):
        a.send(fresh, b"lost")
    captured = len(net.captured)
    net.settle()
    hellos = [c for c in net.captured[captured:] if c[2][:1] == b"\x01"]
    assert len(hellos) == 1
    assert hellos[0][0] == fresh.address
    a.send(fresh, b"heard")
    net.settle()
    assert fresh.got() == [(a.id, b"heard")]


def test_an_unknown_address_gets_nothing_for_an_unknown_session() -> None:
    net, _, b, _ = talking()
    before = dropped("unknown_session")
    net.carry(("10.9.9.9", 9), b.address, b"\x03" + bytes(60))
    assert not b.sessions.outgoing
    assert dropped("unknown_session") == before + 1


def test_a_member_that_restarted_elsewhere_is_found_again() -> None:
    """It neither knows us nor sits where it was: only our own silence-watching finds it."""
    net, a, b, roster = talking()
    del net.nodes[b.address]
    moved = Node(net, KEYS[1], ("10.0.0.22", 22), roster)
    a.book.learn(moved.key.key_id, [moved.address])
    for _ in range(30):
        a.send(moved, b"hello?")
        net.wait(0.3)
    assert (a.id, b"hello?") in moved.got()


def test_seldom_talk_in_which_all_is_answered_needs_no_new_session() -> None:
    net, a, b, _ = talking()
    captured = len(net.captured)
    for _ in range(10):
        for one, other in ((a, b), (b, a)):
            one.send(other, b"ask")
            net.settle()
            other.send(one, b"answer")
            net.settle()
            net.wait(5.0)
    assert {c[2][:1] for c in net.captured[captured:]} == {b"\x03"}


def test_a_member_may_move_with_its_session() -> None:
    net, a, b, _ = talking()
    net.nodes.pop(a.address)
    a.address = ("10.0.0.11", 11)
    net.nodes[a.address] = a
    a.send(b, b"moved")
    net.settle()
    b.send(a, b"found")
    net.settle()
    assert a.got() == [(b.id, b"found")]
    assert b.book.lookup(a.key.key_id)[0] == a.address


def test_hellos_are_repeated_then_given_up_and_the_queue_dropped() -> None:
    net, a, b, _ = pair()
    del net.nodes[b.address]
    for _ in range(40):
        a.send(b, b"x")
    before = dropped("unreachable")
    net.wait(6.0)
    hellos = [c for c in net.captured if c[2][:1] == b"\x01"]
    assert 3 <= len(hellos) <= 6
    assert dropped("unreachable") == before + 16
    assert a.sessions.tick(net.now) is None


def test_lost_hellos_are_repeated_until_one_arrives() -> None:
    net, a, b, _ = pair()
    del net.nodes[b.address]
    a.send(b, b"x")
    net.wait(0.5)
    net.nodes[b.address] = b
    net.wait(1.0)
    assert b.got() == [(a.id, b"x")]


def test_nowhere_to_send_to() -> None:
    _, a, b, _ = pair()
    assert not a.send(b, b"x", told=False)


def test_an_evicted_member_is_cut_off_at_once() -> None:
    net, a, b, roster = talking()
    roster.become(KEYS[0])
    assert not a.send(b, b"x")
    b.send(a, b"y")
    before = dropped("unknown_session")
    for source, target, raw in list(net.captured):
        if target == a.address and raw[:1] == b"\x03":
            net.carry(source, target, raw)
    assert a.got() == []
    assert dropped("unknown_session") > before


def test_an_outdated_member_is_cut_off_at_once_and_gets_no_session() -> None:
    net, a, b, roster = talking()
    roster.raise_version(PROTOCOL_VERSION + 1)
    before = dropped("unknown_session")
    for source, target, raw in list(net.captured):
        if raw[:1] == b"\x03":
            net.carry(source, target, raw)
    assert (a.got(), b.got()) == ([], [])
    assert dropped("unknown_session") > before
    before = dropped("outdated")
    [(_, hello)] = a.sessions.outgoing  # The session that it knows nothing of any more.
    b.sessions.outgoing.clear()
    b.sessions.receive(hello, a.address, net.now)
    assert not b.sessions.outgoing
    assert dropped("outdated") == before + 1


def test_a_reply_by_an_outdated_member_makes_no_session() -> None:
    net, a, b, roster = pair()
    a.send(b, b"x")
    [(_, hello)] = a.sessions.outgoing
    a.sessions.outgoing.clear()
    b.sessions.receive(hello, a.address, net.now)
    [(_, reply)] = b.sessions.outgoing
    roster.raise_version(PROTOCOL_VERSION + 1)
    before = dropped("outdated")
    a.sessions.receive(reply, b.address, net.now)
    assert dropped("outdated") == before + 1
    assert not a.sessions.met


@pytest.mark.parametrize("made", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
def test_nobody_between_can_lower_or_raise_the_version(made: int) -> None:
    """The mac, which whoever knows the swarm's id can make, is made anew."""
    net, a, b, roster = pair()
    a.sessions.hello(b.address, net.now)
    [(_, hello)] = a.sessions.outgoing
    kind, body = hello[:1], hello[1 + TAG_BYTES :]
    start = b"\x02\x95\x01"  # Format, the array's length, the tag of a hello: the version follows.
    assert body.count(start + bytes([PROTOCOL_VERSION])) == 1
    body = body.replace(start + bytes([PROTOCOL_VERSION]), start + bytes([made]))
    mac = keyed_tag(digest(b"udp hello mac", roster.swarm_id), kind + body)
    before = dropped("bad_signature")
    b.sessions.receive(kind + mac + body, a.address, net.now)
    assert dropped("bad_signature") == before + 1
    assert not b.sessions.outgoing


def test_both_sides_may_greet_at_once() -> None:
    net, a, b, _ = pair()
    a.send(b, b"from a")
    b.send(a, b"from b")
    net.settle()
    assert b.got() == [(a.id, b"from a")]
    assert a.got() == [(b.id, b"from b")]
    a.send(b, b"again")
    b.send(a, b"again")
    net.settle()
    assert (len(a.got()), len(b.got())) == (1, 1)


@given(st.lists(st.integers(0, 4 * WINDOW), max_size=300))
def test_the_window_takes_each_counter_once_and_nothing_too_old(counters: list[int]) -> None:
    window, seen = ReplayWindow(), set[int]()
    recent: deque[int] = deque()
    for counter in counters:
        fresh = counter not in seen and counter > max(seen, default=-1) - WINDOW
        assert window.is_fresh(counter) == fresh
        if fresh:
            window.mark(counter)
            seen.add(counter)
            recent.append(counter)


def test_probes_come_apart_from_all_else_and_once() -> None:
    net, a, b, _ = talking()
    assert a.sessions.probe(digest(b"nobody"), b"x") is None  # type: ignore[arg-type]
    made = a.sessions.probe(b.id, bytes(PAYLOAD_BYTES_MAX))
    assert made is not None
    to, packet = made
    assert (to, len(packet)) == (b.address, DATAGRAM_BYTES_MAX)
    assert not a.sessions.outgoing, "whoever asked sends it"
    b.got()
    before = dropped("replay")
    for _ in range(2):
        b.sessions.receive(packet, a.address, net.now)
    assert list(b.sessions.probes) == [(a.id, bytes(PAYLOAD_BYTES_MAX))]
    assert b.got() == []
    assert dropped("replay") == before + 1


def test_no_probe_passes_for_anything_else() -> None:
    """What a packet is for is under its seal."""
    net, a, b, _ = talking()
    made = a.sessions.probe(b.id, b"probe")
    assert made is not None
    before = dropped("undecryptable")
    b.sessions.receive(b"\x03" + made[1][1:], a.address, net.now)
    assert dropped("undecryptable") == before + 1
    assert b.got() == []


def test_when_a_member_was_heard_last_is_known() -> None:
    net, a, b, _ = talking()
    net.now += 50
    assert b.sessions.heard_at(digest(b"nobody")) == float("-inf")  # type: ignore[arg-type]
    heard_at = b.sessions.heard_at(a.id)
    assert heard_at < net.now - 40
    b.sessions.receive(b"\x03" + bytes(60), a.address, net.now)
    assert b.sessions.heard_at(a.id) == heard_at, "noise from its address is not it"
    a.send(b, b"hi")
    net.settle()
    assert b.sessions.heard_at(a.id) >= heard_at + 50


async def test_a_hello_is_repeated_though_nothing_else_happens(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Goal: the loop that slept because nobody was greeted wakes for the first hello."""

    class Loop:
        def now(self) -> float:
            return trio.current_time()

        def wall_ms(self) -> int:
            return 0

    key = KEYS[0]
    with (
        socket.socket(type=socket.SOCK_DGRAM) as silent,
        socket.socket(type=socket.SOCK_DGRAM) as own,
    ):
        for one in (silent, own):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        sessions = Sessions(key, FixedRoster(*KEYS[:2]), AddressBook())
        datagrams = Datagrams(sessions, [own], Loop())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(datagrams.repeat_hellos)
            await trio.sleep(60)
            datagrams.hello(silent.getsockname())
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        came = 0
        while True:
            try:
                assert silent.recv(DATAGRAM_BYTES_MAX)[:1] == b"\x01"
            except BlockingIOError:
                break
            came += 1
        assert came > 1
