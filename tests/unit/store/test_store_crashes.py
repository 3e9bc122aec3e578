"""A change of voters, with one node dying at each of its durable steps in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from store_swarm import Swarm, running_swarm

from swarmd.base.errors import SwarmError
from swarmd.identity.epochs import RECOVERY_DOMAIN
from swarmd.identity.signing import sign_envelope
from swarmd.state.raft.messages import Put
from swarmd.wire.envelope import encode_envelope


class PowerCut(Exception):
    """The machine loses power in the middle of a call to its disk."""


class CuttingDisk:
    """A disk whose machine loses power at the n-th durable step after `arm`.

    Steps on files whose name begins with `but` do not count.
    """

    blocking = False

    def __init__(self, disk: Any) -> None:
        self.inner = disk
        self._left = 0
        self._after = False
        self._but = ""
        self.fired = trio.Event()

    def arm(self, steps: int, *, after: bool, but: str) -> None:
        self._left, self._after, self._but = steps, after, but

    def _step(self, act: Callable[..., None], *args: Any) -> None:
        if self._left == 0 or args[0].startswith(self._but):
            return act(*args)
        self._left -= 1
        if self._left:
            return act(*args)
        self.fired.set()
        if self._after:
            act(*args)
        raise PowerCut

    def read(self, name: str) -> bytes | None:
        found: bytes | None = self.inner.read(name)
        return found

    def names(self) -> list[str]:
        found: list[str] = self.inner.names()
        return found

    def append(self, name: str, data: bytes) -> None:
        self.inner.append(name, data)

    def sync(self, name: str) -> None:
        self._step(self.inner.sync, name)

    def replace(self, name: str, data: bytes) -> None:
        self._step(self.inner.replace, name, data)

    def remove(self, name: str) -> None:
        self._step(self.inner.remove, name)

    def rename(self, old: str, new: str) -> None:
        self._step(self.inner.rename, old, new)

    def reader(self, name: str) -> Any:
        return self.inner.reader(name)

    def crash(self) -> None:
        self.inner.crash()


async def _reviver(swarm: Swarm, victim: int) -> None:
    """Restart the victim a while after the power came back."""
    node = swarm.nodes[victim]
    await node.disk.fired.wait()
    await trio.sleep(0.5)
    await swarm.crash(victim)
    await swarm.start(victim)


async def _change(
    victim: int, steps: int, after: bool, before: list[int], act: Callable[[Swarm], Any]
) -> tuple[bool, Swarm, list[bytes]]:
    """Run a change of voters under load with the victim dying; what was acknowledged."""
    acknowledged: list[bytes] = []
    async with running_swarm(expects_errors=True) as swarm:
        for node in swarm.nodes:
            node.disk = CuttingDisk(node.disk)
        await swarm.start(*before)
        await swarm.voters_are(*before)
        await swarm.store(before[0]).propose([Put(b"u/first", b"x" * 1000)])
        stop = trio.Event()

        async def load(node: int) -> None:
            count = 0
            while not stop.is_set():
                key = b"u/%d/%05d" % (node, count)
                count += 1
                store = swarm.nodes[node].store
                if store is not None:
                    try:
                        if (await store.propose([Put(key, b"v")], timeout_s=2.0))[0].ok:
                            acknowledged.append(key)
                    except SwarmError:
                        continue  # Of unknown outcome: nothing is claimed.
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            for node in before:
                nursery.start_soon(load, node)
            nursery.start_soon(_reviver, swarm, victim)
            await act(swarm)
            ended = swarm.store(before[0]).status().epoch
            swarm.nodes[victim].disk.arm(steps, after=after, but=f"raft.e{ended}.log.")
            await trio.sleep(4.0)
            fired = swarm.nodes[victim].disk.fired.is_set()
            stop.set()
            await trio.sleep(2.5)
            nursery.cancel_scope.cancel()
        await swarm.voters_are(*swarm.expected, within_s=20.0)
        for index in swarm.expected:
            found = {entry.key for entry in await swarm.store(index).range(b"", limit=100_000)}
            assert found.issuperset(acknowledged)
            assert b"u/first" in found
        assert len(acknowledged) > 10
    return fired, swarm, acknowledged


async def _grow(swarm: Swarm) -> None:
    swarm.expected = [0, 1, 2]
    await swarm.start(1, 2)


async def _replace(swarm: Swarm) -> None:
    swarm.expected = [0, 1, 3]
    await swarm.start(3)
    swarm.nursery.start_soon(_leave, swarm, 2)


async def _leave(swarm: Swarm, index: int) -> None:
    store = swarm.nodes[index].store
    while store is not None and store.is_voter:
        try:
            await store.hand_over_seat(timeout_s=20.0)
        except SwarmError:
            await trio.sleep(0.2)
        store = swarm.nodes[index].store
    swarm.left.add(swarm.id(index))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("steps", range(1, 8))
@pytest.mark.parametrize("victim", [0, 1], ids=["old_voter", "new_voter"])
async def test_growth_survives_a_power_cut_at_each_step(
    autojump_clock: trio.testing.MockClock, victim: int, steps: int, after: bool
) -> None:
    fired, _, _ = await _change(victim, steps, after, [0], _grow)
    assert fired


@pytest.mark.parametrize("steps", range(1, 6))
@pytest.mark.parametrize("victim", [0, 2, 3], ids=["stays", "leaves", "new"])
async def test_replacement_survives_a_power_cut_at_each_step(
    autojump_clock: trio.testing.MockClock, victim: int, steps: int
) -> None:
    fired, _, _ = await _change(victim, steps, True, [0, 1, 2], _replace)
    assert fired or victim == 2, "who leaves has fewer steps"


@pytest.mark.parametrize("steps", range(8, 12))
async def test_growth_survives_a_power_cut_at_the_later_steps_of_a_new_voter(
    autojump_clock: trio.testing.MockClock, steps: int
) -> None:
    """It copies before the seal, so it has more steps than the others."""
    fired, _, _ = await _change(1, steps, True, [0], _grow)
    assert fired


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("steps", range(1, 5))
async def test_a_recovery_survives_a_power_cut_at_each_step(
    autojump_clock: trio.testing.MockClock, steps: int, after: bool
) -> None:
    """The survivor of three dies while it goes on alone, and is told to again."""
    async with running_swarm(expects_errors=True) as swarm:
        swarm.nodes[2].disk = CuttingDisk(swarm.nodes[2].disk)
        await swarm.start(0, 1, 2)
        await swarm.voters_are(0, 1, 2)
        for number in range(10):
            await swarm.store(0).propose([Put(b"k%d" % number, b"v")])
        await trio.sleep(0.5)
        await swarm.crash(0, 1)
        swarm.nursery.start_soon(_reviver, swarm, 2)
        swarm.nodes[2].disk.arm(steps, after=after, but="raft.e2.log.")
        with trio.fail_after(60):
            while True:
                if await _goes_on(swarm):
                    break
                await trio.sleep(1.0)
        assert swarm.nodes[2].disk.fired.is_set()
        found = {entry.key for entry in await swarm.store(2).range(b"k", limit=100)}
        assert len(found) == 10
        assert swarm.store(2).voters == (swarm.id(2),)


async def _goes_on(swarm: Swarm) -> bool:
    """Recover, as a person would who tries again."""
    store = swarm.nodes[2].store
    if store is None:
        return False
    if store.voters == (swarm.id(2),):
        return swarm.nodes[2].disk.fired.is_set() and store.serving() is not None
    with trio.move_on_after(5.0):
        try:
            plan = await store.recovery.plan()
            key, swarm_id = swarm.recovery, swarm.genesis.swarm_id
            envelope = sign_envelope(RECOVERY_DOMAIN, swarm_id, plan.statement, key)
            await store.recovery.begin(encode_envelope(envelope))
        except (SwarmError, PowerCut):
            return False
    return False
