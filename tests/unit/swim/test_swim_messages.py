"""Bounds of what members say, of packets and of settings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swim_bench import ALIVE, DEAD, SUSPECT, node, rumour

from swarmd.base.errors import BadRequest, ConfigError, MalformedMessage, TooLarge
from swarmd.mesh.swim import broadcasts
from swarmd.mesh.swim.broadcasts import BroadcastQueue
from swarmd.mesh.swim.config import PROFILES, SwimConfig, settle
from swarmd.mesh.swim.messages import (
    META_BYTES_MAX,
    PACKET_BYTES_MAX,
    PACKETS,
    RUMOUR_BYTES_MAX,
    MemberState,
    Meta,
    Ping,
    PingFor,
    SignedStatement,
    Statement,
    decode_meta,
    decode_rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.wire.codec import encode_struct


def largest_meta() -> Meta:
    tags = tuple((f"key{n}", "v" * 53) for n in range(7))
    meta = Meta("n" * 64, tags=tags)
    assert META_BYTES_MAX - 20 < len(encode_meta(meta)) <= META_BYTES_MAX
    return meta


def test_meta_survives_the_wire() -> None:
    meta = Meta(
        "n", (("fe80::1", 7575), ("10.0.0.1", 1)), ("worker", "voter"), "1.2", (("a", "b"),)
    )
    assert decode_meta(encode_meta(meta)) == meta


def test_meta_that_is_too_large_is_refused() -> None:
    with pytest.raises(TooLarge):
        encode_meta(Meta("n", tags=tuple((f"{n}", "v" * 60) for n in range(16))))


@pytest.mark.parametrize(
    "meta",
    [
        Meta("n" * 129),
        Meta("n", roles=tuple("abcdefghi")),
        Meta("n", addresses=(("h", 70_000),)),
        Meta("n", addresses=(("h", 1),) * 5),
        Meta("n", tags=(("k", "v" * 65),)),
    ],
)
def test_meta_that_breaks_a_bound_is_refused(meta: Meta) -> None:
    with pytest.raises(BadRequest):
        encode_meta(meta)


def test_the_largest_rumour_fits_a_packet_with_the_largest_header() -> None:
    said = encode_statement(
        ALIVE, node("x"), 2**62, author=node("x"), body=encode_meta(largest_meta())
    )
    largest = make_rumour(said, bytes(64))
    assert len(largest.raw) <= RUMOUR_BYTES_MAX
    queue = BroadcastQueue()
    for n in range(20):
        queue.push(rumour(SUSPECT, f"n{n}", 2**61))
    rumours = queue.take(4, first=(largest,))
    assert rumours[0] == largest.raw
    assert len(rumours) > 1
    packet = PACKETS.encode(PingFor(2**62, node("t"), rumours))
    assert len(packet) <= PACKET_BYTES_MAX


@pytest.mark.parametrize(
    "statement",
    [
        Statement(ALIVE, node("x"), 1, b"", b""),
        Statement(ALIVE, node("x"), 1, node("y"), encode_meta(Meta("x"))),
        Statement(MemberState.LEFT, node("x"), 1, node("y")),
        Statement(SUSPECT, node("x"), 1, b""),
        Statement(DEAD, node("x"), 1, b"short"),
        Statement(DEAD, node("x"), 1, node("y"), encode_meta(Meta("x"))),
        Statement(ALIVE, node("x"), 1, b"", b"\xc1"),
        Statement(ALIVE, b"short", 1, b"", encode_meta(Meta("x"))),
        Statement(ALIVE, node("x"), -1, b"", encode_meta(Meta("x"))),
        Statement(ALIVE, node("x"), 2**63, b"", encode_meta(Meta("x"))),
    ],
)
def test_what_no_honest_member_says_is_malformed(statement: Statement) -> None:
    raw = encode_struct(SignedStatement(encode_struct(statement), bytes(64)))
    with pytest.raises(MalformedMessage):
        decode_rumour(raw)


def test_a_rumour_is_passed_on_byte_for_byte() -> None:
    original = rumour(SUSPECT, "x", 7)
    assert decode_rumour(original.raw) == original
    queue = BroadcastQueue()
    queue.push(decode_rumour(original.raw))
    assert queue.take(1) == [original.raw]


def test_a_rumour_is_sent_so_often_and_no_more() -> None:
    queue = BroadcastQueue()
    queue.push(rumour(SUSPECT, "x", 1))
    assert [len(queue.take(3)) for _ in range(5)] == [1, 1, 1, 0, 0]


def test_what_was_sent_least_goes_first() -> None:
    queue = BroadcastQueue()
    for n in range(12):
        queue.push(rumour(SUSPECT, f"n{n}", 1))
    first = queue.take(9)
    second = queue.take(9)
    assert len(first) < 12
    assert second[: 12 - len(first)] == [r.raw for r in queue.rumours()][len(first) :]


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasts, "QUEUE_MAX", 3)
    queue = BroadcastQueue()
    queue.push(rumour(SUSPECT, "old", 1))
    queue.take(9)
    for name in "abc":
        queue.push(rumour(SUSPECT, name, 1))
    assert [r.subject for r in queue.rumours()] == [node("a"), node("b"), node("c")]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_no_packet_ever_exceeds_its_budget(subjects: list[int], limit: int) -> None:
    queue = BroadcastQueue()
    for n in subjects:
        name = f"n{n}"
        queue.push(rumour(ALIVE if n % 2 else SUSPECT, name, 2**40, "v" * (n * 2)))
    while len(queue):
        packet = PACKETS.encode(Ping(2**62, bytes(8), queue.take(limit)))
        assert len(packet) <= PACKET_BYTES_MAX


# ---- settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_sound(profile: str) -> None:
    settled = settle(SwimConfig(profile=profile))  # type: ignore[arg-type]
    for name, value in PROFILES[settled.profile].items():
        assert getattr(settled, name) == value
    assert settle(settled) == settled


def test_a_setting_of_ones_own_overrides_the_profile() -> None:
    settled = settle(SwimConfig(profile="wan", probe_interval_s=7.0))
    assert settled.probe_interval_s == 7.0
    assert settled.probe_timeout_s == PROFILES["wan"]["probe_timeout_s"]


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(ConfigError, match="probe_timeout_s"):
        settle(SwimConfig(probe_timeout_s=1.0))
    with pytest.raises(ConfigError, match="gossip_interval_s"):
        settle(SwimConfig(gossip_interval_s=0.0))
