"""Lanes: control first, everything bounded, nothing left of a broken connection."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from small_swarm import KEYS

from swarmd.base.errors import Unreachable
from swarmd.base.limits import (
    FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
    LANE_MESSAGES_MAX,
    MESSAGE_BYTES_MAX,
)
from swarmd.mesh.link import Lane
from swarmd.mesh.transports.frames import FrameSealer
from swarmd.mesh.transports.mux import Item, Kind
from swarmd.mesh.transports.ports import LANE_BYTES_MAX, StreamPort
from swarmd.wire.codec import Family, Message


class Say(Message, frozen=True, tag=1):
    number: int


TALK = Family("talk", Say)


def item(lane: Lane = Lane.CONTROL, size: int = 10, request: int = 0) -> Item:
    return Item(Kind.MESSAGE, lane, "talk", request, bytes(size))


def port() -> StreamPort:
    return StreamPort(KEYS[0].key_id, "swarmd/1")


def test_control_goes_before_bulk_and_waits_for_one_bulk_frame_at_most() -> None:
    p = port()
    for number in range(5):
        assert p.put_nowait(item(Lane.BULK, 200_000, number))
    p.put_nowait(item(request=100))
    p.put_nowait(item(request=101))
    assert [i.request for i in p.take()] == [100, 101]
    p.put_nowait(item(request=102))
    assert [i.request for i in p.take()] == [0]
    assert [i.request for i in p.take()] == [102]
    assert [[i.request for i in p.take()] for _ in range(4)] == [[1], [2], [3], [4]]
    p.put_nowait(item(request=103))
    assert [i.request for i in p.take()] == [103]


def test_small_bulk_items_share_a_frame() -> None:
    p = port()
    for number in range(100):
        p.put_nowait(item(Lane.BULK, 1_000, number))
    assert len(p.take()) == 65


def test_a_lane_is_full_by_count() -> None:
    p = port()
    assert all(p.put_nowait(item()) for _ in range(LANE_MESSAGES_MAX))
    assert not p.put_nowait(item())
    assert p.put_nowait(item(Lane.BULK))
    assert p.put_nowait(item(), force=True)


def test_a_lane_is_full_by_bytes() -> None:
    p = port()
    count = LANE_BYTES_MAX // MESSAGE_BYTES_MAX + 1
    assert all(p.put_nowait(item(Lane.BULK, MESSAGE_BYTES_MAX)) for _ in range(count))
    assert not p.put_nowait(item(Lane.BULK, 1))
    p.take()
    assert p.put_nowait(item(Lane.BULK, 1))


def test_even_what_is_forced_is_bounded() -> None:
    p = port()
    sent = 0
    while p.put_nowait(item(size=0), force=True):
        sent += 1
    assert LANE_MESSAGES_MAX < sent <= 20_000


@given(st.lists(st.tuples(st.sampled_from(Lane), st.integers(0, MESSAGE_BYTES_MAX)), max_size=40))
def test_every_frame_fits_and_order_is_kept(wanted: list[tuple[Lane, int]]) -> None:
    p = port()
    put = []
    for number, (lane, size) in enumerate(wanted):
        one = item(lane, size, number)
        if p.put_nowait(one):
            put.append(one)
    taken = []
    while p.queued:
        items = p.take()
        assert 0 < len(items) <= FRAME_MESSAGES_MAX
        assert len(FrameSealer(bytes(32)).seal(items)) <= FRAME_BYTES_MAX
        taken += items
    for lane in Lane:
        assert [i for i in taken if i.lane is lane] == [i for i in put if i.lane is lane]


async def test_who_waits_for_room_goes_on_when_there_is_some() -> None:
    p = port()
    p.opened(0.0)
    while p.put_nowait(item()):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(p.put, item(request=9))
        await trio.testing.wait_all_tasks_blocked()
        p.take()
    assert p.take()[-1].request == 9


async def test_who_waits_is_told_when_the_connection_breaks() -> None:
    p = port()
    p.put_nowait(item())
    _, call = p.open_call(TALK)

    async def wait_for_call() -> None:
        with pytest.raises(Unreachable, match="gone"):
            await call.next()

    async def wait_for_connection() -> None:
        with pytest.raises(Unreachable, match="gone"):
            await p.put(item())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_call)
        nursery.start_soon(wait_for_connection)
        await trio.testing.wait_all_tasks_blocked()
        p.break_off("reset", "it is gone")
    assert not p.queued
    assert not p.put_nowait(item(), force=True)
