"""Namespaces of which each value lives on a few nodes, and any node reads and writes all."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from memory_swarm import MemorySwarm, memory_swarm

from swarmd.base.errors import (
    BadRequest,
    Conflict,
    NamespaceExists,
    NoHolder,
    NotFound,
    NotHeld,
    PolicyConflict,
    ValueTooLarge,
    WrongType,
)
from swarmd.base.limits import CRDT_VALUE_BYTES_MAX
from swarmd.memory.kv.eventual import BUCKET
from swarmd.memory.kv.partial import _merged
from swarmd.memory.kv.policies import PolicyChange
from swarmd.memory.kv.port import ABSENT, Entry
from swarmd.memory.kv.records import Consistency, ValueType
from swarmd.memory.kv.service import SharedMemory
from swarmd.state.crdt.config import CrdtConfig
from swarmd.state.crdt.messages import shard_of
from swarmd.state.crdt.placement import bucket_on

Clock = trio.testing.MockClock
TWO = bucket_on(BUCKET, 2)
KEYS = [f"k{number:03}" for number in range(100)]


async def two_copies(swarm: MemorySwarm) -> list[SharedMemory]:
    await swarm.stations[0].memory.namespaces.make("ns", Consistency.EVENTUAL, by="", copies=2)
    return [one.memory for one in swarm.stations]


def having(swarm: MemorySwarm, key: str) -> list[int]:
    """Which nodes have a key of the namespace."""
    stations = enumerate(swarm.stations)
    return [number for number, one in stations if one.eventual.cells(TWO, f"ns/{key}")]


def holders(swarm: MemorySwarm, key: str) -> list[int]:
    ids = [one.memory.namespaces._me for one in swarm.stations]
    found = swarm.stations[0].eventual.holders(TWO, shard_of(f"ns/{key}"))
    return [ids.index(one) for one in found]


async def test_any_node_reads_and_writes_what_two_hold(autojump_clock: Clock) -> None:
    async with memory_swarm(5) as swarm:
        memories = await two_copies(swarm)
        for number, key in enumerate(KEYS):
            written = await memories[number % 5].set("ns", key, number, by="ann", ttl_s=100)
            assert (written.value, written.created_by) == (number, "ann")
            assert written.expires_at_ms - written.created_at_ms == 100_000
        await trio.sleep(3)
        for number, key in enumerate(KEYS):
            assert having(swarm, key) == sorted(holders(swarm, key))
            found = [await one.get("ns", key) for one in memories]
            assert found == [found[0]] * 5
            assert found[0].value == number
        counts = [len(one.eventual.keys(TWO)) for one in swarm.stations]
        assert sum(counts) == 200
        assert max(counts) < 80
        assert not any(one.eventual.keys(BUCKET) for one in swarm.stations)


async def test_it_is_a_memory_like_any_other(autojump_clock: Clock) -> None:
    async with memory_swarm(4) as swarm:
        for memory in await two_copies(swarm):
            first = await memory.set("ns", "k1", 1, by="ann", if_version=ABSENT)
            second = await memory.set("ns", "k1", 2, by="ann", if_version=first.version)
            for version in (first.version, ABSENT, "nonsense"):
                with pytest.raises(Conflict, match="nothing changed"):
                    await memory.set("ns", "k1", 3, by="ann", if_version=version)
                with pytest.raises(Conflict):
                    await memory.delete("ns", "k1", if_version=version)
            await memory.delete("ns", "k1", if_version=second.version)
            for call in (memory.delete("ns", "k1"), memory.get("ns", "k1")):
                with pytest.raises(NotFound, match="ns has no key 'k1'"):
                    await call
            with pytest.raises(ValueTooLarge):
                await memory.set("ns", "k", "x" * CRDT_VALUE_BYTES_MAX, by="")
            with pytest.raises(BadRequest):
                await memory.set("ns", "k", 1, by="", ttl_s=-1)
            large = "x" * (CRDT_VALUE_BYTES_MAX - 50)
            await memory.set("ns", "large", large, by="")
            assert (await memory.get("ns", "large")).value == large
            await memory.set("ns", "brief", 1, by="", ttl_s=1)
            await trio.sleep(1.1)
            with pytest.raises(NotFound):
                await memory.get("ns", "brief")


async def test_a_list_is_of_all_shards_and_in_order(autojump_clock: Clock) -> None:
    async with memory_swarm(5) as swarm:
        memories = await two_copies(swarm)
        for key in KEYS:
            await memories[0].set("ns", key, "x" * 20_000, by="")
        await memories[0].set("ns", "other", 1, by="")
        for memory in memories:
            keys: list[str] = []
            more = True
            while more:
                found, more = await memory.list("ns", "k", after=keys[-1] if keys else "", limit=30)
                assert 1 <= len(found) <= 30
                keys += [one.key for one in found]
            assert keys == KEYS


def test_pages_are_merged_as_far_as_all_go() -> None:
    def page(keys: str, *, more: bool = False) -> tuple[list[Entry], bool]:
        return [Entry("ns", key, 0, "", "", 0, 0, b"n", 1) for key in keys], more  # type: ignore[arg-type]

    def merged(*pages: Any, limit: int = 9) -> tuple[str, bool]:
        found, more = _merged(list(pages), limit)
        return "".join(one.key for one in found), more

    assert merged() == ("", False)
    assert merged(page("ace"), page("bd")) == ("abcde", False)
    assert merged(page("ace"), page("bd"), limit=3) == ("abc", True)
    assert merged(page("ace", more=True), page("bdfg")) == ("abcde", True)
    assert merged(page("x", more=True), page("b", more=True)) == ("b", True)


async def test_a_watch_tells_of_all_shards_wherever_they_are(autojump_clock: Clock) -> None:
    async with memory_swarm(4) as swarm:
        memories = await two_copies(swarm)
        async with memories[3].watch("ns", "k") as watch:
            assert not watch.lagged
            for key in KEYS[:40]:
                await memories[1].set("ns", key, 1, by="")
            await memories[1].set("ns", "other", 1, by="")
            with trio.fail_after(10):
                told = {await watch.receive() for _ in range(40)}
            assert told == set(KEYS[:40])
            # A holder goes: who watches is told to read again, and goes on.
            swarm.lose(0)
            with trio.fail_after(30):
                while not watch.lagged:
                    await watch.receive()
            watch.lagged = False
            await trio.sleep(1)
            for key in KEYS[:40]:
                await memories[1].set("ns", key, 2, by="")
            told = set()
            with trio.fail_after(10):
                while told < set(KEYS[:40]):
                    told.add(await watch.receive())
        async with memories[3].watch("ns", since="17") as watch:
            assert watch.lagged, "nobody knows what changed since"


async def test_the_next_holder_answers_where_one_is_gone(autojump_clock: Clock) -> None:
    async with memory_swarm(5) as swarm:
        memories = await two_copies(swarm)
        for key in KEYS:
            await memories[0].set("ns", key, "old", by="")
        await trio.sleep(3)
        swarm.lose(4)
        for key in KEYS:
            assert (await memories[0].get("ns", key)).value == "old"
            assert (await memories[1].set("ns", key, "new", by="")).value == "new"
        assert len((await memories[2].list("ns"))[0]) == 100
        await memories[0].delete("ns", KEYS[0])
        # Who is back has no say in what it missed.
        swarm.find(4)
        await trio.sleep(10)
        for key in KEYS[1:]:
            assert (await memories[4].get("ns", key)).value == "new"
        with pytest.raises(NotFound):
            await memories[4].get("ns", KEYS[0])


async def test_who_answers_slowly_is_followed_by_the_next(autojump_clock: Clock) -> None:
    """Goal: a holder that is held alive, and does not answer, costs time alone."""
    async with memory_swarm(5) as swarm:
        memories = await two_copies(swarm)
        key = next(key for key in KEYS if 4 not in holders(swarm, key))
        await memories[0].set("ns", key, 1, by="")
        await trio.sleep(2)
        first = holders(swarm, key)[0]
        swarm.network.cut(memories[first].namespaces._me, memories[4].namespaces._me)
        assert (await memories[4].get("ns", key)).value == 1
        assert (await memories[4].set("ns", key, 2, by="")).value == 2
        await memories[4].delete("ns", key)


async def test_where_no_holder_answers_that_is_said(autojump_clock: Clock) -> None:
    async with memory_swarm(5) as swarm:
        memories = await two_copies(swarm)
        key = next(key for key in KEYS if 0 not in holders(swarm, key))
        version = (await memories[0].set("ns", key, 1, by="")).version
        ids = [one.namespaces._me for one in memories]
        for gone in holders(swarm, key):
            swarm.network.cut(ids[0], ids[gone])
        for call in (memories[0].get("ns", key), memories[0].list("ns")):
            began = trio.current_time()
            with pytest.raises(NoHolder, match="which hold it, answers: nothing changed"):
                await call
            assert trio.current_time() - began < 12
        for call in (
            memories[0].set("ns", key, 2, by=""),
            memories[0].set("ns", key, 2, by="", if_version=version),
            memories[0].delete("ns", key),
        ):
            with pytest.raises(NoHolder, match="whether it changed is unknown"):
                await call
        swarm.network.heal()
        await trio.sleep(5)
        assert (await memories[0].get("ns", key)).value == 1


async def test_values_move_to_those_who_replace_the_dead_and_back(autojump_clock: Clock) -> None:
    async with memory_swarm(0) as swarm:
        swarm.config = CrdtConfig(replace_after_s=20.0)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                await nursery.start(_run, swarm, number)
            memories = await two_copies(swarm)
            for key in KEYS:
                await memories[0].set("ns", key, "old", by="")
            await trio.sleep(30)
            before = {key: having(swarm, key) for key in KEYS}
            swarm.lose(4)
            await trio.sleep(60)
            for key in KEYS:
                have = [one for one in having(swarm, key) if one != 4]
                assert len(have) == 2
                assert set(before[key]) - {4} <= set(have), "nothing else has moved"
                await memories[1].set("ns", key, "new", by="")
            swarm.find(4)
            await trio.sleep(90)
            for key in KEYS:
                assert having(swarm, key) == before[key]
                assert (await memories[4].get("ns", key)).value == "new"
            nursery.cancel_scope.cancel()


async def _run(
    swarm: MemorySwarm, number: int, *, task_status: Any = trio.TASK_STATUS_IGNORED
) -> None:
    async with swarm.node(number, 5) as station:
        swarm.stations.append(station)
        task_status.started()
        await trio.sleep_forever()


async def test_what_has_expired_is_removed_by_a_holder(autojump_clock: Clock) -> None:
    async with memory_swarm(4) as swarm:
        memories = await two_copies(swarm)
        for key in KEYS[:30]:
            await memories[0].set("ns", key, 1, by="", ttl_s=2)
        await trio.sleep(30)
        assert not any(one.eventual.keys(TWO) for one in swarm.stations)


async def test_policies_hold_there_too(autojump_clock: Clock) -> None:
    async with memory_swarm(4) as swarm:
        memories = await two_copies(swarm)
        await memories[0].change("ns", PolicyChange(ttl_s=50, type=ValueType.STRING), by="")
        await trio.sleep(3)
        for memory in memories:
            with pytest.raises(WrongType):
                await memory.set("ns", "k", 1, by="")
            entry = await memory.set("ns", "k", "v", by="")
            assert entry.expires_at_ms - entry.created_at_ms == 50_000
        with pytest.raises(PolicyConflict):
            await memories[0].change("ns", PolicyChange(type=ValueType.ARRAY), by="")
        with pytest.raises(BadRequest, match="lives on all nodes"):
            await memories[0].change("ns", PolicyChange(bytes_max=4_096), by="")
        with pytest.raises(NamespaceExists, match="eventual on 2 nodes"):
            await memories[1].namespaces.make("ns", Consistency.EVENTUAL, by="", copies=3)
        for copies in (1, 8, -1):
            with pytest.raises(BadRequest):
                await memories[1].namespaces.make("odd", Consistency.EVENTUAL, by="", copies=copies)
        with pytest.raises(BadRequest):
            await memories[1].namespaces.make("odd", Consistency.STRONG, by="", copies=2)


async def test_why_a_value_counts_is_told_where_it_is(autojump_clock: Clock) -> None:
    async with memory_swarm(4) as swarm:
        memories = await two_copies(swarm)
        await memories[0].set("ns", "k", 1, by="")
        await trio.sleep(2)
        for number, memory in enumerate(memories):
            if number in holders(swarm, "k"):
                assert (await memory.inspect("ns", "k")).value == 1
            else:
                with pytest.raises(NotHeld, match="ask one of"):
                    await memory.inspect("ns", "k")
