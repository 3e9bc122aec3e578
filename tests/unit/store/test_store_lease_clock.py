"""Leases over the whole store: they end when nobody writes, and coordinators change."""

from __future__ import annotations

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import LeaseExpired
from swarmd.state.raft.messages import GrantLease, Operation, OpResult, Put, RenewLease
from swarmd.state.raft.replica import Replica


async def do(swarm: Swarm, node: int, op: Operation) -> OpResult:
    return (await swarm.store(node).propose([op]))[0]


async def leased(swarm: Swarm, node: int, key: bytes, ttl_ms: int) -> int:
    lease = (await do(swarm, node, GrantLease(ttl_ms))).revision
    assert (await do(swarm, node, Put(key, b"", lease=lease))).ok
    return lease


async def gone_after(swarm: Swarm, node: int, key: bytes) -> float:
    """Seconds from now until `key` is gone, by stale reads, which move nothing."""
    start = trio.current_time()
    with trio.fail_after(120):
        while True:
            if await swarm.store(node).get(key, stale=True) is None:
                return trio.current_time() - start
            await trio.sleep(0.01)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each batch was proposed."""
    times: list[float] = []
    propose = Replica.propose

    async def counted(self: Replica, *arguments: object) -> object:
        times.append(trio.current_time())
        return await propose(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Replica, "propose", counted)
    return times


@pytest.mark.parametrize("ttl_ms", [1_000, 2_500, 60_000])
async def test_a_lease_ends_in_time_though_nobody_writes(
    autojump_clock: trio.testing.MockClock, ttl_ms: int
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await leased(swarm, 0, b"u/a", ttl_ms)
        assert ttl_ms / 1_000 - 0.1 < await gone_after(swarm, 0, b"u/a") < ttl_ms / 1_000 + 0.2


async def test_renewals_from_a_node_without_a_seat_keep_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1)
        lease = await leased(swarm, 1, b"u/a", 2_000)
        for _ in range(10):
            await trio.sleep(1.5)
            assert (await do(swarm, 1, RenewLease(lease))).ok
        assert 1.5 < await gone_after(swarm, 1, b"u/a") < 2.5
        assert (await do(swarm, 1, RenewLease(lease))).code == "lease_expired"


@pytest.mark.parametrize("node", [0, 1, 2, 3])
async def test_leases_are_seen_from_each_node(
    autojump_clock: trio.testing.MockClock, node: int
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await swarm.start(3)
        assert await swarm.store(node).leases() == []
        first = await leased(swarm, 0, b"u/b", 10_000)
        await swarm.store(0).propose([Put(b"u/a", b"", lease=first)])
        second = await leased(swarm, 0, b"c/x", 3_600_000)
        infos = await swarm.store(node).leases()
        assert [(one.id, one.ttl_ms, one.keys) for one in infos] == [
            (first, 10_000, 2),
            (second, 3_600_000, 1),
        ]
        assert 9_000 < infos[0].left_ms <= 10_000
        info, keys = await swarm.store(node).lease(first)
        assert (info.id, keys) == (first, (b"u/a", b"u/b"))
        with pytest.raises(LeaseExpired, match="lease 7777 has ended or never was"):
            await swarm.store(node).lease(7777)


async def test_an_idle_store_proposes_nothing(
    autojump_clock: trio.testing.MockClock, batches: list[float]
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        await leased(swarm, 0, b"u/a", 60_000)
        before = len(batches)
        await trio.sleep(59)
        assert len(batches) == before
        await trio.sleep(100)
        assert len(batches) == before + 1


async def test_many_deadlines_make_few_batches(
    autojump_clock: trio.testing.MockClock, batches: list[float]
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        for i in range(100):
            await swarm.store(0).propose([GrantLease(2_000 + 10 * i)] * 20)
        before = len(batches)
        await trio.sleep(10)
        assert len(swarm.store(0).local.leases) == 0  # type: ignore[union-attr]
        assert len(batches) - before <= 20


async def test_a_lease_outlives_its_coordinator_by_a_whole_ttl_at_most(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        await leased(swarm, 0, b"u/a", 3_000)
        await trio.sleep(2.5)
        killed = await swarm.coordinator()
        await swarm.crash(killed)
        node = (killed + 1) % 3
        assert 2.5 < await gone_after(swarm, node, b"u/a") < 4.5


async def test_leases_go_on_in_the_next_epoch(autojump_clock: trio.testing.MockClock) -> None:
    async with running_swarm() as swarm:
        await swarm.start(0)
        lease = await leased(swarm, 0, b"u/a", 4_000)
        await swarm.start(1, 2)
        await swarm.voters_are(0, 1, 2)
        assert (await do(swarm, 1, RenewLease(lease))).ok
        for node in range(3):
            entry = await swarm.store(node).get(b"u/a")
            assert entry is not None
            assert entry.lease == lease
        assert 2.5 < await gone_after(swarm, 2, b"u/a") < 6
