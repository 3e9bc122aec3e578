"""Carriers: whole frames in order however they are cut, goodbyes with a reason, bounds."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing
from trio_websocket import CloseReason

from swarmd.base.errors import MalformedMessage
from swarmd.base.limits import FRAME_BYTES_MAX
from swarmd.base.rng import make_rng
from swarmd.identity.tls import MESH_ALPN, RAFT_ALPN
from swarmd.mesh.transports.carriers import (
    CLEAN,
    Carrier,
    Ended,
    PlainCarrier,
    _goodbye,
    open_carrier,
)


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


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("how", ["closed", "broken"])
async def test_who_is_gone_before_the_websocket_begins_is_waited_for_no_more(
    client: bool, how: str
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def broken(max_bytes: int | None = None) -> bytes:
        await trio.sleep(0.01)
        raise trio.BrokenResourceError

    if how == "broken":
        ours.receive_some = broken  # type: ignore[method-assign]
    with trio.fail_after(1), pytest.RaisesGroup(trio.BrokenResourceError):
        async with trio.open_nursery() as nursery:
            if how == "closed":
                nursery.start_soon(theirs.aclose)
            await open_carrier(MESH_ALPN, nursery, cast("Any", ours), client=client)


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
        nursery.start_soon(hear)
        await all_of(here)  # Until the peer hangs up.
        here.over()
        with trio.fail_after(5):
            await said.wait()
    assert got == [([b"last words"], how)]


async def test_a_goodbye_says_for_how_long() -> None:
    for seconds, heard in ((0, 0), (12, 12), (30, 30), (9_999, 30)):
        here, there = pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.close, "restarting", seconds)
            with pytest.raises(Ended) as ended:
                await there.receive()
            assert (ended.value.how, ended.value.quiet_s) == ("restarting", heard)
            here.over()


@pytest.mark.parametrize(
    ("reason", "how", "quiet_s"),
    [
        ("idle", "idle", 0),
        ("restarting", "restarting", 0),
        ("restarting 12", "restarting", 12),
        ("restarting 12 and more", "restarting", 12),
        ("restarting 99999", "restarting", 30),
        ("restarting 999999999999", "restarting", 0),
        ("restarting -1", "restarting", 0),
        ("restarting \u0663", "restarting", 0),
        ("restartings 12", "reset", 0),
        ("", "reset", 0),
        (None, "reset", 0),
    ],
)
def test_a_websocket_says_the_same_in_words(reason: Any, how: str, quiet_s: int) -> None:
    ended = _goodbye(CloseReason(1000, reason))
    assert (ended.how, ended.quiet_s) == (how, quiet_s)
    assert _goodbye(CloseReason(1001, reason)).how == "reset"


@pytest.mark.parametrize(
    "cut", ["", "00", "00000003", "000000036162", "00000000", "0000000001", "000000000100"]
)
async def test_an_end_within_a_frame_is_a_reset(cut: str) -> None:
    for end in (True, False):
        assert await all_of(of(*([bytes.fromhex(cut)] if cut else []), end=end)) == ([], "reset")


async def test_an_unknown_reason_is_a_reset() -> None:
    assert await all_of(of(b"\0\0\0\0\xff\0\0")) == ([], "reset")


async def test_a_frame_that_is_too_long_is_refused_before_it_is_there() -> None:
    carrier = of((FRAME_BYTES_MAX + 1).to_bytes(4, "big") + b"x")
    with pytest.raises(MalformedMessage, match="frame"):
        await carrier.receive()


async def test_a_peer_that_is_gone_ends_what_is_sent() -> None:
    here, there = pair()
    await there._stream.aclose()
    with pytest.raises(Ended, match="reset"):
        await here.send(b"x")
    with trio.fail_after(5):
        await here.close("idle")


async def test_to_close_what_is_over_already_is_no_error() -> None:
    here, there = pair()
    await there._stream.aclose()
    assert await all_of(here) == ([], "reset")
    here.over()
    with trio.fail_after(5):
        await here.close("leaving")


async def test_nothing_follows_a_goodbye_and_it_waits_for_a_frame_under_way() -> None:
    left, right = trio.testing.lockstep_stream_pair()
    here, there = PlainCarrier(cast("Any", left)), PlainCarrier(cast("Any", right))
    got: list[tuple[list[bytes], str]] = []

    async def hear() -> None:
        got.append(await all_of(there))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.send, b"under way")  # Blocks: nobody reads yet.
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(here.close, "leaving")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Ended):
            await here.send(b"too late")
        nursery.start_soon(hear)
        await trio.testing.wait_all_tasks_blocked()
        here.over()
    assert got == [([b"under way"], "leaving")]


async def test_the_log_has_no_websocket() -> None:
    async with trio.open_nursery() as nursery:
        stream = trio.testing.memory_stream_pair()[0]
        carrier = await open_carrier(RAFT_ALPN, nursery, cast("Any", stream), client=True)
        assert isinstance(carrier, PlainCarrier)


async def test_any_bytes_are_survived() -> None:
    rng = make_rng(2)
    ends = {"frames": 0, "idle": 0, "reset": 0, "refused": 0}
    for _ in range(2_000):
        lengths = (rng.choice((0, 1, 3, 9, 2**31)) for _ in range(rng.randrange(6)))
        raw = b"".join(n.to_bytes(4, "big") + rng.randbytes(n % 10) for n in lengths)
        raw += rng.choice((b"", b"\0\0\0\0\0\0\0", rng.randbytes(7)))
        cut = rng.randrange(1, 9)
        carrier = of(*[raw[at : at + cut] for at in range(0, len(raw), cut)])
        try:
            frames, how = await all_of(carrier)
        except MalformedMessage:
            ends["refused"] += 1
        else:
            ends["frames"] += len(frames)
            ends[how if how == "reset" else "idle"] += 1
    assert min(ends.values()) > 10, ends
