"""A strong store of one node in memory, for the tests of rooms above."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import trio
from store_applier import Applier

from swarmd.base.clock import BootClock
from swarmd.base.errors import NoQuorum
from swarmd.state.raft.messages import Change, Entry, Operation, OpResult


class MemoryStore:
    """The real state machine of one node, whose leases end by the clock."""

    def __init__(self) -> None:
        self.no_quorum = False
        self.applier = Applier()
        self._moved = trio.Event()

    def _now_ms(self) -> int:
        return int(BootClock().now() * 1_000)

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]:
        await trio.lowlevel.checkpoint()
        if self.no_quorum and ops:
            raise NoQuorum("no majority of the voters answers")
        results = self.applier.do(*ops, stamp_ms=self._now_ms())
        self._moved.set()
        self._moved = trio.Event()
        return results

    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None:
        await trio.lowlevel.checkpoint()
        return self.applier.state.get(key)

    async def range(
        self, prefix: bytes, after: bytes = b"", limit: int = 1_000, *, stale: bool = False
    ) -> Sequence[Entry]:
        await trio.lowlevel.checkpoint()
        return self.applier.state.range(prefix, after, limit)

    async def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]:
        state = self.applier.state
        told = state.revision if from_revision is None else from_revision - 1
        if from_revision is None:
            yield [], told
        while True:
            moved = self._moved
            if state.revision > told:
                found = state.history.since(told + 1, prefix)
                told = state.revision
                yield found, told
            await moved.wait()

    async def end_leases(self) -> None:
        while True:
            await trio.sleep(0.05)
            await self.propose([])
