"""Syncs: the loop stands still for short ones only, errors come back, nobody leaves early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import trio

from swarmd.base.errors import DiskFault
from swarmd.mesh.driver import AHEAD_TURNS
from swarmd.state.raft.syncer import HELD_S, Syncer, _Job

PATIENT_S = 2.0


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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So patient that a loaded machine takes no sync for long, nor patience for distrust."""
    monkeypatch.setattr("swarmd.state.raft.syncer.HELD_S", PATIENT_S)


async def held_up(syncer: Syncer, *, light: bool = True) -> bool:
    """Does the loop stand still for the whole of a short sync?"""
    turns = 0
    seen: list[int] = []

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    def call() -> None:
        seen.append(turns)
        time.sleep(PATIENT_S / 20)
        seen.append(turns)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        await syncer.run(call, light=light)
        nursery.cancel_scope.cancel()
    return seen[0] == seen[1]


async def until_trusted(syncer: Syncer) -> int:
    """How many light syncs it takes until the loop stands still for them."""
    taken = 0
    with trio.fail_after(10):
        while not syncer.trusted:
            await syncer.run(lambda: None, light=True)
            taken += 1
    return taken


@pytest.mark.usefixtures("patient")
async def test_the_loop_stands_still_for_light_syncs_of_a_trusted_disk_only() -> None:
    syncer = Syncer(blocking=True)
    syncer._late_s = 2 * PATIENT_S
    assert not await held_up(syncer), "its syncs took long of late"
    await until_trusted(syncer)
    assert not await held_up(syncer, light=False)
    assert await held_up(syncer)
    syncer.close()


async def test_a_disk_that_was_slow_once_is_not_trusted_soon() -> None:
    syncer = Syncer(blocking=True)
    assert not syncer.trusted, "nothing is known of the disk at first"
    await syncer.run(partial(time.sleep, 20 * HELD_S), light=True)
    assert await until_trusted(syncer) >= 50
    syncer.close()


async def test_a_disk_that_hesitates_holds_nobody_up() -> None:
    syncer = Syncer(blocking=True)
    await until_trusted(syncer)
    gate = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(syncer.run, lambda: bool(gate.wait(10)) and None, light=True))
        await trio.testing.wait_all_tasks_blocked()  # Only a loop that goes on opens the gate.
        gate.set()
    assert syncer.slowest_s < 5
    syncer.close()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_call_that_returns_as_patience_ends_wakes_who_waits(moment: str) -> None:
    """The call returns just before, or just after, the loop has looked for the last time."""
    job = _Job(lambda: None)
    job._returned = _Meeting(job.perform, moment)  # type: ignore[assignment]
    with trio.fail_after(5):
        await job.wait()


async def test_who_looks_in_vain_just_before_the_call_returns_is_woken() -> None:
    job = _Job(lambda: None)

    class Lock:
        def release(self) -> None:
            job._awaited = True  # `wait` came this far, and found it locked.

    job._returned = Lock()  # type: ignore[assignment]
    job.perform()
    with trio.fail_after(5):
        await job._done.wait()


class _Meeting:
    """A lock whose `acquire` lets the other side run just before or just after it."""

    def __init__(self, other: Callable[[], None], moment: str) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._other, self._moment = other, moment

    def acquire(self, *, blocking: bool) -> bool:
        if self._moment == "before":
            self._other()
        got = self._lock.acquire(blocking=blocking)
        if self._moment == "after":
            self._other()
        return got

    def release(self) -> None:
        self._lock.release()


async def test_a_disk_that_failed_is_waited_for_off_the_loop() -> None:
    def fail() -> None:
        time.sleep(2 * HELD_S)
        raise DiskFault("no room")

    syncer = Syncer(blocking=True)
    await until_trusted(syncer)
    with pytest.raises(DiskFault):
        await syncer.run(fail, light=True)
    assert not syncer.trusted
    syncer.close()


async def test_what_was_sent_ahead_leaves_before_the_loop_is_held_up() -> None:
    syncer = Syncer(blocking=False)
    log: list[str] = []

    async def writer() -> None:
        for _ in range(AHEAD_TURNS - 2):
            await trio.lowlevel.checkpoint()
        log.append("written")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        await syncer.run(lambda: log.append("synced"), ahead=True)
    assert log == ["written", "synced"]
    syncer.close()
