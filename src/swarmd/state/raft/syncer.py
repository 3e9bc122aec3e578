"""Runs a voter's syncs: in the loop while they are short, else in a thread of their own.

A good disk syncs a few records in a tenth of a millisecond, which is less than it costs to hand
them to a thread and back, and the more so where every core is busy. So a light sync stays in the
loop for as long as those of late took no longer than `SHORT_S`; one that takes longer sends those
after it to the thread, the more of them the longer it took. The thread is the syncer's own, since
trio's pool costs more. Where a disk never waits (a simulated one) every call stays, so that virtual
time does not pass by. A call that has begun is waited for, cancelled or not: nobody else may touch
the files while it runs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import trio

from swarmd.mesh.driver import AHEAD_TURNS

SHORT_S: Final = 0.004
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
        self._late_s = 2 * SHORT_S  # How long syncs of late took, the longest above all.
        self.last_s = 0.0
        self.slowest_s = 0.0

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
        if self._blocking and not (light and self._late_s <= SHORT_S):
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_work, args=(self._jobs,), name="raft-sync", daemon=True
                )
                self._thread.start()
            self._jobs.put(job)
            try:
                await job.done.wait()
            except trio.Cancelled:
                with trio.move_on_after(END_TIMEOUT_S, shield=True):
                    await job.done.wait()
                raise
        else:
            for _ in range(AHEAD_TURNS if ahead else 0):
                await trio.lowlevel.checkpoint()
            job.perform()
        self._late_s = max(job.took_s, self._late_s * _REMEMBERED)
        if job.error is not None:
            raise job.error
        self.last_s = job.took_s
        self.slowest_s = max(self.slowest_s, job.took_s)

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._jobs.put(None)


class _Job:
    __slots__ = ("call", "done", "error", "token", "took_s")

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.done = trio.Event()
        self.error: Exception | None = None
        self.took_s = 0.0
        self.token = trio.lowlevel.current_trio_token()

    def perform(self) -> None:
        start = time.perf_counter()
        try:
            self.call()
        except Exception as error:  # noqa: BLE001 - raised again where the call was asked for
            self.error = error
        self.took_s = time.perf_counter() - start


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.perform()
        try:
            job.token.run_sync_soon(job.done.set)
        except trio.RunFinishedError:
            return  # The loop is gone: nobody waits.
