"""Frames: the next one of the session, whole, or the session is over."""

from __future__ import annotations

import msgspec
import pytest

from swarmd.base.errors import BadSignature, MalformedMessage
from swarmd.base.limits import FRAME_BYTES_MAX, FRAME_MESSAGES_MAX
from swarmd.identity.keys import Aead
from swarmd.mesh.link import Lane
from swarmd.mesh.transports.frames import FrameOpener, FrameSealer
from swarmd.mesh.transports.mux import Item, Kind

KEY = bytes(range(32))
ITEM = Item(Kind.REQUEST, Lane.BULK, "talk", 7, b"payload")


def test_what_is_sealed_opens_in_order() -> None:
    sealer, opener = FrameSealer(KEY), FrameOpener(KEY)
    for count in (1, 2, FRAME_MESSAGES_MAX):
        assert opener.open(sealer.seal([ITEM] * count)) == [ITEM] * count


def test_the_bytes_of_a_frame_are_fixed() -> None:
    frame = FrameSealer(KEY).seal([ITEM])
    assert frame[:8] == bytes(8)
    assert frame[8:24] == Aead(KEY).seal(0, b"", frame[24:])
    assert frame[24:].hex() == "91950101a474616c6b07c4077061796c6f6164"


def test_a_repeated_or_skipped_frame_is_refused() -> None:
    sealer, opener = FrameSealer(KEY), FrameOpener(KEY)
    first, second, third = (sealer.seal([ITEM]) for _ in range(3))
    opener.open(first)
    for wrong in (first, third):
        with pytest.raises(BadSignature):
            opener.open(wrong)
    assert opener.open(second) == [ITEM]


def test_every_altered_byte_is_noticed() -> None:
    frame = FrameSealer(KEY).seal([ITEM])
    for at in range(len(frame)):
        with pytest.raises(BadSignature):
            FrameOpener(KEY).open(frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :])


def test_another_sessions_frame_is_refused() -> None:
    with pytest.raises(BadSignature):
        FrameOpener(bytes(32)).open(FrameSealer(KEY).seal([ITEM]))


@pytest.mark.parametrize("length", [0, 1, 24, FRAME_BYTES_MAX + 1])
def test_lengths_that_cannot_be_are_refused(length: int) -> None:
    with pytest.raises(MalformedMessage):
        FrameOpener(KEY).open(bytes(length))


@pytest.mark.parametrize(
    "batch",
    [
        b"\xc1",
        msgspec.msgpack.encode([[99, 0, "talk", 1, b""]]),
        msgspec.msgpack.encode([[0, 0, "talk", 1]]),
        msgspec.msgpack.encode([[0, 0, "talk", 1, b""]] * (FRAME_MESSAGES_MAX + 1)),
    ],
)
def test_a_proven_peer_that_sends_nonsense_is_malformed(batch: bytes) -> None:
    frame = bytes(8) + Aead(KEY).seal(0, b"", batch) + batch
    with pytest.raises(MalformedMessage):
        FrameOpener(KEY).open(frame)
