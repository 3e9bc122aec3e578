"""Whole stores under random faults; what clients saw is held against both checkers."""

from __future__ import annotations

import random

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import NoQuorum, SwarmError
from swarmd.sim.checkers import FOREVER, Operation, Write, linearizable, revisions
from swarmd.state.raft.messages import Put

KEYS = [b"u/a", b"u/b", b"u/c"]
NODES = 5
RUN_S = 12.0


class Client:
    """One sequential client on one node; notes what it called and what came back."""

    def __init__(self, swarm: Swarm, node: int, number: int) -> None:
        self.swarm = swarm
        self.node = node
        self.rng = random.Random(number)
        self.number = number
        self.count = 0
        self.history: list[Operation] = []
        self.writes: list[Write] = []
        self.refused = 0

    async def run(self, stop: trio.Event) -> None:
        while not stop.is_set():
            if self.swarm.nodes[self.node].store is None:
                self.node = (self.node + 1) % NODES
                await trio.sleep(0.05)
                continue
            key = self.rng.choice(KEYS)
            act = self.rng.choice([self._write, self._write, self._read, self._swap])
            await act(key)
            await trio.sleep(self.rng.uniform(0.0, 0.2))

    def _fresh(self) -> bytes:
        self.count += 1
        return b"%d.%d" % (self.number, self.count)

    def _note(self, key: bytes, kind: str, called: float, **what: object) -> None:
        returned = what.pop("returned", trio.current_time())
        self.history.append(Operation(key, kind, called, returned, **what))  # type: ignore[arg-type]

    async def _write(self, key: bytes) -> None:
        value, called = self._fresh(), trio.current_time()
        try:
            result = (await self._store().propose([Put(key, value)], timeout_s=2.0))[0]
        except SwarmError:
            self.refused += 1
            self._note(key, "write", called, argument=value, returned=FOREVER)
        else:
            assert result.ok
            self._note(key, "write", called, argument=value)
            now = trio.current_time()
            self.writes.append(Write(called, now, result.revision, ((key, value),)))

    async def _read(self, key: bytes) -> None:
        called = trio.current_time()
        try:
            entry = await self._store().get(key, timeout_s=2.0)
        except NoQuorum:
            self.refused += 1
        else:
            self._note(key, "read", called, result=None if entry is None else entry.value)

    async def _swap(self, key: bytes) -> None:
        try:
            entry = await self._store().get(key, timeout_s=2.0)
        except NoQuorum:
            return
        old, revision = (None, 0) if entry is None else (entry.value, entry.mod_revision)
        value, called = self._fresh(), trio.current_time()
        put = Put(key, value, expect=revision)
        try:
            result = (await self._store().propose([put], timeout_s=2.0))[0]
        except SwarmError:
            self._note(key, "cas", called, argument=(old, value), returned=FOREVER)
        else:
            self._note(key, "cas", called, argument=(old, value), result=result.ok)

    def _store(self):  # type: ignore[no-untyped-def]
        store = self.swarm.nodes[self.node].store
        if store is None:
            raise NoQuorum("the node is down")
        return store


async def _faults(swarm: Swarm, rng: random.Random, until: float, seen: set[str]) -> None:
    while trio.current_time() < until:
        await trio.sleep(rng.uniform(0.3, 1.5))
        kind = rng.choice(["crash", "crash_coordinator", "cut", "cut_coordinator", "leave"])
        running = [i for i in range(NODES) if swarm.nodes[i].store is not None]
        leaders = [i for i in running if swarm.store(i).serving() is not None]
        victim = rng.choice(leaders or running) if "coordinator" in kind else rng.choice(running)
        seen.add(kind)
        if kind.startswith("crash"):
            await swarm.crash(victim)
            await trio.sleep(rng.uniform(0.1, 2.0))
            await swarm.start(victim)
        elif kind.startswith("cut"):
            others = [swarm.id(i) for i in range(NODES) if i != victim]
            swarm.network.cut(swarm.id(victim), others)
            await trio.sleep(rng.uniform(0.1, 3.0))
            swarm.network.heal()
        else:
            try:
                await swarm.store(victim).hand_over_seat(timeout_s=2.0)
            except SwarmError:
                seen.add("leave_refused")
            swarm.store(victim).stay()


async def _run(seed: int) -> tuple[list[Operation], list[Write]]:
    rng = random.Random(seed)
    seen: set[str] = set()
    async with running_swarm() as swarm:
        await swarm.start(*range(NODES))
        await swarm.coordinator()
        stop = trio.Event()
        clients = [Client(swarm, n % NODES, seed * 100 + n) for n in range(6)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.run, stop)
            await _faults(swarm, rng, trio.current_time() + RUN_S, seen)
            stop.set()
        await swarm.coordinator(within_s=10.0)
        for node in range(NODES):
            assert (await swarm.store(node).propose([Put(b"u/end", b"%d" % node)]))[0].ok
        await trio.sleep(1.0)
        copies = {
            tuple(local.range(b"")) for n in swarm.nodes if n.store and (local := n.store.local)
        }
        epochs = swarm.store(0).status().epoch
    assert len(copies) == 1
    assert epochs > 1
    assert len(seen) >= 2
    history = [operation for client in clients for operation in client.history]
    assert len(history) > 150
    return history, [write for client in clients for write in client.writes]


@pytest.mark.parametrize("seed", range(3))
async def test_histories_are_linearizable(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Five nodes, six clients; crashes, cuts and changes of voters for 12 virtual seconds.

    Then everything heals: writes succeed, both checkers find an order, and all voters hold
    one state.
    """
    history, writes = await _run(seed)
    verdict = linearizable(history)
    assert verdict.ok, (seed, verdict)
    assert revisions(writes, [], unknown=True) == []


async def test_a_stale_read_is_found(autojump_clock: trio.testing.MockClock) -> None:
    """A read from a voter that is cut off, made on purpose, does not pass the checker."""
    async with running_swarm() as swarm:
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        leader = await swarm.coordinator()
        cut_off, other = (i for i in range(3) if i != leader)
        client = Client(swarm, leader, 1)
        await client._write(b"a")
        await trio.sleep(1)
        swarm.network.cut(swarm.id(cut_off), [swarm.id(leader), swarm.id(other)])
        await client._write(b"a")
        await trio.sleep(1)
        assert linearizable(client.history).ok
        entry = await swarm.store(cut_off).get(b"a", stale=True)
        assert entry is not None
        client._note(b"a", "read", trio.current_time(), result=entry.value)
    assert linearizable(client.history).problems
