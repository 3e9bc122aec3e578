"""Locks, barriers and counters as an agent uses them; what it holds ends with its attempt."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from agenthouse import House, Open

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from memory_store import MemoryStore

from swarmd.agents.attempts import Outcome
from swarmd.base.clock import BootClock
from swarmd.base.rng import make_rng
from swarmd.state.recipes.service import Kind, Recipes, open_recipes
from swarmd.wire.codec import unpack

LOCKING = """
import time
from swarmd.sdk import LockHeld

def run(value, context):
    with context.lock("door", ttl_s=value.get("ttl_s", 5), wait_s=value.get("wait_s", 10)) as fence:
        context.log("in %d" % fence)
        if value.get("raise"):
            raise RuntimeError("in the block")
        end = time.monotonic() + value.get("hold_s", 0)
        while time.monotonic() < end and not context.cancelled:
            time.sleep(0.005)
        if value.get("spin"):
            while True:
                pass
    context.log("out")
    return fence
"""


@dataclass
class Swarm:
    """A house over a store of its own."""

    house: House
    recipes: Recipes
    store: MemoryStore

    def keys(self) -> list[bytes]:
        return [entry.key for entry in self.store.applier.state.range(b"c/")]

    async def until_free(self) -> None:
        await self.house.until(lambda: not self.keys())

    async def until_held(self) -> None:
        await self.house.until(lambda: bool(self.keys()))


@asynccontextmanager
async def swarm_with(open_house: Open, code: str) -> AsyncIterator[Swarm]:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.end_leases)
        async with (
            open_recipes(store, BootClock(), make_rng(1)) as recipes,
            open_house(code, recipes=recipes) as house,
        ):
            yield Swarm(house, recipes, store)
        nursery.cancel_scope.cancel()


def value_of(outcome: Outcome) -> object:
    assert outcome.ok, outcome.message
    assert outcome.result is not None
    return unpack(outcome.result)


async def test_a_lock_gives_its_fence_and_is_given_back(house: Open) -> None:
    async with swarm_with(house, LOCKING) as swarm:
        first = value_of(await swarm.house.run({}))
        await swarm.until_free()
        second = value_of(await swarm.house.run({}))
        assert isinstance(first, int)
        assert isinstance(second, int)
        assert 0 < first < second


async def test_attempts_hold_it_one_after_the_other(house: Open) -> None:
    code = """
import time

def run(path, context):
    with context.lock("door", ttl_s=5, wait_s=10) as fence:
        with open(path, "a") as ledger:
            ledger.write("%d in\\n" % fence); ledger.flush()
            time.sleep(0.02)
            ledger.write("%d out\\n" % fence)
    return fence
"""
    async with swarm_with(house, code) as swarm:
        ledger = swarm.house.source.path / "ledger"
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(swarm.house.run, str(ledger))
        lines = ledger.read_text().splitlines()
        assert len(lines) == 12
        fences = [int(line.split()[0]) for line in lines]
        assert fences == sorted(fences)
        assert [line.split()[1] for line in lines] == ["in", "out"] * 6


async def test_who_holds_is_told_and_can_be_caught(house: Open) -> None:
    code = LOCKING.replace("    return fence", "    return fence").replace(
        "def run(value, context):",
        """def run(value, context):
    if value.get("catch"):
        try:
            with context.lock("door", wait_s=0.0):
                return "got it"
        except LockHeld as error:
            return str(error)
    return hold(value, context)

def hold(value, context):""",
    )
    async with swarm_with(house, code) as swarm, trio.open_nursery() as nursery:
        nursery.start_soon(swarm.house.run, {"hold_s": 5})
        await swarm.until_held()
        told = value_of(await swarm.house.run({"catch": True}))
        assert "is held by task task-1 of agent on n1" in str(told)
        nursery.cancel_scope.cancel()


async def test_a_lock_ends_with_an_attempt_that_fails(house: Open) -> None:
    code = """
import os

def run(value, context):
    context.lock("door", ttl_s=600).__enter__()
    if value == "raise":
        raise RuntimeError("with the lock in its hand")
    if value == "crash":
        os.kill(os.getpid(), 9)
    return "never given back"
