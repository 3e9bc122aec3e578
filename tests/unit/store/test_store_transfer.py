"""The coordinator's office handed over: on request, from any node, before a stop, at epochs."""

from __future__ import annotations

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import BadRequest, NoQuorum
from swarmd.state.raft.messages import Put


async def grown(swarm: Swarm) -> None:
    await swarm.start(0, 1, 2)
    await swarm.voters_are(0, 1, 2)


@pytest.mark.parametrize("asker", [0, 1, 2, 3])
async def test_from_any_node_to_a_chosen_voter(
    autojump_clock: trio.testing.MockClock, asker: int
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        await swarm.store(asker).propose([Put(b"a", b"1")])
        before = await swarm.coordinator()
        fence = swarm.store(before).office.fence  # type: ignore[union-attr]
        target = (before + 1) % 3
        start = trio.current_time()
        assert await swarm.store(asker).transfer(swarm.id(target)) == swarm.id(target)
        assert (await swarm.store(asker).propose([Put(b"a", b"2")]))[0].ok
        assert trio.current_time() - start < 0.3, "nobody waits for an election"
        assert await swarm.coordinator() == target
        assert swarm.store(target).office.fence > fence  # type: ignore[union-attr]


async def test_to_whom_it_likes(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        before = await swarm.coordinator()
        after = await swarm.store(before).transfer(None)
        assert after != swarm.id(before)
        assert swarm.store(before).coordinator() == after


async def test_nothing_in_flight_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """Calls that meet a hand-over are made again at the successor, once each."""
    async with running_swarm() as swarm:
        await grown(swarm)
        done: list[int] = []

        async def write(number: int) -> None:
            for turn in range(20):
                key = b"k%d.%d" % (number, turn)
                [result] = await swarm.store(number % 3).propose([Put(key, b"v", expect=0)])
                assert result.ok, result
                done.append(result.revision)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(write, number)
            for _ in range(4):
                await trio.sleep(0.02)
                await swarm.store(0).transfer(None)
        assert len(set(done)) == 120
        assert len(await swarm.store(1).range(b"k")) == 120


async def test_whom_it_cannot_go_to(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        with pytest.raises(BadRequest, match="no other voter"):
            await swarm.store(0).transfer(None)
        with pytest.raises(BadRequest, match="no voter"):
            await swarm.store(0).transfer(swarm.id(5))
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        before = await swarm.coordinator()
        away = (before + 1) % 3
        await swarm.crash(away)
        with pytest.raises(NoQuorum):
            await swarm.store(before).transfer(swarm.id(away), timeout_s=1.5)
        assert await swarm.coordinator() == before, "it leads on"
        assert (await swarm.store(before).propose([Put(b"a", b"1")]))[0].ok


async def test_before_an_orderly_stop(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        assert await swarm.coordinator() == 0
        await swarm.store(0).handing.give_up()
        assert swarm.store(0).serving() is not None, "a lone voter keeps it"
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        stopping = await swarm.coordinator()
        start = trio.current_time()
        await swarm.store(stopping).handing.give_up()
        await swarm.crash(stopping)
        other = (stopping + 1) % 3
        assert (await swarm.store(other).propose([Put(b"a", b"1")]))[0].ok
        assert trio.current_time() - start < 0.3


async def test_a_change_of_voters_does_not_move_the_office(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await swarm.store(0).propose([Put(b"a", b"1")])
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        assert await swarm.coordinator() == 0
