"""Syncs off the loop: the loop goes on, errors come back, nobody leaves while one runs."""

from __future__ import annotations

import threading
import time

import pytest
import trio

from swarmd.base.errors import DiskFault
from swarmd.state.raft.syncer import SHORT_S, Syncer


async def test_the_loop_goes_on_while_a_call_waits() -> None:
    syncer = Syncer(blocking=True)
    gate = threading.Event()
    order: list[str] = []

    def wait() -> None:
        gate.wait(10)
        order.append("synced")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(syncer.run, wait)
        await trio.testing.wait_all_tasks_blocked()
        order.append("the loop goes on")
        gate.set()
    assert order == ["the loop goes on", "synced"]
    assert 0 < syncer.last_s <= syncer.slowest_s
    syncer.close()


async def test_an_error_is_raised_where_the_call_was_asked_for() -> None:
    def fail() -> None:
        raise DiskFault("no room")

    for blocking in (True, False):
        syncer = Syncer(blocking=blocking)
        with pytest.raises(DiskFault, match="no room"):
            await syncer.run(fail)
        assert syncer.slowest_s == 0
        syncer.close()


async def test_who_is_cancelled_leaves_only_after_the_call() -> None:
    syncer = Syncer(blocking=True)
    gate, left = threading.Event(), trio.Event()
    scope = trio.CancelScope()

    async def asked() -> None:
        with scope:
            await syncer.run(lambda: bool(gate.wait(10)) and None)
        left.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not left.is_set()
        gate.set()
        with trio.fail_after(5):
            await left.wait()
    syncer.close()


async def test_one_thread_serves_all_calls_and_ends() -> None:
    syncer = Syncer(blocking=True)
    names: set[int] = set()
    for _ in range(20):
        await syncer.run(lambda: names.add(threading.get_ident()))
    assert len(names) == 1
    [thread] = [t for t in threading.enumerate() if t.ident in names]
    syncer.close()
    await trio.to_thread.run_sync(thread.join, 5)
    assert not thread.is_alive()


async def test_where_a_disk_never_waits_no_thread_is_made() -> None:
    syncer = Syncer(blocking=False)
    here: list[int] = []
    await syncer.run(lambda: here.append(threading.get_ident()))
    assert here == [threading.get_ident()]
    syncer.close()


async def in_the_loop(syncer: Syncer, took_s: float = 0.0, *, light: bool = True) -> bool:
    """Was a sync that took so long done where it was asked for?"""
    where: list[int] = []

    def call() -> None:
        where.append(threading.get_ident())
        time.sleep(took_s)

    await syncer.run(call, light=light)
    return where == [threading.get_ident()]


async def test_light_syncs_stay_in_the_loop_while_they_are_short() -> None:
    syncer = Syncer(blocking=True)
    assert not await in_the_loop(syncer), "nothing is known of the disk at first"
    with trio.fail_after(5):
        while not await in_the_loop(syncer):
            pass
    assert not await in_the_loop(syncer, light=False)
    await in_the_loop(syncer, 20 * SHORT_S)
    off_the_loop = 0
    with trio.fail_after(5):
        while not await in_the_loop(syncer):
            off_the_loop += 1
    assert off_the_loop >= 50, "a disk that was slow once is not trusted soon"
    syncer.close()


async def test_a_disk_that_failed_is_waited_for_off_the_loop() -> None:
    def fail() -> None:
        time.sleep(2 * SHORT_S)
        raise DiskFault("no room")

    syncer = Syncer(blocking=True)
    with trio.fail_after(5):
        while not await in_the_loop(syncer):
            pass
    with pytest.raises(DiskFault):
        await syncer.run(fail, light=True)
    assert not await in_the_loop(syncer)
    syncer.close()


async def test_what_was_sent_ahead_leaves_before_the_loop_is_held_up() -> None:
    syncer = Syncer(blocking=False)
    log: list[str] = []

    async def writer() -> None:
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        log.append("written")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        await syncer.run(lambda: log.append("synced"), ahead=True)
    assert log == ["written", "synced"]
    syncer.close()