"""
    async with swarm_with(house, code) as swarm:
        for value in ("raise", "crash", "forget"):
            await swarm.house.run(value)
            with trio.fail_after(5):
                await swarm.until_free()


async def test_a_lock_ends_with_an_attempt_that_is_killed(house: Open) -> None:
    async with swarm_with(house, LOCKING) as swarm:
        outcome = await swarm.house.run({"spin": True, "ttl_s": 600}, timeout_s=0.5)
        assert outcome.code == "agent_timeout"
        with trio.fail_after(5):
            await swarm.until_free()


async def test_a_cancelled_attempt_stops_waiting_and_can_still_give_back(
    house: Open,
) -> None:
    async with swarm_with(house, LOCKING) as swarm:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swarm.house.run, {"hold_s": 60, "ttl_s": 600})
            await swarm.until_held()
            nursery.start_soon(swarm.house.run, {"wait_s": 60, "ttl_s": 600})
            await swarm.house.until(lambda: len(swarm.keys()) == 2)
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await swarm.until_free()
        assert [i.task_id for i in swarm.house.supervisor.instances()] == ["", ""], "one was killed"


async def test_a_lock_that_cannot_be_kept_costs_the_attempt(house: Open) -> None:
    async with swarm_with(house, LOCKING) as swarm:
        outcomes: list[Outcome] = []

        async def run() -> None:
            outcomes.append(await swarm.house.run({"spin": True, "ttl_s": 4}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await swarm.until_held()
            swarm.store.no_quorum = True
            began = trio.current_time()
        assert outcomes[0].code == "lock_lost"
        assert "'door' could not be kept" in outcomes[0].message
        assert trio.current_time() - began < 4.0, "it ran without the lock"


async def test_a_lock_is_kept_for_longer_than_its_ttl(house: Open) -> None:
    async with swarm_with(house, LOCKING) as swarm:
        outcome = await swarm.house.run({"hold_s": 2.5, "ttl_s": 1})
        assert outcome.ok, outcome.message


async def test_counters_and_barriers(house: Open) -> None:
    code = """
def run(value, context):
    fence = context.barrier("gate", 2, wait_s=10)
    counter = context.counter("hits")
    return [fence, counter.add(), counter.add(-3), counter.value >= -4]
"""
    async with swarm_with(house, code) as swarm:
        values: list[object] = []

        async def run() -> None:
            values.append(value_of(await swarm.house.run()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(run)
        [first, second] = values
        assert isinstance(first, list)
        assert isinstance(second, list)
        assert first[0] == second[0] > 0
        assert await swarm.recipes.count_of("hits") == -4
        await swarm.until_free()


async def test_many_threads_of_an_agent_ask_at_once(house: Open) -> None:
    code = """
import threading

def run(value, context):
    counter = context.counter("hits")
    def work():
        for _ in range(20):
            counter.add(1)
            context.cancelled
    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return counter.value
"""
    async with swarm_with(house, code) as swarm:
        assert value_of(await swarm.house.run()) == 160


async def test_a_thread_left_behind_does_not_hold_up_its_process(house: Open) -> None:
    code = """
import threading

def run(value, context):
    if value:
        threading.Thread(target=lambda: context.lock("door", wait_s=600).__enter__(),
                         daemon=True).start()
        while not context.counter("seen").value: pass
    return context.attempt
"""
    async with swarm_with(house, code) as swarm:
        held = await swarm.recipes.acquire(Kind.LOCK, "door", "ann", ttl_s=60, wait_s=0)

        async def see() -> None:
            await swarm.house.until(lambda: len(swarm.keys()) == 2)
            await swarm.recipes.count("seen", 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(see)
            outcome = await swarm.house.run(1)
        assert outcome.ok
        with trio.fail_after(5):
            await swarm.house.until(lambda: len(swarm.keys()) == 1)
        assert (await swarm.house.run(0)).ok
        assert held.fence


async def test_mistakes_are_the_agents_and_named(house: Open) -> None:
    code = """
def run(value, context):
    found = []
    for act in (
        lambda: context.lock("a/b").__enter__(),
        lambda: context.lock("door", ttl_s=0.01).__enter__(),
        lambda: context.lock(7),
        lambda: context.counter("c").add(1.5),
        lambda: context.barrier("gate", 0),
        lambda: context.counter("x" * 300).value,
    ):
        try:
            act()
            found.append("nothing")
        except Exception as error:
            found.append(getattr(error, "code", type(error).__name__))
    return found
"""
    async with swarm_with(house, code) as swarm:
        found = value_of(await swarm.house.run())
        assert found == [
            "bad_name", "bad_ttl", "TypeError", "TypeError", "bad_request", "bad_name",
        ]  # fmt: skip


async def test_asking_too_much_at_once_is_refused(house: Open) -> None:
    code = """
import threading

def run(value, context):
    codes = []
    def work():
        try:
            context.lock("door", wait_s=3).__enter__()
        except Exception as error:
            codes.append(getattr(error, "code", type(error).__name__))
    threads = [threading.Thread(target=work) for _ in range(300)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return codes
"""
    async with swarm_with(house, code) as swarm:
        codes = value_of(await swarm.house.run())
        assert isinstance(codes, list)
        assert codes.count("busy") > 200
        await swarm.until_free()


async def test_without_a_store_it_says_so(house: Open) -> None:
    code = """
def run(value, context):
    try:
        context.counter("c").add()
    except Exception as error:
        return error.code
"""
    async with house(code) as opened:
        assert value_of(await opened.run()) == "not_ready"
