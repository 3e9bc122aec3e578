"""Elections, barriers and counters; what they say when a node dies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from recipe_swarm import TTL_S, RecipeSwarm, recipe_swarm

from swarmd.base.errors import (
    BadRequest,
    BarrierMismatch,
    BarrierWaits,
    CorruptFile,
    NotACounter,
    SwarmError,
    TooLarge,
)
from swarmd.state.raft.messages import Put
from swarmd.state.recipes.lines import Line
from swarmd.state.recipes.service import Kind, Recipes, Standing

BARRIER, ELECTION = Kind.BARRIER, Kind.ELECTION


async def come(
    recipes: Recipes, who: str, count: int, wait_s: float = 30.0, name: str = "gate"
) -> Standing:
    return await recipes.acquire(BARRIER, name, who, ttl_s=TTL_S, wait_s=wait_s, count=count)


class Crowd:
    """Participants that come one by one; who passed, when, with which fence."""

    def __init__(self, swarm: RecipeSwarm, nursery: trio.Nursery, count: int) -> None:
        self.swarm = swarm
        self.nursery = nursery
        self.count = count
        self.passed: dict[str, tuple[float, int]] = {}
        self.failed: dict[str, str] = {}

    def comes(self, who: str, index: int, wait_s: float = 30.0) -> trio.CancelScope:
        scope = trio.CancelScope()
        self.nursery.start_soon(self._come, who, index, wait_s, scope)
        return scope

    async def _come(self, who: str, index: int, wait_s: float, scope: trio.CancelScope) -> None:
        with scope:
            try:
                standing = await come(self.swarm.at(index), who, self.count, wait_s)
            except SwarmError as error:
                self.failed[who] = error.code
                return
            self.passed[who] = (trio.current_time(), standing.fence)
            self.swarm.at(index).leave_soon(standing.place)


async def crowd_of(swarm: RecipeSwarm, act: Callable[[Crowd], object], count: int = 3) -> Crowd:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(swarm, nursery, count)
        await act(crowd)  # type: ignore[misc]
    return crowd


async def test_a_barrier_opens_for_all_at_one_revision(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:

        async def act(crowd: Crowd) -> None:
            for number in range(3):
                await trio.sleep(2 * TTL_S)
                assert crowd.passed == {}
                crowd.comes(f"p{number}", number)

        crowd = await crowd_of(swarm, act)
        fences = {fence for _, fence in crowd.passed.values()}
        times = [at for at, _ in crowd.passed.values()]
        assert len(crowd.passed) == 3
        assert len(fences) == 1
        assert max(times) - min(times) < 0.2
        await trio.sleep(0.5)
        assert await swarm.keys_left() == []


async def test_a_barrier_opens_again_and_again(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever is too many for one round waits for the next; nobody passes twice for one."""
    async with recipe_swarm(0, 1, 2) as swarm:

        async def act(crowd: Crowd) -> None:
            for number in range(9):
                crowd.comes(f"p{number}", number % 3)

        crowd = await crowd_of(swarm, act)
        fences = sorted(fence for _, fence in crowd.passed.values())
        assert len(fences) == 9
        assert [fences.count(fence) for fence in sorted(set(fences))] == [3, 3, 3]
        await trio.sleep(0.5)
        assert await swarm.keys_left() == []


async def test_one_that_dies_before_it_opens_does_not_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        victim = next(i for i in range(3) if swarm.swarm.store(i).serving() is None)
        a, b = (i for i in range(3) if i != victim)
        dead = await swarm.at(victim).enter(BARRIER, "gate", "dead", ttl_s=TTL_S, count=3)
        assert not (await swarm.at(victim).wait(dead, 0.1)).fence
        await swarm.crash(victim)

        async def act(crowd: Crowd) -> None:
            crowd.comes("p1", a)
            await trio.sleep(2 * TTL_S)
            crowd.comes("p2", b)
            await trio.sleep(2 * TTL_S)
            assert crowd.passed == {}
            crowd.comes("p3", a)

        crowd = await crowd_of(swarm, act)
        assert set(crowd.passed) == {"p1", "p2", "p3"}


async def test_one_that_gives_up_does_not_count(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0) as swarm:

        async def act(crowd: Crowd) -> None:
            crowd.comes("impatient", 0, wait_s=1.0)
            cancelled = crowd.comes("cancelled", 0)
            await trio.sleep(2.0)
            cancelled.cancel()
            await trio.sleep(0.5)
            crowd.comes("p1", 0)
            crowd.comes("p2", 0, wait_s=3.0)
            await trio.sleep(1.0)
            crowd.comes("p3", 0)

        crowd = await crowd_of(swarm, act)
        assert crowd.failed == {"impatient": "barrier_waits"}
        assert set(crowd.passed) == {"p1", "p2", "p3"}


