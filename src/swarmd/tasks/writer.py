"""From proposals to writes: what comes while a write is under way shares the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from swarmd.base.errors import SwarmError
from swarmd.base.limits import BATCH_OPERATIONS_MAX
from swarmd.state.raft.messages import Operation, OpResult
from swarmd.tasks.events import Commit, Propose
from swarmd.tasks.ports import Store

WRITES_MAX: Final = 4
WRITE_TIMEOUT_S: Final = 5.0


class Writer:
    """Proposes for one office.

    Args:
        collect_s: longest wait for others while a write is under way.
        committed: told the outcomes of a write, in the order proposed.
        failed: told why the outcome of a write is unknown.
    """

    def __init__(
        self,
        store: Store,
        collect_s: float,
        committed: Callable[[tuple[Commit, ...]], None],
        failed: Callable[[SwarmError], None],
    ) -> None:
        self._store = store
        self._collect_s = collect_s
        self._committed = committed
        self._failed = failed
        self._waiting: list[Propose] = []
        self._wake = trio.Event()
        self._writing = 0
        self._idle = trio.Event()

    def put(self, proposal: Propose) -> None:
        """Propose soon."""
        self._waiting.append(proposal)
        self._wake.set()

    async def run(self) -> None:
        """Write what is put, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                # Whoever is ready to run in this turn may add to the batch.
                await trio.lowlevel.checkpoint()
                while self._waiting:
                    await self._collect()
                    batch = self._waiting[:BATCH_OPERATIONS_MAX]
                    del self._waiting[:BATCH_OPERATIONS_MAX]
                    self._writing += 1
                    nursery.start_soon(self._write, batch)

    async def _collect(self) -> None:
        """Wait for company, but never when nothing is under way."""
        while self._writing >= WRITES_MAX:
            self._idle = trio.Event()
            await self._idle.wait()
        if self._writing and len(self._waiting) < BATCH_OPERATIONS_MAX:
            self._idle = trio.Event()
            with trio.move_on_after(self._collect_s):
                await self._idle.wait()

    async def _write(self, batch: Sequence[Propose]) -> None:
        ops: list[Operation] = [proposal.op for proposal in batch]
        try:
            results = await self._store.propose(ops, timeout_s=WRITE_TIMEOUT_S)
        except SwarmError as error:
            self._failed(error)
            return
        finally:
            self._writing -= 1
            self._idle.set()
        self._committed(
            tuple(
                Commit(proposal.tag, _took(result), result.revision)
                for proposal, result in zip(batch, results, strict=True)
            )
        )


def _took(result: OpResult) -> bool:
    return result.ok
