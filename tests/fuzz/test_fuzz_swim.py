"""Any bytes, from any peer, at any time: the membership machine neither breaks nor believes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import MalformedMessage
from swarmd.base.machine import Send
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.coordinates import COORDINATE_BYTES, is_sane
from swarmd.mesh.swim.events import PacketIn, ProbeTick, Started, SyncIn
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    PACKET_BYTES_MAX,
    PACKETS,
    SWIM,
    Ack,
    Gossip,
    MemberState,
    Meta,
    Ping,
    Sync,
    decode_rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.sim.swim import SimSigner, node_id

ME, PEER = node_id("me"), node_id("peer")
SUBJECTS = [ME, PEER, node_id("x")]


def machine() -> SwimMachine:
    made = SwimMachine(ME, SwimConfig(), make_rng(1), SimSigner(ME), Meta("me"), 1, 0.0)
    body = encode_meta(Meta("x"))
    said = encode_statement(MemberState.ALIVE, SUBJECTS[2], 5, author=SUBJECTS[2], body=body)
    known = make_rumour(said, SimSigner(SUBJECTS[2]).sign_rumour(said))
    made.handle(PacketIn(PEER, PACKETS.encode(Gossip([known.raw]))), 1.0)
    assert made.get(SUBJECTS[2]) is not None
    return made


@given(st.binary(max_size=1_300))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_refused(data: bytes) -> None:
    swim = machine()
    before = swim.members()
    for effect in swim.handle(PacketIn(PEER, b"\1" + data), 2.0):
        assert not isinstance(effect, Send) or len(effect.message) <= PACKET_BYTES_MAX
    assert swim.members() == before


@given(st.lists(st.binary(max_size=300), max_size=10))
@settings(deadline=None, max_examples=200)
def test_any_bytes_for_rumours_change_nothing(rumours: list[bytes]) -> None:
    swim = machine()
    before = swim.members()
    swim.handle(SyncIn(PEER, tuple(rumours)), 2.0)
    assert swim.members() == before


@given(
    st.sampled_from(MemberState),
    st.sampled_from(SUBJECTS),
    st.integers(0, 2**62),
    st.integers(0, 10_000),
    st.integers(1, 255),
)
@settings(deadline=None, max_examples=500)
def test_an_altered_rumour_changes_no_view(
    kind: MemberState, subject: bytes, incarnation: int, place: int, flip: int
) -> None:
    """One byte of a validly signed rumour is changed on its way."""
    author = subject if kind in (MemberState.ALIVE, MemberState.LEFT) else PEER
    body = encode_meta(Meta("other")) if kind is MemberState.ALIVE else b""
    said = encode_statement(
        kind,
        subject,  # type: ignore[arg-type]
        incarnation,
        author=author,  # type: ignore[arg-type]
        body=body,
    )
    raw = bytearray(make_rumour(said, SimSigner(author).sign_rumour(said)).raw)  # type: ignore[arg-type]
    raw[place % len(raw)] ^= flip
    swim = machine()
    before = swim.members()
    swim.handle(PacketIn(PEER, PACKETS.encode(Gossip([bytes(raw)]))), 2.0)
    assert swim.members() == before


@given(st.binary(max_size=COORDINATE_BYTES + 4), st.floats(0.0, 0.6))
@settings(deadline=None, max_examples=200)
def test_whatever_place_an_answer_tells_this_node_is_somewhere(raw: bytes, took_s: float) -> None:
    swim = machine()
    swim.handle(Started(), 1.0)
    [send] = [e for e in swim.handle(ProbeTick(0), 2.0) if isinstance(e, Send)]
    ack = Ack(PACKETS.decode(send.message).sequence, bytes(8), [], raw)
    swim.handle(PacketIn(SUBJECTS[2], PACKETS.encode(ack)), 2.0 + took_s)
    for node in (ME, SUBJECTS[2]):
        place = swim.coordinate(node)
        assert place is None or is_sane(place)
    estimate_s = swim.estimate_s(SUBJECTS[2])
    assert estimate_s is None or 0.0 <= estimate_s < 200.0


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
def test_decoders_raise_one_error_only(data: bytes) -> None:
    for decode in (PACKETS.decode, decode_rumour, SWIM.decode):
        for raw in (data, b"\1" + data):
            try:
                decode(raw)
            except MalformedMessage:
                continue


def test_what_is_nested_without_end_is_malformed() -> None:
    deep = b"\1" + b"\x91" * 1_000
    for decode in (PACKETS.decode, SWIM.decode):
        try:
            decode(deep)
        except MalformedMessage:
            continue
        raise AssertionError("accepted")


def test_messages_survive_the_wire() -> None:
    ping = Ping(1, bytes(8), [b"raw"])
    assert PACKETS.decode(PACKETS.encode(ping)) == ping
    assert SWIM.decode(SWIM.encode(Sync([b"raw"]))) == Sync([b"raw"])
