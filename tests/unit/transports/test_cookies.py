"""Many hellos: who must show a cookie, which cookies count, and who gets in meanwhile."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from datagrams import COOKIE, DATA, HELLO, REPLY, Net, Node, forged_hellos, pair, talking
from small_swarm import KEYS

from swarmd.mesh.addresses import Address, network_of
from swarmd.mesh.transports import sessions as module
from swarmd.mesh.transports.cookies import (
    CHECKS_PER_ADDRESS_S_MAX,
    CHECKS_PER_S_MAX,
    HELLOS_PER_S_FREE,
    NO_COOKIE,
    SECRET_S,
    HelloGate,
)
from swarmd.mesh.transports.sessions import HELLO_BYTES, Sessions
from swarmd.observe.metrics import REGISTRY

ADDRESS: Address = ("10.0.0.7", 7)
NAME = b"n" * 32
FLOOD_PER_S = 5_000


def dropped(reason: str) -> float:
    labels = {"where": "udp", "reason": reason}
    return REGISTRY.get_sample_value("swarmd_dropped_total", labels) or 0.0


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The key ids whose signatures were checked, as it happens."""
    made: list[bytes] = []
    verify = module.verify_envelope

    def counted(envelope: Any, *args: Any) -> Any:
        made.append(envelope.signatures[0][0])
        return verify(envelope, *args)

    monkeypatch.setattr(module, "verify_envelope", counted)
    return made


def spoofed(seed: int) -> Iterator[Address]:
    rng = random.Random(seed)
    while True:
        yield f"172.{rng.randrange(16, 32)}.{rng.randrange(256)}.{rng.randrange(256)}", 7_575


class Flood:
    """Forged hellos at a node, each from an address where nobody is."""

    def __init__(self, net: Net, target: Node, victim: Node) -> None:
        self._net, self._target = net, target
        # Made once: with other senders' addresses each is as good as new.
        hellos = itertools.islice(forged_hellos(victim.key.key_id, target.roster), 500)
        self._hellos = itertools.cycle([hello for hello, _ in hellos])
        self._sources = spoofed(1)

    def run(self, seconds: float) -> None:
        """Virtual time passes, and the network carries what others send meanwhile."""
        step_s = 0.002
        for _ in range(round(seconds / step_s)):
            self._net.now += step_s
            for _ in range(round(FLOOD_PER_S * step_s)):
                source, hello = next(self._sources), next(self._hellos)
                self._target.sessions.receive(hello, source, self._net.now)
            for node in self._net.nodes.values():
                node.sessions.tick(self._net.now)
            self._net.settle()


def crowd(net: Net, node: Node) -> None:
    """Bring a node to where it asks for cookies."""
    for _ in range(2 * HELLOS_PER_S_FREE):
        node.sessions._gate.is_crowded(net.now)


def answer(node: Node, raw: bytes, source: Address, now: float) -> bytes:
    """What a node sends back to a packet; empty for nothing."""
    node.sessions.receive(raw, source, now)
    sent = [packet for target, packet in node.sessions.outgoing if target == source]
    assert len(sent) == len(node.sessions.outgoing), "something went to a third party"
    node.sessions.outgoing.clear()
    return b"".join(sent)


def first_hello(node: Node, to: Node, now: float) -> bytes:
    node.sessions.hello(to.address, now)
    _, hello = node.sessions.outgoing.popleft()
    return hello


# ---- who is asked ---------------------------------------------------------------------------


def test_fifty_hellos_a_second_need_no_cookie() -> None:
    gate = HelloGate()
    assert not any(gate.is_crowded(5.0) for _ in range(HELLOS_PER_S_FREE))
    assert gate.is_crowded(5.0)
    gate = HelloGate()
    assert not any(gate.is_crowded(5.0 + n / HELLOS_PER_S_FREE) for n in range(1_000))


def test_in_a_flood_none_is_free_and_a_second_after_it_all_are() -> None:
    gate = HelloGate()
    for number in range(10_000):
        crowded = gate.is_crowded(5.0 + number / FLOOD_PER_S)
        assert crowded == (number >= HELLOS_PER_S_FREE), number
    assert not gate.is_crowded(5.0 + 10_000 / FLOOD_PER_S + 1.1)


def test_below_the_limit_nothing_changes() -> None:
    net, *_ = talking()
    assert [packet[:1] for _, _, packet in net.captured] == [HELLO, REPLY, DATA, DATA]


