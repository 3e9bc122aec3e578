"""Locks: one holder at a time, in the order of asking, whatever dies."""

from __future__ import annotations

import random

import pytest
import trio
from recipe_swarm import TTL_S, Caller, Ledger, RecipeSwarm, recipe_swarm, until

from swarmd.base.errors import (
    BadName,
    BadRequest,
    BadTtl,
    IdempotencyConflict,
    LockHeld,
    LockLost,
    SwarmError,
    TooManyWaiters,
)
from swarmd.state.raft.messages import Compare, Put, Txn
from swarmd.state.recipes import lines, waiting
from swarmd.state.recipes.service import Kind, Recipes, Standing

LOCK = Kind.LOCK


async def get(recipes: Recipes, who: str, wait_s: float = 10.0, **more: bytes) -> Standing:
    return await recipes.acquire(LOCK, "door", who, ttl_s=TTL_S, wait_s=wait_s, **more)


async def free(swarm: RecipeSwarm, name: str = "door", within_s: float = 10.0) -> None:
    with trio.fail_after(within_s):
        while not await swarm.is_free(name):  # noqa: ASYNC110 - the store is looked at
            await trio.sleep(0.05)


async def test_one_holds_and_the_next_gets_it_when_it_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        first = await get(swarm.at(0), "ann")
        assert first.fence == first.place.revision > 0
        got: list[Standing] = []

        async def second() -> None:
            got.append(await get(swarm.at(1), "bob"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            nursery.start_soon(swarm.at(0).keep, first)
            await trio.sleep(3 * TTL_S)
            assert got == []
            began = trio.current_time()
            await swarm.at(2).leave(LOCK, "door", first.place.lease)
            await until(lambda: bool(got), within_s=1)
            assert trio.current_time() - began < 0.2, "it was polled for"
            nursery.cancel_scope.cancel()
        assert got[0].fence > first.fence


async def test_a_held_lock_names_its_holder_and_keeps_no_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0) as swarm:
        held = await get(swarm.at(0), "ann on n0")
        with pytest.raises(LockHeld) as caught:
            await get(swarm.at(0), "bob", wait_s=0.0)
        assert "is held by ann on n0, who asked at 1970-01-01" in caught.value.message
        with pytest.raises(LockHeld):
            await get(swarm.at(0), "bob", wait_s=1.0)
        await trio.sleep(0.1)
        line = await swarm.at(0).look(LOCK, "door")
        assert [place.ticket.owner for place in line.places] == ["ann on n0"]
        await swarm.at(0).leave(LOCK, "door", held.place.lease)
        assert await swarm.keys_left() == []


async def test_turns_come_in_the_order_of_asking(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        order: list[int] = []

        async def contender(number: int) -> None:
            standing = await get(swarm.at(number % 3), f"c{number}", wait_s=600.0)
            order.append(number)
            await trio.sleep(0.5)
            await swarm.at(number % 3).leave(LOCK, "door", standing.place.lease)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(contender, number)
                await trio.sleep(0.1)
        assert order == list(range(20))
        assert await swarm.keys_left() == []


async def test_a_waiter_that_is_cancelled_leaves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """At whatever moment: while it asks for its lease, enters the line, or waits in it."""
    async with recipe_swarm(0, 1, 2) as swarm:
        held = await get(swarm.at(0), "ann")
        async with trio.open_nursery() as keeping:
            keeping.start_soon(swarm.at(0).keep, held)
            for step in range(12):
                with trio.move_on_after(0.0005 * 2**step):
                    await get(swarm.at(1), "bob", request=b"r%d" % step)
            await trio.sleep(1.0)
            line = await swarm.at(0).look(LOCK, "door")
            assert [place.lease for place in line.places] == [held.place.lease]
            leases = swarm.swarm.store(0).local.leases.all()  # type: ignore[union-attr]
            assert [lease.id for lease in leases] == [held.place.lease]
            keeping.cancel_scope.cancel()


async def test_a_request_repeated_anywhere_stands_in_line_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        standings: list[Standing] = []

        async def ask(index: int) -> None:
            standings.append(await get(swarm.at(index), "ann", request=b"once"))

        async with trio.open_nursery() as nursery:
            for index in (0, 1, 2, 1):
                nursery.start_soon(ask, index)
        assert len({standing.place.lease for standing in standings}) == 1
        assert len({standing.fence for standing in standings}) == 1
        await trio.sleep(0.5)
        assert len((await swarm.at(0).look(LOCK, "door")).places) == 1
        with pytest.raises(IdempotencyConflict):
            await swarm.at(0).acquire(
                LOCK, "window", "ann", ttl_s=TTL_S, wait_s=0.0, request=b"once"
            )
        assert await swarm.is_free("window")


async def test_a_place_goes_on_at_another_node(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        held = await get(swarm.at(0), "ann")
        standing = await swarm.at(1).enter(LOCK, "door", "bob", ttl_s=TTL_S)
        standing = await swarm.at(1).wait(standing, 1.0)
        assert (standing.fence, standing.ahead) == (0, 1)
        elsewhere = await swarm.at(2).resume(LOCK, "door", standing.place.lease)
        await swarm.at(0).leave(LOCK, "door", held.place.lease)
        elsewhere = await swarm.at(2).wait(elsewhere, 1.0)
        assert elsewhere.fence == standing.place.revision
        with pytest.raises(LockLost):
            await swarm.at(1).resume(LOCK, "door", held.place.lease)


async def test_the_lock_of_a_crashed_node_passes_on_after_its_ttl(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with recipe_swarm(0, 1, 2) as swarm:
        other = 1 if await swarm.swarm.coordinator() != 1 else 2
        held = await get(swarm.at(other), "ann")
        await swarm.crash(other)
        began = trio.current_time()
        following = await get(swarm.at(0), "bob")
        assert following.fence > held.fence
        assert TTL_S - 0.5 < trio.current_time() - began < TTL_S + 1.0


async def test_a_lock_outlives_its_coordinator(autojump_clock: trio.testing.MockClock) -> None:
    """The holder renews through another node; who waits gets it only when it is given up."""
    async with recipe_swarm(0, 1, 2) as swarm:
        leader = await swarm.swarm.coordinator()
        a, b = (i for i in range(3) if i != leader)
        held = await get(swarm.at(a), "ann")
        got: list[Standing] = []

        async def second() -> None:
            got.append(await get(swarm.at(b), "bob", wait_s=60.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.at(a).keep, held)
            nursery.start_soon(second)
            await trio.sleep(1.0)
            await swarm.crash(leader)
            await trio.sleep(4 * TTL_S)
            assert got == []
            await swarm.at(a).leave(LOCK, "door", held.place.lease)
            await until(lambda: bool(got), within_s=2)
            nursery.cancel_scope.cancel()


async def test_a_holder_that_is_cut_off_stops_before_the_next_one_begins(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And when it comes back too late, its fenced write is refused."""
    async with recipe_swarm(0, 1, 2) as swarm:
        leader = await swarm.swarm.coordinator()
        cut_off, other = (i for i in range(3) if i != leader)
        held = await get(swarm.at(cut_off), "ann")
        following: list[tuple[float, Standing]] = []

        async def second() -> None:
            standing = await get(swarm.at(other), "bob", wait_s=60.0)
            following.append((trio.current_time(), standing))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await trio.sleep(0.1)
            swarm.swarm.network.cut(
                swarm.swarm.id(cut_off), [swarm.swarm.id(leader), swarm.swarm.id(other)]
            )
            await swarm.at(cut_off).keep(held)
            stopped_at = trio.current_time()
        assert stopped_at < following[0][0]
        swarm.swarm.network.heal()
        write = Txn((Compare(held.place.key, held.fence),), (Put(b"u/door", b"ann was here"),))
        (late,) = await swarm.swarm.store(cut_off).propose([write])
        assert not late.ok
        now = following[0][1]
        write = Txn((Compare(now.place.key, now.fence),), (Put(b"u/door", b"bob was here"),))
        (good,) = await swarm.swarm.store(other).propose([write])
        assert good.ok
        entry = await swarm.swarm.store(other).get(b"u/door")
        assert entry is not None
        assert entry.value == b"bob was here"


async def test_a_line_outlives_a_change_of_voters(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0, 1, 2, 3) as swarm:
        [outside] = set(swarm.up) - set(swarm.voters)
        leaving, other, third = swarm.voters
        held = await get(swarm.at(outside), "ann")
        order: list[str] = []

        async def contender(name: str, index: int) -> None:
            standing = await get(swarm.at(index), name, wait_s=60.0)
            order.append(name)
            await swarm.at(index).leave(LOCK, "door", standing.place.lease)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.at(outside).keep, held)
            nursery.start_soon(contender, "bob", other)
            await trio.sleep(0.2)
            nursery.start_soon(contender, "eve", outside)
            await trio.sleep(0.2)
            await swarm.swarm.store(leaving).hand_over_seat()
            await swarm.swarm.voters_are(other, third, outside)
            await trio.sleep(TTL_S * 2)
            assert order == []
            await swarm.at(third).leave(LOCK, "door", held.place.lease)
            await until(lambda: len(order) == 2)
            nursery.cancel_scope.cancel()
        assert order == ["bob", "eve"]


async def test_a_line_is_bounded(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RECIPE_WAITERS_MAX", 3)
    async with recipe_swarm(0) as swarm:
        held = await get(swarm.at(0), "ann")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.at(0).keep, held)
            for number in range(3):
                nursery.start_soon(get, swarm.at(0), f"c{number}", 60.0)
            await trio.sleep(0.5)
            with pytest.raises(TooManyWaiters):
                await get(swarm.at(0), "too many")
            await trio.sleep(0.5)
            assert len((await swarm.at(0).look(LOCK, "door")).places) == 4
            nursery.cancel_scope.cancel()


async def test_nobody_is_first_in_a_line_that_cannot_be_seen_whole(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_LINE_MAX", 3)
    async with recipe_swarm(0) as swarm:
        for number in range(2):
            await swarm.at(0).enter(LOCK, "door", f"c{number}", ttl_s=TTL_S)
        with pytest.raises(TooManyWaiters):
            await get(swarm.at(0), "c2", wait_s=0.0)


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\x00", "a\x85", "\ud800", "x" * 201, "a\t"])
async def test_a_bad_name_is_refused_before_anything_happens(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    async with recipe_swarm(0) as swarm:
        with pytest.raises(BadName):
            await swarm.at(0).acquire(LOCK, name, "ann", ttl_s=TTL_S, wait_s=0.0)
        assert swarm.swarm.store(0).local.leases.all() == []  # type: ignore[union-attr]


async def test_names_have_200_bytes_and_any_script(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0) as swarm:
        for name in ("x" * 200, "Grüße, 世界", "a b"):
            standing = await swarm.at(0).acquire(LOCK, name, "ann", ttl_s=TTL_S, wait_s=0.0)
            assert standing.fence
        names = [line.name for line in await swarm.at(0).all(LOCK)]
        assert names == sorted(["x" * 200, "Grüße, 世界", "a b"])


async def test_other_bad_input_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with recipe_swarm(0) as swarm:
        recipes = swarm.at(0)
        with pytest.raises(BadTtl):
            await recipes.acquire(LOCK, "door", "ann", ttl_s=0.01, wait_s=0.0)
        for owner, value in (("", b""), ("x" * 1_025, b""), ("\ud800", b""), ("a", b"x" * 5_000)):
            with pytest.raises(BadRequest):
                await recipes.acquire(LOCK, "door", owner, ttl_s=1, wait_s=0.0, value=value)
        for lease in (0, -1, 2**64):
            with pytest.raises(BadRequest):
                await recipes.resume(LOCK, "door", lease)
        with pytest.raises(LockLost):
            await recipes.leave(LOCK, "door", 12345)


async def _faults(swarm: RecipeSwarm, rng: random.Random, until: float, seen: set[str]) -> None:
    while trio.current_time() < until:
        await trio.sleep(rng.uniform(0.5, 2.0))
        kind = rng.choice(["crash", "crash_coordinator", "cut", "cut_coordinator", "leave"])
        leaders = [i for i in swarm.up if swarm.swarm.store(i).serving() is not None]
        victim = rng.choice(leaders or swarm.up) if "coord" in kind else rng.choice(swarm.up)
        seen.add(kind)
        if kind.startswith("crash"):
            await swarm.crash(victim)
            await trio.sleep(rng.uniform(0.1, 4.0))
            await swarm.start(victim)
        elif kind.startswith("cut"):
            others = [swarm.swarm.id(i) for i in range(5) if i != victim]
            swarm.swarm.network.cut(swarm.swarm.id(victim), others)
            await trio.sleep(rng.uniform(0.1, 5.0))
            swarm.swarm.network.heal()
        else:
            try:
                await swarm.swarm.store(victim).hand_over_seat(timeout_s=2.0)
            except SwarmError:
                seen.add("leave_refused")
            swarm.swarm.store(victim).stay()


@pytest.mark.parametrize("seed", range(3))
async def test_two_never_hold_at_once_and_fences_rise(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Five nodes, six callers at one lock; crashes, cuts and changes of voters for 40 s.

    Then all heals: whoever still waits gets its turn, and nothing is left of anybody.
    """
    rng = random.Random(seed)
    ledger, seen = Ledger(), set[str]()
    async with recipe_swarm(0, 1, 2, 3, 4) as swarm:
        callers = [Caller(swarm, number, ledger) for number in range(6)]
        stop = trio.Event()

        async def run(caller: Caller) -> None:
            while not stop.is_set():
                hold_s = rng.choice([0.05, 0.3, 2.0, 6.0])
                await caller.hold_once("door", hold_s=hold_s, wait_s=rng.choice([1.0, 60.0]))

        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(run, caller)
            await _faults(swarm, rng, trio.current_time() + 40.0, seen)
            stop.set()
        await swarm.swarm.coordinator(within_s=10.0)
        await free(swarm)
        await trio.sleep(2 * TTL_S)
        assert await swarm.keys_left() == []
    assert ledger.problems() == []
    assert all(caller.got for caller in callers), [caller.got for caller in callers]
    assert len(ledger.rows) > 10
    assert len(seen) >= 3
