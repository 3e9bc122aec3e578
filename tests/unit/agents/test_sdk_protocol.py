"""Frames between daemon and worker."""

from __future__ import annotations

import pytest

from swarmd.base.limits import BLOB_BYTES_MAX
from swarmd.sdk import protocol
from swarmd.sdk.context import Context
from swarmd.sdk.protocol import FrameReader, ProtocolError, decode_frame, encode_frame

FRAMES = [
    (protocol.START, protocol.FORMAT, "/folder", "a:run", 1_024, 0, 512, {"A": "b"}),
    (protocol.RUN, 1, "task", 2, 3, b"\xc0"),
    (protocol.CANCEL, 1),
    (protocol.READY,),
    (protocol.REFUSED, "why", True, "story", False),
    (protocol.RESULT, 1, b"\xc0"),
    (protocol.FAILED, 1, "agent_raised", "why", False, "story", True),
    (protocol.LOG, 1, "text"),
    (protocol.PROGRESS, 1, 0.5, 1.0),
    (protocol.ASK, 1, 2, protocol.LOCK, "door", 15_000, 60_000),
    (protocol.ANSWER, 1, 2, "lock_held", "why", 0, 0),
    (protocol.ANSWER, 1, 2, "", "", -(2**63), 2**63 - 1),
]


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
def test_frames_are_found_however_the_bytes_are_cut(size: int) -> None:
    raw = b"".join(encode_frame(*frame) for frame in FRAMES)
    reader = FrameReader()
    found = []
    for at in range(0, len(raw), size):
        reader.feed(raw[at : at + size])
        while (frame := reader.next()) is not None:
            found.append((frame[0], *frame[1]))
    assert found == FRAMES
    assert reader.buffered_bytes == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x90",
        encode_frame(99)[4:],
        encode_frame(protocol.LOG, 1)[4:],
        encode_frame(protocol.LOG, True, "x")[4:],
        encode_frame(protocol.LOG, "1", "x")[4:],
        encode_frame(protocol.RESULT, 1, "not bytes")[4:],
        encode_frame(protocol.ASK, 1, 2, protocol.LOCK, b"door", 1, 1)[4:],
        encode_frame(protocol.ASK, 1, 2, protocol.ADD, "door", True, 0)[4:],
        encode_frame(protocol.READY)[4:] + b"\x00",
        b"\x91" * 5_000,
        b"\xd9\x05ab",
    ],
)
def test_anything_else_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_frame(body)


def test_a_frame_too_long_is_refused_before_it_is_read() -> None:
    reader = FrameReader()
    reader.feed((protocol.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError):
        reader.next()


def test_bounds_agree_with_the_rest_of_the_house() -> None:
    assert protocol.RESULT_BYTES_MAX == BLOB_BYTES_MAX


def test_progress_is_thinned_but_its_end_is_told() -> None:
    told: list[tuple[float, float]] = []
    context = Context("t", 1, 1, lambda text: None, lambda *pair: told.append(pair), lambda: False)
    for done in range(1_001):
        context.progress(done, 1_000)
    assert told[-1] == (1_000.0, 1_000.0)
    assert len(told) < 100