def test_above_it_a_session_takes_one_round_trip_more() -> None:
    net, a, b, _ = pair()
    crowd(net, b)
    a.send(b, b"one")
    net.settle()
    assert b.got() == [(a.id, b"one")]
    kinds = [packet[:1] for _, _, packet in net.captured]
    assert kinds == [HELLO, COOKIE, HELLO, REPLY, DATA]


def test_a_bare_address_is_greeted_with_a_cookie_too() -> None:
    net, a, b, _ = pair()
    crowd(net, b)
    a.sessions.hello(b.address, net.now)
    net.settle()
    assert list(a.sessions.met) == [(b.id, b.address)]


def test_no_signature_is_checked_without_a_cookie(checks: list[bytes]) -> None:
    net, a, b, _ = pair()
    crowd(net, b)
    hello = first_hello(a, b, net.now)
    before = dropped("no_cookie")
    assert answer(b, hello, a.address, net.now)[:1] == COOKIE
    assert dropped("no_cookie") == before + 1
    assert checks == []
    assert not b.sessions._peers


def test_an_honest_member_gets_in_while_forged_hellos_arrive(checks: list[bytes]) -> None:
    net, a, b, roster = pair()
    c = Node(net, KEYS[2], ("10.0.0.3", 3), roster)
    flood = Flood(net, b, c)
    flood.run(1.0)
    checks.clear()
    a.send(b, b"let me in")
    flood.run(0.2)
    assert b.got() == [(a.id, b"let me in")]
    assert checks.count(c.id) == 0, "a forged hello was checked"
    assert len(checks) == 2, "the hello and the reply of the honest"
    flood.run(1.0)
    a.send(b, b"and stay")
    net.settle()
    assert b.got() == [(a.id, b"and stay")]


def test_a_reply_to_a_hello_that_was_not_said_costs_no_check(checks: list[bytes]) -> None:
    net, a, b, _ = talking()
    reply = next(packet for _, _, packet in net.captured if packet[:1] == REPLY)
    first_hello(a, b, net.now)
    checks.clear()
    assert answer(a, reply, b.address, net.now) == b""
    assert checks == []


# ---- which cookies count --------------------------------------------------------------------


def test_a_cookie_is_for_one_hello_and_one_address() -> None:
    gate = HelloGate()
    cookie = gate.cookie(NAME, ADDRESS, 100.0)
    assert gate.is_good(cookie, NAME, ADDRESS, 100.0)
    assert not gate.is_good(cookie, b"m" * 32, ADDRESS, 100.0)
    assert not gate.is_good(cookie, NAME, ("10.0.0.8", 7), 100.0)
    assert not gate.is_good(cookie, NAME, ("10.0.0.7", 8), 100.0)
    assert not gate.is_good(cookie[:-1] + bytes([cookie[-1] ^ 1]), NAME, ADDRESS, 100.0)
    assert not gate.is_good(NO_COOKIE, NAME, ADDRESS, 100.0)
    assert not HelloGate().is_good(cookie, NAME, ADDRESS, 100.0), "another process's"


def test_a_cookie_outlives_one_renewal_of_the_secret_and_no_second() -> None:
    made_at = 10 * SECRET_S + 1
    for later in (0.0, SECRET_S - 1.5, SECRET_S, 2 * SECRET_S - 1.5):
        gate = HelloGate()
        cookie = gate.cookie(NAME, ADDRESS, made_at)
        assert gate.is_good(cookie, NAME, ADDRESS, made_at + later), later
    for later in (2 * SECRET_S, 3 * SECRET_S, 1_000 * SECRET_S):
        gate = HelloGate()
        cookie = gate.cookie(NAME, ADDRESS, made_at)
        assert not gate.is_good(cookie, NAME, ADDRESS, made_at + later), later


def test_a_late_cookie_brings_a_fresh_one() -> None:
    net, a, b, _ = pair()
    crowd(net, b)
    hello = first_hello(a, b, net.now)
    asked = answer(b, hello, a.address, net.now)
    net.now += 2 * SECRET_S
    crowd(net, b)
    late = answer(a, asked, b.address, net.now)
    assert late[:1] == HELLO
    fresh = answer(b, late, a.address, net.now)
    assert fresh[:1] == COOKIE
    assert fresh != asked
    again = answer(a, fresh, b.address, net.now)
    assert answer(b, again, a.address, net.now)[:1] == REPLY