async def test_a_barrier_says_how_many_came_and_refuses_another_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0) as swarm:
        with pytest.raises(BarrierWaits, match="1 of 3 came"):
            await come(swarm.at(0), "p1", 3, wait_s=0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come, swarm.at(0), "p1", 3)
            await trio.sleep(0.2)
            with pytest.raises(BarrierMismatch, match="waits for 3, as p1 asked"):
                await come(swarm.at(0), "p2", 2)
            nursery.cancel_scope.cancel()
        await trio.sleep(0.5)
        assert await swarm.keys_left() == []
        for count in (0, -1, 257):
            with pytest.raises(BadRequest):
                await come(swarm.at(0), "p", count)


async def test_the_largest_barrier_opens(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0) as swarm:

        async def act(crowd: Crowd) -> None:
            for number in range(256):
                crowd.comes(f"p{number}", 0, wait_s=60.0)

        crowd = await crowd_of(swarm, act, count=256)
        assert len({fence for _, fence in crowd.passed.values()}) == 1
        assert len(crowd.passed) == 256


async def test_a_barrier_outlives_its_coordinator(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        leader = await swarm.swarm.coordinator()
        a, b = (i for i in range(3) if i != leader)

        async def act(crowd: Crowd) -> None:
            crowd.comes("p1", a)
            crowd.comes("p2", b)
            await trio.sleep(1.0)
            await swarm.crash(leader)
            crowd.comes("p3", a)

        crowd = await crowd_of(swarm, act)
        assert len({fence for _, fence in crowd.passed.values()}) == 1
        assert len(crowd.passed) == 3


# ---- elections ------------------------------------------------------------------------


async def test_who_leads_is_observed_from_everywhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0, 1, 2, 3) as swarm:
        seen: list[tuple[int, bytes]] = []

        async def observe() -> None:
            fence = 0
            [outside] = set(swarm.up) - set(swarm.voters)
            while len(seen) < 3:
                line: Line = await swarm.at(outside).observe(
                    ELECTION, "boss", after=fence, wait_s=30.0
                )
                fence = line.holder.revision if line.holder else 0
                seen.append((fence, line.holder.ticket.value if line.holder else b""))

        async def lead(index: int, value: bytes) -> None:
            standing = await swarm.at(index).acquire(
                ELECTION, "boss", f"n{index}", ttl_s=TTL_S, wait_s=30.0, value=value
            )
            await trio.sleep(1.0)
            await swarm.at(index).leave(ELECTION, "boss", standing.place.lease)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(observe)
            await trio.sleep(1.0)
            nursery.start_soon(lead, 0, b"one")
            await trio.sleep(0.2)
            nursery.start_soon(lead, 1, b"two")
        assert [value for _, value in seen] == [b"one", b"two", b""]
        assert 0 < seen[0][0] < seen[1][0]
        assert seen[2][0] == 0


async def test_observing_ends_with_its_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0) as swarm:
        began = trio.current_time()
        line = await swarm.at(0).observe(ELECTION, "boss", after=0, wait_s=3.0)
        assert line.holder is None
        assert 2.9 < trio.current_time() - began < 3.5


async def test_one_name_may_be_a_lock_and_an_election(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0) as swarm:
        for kind in (Kind.LOCK, Kind.ELECTION):
            assert (await swarm.at(0).acquire(kind, "x", "ann", ttl_s=TTL_S, wait_s=0.0)).fence


async def test_what_cannot_be_read_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0) as swarm:
        await swarm.swarm.store(0).propose([Put(b"c/lock/door/zz", b"")])
        with pytest.raises(CorruptFile):
            await swarm.at(0).all(Kind.LOCK)


# ---- counters -------------------------------------------------------------------------


async def test_counters_count_from_everywhere(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        assert await swarm.at(0).count_of("hits") == 0

        async def add(index: int) -> None:
            for _ in range(20):
                await swarm.at(index).count("hits", 2)

        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(add, index)
        assert await swarm.at(1).count_of("hits") == 120
        assert await swarm.at(2).count("hits", -121) == -1
        entry = await swarm.swarm.store(0).get(b"u/hits")
        assert entry is not None
        assert entry.value == b"-1"


async def test_a_key_that_is_no_counter_is_named(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0) as swarm:
        await swarm.swarm.store(0).propose([Put(b"u/text", b"hello")])
        with pytest.raises(NotACounter):
            await swarm.at(0).count("text", 1)
        with pytest.raises(NotACounter):
            await swarm.at(0).count_of("text")
        with pytest.raises(TooLarge):
            await swarm.at(0).count("big", 2**63)
        await swarm.at(0).count("big", 2**63 - 1)
        with pytest.raises(TooLarge):
            await swarm.at(0).count("big", 1)
