"""The eventual store between nodes, with files on a disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from fixed_membership import FixedMembership

from swarmd.base.clock import BootClock
from swarmd.base.disk import Disk
from swarmd.base.errors import DiskFault, NotHeld, ShuttingDown, WouldLoseData, WrongType
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.sim.crdt_world import SimSigner
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.crdt import watching
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.messages import shard_of
from swarmd.state.crdt.placement import bucket_on
from swarmd.state.crdt.service import Eventual, open_eventual
from swarmd.state.crdt.types.values import AddTo, Assign, Count, Remove

NAMES = ("a", "b", "c")
TWO = bucket_on("b", 2)


def node_id(name: str) -> NodeId:
    return NodeId(name.encode().ljust(32, b"."))


class Swarm:
    def __init__(self, folder: Path) -> None:
        self.network = MemoryNetwork()
        self.membership = FixedMembership([node_id(name) for name in NAMES])
        self.links = {name: self.network.link(node_id(name)) for name in NAMES}
        self.folder = folder
        self.starts = 0

    @asynccontextmanager
    async def node(self, name: str, disk: Disk | None = None) -> AsyncIterator[Eventual]:
        self.starts += 1
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        async with open_eventual(
            self.links[name],
            self.membership,
            disk or FileDisk(folder),
            SimSigner(node_id(name)),
            BootClock(),
            make_rng(self.starts),
            everyone=lambda: list(map(node_id, self.links)),
        ) as store:
            yield store


@pytest.fixture
def swarm(tmp_path: Path) -> Swarm:
    return Swarm(tmp_path)


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(10.0):
        while True:
            if holds():
                return
            await trio.sleep(0.01)


async def until_holds(store: Eventual, key: str, value: Any) -> None:
    await until(lambda: key in store.keys("b") and store.get("b", key) == value)


async def test_what_is_written_on_one_is_read_on_all_and_after_a_restart(swarm: Swarm) -> None:
    async with swarm.node("a") as a, swarm.node("b") as b, swarm.node("c") as c:
        await a.write("b", "tags", AddTo("x"))
        await b.write("b", "tags", AddTo("y"))
        await c.write("b", "hits", Count(2))
        for store in (a, b, c):
            await until_holds(store, "tags", ["x", "y"])
            await until_holds(store, "hits", 2)
        assert a.keys("b") == ["hits", "tags"]
        assert a.keys("b", "t") == ["tags"]
    async with swarm.node("a") as again:
        assert again.get("b", "tags") == ["x", "y"]
        await again.write("b", "hits", Count(1))
        assert again.get("b", "hits") == 3


async def test_who_was_away_gets_what_it_missed(swarm: Swarm) -> None:
    async with swarm.node("a") as a:
        for number in range(300):
            await a.write("b", f"k{number}", Assign(number))
        async with swarm.node("b") as b:
            await until_holds(b, "k299", 299)
            await a.write("b", "k0", Remove())
            await until(lambda: len(b.keys("b")) == 299)
            assert "k0" not in b.keys("b")


async def test_a_refusal_is_told_to_who_asked_and_to_nobody_else(swarm: Swarm) -> None:
    async with swarm.node("a") as a, trio.open_nursery() as nursery:
        await a.write("b", "k", Count(1))

        async def wrong() -> None:
            with pytest.raises(WrongType):
                await a.write("b", "k", AddTo("x"))

        nursery.start_soon(wrong)
        await a.write("b", "k", Count(1))
        assert a.get("b", "k") == 2


async def test_a_watch_tells_each_key_once_until_it_is_read(swarm: Swarm) -> None:
    async with swarm.node("a") as a:
        with a.watch("b", "k") as watch:
            for _ in range(3):
                await a.write("b", "k1", Count(1))
            await a.write("b", "other", Count(1))
            await a.write("b", "k2", Count(1))
            assert [await watch.receive() for _ in range(2)] == ["k1", "k2"]
            await a.write("b", "k1", Count(1))
            assert await watch.receive() == "k1"
            with trio.move_on_after(0.05) as late:
                await watch.receive()
            assert late.cancelled_caught


async def test_a_watch_goes_on_where_an_earlier_one_was(swarm: Swarm) -> None:
    async with swarm.node("a") as a:
        with a.watch("b", "k") as watch:
            beginning = watch.position
            for key in ("k1", "k2", "other", "k1"):
                await a.write("b", key, Count(1))
            assert await watch.receive() == "k1"
            between = watch.position
            assert await watch.receive() == "k2"
            end = watch.position
        await a.write("b", "k3", Count(1))
        for since, keys in (
            (beginning, ["k1", "k2", "k3"]),
            (between, ["k2", "k1", "k3"]),
            (end, ["k3"]),
        ):
            with a.watch("b", "k", since) as again:
                assert (again.drain(), again.lagged) == (keys, False)
        life = end.partition("-")[0]
        for unknown in ("nonsense", f"{life}-99", f"{life}-", f"{life}-{'9' * 50}", f"x{life}-1"):
            with a.watch("b", "k", unknown) as again:
                assert (again.drain(), again.lagged) == ([], True)
    async with swarm.node("a") as other:
        with other.watch("b", "k", end) as again:
            assert again.lagged


async def test_a_watch_that_was_away_for_too_many_changes_is_told(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_REMEMBERED_MAX", 3)
    async with swarm.node("a") as a:
        with a.watch("b") as watch:
            position = watch.position
        for number in range(4):
            await a.write("b", f"k{number}", Count(1))
        with a.watch("b", since=position) as again:
            assert (again.drain(), again.lagged) == ([], True)


async def test_a_disk_that_refuses_is_told_and_what_waits_is_written_once_it_does_not(
    swarm: Swarm,
) -> None:
    disk = SimDisk(World(0), "a")
    async with swarm.node("a", disk) as a, trio.open_nursery() as nursery:
        await a.write("b", "k", Count(1))
        disk.full = True
        nursery.start_soon(a.write, "b", "k", Count(1))
        await trio.sleep(0.2)
        with pytest.raises(DiskFault, match="nothing changed"):
            await a.write("b", "k", Count(5))
        disk.full = False
    async with swarm.node("a", disk) as again:
        assert again.get("b", "k") == 2


async def test_who_waits_when_the_node_stops_is_told(swarm: Swarm) -> None:
    disk = SimDisk(World(0), "a")
    told: list[Exception] = []

    async def write(store: Eventual) -> None:
        try:
            await store.write("b", "k", Count(1))
        except ShuttingDown as error:
            told.append(error)

    async with trio.open_nursery() as nursery, swarm.node("a", disk) as a:
        disk.full = True
        nursery.start_soon(write, a)
        await trio.sleep(0.1)
    assert len(told) == 1


async def test_logs_end_as_shards_while_writing_goes_on(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "swarmd.state.crdt.service.ShardJournal", partial(ShardJournal, segment_bytes_max=5_000)
    )
    async with swarm.node("a") as a:
        for number in range(60):
            await a.write("b", f"k{number}", Assign("x" * 500))
        await until(lambda: len(list((swarm.folder / "a").rglob("log-*"))) <= 2)
    assert list((swarm.folder / "a").rglob("shard-*"))
    async with swarm.node("a") as again:
        assert len(again.keys("b")) == 60


def serving(store: Eventual) -> list[str]:
    """The keys of `KEYS` that a node serves."""
    return [key for key in KEYS if store.serves(TWO, shard_of(key))]


KEYS = [f"k{number}" for number in range(30)]


async def write_all(*stores: Eventual) -> None:
    """Write each key where it is served, once those who hold it serve it."""
    await until(lambda: sum(len(serving(store)) for store in stores) == 2 * len(KEYS))
    for key in KEYS:
        store = next(one for one in stores if one.serves(TWO, shard_of(key)))
        await store.write(TWO, key, Assign(key))


async def test_who_leaves_has_others_hold_what_it_held(swarm: Swarm) -> None:
    async with swarm.node("a") as a, swarm.node("b") as b, swarm.node("c") as c:
        await write_all(a, b, c)
        assert a.keys(TWO)
        await a.hand_over(5.0)
        assert a.keys(TWO) == []
        assert b.keys(TWO) == c.keys(TWO) == sorted(KEYS)
        assert all(a.holders(TWO, n) == b.holders(TWO, n) for n in range(64))
        with pytest.raises(NotHeld):
            await a.write(TWO, KEYS[0], Assign(2))
        await until(lambda: serving(b) == serving(c) == KEYS)
        # And back, when it does not leave after all.
        a.stay()
        await until(lambda: sum(len(serving(store)) for store in (a, b, c)) == 2 * len(KEYS))
        assert a.keys(TWO) == serving(a)


async def test_who_leaves_waits_for_as_long_as_others_take_something(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.state.crdt.moving.HAND_OVERS_MAX", 1)  # Four shards in a second.
    async with swarm.node("a") as a, swarm.node("b") as b, swarm.node("c") as c:
        await write_all(a, b, c)
        assert len(a.keys(TWO)) > 5
        with pytest.raises(WouldLoseData, match="they hand back"):
            await a.hand_over(1.0, at_most_s=0.8)
        left = len(a.keys(TWO))
        assert left > 4
        began_s = trio.current_time()
        await a.hand_over(1.0)
        assert trio.current_time() - began_s > 1.0
        assert a.keys(TWO) == []


async def test_a_node_that_is_alone_is_told_at_once_that_it_may_not_leave(swarm: Swarm) -> None:
    async with swarm.node("a") as a:
        async with swarm.node("b") as b, swarm.node("c") as c:
            await write_all(a, b, c)
        for name in ("b", "c"):
            swarm.membership.tell(node_id(name), MemberState.DEAD)
        await until(lambda: not a._machine.alive)
        keys = serving(a)
        with trio.fail_after(1.0), pytest.raises(WouldLoseData, match="no other member is alive"):
            await a.hand_over(5.0)
        assert serving(a) == keys, "nothing changed"


async def test_a_node_that_is_alone_and_holds_nothing_may_leave(swarm: Swarm) -> None:
    swarm.membership = FixedMembership([node_id("a")])
    async with swarm.node("a") as a:
        await a.hand_over(5.0)


async def test_who_finds_nobody_that_takes_all_says_whom_it_has_asked(swarm: Swarm) -> None:
    async with swarm.node("a") as a:
        async with swarm.node("b") as b, swarm.node("c") as c:
            await write_all(a, b, c)
        # They count as alive, and do not answer.
        with pytest.raises(WouldLoseData, match=r"holds \d+ shards .* did not take all"):
            await a.hand_over(0.6)
        a.stay()
        await until(lambda: not a._machine.holding.leaves)
        assert a.keys(TWO)