def test_a_cookie_shown_from_elsewhere_opens_nothing(checks: list[bytes]) -> None:
    net, a, b, _ = pair()
    crowd(net, b)
    shown = answer(a, answer(b, first_hello(a, b, net.now), a.address, net.now), b.address, net.now)
    for elsewhere in (("10.6.6.6", 1), (a.address[0], 99)):
        assert answer(b, shown, elsewhere, net.now)[:1] == COOKIE
    assert checks == []
    assert answer(b, shown, a.address, net.now)[:1] == REPLY


def test_nobody_feeds_cookies_to_a_hello_that_he_has_not_seen() -> None:
    net, a, b, _ = pair()
    hello = first_hello(a, b, net.now)
    knows_the_swarm = Sessions(KEYS[2], b.roster, b.book)
    before = dropped("stale_cookie")
    forged = knows_the_swarm._tagged(COOKIE, b"g" * 32 + b"c" * 16, padded=True)
    assert answer(a, forged, b.address, net.now) == b""
    assert dropped("stale_cookie") == before + 1
    outside = dropped("other_swarm")
    assert answer(a, COOKIE + bytes(HELLO_BYTES - 1), b.address, net.now) == b""
    assert dropped("other_swarm") == outside + 1
    crowd(net, b)
    answer(b, hello, a.address, net.now)
    assert a.sessions.tick(net.now) is not None, "the hello is still under way"


def test_wrong_cookies_are_followed_a_few_times_and_do_no_harm() -> None:
    """Somebody sees the hello and answers it before the one that it is meant for."""
    net, a, b, _ = pair()
    crowd(net, b)
    hello = first_hello(a, b, net.now)
    name = answer(b, hello, a.address, net.now)[17:49]
    wrong = a.sessions._tagged(COOKIE, name + b"w" * 16, padded=True)
    before = dropped("cookies_per_hello")
    followed = sum(len(answer(a, wrong, b.address, net.now)) for _ in range(100))
    assert followed <= 8 * HELLO_BYTES
    assert dropped("cookies_per_hello") == before + 100 - followed // HELLO_BYTES
    net.now += 0.3
    crowd(net, b)
    a.sessions.tick(net.now)
    net.settle()
    assert list(a.sessions.met) == [(b.id, b.address)], "the next repetition gets through"


def test_a_hello_is_repeated_with_the_cookie_of_its_address() -> None:
    """The hello that shows it, or the reply, is lost."""
    net, a, b, _ = pair()
    crowd(net, b)
    shown = answer(a, answer(b, first_hello(a, b, net.now), a.address, net.now), b.address, net.now)
    net.now += 0.5
    a.sessions.tick(net.now)
    assert list(a.sessions.outgoing) == [(b.address, shown)]
    a.sessions.outgoing.clear()
    net.now += 5.0
    a.sessions.tick(net.now)
    net.wait(5.0)
    assert not a.sessions._handshakes, "it is forgotten with the hello"


# ---- shares ---------------------------------------------------------------------------------


def shown_hellos(count: int, net: Net, b: Node, source: Address) -> list[bytes]:
    """Forged hellos with good cookies: their sender does receive at `source`."""
    made = []
    for hello, forger in itertools.islice(forged_hellos(KEYS[2].key_id, b.roster), count):
        crowd(net, b)
        forger.receive(answer(b, hello, source, net.now), b.address, net.now)
        made.append(forger.outgoing.pop()[1])
    return made


def test_an_address_with_cookies_has_a_share_of_the_checks(checks: list[bytes]) -> None:
    net, a, b, _ = pair()
    before = dropped("hellos_per_address")
    for hello in shown_hellos(100, net, b, ADDRESS):
        assert answer(b, hello, ADDRESS, net.now) == b""
    assert len(checks) == CHECKS_PER_ADDRESS_S_MAX
    assert dropped("hellos_per_address") == before + 100 - CHECKS_PER_ADDRESS_S_MAX
    a.send(b, b"one")
    net.settle()
    assert b.got() == [(a.id, b"one")]


def test_an_address_has_one_share_whatever_its_port() -> None:
    gate = HelloGate()
    taken = [gate.spend_check(("10.0.0.7", port), 9.0) for port in range(100)]
    assert taken.count("") == CHECKS_PER_ADDRESS_S_MAX


def test_a_subnet_of_ipv6_has_one_share() -> None:
    gate = HelloGate()
    taken = [gate.spend_check((f"2001:db8:0:1::{n:x}", 1), 9.0) for n in range(1, 101)]
    assert taken.count("") == CHECKS_PER_ADDRESS_S_MAX
    assert gate.spend_check(("2001:db8:0:2::1", 1), 9.0) == ""


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:0:1:aaaa::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_whom_an_address_counts_as(host: str, network: str) -> None:
    assert network_of(host) == network


