"""Caches: who computes, who waits, who is replaced, and what goes when there is too much."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from memory_swarm import MemorySwarm, Station, memory_swarm

from swarmd.base.errors import (
    BadRequest,
    ComputeFailed,
    ComputePending,
    ComputeReplaced,
    NoQuorum,
    NotACache,
    SwarmError,
    ValueTooLarge,
)
from swarmd.base.limits import MEMORY_STRONG_VALUE_BYTES_MAX
from swarmd.memory.cache.machine import KEPT_MS, Claim, Decision, Fail, Found, Take, Wait, decide
from swarmd.memory.cache.service import ENTRIES_MAX, LEASE_S, Hit, Turn
from swarmd.memory.kv.bounds import USED
from swarmd.memory.kv.eventual import BUCKET
from swarmd.memory.kv.records import Consistency, Flight, State
from swarmd.memory.kv.usage import Usage

Clock = trio.testing.MockClock
NS = "built"


# ---- what to do next, decided ------------------------------------------------------------


def flight(state: State, fence: int = 0) -> Flight:
    return Flight(state, "ann", b"n", fence, b"\x01", "it broke")


@pytest.mark.parametrize(
    ("found", "waited_for", "decision"),
    [
        (None, 0, Claim(0)),
        (None, 5, Claim(0)),
        (Found(5, 0, flight(State.COMPUTING)), 0, Wait(5)),
        (Found(7, 0, flight(State.COMPUTING)), 5, Wait(7)),
        (Found(6, 101, flight(State.DONE, 5)), 0, Take(b"\x01")),
        (Found(6, 101, flight(State.DONE, 5)), 4, Take(b"\x01")),
        (Found(6, 100, flight(State.DONE, 5)), 5, Claim(6)),
        (Found(6, 101, flight(State.FAILED, 5)), 5, Fail("it broke")),
        (Found(6, 101, flight(State.FAILED, 5)), 0, Claim(6)),
        (Found(6, 101, flight(State.FAILED, 5)), 4, Claim(6)),
        (Found(6, 100, flight(State.FAILED, 5)), 5, Claim(6)),
    ],
)
def test_what_who_misses_does_next(
    found: Found | None, waited_for: int, decision: Decision
) -> None:
    assert decide(found, waited_for, now_ms=100) == decision


# ---- what goes, decided ------------------------------------------------------------------


def test_what_was_used_longest_ago_goes_first() -> None:
    usage = Usage(entries_max=40, bytes_max=10_000)
    for number in range(40):
        usage.hold(f"k{number:02}", 10, 1_000 + number)
    assert usage.excess() == []
    assert usage.used("k00", 5_000) == 1_000
    usage.hold("k40", 10, 2_000)
    assert usage.excess() == ["k01", "k02", "k03"], "down to a twentieth below"
    for key in usage.excess():
        usage.forget(key)
    assert (len(usage), usage.bytes, usage.excess()) == (38, 380, [])


def test_many_bytes_take_as_many_keys_with_them_as_it_takes() -> None:
    usage = Usage(entries_max=1_000, bytes_max=1_000)
    for number in range(10):
        usage.hold(f"k{number}", 100, number)
    usage.hold("large", 500, 100)
    assert usage.excess() == ["k0", "k1", "k2", "k3", "k4", "k5"]
    usage.hold("large", 50, 100)
    assert usage.excess() == ["k0"]


def test_sums_are_right_whatever_happens() -> None:
    rng, usage, held = random.Random(1), Usage(30, 3_000), dict[str, int]()
    for step in range(5_000):
        key = f"k{rng.randrange(60)}"
        if rng.random() < 0.6:
            held[key] = rng.randrange(1, 400)
            usage.hold(key, held[key], step)
        elif rng.random() < 0.5:
            usage.used(key, step)
        else:
            usage.forget(key)
            held.pop(key, None)
        assert (len(usage), usage.bytes) == (len(held), sum(held.values()))
        gone = usage.excess()
        assert len(set(gone)) == len(gone)
        for one in gone:
            usage.forget(one)
            del held[one]
        assert len(held) <= 30
        assert sum(held.values()) <= 3_000


# ---- who computes ------------------------------------------------------------------------


class Computing:
    """Callers that get or compute, and how often it was computed."""

    def __init__(self, swarm: MemorySwarm, takes_s: float = 1.0) -> None:
        self.swarm, self.takes_s = swarm, takes_s
        self.computed = 0
        self.got: list[Any] = []

    async def call(self, number: int, key: str = "k", **more: Any) -> None:
        cache = self.swarm.stations[number % len(self.swarm.stations)].cache
        try:
            found = await cache.turn(NS, key, by=f"c{number}", wait_s=60, **more)
            if isinstance(found, Turn):
                self.computed += 1
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cache.keep, found, 300)
                    await trio.sleep(self.takes_s)
                    nursery.cancel_scope.cancel()
                await cache.finish(NS, key, found.fence, f"by {number}", by=f"c{number}")
                cache.leave_soon(found)
                found = Hit(f"by {number}")
            self.got.append(found.value)
        except SwarmError as error:
            self.got.append(error)


def flights(swarm: MemorySwarm) -> list[bytes]:
    return [one.key for one in swarm.store.applier.state.range(b"m/c/")]


async def turn_at(station: Station, key: str = "k", **more: Any) -> Turn:
    found = await station.cache.turn(NS, key, by="ann", wait_s=more.pop("wait_s", 60.0))
    assert isinstance(found, Turn)
    return found


async def test_a_hundred_misses_are_computed_once(autojump_clock: Clock) -> None:
    """Also where it takes longer than a lease, and where nodes cannot tell each other anything."""
    for takes_s, cut in ((0.0, False), (1.0, False), (4 * LEASE_S, False), (1.0, True)):
        async with memory_swarm(5) as swarm:
            calls = Computing(swarm, takes_s)
            if cut:
                ids = [one.memory.namespaces._me for one in swarm.stations]
                for one in ids:
                    swarm.network.cut(one, [other for other in ids if other != one])
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(calls.call, number)
            assert calls.computed == 1
            assert len(calls.got) == 100
            assert len(set(calls.got)) == 1
            for number in range(5):
                await calls.call(number)
            assert (calls.computed, len(set(calls.got))) == (1, 1)
            await trio.sleep(LEASE_S / 2)  # They are given back in the background.
            assert len(swarm.store.applier.state.leases) == 0


async def test_nobody_renews_and_the_next_one_computes_once_more(autojump_clock: Clock) -> None:
    async with memory_swarm(3) as swarm:
        late, began = await turn_at(swarm.stations[0]), trio.current_time()
        calls = Computing(swarm)
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(calls.call, number)
        assert trio.current_time() - began < LEASE_S + 3
        assert calls.computed == 1
        assert len(set(calls.got)) == 1
        with pytest.raises(ComputeReplaced):
            await swarm.stations[0].cache.finish(NS, "k", late.fence, "late", by="ann")
        with pytest.raises(ComputeReplaced):
            await swarm.stations[0].cache.fail(NS, "k", late.fence, "late", by="ann")
        assert (await swarm.stations[1].memory.get(NS, "k")).value == calls.got[0]


async def test_a_late_result_is_refused_while_the_next_one_computes(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        late = await turn_at(swarm.stations[0])
        await trio.sleep(LEASE_S + 1)
        again = await turn_at(swarm.stations[1])
        assert again.fence > late.fence
        with pytest.raises(ComputeReplaced, match="not kept"):
            await swarm.stations[0].cache.finish(NS, "k", late.fence, "late", by="ann")
        assert not swarm.stations[0].eventual.keys(BUCKET)
        await swarm.stations[1].cache.finish(NS, "k", again.fence, "good", by="bob")
        found = await swarm.stations[0].cache.turn(NS, "k", by="c", wait_s=0)
        assert found == Hit("good")


async def test_a_turn_that_is_given_back_goes_to_the_next_at_once(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        turn = await turn_at(swarm.stations[0])
        swarm.stations[0].cache.leave_soon(turn)
        began = trio.current_time()
        await turn_at(swarm.stations[1])
        assert trio.current_time() - began < 0.1


async def test_a_turn_ends_with_its_time(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        turn = await turn_at(swarm.stations[0])
        await swarm.stations[0].cache.keep(turn, 20.0)
        assert 19.9 < trio.current_time() - turn.since < 20.1
        turn = await turn_at(swarm.stations[0], "other")
        swarm.store.no_quorum = True
        began = trio.current_time()
        await swarm.stations[0].cache.keep(turn, 60.0)
        assert trio.current_time() - began < LEASE_S, "it must not outlive its lease"


async def test_a_value_that_comes_while_it_is_claimed_is_had_and_nothing_computed(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_swarm(1) as swarm:
        cache, claim = swarm.stations[0].cache, swarm.stations[0].cache._claim

        async def slow(*asked: Any) -> Turn | None:
            turn = await claim(*asked)
            await swarm.stations[0].memory.set(NS, "k", "from elsewhere", by="")
            return turn

        monkeypatch.setattr(cache, "_claim", slow)
        assert await cache.turn(NS, "k", by="", wait_s=1) == Hit("from elsewhere")
        await trio.sleep(1)
        assert flights(swarm) == []


async def test_finishing_twice_is_finishing_once(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        a, b = (one.cache for one in swarm.stations)
        turn = await turn_at(swarm.stations[0])
        await a.finish(NS, "k", turn.fence, 1, by="ann")
        await b.finish(NS, "k", turn.fence, 1, by="ann")
        with pytest.raises(ComputeReplaced):
            await b.fail(NS, "k", turn.fence, "no", by="ann")


async def test_who_waits_is_told_of_a_failure_and_who_comes_later_tries(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(2) as swarm:
        turn = await turn_at(swarm.stations[0])
        calls = Computing(swarm)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(calls.call, number)
            await trio.sleep(0.5)
            why = "ValueError: no such report"
            await swarm.stations[0].cache.fail(NS, "k", turn.fence, why, by="ann")
        assert calls.computed == 0
        assert all(isinstance(one, ComputeFailed) and why in str(one) for one in calls.got)
        await calls.call(0)
        assert calls.computed == 1


async def test_who_waits_too_long_is_told_who_computes(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        await turn_at(swarm.stations[0])
        with pytest.raises(ComputePending, match=r"ann at node .* still computes 'k'"):
            await swarm.stations[0].cache.turn(NS, "k", by="bob", wait_s=2)


async def test_without_a_majority_hits_go_on_and_nobody_computes(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        cache = swarm.stations[0].cache
        await Computing(swarm).call(0)
        turn = await turn_at(swarm.stations[0], "other")
        swarm.store.no_quorum = True
        assert await cache.turn(NS, "k", by="", wait_s=1) == Hit("by 0")
        with pytest.raises(NoQuorum):
            await cache.turn(NS, "missing", by="", wait_s=1)
        with pytest.raises(NoQuorum):
            await cache.finish(NS, "other", turn.fence, 1, by="")
        with pytest.raises(NoQuorum):
            await swarm.stations[0].memory.delete(NS, "k")
        assert await cache.turn(NS, "k", by="", wait_s=1) == Hit("by 0"), "nothing changed"


async def test_a_value_that_was_deleted_is_computed_anew(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        await Computing(swarm).call(0)
        await trio.sleep(1)
        await swarm.stations[1].memory.delete(NS, "k")
        await trio.sleep(1)
        calls = Computing(swarm)
        await calls.call(0)
        assert calls.computed == 1


async def test_a_value_goes_with_its_time_to_live(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        for _ in range(3):
            turn = await turn_at(swarm.stations[0])
            await swarm.stations[0].cache.finish(NS, "k", turn.fence, 1, by="", ttl_s=2)
            found = await swarm.stations[1].cache.turn(NS, "k", by="", wait_s=0)
            assert found == Hit(1)
            await trio.sleep(2.1)


async def test_what_became_of_it_does_not_stay_in_the_strong_store(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        calls = Computing(swarm)
        for number in range(20):
            await calls.call(0, f"k{number}")
        assert len(flights(swarm)) > 0
        await trio.sleep(KEPT_MS / 1_000 + 10)
        assert flights(swarm) == []


async def test_a_cancelled_caller_leaves_nothing(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        cache = swarm.stations[0].cache
        for after_s in (0.0, 0.001, 0.01):
            with trio.move_on_after(after_s):
                found = await cache.turn(NS, "k", by="", wait_s=60)
                assert isinstance(found, Turn)
                cache.leave_soon(found)
            await trio.sleep(0.1)
            assert flights(swarm) == []
            assert len(swarm.store.applier.state.leases) == 0


@pytest.mark.parametrize(
    ("value", "ttl_s", "error"),
    [
        ("x" * MEMORY_STRONG_VALUE_BYTES_MAX, None, ValueTooLarge),
        (1, 0, BadRequest),
        (1, -1.0, BadRequest),
    ],
)
async def test_a_result_that_cannot_be_kept_is_refused_and_the_turn_goes_on(
    autojump_clock: Clock, value: Any, ttl_s: float | None, error: type[Exception]
) -> None:
    async with memory_swarm(1) as swarm:
        cache = swarm.stations[0].cache
        turn = await turn_at(swarm.stations[0])
        with pytest.raises(error):
            await cache.finish(NS, "k", turn.fence, value, by="", ttl_s=ttl_s)
        await cache.finish(NS, "k", turn.fence, 1, by="")


async def test_only_a_cache_takes_what_is_computed(autojump_clock: Clock) -> None:
    async with memory_swarm(1) as swarm:
        memory, cache = swarm.stations[0].memory, swarm.stations[0].cache
        await memory.set("plain", "k", 1, by="")
        with pytest.raises(NotACache, match="a namespace of its own"):
            await cache.turn("plain", "other", by="", wait_s=0)
        await memory.namespaces.make("ledger", Consistency.STRONG, by="")
        with pytest.raises(NotACache):
            await cache.turn("ledger", "k", by="", wait_s=0)
        await cache.turn("fresh", "k", by="", wait_s=0)
        made = (await memory.namespaces.all())["fresh"]
        assert (made.entries_max, made.is_cache) == (ENTRIES_MAX, True)


# ---- what goes ---------------------------------------------------------------------------


async def fill(station: Station, keys: list[str], size: int = 10) -> None:
    for key in keys:
        turn = await turn_at(station, key)
        await station.cache.finish(NS, key, turn.fence, "x" * size, by="")
        await trio.sleep(0.01)


async def kept(station: Station) -> set[str]:
    return {one.key for one in (await station.memory.list(NS))[0]}


async def eventually(holds: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not holds():  # noqa: ASYNC110 - what is waited for sets no event
            await trio.sleep(0.1)


async def test_a_full_cache_lets_go_what_was_used_longest_ago_on_any_node(
    autojump_clock: Clock,
) -> None:
    async with memory_swarm(3) as swarm:
        a, b, c = swarm.stations
        await a.memory.namespaces.make(
            NS, Consistency.EVENTUAL, by="", entries_max=20, bytes_max=100_000
        )
        await fill(a, [f"k{number:02}" for number in range(20)])
        assert len(await kept(a)) == 20
        await trio.sleep(70)
        assert await b.cache.turn(NS, "k00", by="", wait_s=0) == Hit("x" * 10)
        assert await c.cache.turn(NS, "k01", by="", wait_s=0) == Hit("x" * 10)
        await trio.sleep(5)
        assert sorted(a.eventual.keys(USED)) == [f"{NS}/k00", f"{NS}/k01"], "told, once each"
        for _ in range(100):
            await b.cache.turn(NS, "k00", by="", wait_s=0)
        await trio.sleep(5)
        await fill(a, ["new"])
        left = await kept(a)
        assert {"k00", "k01", "new"} <= left
        assert {"k02", "k03"}.isdisjoint(left)
        assert len(left) <= 20
        await trio.sleep(5)
        assert await kept(b) == await kept(c) == left
        await a.memory.delete(NS, "k00")
        await trio.sleep(5)
        assert a.eventual.keys(USED) == [f"{NS}/k01"], "nothing is kept of what is gone"


async def test_nothing_is_kept_of_many_values_that_go_at_once(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.memory.kv.bounds._WRITES_MAX", 5)
    async with memory_swarm(2) as swarm:
        a, b = swarm.stations
        keys = [f"k{number:02}" for number in range(20)]
        await fill(a, keys)
        await trio.sleep(70)
        for key in keys:
            await b.cache.turn(NS, key, by="", wait_s=0)
        await trio.sleep(20)
        assert len(a.eventual.keys(USED)) == 20
        for key in keys:
            await a.memory.delete(NS, key)
        await trio.sleep(20)
        assert a.eventual.keys(USED) == b.eventual.keys(USED) == []


async def test_what_others_put_in_beyond_the_bounds_goes_as_well(autojump_clock: Clock) -> None:
    async with memory_swarm(2) as swarm:
        a, b = swarm.stations
        await a.memory.namespaces.make(
            NS, Consistency.EVENTUAL, by="", entries_max=1_000, bytes_max=10_000
        )
        await trio.sleep(1)
        for number in range(50):
            await b.memory.set(NS, f"k{number:02}", "x" * 500, by="")
        await trio.sleep(10)
        left = await kept(a)
        assert left == await kept(b)
        assert 15 <= len(left) <= 20
        assert "k49" in left


async def test_what_is_no_cache_is_not_walked_through(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_swarm(1) as swarm:
        [station] = swarm.stations
        await fill(station, ["k0", "k1"])
        for number in range(100):
            await station.memory.set("plain", f"k{number}", 1, by="")
        looked: list[str] = []
        monkeypatch.setattr(station.memory.bounds, "_look_at", looked.append)
        await station.memory.bounds._look_at_all()
        assert sorted(looked) == [f"{NS}/k0", f"{NS}/k1"]


async def test_a_restarted_node_knows_what_its_caches_hold(autojump_clock: Clock) -> None:
    async with memory_swarm(0) as swarm:
        async with swarm.node(0, 1) as first:
            await first.memory.namespaces.make(
                NS, Consistency.EVENTUAL, by="", entries_max=10, bytes_max=10_000
            )
            await fill(first, [f"k{number}" for number in range(10)])
        async with swarm.node(0, 1) as again:
            await trio.sleep(3)
            await fill(again, ["new"])
            assert len(await kept(again)) <= 10
            assert "k0" not in await kept(again)
