"""The coordinator's office handed over: on request, from any node, before a stop, at epochs."""

from __future__ import annotations

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import BadRequest, NoQuorum, WouldLoseData
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
        await swarm.store(asker).propose([Put(b"u/a", b"1")])
        before = await swarm.coordinator()
        fence = swarm.store(before).office.fence  # type: ignore[union-attr]
        target = (before + 1) % 3
        start = trio.current_time()
        assert await swarm.store(asker).transfer(swarm.id(target)) == swarm.id(target)
        assert (await swarm.store(asker).propose([Put(b"u/a", b"2")]))[0].ok
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
                key = b"u/k%d.%d" % (number, turn)
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
        assert len(await swarm.store(1).range(b"u/k")) == 120


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
        assert (await swarm.store(before).propose([Put(b"u/a", b"1")]))[0].ok


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
        assert (await swarm.store(other).propose([Put(b"u/a", b"1")]))[0].ok
        assert trio.current_time() - start < 0.3


async def test_a_coordinator_that_leaves_hands_its_office_over_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        leaver = await swarm.coordinator()
        writer = swarm.store((leaver + 1) % 3)
        epoch, waits_s, gone = writer.epoch_number, [], trio.Event()

        async def write() -> None:
            while not gone.is_set():
                start = trio.current_time()
                await writer.propose([Put(b"u/a", b"1")])
                waits_s.append(trio.current_time() - start)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(swarm.store(leaver).hand_over_seat)
            while swarm.store(leaver).serving() is not None:
                assert writer.epoch_number == epoch, "the office moves before the seat does"
                await trio.sleep(0.001)
            office = await swarm.coordinator()
            await swarm.voters_are(*(i for i in range(4) if i != leaver))
            assert await swarm.coordinator() == office, "and then it stays"
            await trio.sleep(1)
            gone.set()
        assert writer.epoch_number == epoch + 1
        assert max(waits_s) < 0.1, "nobody waits for an election"


async def test_the_office_goes_to_who_was_heard_of_last(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Both others hold all of the log, and membership has not noticed yet that one is cut off."""
    async with running_swarm() as swarm:
        await grown(swarm)
        leaver = await swarm.coordinator()
        for cut in (i for i in range(3) if i != leaver):
            swarm.network.cut(swarm.id(cut), [swarm.id(i) for i in range(3) if i != cut])
            await trio.sleep(0.2)
            replica = swarm.store(leaver).serving()
            assert replica is not None
            assert swarm.id(cut) in swarm.store(leaver).handing._membership.alive()
            assert swarm.store(leaver).handing._best_successor(replica) not in (
                swarm.id(cut),
                swarm.id(leaver),
            )
            swarm.network.heal()
            await trio.sleep(1.0)
            assert await swarm.coordinator() == leaver


async def test_a_coordinator_leaves_whose_successor_does_not_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The office stays where it is until the seat is given away, as if nobody had been asked."""
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        leaver = await swarm.coordinator()
        cut, other = (i for i in range(3) if i != leaver)
        handing = swarm.store(leaver).handing
        handing._best_successor = lambda replica: swarm.id(cut)  # type: ignore[method-assign]
        swarm.network.cut(swarm.id(cut), [swarm.id(i) for i in range(4) if i != cut])
        start = trio.current_time()
        await swarm.store(leaver).hand_over_seat()
        assert trio.current_time() - start < 4.0
        assert swarm.id(leaver) not in swarm.store(other).voters
        assert (await swarm.store(other).propose([Put(b"u/a", b"1")]))[0].ok


async def test_where_nobody_else_is_alive_the_office_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await swarm.coordinator()
        with pytest.raises(WouldLoseData):
            await swarm.store(0).hand_over_seat()
        assert swarm.store(0).serving() is not None
        swarm.store(0).stay()
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        last = await swarm.coordinator()
        await swarm.crash(*(i for i in range(3) if i != last))
        with pytest.raises(WouldLoseData):
            await swarm.store(last).hand_over_seat(timeout_s=2.0)


async def test_a_change_of_voters_does_not_move_the_office(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await swarm.store(0).propose([Put(b"u/a", b"1")])
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        assert await swarm.coordinator() == 0
