"""The store as its callers see it: one and three nodes, crashes, growth, leaving."""

from __future__ import annotations

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import BadRequest, NoQuorum, WouldLoseData
from swarmd.observe.metrics import MACHINE_EVENTS
from swarmd.sim.disk import SimDisk
from swarmd.state.raft.machine import Wake
from swarmd.state.raft.messages import Compare, Delete, OpResult, Put, Txn
from swarmd.state.raft.seat_machine import Looked
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.storetime import PAUSE_MAX_S


async def put(swarm: Swarm, node: int, key: bytes, value: bytes, **options: float) -> OpResult:
    return (await swarm.store(node).propose([Put(key, value)], **options))[0]


async def value_at(swarm: Swarm, node: int, key: bytes) -> bytes | None:
    entry = await swarm.store(node).get(key)
    return None if entry is None else entry.value


async def grown(swarm: Swarm) -> None:
    await swarm.start(0, 1, 2)
    await swarm.voters_are(0, 1, 2)


async def test_one_node_serves(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        assert (await put(swarm, 0, b"u/a", b"1")).ok
        assert await value_at(swarm, 0, b"u/a") == b"1"
        assert await value_at(swarm, 0, b"u/b") is None
        office = swarm.store(0).office
        assert office is not None
        assert office.fence == 1
        status = swarm.store(0).status()
        assert (status.state, status.role, status.may_lose) == ("ok", "leader", 0)


async def test_a_second_node_forwards(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        assert (await put(swarm, 1, b"u/a", b"1")).ok
        assert await value_at(swarm, 1, b"u/a") == b"1"
        await trio.sleep(5)
        assert swarm.store(0).voters == (swarm.id(0),)
        assert not swarm.store(1).is_voter
        assert swarm.store(1).local is None


async def test_growth_keeps_the_data(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        before = [await put(swarm, 0, b"u/k%d" % i, b"v%d" % i) for i in range(20)]
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        for node in range(3):
            entries = await swarm.store(node).range(b"u/k")
            assert [e.value for e in entries] == sorted(b"v%d" % i for i in range(20))
        after = await put(swarm, 2, b"u/z", b"1")
        assert after.revision > before[-1].revision
        assert swarm.store(1).epoch_number == 2


async def test_store_time_stands_still_while_a_lone_coordinators_host_sleeps(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a lid that was closed for a month would expire every credential."""
    async with running_swarm() as swarm:
        await swarm.start(0)
        store = swarm.store(0)
        await put(swarm, 0, b"u/k", b"v")
        before_ms, now = store.store_time_ms(), store._time._clock.now()
        monkeypatch.setattr(store._time._clock, "now", lambda: now + 31 * 86_400, raising=False)
        assert store.store_time_ms() - before_ms <= 1_000 * PAUSE_MAX_S
        monkeypatch.setattr(store._time._clock, "now", lambda: now + 31 * 86_400 + 5, raising=False)
        later_ms = store.store_time_ms() - before_ms
        assert 5_000 <= later_ms <= 1_000 * (PAUSE_MAX_S + 5)


async def test_an_idle_minute_has_few_steps(autojump_clock: trio.testing.MockClock) -> None:
    """Goal: a lone leader gives no signs of life, and who leads nothing does not look for changes.

    The counters are of all machines of this process.
    """
    async with running_swarm() as swarm:
        await swarm.start(0)
        await trio.sleep(10)
        raft, before = MACHINE_EVENTS.of("raft"), MACHINE_EVENTS.of("raft")[Wake]
        await trio.sleep(60)
        assert raft[Wake] - before <= 65
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        await trio.sleep(10)
        seats, before = MACHINE_EVENTS.of("seats"), MACHINE_EVENTS.of("seats")[Looked]
        await trio.sleep(60)
        assert 100 <= seats[Looked] - before <= 130, "only who coordinates looks twice a second"


@pytest.mark.parametrize("node", [0, 1, 2])
async def test_every_operation_from_each_node(
    autojump_clock: trio.testing.MockClock, node: int
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        store = swarm.store(node)
        first = (await store.propose([Put(b"u/a", b"1", expect=0)]))[0]
        again = (await store.propose([Put(b"u/a", b"2", expect=0)]))[0]
        assert (first.ok, again.code) == (True, "conflict")
        swap = (await store.propose([Put(b"u/a", b"2", expect=first.revision)]))[0]
        txn = Txn((Compare(b"u/a", swap.revision),), (Put(b"u/b", b"1"), Delete(b"u/a")))
        results = await store.propose([txn, Put(b"u/c", b"3")])
        assert [r.ok for r in results] == [True, True]
        for reader in range(3):
            assert await value_at(swarm, reader, b"u/a") is None
            assert await value_at(swarm, reader, b"u/b") == b"1"
            assert [e.key for e in await swarm.store(reader).range(b"")] == [b"u/b", b"u/c"]
        revision = await store.read_index()
        assert revision >= results[-1].revision
        local = store.local
        assert local is not None
        assert local.get(b"u/c") is not None, "read_index brings the local copy up to date"


async def test_stale_reads_from_each_node(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        await put(swarm, 0, b"u/a", b"1")
        await trio.sleep(1)
        for node in range(4):
            entry = await swarm.store(node).get(b"u/a", stale=True)
            assert entry is not None
            assert len(await swarm.store(node).range(b"", stale=True)) == 1


@pytest.mark.parametrize("writer", ["voter", "other"])
async def test_coordinator_killed(autojump_clock: trio.testing.MockClock, writer: str) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        await put(swarm, 3, b"u/a", b"1")
        killed = await swarm.coordinator()
        fence = swarm.store(killed).office.fence  # type: ignore[union-attr]
        node = 3 if writer == "other" else (killed + 1) % 3
        await swarm.crash(killed)
        start = trio.current_time()
        assert (await put(swarm, node, b"u/a", b"2")).ok
        assert trio.current_time() - start < 2.0
        assert await value_at(swarm, node, b"u/a") == b"2"
        successor = await swarm.coordinator()
        assert swarm.store(successor).office.fence > fence  # type: ignore[union-attr]


async def test_minority_answers_no_quorum(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await put(swarm, 0, b"u/a", b"1")
        await swarm.crash(1, 2)
        for call in (
            lambda: put(swarm, 0, b"u/a", b"2"),
            lambda: swarm.store(0).get(b"u/a"),
            lambda: swarm.store(0).range(b""),
            lambda: swarm.store(0).read_index(),
        ):
            start = trio.current_time()
            with pytest.raises(NoQuorum):
                await call()
            assert trio.current_time() - start <= 5.01
        assert swarm.store(0).status().state == "no_quorum"
        stale = await swarm.store(0).get(b"u/a", stale=True)
        assert stale is not None
        await swarm.start(1)
        assert (await put(swarm, 0, b"u/a", b"3")).ok


async def test_a_cut_off_coordinator_serves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await put(swarm, 0, b"u/a", b"old")
        old = await swarm.coordinator()
        others = [i for i in range(3) if i != old]
        swarm.network.cut(swarm.id(old), [swarm.id(i) for i in others])
        assert (await put(swarm, others[0], b"u/a", b"new")).ok
        with pytest.raises(NoQuorum):
            await swarm.store(old).get(b"u/a", timeout_s=1.0)
        with pytest.raises(NoQuorum):
            await put(swarm, old, b"u/a", b"lost", timeout_s=1.0)
        swarm.network.heal()
        await trio.sleep(2)
        assert await value_at(swarm, old, b"u/a") == b"new"


async def test_total_restart(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        revisions = [(await put(swarm, i % 3, b"u/k%d" % i, b"v")).revision for i in range(30)]
        await swarm.crash(0, 1, 2)
        await swarm.start(2, 1, 0)
        await swarm.voters_are(0, 1, 2)
        assert len(await swarm.store(1).range(b"u/k")) == 30
        assert (await put(swarm, 0, b"u/z", b"v")).revision > max(revisions)


async def test_one_node_restarts(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await put(swarm, 0, b"u/a", b"1")
        fence = swarm.store(0).office.fence  # type: ignore[union-attr]
        await swarm.crash(0)
        await swarm.start(0)
        assert await value_at(swarm, 0, b"u/a") == b"1"
        assert swarm.store(0).office.fence > fence  # type: ignore[union-attr]


async def test_a_restarted_voter_catches_up(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.crash(1)
        for i in range(10):
            await put(swarm, 0, b"u/k%d" % i, b"v")
        await swarm.start(1)
        await swarm.store(1).read_index()
        local = swarm.store(1).local
        assert local is not None
        assert len(local) == 10


# ---- leaving -----------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["coordinator", "other"])
async def test_a_voter_leaves_and_is_replaced(
    autojump_clock: trio.testing.MockClock, who: str
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        await put(swarm, 3, b"u/a", b"1")
        leader = await swarm.coordinator()
        leaver = leader if who == "coordinator" else (leader + 1) % 3
        await swarm.store(leaver).hand_over_seat()
        swarm.left.add(swarm.id(leaver))
        await swarm.crash(leaver)
        staying = [i for i in range(4) if i != leaver]
        await swarm.voters_are(*staying)
        for node in staying:
            assert await value_at(swarm, node, b"u/a") == b"1"
        assert (await put(swarm, 3, b"u/a", b"2")).ok


async def test_who_handed_its_seat_over_is_not_offered_another_while_it_ends_its_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.store(2).hand_over_seat()
        await trio.sleep(20.0)
        assert all(swarm.id(2) not in swarm.store(i).voters for i in range(3))
        swarm.store(2).stay()
        await swarm.voters_are(0, 1, 2)


@pytest.mark.parametrize("more", [0, 1], ids=["alone", "with a spare"])
async def test_a_voter_that_lost_its_disk_gets_its_seat_as_another_voter(
    autojump_clock: trio.testing.MockClock, more: int
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(*range(3, 3 + more))
        await put(swarm, 0, b"u/a", b"1")
        await swarm.crash(2)
        swarm.nodes[2].disk = SimDisk(swarm.world, "another")
        await swarm.start(2)
        with trio.fail_after(20):
            while True:
                if swarm.store(2).is_voter and swarm.store(2).local is not None:
                    break
                await trio.sleep(0.1)
        await swarm.voters_are(0, 1, 2)
        epoch = swarm.store(0).epoch_number
        await swarm.crash(1)  # Two of three are left, and one of them is the new one.
        assert await value_at(swarm, 2, b"u/a") == b"1"
        assert (await put(swarm, 2, b"u/a", b"2")).ok
        await trio.sleep(20.0)
        assert swarm.store(0).epoch_number == epoch


async def test_leaving_reduces_and_the_last_voter_hands_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await put(swarm, 0, b"u/a", b"1")
        for leaver in (0, 1):
            await swarm.store(leaver).hand_over_seat()
            swarm.left.add(swarm.id(leaver))
            await swarm.crash(leaver)
        await swarm.voters_are(2)
        assert await value_at(swarm, 2, b"u/a") == b"1"
        with pytest.raises(WouldLoseData, match="start or join other nodes first"):
            await swarm.store(2).hand_over_seat()
        assert (await put(swarm, 2, b"u/a", b"2")).ok


async def test_who_has_no_seat_hands_nothing_over(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        await put(swarm, 0, b"u/a", b"1")
        await swarm.store(1).hand_over_seat()


async def test_a_stopped_member_keeps_its_seat(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.crash(1)
        swarm.left.add(swarm.id(1))
        await trio.sleep(10)
        assert swarm.store(0).voters == tuple(sorted(swarm.id(i) for i in range(3)))


# ---- exactly once ------------------------------------------------------------------------


async def test_exactly_once_over_coordinator_changes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Every append to a list is there once, though coordinators die under way."""
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        acknowledged: list[int] = []

        async def client(first: int) -> None:
            for i in range(first, first + 60):
                result = (await swarm.store(3).propose([Put(b"u/k%05d" % i, b"", expect=0)]))[0]
                assert result.ok, (i, result)
                acknowledged.append(result.revision)
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for first in range(0, 400, 100):
                nursery.start_soon(client, first)
            for _ in range(3):
                await trio.sleep(0.4)
                victim = await swarm.coordinator()
                await swarm.crash(victim)
                await trio.sleep(1.0)
                await swarm.start(victim)
        assert len(acknowledged) == len(set(acknowledged)) == 240
        assert len(await swarm.store(0).range(b"u/k")) == 240


async def test_writes_go_on_through_growth(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        longest = 0.0
        stop = trio.Event()
        count = 0

        async def client(node: int) -> None:
            nonlocal longest, count
            while not stop.is_set():
                start = trio.current_time()
                count += 1
                result = await put(swarm, node, b"u/%d/%d" % (node, count), b"", timeout_s=5.0)
                assert result.ok
                longest = max(longest, trio.current_time() - start)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client, 0)
            await swarm.start(1, 2)
            nursery.start_soon(client, 2)
            await swarm.voters_are(0, 1, 2)
            await trio.sleep(1)
            stop.set()
        assert len(await swarm.store(1).range(b"", limit=100_000)) == count
        assert longest < 2.0


# ---- changes and office ------------------------------------------------------------------


async def test_changes_come_in_order_across_an_epoch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await put(swarm, 0, b"u/warm", b"")
        feed = swarm.store(0).changes()
        for i in range(5):
            await put(swarm, 0, b"u/k%d" % i, b"")
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        for i in range(5, 10):
            await put(swarm, 1, b"u/k%d" % i, b"")
        await swarm.store(0).read_index()
        seen = []
        with trio.move_on_after(1):
            async for changes in feed:
                seen += changes
        assert [c.key for c in seen] == [b"u/k%d" % i for i in range(10)]
        assert [c.revision for c in seen] == sorted(c.revision for c in seen)


async def test_a_slow_subscriber_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await put(swarm, 0, b"u/warm", b"")
        feed = swarm.store(0).changes()
        for i in range(1_100):
            await put(swarm, 0, b"u/k", b"%d" % i)
        seen = [changes async for changes in feed]
        assert len(seen) == 1_000


async def test_office_is_announced(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        offices = swarm.store(0).subscribe_office()
        assert await offices.receive() is None
        office = await offices.receive()
        assert office == swarm.store(0).office
        assert swarm.store(0).coordinator() == swarm.id(0)


async def test_store_time_is_known_everywhere_and_never_falls(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        last = 0
        for _ in range(3):
            for node in range(4):
                if swarm.nodes[node].store is not None:
                    now = await swarm.store(node).read_time_ms()
                    assert now >= last
                    last = now
            await trio.sleep(1)
            await put(swarm, 3, b"u/a", b"")
            victim = await swarm.coordinator()
            await swarm.crash(victim)
            await swarm.coordinator()
            await swarm.start(victim)
        assert 2_500 < last < trio.current_time() * 1_000


# ---- large things ------------------------------------------------------------------------


async def test_large_values_from_each_node(autojump_clock: trio.testing.MockClock) -> None:
    value = bytes(range(256)) * 4096
    async with running_swarm() as swarm:
        await grown(swarm)
        await swarm.start(3)
        for node in range(4):
            key = b"u/big%d" % node
            assert (await put(swarm, node, key, value)).ok
        for node in range(4):
            assert await value_at(swarm, node, b"u/big0") == value
            entries = await swarm.store(node).range(b"u/big")
            assert [len(e.value) for e in entries] == [len(value)] * 4


async def test_many_operations_in_one_call(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        ops = [Put(b"u/k%05d" % i, b"x" * 50) for i in range(3_000)]
        results = await swarm.store(1).propose(ops)
        assert [r.ok for r in results] == [True] * 3_000
        assert [r.revision for r in results] == sorted(r.revision for r in results)
        for node in range(3):
            entries = await swarm.store(node).range(b"u/k", limit=5_000)
            assert len(entries) == 3_000
            assert len(await swarm.store(node).range(b"u/k", limit=1_500)) == 1_500


async def test_an_operation_that_cannot_be_applied_is_refused_and_ends_nobody(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_swarm() as swarm:
        await grown(swarm)
        with monkeypatch.context() as patch:
            patch.setattr(StateMachine, "_apply_put", lambda *_: 1 // 0)
            for node in range(3):
                with pytest.raises(BadRequest):
                    await put(swarm, node, b"u/a", b"1")
        for node in range(3):
            assert (await put(swarm, node, b"u/a", b"2")).ok