def test_all_addresses_together_have_so_many_checks_a_second() -> None:
    gate = HelloGate()
    asking = [(f"10.0.{n >> 8}.{n & 255}", 1) for n in range(1_000)]
    reasons = [gate.spend_check(address, 9.5) for address in asking]
    assert reasons.count("") == CHECKS_PER_S_MAX
    assert set(reasons) == {"", "hellos_per_s"}
    assert gate.spend_check(asking[-1], 10.0) == ""


def test_no_share_is_touched_without_a_cookie() -> None:
    """Else a forger who names a member's address would shut it out."""
    gate = HelloGate()
    for _ in range(CHECKS_PER_ADDRESS_S_MAX + 5):
        assert gate.spend_check(None, 9.0) == ""
    assert gate.spend_check(ADDRESS, 9.0) == ""


def test_a_member_whose_hello_is_repeated_by_others_keeps_its_share(checks: list[bytes]) -> None:
    """An answered hello is answered again without a check, from a spoofed address, too."""
    net, a, b, _ = pair()
    crowd(net, b)
    shown = answer(a, answer(b, first_hello(a, b, net.now), a.address, net.now), b.address, net.now)
    replies = {answer(b, shown, a.address, net.now) for _ in range(1_000)}
    assert len(replies) == 1
    assert checks == [a.id]


# ---- what it costs --------------------------------------------------------------------------


@pytest.mark.parametrize("crowded", [False, True])
def test_no_answer_is_larger_than_what_it_answers(crowded: bool) -> None:
    """Every kind of packet, whole, cut, and to a node that has not seen it, from anywhere."""
    net, a, b, roster = pair()
    if crowded:
        crowd(net, b)
    a.send(b, b"one")
    net.settle()
    b.send(a, b"two")
    net.settle()
    kinds = {packet[:1] for _, _, packet in net.captured}
    assert kinds == {HELLO, REPLY, DATA} | ({COOKIE} if crowded else set())
    packets = [packet for _, _, packet in net.captured]
    c = Node(net, KEYS[2], ("10.0.0.3", 3), roster)
    waiting = first_hello(a, c, net.now)
    name = answer_of_crowded(c, waiting, net)[17:49]
    packets += [a.sessions._tagged(COOKIE, name + b"c" * 16, padded=True)]
    answered = 0
    for packet in packets:
        for length in {len(packet), len(packet) - 1, 49, 17}:
            for node in (a, b, c):
                if crowded:
                    crowd(net, node)
                sent = answer(node, packet[:length], ("10.6.6.6", 6), net.now)
                assert len(sent) <= len(packet[:length])
                answered += bool(sent)
                net.now += 0.01
    assert answered >= 3


def answer_of_crowded(node: Node, hello: bytes, net: Net) -> bytes:
    crowd(net, node)
    asked = answer(node, hello, ADDRESS, net.now)
    assert asked[:1] == COOKIE
    return asked


def test_a_short_request_for_a_cookie_is_not_followed() -> None:
    net, a, b, _ = pair()
    asked = answer_of_crowded(b, first_hello(a, b, net.now), net)
    short = a.sessions._tagged(COOKIE, asked[17:65], padded=False)
    assert answer(a, short, b.address, net.now) == b""
    assert answer(a, asked, b.address, net.now)[:1] == HELLO


def test_a_flood_leaves_nothing_behind() -> None:
    net, _, b, roster = pair()
    c = Node(net, KEYS[2], ("10.0.0.3", 3), roster)
    Flood(net, b, c).run(1.0)
    gate = HelloGate()
    for number in range(100_000):
        gate.spend_check(
            (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1), 9 + number / 1e4
        )
    assert len(gate._checks) <= CHECKS_PER_S_MAX
    assert len(b.sessions._gate._checks) <= 1
    s = b.sessions
    assert [len(kept) for kept in (s._peers, s._by_id, s._pending, s._handshakes)] == [0] * 4


def test_sessions_that_wait_are_few_however_many_hellos_a_member_signs() -> None:
    net, a, b, _ = pair()
    for number in range(200):
        net.now += 0.1
        answer(b, first_hello(a, b, net.now), ("10.0.0.1", 1 + number), net.now)
        a.sessions._handshakes.clear()
    assert len(b.sessions._pending) == len(b.sessions._by_id) == 4
    b.roster.become(KEYS[1])
    answer(b, b"\x03" + bytes(60), ADDRESS, net.now)
    assert len(b.sessions._pending) == len(b.sessions._by_id) == 0
