"""Carriers: whole frames in order however they are cut, goodbyes with a reason, bounds."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import pytest
import trio
import trio.testing

from swarmd.base.errors import MalformedMessage
from swarmd.base.limits import FRAME_BYTES_MAX
from swarmd.base.rng import make_rng
from swarmd.mesh.transports.carriers import CLEAN, Carrier, Ended, PlainCarrier


def pair() -> tuple[PlainCarrier, PlainCarrier]:
    left, right = trio.testing.memory_stream_pair()
    return PlainCarrier(cast("Any", left)), PlainCarrier(cast("Any", right))


def of(*pieces: bytes, end: bool = True) -> PlainCarrier:
    """The receiving side of a peer that wrote `pieces`, one at a time, and hung up."""
    _, receive = trio.testing.memory_stream_one_way_pair()

    async def next_piece(max_bytes: int | None = None) -> bytes:
        if left:
            return left.pop(0)
        if not end:
            raise trio.BrokenResourceError
        return b""

    left = list(pieces)
    receive.receive_some = next_piece  # type: ignore[method-assign]
    return PlainCarrier(cast("Any", receive))


async def all_of(carrier: Carrier) -> tuple[list[bytes], str]:
    frames: list[bytes] = []
    while True:
        try:
            frames.append(await carrier.receive())
        except Ended as ended:
            return frames, ended.how


async def test_frames_arrive_whole_however_they_are_cut() -> None:
    rng = make_rng(1)
    frames = [rng.randbytes(rng.choice((1, 3, 4, 5, 100, 2_000))) for _ in range(200)]
    frames.append(rng.randbytes(200_000))
    written = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    for size in (1_000_000, 65_536, 1_000, 7):
        pieces = [written[at : at + size] for at in range(0, len(written), size)]
        assert await all_of(of(*pieces)) == (frames, "reset")


async def test_what_one_sends_the_other_receives() -> None:
    here, there = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.send, b"a" * FRAME_BYTES_MAX)
        assert await there.receive() == b"a" * FRAME_BYTES_MAX
        nursery.start_soon(there.send, b"b")
        assert await here.receive() == b"b"


@pytest.mark.parametrize("how", CLEAN)
async def test_a_goodbye_comes_behind_what_was_sent_and_waits_to_be_heard(how: Any) -> None:
    here, there = pair()
    got: list[tuple[list[bytes], str]] = []
    said = trio.Event()

    async def leave() -> None:
        await here.close(how)
        said.set()

    async def hear() -> None:
        got.append(await all_of(there))
        await there._stream.aclose()

    async with trio.open_nursery() as nursery:
        await here.send(b"last words")
        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        assert not said.is_set(), "the peer has not heard it yet"
        nursery.start_soon(all_of, here)
        nursery.start_soon(hear)
        with trio.fail_after(5):
            await said.wait()
    assert got == [([b"last words"], how)]


@pytest.mark.parametrize("cut", ["", "00", "00000003", "000000036162", "00000000"])
async def test_an_end_within_a_frame_is_a_reset(cut: str) -> None:
    for end in (True, False):
        assert await all_of(of(bytes.fromhex(cut), end=end)) == ([], "reset")


async def test_an_unknown_reason_is_a_reset() -> None:
    assert await all_of(of(b"\0\0\0\0\xff")) == ([], "reset")


async def test_a_frame_that_is_too_long_is_refused_before_it_is_there() -> None:
    carrier = of((FRAME_BYTES_MAX + 1).to_bytes(4, "big") + b"x")
    with pytest.raises(MalformedMessage, match="frame"):
        await carrier.receive()


async def test_a_peer_that_is_gone_ends_what_is_sent() -> None:
    here, there = pair()
    await there._stream.aclose()
    with pytest.raises(Ended, match="reset"):
        await here.send(b"x")
    with pytest.raises(Ended):
        await here.close("idle")


async def test_any_bytes_are_survived() -> None:
    rng = make_rng(2)
    for _ in range(2_000):
        carrier = of(*[rng.randbytes(rng.randrange(1, 40)) for _ in range(rng.randrange(4))])
        with contextlib.suppress(MalformedMessage):
            await all_of(carrier)
        assert len(carrier._buffer) <= 4 * 40
