"""Loops that look around now and then wake the process up together."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from swarmd.base.pace import BEAT_S, pause, pause_ends

EVERY_S = (0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 5.0, 10.0)


async def test_loops_that_began_apart_wake_at_the_same_moments(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Goal: many loops wake the process twice a second, and each looks as often as before."""
    moments: set[float] = set()
    looks = [0] * len(EVERY_S)

    async def look(number: int) -> None:
        while True:
            await pause(EVERY_S[number])
            moments.add(trio.current_time())
            looks[number] += 1

    with trio.move_on_after(61.0):
        async with trio.open_nursery() as nursery:
            for number in range(len(EVERY_S)):
                await trio.sleep(0.07)
                nursery.start_soon(look, number)
    assert len(moments) <= 122
    assert looks == pytest.approx([60 / every_s for every_s in EVERY_S], abs=2)


@pytest.mark.parametrize("began_s", [0.0, 0.25, 0.999, 1.0, 7.5])
@pytest.mark.parametrize("pause_s", [0.5, 1.0, 1.7, 2.0, 30.0])
async def test_a_pause_is_never_longer_than_asked_for(
    autojump_clock: trio.testing.MockClock, began_s: float, pause_s: float
) -> None:
    await trio.sleep(began_s)
    left_s = pause_ends(pause_s) - trio.current_time()
    assert max(0.0, pause_s - BEAT_S) < left_s <= pause_s


async def test_a_short_pause_is_as_long_as_it_says(autojump_clock: trio.testing.MockClock) -> None:
    await trio.sleep(0.6)
    assert pause_ends(0.25) - trio.current_time() == pytest.approx(0.25)


async def test_beats_may_be_longer_and_shifted(autojump_clock: trio.testing.MockClock) -> None:
    for _ in range(20):
        await trio.sleep(0.7)
        ends = pause_ends(3.0, 3.0, 1.25)
        assert 0.0 < ends - trio.current_time() <= 3.0
        assert (ends - 1.25) % 3.0 == pytest.approx(0.0, abs=1e-6)
    assert pause_ends(2.9, 3.0, 1.25) - trio.current_time() == pytest.approx(2.9)
