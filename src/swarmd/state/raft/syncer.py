"""Runs a voter's syncs in a thread of their own; the loop stands still for the short ones.

A good disk syncs a few records in a tenth of a millisecond, which is less than it costs a loop to
go on meanwhile and to be woken again, and the more so where every core is busy. So the loop waits
for a light sync without taking another turn, for as long as those of late took no longer than
`HELD_S` - and no longer than that, since the best of disks hesitates for a third of a second now
and then: what is not done by then is waited for like any other. A sync that took longer has those
after it waited for that way at once, the more of them the longer it took. The thread is the
syncer's own, since trio's pool costs more. Where a disk never waits (a simulated one) there is no
thread, so that virtual time does not pass by. A call that has begun is waited for, cancelled or
not: nobody else may touch the files while it runs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import trio

from swarmd.mesh.driver import AHEAD_TURNS

# Longest that the loop stands still for a sync.
HELD_S: Final = 0.004
# By how much a long sync is remembered when the next one is done.
_REMEMBERED: Final = 0.95
# Longest wait for a call when the voter ends: a disk that hangs must not keep the node.
END_TIMEOUT_S: Final = 5.0


class Syncer:
    """Performs one call at a time. `last_s` and `slowest_s` are of those that returned well."""

    def __init__(self, *, blocking: bool) -> None:
        self._blocking = blocking
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._late_s = 2 * HELD_S  # How long syncs of late took, the longest above all.
        self.last_s = 0.0
        self.slowest_s = 0.0

    @property
    def trusted(self) -> bool:
        """The disk was quick of late: the loop would stand still for a light sync."""
        return self._late_s <= HELD_S

    async def run(
        self, call: Callable[[], None], *, light: bool = False, ahead: bool = False
    ) -> None:
        """Return once `call` returned; raise what it raised.

        Args:
            light: it is short, where disks are.
            ahead: something was sent that should leave before the loop is held up.

        Cancellation: waits for the call all the same, for up to `END_TIMEOUT_S`.
        """
        job = _Job(call)
        held = not self._blocking or (light and self.trusted)
        if held:
            for _ in range(AHEAD_TURNS if ahead else 0):
                await trio.lowlevel.checkpoint()
        if not self._blocking:
            job.perform()
        else:
            self._hand_over(job)
            if not (held and job.stand_still(HELD_S)):
                await job.wait()
        self._late_s = max(job.took_s, self._late_s * _REMEMBERED)
        if job.error is not None:
            raise job.error
        self.last_s = job.took_s
        self.slowest_s = max(self.slowest_s, job.took_s)

    def _hand_over(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work, args=(self._jobs,), name="raft-sync", daemon=True
            )
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._jobs.put(None)


class _Job:
    __slots__ = ("_awaited", "_call", "_done", "_returned", "_token", "error", "took_s")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._returned = threading.Lock()  # Held until the call returned.
        self._returned.acquire()
        self._awaited = False  # The loop goes on and wants to be woken.
        self._done = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self.error: Exception | None = None
        self.took_s = 0.0

    def perform(self) -> None:
        start = time.perf_counter()
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - raised again where the call was asked for
            self.error = error
        self.took_s = time.perf_counter() - start
        # First this, then the look at `_awaited`; who waits does the one and the other in turn.
        self._returned.release()
        if self._awaited:
            self._token.run_sync_soon(self._done.set)

    def stand_still(self, limit_s: float) -> bool:
        """Hold the loop up until the call returned, for so long at most. Did it?"""
        return self._returned.acquire(timeout=limit_s)

    async def wait(self) -> None:
        self._awaited = True
        if self._returned.acquire(blocking=False):
            return
        try:
            await self._done.wait()
        except trio.Cancelled:
            with trio.move_on_after(END_TIMEOUT_S, shield=True):
                await self._done.wait()
            raise


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job.perform()
        except trio.RunFinishedError:
            return  # The loop is gone: nobody waits.
